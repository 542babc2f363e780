"""Names of inputs on the command line: files, ``@list.txt`` and ``-``."""

import sys
from collections.abc import Sequence
from pathlib import Path

from galsep.errors import UsageError

__all__ = ["input_paths"]

STDIN = "-"
LIST = "@"
COMMENT = "#"

LARGEST_LIST = 2**26
"""Bytes of a list of images; one that is larger is not read on."""


def input_paths(arguments: Sequence[str]) -> list[Path]:
    """Turn arguments into paths; ``@FILE`` and ``-`` (stdin) stand for lists of names.

    A list has one name a line, relative to the current folder; blank lines and lines that begin
    with ``#`` are ignored.

    Raises
    ------
    UsageError
        When a list cannot be read or names nothing.
    """
    paths: list[Path] = []
    for argument in arguments:
        if argument == STDIN:
            paths += _names("standard input", _read_stdin())
        elif argument.startswith(LIST):
            paths += _names(argument, _read_list(argument.removeprefix(LIST)))
        else:
            paths.append(Path(argument))
    return paths


def _read_list(file: str) -> bytes:
    try:
        with Path(file).open("rb") as stream:
            return stream.read(LARGEST_LIST + 1)
    except OSError as error:
        raise UsageError(
            f"{LIST}{file}: cannot read the list of images ({error.strerror}); a file whose own "
            f"name begins with {LIST} is given as ./{LIST}{file}"
        ) from error


def _read_stdin() -> bytes:
    try:
        if sys.stdin is None:
            raise OSError("it is closed")
        return sys.stdin.buffer.read(LARGEST_LIST + 1)
    except (OSError, ValueError) as error:
        raise UsageError(f"standard input: cannot read the list of images ({error})") from error


def _names(origin: str, content: bytes) -> list[Path]:
    if b"\0" in content:
        raise UsageError(f"{origin}: not a list of images, which is text with one name a line")
    if len(content) > LARGEST_LIST:
        raise UsageError(f"{origin}: the list of images is too long; give it in several calls")
    # Names that are no UTF-8 stay what they are.
    lines = content.decode("utf-8", "surrogateescape").removeprefix("\ufeff").splitlines()
    names = [line.strip() for line in lines]
    paths = [Path(name) for name in names if name and not name.startswith(COMMENT)]
    if not paths:
        raise UsageError(f"{origin}: the list of images is empty; write one name a line")
    return paths
