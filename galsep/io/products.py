"""Write what ``galsep deblend`` makes: segmentation files and catalogues."""

import contextlib
import importlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from galsep.config import CATALOG_FORMATS, TEXT_FORMATS
from galsep.errors import UsageError
from galsep.flags import Flag
from galsep.io.atomic import whole_file, write_fits, write_text
from galsep.io.header import CardValue, add_cards, ascii_text, knows_unit, quiet_astropy
from galsep.io.image import Plane
from galsep.io.runs import RUN_DTYPE
from galsep.io.wcs import wcs_keywords

if TYPE_CHECKING:
    from astropy.io import fits
    from astropy.table import Table

__all__ = [
    "catalog_text",
    "check_catalog_format",
    "primary_hdu",
    "segmentation_hdus",
    "wcs_cards",
    "write_catalog",
    "write_hdus",
]

Cards = Mapping[str, tuple[CardValue, str]]

TILE_ROWS = 64
"""Rows of a compressed tile."""

COMPRESSION = "RICE_1"
"""A tenth of GZIP_1's time, though two to three times as large, which is little; astropy's PLIO_1
overruns its memory on crowded maps."""


def wcs_cards(plane: Plane) -> "fits.Header":
    """Return the WCS keywords of an image with their distortions; none without a usable WCS."""
    from astropy.io import fits

    return fits.Header() if plane.wcs is None else wcs_keywords(plane.header)


def write_hdus(
    path: Path,
    images: "Sequence[fits.CompImageHDU | fits.BinTableHDU | fits.ImageHDU]",
    *,
    history: Sequence[str] = (),
    cards: Cards | None = None,
    until: contextlib.ExitStack | None = None,
) -> None:
    """Write HDUs behind a primary header that says how they were made.

    Parameters
    ----------
    path : Path
        Replaced when it exists.
    images : sequence of HDUs
        Of one image after the other.
    history : sequence of str
        Lines of HISTORY in the primary header.
    cards : mapping
        Keyword to ``(value, comment)`` in the primary header.
    until : ExitStack, optional
        See :func:`galsep.io.atomic.whole_file`.

    Raises
    ------
    OutputError
        When the operating system refuses.
    """
    from astropy.io import fits

    write_fits(path, fits.HDUList([primary_hdu(cards or {}, history), *images]), until)


def primary_hdu(cards: Cards, history: Sequence[str] = ()) -> "fits.PrimaryHDU":
    """Make a primary HDU without data; see :func:`galsep.io.header.add_cards`."""
    from astropy.io import fits

    hdu = fits.PrimaryHDU()
    add_cards(hdu.header, cards, history)
    return hdu


def segmentation_hdus(
    *,
    segm: npt.NDArray[np.int32],
    noverlap: npt.NDArray[np.uint8],
    masks: "npt.NDArray[np.void] | Table",
    parents: "Table",
    header: "fits.Header",
    cards: Cards | None = None,
    extver: int = 1,
) -> "list[fits.CompImageHDU | fits.BinTableHDU]":
    """Make the HDUs ``SEGM``, ``NOVERLAP``, ``MASKS`` and ``PARENTS`` of one image.

    Parameters
    ----------
    segm : (h, w) int32 array
        Label of each pixel's owner, 0 for background.
    noverlap : (h, w) uint8 array
        Masks that cover each pixel.
    masks : structured array or Table
        Runs ``label, y, x0, x1``; see :mod:`galsep.io.runs`.
    parents : Table
        The SEP detections.
    header : fits.Header
        WCS keywords from :func:`wcs_cards`.
    cards : mapping
        Keyword to ``(value, comment)`` in the headers of both images.
    extver : int
        EXTVER of all four: the input's extension when it has several images.

    Raises
    ------
    ValueError
        For arrays of other types or shapes.
    """
    from astropy.io import fits
    from astropy.table import Table

    if segm.dtype != np.int32 or noverlap.dtype != np.uint8:
        raise ValueError(f"segm is int32, noverlap uint8; got {segm.dtype}, {noverlap.dtype}")
    if segm.ndim != 2 or noverlap.shape != segm.shape:
        raise ValueError(f"segm and noverlap differ in shape: {segm.shape}, {noverlap.shape}")
    runs = Table(
        {name: np.asarray(masks[name], dtype=RUN_DTYPE[name]) for name in RUN_DTYPE.names or ()}
    )
    for name in ("y", "x0", "x1"):
        runs[name].unit = "pix"
        runs[name].description = "0-based, inclusive"
    hdus = []
    for name, image in (("SEGM", segm), ("NOVERLAP", noverlap)):
        hdu = fits.CompImageHDU(
            np.ascontiguousarray(image),
            header=header.copy(),
            name=name,
            compression_type=COMPRESSION,
            tile_shape=(min(TILE_ROWS, image.shape[0]), image.shape[1]),
        )
        add_cards(hdu.header, cards or {})
        hdus.append(hdu)
    hdus += [_table_hdu(runs, "MASKS"), _table_hdu(parents, "PARENTS")]
    for hdu in hdus:
        hdu.header["EXTVER"] = extver
    return hdus


