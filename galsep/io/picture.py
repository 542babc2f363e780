"""PNG pictures as images: their grey values, without a sky."""

from pathlib import Path

import numpy as np

from galsep.errors import ImageError
from galsep.io.header import one_line
from galsep.io.image import Plane

__all__ = ["is_picture", "read_picture"]

_GREY = ("1", "L", "I", "F", "I;16")


def is_picture(path: Path) -> bool:
    """Whether a file is a PNG picture by its name."""
    return path.suffix.lower() == ".png"


def read_picture(path: Path) -> Plane:
    """Read a PNG picture; of several colours, their mean. The first row is that on top.

    Raises
    ------
    ImageError
        When it is missing, damaged or no PNG.
    """
    from astropy.io import fits
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as picture:
            grey = picture if picture.mode in _GREY else picture.convert("RGB")
            values = np.array(grey, dtype=np.float32)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path}: not readable as a PNG picture ({one_line(error)})") from error
    data = values.mean(axis=2, dtype=np.float32) if values.ndim == 3 else values
    return Plane(
        data=np.ascontiguousarray(data),
        mask=np.zeros(data.shape, dtype=bool),
        header=fits.Header(),
        wcs=None,
        ext=0,
        extname="",
        unit="",
        gain=0.0,
        messages=(),
    )
