"""A light portion of ``benchmarks/load.py``: many files, calls at once, memory."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "load.py"


@pytest.mark.skipif(not SCRIPT.exists(), reason="there are no benchmarks here")
def test_load():
    light = ("--files", "8", "--calls", "3", "--repeat", "30", "--settled", "10")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *light], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0].endswith("16 products")
    assert said[1] == "3 calls at once into one folder: 4 products, equal to those of one call"
    assert said[2].startswith("30 deblends in one process")
