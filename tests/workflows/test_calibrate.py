"""The choice of the score threshold, and of what it is chosen on."""

import numpy as np
import pytest

from galsep.measure.metrics import scores
from galsep.workflows import calibrate
from galsep.workflows.reporting import Reporter


def chosen(monkeypatch, errors):
    """The threshold that is chosen of those with so many spurious and missed of 1,000."""
    figures = iter(
        [scores(1000 - missed, spurious, missed) for spurious, missed in errors.values()]
    )
    monkeypatch.setattr(calibrate, "THRESHOLDS", tuple(errors))
    monkeypatch.setattr(calibrate, "score_matches", lambda _matches: next(figures))
    return calibrate._threshold(None, None, [], [])[0]


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        # 10 more are missed and 8 fewer spurious: chance; then 40 more and 12 fewer.
        ({0.3: (50, 100), 0.5: (42, 110), 0.7: (30, 150)}, 0.5),
        # 10 fewer for nothing are none too few, and of equal ones the highest is taken.
        ({0.3: (60, 100), 0.5: (50, 100), 0.7: (50, 100)}, 0.7),
        ({0.3: (50, 100), 0.5: (50, 102), 0.7: (50, 120)}, 0.3),
        ({0.3: (0, 1000), 0.5: (0, 1000), 0.7: (0, 1000)}, 0.7),
    ],
    ids=["chance", "better", "worse", "nothing found"],
)
def test_purity_that_costs_nothing_is_taken(monkeypatch, errors, expected):
    assert chosen(monkeypatch, errors) == expected


def test_all_parts_of_joined_data_sets_are_looked_at():
    assert calibrate._spread(range(100, 1100), 4) == [100, 350, 600, 850]
    assert calibrate._spread(range(3), 1000) == [0, 1, 2]


def test_classes_are_fitted_where_there_are_enough_of_both():
    rng = np.random.default_rng(4)
    star = rng.random(4000) < 0.3
    columns = np.column_stack([np.ones(4000), rng.normal(size=(4000, 6))])
    columns[:, 1] += star
    columns[:, 4] -= 2.0 * star
    fit = calibrate._fit_classes(star, columns, Reporter())
    # Of unit Gaussians apart by d, the logarithm of their ratio has the slope d.
    assert fit["psf"] == pytest.approx([np.log(0.3 / 0.7) - 2.5, 1, 0, 0, -2, 0, 0], abs=0.3)
    assert fit["alone"] == pytest.approx([np.log(0.3 / 0.7) - 0.5, 1], abs=0.15)
    assert calibrate._fit_classes(star & (star.cumsum() < 50), columns, Reporter()) is None
    # What is not known of the PSF says nothing where that is, and does not hide the rest.
    hidden = np.where(np.arange(4000)[:, None] % 2, columns, np.nan)
    hidden[:, :2] = columns[:, :2]
    half = calibrate._fit_classes(star, hidden, Reporter())
    assert half["alone"] == fit["alone"]
    assert half["psf"] == pytest.approx(fit["psf"], abs=0.3)
    assert calibrate._fit_classes(star, np.full_like(columns, np.nan), Reporter()) is None


def test_classes_that_nothing_confuses_have_a_fit_of_finite_size():
    star = np.arange(200) < 100
    columns = np.column_stack([np.ones(200), *[np.where(star, 1.0, -1.0)] * 6])
    fit = calibrate._fit_classes(star, columns, Reporter())
    assert np.abs(fit["psf"] + fit["alone"]).max() < 100
    assert fit["alone"][1] > 1
