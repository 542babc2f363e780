"""Work on a Dask cluster: the same as :mod:`galsep.workflows.pool` offers, on other machines.

Dask gives what a worker had when it died to others. What several workers had when they died it
gives up, be it that they worked on it or not; so tasks are handed out only as workers become free.
"""

import contextlib
import functools
import importlib.util
import itertools
import json
import logging
import pickle
import queue
import threading
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import galsep
from galsep.errors import ClusterError, UsageError, WorkerError
from galsep.settings import read_bounded
from galsep.workflows.pool import Done, attempt
from galsep.workflows.reporting import Reporter

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["Cluster", "check_dask", "connect"]

Task = TypeVar("Task")
Result = TypeVar("Result")

ANSWER = 10.0
"""Seconds that a scheduler has to answer."""

LARGEST_SCHEDULER_FILE = 2**20
"""Bytes of the file in which a scheduler left its address."""

LOOK = 1.0
"""Seconds between looks for workers that have come or gone."""


def check_dask() -> None:
    """Refuse to go on without the optional library that talks to a cluster.

    Raises
    ------
    UsageError
    """
    if importlib.util.find_spec("distributed") is None:
        raise UsageError("--dask needs the library distributed; pip install 'galsep[dask]'")


@contextlib.contextmanager
def connect(address: str, reporter: Reporter) -> Iterator["Cluster"]:
    """Connect to a cluster for the time of a block.

    Parameters
    ----------
    address : str
        Of the scheduler, such as ``tcp://host:8786``, or the file, ending in ``.json``, that it
        left it in.
    reporter : Reporter
        Hears of it when there is no worker.

    Raises
    ------
    UsageError
        When the library is not there, or the address is none.
    ClusterError
        When there is no scheduler.
    """
    check_dask()
    import dask.config
    from distributed.utils import silence_logging_cmgr

    scheduler = _scheduler(address)
    # What there is to say is said here, in one line; and blocks of images may be large.
    with (
        silence_logging_cmgr(logging.CRITICAL + 1),
        dask.config.set({"distributed.admin.large-graph-warning-threshold": "1GB"}),
    ):
        client = _client(scheduler, address)
        try:
            yield Cluster(client, address, reporter)
        finally:
            client.close(timeout=ANSWER)


def _client(scheduler: str, address: str) -> "Client":
    from distributed import Client
    from distributed.comm.addressing import parse_address
    from distributed.comm.registry import get_backend

    try:
        scheme, location = parse_address(scheduler)
        get_backend(scheme).get_address_host(location)
    except ValueError as error:
        raise UsageError(
            f"{address}: not the address of a Dask scheduler, such as tcp://host:8786 ({error})"
        ) from error
    answers: queue.SimpleQueue[Client | Exception] = queue.SimpleQueue()

    def call() -> None:
        try:
            answers.put(Client(scheduler, timeout=ANSWER))
        except Exception as error:  # noqa: BLE001 (whatever may come from what is no scheduler)
            answers.put(error)

    # Dask itself would wait for ever for what listens but never answers, such as a dead tunnel.
    threading.Thread(target=call, daemon=True).start()
    try:
        answer = answers.get(timeout=2 * ANSWER)
    except queue.Empty as error:
        answer = error
    if isinstance(answer, Client):
        return answer
    raise ClusterError(
        f"{address}: no Dask scheduler answers; check the address and that it is running"
    ) from answer


