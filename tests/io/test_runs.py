import numpy as np
import pytest

from galsep.io.runs import RUN_DTYPE, labels_to_runs, runs_to_footprints
from galsep.scene import Footprint


def same(one: Footprint, other: Footprint) -> bool:
    return one.bounds == other.bounds and np.array_equal(one.mask, other.mask)


def test_known_runs():
    mask = np.array([[1, 1, 0, 1], [0, 0, 0, 0], [0, 1, 1, 1]], dtype=bool)
    runs = labels_to_runs([Footprint(10, 20, mask)])
    assert runs.dtype == RUN_DTYPE
    assert runs.tolist() == [(1, 10, 20, 21), (1, 10, 23, 23), (1, 12, 21, 23)]


def test_overlapping_masks_survive_the_round_trip():
    rng = np.random.default_rng(3)
    footprints = [
        Footprint.from_mask(rng.random((h, w)) < 0.6, int(y0), int(x0))
        for h, w, y0, x0 in rng.integers(1, 30, (40, 4))
    ]
    runs = labels_to_runs(footprints)
    keys = list(zip(runs["label"], runs["y"], runs["x0"], strict=True))
    assert keys == sorted(keys)
    assert np.sum(runs["x1"] - runs["x0"] + 1) == sum(f.area for f in footprints)
    shuffled = runs[rng.permutation(runs.size)]
    for back in (runs_to_footprints(runs), runs_to_footprints(shuffled)):
        assert all(same(one, other) for one, other in zip(footprints, back, strict=True))


def test_empty_masks_have_no_run_but_keep_their_place():
    empty = Footprint(0, 0, np.zeros((0, 0), dtype=bool))
    blank = Footprint(5, 5, np.zeros((3, 3), dtype=bool))
    pixel = Footprint(2, 3, np.ones((1, 1), dtype=bool))
    runs = labels_to_runs([empty, pixel, blank])
    assert runs.tolist() == [(2, 2, 3, 3)]
    assert [f.area for f in runs_to_footprints(runs, 3)] == [0, 1, 0]
    assert [f.area for f in runs_to_footprints(runs)] == [0, 1]


def test_nothing_gives_nothing():
    runs = labels_to_runs([])
    assert runs.dtype == RUN_DTYPE
    assert runs.size == 0
    assert runs_to_footprints(runs) == []


@pytest.mark.parametrize("run", [(0, 0, 0, 0), (4, 0, 0, 0), (1, 0, 5, 4)])
def test_impossible_runs_are_refused(run):
    with pytest.raises(ValueError, match=r"label|run"):
        runs_to_footprints(np.array([run], dtype=RUN_DTYPE), 3)
