import numpy as np
import pytest

from galsep.image.background import estimate_background


def test_recovers_level_and_noise():
    rng = np.random.default_rng(1)
    data = rng.normal(100.0, 3.0, (256, 300)).astype(np.float32)
    background = estimate_background(data, np.zeros(data.shape, dtype=bool))
    assert np.abs(background.level - 100).max() < 0.5
    assert background.rms.mean() == pytest.approx(3.0, rel=0.03)
    assert background.level.dtype == background.rms.dtype == np.float32


def test_bright_sources_do_not_raise_it():
    rng = np.random.default_rng(2)
    y, x = np.indices((256, 256))
    data = rng.normal(0, 1, (256, 256))
    for centre in (40, 100, 160, 220):
        data += 500 * np.exp(-((x - centre) ** 2 + (y - centre) ** 2) / (2 * 4.0**2))
    background = estimate_background(data, np.zeros(data.shape, dtype=bool))
    assert np.abs(background.level).max() < 0.3


def test_masked_pixels_do_not_count():
    rng = np.random.default_rng(3)
    data = rng.normal(10, 1, (128, 128))
    mask = np.zeros(data.shape, dtype=bool)
    mask[:, :64] = True
    data[mask] = 1e6
    background = estimate_background(data, mask)
    assert np.abs(background.level - 10).max() < 0.5


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_a_constant_image_has_a_positive_rms(value):
    data = np.full((130, 130), value)
    background = estimate_background(data, np.zeros(data.shape, dtype=bool))
    assert (background.rms > 0).all()
    assert np.allclose(background.level, value)


def test_nothing_usable():
    background = estimate_background(np.zeros((30, 40)), np.ones((30, 40), dtype=bool))
    assert (background.level == 0).all()
    assert (background.rms == 1).all()
