"""Train Mask R-CNN on a data set of blends."""

import csv
import dataclasses
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

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
from galsep.model.separation import SeparationNetwork
from galsep.model.separation_training import Separating
from galsep.model.weights import (
    find_weights,
    initial_weights,
    load_model,
    read_info,
    save_weights,
)
from galsep.workflows.calibrate import calibrate, calibrate_fluxes
from galsep.workflows.reporting import Reporter

__all__ = ["TrainResult", "train"]

DOMAIN_SLACK = 0.1
"""Share by which an image's PSF may be narrower or wider than those of the training set."""

STATE_FILE = "state.safetensors"
WEIGHTS_FILE = "weights.safetensors"
SEPARATION = "separation_"
"""Begins the names of what belongs to the separation network."""

_RESUMABLE_CHANGES = frozenset({"device", "threads", "calibrate"})


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training run made.

    Parameters
    ----------
    folder : Path
    weights : Path
    history : list of dict
        One entry an epoch of Mask R-CNN, as in ``metrics.csv``.
    separation_history : list of dict
        One entry an epoch of the separation network, as in ``separation_metrics.csv``.
    """

    folder: Path
    weights: Path
    history: list[dict[str, float]]
    separation_history: list[dict[str, float]]


def train(
    dataset: Path | str,
    output: Path | str,
    config: TrainConfig | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> TrainResult:
    """Train the networks and write their weights, settings, figures and resume states.

    First Mask R-CNN, then the separation network on what it finds. After each epoch
    ``weights.safetensors`` (averaged weights), ``state.safetensors``, ``metrics.csv`` and
    ``losses.png`` are whole, for the separation network with ``separation_`` before the last three
    names. In between, score threshold and calibration are chosen on the validation split; at the
    end, fluxes are corrected there.

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
    device = choose_device(config.device)
    started = (folder / STATE_FILE).exists()
    if started and not (resume or overwrite):
        raise OutputExistsError(f"{folder}: holds a run; give --resume to go on or --overwrite")
    if started and resume:
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
    run = _Run(folder, config, data, reporter, _info(config, data, origin))
    detector = Trainer(network, config, device)
    make_folder(folder)
    if not (started and resume):
        for name in (STATE_FILE, SEPARATION + STATE_FILE):
            (folder / name).unlink(missing_ok=True)
        write_text(folder / "config.toml", dump_toml(config))
    run.detector(detector)
    history = run.separator(detector, device) if config.separation_epochs else []
    return TrainResult(folder, folder / WEIGHTS_FILE, detector.history, history)


