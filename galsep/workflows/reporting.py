"""How a workflow tells its caller what it is doing, without knowing about terminals."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

__all__ = ["Record", "Recorder", "Reporter"]


class Reporter:
    """Hears of progress and warnings; this one stays silent. The command line has its own."""

    def begin(self, label: str, total: int) -> None:
        """A task of ``total`` steps begins."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """So many steps are done; ``note`` is a short figure to show beside the bar."""

    def end(self) -> None:
        """The task is over."""

    def epoch(self, name: str, headline: str, figures: Mapping[str, float]) -> None:
        """An epoch of training is over.

        Parameters
        ----------
        name : str
            Of the network, where it is not Mask R-CNN, and number of the epoch.
        headline : str
            The figures that are worth a line.
        figures : mapping of str to float
            All of them.
        """

    def info(self, message: str) -> None:
        """Something worth a line."""

    def warn(self, message: str) -> None:
        """Something the user should know."""


class Recorder(Reporter):
    """Keeps what it is told, and what warnings the libraries give, for a reporter elsewhere.

    Use it as a context manager.
    """

    def __init__(self) -> None:
        self._messages: list[tuple[str, str]] = []
        self._catcher = warnings.catch_warnings(record=True)
        self._warnings: list[warnings.WarningMessage] = []

    def __enter__(self) -> Self:
        self._warnings = self._catcher.__enter__() or []
        return self

    def __exit__(self, *error: Any) -> None:
        self._catcher.__exit__(*error)

    def info(self, message: str) -> None:
        """Keep a message."""
        self._messages.append(("info", message))

    def warn(self, message: str) -> None:
        """Keep a warning."""
        self._messages.append(("warn", message))

    def record(self) -> "Record":
        """What was kept, fit to be sent to another process."""
        caught = [(str(w.message), w.category, w.filename, w.lineno) for w in self._warnings]
        return Record(tuple(self._messages), tuple(caught))


@dataclass(frozen=True, slots=True)
class Record:
    """What a :class:`Recorder` was told."""

    messages: tuple[tuple[str, str], ...] = ()
    warnings: tuple[tuple[str, type[Warning], str, int], ...] = ()

    def replay(self, reporter: Reporter, seen: dict[Any, Any]) -> None:
        """Tell it all; ``seen`` remembers the libraries' warnings, which are given once."""
        for text, category, file, line in self.warnings:
            warnings.warn_explicit(text, category, file, line, registry=seen)
        for kind, message in self.messages:
            getattr(reporter, kind)(message)