def _scheduler(address: str) -> str:
    """Address of a scheduler, read from its file where that is named."""
    if not address.endswith(".json"):
        return address
    try:
        return str(json.loads(read_bounded(Path(address), LARGEST_SCHEDULER_FILE))["address"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{address}: not the file of a running Dask scheduler ({error!r})"
        ) from error


class Cluster:
    """A cluster that one is connected to, see :func:`connect`.

    Parameters
    ----------
    client : distributed.Client
    address : str
        As the user gave it, for messages.
    reporter : Reporter
        Hears of it when there is no worker.
    """

    def __init__(self, client: "Client", address: str, reporter: Reporter) -> None:
        self._client, self._address, self._reporter = client, address, reporter
        self._deserted = False

    def count_workers(self) -> int:
        """Workers that there are now; says so when there are none any more."""
        n = len(self._asked(self._client.nthreads))
        if not n and not self._deserted:
            self._reporter.warn(f"{self._address}: the cluster has no worker; waiting for one")
        self._deserted = not n
        return n

    def work(
        self, function: Callable[[Task], Result], tasks: Iterable[Task], ahead: int = 1
    ) -> Generator[Done[Result], None, None]:
        """Apply a function to tasks; results come as soon as they are there.

        The contract is that of :func:`galsep.workflows.pool.work_on_workers`, but that a task
        whose worker died is lost only when others died over it, too. A worker does one task at a
        time, with as many threads as it has. Closing the iterator withdraws what was handed out;
        what is in work then is worked to its end, and its result is lost.

        Parameters
        ----------
        function : callable
            A worker keeps it, and what it keeps in itself, for following tasks.
        tasks : iterable
        ahead : int
            Tasks that are handed out for each worker, more than one if they are short.

        Raises
        ------
        ClusterError
            When the scheduler is gone, or a worker has another galsep, or none.
        """
        from distributed import wait

        sent = pickle.dumps(function)
        waiting = iter(enumerate(tasks))
        running: dict[Future[Any], int] = {}
        try:
            while True:
                room = max(1, ahead * self.count_workers()) - len(running)
                for number, task in itertools.islice(waiting, max(0, room)):
                    running[self._submit(sent, task)] = number
                if not running:
                    return
                with contextlib.suppress(TimeoutError):
                    self._asked(wait, list(running), timeout=LOOK, return_when="FIRST_COMPLETED")
                for future in [one for one in running if one.done()]:
                    yield Done(running.pop(future), self._result(future))
        finally:
            with contextlib.suppress(Exception):  # The scheduler may be gone.
                self._client.cancel(list(running))

    def _submit(self, function: bytes, task: Task) -> "Future[Any]":
        key = f"galsep-{uuid.uuid4().hex}"
        return self._asked(
            self._client.submit, _work, galsep.__version__, function, pickle.dumps(task), key=key
        )

    def _result(self, future: "Future[Any]") -> Any:
        from distributed import KilledWorker

        try:
            well, result = self._asked(future.result)
        except KilledWorker:
            return WorkerError(
                "several workers died over it, perhaps for lack of memory; give workers more"
            )
        except ClusterError:
            raise
        except Exception as error:
            raise ClusterError(
                f"{self._address}: cannot hand out work ({error!r}); does the cluster have galsep "
                f"{galsep.__version__}, too?"
            ) from error
        if not well:
            raise result
        return result

    def _asked(self, ask: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
        """Ask the scheduler something."""
        from concurrent.futures import CancelledError

        from distributed import KilledWorker

        try:
            return ask(*arguments, **options)
        except (KilledWorker, TimeoutError):
            raise
        except (CancelledError, OSError) as error:
            raise ClusterError(
                f"{self._address}: the Dask scheduler is gone; what is done is kept, go on with "
                "--skip-existing"
            ) from error


_ONE_AT_A_TIME = threading.Lock()
"""Tasks use what belongs to the whole process: torch's threads, Python's warnings."""


def _work(version: str, function: bytes, task: bytes) -> tuple[bool, Any]:
    """Do a task on a worker; see :func:`galsep.workflows.pool.attempt`."""
    # Not above: the scheduler, too, loads this module.
    import torch
    from distributed import get_worker

    worker = get_worker()
    if version != galsep.__version__:
        return False, ClusterError(
            f"{worker.address}: this worker has galsep {galsep.__version__}, and {version} is "
            "asking; install the same version for all"
        )
    with _ONE_AT_A_TIME:
        torch.set_num_threads(worker.state.nthreads)
        return attempt(_received(function), pickle.loads(task))  # noqa: S301 (Dask does the same)


@functools.lru_cache(maxsize=1)
def _received(function: bytes) -> Callable[[Any], Any]:
    """Unpack a function, once for all tasks of a run."""
    return pickle.loads(function)  # type: ignore[no-any-return]  # noqa: S301
