import numpy as np
import pytest

from galsep.measure.recovery import Recovery, recover, summarise_recovery
from galsep.scene import SourceLight

SHAPE = (60, 70)


def gaussian(x, y, flux, sx=3.0, sy=3.0):
    rows, columns = np.indices(SHAPE)
    light = np.exp(-((columns - x) ** 2) / (2 * sx**2) - (rows - y) ** 2 / (2 * sy**2))
    return (flux * light / light.sum()).astype(np.float32)


def part(model, y0=0, x0=0):
    model = np.asarray(model, dtype=np.float32)
    return SourceLight(y0, x0, np.ones_like(model), model, float(model.sum()), 1.0)


def judged(truth, parts, pairs, *, exact=True, rms=1.0, flux_err=None, sep=None, colors=0):
    truth = np.array(truth)
    n = len(truth)
    flux = truth.sum(axis=(1, 2), dtype=float)
    about = {
        "flux": flux,
        "magnitude": np.linspace(23, 25, n),
        "purity": np.linspace(0.7, 1, n),
        "separation": np.full(n, 9.0),
    }
    nothing = np.full(n, np.nan)
    return recover(
        truth,
        about,
        parts,
        np.array([one.flux for one in parts]),
        np.array(flux_err if flux_err is not None else [1.0] * len(parts)),
        np.array(pairs).reshape(-1, 2),
        rms,
        exact=exact,
        color_error=np.zeros((n, colors)),
        sep=sep or (nothing, nothing),
    )


def test_a_perfect_model():
    truth = gaussian(30, 25, 4000)
    crop = np.s_[5:50, 8:60]
    found = judged([truth], [part(truth[crop], 5, 8)], [(0, 0)])
    assert found.flux_ratio[0] == pytest.approx(1, abs=1e-4)
    assert found.image_error[0] == pytest.approx(0, abs=1e-8)
    assert found.cosine[0] == found.ssim[0] == pytest.approx(1, abs=1e-6)
    assert found.ellipticity_error[0] == pytest.approx(0, abs=1e-6)


def test_a_model_too_bright_by_a_tenth():
    truth = gaussian(30, 25, 4000)
    found = judged([truth], [part(1.1 * truth)], [(0, 0)], flux_err=[100.0])
    assert found.flux_ratio[0] == pytest.approx(1.1)
    assert found.pull[0] == pytest.approx(400 / 100, rel=1e-4)
    assert found.image_error[0] == pytest.approx(0.01, rel=1e-4)
    assert found.cosine[0] == pytest.approx(1)
    assert found.ssim[0] < 1
    assert found.ellipticity_error[0] == pytest.approx(0, abs=1e-6)


def test_a_model_off_by_some_pixels():
    # Of Gaussians whose centres lie d apart, the product is exp(-d²/4σ²) of the square.
    truth, model = gaussian(30, 25, 4000), gaussian(34, 25, 4000)
    found = judged([truth], [part(model)], [(0, 0)])
    overlap = np.exp(-(4**2) / (4 * 3**2))
    assert found.cosine[0] == pytest.approx(overlap, rel=1e-4)
    assert found.image_error[0] == pytest.approx(2 - 2 * overlap, rel=1e-4)
    nearer = judged([truth], [part(gaussian(31, 25, 4000))], [(0, 0)])
    assert 0 < found.ssim[0] < nearer.ssim[0] < 1


def test_ellipticity_is_that_of_the_second_moments():
    # e = (σx² − σy²) / (σx² + σy²), and it is a vector: its error is not that of its size.
    wide, high = gaussian(35, 30, 4000, sx=4, sy=3), gaussian(35, 30, 4000, sx=3, sy=4)
    found = judged([wide, wide], [part(wide), part(high)], [(0, 0), (1, 1)])
    assert found.ellipticity_error == pytest.approx([0, 2 * 7 / 25], abs=1e-4)


def test_no_model_at_all():
    truth = gaussian(30, 25, 4000)
    found = judged([truth], [part(0 * truth)], [(0, 0)])
    assert (found.flux_ratio[0], found.cosine[0], found.image_error[0]) == (0, 0, 1)
    assert np.isnan(found.ellipticity_error[0])


def test_a_source_that_was_not_found_has_no_figures():
    truth = [gaussian(20, 25, 4000), gaussian(50, 30, 2000)]
    found = judged(truth, [part(truth[1])], [(1, 0)], exact=False)
    assert np.isnan(found.flux_ratio[0])
    assert np.isnan(found.cosine[0])
    assert found.flux_ratio[1] == pytest.approx(1)
    assert not found.exact.any()
    figures = summarise_recovery(found, {})
    assert (figures["n"], figures["exact"]["n"]) == (1, 0)
    assert figures["flux_error"] == pytest.approx(0, abs=1e-5)
    # Half a source's worth between perfect and missed.
    assert figures["flux_error_all"] == pytest.approx(0.5)
    assert figures["exact"]["flux_error"] is None


def sources(ratio, pull=None, **changes):
    n = len(ratio)
    columns = {name: np.zeros(n) for name in Recovery.__dataclass_fields__}
    columns |= {
        "exact": np.ones(n, dtype=bool),
        "flux_ratio": np.asarray(ratio, dtype=float),
        "pull": np.zeros(n) if pull is None else pull,
        "color_error": np.zeros((n, 0)),
        "sep_isophotal": np.full(n, np.nan),
        "sep_kron": np.full(n, np.nan),
    }
    return Recovery(**(columns | changes))


