from types import SimpleNamespace

import numpy as np
import pytest

from galsep.measure import forced
from galsep.measure.forced import blurred, forced_fluxes
from galsep.measure.photometry import Photometry
from galsep.planes import Planes, SourceLights, crop_bounds
from galsep.scene import SourceLight

SHAPE = (90, 150)


def gaussian(y, x, flux, sigma):
    rows, columns = np.indices(SHAPE, dtype=np.float64)
    light = np.exp(-0.5 * ((rows - y) ** 2 + (columns - x) ** 2) / sigma**2)
    return flux * light / light.sum()


def part(light, y, x, size=40):
    """A source's model, on a crop about its place."""
    top, left = max(int(y) - size // 2, 0), max(int(x) - size // 2, 0)
    model = light[top : top + size, left : left + size].astype(np.float32)
    return SourceLight(top, left, np.zeros_like(model), model, float(model.sum()), 1.0)


def image(light, rms=1.0, rng=None, gain=0.0, hidden=None):
    mask = np.zeros(SHAPE, dtype=bool) if hidden is None else hidden
    noise = 0 if rng is None else rng.normal(0, rms, SHAPE)
    return SimpleNamespace(
        light=np.where(mask, 0, light + noise).astype(np.float32),
        mask=mask,
        rms=np.full(SHAPE, rms, dtype=np.float32),
        noise=None,
        gain=gain,
    )


def photometry(flux, error):
    zero = np.zeros(len(flux))
    return Photometry(zero, zero, np.array(flux), np.array(error), zero, zero, zero, zero)


PLACES = [(30.0, 40.0), (33.5, 46.0), (60.0, 110.0)]
FLUX = [4000.0, 1500.0, 900.0]
SIGMA = [3.0, 2.5, 2.0]


@pytest.fixture(scope="module")
def field():
    """Two galaxies close together and one alone: profiles, models and what is known of them."""
    profiles = [gaussian(*place, 1.0, s) for place, s in zip(PLACES, SIGMA, strict=True)]
    parts = [
        part(flux * profile, *place)
        for flux, profile, place in zip(FLUX, profiles, PLACES, strict=True)
    ]
    own = image(sum(flux * profile for flux, profile in zip(FLUX, profiles, strict=True)))
    return profiles, parts, own


def in_band(profiles, fluxes):
    return sum(flux * profile for flux, profile in zip(fluxes, profiles, strict=True))


BAND_FLUX = [800.0, 2500.0, 300.0]


def test_colours_of_a_blend_are_its_sources_own(field):
    profiles, parts, own = field
    bands = {"g": image(in_band(profiles, BAND_FLUX)), "r": image(2 * own.light)}
    found = forced_fluxes(parts, photometry(FLUX, [40.0] * 3), own, bands)
    assert found["g"][0] == pytest.approx(BAND_FLUX, rel=3e-3)
    assert found["r"][0] == pytest.approx(2 * np.array(FLUX), rel=1e-3)
    for flux, error in found.values():
        # What is not known of the flux in the image is not known of a band's.
        assert (error >= 0.8 * flux * 40 / np.array(FLUX)).all()


def test_what_is_wrong_with_a_profile_is_wrong_in_all_bands(field):
    """A model that is too wide, and a flux too large, leave the colour as it is."""
    _, parts, own = field
    wide = [part(FLUX[0] * gaussian(*PLACES[0], 1.0, 3.3), *PLACES[0]), *parts[1:]]
    known = photometry([1.2 * FLUX[0], *FLUX[1:]], [40.0] * 3)
    found = forced_fluxes(wide, known, own, {"g": image(0.5 * own.light)})["g"][0]
    assert found == pytest.approx(0.5 * known.flux, rel=2e-3)


@pytest.mark.parametrize("blur", [-0.4, 0.3, 1.2])
def test_bands_of_another_psf(field, blur):
    profiles, parts, own = field
    light = in_band(profiles, BAND_FLUX)
    if blur > 0:
        band = image(blurred(light, blur))
    else:
        band = image(light)
        wide = [blurred(profile, -blur) for profile in profiles]
        parts = [
            part(flux * profile, *place)
            for flux, profile, place in zip(FLUX, wide, PLACES, strict=True)
        ]
        own = image(in_band(wide, FLUX))
    known = photometry(FLUX, [20.0] * 3)
    models = forced._Models(parts, Planes())
    assert forced._blur(models, [0, 1, 2], own, band) == pytest.approx(blur, abs=0.05)
    found = forced_fluxes(parts, known, own, {"g": band})["g"][0]
    assert found == pytest.approx(BAND_FLUX, rel=0.015)


@pytest.mark.parametrize("blur", [-0.4, 0.5])
@pytest.mark.parametrize("place", [(30.0, 1.0), (30.0, 3.5), (0.0, 0.0)])
def test_bands_of_another_psf_at_the_edge_of_the_image(place, blur):
    """Light beyond the edge is not known; nothing flows out of the image, or into it."""

    def light(y, x, flux, blur):
        rows, columns = np.indices((SHAPE[0] + 40, SHAPE[1] + 40), dtype=np.float64) - 20
        profile = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 8) / (8 * np.pi)
        return flux * blurred(profile, blur)[20:-20, 20:-20]

    sources = [(*place, 5000.0), (60.0, 110.0, 20_000.0)]
    models = [light(*source, max(-blur, 0)) for source in sources]
    own = image(sum(models))
    band = image(0.5 * sum(light(*source, max(blur, 0)) for source in sources))
    parts = [part(model, *source[:2]) for model, source in zip(models, sources, strict=True)]
    known = photometry([float(model.sum()) for model in models], [50.0, 50.0])
    found = forced_fluxes(parts, known, own, {"g": band})["g"][0]
    # In a corner, the colour is that of the core as it is.
    assert found == pytest.approx(0.5 * known.flux, rel=0.2 if place == (0.0, 0.0) else 0.03)


