"""Tables of what was found in one image."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from galsep.config import DeblendConfig
from galsep.io.catalog import make_catalog
from galsep.io.image import Plane
from galsep.measure.photometry import pixel_variance
from galsep.planes import BAND, footprint_bounds
from galsep.scene import Footprint
from galsep.workflows.finding import FoundSources, with_hidden_neighbours

if TYPE_CHECKING:
    from astropy.table import Table
    from astropy.wcs import WCS

__all__ = ["catalog_table", "parents_table"]

MAG_PER_RELATIVE_FLUX = 2.5 / np.log(10)


def catalog_table(
    found: FoundSources,
    plane: Plane,
    config: DeblendConfig,
    units: Mapping[str, str] | None = None,
) -> "Table":
    """Make the catalogue of one image; ``docs/formats.md`` describes its columns.

    Parameters
    ----------
    found : FoundSources
    plane : Plane
        The image.
    config : DeblendConfig
    units : mapping of str to str, optional
        BUNIT of each band.
    """
    detections, photometry = found.detections, found.photometry
    n = len(detections)
    bounds = footprint_bounds(detections.footprints)
    mask_area = np.array([f.area for f in detections.footprints], dtype=np.int64)
    shared = [np.count_nonzero(found.noverlap[f.slices][f.mask] > 1) for f in detections.footprints]
    area, owned_flux, owned_variance = _owned(found)
    found.planes.release()
    children = np.concatenate([[0], found.parents.n_child])
    ra, dec = _sky(plane.wcs, photometry.x, photometry.y)
    columns: dict[str, npt.NDArray[Any]] = {
        "label": np.arange(1, n + 1),
        "parent": found.parent,
        "parent_n_child": np.where(found.parent > 0, children[found.parent], 1),
        "ext": np.full(n, plane.ext),
        "ra": ra,
        "dec": dec,
        "x_centroid": photometry.x,
        "y_centroid": photometry.y,
        "bbox_xmin": bounds[:, 0],
        "bbox_xmax": bounds[:, 2],
        "bbox_ymin": bounds[:, 1],
        "bbox_ymax": bounds[:, 3],
        "area": area,
        "mask_area": mask_area,
        "overlap_fraction": np.array(shared, dtype=np.float64) / np.maximum(mask_area, 1),
        "semimajor_axis": photometry.semimajor_axis,
        "semiminor_axis": photometry.semiminor_axis,
        "orientation": photometry.orientation,
        "segment_flux": owned_flux,
        "segment_flux_err": np.sqrt(owned_variance),
        "deblend_flux": photometry.flux,
        "deblend_flux_err": photometry.flux_err,
        "blendedness": photometry.blendedness,
        "score": detections.scores,
        "class_star": detections.class_star,
        "flags": found.flags,
        "flags_dq": _dq_bits(plane, detections.footprints),
        "tile_id": found.tile,
    }
    for name, band in found.bands.items():
        columns[f"deblend_flux_{name}"] = band.photometry.flux
        columns[f"deblend_flux_err_{name}"] = band.photometry.flux_err
    if config.zeropoint is not None:
        for end in ("", *(f"_{name}" for name in found.bands)):
            flux = np.asarray(columns[f"deblend_flux{end}"])
            flux = np.where(flux > 0, flux, np.nan)
            error = columns[f"deblend_flux_err{end}"]
            columns[f"mag{end}"] = config.zeropoint - 2.5 * np.log10(flux)
            columns[f"mag_err{end}"] = MAG_PER_RELATIVE_FLUX * error / flux
    return make_catalog(
        columns, bands=units, zeropoint=config.zeropoint is not None, unit=plane.unit
    )


def _owned(
    found: FoundSources,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Number of the pixels that each source owns, their light, and its variance."""
    n, image = len(found.detections), found.measured.image
    area = np.zeros(n + 1, dtype=np.int64)
    flux, variance = np.zeros(n + 1), np.zeros(n + 1)
    for start in range(0, len(found.segm), BAND):
        rows = slice(start, start + BAND)
        segm = found.segm[rows]
        owned = segm > 0
        labels = segm[owned]
        light = found.light[rows][owned].astype(np.float64)
        noise = None if image.noise is None else image.noise[rows][owned]
        area += np.bincount(labels, minlength=n + 1)
        flux += np.bincount(labels, light, n + 1)
        variance += np.bincount(
            labels, pixel_variance(light, image.rms[rows][owned], image.gain, noise), n + 1
        )
        found.planes.release()
    return area[1:], flux[1:], variance[1:]


def _sky(
    wcs: "WCS | None", x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """ICRS positions in degrees; NaN without a WCS."""
    if wcs is None or not len(x):
        return np.full(len(x), np.nan), np.full(len(x), np.nan)
    position = wcs.pixel_to_world(x, y).icrs
    return position.ra.deg, position.dec.deg


def _dq_bits(plane: Plane, footprints: Sequence[Footprint]) -> npt.NDArray[np.int64]:
    """Bits of the image's mask on each source's pixels and on the unusable ones they touch.

    Unusable pixels belong to no source: without its neighbours a saturated star would not know.
    """
    found = np.zeros(len(footprints), dtype=np.int64)
    if plane.dq is None:
        return found
    for index, footprint in enumerate(footprints):
        box, pixels, _ = with_hidden_neighbours(footprint, [plane.mask])
        found[index] = np.bitwise_or.reduce(plane.dq.bits[box][pixels], initial=0)
    return found


def parents_table(found: FoundSources) -> "Table":
    """Make the table of SEP's detections; ``docs/formats.md`` describes its columns."""
    from astropy.table import Table

    blobs = found.parents.blobs
    table = Table(
        {
            "parent": np.arange(1, len(blobs) + 1, dtype=np.int32),
            "x": blobs.x,
            "y": blobs.y,
            "npix": blobs.npix.astype(np.int32),
            "snr": blobs.snr.astype(np.float32),
            "n_child": found.parents.n_child.astype(np.int32),
            "status": found.parents.status.astype("U9"),
        }
    )
    table["x"].unit = table["y"].unit = "pix"
    return table
