"""``galsep doctor``: whether this installation works."""

import dataclasses
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from galsep.cli.console import emit, one_line, say
from galsep.cli.help import Command
from galsep.cli.options import WEIGHTS_HELP, DebugOption, option

if TYPE_CHECKING:
    from galsep.workflows.doctor import Diagnosis

__all__ = ["add_to", "as_text"]

SHORT_HELP = "Check that this installation works"

HELP = """
Check that galsep can work here: versions of Python and of all that galsep needs, which must also
load; computing devices, CPU threads, fast bfloat16; and the network weights, which must load, too.
What is broken is named on stderr, with exit status 1. Add the output to a bug report.
"""

EPILOG = """
Examples:
  galsep doctor
  galsep doctor --json > installation.json
"""


def doctor(
    weights: Annotated[
        str,
        option(
            "--weights",
            text=f"{WEIGHTS_HELP} [default: the packaged default]",
            metavar="FILE",
        ),
    ] = "",
    as_json: Annotated[bool, option("--json", text="Print everything as JSON")] = False,
    _debug: DebugOption = False,
) -> None:
    """Run the command; :data:`HELP` is its help."""
    from galsep.workflows.doctor import diagnose

    found = diagnose(weights)
    if as_json:
        emit(json.dumps(dataclasses.asdict(found), indent=1, ensure_ascii=False) + "\n")
    else:
        emit(as_text(found))
    for problem in found.problems:
        say(f"error: {one_line(problem)}")
    if found.problems:
        raise typer.Exit(1)


def as_text(found: "Diagnosis") -> str:
    """Describe an installation in lines of a name and a value."""
    rows = list(_rows(found))
    width = max(len(name) for name, _ in rows) + 2
    return "".join(f"{name:{width}}{value}\n" for name, value in rows)


def _rows(found: "Diagnosis") -> Iterator[tuple[str, str]]:
    yield "galsep", found.galsep
    yield "Python", found.python
    yield "system", found.system
    for one in found.dependencies:
        version = one.version or "-"
        yield one.name, f"{version}  broken: {one_line(one.problem)}" if one.problem else version
    if found.compute is not None:
        for name, about in found.compute.devices.items():
            yield f"device {name}", about
        yield "--device auto", found.compute.auto
        yield "bfloat16", "fast" if found.compute.bfloat16 else "not faster than float32"
        yield "CPU threads", str(found.compute.threads)
    if found.weights is not None:
        problem = one_line(found.weights.problem)
        yield "weights", f"{found.weights.name}  {f'broken: {problem}' if problem else 'load'}"
        yield "SHA-256", found.weights.sha256 or "-"


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(
        "doctor",
        cls=Command,
        options_metavar="[OPTIONS]",
        short_help=SHORT_HELP,
        help=HELP,
        epilog=EPILOG,
    )(doctor)
