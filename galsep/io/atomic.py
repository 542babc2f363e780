"""Writing whole files: beside the target first, then renamed."""

import contextlib
import os
import uuid
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from galsep.errors import GalsepError, OutputError, OutputExistsError

if TYPE_CHECKING:
    from astropy.io import fits

__all__ = [
    "PARTIAL",
    "make_folder",
    "missing_files",
    "partial_files",
    "refuse_existing",
    "remove_partial",
    "whole_file",
    "write_fits",
    "write_text",
]

PARTIAL = ".part."
"""Stands before a target's name in those of files that are not to outlast the process."""

CHECKSUM_COMMENT = "HDU checksum"
DATASUM_COMMENT = "data unit checksum"


@contextlib.contextmanager
def whole_file(target: Path, until: contextlib.ExitStack | None = None) -> Iterator[Path]:
    """Give a temporary path beside ``target`` that becomes it when the block ends well.

    The temporary file keeps the target's ending, since writers choose a format by it; it is
    removed when the block raises.

    Parameters
    ----------
    target : Path
    until : ExitStack, optional
        The temporary file becomes the target only when this ends, well: so that of several files
        none is there before all are written.

    Raises
    ------
    OutputError
        When the operating system refuses.
    """
    if until is not None:
        temporary = until.enter_context(whole_file(target))
        with _told_of(target):
            yield temporary
        return
    temporary = target.with_name(f".{uuid.uuid4().hex[:8]}{PARTIAL}{target.name}")
    try:
        with _told_of(target):
            yield temporary
            # Some writers make private files; an output gets the permissions any new file has.
            temporary.chmod(0o666 & ~_umask())
            with temporary.open("rb+") as written:
                os.fsync(written.fileno())
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _told_of(target: Path) -> Iterator[None]:
    """Turn what the operating system refuses into an error of a file, but for another file's."""
    try:
        yield
    except GalsepError:
        raise
    except OSError as error:
        # NumPy only says how much of an array it has written.
        reason = error.strerror or f"{error}; is the disk full?"
        raise OutputError(f"{target}: cannot write ({reason})") from error


def partial_files(targets: Iterable[Path]) -> dict[Path, list[Path]]:
    """What processes at work, or killed ones, have beside targets; none where there is nothing."""
    names: dict[Path, set[str]] = {}
    for target in targets:
        names.setdefault(target.parent, set()).add(target.name)
    found: dict[Path, list[Path]] = {}
    for folder, wanted in names.items():
        for path in folder.glob(f".*{PARTIAL}*"):
            name = path.name.split(PARTIAL, 1)[1]
            if name in wanted:
                found.setdefault(folder / name, []).append(path)
    return found


def remove_partial(targets: Iterable[Path]) -> None:
    """Remove what processes that were killed left beside their targets."""
    for paths in partial_files(targets).values():
        for path in paths:
            path.unlink(missing_ok=True)


def missing_files(files: Iterable[Path]) -> list[Path]:
    """Files that are not there.

    One that is seen in a fresh listing of its folder is there: a network file system may remember
    for a minute that it was not.
    """
    absent = [file for file in files if not file.exists()]
    listed = {folder: set(os.listdir(folder)) for folder in {file.parent for file in absent}}
    return [file for file in absent if file.name not in listed[file.parent]]


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current


def write_text(target: Path, text: str, until: contextlib.ExitStack | None = None) -> None:
    """Write a text file whole; ``until`` is that of :func:`whole_file`."""
    with whole_file(target, until) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_fits(
    target: Path, hdus: "fits.HDUList", until: contextlib.ExitStack | None = None
) -> None:
    """Write a FITS file whole, with CHECKSUM and DATASUM in every HDU.

    The checksum cards carry no time, so that equal content gives equal bytes; gzipped tiles would
    carry one. ``until`` is that of :func:`whole_file`.
    """
    with whole_file(target, until) as temporary, warnings.catch_warnings():
        # astropy puts Ctrl-C off until the file is updated; it need not say so.
        warnings.filterwarnings("ignore", message="KeyboardInterrupt ignored")
        hdus.writeto(temporary, output_verify="exception")
        with _as_stored(temporary) as stored:
            for hdu in stored:
                hdu.add_datasum(when=DATASUM_COMMENT)
                hdu.add_checksum(when=CHECKSUM_COMMENT, override_datasum=True)


def _as_stored(file: Path) -> "fits.HDUList":
    """Open a file to change it; compressed images are the binary tables they are stored in."""
    from astropy.io import fits

    return fits.open(file, mode="update", memmap=False, disable_image_compression=True)


def make_folder(folder: Path) -> None:
    """Make an output folder and its parents.

    Raises
    ------
    OutputError
        When it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot make the output folder ({error.strerror or error})"
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{folder}: the output folder is not writable")


def refuse_existing(targets: list[Path], *, overwrite: bool) -> None:
    """Refuse to go on when an output exists.

    Raises
    ------
    OutputExistsError
        Unless ``overwrite`` is given.
    """
    for target in targets:
        if target.exists() and not overwrite:
            raise OutputExistsError(f"{target}: exists already; give --overwrite to replace it")
