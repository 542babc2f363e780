import numpy as np
import pytest

from galsep.measure.calibration import reliability
from galsep.measure.classes import class_scores
from galsep.plot import scores
from galsep.plot.scores import plot_classes, plot_reliability

PNG = b"\x89PNG\r\n\x1a\n"


def both(scores, real):
    figures = reliability(np.array(scores, dtype=float), np.array(real, dtype=bool))
    return {**figures, **{f"{key}_candidates": value for key, value in figures.items()}}


def test_reliability(tmp_path):
    cases = [both([0.05, 0.3, 0.85, 0.9, 1.0], [0, 1, 1, 1, 1]), both([0.4], [0]), both([], [])]
    for number, case in enumerate(cases):
        plot_reliability(case, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").read_bytes()[:8] == PNG


def test_classes(tmp_path):
    rng = np.random.default_rng(1)
    star, magnitude = rng.random(200) < 0.4, rng.uniform(18, 26, 200)
    value = np.clip(0.7 * star + rng.normal(0.15, 0.2, 200), 0, 1)
    value[:5] = np.nan
    cases = [(value, star, magnitude), (value[:0], star[:0], magnitude[:0])]
    for number, case in enumerate(cases):
        plot_classes(class_scores(*case, [20.0, 22.0, 24.0]), tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").read_bytes()[:8] == PNG


def test_reliability_shows_the_share_of_real_sources(panels_of, tmp_path):
    panels = panels_of(scores)
    scores_, real = [0.05, 0.05, 0.05, 0.05, 0.85, 0.85], [0, 0, 0, 1, 1, 1]
    plot_reliability(both(scores_, real), tmp_path / "a.png")
    _, *curves = panels[0].get_lines()
    assert len(curves) == 2
    for curve in curves:
        assert curve.get_xydata() == pytest.approx(np.array([[0.05, 0.25], [0.85, 1.0]]))
