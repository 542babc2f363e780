import numpy as np
import pytest

from galsep.image.detect import detect_blobs
from galsep.image.psf import (
    Domain,
    Psf,
    _compact_end,
    _shortest_half,
    _stands_out,
    choose_domain,
    estimate_psf,
)

BETA = 3.5


def moffat(shape, x, y, flux, fwhm):
    """Light of a star with the wings of seeing, averaged over 3×3 points a pixel."""
    radius = int(6 * fwhm) + 4
    low_y, low_x = max(0, int(y) - radius), max(0, int(x) - radius)
    box = slice(low_y, int(y) + radius), slice(low_x, int(x) + radius)
    rows, columns = (indices[box] for indices in np.indices(shape))
    core = fwhm / 2 / np.sqrt(2 ** (1 / BETA) - 1)
    light = np.zeros(shape)
    for dy in (-1 / 3, 0, 1 / 3):
        for dx in (-1 / 3, 0, 1 / 3):
            square = (columns + dx - x) ** 2 + (rows + dy - y) ** 2
            light[box] += (1 + square / core**2) ** -BETA / 9
    return flux * (BETA - 1) / (np.pi * core**2) * light


def field(fwhm, n=25, size=500, seed=1, widths=None):
    """Noise of rms 1 with stars, or with sources of the given widths."""
    rng = np.random.default_rng(seed)
    image = rng.normal(0, 1, (size, size))
    widths = np.full(n, fwhm) if widths is None else widths
    for width in widths:
        x, y = rng.uniform(25, size - 25, 2)
        image += moffat(image.shape, x, y, fwhm * rng.uniform(1e3, 8e3), width)
    return image.astype(np.float32)


def estimate(light, mask=None):
    psf = measured(light, mask)
    return psf and psf.fwhm


def measured(light, mask=None):
    mask = np.zeros(light.shape, dtype=bool) if mask is None else mask
    light = np.where(mask, np.float32(0), light)
    return estimate_psf(light, mask, detect_blobs(light, np.ones_like(light), mask))


@pytest.mark.parametrize("fwhm", [1.5, 2.5, 4.0, 6.0, 10.0, 18.0])
def test_stars_have_the_width_they_were_drawn_with(fwhm):
    size = 500 if fwhm < 10 else 1000
    assert estimate(field(fwhm, size=size)) == pytest.approx(fwhm, rel=0.12)


@pytest.mark.parametrize("seed", range(4))
def test_galaxies_alone_give_the_most_compact(seed):
    # As many in each interval of relative size.
    widths = np.exp(np.random.default_rng(seed).uniform(np.log(3.2), np.log(9), 200))
    psf = measured(field(3.0, size=1600, widths=widths))
    assert psf.fwhm == pytest.approx(3.5, rel=0.25)
    assert not psf.points


def sizes(n, rng):
    """Of galaxies: as many in each interval of relative size."""
    return np.exp(rng.uniform(np.log(1.6), np.log(4.5), n))


@pytest.mark.parametrize("n", [10, 12, 20, 30, 50, 100, 200])
def test_few_galaxies_are_seldom_taken_for_stars(n):
    rng = np.random.default_rng(n)
    taken = [points(sizes(n, rng)) for _ in range(300)]
    assert np.mean(taken) < 0.15


@pytest.mark.parametrize(
    ("stars", "galaxies", "least"), [(10, 2, 0.9), (9, 21, 0.7), (20, 80, 0.9)]
)
def test_stars_are_known_by_their_equal_size(stars, galaxies, least):
    rng = np.random.default_rng(stars)
    taken = [
        points([*1.5 * np.exp(rng.normal(0, 0.02, stars)), *sizes(galaxies, rng)])
        for _ in range(300)
    ]
    assert np.mean(taken) > least


def points(values):
    values = np.array(values)
    return _stands_out(_shortest_half(_compact_end(values)), values)


@pytest.mark.parametrize("stars", [6, 40])
def test_stars_among_galaxies_are_seen_to_be_points(stars):
    widths = np.concatenate([np.full(stars, 3.0), np.random.default_rng(2).uniform(3.6, 9, 40)])
    psf = measured(field(3.0, size=900, widths=widths))
    assert psf.points
    assert psf.fwhm == pytest.approx(3.0, rel=0.12)


def test_cosmic_rays_do_not_count():
    light = field(4.0)
    rng = np.random.default_rng(4)
    for y, x in rng.integers(20, 480, (4, 2)).tolist():
        light[y, x : x + 3] += 300
    assert estimate(light) == pytest.approx(4.0, rel=0.12)


def test_saturated_stars_do_not_count():
    light = np.minimum(field(5.0, n=25, seed=6), 20)
    assert estimate(light) is None


def test_masked_and_cut_objects_do_not_count():
    light = field(4.0, n=12)
    mask = np.zeros(light.shape, dtype=bool)
    assert estimate(light, mask) is not None
    blobs = detect_blobs(light, np.ones_like(light), mask)
    bright = np.flatnonzero(blobs.snr > 20)[:5]
    mask[blobs.y[bright].astype(int), blobs.x[bright].astype(int) + 2] = True
    assert estimate(light, mask) is None


@pytest.mark.parametrize("shape", [(120, 120), (1, 1), (300, 2)])
def test_without_objects_there_is_no_estimate(shape):
    noise = np.random.default_rng(5).normal(size=shape).astype(np.float32)
    assert estimate(noise) is None
    assert estimate(np.zeros(shape, dtype=np.float32)) is None


def test_too_few_stars_give_no_estimate():
    assert estimate(field(3.0, n=9)) is None


def test_limits_and_blocks():
    limits = (2.0, 8.0)
    assert choose_domain(None, limits) == Domain(None, limits)
    assert choose_domain(Psf(20.0), None) == Domain(Psf(20.0))
    assert choose_domain(Psf(8.0), limits) == Domain(Psf(8.0), limits, binning=1)
    assert choose_domain(Psf(8.1), limits) == Domain(Psf(8.1), limits, binning=2)
    assert choose_domain(Psf(17.0), limits) == Domain(Psf(17.0), limits, binning=3)
    assert choose_domain(Psf(1.9), limits) == Domain(Psf(1.9), limits, inside=False)
    # Twice the pixels would be too few.
    assert choose_domain(Psf(5.5), (3.0, 5.0)) == Domain(Psf(5.5), (3.0, 5.0), inside=False)
