import csv

import numpy as np
import pytest
import torch

from galsep.config import SimulateConfig, TrainConfig
from galsep.errors import DatasetError, OutputError, OutputExistsError, UsageError, WeightsError
from galsep.io.claim import claimed
from galsep.io.dataset import load_dataset
from galsep.model.engine import Detecting, Trainer
from galsep.model.joint_training import Joining
from galsep.model.separation_training import Separating
from galsep.model.weights import load_model, read_info, sha256
from galsep.settings import resolve
from galsep.workflows import stages
from galsep.workflows.calibrate import THRESHOLDS, best_f1, calibrate
from galsep.workflows.reporting import Reporter
from galsep.workflows.simulate import simulate
from galsep.workflows.train import train


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "set"
    simulate(folder, SimulateConfig(n=60, seed=2, workers=1))
    return folder


def small(**options):
    return resolve(
        TrainConfig,
        None,
        {
            "epochs": 2,
            "separation_epochs": 2,
            "epoch_size": 4,
            "batch_size": 2,
            "validation_size": 2,
            "f1_size": 2,
            "device": "cpu",
            **options,
        },
    )


def test_a_run_has_its_folder_alone(dataset, tmp_path):
    (tmp_path / "run").mkdir()
    with claimed(tmp_path / "run" / "run"), pytest.raises(OutputError, match="another training"):
        train(dataset, tmp_path / "run", small())
    assert not any((tmp_path / "run").iterdir())


