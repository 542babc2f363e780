from dataclasses import replace

import numpy as np
import pytest

from galsep.image import large
from galsep.image.detect import detect_blobs
from galsep.image.large import (
    find_large,
    in_another_image,
    in_outlines,
    surroundings,
    without_large,
)
from galsep.image.light import Light
from galsep.image.psf import Domain
from galsep.image.symmetry import SCALES, _smooth, _starlet_noise
from galsep.planes import Planes

SHAPE = (360, 400)
ROWS, COLUMNS = np.indices(SHAPE)
COMPANIONS = ((150, 120, 900.0), (235, 200, 1500.0), (215, 170, 2500.0), (330, 300, 900.0))


def disc(x, y, peak=300.0, scale=22.0, ratio=0.7, angle=0.5):
    dx, dy = COLUMNS - x, ROWS - y
    u, v = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    # Softened, as the PSF does it.
    return peak * np.exp(-np.sqrt(u**2 + (v / ratio) ** 2 + 4) / scale)


def point(x, y, flux, width=1.8):
    distance = np.hypot(COLUMNS - x, ROWS - y)
    return flux / (2 * np.pi * width**2) * np.exp(-((distance / width) ** 2) / 2)


def companions():
    return sum(point(*one) for one in COMPANIONS)


def image_of(light, seed=1, mask=None, unit=1.0, gain=0.0):
    noisy = (light + np.random.default_rng(seed).normal(size=light.shape)) * unit
    hidden = np.zeros(light.shape, dtype=bool) if mask is None else mask
    noisy = np.where(hidden, 0, noisy).astype(np.float32)
    rms = np.full(light.shape, unit, dtype=np.float32)
    return Light(noisy, hidden, np.zeros_like(rms), rms, None, None, gain)


def found_in(image):
    blobs = detect_blobs(image.light, image.rms, image.mask)
    sizes = np.maximum(*(blobs.bounds[:, 2:] - blobs.bounds[:, :2]).T)
    return find_large(image, blobs, np.flatnonzero(sizes >= 118).tolist(), Domain())


def sums_about(image):
    return [
        float(image[np.hypot(COLUMNS - x, ROWS - y) < 6].sum() / (0.996 * flux))
        for x, y, flux in COMPANIONS
    ]


@pytest.mark.parametrize("unit", [1.0, 1e-25, 1e22])
def test_what_lies_on_a_large_galaxy_is_left(unit):
    galaxy = disc(200.3, 180.8)
    image = image_of(galaxy + companions(), unit=unit)
    (one,) = found_in(image)
    assert one.centre == pytest.approx((200.3, 180.8), abs=0.1)
    whole = np.zeros(SHAPE)
    whole[one.box] = one.light / unit
    core = galaxy > 3
    assert np.median(np.abs(whole - galaxy)[core]) < 0.2
    assert whole[core].sum() == pytest.approx(galaxy[core].sum(), rel=0.01)
    true = galaxy > 1.5
    assert one.outline.intersection(type(one.outline).from_mask(true)) > 0.95 * true.sum()
    rest = without_large(image, [one])
    assert sums_about(rest.light / unit) == pytest.approx([1, 1, 1, 1], abs=0.12)
    # Where it is bright, its light is known less well.
    assert rest.rms[181, 200] > 3 * unit
    assert rest.rms[5, 5] == pytest.approx(unit, rel=1e-3)


def test_very_large_windows_are_looked_at_averaged(monkeypatch):
    galaxy = disc(200.3, 180.8)
    image = image_of(galaxy + companions())
    monkeypatch.setattr(large, "MOST_SIDE", 150)
    (one,) = found_in(image)
    assert one.centre == pytest.approx((200.3, 180.8), abs=0.3)
    whole = np.zeros(SHAPE)
    whole[one.box] = one.light
    core = galaxy > 3
    assert whole[core].sum() == pytest.approx(galaxy[core].sum(), rel=0.06)
    assert sums_about(without_large(image, [one]).light) == pytest.approx([1, 1, 1, 1], abs=0.2)
    (again,) = in_another_image(image, [one])
    assert again.flux == pytest.approx(one.flux, rel=0.02)
    assert again.centre == one.centre


