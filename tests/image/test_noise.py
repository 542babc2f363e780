import numpy as np
import pytest

from galsep.image.background import estimate_background
from galsep.image.noise import scale_noise

SHAPE = (300, 260)


def pattern() -> np.ndarray:
    """Rms of a stack: half of it has four times the exposures, and a narrow gap has few."""
    rms = np.full(SHAPE, 2.0, np.float32)
    rms[:, 130:] = 1.0
    rms[:, 60:64] = 5.0
    return rms


def sky(rms: np.ndarray, seed: int = 1) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=SHAPE) * rms).astype(np.float32)


def scaled(noise, light, mask=None):
    mask = np.zeros(SHAPE, bool) if mask is None else mask
    background = estimate_background(light, mask)
    return scale_noise(noise, light - background.level, background.rms, mask), background


@pytest.mark.parametrize("factor", [1.0, 7.0, 1e-12])
def test_the_pattern_is_kept_and_the_scale_is_measured(factor):
    rms = pattern()
    noise, _ = scaled(rms / np.float32(factor), sky(rms))
    assert noise.scale == pytest.approx(factor, rel=0.03)
    # Without a source both are the pattern, in the gap too.
    assert np.median(noise.total / rms) == pytest.approx(1, rel=0.03)
    assert np.ptp(noise.total / rms) < 1e-5
    assert np.mean(noise.sky == noise.total) > 0.999
    assert noise.sky.dtype == noise.total.dtype == np.float32


def test_poisson_noise_of_sources_stays_out_of_the_sky():
    rms = pattern()
    rows, columns = np.indices(SHAPE)
    star = 3000 * np.exp(-((rows - 100) ** 2 + (columns - 200) ** 2) / (2 * 4.0**2))
    full = np.sqrt(rms**2 + star).astype(np.float32)
    noise, _ = scaled(full, sky(full) + star.astype(np.float32))
    assert noise.scale == pytest.approx(1, rel=0.03)
    assert full[100, 200] > 50
    assert noise.sky[100, 200] == pytest.approx(1, rel=0.1)
    assert noise.total[100, 200] == pytest.approx(full[100, 200], rel=0.03)
    assert (noise.sky <= noise.total).all()
    # Where it is empty, also in the gap, the sky is the plane.
    assert noise.sky[250, 62] == noise.total[250, 62]
    assert noise.total[250, 62] == pytest.approx(5, rel=0.03)


def test_a_source_in_a_quiet_spot_keeps_its_low_noise():
    rms = pattern()
    rms[95:106, 195:206] = 0.5
    light = sky(rms)
    light[98:103, 198:203] += 200
    noise, _ = scaled(rms, light)
    assert noise.sky[100, 200] == pytest.approx(0.5, rel=0.05)


def test_unusable_pixels_have_the_measured_noise():
    rms = pattern()
    light = sky(rms)
    mask = np.zeros(SHAPE, bool)
    mask[40:50, 40:50] = True
    light[mask], rms[mask] = 0, np.nan
    noise, background = scaled(rms, light, mask)
    assert np.isfinite(noise.sky).all()
    assert (noise.sky > 0).all()
    assert (noise.total[mask] == background.rms[mask]).all()


def test_nothing_usable_and_nothing_empty():
    ones = np.ones(SHAPE, np.float32)
    nothing = scale_noise(ones, ones, ones * 3, np.ones(SHAPE, bool))
    assert (nothing.sky == 3).all()
    assert nothing.scale == 1
    full = scale_noise(ones, ones * 1000, ones * 3, np.zeros(SHAPE, bool))
    assert full.scale == 3
    assert (full.sky == 3).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("least", [1e-30, 1e-40])
def test_a_vanishing_noise_does_not_make_a_source(least):
    rms = pattern()
    light = sky(rms)
    rms[7, 7] = least
    noise, _ = scaled(rms, light)
    assert noise.sky[7, 7] >= 1e-3 * np.median(noise.sky)


@pytest.mark.filterwarnings("error")
def test_an_absurd_noise_hides_a_pixel():
    rms = pattern()
    light = sky(rms)
    rms[7, 7] = 1e38
    noise, background = scaled(rms, light)
    assert noise.total[7, 7] == np.float32(1e6) * background.rms[7, 7]
