"""What a FITS file holds, and which of its images to take, found out without reading pixels."""

import bz2
import contextlib
import functools
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from galsep.errors import GalsepError, ImageError
from galsep.io.header import one_line, quiet_astropy
from galsep.io.tiles import stream_problem, table_problem

if TYPE_CHECKING:
    from astropy.io import fits
    from astropy.io.fits.hdu.base import _BaseHDU

__all__ = [
    "Extension",
    "choose_extension",
    "choose_extensions",
    "list_extensions",
    "named_extension",
    "opened_fits",
    "refuse_damaged",
    "sky_images",
]

_AUXILIARY = re.compile(
    r"VAR(IANCE|IMG)?|ERR(ORS?)?|STD(DEV)?|SIGMA|NOISE|RMS|UNC(ERT(AINTY)?)?"
    r"|W(EIGHTS?|HT|GT|T)|INVVAR|IVAR|INVERSEVARIANCE|MA?SK|BPM|DQF?|FLA?GS?"
    r"|CONF(IDENCE)?|EXPMAP|COVERAGE"
)
"""Words that mark an extension as a variance, error, weight or mask plane."""

_AUXILIARY_NAMES = (
    *("AREA", "CON", "CTX", "D2IMARR", "EXP", "EXPTIME", "OBJMASK", "PSFIMAGE"),
    *("QUAL", "SAMP", "STAT", "TIME", "WCSDVARR"),
)
"""Names of planes of HST, JWST, Gemini, ESO and CCDData files that are none of these and no image
of the sky."""

_GZIP, _BZIP2, _ZIP, _XZ, _COMPRESS = b"\x1f\x8b", b"BZh", b"PK", b"\xfd7zXZ", b"\x1f\x9d"
_COMPRESSED = (_GZIP, _BZIP2, _ZIP, _XZ, _COMPRESS)
"""How files start that are compressed as a whole."""

_GZIP_MOST = 1100
"""Deflate shrinks data by no more than a factor of 1032."""

_AXES_MOST = 999
"""What NAXIS may be (FITS standard 4.0, 4.4.1)."""

# What astropy raises, beside its own errors, for files that are damaged in one way or another.
_READ_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    lzma.LZMAError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True, slots=True)
class Extension:
    """An HDU, described by its header.

    Parameters
    ----------
    index : int
        Number of the HDU.
    name : str
        EXTNAME (or EXTTYPE, which early LSST files have in its place) in capitals, or empty.
    version : int
        EXTVER.
    axes : tuple of int or None
        NAXIS1, NAXIS2, ...; ``None`` for a table.
    compressed : bool
        Whether it is a tile-compressed image.
    problem : str
        Why its data cannot be whole; empty when they may be.
    """

    index: int
    name: str
    version: int
    axes: tuple[int, ...] | None
    compressed: bool
    problem: str

    @property
    def is_2d(self) -> bool:
        """Whether it holds a 2-D image, axes of one pixel aside."""
        axes = self.axes or ()
        return len(axes) >= 2 and min(axes) > 0 and sum(length > 1 for length in axes) <= 2

    @property
    def long_axes(self) -> tuple[int, ...]:
        """Lengths of the axes that are longer than one pixel."""
        return tuple(length for length in self.axes or () if length > 1)

    @property
    def is_auxiliary(self) -> bool:
        """Whether its name is that of a variance, error, weight or mask plane."""
        words = re.split(r"[\s_.,-]+|\d+$", self.name)
        return self.name in _AUXILIARY_NAMES or any(map(_AUXILIARY.fullmatch, words))

    @property
    def label(self) -> str:
        """How messages call it."""
        return f"{self.index} ({self.name})" if self.name else str(self.index)

    @property
    def size(self) -> str:
        """Its axes in words."""
        return "×".join(str(length) for length in self.axes or ()) + " px"


@contextlib.contextmanager
def opened_fits(
    path: Path, *, tiles: bool = False, mapped: bool = True, scaled: bool = False
) -> Iterator["fits.HDUList"]:
    """Open a FITS file quietly, for raw reading by default.

    Parameters
    ----------
    path : Path
        Plain or compressed as a whole.
    tiles : bool
        Give tile-compressed images as images; else as the tables they are stored in.
    mapped : bool
        Map a plain file into memory; else it is read by sections, or as a whole.
    scaled : bool
        Have astropy apply BSCALE, BZERO and BLANK, which no mapped file allows.

    Raises
    ------
    ImageError
        For whatever goes wrong here or in the ``with`` block.
    """
    from astropy.io import fits

    plain = _is_plain(path)
    try:
        with (
            quiet_astropy(),
            _axes_bounded(),
            np.errstate(all="ignore"),
            path.open("rb") as file,
            fits.open(
                file,
                memmap=plain and mapped and not tiles and not scaled,
                do_not_scale_image_data=not scaled,
                disable_image_compression=not tiles,
            ) as hdus,
        ):
            yield hdus
    except GalsepError:
        raise
    except MemoryError as error:
        raise ImageError(f"{path}: too large for the memory; cut it into parts") from error
    except (*_READ_ERRORS, fits.VerifyError) as error:
        raise ImageError(
            f"{path}: damaged or not a FITS file ({one_line(error)}); copy or download it again"
        ) from error


