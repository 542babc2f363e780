"""Interrupts that arrive as errors of another kind.

A signal that is heard while a library calls Python back raises its exception there. Some libraries
make another error of it: Python itself, before 3.12, while a class is made; NumPy, while a data
type is looked up, without a word of what it was made from.
"""

from typing import TypeVar

__all__ = ["hear", "interrupt_behind"]

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