def test_a_run_leaves_everything_the_design_lists(dataset, tmp_path):
    result = train(dataset, tmp_path / "run", small(joint_epochs=2))
    files = {path.name for path in (tmp_path / "run").iterdir()}
    figures = {"metrics.csv", "losses.png", "state.safetensors"}
    weights = {"weights.safetensors", "best.safetensors"}
    stages = {"": Detecting, "separation_": Separating, "joint_": Joining}
    assert files == {"config.toml"} | weights | {
        prefix + name for prefix in stages for name in figures
    }
    histories = (result.history, result.separation_history, result.joint_history)
    assert [len(history) for history in histories] == [2, 2, 2]
    for prefix, objective in stages.items():
        with (tmp_path / "run" / f"{prefix}metrics.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        assert len(rows) == 2
        for name in ("loss", *objective.parts):
            assert np.isfinite(float(rows[1][f"train_{name}"]))
            assert np.isfinite(float(rows[1][f"validation_{name}"]))
    model = load_model(result.weights, "cpu")
    info = model.info
    assert model.separator is not None
    assert info["separation"]["epoch"] == 2
    assert info["separation"]["flux_fit"]["spread"] > 0
    assert info["joint"]["epoch"] == 2
    assert info["joint"]["training"]["fixed_statistics"]
    assert info["training"]["epochs"] == 2
    assert info["dataset"]["seed"] == 2
    assert {"slope", "intercept", "missed"} <= set(info["calibration"])
    with pytest.raises(OutputExistsError, match="--resume"):
        train(dataset, tmp_path / "run", small())
    with pytest.raises(UsageError, match="began with"):
        train(dataset, tmp_path / "run", small(joint_epochs=2, seed=9), resume=True)


def test_trained_together_both_networks_change(dataset, tmp_path):
    """From trained ones; what normalisation has learnt stays."""
    config = small(
        init="compact", epochs=0, separation_epochs=0, joint_epochs=1, joint_rate=1e-3, ema=0.0
    )
    model = load_model(train(dataset, tmp_path / "run", config).weights, "cpu")
    before = load_model("compact", "cpu")
    for name in ("network", "separator"):
        now, then = (getattr(part, name).state_dict() for part in (model, before))
        for key in now:
            fixed = key.endswith(("running_mean", "running_var", "num_batches_tracked"))
            assert torch.equal(now[key], then[key]) == fixed, key
    for key in ("calibration", "validation"):
        assert model.info[key] != before.info[key]
    assert model.flux_fit != before.flux_fit
    assert model.info["separation"]["training"] == before.info["separation"]["training"]


def test_without_a_separation_network_both_cannot_be_trained(dataset, tmp_path):
    config = small(epochs=1, separation_epochs=0, joint_epochs=1)
    with pytest.raises(UsageError, match="joint_epochs needs a separation network"):
        train(dataset, tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_a_data_set_is_given_once(dataset, tmp_path):
    with pytest.raises(UsageError, match="is given twice"):
        train([dataset, dataset.parent / "." / dataset.name], tmp_path / "run", small(epochs=1))
    assert not (tmp_path / "run").exists()


@pytest.fixture
def scores(monkeypatch):
    """Have F1 after each epoch be what is asked for."""

    def give(*values):
        left = iter(values)
        monkeypatch.setattr(stages, "best_f1", lambda *_: (0.4, next(left)))

    return give


def test_the_best_epoch_is_kept_and_without_a_better_one_training_ends(dataset, tmp_path, scores):
    scores(0.3, 0.5, 0.5, 0.4, 0.9)
    config = small(epochs=5, patience=2, separation_epochs=0, calibrate=False)
    history = train(dataset, tmp_path / "run", config).history
    assert [figures["validation_f1"] for figures in history] == [0.3, 0.5, 0.5, 0.4]
    best, last = (load_model(tmp_path / "run" / f"{name}.safetensors", "cpu")
                  for name in ("best", "weights"))  # fmt: skip
    assert (best.info["epoch"], last.info["epoch"]) == (2, 4)
    assert best.threshold == 0.4
    pairs = zip(best.network.parameters(), last.network.parameters(), strict=True)
    assert any((a != b).any() for a, b in pairs)
    # Resumed with more patience, it goes on.
    scores(0.6)
    config = small(epochs=5, patience=3, separation_epochs=0, calibrate=False)
    resumed = train(dataset, tmp_path / "run", config, resume=True)
    assert len(resumed.history) == 5
    assert load_model(tmp_path / "run" / "best.safetensors", "cpu").info["epoch"] == 5


def test_f1_is_that_of_the_threshold(dataset):
    """Of the packaged weights, which find nearly all."""
    threshold, f1 = best_f1(load_model(device="cpu"), load_dataset(dataset), 2)
    assert threshold in THRESHOLDS
    assert 0.5 < f1 <= 1


class Interrupting(Reporter):
    """Presses Ctrl-C when a stage of work begins for the second time, or as often as told."""

    def __init__(self, stage, times=2):
        self.stage = stage
        self.left = times

    def begin(self, label, total):
        self.left -= label.startswith(self.stage)

    def advance(self, steps=1, note=""):
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stage", ["epoch", "separation epoch"])
def test_an_interrupted_run_has_usable_weights_and_resumes(dataset, tmp_path, stage):
    config = small(calibrate=False)
    with pytest.raises(KeyboardInterrupt):
        train(dataset, tmp_path / "run", config, reporter=Interrupting(stage))
    info = load_model(tmp_path / "run" / "weights.safetensors", "cpu").info
    assert (info if stage == "epoch" else info["separation"])["epoch"] == 1
    resumed = train(dataset, tmp_path / "run", config, resume=True)
    assert len(resumed.history) == len(resumed.separation_history) == 2


def test_a_run_whose_state_is_gone_is_not_lost(dataset, tmp_path):
    run = tmp_path / "run"
    train(dataset, run, small(calibrate=False))
    (run / "state.safetensors").unlink()
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    for resume in (False, True):
        with pytest.raises(OutputExistsError, match=r"whose state\.safetensors is gone"):
            train(dataset, run, small(calibrate=False), resume=resume)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    # Killed before its first state was written, a run has begun only just.
    for path in run.glob("separation_*"):
        path.unlink()
    metrics = run / "metrics.csv"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:2]))
    assert len(train(dataset, run, small(calibrate=False), resume=True).history) == 2


def test_a_run_does_not_start_from_what_it_replaces(dataset, tmp_path):
    run = tmp_path / "run"
    train(dataset, run, small(calibrate=False))
    for name in ("best", "weights"):
        config = small(init=str(run / f"{name}.safetensors"), epochs=0)
        with pytest.raises(UsageError, match="which this run would replace"):
            train(dataset, run, config, overwrite=True)
    assert (run / "best.safetensors").exists()


