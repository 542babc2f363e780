"""Batches for training, made ahead by worker processes.

The workers are those of PyTorch's DataLoader, forked from the process that trains: they share the
memory that holds the data set, and touch no other device. What is drawn at random for an example
depends on its plan alone, so that their number changes no bit of a batch.
"""

import contextlib
import ctypes
import functools
import multiprocessing
import os
import signal
import sys
import threading
import types
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from multiprocessing import connection, synchronize
from typing import Protocol

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from galsep.errors import UsageError, WorkerError
from galsep.interrupts import STOPS, held
from galsep.model.examples import Example, ExampleMaker, Planned

__all__ = ["Prepared", "batches_ahead", "dead_workers_told", "worker_count"]

MOST_WORKERS = 8
"""Workers where nothing else is asked for."""

AHEAD = 2
"""Batches that each worker may be ahead."""

ENDING_S = 5.0
"""How long a worker that broke off may take to be gone."""

TELLING_S = 2.0
"""How long it may take to tell workers to end."""

_DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


class Prepared(Protocol):
    """A batch as an objective wants it, in memory; some of it is such a batch, too."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> "Prepared": ...


def worker_count(asked: int, device: torch.device) -> int:
    """How many workers make examples.

    Parameters
    ----------
    asked : int
        −1 leaves it to the device: none for a CPU, which training keeps busy; for CUDA one for each
        core but one that the processes of this machine have between them, at most eight each.
    device : torch.device

    Raises
    ------
    UsageError
        When some are asked for where processes cannot share the data set.
    """
    if sys.platform != "linux":
        if asked > 0:
            raise UsageError("workers share the data set on Linux alone; leave the setting out")
        return 0
    if asked >= 0:
        return asked
    if device.type != "cuda":
        return 0
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(0, min(MOST_WORKERS, cores - 1))


@contextlib.contextmanager
def batches_ahead(
    examples: ExampleMaker,
    batches: Sequence[Sequence[Planned]],
    prepare: Callable[[list[Example]], Prepared],
    workers: int,
    device: torch.device,
) -> Iterator[Iterator[Prepared]]:
    """Have batches made while others are worked on; at the end of the block all workers are gone.

    Parameters
    ----------
    examples : ExampleMaker
    batches : sequence of sequence of Planned
    prepare : callable
        Makes a batch of examples; what it leaves is pinned for a CUDA device where it can be.
    workers : int
        With none, a batch is made when it is asked for.
    device : torch.device
        Of the training.

    Yields
    ------
    iterator of Prepared
        In the order of ``batches``.

    Raises
    ------
    WorkerError
        When a worker dies.
    """
    workers = min(workers, len(batches))
    crew: set[multiprocessing.process.BaseProcess] = set()
    try:
        with dead_workers_told():
            with held(signal.SIGCHLD), warnings.catch_warnings():
                # Of more workers than cores; of a fork beside torch's threads: a worker has one.
                warnings.filterwarnings("ignore", message="This DataLoader will create")
                warnings.filterwarnings(
                    "ignore", message=".*use of fork", category=DeprecationWarning
                )
                before = set(multiprocessing.active_children())
                ready = iter(
                    DataLoader(
                        _Batches(examples, prepare),
                        batch_size=None,
                        # What is planned takes the place of numbers: it is what a worker is sent.
                        sampler=batches,
                        num_workers=workers,
                        collate_fn=_shared,
                        pin_memory=device.type == "cuda",
                        worker_init_fn=functools.partial(_begin, os.getpid()),
                        multiprocessing_context="fork" if workers else None,
                        prefetch_factor=AHEAD if workers else None,
                        # Without one, the DataLoader draws from torch's own.
                        generator=torch.Generator(),
                    )
                )
                crew = set(multiprocessing.active_children()) - before
                if workers:
                    end = _End(ready._workers_done_event)  # type: ignore[attr-defined]
                    ready._workers_done_event = end  # type: ignore[attr-defined]
            yield _taken(ready, crew)
    finally:
        if crew:
            with held(signal.SIGCHLD), _unwatched():
                ready._shutdown_workers()  # type: ignore[attr-defined]
                for worker in crew:
                    worker.kill()
                    worker.join()


class _End:
    """The event that tells PyTorch's workers to end, whose lock a worker may have died with.

    Parameters
    ----------
    event : multiprocessing.Event
        Theirs; only this process sets it.
    """

    def __init__(self, event: synchronize.Event) -> None:
        self._event = event
        self._set = False

    def set(self) -> None:
        """Tell the workers, unless that takes too long."""
        self._set = True
        telling = threading.Thread(target=self._event.set, daemon=True)
        telling.start()
        telling.join(TELLING_S)

    def is_set(self) -> bool:
        """Whether they were told."""
        return self._set


@contextlib.contextmanager
def dead_workers_told() -> Iterator[None]:
    """Turn PyTorch's error for a worker that died into one that says what to do.

    It comes from a signal's handler, so from anywhere, not only from where batches are taken.

    Raises
    ------
    WorkerError
        When a worker dies.
    """
    try:
        yield
    except RuntimeError as error:
        how = _of_worker(str(error))
        if how is None:
            raise
        raise _lost(how) from error


class _Batches(Dataset[Prepared]):
    """Batches, each looked up by how its examples are planned."""

    def __init__(
        self, examples: ExampleMaker, prepare: Callable[[list[Example]], Prepared]
    ) -> None:
        self._examples = examples
        self._prepare = prepare

    def __getitem__(self, planned: Sequence[Planned]) -> Prepared:
        return self._prepare([self._examples.make(one) for one in planned])


def _taken(
    ready: Iterator[Prepared], crew: Collection[multiprocessing.process.BaseProcess]
) -> Iterator[Prepared]:
    """Take batches; one that a worker no longer lives to hand over is told of as that worker."""
    try:
        yield from ready
    except (OSError, EOFError) as error:
        # What it was to hand over from shared memory is cut off before PyTorch notices its death.
        ended = connection.wait([worker.sentinel for worker in crew], ENDING_S) if crew else []
        gone = [worker.pid for worker in crew if worker.sentinel in ended]
        if not gone:
            raise
        raise _lost(f"DataLoader worker (pid {gone[0]}) ended unexpectedly") from error


def _lost(how: str) -> WorkerError:
    return WorkerError(
        f"{how}; memory, or the part of it that /dev/shm may take, is perhaps too small: "
        "go on with --resume and fewer --workers"
    )


def _shared(batch: Prepared) -> Prepared:
    """Move what can be to shared memory; on its way, a worker without room for it is not heard."""
    move = getattr(batch, "share_memory", None)
    if move is not None and get_worker_info() is not None:
        move()
    return batch


def _of_worker(text: str) -> str | None:
    """What has become of a worker, if that is what an error tells."""
    if text.startswith("DataLoader worker"):
        return text.split(". ")[0].rstrip(". ")
    if text.startswith("Caught RuntimeError in DataLoader worker") and "shared memory" in text:
        return "a worker found no shared memory for a batch"
    return None


@contextlib.contextmanager
def _unwatched() -> Iterator[None]:
    """Keep PyTorch from raising its error for workers that are meant to end.

    Other threads take signals that this one holds, and then the handler runs all the same.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def _begin(parent: int, number: int) -> None:  # noqa: ARG001 (PyTorch's signature)
    """Leave Ctrl-C and SIGTERM to the process that trains, and end when it ends in any way."""
    for one in STOPS:
        signal.signal(one, signal.SIG_IGN)
    sys.excepthook = _cut_off_unheard
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _cut_off_unheard(
    kind: type[BaseException], error: BaseException, trace: types.TracebackType | None
) -> None:
    """Print a traceback, but of a worker that is cut off as it hands over a batch.

    The process that trains has ended, then, or tells of it.
    """
    if not issubclass(kind, OSError | EOFError):
        sys.__excepthook__(kind, error, trace)
