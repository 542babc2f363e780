"""The choice of the score threshold, and of what it is chosen on."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from galsep.config import SimulateConfig
from galsep.flags import Flag
from galsep.image.points import logistic, logit
from galsep.io.dataset import load_dataset
from galsep.measure.matching import Match
from galsep.measure.metrics import scores
from galsep.model.fluxes import FLUX_FEATURES, FluxFit
from galsep.model.weights import Model, load_model
from galsep.scene import SoftMask
from galsep.workflows import calibrate
from galsep.workflows.finding import find_sources
from galsep.workflows.judging import match_detectable
from galsep.workflows.reporting import Reporter
from galsep.workflows.simulate import simulate


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
    assert calibrate.spread(range(100, 1100), 4) == [100, 350, 600, 850]
    assert calibrate.spread(range(3), 1000) == [0, 1, 2]


def test_scores_are_fitted_to_the_share_of_real_sources():
    rng = np.random.default_rng(5)
    raw = logistic(rng.normal(0, 2, 20_000))
    chance = logistic(0.6 * logit(raw) - 0.8)
    slope, intercept = calibrate._platt(raw, rng.random(20_000) < chance)
    assert (slope, intercept) == pytest.approx((0.6, -0.8), abs=0.05)
    # A network that has learnt nothing, and nothing to learn from.
    assert calibrate._platt(raw, rng.random(20_000) < 1 - chance) == (1.0, 0.0)
    assert calibrate._platt(raw, np.ones(20_000, dtype=bool)) == (1.0, 0.0)


def image(monkeypatch, flags, pairs, ignored=()):
    """One image's sources with such flags, of which these are matched with true ones."""
    spurious = sorted(set(range(len(flags))) - {j for _, j in pairs} - set(ignored))
    match = Match(*(np.array(part, dtype=np.int64) for part in (pairs, [], spurious, ignored)))
    monkeypatch.setattr(calibrate, "match_detectable", lambda *_: match)
    detections = SimpleNamespace(scores=np.arange(1, len(flags) + 1) / 10)
    return SimpleNamespace(flags=np.array(flags), detections=detections)


MISSED, LARGE = int(Flag.NETWORK_MISSED), int(Flag.LARGER_THAN_CUTOUT)


def test_outlines_of_sep_do_not_count_among_scores(monkeypatch):
    here = image(monkeypatch, [0, MISSED, 0, LARGE, 0], [(0, 0), (1, 1)], ignored=[4])
    values, real = calibrate._outcomes(None, [7], [here])
    assert values == pytest.approx([0.1, 0.3])
    assert real.tolist() == [True, False]


def test_how_many_of_the_missed_are_real(monkeypatch):
    flags = [0, MISSED, MISSED, MISSED, MISSED, 0]
    here = image(monkeypatch, flags, [(0, 0), (1, 1), (2, 3)], ignored=[4])
    # Two of three, and Laplace's one more of each.
    assert calibrate._missed_share(None, [7], [here]) == pytest.approx(3 / 5)
    assert calibrate._missed_share(None, [], []) == 0.5


@pytest.mark.parametrize("level", [0.4, 0.2])
def test_masks_end_where_they_agree_best_with_the_true_ones(monkeypatch, level):
    rows, columns = np.indices((40, 40))
    soft = SoftMask(0, 0, np.exp(-((rows - 20) ** 2 + (columns - 20) ** 2) / 90).astype(np.float32))
    data = SimpleNamespace(footprints=lambda _: [soft.footprint(level + 1e-3)])
    image(monkeypatch, [0], [(0, 0)])

    def finish(_, __, model, *_more):
        detections = SimpleNamespace(footprints=[soft.footprint(model.mask_level)])
        return SimpleNamespace(detections=detections)

    monkeypatch.setattr(calibrate, "finish", finish)
    model = load_model("compact", "cpu")
    assert calibrate._mask_level(model, data, [7], [(None, None)]) == level


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


