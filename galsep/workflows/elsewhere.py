"""What lets other machines work on files, or blocks of them.

Names that hold in any folder, one model for all, and checks that all see the same files.
"""

import contextlib
import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from galsep.config import FILE_SETTINGS, DeblendConfig
from galsep.errors import ImageError, OutputError, WeightsError
from galsep.io.atomic import missing_files
from galsep.io.companions import NONE
from galsep.model.weights import Model, Spread, find_weights, list_weights, load_model
from galsep.workflows.bands import band_files
from galsep.workflows.cluster import Cluster
from galsep.workflows.pool import in_order

__all__ = ["absolute_names", "check_arrived", "check_seen", "load_same", "spread_over"]

AHEAD = 2
"""Blocks that are handed out for each worker, so that none waits for its next one."""


def absolute_names(config: DeblendConfig) -> DeblendConfig:
    """Name the files of settings so that they are found from any folder."""
    files: dict[str, Any] = {
        name: str(Path(value).absolute())
        for name in FILE_SETTINGS
        if (value := getattr(config, name)) not in ("", NONE, *list_weights())
    }
    bands = (f"{name}={Path(file).absolute()}" for name, file in band_files(config.band).items())
    return replace(config, **files, band=tuple(bands))


def check_seen(image: Path, outputs: Iterable[Path]) -> None:
    """Refuse to work on a machine that sees no input, or not the folder of the outputs.

    Raises
    ------
    ImageError
    """
    for wanted in (image, *{file.parent for file in outputs}):
        if not wanted.exists():
            raise ImageError(
                f"{wanted}: not there on {platform.node()}, where a worker looked for it; images "
                "and outputs must lie in folders that all workers share"
            )


def check_arrived(outputs: Iterable[Path]) -> None:
    """Refuse what another machine has written where it is not seen from here.

    Raises
    ------
    OutputError
    """
    for file in missing_files(outputs):
        raise OutputError(
            f"{file}: a worker has written it, but it is not there; the output folder must be one "
            "that all workers share"
        )


def load_same(config: DeblendConfig, weights: str) -> Model:
    """Load the model for another process than the one that read its weights.

    Parameters
    ----------
    config : DeblendConfig
    weights : str
        SHA-256 that they have there.

    Raises
    ------
    WeightsError
        Where they are other ones here.
    """
    model = load_model(config.weights, config.device)
    if model.sha256 != weights:
        raise WeightsError(
            f"{find_weights(config.weights)}: not the weights that the run began with; those have "
            f"the SHA-256 {weights[:16]}"
        )
    return model


def spread_over(cluster: Cluster, config: DeblendConfig, model: Model) -> Spread:
    """Have a cluster's workers do what a model is applied to.

    Parameters
    ----------
    cluster : Cluster
    config : DeblendConfig
        Workers load the model by it; its files have absolute names, see :func:`absolute_names`.
    model : Model
        Workers refuse to work with other weights than its own.

    Returns
    -------
    callable
        For :attr:`galsep.model.weights.Model.spread`.
    """

    def spread(function: Callable[[Model, Any], Any], batches: Iterable[Any]) -> Iterator[Any]:
        work = _OnBatch(function, config, model.sha256)
        with contextlib.closing(cluster.work(work, batches, AHEAD)) as finished:
            yield from in_order(finished)

    return spread


@dataclass(slots=True)
class _OnBatch:
    """A function of a model and a batch, with the model of the process that it is called in."""

    function: Callable[[Model, Any], Any]
    config: DeblendConfig
    weights: str
    model: Model | None = None

    def __call__(self, batch: Any) -> Any:
        if self.model is None:
            self.model = load_same(self.config, self.weights)
        return self.function(self.model, batch)
