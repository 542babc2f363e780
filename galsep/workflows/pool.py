"""Work on several processes.

A worker is a process at the other end of a pipe. It takes one task at a time, so that it is known
which task was lost where one dies, and leaves when the pipe closes, so that none outlives the
process that started it.
"""

import contextlib
import itertools
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from types import FrameType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from galsep.errors import WorkerError
from galsep.interrupts import STOPS, held

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = ["Done", "attempt", "in_order", "map_on_workers", "work_on_workers"]

Task = TypeVar("Task")
Result = TypeVar("Result")

GRACE = 10.0
"""Seconds that a worker has to leave before it is killed."""


@dataclass(frozen=True, slots=True)
class Done(Generic[Result]):
    """What became of a task.

    Parameters
    ----------
    number : int
        Place of the task in the sequence.
    result : Result or WorkerError
        The error where the worker died.
    """

    number: int
    result: Result | WorkerError


class _Worker(Generic[Task]):
    """A process and our end of its pipe."""

    number = -1

    def __init__(self) -> None:
        # Forked processes would inherit the threads of the libraries in use.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        with theirs:
            self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
            self.process.start()

    def give(self, number: int, task: Task) -> None:
        """Have it work on a task."""
        self.number = number
        self.send(task)

    def send(self, message: object) -> None:
        """Send what its process reads next."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # Noticed on receiving.
            self.pipe.send(message)

    def epitaph(self) -> str:
        """How it died."""
        self.process.join(GRACE)
        code = self.process.exitcode
        if code == -signal.SIGKILL:
            return "its process was killed, perhaps for lack of memory; try fewer processes"
        how = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        return f"its process ended before its time ({how})"


def map_on_workers(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int
) -> Iterator[Result]:
    """Apply a function to tasks on several processes; results come in the order of the tasks.

    Parameters
    ----------
    function : callable
        Of a module, so that it can be sent to another process.
    tasks : sequence
    workers : int
        Number of processes, 0 for one a CPU core. With one, or one task, no process is started.

    Raises
    ------
    WorkerError
        When a process dies.
    """
    with contextlib.closing(work_on_workers(function, tasks, workers)) as finished:
        yield from in_order(finished)


def in_order(finished: Iterable[Done[Result]]) -> Iterator[Result]:
    """Put results in the order of their tasks.

    Raises
    ------
    WorkerError
        When a process died.
    """
    early: dict[int, Result] = {}
    following = 0
    for done in finished:
        if isinstance(done.result, WorkerError):
            raise done.result
        early[done.number] = done.result
        while following in early:
            yield early.pop(following)
            following += 1


def work_on_workers(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int
) -> Generator[Done[Result], None, None]:
    """Apply a function to tasks on several processes; results come as soon as they are there.

    An error of the function ends the work of all. The death of a process costs the task it worked
    on, and another takes its place. Closing the iterator ends all processes at once, by way of
    their ``finally`` blocks.

    Parameters
    ----------
    function : callable
        Sent once to each process, which may keep in it what its tasks share.
    tasks, workers
        As for :func:`map_on_workers`.
    """
    workers = min(workers or os.cpu_count() or 1, len(tasks))
    if workers <= 1:
        for number, task in enumerate(tasks):
            yield Done(number, function(task))
        return
    waiting = iter(enumerate(tasks))
    crew: dict[Any, _Worker[Task]] = {}

    def hire(number: int, task: Task) -> None:
        # Not a signal before it is known here, and its process has said what it does with one.
        with held():
            worker = _Worker[Task]()
            crew[worker.pipe] = worker
        worker.send(function)
        worker.give(number, task)

    resource_tracker.ensure_running()  # It lets signals through once it has started.
    try:
        for number, task in itertools.islice(waiting, workers):
            hire(number, task)
        while crew:
            for pipe in wait(list(crew)):
                worker, number = crew[pipe], crew[pipe].number
                try:
                    well, result = worker.pipe.recv()
                except (EOFError, OSError):
                    del crew[pipe]
                    for following in itertools.islice(waiting, 1):
                        hire(*following)
                    yield Done(number, WorkerError(worker.epitaph()))
                    continue
                if not well:
                    raise result
                for following in itertools.islice(waiting, 1):
                    worker.give(*following)
                    break
                else:
                    del crew[pipe]
                    _dismiss([worker])
                yield Done(number, result)
    finally:
        _dismiss(crew.values())


def _dismiss(workers: Collection[_Worker[Any]]) -> None:
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        worker.process.join(GRACE)
        worker.process.kill()
        worker.pipe.close()


def _serve(pipe: "Connection") -> NoReturn:
    """Work on what comes through the pipe until it closes."""
    # Ctrl-C reaches all processes: it is left to the one that started the others. It stays blocked,
    # as it was at the start, since astropy puts a handler of its own in place while it writes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS - {signal.SIGINT})
    with contextlib.suppress(EOFError, OSError, SystemExit):
        function = pipe.recv()
        signal.signal(signal.SIGTERM, _leave)
        while True:
            pipe.send(attempt(function, pipe.recv()))
    os._exit(0)


def attempt(function: Callable[[Any], Any], task: Any) -> tuple[bool, Any]:
    """Apply a function in a worker: whether it went well, and the result or the error."""
    try:
        return True, function(task)
    except Exception as error:  # noqa: BLE001 (it is raised in the process that asked)
        error.add_note(f"In a worker process:\n{traceback.format_exc()}")
        return False, error


def _leave(signum: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 (Python's signature)
    """Leave by way of all ``finally`` blocks, so that no partial file stays."""
    raise SystemExit
