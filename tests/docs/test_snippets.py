"""Every command and every piece of Python of the documentation runs, on small data.

A page's blocks run in order, in a folder of its own that holds the files which the pages name:
small ones, in the form that the survey's have. Commands run as they stand, but for the sizes in
``SMALLER`` and ``--overwrite``, since pages show one command in several variants.
"""

import glob
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from galsep.cli.main import main

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")])
BLOCK = re.compile(r"^ *```(sh|python)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)

SMALLER = {
    "simulate": "--n 20 --galaxies 2 --workers 1",
    "train": "--epochs 1 --separation-epochs 1 --epoch-size 4 --batch-size 4 --device cpu",
    "evaluate": "--limit 1 --no-baselines --device cpu",
    "deblend": "--device cpu",
}
"""Options that win over those of the pages, for time's sake."""

ELSEWHERE = ("python3 -m pip ", "make ", ".venv/bin/pre-commit ")
"""What CI itself does, or what installs something."""


def blocks(kind):
    for page in PAGES:
        found = [text for language, text in BLOCK.findall(page.read_text()) if language == kind]
        if found:
            yield pytest.param(page, found, id=page.name)


def commands(text):
    """Commands of a block: lines, joined where they end in a backslash, without comments."""
    lines = re.sub(r"\\\n", " ", text).splitlines()
    command = ""
    for line in lines:
        command += re.sub(r"\s+#.*", "", line) + "\n"
        # A quoted awk program goes over several lines, and so does a pipe that a line ends with.
        if command.count("'") % 2 == 0 and not command.rstrip().endswith("|"):
            if command.strip() and not command.startswith("#"):
                yield command.strip()
            command = ""


@pytest.fixture(scope="session")
def crop():
    """A part of the example's field, and its header."""
    data, header = fits.getdata(ROOT / "examples" / "field.fits.fz", header=True)
    return data[150:250, 150:250].astype(np.float32), header


def planes(image, header, **others):
    """HDUs of an image and its planes, by name."""
    zero, noise = np.zeros(image.shape, np.int32), np.full(image.shape, 430.0, np.float32)
    hdus = fits.HDUList([fits.PrimaryHDU()])
    for name, kind in others.items():
        plane = {"image": image, "mask": zero, "rms": noise, "variance": noise**2,
                 "weight": noise**-2}[kind]  # fmt: skip
        hdus.append(fits.ImageHDU(plane, header.copy() if kind == "image" else None, name=name))
    return hdus


@pytest.fixture(scope="session")
def files(tmp_path_factory, crop):
    """The files that the pages name."""
    folder = tmp_path_factory.mktemp("files")
    image, header = crop
    header = fits.Header([card for card in header.cards if card.keyword not in ("EXTNAME",)])
    (folder / "examples").mkdir()
    fits.writeto(folder / "image.fits", image, header)
    fits.writeto(folder / "field.fits", image, header)
    compressed = fits.CompImageHDU(image, header, name="SCI")
    compressed.writeto(folder / "examples" / "field.fits.fz")
    lsst = planes(image, header, IMAGE="image", MASK="mask", VARIANCE="variance")
    for bit, name in enumerate(("BAD", "SAT", "INTRP", "CR", "EDGE", "NO_DATA")):
        lsst["MASK"].header[f"HIERARCH MP_{name}"] = bit
    for name in (
        "deepCoadd_calexp_4431_17_i",
        "calexp-HSC-I-9813-4,4",
        "calexp-HSC-R-9813-4,4",
        "calexp-HSC-G-9813-4,4",
    ):
        lsst.writeto(folder / f"{name}.fits")
    des = planes(image, header, SCI="image", MSK="mask", WGT="weight")
    des.writeto(folder / "DES0102-4914_r.fits.fz")
    for letter, kind in {"i": "image", "w": "weight", "d": "mask"}.items():
        ccds = planes(image, header, N1=kind, N2=kind)
        ccds.writeto(folder / f"c4d_oo{letter}_r.fits.fz")
    for name, kind in {"BGSUB-MOSAIC": "image", "RMS": "rms", "FLAG": "mask"}.items():
        one = planes(image, header, X=kind)["X"]
        fits.writeto(folder / f"{name}-VIS.fits", one.data, one.header)
    hst = planes(image, header, SCI="image", WHT="weight", CTX="mask")
    hst.writeto(folder / "hst_acs_f814w_drc.fits")
    made = ["--output", str(folder / "out"), "--isolated", "--device", "cpu", "--quiet"]
    assert main(["deblend", str(folder / "field.fits"), *made]) == 0
    return folder


@pytest.fixture
def here(files, tmp_path, monkeypatch):
    """A folder with those files to work in."""
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command):
    """Run a command: galsep by itself in this process, anything else in a shell."""
    if command.startswith(ELSEWHERE):
        return
    words = shlex.split(command)
    if words[0] == "galsep" and not {"|", ">"} & set(words):
        assert main([*expanded(words[1:]), *extra(words)]) == 0, command
        return
    shell(command)


def extra(words):
    # Of a field, the size is that of the page.
    options = [] if "--field" in words else shlex.split(SMALLER.get(words[1], ""))
    asks = {"--output", "-o"} & set(words) or words[1] == "simulate"
    return [*options, *(["--overwrite"] if asks and "--skip-existing" not in words else [])]


def expanded(words):
    """Words with the names that a shell would make of patterns."""
    for word in words:
        yield from sorted(glob.glob(word)) or [word]


def shell(command):
    """Run a command in a shell that knows galsep."""
    folder = Path("bin").absolute()
    folder.mkdir(exist_ok=True)
    program = folder / "galsep"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m galsep "$@"\n')
    program.chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    python = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": python}
    subprocess.run(["sh", "-ec", command], env=environment, check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize(("page", "found"), list(blocks("sh")))
def test_commands(page, found, here, capsys):
    ran = 0
    for text in found:
        for command in commands(text):
            run(command)
            ran += 1
    assert ran


@pytest.mark.parametrize(("page", "found"), list(blocks("python")))
def test_python(page, found, here):
    import matplotlib as mpl

    mpl.use("Agg")
    names = {}
    for text in found:
        exec(compile(text, page.name, "exec"), names)
    from matplotlib import pyplot

    pyplot.close("all")


def test_commands_are_told_apart():
    text = "galsep info a.fits # why\ngalsep deblend \\\n  b.fits\ncat x |\nawk '{\n print }' > y\n"
    assert list(commands(text)) == [
        "galsep info a.fits",
        "galsep deblend    b.fits",
        "cat x |\nawk '{\n print }' > y",
    ]
