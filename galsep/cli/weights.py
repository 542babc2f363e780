"""``galsep weights``: what a network is and how it was trained."""

import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from galsep.cli.console import emit
from galsep.cli.help import Command
from galsep.cli.options import DebugOption, option

__all__ = ["add_to", "describe"]

SHORT_HELP = "List the packaged networks, or describe a weights file"

HELP = """
List the networks that come with galsep, with architecture, SHA-256, score threshold, scores and
training; or describe one weights file.
"""

EPILOG = """
Examples:
  galsep weights
  galsep weights run/weights.safetensors
  galsep weights --json
"""

MOST_NUMBERS = 16
"""Lists of more are not written out."""

_FIRST = ("architecture", "threshold", "mask_level", "calibration", "validation")
_LAST = ("init", "training", "dataset", "format_version", "galsep_version", "torch_version")


def weights(
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE",
            help="A safetensors file of galsep train, or a packaged name [default: all packaged]",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, option("--json", text="Print everything that is stored, as JSON")
    ] = False,
    _debug: DebugOption = False,
) -> None:
    """Run the command; :data:`HELP` is its help."""
    from galsep.model.weights import find_weights, list_weights, read_info, sha256

    chosen = {file: find_weights(file)} if file else list_weights()
    entries = {
        name: {"file": path.name, "sha256": sha256_of, "bytes": path.stat().st_size, **info}
        for name, path in chosen.items()
        for info in [read_info(path)]
        for sha256_of in [sha256(path)]
    }
    if as_json:
        emit(json.dumps(entries, indent=1, ensure_ascii=False) + "\n")
        return
    emit("\n".join(describe(name, entry) for name, entry in entries.items()))


def describe(name: str, entry: Mapping[str, Any]) -> str:
    """Describe one network in lines of a name and a value, wrapped at 80 columns."""
    rows = {
        "file": f"{Path(str(entry['file'])).name}, {entry['bytes'] / 1e6:.1f} MB",
        "SHA-256": str(entry["sha256"]),
    }
    others = [key for key in entry if key not in {"file", "sha256", "bytes", *_FIRST, *_LAST}]
    for key in (*_FIRST, *others, *_LAST):
        if key in entry:
            rows[key] = _as_text(entry[key])
    width = max(map(len, rows)) + 2
    lines = [name]
    for key, text in rows.items():
        lines += textwrap.wrap(
            text,
            80,
            initial_indent=f"  {key:{width}}",
            subsequent_indent=" " * (2 + width),
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "".join(f"{line}\n" for line in lines)


def _as_text(value: Any) -> str:
    """Write a stored value on one line; nested settings as ``name value`` pairs."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {text}" for key, text in _flatten(value) if text)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        if (count := _numbers_in(value)) > MOST_NUMBERS:
            return f"[{count} numbers]"
        if any(isinstance(item, Mapping) for item in value):
            return f"[{'; '.join(_as_text(item) for item in value)}]"
        return f"[{','.join(_as_text(item) for item in value)}]"
    return str(value)


def _numbers_in(value: Any) -> int:
    """Count the numbers of a list and of the lists in it."""
    if isinstance(value, list):
        return sum(map(_numbers_in, value))
    return isinstance(value, int | float)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _as_text(value)


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(
        "weights",
        cls=Command,
        options_metavar="[FILE] [OPTIONS]",
        short_help=SHORT_HELP,
        help=HELP,
        epilog=EPILOG,
    )(weights)
