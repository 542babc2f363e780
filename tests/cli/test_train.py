"""``galsep train``: exit codes and the run it leaves."""

import csv
import os
import signal
import sys
import time
import tomllib
from pathlib import Path

import pytest
import torch

from galsep.model.weights import load_model

from .conftest import names

RUN_FILES = [
    "best.safetensors", "config.toml", "losses.png", "metrics.csv",
    "separation_losses.png", "separation_metrics.csv", "separation_state.safetensors",
    "state.safetensors", "weights.safetensors",
]  # fmt: skip

SIZES = ("--epochs", 1, "--separation-epochs", 1, "--epoch-size", 4, "--batch-size", 2)
SMALL = (*SIZES, "--threads", 1, "--device", "cpu")


@pytest.fixture
def quick(tmp_path):
    """Settings that have no option, for the shortest of runs."""
    file = tmp_path / "quick.toml"
    file.write_text("validation_size = 2\nf1_size = 2\ncalibrate = false\namp = false\n")
    return ("--config", file)


def test_a_run_and_its_resumption(galsep, dataset, tmp_path, quick):
    run = tmp_path / "run"
    outcome = galsep("train", dataset, "--output", run, *SMALL, *quick)
    assert outcome.code == 0
    assert outcome.out == ""
    counted = "epochs: 1 of Mask R-CNN, 1 of the separation network"
    assert f"wrote {run / 'weights.safetensors'}; {counted}" in outcome.err
    assert "\nepoch 1: loss" in outcome.err
    assert "separation epoch 1: loss" in outcome.err
    assert names(run) == RUN_FILES
    settings = tomllib.loads((run / "config.toml").read_text())
    assert settings["epoch_size"] == 4
    assert settings["validation_size"] == 2
    assert load_model(run / "weights.safetensors", "cpu").info["epoch"] == 1
    # A finished run has nothing left to do, with its own settings as the base.
    resumed = galsep("train", dataset, "--output", run, "--resume")
    assert resumed.code == 0
    with (run / "metrics.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 1
    assert galsep("train", dataset, "--output", run, "--resume", "--seed", 5).code == 2
    refused = galsep("train", dataset, "--output", run, "--epochs", 1)
    assert refused.code == 3
    assert "--resume" in refused.error


def test_a_dry_run_measures_and_writes_nothing(galsep, dataset, tmp_path, monkeypatch, quick):
    from galsep.workflows import rehearse

    monkeypatch.setattr(rehearse, "STEPS", 2)
    monkeypatch.setattr(rehearse, "WARMUP", 1)
    monkeypatch.setattr(rehearse, "peak_memory", lambda _: 3 * 2**29)
    monkeypatch.chdir(tmp_path)
    outcome = galsep("train", dataset, "--dry-run", *SMALL, *quick, "--joint-epochs", 1)
    assert outcome.code == 0
    title, _, detector, separator, both, total = outcome.out.splitlines()
    assert title.startswith("on cpu, peak memory 1.5 GiB")
    parameters = sum(p.numel() for p in load_model(device="cpu").network.parameters())
    assert detector.startswith("Mask R-CNN")
    assert f" {parameters:,} " in detector
    assert separator.startswith("separation network")
    assert both.startswith("both networks together")
    assert total.startswith("all")
    assert names(tmp_path) == ["quick.toml"]


def workers_of(pid):
    """Processes that make batches for another one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            name = (folder / "comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            continue  # It has ended meanwhile.
        if parent == pid and name == "pt_data_worker":
            found.append(int(folder.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked")
@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGKILL, 1, "error: DataLoader worker (pid"),
    ],
)
def test_however_it_ends_no_worker_is_left(process, dataset, tmp_path, quick, number, code, said):
    settings = (*SMALL, *quick, "--epoch-size", 4000, "--workers", 2, "-q")
    with process(
        "train", dataset, "--output", tmp_path / "run", *settings, start_new_session=True
    ) as run:
        until = time.monotonic() + 120
        while len(workers := workers_of(run.pid)) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(1)
        if number == signal.SIGKILL:
            os.kill(workers[0], number)
        else:
            os.killpg(run.pid, number)
        out, err = run.communicate(timeout=120)
    assert (run.returncode, out) == (code, "")
    assert err.splitlines()[-1].startswith(said)
    assert len(err.splitlines()) == 1 + (number == signal.SIGINT)  # where its weights are
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


def test_resuming_takes_the_settings_of_the_run(galsep, tmp_path):
    (tmp_path / "config.toml").write_text("epoch_size = 12\nbatch_size = 3\n")
    file = tmp_path / "mine.toml"
    file.write_text("batch_size = 5\nseed = 6\n")
    dump = ("train", "--output", tmp_path, "--dump-config")
    settings = tomllib.loads(galsep(*dump, "--resume", "--config", file, "--seed", 7).out)
    assert (settings["epoch_size"], settings["batch_size"], settings["seed"]) == (12, 5, 7)
    assert tomllib.loads(galsep(*dump).out)["epoch_size"] == 8000


def test_recipes(galsep):
    compact = tomllib.loads(galsep("train", "--dump-config").out)
    paper = tomllib.loads(galsep("train", "--recipe", "paper", "--dump-config").out)
    assert (compact["init"], compact["batch_size"]) == ("random", 16)
    assert (paper["init"], paper["batch_size"], paper["epochs"]) == ("coco", 64, 80)
    assert paper["stages"][0] == ["heads", 15, 0.001]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "DATASET"),
        (["set"], "--output"),
        (["set", "--output", "run", "--recipe", "big"], "compact"),
        (["set", "--output", "run", "--epochs", "0"], "epochs"),
        (["set", "--output", "run", "--device", "abacus"], "abacus"),
    ],
)
def test_wrong_usage(galsep, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    outcome = galsep("train", *arguments)
    assert outcome.code == 2
    assert said in outcome.error
    assert names(tmp_path) == []


def test_a_device_that_is_not_there(galsep, dataset, tmp_path, no_cuda):
    outcome = galsep("train", dataset, "--output", tmp_path / "run", "--device", "cuda")
    assert outcome.code == 2
    assert names(tmp_path) == []


def test_a_data_set_of_another_version(galsep, other_version, tmp_path):
    outcome = galsep("train", other_version, "--output", tmp_path / "run")
    assert outcome.code == 1
    assert "version 99" in outcome.error
    assert names(tmp_path) == []


def test_no_data_set(galsep, tmp_path):
    outcome = galsep("train", tmp_path / "nothing", "--output", tmp_path / "run")
    assert outcome.code == 1
    assert "nothing" in outcome.error
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_starting_weights_that_are_none(galsep, dataset, tmp_path, name):
    start = tmp_path / name
    start.write_bytes(b"these are no weights")
    outcome = galsep("train", dataset, "--output", tmp_path / "run", "--init", start)
    assert outcome.code == 1
    assert name in outcome.error
    assert names(tmp_path) == [name]


class Malicious:
    def __init__(self, witness):
        self.witness = str(witness)

    def __reduce__(self):
        return (open, (self.witness, "w"))


def test_starting_weights_that_would_run_code(galsep, dataset, tmp_path):
    start, witness = tmp_path / "evil.pth", tmp_path / "code-ran"
    torch.save({"weight": Malicious(witness)}, start)
    outcome = galsep("train", dataset, "--output", tmp_path / "run", "--init", start)
    assert outcome.code == 1
    assert (
        "evil.pth: neither .safetensors nor a torch state dict that is safe to load"
        in outcome.error
    )
    assert names(tmp_path) == ["evil.pth"]
    # It would have run any other way.
    torch.load(start, weights_only=False)["weight"].close()
    assert witness.exists()


def test_an_output_folder_that_cannot_be_made(galsep, dataset, tmp_path, quick):
    (tmp_path / "file").write_text("in the way")
    outcome = galsep("train", dataset, "--output", tmp_path / "file", "-q", *SMALL, *quick)
    assert outcome.code == 1
    assert "file" in outcome.error
