"""Settings of ``galsep train``, and its recipes."""

import math
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from galsep.config.checks import at_least, between
from galsep.errors import UsageError

__all__ = ["RECIPES", "TrainConfig"]


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """What ``galsep train`` does. The two recipes are in :data:`RECIPES`.

    When Mask R-CNN has had its epochs, the separation network is trained, on scenes of fewer blends
    and more depth: of sources that are barely found, there is little to learn about their light.
    Then both may be trained together, on such scenes, too.

    Parameters
    ----------
    recipe : {"compact", "paper"}
        Architecture of Mask R-CNN. What else belongs to it is set by :func:`resolve`, and not here.
    init : str
        ``random``, ``coco``, or the file or packaged name of weights to start from.
    epochs : int
        Of Mask R-CNN; with none, it stays as ``init`` has it.
    separation_epochs : int
        Of the separation network.
    separation_rate : float
        Its learning rate, which warms up and falls to zero.
    separation_groups : int
        Blends on its composed scenes, at most.
    separation_depth : float
        Magnitudes by which these are deeper than the data set, on average.
    separation_consistency : float
        Weight, in its own training, of saying the same of a crop that is turned; 0 for not looking.
        Takes half as much time again.
    joint_epochs : int
        Of both networks together.
    joint_rate : float
        Their learning rate, which warms up and falls to zero.
    epoch_size, batch_size : int
        Stamps in an epoch and in a step.
    optimizer : {"adamw", "sgd"}
        Of Mask R-CNN, as all up to ``ema``; the separation network has
        :func:`galsep.workflows.stages.separation_config`.
    weight_decay : float
        Biases and normalisation have none.
    schedule : {"cosine", "steps"}
        With ``cosine`` the one stage's rate warms up and falls to zero; with ``steps`` each stage
        has its own.
    warmup : int
        Steps in which the rate warms up.
    stages : tuple of (str, int, float)
        First trainable part, last epoch and learning rate of each; the part is ``heads``, ``4+``
        (backbone stage 4 and everything above) or ``all``.
    ema : float
        Decay of the averaged weights in a step; 0 for no average.
    clip_norm : float
        Largest norm of the gradient; 0 for any.
    fixed_statistics : bool
        Batch normalisation of Mask R-CNN keeps the means and variances of the starting weights,
        while its scales and offsets are trained; random weights have none to keep, so that from
        these they are learnt.
    augment : bool
        Turn and mirror blends at random, where these are shown as they are; composed ones always
        are turned and mirrored.
    compose : bool
        Compose new scenes of blends for Mask R-CNN in place of showing these as they are; the
        separation network has composed ones in any case.
    max_groups : int
        Blends on a composed scene, at most.
    small_every : int
        Every so many batches of Mask R-CNN's composed scenes is of small cutouts; 0 for none.
    validation_size : int
        Validation blends that the losses are measured on after each epoch, at most.
    f1_size : int
        Validation blends that F1 is measured on after each epoch of Mask R-CNN, at most; with 0,
        it is not.
    patience : int
        Epochs without a better F1 after which training of Mask R-CNN ends; 0 for never.
    tensorboard : bool
        Also write curves and pictures for TensorBoard.
    calibrate : bool
        Choose the score threshold and calibrate scores on the validation split, fluxes and classes
        on it and on blends of the training split.
    amp : bool
        Compute in bfloat16 where the device is faster with it.
    seed : int
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    threads : int
        Of the CPU; 0 for PyTorch's choice.
    workers : int
        Processes that make examples ahead of the one that trains: −1 as suits the device, 0 none.

    Raises
    ------
    UsageError
        For a value out of its range, or settings that do not go together.
    """

    recipe: str = "compact"
    init: str = "random"
    epochs: int = 20
    separation_epochs: int = 12
    separation_rate: float = 1e-3
    separation_groups: int = 5
    separation_depth: float = 0.7
    separation_consistency: float = 0.0
    joint_epochs: int = 0
    joint_rate: float = 1e-4
    epoch_size: int = 8_000
    batch_size: int = 16
    optimizer: str = "adamw"
    weight_decay: float = 0.02
    schedule: str = "cosine"
    warmup: int = 200
    stages: tuple[tuple[str, int, float], ...] = (("all", 20, 1e-3),)
    ema: float = 0.999
    clip_norm: float = 5.0
    fixed_statistics: bool = False
    augment: bool = True
    compose: bool = True
    max_groups: int = 8
    small_every: int = 2
    validation_size: int = 500
    f1_size: int = 200
    patience: int = 0
    tensorboard: bool = False
    calibrate: bool = True
    amp: bool = True
    seed: int = 1
    device: str = "auto"
    threads: int = 0
    workers: int = -1

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise UsageError(f"recipe is one of {', '.join(sorted(RECIPES))}, got {self.recipe!r}")
        at_least("epochs", self.epochs, 0)
        at_least("separation_epochs", self.separation_epochs, 0)
        if not self.epochs and self.init in ("random", "coco"):
            raise UsageError("epochs = 0 needs init to name weights that are trained already")
        between("separation_rate", self.separation_rate, 1e-6, 1.0)
        at_least("separation_groups", self.separation_groups, 1)
        between("separation_depth", self.separation_depth, -5.0, 5.0)
        at_least("separation_consistency", self.separation_consistency, 0.0)
        at_least("joint_epochs", self.joint_epochs, 0)
        between("joint_rate", self.joint_rate, 1e-6, 1.0)
        at_least("epoch_size", self.epoch_size, 1)
        at_least("batch_size", self.batch_size, 1)
        at_least("max_groups", self.max_groups, 1)
        at_least("small_every", self.small_every, 0)
        at_least("validation_size", self.validation_size, 1)
        at_least("f1_size", self.f1_size, 0)
        at_least("patience", self.patience, 0)
        if self.patience and not self.f1_size:
            raise UsageError("patience needs an F1 to look at: give f1_size a value above 0")
        at_least("threads", self.threads, 0)
        at_least("workers", self.workers, -1)
        at_least("seed", self.seed, 0)
        at_least("weight_decay", self.weight_decay, 0.0)
        at_least("warmup", self.warmup, 0)
        at_least("clip_norm", self.clip_norm, 0.0)
        between("ema", self.ema, 0.0, 0.99999)
        if self.optimizer not in ("adamw", "sgd"):
            raise UsageError(f"optimizer is adamw or sgd, got {self.optimizer!r}")
        if self.schedule not in ("cosine", "steps"):
            raise UsageError(f"schedule is cosine or steps, got {self.schedule!r}")
        if not self.stages:
            raise UsageError("stages lists at least one [heads|4+|all, last epoch, rate]")
        for part, last, rate in self.stages:
            if part not in ("heads", "4+", "all") or last < 1 or not 0 < rate < math.inf:
                raise UsageError(
                    f"a stage is [heads|4+|all, last epoch, rate], got {[part, last, rate]}"
                )
        ends = [last for _, last, _ in self.stages]
        if ends != sorted(set(ends)):
            raise UsageError(f"stages end one after the other, got {ends}")
        if self.stages[-1][1] < self.epochs:
            raise UsageError(
                f"the last stage ends with epoch {self.stages[-1][1]}, but epochs = {self.epochs}"
            )


RECIPES: Mapping[str, Mapping[str, Any]] = types.MappingProxyType(
    {
        "compact": {},
        # Table 2 of the report: 18,000 training blends in four orientations an epoch.
        "paper": {
            "init": "coco",
            "epochs": 80,
            "epoch_size": 72_000,
            "batch_size": 64,
            "optimizer": "sgd",
            "weight_decay": 1e-4,
            "schedule": "steps",
            "warmup": 0,
            "stages": (("heads", 15, 1e-3), ("4+", 20, 5e-3), ("all", 60, 1e-3), ("all", 80, 1e-4)),
            "ema": 0.0,
            # As in Matterport's code, where TRAIN_BN is False by default.
            "fixed_statistics": True,
            "compose": False,
        },
    }
)
"""What each training recipe changes in the defaults of :class:`TrainConfig`."""
