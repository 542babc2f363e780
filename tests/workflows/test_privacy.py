"""Nothing is fetched or sent, and nothing of the machine gets into outputs."""

import getpass
import os
import socket
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from galsep.cli.main import main


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "secret-folder" / "a.fits"
    path.parent.mkdir()
    data = np.random.default_rng(0).normal(size=(60, 64)).astype(np.float32)
    data[28:34, 28:34] += 50
    header = fits.Header()
    header.update(CTYPE1="RA---TAN", CTYPE2="DEC--TAN", CRPIX1=30, CRPIX2=30, BUNIT="adu")
    header.update(CRVAL1=150.0, CRVAL2=2.0, CDELT1=-5e-5, CDELT2=5e-5)
    fits.writeto(path, data, header)
    return path


@pytest.fixture
def no_network(monkeypatch):
    """Have every attempt to reach another machine fail, and be counted."""
    tried = []

    def refuse(*arguments, **options):
        tried.append(arguments)
        raise OSError("there is no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tried


@pytest.mark.parametrize("form", ["fits", "ecsv", "vot", "csv"])
def test_deblending_fetches_nothing_and_tells_nothing(image, tmp_path, no_network, form, capsys):
    output = tmp_path / "out"
    products = ("--isolated", "--residual", "--preview", "--report") if form == "fits" else ()
    arguments = ["deblend", str(image), "-o", str(output), "--catalog-format", form, *products]
    assert main([*arguments, "--device", "cpu", "--batch-size", "1"]) == 0
    assert no_network == []
    capsys.readouterr()
    files = sorted(output.iterdir())
    assert len(files) == (6 if form == "fits" else 2)
    for file in files:
        told = revealed(content_of(file), tmp_path)
        assert not told, (file.name, told)


def test_simulating_fetches_nothing_and_tells_nothing(tmp_path, no_network, capsys):
    folder = tmp_path / "secret-folder"
    assert main(["simulate", str(folder), "--n", "20", "--workers", "1"]) == 0
    assert no_network == []
    capsys.readouterr()
    for file in folder.iterdir():
        told = revealed(file.read_bytes(), tmp_path)
        assert not told, (file.name, told)


def test_training_and_judging_fetch_nothing_and_tell_nothing(tmp_path, no_network, capsys):
    folder = tmp_path / "secret-folder"
    data, run, report = str(folder / "set"), str(folder / "run"), str(folder / "report")
    main(["simulate", data, "--n", "40", "--workers", "1", "-q"])
    sizes = ["--epochs", "1", "--separation-epochs", "1", "--epoch-size", "4", "--batch-size", "2"]
    assert main(["train", data, "-o", run, *sizes, "--device", "cpu", "-q"]) == 0
    weights = f"{run}/weights.safetensors"
    begun = ["--init", weights, *sizes, "--device", "cpu", "-q"]
    assert main(["train", data, "-o", f"{run}-2", *begun]) == 0
    judging = ["--weights", weights, "--workers", "1", "--device", "cpu", "-q"]
    assert main(["evaluate", data, "-o", report, *judging]) == 0
    assert no_network == []
    capsys.readouterr()
    files = [*Path(run).iterdir(), *Path(report).iterdir()]
    # Where --init lay is what one asked for, and stays in the settings to resume with.
    files += [file for file in Path(f"{run}-2").iterdir() if file.name != "config.toml"]
    assert len(files) > 15
    for file in files:
        told = revealed(file.read_bytes(), tmp_path)
        assert not told, (file.name, told)


def content_of(file: Path) -> bytes:
    """Bytes of a file, with headers put together that span several cards."""
    content = file.read_bytes()
    if file.suffix == ".fits":
        with fits.open(file) as hdus:
            content += "".join(repr(hdu.header) for hdu in hdus).encode()
    return content


def revealed(content: bytes, folder: Path) -> list[str]:
    """Names of this machine, its user and its folders that are in a file."""
    names = {str(folder), str(Path.home()), os.getcwd(), "secret-folder", socket.gethostname()}
    names.add(f"/{getpass.getuser()}/")
    # The shortest of them are words that may stand anywhere.
    return [name for name in names if len(name) > 5 and name.encode() in content]


def test_what_is_revealed_is_found(tmp_path):
    assert revealed(f"HISTORY {tmp_path}/a.fits".encode(), tmp_path) == [str(tmp_path)]
