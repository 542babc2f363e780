"""One FITS file in; its label map, its catalogue and what else is asked for out."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from galsep.config import DeblendConfig
from galsep.io import catalog as catalogs
from galsep.io.atomic import whole_file
from galsep.io.header import CardValue
from galsep.io.image import Images, Plane, list_images, read_plane, read_plane_like
from galsep.io.isolated import isolated_hdus, residual_hdus
from galsep.io.products import segmentation_hdus, wcs_cards, write_catalog, write_hdus
from galsep.io.regions import write_regions
from galsep.io.runs import labels_to_runs
from galsep.model.weights import Model
from galsep.planes import Planes
from galsep.workflows.bands import band_files, read_bands
from galsep.workflows.deblend import deblend_plane, describe, plane_options
from galsep.workflows.finding import FoundSources
from galsep.workflows.report import shown_image, shown_title, write_report
from galsep.workflows.reporting import Reporter
from galsep.workflows.tables import parents_table
from galsep.workflows.targets import Targets
from galsep.workflows.telling import tell_of_planes, tell_of_result

if TYPE_CHECKING:
    from astropy.io import fits
    from astropy.table import Table

__all__ = ["deblend_file", "without_image_cards"]

PROVENANCE = {
    "GALSEP": "version of galsep",
    "WEIGHTS": "SHA-256 of the network weights",
    "SCORECUT": "lowest score of a network source",
}
"""Header cards of the outputs that say how they were made."""

IMAGE_CARDS = {
    "PSFFWHM": "[pix] estimated or given FWHM of the PSF",
    "PSFSTARS": "whether that is known of stars, or given",
    "RESAMPLE": "side of the blocks averaged for the network",
    "RMSPLANE": "plane that the noise follows",
    "RMSSCALE": "measured rms over that of the plane",
    "DQPLANE": "mask plane",
    "DQHIDES": "its bits that hide pixels",
    "DETIMAGE": "image that the sources were found in",
}
"""... and what of it belongs to one image, where there is anything to say: the PSF, where the
weights set limits to it and it is known, and the planes beside the image."""


def deblend_file(
    path: Path,
    targets: Targets | None,
    model: Model,
    config: DeblendConfig,
    command: str,
    reporter: Reporter,
) -> "Table":
    """Deblend the images of a file, one after the other, and write what was found.

    Nothing is written unless all of it can be.

    Parameters
    ----------
    path : Path
    targets : Targets or None
        What to write; ``None`` for nothing.
    model : Model
    config : DeblendConfig
    command : str
        For the outputs' HISTORY.
    reporter : Reporter
        Told what is worth knowing about each image.

    Returns
    -------
    Table
        The catalogue of all images.

    Raises
    ------
    ImageError
        When the file or an image in it is not usable.
    OutputError
        When the outputs cannot be written.
    """
    return _File(path, targets, model, config, command, reporter).deblend()


def without_image_cards(table: "Table") -> "Table":
    """Forget what each of several images has of its own."""
    for key in IMAGE_CARDS:
        table.meta.pop(key, None)
    return table


@dataclass(frozen=True, slots=True)
class _Part:
    """What goes into a file's outputs of one of its images."""

    catalog: "Table"
    hdus: "Sequence[fits.CompImageHDU | fits.BinTableHDU]" = ()
    isolated: "Sequence[fits.ImageHDU | fits.BinTableHDU]" = ()
    residual: "Sequence[fits.ImageHDU]" = ()


