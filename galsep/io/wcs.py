"""The world coordinates of an image: read what is usable, and hand the keywords on."""

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from galsep.io.header import header_number, one_line, quiet_astropy

if TYPE_CHECKING:
    from astropy.io import fits
    from astropy.wcs import WCS

__all__ = [
    "SkyPlace",
    "celestial_wcs",
    "image_axes",
    "largest_offset",
    "sky_place",
    "usable_wcs",
    "wcs_keywords",
]

_FRAMES = ("icrs", "fk5", "fk4", "fk4noeterms", "galactic")
"""Frames that convert to ICRS without a time or a place."""

# The primary WCS (FITS standard 4.0, table 22) with its SIP, TPV and TNX/ZPX distortions.
# Distortions by look-up table (CPDIS, D2IM) point to other extensions and do not travel.
_GLOBAL = re.compile(
    r"WCSAXES|WCSDIM|WCSNAME|LONPOLE|LATPOLE|RADESYS|RADECSYS|EQUINOX|EPOCH|WAT0_001"
)
_PER_AXIS = re.compile(
    r"(CTYPE|CUNIT|CNAME|CRVAL|CRPIX|CDELT|CROTA|CRDER|CSYER|PV|PS|WAT)(\d+)(_\d+)?"
)
_MATRIX = re.compile(r"(CD|PC)(\d+)_(\d+)")
_NUMBERS = re.compile(r"(?:CRVAL|CRPIX|CDELT|CROTA)\d+|(?:CD|PC)\d+_\d+")
_SIP = re.compile(r"[AB]P?_(?:ORDER|DMAX|\d+_\d+)")

_SIP_MOST = 9
"""Highest order of a SIP polynomial; astropy would set aside memory for any."""

# What astropy.wcs and wcslib raise for broken keywords; wcslib's own errors are ValueErrors, and
# astropy's D2IM cards without their distortion give a NameError.
_WCS_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    NameError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, slots=True)
class SkyPlace:
    """Where an image lies on the sky, at its centre.

    Parameters
    ----------
    ra, dec : float
        Degrees, ICRS.
    pixel_scale : float
        Arcsec; the root of a pixel's area.
    """

    ra: float
    dec: float
    pixel_scale: float


def image_axes(header: "fits.Header") -> tuple[int, int]:
    """FITS axes (from 1) that run along x and y: the two that are longer than one pixel.

    Where axes of one pixel leave a choice, the first ones are taken.
    """
    count = int(header.get("NAXIS", 0))
    long = [axis for axis in range(1, count + 1) if header.get(f"NAXIS{axis}") != 1]
    short = [axis for axis in range(1, count + 1) if axis not in long]
    x_axis, y_axis = sorted((long + short)[:2])
    return x_axis, y_axis


def celestial_wcs(
    header: "fits.Header", shape: tuple[int, int], hdus: "fits.HDUList | None" = None
) -> tuple["WCS | None", str]:
    """Read the celestial WCS of a 2-D image.

    Parameters
    ----------
    header : fits.Header
    shape : (int, int)
        Height and width of the image.
    hdus : fits.HDUList, optional
        The open file, for distortions by look-up table.

    Returns
    -------
    wcs : astropy WCS or None
        Two celestial axes in the order of the pixel axes; ``None`` without a usable one.
    problem : str
        Why a WCS that is there cannot be used; empty otherwise.
    """
    if not any(str(header.get(f"CTYPE{axis}", "")).strip() for axis in range(1, 10)):
        return None, ""
    for name in filter(_NUMBERS.fullmatch, header):
        if header_number(header, name) is None:  # wcslib would take its default.
            return None, f"{name} is not a number"
    orders = [header.get(f"{name}_ORDER", 0) for name in ("A", "B", "AP", "BP")]
    if not all(isinstance(order, int) and 0 <= order <= _SIP_MOST for order in orders):
        return None, f"a SIP order is not within 0 to {_SIP_MOST}"
    from astropy.wcs import WCS

    with quiet_astropy(), np.errstate(all="ignore"):
        try:
            axes = image_axes(header)
            # Distortions are of two axes; of a cube of one plane these may be all there is.
            wcs = WCS(header, fobj=hdus, naxis=2 if axes == (1, 2) else None)
            if not wcs.has_celestial:
                return None, ""
            if wcs.naxis != 2:
                wcs = wcs.sub(list(axes))
            problem = _problem(wcs, shape)
        except _WCS_ERRORS as error:
            return None, one_line(error)
    return (None, problem) if problem else (wcs, "")


