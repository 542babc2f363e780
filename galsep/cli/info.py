"""``galsep info``: what galsep would read from a file."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from galsep.cli.console import ConsoleReporter, emit, one_line, say
from galsep.cli.help import Command
from galsep.cli.options import DebugOption, QuietOption, option, required

if TYPE_CHECKING:
    from galsep.io.listing import ListedImage
    from galsep.workflows.inspect import FileReport, ImageReport

__all__ = ["add_to", "as_data", "as_text"]

SHORT_HELP = "Show what galsep would read from FITS images"

HELP = """
Show what galsep deblend would read from FITS images: all their extensions, which of them are
images to deblend and which the noise and the mask of these, which bits hide pixels, position and
pixel scale, gain, background, noise and seeing. No network is loaded.
"""

EPILOG = """
Examples:
  galsep info image.fits
  galsep info night/*.fits.fz --json | jq '.[].images[].seeing_pixels'
"""


def info(
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="IMAGE...",
            help="FITS images (.fits, .fit, .fits.gz, .fits.fz)",
            show_default=False,
        ),
    ] = None,
    ext: Annotated[
        str,
        option(
            "--ext",
            text="Image extension: number, name or NAME,VERSION [default: all images]",
            metavar="EXT",
        ),
    ] = "",
    as_json: Annotated[bool, option("--json", text="Print everything as JSON")] = False,
    quiet: QuietOption = False,
    _debug: DebugOption = False,
) -> None:
    """Run the command; :data:`HELP` is its help."""
    paths = required(images, "IMAGE", "info")
    with ConsoleReporter(quiet=quiet) as reporter:
        from galsep.workflows.inspect import inspect_files

        reports = inspect_files(paths, ext, reporter=reporter)
        for report in reports:
            for message in (text for image in report.images for text in image.messages):
                reporter.warn(message)
    if as_json:
        emit(json.dumps([as_data(one) for one in reports], indent=1, ensure_ascii=False) + "\n")
    else:
        emit("\n".join(as_text(one) for one in reports if one.contents is not None))
    failed = [error for report in reports for error in report.errors]
    for error in failed:
        say(f"error: {one_line(error)}")
    if failed:
        raise typer.Exit(1)


def as_text(report: "FileReport") -> str:
    """Describe a file that was readable, in columns."""
    contents = report.contents
    if contents is None:
        return ""
    counts = [_counted(len(contents.images), "image"), _counted(contents.tables, "table")]
    lines = [f"{report.path}: {contents.form}, {', '.join(counts)}"]
    rows: list[tuple[str, ...]] = [("ext", "name", "version", "size", "type", "unit", "used as")]
    rows += [_row(image) for image in contents.images]
    lines += _columns(rows)
    for image in report.images:
        lines += [
            "",
            f"  image {image.ext} ({image.name})" if image.name else f"  image {image.ext}",
        ]
        lines += [f"  {line}" for line in _columns(_facts(image))]
    return "".join(f"{line}\n" for line in lines)


def as_data(report: "FileReport") -> dict[str, Any]:
    """Describe a file as data for JSON; what is not known is ``None``."""
    data: dict[str, Any] = {
        "file": str(report.path),
        "errors": [one_line(e) for e in report.errors],
    }
    if report.contents is None:
        return data
    return data | {
        "form": report.contents.form,
        "tables": report.contents.tables,
        "deblended": list(report.contents.chosen),
        "extensions": [_extension_data(image) for image in report.contents.images],
        "images": [_image_data(image) for image in report.images],
    }


def _extension_data(image: "ListedImage") -> dict[str, Any]:
    extension = image.extension
    return {
        "ext": extension.index,
        "name": extension.name,
        "version": extension.version,
        "axes": list(extension.axes or ()),
        "type": image.dtype,
        "compression": image.compression or None,
        "unit": image.unit or None,
        "use": image.use or None,
        "problem": extension.problem or None,
    }


def _image_data(image: "ImageReport") -> dict[str, Any]:
    noise, mask, sky = image.noise, image.mask, image.sky
    return {
        "ext": image.ext,
        "name": image.name,
        "width": image.shape[1],
        "height": image.shape[0],
        "unit": image.unit or None,
        "valid_pixels": image.valid_pixels,
        "noise": noise and {"plane": noise.plane, "kind": noise.kind, "scale": noise.scale},
        "mask": mask
        and {"plane": mask.plane, "hides": mask.hides, "hidden_pixels": mask.hidden_pixels},
        "wcs": sky and {"ra": sky.ra, "dec": sky.dec, "pixel_scale_arcsec": sky.pixel_scale},
        "gain": image.gain,
        "background": image.background,
        "rms": image.rms,
        "seeing_pixels": image.seeing,
        "seeing_arcsec": image.seeing_arcsec,
        "messages": [one_line(message) for message in image.messages],
    }


def _row(image: "ListedImage") -> tuple[str, ...]:
    extension = image.extension
    dtype = f"{image.dtype} {image.compression}".strip()
    use = f"damaged: {extension.problem}" if extension.problem else image.use
    return (
        str(extension.index),
        extension.name or "-",
        str(extension.version),
        "×".join(map(str, extension.axes or ())),
        dtype,
        image.unit or "-",
        use or "-",
    )


def _facts(image: "ImageReport") -> Iterator[tuple[str, str]]:
    """Name and value of what is known of an image; where nothing is, what that means."""
    height, width = image.shape
    unit = f" {image.unit}" if image.unit else ""
    valid = f"{image.valid_pixels} of {width * height}"
    yield "valid pixels", valid
    noise, mask, sky = image.noise, image.mask, image.sky
    if noise is None:
        yield "noise", "measured in the image: no noise plane"
    else:
        times = "" if noise.scale is None else f", times {noise.scale:.4g}"
        yield "noise", f"{noise.kind} in {noise.plane}{times}"
    if mask is None:
        yield "mask", "no mask plane"
    else:
        hidden = _counted(mask.hidden_pixels, "pixel")
        yield "mask", f"{mask.plane}, bits that hide: {mask.hides} ({hidden})"
    if sky is None:
        yield "WCS", "none: ra and dec will be NaN"
    else:
        yield "centre", f"ra {sky.ra:.6f} dec {sky.dec:+.6f} deg (ICRS)"
        yield "pixel scale", f"{sky.pixel_scale:.4g} arcsec"
    yield "gain", "unknown: sky noise only" if image.gain is None else f"{image.gain:.6g} e-/unit"
    for name, value in (("background", image.background), ("rms", image.rms)):
        yield name, "no valid pixel" if value is None else f"{value:.5g}{unit} (median)"
    if image.seeing is None:
        yield "seeing", "unknown: too few compact objects"
    else:
        arcsec = image.seeing_arcsec
        angle = "" if arcsec is None else f", {arcsec:.3g} arcsec"
        yield "seeing", f"{image.seeing:.3g} px{angle} (FWHM)"


def _columns(rows: Iterable[Sequence[str]]) -> list[str]:
    """Lay rows out in columns, indented."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append(f"  {'  '.join(cells)}".rstrip())
    return lines


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(
        "info",
        cls=Command,
        options_metavar="IMAGE... [OPTIONS]",
        short_help=SHORT_HELP,
        help=HELP,
        epilog=EPILOG,
    )(info)