@dataclass(frozen=True, slots=True)
class _File:
    """A file on its way to its outputs."""

    path: Path
    targets: Targets | None
    model: Model
    config: DeblendConfig
    command: str
    reporter: Reporter

    def deblend(self) -> "Table":
        """Do what :func:`deblend_file` says."""
        images = list_images(self.path, self.config.ext)
        at_once = max(1, len(self.config.band)) + bool(self.config.detect)
        # The label maps of all images are held until the file is written.
        folder = self.targets.segm.parent if self.targets else None
        planes = Planes.for_pixels(at_once * images.pixels, folder)
        # Files appear only when all are written, the catalogue last: one that exists has the others
        # beside it.
        with contextlib.ExitStack() as last, contextlib.ExitStack() as unfinished:
            parts = [
                self._deblend_image(number, images, planes, unfinished)
                for number in range(len(images.chosen))
            ]
            catalog = parts[0].catalog
            if len(parts) > 1:
                catalog = without_image_cards(catalogs.join_catalogs([p.catalog for p in parts]))
            if self.targets is not None:
                self._write(parts, catalog, self.targets, unfinished, last)
        return catalog

    def _deblend_image(
        self, number: int, images: Images, planes: Planes, unfinished: contextlib.ExitStack
    ) -> _Part:
        """Deblend one of its images, and draw what is asked for."""
        path, config, targets = self.path, self.config, self.targets
        ext, several = images.chosen[number], len(images.chosen) > 1
        plane = read_plane(path, str(ext), plane_options(config), planes)
        detection = read_plane_like(config.detect, plane, planes) if config.detect else None
        name = f"{path}[{ext}]" if several else str(path)
        others = read_bands(band_files(config.band), plane, planes)
        read = [plane, *list(others.values())[1:], *([detection] if detection else [])]
        tell_of_planes(name, read, others, self.reporter)
        found, plane, catalog = deblend_plane(
            plane, self.model, config, detection=detection, bands=others, planes=planes,
            separate_bands=config.isolated or config.residual,
        )  # fmt: skip
        describe(catalog, plane, found, self.model, config, self.command)
        tell_of_result(name, plane, found, config, self.reporter)
        if not len(catalog) and not plane.mask.all():
            self.reporter.warn(f"{name}: no sources found; the catalogue is empty")
        if targets is None:
            return _Part(catalog)
        title = shown_title(Path(name).name, found)
        if targets.previews:
            with whole_file(targets.previews[number], unfinished) as picture:
                _draw(title, plane, found, picture)
        if targets.regions:
            with whole_file(targets.regions[number], unfinished) as file:
                write_regions(file, catalog, plane.wcs)
        if targets.reports:
            with whole_file(targets.reports[number], unfinished) as page:
                write_report(page, title, plane, found, catalog, config, self.command)
        extver, header = ext if images.several else 1, wcs_cards(plane)
        hdus = segmentation_hdus(
            segm=found.segm,
            noverlap=found.noverlap,
            masks=labels_to_runs(found.detections.footprints),
            parents=parents_table(found),
            header=header,
            cards=_cards(catalog, IMAGE_CARDS) if several else {},
            extver=extver,
        )
        units = {"": plane.unit, **{band: one.unit for band, one in others.items()}}
        return _with_light(_Part(catalog, hdus), targets, found, header, units, extver)

    def _write(
        self,
        parts: Sequence[_Part],
        catalog: "Table",
        targets: Targets,
        unfinished: contextlib.ExitStack,
        last: contextlib.ExitStack,
    ) -> None:
        comments = PROVENANCE | IMAGE_CARDS
        products: list[tuple[Path | None, list[Any]]] = [
            (targets.isolated, [hdu for part in parts for hdu in part.isolated]),
            (targets.residual, [hdu for part in parts for hdu in part.residual]),
            (targets.segm, [hdu for part in parts for hdu in part.hdus]),
        ]
        history, cards = catalog.meta.get("HISTORY", []), _cards(catalog, comments)
        for product, content in products:
            if product is not None:
                write_hdus(product, content, history=history, cards=cards, until=unfinished)
        form = self.config.catalog_format
        write_catalog(targets.catalog, catalog, form, comments=comments, until=last)


def _with_light(
    part: _Part,
    targets: Targets,
    found: FoundSources,
    header: "fits.Header",
    units: Mapping[str, str],
    extver: int,
) -> _Part:
    """Add what is to be written of the sources' own light and of what it leaves."""
    measured = {"": found.measured, **found.bands}
    light = {name: (band.image.light, band.separated) for name, band in measured.items()}
    if targets.isolated is not None:
        shared = units[""] if len(set(units.values())) == 1 else ""
        part = replace(part, isolated=isolated_hdus(light, extver, shared))
    if targets.residual is not None:
        background = {name: band.image.background for name, band in measured.items()}
        mask = {name: band.image.mask for name, band in measured.items()}
        residual = residual_hdus(light, background, mask, header, units, extver)
        part = replace(part, residual=residual)
    return part


def _cards(catalog: "Table", comments: Mapping[str, str]) -> dict[str, tuple[CardValue, str]]:
    """Header cards of those of a catalogue's meta data that have a comment."""
    return {
        name: (catalog.meta[name], comment)
        for name, comment in comments.items()
        if name in catalog.meta
    }


def _draw(title: str, plane: Plane, found: FoundSources, picture: Path) -> None:
    from galsep.plot.preview import Preview, plot_preview

    preview = Preview(
        image=shown_image(plane, found),
        footprints=found.detections.footprints,
        x=found.photometry.x,
        y=found.photometry.y,
        flags=found.flags,
        blendedness=found.photometry.blendedness,
        title=title,
    )
    plot_preview(preview, picture)
