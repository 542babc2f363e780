"""Read the images that ``galsep deblend`` takes: FITS of any common kind.

Pixel values are scaled here, in double precision, rather than by astropy: that keeps BLANK
pixels of unsigned images, leaves the byte order out of what follows, and reads a plain file once.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from galsep.errors import ImageError
from galsep.io.extensions import Extension, choose_extension, list_extensions, opened_fits
from galsep.io.header import clean_header, header_number, one_line
from galsep.io.wcs import celestial_wcs, image_axes

if TYPE_CHECKING:
    from astropy.io import fits
    from astropy.wcs import WCS

__all__ = ["Plane", "input_stem", "read_plane"]

_ENDINGS = re.compile(r"(?:\.(?:fits|fit|fts))?(?:\.(?:gz|fz|bz2|xz|zip|Z))?$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Plane:
    """A 2-D image and what its header says.

    Parameters
    ----------
    data : (h, w) float32 or float64 array
        Pixel values, native and C-contiguous; NaN where ``mask`` is set. Double precision where
        the file has it, or 32-bit integers, or a scaling that single precision would coarsen.
    mask : (h, w) bool array
        True for unusable pixels: NaN, infinite or BLANK.
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


def read_plane(path: Path, ext: str = "") -> Plane:
    """Read one 2-D image of a FITS file.

    Parameters
    ----------
    path : Path
        FITS of any numeric type, plain, compressed as a whole or tile-compressed.
    ext : str
        Number, name or ``NAME,VERSION`` of an extension. Without it the file's only 2-D image is
        taken; planes named like variances, errors, weights and masks are passed over.

    Raises
    ------
    ImageError
        When the file is missing, damaged or no FITS file, or holds no or several such images.
    """
    with opened_fits(path) as hdus:
        chosen = choose_extension(path, list_extensions(path, hdus), ext)
        if not chosen.compressed:
            return _read(path, hdus, chosen)
        # The decoders trust their input, so damage has to be found before they see it.
        if hdus[chosen.index].verify_datasum() == 0:
            raise ImageError(
                f"{path}: extension {chosen.label} is damaged (DATASUM is wrong); copy or "
                f"download it again, or funpack it if only the checksum is out of date"
            )
    with opened_fits(path, tiles=True) as hdus:
        return _read(path, hdus, chosen)


def _read(path: Path, hdus: "fits.HDUList", extension: Extension) -> Plane:
    """Read the pixels and header of one extension."""
    hdu = hdus[extension.index]
    messages = []
    header, dropped = clean_header(hdu.header)
    if dropped:
        names = ", ".join(dropped[:3]) + (", …" if len(dropped) > 3 else "")
        messages.append(
            f"{path}: {len(dropped)} header card{'s' * (len(dropped) > 1)} not readable and "
            f"left out ({names})"
        )
    x_axis, y_axis = image_axes(header)
    shape = (int(header[f"NAXIS{y_axis}"]), int(header[f"NAXIS{x_axis}"]))
    data = _physical(path, _raw_pixels(path, hdu, extension).reshape(shape), header)
    mask = ~np.isfinite(data)
    data[mask] = np.nan
    wcs, problem = celestial_wcs(header, shape, hdus)
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


def _raw_pixels(path: Path, hdu: Any, extension: Extension) -> npt.NDArray[Any]:
    """Read the stored pixels."""
    try:
        return np.asarray(hdu.data)
    except MemoryError:
        raise
    except Exception as error:  # The decoders' own exception is not public.
        raise ImageError(
            f"{path}: extension {extension.label} is damaged ({one_line(error)}); "
            f"copy or download it again"
        ) from error


def _physical(
    path: Path, raw: npt.NDArray[Any], header: "fits.Header"
) -> npt.NDArray[np.floating[Any]]:
    """Scale raw pixels by BSCALE and BZERO, NaN where they are BLANK; always a new array."""
    scale, zero = (
        header_number(header, name) if name in header else default
        for name, default in (("BSCALE", 1.0), ("BZERO", 0.0))
    )
    if not scale or zero is None:
        raise ImageError(f"{path}: BSCALE or BZERO is not a usable number; correct the header")
    integer = raw.dtype.kind in "iu"
    precise = raw.dtype.itemsize > (2 if integer else 4)
    if integer and not precise:
        # Steps of the scale that single precision would blur need double precision.
        reach = abs(zero) + abs(scale) * 2**15
        precise = bool(np.spacing(np.float32(reach)) > abs(scale) / 4)
    data = np.empty(raw.shape, dtype=np.float64 if precise else np.float32)
    blank = header_number(header, "BLANK") if integer else None
    rows = max(1, 2**20 // raw.shape[1])
    for start in range(0, raw.shape[0], rows):
        block = raw[start : start + rows]
        values = block.astype(np.float64) * scale + zero if (scale, zero) != (1, 0) else block
        data[start : start + rows] = values
        if blank is not None:
            data[start : start + rows][block == blank] = np.nan
    return data


def _gain(header: "fits.Header") -> float:
    """Electrons per unit, 0 when unknown. Where both are given, GAIN is a camera's setting."""
    for name in ("EGAIN", "GAIN"):
        value = header_number(header, name)
        if value is not None and value > 0:
            return value
    return 0.0
