"""What the tests of the command line share: running it, small inputs, throw-away weights."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from galsep.cli import console
from galsep.cli.main import main
from galsep.config import SimulateConfig


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that says what went wrong."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: "), self.err
        assert self.out == ""
        return lines[0]


@pytest.fixture
def galsep(capsys, monkeypatch) -> Callable[..., Outcome]:
    """Run galsep in this process, without the lines of progress that depend on its speed."""
    monkeypatch.setattr(console, "PLAIN_INTERVAL", float("inf"))

    def run(*arguments) -> Outcome:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def process() -> Callable[..., subprocess.Popen]:
    """Start galsep as a process of its own."""

    def start(*arguments, **options) -> subprocess.Popen:
        command = [sys.executable, "-m", "galsep", *map(str, arguments)]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen(command, text=True, **options)

    return start


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """A weights file of an untrained network."""
    import torch

    from galsep.model.network import ARCHITECTURES, build_network
    from galsep.model.weights import save_weights

    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    architecture = ARCHITECTURES["compact"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(architecture)
    save_weights(path, network, {"architecture": architecture.to_dict(), "threshold": 0.4})
    return path


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """A data set of 60 pairs: 54 to train, 3 to validate, 3 to test."""
    from galsep.workflows.simulate import simulate

    folder = tmp_path_factory.mktemp("data") / "pairs"
    simulate(folder, SimulateConfig(n=60, workers=1))
    return folder


@pytest.fixture(scope="session")
def other_version(dataset, tmp_path_factory) -> Path:
    """The data set as a later version of its format might look."""
    folder = tmp_path_factory.mktemp("data") / "later"
    folder.mkdir()
    for path in dataset.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    meta = folder / "dataset.toml"
    meta.write_text(meta.read_text().replace("format_version = 1", "format_version = 99"))
    return folder


@pytest.fixture(scope="session")
def field(tmp_path_factory) -> Path:
    """A simulated field of 140×125 px."""
    from galsep.workflows.simulate import simulate

    folder = tmp_path_factory.mktemp("field")
    config = SimulateConfig(field="140x125", galaxies="1", density=150.0, seed=3, workers=1)
    simulate(folder, config)
    return folder / "field_i.fits"


@pytest.fixture
def no_cuda():
    """Skip where there is a CUDA device."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")


def names(folder: Path) -> list[str]:
    """Everything in a folder, hidden and partial files too."""
    return sorted(os.listdir(folder)) if folder.exists() else []
