import dataclasses
import math

import numpy as np
import pytest

from galsep.image.points import TERMS, ClassFit, fit_columns, point_features
from galsep.image.psf import pixel_sigma
from galsep.scene import SourceLight

FWHM = 4.0
SIGMA = pixel_sigma(FWHM)
SHAPE = (61, 61)


def gaussian(sigma, x=30.3, y=29.8, snr=40.0):
    """Light whose S/N in a filter of its own shape is ``snr``, where the noise is 1."""
    rows, columns = np.indices(SHAPE)
    light = np.exp(-0.5 * ((columns - x) ** 2 + (rows - y) ** 2) / sigma**2)
    return (snr * light / np.sqrt((light**2).sum())).astype(np.float32)


def features(light, *, noise=None, unusable=None, fwhm=FWHM, box=(0, 0, 61, 61), rms=1.0):
    """Of one source whose own light is all there is in a box ``y0, x0, height, width``."""
    unusable = np.zeros(SHAPE, dtype=bool) if unusable is None else unusable
    y0, x0, height, width = box
    model = np.where(unusable, np.float32(0), light)[y0 : y0 + height, x0 : x0 + width] * rms
    part = SourceLight(y0, x0, np.ones_like(model), model, float(model.sum()), 1.0)
    seen = np.where(unusable, np.float32(0), light + (0 if noise is None else noise)) * rms
    noise_map = np.full(SHAPE, rms, dtype=np.float32)
    return point_features([part], seen.astype(np.float32), noise_map, unusable, fwhm)[0]


def test_a_point_has_in_each_filter_what_it_should():
    narrow, wide, snr, fwhm = features(gaussian(SIGMA))
    assert narrow == pytest.approx(0, abs=0.05)
    assert wide == pytest.approx(0, abs=0.05)
    assert math.exp(snr) == pytest.approx(40, rel=1e-3)
    assert math.exp(fwhm) == pytest.approx(FWHM)


@pytest.mark.parametrize("wider", [1.2, 1.5, 3.0])
def test_a_galaxy_has_more_where_it_is_wide(wider):
    narrow, wide, *_ = features(gaussian(wider * SIGMA))
    assert narrow < -1
    assert wide > 1


def test_what_is_narrower_than_the_psf_has_more_where_it_is_narrow():
    narrow, wide, *_ = features(gaussian(0.7 * SIGMA))
    assert narrow > 1
    assert wide < -1


def test_units_are_those_of_the_noise():
    rng = np.random.default_rng(3)
    drawn = np.array(
        [
            features(
                gaussian(SIGMA, snr=10),
                noise=rng.normal(size=SHAPE).astype(np.float32),
                box=(19, 19, 23, 23),
            )
            for _ in range(300)
        ]
    )
    excess = np.sinh(drawn[:, :2])
    # A filter's S/N has an error of 1, less what it has in common with that of the PSF.
    for column, ratio in zip(excess.T, (0.6, 2.0), strict=True):
        alike = 2 * ratio / (1 + ratio**2)
        expected = math.sqrt(1 - alike**2) / math.hypot(1, 0.02 * 10)
        assert column.mean() == pytest.approx(0, abs=0.15)
        assert column.std() == pytest.approx(expected, rel=0.15)
    faint, bright = features(gaussian(1.5 * SIGMA)), features(gaussian(1.5 * SIGMA), rms=7.0)
    assert np.allclose(faint, bright, rtol=1e-5)


def test_where_a_bright_source_is_off_by_a_little_it_may_be_the_psf():
    # A PSF 2 % wider than thought, at S/N 2000.
    narrow, wide, *_ = features(gaussian(1.02 * SIGMA, snr=2000))
    assert abs(narrow) < 1
    assert abs(wide) < 1


def test_hidden_pixels_change_nothing_as_long_as_enough_is_seen():
    light, unusable = gaussian(SIGMA), np.zeros(SHAPE, dtype=bool)
    unusable[:, 34] = True
    assert np.allclose(features(light, unusable=unusable)[:3], features(light)[:3], atol=0.15)
    unusable[28:33, 28:33] = True
    assert np.isnan(features(light, unusable=unusable)).all()


def test_the_crop_may_end_anywhere_beyond_the_source():
    light = gaussian(1.3 * SIGMA)
    near = features(light, box=(12, 12, 37, 36))
    assert np.allclose(near, features(light), atol=0.02)
    # On the crop's edge half of it is not seen.
    assert np.isnan(features(gaussian(SIGMA), box=(0, 0, 61, 31))).all()


def test_without_a_psf_light_or_peak_nothing_is_said():
    light = gaussian(SIGMA, snr=3000)
    assert np.isnan(features(light, fwhm=None)).all()
    assert np.isnan(features(np.zeros(SHAPE, dtype=np.float32))).all()
    assert np.isfinite(features(light)).all()
    assert np.isnan(features(np.minimum(light, 0.6 * light.max()))).all()
    assert point_features([], light, light, light > 0, FWHM).shape == (0, 4)


def test_probabilities_are_those_of_the_fit():
    said, blendedness = np.array([0.2, 0.2, np.nan, 1.0]), np.array([0.0, 0.5, 0.0, 0.0])
    seen = np.array([[1.0, -1.0, 3.0, 1.0], [np.nan] * 4, [1.0] * 4, [-50.0, 50.0, 8.0, 1.0]])
    fit = ClassFit(psf=(0.5, 1.0, -1.0, 2.0, -0.5, 0.1, 0.0, -0.2), alone=(-1.0, 2.0))
    given = fit.probability(fit_columns(said, blendedness, seen))
    odds = math.log(0.2 / 0.8)
    assert given[0] == pytest.approx(1 / (1 + math.exp(-(0.5 + odds + 2 + 0.5 + 0.3 - 0.2 * 3**2))))
    # Where nothing is seen, by Mask R-CNN alone; of what it has not found, nothing.
    assert given[1] == pytest.approx(1 / (1 + math.exp(-(-1 + 2 * odds))))
    assert np.isnan(given[2])
    assert 0 <= given[3] < 1e-6
    columns = fit_columns(said, blendedness, seen)
    assert columns.shape == (4, TERMS["psf"])
    # An earlier fit, without ln² S/N.
    before = dataclasses.replace(fit, psf=fit.psf[:-1]).probability(columns)
    assert before[0] == pytest.approx(1 / (1 + math.exp(-(0.5 + odds + 2 + 0.5 + 0.3))))
    assert before[1] == given[1]
