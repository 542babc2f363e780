"""``galsep weights``: what a network is and how it was trained."""

import json
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

_FIRST = ("architecture", "threshold", "calibration", "scores")
_LAST = ("init", "training", "dataset")
_BESIDE = ("format_version", "galsep_version", "torch_version")


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
    """Describe one network in lines of a name and a value."""
    size = entry["bytes"] / 1e6
    rows = [("file", f"{Path(str(entry['file'])).name}, {size:.1f} MB")]
    rows.append(("SHA-256", str(entry["sha256"])))
    shown = {"file", "sha256", "bytes"}
    others = [key for key in entry if key not in {*shown, *_FIRST, *_LAST, *_BESIDE}]
    for key in (*_FIRST, *others, *_LAST, *_BESIDE):
        if key in entry:
            rows += _flatten(key, entry[key])
    width = max(len(label) for label, _ in rows)
    return "".join([f"{name}\n", *(f"  {label:{width}}  {text}\n" for label, text in rows)])


def _flatten(label: str, value: Any) -> Iterator[tuple[str, str]]:
    """Give nested settings a line each."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flatten(f"{label}.{key}", inner)
    else:
        yield label, _as_text(value)


def _as_text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return f"[{', '.join(_as_text(item) for item in value)}]"
    return str(value)


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
