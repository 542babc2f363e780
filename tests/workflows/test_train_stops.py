"""However a run ends, resumed it goes on as if it had not been stopped: to the last bit."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from galsep.config import SimulateConfig
from galsep.workflows.simulate import simulate

SETTINGS = """
epochs = 2
separation_epochs = 2
epoch_size = 4
batch_size = 2
validation_size = 2
f1_size = 2
calibrate = false
device = "cpu"
threads = 2
"""
TIMES = {"seconds", "images_per_second"}

# Kills itself, as nothing else can, when it is told for the n-th time that a step is done or that
# a file is about to be written.
PROGRAM = """
import os, signal, sys
from pathlib import Path
import galsep.workflows.train as module
from galsep.config import TrainConfig, read_toml, resolve
from galsep.workflows.reporting import Reporter

data, run, where, count, resume = sys.argv[1:]
left = int(count)

def passed(place):
    global left
    left -= place == where
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

class Killing(Reporter):
    def advance(self, steps=1, note=""):
        passed("step")

def before(name, function):
    def wrapped(*args, **options):
        passed(name)
        return function(*args, **options)
    return wrapped

module.save_weights = before("weights", module.save_weights)
module._write_figures = before("figures", module._write_figures)
module.Trainer.save = before("state", module.Trainer.save)
config = resolve(TrainConfig, None, read_toml(Path(data) / "settings.toml"))
module.train(Path(data) / "set", run, config, resume=resume == "resume", reporter=Killing())
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    simulate(folder / "set", SimulateConfig(n=60, seed=2, workers=1))
    (folder / "settings.toml").write_text(SETTINGS)
    return folder


def run(data, folder, where="never", count=1, resume=False):
    """Exit status of a process that trains."""
    arguments = [str(data), str(folder), where, str(count), "resume" if resume else "anew"]
    return subprocess.run([sys.executable, "-c", PROGRAM, *arguments], timeout=300).returncode


@pytest.fixture(scope="module")
def unbroken(data):
    assert run(data, data / "unbroken") == 0
    return data / "unbroken"


def figures(path):
    with path.open() as stream:
        return [
            {name: value for name, value in row.items() if name not in TIMES}
            for row in csv.DictReader(stream)
        ]


def assert_same(one: Path, other: Path):
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}
    for name in ("metrics.csv", "separation_metrics.csv"):
        assert len(figures(one / name)) == 2
        assert figures(one / name) == figures(other / name)
    for name in ("weights", "best", "state", "separation_state"):
        tensors, others = (load_file(folder / f"{name}.safetensors") for folder in (one, other))
        assert tensors.keys() == others.keys()
        for key, tensor in tensors.items():
            assert torch.equal(tensor, others[key]), (name, key)
    for name in ("weights", "best"):
        # Metadata and all.
        paths = (folder / f"{name}.safetensors" for folder in (one, other))
        assert len({path.read_bytes() for path in paths}) == 1


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX")
@pytest.mark.parametrize(
    ("where", "count"),
    [
        ("step", 1),  # in the first epoch: nothing is there yet
        ("step", 4),  # in the last epoch, of two steps
        ("weights", 3),  # between the epochs' files: best and last of the first epoch are written
        ("figures", 2),
        ("state", 2),
        ("state", 3),  # of the separation network
    ],
)
def test_a_killed_run_goes_on_as_if_it_had_not_been(data, unbroken, tmp_path, where, count):
    assert run(data, tmp_path / "run", where, count) == -signal.SIGKILL
    assert not os.path.exists(tmp_path / "run" / "separation_state.safetensors")
    assert run(data, tmp_path / "run", resume=True) == 0
    assert_same(tmp_path / "run", unbroken)
