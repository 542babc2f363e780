"""Deblend images: arrays in Python, FITS files on the command line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import galsep
from galsep.config import CATALOG_FORMATS, DeblendConfig
from galsep.errors import GalsepError, ImageError, OutputExistsError, UsageError
from galsep.image.psf import Domain
from galsep.io import catalog as catalogs
from galsep.io.atomic import make_folder, whole_file
from galsep.io.image import Plane, input_stem, read_plane
from galsep.io.products import (
    check_catalog_format,
    wcs_cards,
    write_catalog,
    write_segmentation,
)
from galsep.io.runs import labels_to_runs
from galsep.model.weights import Model, load_model
from galsep.scene import Footprint
from galsep.workflows.finding import FoundSources, find_sources
from galsep.workflows.reporting import Reporter

if TYPE_CHECKING:
    from astropy.table import Table
    from astropy.wcs import WCS

__all__ = ["DeblendResult", "FileResult", "deblend", "deblend_files", "stack_catalogs"]

PROVENANCE = {
    "GALSEP": "version of galsep",
    "WEIGHTS": "SHA-256 of the network weights",
    "SCORECUT": "lowest score of a network source",
}
"""Header cards of the outputs that say how they were made."""

PSF_CARDS = {
    "PSFFWHM": "[pix] estimated FWHM of the PSF",
    "RESAMPLE": "side of the blocks averaged for the network",
}
"""... and, where the weights set limits to the PSF and it is known, how the image meets them."""

MAG_PER_RELATIVE_FLUX = 2.5 / np.log(10)


@dataclass(frozen=True, slots=True)
class DeblendResult:
    """What :func:`deblend` found in one image.

    Parameters
    ----------
    catalog : astropy.table.Table
        One row a source, columns as in ``docs/formats.md``.
    segm : (h, w) int32 array
        Label map: 0 background, else the ``label`` of the source that owns the pixel.
    masks : sequence of Footprint
        The whole mask of label 1, 2, …; masks may overlap.
    noverlap : (h, w) uint8 array
        Masks per pixel.
    parents : astropy.table.Table
        SEP's detections and what became of each.
    background, rms, light : (h, w) float32 arrays
        Background, its noise, and the image minus background (0 where unusable).
    """

    catalog: "Table"
    segm: npt.NDArray[np.int32]
    masks: Sequence[Footprint]
    noverlap: npt.NDArray[np.uint8]
    parents: "Table"
    background: npt.NDArray[np.float32]
    rms: npt.NDArray[np.float32]
    light: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.catalog)


@dataclass(frozen=True, slots=True)
class FileResult:
    """What became of one file.

    Parameters
    ----------
    path : Path
    files : tuple of Path
        What was written.
    catalog : Table or None
        ``None`` when the file failed or was passed over.
    n_sources : int
    skipped : bool
        Passed over, since its outputs exist.
    error : GalsepError or None
    """

    path: Path
    files: tuple[Path, ...] = ()
    catalog: "Table | None" = None
    n_sources: int = 0
    skipped: bool = False
    error: GalsepError | None = None


def deblend(
    image: Path | str | npt.NDArray[Any],
    config: DeblendConfig | None = None,
    *,
    model: Model | None = None,
    wcs: "WCS | None" = None,
) -> DeblendResult:
    """Find the sources of one image and separate their light.

    Parameters
    ----------
    image : path or (h, w) array
        A FITS file, or pixels in any unit. Pixels that are not finite, or masked in a masked
        array, are left out.
    config : DeblendConfig, optional
    model : Model, optional
        From :func:`galsep.load_model`; loaded anew by default.
    wcs : astropy.wcs.WCS, optional
        Of an array, for ``ra`` and ``dec``; a file has its own.

    Returns
    -------
    DeblendResult

    Raises
    ------
    ImageError
        When the image is missing, damaged, empty or not 2-D.
    WeightsError, DeviceError
        When the weights or the device are not usable.

    Examples
    --------
    >>> import galsep
    >>> result = galsep.deblend("image.fits")  # doctest: +SKIP
    >>> result.catalog["label", "x_centroid", "y_centroid", "deblend_flux"]  # doctest: +SKIP
    """
    config = config or DeblendConfig()
    plane = (
        read_plane(Path(image), config.ext)
        if isinstance(image, str | Path)
        else _plane_of_array(image, wcs)
    )
    model = model or load_model(config.weights, config.device)
    return _result(*_deblend_plane(plane, model, config))


def deblend_files(
    images: Sequence[Path],
    output: Path | None,
    config: DeblendConfig | None = None,
    *,
    overwrite: bool = False,
    skip_existing: bool = False,
    command: str = "",
    reporter: Reporter | None = None,
) -> list[FileResult]:
    """Deblend FITS files and write their label maps and catalogues.

    A file that fails does not keep the others from being done.

    Parameters
    ----------
    images : sequence of Path
    output : Path or None
        Folder to write to; ``None`` only returns the catalogues.
    config : DeblendConfig, optional
    overwrite, skip_existing : bool
        Replace outputs that exist, or pass over their inputs.
    command : str
        For the outputs' HISTORY; file names without folders. ``IMAGE...`` in it stands for the
        input at hand.
    reporter : Reporter, optional

    Returns
    -------
    list of FileResult
        One an input, in order.

    Raises
    ------
    UsageError
        When two inputs would write the same files.
    OutputExistsError
        When an output exists and may neither be replaced nor passed over.
    WeightsError, DeviceError, OutputError
        When the weights, the device or the output folder are not usable.
    """
    config = config or DeblendConfig()
    reporter = reporter or Reporter()
    check_catalog_format(config.catalog_format)
    targets = _targets(images, output, config)
    done = _existing(images, targets, overwrite=overwrite, skip_existing=skip_existing)
    model = load_model(config.weights, config.device)
    if output is not None:
        make_folder(output)
    results = []
    reporter.begin("deblending", len(images))
    for path in images:
        if path in done:
            results.append(FileResult(path, skipped=True))
        else:
            results.append(_deblend_file(path, targets[path], model, config, command, reporter))
        reporter.advance(note=path.name)
    reporter.end()
    return results


def stack_catalogs(results: Sequence[FileResult]) -> "Table":
    """Make one table of several files' catalogues, with the file's name as first column.

    A single input keeps its table as it is.
    """
    done = [(r.path.name, r.catalog) for r in results if r.catalog is not None]
    if not done:
        return catalogs.empty_catalog()
    if len(results) == 1:
        return done[0][1]
    table = catalogs.stack_catalogs([name for name, _ in done], [table for _, table in done])
    for key in PSF_CARDS:  # Each image has its own.
        table.meta.pop(key, None)
    return table


def _targets(
    images: Sequence[Path], output: Path | None, config: DeblendConfig
) -> Mapping[Path, tuple[Path, ...]]:
    """Files that each input will write, refusing inputs that would write the same ones."""
    by_stem: dict[str, Path] = {}
    targets: dict[Path, tuple[Path, ...]] = {}
    for path in images:
        stem = input_stem(path)
        if stem in by_stem:
            raise UsageError(
                f"{by_stem[stem]} and {path} would both write {stem}_cat and {stem}_segm; "
                "deblend them into different folders"
            )
        by_stem[stem] = path
        names = [f"{stem}_segm.fits", f"{stem}_cat{CATALOG_FORMATS[config.catalog_format]}"]
        if config.preview:
            names.append(f"{stem}_preview.png")
        targets[path] = tuple(output / name for name in names) if output is not None else ()
    return targets


def _existing(
    images: Sequence[Path],
    targets: Mapping[Path, tuple[Path, ...]],
    *,
    overwrite: bool,
    skip_existing: bool,
) -> set[Path]:
    """Inputs whose outputs are all there and may be passed over."""
    done = set()
    for path in images:
        there = [target for target in targets[path] if target.exists()]
        if not there or overwrite:
            continue
        if not skip_existing:
            raise OutputExistsError(
                f"{there[0]}: exists already; give --overwrite to replace it or --skip-existing "
                "to pass over its input"
            )
        if len(there) == len(targets[path]):
            done.add(path)
    return done


def _deblend_file(
    path: Path,
    targets: tuple[Path, ...],
    model: Model,
    config: DeblendConfig,
    command: str,
    reporter: Reporter,
) -> FileResult:
    try:
        plane = read_plane(path, config.ext)
        for message in plane.messages:
            reporter.warn(message)
        found, catalog = _deblend_plane(plane, model, config)
        _describe(catalog, found, model, config, command.replace("IMAGE...", path.name))
        _report_domain(path, found.domain, reporter)
        if plane.mask.all():
            reporter.warn(f"{path}: no valid pixel; the catalogue is empty")
        elif not len(catalog):
            reporter.warn(f"{path}: no sources found; the catalogue is empty")
        if targets:
            _write(path, targets, plane, found, catalog, config)
    except GalsepError as error:
        return FileResult(path, error=error)
    return FileResult(path, targets, catalog, len(catalog))


def _deblend_plane(
    plane: Plane, model: Model, config: DeblendConfig
) -> tuple[FoundSources, "Table"]:
    config = replace(config, gain=config.gain or plane.gain)
    found = next(find_sources([np.ma.array(plane.data, mask=plane.mask)], model, config))
    return found, _catalog(found, plane, config)


def _plane_of_array(image: npt.NDArray[Any], wcs: "WCS | None") -> Plane:
    from astropy.io import fits

    data = np.ma.getdata(image)
    if data.ndim != 2 or data.size == 0 or data.dtype.kind not in "iuf":
        raise ImageError(
            f"an image is a 2-D array of numbers, got shape {data.shape} of {data.dtype}"
        )
    kind = np.float32 if data.dtype == np.float32 else np.float64
    values: npt.NDArray[np.floating[Any]] = np.array(data, dtype=kind)
    mask = np.ma.getmaskarray(image) | ~np.isfinite(values)
    values[mask] = np.nan
    return Plane(values, mask, fits.Header(), wcs, 0, "", "", 0.0, ())


def _catalog(found: FoundSources, plane: Plane, config: DeblendConfig) -> "Table":
    """Make the catalogue of one image; ``docs/formats.md`` describes its columns."""
    detections, photometry = found.detections, found.photometry
    n = len(detections)
    bounds = np.array([f.bounds for f in detections.footprints], dtype=np.int64).reshape(-1, 4)
    mask_area = np.array([f.area for f in detections.footprints], dtype=np.int64)
    shared = [np.count_nonzero(found.noverlap[f.slices][f.mask] > 1) for f in detections.footprints]
    variance = found.rms.astype(np.float64) ** 2
    if config.gain > 0:
        variance += np.maximum(found.light, 0) / config.gain
    labels = found.segm.ravel()
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
        "area": np.bincount(labels, minlength=n + 1)[1:],
        "mask_area": mask_area,
        "overlap_fraction": np.array(shared, dtype=np.float64) / np.maximum(mask_area, 1),
        "semimajor_axis": photometry.semimajor_axis,
        "semiminor_axis": photometry.semiminor_axis,
        "orientation": photometry.orientation,
        "segment_flux": np.bincount(labels, found.light.ravel(), n + 1)[1:],
        "segment_flux_err": np.sqrt(np.bincount(labels, variance.ravel(), n + 1)[1:]),
        "deblend_flux": photometry.flux,
        "deblend_flux_err": photometry.flux_err,
        "blendedness": photometry.blendedness,
        "score": detections.scores,
        "class_star": detections.class_star,
        "flags": found.flags,
        "flags_dq": np.zeros(n, dtype=np.int64),
        "tile_id": found.tile,
    }
    if config.zeropoint is not None:
        flux = np.where(photometry.flux > 0, photometry.flux, np.nan)
        columns["mag"] = config.zeropoint - 2.5 * np.log10(flux)
        columns["mag_err"] = MAG_PER_RELATIVE_FLUX * photometry.flux_err / flux
    return catalogs.make_catalog(columns, zeropoint=config.zeropoint is not None, unit=plane.unit)


def _sky(
    wcs: "WCS | None", x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """ICRS positions in degrees; NaN without a WCS."""
    if wcs is None or not len(x):
        return np.full(len(x), np.nan), np.full(len(x), np.nan)
    position = wcs.pixel_to_world(x, y).icrs
    return position.ra.deg, position.dec.deg


def _report_domain(path: Path, domain: Domain, reporter: Reporter) -> None:
    """Say so where an image's PSF is not one that the network was trained on."""
    if domain.fwhm is None or domain.limits is None:
        return
    low, high = domain.limits
    outside = (
        f"{path}: PSF FWHM about {domain.fwhm:.1f} px is outside the trained range "
        f"{low:.1f}–{high:.1f} px"
    )
    k = domain.binning
    if not domain.inside:
        reporter.warn(f"{outside}: sources are flagged out_of_domain")
    elif k > 1:
        reporter.info(f"{outside}: the network sees means of {k}×{k} px")


