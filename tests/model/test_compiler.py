import subprocess
import sys


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_network_loads_without_torchs_compiler():
    run(
        "import sys\n"
        "from galsep.model.weights import load_model\n"
        "load_model(device='cpu')\n"
        "assert 'torchvision' in sys.modules\n"
        "assert not [name for name in sys.modules if name.startswith('torch._dynamo')]\n"
    )


def test_the_compiler_is_there_when_it_is_wanted():
    run(
        "import importlib, torch, galsep.model.network\n"
        "module = importlib.import_module('torchvision.ops.roi_align')\n"
        "assert module.is_compile_supported('cpu') in (True, False)\n"
        "import torch._dynamo.utils as real\n"
        "assert module.is_compile_supported('cpu') == real.is_compile_supported('cpu')\n"
        "assert torch._dynamo.utils is real\n"
    )


def test_a_compiler_that_is_loaded_stays():
    run(
        "import torch._dynamo.utils as real, sys\n"
        "import galsep.model.network\n"
        "assert sys.modules['torch._dynamo.utils'] is real\n"
    )
