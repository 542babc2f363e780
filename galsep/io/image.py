"""Read the images that ``galsep deblend`` takes: FITS of any common kind."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from galsep.conventions import MAX_PIXEL
from galsep.errors import ImageError
from galsep.io.companions import (
    NONE,
    Linked,
    Mask,
    Noise,
    PlaneOptions,
    check_shape,
    choose_beside,
    linked_planes,
    read_mask,
    read_mask_file,
    read_noise,
    read_noise_file,
    split_reference,
)
from galsep.io.extensions import (
    Extension,
    choose_extension,
    choose_extensions,
    list_extensions,
    opened_fits,
    sky_images,
)
from galsep.io.header import clean_header, header_number
from galsep.io.pixels import opened_extensions, read_values
from galsep.io.wcs import celestial_wcs, largest_offset
from galsep.planes import Planes

if TYPE_CHECKING:
    from astropy.io import fits
    from astropy.wcs import WCS

__all__ = ["Images", "Plane", "input_stem", "list_images", "read_plane", "read_plane_like"]

_ENDINGS = re.compile(r"(?:\.(?:fits|fit|fts))?(?:\.(?:gz|fz|bz2|xz|zip|Z))?$", re.IGNORECASE)


ODD_ZEROS, ZERO_BLOCK = 0.01, 8
"""More than this share of an image in squares of zeros, of this side in pixels, may be a border."""

MOST_OFFSET = 0.5
"""Pixels by which the corners of an image may lie elsewhere than those of one it goes with."""


@dataclass(frozen=True, slots=True)
class Plane:
    """A 2-D image and what its header says.

    Parameters
    ----------
    data : (h, w) float32 or float64 array
        Pixel values, native and C-contiguous; NaN where ``mask`` is set. Double precision where
        the file has it, or 32-bit integers, or a scaling that single precision would coarsen.
    mask : (h, w) bool array
        True for unusable pixels: NaN, infinite (or nearly so) or BLANK, hidden by ``dq``, without
        ``noise``.
    header : fits.Header
        The readable cards of the HDU.
    wcs : astropy WCS or None
        Celestial, of two axes.
    ext : int
        Number of the HDU.
    extname, unit : str
        EXTNAME and BUNIT, or empty.
    gain : float
        Electrons per unit from EGAIN or GAIN; 0 when unknown.
    messages : tuple of str
        What the user should hear of, one line each.
    noise : Noise or None
        From a variance, rms or weight plane.
    dq : Mask or None
        From a mask plane.
    """

    data: npt.NDArray[np.floating[Any]]
    mask: npt.NDArray[np.bool_]
    header: "fits.Header"
    wcs: "WCS | None"
    ext: int
    extname: str
    unit: str
    gain: float
    messages: tuple[str, ...]
    noise: Noise | None = None
    dq: Mask | None = None

    def __post_init__(self) -> None:
        if self.data.ndim != 2 or self.mask.shape != self.data.shape:
            raise ValueError(
                f"a plane is 2-D, got data {self.data.shape} and mask {self.mask.shape}"
            )


def input_stem(path: Path) -> str:
    """Name of an input without its FITS and compression endings.

    Examples
    --------
    >>> input_stem(Path("data/field.r.fits.gz"))
    'field.r'
    """
    name = path.name
    return _ENDINGS.sub("", name) or name


@dataclass(frozen=True, slots=True)
class Images:
    """Images of a file that are to be deblended.

    Parameters
    ----------
    chosen : tuple of int
        Numbers of their HDUs.
    several : bool
        Whether the file holds several images, chosen or not.
    pixels : int
        Of all chosen ones together.
    """

    chosen: tuple[int, ...]
    several: bool
    pixels: int


def list_images(path: Path, ext: str = "") -> Images:
    """Find the images of a FITS file without reading their pixels.

    Parameters
    ----------
    path : Path
    ext : str
        Number or ``NAME,VERSION`` of an extension, or a name of several. Without it, all 2-D images
        but planes named like variances, errors, weights and masks.

    Raises
    ------
    ImageError
        When the file is missing, damaged or no FITS file, or holds no such image.
    """
    with opened_fits(path) as hdus:
        extensions = list_extensions(path, hdus)
    chosen = choose_extensions(path, extensions, ext)
    pixels = sum(math.prod(one.axes or ()) for one in chosen)
    return Images(tuple(one.index for one in chosen), len(sky_images(extensions)) > 1, pixels)


def read_plane(
    path: Path,
    ext: str = "",
    options: PlaneOptions | None = None,
    planes: Planes | None = None,
) -> Plane:
    """Read one 2-D image of a FITS file, with its noise and its mask.

    Parameters
    ----------
    path : Path
        FITS of any numeric type, plain, compressed as a whole or tile-compressed.
    ext : str
        Number, name or ``NAME,VERSION`` of an extension. Without it the file's only 2-D image is
        taken; planes named like variances, errors, weights and masks are passed over.
    options : PlaneOptions, optional
        Which planes to use beside it; by default those that are recognised.
    planes : Planes, optional
        Where its arrays are to be; in memory by default.

    Raises
    ------
    ImageError
        When the file is missing, damaged or no FITS file, holds no or several such images, or
        when its planes are not usable.
    """
    return _read_plane(
        path,
        lambda extensions: choose_extension(path, extensions, ext),
        options or PlaneOptions(),
        planes or Planes(),
    )


def read_plane_like(
    reference: str, image: Plane, planes: Planes | None = None, option: str = "--detect"
) -> Plane:
    """Read the image that goes with another one, with the planes of its own file.

    Parameters
    ----------
    reference : str
        ``FILE`` or ``FILE[EXT]``; without an extension the only image, or that of the other
        image's number and name.
    image : Plane
        The other image.
    planes : Planes, optional
        Where its arrays are to be.
    option : str
        That names it, for messages.

    Raises
    ------
    ImageError
        As :func:`read_plane`, or when the two differ in size, or their WCS put a corner more than
        half a pixel apart.
    """
    path, ext = split_reference(reference)
    plane = _read_plane(
        path,
        lambda extensions: choose_beside(path, extensions, ext, image.ext, image.extname),
        PlaneOptions(),
        planes or Planes(),
    )
    check_shape(path, plane.data.shape, _shape(image.data), option)
    if plane.wcs is not None and image.wcs is not None:
        off = largest_offset(plane.wcs, image.wcs, _shape(image.data))
        if off > MOST_OFFSET:
            raise ImageError(
                f"{path}: lies on another grid than the image, {off:.1f} px off at a corner; "
                f"{option} takes one that is resampled to the image's pixels"
            )
    return plane


def _read_plane(
    path: Path,
    choose_image: Callable[[Sequence[Extension]], Extension],
    options: PlaneOptions,
    planes: Planes,
) -> Plane:
    kind, noise_file = options.noise
    chosen: list[Extension] = []
    linked = Linked()

    def choose(extensions: Sequence[Extension]) -> Sequence[Extension]:
        nonlocal linked
        chosen.append(choose_image(extensions))
        found = linked_planes(extensions, chosen[0])
        linked = Linked(
            None if noise_file else found.noise,
            None if options.mask else found.mask,
            "" if noise_file and options.mask else found.message,
        )
        wanted = [*chosen, *(one for one in (linked.noise, linked.mask) if one is not None)]
        return [choose_extension(path, extensions, str(one.index)) for one in wanted]

    noise: Noise | None = None
    dq: Mask | None = None
    with opened_extensions(path, choose, planes) as hdus:
        plane = _read_image(path, hdus, chosen[0], planes)
        if linked.noise is not None:
            noise = read_noise(path, hdus, linked.noise, planes=planes)
        if linked.mask is not None:
            dq = read_mask(path, hdus, linked.mask, options.mask_bits, planes=planes)
    messages = list(plane.messages)
    if linked.message:
        messages.append(f"{path}: {linked.message}")
    if noise is not None and not noise.anywhere:
        messages.append(f"{path}: plane {noise.origin} is not used, since it is nowhere positive")
        noise = None
    shape = _shape(plane.data)
    if noise_file and noise_file != NONE:
        noise = read_noise_file(noise_file, kind, shape, plane.ext, plane.extname, planes)
    if options.mask and options.mask != NONE:
        dq = read_mask_file(
            options.mask, options.mask_bits, shape, plane.ext, plane.extname, planes
        )
    if options.mask_bits and dq is None:
        messages.append(f"{path}: there is no mask plane, so --mask-bits chooses nothing")
    if noise is not None:
        check_shape(path, noise.rms.shape, shape, "the noise")
    if dq is not None:
        check_shape(path, dq.bits.shape, shape, "the mask")
    zeros = 0
    for rows in planes.blocks(shape, ZERO_BLOCK):
        mask = plane.mask[rows]
        if noise is not None:
            mask |= np.isnan(noise.rms[rows])
        if dq is not None:
            mask |= dq.hidden_pixels(rows)
        plane.data[rows][mask] = np.nan
        zeros += _pixels_in_zeros(plane.data[rows])
    empty = zeros / plane.data.size
    if ODD_ZEROS < empty < 1 - ODD_ZEROS:
        messages.append(
            f"{path}: {empty:.0%} of the image is exactly 0 and counts as data; where nothing was "
            "seen, it should be NaN, or hidden by a mask"
        )
    return replace(plane, noise=noise, dq=dq, messages=tuple(messages))


def _read_image(path: Path, hdus: "fits.HDUList", extension: Extension, planes: Planes) -> Plane:
    """Read the pixels and header of one extension."""
    messages = []
    header, dropped = clean_header(hdus[extension.index].header)
    if dropped:
        names = ", ".join(dropped[:3]) + (", …" if len(dropped) > 3 else "")
        messages.append(
            f"{path}: {len(dropped)} header card{'s' * (len(dropped) > 1)} not readable and "
            f"left out ({names})"
        )
    data = read_values(path, hdus, extension, header, planes)
    mask = planes.new(data.shape, np.bool_)
    for rows in planes.blocks(data.shape):
        np.logical_not(np.abs(data[rows]) < MAX_PIXEL, out=mask[rows])
        data[rows][mask[rows]] = np.nan
    wcs, problem = celestial_wcs(header, _shape(data), hdus)
    if problem:
        messages.append(f"{path}: the WCS is not usable ({problem}); ra and dec will be NaN")
    # Extensions inherit what a primary header without an image says of all of them.
    primary = hdus[0].header
    inherited = primary if extension.index and not primary.get("NAXIS") else header
    unit = header.get("BUNIT", inherited.get("BUNIT", ""))
    return Plane(
        data=data,
        mask=mask,
        header=header,
        wcs=wcs,
        ext=extension.index,
        extname=extension.name,
        unit=unit.strip() if isinstance(unit, str) else "",
        gain=_gain(header) or _gain(inherited),
        messages=tuple(messages),
    )


def _pixels_in_zeros(data: npt.NDArray[Any]) -> int:
    """Pixels in squares that are 0 all over, as borders are that have no data."""
    height, width = (side // ZERO_BLOCK * ZERO_BLOCK for side in data.shape)
    shape = (height // ZERO_BLOCK, ZERO_BLOCK, width // ZERO_BLOCK, ZERO_BLOCK)
    squares = (data[:height, :width] == 0).reshape(shape).all(axis=(1, 3))
    return ZERO_BLOCK**2 * int(np.count_nonzero(squares))


def _shape(data: npt.NDArray[Any]) -> tuple[int, int]:
    return (data.shape[0], data.shape[1])


def _gain(header: "fits.Header") -> float:
    """Electrons per unit, 0 when unknown. Where both are given, GAIN is a camera's setting."""
    for name in ("EGAIN", "GAIN"):
        value = header_number(header, name)
        if value is not None and 1 / MAX_PIXEL < value < MAX_PIXEL:
            return value
    return 0.0