def _describe(
    catalog: "Table", found: FoundSources, model: Model, config: DeblendConfig, command: str
) -> None:
    """Say in the catalogue's meta data how it was made."""
    catalog.meta |= {
        "GALSEP": galsep.__version__,
        "WEIGHTS": model.sha256,
        "SCORECUT": config.threshold or model.threshold,
    }
    if found.domain.fwhm is not None:
        catalog.meta["PSFFWHM"] = round(found.domain.fwhm, 2)
        catalog.meta["RESAMPLE"] = found.domain.binning
    if command:
        catalog.meta["HISTORY"] = [command]


def _write(
    path: Path,
    targets: tuple[Path, ...],
    plane: Plane,
    found: FoundSources,
    catalog: "Table",
    config: DeblendConfig,
) -> None:
    segmentation, table, *pictures = targets
    comments = PROVENANCE | PSF_CARDS
    for picture in pictures:
        from galsep.plot.preview import plot_preview

        light = np.where(plane.mask, np.nan, found.light)
        with whole_file(picture) as temporary:
            plot_preview(
                light,
                float(np.median(found.rms)),
                found.detections.footprints,
                found.photometry.x,
                found.photometry.y,
                found.flags,
                path.name,
                temporary,
            )
    write_segmentation(
        segmentation,
        segm=found.segm,
        noverlap=found.noverlap,
        masks=labels_to_runs(found.detections.footprints),
        parents=_parents_table(found),
        header=wcs_cards(plane),
        history=catalog.meta.get("HISTORY", []),
        cards={
            name: (catalog.meta[name], comment)
            for name, comment in comments.items()
            if name in catalog.meta
        },
    )
    # Last, so that a catalogue that exists has its label map beside it.
    write_catalog(table, catalog, config.catalog_format, comments=comments)


def _parents_table(found: FoundSources) -> "Table":
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


def _result(found: FoundSources, catalog: "Table") -> DeblendResult:
    return DeblendResult(
        catalog=catalog,
        segm=found.segm,
        masks=found.detections.footprints,
        noverlap=found.noverlap,
        parents=_parents_table(found),
        background=found.background,
        rms=found.rms,
        light=found.light,
    )
