"""Batches made ahead by other processes are those of one process, and no process stays."""

import multiprocessing
import os
import signal
import sys
import time

import numpy as np
import pytest
import torch

from galsep.conventions import SMALL_SIDES, STAMP_SIZE
from galsep.errors import UsageError, WorkerError
from galsep.model import loading
from galsep.model.examples import Batch, ExampleMaker, collate
from galsep.model.loading import batches_ahead, worker_count

CPU = torch.device("cpu")

if sys.platform != "linux":
    pytest.skip("workers are forked", allow_module_level=True)


@pytest.fixture
def examples(pairs):
    return ExampleMaker(pairs, "train", augment=True, compose=True, max_groups=2, small_every=2)


def plan(examples, size=12, batch_size=3):
    return list(examples.batches(size, batch_size, np.random.default_rng(1)))


def crew():
    return multiprocessing.active_children()


def test_batches_come_in_order_and_are_the_same(examples):
    plans = plan(examples)
    made = []
    for workers in (0, 2):
        before = torch.random.get_rng_state()
        with batches_ahead(examples, plans, collate, workers, CPU) as ready:
            assert len(crew()) == workers
            made.append(list(ready))
        assert not crew()
        assert torch.equal(torch.random.get_rng_state(), before)
    sides = [batch.images.shape[2] for batch in made[0]]
    assert sides == [batch[0].side for batch in plans]
    assert set(sides[::2]) == {STAMP_SIZE}
    assert set(sides[1::2]) <= set(SMALL_SIDES)
    for one, other in zip(*made, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.truths.boxes, other.truths.boxes)
        assert torch.equal(one.truths.light, other.truths.light)


def test_workers_keep_to_one_thread_and_to_the_cpu(examples):
    def asked(_):
        return [torch.get_num_threads(), torch.cuda.is_initialized(), os.getpid()]

    with batches_ahead(examples, plan(examples), asked, 2, CPU) as ready:
        told = list(ready)
    assert all((threads, cuda) == (1, False) for threads, cuda, _ in told)
    assert os.getpid() not in {process for *_, process in told}


def test_a_worker_that_is_killed_ends_the_training_with_one_line(examples):
    def made():
        with batches_ahead(examples, plan(examples, 300), collate, 2, CPU) as ready:
            for number, _ in enumerate(ready):
                if not number:
                    os.kill(crew()[0].pid, signal.SIGKILL)
                time.sleep(0.01)

    # PyTorch notices by a signal or, on a busy machine, by looking, or finds the batch cut off.
    how = "killed by signal: Killed|exited unexpectedly|ended unexpectedly"
    with pytest.raises(WorkerError, match=rf"({how}); .* fewer --workers") as told:
        made()
    assert "\n" not in str(told.value)
    assert not crew()


def test_a_worker_killed_in_the_lock_of_what_ends_them_holds_up_nobody(examples, monkeypatch):
    made = []
    begun = loading.DataLoader.__iter__

    def kept(loader):
        made.append(begun(loader))
        return made[0]

    monkeypatch.setattr(loading.DataLoader, "__iter__", kept)

    def killed():
        with batches_ahead(examples, plan(examples, 300), collate, 2, CPU) as ready:
            next(ready)
            made[0]._workers_done_event._event._cond.acquire()
            os.kill(crew()[0].pid, signal.SIGKILL)
            list(ready)

    with pytest.raises(WorkerError):
        killed()
    assert not crew()


def test_a_batch_cut_off_is_told_of_as_the_worker_that_ended(monkeypatch):
    def cut_off():
        yield 1
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(loading, "ENDING_S", 0.5)
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    worker.start()
    for some in ([], [worker]):
        with pytest.raises(ConnectionResetError):
            list(loading._taken(cut_off(), some))
    worker.kill()
    with pytest.raises(WorkerError, match=rf"\(pid {worker.pid}\) ended .* fewer --workers"):
        list(loading._taken(cut_off(), [worker]))
    worker.join()


def test_a_worker_that_is_cut_off_prints_no_traceback(capsys):
    """Its thread that hands over a batch finds the process that trains gone."""
    for kind in (ConnectionResetError, BrokenPipeError, EOFError):
        loading._cut_off_unheard(kind, kind("cut off"), None)
    assert capsys.readouterr().err == ""
    loading._cut_off_unheard(ValueError, ValueError("a mistake"), None)
    assert capsys.readouterr().err == "ValueError: a mistake\n"


def test_a_worker_without_shared_memory_ends_the_training_with_one_line(examples, monkeypatch):
    def full(batch):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_3>")

    monkeypatch.setattr(Batch, "share_memory", full)
    with batches_ahead(examples, plan(examples), collate, 0, CPU) as ready:
        assert len(list(ready)) == 4
    with (
        pytest.raises(WorkerError, match=r"no shared memory .* fewer --workers"),
        batches_ahead(examples, plan(examples), collate, 2, CPU) as ready,
    ):
        next(ready)
    assert not crew()


def test_errors_of_the_training_are_its_own(examples):
    def made(error):
        with batches_ahead(examples, plan(examples, 300), collate, 2, CPU) as ready:
            next(ready)
            raise error

    for error in (RuntimeError("CUDA error"), torch.OutOfMemoryError(), KeyboardInterrupt()):
        with pytest.raises(type(error)) as told:
            made(error)
        assert told.value is error
        assert not crew()


def test_signals_are_left_to_the_process_that_trains(examples):
    with batches_ahead(examples, plan(examples, 60), collate, 2, CPU) as ready:
        next(ready)
        for worker in crew():
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(worker.pid, number)
        assert len(list(ready)) == 19


ORPHANS = """
import os, signal, time
import numpy as np
import torch
from galsep.io.dataset import load_dataset
from galsep.model.examples import ExampleMaker
from galsep.model.loading import batches_ahead
import multiprocessing

examples = ExampleMaker(load_dataset(data), "train", augment=True, compose=True, max_groups=8)
plans = list(examples.batches(640, 64, np.random.default_rng(1)))
# Examples as they are go through a pipe, which is full when nobody reads it any more.
with batches_ahead(examples, plans, list, 2, torch.device("cpu")) as ready:
    next(ready)
    pids.write_text(" ".join(str(child.pid) for child in multiprocessing.active_children()))
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_the_process_that_trains(forked, tmp_path):
    from galsep.config import SimulateConfig
    from galsep.workflows.simulate import simulate

    simulate(tmp_path / "set", SimulateConfig(n=40, seed=5, workers=1))
    child = forked(ORPHANS, data=tmp_path / "set", pids=tmp_path / "pids")
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    pids = [int(text) for text in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    until = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(alive, pids))


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_device_and_the_cores_say_how_many(monkeypatch):
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(loading.os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert worker_count(-1, CPU) == 0
    assert worker_count(-1, cuda) == 8
    assert worker_count(0, cuda) == 0
    assert worker_count(3, CPU) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert worker_count(-1, cuda) == 3
    monkeypatch.setattr(loading.sys, "platform", "darwin")
    assert worker_count(-1, cuda) == worker_count(0, cuda) == 0
    with pytest.raises(UsageError, match="Linux alone"):
        worker_count(2, CPU)
