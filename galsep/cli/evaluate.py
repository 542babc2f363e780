"""``galsep evaluate``: judge the network beside SEP and photutils."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from galsep.cli.console import ConsoleReporter, emit, render
from galsep.cli.help import Command
from galsep.cli.options import (
    DEVICE_HELP,
    DEVICES,
    OUTPUT,
    WEIGHTS_HELP,
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
from galsep.config import EvaluateConfig
from galsep.settings import resolve

if TYPE_CHECKING:
    from rich.table import Table

    from galsep.workflows.evaluation_report import ReportTable

__all__ = ["add_to", "tables"]

SHORT_HELP = "Judge the network against truth, beside SEP and photutils"

HELP = """
Judge the network on a data set's test split, against truth and beside SEP at four settings and
photutils on the same images. Writes REPORT/metrics.json, figures and report.html, a page with all
of it, and prints the tables.
"""

EPILOG = """
Examples:
  galsep evaluate pairs --output report
  galsep evaluate pairs --output quick --limit 100 --no-baselines
  galsep evaluate pairs --output mine --weights run/weights.safetensors
"""

NETWORK = "galsep"
"""Name of the network among the methods."""

_setting = setting(EvaluateConfig)
_JUDGING = "What is judged"


def evaluate(
    dataset: Annotated[
        Path | None,
        typer.Argument(
            metavar="DATASET", help="Folder of galsep simulate or import", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None,
        option("-o", "--output", text="Folder of the report", metavar="REPORT", group=OUTPUT),
    ] = None,
    overwrite: OverwriteOption = False,
    weights: Annotated[
        str | None,
        _setting("weights", WEIGHTS_HELP, metavar="FILE", group=_JUDGING, default="packaged"),
    ] = None,
    limit: Annotated[
        int | None,
        _setting(
            "limit",
            "Judge as many test blends, validate on as many",
            metavar="N",
            group=_JUDGING,
            default="all",
        ),
    ] = None,
    no_psf: Annotated[
        bool,
        option(
            "--no-psf",
            text="Do not tell the network the PSF, as if each stamp came alone",
            group=_JUDGING,
        ),
    ] = False,
    no_baselines: Annotated[
        bool,
        option("--no-baselines", text="Leave SEP and photutils out", group=_JUDGING),
    ] = False,
    device: Annotated[
        str | None,
        _setting("device", DEVICE_HELP, metavar="NAME", group=_JUDGING, values=DEVICES),
    ] = None,
    workers: Annotated[
        int | None,
        _setting(
            "workers",
            "Processes for SEP and photutils",
            metavar="N",
            group=_JUDGING,
            default="one for each CPU core",
        ),
    ] = None,
    config: ConfigOption = None,
    dump_config: DumpOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    _debug: DebugOption = False,
) -> None:
    """Run the command; :data:`HELP` is its help."""
    given: dict[str, Any] = {
        "weights": weights,
        "limit": limit,
        "psf": False if no_psf else None,
        "baselines": False if no_baselines else None,
        "device": device,
        "workers": workers,
    }
    settings = resolve(EvaluateConfig, config, given)
    if dump_config:
        print_settings(settings)
        return
    dataset = required(dataset, "DATASET", "evaluate")
    output = required(output, "--output REPORT", "evaluate")
    with ConsoleReporter(quiet=quiet, verbose=verbose) as reporter:
        reporter.detail(f"settings: {settings}")
        from galsep.workflows.evaluate import evaluate as judge
        from galsep.workflows.evaluate import summary_rows

        result = judge(dataset, output, settings, overwrite=overwrite, reporter=reporter)
        emit(render(*tables(summary_rows(result.metrics), result.metrics)))
        reporter.info(f"wrote {', '.join(str(path) for path in result.files)}")


def tables(rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any]) -> "list[Table | str]":
    """Make the tables, two for each selection of sources and those of light; each fits 80 columns.

    Parameters
    ----------
    rows : sequence of mappings
        From :func:`galsep.workflows.evaluate.summary_rows`.
    metrics : mapping
        From ``metrics.json``.
    """
    from galsep.workflows.evaluate import FOUND_COLUMNS, QUALITY_COLUMNS
    from galsep.workflows.evaluation_report import figure_table, light_tables

    parts: list[Table | str] = [
        f"{metrics['n_blends']} test blends, {metrics['n_sources']} sources "
        f"({metrics['n_not_detectable']} not detectable), threshold {metrics['threshold']:.3g}",
        *_headline(rows, metrics),
    ]
    for selection, heading in (
        ("detectable", "Detectable sources"),
        ("all", f"All sources; share detectable {_figure(metrics['share_detectable'])}"),
    ):
        chosen = [row for row in rows if row["sources"] == selection]
        found, quality = (figure_table("", chosen, c) for c in (FOUND_COLUMNS, QUALITY_COLUMNS))
        parts += ["", heading, _drawn(found), "", _drawn(quality)]
    for table in light_tables(metrics):
        parts += ["", table.caption, _drawn(table)]
    return parts


def _headline(rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any]) -> Iterator[str]:
    """Say what the network makes of all sources, and what its scores and classes are worth."""
    network = metrics["methods"][NETWORK]
    row = next(row for row in rows if row["method"] == NETWORK and row["sources"] == "all")
    yield (
        f"{row['label']}: prec. {_figure(row['precision'])}, "
        f"recall {_figure(row['recall'])}, mask mAP.5 {_figure(row['map_mask50'])}; "
        f"share detectable {_figure(metrics['share_detectable'])}"
    )
    scores = network["reliability"]
    yield (
        f"calibration error (ECE) {_figure(scores['ece'])} in the catalogue, "
        f"{_figure(scores['ece_candidates'])} from score {metrics['candidate_threshold']:g} on"
    )
    classes = metrics["class_star"]
    for name in ("stars", "galaxies") if classes else ():
        figures = classes[name]
        yield (
            f"{name} at class_star {classes['threshold']:g}: "
            f"completeness {_figure(figures['completeness'])}, "
            f"purity {_figure(figures['purity'])} ({_figure(figures['purity_80'])} at 80 %)"
        )


def _drawn(given: "ReportTable") -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column(f"\n{given.first}", no_wrap=True)
    for heading in given.columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for label, cells in given.rows:
        table.add_row(label, *cells)
    return table


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(
        "evaluate",
        cls=Command,
        options_metavar="DATASET --output REPORT [OPTIONS]",
        short_help=SHORT_HELP,
        help=HELP,
        epilog=EPILOG,
    )(evaluate)
