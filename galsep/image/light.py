"""From an image's pixels to its light: background subtracted, noise of the sky measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from galsep.image.background import estimate_background
from galsep.image.noise import scale_noise

__all__ = ["Frame", "Light", "without_background"]


@dataclass(frozen=True, slots=True)
class Frame:
    """Pixels of an image and what is known of their noise.

    Parameters
    ----------
    data : (h, w) float array
        In any unit.
    mask : (h, w) bool array
        True where a pixel is unusable.
    noise : (h, w) float32 array or None
        Rms of each pixel as it came with the image, positive where ``mask`` is not set.
    measured : Frame or None
        The image to measure on, of the same shape; ``None`` for this one.
    bands : mapping of str to Frame
        Further images to measure on, of the same shape.
    """

    data: npt.NDArray[Any]
    mask: npt.NDArray[np.bool_]
    noise: npt.NDArray[np.float32] | None = None
    measured: "Frame | None" = None
    bands: "Mapping[str, Frame]" = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Light:
    """An image without its background.

    Parameters
    ----------
    light : (h, w) float32 array
        Image minus background, 0 where unusable.
    mask : (h, w) bool array
        True where a pixel is unusable.
    background, rms : (h, w) float32 arrays
        Background and the noise of the sky.
    noise : (h, w) float32 array or None
        Noise of each pixel by the image's own plane, scaled to the measured noise.
    noise_scale : float or None
        ... and by what.
    """

    light: npt.NDArray[np.float32]
    mask: npt.NDArray[np.bool_]
    background: npt.NDArray[np.float32]
    rms: npt.NDArray[np.float32]
    noise: npt.NDArray[np.float32] | None
    noise_scale: float | None


def without_background(frame: Frame, mesh: int) -> Light:
    """Subtract an image's background, and measure the noise of its sky.

    Parameters
    ----------
    frame : Frame
    mesh : int
        Side of a cell of the background mesh, pixels.
    """
    mask = frame.mask | ~np.isfinite(frame.data)
    data = np.where(mask, 0, frame.data)
    data = np.ascontiguousarray(data, dtype=np.float32 if data.dtype == np.float32 else np.float64)
    background = estimate_background(data, mask, mesh)
    light = (data - background.level).astype(np.float32)
    light[mask] = 0
    if frame.noise is None:
        return Light(light, mask, background.level, background.rms, None, None)
    noise = scale_noise(frame.noise, light, background.rms, mask)
    return Light(light, mask, background.level, noise.sky, noise.total, noise.scale)
