from dataclasses import replace

import numpy as np
import pytest

from galsep.model import fluxes
from galsep.model.fluxes import (
    FLUX_FEATURES,
    FluxFit,
    FluxRegression,
    fit_regression,
    flux_features,
)
from galsep.scene import SourceLight

MODEL, GIVEN, OTHERS, LEFT = (slice(11 + 8 * k, 19 + 8 * k) for k in range(4))
"""Features in Gaussians of eight widths."""


def bump(y, x, total, size, side=48):
    rows, columns = np.indices((side, side))
    light = np.exp(-0.5 * ((rows - y) ** 2 + (columns - x) ** 2) / size**2)
    return (total * light / light.sum()).astype(np.float32)


def scene(dy=0, dx=0):
    """Two sources, their light without noise, and which pixels are usable."""
    one, other = bump(20, 20, 500, 2), bump(24, 27, 900, 3)
    share = one / (one + other + 0.1)
    parts = [
        SourceLight(10 + dy, 12 + dx, share, one, 510.0, 9.0),
        SourceLight(10 + dy, 12 + dx, 1 - share, other, 920.0, 11.0),
    ]
    light = np.zeros((90, 90), dtype=np.float32)
    light[parts[0].slices] = one + other
    return parts, light, np.ones(light.shape, dtype=bool)


def regression(*bias):
    """One that answers with its last biases whatever it sees."""
    sizes = [FLUX_FEATURES, 32, 32, len(bias)]
    return FluxRegression(
        np.zeros(FLUX_FEATURES),
        np.ones(FLUX_FEATURES),
        [np.zeros((n, m)) for n, m in zip(sizes[1:], sizes, strict=False)],
        [np.zeros(32), np.zeros(32), np.array(bias)],
    )


def test_features_tell_what_is_known_of_the_light():
    parts, light, usable = scene()
    features = flux_features(parts, light, usable)
    assert features.shape == (2, FLUX_FEATURES)
    assert np.isfinite(features).all()
    first = features[0]
    assert first[:3] == pytest.approx(np.log([510, 510 / 500, 9 / 510]), rel=1e-4)
    assert np.exp(first[5]) == pytest.approx(2**2 + 0.1, rel=1e-3)
    assert first[6] == pytest.approx(0, abs=1e-3)  # Round.
    # A Gaussian of σ = 2 seen through those of σ = 12.7 to 1.1.
    assert first[MODEL] == pytest.approx(fluxes.WIDTHS**2 / (fluxes.WIDTHS**2 + 2**2), rel=2e-3)
    assert (np.diff(first[OTHERS]) < 0).all()
    assert first[LEFT] == pytest.approx(0, abs=1e-6)
    more = light.copy()
    more[parts[0].slices] += bump(20, 20, 51, 2)
    assert flux_features(parts, more, usable)[0, LEFT.start] == pytest.approx(0.1, rel=0.03)


def test_the_psf_is_told_where_it_is_known():
    parts, light, usable = scene()
    unknown, known = flux_features(parts, light, usable), flux_features(parts, light, usable, 3.5)
    assert (unknown[:, -2:] == 0).all()
    assert (known[:, -2:] == (np.log(3.5), 1)).all()
    assert (known[:, :-2] == unknown[:, :-2]).all()


def test_features_change_smoothly_and_not_with_the_place():
    parts, light, usable = scene()
    features = flux_features(parts, light, usable)
    elsewhere = flux_features(*scene(30, 29))
    assert elsewhere == pytest.approx(features, abs=1e-12)
    noise = np.random.default_rng(1).normal(0, 1e-4, (48, 48)).astype(np.float32)
    moved = [replace(part, model=np.abs(part.model + noise)) for part in parts]
    assert flux_features(moved, light, usable) == pytest.approx(features, abs=5e-3)


def test_a_source_does_not_depend_on_which_others_are_looked_at():
    parts, light, usable = scene()
    features = flux_features(parts, light, usable)
    chosen = flux_features(parts, light, usable, chosen=np.array([False, True]))
    assert np.isnan(chosen[0]).all()
    assert (chosen[1] == features[1]).all()
    empty = replace(parts[0], model=np.zeros_like(parts[0].model))
    assert np.isnan(flux_features([empty], light, usable)).all()
    assert flux_features([], light, usable).shape == (0, FLUX_FEATURES)


def test_a_regression_finds_what_features_tell():
    rng = np.random.default_rng(2)
    features = rng.normal(size=(4000, FLUX_FEATURES)) * np.linspace(0.1, 50, FLUX_FEATURES) + 7
    known = np.tanh((features[:, 3] - 7) / features[:, 3].std())
    log_ratio = 0.2 * known + rng.normal(0, 0.03, 4000)
    fit = fit_regression(features, log_ratio, np.full(4000, 0.03), np.zeros(4000))
    errors = [fit(row)[0] - 0.2 * value for row, value in zip(features, known, strict=True)]
    assert np.std(errors) < 0.03
    # Far from what it was fitted to, it goes no further.
    assert abs(fit(features[0] + 1e6)[0]) <= fluxes.LIMIT
    stored = FluxRegression.from_dict(fit.to_dict())
    assert stored(features[0]) == pytest.approx(fit(features[0]), abs=1e-5)
    assert FluxRegression.from_dict(stored.to_dict()) == stored != regression(0.1)


