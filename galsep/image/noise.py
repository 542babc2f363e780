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
    mesh: int = 64,
) -> ScaledNoise:
    """Scale a noise plane to the measured noise, as SExtractor does with weight maps.

    The scale is the median of measured over given rms where the sky is empty. On bright pixels,
    where a plane may hold the sources' own Poisson noise, the noise of the sky is at most that of
    the empty sky around, on the mesh of the background.

    Parameters
    ----------
    noise : (h, w) float32 array
        Given rms, positive where ``mask`` is not set.
    light, measured : (h, w) float32 arrays
        Image minus background, and the rms of the background.
    mask : (h, w) bool array
        True where a pixel is unusable; there the noise is the measured one.
    mesh : int
        Side of a mesh cell, pixels.
    """
    import sep

    sources = bright_pixels(light, measured, mask)
    empty = ~(mask | sources)
    if not empty.any():
        empty = ~mask
    if not empty.any():
        return ScaledNoise(measured, measured, 1.0)
    scale = float(np.median(measured[empty] / noise[empty]))
    total = np.where(mask, measured, noise * np.float32(scale)).astype(np.float32)
    least = np.float32(LEAST_NOISE * np.median(total[empty]))
    np.maximum(total, least, out=total)
    sky = total
    if (sources & ~mask).any():
        around = sep.Background(total, mask=~empty, bw=mesh, bh=mesh).back(dtype=np.float32)
        sky = np.where(sources, np.clip(around, least, total), total).astype(np.float32)
    return ScaledNoise(sky, total, scale)
