"""``galsep deblend``: find and separate the sources of FITS images."""

import contextlib
import gc
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from galsep.cli.console import ConsoleReporter, emit, say
from galsep.cli.help import Command
from galsep.cli.inputs import input_paths
from galsep.cli.options import (
    DEVICE_HELP,
    DEVICES,
    OUTPUT,
    WEIGHTS_HELP,
    ConfigOption,
    DebugOption,
    DumpOption,
    OverwriteOption,
    QuietOption,
    VerboseOption,
    option,
    print_settings,
    required,
    setting,
)
from galsep.config import (
    CATALOG_FORMATS,
    FILE_SETTINGS,
    MACHINE_SETTINGS,
    TEXT_FORMATS,
    DeblendConfig,
    without_folder,
)
from galsep.errors import UsageError
from galsep.settings import resolve

if TYPE_CHECKING:
    from galsep.workflows.files import FileResult

__all__ = ["add_to", "command_line"]

SHORT_HELP = "Find and separate the sources of FITS images"

HELP = """
Find every galaxy and star in FITS images, draw the outline of each (outlines may overlap) and give
each its own share of the light. Writes for each image DIR/STEM_segm.fits, the label map with the
masks, and DIR/STEM_cat.fits, the catalogue.
"""

EPILOG = """
Examples:
  galsep deblend image.fits --output out --preview --report
  galsep deblend night/*.fits.fz --output out --skip-existing --zeropoint 31.4
  find . -name '*.fits' | galsep deblend - --output out --jobs 4
  galsep deblend image.fits --catalog - --catalog-format csv | head
  galsep deblend r.fits --rms s.fits --mask 'dq.fits[1]' --mask-bits 0,3 -o out
  galsep deblend g.fits i.fits --detect r.fits -o out
  galsep deblend --band g=g.fits --band r=r.fits -o out --isolated
"""

SIDE_PRODUCTS = ("preview", "regions", "isolated", "residual", "report")
"""Settings that ask for further files."""

STDOUT = "-"

_setting = setting(DeblendConfig)
_READING = "Reading"
_FINDING = "Finding and measuring"

NAMED = 5
"""Failed images that the summary names."""


