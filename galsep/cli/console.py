"""What the terminal shows: progress and messages on stderr, data on stdout."""

import contextlib
import io
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from galsep.errors import OutputError
from galsep.workflows.reporting import Reporter

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress, TaskID
    from rich.table import Table

__all__ = ["ConsoleReporter", "abandon_stdout", "duration", "emit", "one_line", "render", "say"]

PLAIN_INTERVAL = 5.0
"""Seconds between two lines of progress where there is no terminal."""

EPOCHS_SHOWN = 6
"""Epochs of training in the table above the bar, at most."""

NAMES_WIDTH, EPOCH_WIDTH = 19, 15
"""Characters of that table's first column and of each epoch's."""

MIN_TABLE_WIDTH = 80
PIPE_TABLE_WIDTH = 160
"""Columns of a table that is not printed on a terminal: no line of it wraps."""


class ConsoleReporter(Reporter):
    """Tells of progress and messages on stderr.

    A progress bar on a terminal, a line every few seconds elsewhere. Use it as a context manager,
    so that a bar never outlives an error.

    Parameters
    ----------
    quiet : bool
        Say nothing but warnings.
    verbose : bool
        Also say what :meth:`detail` is told, and how long each task took.
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet = quiet
        self.verbose = verbose
        self._label = ""
        self._total = 0
        self._done = 0
        self._started = 0.0
        self._last_line = 0.0
        self._active = False
        self._epochs: list[tuple[str, Mapping[str, float]]] = []
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def begin(self, label: str, total: int) -> None:
        """Begin a task; one that was not ended counts as ended."""
        self._stop()
        self._label, self._total, self._done, self._active = label, total, 0, True
        self._started = self._last_line = time.monotonic()
        if not self.quiet and _is_terminal(sys.stderr):
            self._progress, self._task = _start_bar(label, total, self._epochs)

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count steps that are done and show them when it is time."""
        self._done += steps
        now = time.monotonic()
        if self._progress is not None and self._task is not None:
            self._progress.update(
                self._task, advance=steps, rate=_rate(self._done, now - self._started), note=note
            )
        elif not self.quiet and self._active and now - self._last_line >= PLAIN_INTERVAL:
            self._last_line = now
            say(self._plain_line(now, note))

    def end(self) -> None:
        """End the task; with ``verbose``, say how long it took."""
        if self._active:
            seconds = time.monotonic() - self._started
            self._stop()
            self.detail(f"{self._label}: {self._done} in {duration(seconds)}")

    def epoch(self, name: str, headline: str, figures: Mapping[str, float]) -> None:
        """Say an epoch's headline; on a terminal, a table above the bar shows the last epochs."""
        self.info(f"{name}: {headline}")
        if self._epochs and self._epochs[-1][1].keys() != figures.keys():
            self._epochs.clear()
        self._epochs.append((name, figures))
        del self._epochs[:-EPOCHS_SHOWN]

    def info(self, message: str) -> None:
        """Say something unless quiet."""
        if not self.quiet:
            self._line(message)

    def detail(self, message: str) -> None:
        """Say something if verbose."""
        if self.verbose and not self.quiet:
            self._line(message)

    def warn(self, message: str) -> None:
        """Warn, in one line, always."""
        self._line(f"warning: {one_line(message)}")

    def error(self, message: object) -> None:
        """Say, in one line and always, what went wrong with one of several inputs."""
        self._line(f"error: {one_line(message)}")

    def _line(self, text: str) -> None:
        if self._progress is None:
            say(text)
        else:
            # The bar moves down; without markup, since brackets are common in file names.
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _plain_line(self, now: float, note: str) -> str:
        elapsed = now - self._started
        parts = [f"{self._label}: {self._done}/{self._total}"]
        if self._total:
            parts[0] += f" ({100 * self._done // self._total} %)"
        parts.append(_rate(self._done, elapsed))
        if 0 < self._done < self._total:
            parts.append(f"{duration(elapsed * (self._total - self._done) / self._done)} left")
        return ", ".join([*parts, note] if note else parts)

    def _stop(self) -> None:
        self._active = False
        if self._progress is not None:
            self._progress.stop()
            self._progress = self._task = None


