import numpy as np
import pytest

from galsep.measure.matching import (
    centroid_distances,
    iou_matrix,
    match_centroids,
    match_masks,
    nearest_distance,
)
from galsep.scene import Footprint


def disc(x, y, radius, size=80):
    rows, columns = np.indices((size, size))
    return Footprint.from_mask(np.hypot(columns - x, rows - y) <= radius)


def positions(*points):
    x, y = np.array(points, dtype=float).reshape(-1, 2).T
    return x, y


def test_identical_positions_match_themselves():
    points = positions((1, 2), (30, 4), (50, 60))
    match = match_centroids(centroid_distances(points, points))
    assert match.pairs.tolist() == [[0, 0], [1, 1], [2, 2]]
    assert match.exact


def test_the_radius_is_inclusive():
    true, found = positions((10, 10)), positions((13, 14))
    assert match_centroids(centroid_distances(true, found)).exact
    far = match_centroids(centroid_distances(true, positions((13, 14.001))))
    assert (far.missed.tolist(), far.spurious.tolist()) == ([0], [0])


def test_a_pair_out_of_range_does_not_block_good_ones():
    # The least sum of plain distances pairs 0-0 (0 px) and 1-1 (8 px), which leaves one match;
    # 0-1 and 1-0, 4 px each, are two.
    true, found = positions((0, 0), (4, 0)), positions((0, 0), (-4, 0))
    match = match_centroids(centroid_distances(true, found))
    assert match.pairs.tolist() == [[0, 1], [1, 0]]


def test_a_far_true_source_does_not_steal_a_partner():
    true, found = positions((0, 0), (100, 100)), positions((1, 0))
    match = match_centroids(centroid_distances(true, found))
    assert match.pairs.tolist() == [[0, 0]]
    assert match.missed.tolist() == [1]


def test_among_equally_many_pairs_the_closest_win():
    true, found = positions((0, 0)), positions((3, 0), (1, 0), (2, 0))
    match = match_centroids(centroid_distances(true, found))
    assert match.pairs.tolist() == [[0, 1]]
    assert match.spurious.tolist() == [0, 2]


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 2), (3, 0)])
def test_empty_sides(n, m):
    true, found = positions(*[(9, 9)] * n), positions(*[(9, 9)] * m)
    match = match_centroids(centroid_distances(true, found))
    assert len(match.pairs) == 0
    assert (len(match.missed), len(match.spurious)) == (n, m)
    masks = match_masks(iou_matrix([disc(9, 9, 3)] * n, [disc(9, 9, 3)] * m))
    assert masks.pairs.shape == (0, 2)
    assert masks.exact == (n == m == 0)


def test_positions_that_are_not_finite_match_nothing():
    true, found = positions((np.inf, 1), (2, 2)), positions((np.inf, 1), (np.nan, 2))
    match = match_centroids(centroid_distances(true, found))
    assert len(match.pairs) == 0
    assert match.spurious.tolist() == [0, 1]


def test_permuting_either_side_permutes_the_match():
    rng = np.random.default_rng(5)
    true, found = rng.uniform(0, 40, (2, 12)), rng.uniform(0, 40, (2, 15))
    before = match_centroids(centroid_distances(tuple(true), tuple(found)))
    p, q = rng.permutation(12), rng.permutation(15)
    after = match_centroids(centroid_distances(tuple(true[:, p]), tuple(found[:, q])))
    assert {(p[i], q[j]) for i, j in after.pairs} == {tuple(pair) for pair in before.pairs}
    assert sorted(p[after.missed]) == before.missed.tolist()


def test_iou_of_shifted_discs():
    # Two discs of radius r, d apart, share 2 r² arccos(d/2r) − d/2 √(4r² − d²).
    r, d = 15.0, 10.0
    shared = 2 * r**2 * np.arccos(d / (2 * r)) - d / 2 * np.sqrt(4 * r**2 - d**2)
    expected = shared / (2 * np.pi * r**2 - shared)
    iou = iou_matrix([disc(30, 40, r)], [disc(40, 40, r), disc(30, 40, r), disc(75, 75, 3)])
    assert iou[0] == pytest.approx([expected, 1.0, 0.0], abs=0.01)


