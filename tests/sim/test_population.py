import math

import numpy as np
import pytest

from galsep.sim.population import (
    BRIGHTEST_MAG,
    BRIGHTEST_VARIED_STAR,
    COUNT_SLOPE,
    SERSIC_INDICES,
    STAR_COUNT_SLOPE,
    Parameters,
    Population,
    Stars,
    VariedPopulation,
    colors,
    draw_magnitude,
    draw_scale_length,
)
from galsep.sim.survey import load_survey

SURVEY = load_survey("LSST", ("g", "i", "z"))
DETECTION = SURVEY.detection_band


@pytest.fixture(scope="module")
def drawn() -> list[Parameters]:
    population, rng = Population(SURVEY, 25.3), np.random.default_rng(1)
    return [population.parameters(rng) for _ in range(4000)]


@pytest.mark.parametrize("slope", [COUNT_SLOPE, STAR_COUNT_SLOPE])
def test_counts_rise_with_the_slope(slope):
    rng = np.random.default_rng(2)
    magnitude = np.array([draw_magnitude(rng, slope, 25.3) for _ in range(20_000)])
    assert magnitude.min() >= BRIGHTEST_MAG
    assert magnitude.max() <= 25.3
    # N(<m) is proportional to 10^(slope m) - 10^(slope m_min).
    for limit in (24.3, 23.3, 22.3):
        top, cut, low = (10 ** (slope * m) for m in (25.3, limit, BRIGHTEST_MAG))
        expected = (cut - low) / (top - low)
        error = math.sqrt(expected * (1 - expected) / magnitude.size)
        assert np.mean(magnitude < limit) == pytest.approx(expected, abs=4 * error)


@pytest.mark.parametrize("magnitude", [21.0, 23.0, 25.0])
def test_the_median_scale_length_is_that_of_lensfit(magnitude):
    rng = np.random.default_rng(3)
    lengths = [draw_scale_length(rng, magnitude) for _ in range(8000)]
    # Miller et al. (2013), B1: ln r = -1.145 - 0.269 (i - 23); 0.318 arcsec at i = 23.
    expected = math.exp(-1.145 - 0.269 * (magnitude - 23))
    assert np.median(lengths) == pytest.approx(expected, rel=0.03)


def test_scale_lengths_follow_the_density_of_lensfit():
    rng = np.random.default_rng(4)
    lengths = np.array([draw_scale_length(rng, 23.0) for _ in range(8000)])
    a = math.exp(-1.145) / 1.1829**0.75
    grid = np.linspace(0, 20 * a, 20_001)
    density = grid * np.exp(-((grid / a) ** (4 / 3)))
    cumulative = np.cumsum(density) / density.sum()
    for quantile in (0.1, 0.25, 0.75, 0.9):
        expected = grid[np.searchsorted(cumulative, quantile)]
        assert np.quantile(lengths, quantile) == pytest.approx(expected, rel=0.05)


def test_magnitudes_keep_the_limit_in_i(drawn):
    magnitude = np.array([galaxy.magnitude for galaxy in drawn])
    assert magnitude.shape == (4000, 3)
    assert magnitude[:, DETECTION].max() <= 25.3
    assert magnitude[:, DETECTION].min() >= BRIGHTEST_MAG


def test_ellipticities_keep_their_bounds(drawn):
    disk = np.array([galaxy.disk_axis_ratio for galaxy in drawn])
    bulge = np.array([galaxy.bulge_axis_ratio for galaxy in drawn])
    for ratio, largest in ((disk, 0.804), (bulge, 0.9)):
        ellipticity = (1 - ratio) / (1 + ratio)
        assert ellipticity.min() >= 0
        assert ellipticity.max() <= largest
    # Bulges are rounder than disks.
    assert np.median(bulge) > np.median(disk)


def test_one_galaxy_in_ten_is_bulge_only(drawn):
    fraction = np.array([galaxy.bulge_fraction for galaxy in drawn])
    assert np.mean(fraction == 1) == pytest.approx(0.1, abs=0.02)
    assert ((fraction >= 0) & (fraction <= 1)).all()
    # The others: a Gaussian of width 0.1 about zero, cut at zero.
    disks = fraction[fraction < 1]
    assert np.sqrt(np.mean(disks**2)) == pytest.approx(0.1, rel=0.05)


def test_position_angles_are_uniform(drawn):
    angle = np.radians([galaxy.position_angle for galaxy in drawn])
    assert abs(np.mean(np.exp(2j * angle))) < 0.05
    assert 0 <= angle.min() < angle.max() < math.pi


def test_profiles_have_unit_flux_and_the_ellipticity_of_their_disk():
    galaxy = Parameters(
        magnitude=np.array([24.0]),
        bulge_fraction=0.2,
        point_fraction=0.1,
        disk_radius=0.6,
        bulge_radius=0.3,
        disk_axis_ratio=0.5,
        bulge_axis_ratio=0.9,
        position_angle=30.0,
    ).drawn()
    assert galaxy.kind == "galaxy"
    assert galaxy.profile.flux == pytest.approx(1.0)
    assert math.hypot(galaxy.e1, galaxy.e2) == pytest.approx((1 - 0.5) / (1 + 0.5))
    assert math.degrees(math.atan2(galaxy.e2, galaxy.e1) / 2) == pytest.approx(30.0)
    assert galaxy.half_light_radius == pytest.approx(0.7 * 0.6 + 0.2 * 0.3)


