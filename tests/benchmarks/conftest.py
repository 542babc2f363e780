"""The scripts of ``benchmarks/``, which are not part of the package, as modules."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench(request):
    """The script that the test module names as ``BENCHMARK``; what it imports goes with it."""
    name = request.module.BENCHMARK
    if not (FOLDER / f"{name}.py").is_file():
        pytest.skip("the benchmarks are not part of the package")
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))
        for script in FOLDER.glob("*.py"):
            sys.modules.pop(script.stem, None)
