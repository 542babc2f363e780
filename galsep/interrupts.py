"""Interrupts that come at a bad time.

A signal that is heard while a library calls Python back raises its exception there. Some libraries
make another error of it: Python itself, before 3.12, while a class is made; NumPy, while a data
type is looked up, without a word of what it was made from. One that is heard while processes start
or end would leave some of them half-way.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TypeVar

__all__ = ["STOPS", "hear", "held", "interrupt_behind"]

STOPS = frozenset({signal.SIGINT, signal.SIGTERM})
"""Signals that ask a program to stop."""

Stop = TypeVar("Stop", KeyboardInterrupt, SystemExit)

_heard: list[KeyboardInterrupt | SystemExit] = []


def hear(stop: Stop) -> Stop:
    """Remember, in a signal's handler, the interrupt that is about to be raised, and return it."""
    _heard.append(stop)
    return stop


def interrupt_behind(error: BaseException) -> KeyboardInterrupt | SystemExit | None:
    """The interrupt that an error was made of, if any.

    It is the one that the error was raised from, or one that was heard and has been lost since;
    what goes wrong while an interrupt is answered is an error of its own.
    """
    cause = error.__cause__
    while cause is not None and not isinstance(cause, KeyboardInterrupt | SystemExit):
        cause = cause.__cause__
    if cause is not None or not _heard:
        return cause
    context = error.__context__
    while context is not None and context is not _heard[0]:
        context = context.__context__
    return _heard[0] if context is None else None


@contextlib.contextmanager
def held(*others: signal.Signals) -> Iterator[None]:
    """Let the signals that ask to stop wait, and those of others that this thread would take.

    To block a signal is not enough: a thread of a library takes it instead, and then its handler
    runs in the main thread all the same. Processes that start meanwhile have it blocked.
    """
    waiting: list[int] = []

    def wait(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 (a handler's signature)
        waiting.append(number)

    def let_go() -> None:
        for number in waiting:
            signal.raise_signal(number)

    with contextlib.ExitStack() as after:
        after.callback(let_go)
        if threading.current_thread() is threading.main_thread():
            for number in STOPS:
                handler = signal.getsignal(number)
                if callable(handler):
                    after.callback(signal.signal, number, handler)
                    signal.signal(number, wait)
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        after.callback(signal.pthread_sigmask, signal.SIG_SETMASK, blocked)
        signal.pthread_sigmask(signal.SIG_BLOCK, {*STOPS, *others})
        yield
