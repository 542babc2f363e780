"""The columns of a catalogue: the one registry of their names, types, units and meanings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from galsep.flags import Flag
from galsep.io.header import CardValue, parse_unit

if TYPE_CHECKING:
    from astropy.table import Table

__all__ = [
    "CATALOG_COLUMNS",
    "MAGNITUDE_COLUMNS",
    "CatalogColumn",
    "catalog_columns",
    "join_catalogs",
    "make_catalog",
    "stack_catalogs",
]

FLUX = "flux"
"""Stands for the unit of the image."""


@dataclass(frozen=True, slots=True)
class CatalogColumn:
    """A column of the catalogue.

    Parameters
    ----------
    name : str
    dtype : str
        As NumPy writes it.
    unit : str
        As astropy writes it; empty for none, ``"flux"`` for the unit of the image.
    description : str
    """

    name: str
    dtype: str
    unit: str
    description: str


CATALOG_COLUMNS: tuple[CatalogColumn, ...] = tuple(
    CatalogColumn(*row)
    for row in (
        ("label", "i4", "", "value of the source in SEGM, from 1"),
        ("parent", "i4", "", "SEP detection the source came out of, 0 for none"),
        ("parent_n_child", "i4", "", "sources that share this SEP detection"),
        ("ext", "i4", "", "extension number of the input image"),
        ("ra", "f8", "deg", "right ascension (ICRS) of the centroid, NaN without a WCS"),
        ("dec", "f8", "deg", "declination (ICRS) of the centroid, NaN without a WCS"),
        ("x_centroid", "f8", "pix", "centroid of the source's model, 0-based"),
        ("y_centroid", "f8", "pix", "centroid of the source's model, 0-based"),
        ("bbox_xmin", "i4", "pix", "box of the whole mask, 0-based, inclusive"),
        ("bbox_xmax", "i4", "pix", "box of the whole mask, 0-based, inclusive"),
        ("bbox_ymin", "i4", "pix", "box of the whole mask, 0-based, inclusive"),
        ("bbox_ymax", "i4", "pix", "box of the whole mask, 0-based, inclusive"),
        ("area", "i4", "pix2", "pixels the source owns in SEGM"),
        ("mask_area", "i4", "pix2", "pixels of the whole mask"),
        ("overlap_fraction", "f4", "", "share of the mask that other masks cover too"),
        ("semimajor_axis", "f4", "pix", "rms along the major axis, from second moments"),
        ("semiminor_axis", "f4", "pix", "rms along the minor axis, from second moments"),
        ("orientation", "f4", "deg", "major axis, counter-clockwise from +x"),
        ("segment_flux", "f8", FLUX, "light over the owned pixels"),
        ("segment_flux_err", "f8", FLUX, "standard error of segment_flux"),
        ("deblend_flux", "f8", FLUX, "total of the source's model in the image"),
        ("deblend_flux_err", "f8", FLUX, "standard error of deblend_flux"),
        ("blendedness", "f4", "", "1 - sum(m^2) / sum(m * all models); 0 when alone"),
        ("score", "f4", "", "calibrated probability of a real, single source"),
        ("class_star", "f4", "", "probability of a point source"),
        ("flags", "i4", "", "bits, see FLAGS"),
        ("flags_dq", "i8", "", "bits of the input's mask, combined with OR"),
        ("tile_id", "i4", "", "cutout that owns the source, -1 for SEP's outlines"),
    )
)
"""Columns of every catalogue, in this order."""

MAGNITUDE_COLUMNS: tuple[CatalogColumn, ...] = (
    CatalogColumn("mag", "f8", "mag", "magnitude of deblend_flux, NaN where it is not positive"),
    CatalogColumn("mag_err", "f8", "mag", "standard error of mag"),
)
"""Columns before ``score``, only with a zero point; those of several bands follow."""


def catalog_columns(
    bands: Sequence[str] = (), *, zeropoint: bool = False
) -> tuple[CatalogColumn, ...]:
    """Return the columns of a catalogue.

    Parameters
    ----------
    bands : sequence of str
        Each adds ``deblend_flux_<band>`` and ``deblend_flux_err_<band>`` behind
        ``deblend_flux_err``.
    zeropoint : bool
        Adds :data:`MAGNITUDE_COLUMNS` behind ``blendedness``, then ``mag_<band>`` and
        ``mag_err_<band>`` of each band.
    """
    columns: list[CatalogColumn] = []
    for column in CATALOG_COLUMNS:
        columns.append(column)
        if column.name == "deblend_flux_err":
            for band in bands:
                total = f"total of the source's model in {band}"
                columns += [
                    CatalogColumn(f"deblend_flux_{band}", "f8", FLUX, total),
                    CatalogColumn(f"deblend_flux_err_{band}", "f8", FLUX, "its standard error"),
                ]
        if column.name == "blendedness" and zeropoint:
            columns += MAGNITUDE_COLUMNS
            for band in bands:
                what = f"magnitude of deblend_flux_{band}"
                columns += [
                    CatalogColumn(f"mag_{band}", "f8", "mag", what),
                    CatalogColumn(f"mag_err_{band}", "f8", "mag", "its standard error"),
                ]
    return tuple(columns)


def make_catalog(
    columns: Mapping[str, npt.ArrayLike],
    *,
    bands: Mapping[str, str] | None = None,
    zeropoint: bool = False,
    unit: str = "",
    cards: Mapping[str, tuple[CardValue, str]] | None = None,
    history: Sequence[str] = (),
) -> "Table":
    """Make a catalogue: columns in order, of the right types, with units and descriptions.

    Parameters
    ----------
    columns : mapping of str to (n,) array
        Every column of :func:`catalog_columns`, in any order.
    bands : mapping of str to str, optional
        Each band's name and its BUNIT; see :func:`catalog_columns`.
    zeropoint : bool
        See :func:`catalog_columns`.
    unit : str
        BUNIT of the image. One that astropy does not know is named in the descriptions only.
    cards : mapping, optional
        Keyword to ``(value, comment)``; the values become ``meta``.
    history : sequence of str
        Becomes ``meta["HISTORY"]``.

    Raises
    ------
    ValueError
        For missing, unknown or unequally long columns.
    """
    from astropy.table import Column, Table

    bands = bands or {}
    wanted = catalog_columns(tuple(bands), zeropoint=zeropoint)
    names = [column.name for column in wanted]
    missing = [name for name in names if name not in columns]
    unknown = [name for name in columns if name not in names]
    if missing or unknown:
        raise ValueError(f"catalogue columns missing: {missing}, unknown: {unknown}")
    n = len(np.atleast_1d(columns[names[0]]))
    units = {f"deblend_flux{end}_{band}": u for band, u in bands.items() for end in ("", "_err")}
    table = Table()
    for column in wanted:
        values: npt.NDArray[Any] = np.asarray(columns[column.name]).astype(column.dtype)
        if values.shape != (n,):
            raise ValueError(f"column {column.name} has shape {values.shape}, not {(n,)}")
        own = units.get(column.name, unit).strip() if column.unit == FLUX else column.unit
        known = parse_unit(own) if column.unit == FLUX else (own or None)
        note = f"; unit: {own}" if own and known is None else ""
        table[column.name] = Column(values, unit=known, description=column.description + note)
    table.meta.update({key: value for key, (value, _) in (cards or {}).items()})
    if unit.strip():
        table.meta["BUNIT"] = unit.strip()
    table.meta["FLAGS"] = Flag.legend()
    table.meta["HISTORY"] = list(history)
    return table


def join_catalogs(tables: Sequence["Table"]) -> "Table":
    """Join the catalogues of several images into one.

    Fluxes keep their unit only if all images share it. The first table's ``meta`` stays, with
    the HISTORY of all.

    Parameters
    ----------
    tables : sequence of Table
        Made with the same ``bands`` and ``zeropoint``.
    """
    from astropy.table import Column, Table

    joined = Table()
    for column in tables[0].itercols():
        same = all(table[column.name].unit == column.unit for table in tables)
        joined[column.name] = Column(
            np.concatenate([np.asarray(table[column.name]) for table in tables]),
            unit=column.unit if same else None,
            description=column.description,
        )
    joined.meta.update(tables[0].meta)
    if any(table.meta.get("BUNIT") != joined.meta.get("BUNIT") for table in tables):
        joined.meta.pop("BUNIT", None)
    joined.meta["HISTORY"] = list(
        dict.fromkeys(line for table in tables for line in table.meta.get("HISTORY", ()))
    )
    return joined


def stack_catalogs(files: Sequence[str], tables: Sequence["Table"]) -> "Table":
    """Join the catalogues of several inputs into one with a first column ``file``.

    Parameters
    ----------
    files : sequence of str
        Names of the inputs.
    tables : sequence of Table
        Their catalogues; see :func:`join_catalogs`.
    """
    from astropy.table import Column

    joined = join_catalogs(tables)
    names = np.repeat(np.array(files, dtype=str), [len(table) for table in tables])
    joined.add_column(Column(names, name="file", description="input file"), index=0)
    return joined
