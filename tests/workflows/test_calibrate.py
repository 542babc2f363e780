"""The choice of the score threshold, and of what it is chosen on."""

import pytest

from galsep.measure.metrics import scores
from galsep.workflows import calibrate


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
