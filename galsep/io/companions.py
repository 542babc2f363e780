"""Planes beside an image: its noise and its mask, in the same file or in others.

In the same file they are recognised by name and EXTVER: IMAGE/MASK/VARIANCE (LSST, HSC),
SCI/ERR/DQ and SCI/WHT (HST, JWST), SCI/VAR/DQ (Gemini), SCI/MSK/WGT (DES), MASK and UNCERT of
astropy's CCDData.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from galsep.config import MAX_BIT
from galsep.errors import ImageError
from galsep.io.extensions import Extension, choose_extension
from galsep.io.pixels import opened_extensions, read_bits, read_values
from galsep.planes import Planes

if TYPE_CHECKING:
    from astropy.io import fits

__all__ = [
    "ANY",
    "NONE",
    "Linked",
    "Mask",
    "Noise",
    "PlaneOptions",
    "check_shape",
    "choose_beside",
    "linked_planes",
    "read_mask",
    "read_mask_file",
    "read_noise",
    "read_noise_file",
    "split_reference",
]

NONE = "none"
"""Stands for a plane that is not to be used, and for no bit."""

ANY = "any"
"""Stands for all bits."""

_NOISE_KINDS = {
    "VARIANCE": "variance",
    "VAR": "variance",
    "ERR": "rms",
    "ERROR": "rms",
    "RMS": "rms",
    "SIGMA": "rms",
    "UNCERT": "",
    "IVAR": "weight",
    "INVVAR": "weight",
    "WHT": "weight",
    "WGT": "weight",
    "WEIGHT": "weight",
}
"""What planes of these names hold, the first choice first; UNCERT says it in its header."""

_MASK_NAMES = ("MASK", "DQ", "MSK", "BPM")

_UTYPES = {
    "STDDEVUNCERTAINTY": "rms",
    "VARIANCEUNCERTAINTY": "variance",
    "INVERSEVARIANCE": "weight",
}
"""What astropy's CCDData writes, in capitals."""

_LEADING = ("SCI", "IMAGE")
"""Images of these names own the planes of their version, whatever other images there are."""

_BIT_CARD = "MP_"
"""LSST names bits in cards such as ``MP_SAT = 1``."""

_LSST_HIDDEN = ("NO_DATA", "BAD", "SAT")
"""Bits of LSST's masks that hide pixels. Cosmic rays (CR) are repaired by its pipelines."""

_JWST_HIDDEN = 1
"""DO_NOT_USE. Most other bits of JWST's DQ stand on good pixels."""


@dataclass(frozen=True, slots=True)
class PlaneOptions:
    """What the user says about the planes beside an image.

    Parameters
    ----------
    variance, weight, rms, mask : str
        A file, or ``FILE[EXT]``; empty for the planes that are recognised, ``"none"`` for none.
        At most one of the first three is given. ``weight`` is an inverse variance.
    mask_bits : str
        Names or numbers (0 is the lowest) of the bits that hide pixels, with commas; ``"any"``,
        ``"none"``, or empty for the default of the kind of mask.
    """

    variance: str = ""
    weight: str = ""
    rms: str = ""
    mask: str = ""
    mask_bits: str = ""

    @property
    def noise(self) -> tuple[str, str]:
        """Kind and reference of the noise plane that is given; empty without one."""
        for kind, reference in (
            ("variance", self.variance),
            ("weight", self.weight),
            ("rms", self.rms),
        ):
            if reference:
                return kind, reference
        return "", ""


@dataclass(frozen=True, slots=True)
class Linked:
    """Planes of an image's own file.

    Parameters
    ----------
    noise, mask : Extension or None
    message : str
        Why there are planes that are not used; empty otherwise.
    """

    noise: Extension | None = None
    mask: Extension | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Noise:
    """Noise of each pixel as a plane has it.

    Parameters
    ----------
    rms : (h, w) float32 array
        Positive, NaN where unusable.
    origin : str
        Where it is from, for headers and messages.
    kind : {"rms", "variance", "weight"}
        What the plane held.
    """

    rms: npt.NDArray[np.float32]
    origin: str
    kind: str = "rms"

    @property
    def anywhere(self) -> bool:
        """Whether it is known of any pixel."""
        return any(not np.isnan(row).all() for row in self.rms)


@dataclass(frozen=True, slots=True)
class Mask:
    """A mask as it was read.

    Parameters
    ----------
    bits : (h, w) integer array
    hides : int
        Bits that hide a pixel; −1 for all.
    hidden : str
        The same in words.
    origin : str
        Where it is from, for headers and messages.
    """

    bits: npt.NDArray[np.signedinteger[Any]]
    hides: int
    hidden: str
    origin: str

    def hidden_pixels(self, rows: slice = slice(None)) -> npt.NDArray[np.bool_]:
        """True where a pixel is hidden, in some rows."""
        return np.asarray((self.bits[rows] & self.bits.dtype.type(self.hides)) != 0)


