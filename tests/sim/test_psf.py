import math

import numpy as np
import pytest

from galsep.sim.psf import MAX_SHEAR, MOFFAT_BETA, PsfShape, band_psf, seeing_width
from galsep.sim.survey import load_survey

SURVEY = load_survey("LSST", ("g", "i"))
BAND = SURVEY.bands[1]


def test_without_a_shape_the_seeing_is_round_and_kolmogorov():
    import galsim

    assert band_psf(SURVEY, BAND) == galsim.Kolmogorov(fwhm=BAND.psf_fwhm)
    assert band_psf(SURVEY, BAND, 1.1) == galsim.Kolmogorov(fwhm=1.1)
    # Other bands keep their ratio to the detection band.
    other = band_psf(SURVEY, SURVEY.bands[0], 1.1)
    assert other.fwhm == pytest.approx(1.1 * SURVEY.bands[0].psf_fwhm / BAND.psf_fwhm)


def test_moffat_profiles_keep_the_width():
    psf = band_psf(SURVEY, BAND, 0.9, PsfShape(moffat_beta=3.3))
    assert psf.beta == 3.3
    assert psf.fwhm == pytest.approx(0.9)


def test_shear_keeps_the_area():
    psf = band_psf(SURVEY, BAND, 0.9, PsfShape(g1=0.05))
    image = psf.drawImage(nx=161, ny=161, scale=0.025, method="no_pixel").array
    above = image > image[80, 80] / 2
    widths = above[80].sum() * 0.025, above[:, 80].sum() * 0.025
    assert math.sqrt(widths[0] * widths[1]) == pytest.approx(0.9, rel=0.05)
    assert widths[0] / widths[1] == pytest.approx(1.05 / 0.95, rel=0.06)


def test_shapes_keep_their_ranges():
    rng = np.random.default_rng(1)
    shapes = [PsfShape.draw(rng) for _ in range(400)]
    beta = np.array([shape.moffat_beta for shape in shapes])
    assert np.mean(beta > 0) == pytest.approx(0.5, abs=0.1)
    assert beta[beta > 0].min() >= MOFFAT_BETA[0]
    assert beta.max() <= MOFFAT_BETA[1]
    shear = np.array([complex(shape.g1, shape.g2) for shape in shapes])
    assert np.abs(shear).max() <= MAX_SHEAR
    assert abs(shear.mean()) < 0.01


def test_diffraction_stays_under_a_shear():
    euclid = load_survey("Euclid_VIS", ("IE",))
    psf = band_psf(euclid, euclid.bands[0], None, PsfShape(moffat_beta=3.0, g1=0.02))
    assert psf == band_psf(euclid, euclid.bands[0]).shear(g1=0.02)


def test_the_width_is_that_of_the_seeing_disc_which_the_same_gaussian_fits():
    import galsim

    for psf in (band_psf(SURVEY, BAND, 0.8), band_psf(SURVEY, BAND, 0.8, PsfShape(g1=0.05))):
        assert seeing_width(psf, 0.8) == pytest.approx(0.8, rel=0.005)
    wide = band_psf(SURVEY, BAND, 0.8, PsfShape(moffat_beta=2.5))
    assert seeing_width(wide, 0.8) == pytest.approx(0.882, abs=0.004)
    # Wings widen the disc's Gaussian by 5.5 %.
    assert seeing_width(galsim.Gaussian(fwhm=0.8), 0.8) == pytest.approx(0.8 / 1.055, rel=0.002)


@pytest.mark.parametrize(("survey", "band", "width"), [("Roman_WFI", "F106", 0.083),
                                                       ("Euclid_VIS", "IE", 0.1545)])  # fmt: skip
def test_the_width_of_a_psf_that_pixels_hardly_sample(survey, band, width):
    survey = load_survey(survey, (band,))
    psf = band_psf(survey, survey.bands[0])
    assert seeing_width(psf, survey.bands[0].psf_fwhm) == pytest.approx(width, rel=0.01)
