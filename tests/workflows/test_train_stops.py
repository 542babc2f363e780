"""However a run ends, resumed it goes on as if it had not been stopped: to the last bit."""

import csv
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from galsep.config import SimulateConfig
from galsep.workflows.simulate import simulate

TIMES = {"seconds", "images_per_second"}

# The process kills itself when a step is done, or a file is about to be written, the n-th time.
PROGRAM = """
import os, signal
import galsep.workflows.stages as module
from galsep.workflows.train import train
from galsep.config import TrainConfig
from galsep.workflows.reporting import Reporter

def passed(place):
    global count
    count -= place == where
    if place == where and not count:
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
config = TrainConfig(
    epochs=2, separation_epochs=1, joint_epochs=1, epoch_size=4, batch_size=2, validation_size=2,
    f1_size=2, calibrate=False, device="cpu", threads=1, workers=workers,
)
train(data, run, config, resume=resume, reporter=Killing())
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "set"
    simulate(folder, SimulateConfig(n=40, seed=2, workers=1))
    return folder


@pytest.fixture(scope="module")
def run(data, forked):
    def exit_code(folder, where="", count=1, resume=False):
        # What makes the batches may change.
        workers = 2 if resume and sys.platform == "linux" else 0
        child = forked(
            PROGRAM, data=data, run=folder, where=where, count=count, resume=resume, workers=workers
        )
        child.join(300)
        return child.exitcode

    return exit_code


@pytest.fixture(scope="module")
def unbroken(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    assert run(folder) == 0
    return folder


def figures(path):
    with path.open() as stream:
        return [
            {name: value for name, value in row.items() if name not in TIMES}
            for row in csv.DictReader(stream)
        ]


def assert_same(one: Path, other: Path):
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}
    for prefix, epochs in (("", 2), ("separation_", 1), ("joint_", 1)):
        name = f"{prefix}metrics.csv"
        assert len(figures(one / name)) == epochs
        assert figures(one / name) == figures(other / name)
    for name in ("weights", "best"):
        # Metadata and all.
        paths = (folder / f"{name}.safetensors" for folder in (one, other))
        assert len({path.read_bytes() for path in paths}) == 1
    for name in ("state", "separation_state", "joint_state"):
        tensors, others = (load_file(folder / f"{name}.safetensors") for folder in (one, other))
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensor, others[key]) for key, tensor in tensors.items())


def test_a_run_killed_again_and_again_goes_on_as_if_it_had_not_been(run, unbroken, tmp_path):
    kills = (
        ("step", 3),  # in the second epoch
        ("state", 1),  # after it: weights and figures are an epoch ahead of the state
        ("step", 3),  # once it is trained again, in that of the separation network
        ("step", 3),  # once that is, in that of both
    )
    for number, (where, count) in enumerate(kills):
        killed = run(tmp_path / "run", where, count, resume=number > 0)
        assert killed == -signal.SIGKILL
    assert run(tmp_path / "run", resume=True) == 0
    assert_same(tmp_path / "run", unbroken)
