"""Write what the documentation takes from the code: the command reference and the tables.

``docs/reference.md`` and the manual page ``docs/galsep.1`` are what ``--help`` says; the blocks of
``docs/formats.md`` between ``<!-- NAME -->`` and ``<!-- end -->`` are the registries of columns and
flags.

    python docs/generate_reference.py [--check]
"""

import argparse
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.main import get_command

import galsep
from galsep.cli.help import option_groups
from galsep.cli.main import app
from galsep.flags import Flag
from galsep.io.catalog import FLUX, MAGNITUDE_COLUMNS, CatalogColumn, catalog_columns

DOCS = Path(__file__).resolve().parent
COLUMNS = 80
BLOCK = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> int:
    """Write the files, or with ``--check`` say which are out of date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if needed")
    check = parser.parse_args().check
    stale = []
    for path, text in generated().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path)
            if not check:
                path.write_text(text, encoding="utf-8")
    for path in stale:
        print(f"{path.name}: {'out of date' if check else 'written'}")
    return 1 if check and stale else 0


def generated() -> dict[Path, str]:
    """Text of every generated file."""
    formats = DOCS / "formats.md"
    blocks = {"columns": column_table(), "flags": flag_table()}
    text = BLOCK.sub(
        lambda found: f"{found[1]}\n{blocks[found[2]]}\n{found[3]}",
        formats.read_text(encoding="utf-8"),
    )
    return {DOCS / "reference.md": reference(), DOCS / "galsep.1": man_page(), formats: text}


def reference() -> str:
    """Help pages of all commands, as Markdown."""
    parts = [
        "# Commands\n\n",
        "What `--help` says, written by `docs/generate_reference.py`. Every command takes its\n"
        "settings from, in rising order: the defaults, the file of `--config`, the flags.\n",
    ]
    for name, page in help_pages():
        parts.append(f"\n## {name}\n\n```text\n{page}\n```\n")
    return "".join(parts)


def help_pages() -> Iterator[tuple[str, str]]:
    """Name and help page of galsep and each of its commands, 80 columns wide."""
    top: Any = get_command(app)
    context = typer.Context(top, info_name="galsep", terminal_width=78)
    yield "galsep", top.get_help(context).strip()
    for name, command in top.commands.items():
        inner = typer.Context(command, info_name=name, parent=context, terminal_width=78)
        yield f"galsep {name}", command.get_help(inner).strip()


def man_page() -> str:
    """All commands as a manual page, in the macros of man(7)."""
    top: Any = get_command(app)
    context = typer.Context(top, info_name="galsep")
    summary = top.help[0].lower() + top.help[1:].rstrip(".")
    parts = [
        f'.TH GALSEP 1 "" "galsep {galsep.__version__}" "User Commands"\n',
        f".SH NAME\ngalsep \\- {roff(summary)}\n.SH SYNOPSIS\n",
        *(
            f".B galsep {name}\n{roff(c.options_metavar)}\n.br\n"
            for name, c in top.commands.items()
        ),
        f".SH DESCRIPTION\n{roff(top.help)}\n",
        *(item(f"galsep {name}", c.short_help) for name, c in top.commands.items()),
        f"{man_text(top.epilog)}.SH OPTIONS\n{man_options(top, context)}",
    ]
    for name, command in top.commands.items():
        inner = typer.Context(command, info_name=name, parent=context)
        parts += [
            f".SH GALSEP {name.upper()}\n{synopsis(name, command)}.PP\n",
            f"{roff(inspect.cleandoc(command.help))}\n",
            *(item(p.metavar, p.help) for p in command.params if p.param_type_name == "argument"),
            man_options(command, inner),
            man_text(command.epilog),
        ]
    return "".join(parts)


def synopsis(name: str, command: Any) -> str:
    """How a command is called."""
    return f".B galsep {name}\n{roff(command.options_metavar)}\n"


def man_options(command: Any, context: typer.Context) -> str:
    """Options of a command, by group."""
    return "".join(
        f".SS {roff(group)}\n" + "".join(item(names.strip(), text) for names, text in rows)
        for group, rows in option_groups(command, context).items()
    )


def item(names: str, text: str) -> str:
    """A tagged paragraph."""
    return f".TP\n.B {roff(names)}\n{roff(text)}\n"


def man_text(epilog: str | None) -> str:
    """Examples, line by line as they stand, and remarks."""
    if not epilog:
        return ""
    parts = []
    for paragraph in inspect.cleandoc(epilog).split("\n\n"):
        title, _, body = paragraph.partition(":\n")
        if body:
            lines = inspect.cleandoc(f"\n{body}")
            indent = min(7, COLUMNS - max(map(len, lines.splitlines())))
            parts.append(f".SS {roff(title)}\n.nf\n.in {indent}n\n{roff(lines)}\n.in\n.fi\n")
        else:
            parts.append(f".PP\n{roff(paragraph)}\n")
    return "".join(parts)


def roff(text: str) -> str:
    """Text without what man(7) would take for its own."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", escaped, flags=re.MULTILINE)


def column_table() -> str:
    """Columns of the catalogue as a Markdown table."""
    rows = ["| column | type | unit | meaning |\n", "|---|---|---|---|\n"]
    rows += [column_row(column) for column in catalog_columns(zeropoint=True)]
    return "".join(rows)


def column_row(column: CatalogColumn) -> str:
    """One row of the table of columns."""
    unit = "BUNIT" if column.unit == FLUX else column.unit
    only = "; only with `--zeropoint`" if column in MAGNITUDE_COLUMNS else ""
    return f"| `{column.name}` | {column.dtype} | {unit} | {column.description}{only} |\n"


def flag_table() -> str:
    """Bits of the column ``flags`` as a Markdown table."""
    rows = ["| bit | name | meaning |\n", "|---|---|---|\n"]
    rows += [f"| {f.value} | `{str(f.name).lower()}` | {f.description} |\n" for f in Flag]
    return "".join(rows)


if __name__ == "__main__":
    sys.exit(main())