def deblend(
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE...",
            help="FITS images (.fits, .fit, .fits.gz, .fits.fz); @FILE is a list of names, one a "
            "line, and - one on stdin",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        option("-o", "--output", text="Folder to write to", metavar="DIR", group=OUTPUT),
    ] = None,
    catalog: Annotated[
        str | None,
        option(
            "--catalog",
            text="Print the catalogue to stdout as ECSV or --catalog-format; --output is then not "
            "needed. Several images make one table with a first column file",
            metavar="-",
            group=OUTPUT,
        ),
    ] = None,
    catalog_format: Annotated[
        str | None,
        _setting(
            "catalog_format",
            "Format of the catalogue",
            metavar="|".join(CATALOG_FORMATS),
            group=OUTPUT,
            values=tuple(CATALOG_FORMATS),
        ),
    ] = None,
    preview: Annotated[
        bool,
        option("--preview", text="Also draw STEM_preview.png with outlines", group=OUTPUT),
    ] = False,
    regions: Annotated[
        bool,
        option(
            "--regions",
            text="Also write STEM.reg for DS9: an ellipse a source, labelled",
            group=OUTPUT,
        ),
    ] = False,
    isolated: Annotated[
        bool,
        option(
            "--isolated",
            text="Also write STEM_isolated.fits: each source's own light and its noiseless model",
            group=OUTPUT,
        ),
    ] = False,
    residual: Annotated[
        bool,
        option(
            "--residual",
            text="Also write STEM_residual.fits: what the sources leave of the image",
            group=OUTPUT,
        ),
    ] = False,
    report: Annotated[
        bool,
        option(
            "--report",
            text="Also write STEM_report.html, a page to look at in a browser",
            group=OUTPUT,
        ),
    ] = False,
    overwrite: OverwriteOption = False,
    skip_existing: Annotated[
        bool,
        option("--skip-existing", text="Pass over images whose outputs exist", group=OUTPUT),
    ] = False,
    ext: Annotated[
        str | None,
        _setting(
            "ext",
            "Image extension: number, NAME (of all its versions) or NAME,VERSION",
            metavar="EXT",
            group=_READING,
            default="all images",
        ),
    ] = None,
    variance: Annotated[
        str | None,
        _setting(
            "variance",
            "Variance of each pixel, at any scale: a file of the image's size, or FILE[EXT]; none "
            "for no plane at all",
            metavar="FILE",
            group=_READING,
            default="the plane that comes with the image",
        ),
    ] = None,
    weight: Annotated[
        str | None,
        _setting(
            "weight",
            "Inverse of the variance, at any scale, instead of it",
            metavar="FILE",
            group=_READING,
            default="",
        ),
    ] = None,
    rms: Annotated[
        str | None,
        _setting(
            "rms",
            "Square root of the variance, at any scale, instead of it",
            metavar="FILE",
            group=_READING,
            default="",
        ),
    ] = None,
    mask: Annotated[
        str | None,
        _setting(
            "mask",
            "Mask, likewise; what is not 0 is bad, unless --mask-bits or its header say more",
            metavar="FILE",
            group=_READING,
            default="the plane that comes with the image",
        ),
    ] = None,
    mask_bits: Annotated[
        str | None,
        _setting(
            "mask_bits",
            "Bits of the mask that hide a pixel: names or numbers from 0, any, or none",
            metavar="BITS",
            group=_READING,
            default="any; for LSST NO_DATA,BAD,SAT, for JWST 0",
        ),
    ] = None,
    detect: Annotated[
        str | None,
        _setting(
            "detect",
            "Find the sources in this image of the same pixels, measure them in IMAGE",
            metavar="FILE",
            group=_READING,
            default="",
        ),
    ] = None,
    band: Annotated[
        list[str] | None,
        _setting(
            "band",
            "Instead of IMAGE, one of several bands of a field on one grid; sources are found in "
            "their combination. Give it once a band",
            metavar="NAME=FILE",
            group=_READING,
            default="",
        ),
    ] = None,
    gain: Annotated[
        float | None,
        _setting(
            "gain",
            "Electrons per unit of the image, for the Poisson noise of sources",
            metavar="E",
            group=_READING,
            default="EGAIN or GAIN of the header",
        ),
    ] = None,
    psf_fwhm: Annotated[
        float | None,
        _setting(
            "psf_fwhm",
            "FWHM of the PSF where sources are found: for telling stars from galaxies, for fluxes, "
            "and for how the network sees the image",
            metavar="PIXELS",
            group=_READING,
            default="measured on the image's compact objects",
        ),
    ] = None,
    zeropoint: Annotated[
        float | None,
        _setting(
            "zeropoint",
            "Magnitude of one unit of flux; adds mag and mag_err. Of several bands it is that of "
            "each",
            metavar="MAG",
            group=_READING,
            default="",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        _setting("weights", WEIGHTS_HELP, metavar="FILE", group=_FINDING, default="packaged"),
    ] = None,
    threshold: Annotated[
        float | None,
        _setting(
            "threshold",
            "Score from which a source counts, 0 to 1",
            metavar="P",
            group=_FINDING,
            default="the one stored with the weights",
        ),
    ] = None,
    background_mesh: Annotated[
        int | None,
        _setting(
            "background_mesh",
            "Side of a cell of the background mesh, pixels",
            metavar="PIX",
            group=_FINDING,
        ),
    ] = None,
    device: Annotated[
        str | None,
        _setting("device", DEVICE_HELP, metavar="NAME", group=_FINDING, values=DEVICES),
    ] = None,
    batch_size: Annotated[
        int | None,
        _setting("batch_size", "Cutouts the network takes at once", metavar="N", group=_FINDING),
    ] = None,
    jobs: Annotated[
        int | None,
        _setting(
            "jobs",
            "Images to work on at once, each in a process of its own; they share the CPU cores",
            metavar="N",
            group=_FINDING,
        ),
    ] = None,
    dask: Annotated[
        str | None,
        _setting(
            "dask",
            "Work on the Dask cluster of this scheduler, such as tcp://host:8786, or of its file "
            "(.json); its workers must see the folders of images and outputs",
            metavar="ADDRESS",
            group=_FINDING,
            default="",
        ),
    ] = None,
    config: ConfigOption = None,
    dump_config: DumpOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    debug: DebugOption = False,
) -> None:
    """Run the command; :data:`HELP` is its help."""
    given: dict[str, Any] = {
        "weights": weights,
        "threshold": threshold,
        "ext": ext,
        "variance": variance,
        "weight": weight,
        "rms": rms,
        "mask": mask,
        "mask_bits": mask_bits,
        "detect": detect,
        "band": tuple(band) if band else None,
        "gain": gain,
        "psf_fwhm": psf_fwhm,
        "zeropoint": zeropoint,
        "background_mesh": background_mesh,
        "catalog_format": catalog_format,
        "preview": preview or None,
        "regions": regions or None,
        "isolated": isolated or None,
        "residual": residual or None,
        "report": report or None,
        "device": device,
        "batch_size": batch_size,
        "jobs": jobs,
        "dask": dask,
    }
    settings = resolve(DeblendConfig, config, given)
    if dump_config:
        print_settings(settings)
        return
    if settings.band and not images:
        paths = []
    else:
        paths = input_paths(required(images, "IMAGE", "deblend"))
    _check_outputs(output, catalog, catalog_format, settings)
    if catalog is not None and skip_existing:
        raise UsageError(
            "--catalog - prints what is found now, and --skip-existing passes over what was found "
            "before: choose one"
        )
    if overwrite and skip_existing:
        raise UsageError("--overwrite and --skip-existing exclude each other: choose one")
    with ConsoleReporter(quiet=quiet, verbose=verbose) as reporter:
        reporter.detail(f"settings: {settings}")
        with _loading():
            from galsep.io.products import catalog_text
            from galsep.workflows.files import deblend_files, stack_catalogs

        results = deblend_files(
            paths,
            output,
            settings,
            overwrite=overwrite,
            skip_existing=skip_existing,
            keep_catalogs=catalog is not None,
            command=command_line(paths, config, given),
            reporter=reporter,
            listener=lambda result: _report(result, reporter, debug=debug),
        )
        if len(results) > 1:
            reporter.info(summary(results))
        # Where every input failed, nothing is better than a table that looks like an empty sky.
        if catalog is not None and any(result.catalog is not None for result in results):
            form = settings.catalog_format if settings.catalog_format in TEXT_FORMATS else "ecsv"
            emit(catalog_text(stack_catalogs(results), form))
    if any(result.error is not None for result in results):
        raise typer.Exit(1)