@pytest.mark.parametrize("epochs", [0, 2])
def test_a_run_is_resumed_on_its_own_data(dataset, tmp_path, epochs):
    run, other = tmp_path / "run", tmp_path / "other"
    simulate(other, SimulateConfig(n=60, seed=5, workers=1))
    config = small(calibrate=False, epochs=epochs, init="random" if epochs else "compact")
    stage = "epoch" if epochs else "separation epoch"
    with pytest.raises(KeyboardInterrupt):
        train(dataset, run, config, reporter=Interrupting(stage))
    with pytest.raises(UsageError, match="the run began on other data"):
        train(other, run, config, resume=True)
    assert len(train(dataset, run, config, resume=True).separation_history) == 2


@pytest.mark.parametrize("epochs", [0, 1])
def test_interrupted_on_spoilt_weights_a_run_keeps_those_it_had(
    dataset, tmp_path, monkeypatch, epochs
):
    config, run = small(calibrate=False), tmp_path / "run"
    if epochs:
        with pytest.raises(KeyboardInterrupt):
            train(dataset, run, config, reporter=Interrupting("epoch", 2))
    before = (run / "weights.safetensors").read_bytes() if epochs else b""

    def spoil(trainer, *_):
        for parameter in trainer.average.parameters():
            parameter.data.fill_(torch.nan)
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "run_epoch", spoil)
    with pytest.raises(KeyboardInterrupt):
        train(dataset, run, config, resume=True)
    assert (run / "weights.safetensors").exists() == bool(epochs)
    assert not epochs or (run / "weights.safetensors").read_bytes() == before


@pytest.mark.parametrize("calibrated", [True, False])
def test_resumed_at_its_end_a_run_keeps_its_weights(dataset, tmp_path, calibrated):
    config = small(calibrate=calibrated)
    weights = train(dataset, tmp_path / "run", config).weights
    first = weights.read_bytes()
    train(dataset, tmp_path / "run", config, resume=True)
    assert weights.read_bytes() == first
    weights.unlink()
    train(dataset, tmp_path / "run", config, resume=True)
    assert weights.read_bytes() == first


@pytest.mark.parametrize("stage", ["calibrating", "correcting fluxes"])
def test_what_is_trained_outlives_a_stop_in_a_later_calibration(dataset, tmp_path, stage):
    config = small(epochs=1, separation_epochs=1)
    unbroken = train(dataset, tmp_path / "unbroken", config).weights
    with pytest.raises(KeyboardInterrupt):
        train(dataset, tmp_path / "run", config, reporter=Interrupting("correcting fluxes", 1))
    weights = tmp_path / "run" / "weights.safetensors"
    assert load_model(weights, "cpu").separator is not None
    with pytest.raises(KeyboardInterrupt):
        train(dataset, tmp_path / "run", config, reporter=Interrupting(stage, 1), resume=True)
    assert load_model(weights, "cpu").separator is not None
    train(dataset, tmp_path / "run", config, resume=True)
    assert weights.read_bytes() == unbroken.read_bytes()


def test_the_separation_network_alone_is_trained_on_weights_as_they_are(dataset, tmp_path):
    config = small(init="compact", epochs=0, separation_epochs=1, calibrate=False)
    before = load_model("compact", "cpu")
    model = load_model(train(dataset, tmp_path / "run", config).weights, "cpu")
    for a, b in zip(model.network.parameters(), before.network.parameters(), strict=True):
        assert (a == b).all()
    assert model.threshold == before.threshold
    assert model.info["training"] == before.info["training"]
    with pytest.raises(UsageError, match="epochs = 0 needs init"):
        small(epochs=0)


def test_weights_name_the_file_they_began_with(dataset, tmp_path):
    path = tmp_path / "start.pth"
    torch.save(load_model(device="cpu").network.state_dict(), path)
    config = small(init=str(path), epochs=1, separation_epochs=0, calibrate=False)
    info = load_model(train(dataset, tmp_path / "run", config).weights, "cpu").info
    assert info["init"].startswith(f"start.pth sha256:{sha256(path)} (")


