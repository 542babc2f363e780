import numpy as np
import pytest

from galsep.measure.photometry import measure, split_light
from galsep.scene import SoftMask


def gaussian(shape, x, y, flux, sigma_x, sigma_y=None, angle=0.0):
    sigma_y = sigma_y or sigma_x
    rows, columns = np.indices(shape)
    u = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)
    v = -(columns - x) * np.sin(angle) + (rows - y) * np.cos(angle)
    profile = np.exp(-(u**2) / (2 * sigma_x**2) - v**2 / (2 * sigma_y**2))
    return (flux * profile / profile.sum()).astype(np.float32)


def whole(shape):
    return SoftMask(0, 0, np.ones(shape, dtype=np.float32))


def test_an_isolated_source_keeps_its_light_and_shape():
    shape = (61, 71)
    light = gaussian(shape, 33.25, 28.5, 1000, 5, 3, np.radians(30))
    rms = np.full(shape, 0.1, dtype=np.float32)
    result = measure(split_light([whole(shape)], [None], light, rms), light, rms)
    assert result.flux[0] == pytest.approx(1000, rel=1e-4)
    assert result.x[0] == pytest.approx(33.25, abs=0.01)
    assert result.y[0] == pytest.approx(28.5, abs=0.01)
    # A pixel adds 1/12 px² to each second moment.
    assert result.semimajor_axis[0] == pytest.approx(np.sqrt(25 + 1 / 12), rel=0.01)
    assert result.semiminor_axis[0] == pytest.approx(np.sqrt(9 + 1 / 12), rel=0.01)
    assert result.orientation[0] == pytest.approx(30, abs=0.5)
    assert result.blendedness[0] == pytest.approx(0)
    assert result.flux_err[0] == pytest.approx(0.1 * np.sqrt(light.size), rel=1e-5)


def test_the_gain_adds_poisson_noise():
    shape = (21, 21)
    light = np.full(shape, 4.0, dtype=np.float32)
    rms = np.ones(shape, dtype=np.float32)
    parts = split_light([whole(shape)], [None], light, rms)
    error = measure(parts, light, rms, gain=2.0).flux_err[0]
    assert error == pytest.approx(np.sqrt(light.size * (1 + 4 / 2)))


def test_shares_add_up_to_one_and_light_is_conserved():
    rng = np.random.default_rng(4)
    shape = (60, 60)
    light = gaussian(shape, 25, 30, 800, 4) + gaussian(shape, 34, 30, 200, 4)
    light += rng.normal(0, 0.1, shape).astype(np.float32)
    masks = [
        SoftMask(15, 10, rng.uniform(0.5, 1, (30, 30)).astype(np.float32)),
        SoftMask(18, 22, rng.uniform(0.5, 1, (25, 28)).astype(np.float32)),
    ]
    claims = [
        SoftMask(15, 10, rng.uniform(0.6, 0.9, (30, 30)).astype(np.float32)),
        SoftMask(18, 22, rng.uniform(0.1, 0.3, (25, 28)).astype(np.float32)),
    ]
    rms = np.ones(shape, dtype=np.float32)
    parts = split_light(masks, claims, light, rms)
    total = np.zeros(shape)
    for part in parts:
        total[part.slices] += part.share
        assert (part.model >= 0).all()
    assert np.allclose(total[total > 0], 1, atol=1e-6)
    result = measure(parts, light, rms)
    assert result.flux.sum() == pytest.approx(light[total > 0].sum(), rel=1e-5)
    assert result.flux[0] > 2 * result.flux[1]
    assert (result.blendedness > 0).all()


def test_a_source_without_a_claim_takes_what_the_others_leave():
    mask = SoftMask(0, 0, np.ones((4, 6), dtype=np.float32))
    claim = SoftMask(1, 2, np.full((2, 2), 0.7, dtype=np.float32))
    inner = SoftMask(1, 2, np.array([[1, 1], [1, 0]], dtype=np.float32))
    light = np.ones((4, 6), dtype=np.float32)
    outer, own = split_light([mask, inner], [None, claim], light, light)
    assert own.share == pytest.approx(np.array([[0.7, 0.7], [0.7, 0]]))
    assert outer.share[1:3, 2:4] == pytest.approx(np.array([[0.3, 0.3], [0.3, 1]]))
    assert outer.share[0] == pytest.approx(np.ones(6))


def test_a_source_without_positive_light_has_the_moments_of_its_mask():
    light = np.full((20, 20), -1.0, dtype=np.float32)
    mask = SoftMask(5, 5, np.ones((5, 9), dtype=np.float32))
    rms = np.ones_like(light)
    result = measure(split_light([mask], [mask], light, rms), light, rms)
    assert result.flux[0] == pytest.approx(-45)
    assert (result.x[0], result.y[0]) == (9, 7)
    assert np.isfinite(result.semimajor_axis[0])


def test_no_sources():
    light = np.zeros((9, 9), dtype=np.float32)
    assert measure(split_light([], [], light, light), light, light).flux.shape == (0,)