def check_catalog_format(format_name: str, *, text: bool = False) -> None:
    """Refuse a catalogue format that is unknown, not installed, or not text where it must be.

    Raises
    ------
    UsageError
    """
    if format_name not in CATALOG_FORMATS:
        raise UsageError(
            f"catalog_format is one of {', '.join(CATALOG_FORMATS)}, got {format_name!r}"
        )
    if text and format_name not in TEXT_FORMATS:
        raise UsageError(
            f"a {format_name} catalogue is binary and cannot go to standard output; "
            f"choose {', '.join(TEXT_FORMATS[:-1])} or {TEXT_FORMATS[-1]}, or give --output"
        )
    if format_name == "parquet":
        try:
            importlib.import_module("pyarrow.parquet")
        except ModuleNotFoundError as error:
            raise UsageError(
                "parquet catalogues need pyarrow; pip install 'galsep[parquet]'"
            ) from error
        except ImportError as error:
            raise UsageError(
                f"parquet catalogues need pyarrow, which cannot be loaded here ({error})"
            ) from error


def write_catalog(
    path: Path,
    table: "Table",
    format_name: str = "fits",
    *,
    comments: Mapping[str, str] | None = None,
    until: contextlib.ExitStack | None = None,
) -> None:
    """Write a catalogue.

    ``table.meta`` goes along, except to CSV: as cards and HISTORY of a FITS file's primary
    header, as meta data of ECSV and Parquet, as INFO of VOTable. Units that a format does not
    know are left to the column's description.

    Parameters
    ----------
    path : Path
        Replaced when it exists.
    table : Table
    format_name : {"fits", "ecsv", "csv", "vot", "parquet"}
    comments : mapping, optional
        Comments of the FITS cards, by key of ``table.meta``.
    until : ExitStack, optional
        See :func:`galsep.io.atomic.whole_file`.

    Raises
    ------
    UsageError
        For another format, or without pyarrow.
    OutputError
        When the operating system refuses.
    """
    check_catalog_format(format_name)
    if format_name == "fits":
        write_fits(path, _catalog_hdus(table, comments or {}), until)
    elif format_name == "parquet":
        with quiet_astropy(), whole_file(path, until) as temporary:
            table.write(temporary, format="parquet")
    else:
        write_text(path, catalog_text(table, format_name), until)


def catalog_text(table: "Table", format_name: str = "ecsv") -> str:
    """Return a catalogue as text, for standard output.

    Raises
    ------
    UsageError
        For a binary format.
    """
    check_catalog_format(format_name, text=True)
    if format_name == "vot":
        return _votable(table)
    buffer = io.StringIO()
    with quiet_astropy():
        table.write(buffer, format=f"ascii.{format_name}")
    return buffer.getvalue()


def _catalog_hdus(table: "Table", comments: Mapping[str, str]) -> "fits.HDUList":
    from astropy.io import fits

    hdu = _table_hdu(table, "CATALOG")
    if "flags" in table.colnames:
        legend = {f"FLAG{flag.value}": (str(flag.name).lower(), flag.description) for flag in Flag}
        add_cards(hdu.header, legend)
    cards: dict[str, tuple[CardValue, str]] = {
        key: (value, comments.get(key, ""))
        for key, value in table.meta.items()
        if isinstance(value, str | int | float | None)
    }
    return fits.HDUList([primary_hdu(cards, table.meta.get("HISTORY", ())), hdu])


def _table_hdu(table: "Table", name: str) -> "fits.BinTableHDU":
    """Make a FITS table; descriptions become TCOMM cards."""
    from astropy.io import fits

    plain = _spoken(table, "fits")
    descriptions = [column.description or "" for column in plain.itercols()]
    for column in plain.itercols():
        column.description = None
        if column.dtype.kind == "U":
            letters = [ascii_text(value) for value in column]
            plain[column.name] = np.array(letters, dtype="S") if letters else np.zeros(0, "S1")
    hdu = fits.table_to_hdu(plain)
    hdu.name = name
    cards: dict[str, tuple[CardValue, str]] = {
        f"TCOMM{number}": (text, "") for number, text in enumerate(descriptions, start=1) if text
    }
    add_cards(hdu.header, cards)
    return hdu


def _spoken(table: "Table", dialect: str) -> "Table":
    """Copy a table without meta, and with units that a dialect lacks in the descriptions."""
    plain = table.copy()
    plain.meta.clear()
    for column in plain.itercols():
        if column.unit is not None and not knows_unit(column.unit, dialect):
            column.description = f"{column.description or column.name}; unit: {column.unit}"
            column.unit = None
    return plain


def _votable(table: "Table") -> str:
    from astropy.io.votable import from_table
    from astropy.io.votable.tree import Info

    plain = _spoken(table, "vounit")
    buffer = io.BytesIO()
    with quiet_astropy():
        document = from_table(plain, table_id="CATALOG")
        for key, value in _flat(table.meta):
            info = Info(name=key, value=str(value))
            info.ID = None  # Identifiers are unique in XML, names need not be.
            document.resources[0].infos.append(info)
        document.to_xml(buffer)
    return buffer.getvalue().decode("utf-8")


def _flat(meta: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Turn meta data into pairs: one a line of a list, one for all of a mapping."""
    pairs: list[tuple[str, Any]] = []
    for key, value in meta.items():
        if isinstance(value, Mapping):
            pairs.append((key, ", ".join(f"{name}={bit}" for name, bit in value.items())))
        elif isinstance(value, list | tuple):
            pairs += [(key, item) for item in value]
        else:
            pairs.append((key, value))
    return pairs
