"""Two processes train as one does with the same batches."""

import csv
import socket
import sys

import pytest
from safetensors.torch import load_file

from galsep.config import SimulateConfig
from galsep.model.weights import find_weights
from galsep.workflows.simulate import simulate

PROGRAM = """
import os
os.environ.update(environment)
from galsep.config import TrainConfig
from galsep.workflows.train import train

config = TrainConfig(
    init="compact", epochs=1, separation_epochs=1, separation_rate=1e-5, joint_epochs=1,
    joint_rate=1e-5, epoch_size=6, batch_size=4, optimizer="sgd", warmup=0, schedule="steps",
    stages=(("all", 1, 1e-2),), amp=False, max_groups=3, validation_size=2, f1_size=2,
    calibrate=False, device="cpu", threads=1, workers=workers,
)
train(data, run, config)
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def environment(rank, count, port):
    """What torchrun tells a process."""
    return {
        "RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory, forked):
    folder = tmp_path_factory.mktemp("parallel")
    simulate(folder / "set", SimulateConfig(n=40, seed=2, workers=1))
    port = free_port()
    for name, environments in (
        ("one", [{}]),
        ("two", [environment(rank, 2, port) for rank in range(2)]),
    ):
        children = [
            forked(
                PROGRAM,
                environment=each,
                data=folder / "set",
                run=folder / name,
                workers=len(environments) - 1 if sys.platform == "linux" else 0,
            )
            for each in environments
        ]
        for child in children:
            child.join(300)
        assert [child.exitcode for child in children] == [0] * len(children)
    return folder / "one", folder / "two"


def test_losses_are_those_of_one_process(runs):
    for name in ("metrics.csv", "separation_metrics.csv", "joint_metrics.csv"):
        rows = []
        for run in runs:
            with (run / name).open() as stream:
                (row,) = csv.DictReader(stream)
            rows.append({key: float(value) for key, value in row.items() if "_loss" in key})
        one, two = rows
        assert len(one) >= 12
        assert two == pytest.approx(one, rel=1e-4)


def test_so_are_the_gradients(runs):
    start = load_file(find_weights("compact"))
    one, two = (load_file(run / "state.safetensors") for run in runs)
    moved = 0
    for name, before in start.items():
        if name.startswith("separation.") or not before.is_floating_point():
            continue
        step, other = (after[f"network.{name}"] - before for after in (one, two))
        assert float((other - step).norm()) <= 3e-3 * float(step.norm()) + 1e-7
        moved += bool(step.any())
    assert moved > 100


def test_one_process_writes_the_files(runs):
    one, two = ({path.name for path in run.iterdir()} for run in runs)
    assert one == two
