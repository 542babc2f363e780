"""``galsep simulate``: draw data sets of blends, wide fields and galaxy catalogues."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from galsep.cli.console import ConsoleReporter
from galsep.cli.help import Command
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
from galsep.config import SimulateConfig
from galsep.errors import UsageError
from galsep.settings import read_toml, resolve

__all__ = ["add_to"]

SHORT_HELP = "Draw blends of galaxies with their truth, or one wide field"

HELP = """
Draw blends of galaxies on 120×120 stamps with GalSim, with each source's own noiseless light: a
data set for galsep train and galsep evaluate. With --field, draw one wide FITS image and its truth
instead. The same seed gives the same bytes, whatever the workers.
"""

EPILOG = """
Examples:
  galsep simulate pairs
  galsep simulate crowded --n 5000 --galaxies 1-6 --stars 0.15 --bands g,r,i
  galsep simulate all-kinds --galaxies 1-4 --varied --pixel-scale 0.1-0.4
  galsep simulate sky --field 2400x2400 --density 60 --stars 0.1
  galsep simulate --write-catalog galaxies.fits --n 100000 --bands u,g,r,i,z,y
"""

_setting = setting(SimulateConfig)
_SCENES = "What is drawn"
_SOURCES = "Where galaxies come from"
_FIELD = "One wide field instead of stamps"


def simulate(
    out: Annotated[
        Path | None,
        typer.Argument(metavar="OUT", help="Folder to write to", show_default=False),
    ] = None,
    n: Annotated[
        int | None,
        _setting("n", "Blends to draw, split 90/5/5 %", metavar="N", group=_SCENES),
    ] = None,
    galaxies: Annotated[
        str | None,
        _setting(
            "galaxies",
            "Sources in a blend, one number or a range such as 1-6",
            metavar="N|MIN-MAX",
            group=_SCENES,
        ),
    ] = None,
    stars: Annotated[
        float | None,
        _setting("stars", "Share of the sources that are stars", metavar="0-1", group=_SCENES),
    ] = None,
    survey: Annotated[
        str | None,
        _setting("survey", "Survey of surveycodex, at full depth", metavar="NAME", group=_SCENES),
    ] = None,
    bands: Annotated[
        str | None,
        _setting("bands", "Up to six bands, such as g,r,i", metavar="BANDS", group=_SCENES),
    ] = None,
    max_mag: Annotated[
        float | None,
        _setting("max_mag", "Faintest i magnitude, AB", metavar="MAG", group=_SCENES),
    ] = None,
    max_shift: Annotated[
        float | None,
        _setting(
            "max_shift",
            "Largest offset from the blend's centre in x and in y, arcsec",
            metavar="ARCSEC",
            group=_SCENES,
        ),
    ] = None,
    seeing: Annotated[
        str | None,
        _setting(
            "seeing",
            "PSF FWHM in the detection band, arcsec; drawn anew for each blend from a range such "
            "as 0.5-1.3",
            metavar="MIN-MAX",
            group=_SCENES,
            default="the survey's",
        ),
    ] = None,
    depth: Annotated[
        float | None,
        _setting(
            "depth",
            "Magnitudes deeper than the survey's full depth; negative is shallower",
            metavar="MAG",
            group=_SCENES,
        ),
    ] = None,
    pixel_scale: Annotated[
        str | None,
        _setting(
            "pixel_scale",
            "Arcsec per pixel; drawn anew for each blend from a range such as 0.1-0.4, with the "
            "sky noise of the survey's own pixels",
            metavar="ARCSEC|MIN-MAX",
            group=_SCENES,
            default="the survey's",
        ),
    ] = None,
    varied: Annotated[
        bool,
        option(
            "--varied",
            text="Galaxies of all kinds (bulge + disk, Sérsic, irregular, spiral) with more "
            "scatter in size, real ones mirrored, stretched and sheared, stars down to magnitude "
            "15, PSFs of varied profile and ellipticity",
            group=_SCENES,
        ),
    ] = False,
    seed: Annotated[int | None, _setting("seed", "Seed", metavar="N", group=_SCENES)] = None,
    catalog: Annotated[
        str | None,
        _setting(
            "catalog",
            "CatSim galaxies: a FITS table in the columns of BTK",
            metavar="FITS",
            group=_SOURCES,
            default="galsep's own population",
        ),
    ] = None,
    cosmos: Annotated[
        str | None,
        _setting(
            "cosmos",
            "Real HST galaxies: a folder with a GalSim real_galaxy_catalog.fits",
            metavar="DIR",
            group=_SOURCES,
        ),
    ] = None,
    write_catalog: Annotated[
        Path | None,
        option(
            "--write-catalog",
            text="Write --n galaxies of galsep's own population to this FITS table, in the "
            "columns of BTK, and draw no image",
            metavar="FITS",
            group=_SOURCES,
        ),
    ] = None,
    field: Annotated[
        str | None,
        _setting(
            "field",
            "Size in pixels, such as 2400x2400; --galaxies is then 1 unless given",
            metavar="WIDTHxHEIGHT",
            group=_FIELD,
        ),
    ] = None,
    density: Annotated[
        float | None,
        _setting("density", "Sources per arcmin²", metavar="N", group=_FIELD),
    ] = None,
    workers: Annotated[
        int | None,
        _setting(
            "workers", "Processes", metavar="N", group=OUTPUT, default="one for each CPU core"
        ),
    ] = None,
    preview: Annotated[
        bool, option("--preview", text="Also write pictures of the data", group=OUTPUT)
    ] = False,
    overwrite: OverwriteOption = False,
    config: ConfigOption = None,
    dump_config: DumpOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    _debug: DebugOption = False,
) -> None:
    """Run the command; :data:`HELP` is its help."""
    given: dict[str, Any] = {
        "n": n,
        "galaxies": galaxies,
        "stars": stars,
        "survey": survey,
        "bands": None if bands is None else split_bands(bands),
        "max_mag": max_mag,
        "max_shift": max_shift,
        "seeing": seeing,
        "depth": depth,
        "pixel_scale": pixel_scale,
        "varied": varied or None,
        "catalog": catalog,
        "cosmos": cosmos,
        "field": field,
        "density": density,
        "seed": seed,
        "workers": workers,
    }
    settings = resolve_settings(config, given)
    if density is not None and not settings.field:
        raise UsageError("--density is that of a field: give --field, too")
    if n is not None and settings.field:
        raise UsageError("--n counts blends; how many sources a field has, --density says")
    if preview and out is None and write_catalog is not None:
        raise UsageError("--preview draws what is written to OUT: name it")
    if dump_config:
        print_settings(settings)
        return
    if write_catalog is None:
        out = required(out, "OUT", "simulate")
    with ConsoleReporter(quiet=quiet, verbose=verbose) as reporter:
        reporter.detail(f"settings: {settings}")
        from galsep.workflows.simulate import simulate as draw
        from galsep.workflows.simulate import write_population

        if write_catalog is not None:
            written = write_population(write_catalog, settings, overwrite=overwrite)
            reporter.info(f"wrote {written.sources} galaxies to {write_catalog}")
        if out is not None:
            result = draw(out, settings, preview=preview, overwrite=overwrite, reporter=reporter)
            what = (
                f"a field with {result.sources} sources"
                if settings.field
                else f"{result.blends} blends with {result.sources} sources"
            )
            reporter.info(f"wrote {what} to {result.folder} ({len(result.files)} files)")


def split_bands(text: str) -> tuple[str, ...]:
    """Split ``g,r,i`` into names of bands."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def resolve_settings(file: Path | None, given: Mapping[str, Any]) -> SimulateConfig:
    """Merge defaults, file and flags; in a field a source stands alone unless it is said."""
    options = dict(given)
    in_file = read_toml(file) if file is not None else {}
    if (options["field"] or in_file.get("field")) and "galaxies" not in in_file:
        options["galaxies"] = options["galaxies"] or "1"
    return resolve(SimulateConfig, file, options)


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(
        "simulate",
        cls=Command,
        options_metavar="OUT [OPTIONS]",
        short_help=SHORT_HELP,
        help=HELP,
        epilog=EPILOG,
    )(simulate)
