import numpy as np
import pytest

from galsep.measure.calibration import outcomes, reliability
from galsep.measure.matching import centroid_distances, match_centroids


def test_by_hand():
    # Three at 0.8, two of them real; one at 0.95, real; one at 0.32, not.
    scores = np.array([0.8, 0.8, 0.8, 0.95, 0.32])
    real = np.array([True, True, False, True, False])
    figures = reliability(scores, real)
    assert figures["n"] == 5
    assert figures["ece"] == pytest.approx((3 * (0.8 - 2 / 3) + 0.05 + 0.32) / 5)
    filled = {row["low"]: row for row in figures["bins"] if row["n"]}
    assert list(filled) == [0.3, 0.8, 0.9]
    assert filled[0.8] == {
        "low": 0.8, "high": 0.9, "n": 3, "n_real": 2,
        "mean_score": pytest.approx(0.8), "share_real": pytest.approx(2 / 3),
    }  # fmt: skip


def test_bins_hold_their_lower_edges_and_the_last_one_both():
    scores = np.array([0.0, 0.1, 0.3, 0.6, 0.7, 0.9, 1.0])
    counts = [row["n"] for row in reliability(scores, np.ones(7, dtype=bool))["bins"]]
    assert counts == [1, 1, 0, 1, 0, 0, 1, 1, 0, 2]


def test_a_calibrated_score_has_no_error():
    figures = reliability(np.full(4, 0.75), np.array([True, True, True, False]))
    assert figures["ece"] == 0


def test_nothing_is_undefined():
    figures = reliability(np.zeros(0), np.zeros(0, dtype=bool))
    assert (figures["n"], figures["ece"]) == (0, None)
    assert {row["share_real"] for row in figures["bins"]} == {None}


def test_undetectable_sources_and_second_halves():
    # A detectable source found twice, an undetectable one found, and one on the empty sky.
    true = np.array([10.0, 50.0]), np.array([10.0, 50.0])
    found = np.array([10.5, 12.0, 50.0, 90.0]), np.array([10.0, 10.0, 50.0, 90.0])
    match = match_centroids(centroid_distances(true, found), wanted=np.array([True, False]))
    scores, real = outcomes(np.array([0.9, 0.8, 0.7, 0.6]), match)
    assert scores.tolist() == [0.9, 0.8, 0.6]
    assert real.tolist() == [True, False, False]
