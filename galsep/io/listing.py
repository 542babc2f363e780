"""The images of a FITS file as a table of contents: what each is and which would be deblended."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from galsep.errors import ImageError
from galsep.io.companions import linked_planes
from galsep.io.extensions import Extension, choose_extensions, list_extensions, opened_fits

if TYPE_CHECKING:
    from astropy.io import fits

__all__ = ["Contents", "ListedImage", "list_contents"]

_FORMS = {
    b"SIMPLE": "plain FITS",
    b"\x1f\x8b": "FITS in gzip",
    b"BZh": "FITS in bzip2",
    b"PK": "FITS in zip",
    b"\xfd7zXZ": "FITS in xz",
    b"\x1f\x9d": "FITS in compress",
}

_TYPES = {8: "uint8", 16: "int16", 32: "int32", 64: "int64", -32: "float32", -64: "float64"}

_UNSIGNED = {8: ("int8", -128), 16: ("uint16", 2**15), 32: ("uint32", 2**31), 64: ("uint64", 2**63)}
"""Types that FITS stores as others with a BZERO."""


@dataclass(frozen=True, slots=True)
class ListedImage:
    """An HDU that holds an image, as a table of contents has it.

    Parameters
    ----------
    extension : Extension
    dtype : str
        Type of its pixels, as NumPy names it; ``" scaled"`` is added where BSCALE and BZERO make
        other numbers of them.
    compression : str
        Algorithm of its tiles; empty without tile compression.
    unit : str
        BUNIT, or empty.
    use : str
        ``image`` (it would be deblended), ``noise of N``, ``mask of N`` or empty.
    """

    extension: Extension
    dtype: str
    compression: str
    unit: str
    use: str


@dataclass(frozen=True, slots=True)
class Contents:
    """What a FITS file holds.

    Parameters
    ----------
    form : str
        Plain, or how the file is compressed as a whole.
    images : tuple of ListedImage
        All HDUs with an image, whatever its axes.
    tables : int
        Number of HDUs with a table.
    chosen : tuple of int
        Numbers of the HDUs that would be deblended.
    problem : str
        Why none would be; empty otherwise.
    """

    form: str
    images: tuple[ListedImage, ...]
    tables: int
    chosen: tuple[int, ...]
    problem: str


def list_contents(path: Path, ext: str = "") -> Contents:
    """List the images of a FITS file without reading their pixels.

    Parameters
    ----------
    path : Path
    ext : str
        Number, name or ``NAME,VERSION`` of the image to deblend; by default all.

    Raises
    ------
    ImageError
        When the file is missing, damaged or no FITS file.
    """
    with opened_fits(path) as hdus:
        extensions = list_extensions(path, hdus)
        chosen: Sequence[Extension] = ()
        problem = ""
        try:
            chosen = choose_extensions(path, extensions, ext)
        except ImageError as error:
            problem = str(error)
        uses = _uses(extensions, chosen)
        images = tuple(
            _listed(hdus[one.index].header, one, uses.get(one.index, ""))
            for one in extensions
            if one.axes
        )
    tables = sum(one.axes is None for one in extensions)
    return Contents(_form(path), images, tables, tuple(one.index for one in chosen), problem)


def _form(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(6)
    return next(form for magic, form in _FORMS.items() if start.startswith(magic))


def _uses(extensions: Sequence[Extension], chosen: Sequence[Extension]) -> dict[int, str]:
    """What the extensions would be used for, by number; an image before a plane."""
    uses: dict[int, str] = {}
    for image in chosen:
        linked = linked_planes(extensions, image)
        for plane, what in ((linked.noise, "noise"), (linked.mask, "mask")):
            if plane is not None:
                uses[plane.index] = f"{what} of {image.index}"
    return uses | {image.index: "image" for image in chosen}


def _listed(header: "fits.Header", extension: Extension, use: str) -> ListedImage:
    bits = header.get("ZBITPIX" if extension.compressed else "BITPIX", 0)
    scale, zero = header.get("BSCALE", 1), header.get("BZERO", 0)
    dtype = _TYPES.get(bits, str(bits))
    if bits in _UNSIGNED and scale == 1 and zero == _UNSIGNED[bits][1]:
        dtype = _UNSIGNED[bits][0]
    elif scale != 1 or zero != 0:
        dtype += " scaled"
    unit = header.get("BUNIT", "")
    return ListedImage(
        extension=extension,
        dtype=dtype,
        compression=str(header.get("ZCMPTYPE", "")).strip() if extension.compressed else "",
        unit=unit.strip() if isinstance(unit, str) else "",
        use=use,
    )
