import math

import pytest
import surveycodex
from surveycodex.utilities import mag2counts, mean_sky_level

from galsep.errors import UsageError
from galsep.sim.survey import load_survey


def test_lsst_has_its_published_numbers():
    survey = load_survey("LSST", ("i",))
    assert (survey.name, survey.pixel_scale) == ("LSST", 0.2)
    band = survey.bands[0]
    assert band.wavelength == pytest.approx(755, abs=5)
    assert 0.6 < band.psf_fwhm < 0.9
    assert 8 < survey.mirror_diameter < 8.5


@pytest.mark.parametrize(
    ("name", "bands"),
    [("LSST", ("u", "g", "r", "i", "z", "y")), ("HSC", ("g", "i")), ("DES", ("r",))],
)
def test_flux_and_sky_agree_with_surveycodex(name, bands):
    survey = load_survey(name, bands)
    codex = surveycodex.get_survey(name)
    assert tuple(band.name for band in survey.bands) == bands
    for band in survey.bands:
        counts = mag2counts(22.0, codex, band.name).to_value("electron")
        assert 10 ** (-0.4 * (22.0 - band.zeropoint)) == pytest.approx(counts, abs=1)
        sky = mean_sky_level(codex, band.name).to_value("electron")
        assert band.sky_level == pytest.approx(sky)
        assert band.sky_rms == math.sqrt(band.sky_level)


@pytest.mark.parametrize(
    ("bands", "index"), [(("i",), 0), (("g", "r", "i", "z"), 2), (("g", "r"), 1), (("y", "u"), 0)]
)
def test_the_detection_band_is_the_one_nearest_to_i(bands, index):
    assert load_survey("LSST", bands).detection_band == index


def test_names_of_surveys_ignore_case():
    assert load_survey("lsst", ("r",)) == load_survey("LSST", ("r",))


def test_unknown_names_are_listed():
    with pytest.raises(UsageError, match=r"unknown survey 'LSTS'; known: .*HSC, LSST"):
        load_survey("LSTS", ("i",))
    with pytest.raises(UsageError, match="LSST has no band 'H'; it has u, g, r, i, z, y"):
        load_survey("LSST", ("i", "H"))


def test_depth_is_exposure_time():
    survey = load_survey("LSST", ("g", "i"))
    assert survey.deepened(0.0) is survey
    for depth in (-2.0, 1.0):
        time = 10 ** (0.8 * depth)
        for band, changed in zip(survey.bands, survey.deepened(depth).bands, strict=True):
            assert changed.sky_level == pytest.approx(time * band.sky_level)
            # The light of a source grows with the time too, so its S/N with the square root.
            gain = 10 ** (0.4 * (changed.zeropoint - band.zeropoint))
            assert gain == pytest.approx(time)
            assert gain / (changed.sky_rms / band.sky_rms) == pytest.approx(10 ** (0.4 * depth))


def test_pixels_collect_sky_by_their_area():
    survey = load_survey("LSST", ("i",))
    wide = survey.resampled(0.4)
    assert wide.pixel_scale == 0.4
    assert wide.bands[0].sky_level == pytest.approx(4 * survey.bands[0].sky_level)
    assert wide.bands[0].zeropoint == survey.bands[0].zeropoint
    assert survey.resampled(0.2) is survey