@contextlib.contextmanager
def _axes_bounded() -> Iterator[None]:
    """Have astropy refuse headers of more axes than FITS has; it would look for each of them."""
    from astropy.io import fits

    fits.register_hdu(_wrong_hdu())
    try:
        yield
    finally:
        fits.unregister_hdu(_wrong_hdu())


@functools.cache
def _wrong_hdu() -> "type[_BaseHDU]":
    from astropy.io.fits.hdu.base import _BaseHDU

    # astropy asks the classes in the reverse order of their names.
    class _WrongHDU(_BaseHDU):  # type: ignore[misc]
        """An HDU of which only the number of axes is known, which is no such number."""

        @classmethod
        def match_header(cls, header: Any) -> bool:
            axes = header.get("NAXIS", 0)
            return isinstance(axes, int) and not 0 <= axes <= _AXES_MOST

        def __init__(self, *, header: Any, data: Any) -> None:  # noqa: ARG002 (astropy's signature)
            raise OSError(f"NAXIS is {header['NAXIS']}")

    return _WrongHDU


def _is_plain(path: Path) -> bool:
    """Whether a file is FITS as such; refuse what is neither that nor compressed as a whole."""
    if path.is_dir():
        raise ImageError(f"{path}: is a folder; give the FITS files in it")
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file; check the path") from error
    except OSError as error:
        raise ImageError(
            f"{path}: not readable ({error.strerror or error}); check the path and its permissions"
        ) from error
    if not start:
        raise ImageError(f"{path}: is empty; copy or download it again")
    if start == b"SIMPLE  =":
        return True
    if start.startswith(_COMPRESSED):
        return False
    raise ImageError(f"{path}: not a FITS file; convert it to FITS first")


def list_extensions(path: Path, hdus: "fits.HDUList") -> list[Extension]:
    """Describe all HDUs of a file that was opened with its tiles as tables."""
    from astropy.io import fits

    room = path.stat().st_size if _is_plain(path) else None
    found = []
    for index, hdu in enumerate(hdus):
        header = hdu.header
        if hdu.size < 0:  # astropy would look for the next header further up, for ever.
            raise ImageError(
                f"{path}: damaged, extension {index} has a negative size; copy or download it again"
            )
        compressed = isinstance(hdu, fits.BinTableHDU) and header.get("ZIMAGE") is True
        axes = None
        if compressed or (hdu.is_image and not isinstance(hdu, fits.GroupsHDU)):
            prefix = "Z" if compressed else ""
            count = int(header.get(f"{prefix}NAXIS", 0))
            axes = tuple(int(header[f"{prefix}NAXIS{axis}"]) for axis in range(1, count + 1))
        end = hdu.fileinfo()["datLoc"] + hdu.size
        missing = end - (room if room is not None else _length(path, end))
        problem = f"at least {missing} bytes are missing" if missing > 0 else ""
        if not problem and compressed and axes and min(axes) > 0:
            problem = table_problem(header, axes)
        found.append(
            Extension(
                index=index,
                name=str(header.get("EXTNAME", header.get("EXTTYPE", ""))).strip().upper(),
                version=int(header.get("EXTVER", 1)),
                axes=axes,
                compressed=compressed,
                problem=problem,
            )
        )
    return found


def refuse_damaged(path: Path, hdus: "fits.HDUList", extension: Extension) -> None:
    """Look at the tiles of a compressed image before a decoder does.

    Parameters
    ----------
    path : Path
        For messages.
    hdus : fits.HDUList
        Opened with its tiles as tables.
    extension : Extension

    Raises
    ------
    ImageError
    """
    hdu, problem, hint = hdus[extension.index], extension.problem, ""
    # The sum first: that of a table whose values have been looked at is not of the file's bytes.
    if not problem and hdu.verify_datasum() == 0:
        problem, hint = "DATASUM is wrong", ", or funpack it if only the checksum is out of date"
    problem = problem or stream_problem(hdu, extension.axes or ())
    if problem:
        raise ImageError(
            f"{path}: extension {extension.label} is damaged ({problem}); copy or download it "
            f"again{hint}"
        )


