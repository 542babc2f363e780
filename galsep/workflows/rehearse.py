"""What a training run would take, measured over a few steps of it; nothing is written."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch

from galsep.config import TrainConfig
from galsep.io.dataset import Dataset
from galsep.model.device import flushed_denormals, keep_memory, peak_memory
from galsep.model.engine import Trainer
from galsep.model.examples import ExampleMaker
from galsep.model.joint_training import Both, Joining
from galsep.model.network import ARCHITECTURES, MaskRCNN
from galsep.model.parallel import is_first, joined
from galsep.model.separation import SeparationNetwork
from galsep.model.separation_training import Separating
from galsep.model.weights import DEFAULT_WEIGHTS, Model, load_model
from galsep.workflows.calibrate import best_f1
from galsep.workflows.reporting import Reporter
from galsep.workflows.stages import example_makers, joint_config, separation_config
from galsep.workflows.train import load_splits, starting_network

__all__ = ["Rehearsal", "StageCost", "rehearse"]

WARMUP, STEPS = 2, 10
"""Steps that are not measured, and those that are."""

JUDGED = 8
"""Validation blends on which the time to measure F1 is measured."""


@dataclass(frozen=True, slots=True)
class StageCost:
    """What training one of the networks takes.

    Parameters
    ----------
    name : str
    parameters : int
    images_per_second : float
        In training.
    epochs : int
    seconds : float
        All epochs, with their validation.
    """

    name: str
    parameters: int
    images_per_second: float
    epochs: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What a training run takes.

    Parameters
    ----------
    device : str
    stages : tuple of StageCost
    memory : int or None
        Peak so far, bytes: of the process, or of what is allocated on a CUDA device; ``None`` where
        it cannot be told.
    """

    device: str
    stages: tuple[StageCost, ...]
    memory: int | None

    @property
    def seconds(self) -> float:
        """Time of all epochs; calibration comes on top."""
        return sum(stage.seconds for stage in self.stages)


def rehearse(
    dataset: Path | str | Sequence[Path | str],
    config: TrainConfig | None = None,
    *,
    reporter: Reporter | None = None,
) -> Rehearsal | None:
    """Train some steps of each network to see what a run takes.

    The separation network's are on what the packaged Mask R-CNN finds, since one that is not
    trained yet finds other things.

    Parameters
    ----------
    dataset : path or sequence of path
    config : TrainConfig, optional
    reporter : Reporter, optional

    Returns
    -------
    Rehearsal or None
        ``None`` on all but the first of several processes.

    Raises
    ------
    DatasetError, WeightsError, DeviceError, UsageError
        As :func:`galsep.workflows.train.train`.
    TrainingError
        When the loss is not finite.
    """
    config = config or TrainConfig()
    with joined(config.device) as device, flushed_denormals():
        reporter = (reporter or Reporter()) if is_first() else Reporter()
        if config.threads:
            torch.set_num_threads(config.threads)
        keep_memory()
        data = load_splits(dataset)
        stages = []
        if config.epochs:
            network, _ = starting_network(config)
            trainer = Trainer(network, config, device)
            cost = _measure("Mask R-CNN", trainer, example_makers(data, config), reporter)
            judged = _judging_seconds(trainer, data) * config.epochs
            stages.append(replace(cost, seconds=cost.seconds + judged))
        if config.separation_epochs:
            own = separation_config(config)
            objective = Separating(
                load_model(DEFAULT_WEIGHTS, str(device)), own.separation_consistency
            )
            trainer = Trainer(SeparationNetwork(), own, device, objective)
            makers = example_makers(data, own, config.separation_depth)
            stages.append(_measure("separation network", trainer, makers, reporter))
        if config.joint_epochs:
            own = joint_config(config)
            model = load_model(DEFAULT_WEIGHTS, str(device))
            # One that has learnt nothing finds sources everywhere, and so takes longer.
            trained = config.recipe == "compact"
            network = model.network if trained else starting_network(config)[0]
            both = Both(cast(MaskRCNN, network), SeparationNetwork())
            trainer = Trainer(both, own, device, Joining(model))
            makers = example_makers(data, own, config.separation_depth)
            stages.append(_measure("both networks together", trainer, makers, reporter))
        result = Rehearsal(str(device), tuple(stages), peak_memory(device))
        return result if is_first() else None


def _measure(
    name: str, trainer: Trainer, examples: tuple[ExampleMaker, ExampleMaker], reporter: Reporter
) -> StageCost:
    config = trainer.config
    ends: list[float] = []

    def on_step(images: int, loss: float) -> None:
        ends.append(time.perf_counter())
        reporter.advance(images, f"loss {loss:.3f}")

    reporter.begin(f"trying {name}", (WARMUP + STEPS) * config.batch_size)
    trainer.run_steps(examples[0], WARMUP + STEPS, on_step)
    reporter.end()
    step = (ends[-1] - ends[WARMUP - 1]) / STEPS
    rate = config.batch_size / step
    images = min(config.validation_size, len(examples[1]))
    start = time.perf_counter()
    trainer.validate(examples[1], min(images, config.batch_size))
    validation = (time.perf_counter() - start) * images / min(images, config.batch_size)
    parameters = sum(parameter.numel() for parameter in trainer.network.parameters())
    seconds = config.epochs * (config.epoch_size / rate + validation)
    return StageCost(name, parameters, rate, config.epochs, seconds)


def _judging_seconds(trainer: Trainer, data: Dataset) -> float:
    """Time to measure F1 after one epoch."""
    size = min(trainer.config.f1_size, len(data.split("validation")))
    judged = min(size, JUDGED)
    if not judged:
        return 0.0
    architecture = ARCHITECTURES[trainer.config.recipe]
    model = Model(trainer.average.eval(), architecture, {}, "", trainer.device)
    start = time.perf_counter()
    best_f1(model, data, judged)
    return (time.perf_counter() - start) * size / judged