def test_a_galaxy_cut_by_the_edge_of_the_image():
    galaxy = disc(8.0, 180.0)
    image = image_of(galaxy + point(100, 190, 1500.0))
    (one,) = found_in(image)
    assert one.centre == pytest.approx((8, 180), abs=0.3)
    core = galaxy > 3
    whole = np.zeros(SHAPE)
    whole[one.box] = one.light
    assert whole[core].sum() == pytest.approx(galaxy[core].sum(), rel=0.02)


def test_a_core_without_data():
    galaxy = disc(200.0, 180.0)
    hidden = np.hypot(COLUMNS - 200, ROWS - 180) < 9
    image = image_of(galaxy + companions(), mask=hidden)
    (one,) = found_in(image)
    rest = without_large(image, [one])
    assert (rest.light[hidden] == 0).all()
    assert sums_about(rest.light) == pytest.approx([1, 1, 1, 1], abs=0.12)


def clumpy(seed=3):
    """A disc whose light gathers in clumps, not the same on both sides."""
    rng = np.random.default_rng(seed)
    galaxy = disc(200.3, 180.8)
    for x, y in rng.uniform((110, 110), (290, 250), (60, 2)):
        here = galaxy[int(y), int(x)]
        galaxy = galaxy + point(x, y, 0.35 * here * 2 * np.pi * 36, width=6.0)
    return galaxy


@pytest.mark.parametrize("averaged", [False, True])
def test_clumps_of_a_large_galaxy_are_its_own(monkeypatch, averaged):
    galaxy = clumpy()
    if averaged:
        monkeypatch.setattr(large, "MOST_SIDE", 150)
    stars = [(150, 195, 2500.0), (240, 150, 2500.0)]
    image = image_of(galaxy + sum(point(*one) for one in stars))
    (one,) = found_in(image)
    assert one.flux == pytest.approx(galaxy.sum(), rel=0.03)
    rest = without_large(image, [one])
    here = galaxy > 20
    for x, y, flux in stars:
        near = np.hypot(COLUMNS - x, ROWS - y) < 6
        assert rest.light[near].sum() == pytest.approx(flux, rel=0.3)
        here &= np.hypot(COLUMNS - x, ROWS - y) > 20
    # Clumps stand out by a third of its light.
    assert np.median(np.abs(rest.light / galaxy)[here]) < 0.04
    assert np.median((rest.rms / image.rms)[here & (galaxy > 60)]) > 2
    (again,) = in_another_image(replace(image, light=2 * image.light), [one])
    assert again.flux == pytest.approx(2 * one.flux, rel=0.02)


def test_companions_do_not_make_a_smooth_galaxy_rough():
    rng = np.random.default_rng(5)
    galaxy = disc(200.3, 180.8)
    places = rng.uniform((120, 130), (280, 230), (12, 2))
    (one,) = found_in(image_of(galaxy + sum(point(*place, 1200.0) for place in places)))
    whole = np.zeros(SHAPE)
    whole[one.box] = one.doubt
    core = galaxy > 3
    assert np.median((whole / galaxy)[core]) == pytest.approx(0.03, abs=0.001)
    assert one.flux == pytest.approx(galaxy.sum(), rel=0.02)


def test_two_large_galaxies_that_touch():
    left, right = disc(120, 170, 200.0), disc(270, 190, 300.0, angle=2.0)
    image = image_of(left + right)
    found = sorted(found_in(image), key=lambda one: one.centre)
    assert [one.centre for one in found] == [
        pytest.approx((120, 170), abs=1), pytest.approx((270, 190), abs=1)
    ]  # fmt: skip
    for one, galaxy in zip(found, (left, right), strict=True):
        assert one.flux == pytest.approx(galaxy.sum(), rel=0.08)


def test_a_crowd_is_no_large_object():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[8:352:10, 8:392:10].reshape(2, -1) + rng.uniform(-1.5, 1.5, (2, 35 * 39))
    image = image_of(sum(point(*one, 1500.0) for one in zip(x, y, strict=True)))
    assert found_in(image) == []


def test_the_same_objects_in_another_band():
    red = disc(200.3, 180.8)
    image = image_of(red + companions())
    found = found_in(image)
    blue = image_of(0.3 * red + 2 * companions(), seed=2, unit=5.0)
    (one,) = in_another_image(blue, found)
    assert one.outline is found[0].outline
    assert one.flux == pytest.approx(5 * 0.3 * red.sum(), rel=0.03)
    rest = without_large(blue, [one])
    assert sums_about(rest.light / 10) == pytest.approx([1, 1, 1, 1], abs=0.15)