def test_widths_and_biases_are_those_of_the_distribution():
    rng = np.random.default_rng(3)
    n = 40_000
    off, pull = rng.normal(0.02, 0.05, n), rng.normal(-0.1, 1.2, n)
    off[:100] = 50  # Which means do not withstand.
    figures = summarise_recovery(sources(1 + off, pull), {})
    assert figures["flux_bias"] == pytest.approx(0.02, abs=0.002)
    assert figures["flux_mean"] == pytest.approx(0.02, abs=0.002)
    assert figures["flux_scatter"] == pytest.approx(0.05, rel=0.03)
    assert figures["pull_width"] == pytest.approx(1.2, rel=0.03)
    assert figures["pull_median"] == pytest.approx(-0.1, abs=0.03)


def test_bins_hold_each_source_once():
    magnitude = np.array([22.0, 24.0, 24.2, 25.0, 26.0])
    ratio = np.array([1.0, 1.1, 1.3, np.nan, 0.5])
    exact = np.array([True, True, False, True, True])
    found = sources(ratio, magnitude=magnitude, exact=exact, separation=np.full(5, np.inf))
    by = summarise_recovery(found, {"magnitude": [24.0, 25.0], "separation": [8.0]})["by"]
    bins = by["magnitude"]
    assert [(one["low"], one["high"], one["n"]) for one in bins] == [
        (None, 24, 1), (24, 25, 2), (25, None, 1)
    ]  # fmt: skip
    assert bins[1]["flux_bias"] == pytest.approx(0.2)
    assert (bins[1]["exact"]["n"], bins[1]["exact"]["flux_bias"]) == (1, pytest.approx(0.1))
    # A source that is alone lies beyond all edges.
    assert [one["n"] for one in by["separation"]] == [0, 4]
    assert by["separation"][0]["flux_error"] is None


def test_sep_is_compared_on_the_sources_it_finds():
    truth = [gaussian(15, 25, 4000), gaussian(35, 30, 2000), gaussian(55, 30, 1000)]
    sep = (np.array([3000, np.nan, 900.0]), np.array([4200, np.nan, np.nan]))
    found = judged(truth, [part(1.02 * truth[0])], [(0, 0)], sep=sep)
    figures = summarise_recovery(found, {})["sep"]
    assert figures["n"] == 2
    assert figures["isophotal_error"] == pytest.approx((0.25 + 0.1) / 2, rel=1e-4)
    assert figures["isophotal_bias"] == pytest.approx(-(0.25 + 0.1) / 2, rel=1e-4)
    # Of two values, the width that holds 68.26 % is that share of their distance.
    assert figures["isophotal_scatter"] == pytest.approx(0.6826 * 0.15 / 2, rel=1e-3)
    # One has a Kron flux, and one value has no width.
    assert figures["n_kron"] == 1
    assert figures["kron_error"] == figures["kron_bias"] == pytest.approx(0.05, rel=1e-4)
    assert figures["kron_scatter"] is None
    # The network missed the second of them: no flux, and no image to compare.
    assert figures["flux_error"] == pytest.approx((0.02 + 1) / 2, rel=1e-4)
    assert figures["flux_bias"] == pytest.approx((0.02 - 1) / 2, rel=1e-4)
    assert figures["flux_scatter"] == pytest.approx(0.6826 * 1.02 / 2, rel=1e-3)
    assert figures["image_error"] == pytest.approx(0.02**2, rel=1e-3)


def test_each_bin_is_compared_with_sep():
    found = sources(
        [1.0, np.nan, 1.2, 1.1],
        magnitude=np.array([23.0, 24.5, 24.6, 24.7]),
        sep_isophotal=np.array([0.9, 0.7, 0.5, np.nan]),
        sep_kron=np.array([np.nan, 0.8, 1.0, np.nan]),
    )
    figures = summarise_recovery(found, {"magnitude": [24.0]})
    bright, faint = (one["sep"] for one in figures["by"]["magnitude"])
    assert (bright["n"], bright["n_kron"], faint["n"], faint["n_kron"]) == (1, 0, 2, 2)
    assert (bright["flux_bias"], bright["isophotal_bias"]) == (0, pytest.approx(-0.1))
    assert bright["kron_bias"] is bright["isophotal_scatter"] is None
    assert faint["isophotal_bias"] == pytest.approx(-0.4)
    assert faint["isophotal_scatter"] == pytest.approx(0.6826 * 0.2 / 2)
    assert faint["kron_bias"] == pytest.approx(-0.1)
    # -1 and 0.2: SEP has the source that the network has not.
    assert faint["flux_bias"] == pytest.approx(-0.4)
    assert figures["by"]["magnitude"][1]["flux_bias"] == pytest.approx(0.15)
    assert figures["sep"]["isophotal_bias"] == pytest.approx(-0.3)


def test_a_single_source_has_no_width():
    figures = summarise_recovery(sources([1.1], pull=np.array([2.0])), {})
    assert figures["flux_bias"] == pytest.approx(0.1)
    assert figures["flux_scatter"] is figures["pull_width"] is None


def test_colours_have_figures_each():
    colors = np.array([[0.1, -0.2], [np.nan, 0.4], [0.3, 0.0]])
    figures = summarise_recovery(sources([1, 1, 1], color_error=colors), {})
    assert figures["color_error"] == pytest.approx([0.2, 0.2])
    assert figures["color_bias"] == pytest.approx([0.2, 0.0])


def test_blends_are_joined_in_order():
    one, two = sources([1.0, 1.1]), sources([0.9])
    joined = Recovery.joined([one, sources([]), two])
    assert joined.flux_ratio.tolist() == [1.0, 1.1, 0.9]
    assert joined.color_error.shape == (3, 0)


def test_no_sources():
    figures = summarise_recovery(sources([]), {"magnitude": [24.0]})
    assert figures["n"] == figures["sep"]["n"] == 0
    assert figures["flux_error"] is figures["flux_error_all"] is figures["pull_width"] is None
