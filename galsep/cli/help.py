"""Help pages in plain text: options in groups, examples as they are typed, 80 columns.

Typer's own panels cost as much time as the rest of ``galsep --help``.
"""

import inspect
import shutil
from collections.abc import Iterable
from typing import Any

from typer.core import TyperCommand, TyperGroup

__all__ = ["HELP_TEXT", "Command", "Group", "option_groups"]

HELP_TEXT = "Show this page and stop"

GENERAL = "General"
"""Heading of the options that name no group of their own (typer's ``rich_help_panel``)."""

NAMES_WIDTH = 22
"""Columns for an option's names; longer ones have a line of their own."""

NARROW, NARROWEST = 60, 30
"""In a terminal of fewer columns each name has a line of its own; still narrower ones wrap."""


class Command(TyperCommand):
    """A command whose help lists its options by group.

    ``options_metavar`` is what follows the command's name in the usage line.
    """

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the whole page."""
        _write_top(self, ctx, formatter)
        arguments = [p for p in self.params if p.param_type_name == "argument"]
        if arguments:
            with formatter.section("Arguments"):
                rows = [((p.metavar or p.name).ljust(NAMES_WIDTH), _help(p)) for p in arguments]
                _write_rows(rows, formatter)
        _write_options(self, ctx, formatter)
        _write_bottom(self, formatter)


class Group(TyperGroup):
    """The top command: commands first, in the order they were added."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the whole page."""
        _write_top(self, ctx, formatter)
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, command.short_help or "") for name, command in self.commands.items()]
            )
        _write_options(self, ctx, formatter)
        _write_bottom(self, formatter)


def _write_top(command: Any, ctx: Any, formatter: Any) -> None:
    if ctx.terminal_width is None:
        # The parser's own least width is 50.
        columns = shutil.get_terminal_size().columns - 2
        formatter.width = max(min(formatter.width, columns), NARROWEST)
    formatter.write_usage(ctx.command_path, command.options_metavar)
    formatter.write_paragraph()
    with formatter.indentation():
        formatter.write_text(inspect.cleandoc(command.help or ""))


def option_groups(command: Any, ctx: Any) -> dict[str, list[tuple[str, str]]]:
    """Names and help of a command's options, by the heading they stand under."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for param in command.get_params(ctx):
        if param.param_type_name != "option" or param.hidden:
            continue
        name = getattr(param, "rich_help_panel", None)
        name = name if isinstance(name, str) else GENERAL
        # The parser's own --help comes with words of its own.
        text = HELP_TEXT if param.name == "help" else _help(param)
        # Padded, so that the texts of all groups begin in one column.
        groups.setdefault(name, []).append((_names(param).ljust(NAMES_WIDTH), text))
    return groups


def _write_options(command: Any, ctx: Any, formatter: Any) -> None:
    for name, rows in option_groups(command, ctx).items():
        with formatter.section(name):
            _write_rows(rows, formatter)


def _write_rows(rows: list[tuple[str, str]], formatter: Any) -> None:
    if formatter.width >= NARROW:
        formatter.write_dl(rows, col_max=NAMES_WIDTH)
    else:
        formatter.write_dl([(names.rstrip(), text) for names, text in rows], col_max=4)


def _write_bottom(command: Any, formatter: Any) -> None:
    if command.epilog:
        formatter.write_paragraph()
        for line in _lines(command.epilog):
            # As it stands: a wrapped example could not be copied.
            formatter.write(f"{line}\n")


def _lines(text: str) -> Iterable[str]:
    return inspect.cleandoc(text).splitlines()


def _names(param: Any) -> str:
    names = [name for name in (*param.opts, *param.secondary_opts) if name.strip()]
    # Short names first, as everywhere.
    text = ", ".join(sorted(names, key=lambda name: name.startswith("--")))
    return text if param.is_flag else f"{text} {param.metavar or ''}".rstrip()


def _help(param: Any) -> str:
    return inspect.cleandoc(param.help or "")