@dataclass(slots=True)
class _Run:
    """A training run: its folder, and what is known of its weights so far."""

    folder: Path
    config: TrainConfig
    data: Dataset
    reporter: Reporter
    info: dict[str, Any]

    def detector(self, trainer: Trainer) -> None:
        """Train Mask R-CNN, and choose its threshold."""
        kept = None if self.config.separation_epochs else _given_separator(self.config.init)
        if kept is not None:
            self.info["separation"] = read_info(find_weights(self.config.init))["separation"]

        def save() -> None:
            about = {**self.info, "epoch": trainer.epoch} if self.config.epochs else self.info
            save_weights(self.weights, trainer.average, about, kept)

        self._train(trainer, "", save, _examples(self.data, self.config))
        if not self.config.epochs:
            trainer.save(self.folder / STATE_FILE)
        else:
            self.info["epoch"] = trainer.epoch
        save()
        # Where it stays as it was, so do its threshold and its calibration.
        if self.config.calibrate and self.config.epochs:
            model = load_model(self.weights, self.config.device)
            self.info |= calibrate(model, self.data, self.reporter)
            save()

    def separator(self, detector: Trainer, device: torch.device) -> list[dict[str, float]]:
        """Train the separation network on what Mask R-CNN finds, and correct its fluxes."""
        config = replace(
            self.config,
            recipe="compact",
            epochs=self.config.separation_epochs,
            optimizer="adamw",
            weight_decay=1e-3,
            schedule="cosine",
            warmup=200,
            stages=(("all", self.config.separation_epochs, self.config.separation_rate),),
            ema=0.999,
            compose=True,
            max_groups=self.config.separation_groups,
        )
        torch.manual_seed(config.seed)
        objective = Separating(load_model(self.weights, self.config.device))
        trainer = Trainer(
            _given_separator(self.config.init) or SeparationNetwork(), config, device, objective
        )
        about: dict[str, Any] = {
            "training": dataclasses.asdict(config), "dataset": _about(self.data),
        }  # fmt: skip

        def save() -> None:
            separation = {**about, "epoch": trainer.epoch}
            info = {**self.info, "separation": separation}
            network = cast(SeparationNetwork, trainer.average)
            save_weights(self.weights, detector.average, info, network)

        examples = _examples(self.data, config, config.separation_depth)
        self._train(trainer, SEPARATION, save, examples)
        if self.config.calibrate:
            about |= calibrate_fluxes(
                load_model(self.weights, self.config.device), self.data, self.reporter
            )
            save()
        return trainer.history

    @property
    def weights(self) -> Path:
        """The file of weights."""
        return self.folder / WEIGHTS_FILE

    def _train(
        self,
        trainer: Trainer,
        prefix: str,
        save: Callable[[], None],
        examples: tuple[ExampleMaker, ExampleMaker],
    ) -> None:
        """Train to the last epoch, from where it stopped; the weights are usable at any time."""
        state = self.folder / (prefix + STATE_FILE)
        epochs = trainer.config.epochs
        if state.exists():
            trainer.restore(state)
            self.reporter.info(f"resuming after {prefix}epoch {trainer.epoch} of {epochs}")
        try:
            while trainer.epoch < epochs:
                self._epoch(trainer, prefix, examples)
                save()
                _write_figures(self.folder, prefix, trainer)
                # Last, so that a state that exists has its weights and figures beside it.
                trainer.save(state)
        except KeyboardInterrupt:
            save()
            self.reporter.warn(f"interrupted: {self.weights} is usable; --resume goes on")
            raise

    def _epoch(
        self, trainer: Trainer, prefix: str, examples: tuple[ExampleMaker, ExampleMaker]
    ) -> None:
        name = f"{prefix.replace('_', ' ')}epoch {trainer.epoch + 1}"
        reporter = self.reporter
        reporter.begin(f"{name}/{trainer.config.epochs}", trainer.config.epoch_size)
        figures = trainer.run_epoch(
            *examples, lambda n, loss: reporter.advance(n, f"loss {loss:.3f}")
        )
        reporter.end()
        reporter.info(
            f"{name}: loss {figures['train_loss']:.4f}, validation "
            f"{figures['validation_loss']:.4f}, {figures['images_per_second']:.1f} images/s"
        )


def _write_figures(folder: Path, prefix: str, trainer: Trainer) -> None:
    from galsep.plot.training import plot_losses

    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(trainer.history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(trainer.history)
    write_text(folder / f"{prefix}metrics.csv", text.getvalue())
    with whole_file(folder / f"{prefix}losses.png") as picture:
        plot_losses(trainer.history, trainer.objective.parts, picture)


def _given_separator(init: str) -> SeparationNetwork | None:
    """The separation network of the starting weights, if they have one."""
    if init in ("random", "coco") or find_weights(init).suffix != ".safetensors":
        return None
    return load_model(init, "cpu").separator


def _examples(
    data: Dataset, config: TrainConfig, depth: float = 0.0
) -> tuple[ExampleMaker, ExampleMaker]:
    def maker(split: str) -> ExampleMaker:
        return ExampleMaker(
            data,
            split,
            augment=config.augment,
            compose=config.compose,
            max_groups=config.max_groups,
            depth=depth,
        )

    return maker("train"), maker("validation")


def _info(config: TrainConfig, data: Dataset, origin: str) -> dict[str, Any]:
    """What the weights say of themselves; where they stay as they are, what they said before."""
    if not config.epochs:
        before = read_info(find_weights(config.init))
        return {k: v for k, v in before.items() if k != "separation"}
    seen = np.percentile(data.psf_fwhm / data.pixel_scale, [1, 99])
    seen *= 1 - DOMAIN_SLACK, 1 + DOMAIN_SLACK
    return {
        "architecture": ARCHITECTURES[config.recipe].to_dict(),
        "galsep_version": galsep.__version__,
        "torch_version": torch.__version__,
        "init": origin,
        "psf_fwhm_range": [round(float(limit), 2) for limit in seen],
        "training": dataclasses.asdict(config),
        "dataset": _about(data),
    }


def _about(data: Dataset) -> dict[str, Any]:
    scales = data.pixel_scale
    return {
        "survey": data.meta.survey,
        "bands": list(data.meta.bands),
        "pixel_scale": [float(scales.min()), float(scales.max())],
        "psf_fwhm_arcsec": [float(data.psf_fwhm.min()), float(data.psf_fwhm.max())],
        "population": dict(data.meta.population),
        "seed": data.meta.seed,
        "counts": dict(data.meta.counts),
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
