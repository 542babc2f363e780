"""Outputs that several calls are asked for are made by one of them at a time."""

import contextlib
import errno
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from galsep.errors import OutputError
from galsep.io.atomic import PARTIAL, make_folder

__all__ = ["LOCK", "alone_in", "claimed"]

LOCK = f".lock{PARTIAL}"
"""Begins the names of claims' files."""

NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
"""What file systems without locks answer."""


@contextlib.contextmanager
def claimed(target: Path, waiting: Callable[[], object] | None = None) -> Iterator[bool]:
    """Keep other processes from making an output for the time of a block.

    The claim is a lock on an empty hidden file beside ``target``, gone after the block; a process
    that ends, however it does, loses its claim. Where the system has no such locks (Windows, some
    file systems of clusters), nothing is kept from anyone.

    Parameters
    ----------
    target : Path
        The same for all who would make the output; it need not exist.
    waiting : callable, optional
        Called where another process has it, which then is waited for; without it, it is not.

    Yields
    ------
    bool
        False where another process has it and is not waited for.

    Raises
    ------
    OutputError
        When the operating system refuses.
    """
    if importlib.util.find_spec("fcntl") is None:
        yield True
        return
    # Tidied up like any partial file where a process is killed.
    path = target.with_name(f"{LOCK}{target.name}")
    try:
        lock = _lock(path, wait=False)
        if lock is None and waiting is not None:
            waiting()
            lock = _lock(path, wait=True)
    except OSError as error:
        raise OutputError(f"{target}: cannot write ({error.strerror or error})") from error
    try:
        yield lock is not None
    finally:
        if lock is not None:
            # Before the lock is given up: who waits for it then sees that the file is another one.
            path.unlink(missing_ok=True)
            os.close(lock)


@contextlib.contextmanager
def alone_in(folder: Path, name: str, other: str) -> Iterator[None]:
    """Make an output folder and keep others out of it for the time of a block.

    Parameters
    ----------
    folder : Path
    name : str
        Of the claim, the same for all who are to be kept out; of no output.
    other : str
        What has the folder where this call does not get it, for messages.

    Raises
    ------
    OutputError
        When another process has the claim, or the operating system refuses.
    """
    make_folder(folder)
    with claimed(folder / name) as ours:
        if not ours:
            raise OutputError(f"{folder}: another {other} is at work in it")
        yield


def _lock(path: Path, *, wait: bool) -> int | None:
    """Descriptor of a file that is locked and lies at its path; None if another has the lock."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            locked = _flock(descriptor, wait=wait)
            there = locked and os.fstat(descriptor).st_nlink > 0
        except BaseException:
            os.close(descriptor)
            raise
        if there:
            return descriptor
        os.close(descriptor)
        if not locked:
            return None


def _flock(descriptor: int, *, wait: bool) -> bool:
    """Lock an open file; False if another process has it locked."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True