@contextlib.contextmanager
def _loading() -> Iterator[None]:
    """Load modules without looking for garbage among what they make, then or later.

    All of it stays, and looking it through again and again takes as long as an eighth of loading
    it. Where PyTorch is loaded already, there is little left to gain.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def command_line(images: Sequence[Path], config: Path | None, given: dict[str, Any]) -> str:
    """Write the command down for the outputs' HISTORY.

    Files are named without folders, several images not at all, and what changes no result is left
    out.

    Parameters
    ----------
    images : sequence of Path
    config : Path or None
        Given with ``--config``.
    given : dict
        Flags by setting; ``None`` means not given.
    """
    words = ["galsep", "deblend"]
    if images:
        words.append(images[0].name if len(images) == 1 else "IMAGE...")
    if config is not None:
        words += ["--config", config.name]
    for name, value in given.items():
        if value is None or name in MACHINE_SETTINGS:
            continue
        if name == "band":
            words += [f"--band {without_folder(entry)}" for entry in value]
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words.append(Path(value).name if name in FILE_SETTINGS else str(value))
    return " ".join(words)


def _check_outputs(
    output: Path | None, catalog: str | None, catalog_format: str | None, settings: DeblendConfig
) -> None:
    if catalog not in (None, STDOUT):
        raise UsageError(
            f"--catalog takes - for stdout only, got {catalog!r}; in --output the catalogue is "
            "named STEM_cat"
        )
    if output is None and catalog is None:
        raise UsageError(
            "--output DIR is missing, and so is --catalog - (see galsep deblend --help)"
        )
    asked = [name for name in SIDE_PRODUCTS if getattr(settings, name)]
    if output is None and asked:
        raise UsageError(f"--{asked[0]} writes a file: give --output DIR, too")
    if output is None and catalog_format is not None and catalog_format not in TEXT_FORMATS:
        raise UsageError(
            f"--catalog - cannot print {catalog_format}; choose {', '.join(TEXT_FORMATS)}"
        )


def summary(results: Sequence["FileResult"]) -> str:
    """Say in a line what became of several images."""
    failed = [str(result.path) for result in results if result.error is not None]
    skipped = sum(result.skipped for result in results)
    parts = [f"{len(results) - len(failed) - skipped} done"]
    if skipped:
        parts.append(f"{skipped} passed over")
    if failed:
        rest = len(failed) - NAMED
        names = ", ".join(failed[:NAMED]) + (f" and {rest} more" if rest > 0 else "")
        parts.append(f"{len(failed)} failed: {names}")
    return f"{len(results)} images: {', '.join(parts)}"


def _report(result: "FileResult", reporter: ConsoleReporter, *, debug: bool) -> None:
    """Say in a line or a few what became of one image."""
    if result.error is not None:
        if debug:
            say("".join(traceback.format_exception(result.error)).rstrip())
        reporter.error(result.error)
    elif result.skipped:
        reporter.info(f"{result.path}: outputs exist, passed over")
    else:
        sources = f"{result.n_sources} source{'s' * (result.n_sources != 1)}"
        reporter.info(f"{result.path}: {sources}")
        for file in result.files:
            reporter.info(f"  {_kind(file):10} {file}")


def _kind(file: Path) -> str:
    """Name an output by its ending."""
    side = {".png": "picture", ".reg": "regions", ".html": "report"}
    if file.suffix in side:
        return side[file.suffix]
    for ending, name in (
        ("_segm", "label map"),
        ("_isolated", "isolated"),
        ("_residual", "residual"),
    ):
        if file.stem.endswith(ending):
            return name
    return "catalogue"


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(
        "deblend",
        cls=Command,
        options_metavar="IMAGE... --output DIR [OPTIONS]",
        short_help=SHORT_HELP,
        help=HELP,
        epilog=EPILOG,
    )(deblend)
