"""The stages of a training run: Mask R-CNN, the separation network, both together."""

import csv
import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

import galsep
from galsep.config import TrainConfig
from galsep.io.atomic import remove_partial, whole_file, write_text
from galsep.io.dataset import Dataset
from galsep.model.engine import Trainer
from galsep.model.examples import ExampleMaker
from galsep.model.joint_training import Both, Joining
from galsep.model.network import ARCHITECTURES, MaskRCNN
from galsep.model.parallel import from_first, is_first
from galsep.model.separation import SeparationNetwork
from galsep.model.separation_training import Separating
from galsep.model.weights import (
    UNCALIBRATED_THRESHOLD,
    Model,
    find_weights,
    load_model,
    read_info,
    save_weights,
    trained_on,
)
from galsep.settings import dump_toml
from galsep.workflows.calibrate import best_f1, calibrate, calibrate_sources
from galsep.workflows.reporting import Reporter
from galsep.workflows.watching import Board

__all__ = [
    "BEST_FILE",
    "CONFIG_FILE",
    "METRICS_FILE",
    "SEPARATION",
    "STATE_FILE",
    "WEIGHTS_FILE",
    "Run",
    "about_data",
    "example_makers",
    "given_info",
    "joint_config",
    "separation_config",
    "starting_info",
]

DOMAIN_SLACK = 0.1
"""Share by which an image's PSF may be narrower or wider than those of the training set."""

STATE_FILE = "state.safetensors"
WEIGHTS_FILE = "weights.safetensors"
BEST_FILE = "best.safetensors"
CONFIG_FILE = "config.toml"
METRICS_FILE = "metrics.csv"
LOSSES_FILE = "losses.png"
SEPARATION = "separation_"
JOINT = "joint_"
"""Begin the names of what belongs to the separation network, and to both networks together."""