def usable_wcs(wcs: "WCS", shape: tuple[int, int]) -> tuple["WCS | None", str]:
    """Take a WCS that was given for an image, if it is one of the sky.

    Parameters
    ----------
    wcs : astropy WCS
    shape : (int, int)
        Height and width of the image.

    Returns
    -------
    wcs : astropy WCS or None
        Its two celestial axes; ``None`` where there are none, or they give no coordinates.
    problem : str
        Why it cannot be used; empty otherwise.
    """
    from astropy.wcs import WCS

    if not isinstance(wcs, WCS):
        return None, f"it is no astropy.wcs.WCS, but a {type(wcs).__name__}"
    if not wcs.has_celestial:
        return None, "it has no celestial axes"
    with quiet_astropy(), np.errstate(all="ignore"):
        try:
            flat = wcs if wcs.naxis == 2 else wcs.celestial
            problem = _problem(flat, shape)
        except _WCS_ERRORS as error:
            return None, one_line(error)
    return (None, problem) if problem else (flat, "")


def largest_offset(wcs: "WCS", other: "WCS", shape: tuple[int, int]) -> float:
    """How far apart two WCS put the corners of an image, pixels.

    A corner that a distorted WCS cannot place says nothing.

    Parameters
    ----------
    wcs, other : astropy WCS
        From :func:`celestial_wcs`.
    shape : (int, int)
        Height and width of the image.
    """
    height, width = shape
    x, y = np.array([0, width - 1, 0, width - 1]), np.array([0, 0, height - 1, height - 1])
    there = wcs.world_to_pixel(other.pixel_to_world(x, y))
    return float(np.nanmax(np.hypot(there[0] - x, there[1] - y), initial=0.0))


def sky_place(wcs: "WCS", shape: tuple[int, int]) -> SkyPlace | None:
    """Find an image's centre and pixel scale.

    Parameters
    ----------
    wcs : astropy WCS
        From :func:`celestial_wcs`.
    shape : (int, int)
        Height and width of the image.

    Returns
    -------
    SkyPlace or None
        ``None`` where the centre is off the sky, as it may be in an all-sky map.
    """
    height, width = shape
    x, y = (width - 1) / 2, (height - 1) / 2
    with quiet_astropy(), np.errstate(all="ignore"):
        sky = wcs.pixel_to_world([x, x + 1, x], [y, y, y + 1]).icrs
    ra, dec = np.radians(sky.ra.deg), np.radians(sky.dec.deg)
    # Unit vectors: their cross product has no trouble with poles.
    centre, right, up = np.stack(
        [np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1
    )
    area = float(np.linalg.norm(np.cross(right - centre, up - centre)))
    if not (math.isfinite(area) and area > 0):
        return None
    return SkyPlace(
        float(sky.ra.deg[0]), float(sky.dec.deg[0]), math.degrees(math.sqrt(area)) * 3600
    )


def _problem(wcs: "WCS", shape: tuple[int, int]) -> str:
    """Say why a WCS gives no right ascension and declination, or nothing."""
    from astropy.wcs.utils import wcs_to_celestial_frame

    if not wcs.is_celestial:
        return "its sky axes are not the axes of the image"
    frame = wcs_to_celestial_frame(wcs).name
    if frame not in _FRAMES:
        return f"its frame {frame} does not convert to ICRS"
    height, width = shape
    x = np.array([width / 2, 0, width - 1, 0, width - 1])
    y = np.array([height / 2, 0, 0, height - 1, height - 1])
    sky = wcs.pixel_to_world(x, y).icrs
    # The corners of an all-sky map may lie off the sky; nowhere on it means broken.
    if not np.any(np.isfinite(sky.ra) & np.isfinite(sky.dec)):
        return "it gives no finite coordinates"
    if width > 1 and height > 1 and np.ptp(sky.ra) == 0 and np.ptp(sky.dec) == 0:
        return "it gives one position for all pixels"
    return ""


def wcs_keywords(header: "fits.Header") -> "fits.Header":
    """Copy the keywords of the primary WCS, value by value, as those of a 2-D image."""
    from astropy.io import fits

    x_axis, y_axis = image_axes(header)
    number = {x_axis: 1, y_axis: 2}
    kept = fits.Header()
    for card in header.cards:
        name = card.keyword
        value = card.value
        if _GLOBAL.fullmatch(name):
            value = 2 if name in ("WCSAXES", "WCSDIM") else value
        elif found := _PER_AXIS.fullmatch(name):
            if int(found[2]) not in number:
                continue
            name = f"{found[1]}{number[int(found[2])]}{found[3] or ''}"
        elif found := _MATRIX.fullmatch(name):
            if int(found[2]) not in number or int(found[3]) not in number:
                continue
            name = f"{found[1]}{number[int(found[2])]}_{number[int(found[3])]}"
        elif not (_SIP.fullmatch(name) and number == {1: 1, 2: 2}):
            continue
        kept[name] = (value, card.comment)
    return kept