def linked_planes(extensions: Sequence[Extension], image: Extension) -> Linked:
    """Find the noise and the mask of an image in its own file, by name and EXTVER."""
    if image.is_auxiliary:
        return Linked()
    beside = [one for one in extensions if one.is_2d and one.version == image.version]
    planes = [one for one in beside if one.name in _NOISE_KINDS or one.name in _MASK_NAMES]
    if not planes:
        return Linked()
    images = [one for one in beside if not one.is_auxiliary]
    if image.name in _LEADING:
        images = [one for one in images if one.name == image.name]
    fitting = [one for one in planes if one.long_axes == image.long_axes and not one.problem]
    others = [one for one in planes if one not in fitting]
    message = ""
    if len(images) > 1:
        message = (
            f"planes {_listed(planes)} are not used, since they may belong to any of the images "
            f"{_listed(images)}"
        )
        fitting = []
    elif others:
        message = f"planes {_listed(others)} are not used, since they are cut off or of other size"
    by_name = {one.name: one for one in reversed(fitting)}
    noise = [by_name[name] for name in _NOISE_KINDS if name in by_name]
    masks = [by_name[name] for name in _MASK_NAMES if name in by_name]
    return Linked(noise[0] if noise else None, masks[0] if masks else None, message)


def split_reference(reference: str) -> tuple[Path, str]:
    """Split ``FILE[EXT]`` into its file and extension, which is empty without one."""
    found = re.fullmatch(r"(.+)\[([^\[\]]*)\]", reference)
    if found is None or Path(reference).exists():
        return Path(reference), ""
    return Path(found[1]), found[2].strip()


def choose_beside(
    path: Path,
    extensions: Sequence[Extension],
    ext: str,
    index: int,
    name: str,
    names: Sequence[str] = (),
) -> Extension:
    """Pick the plane of another file that goes with an image.

    Parameters
    ----------
    path : Path
        The other file.
    extensions : sequence of Extension
        ... and what it holds.
    ext : str
        Extension asked for; empty for the only image, the only one called like ``names``, that of
        the image's own number and name, or the only one of its name.
    index, name : int and str
        Of the image.
    names : sequence of str
        Names of such planes; empty for images, which are called nothing of the kind.

    Raises
    ------
    ImageError
        When there is none, or more than one.
    """
    if ext:
        return choose_extension(path, extensions, ext)
    images = [one for one in extensions if one.is_2d and (names or not one.is_auxiliary)]
    named = [one for one in images if one.name in names]
    same = [one for one in images if (one.index, one.name) == (index, name)]
    alike = [one for one in images if name and one.name == name]
    for found in (images, named, same, alike):
        if len(found) == 1:
            return choose_extension(path, extensions, str(found[0].index))
    if not images:
        return choose_extension(path, extensions)  # It knows what is wrong.
    raise ImageError(
        f"{path}: holds {len(images)} images, extensions {_listed(images)}; choose one as "
        f"{path.name}[EXT]"
    )


def read_noise(
    path: Path,
    hdus: "fits.HDUList",
    extension: Extension,
    kind: str = "",
    origin: str = "",
    planes: Planes | None = None,
) -> Noise:
    """Read a variance, rms or weight plane as the rms of each pixel.

    Parameters
    ----------
    path, hdus, extension
        See :func:`galsep.io.pixels.read_values`.
    kind : {"variance", "rms", "weight", ""}
        Empty for what its name and header say.
    origin : str
    planes : Planes, optional
        Where the array is to be.

    Raises
    ------
    ImageError
        When it does not say what it holds.
    """
    kind = kind or _NOISE_KINDS.get(extension.name, "")
    if not kind:
        given = str(hdus[extension.index].header.get("UTYPE", "StdDevUncertainty")).strip()
        kind = _UTYPES.get(given.upper(), "")
        if not kind:
            raise ImageError(
                f"{path}: extension {extension.label} is of unknown UTYPE {given!r}; give it as "
                f"--rms, --variance or --weight, or --rms none to go without"
            )
    planes = planes or Planes()
    values = read_values(path, hdus, extension, planes=planes)
    rms = values if values.dtype == np.float32 else planes.new(values.shape, np.float32)
    with np.errstate(all="ignore"):
        for rows in planes.blocks(values.shape):
            here = values[rows]
            if kind == "variance":
                here = np.sqrt(here)
            elif kind == "weight":
                here = 1 / np.sqrt(here)
            rms[rows] = here
            rms[rows][~(np.isfinite(rms[rows]) & (rms[rows] > 0))] = np.nan
    return Noise(rms, origin or extension.label, kind)


