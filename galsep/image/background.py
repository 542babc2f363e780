"""Background and its rms, by SEP, with sources masked."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from galsep.conventions import TINY
from galsep.planes import Planes

__all__ = ["Background", "bright_pixels", "estimate_background", "sampled", "with_neighbours"]

SOURCE_LEVEL = 1.5
"""Blocks of 2×2 pixels whose mean is this many rms above a first estimate (three times the
block's own noise) are left out of the second one."""

SOURCE_GROWTH = 2
"""... together with all blocks so near to them."""

MAX_SAMPLE = 2**23
"""Medians over more pixels than this are those of a regular sample."""


@dataclass(frozen=True, slots=True)
class Background:
    """Background of an image.

    Parameters
    ----------
    level : (h, w) float32 array
        In the image's unit.
    rms : (h, w) float32 array
        Noise of a pixel; positive everywhere.
    """

    level: npt.NDArray[np.float32]
    rms: npt.NDArray[np.float32]


def estimate_background(
    data: npt.NDArray[Any],
    mask: npt.NDArray[np.bool_],
    mesh: int = 64,
    planes: Planes | None = None,
) -> Background:
    """Estimate the background on a mesh (Bertin & Arnouts 1996), twice.

    The second estimate leaves out the sources that stand out of the first, so that crowded
    regions do not raise it.

    Parameters
    ----------
    data : (h, w) float array
        Native and C-contiguous.
    mask : (h, w) bool array
        True where a pixel is unusable; the data are finite all the same.
    mesh : int
        Side of a mesh cell, pixels, counted from the image's first pixel.
    planes : Planes, optional
        Where the results are to be.

    Returns
    -------
    Background
        Of an image without one usable pixel, level 0 and rms 1.
    """
    import sep

    planes = planes or Planes()
    shape = (data.shape[0], data.shape[1])
    if mask.all():
        rms = planes.new(shape, np.float32)
        rms[:] = 1
        return Background(planes.new(shape, np.float32), rms)
    first = sep.Background(data, mask=mask, bw=mesh, bh=mesh)
    planes.release()
    level = _moved(first.back(dtype=np.float32), planes)
    rms = first.rms(dtype=np.float32)
    hidden = planes.new(shape, np.bool_)
    for rows, around in with_neighbours(planes, shape):
        excess = np.empty((around.stop - around.start, shape[1]), dtype=np.float32)
        np.subtract(data[around], level[around], out=excess, casting="same_kind")
        bright = bright_pixels(excess, rms[around], mask[around])
        inner = slice(rows.start - around.start, rows.stop - around.start)
        np.logical_or(mask[rows], bright[inner], out=hidden[rows])
    del rms
    # A mesh cell full of one large source has nothing else to estimate from.
    if not hidden.all():
        del level
        second = sep.Background(data, mask=hidden, bw=mesh, bh=mesh)
        planes.release()
        level = _moved(second.back(dtype=np.float32), planes)
    else:
        second = first
    del hidden
    rms = _moved(second.rms(dtype=np.float32), planes)
    floor = 1e-3 * float(np.median(sampled(rms)))
    for rows in planes.blocks(shape):
        # An image of one value has no noise; any positive rms then leaves it without a source.
        np.maximum(rms[rows], np.float32(floor if floor > 0 else 1.0), out=rms[rows])
    return Background(level, rms)


def _moved(image: npt.NDArray[np.float32], planes: Planes) -> npt.NDArray[np.float32]:
    """Move an array to where planes are."""
    if planes.folder is None:
        return image
    plane = planes.new(image.shape, image.dtype)
    for rows in planes.blocks(image.shape):
        plane[rows] = image[rows]
    return plane


def with_neighbours(planes: Planes, shape: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """Blocks of rows, and the rows on which their bright pixels depend."""
    reach = 2 * (SOURCE_GROWTH + 1)
    for rows in planes.blocks(shape, 2):
        yield rows, slice(max(rows.start - reach, 0), min(rows.stop + reach, shape[0]))


def sampled(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Every ``k``-th pixel of both axes of a large image, all of a small one."""
    step = math.ceil(math.sqrt(image.size / MAX_SAMPLE)) or 1
    return image[::step, ::step]


def bright_pixels(
    light: npt.NDArray[np.float32],
    rms: npt.NDArray[np.float32],
    mask: npt.NDArray[np.bool_],
) -> npt.NDArray[np.bool_]:
    """Find what stands out of the sky, with its surroundings.

    Blocks of 2×2 pixels count from the first row.

    Parameters
    ----------
    light : (h, w) float32 array
        Image minus background.
    rms : (h, w) float32 array
        Noise of a pixel.
    mask : (h, w) bool array
        True where a pixel is unusable.
    """
    height, width = light.shape
    excess = np.zeros((height + height % 2, width + width % 2), dtype=np.float32)
    inside = excess[:height, :width]
    # A constant image has no noise, and nothing stands out of it.
    with np.errstate(over="ignore", invalid="ignore"):
        np.divide(light, np.maximum(rms, np.float32(TINY)), out=inside)
        inside[mask] = 0
        blocks = excess[::2, ::2] + excess[1::2, ::2] + excess[::2, 1::2] + excess[1::2, 1::2]
    grown = blocks > 4 * SOURCE_LEVEL
    for _ in range(SOURCE_GROWTH):
        grown = _with_sides(grown)
    return np.asarray(np.repeat(np.repeat(grown, 2, axis=0), 2, axis=1)[:height, :width])


def _with_sides(pixels: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Add the pixels that have a side in common with one of them."""
    grown = pixels.copy()
    grown[1:] |= pixels[:-1]
    grown[:-1] |= pixels[1:]
    grown[:, 1:] |= pixels[:, :-1]
    grown[:, :-1] |= pixels[:, 1:]
    return grown