@dataclass(slots=True)
class Run:
    """A training run: its folder, and what is known of its weights so far."""

    folder: Path
    config: TrainConfig
    data: Dataset
    device: torch.device
    reporter: Reporter
    info: dict[str, Any]
    separation: dict[str, Any] = field(default_factory=dict)
    """What is known of the separation network."""

    def prepare(self, *, anew: bool) -> None:
        """Remove from the folder what a process that was killed or an earlier run left."""
        by_epoch = [STATE_FILE, METRICS_FILE, LOSSES_FILE]
        later = [prefix + name for prefix in (SEPARATION, JOINT) for name in by_epoch]
        written = [BEST_FILE, *by_epoch, *later]
        remove_partial(self.folder / name for name in [WEIGHTS_FILE, CONFIG_FILE, *written])
        if anew:
            for name in written:
                (self.folder / name).unlink(missing_ok=True)
            write_text(self.folder / CONFIG_FILE, dump_toml(self.config))

    def detector(self, trainer: Trainer) -> None:
        """Train Mask R-CNN, and choose its threshold."""
        source = "random" if self.config.separation_epochs else self.config.init
        if (self.folder / (SEPARATION + STATE_FILE)).exists() and self.weights.exists():
            # Resumed: what its own training has given so far must not be lost meanwhile.
            source = str(self.weights)
        kept = _given_separator(source)
        if kept is not None:
            given = given_info(source)
            self.separation = given["separation"]
            self.info |= _kept_classes(given)

        def save(path: Path) -> None:
            self._save(path, trainer.average, kept)

        def save_epoch(path: Path) -> None:
            if trainer.history:
                last = trainer.history[-1]
                self.info["epoch"] = trainer.epoch
                self.info["threshold"] = last.get("validation_threshold", UNCALIBRATED_THRESHOLD)
            save(path)

        judge = self._judge if self.config.f1_size else None
        self._train(trainer, "", save_epoch, example_makers(self.data, self.config), judge)
        if not is_first():
            return
        save_epoch(self.weights)
        if not self.config.epochs:
            trainer.save(self.folder / STATE_FILE)
        if not self.config.calibrate:
            return
        # With nothing to train, all that is calibrated is to be so anew.
        config = self.config
        nothing = not (config.epochs or config.separation_epochs or config.joint_epochs)
        if self.config.epochs or nothing:
            self.info |= calibrate(self._model(), self.data, self.reporter)
            save(self.weights)
        if nothing and kept is not None:
            self.separation |= self._source_corrections()
            save(self.weights)

    def _save(
        self, path: Path, detector: torch.nn.Module, separator: torch.nn.Module | None
    ) -> None:
        """Write both networks, or Mask R-CNN alone, and what is known of them."""
        about = {} if separator is None else {"separation": self.separation}
        save_weights(
            path, detector, {**self.info, **about}, cast(SeparationNetwork | None, separator)
        )

    def _judge(self, network: torch.nn.Module) -> dict[str, float]:
        """F1 on a part of the validation split, and the score threshold where it is best."""
        figures: tuple[float, float] = (0.0, 0.0)
        if is_first():
            model = self._as_it_is(network)
            figures = best_f1(model, self.data, self.config.f1_size)
        threshold, f1 = from_first(figures)
        return {"validation_f1": f1, "validation_threshold": threshold}

    def _as_it_is(self, network: torch.nn.Module) -> Model:
        architecture = ARCHITECTURES[self.config.recipe]
        return Model(network.eval(), architecture, self.info, "", self.device)

    def _model(self) -> Model:
        """The weights as they were written last."""
        return load_model(self.weights, str(self.device))

    def separator(self, detector: Trainer) -> Trainer:
        """Train the separation network on what Mask R-CNN finds, and correct what is measured."""
        config = separation_config(self.config)
        torch.manual_seed(config.seed)
        from_first(None)  # Until then, the weights may not be there.
        objective = Separating(self._model(), config.separation_consistency)
        trainer = Trainer(
            _given_separator(self.config.init) or SeparationNetwork(),
            config,
            self.device,
            objective,
        )
        self.separation = {"training": _settings(config), "dataset": about_data(self.data)}

        def save(path: Path) -> None:
            self.separation["epoch"] = trainer.epoch
            self._save(path, detector.average, trainer.average)

        self._train_on_light(trainer, SEPARATION, save)
        if self.config.calibrate and is_first() and not self.config.joint_epochs:
            self.separation |= self._source_corrections()
            save(self.weights)
        return trainer

    def joint(self, detector: Trainer, separator: Trainer | None) -> list[dict[str, float]]:
        """Train both networks together, and calibrate all anew."""
        config = joint_config(self.config)
        torch.manual_seed(config.seed)
        from_first(None)  # Until then, the weights may not be there.
        model = self._model()
        trainer = Trainer(
            Both(
                cast(MaskRCNN, detector.average),
                cast(SeparationNetwork, separator.average if separator else model.separator),
            ),
            config,
            self.device,
            Joining(model),
        )
        self.info["joint"] = {"training": _settings(config), "dataset": about_data(self.data)}

        def save(path: Path) -> None:
            self.info["joint"]["epoch"] = trainer.epoch
            both = cast(Both, trainer.average)
            self._save(path, both.detector, both.separator)

        self._train_on_light(trainer, JOINT, save)
        if self.config.calibrate and is_first():
            self.info |= calibrate(self._model(), self.data, self.reporter)
            save(self.weights)
            self.separation |= self._source_corrections()
            save(self.weights)
        return trainer.history

    def _train_on_light(self, trainer: Trainer, prefix: str, save: Callable[[Path], None]) -> None:
        """Train on scenes for the separation of light, and write the weights even if none is left.

        They may be behind the state of a run that was stopped.
        """
        examples = example_makers(self.data, trainer.config, trainer.config.separation_depth)
        self._train(trainer, prefix, save, examples)
        if is_first():
            save(self.weights)

    def _source_corrections(self) -> dict[str, Any]:
        """Calibrate classes, and give what belongs to the separation network: its fluxes'."""
        found = calibrate_sources(self._model(), self.data, self.reporter)
        # With too few stars, those of the starting weights are better than none.
        class_fit = found.pop("class_fit")
        self.info |= {"class_fit": class_fit} if class_fit else {}
        return found

    @property
    def weights(self) -> Path:
        """The file of weights."""
        return self.folder / WEIGHTS_FILE

    def _train(
        self,
        trainer: Trainer,
        prefix: str,
        save: Callable[[Path], None],
        examples: tuple[ExampleMaker, ExampleMaker],
        judge: Callable[[torch.nn.Module], Mapping[str, float]] | None = None,
    ) -> None:
        """Train to the last epoch, from where it stopped; the weights are usable at any time."""
        state = self.folder / (prefix + STATE_FILE)
        epochs, patience = trainer.config.epochs, trainer.config.patience
        if from_first(state.exists()):
            trainer.restore(state)
            name = f"{prefix.replace('_', ' ')}epoch"
            self.reporter.info(f"resuming after {name} {trainer.epoch} of {epochs}")
        board = self._board(prefix, trainer.epoch)
        try:
            while trainer.epoch < epochs and not _has_stalled(trainer.history, patience):
                self._epoch(trainer, prefix, examples, judge)
                if is_first():
                    save(self.weights)
                    if _best_epoch(trainer.history) == trainer.epoch:
                        save(self.folder / BEST_FILE)
                    _write_figures(self.folder, prefix, trainer)
                    self._show(board, trainer, pictures=not prefix)
                    # Last, so that a state that exists has its weights and figures beside it.
                    trainer.save(state)
        except KeyboardInterrupt:
            # A loss that is not finite may not have been looked at yet.
            if is_first() and trainer.sound:
                save(self.weights)
                self.reporter.warn(f"interrupted: {self.weights} is usable; --resume goes on")
            raise
        finally:
            if board is not None:
                board.close()
        if trainer.epoch < epochs:
            self.reporter.info(
                f"stopped after epoch {trainer.epoch}: F1 was best after epoch "
                f"{_best_epoch(trainer.history)}, {self.folder / BEST_FILE}"
            )

    def _board(self, prefix: str, epoch: int) -> Board | None:
        if not (self.config.tensorboard and is_first()):
            return None
        name = prefix.removesuffix("_") or "detection"
        return Board(self.folder / "tensorboard" / name, epoch)

    def _show(self, board: Board | None, trainer: Trainer, *, pictures: bool) -> None:
        if board is None:
            return
        board.figures(trainer.history[-1])
        if pictures:
            board.pictures(self._as_it_is(trainer.average), self.data, trainer.epoch)

    def _epoch(
        self,
        trainer: Trainer,
        prefix: str,
        examples: tuple[ExampleMaker, ExampleMaker],
        judge: Callable[[torch.nn.Module], Mapping[str, float]] | None,
    ) -> None:
        name = f"{prefix.replace('_', ' ')}epoch {trainer.epoch + 1}"
        reporter = self.reporter
        reporter.begin(f"{name}/{trainer.config.epochs}", trainer.config.epoch_size)
        figures = trainer.run_epoch(
            *examples, lambda n, loss: reporter.advance(n, f"loss {loss:.3f}"), judge
        )
        reporter.end()
        reporter.epoch(name, _headline(figures), figures)


