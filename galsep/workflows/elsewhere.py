"""What lets other machines work on files: names that hold in any folder, and that all see them."""

import platform
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from galsep.config import FILE_SETTINGS, DeblendConfig
from galsep.errors import ImageError, OutputError
from galsep.io.atomic import missing_files
from galsep.io.companions import NONE
from galsep.model.weights import list_weights
from galsep.workflows.bands import band_files

__all__ = ["absolute_names", "check_arrived", "check_seen"]


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
