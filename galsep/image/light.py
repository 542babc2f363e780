"""From an image's pixels to its light: background subtracted, noise of the sky measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from galsep.conventions import MAX_PIXEL
from galsep.image.background import Background, estimate_background
from galsep.image.noise import scale_noise
from galsep.planes import Planes

__all__ = ["Frame", "Light", "background_again", "without_background"]

ABSURD = 1e15
"""Light of so many rms is no light: double precision does not hold both it and the noise, and
single precision no sum of its square over a source."""

GAP = 1e3
"""... if there is none within this factor of it."""

DEEPEST = 1e5
"""Rms in the brightest pixel of an image without noise: more than the networks have learnt, but not
too much for them."""


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
    bands : mapping of str to Light
        Further images to measure on, of the same shape.
    gain : float
        Electrons per unit; 0 when unknown.
    psf_fwhm : float or None
        FWHM of the PSF, pixels; ``None`` where it is to be measured.
    """

    data: npt.NDArray[Any]
    mask: npt.NDArray[np.bool_]
    noise: npt.NDArray[np.float32] | None = None
    measured: "Frame | None" = None
    bands: "Mapping[str, Light]" = field(default_factory=dict)
    gain: float = 0.0
    psf_fwhm: float | None = None


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
    gain : float
        Electrons per unit; 0 when unknown.
    """

    light: npt.NDArray[np.float32]
    mask: npt.NDArray[np.bool_]
    background: npt.NDArray[np.float32]
    rms: npt.NDArray[np.float32]
    noise: npt.NDArray[np.float32] | None
    noise_scale: float | None
    gain: float = 0.0


def without_background(frame: Frame, mesh: int, planes: Planes | None = None) -> Light:
    """Subtract an image's background, and measure the noise of its sky.

    Parameters
    ----------
    frame : Frame
    mesh : int
        Side of a cell of the background mesh, pixels.
    planes : Planes, optional
        Where the results are to be.
    """
    planes = planes or Planes()
    shape = frame.data.shape
    single = frame.data.dtype == np.float32
    mask = planes.new(shape, np.bool_)
    data = planes.new(shape, np.float32 if single else np.float64)
    for rows in planes.blocks(shape):
        usable = np.abs(frame.data[rows]) < MAX_PIXEL
        np.logical_or(frame.mask[rows], ~usable, out=mask[rows])
        data[rows] = np.where(mask[rows], 0, frame.data[rows])
    background = estimate_background(data, mask, mesh, planes)
    light = data if single else planes.new(shape, np.float32)
    return _light(data, light, mask, background, frame.noise, 1.0, frame.gain, planes)


def background_again(
    image: Light, hidden: npt.NDArray[np.bool_], mesh: int, planes: Planes | None = None
) -> Light:
    """Estimate an image's background anew, without some of its pixels.

    Parameters
    ----------
    image : Light
    hidden : (h, w) bool array
        Pixels that are not to be looked at; they are background and light all the same.
    mesh : int
        Side of a cell of the background mesh, pixels.
    planes : Planes, optional
        Where the results are to be.
    """
    planes = planes or Planes()
    shape = image.light.shape
    data, unseen = planes.new(shape, np.float64), planes.new(shape, np.bool_)
    for rows in planes.blocks(shape):
        data[rows] = image.light[rows]
        data[rows] += image.background[rows]
        np.logical_or(image.mask[rows], hidden[rows], out=unseen[rows])
    background = estimate_background(data, unseen, mesh, planes)
    light, scale = planes.new(shape, np.float32), image.noise_scale or 1.0
    return _light(data, light, image.mask, background, image.noise, scale, image.gain, planes)


def _light(
    data: npt.NDArray[Any],
    light: npt.NDArray[np.float32],
    mask: npt.NDArray[np.bool_],
    background: Background,
    noise: npt.NDArray[np.float32] | None,
    noise_scale: float,
    gain: float,
    planes: Planes,
) -> Light:
    """Light of pixels, which is written to ``light``, and its noise.

    ``noise``, if there is any, is what came with the image, times ``noise_scale``.
    """
    for rows in planes.blocks(light.shape):
        light[rows] = np.where(mask[rows], 0, data[rows] - background.level[rows])
    _settle_range(light, mask, background.rms, planes)
    if noise is None:
        return Light(light, mask, background.level, background.rms, None, None, gain)
    scaled = scale_noise(noise, light, background.rms, mask, planes)
    _settle_range(light, mask, scaled.sky, planes)
    scale = noise_scale * scaled.scale
    return Light(light, mask, background.level, scaled.sky, scaled.total, scale, gain)


def _settle_range(
    light: npt.NDArray[np.float32],
    mask: npt.NDArray[np.bool_],
    rms: npt.NDArray[np.float32],
    planes: Planes,
) -> None:
    """Bring the range between noise and light to what arithmetic holds, in place.

    Light of more than :data:`ABSURD` rms is no data where no other light comes near to it, and is
    hidden; where other light does, the image has no noise, and is given some.
    """
    largest = others = brightest = 0.0
    for rows in planes.blocks((light.shape[0], light.shape[1])):
        with np.errstate(over="ignore"):
            ratio = np.abs(light[rows]) / rms[rows]
        largest = max(largest, float(ratio.max(initial=0)))
        others = max(others, float(ratio.max(initial=0, where=ratio <= ABSURD)))
        brightest = max(brightest, float(np.abs(light[rows]).max(initial=0)))
    if largest <= ABSURD:
        return
    for rows in planes.blocks((light.shape[0], light.shape[1])):
        if others > ABSURD / GAP:
            np.maximum(rms[rows], np.float32(brightest / DEEPEST), out=rms[rows])
            continue
        with np.errstate(over="ignore"):
            absurd = np.abs(light[rows]) / rms[rows] > ABSURD
        mask[rows] |= absurd
        light[rows][absurd] = 0
