"""Train Mask R-CNN on a data set of blends."""

import csv
import dataclasses
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import galsep
from galsep.config import TrainConfig, dump_toml, read_toml, resolve
from galsep.errors import OutputExistsError, UsageError
from galsep.io.atomic import make_folder, whole_file, write_text
from galsep.io.dataset import Dataset, load_dataset
from galsep.model.device import choose_device, keep_memory
from galsep.model.engine import Trainer
from galsep.model.examples import ExampleMaker
from galsep.model.network import ARCHITECTURES, build_network
from galsep.model.weights import initial_weights, load_model, save_weights
from galsep.workflows.calibrate import calibrate
from galsep.workflows.reporting import Reporter

__all__ = ["TrainResult", "train"]

DOMAIN_SLACK = 0.1
"""Share by which an image's PSF may be narrower or wider than those of the training set."""

STATE_FILE = "state.safetensors"
WEIGHTS_FILE = "weights.safetensors"
_RESUMABLE_CHANGES = frozenset({"device", "threads", "calibrate"})


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training run made.

    Parameters
    ----------
    folder : Path
    weights : Path
    history : list of dict
        One entry an epoch, as in ``metrics.csv``.
    """

    folder: Path
    weights: Path
    history: list[dict[str, float]]


def train(
    dataset: Path | str,
    output: Path | str,
    config: TrainConfig | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> TrainResult:
    """Train a network and write its weights, settings, figures and resume state.

    After each epoch ``weights.safetensors`` (averaged weights), ``state.safetensors``,
    ``metrics.csv`` and ``losses.png`` are whole; at the end the score threshold and calibration
    are chosen on the validation split.

    Parameters
    ----------
    dataset : path
        Folder that :func:`galsep.simulate` wrote.
    output : path
        Folder of the run.
    config : TrainConfig, optional
        Defaults to the ``compact`` recipe.
    resume : bool
        Go on where the run in ``output`` stopped; its settings must be the same.
    overwrite : bool
        Replace an earlier run.
    reporter : Reporter, optional

    Raises
    ------
    DatasetError, WeightsError, DeviceError, UsageError
        When the data set, the starting weights, the device or the settings are not usable.
    TrainingError
        When the loss is not finite.
    OutputExistsError, OutputError
        When the output exists or cannot be written.
    KeyboardInterrupt
        After ``weights.safetensors`` has been written, when interrupted.
    """
    config = config or TrainConfig()
    reporter = reporter or Reporter()
    folder = Path(output)
    state = folder / STATE_FILE
    device = choose_device(config.device)
    if state.exists() and not (resume or overwrite):
        raise OutputExistsError(f"{folder}: holds a run; give --resume to go on or --overwrite")
    if resume and state.exists():
        _check_same(folder, config)
    if config.threads:
        torch.set_num_threads(config.threads)
    keep_memory()
    data = load_dataset(Path(dataset))
    if not data.split("train") or not data.split("validation"):
        raise UsageError(f"{dataset}: needs blends in its train and validation splits")
    torch.manual_seed(config.seed)
    network = build_network(ARCHITECTURES[config.recipe])
    origin = initial_weights(network, config.init)
    reporter.info(f"starting weights: {origin}")
    trainer = Trainer(network, config, device)
    make_folder(folder)
    if resume and state.exists():
        trainer.restore(state)
        reporter.info(f"resuming after epoch {trainer.epoch} of {config.epochs}")
    else:
        write_text(folder / "config.toml", dump_toml(config))
    info = _info(config, data, origin)
    training, validation = _examples(data, config)
    try:
        while trainer.epoch < config.epochs:
            _epoch(trainer, training, validation, reporter)
            _write_epoch(folder, trainer, {**info, "epoch": trainer.epoch})
    except KeyboardInterrupt:
        save_weights(folder / WEIGHTS_FILE, trainer.average, {**info, "epoch": trainer.epoch})
        reporter.warn(f"interrupted: {folder / WEIGHTS_FILE} is usable; --resume goes on")
        raise
    weights = folder / WEIGHTS_FILE
    if config.calibrate:
        model = load_model(weights, config.device)
        found = calibrate(model, data, reporter)
        save_weights(weights, trainer.average, {**info, "epoch": trainer.epoch, **found})
    return TrainResult(folder, weights, trainer.history)


def _epoch(
    trainer: Trainer, training: ExampleMaker, validation: ExampleMaker, reporter: Reporter
) -> None:
    number = trainer.epoch + 1
    reporter.begin(f"epoch {number}/{trainer.config.epochs}", trainer.config.epoch_size)
    figures = trainer.run_epoch(
        training, validation, lambda n, loss: reporter.advance(n, f"loss {loss:.3f}")
    )
    reporter.end()
    reporter.info(
        f"epoch {number}: loss {figures['train_loss']:.4f}, validation "
        f"{figures['validation_loss']:.4f}, {figures['images_per_second']:.1f} images/s"
    )


def _write_epoch(folder: Path, trainer: Trainer, info: dict[str, Any]) -> None:
    from galsep.plot.training import plot_losses

    save_weights(folder / WEIGHTS_FILE, trainer.average, info)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(trainer.history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(trainer.history)
    write_text(folder / "metrics.csv", text.getvalue())
    with whole_file(folder / "losses.png") as picture:
        plot_losses(trainer.history, picture)
    # Last, so that a state that exists has its weights and figures beside it.
    trainer.save(folder / STATE_FILE)


def _examples(data: Dataset, config: TrainConfig) -> tuple[ExampleMaker, ExampleMaker]:
    def maker(split: str) -> ExampleMaker:
        return ExampleMaker(
            data,
            split,
            augment=config.augment,
            compose=config.compose,
            max_groups=config.max_groups,
        )

    return maker("train"), maker("validation")


def _info(config: TrainConfig, data: Dataset, origin: str) -> dict[str, Any]:
    scales = data.pixel_scale
    seen = np.percentile(data.psf_fwhm / scales, [1, 99]) * (1 - DOMAIN_SLACK, 1 + DOMAIN_SLACK)
    return {
        "architecture": ARCHITECTURES[config.recipe].to_dict(),
        "galsep_version": galsep.__version__,
        "torch_version": torch.__version__,
        "init": origin,
        "psf_fwhm_range": [round(float(limit), 2) for limit in seen],
        "training": dataclasses.asdict(config),
        "dataset": {
            "survey": data.meta.survey,
            "bands": list(data.meta.bands),
            "pixel_scale": [float(scales.min()), float(scales.max())],
            "psf_fwhm_arcsec": [float(data.psf_fwhm.min()), float(data.psf_fwhm.max())],
            "population": dict(data.meta.population),
            "seed": data.meta.seed,
            "counts": dict(data.meta.counts),
        },
    }


def _check_same(folder: Path, config: TrainConfig) -> None:
    """Refuse to resume a run with other settings than it began with."""
    before = dataclasses.asdict(resolve(TrainConfig, None, read_toml(folder / "config.toml")))
    for name, value in dataclasses.asdict(config).items():
        if name not in _RESUMABLE_CHANGES and before[name] != value:
            raise UsageError(
                f"{folder}: the run began with {name} = {before[name]!r}, not {value!r}; resume "
                f"with --config {folder / 'config.toml'} or start anew with --overwrite"
            )
