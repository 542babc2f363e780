import sys

import numpy as np
import pytest

from galsep.plot import evaluation
from galsep.plot.evaluation import (
    MIN_SIDE,
    Example,
    _window,
    bin_label,
    plot_by_property,
    plot_examples,
    plot_precision_recall,
    wilson_interval,
)
from galsep.scene import Detections, Footprint

NOTHING = Detections([], np.zeros(0), np.zeros(0), np.zeros(0))


def square(x, y, side=11):
    return Footprint(y - side // 2, x - side // 2, np.ones((side, side), dtype=bool))


def example(true=((50, 60), (64, 60)), found=((50, 61),), pairs=((0, 0),), detectable=True):
    x, y = np.array(true, dtype=float).reshape(-1, 2).T
    fx, fy = np.array(found, dtype=float).reshape(-1, 2).T
    return Example(
        "test blend 1",
        np.random.default_rng(1).normal(0, 1, (120, 120)),
        [square(*p) for p in true],
        x,
        y,
        np.full(len(x), detectable),
        Detections([square(*p) for p in found], fx, fy, np.full(len(fx), 0.9)),
        np.array(pairs, dtype=np.int64).reshape(-1, 2),
    )


def row(low, high, tp=3, n=5):
    return {
        "low": low, "high": high, "n_true": n,
        "centroid5": {
            "tp": tp, "recall": tp / n if n else None, "f1": 0.7 if n else None
        },
    }  # fmt: skip


def is_png(path):
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("success", [True, False])
def test_examples(tmp_path, n, success):
    path = tmp_path / "page.png"
    plot_examples([example()] * n, 1.0, path, success=success)
    assert is_png(path)


def test_examples_without_truth_or_detections(tmp_path):
    empty = Footprint(60, 60, np.zeros((0, 0), dtype=bool))
    cases = [
        example(true=(), pairs=()),
        example(found=(), pairs=()),
        example(true=(), found=(), pairs=()),
        example(found=((50, 61), (90, 90)), detectable=False),
    ]
    hollow = Example(
        "empty mask", cases[0].image, [empty], np.array([60.0]), np.array([60.0]),
        np.array([False]), NOTHING, np.zeros((0, 2), dtype=np.int64),
    )  # fmt: skip
    for number, case in enumerate([*cases, hollow]):
        plot_examples([case], 1.0, tmp_path / f"{number}.png", success=False)


def test_the_window_holds_everything_and_stays_inside():
    left, right, bottom, top = _window(example(true=((6, 6), (30, 8)), found=((110, 40),)))
    assert (left, bottom) == (-0.5, -0.5)
    assert right - left == top - bottom == 120
    left, right, bottom, top = _window(example())
    assert right - left == pytest.approx(max(MIN_SIDE, 25 + 14))
    assert left < 44.5 < 69.5 < right
    assert _window(example(true=(), found=(), pairs=())) == (-0.5, 119.5, -0.5, 119.5)


def test_by_property(tmp_path):
    bins = {
        "magnitude": [row(None, 22.0), row(22.0, 22.5, 0), row(22.5, None, 0, 0)],
        "separation": [row(None, None)],
        "n_sources": [row(1.0, 2.0, 5), row(6.0, None)],
    }
    plot_by_property({"galsep": bins, "SEP 1.5σ": bins}, tmp_path / "one.png")
    empty = {name: [] for name in bins}
    plot_by_property({"galsep": empty}, tmp_path / "two.png")
    assert is_png(tmp_path / "one.png")
    assert is_png(tmp_path / "two.png")


def test_bin_labels():
    assert bin_label(2.0, 3.0, whole=True) == "2"
    assert bin_label(6.0, None, whole=True) == "≥ 6"
    assert bin_label(None, 22.5, whole=False) == "< 22.5"
    assert bin_label(2.0, 3.0, whole=False) == "2–3"
    assert bin_label(None, None, whole=False) == "all"


def test_wilson_intervals_by_hand():
    low, high = wilson_interval(np.array([0.0, 5.0, 4.0]), np.array([1.0, 10.0, 4.0]))
    # 5 of 10: 0.5 ± √(0.25/10 + 0.25/100) / 1.1.
    half = np.sqrt(0.0275) / 1.1
    np.testing.assert_allclose(low, [0, 0.5 - half, 0.8], atol=1e-12)
    np.testing.assert_allclose(high, [0.5, 0.5 + half, 1], atol=1e-12)


def test_precision_recall(tmp_path):
    curves = {"galsep": np.linspace(1, 0, 101), "SEP": np.zeros(101), "none": np.zeros(0)}
    points = {
        "galsep": {"precision": 0.9, "recall": 0.8},
        "SEP": {"precision": None, "recall": 0.0},
        "none": {"precision": None, "recall": None},
    }
    plot_precision_recall(curves, points, tmp_path / "pr.png")
    assert is_png(tmp_path / "pr.png")


def test_equal_figures_give_equal_bytes(tmp_path):
    for name in ("one", "two"):
        plot_examples([example()], 1.0, tmp_path / f"{name}.png", success=True)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_pyplot_is_not_touched(tmp_path):
    before = "matplotlib.pyplot" in sys.modules
    plot_examples([example()], 1.0, tmp_path / "page.png", success=True)
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_precision_over_recall_is_what_is_drawn(panels_of, tmp_path):
    panels = panels_of(evaluation)
    curve = np.linspace(1.0, 0.0, 11)
    plot_precision_recall({"one": curve}, {"one": {"precision": 0.7, "recall": 0.4}}, tmp_path)
    (axes,) = panels
    line, point = axes.get_lines()
    expected = np.column_stack([np.linspace(0, 0.9, 10), np.linspace(1, 0.1, 10)])
    assert line.get_xydata() == pytest.approx(expected)
    assert point.get_xydata().tolist() == [[0.4, 0.7]]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("recall", "precision")
