"""DS9 regions of a catalogue: an ellipse a source, labelled, to lay over the image."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from galsep.errors import UsageError
from galsep.io.header import quiet_astropy

if TYPE_CHECKING:
    from astropy.table import Table
    from astropy.wcs import WCS

__all__ = ["check_regions", "regions_text", "write_regions"]

AXES = 2.0
"""Semi-axes of an ellipse in units of the light's rms: those of a uniform ellipse are twice its
rms."""

LEAST_AXIS = 0.5
"""Semi-axes are at least this many pixels, to be seen."""

_PIXEL_DIGITS = 4
_DEGREE_DIGITS = 8


def check_regions() -> None:
    """Refuse to go on without the optional library that writes regions.

    Raises
    ------
    UsageError
    """
    if importlib.util.find_spec("regions") is None:
        raise UsageError("--regions needs the library regions; pip install 'galsep[regions]'")


def write_regions(path: Path, catalog: "Table", wcs: "WCS | None" = None) -> None:
    """Write the sources of one image as a DS9 region file.

    Parameters
    ----------
    path : Path
        Written as it is: whoever calls sees to it that it appears whole.
    catalog : Table
        Columns as in ``docs/formats.md``.
    wcs : astropy WCS, optional
        With it the ellipses are in ICRS, without it in pixels.

    Raises
    ------
    UsageError
        Without the library.
    """
    path.write_text(regions_text(catalog, wcs), encoding="utf-8")


def regions_text(catalog: "Table", wcs: "WCS | None" = None) -> str:
    """Return what :func:`write_regions` writes."""
    check_regions()
    from astropy import units
    from regions import EllipsePixelRegion, PixCoord, Regions

    shapes = [
        EllipsePixelRegion(
            PixCoord(float(x), float(y)),
            width=float(2 * major),
            height=float(2 * minor),
            angle=float(angle) * units.deg,
            meta={"text": str(label)},
        )
        for label, x, y, major, minor, angle in _ellipses(catalog)
    ]
    with quiet_astropy():
        on_sky = [_on_sky(shape, wcs) for shape in shapes] if wcs is not None else []
        # A map of the whole sky has pixels that are nowhere on it.
        placed = bool(on_sky) and all(np.isfinite(shape.center.ra.deg) for shape in on_sky)
        text = Regions(on_sky if placed else shapes).serialize(
            format="ds9", precision=_DEGREE_DIGITS if placed else _PIXEL_DIGITS
        )
    return str(text) or "# Region file format: DS9\n"


def _ellipses(catalog: "Table") -> npt.NDArray[Any]:
    """Label, centre, semi-axes and angle of each source, in pixels and degrees."""
    columns = {
        name: np.asarray(catalog[name], dtype=np.float64)
        for name in ("x_centroid", "y_centroid", "semimajor_axis", "semiminor_axis", "orientation")
    }
    # A source without light has no moments: a disc of its mask's area stands for it.
    radius = np.sqrt(np.asarray(catalog["mask_area"]) / np.pi)
    known = np.isfinite(columns["semimajor_axis"]) & (columns["semimajor_axis"] > 0)
    axes = [
        np.maximum(np.where(known, AXES * np.nan_to_num(columns[name]), radius), LEAST_AXIS)
        for name in ("semimajor_axis", "semiminor_axis")
    ]
    angle = np.nan_to_num(columns["orientation"])
    return np.rec.fromarrays(
        [np.asarray(catalog["label"]), columns["x_centroid"], columns["y_centroid"], *axes, angle]
    )


def _on_sky(shape: Any, wcs: "WCS") -> Any:
    """Turn an ellipse in pixels into one in ICRS, whatever the frame of the WCS."""
    from astropy import units
    from regions import EllipseSkyRegion

    own = shape.to_sky(wcs)
    centre = own.center.icrs
    # Angles of regions count from west, those of positions from north.
    tip = own.center.directional_offset_by(own.angle - 90 * units.deg, own.width / 2).icrs
    angle = (centre.position_angle(tip) + 90 * units.deg).wrap_at(360 * units.deg)
    return EllipseSkyRegion(centre, own.width, own.height, angle, meta=shape.meta)