def _headline(figures: Mapping[str, float]) -> str:
    f1 = f", F1 {figures['validation_f1']:.3f}" if "validation_f1" in figures else ""
    return (
        f"loss {figures['train_loss']:.4f}, validation {figures['validation_loss']:.4f}{f1}, "
        f"{figures['images_per_second']:.1f} images/s"
    )


def separation_config(config: TrainConfig) -> TrainConfig:
    """How the separation network is trained in a run."""
    return _on_light(config, config.separation_epochs, config.separation_rate)


def joint_config(config: TrainConfig) -> TrainConfig:
    """How both networks are trained together in a run."""
    return replace(
        _on_light(config, config.joint_epochs, config.joint_rate),
        # Not to be taken for random weights, which have no statistics to keep.
        init=WEIGHTS_FILE,
        fixed_statistics=True,
    )


def _on_light(config: TrainConfig, epochs: int, rate: float) -> TrainConfig:
    """How a network is trained on scenes for the separation of light."""
    return replace(
        config,
        recipe="compact",
        epochs=epochs,
        optimizer="adamw",
        weight_decay=1e-3,
        schedule="cosine",
        warmup=200,
        stages=(("all", epochs, rate),),
        ema=0.999,
        fixed_statistics=False,
        compose=True,
        max_groups=config.separation_groups,
        small_every=0,
        patience=0,
    )


