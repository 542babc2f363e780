"""Progress, messages and data on their streams."""

import io
import os
import pty
import re
import subprocess
import sys

import pytest
from rich.table import Table

from galsep.cli import console
from galsep.cli.console import ConsoleReporter, duration, emit, one_line, render
from galsep.errors import OutputError


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves only when told."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def test_a_line_every_few_seconds_where_there_is_no_terminal(capsys, clock):
    with ConsoleReporter() as reporter:
        reporter.begin("drawing", 200)
        for _ in range(100):
            clock(0.2)
            reporter.advance(1, "loss 0.5")
        reporter.end()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"drawing: {n}/200 ({n // 2} %), 5/s, {left} left, loss 0.5"
        for n, left in ((25, "35 s"), (50, "30 s"), (75, "25 s"), (100, "20 s"))
    ]


def test_an_unknown_total_is_no_error(capsys, clock):
    reporter = ConsoleReporter()
    reporter.begin("reading", 0)
    clock(10)
    reporter.advance(3)
    assert capsys.readouterr().err == "reading: 3/0, 0.3/s\n"


def test_advancing_without_a_task_is_silent(capsys, clock):
    reporter = ConsoleReporter()
    clock(10)
    reporter.advance()
    reporter.end()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "hello\nwarning: mind this\n"),
        ({"quiet": True}, "warning: mind this\n"),
        ({"verbose": True}, "hello\nmore\nwarning: mind this\ndrawing: 4 in 2.0 s\n"),
    ],
)
def test_what_is_said(capsys, clock, options, said):
    with ConsoleReporter(**options) as reporter:
        reporter.begin("drawing", 4)
        reporter.info("hello")
        reporter.detail("more")
        reporter.warn("mind\n  this")
        clock(2)
        reporter.advance(4)
        reporter.end()
    captured = capsys.readouterr()
    assert captured.err == said
    assert captured.out == ""


def test_nothing_is_said_where_stderr_is_closed(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with ConsoleReporter(verbose=True) as reporter:
        reporter.begin("drawing", 4)
        reporter.warn("mind this")
        reporter.end()


BAR = """
from galsep.cli.console import ConsoleReporter
with ConsoleReporter() as reporter:
    reporter.begin("drawing", 4)
    reporter.advance(2, "loss 0.5")
    reporter.info("[a] file")
    reporter.advance(2)
    reporter.end()
"""


def on_a_terminal(arguments, stream, **environment):
    """What a Python program shows on a terminal that one of its streams is."""
    environment = {**os.environ, "TERM": "xterm-256color", **environment}
    main, terminal = pty.openpty()
    run = subprocess.Popen([sys.executable, *arguments], env=environment, **{stream: terminal})
    os.close(terminal)
    shown = b""
    while True:
        try:
            piece = os.read(main, 4096)
        except OSError:  # What Linux says when the other end is closed.
            break
        if not piece:
            break
        shown += piece
    os.close(main)
    assert run.wait() == 0
    return shown.decode()


COLORS = re.compile(r"\x1b\[[\d;]*3[1-8][\d;]*m")


@pytest.mark.parametrize("no_color", [False, True])
def test_a_bar_on_a_terminal(no_color, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    color = {"NO_COLOR": "1"} if no_color else {}
    text = on_a_terminal(["-c", BAR], "stderr", COLUMNS="100", **color)
    assert "drawing" in text
    assert "4/4" in text
    assert "[a] file" in text
    assert bool(COLORS.search(text)) != no_color


def test_a_bar_on_a_narrow_terminal():
    text = on_a_terminal(["-c", BAR], "stderr", COLUMNS="30")
    plain = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "\n", text)
    assert "4/4" in plain
    assert max(map(len, plain.splitlines())) <= 30


EPOCHS = """
from galsep.cli.console import ConsoleReporter
def figures(loss):
    return {
        "epoch": 1.0, "learning_rate": 0.001, "train_loss": loss, "validation_loss": loss + 1,
        "train_loss_mask": 0.25, "validation_loss_mask": 0.5, "validation_f1": 0.75,
    }
with ConsoleReporter() as reporter:
    for number in range(8):
        reporter.begin(f"epoch {number}", 4)
        reporter.advance(4)
        reporter.end()
        reporter.epoch(f"epoch {number}", "said", figures(float(number)))
    reporter.begin("the last", 4)
    reporter.end()
"""


@pytest.mark.parametrize(("columns", "shown"), [(40, 1), (80, 4), (200, 6)])
def test_the_last_epochs_that_fit_stay_in_a_table_above_the_bar(columns, shown):
    text = on_a_terminal(["-c", EPOCHS], "stderr", COLUMNS=str(columns))
    plain = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", text)
    assert plain.count("said") == 8
    last = plain[: plain.rindex("the last")].rpartition("train / validation")[2]
    head, *rows = [line.split() for line in last.splitlines() if line.strip()]
    numbers = range(8 - shown, 8)
    assert head == [word for n in numbers for word in ("epoch", str(n))]
    assert rows == [
        ["loss", *(f"{n}.000/{n + 1}.000" for n in numbers)],
        ["mask", *["0.250/0.500"] * shown],
        ["F1", *["0.75"] * shown],
        ["learning", "rate", *["0.001"] * shown],
    ]


def test_epochs_are_lines_elsewhere(capsys):
    with ConsoleReporter() as reporter:
        reporter.epoch("epoch 1", "loss 2", {"train_loss": 2.0})
    assert capsys.readouterr().err == "epoch 1: loss 2\n"


TABLE = """
from rich.table import Table
from rich.text import Text
from galsep.cli.console import emit, render
table = Table("name", "value")
table.add_row(Text("[σ]", "red"), "2")
emit(render(table, "words"))
"""


@pytest.mark.parametrize("no_color", [False, True])
def test_tables_on_a_terminal(no_color, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    color = {"NO_COLOR": "1"} if no_color else {}
    text = on_a_terminal(["-c", TABLE], "stdout", COLUMNS="40", **color)
    assert "[σ]" in text
    assert bool(COLORS.search(text)) != no_color


def test_help_on_a_narrow_terminal():
    text = on_a_terminal(["-m", "galsep", "train", "--help"], "stdout", COLUMNS="56")
    page, examples = text.replace("\r", "").split("Examples:")
    assert max(map(len, page.splitlines())) <= 56
    # As they are typed, however narrow it is.
    assert "  galsep train pairs --output run-paper --recipe paper --device cuda\n" in examples


def test_durations():
    assert [duration(s) for s in (4.24, 12, 59.6, 75, 3600, 8000)] == [
        "4.2 s",
        "12 s",
        "1 min 0 s",
        "1 min 15 s",
        "1 h 0 min",
        "2 h 13 min",
    ]


def test_one_line():
    assert one_line("a \n\n  b") == "a b"
    assert one_line(ValueError("x")) == "x"


def test_data_is_written_as_utf8(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    emit("name,σ\n\udcff.fits,1\n")
    assert raw.getvalue() == "name,σ\n".encode() + b"\xff.fits,1\n"


def test_a_closed_stdout_is_an_output_error(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(OutputError, match="standard output"):
        emit("data")


def test_tables_do_not_wrap_in_pipes(capsys):
    table = Table("name", "value")
    table.add_row("x" * 70, "y" * 70)
    text = render("heading", table)
    assert text.startswith("heading\n")
    assert f"{'x' * 70}" in text
    assert f"{'y' * 70}" in text
    assert "\x1b" not in text
    assert all(line == line.rstrip() for line in text.splitlines())