def test_unusable_inputs(dataset, tmp_path):
    with pytest.raises(DatasetError, match="no data set"):
        train(tmp_path / "nothing", tmp_path / "run", small())
    with pytest.raises(WeightsError, match="no such file"):
        train(dataset, tmp_path / "run", small(init=str(tmp_path / "missing.pth")))
    assert not (tmp_path / "run").exists()


def test_several_data_sets_are_trained_on_together(dataset, tmp_path):
    simulate(tmp_path / "other", SimulateConfig(n=40, seed=3, galaxies="1-3", workers=1))
    folders = [dataset, tmp_path / "other"]
    train(folders, tmp_path / "run", small(epochs=1, separation_epochs=0))
    about = read_info(tmp_path / "run" / "weights.safetensors")["dataset"]
    assert about["counts"] == {"train": 90, "validation": 5, "test": 5}
    parts = about["population"]["joined"]
    assert [part["population"]["galaxies"] for part in parts] == ["2", "1-3"]
    simulate(tmp_path / "HSC", SimulateConfig(n=20, survey="HSC", workers=1))
    with pytest.raises(DatasetError, match="different zeropoints cannot be joined"):
        train([dataset, tmp_path / "HSC"], tmp_path / "run-2", small())
    assert not (tmp_path / "run-2").exists()


def test_calibration_of_the_packaged_weights(dataset):
    found = calibrate(load_model(device="cpu"), load_dataset(dataset))
    assert 0 < found["threshold"] < 1
    assert found["calibration"]["slope"] > 0
    assert 0 < found["calibration"]["missed"] < 1
    assert found["validation"]["blends"] == 3


def test_with_nothing_to_train_all_is_calibrated_anew(tmp_path):
    simulate(tmp_path / "set", SimulateConfig(n=90, stars=0.5, seed=5, workers=1))
    config = small(init="compact", epochs=0, separation_epochs=0)
    model = load_model(train(tmp_path / "set", tmp_path / "run", config).weights, "cpu")
    before = load_model("compact", "cpu")
    for name in ("network", "separator"):
        a, b = (getattr(part, name).state_dict() for part in (model, before))
        assert all((a[key] == b[key]).all() for key in b)
    assert model.info["calibration"] != before.info["calibration"]
    assert model.info["validation"]["blends"] == 4
    assert model.flux_fit != before.flux_fit
    assert model.class_fit != before.class_fit
    # More where it is narrow, less where it is wide: a star.
    assert model.class_fit.psf[3] > 0 > model.class_fit.psf[4]
    assert model.class_fit.alone[1] > 0


def test_without_a_separation_network_scores_alone_are_calibrated(dataset, tmp_path):
    config = small(epochs=1, separation_epochs=0, calibrate=False)
    alone = train(dataset, tmp_path / "alone", config).weights
    assert "calibration" not in read_info(alone)
    again = small(init=str(alone), epochs=0, separation_epochs=0)
    info = read_info(train(dataset, tmp_path / "run", again).weights)
    assert info["calibration"]["slope"] > 0
    assert "separation" not in info
    torch.save(load_model(device="cpu").network.state_dict(), tmp_path / "start.pth")
    with pytest.raises(WeightsError):
        train(dataset, tmp_path / "run-2", small(init=str(tmp_path / "start.pth"), epochs=0))


def test_without_stars_their_fit_is_that_of_the_starting_weights(dataset, tmp_path):
    config = small(init="compact", epochs=1, separation_epochs=0)
    model = load_model(train(dataset, tmp_path / "run", config).weights, "cpu")
    assert model.class_fit == load_model("compact", "cpu").class_fit is not None
    alone = small(init="compact", epochs=0, separation_epochs=0)
    model = load_model(train(dataset, tmp_path / "alone", alone).weights, "cpu")
    assert model.class_fit == load_model("compact", "cpu").class_fit
    assert load_model(train(dataset, tmp_path / "new", small()).weights, "cpu").class_fit is None
