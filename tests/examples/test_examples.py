"""The examples run as they stand."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from astropy.io import fits

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def run(command):
    scripts = os.path.dirname(sys.executable)
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment, cwd=ROOT
    )


def test_the_example_image_is_small_and_has_a_wcs():
    path = EXAMPLES / "field.fits.fz"
    assert path.stat().st_size < 1_000_000
    with fits.open(path, checksum=True) as hdus:
        assert hdus["SCI"].data.shape == (512, 512)
        assert hdus["SCI"].header["CTYPE1"] == "RA---TAN"


def test_from_python():
    out = run([sys.executable, EXAMPLES / "deblend.py"]).stdout
    assert "sources from" in out.splitlines()[0]
    assert "px" in out.splitlines()[-1]


@pytest.mark.skipif(
    not (shutil.which("galsep", path=os.path.dirname(sys.executable)) and shutil.which("sh")),
    reason="galsep is not installed as a command",
)
def test_in_a_shell():
    done = run([EXAMPLES / "pipeline.sh"])
    rows = [line.split() for line in done.stdout.splitlines()]
    assert len(rows) == 10
    fluxes = [float(row[0]) for row in rows]
    assert fluxes == sorted(fluxes, reverse=True)
    assert done.stderr == ""
