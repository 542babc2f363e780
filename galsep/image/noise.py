"""Noise of each pixel from a plane that came with the image, brought to the noise that is measured.

The plane is trusted for its pattern, not for its scale: resampling correlates the noise of
neighbouring pixels and lowers that of each, weights are often relative, and the network knows
pixels in units of their measured noise.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from galsep.image.background import bright_pixels

__all__ = ["ScaledNoise", "scale_noise"]

LEAST_NOISE = 1e-3
"""A pixel has at least this share of the median noise."""


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
    """
    if mask.all():
        return ScaledNoise(measured, measured, 1.0)
    empty = _empty(light, measured, mask)
    scale = _scale(noise, measured, empty)
    # What is bright is told by the plane's pattern: the noisiest places hold no more sources.
    empty = _empty(light, np.where(mask, measured, noise * np.float32(scale)), mask)
    scale = _scale(noise, measured, empty)
    total = np.where(mask, measured, noise * np.float32(scale)).astype(np.float32)
    np.maximum(total, np.float32(LEAST_NOISE * np.median(total[empty])), out=total)
    sky = total
    bright = ~(empty | mask)
    if bright.any():
        sky = total.copy()
        sky[bright] = np.minimum(total[bright], _nearest(total, empty, bright))
    return ScaledNoise(sky, total, scale)


def _empty(
    light: npt.NDArray[np.float32], rms: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Usable pixels of the sky; all usable ones where there is no sky."""
    empty = ~(mask | bright_pixels(light, rms, mask))
    return empty if empty.any() else ~mask


def _scale(
    noise: npt.NDArray[np.float32],
    measured: npt.NDArray[np.float32],
    empty: npt.NDArray[np.bool_],
) -> float:
    return float(np.median(measured[empty] / noise[empty]))


def _nearest(
    values: npt.NDArray[np.float32], known: npt.NDArray[np.bool_], wanted: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """Value of the nearest known pixel, for each wanted one."""
    from scipy.ndimage import distance_transform_edt

    rows, columns = distance_transform_edt(~known, return_distances=False, return_indices=True)
    return np.asarray(values[rows[wanted], columns[wanted]])