def read_mask(
    path: Path,
    hdus: "fits.HDUList",
    extension: Extension,
    wanted: str = "",
    origin: str = "",
    planes: Planes | None = None,
) -> Mask:
    """Read a mask plane, and which of its bits hide pixels.

    Parameters
    ----------
    path, hdus, extension
        See :func:`galsep.io.pixels.read_values`.
    wanted : str
        See ``mask_bits`` of :class:`PlaneOptions`.
    origin : str
    planes : Planes, optional
        Where the array is to be.

    Raises
    ------
    ImageError
        When a bit is asked for that the plane does not name.
    """
    header = hdus[extension.index].header
    named = {
        str(key)[len(_BIT_CARD) :].upper(): int(value)
        for key, value in header.items()
        if str(key).upper().startswith(_BIT_CARD)
        and isinstance(value, int)
        and 0 <= value <= MAX_BIT
    }
    if wanted:
        hides, hidden = _wanted_bits(f"{path}: mask {extension.label}", wanted, named)
    elif named:
        default = [name for name in _LSST_HIDDEN if name in named]
        hides, hidden = sum(1 << named[name] for name in default), ",".join(default) or NONE
    elif "JWST" in (hdus[0].header.get("TELESCOP"), header.get("TELESCOP")):
        hides, hidden = _JWST_HIDDEN, "0"
    else:
        hides, hidden = -1, ANY
    bits = read_bits(path, hdus, extension, planes)
    if hides > np.iinfo(bits.dtype).max:
        bits = bits.astype(np.int64)
    return Mask(bits, hides, hidden, origin or extension.label)


def read_noise_file(
    reference: str,
    kind: str,
    shape: tuple[int, int],
    index: int,
    name: str,
    planes: Planes | None = None,
) -> Noise:
    """Read the noise plane that goes with an image from another file.

    Parameters
    ----------
    reference : str
        ``FILE`` or ``FILE[EXT]``.
    kind : {"variance", "rms", "weight"}
    shape : (int, int)
        Height and width of the image.
    index, name : int and str
        See :func:`choose_beside`.
    planes : Planes, optional
        Where the array is to be.

    Raises
    ------
    ImageError
    """
    path, ext = split_reference(reference)
    chosen: list[Extension] = []

    def choose(extensions: Sequence[Extension]) -> Sequence[Extension]:
        chosen.append(choose_beside(path, extensions, ext, index, name, tuple(_NOISE_KINDS)))
        return chosen

    with opened_extensions(path, choose, planes) as hdus:
        noise = read_noise(path, hdus, chosen[0], kind, _origin(path, chosen[0]), planes)
    check_shape(path, noise.rms.shape, shape, f"--{kind}")
    if not noise.anywhere:
        raise ImageError(f"{path}: is nowhere positive; --{kind} takes the noise of each pixel")
    return noise


def read_mask_file(
    reference: str,
    wanted: str,
    shape: tuple[int, int],
    index: int,
    name: str,
    planes: Planes | None = None,
) -> Mask:
    """Read the mask plane that goes with an image from another file.

    Parameters
    ----------
    reference, shape, index, name, planes
        See :func:`read_noise_file`.
    wanted : str
        See ``mask_bits`` of :class:`PlaneOptions`.

    Raises
    ------
    ImageError
        When it cannot be read, is of another size than the image, or does not name a bit that is
        asked for.
    """
    path, ext = split_reference(reference)
    chosen: list[Extension] = []

    def choose(extensions: Sequence[Extension]) -> Sequence[Extension]:
        chosen.append(choose_beside(path, extensions, ext, index, name, _MASK_NAMES))
        return chosen

    with opened_extensions(path, choose, planes) as hdus:
        mask = read_mask(path, hdus, chosen[0], wanted, _origin(path, chosen[0]), planes)
    check_shape(path, mask.bits.shape, shape, "--mask")
    return mask


def check_shape(path: Path, found: tuple[int, ...], wanted: tuple[int, int], what: str) -> None:
    """Refuse a plane of another size than the image's.

    Parameters
    ----------
    path : Path
        The plane's file, for messages.
    found, wanted : (int, int)
        Height and width of the plane and of the image.
    what : str
        The option that takes the plane, or what it is, for messages.

    Raises
    ------
    ImageError
        When they differ.
    """
    if found != wanted:
        sizes = [f"{width}×{height}" for height, width in (found, wanted)]
        raise ImageError(
            f"{path}: is {sizes[0]} px, the image {sizes[1]} px; {what} takes a plane of the "
            f"image's own pixels"
        )


def _wanted_bits(where: str, wanted: str, named: Mapping[str, int]) -> tuple[int, str]:
    """Turn names and numbers of bits into the bits, and into words."""
    text = wanted.strip().lower()
    if text in (ANY, NONE):
        return (-1 if text == ANY else 0), text
    hides = 0
    words = [word.strip().upper() for word in wanted.split(",")]
    for word in words:
        number = int(word) if word.isdecimal() else named.get(word)
        if number is None:
            known = (
                f"it names {', '.join(sorted(named))}" if named else "it names none; use numbers"
            )
            raise ImageError(f"{where} has no bit called {word!r}; {known}")
        hides |= 1 << number
    return hides, ",".join(words)


def _origin(path: Path, extension: Extension) -> str:
    return f"{path.name}[{extension.name or extension.index}]"


def _listed(extensions: Sequence[Extension]) -> str:
    return ", ".join(extension.label for extension in extensions)
