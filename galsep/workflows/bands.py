"""Several bands of one field: found in their combination, measured in each."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from galsep.errors import UsageError
from galsep.image.background import sampled
from galsep.image.light import Frame, Light, without_background
from galsep.io.image import Plane, read_plane_like
from galsep.measure.photometry import pixel_variance
from galsep.planes import Planes

__all__ = ["band_files", "check_names", "combined_frame", "combined_plane", "read_bands"]

NAME = re.compile(r"(?!err(_|$))\w{1,16}", re.ASCII | re.IGNORECASE)
"""Names that make columns and HDUs of FITS, and none that is there already."""

BRIGHT = 5
"""Pixels that tell how much of the light is each band's stand out by so many rms."""


def band_files(given: Sequence[str]) -> dict[str, str]:
    """Read ``NAME=FILE`` entries; a file may be ``FILE[EXT]``.

    Raises
    ------
    UsageError
        For another form, a name that :func:`check_names` refuses, or one given twice.
    """
    files: dict[str, str] = {}
    for entry in given:
        name, equals, file = entry.partition("=")
        if not (equals and file and name):
            raise UsageError(f"a band is NAME=FILE, such as g=field_g.fits, got {entry!r}")
        if name in files:
            raise UsageError(f"band {name} is given twice: {files[name]} and {file}")
        files[name] = file
    check_names(files)
    return files


def check_names(names: Iterable[str]) -> None:
    """Refuse names that cannot be part of those of columns and HDUs.

    Raises
    ------
    UsageError
        For other than one to 16 ASCII letters, digits and ``_``, for ``err`` and what begins with
        ``err_``, which is the name of a column, and for two that differ in case only: FITS does
        not tell them apart.
    """
    seen: dict[str, str] = {}
    for name in names:
        if not NAME.fullmatch(name):
            raise UsageError(
                f"the name of a band is 1 to 16 letters, digits and _, and not err, got {name!r}"
            )
        if name.lower() in seen:
            raise UsageError(
                f"bands {seen[name.lower()]} and {name} differ in case only, which FITS does not "
                "tell apart"
            )
        seen[name.lower()] = name


def read_bands(files: Mapping[str, str], first: Plane, planes: Planes) -> dict[str, Plane]:
    """Read the images of all bands on the first one's grid.

    Parameters
    ----------
    files : mapping of str to str
        From :func:`band_files`.
    first : Plane
        The first band's image.
    planes : Planes
        Where arrays are to be.

    Raises
    ------
    ImageError
        When one cannot be read, or lies on another grid: other numbers of pixels, or a WCS that
        puts a corner more than half a pixel elsewhere.
    """
    bands = {}
    for number, (name, file) in enumerate(files.items()):
        bands[name] = first if not number else read_plane_like(file, first, planes, "--band")
    return bands


def combined_frame(frames: Mapping[str, Frame], mesh: int, planes: Planes) -> Frame:
    """Mean of the bands without their backgrounds, weighted by inverse variance.

    A pixel is usable where any band is. A band of one value everywhere does not count, if another
    one varies.

    Parameters
    ----------
    frames : mapping of str to Frame
    mesh : int
        Side of a cell of the background mesh, pixels.
    planes : Planes
        Where arrays are to be.
    """
    bands = {name: without_background(frame, mesh, planes) for name, frame in frames.items()}
    shape = next(iter(bands.values())).light.shape
    # What does not vary has no noise that could weigh it.
    lights = [light for light in bands.values() if _varies(light, planes)] or [*bands.values()]
    # Weights are relative to it: single precision does not hold the squares of every unit.
    unit = min(np.median(sampled(light.rms)) for light in lights)
    total, weight = planes.new(shape, np.float32), planes.new(shape, np.float32)
    for rows in planes.blocks(shape):
        for light in lights:
            own = np.where(light.mask[rows], 0, (unit / light.rms[rows]) ** 2)
            total[rows] += own * light.light[rows]
            weight[rows] += own
    mask, noise = planes.new(shape, np.bool_), planes.new(shape, np.float32)
    for rows in planes.blocks(shape):
        mask[rows] = weight[rows] == 0
        some = np.where(mask[rows], 1, weight[rows])
        total[rows] /= some
        noise[rows] = unit / np.sqrt(some)
    return Frame(total, mask, noise, bands=bands, gain=_combined_gain(lights, total, noise))


def _varies(light: Light, planes: Planes) -> bool:
    """Whether the usable pixels of a band differ from each other."""
    low, high = math.inf, -math.inf
    for rows in planes.blocks(light.light.shape):
        seen = light.light[rows][~light.mask[rows]]
        low, high = min(low, seen.min(initial=low)), max(high, seen.max(initial=high))
        if low < high:
            return True
    return False


def _combined_gain(
    lights: Sequence[Light], total: npt.NDArray[np.float32], noise: npt.NDArray[np.float32]
) -> float:
    """Electrons per unit of the combination, 0 if no band's are known.

    The Poisson variance of Σ w b is Σ w² b / gain, or what the bands' noise planes have over the
    sky's; for bands ``b`` in the proportions that they have where there is light, that is the
    combination over this gain.
    """
    bright = sampled(total) > BRIGHT * sampled(noise)
    if not bright.any():
        return 0.0
    all_light = float(sampled(total)[bright].sum(dtype=np.float64))
    variance = 0.0
    for light in lights:
        here = np.where(sampled(light.mask), 0, sampled(noise) / sampled(light.rms))[bright]
        weight = here.astype(np.float64) ** 2
        rms = sampled(light.rms)[bright]
        known = None if light.noise is None else sampled(light.noise)[bright]
        if light.gain > 0 or known is not None:
            own = pixel_variance(sampled(light.light)[bright], rms, light.gain, known)
            variance += float((weight**2 * (own - rms.astype(np.float64) ** 2)).sum())
    return all_light / variance if variance > 0 else 0.0


def combined_plane(bands: Mapping[str, Plane], frame: Frame, planes: Planes) -> Plane:
    """What is known of the combination: the first band's place on the sky, and what all share.

    Parameters
    ----------
    bands : mapping of str to Plane
    frame : Frame
        From :func:`combined_frame`.
    planes : Planes
        Where arrays are to be.
    """
    first = next(iter(bands.values()))
    units = {plane.unit for plane in bands.values()}
    masks = [plane.dq for plane in bands.values() if plane.dq is not None]
    dq = first.dq
    if masks:
        shape = (frame.data.shape[0], frame.data.shape[1])
        bits = planes.new(shape, np.int64)
        for rows in planes.blocks(shape):
            for mask in masks:
                bits[rows] |= mask.bits[rows].astype(np.int64)
        dq = replace(masks[0], bits=bits)
    return replace(
        first,
        data=frame.data,
        mask=frame.mask,
        unit=units.pop() if len(units) == 1 else "",
        gain=0.0,
        noise=None,
        dq=dq,
    )
