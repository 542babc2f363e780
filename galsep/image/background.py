"""Background and its rms, by SEP, with sources masked."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Background", "bright_pixels", "estimate_background"]

SOURCE_LEVEL = 1.5
"""Blocks of 2×2 pixels whose mean is this many rms above a first estimate (three times the
block's own noise) are left out of the second one."""

SOURCE_GROWTH = 2
"""... together with all blocks so near to them."""


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
    data: npt.NDArray[Any], mask: npt.NDArray[np.bool_], mesh: int = 64
) -> Background:
    """Estimate the background on a mesh (Bertin & Arnouts 1996), twice.

    The second estimate leaves out the sources that stand out of the first, so that crowded
    regions do not raise it.

    Parameters
    ----------
    data : (h, w) float array
    mask : (h, w) bool array
        True where a pixel is unusable.
    mesh : int
        Side of a mesh cell, pixels, counted from the image's first pixel.

    Returns
    -------
    Background
        Of an image without one usable pixel, level 0 and rms 1.
    """
    import sep

    good = ~mask
    if not good.any():
        return Background(np.zeros(data.shape, np.float32), np.ones(data.shape, np.float32))
    clean = np.where(mask, 0.0, data)
    clean = np.ascontiguousarray(clean, dtype=data.dtype.newbyteorder("="))
    first = sep.Background(clean, mask=mask, bw=mesh, bh=mesh)
    excess = np.empty(data.shape, dtype=np.float32)
    np.subtract(clean, first.back(dtype=np.float32), out=excess, casting="same_kind")
    sources = bright_pixels(excess, first.rms(dtype=np.float32), mask)
    hidden = mask | sources
    # A mesh cell full of one large source has nothing else to estimate from.
    second = sep.Background(clean, mask=hidden, bw=mesh, bh=mesh) if not hidden.all() else first
    rms = second.rms(dtype=np.float32)
    floor = 1e-3 * float(np.median(rms)) if rms.size else 0.0
    # An image of one value has no noise; any positive rms then leaves it without a source.
    rms = np.maximum(rms, floor if floor > 0 else np.float32(1.0))
    return Background(second.back(dtype=np.float32), rms.astype(np.float32))


def bright_pixels(
    light: npt.NDArray[np.float32],
    rms: npt.NDArray[np.float32],
    mask: npt.NDArray[np.bool_],
) -> npt.NDArray[np.bool_]:
    """Find what stands out of the sky, with its surroundings.

    Parameters
    ----------
    light : (h, w) float32 array
        Image minus background.
    rms : (h, w) float32 array
        Noise of a pixel.
    mask : (h, w) bool array
        True where a pixel is unusable.
    """
    from scipy.ndimage import binary_dilation

    height, width = light.shape
    excess = np.zeros((height + height % 2, width + width % 2), dtype=np.float32)
    inside = excess[:height, :width]
    # A constant image has no noise, and nothing stands out of it.
    np.divide(light, np.maximum(rms, np.float32(1e-30)), out=inside)
    inside[mask] = 0
    blocks = excess[::2, ::2] + excess[1::2, ::2] + excess[::2, 1::2] + excess[1::2, 1::2]
    grown = binary_dilation(blocks > 4 * SOURCE_LEVEL, iterations=SOURCE_GROWTH)
    return np.asarray(np.repeat(np.repeat(grown, 2, axis=0), 2, axis=1)[:height, :width])
