"""``galsep train``: train the network on a data set."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from galsep.cli.console import ConsoleReporter, duration, emit, render
from galsep.cli.help import Command
from galsep.cli.options import (
    DEVICE_HELP,
    DEVICES,
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
from galsep.config import RECIPES, TrainConfig
from galsep.settings import read_toml, resolve

if TYPE_CHECKING:
    from rich.table import Table

    from galsep.workflows.rehearse import Rehearsal

__all__ = ["add_to"]

SHORT_HELP = "Train the networks on a data set"

HELP = """
Train Mask R-CNN on a data set of galsep simulate or galsep import, then the separation network on
what it finds, then, with --joint-epochs, both together.
After each epoch RUN holds usable weights (weights.safetensors), those of the best F1 so far
(best.safetensors), the losses (metrics.csv, losses.png) and what --resume needs: however a run
ends, it can go on. The score threshold is chosen on the validation split.
"""

EPILOG = """
Examples:
  galsep train pairs --output run
  galsep train pairs --output run --resume
  galsep train pairs crowded --output run
  galsep train pairs --dry-run
  galsep train pairs --output run-2 --init run/weights.safetensors --epochs 0
  galsep train my-set -o fitted --init compact --epochs 0 --separation-epochs 0
  galsep train pairs --output run-paper --recipe paper --device cuda
  torchrun --nproc-per-node 4 -m galsep train pairs --output run-4
  galsep train --recipe paper --dump-config > paper.toml

