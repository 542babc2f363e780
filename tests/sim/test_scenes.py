import math

import numpy as np
import pytest

from galsep.config import SimulateConfig
from galsep.errors import UsageError
from galsep.image.psf import RADIUS, _adaptive_sigma, pixel_sigma
from galsep.scene import Blend, Source
from galsep.sim.population import Drawn, Parameters, Population, VariedPopulation
from galsep.sim.scenes import MAX_FFT, SceneMaker, _convolved, truth_columns
from galsep.sim.survey import load_survey

SURVEY = load_survey("LSST", ("i",))
THREE = load_survey("LSST", ("g", "r", "i"))
RMS = SURVEY.bands[0].sky_rms


class Fixed:
    """Always the same source."""

    def __init__(self, drawn: Drawn) -> None:
        self.drawn = drawn

    def draw(self, rng: np.random.Generator) -> Drawn:
        return self.drawn


def star(magnitude: float, bands: int = 1) -> Drawn:
    return Drawn("star", np.full(bands, magnitude), 0.0, 0.0, 0.0, None)


def disk(magnitude: float, radius: float) -> Drawn:
    return Parameters(np.array([magnitude]), 0.0, 0.0, radius, 0.1, 0.6, 1.0, 30.0).drawn()


def maker(model=None, survey=SURVEY, **settings) -> SceneMaker:
    config = SimulateConfig(bands=tuple(b.name for b in survey.bands), **settings)
    return SceneMaker(config, survey, model or Population(survey, config.max_mag))


@pytest.mark.parametrize("drawn", [star(20.0), disk(20.0, 0.5), disk(22.0, 1.0)])
def test_flux_is_conserved(drawn):
    blend = maker(Fixed(drawn), galaxies="1").blend(np.random.default_rng(1))
    source = blend.sources[0]
    expected = 10 ** (-0.4 * (drawn.magnitude[0] - SURVEY.bands[0].zeropoint))
    assert source.flux[0] == pytest.approx(expected)
    # The wings of the seeing leave the stamp and the stored crop.
    assert source.light.sum(dtype=np.float64) == pytest.approx(expected, rel=0.01)
    # The image is that light and noise of known size.
    noise = math.sqrt(120**2 * RMS**2 + expected)
    assert abs(blend.image.sum(dtype=np.float64) - source.light.sum(dtype=np.float64)) < 4 * noise


def test_sources_lie_where_the_truth_says():
    blend = maker(Fixed(star(19.0)), galaxies="3").blend(np.random.default_rng(2))
    for source in blend.sources:
        light = source.light[0].astype(np.float64)
        y, x = np.mgrid[: light.shape[0], : light.shape[1]]
        assert (light * x).sum() / light.sum() + source.x0 == pytest.approx(source.x, abs=0.05)
        assert (light * y).sum() / light.sum() + source.y0 == pytest.approx(source.y, abs=0.05)
        assert abs(source.x - 59.5) <= 12
        assert abs(source.y - 59.5) <= 12


def test_the_noise_of_an_empty_sky_is_its_rms():
    blend = maker(galaxies="0", survey=THREE).blend(np.random.default_rng(3))
    assert blend.sources == ()
    assert blend.image.shape == (3, 120, 120)
    for image, band in zip(blend.image, THREE.bands, strict=True):
        assert image.std() == pytest.approx(band.sky_rms, rel=0.03)
        assert abs(image.mean()) < 4 * band.sky_rms / 120


def test_bright_sources_add_their_own_poisson_noise():
    scene = maker(Fixed(star(15.5)), galaxies="1", max_shift=0.0)
    blends = [scene.blend(np.random.default_rng(seed)) for seed in range(60)]
    source = blends[0].sources[0]
    peak = np.unravel_index(source.light[0].argmax(), source.light[0].shape)
    values = [blend.image[0, peak[0] + source.y0, peak[1] + source.x0] for blend in blends]
    light = float(source.light[0].max())
    assert np.mean(values) == pytest.approx(light, abs=4 * math.sqrt((light + RMS**2) / 60))
    assert np.std(values) == pytest.approx(math.sqrt(light + RMS**2), rel=0.35)
    assert light > 2 * RMS**2


