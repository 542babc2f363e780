import pytest

from galsep.workflows.pool import map_on_workers


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order(workers):
    assert list(map_on_workers(abs, [-3, 2, -1], workers)) == [3, 2, 1]


def test_an_error_in_a_worker_reaches_the_caller():
    with pytest.raises(ZeroDivisionError):
        list(map_on_workers((1).__truediv__, [1, 0, 2, 3], 2))


def test_no_tasks():
    assert list(map_on_workers(abs, [], 2)) == []
