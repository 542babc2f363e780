"""Noise of each pixel from a plane that came with the image, brought to the noise that is measured.

The plane is trusted for its pattern, not for its scale: resampling correlates the noise of
neighbouring pixels and lowers that of each, weights are often relative, and the network knows
pixels in units of their measured noise.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from galsep.image.background import bright_pixels, sampled, with_neighbours
from galsep.planes import Planes

__all__ = ["ScaledNoise", "scale_noise"]

LEAST_NOISE = 1e-3
"""A pixel has at least this share of the median noise."""

MOST_NOISE = np.float32(1e6)
"""... and at most so many times the noise that is measured there."""

FIRST_REACH = 64
"""Rows beyond a block in which the nearest empty pixels are looked for at first."""


@dataclass(frozen=True, slots=True)
class ScaledNoise:
    """Noise of an image by its own plane.

    Parameters
    ----------
    sky : (h, w) float32 array
        Noise of the sky: without that of the sources, which some planes hold too.
    total : (h, w) float32 array
        Noise as the plane has it, scaled.
    scale : float
        Measured over given rms of the empty sky.
    """

    sky: npt.NDArray[np.float32]
    total: npt.NDArray[np.float32]
    scale: float


def scale_noise(
    noise: npt.NDArray[np.float32],
    light: npt.NDArray[np.float32],
    measured: npt.NDArray[np.float32],
    mask: npt.NDArray[np.bool_],
    planes: Planes | None = None,
) -> ScaledNoise:
    """Scale a noise plane to the measured noise, as SExtractor does with weight maps.

    The scale is the median of measured over given rms where the sky is empty. On bright pixels,
    where a plane may hold the sources' own Poisson noise, the noise of the sky is at most that of
    the nearest empty pixel.

    Parameters
    ----------
    noise : (h, w) float32 array
        Given rms, positive where ``mask`` is not set.
    light, measured : (h, w) float32 arrays
        Image minus background, and the rms of the background.
    mask : (h, w) bool array
        True where a pixel is unusable; there the noise is the measured one.
    planes : Planes, optional
        Where the results are to be.
    """
    planes = planes or Planes()
    if mask.all():
        return ScaledNoise(measured, measured, 1.0)
    empty = planes.new(mask.shape, np.bool_)
    total = planes.new(mask.shape, np.float32)
    _find_empty(light, measured, mask, planes, empty)
    scale = _scale(noise, measured, empty)
    # What is bright is told by the plane's pattern: the noisiest places hold no more sources.
    _scaled(noise, measured, mask, scale, planes, total)
    _find_empty(light, total, mask, planes, empty)
    scale = _scale(noise, measured, empty)
    _scaled(noise, measured, mask, scale, planes, total)
    least = np.float32(LEAST_NOISE * np.median(_values(total, empty)))
    sky = planes.new(mask.shape, np.float32)
    for rows in planes.blocks(mask.shape):
        np.maximum(total[rows], least, out=total[rows])
    for rows in planes.blocks(mask.shape):
        sky[rows] = total[rows]
        bright = ~(empty[rows] | mask[rows])
        if bright.any():
            nearest = _nearest(total, empty, bright, rows)
            sky[rows][bright] = np.minimum(total[rows][bright], nearest)
    return ScaledNoise(sky, total, scale)


def _find_empty(
    light: npt.NDArray[np.float32],
    rms: npt.NDArray[np.float32],
    mask: npt.NDArray[np.bool_],
    planes: Planes,
    empty: npt.NDArray[np.bool_],
) -> None:
    """Mark the usable pixels of the sky; all usable ones where there is no sky."""
    shape = (mask.shape[0], mask.shape[1])
    for rows, around in with_neighbours(planes, shape):
        bright = bright_pixels(light[around], rms[around], mask[around])
        inner = slice(rows.start - around.start, rows.stop - around.start)
        empty[rows] = ~(mask[rows] | bright[inner])
    if not empty.any():
        np.logical_not(mask, out=empty)


def _scaled(
    noise: npt.NDArray[np.float32],
    measured: npt.NDArray[np.float32],
    mask: npt.NDArray[np.bool_],
    scale: float,
    planes: Planes,
    out: npt.NDArray[np.float32],
) -> None:
    """Scale a noise plane where it is usable; the measured noise elsewhere."""
    for rows in planes.blocks(mask.shape):
        with np.errstate(over="ignore"):
            own = np.minimum(noise[rows] * np.float32(scale), measured[rows] * MOST_NOISE)
        out[rows] = np.where(mask[rows], measured[rows], own)


def _scale(
    noise: npt.NDArray[np.float32],
    measured: npt.NDArray[np.float32],
    empty: npt.NDArray[np.bool_],
) -> float:
    # A noise may be next to nothing.
    with np.errstate(over="ignore"):
        ratio = np.median(_values(measured, empty) / _values(noise, empty))
    return float(min(ratio, np.finfo(np.float32).max))


def _values(
    image: npt.NDArray[np.float32], where: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """Values of an image's chosen pixels, of a sample of them where it is large."""
    chosen = sampled(where)
    if chosen.any():
        return np.asarray(sampled(image)[chosen])
    return np.asarray(image[where])


def _nearest(
    values: npt.NDArray[np.float32],
    known: npt.NDArray[np.bool_],
    wanted: npt.NDArray[np.bool_],
    rows: slice,
) -> npt.NDArray[np.float32]:
    """Value of the nearest known pixel, for each wanted one of some rows."""
    from scipy.ndimage import distance_transform_edt

    height, reach = len(values), FIRST_REACH
    while True:
        top, bottom = max(rows.start - reach, 0), min(rows.stop + reach, height)
        inner = slice(rows.start - top, rows.stop - top)
        if known[top:bottom].any():
            distance, (y, x) = distance_transform_edt(~known[top:bottom], return_indices=True)
            whole = top == 0 and bottom == height
            # What is nearer than the edge of what was looked at is the nearest of all.
            if whole or distance[inner][wanted].max() <= reach:
                return np.asarray(values[top:bottom][y[inner][wanted], x[inner][wanted]])
        reach *= 2