def test_the_same_seed_gives_the_same_blend():
    one, same, other = (
        maker(survey=THREE, galaxies="1-4").blend(np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(one.image, same.image)
    assert len(one.sources) == len(same.sources)
    for source, twin in zip(one.sources, same.sources, strict=True):
        np.testing.assert_array_equal(source.light, twin.light)
    assert not np.array_equal(one.image, other.image)


def test_ranges_of_galaxies_and_seeing_are_kept():
    scene = maker(galaxies="1-3", seeing="0.6-0.9")
    blends = [scene.blend(np.random.default_rng(seed)) for seed in range(25)]
    assert {len(blend.sources) for blend in blends} == {1, 2, 3}
    fwhm = np.array([blend.psf_fwhm for blend in blends])
    assert 0.6 <= fwhm.min() < 0.7
    assert 0.8 < fwhm.max() <= 0.9


def test_the_stored_width_of_a_psf_with_wings_is_what_its_stars_show():
    scene = maker(Fixed(star(17.0)), galaxies="1", seeing="0.8-0.8001", varied=True)
    widths = []
    for seed in range(12):
        blend = scene.blend(np.random.default_rng(seed))
        y, x = np.unravel_index(blend.image[0].argmax(), (120, 120))
        around = blend.image[:, y - RADIUS : y + RADIUS + 1, x - RADIUS : x + RADIUS + 1]
        measured = _adaptive_sigma(np.ascontiguousarray(around))[0]
        assert measured == pytest.approx(pixel_sigma(blend.psf_fwhm / 0.2), rel=0.02)
        widths.append(blend.psf_fwhm)
    assert min(widths) == pytest.approx(0.8, rel=0.01)
    assert max(widths) > 0.83


def test_the_stored_width_of_a_seeing_disc_is_its_own():
    scene = maker(galaxies="0", seeing="0.9")
    assert scene.blend(np.random.default_rng(1)).psf_fwhm == 0.9


def test_seeing_widens_the_light():
    peaks = []
    for seeing in ("1.0", "2.0"):
        scene = maker(Fixed(star(20.0)), galaxies="1", max_shift=0.0, seeing=seeing)
        peaks.append(scene.blend(np.random.default_rng(1)).sources[0].light.max())
    # Twice the width is a quarter of the peak, but for the pixel's own width.
    assert peaks[0] / peaks[1] == pytest.approx(4, rel=0.1)


def test_all_sources_may_be_stars():
    blend = maker(galaxies="4", stars=1.0).blend(np.random.default_rng(1))
    assert [source.kind for source in blend.sources] == ["star"] * 4


def test_space_telescopes_have_their_diffraction():
    survey = load_survey("Euclid_VIS", ("IE",))
    scene = maker(Fixed(star(20.0)), survey, galaxies="1")
    source = scene.blend(np.random.default_rng(1)).sources[0]
    assert source.light.sum(dtype=np.float64) == pytest.approx(source.flux[0], rel=0.05)


def test_shifts_that_leave_the_stamp_are_refused():
    with pytest.raises(UsageError, match=r"max_shift 20\.0 arcsec leaves the stamp: at most 12"):
        maker(max_shift=20.0)


def test_shifts_are_checked_against_the_smallest_pixels():
    maker(max_shift=6.0, pixel_scale="0.1-0.4")
    with pytest.raises(UsageError, match=r"at most 6 arcsec with pixels of 0\.1 arcsec"):
        maker(max_shift=6.1, pixel_scale="0.1-0.4")


def test_pixel_scales_are_drawn_at_the_same_noise():
    scene = maker(Fixed(star(21.0)), galaxies="1", max_shift=5.0, pixel_scale="0.1-0.4")
    blends = [scene.blend(np.random.default_rng(seed)) for seed in range(25)]
    scale = np.array([blend.pixel_scale for blend in blends])
    assert 0.1 <= scale.min() < 0.15
    assert 0.35 < scale.max() <= 0.4
    shift = [abs(blend.sources[0].x - 59.5) for blend in blends] * scale
    assert 4 < shift.max() <= 5
    corner = np.array([blend.image[0, :12, :12].std() for blend in blends])
    assert np.median(corner) == pytest.approx(RMS, rel=0.05)
    # Coarser pixels, a smaller picture of the same source.
    area = [np.count_nonzero(blend.sources[0].light > 1.5 * RMS) for blend in blends]
    assert np.corrcoef(scale, area)[0, 1] < -0.8


def test_one_pixel_scale_is_no_draw():
    # Exactly what the survey's own pixels would have given.
    one, other = (maker(pixel_scale=scale).blend(np.random.default_rng(3)) for scale in ("", "0.2"))
    np.testing.assert_array_equal(one.image, other.image)
    assert (one.pixel_scale, other.pixel_scale) == (0.2, 0.2)


def test_fields_have_one_pixel_scale():
    scene = maker(field="400x400", pixel_scale="0.1-0.4", density=40.0, galaxies="1")
    field = scene.field(np.random.default_rng(4))
    assert 0.1 <= field.pixel_scale <= 0.4
    assert len(field.sources) == round(40.0 * (400 * field.pixel_scale / 60) ** 2)


def test_varied_scenes_are_sound():
    scene = maker(
        VariedPopulation(THREE, 26.0), THREE, galaxies="1-4", stars=0.2, varied=True, max_mag=26.0
    )
    blends = [scene.blend(np.random.default_rng(seed)) for seed in range(25)]
    for blend in blends:
        assert np.isfinite(blend.image).all()
        for source in blend.sources:
            assert source.light.min() >= 0
            assert source.light.max() > 0
            assert np.hypot(source.e1, source.e2) < 1
            assert source.light[1].sum() <= 1.02 * source.flux[1]
    again = scene.blend(np.random.default_rng(7))
    np.testing.assert_array_equal(again.image, blends[7].image)


def test_point_sources_are_not_round_in_varied_scenes():
    scene = maker(Fixed(star(18.0)), galaxies="1", max_shift=0.0, varied=True)
    ellipticity = []
    for seed in range(12):
        source = scene.blend(np.random.default_rng(seed)).sources[0]
        y, x = np.mgrid[: source.light.shape[1], : source.light.shape[2]]
        x, y = x + source.x0 - source.x, y + source.y0 - source.y
        light = source.light[0] * np.exp(-(x**2 + y**2) / (2 * 3.0**2))
        xx, yy, xy = ((light * m).sum() for m in (x * x, y * y, x * y))
        ellipticity.append(math.hypot(xx - yy, 2 * xy) / (xx + yy))
    assert max(ellipticity) > 0.02
    assert max(ellipticity) < 0.13
    assert np.std(ellipticity) > 0.003


def test_huge_galaxies_on_fine_pixels_are_affordable():
    import galsim

    wide = Parameters(np.array([18.0]), 1.0, 0.0, 1.0, 6.0, 1.0, 0.3, 0.0).drawn()
    psf = galsim.Kolmogorov(fwhm=0.8)
    eased = _convolved(wide, psf, 0.03)
    plain = galsim.Convolve(wide.profile, psf)
    assert 2 * math.pi / 0.03 / plain.stepk > MAX_FFT >= 2 * math.pi / 0.03 / eased.stepk
    # The usual ones are left as they are.
    assert _convolved(wide, psf, 0.2) == plain


def test_fields_hold_the_density_asked_for():
    scene = maker(Fixed(star(22.0)), field="600x300", density=91.0)
    blend = scene.field(np.random.default_rng(4))
    assert blend.image.shape == (1, 300, 600)
    # 2 x 1 arcmin.
    assert len(blend.sources) == pytest.approx(182, abs=2)
    x = np.array([source.x for source in blend.sources])
    y = np.array([source.y for source in blend.sources])
    assert x.min() >= 0
    assert x.max() <= 599
    assert y.min() >= 0
    assert y.max() <= 299
    assert x.mean() == pytest.approx(300, abs=50)
    light = np.zeros((300, 600))
    for source in blend.sources:
        height, width = source.light.shape[1:]
        light[source.y0 : source.y0 + height, source.x0 : source.x0 + width] += source.light[0]
    residual = blend.image[0] - light
    assert residual.std() == pytest.approx(RMS, rel=0.03)
    assert abs(residual.mean()) < 5 * RMS / math.sqrt(180_000)


def test_fields_come_in_groups():
    scene = maker(Fixed(star(22.0)), field="400x400", galaxies="2", max_shift=0.5, density=20.0)
    sources = scene.field(np.random.default_rng(4)).sources
    assert len(sources) % 2 == 0
    for one, other in zip(sources[::2], sources[1::2], strict=True):
        assert abs(one.x - other.x) <= 5
        assert abs(one.y - other.y) <= 5


def test_groups_at_an_edge_stay_groups():
    scene = maker(Fixed(star(22.0)), field="140x140", galaxies="4", max_shift=20.0, density=300.0)
    x, y = np.transpose([
        (source.x, source.y)
        for seed in range(5) for source in scene.field(np.random.default_rng(seed)).sources
    ])  # fmt: skip
    assert ((x >= 0) & (x <= 139) & (y >= 0) & (y <= 139)).all()
    # None of them are pushed together at the border.
    assert len(x) > 100
    assert np.mean((x < 0.5) | (x > 138.5) | (y < 0.5) | (y > 138.5)) < 0.05


def square(y0: int, x0: int, side: int, level: float) -> Source:
    light = np.full((1, side, side), level, np.float32)
    flux = light.sum(axis=(1, 2), dtype=np.float64)
    return Source("galaxy", 0.0, 0.0, np.zeros(1), flux, 0.5, 0.0, 0.0, light, y0, x0)


def truth(*sources: Source, rms: float = 2.0) -> dict:
    return truth_columns(Blend(np.zeros((1, 120, 120), np.float32), sources, 0.7), rms, 0)


def test_signal_to_noise_of_uniform_light():
    # sqrt(n) * level / rms.
    assert truth(square(10, 10, 5, 6.0))["snr"][0] == pytest.approx(math.sqrt(25) * 6 / 2)


def test_purity_of_known_overlaps():
    alone = truth(square(10, 10, 4, 5.0))
    assert alone["purity"][0] == 1
    twins = truth(square(10, 10, 4, 5.0), square(10, 10, 4, 5.0))
    np.testing.assert_allclose(twins["purity"], 0.5)
    # Half of each lies under the other: 16 / (16 + 8).
    half = truth(square(10, 10, 4, 5.0), square(10, 12, 4, 5.0))
    np.testing.assert_allclose(half["purity"], 2 / 3)
    # A source three times as bright keeps 3/4 of its pixels' light.
    unequal = truth(square(10, 10, 4, 9.0), square(10, 10, 4, 3.0))
    np.testing.assert_allclose(unequal["purity"], [0.75, 0.25])
    apart = truth(square(10, 10, 4, 5.0), square(50, 50, 4, 5.0))
    np.testing.assert_allclose(apart["purity"], 1)


def test_masks_begin_above_the_threshold():
    # 1.5 rms is 3.
    assert truth(square(0, 0, 4, 3.0))["area"][0] == 0
    assert truth(square(0, 0, 4, 3.1))["area"][0] == 16


@pytest.mark.parametrize(
    ("side", "level", "detectable"),
    [
        (3, 2.0 * 7.1 / 3, True),  # S/N 7.1 on 9 px.
        (3, 2.0 * 6.9 / 3, False),  # S/N too low.
        (2, 2.0 * 7.1 / 2, False),  # 4 px are too few.
        (20, 2.9, False),  # S/N 29, but nowhere above the threshold.
    ],
)
def test_detectable_needs_signal_and_area(side, level, detectable):
    assert truth(square(5, 5, side, level))["detectable"][0] == detectable


def test_no_source_has_no_truth():
    assert {name: len(values) for name, values in truth().items()} == {
        "snr": 0,
        "purity": 0,
        "area": 0,
        "detectable": 0,
    }


def test_faint_sources_keep_a_pixel():
    scene = maker(Fixed(star(40.0)), galaxies="1", max_shift=10.0)
    source = scene.blend(np.random.default_rng(1)).sources[0]
    assert source.light.shape == (1, 1, 1)
    assert (source.y0, source.x0) == (round(source.y), round(source.x))