def test_some_blends_are_cut_off_or_have_a_gap_near_a_source(tmp_path):
    data = load_dataset(simulate(tmp_path / "set", SimulateConfig(n=40, seed=5, workers=1)).folder)
    seen = [calibrate._as_seen(data, blend) for blend in range(len(data))]
    again = [calibrate._as_seen(data, blend) for blend in range(len(data))]
    assert all((a.mask == b.mask).all() for a, b in zip(seen, again, strict=True))
    assert 1 <= sum(frame.mask.any() for frame in seen) <= 15
    rng = np.random.default_rng(1)
    places = np.array([[40.0, 60.0], [70.0, 50.0]])  # y and x of two sources.
    kinds = set()
    for _ in range(200):
        hidden = calibrate._hidden(places, (120, 100), rng)
        across = bool(hidden.all(axis=0).any())
        line = hidden[0] if across else hidden[:, 0]
        assert (hidden == (line if across else line[:, None])).all()
        at, along = np.flatnonzero(line), places[int(across)]
        edge = at[0] == 0 or at[-1] == len(line) - 1
        kinds.add((across, edge, at[0] == 0))
        if edge:
            # All sources are left to be seen.
            assert (at > along.max()).all() or (at < along.min()).all()
        else:
            assert len(at) <= calibrate.GAP
        assert np.abs(at[:, None] - along).min() <= calibrate.CUT_REACH + 1
    assert len(kinds) == 6


def test_a_regression_is_fitted_to_what_it_is_given_later(tmp_path, monkeypatch):
    config = SimulateConfig(n=20, seed=3, workers=1)
    data = load_dataset(simulate(tmp_path / "set", config).folder)
    model = load_model("compact", "cpu")
    plain = dataclasses.replace(model, info=calibrate._uncorrected(model.info))
    blends = data.split("train")[:6]
    images = [data.detection_image(blend) for blend in blends]
    fitted = [
        calibrate._flux_rows(data, blend, found, match_detectable(data, blend, found.detections))
        for blend, found in zip(blends, find_sources(images, plain), strict=True)
    ]
    given = []

    def keep(features):
        given.append(features)
        return 0.0, 0.0

    monkeypatch.setattr(Model, "flux_fit", FluxFit((1.0,), (0.0,), 1.0, keep, (0.0,)))
    list(find_sources(images, plain))
    rows = np.concatenate(fitted)[:, 4:]
    assert len(rows) >= 6
    distance = np.abs(np.array(given)[:, None] - rows).max(axis=2)
    assert distance.min(axis=0) == pytest.approx(0, abs=2e-3)


def test_fluxes_are_brought_to_the_truth():
    rng = np.random.default_rng(6)
    truth = rng.uniform(300, 3000, 3000)
    features = rng.normal(size=(3000, FLUX_FEATURES))
    errors = 0.02 * rng.normal(size=3000)
    flux = truth * np.exp(-0.1 - 0.1 * np.tanh(features[:, 0]) + errors)
    rows = np.column_stack([truth, flux, 0.02 * flux, truth / 10, features])
    rows[:50, 4:] = np.nan
    fit = FluxFit.from_dict(calibrate._fit_fluxes(rows, Reporter()))
    ratio = [
        fit.rest(row[3]) * np.exp(fit.regression(row[4:])[0]) * row[1] / row[0] for row in rows[50:]
    ]
    assert np.median(ratio) == pytest.approx(1, abs=2e-3)
    assert np.std(ratio) == pytest.approx(0.02, rel=0.2)
    assert np.log(fit.correction(100.0)) == pytest.approx(0.05, abs=0.01)
    # Too few for a regression, and none at all.
    assert "regression" not in calibrate._fit_fluxes(rows[:80], Reporter())
    assert calibrate._fit_fluxes(rows[:0], Reporter())["spread"] == 1