def emit(data: str) -> None:
    """Write data to stdout, in UTF-8, at once.

    Raises
    ------
    OutputError
        When stdout is closed or full.
    """
    try:
        if sys.stdout is None:
            raise OSError("it is closed")
        raw = getattr(sys.stdout, "buffer", None)
        if raw is None:
            sys.stdout.write(data)
        else:
            sys.stdout.flush()
            # File names that are no UTF-8 come out as they went in.
            raw.write(data.encode("utf-8", "surrogateescape"))
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        abandon_stdout()
        reason = (
            "it was closed before everything was written"
            if isinstance(error, BrokenPipeError)
            else getattr(error, "strerror", None) or str(error)
        )
        raise OutputError(f"standard output: cannot write ({reason})") from error


def abandon_stdout() -> None:
    """Send what is left in stdout's buffer nowhere, so that leaving cannot fail over it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def say(text: str) -> None:
    """Write a line to stderr; a closed stderr keeps nothing from being done."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(text, file=sys.stderr, flush=True)


def one_line(text: Any) -> str:
    """Put a message on one line."""
    return " ".join(part.strip() for part in str(text).splitlines() if part.strip())


def render(*parts: "RenderableType") -> str:
    """Turn rich tables and texts into text for stdout.

    As wide as the terminal where there is one and never wrapped elsewhere; with bold and colours
    on a terminal unless ``NO_COLOR`` is set.
    """
    from rich.console import Console

    terminal = _is_terminal(sys.stdout)
    width = max(MIN_TABLE_WIDTH, _terminal_width()) if terminal else PIPE_TABLE_WIDTH
    page = io.StringIO()
    console = Console(file=page, width=width, force_terminal=terminal, highlight=False)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str), markup=False)
    # Tables fill their last column with blanks.
    return "".join(f"{line.rstrip()}\n" for line in page.getvalue().splitlines())


def duration(seconds: float) -> str:
    """Write a time span in the two largest units that matter.

    Examples
    --------
    >>> duration(4.24), duration(75), duration(8000)
    ('4.2 s', '1 min 15 s', '2 h 13 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, whole = divmod(round(seconds), 60)
    hours, rest = divmod(minutes, 60)
    if hours:
        return f"{hours} h {rest} min"
    return f"{minutes} min {whole} s" if minutes else f"{whole} s"


def _epochs_table(epochs: Sequence[tuple[str, Mapping[str, float]]], width: int) -> "Table":
    """Losses, in training and in validation, of as many of the last epochs as fit, one a column."""
    from rich.table import Table

    shown = epochs[-max(1, (width - NAMES_WIDTH) // EPOCH_WIDTH) :]
    names = [name.removeprefix("train_") for name in shown[-1][1] if name.startswith("train_")]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("train / validation", no_wrap=True)
    for name, _ in shown:
        table.add_column(name, justify="right")
    for name in names:
        losses = [f"{one[f'train_{name}']:.3f}/{one[f'validation_{name}']:.3f}" for _, one in shown]
        table.add_row(name.removeprefix("loss_").replace("_", " "), *losses)
    for name, label in (("validation_f1", "F1"), ("learning_rate", "learning rate")):
        if name in shown[-1][1]:
            table.add_row(label, *(f"{one[name]:.3g}" for _, one in shown))
    return table


def _start_bar(
    label: str, total: int, epochs: Sequence[tuple[str, Mapping[str, float]]]
) -> "tuple[Progress, TaskID]":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    class Bar(Progress):
        """Progress below a table of epochs, where there are any."""

        def get_renderables(self) -> "Iterable[RenderableType]":
            if epochs:
                yield _epochs_table(epochs, console.width)
            yield self.make_tasks_table(self.tasks)

    console = Console(stderr=True)
    progress = Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        transient=True,
        expand=True,
    )
    progress.start()
    return progress, progress.add_task(label, total=total or None, rate="", note="")


def _rate(done: int, seconds: float) -> str:
    rate = done / seconds if seconds > 0 else 0.0
    return f"{rate:.0f}/s" if rate >= 10 else f"{rate:.2g}/s"


def _is_terminal(stream: Any) -> bool:
    return (
        stream is not None
        and not stream.closed
        and bool(stream.isatty())
        and os.environ.get("TERM", "") not in ("dumb", "unknown")
    )


def _terminal_width() -> int:
    import shutil

    return shutil.get_terminal_size().columns
