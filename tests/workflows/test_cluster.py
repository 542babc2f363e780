import json
import signal
import socket
import sys
import time
import types

import pytest

import galsep
from galsep.errors import ClusterError, UsageError, WorkerError
from galsep.workflows import cluster as clusters
from galsep.workflows.cluster import connect
from galsep.workflows.reporting import Reporter


@pytest.fixture
def connected(cluster):
    with connect(cluster, Reporter()) as one:
        yield one


def results(finished):
    return {done.number: done.result for done in finished}


def test_results_come_as_soon_as_they_are_there(connected):
    finished = connected.work(time.sleep, iter([2.0, 0.0, 0.1]))
    assert [done.number for done in finished] == [1, 2, 0]


def test_tasks_are_taken_as_workers_become_free(connected):
    taken = []
    finished = connected.work(abs, (taken.append(n) or n for n in range(9)))
    next(finished)
    assert len(taken) <= 2
    assert len(results(finished)) == 8
    finished = connected.work(abs, (taken.append(n) or n for n in range(9)), ahead=3)
    taken.clear()
    next(finished)
    assert len(taken) == 6


def test_no_tasks(connected):
    assert results(connected.work(abs, [])) == {}


def test_an_error_on_a_worker_reaches_the_caller(connected):
    with pytest.raises(ZeroDivisionError) as caught:
        list(connected.work((1).__truediv__, [1, 0, 2, 3]))
    assert "In a worker process" in caught.value.__notes__[0]


def test_a_worker_keeps_the_function(connected):
    ended = results(connected.work([3, 2, 1].pop, [0, 0, 0]))
    assert len(set(ended.values())) > 1


def test_the_death_of_a_worker_costs_no_task(connected, tmp_path):
    # Kills the process that comes first, and no other.
    script = f"""
import os, signal
try:
    os.mkdir({str(tmp_path / "first")!r})
    signal.raise_signal(signal.SIGKILL)
except FileExistsError:
    pass
"""
    assert results(connected.work(exec, [script, "pass", "pass"])) == dict.fromkeys(range(3))
    assert (tmp_path / "first").exists()


def test_a_task_that_kills_its_workers_is_lost_alone(connected):
    numbers = [signal.SIGCONT, signal.SIGKILL, *[signal.SIGCONT] * 8]
    ended = results(connected.work(signal.raise_signal, numbers))
    assert isinstance(ended.pop(1), WorkerError)
    assert ended == dict.fromkeys([0, *range(2, 10)])


def test_closing_withdraws_what_was_handed_out(connected, tmp_path):
    # A task says that it has begun, and then goes on until all may end.
    script = f"""
import os, time
open({str(tmp_path)!r} + "/begun%d", "w").close()
while not os.path.exists({str(tmp_path)!r} + "/end"):
    time.sleep(0.01)
"""
    finished = connected.work(exec, ["pass", *(script % n for n in range(6))], ahead=3)
    next(finished)
    finished.close()
    time.sleep(2)
    (tmp_path / "end").touch()
    time.sleep(2)
    assert len(list(tmp_path.glob("begun*"))) <= 2


def test_another_version_is_refused(connected, monkeypatch):
    monkeypatch.setattr(galsep, "__version__", "0.0.1")
    with pytest.raises(ClusterError, match=r"this worker has galsep .*, and 0\.0\.1 is asking"):
        list(connected.work(abs, [1]))


def test_a_worker_without_galsep_is_refused(connected, monkeypatch):
    module = types.ModuleType("galsep_of_another_kind")
    exec("def work(*arguments): pass", module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(clusters, "_work", module.work)
    with pytest.raises(ClusterError, match="does the cluster have galsep"):
        list(connected.work(abs, [1]))


@pytest.fixture
def silent():
    """Address where something else than a scheduler listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def test_no_scheduler(silent, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(clusters, "ANSWER", 1.0)
    for address in (silent, "127.0.0.1:1"):
        with (
            pytest.raises(ClusterError, match=f"^{address}: no Dask scheduler answers"),
            connect(address, Reporter()),
        ):
            pass


@pytest.mark.parametrize("address", ["host", "bad://host:1", "none.json"])
def test_no_address(cluster, address):
    with pytest.raises(UsageError, match=f"^{address}: not the "), connect(address, Reporter()):
        pass


def test_the_file_of_a_scheduler(cluster, tmp_path):
    file = tmp_path / "scheduler.json"
    file.write_text(json.dumps({"type": "Scheduler", "address": cluster}))
    with connect(str(file), Reporter()) as connected:
        assert results(connected.work(abs, [-1])) == {0: 1}


@pytest.mark.parametrize("content", ["[" * 100_000, " " * 2**20 + "{}", '{"adress": "a:1"}'])
def test_a_file_that_no_scheduler_wrote(tmp_path, content):
    pytest.importorskip("distributed")
    file = tmp_path / "scheduler.json"
    file.write_text(content)
    with (
        pytest.raises(UsageError, match=f"^{file}: not the file of a running"),
        connect(str(file), Reporter()),
    ):
        pass


def test_dask_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(clusters.importlib.util, "find_spec", lambda name: None)
    with (
        pytest.raises(UsageError, match=r"pip install 'galsep\[dask\]'"),
        connect("a:1", Reporter()),
    ):
        pass


class Listener(Reporter):
    def __init__(self):
        self.heard = []

    def warn(self, message):
        self.heard.append(message)


def test_a_cluster_without_workers_is_told_of_once():
    distributed = pytest.importorskip("distributed")
    listener = Listener()
    with (
        distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as empty,
        connect(empty.scheduler_address, listener) as connected,
    ):
        assert [connected.count_workers() for _ in range(2)] == [0, 0]
        empty.scale(1)
        assert [done.result for done in connected.work(abs, [-1])] == [1]
    (heard,) = listener.heard
    assert heard.endswith("the cluster has no worker; waiting for one")
