"""Reading pixels: stored values to physical ones, without astropy's own scaling.

Values are scaled here, in double precision: that keeps BLANK pixels of unsigned images, leaves
the byte order out of what follows, and reads a plain file once.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from galsep.errors import ImageError
from galsep.io.extensions import Extension, list_extensions, opened_fits
from galsep.io.header import clean_header, header_number, one_line
from galsep.io.wcs import image_axes

if TYPE_CHECKING:
    from astropy.io import fits

__all__ = ["opened_extensions", "read_bits", "read_values"]


@contextlib.contextmanager
def opened_extensions(
    path: Path, choose: Callable[[Sequence[Extension]], Sequence[Extension]]
) -> Iterator["fits.HDUList"]:
    """Open a FITS file for reading some of its images.

    Parameters
    ----------
    path : Path
        Plain, compressed as a whole or tile-compressed.
    choose : callable
        Is given all extensions and returns those that will be read.

    Raises
    ------
    ImageError
        For whatever goes wrong here or in the ``with`` block.
    """
    with opened_fits(path) as hdus:
        compressed = [one for one in choose(list_extensions(path, hdus)) if one.compressed]
        if not compressed:
            yield hdus
            return
        # The decoders trust their input, so damage has to be found before they see it.
        for extension in compressed:
            if hdus[extension.index].verify_datasum() == 0:
                raise ImageError(
                    f"{path}: extension {extension.label} is damaged (DATASUM is wrong); copy or "
                    f"download it again, or funpack it if only the checksum is out of date"
                )
    with opened_fits(path, tiles=True) as hdus:
        yield hdus


def read_values(
    path: Path, hdus: "fits.HDUList", extension: Extension, header: "fits.Header | None" = None
) -> npt.NDArray[np.floating[Any]]:
    """Read an image's pixels, scaled, NaN where they are BLANK; always a new array.

    Parameters
    ----------
    path : Path
        For messages.
    hdus : fits.HDUList
        From :func:`opened_extensions`.
    extension : Extension
    header : fits.Header, optional
        The extension's header, where it is cleaned already.
    """
    if header is None:
        header, _ = clean_header(hdus[extension.index].header)
    return _physical(path, _raw_pixels(path, hdus, extension, header), header)


def read_bits(
    path: Path, hdus: "fits.HDUList", extension: Extension
) -> npt.NDArray[np.signedinteger[Any]]:
    """Read a mask's pixels as integers that hold its bits; not negative.

    A value that is no whole number counts as its whole part, or as 1 where that is 0.

    Returns
    -------
    (h, w) int32 or int64 array
        The smaller type where it holds all bits.
    """
    header, _ = clean_header(hdus[extension.index].header)
    raw = _raw_pixels(path, hdus, extension, header)
    scale, zero = header_number(header, "BSCALE"), header_number(header, "BZERO") or 0.0
    if raw.dtype.kind in "iu" and scale in (None, 1.0) and zero.is_integer():
        # Unsigned types are stored with an offset; the sign of signed ones is just a bit.
        bits = raw.astype(np.int64) + int(zero) if abs(zero) < 2**62 else raw.astype(np.int64)
        bits &= 2 ** min(8 * raw.dtype.itemsize, 63) - 1
    else:
        values = _physical(path, raw, header)
        known = np.isfinite(values)
        bits = np.where(known, np.clip(np.abs(values), 0, 2.0**62), 1).astype(np.int64)
        bits[(bits == 0) & (values != 0)] = 1
    return bits.astype(np.int32) if bits.size and bits.max() < 2**31 else bits


def _raw_pixels(
    path: Path, hdus: "fits.HDUList", extension: Extension, header: "fits.Header"
) -> npt.NDArray[Any]:
    """Read the stored pixels as a 2-D array."""
    x_axis, y_axis = image_axes(header)
    shape = (int(header[f"NAXIS{y_axis}"]), int(header[f"NAXIS{x_axis}"]))
    try:
        return np.asarray(hdus[extension.index].data).reshape(shape)
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
