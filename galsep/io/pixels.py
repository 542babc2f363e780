"""Reading pixels: stored values to physical ones, without astropy's own scaling.

Values are scaled here, in double precision: that keeps BLANK pixels of unsigned images, leaves
the byte order out of what follows, and reads a plain file once.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from galsep.errors import ImageError
from galsep.io.extensions import Extension, list_extensions, opened_fits, refuse_damaged
from galsep.io.header import clean_header, header_number, one_line
from galsep.io.wcs import image_axes
from galsep.planes import Planes

if TYPE_CHECKING:
    from astropy.io import fits

__all__ = ["opened_extensions", "read_bits", "read_values"]


@contextlib.contextmanager
def opened_extensions(
    path: Path,
    choose: Callable[[Sequence[Extension]], Sequence[Extension]],
    planes: Planes | None = None,
) -> Iterator["fits.HDUList"]:
    """Open a FITS file for reading some of its images.

    Parameters
    ----------
    path : Path
        Plain, compressed as a whole or tile-compressed.
    choose : callable
        Is given all extensions and returns those that will be read.
    planes : Planes, optional
        Where they will be read to: what is large is read by sections.

    Raises
    ------
    ImageError
        For whatever goes wrong here or in the ``with`` block.
    """
    mapped = planes is None or planes.folder is None
    with opened_fits(path, mapped=mapped) as hdus:
        compressed = [one for one in choose(list_extensions(path, hdus)) if one.compressed]
        if not compressed:
            yield hdus
            return
        for extension in compressed:
            refuse_damaged(path, hdus, extension)
    with opened_fits(path, tiles=True) as hdus:
        yield hdus


def read_values(
    path: Path,
    hdus: "fits.HDUList",
    extension: Extension,
    header: "fits.Header | None" = None,
    planes: Planes | None = None,
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
    planes : Planes, optional
        Where the array is to be.
    """
    planes = planes or Planes()
    if header is None:
        header, _ = clean_header(hdus[extension.index].header)
    stored = _Stored.of(path, hdus, extension, header, planes)
    scaling = _Scaling.of(path, header, stored.dtype)
    values = planes.new(stored.shape, scaling.dtype)
    for rows in planes.blocks(stored.shape):
        values[rows] = scaling.apply(stored.read(rows))
    return values


def read_bits(
    path: Path, hdus: "fits.HDUList", extension: Extension, planes: Planes | None = None
) -> npt.NDArray[np.signedinteger[Any]]:
    """Read a mask's pixels as integers that hold its bits; not negative.

    A value that is no whole number counts as its whole part, or as 1 where that is 0.

    Parameters
    ----------
    path, hdus, extension, planes
        See :func:`read_values`.

    Returns
    -------
    (h, w) int32 or int64 array
        The smaller type where it holds all bits.
    """
    planes = planes or Planes()
    header, _ = clean_header(hdus[extension.index].header)
    stored = _Stored.of(path, hdus, extension, header, planes)
    scaling = _Scaling.of(path, header, stored.dtype)
    bits = planes.new(stored.shape, np.int32)
    for rows in planes.blocks(stored.shape):
        block = _bits(stored.read(rows), scaling)
        if bits.dtype == np.int32 and block.size and block.max() >= 2**31:
            narrow, bits = bits, planes.new(stored.shape, np.int64)
            for earlier in planes.blocks(stored.shape):
                bits[earlier] = narrow[earlier]
        bits[rows] = block
    return bits


def _bits(raw: npt.NDArray[Any], scaling: "_Scaling") -> npt.NDArray[np.int64]:
    if raw.dtype.kind in "iu" and scaling.scale == 1.0 and scaling.zero.is_integer():
        # Unsigned types are stored with an offset; the sign of signed ones is just a bit.
        offset = int(scaling.zero) if abs(scaling.zero) < 2**62 else 0
        bits: npt.NDArray[np.int64] = raw.astype(np.int64) + offset
        bits &= 2 ** min(8 * raw.dtype.itemsize, 63) - 1
        return bits
    values = scaling.apply(raw)
    known = np.isfinite(values)
    bits = np.where(known, np.clip(np.abs(values), 0, 2.0**62), 1).astype(np.int64)
    bits[(bits == 0) & (values != 0)] = 1
    return bits


@dataclass(frozen=True, slots=True)
class _Stored:
    """An image's pixels as they are stored, to be read some rows at a time."""

    path: Path
    hdu: Any
    extension: Extension
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    by_section: bool

    @classmethod
    def of(
        cls,
        path: Path,
        hdus: "fits.HDUList",
        extension: Extension,
        header: "fits.Header",
        planes: Planes,
    ) -> "_Stored":
        x_axis, y_axis = image_axes(header)
        shape = (int(header[f"NAXIS{y_axis}"]), int(header[f"NAXIS{x_axis}"]))
        hdu = hdus[extension.index]
        # Where all fits into memory, one go is faster than many.
        by_section = planes.folder is not None and len(hdu.shape) == 2
        with _damage_noticed(path, extension):
            dtype = (hdu.section[:1] if by_section else hdu.data).dtype
        return cls(path, hdu, extension, shape, dtype, by_section)

    def read(self, rows: slice) -> npt.NDArray[Any]:
        """Read some rows."""
        with _damage_noticed(self.path, self.extension):
            if self.by_section:
                return np.asarray(self.hdu.section[rows])
            return np.asarray(self.hdu.data).reshape(self.shape)[rows]


@contextlib.contextmanager
def _damage_noticed(path: Path, extension: Extension) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # The decoders' own exception is not public.
        raise ImageError(
            f"{path}: extension {extension.label} is damaged ({one_line(error)}); "
            f"copy or download it again"
        ) from error


@dataclass(frozen=True, slots=True)
class _Scaling:
    """How stored pixels become physical ones, by BSCALE, BZERO and BLANK."""

    scale: float
    zero: float
    blank: float | None
    dtype: type[np.floating[Any]]

    @classmethod
    def of(cls, path: Path, header: "fits.Header", stored: np.dtype[Any]) -> "_Scaling":
        scale, zero = (
            header_number(header, name) if name in header else default
            for name, default in (("BSCALE", 1.0), ("BZERO", 0.0))
        )
        if not scale or zero is None:
            raise ImageError(f"{path}: BSCALE or BZERO is not a usable number; correct the header")
        integer = stored.kind in "iu"
        precise = stored.itemsize > (2 if integer else 4)
        if integer and not precise:
            # Steps of the scale that single precision would blur need double precision.
            reach = abs(zero) + abs(scale) * 2**15
            precise = bool(np.spacing(np.float32(reach)) > abs(scale) / 4)
        blank = header_number(header, "BLANK") if integer else None
        return cls(scale, zero, blank, np.float64 if precise else np.float32)

    def apply(self, raw: npt.NDArray[Any]) -> npt.NDArray[np.floating[Any]]:
        """Scale pixels, in double precision; NaN where they are BLANK."""
        plain = (self.scale, self.zero) == (1, 0)
        values = (raw if plain else raw.astype(np.float64) * self.scale + self.zero).astype(
            self.dtype
        )
        if self.blank is not None:
            values[raw == self.blank] = np.nan
        return values
