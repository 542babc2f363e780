"""Work on several processes."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

__all__ = ["map_on_workers"]

Task = TypeVar("Task")
Result = TypeVar("Result")


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
    """
    workers = min(workers or os.cpu_count() or 1, len(tasks))
    if workers <= 1:
        yield from map(function, tasks)
        return
    # Forked processes would inherit the threads of the libraries in use.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_ctrl_c) as pool:
        try:
            yield from pool.map(function, tasks)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _leave_ctrl_c() -> None:
    """Leave Ctrl-C, which reaches all processes, to the one that started the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