def test_the_position_angle_runs_counter_clockwise_from_x():
    import galsim

    parameters = Parameters(np.array([24.0]), 0.0, 0.0, 1.0, 0.1, 0.4, 1.0, 30.0)
    image = parameters.drawn().profile.drawImage(
        galsim.Image(101, 101), scale=0.2, method="no_pixel"
    )
    y, x = np.mgrid[-50:51, -50:51]
    xx, yy, xy = ((image.array * m).sum() for m in (x * x, y * y, x * y))
    angle = math.degrees(0.5 * math.atan2(2 * xy, xx - yy))
    assert angle == pytest.approx(30.0, abs=0.5)
    values = np.linalg.eigvalsh([[xx, xy], [xy, yy]])
    assert math.sqrt(values[0] / values[1]) == pytest.approx(0.4, abs=0.02)


def test_extreme_galaxies_can_be_drawn():
    for bulge, point in ((1.0, 0.0), (0.0, 0.0), (0.0, 1.0), (0.5, 0.5)):
        drawn = Parameters(np.array([24.0]), bulge, point, 0.5, 0.3, 1.0, 1.0, 0.0).drawn()
        assert drawn.profile.flux == pytest.approx(1.0)
        assert drawn.e1 == drawn.e2 == 0


def test_colours_are_zero_in_i_and_redden_with_redness():
    assert colors(SURVEY, 0.7)[DETECTION] == 0
    blue, grey, red = (colors(SURVEY, redness) for redness in (-1.0, 0.0, 1.0))
    # Redder means fainter in g and brighter in z, compared to i.
    assert blue[0] < grey[0] < red[0]
    assert blue[2] > grey[2] > red[2]
    np.testing.assert_allclose((blue + red) / 2, grey)


def test_stars_are_points():
    rng = np.random.default_rng(5)
    star = Stars(SURVEY, 24.0).draw(rng)
    assert (star.kind, star.profile, star.half_light_radius) == ("star", None, 0.0)
    assert BRIGHTEST_MAG <= star.magnitude[DETECTION] <= 24.0


def test_the_same_generator_draws_the_same_galaxies():
    population = Population(SURVEY, 25.3)
    one, other = (population.parameters(np.random.default_rng(9)) for _ in range(2))
    assert (one.magnitude == other.magnitude).all()
    assert one.disk_radius == other.disk_radius


def test_varied_galaxies_are_of_all_kinds():
    import galsim

    population, rng = VariedPopulation(SURVEY, 26.5), np.random.default_rng(6)
    drawn = [population.draw(rng) for _ in range(1500)]
    for galaxy in drawn:
        assert galaxy.kind == "galaxy"
        assert galaxy.profile.flux == pytest.approx(1.0)
        assert galaxy.half_light_radius > 0
        assert math.hypot(galaxy.e1, galaxy.e2) <= 0.9
    inner = [getattr(galaxy.profile, "original", galaxy.profile) for galaxy in drawn]
    sersic = [profile for profile in inner if type(profile) is galsim.Sersic]
    assert {profile.n for profile in sersic} == set(SERSIC_INDICES)
    parts = [profile.obj_list[1] for profile in inner if isinstance(profile, galsim.Sum)]
    knotty = [part for part in parts if isinstance(part, galsim.RandomKnots)]
    assert len(sersic) / len(drawn) == pytest.approx(0.3, abs=0.05)
    assert len(knotty) / len(drawn) == pytest.approx(0.2, abs=0.05)
    assert {knots.npoints for knots in knotty} == set(range(5, 31))
    # The arms of spirals are the first part of theirs, of eight clumps each.
    arms = [profile.obj_list[0] for profile in inner if isinstance(profile, galsim.Sum)]
    clumps = [len(part.original.obj_list) for part in arms if hasattr(part, "original")
              and isinstance(part.original, galsim.Sum)]  # fmt: skip
    assert set(clumps) == {16, 24}
    assert len(clumps) / len(drawn) == pytest.approx(0.1, abs=0.03)


def test_varied_galaxies_come_again_from_the_same_seed():
    population = VariedPopulation(SURVEY, 25.3)
    for seed in range(12):
        one, other = (population.draw(np.random.default_rng(seed)) for _ in range(2))
        assert one.profile == other.profile


def test_bright_stars_where_they_are_asked_for():
    rng = np.random.default_rng(7)
    stars = Stars(SURVEY, 24.0, BRIGHTEST_VARIED_STAR)
    magnitude = [stars.draw(rng).magnitude[DETECTION] for _ in range(300)]
    assert BRIGHTEST_VARIED_STAR <= min(magnitude) < 17


@pytest.mark.parametrize("faintest", [15.0, 17.0, 18.0, 18.5])
def test_no_source_is_fainter_than_the_faintest(faintest):
    rng = np.random.default_rng(3)
    drawn = np.array([draw_magnitude(rng, 0.3, faintest) for _ in range(200)])
    assert drawn.max() <= faintest
    assert np.ptp(drawn) > 0.5
