"""Write what the documentation takes from the code: the command reference and the tables.

``docs/reference.md`` is what ``--help`` says; the blocks of ``docs/formats.md`` between
``<!-- NAME -->`` and ``<!-- end -->`` are the registries of columns and flags.

    python docs/generate_reference.py [--check]
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.main import get_command

from galsep.cli.main import app
from galsep.flags import Flag
from galsep.io.catalog import FLUX, MAGNITUDE_COLUMNS, CatalogColumn, catalog_columns

DOCS = Path(__file__).resolve().parent
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
    return {DOCS / "reference.md": reference(), formats: text}


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