def test_an_empty_mask_overlaps_nothing():
    nothing = Footprint(5, 5, np.zeros((0, 0), dtype=bool))
    assert not iou_matrix([nothing, disc(5, 5, 3)], [nothing]).any()
    assert not match_masks(iou_matrix([nothing], [nothing]), threshold=0.0).exact


def test_masks_match_from_one_half_on():
    block = Footprint(0, 0, np.ones((1, 4), dtype=bool))
    half = Footprint(0, 0, np.ones((1, 2), dtype=bool))
    less = Footprint(0, 0, np.ones((1, 1), dtype=bool))
    assert match_masks(iou_matrix([block], [half])).exact
    assert len(match_masks(iou_matrix([block], [less])).pairs) == 0


def test_what_matches_only_an_unwanted_source_is_ignored():
    true, found = positions((0, 0), (20, 0)), positions((0, 1), (20, 1), (40, 0))
    match = match_centroids(centroid_distances(true, found), wanted=np.array([True, False]))
    assert match.pairs.tolist() == [[0, 0]]
    assert match.ignored.tolist() == [1]
    assert match.spurious.tolist() == [2]
    assert match.missed.size == 0


def test_wanted_sources_come_first():
    # The only detection sits on the unwanted source but within reach of the wanted one.
    true, found = positions((0, 0), (4, 0)), positions((4, 0))
    match = match_centroids(centroid_distances(true, found), wanted=np.array([True, False]))
    assert match.pairs.tolist() == [[0, 0]]
    assert match.ignored.size == 0


def test_an_unwanted_source_excuses_one_detection_only():
    true, found = positions((0, 0)), positions((0, 1), (1, 0))
    match = match_centroids(centroid_distances(true, found), wanted=np.array([False]))
    assert (len(match.ignored), len(match.spurious)) == (1, 1)


def test_wanted_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="2 true sources"):
        match_centroids(np.zeros((2, 2)), wanted=np.array([True]))


def test_nearest_neighbour():
    assert nearest_distance(np.array([0.0, 3.0, 3.0]), np.array([0.0, 4.0, 5.0])) == pytest.approx(
        [5, 1, 1]
    )
    assert nearest_distance(np.array([1.0]), np.array([1.0])).tolist() == [np.inf]
    assert nearest_distance(np.zeros(0), np.zeros(0)).size == 0


def test_a_wide_field_is_matched_part_by_part(monkeypatch):
    rng = np.random.default_rng(3)
    true = rng.uniform(0, 150, (2, 120))
    found = np.concatenate(
        [true[:, 20:] + rng.normal(0, 2, (2, 100)), rng.uniform(0, 150, (2, 9))], 1
    )
    distance = centroid_distances((true[0], true[1]), (found[0], found[1]))
    wanted = rng.random(120) < 0.7
    parts = match_centroids(distance, wanted=wanted)
    monkeypatch.setattr("galsep.measure.matching.LARGE", distance.size)
    whole = match_centroids(distance, wanted=wanted)
    for name in ("pairs", "missed", "spurious", "ignored"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def test_of_two_that_claim_one_source_the_more_certain_is_it():
    distance = np.array([[1.0, 2.0, 6.0]])
    scores = np.array([0.1, 0.9, 0.99])
    assert match_centroids(distance).pairs.tolist() == [[0, 0]]
    assert match_centroids(distance, scores=scores).pairs.tolist() == [[0, 1]]
    # Of equal scores, the nearer one; and never fewer pairs.
    assert match_centroids(distance, scores=np.full(3, 0.5)).pairs.tolist() == [[0, 0]]
    both = np.array([[1.0, 2.0], [np.inf, 3.0]])
    assert match_centroids(both, scores=scores[:2]).pairs.tolist() == [[0, 0], [1, 1]]
