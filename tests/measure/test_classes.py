import numpy as np
import pytest

from galsep.measure.classes import CURVE_THRESHOLDS, class_scores

NAN = float("nan")


def judge(class_star, star, magnitude=None, edges=()):
    n = len(class_star)
    values = np.full(n, 22.0) if magnitude is None else np.array(magnitude, dtype=float)
    return class_scores(
        np.array(class_star, dtype=float), np.array(star, dtype=bool), values, edges
    )


def test_by_hand():
    # Stars 0.9, 0.8, 0.7, 0.4, 0.1; galaxies 0.75, 0.3, 0.2.
    figures = judge([0.9, 0.8, 0.7, 0.4, 0.1, 0.75, 0.3, 0.2], [1] * 5 + [0] * 3)
    # 0.9, 0.8, 0.75, 0.7 are called stars; four stars of five need a threshold of 0.4.
    assert figures["stars"] == {
        "n": 5, "completeness": 0.6, "purity": 0.75, "purity_80": 0.8
    }  # fmt: skip
    # 0.1, 0.2, 0.3, 0.4 are called galaxies; 80 % of three are all three.
    assert figures["galaxies"] == {
        "n": 3, "completeness": pytest.approx(2 / 3), "purity": 0.5,
        "purity_80": pytest.approx(3 / 6),
    }  # fmt: skip
    curve = {row["threshold"]: row for row in figures["curve"]}
    assert list(curve) == sorted(CURVE_THRESHOLDS)
    assert curve[0.75]["stars"] == {"completeness": 0.4, "purity": pytest.approx(2 / 3)}
    assert curve[0.01]["galaxies"] == {"completeness": 0, "purity": None}


def test_at_the_threshold_is_a_star():
    figures = judge([0.5], [1])
    assert (figures["stars"]["completeness"], figures["galaxies"]["n"]) == (1, 0)


def test_equal_values_are_taken_together():
    figures = judge([0.6, 0.6, 0.6], [1, 0, 1])
    assert figures["stars"]["purity_80"] == pytest.approx(2 / 3)


def test_unknown_classes_lower_the_completeness():
    figures = judge([0.9, NAN, 0.1, NAN], [1, 1, 0, 0])
    assert figures["n_unclassified"] == 2
    for name in ("stars", "galaxies"):
        assert figures[name] == {"n": 2, "completeness": 0.5, "purity": 1, "purity_80": None}


def test_nothing_is_undefined():
    figures = judge([], [])
    for name in ("stars", "galaxies"):
        assert figures[name] == {
            "n": 0, "completeness": None, "purity": None, "purity_80": None
        }  # fmt: skip
    assert figures["by_magnitude"][0]["low"] is figures["by_magnitude"][0]["high"] is None
    alone = judge([0.9, 0.2], [0, 0])
    assert (alone["stars"]["completeness"], alone["stars"]["purity"]) == (None, 0)


def test_bins_of_magnitude():
    rows = judge([0.9, 0.1, 0.2], [1, 1, 0], [20.0, 22.0, 21.0], [21.0, 22.0])["by_magnitude"]
    assert [(row["low"], row["high"]) for row in rows] == [(None, 21), (21, 22), (22, None)]
    assert [row["stars"]["completeness"] for row in rows] == [1, None, 0]
    assert [row["galaxies"]["n"] for row in rows] == [0, 1, 0]