def _best_epoch(history: Sequence[Mapping[str, float]]) -> int:
    """Epoch of the best F1, the first of several; 0 where it was not measured."""
    f1 = [figures.get("validation_f1", -1.0) for figures in history]
    return f1.index(max(f1)) + 1 if max(f1, default=-1.0) >= 0 else 0


def _has_stalled(history: Sequence[Mapping[str, float]], patience: int) -> bool:
    """Whether F1 has not become better for so many epochs; never where that is 0."""
    return bool(patience) and len(history) - _best_epoch(history) >= patience


def _write_figures(folder: Path, prefix: str, trainer: Trainer) -> None:
    from galsep.plot.training import plot_losses

    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(trainer.history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(trainer.history)
    write_text(folder / (prefix + METRICS_FILE), text.getvalue())
    with whole_file(folder / (prefix + LOSSES_FILE)) as picture:
        plot_losses(trainer.history, trainer.objective.parts, picture)


def _given_separator(init: str) -> SeparationNetwork | None:
    """The separation network of the starting weights, if they have one."""
    return load_model(init, "cpu").separator if given_info(init) else None


def given_info(init: str) -> dict[str, Any]:
    """What the starting weights say of themselves; nothing where they are not galsep's."""
    if init in ("random", "coco") or find_weights(init).suffix != ".safetensors":
        return {}
    return read_info(find_weights(init))


def example_makers(
    data: Dataset, config: TrainConfig, depth: float = 0.0
) -> tuple[ExampleMaker, ExampleMaker]:
    """Make what gives the examples to train and to validate on.

    Parameters
    ----------
    data : Dataset
    config : TrainConfig
    depth : float
        Magnitudes by which composed scenes are deeper than the data set, on average.

    Returns
    -------
    training, validation : ExampleMaker
    """

    def maker(split: str) -> ExampleMaker:
        return ExampleMaker(
            data,
            split,
            augment=config.augment,
            compose=config.compose,
            max_groups=config.max_groups,
            depth=depth,
            small_every=config.small_every,
        )

    return maker("train"), maker("validation")


def starting_info(config: TrainConfig, data: Dataset, origin: str) -> dict[str, Any]:
    """What the weights say of themselves; where they stay as they are, what they said before."""
    given = given_info(config.init)
    earlier = trained_on(given)
    before = {"earlier_datasets": earlier} if earlier else {}
    if not config.epochs:
        info = read_info(find_weights(config.init))
        return {k: v for k, v in info.items() if k != "separation"} | before
    seen = np.percentile(data.psf_fwhm / data.pixel_scale, [1, 99])
    seen *= 1 - DOMAIN_SLACK, 1 + DOMAIN_SLACK
    return {
        "architecture": ARCHITECTURES[config.recipe].to_dict(),
        "galsep_version": galsep.__version__,
        "torch_version": torch.__version__,
        "init": origin,
        "psf_fwhm_range": [round(float(limit), 2) for limit in seen],
        "training": _settings(config),
        "dataset": about_data(data),
        **_kept_classes(given),
        **before,
    }


def _kept_classes(info: Mapping[str, Any]) -> dict[str, Any]:
    """What weights know of classes, which holds until it is known better."""
    return {k: v for k, v in info.items() if k == "class_fit"}


def _settings(config: TrainConfig) -> dict[str, Any]:
    """All settings but ``workers``; starting weights are named without their folder."""
    settings = {**dataclasses.asdict(config), "init": Path(config.init).name}
    del settings["workers"]
    return settings


def about_data(data: Dataset) -> dict[str, Any]:
    """What weights say of the data set that they were trained on, JSON-able."""
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