def test_without_large_objects_an_image_is_itself():
    image = image_of(companions())
    assert found_in(image) == []
    assert without_large(image, []) is image
    assert surroundings(image, []) is None


def test_electrons_of_a_large_object_are_noise():
    image = image_of(disc(200.3, 180.8), gain=0.5)
    (one,) = found_in(image)
    rest = without_large(image, [one], Planes())
    row, column = 181 - one.y0, 260 - one.x0
    light = float(one.light[row, column])
    expected = np.sqrt(1 + (0.03 * light) ** 2 + light / 0.5)
    assert rest.rms[181, 260] == pytest.approx(expected, rel=1e-4)


def test_the_noise_of_starlets():
    picture = np.random.default_rng(0).normal(size=(500, 500)).astype(np.float32)
    for scale, sigma in enumerate(_starlet_noise()[:SCALES]):
        wider = _smooth(picture, 2**scale)
        assert (picture - wider).std() == pytest.approx(sigma, rel=0.1)
        picture = wider
    assert picture.std() == pytest.approx(_starlet_noise()[-1], rel=0.5)


@pytest.mark.parametrize("shape", [(3, 200), (1, 150), (200, 1)])
def test_smoothing_pictures_narrower_than_its_kernel(shape):
    picture = np.full(shape, 2.0, dtype=np.float32)
    np.testing.assert_allclose(_smooth(picture, 32), 2.0, rtol=1e-5)


def test_surroundings_and_masks():
    galaxy = disc(200.3, 180.8)
    image = image_of(galaxy)
    (one,) = found_in(image)
    hidden = surroundings(image, [one])
    assert hidden[galaxy > 0.2].all()
    assert not hidden[:, :20].any()
    on = in_outlines([one], np.array([200.0, 5.0, 399.0]), np.array([181.0, 5.0, 0.0]))
    assert on.tolist() == [True, False, False]
    wide = image_of(disc(200.3, 180.8, scale=90.0))
    assert surroundings(wide, found_in(wide)) is None


def test_touching_galaxies_in_another_image():
    left, right = disc(120, 170, 200.0), disc(270, 190, 300.0, angle=2.0)
    found = found_in(image_of(left + right))
    other = in_another_image(image_of(0.2 * left + right, seed=2), found)
    for one, again in zip(found, other, strict=True):
        share = 0.2 if one.centre[0] < 200 else 1.0
        assert again.flux == pytest.approx(share * one.flux, rel=0.05)


@pytest.mark.parametrize("shape", ["square", "round"])
def test_plateaus_are_one_object(shape):
    inside = {
        "square": (abs(COLUMNS - 200) < 90) & (abs(ROWS - 180) < 90),
        "round": np.hypot(COLUMNS - 200, ROWS - 180) < 85,
    }[shape]
    (one,) = found_in(image_of(1000.0 * inside))
    assert one.centre == pytest.approx((200, 180), abs=1)
    assert one.flux == pytest.approx(1000 * inside.sum(), rel=0.01)


def test_a_column_without_data_gives_no_light_twice():
    galaxy = disc(200.3, 180.8)
    hidden = COLUMNS == 212
    image = image_of(galaxy, mask=hidden)
    found = found_in(image)
    assert sum(one.flux for one in found) == pytest.approx(galaxy.sum(), rel=0.08)
    assert not any(hidden[one.outline.slices][one.outline.mask].any() for one in found)
    rest = without_large(image, found)
    assert rest.light[np.hypot(COLUMNS - 200, ROWS - 181) > 20].min() > -10


def test_no_light_is_made_up_where_neither_side_has_data():
    galaxy = disc(200.3, 180.8)
    hidden = np.hypot(COLUMNS - 200.3, ROWS - 180.8) > 75
    (one,) = found_in(image_of(galaxy, mask=hidden))
    assert one.flux == pytest.approx(galaxy[~hidden].sum(), rel=0.01)
    assert not hidden[one.outline.slices][one.outline.mask].any()


def test_photons_of_a_large_galaxy_are_no_other_sources():
    rng = np.random.default_rng(4)
    galaxy = disc(200.3, 180.8)
    image = image_of(rng.poisson(0.5 * galaxy) / 0.5, gain=0.5)
    (one,) = found_in(image)
    assert one.flux == pytest.approx(galaxy.sum(), rel=0.02)
    assert one.others.mean() < 0.2