Learning-rate stages, optimiser, augmentation and more are settings for the file
of --config; --dump-config prints them all.
"""

_setting = setting(TrainConfig)
_TRAINING = "Training"


def _by_recipe(field: str, text: str, metavar: str) -> Any:
    """Describe an option whose default depends on the recipe."""
    default = f"{getattr(TrainConfig(), field)}; recipe paper: {RECIPES['paper'][field]}"
    return _setting(field, text, metavar=metavar, group=_TRAINING, default=default)


def train(
    datasets: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="DATASET",
            help="Folder of galsep simulate or import; several of one survey are joined",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        option("-o", "--output", text="Folder of the run", metavar="RUN", group=OUTPUT),
    ] = None,
    resume: Annotated[
        bool,
        option("--resume", text="Go on where RUN stopped, with its own settings", group=OUTPUT),
    ] = False,
    overwrite: OverwriteOption = False,
    tensorboard: Annotated[
        bool,
        option(
            "--tensorboard",
            text="Also write curves and pictures for TensorBoard, in RUN/tensorboard",
            group=OUTPUT,
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        option(
            "--dry-run",
            text="Write nothing; try ten steps and print parameters, memory, speed and the time "
            "of the run",
            group=OUTPUT,
        ),
    ] = False,
    recipe: Annotated[
        str | None,
        _setting(
            "recipe",
            "compact (3 million parameters, a CPU will do) or paper (Kamath's ResNet-50)",
            metavar="NAME",
            group=_TRAINING,
            values=tuple(RECIPES),
        ),
    ] = None,
    init: Annotated[
        str | None,
        _by_recipe(
            "init", "Starting weights: random, coco, a name or a file", "random|coco|NAME|FILE"
        ),
    ] = None,
    epochs: Annotated[
        int | None, _by_recipe("epochs", "Epochs of Mask R-CNN; 0 leaves it as --init has it", "N")
    ] = None,
    separation_epochs: Annotated[
        int | None,
        _setting(
            "separation_epochs",
            "Epochs of the separation network, which follow; with no epochs at all, scores, fluxes "
            "and classes alone are corrected on the data set",
            metavar="N",
            group=_TRAINING,
        ),
    ] = None,
    joint_epochs: Annotated[
        int | None,
        _setting(
            "joint_epochs",
            "Epochs of both networks together, which end the training",
            metavar="N",
            group=_TRAINING,
        ),
    ] = None,
    epoch_size: Annotated[int | None, _by_recipe("epoch_size", "Stamps in an epoch", "N")] = None,
    batch_size: Annotated[int | None, _by_recipe("batch_size", "Stamps in a step", "N")] = None,
    seed: Annotated[int | None, _setting("seed", "Seed", metavar="N", group=_TRAINING)] = None,
    device: Annotated[
        str | None,
        _setting("device", DEVICE_HELP, metavar="NAME", group=_TRAINING, values=DEVICES),
    ] = None,
    patience: Annotated[
        int | None,
        _setting(
            "patience",
            "Stop after N epochs without a better F1; 0: never",
            metavar="N",
            group=_TRAINING,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        _setting(
            "threads", "CPU threads", metavar="N", group=_TRAINING, default="PyTorch's choice"
        ),
    ] = None,
    workers: Annotated[
        int | None,
        _setting(
            "workers",
            "Processes that make batches ahead; 0: the one that trains makes them",
            metavar="N",
            group=_TRAINING,
            default="0; with CUDA on Linux, all cores but one, at most 8",
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
        "recipe": recipe,
        "init": init,
        "epochs": epochs,
        "separation_epochs": separation_epochs,
        "joint_epochs": joint_epochs,
        "epoch_size": epoch_size,
        "batch_size": batch_size,
        "seed": seed,
        "device": device,
        "patience": patience,
        "tensorboard": tensorboard or None,
        "threads": threads,
        "workers": workers,
    }
    settings = resolve_settings(output if resume else None, config, given)
    if dump_config:
        print_settings(settings)
        return
    datasets = required(datasets, "DATASET", "train")
    if dry_run:
        _rehearse(datasets, settings, quiet=quiet, verbose=verbose)
        return
    output = required(output, "--output RUN", "train")
    # Of several processes, the first one speaks.
    quiet = quiet or os.environ.get("RANK", "0") != "0"
    with ConsoleReporter(quiet=quiet, verbose=verbose) as reporter:
        reporter.detail(f"settings: {settings}")
        from galsep.workflows.train import train as run

        result = run(
            datasets, output, settings, resume=resume, overwrite=overwrite, reporter=reporter
        )
        reporter.info(
            f"wrote {result.weights}; epochs: {len(result.history)} of Mask R-CNN, "
            f"{len(result.separation_history)} of the separation network, "
            f"{len(result.joint_history)} of both"
        )


def _rehearse(datasets: list[Path], settings: TrainConfig, *, quiet: bool, verbose: bool) -> None:
    with ConsoleReporter(quiet=quiet, verbose=verbose) as reporter:
        from galsep.workflows.rehearse import rehearse

        rehearsal = rehearse(datasets, settings, reporter=reporter)
    if rehearsal is not None:
        emit(render(_costs(rehearsal)))


def _costs(rehearsal: "Rehearsal") -> "Table":
    """What a run takes, one row a network and one for all."""
    from rich.table import Table

    memory = rehearsal.memory
    peak = "unknown" if memory is None else f"{memory / 2**30:.1f} GiB"
    table = Table(
        box=None,
        pad_edge=False,
        title=f"on {rehearsal.device}, peak memory {peak}; calibration comes on top",
        title_justify="left",
    )
    for name in ("network", "parameters", "images/s", "epochs", "time"):
        table.add_column(name, justify="left" if name == "network" else "right")
    for stage in rehearsal.stages:
        table.add_row(
            stage.name,
            f"{stage.parameters:,}",
            f"{stage.images_per_second:.1f}",
            str(stage.epochs),
            duration(stage.seconds),
        )
    table.add_row("all", "", "", "", duration(rehearsal.seconds))
    return table


def resolve_settings(run: Path | None, file: Path | None, given: Mapping[str, Any]) -> TrainConfig:
    """Merge defaults, the settings of a run that is resumed, file and flags.

    Parameters
    ----------
    run : Path or None
        Folder of the run that is resumed.
    file : Path or None
        Given with ``--config``.
    given : mapping
        Flags by setting; ``None`` means not given. They come before the file, and this before the
        run.

    Raises
    ------
    UsageError
        For an unreadable file, an unknown key or a bad value.
    """
    values: dict[str, Any] = {}
    if run is not None and (run / "config.toml").exists():
        values |= read_toml(run / "config.toml")
    if file is not None:
        values |= read_toml(file)
    values |= {name: value for name, value in given.items() if value is not None}
    return resolve(TrainConfig, None, values)


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(
        "train",
        cls=Command,
        options_metavar="DATASET... --output RUN [OPTIONS]",
        short_help=SHORT_HELP,
        help=HELP,
        epilog=EPILOG,
    )(train)
