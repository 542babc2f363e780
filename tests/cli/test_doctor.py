"""``galsep doctor``: whether this installation works."""

import hashlib
import importlib
import importlib.metadata
import json
import platform

import pytest

from galsep import __version__
from galsep.workflows import doctor


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """Installed with these requirements, whatever the environment of the tests is."""
    needs = ["numpy>=1.26", "safetensors>=0.4", "scikit-image>=0.1", 'nothing-real; extra == "x"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: needs)
    monkeypatch.setattr(importlib.metadata, "metadata", lambda _: {"Requires-Python": ">=3.11,<4"})
    return needs


def test_a_sound_installation(galsep, weights):
    outcome = galsep("doctor", "--weights", weights)
    assert (outcome.code, outcome.err) == (0, "")
    rows = dict(line.split(maxsplit=1) for line in outcome.out.splitlines())
    assert rows["galsep"] == __version__
    assert rows["Python"] == platform.python_version()
    assert rows["numpy"] == importlib.metadata.version("numpy")
    assert rows["weights"] == f"{weights}  load"
    assert rows["SHA-256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert "bfloat16" in rows
    assert "nothing-real" not in rows


def test_as_json(galsep, weights):
    outcome = galsep("doctor", "--weights", weights, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    found = json.loads(outcome.out)
    assert [one["name"] for one in found["dependencies"]] == [
        "numpy",
        "safetensors",
        "scikit-image",
    ]
    assert found["problems"] == []
    assert found["compute"]["auto"].split(":")[0] in ("cpu", "cuda", "mps")
    assert "cpu" in found["compute"]["devices"]
    assert found["compute"]["threads"] >= 1
    assert found["weights"]["problem"] == ""


@pytest.mark.parametrize("content", [None, b"broken"])
def test_unusable_weights_are_told(galsep, tmp_path, content):
    path = tmp_path / "w.safetensors"
    if content is not None:
        path.write_bytes(content)
    outcome = galsep("doctor", "--weights", path)
    assert outcome.code == 1
    (line,) = outcome.err.splitlines()
    assert line.startswith("error: weights are not usable: ")
    assert "w.safetensors" in line
    assert "broken" in outcome.out


def test_missing_old_and_broken_packages_are_told(galsep, weights, installed, monkeypatch):
    installed[:] = ["no-such-package>=1", "numpy>=999", "safetensors>=0.4"]
    load = importlib.import_module

    def broken(name, *rest):
        if name == "safetensors":
            raise OSError("libsomething.so: cannot open\nmore")
        return load(name, *rest)

    monkeypatch.setattr(importlib, "import_module", broken)
    outcome = galsep("doctor", "--weights", weights)
    assert outcome.code == 1
    numpy = importlib.metadata.version("numpy")
    assert outcome.err.splitlines() == [
        "error: no-such-package: is not installed; pip install 'no-such-package>=1'",
        f"error: numpy: version {numpy} is not >=999; pip install 'numpy>=999'",
        "error: safetensors: does not load (OSError: libsomething.so: cannot open); "
        "pip install 'safetensors>=0.4'",
    ]


def test_a_broken_torch_is_told(galsep, monkeypatch):
    def broken():
        raise ImportError("libcudart.so: no such file")

    monkeypatch.setattr(doctor, "_compute", broken)
    outcome = galsep("doctor", "--json")
    assert outcome.code == 1
    assert "libcudart" in outcome.err
    found = json.loads(outcome.out)
    assert found["compute"] is None
    assert found["weights"] is None


def test_a_source_tree_that_is_not_installed_is_told(galsep, weights, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "metadata", missing)
    outcome = galsep("doctor", "--weights", weights)
    assert outcome.code == 1
    assert "pip install ." in outcome.err


def test_a_package_of_another_name_is_loaded_by_its_module():
    assert doctor._modules()["scikit-image"] == ["skimage"]
    assert doctor._modules()["matplotlib"] == ["matplotlib"]
