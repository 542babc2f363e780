"""Curves and pictures of a training run for TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from galsep.errors import UsageError
from galsep.io.dataset import Dataset
from galsep.model.weights import Model

__all__ = ["Board", "check_tensorboard"]

SAMPLES = 4
"""Validation blends that are drawn with what was found on them."""


class Board:
    """Writes TensorBoard's event files.

    Parameters
    ----------
    folder : Path
    epoch : int
        Epochs that are done; what an earlier process wrote of later ones is hidden.

    Raises
    ------
    UsageError
        When TensorBoard is not installed.
    """

    def __init__(self, folder: Path, epoch: int) -> None:
        self._writer = _writer(folder, epoch + 1)

    def figures(self, figures: Mapping[str, float]) -> None:
        """Add an epoch's figures to their curves."""
        for name, value in figures.items():
            kind, _, part = name.partition("_")
            group = f"{part}/{kind}" if kind in ("train", "validation") else name
            if name != "epoch":
                self._writer.add_scalar(group, value, int(figures["epoch"]))
        self._writer.flush()

    def pictures(self, model: Model, data: Dataset, epoch: int) -> None:
        """Draw some validation blends with their true masks and those that were found.

        Parameters
        ----------
        model : Model
            With the weights of the epoch.
        data : Dataset
        epoch : int
            Epochs that are done.
        """
        from galsep.plot.training import draw_found
        from galsep.workflows.finding import find_sources

        blends = list(data.split("validation"))[:SAMPLES]
        images = [data.detection_image(blend) for blend in blends]
        found = [here.detections.footprints for here in find_sources(images, model)]
        truth = [data.footprints(blend) for blend in blends]
        picture = draw_found(np.stack(images), truth, found, data.meta.detection_rms)
        self._writer.add_image("found", picture, epoch, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        """Close the event files."""
        self._writer.close()


def check_tensorboard() -> None:
    """Refuse to go on without TensorBoard, before anything is trained.

    Raises
    ------
    UsageError
        When it is not installed.
    """
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "--tensorboard needs TensorBoard; install it with pip install 'galsep[tensorboard]'"
        ) from error


def _writer(folder: Path, purge_step: int) -> Any:
    check_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=purge_step)
