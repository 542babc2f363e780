import os
import signal
import time

import pytest
from astropy.io import fits

from galsep.errors import WorkerError
from galsep.workflows.pool import map_on_workers, work_on_workers


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order(workers):
    assert list(map_on_workers(abs, [-3, 2, -1], workers)) == [3, 2, 1]


def test_an_error_in_a_worker_reaches_the_caller():
    with pytest.raises(ZeroDivisionError) as caught:
        list(map_on_workers((1).__truediv__, [1, 0, 2, 3], 2))
    assert "In a worker process" in caught.value.__notes__[0]


def test_no_tasks():
    assert list(map_on_workers(abs, [], 2)) == []


def test_a_result_comes_as_soon_as_it_is_there():
    results = work_on_workers(time.sleep, [2.0, 0.0], 2)
    assert [done.number for done in results] == [1, 0]


def test_the_death_of_a_worker_costs_its_task_alone():
    numbers = [signal.SIGKILL, signal.SIGCONT, signal.SIGCONT, signal.SIGSEGV, signal.SIGCONT]
    results = {d.number: d.result for d in work_on_workers(signal.raise_signal, numbers, 2)}
    assert {number for number, result in results.items() if result is None} == {1, 2, 4}
    assert str(results[0]).startswith("its process was killed, perhaps for lack of memory")
    assert str(results[3]) == "its process ended before its time (SIGSEGV)"
    with pytest.raises(WorkerError, match="exit code 7"):
        list(map_on_workers(os._exit, [7, 7], 2))


def test_closing_ends_the_workers(tmp_path):
    path = tmp_path / "pid"
    script = f"import os, time; open({str(path)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    started = time.monotonic()
    results = work_on_workers(exec, ["pass", script, "pass"], 2)
    assert next(results).result is None
    while not (path.exists() and path.read_text()):
        time.sleep(0.05)
    results.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(path.read_text()), 0)
    assert time.monotonic() - started < 30


INTERRUPTED_WRITE = """
import pathlib, signal
from astropy.io import fits
from galsep.io.atomic import write_fits

def verify(hdus, option="warn", checked=fits.HDUList.verify, signal=signal):
    signal.raise_signal(signal.SIGINT)
    return checked(hdus, option)

fits.HDUList.verify = verify
write_fits(pathlib.Path({path!r}), fits.HDUList([fits.PrimaryHDU()]))
"""


def test_an_interrupt_while_a_worker_writes_is_left_to_its_parent(tmp_path, capfd):
    path = tmp_path / "a.fits"
    script = INTERRUPTED_WRITE.format(path=str(path))
    assert list(map_on_workers(exec, [script, "pass"], 2)) == [None, None]
    assert fits.getval(path, "CHECKSUM")
    assert capfd.readouterr() == ("", "")
