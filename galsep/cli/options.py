"""Options that commands share, and how an option names the default of the setting it changes."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from galsep.cli.console import emit
from galsep.config import DeblendConfig, EvaluateConfig, ImportConfig, SimulateConfig, TrainConfig
from galsep.errors import UsageError
from galsep.settings import dump_toml

__all__ = [
    "DEVICES",
    "DEVICE_HELP",
    "OUTPUT",
    "WEIGHTS_HELP",
    "ConfigOption",
    "DebugOption",
    "DumpOption",
    "OverwriteOption",
    "QuietOption",
    "VerboseOption",
    "option",
    "print_settings",
    "required",
    "setting",
]

Given = TypeVar("Given")

OUTPUT = "Output"
GENERAL = "General"


def option(
    *names: str,
    text: str,
    metavar: str | None = None,
    group: str | None = None,
    values: Sequence[str] = (),
) -> Any:
    """Describe an option without a default; flags have no ``metavar``.

    A shell completes the option with ``values``, or with file names where there are none.
    """

    def begun(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return typer.Option(
        *names,
        help=text,
        metavar=metavar,
        show_default=False,
        rich_help_panel=group,
        autocompletion=begun if values else None,
    )


def setting(config: type[Any]) -> Callable[..., Any]:
    """Make a function that describes the options of one configuration.

    That function takes the field's name, the help text and optionally ``metavar``, ``group``,
    other option names, what to call the default and the ``values`` to choose from; it adds the
    default to the text.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(config)}

    def describe(
        field: str,
        text: str,
        *names: str,
        metavar: str,
        group: str | None = None,
        default: str | None = None,
        values: Sequence[str] = (),
    ) -> Any:
        value = _as_text(defaults[field]) if default is None else default
        return option(
            *(names or (f"--{field.replace('_', '-')}",)),
            text=f"{text} [default: {value}]" if value else text,
            metavar=metavar,
            group=group,
            values=values,
        )

    return describe


def print_settings(
    config: SimulateConfig | TrainConfig | DeblendConfig | EvaluateConfig | ImportConfig,
) -> None:
    """Print resolved settings as TOML, fit for ``--config``."""
    emit(dump_toml(config))


def required(value: Given | None, name: str, command: str) -> Given:
    """Refuse to go on without an argument that only ``--dump-config`` can do without."""
    if not value:
        raise UsageError(f"{name} is missing (see galsep {command} --help)")
    return value


def _as_text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


DEVICES = ("auto", "cpu", "cuda", "mps")
DEVICE_HELP = "auto, cpu, cuda, cuda:N or mps; one asked for by name is never replaced"
WEIGHTS_HELP = "Network weights: a safetensors file of galsep train, or a packaged name"

ConfigOption = Annotated[
    Path | None,
    option(
        "--config", metavar="TOML", group=GENERAL, text="Take settings from this file; flags win"
    ),
]
DumpOption = Annotated[
    bool,
    option("--dump-config", group=GENERAL, text="Print the resolved settings as TOML and stop"),
]
OverwriteOption = Annotated[
    bool, option("--overwrite", group=OUTPUT, text="Replace outputs that exist")
]
QuietOption = Annotated[
    bool, option("-q", "--quiet", group=GENERAL, text="Say nothing but warnings and errors")
]
VerboseOption = Annotated[
    bool, option("-v", "--verbose", group=GENERAL, text="Say more: settings and times")
]
DebugOption = Annotated[
    bool, option("--debug", group=GENERAL, text="Show the traceback of an error")
]
