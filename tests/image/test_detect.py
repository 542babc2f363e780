import numpy as np
import pytest

from galsep.image.detect import detect_blobs, large_parts, noise_correlation


def gaussian(shape, x, y, peak, sigma):
    rows, columns = np.indices(shape)
    return peak * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))


def test_finds_a_gaussian_where_it_is():
    light = gaussian((100, 120), 70.3, 40.6, 50, 2).astype(np.float32)
    blobs = detect_blobs(light, np.ones_like(light), np.zeros(light.shape, dtype=bool))
    assert len(blobs) == 1
    assert blobs.x[0] == pytest.approx(70.3, abs=0.05)
    assert blobs.y[0] == pytest.approx(40.6, abs=0.05)
    assert blobs.npix[0] == np.count_nonzero(blobs.segm)
    flux = light[blobs.segm == 1].sum()
    assert blobs.snr[0] == pytest.approx(flux / np.sqrt(blobs.npix[0]), rel=0.02)
    xmin, ymin, xmax, ymax = blobs.bounds[0]
    rows, columns = np.nonzero(blobs.segm)
    assert (xmin, ymin, xmax, ymax) == (columns.min(), rows.min(), columns.max(), rows.max())


def test_touching_sources_are_one_blob():
    light = gaussian((80, 80), 35, 40, 50, 2) + gaussian((80, 80), 43, 40, 50, 2)
    light = light.astype(np.float32)
    assert len(detect_blobs(light, np.ones_like(light), np.zeros(light.shape, dtype=bool))) == 1


def test_masked_and_empty_images_give_nothing():
    light = gaussian((60, 60), 30, 30, 50, 2).astype(np.float32)
    assert len(detect_blobs(light, np.ones_like(light), np.ones(light.shape, dtype=bool))) == 0
    flat = np.zeros((60, 60), dtype=np.float32)
    assert len(detect_blobs(flat, np.ones_like(flat), np.zeros(flat.shape, dtype=bool))) == 0


def test_large_parts_are_told_from_small_ones():
    light = gaussian((300, 300), 120, 150, 500, 30) + gaussian((300, 300), 270, 150, 300, 2)
    light = light.astype(np.float32)
    parts = large_parts(light, np.ones_like(light), light > 0.5, 100)
    assert len(parts) == 1
    assert parts[0][150, 120]
    assert not parts[0][150, 270]


def test_correlated_noise_lowers_the_significance_of_blobs():
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(3)
    white = rng.normal(0, 2, (400, 400)).astype(np.float32)
    smooth = gaussian_filter(white, 0.8)
    nothing = np.zeros(white.shape, dtype=bool)
    empty = np.zeros(white.shape, dtype=np.int32)
    factors = []
    for noise in (white, smooth):
        rms = np.full(noise.shape, noise.std(), dtype=np.float32)
        factors.append(noise_correlation(noise, rms, nothing, empty))
    assert factors[0] == pytest.approx(1, abs=0.03)
    # What sums of 5×5 pixels scatter by, directly.
    sums = smooth.reshape(80, 5, 80, 5).sum(axis=(1, 3))
    assert factors[1] == pytest.approx(sums.std() / (5 * smooth.std()), rel=0.03)
    assert factors[1] > 1.8


@pytest.mark.parametrize("scatter", [0.8, 0.6, 0.4])
def test_coarse_steps_are_no_correlation(scatter):
    """Half of the pixels and more have one value; their sums scatter as they would."""
    rng = np.random.default_rng(3)
    steps = np.round(rng.normal(0, scatter, (400, 400))).astype(np.float32)
    rms = np.full(steps.shape, steps.std(), dtype=np.float32)
    nothing = np.zeros(steps.shape, dtype=bool)
    factor = noise_correlation(steps, rms, nothing, nothing.astype(np.int32))
    assert factor == pytest.approx(1, abs=0.2)


def test_a_source_does_not_count_as_correlated_noise():
    rng = np.random.default_rng(3)
    light = rng.normal(0, 1, (200, 200)).astype(np.float32)
    light[50:150, 50:150] += 30
    rms = np.ones(light.shape, dtype=np.float32)
    blobs = detect_blobs(light, rms, np.zeros(light.shape, dtype=bool))
    factor = noise_correlation(light, rms, np.zeros(light.shape, dtype=bool), blobs.segm)
    assert factor == pytest.approx(1, abs=0.05)
    assert blobs.snr.max() == pytest.approx(30 * 100, rel=0.1)


def test_without_empty_sky_noise_counts_as_independent():
    light = np.ones((60, 60), dtype=np.float32)
    full = np.ones(light.shape, dtype=np.int32)
    assert noise_correlation(light, light, light > 2, full) == 1