def test_a_regression_tells_what_fluxes_are_off_by_then():
    rng = np.random.default_rng(7)
    features = rng.normal(size=(6000, FLUX_FEATURES))
    crowded = np.tanh(features[:, 1])
    bright = features[:, 2] > 0
    noise = np.where(bright, 0.02, 0.0)
    size = np.hypot(0.03 * np.exp(0.7 * crowded), noise)
    log_ratio = 0.1 * np.tanh(features[:, 0]) + size * rng.normal(size=6000)
    fit = fit_regression(features, log_ratio, np.full(6000, 0.03), noise)
    growth = np.array([fit(row)[1] for row in features])
    assert np.corrcoef(growth, crowded)[0, 1] > 0.7
    assert np.polyfit(crowded, growth, 1)[0] == pytest.approx(0.7, abs=0.2)
    # The noise of its own light counts apart.
    assert abs(growth[bright].mean() - growth[~bright].mean()) < 0.1
    low, high = fluxes.SPREAD_LIMITS
    assert low <= fit(features[0] + 1e6)[1] <= high
    assert regression(0.1, -9.0)(features[0])[1] == low
    assert regression(0.1, 9.0)(features[0])[1] == high
    # Regressions of before do not tell.
    assert regression(0.1)(features[0]) == pytest.approx((0.1, 0))
    assert regression(0.1, -0.4)(features[0]) == pytest.approx((0.1, -0.4))


def test_a_regression_makes_do_without_the_psf():
    rng = np.random.default_rng(4)
    features = rng.normal(size=(4000, FLUX_FEATURES))
    features[:, -1] = 1
    log_ratio = 0.1 + 0.1 * np.tanh(features[:, -2])
    fit = fit_regression(features, log_ratio, np.full(4000, 0.03), np.zeros(4000))
    told = [fit(row)[0] for row in features[:400]]
    features[:, -2:] = 0
    untold = [fit(row)[0] for row in features[:400]]
    assert np.std(told - log_ratio[:400]) < 0.4 * np.std(log_ratio)
    assert np.median(untold) == pytest.approx(0.1, abs=0.02)
    assert np.std(untold) < 0.4 * np.std(log_ratio)


def test_a_feature_that_is_all_but_constant_is_no_switch():
    rng = np.random.default_rng(5)
    features = rng.normal(size=(2000, FLUX_FEATURES))
    log_ratio = 0.1 * np.tanh(features[:, 0])
    features[:, 7] = 1 + 1e-9 * rng.normal(size=2000)
    features[::70, 7] -= 0.05
    log_ratio[::70] += 0.3
    fit = fit_regression(features, log_ratio, np.full(2000, 0.03), np.zeros(2000))
    near = features[1].copy()
    near[7] = 1 - 1e-5
    assert fit(near)[0] == pytest.approx(fit(features[1])[0], abs=2e-3)


def test_features_that_tell_nothing_give_no_regression():
    rng = np.random.default_rng(3)
    features = rng.normal(size=(3000, FLUX_FEATURES))
    sizes = np.full(3000, 0.1), np.zeros(3000)
    assert fit_regression(features, rng.normal(0, 0.1, 3000), *sizes) is None
    few = (size[:200] for size in sizes)
    assert fit_regression(features[:200], features[:200, 0], *few) is None


def test_the_regression_changes_the_flux_and_leaves_the_model():
    parts, light, usable = scene()
    fit = FluxFit((1.0,), (0.0,), 2.0, regression(0.1, -0.5), (0.0,))
    first, second = fit.corrected(parts, light, usable, np.array([True, False]))
    assert first.flux == pytest.approx(np.exp(0.1) * parts[0].flux)
    assert first.flux_err == pytest.approx(2 * np.exp(0.1 - 0.5) * parts[0].flux_err)
    assert (first.model == parts[0].model).all()
    assert second is parts[1]


def test_models_and_fluxes_have_a_correction_each():
    parts, light, usable = scene()
    fit = FluxFit((1.0,), (np.log(1.2),), 2.0, regression(0.1), (np.log(0.9),))
    first, _ = fit.corrected(parts, light, usable, np.array([True, False]))
    assert first.model.sum() == pytest.approx(np.sqrt(1.2) * parts[0].model.sum())
    assert first.flux == pytest.approx(0.9 * np.exp(0.1) * parts[0].flux)
    fit = FluxFit((1.0,), (np.log(1.2),), 2.0)
    first, _ = fit.corrected(parts, light, usable, np.array([True, False]))
    assert first.flux == pytest.approx(1.2 * parts[0].flux)


@pytest.mark.parametrize(
    "change",
    [
        {"centre": [0.0] * 3},
        {"scale": [0.0] * FLUX_FEATURES},
        {"scale": None},
        {"weights": [[1.0]]},
        {"biases": [1.0, 2.0, 3.0]},
        regression(0.1, 0.2, 0.3).to_dict(),
        {"biases": [[0.0] * 32, [0.0] * 32, [float("nan")]]},
        {"biases": [[0.0] * 32, [0.0] * 32, ["x"]]},
        {"weights": []},
    ],
)
def test_what_is_no_regression_is_refused(change):
    with pytest.raises(ValueError, match=r"regression|convert|inhomogeneous"):
        FluxRegression.from_dict({**regression(0.1).to_dict(), **change})
    with pytest.raises(ValueError, match="not a regression"):
        FluxRegression.from_dict({})
