"""Importing torchvision without torch's compiler, which takes most of its import's time.

``torchvision.ops.roi_align`` imports ``torch._dynamo`` for one function that it may never call;
that brings in the compiler and SymPy, more than a second on a fast machine. A stand-in that
imports the real one when it is called does as well.
"""

import importlib
import sys
from types import ModuleType

__all__ = ["import_torchvision"]

_COMPILER = ("torch._dynamo", "torch._dynamo.utils")


def import_torchvision() -> None:
    """Import torchvision; torch's compiler is loaded when somebody uses it."""
    if "torchvision" in sys.modules or _COMPILER[0] in sys.modules:
        return
    importlib.import_module("torch")
    package, utils = (ModuleType(name) for name in _COMPILER)
    package.__path__ = []
    vars(package)["utils"] = utils
    vars(utils)["is_compile_supported"] = _is_compile_supported
    sys.modules.update(zip(_COMPILER, (package, utils), strict=True))
    try:
        importlib.import_module("torchvision")
    except ImportError:
        # Another version of torchvision wants more of the compiler.
        _remove(package, utils)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        importlib.import_module("torchvision")
    finally:
        _remove(package, utils)


def _remove(*stand_ins: ModuleType) -> None:
    for stand_in in stand_ins:
        if sys.modules.get(stand_in.__name__) is stand_in:
            del sys.modules[stand_in.__name__]


def _is_compile_supported(device: str) -> bool:
    utils = importlib.import_module("torch._dynamo.utils")
    return bool(utils.is_compile_supported(device))