def _length(path: Path, promised: int) -> int:
    """Bytes of FITS that a file compressed as a whole can hold; ``promised`` where that may be.

    It is unpacked, without being kept, only where it promises suspiciously much.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(6)
    if start.startswith(_GZIP):
        return size * _GZIP_MOST
    if promised < size * _GZIP_MOST or start.startswith(_COMPRESS):
        return promised
    if start.startswith(_ZIP):
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()[0].file_size
    with bz2.open(path) if start.startswith(_BZIP2) else lzma.open(path) as unpacked:
        return unpacked.seek(0, os.SEEK_END)


def choose_extension(path: Path, extensions: Sequence[Extension], ext: str = "") -> Extension:
    """Pick the extension asked for, or the only 2-D image.

    Parameters
    ----------
    path : Path
        For messages.
    extensions : sequence of Extension
    ext : str
        Number, name or ``NAME,VERSION``; empty for the only 2-D image that is not named like a
        variance, error, weight or mask plane.

    Raises
    ------
    ImageError
        When there is none, more than one, or when the one chosen is no whole 2-D image.
    """
    images = [extension for extension in extensions if extension.is_2d]
    chosen = named_extension(path, extensions, ext) if ext else _only(path, extensions)
    if not chosen.is_2d:
        others = ", ".join(extension.label for extension in images)
        hint = f"; its images are extensions {others}" if others else ""
        raise ImageError(f"{path}: {_unfit(chosen)}{hint}")
    if chosen.problem:
        raise ImageError(
            f"{path}: extension {chosen.label} is damaged or truncated ({chosen.problem}); "
            f"copy or download it again"
        )
    return chosen


def choose_extensions(
    path: Path, extensions: Sequence[Extension], ext: str = ""
) -> list[Extension]:
    """Pick the extension asked for, all 2-D images of a name, or by default all of the sky.

    Parameters
    ----------
    path, extensions
        See :func:`choose_extension`.
    ext : str
        Number, name or ``NAME,VERSION``; a name without a version means all 2-D images of it.
        Empty for all that are not named like a variance, error, weight or mask plane.

    Raises
    ------
    ImageError
        When there is none, or when one that is chosen is no whole 2-D image.
    """
    images = sky_images(extensions)
    if ext:
        images = [one for one in extensions if one.is_2d and one.name == ext.strip().upper()]
    if not images:
        return [choose_extension(path, extensions, ext)]
    return [choose_extension(path, extensions, str(image.index)) for image in images]


def sky_images(extensions: Sequence[Extension]) -> list[Extension]:
    """2-D images that are not named like a variance, error, weight or mask plane."""
    return [one for one in extensions if one.is_2d and not one.is_auxiliary]


def _only(path: Path, extensions: Sequence[Extension]) -> Extension:
    """Pick the only 2-D image, or else an extension that shows what is wrong."""
    images = [extension for extension in extensions if extension.is_2d]
    candidates = sky_images(extensions)
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        listed = ", ".join(extension.label for extension in candidates)
        raise ImageError(
            f"{path}: holds {len(candidates)} images, extensions {listed}; choose one with --ext"
        )
    if images:
        listed = ", ".join(extension.label for extension in images)
        raise ImageError(
            f"{path}: holds only variance, error, weight or mask planes, extensions {listed}; "
            f"choose one with --ext if it is an image after all"
        )
    for extension in extensions:
        if extension.axes:
            return extension
    if any(extension.axes is None for extension in extensions):
        raise ImageError(f"{path}: holds tables but no image; give a FITS image")
    raise ImageError(f"{path}: holds no image, or is cut off before it; give a 2-D FITS image")


def named_extension(
    path: Path, extensions: Sequence[Extension], ext: str, *, cubes: bool = False
) -> Extension:
    """Pick the extension of a number or name, whatever it holds.

    Parameters
    ----------
    path : Path
        For messages.
    extensions : sequence of Extension
    ext : str
        Number, name or ``NAME,VERSION``.
    cubes : bool
        Have messages list images of any number of axes; else the 2-D ones.

    Raises
    ------
    ImageError
        When there is none, or more than one.
    """
    name, _, version = (part.strip() for part in ext.upper().partition(","))
    if name.isdecimal() and not version:
        found = [extension for extension in extensions if extension.index == int(name)]
    else:
        found = [
            extension
            for extension in extensions
            if extension.name == name and version in ("", str(extension.version))
        ]
    if len(found) > 1:
        listed = ", ".join(str(extension.index) for extension in found)
        raise ImageError(
            f"{path}: extensions {listed} are all called {name}; give --ext one of these numbers"
        )
    if not found:
        images = [one for one in extensions if (one.axes if cubes else one.is_2d)]
        listed = ", ".join(extension.label for extension in images)
        none = "it holds no image" if cubes else "it holds no 2-D image"
        hint = f"its images are extensions {listed}" if listed else none
        raise ImageError(f"{path}: has no extension {ext!r}; {hint}")
    return found[0]


def _unfit(extension: Extension) -> str:
    """Say why an extension is no 2-D image and what to do."""
    axes = extension.axes
    if axes is None:
        return f"extension {extension.label} is a table; choose an image with --ext"
    if not axes:
        return f"extension {extension.label} holds no data; choose an image with --ext"
    if min(axes) <= 0:
        return f"extension {extension.label} has no pixels ({extension.size}); give a 2-D image"
    long = sum(length > 1 for length in axes)
    what = "1-D data" if len(axes) == 1 else f"a {long}-D cube"
    return (
        f"extension {extension.label} holds {what} ({extension.size}); "
        f"cut out a 2-D image and give that"
    )
