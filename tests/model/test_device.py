"""What runs on which device, and on how many cores."""

import threading

import pytest
import torch

from galsep.model.device import in_batches, on_own_cores, one_ahead

CPU = torch.device("cpu")


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_threads")
def test_tasks_share_the_cores_and_results_keep_their_order():
    both = threading.Barrier(2, timeout=30)

    def work(number):
        both.wait()  # Only passed when two run at once.
        return number, torch.get_num_threads()

    assert on_own_cores(work, [5, 3], CPU) == [(5, 2), (3, 2)]
    assert torch.get_num_threads() == 4
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [4]


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize(("tasks", "device"), [([1], CPU), ([1, 2, 3], torch.device("meta"))])
def test_one_task_and_other_devices_stay_in_this_thread(tasks, device):
    here = threading.get_ident()
    assert on_own_cores(lambda _: threading.get_ident(), tasks, device) == [here] * len(tasks)


def batches_on(device):
    seen = []

    def work(some, size):
        seen.append((list(some), size))
        return [10 * number for number in some]

    sides = [48, 64, 48, 48, 64, 48]
    assert in_batches(work, sides, {48: 3, 64: 1}.__getitem__, device) == [0, 10, 20, 30, 40, 50]
    return seen


def test_batches_hold_pictures_of_one_side_the_largest_first():
    parts = [([1], 1), ([4], 1), ([0, 2, 3], 3), ([5], 3)]
    assert sorted(batches_on(CPU)) == sorted(parts)
    assert batches_on(torch.device("meta")) == parts


def test_a_batch_that_was_halved_stays_so_on_a_device_with_little_memory():
    tried = []

    def work(some, size):
        tried.append(size)
        if size > 2:
            raise torch.OutOfMemoryError("no room")
        return some

    with pytest.warns(RuntimeWarning) as told:
        found = in_batches(work, [48] * 5, lambda _: 8, torch.device("meta"))
    assert len(told) == 2
    assert found == [0, 1, 2, 3, 4]
    assert tried == [8, 4, 2, 2, 2]


@pytest.mark.usefixtures("four_threads")
def test_an_error_ends_it():
    def fail(number):
        raise ValueError(number)

    with pytest.raises(ValueError, match="1"):
        on_own_cores(fail, [1, 2, 3], CPU)
    assert torch.get_num_threads() == 4


def test_the_next_task_is_worked_on_while_a_result_is_looked_at():
    began = [threading.Event() for _ in range(4)]

    def work(task):
        began[task].set()
        return task, threading.get_ident()

    done = []
    for task, thread in one_ahead(work, iter(range(4))):
        if task < 3:
            assert began[task + 1].wait(10)
        assert thread != threading.get_ident()
        done.append(task)
    assert done == [0, 1, 2, 3]
    assert list(one_ahead(work, [])) == []
    assert list(one_ahead(work, [1])) == [(1, threading.get_ident())]


def test_what_fails_ahead_is_told_in_its_turn_and_nothing_is_left_running():
    def work(task):
        return 6 // task

    results = one_ahead(work, [3, 0, 2])
    assert next(results) == 2
    with pytest.raises(ZeroDivisionError):
        next(results)
    before = threading.active_count()
    results = one_ahead(work, [3, 2, 1])
    assert next(results) == 2
    results.close()
    assert threading.active_count() == before