def test_smoothing_widens_by_what_it_says():
    point = np.zeros((2, 61, 61))
    point[:, 30, 30] = 1
    assert blurred(point, 0.0) is point
    for blur in (0.05, 0.7, 3.0):
        smooth = blurred(point, blur)
        assert smooth.sum(axis=(1, 2)) == pytest.approx(1)
        offset = (np.arange(61) - 30) ** 2
        for axis in (1, 2):
            assert smooth.sum(axis=axis) @ offset == pytest.approx(2 * blur, rel=1e-6)


def test_errors_are_as_large_as_they_are_said_to_be(field):
    profiles, parts, own = field
    rng = np.random.default_rng(3)
    known = photometry(FLUX, [1e-3] * 3)
    pulls = []
    for _ in range(60):
        noisy = in_band(profiles, BAND_FLUX)
        noisy = noisy + rng.normal(0, np.sqrt(np.maximum(noisy, 0) / 2))
        band = image(noisy, 1.0, rng, gain=2.0)
        flux, error = forced_fluxes(parts, known, own, {"g": band})["g"]
        pulls.append((flux - BAND_FLUX) / error)
    assert np.std(pulls, axis=0) == pytest.approx([1, 1, 1], abs=0.3)
    assert np.mean(pulls, axis=0) == pytest.approx([0, 0, 0], abs=0.5)


def test_a_source_that_a_band_lacks_has_no_flux_beside_a_bright_one(field):
    profiles, parts, own = field
    rng = np.random.default_rng(4)
    known = photometry(FLUX, [40.0, 30.0, 30.0])
    found = []
    for _ in range(40):
        band = image(in_band(profiles, [4000.0, 0.0, 0.0]), 1.0, rng)
        flux, error = forced_fluxes(parts, known, own, {"g": band})["g"]
        found.append(flux / error)
    assert np.mean(found, axis=0)[1:] == pytest.approx([0, 0], abs=0.6)
    assert (np.array(found)[:, 1:] < 0).any(axis=0).all()


def test_a_source_given_twice_is_shared(field):
    _, parts, own = field
    half = SourceLight(
        parts[2].y0, parts[2].x0, parts[2].share, parts[2].model / 2, FLUX[2] / 2, 1.0
    )
    known = photometry([*FLUX[:2], FLUX[2] / 2, FLUX[2] / 2], [40.0] * 4)
    found = forced_fluxes([*parts[:2], half, half], known, own, {"g": image(3 * own.light)})
    assert found["g"][0] == pytest.approx(3 * known.flux, rel=1e-3)


def test_what_a_band_does_not_show(field):
    profiles, parts, own = field
    hidden = np.zeros(SHAPE, dtype=bool)
    hidden[:, :38] = True  # A third of the first one is left,
    hidden[:, 107:] = True  # ... and of the third a tail.
    band = image(in_band(profiles, BAND_FLUX), hidden=hidden)
    known = photometry(FLUX, [40.0] * 3)
    flux, error = forced_fluxes(parts, known, own, {"g": band})["g"]
    assert flux[:2] == pytest.approx(BAND_FLUX[:2], rel=0.02)
    assert np.isnan(flux[2])
    assert np.isnan(error[2])
    nothing = image(np.zeros(SHAPE), hidden=np.ones(SHAPE, dtype=bool))
    assert np.isnan(forced_fluxes(parts, known, own, {"g": nothing})["g"]).all()


def test_a_bright_galaxy_has_the_colour_of_all_its_light(field):
    """A red core in a blue disc: what the whole has of each counts, not the core alone."""
    core, disc = gaussian(45, 70, 1.0, 2.2), gaussian(45, 70, 1.0, 5.0)
    own, light = image(20_000 * core + 30_000 * disc), 8_000 * core + 36_000 * disc
    parts = [part(own.light, 45, 70, 60)]
    known = photometry([50_000.0], [100.0])
    found = forced_fluxes(parts, known, own, {"g": image(light)})["g"][0]
    assert found == pytest.approx([44_000], rel=0.05)


def test_models_in_a_file_give_the_same(field, tmp_path):
    profiles, parts, own = field
    rng = np.random.default_rng(5)
    band = image(in_band(profiles, BAND_FLUX), 1.0, rng)
    stored = SourceLights(tmp_path)
    for one in parts:
        stored.append(one)
    assert stored.bounds.tolist() == crop_bounds(parts).tolist()
    known = photometry(FLUX, [40.0] * 3)
    in_memory, in_file = (forced_fluxes(p, known, own, {"g": band})["g"] for p in (parts, stored))
    assert np.array_equal(in_memory, in_file)


def test_of_no_sources_nothing_is_asked(field):
    _, _, own = field
    flux, error = forced_fluxes([], photometry([], []), own, {"g": own})["g"]
    assert flux.shape == error.shape == (0,)


def test_neighbours_are_those_whose_light_is_there():
    """However far apart sources begin, and across the cells that they are looked up by."""
    places = [(45.0, 20.0), (45.0, 62.0), (45.0, 127.0), (45.0, 133.0)]
    parts = [part(gaussian(*place, 100.0, 3.0), *place, 30) for place in places]
    models = forced._Models(parts, Planes())
    assert [len(models.about(k)) for k in range(4)] == [1, 1, 2, 2]
    assert np.array_equal(models.about(2)[1][:, 6:], parts[3].model[:, : 30 - 6])
