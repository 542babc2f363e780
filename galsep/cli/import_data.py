"""``galsep import``: make a data set of one's own images and the sources known in them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from galsep.cli.console import ConsoleReporter
from galsep.cli.help import Command
from galsep.cli.inputs import input_paths
from galsep.cli.options import (
    OUTPUT,
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
from galsep.config import ImportConfig
from galsep.settings import resolve

__all__ = ["add_to"]

SHORT_HELP = "Make a data set of your own labelled images"

HELP = """
Make a data set for galsep train and galsep evaluate from images whose sources are known: FITS or
PNG images with label maps (0 background, each positive number a source), or with annotations in
COCO's JSON (categories galaxy and star; polygons or run lengths, which may overlap). The background
is subtracted and stamps are cut as galsep deblend does it; no source is in two of the splits. Bands
of one field are images of their own: both networks learn from one band at a time.
"""

EPILOG = """
Examples:
  galsep import field.fits --labels field_segm.fits[SEGM] --output mine
  galsep import a.fits b.fits --labels 'drawn/{stem}.fits' --output mine
  galsep import a.fits --labels labels.fits --light models.fits --output mine
  galsep import --coco annotations.json --pixel-scale 0.2 --output mine
  galsep train mine --output tuned --init compact --separation-epochs 0
"""

_setting = setting(ImportConfig)
_TRUTH = "What is known"
_IMAGE = "What the images do not say"


def import_data(
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE...",
            help="FITS images, FILE or FILE[EXT], or PNG; @list.txt, or - for names on stdin",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        option("-o", "--output", text="Folder to write to", metavar="DATASET", group=OUTPUT),
    ] = None,
    labels: Annotated[
        str | None,
        _setting(
            "labels",
            "Label map of the image's size, FILE or FILE[EXT]; {stem} in it is the image's name "
            "without its ending",
            metavar="FITS",
            group=_TRUTH,
        ),
    ] = None,
    classes: Annotated[
        str | None,
        _setting(
            "classes",
            "Table with columns label and class, galaxy or star; likewise with {stem}",
            metavar="FILE",
            group=_TRUTH,
            default="all are galaxies",
        ),
    ] = None,
    light: Annotated[
        str | None,
        _setting(
            "light",
            "Each source's isolated light, as deblend --isolated writes it or as a cube with a "
            "plane a label; likewise with {stem}",
            metavar="FITS",
            group=_TRUTH,
            default="the image's, on the labelled pixels",
        ),
    ] = None,
    coco: Annotated[
        str | None,
        _setting("coco", "Annotations in COCO's format", metavar="JSON", group=_TRUTH),
    ] = None,
    images_folder: Annotated[
        str | None,
        _setting(
            "images",
            "Where the images of --coco lie",
            metavar="DIR",
            group=_TRUTH,
            default="the JSON's own folder",
        ),
    ] = None,
    ext: Annotated[
        str | None,
        _setting(
            "ext",
            "Extension of each image: number, name or NAME,VERSION",
            metavar="EXT",
            group=_IMAGE,
            default="the only image",
        ),
    ] = None,
    pixel_scale: Annotated[
        float | None,
        _setting(
            "pixel_scale", "Arcsec per pixel", metavar="ARCSEC", group=_IMAGE, default="by the WCS"
        ),
    ] = None,
    seeing: Annotated[
        float | None,
        _setting("seeing", "PSF FWHM", metavar="ARCSEC", group=_IMAGE, default="measured"),
    ] = None,
    gain: Annotated[
        float | None,
        _setting(
            "gain",
            "Electrons per unit of the image",
            metavar="E",
            group=_IMAGE,
            default="EGAIN or GAIN, else as if the sky noise were 400 electrons",
        ),
    ] = None,
    zeropoint: Annotated[
        float | None,
        _setting("zeropoint", "Magnitude of one unit of the image", metavar="MAG", group=_IMAGE),
    ] = None,
    background_mesh: Annotated[
        int | None,
        _setting(
            "background_mesh",
            "Side of a cell of the background mesh, pixels",
            metavar="PIX",
            group=_IMAGE,
        ),
    ] = None,
    split: Annotated[
        str | None,
        _setting(
            "split",
            "Percent of the stamps for training, validation and test",
            metavar="T/V/T",
            group=OUTPUT,
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    config: ConfigOption = None,
    dump_config: DumpOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    _debug: DebugOption = False,
) -> None:
    """Run the command; :data:`HELP` is its help."""
    given: dict[str, Any] = {
        "labels": labels,
        "classes": classes,
        "light": light,
        "coco": coco,
        "images": images_folder,
        "ext": ext,
        "pixel_scale": pixel_scale,
        "seeing": seeing,
        "gain": gain,
        "zeropoint": zeropoint,
        "background_mesh": background_mesh,
        "split": split,
    }
    settings = resolve(ImportConfig, config, given)
    if dump_config:
        print_settings(settings)
        return
    output = required(output, "--output DATASET", "import")
    with ConsoleReporter(quiet=quiet, verbose=verbose) as reporter:
        reporter.detail(f"settings: {settings}")
        from galsep.workflows.import_data import import_data as run

        result = run(
            input_paths(images or []), output, settings, overwrite=overwrite, reporter=reporter
        )
        counts = "/".join(map(str, result.counts.values()))
        reporter.info(
            f"wrote {sum(result.counts.values())} stamps ({counts}) with {result.sources} sources "
            f"to {result.folder}; left out: {result.left_out} that share a source with another "
            f"split, {result.crowded} with crowds"
        )


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(
        "import",
        cls=Command,
        options_metavar="IMAGE... --labels FITS --output DATASET [OPTIONS]",
        short_help=SHORT_HELP,
        help=HELP,
        epilog=EPILOG,
    )(import_data)
