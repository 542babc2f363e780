"""Sources on a galaxy larger than a cutout: found, separated and measured without its light."""

from dataclasses import replace

import numpy as np
import pytest

import galsep
from galsep.config import DeblendConfig
from galsep.flags import Flag
from galsep.image.light import Frame
from galsep.model.weights import load_model
from galsep.planes import Planes
from galsep.workflows.finding import find_sources

CPU = DeblendConfig(device="cpu")
SHAPE = (330, 360)
ROWS, COLUMNS = np.indices(SHAPE)
COMPANIONS = ((140, 120, 900.0), (225, 190, 1500.0), (205, 150, 2500.0), (310, 280, 900.0))


@pytest.fixture(scope="module")
def model():
    return load_model(device="cpu")


def disc(scale=1):
    dx, dy = (COLUMNS - 190.3 / scale) * np.cos(0.5), (ROWS - 160.8 / scale) * np.sin(0.5)
    across = (ROWS - 160.8 / scale) * np.cos(0.5) - (COLUMNS - 190.3 / scale) * np.sin(0.5)
    return 300 * np.exp(-np.sqrt((dx + dy) ** 2 + (across / 0.7) ** 2 + 4) * scale / 20)


def companions(width=1.8):
    return sum(
        flux / (2 * np.pi * width**2)
        * np.exp(-((COLUMNS - x) ** 2 + (ROWS - y) ** 2) / (2 * width**2))
        for x, y, flux in COMPANIONS
    )  # fmt: skip


def noisy(light, seed=1):
    return light + np.random.default_rng(seed).normal(size=SHAPE) + 50


def matched(x, y):
    """Rows of the companions; each is found once."""
    rows = []
    for at_x, at_y, _ in COMPANIONS:
        (near,) = np.flatnonzero(np.hypot(x - at_x, y - at_y) < 2.5)
        rows.append(int(near))
    return rows


def over_true(fluxes):
    return [float(flux) / true for flux, (_, _, true) in zip(fluxes, COMPANIONS, strict=True)]


@pytest.fixture(scope="module")
def result(model):
    return galsep.deblend(noisy(disc() + companions()), CPU, model=model)


def test_fluxes_without_the_large_galaxys_light(result):
    table = result.catalog
    large = np.flatnonzero(table["flags"] & Flag.LARGER_THAN_CUTOUT)
    assert len(large) == 1
    rows = matched(table["x_centroid"], table["y_centroid"])
    assert over_true(table["deblend_flux"][rows]) == pytest.approx([1, 1, 1, 1], abs=0.2)
    assert table["deblend_flux"][large[0]] == pytest.approx(disc().sum(), rel=0.02)
    # What stands before it owns its pixels; the further out, the less of them are the galaxy's.
    assert (table["area"][rows] >= 0.8 * table["mask_area"][rows]).all()
    assert (table["blendedness"][rows[:3]] > 0.3).all()
    assert table["blendedness"][rows[3]] < 0.2
    errors = table["deblend_flux_err"][rows]
    assert errors[2] > errors[3]


def test_it_is_a_parent_of_its_own(result):
    (large,) = np.flatnonzero(result.catalog["flags"] & Flag.LARGER_THAN_CUTOUT)
    parent = result.parents[result.catalog["parent"][large] - 1]
    assert parent["status"] == "confirmed"
    assert parent["n_child"] == 1
    assert parent["x"] == pytest.approx(190.3, abs=0.2)
    assert parent["npix"] == result.catalog["mask_area"][large]
    assert parent["snr"] > 1000


def test_light_is_conserved_and_none_of_it_given_twice(result):
    total = np.zeros(SHAPE)
    for part in result.separated:
        assert (part.share >= 0).all()
        total[part.slices] += part.share
    assert total.max() < 1 + 1e-5
    held = np.any([mask.to_full(SHAPE) for mask in result.masks], axis=0)
    left = result.residual()
    assert abs(left[held].sum()) < 0.02 * result.light[held].sum()
    whole = left + sum(result.light_of(label) for label in range(1, len(result) + 1))
    np.testing.assert_allclose(whole, result.light, atol=1e-2)
    models = sum(result.model_of(label) for label in range(1, len(result) + 1))
    scatter = (result.light - models)[disc() > 3].std()
    assert scatter == pytest.approx(1, abs=0.15)


def test_in_several_bands(model):
    images = {
        "r": noisy(disc() + companions()),
        "g": 3 * noisy(0.4 * disc() + 0.8 * companions(), seed=2),
    }
    table = galsep.deblend(images, CPU, model=model).catalog
    rows = matched(table["x_centroid"], table["y_centroid"])
    (large,) = np.flatnonzero(table["flags"] & Flag.LARGER_THAN_CUTOUT)
    colours = table["deblend_flux_g"] / table["deblend_flux_r"]
    assert colours[large] == pytest.approx(1.2, rel=0.02)
    assert colours[rows].tolist() == pytest.approx([2.4] * 4, rel=0.15)
    assert np.isfinite(table["deblend_flux_err_g"]).all()


def test_a_band_without_data_tells_nothing_of_it(model):
    images = {"r": noisy(disc() + companions()), "g": np.full(SHAPE, np.nan)}
    table = galsep.deblend(images, CPU, model=model).catalog
    assert np.isnan(table["deblend_flux_g"]).all()
    (large,) = np.flatnonzero(table["flags"] & Flag.LARGER_THAN_CUTOUT)
    assert table["deblend_flux_r"][large] == pytest.approx(disc().sum(), rel=0.02)
    # With a hole, what the other band shows there, as bright as the rest of it.
    images["g"] = np.where(np.hypot(COLUMNS - 190, ROWS - 161) < 40, np.nan, images["r"])
    table = galsep.deblend(images, CPU, model=model).catalog
    (large,) = np.flatnonzero(table["flags"] & Flag.LARGER_THAN_CUTOUT)
    assert table["deblend_flux_g"][large] == pytest.approx(disc().sum(), rel=0.1)


def test_pixels_without_data_have_no_label(model):
    image = np.where(COLUMNS > 200, np.nan, noisy(disc() + companions()))
    result = galsep.deblend(image, CPU, model=model)
    assert (result.catalog["flags"] & Flag.LARGER_THAN_CUTOUT).any()
    assert not result.segm[np.isnan(image)].any()


def test_measured_in_another_image(model):
    detect = Frame(noisy(disc() + companions()), np.zeros(SHAPE, dtype=bool))
    other = Frame(noisy(0.4 * disc() + 0.8 * companions(), seed=2), np.zeros(SHAPE, dtype=bool))
    (found,) = find_sources([replace(detect, measured=other)], model, CPU)
    rows = matched(found.detections.x, found.detections.y)
    assert over_true(found.detections.flux[rows]) == pytest.approx([0.8] * 4, abs=0.2)
    (large,) = np.flatnonzero(found.flags & Flag.LARGER_THAN_CUTOUT)
    assert found.detections.flux[large] == pytest.approx(0.4 * disc().sum(), rel=0.04)


def test_with_weights_without_a_separation_network(model):
    plain = replace(model, separator=None)
    table = galsep.deblend(noisy(disc() + companions()), CPU, model=plain).catalog
    rows = matched(table["x_centroid"], table["y_centroid"])
    assert over_true(table["deblend_flux"][rows]) == pytest.approx([1, 1, 1, 1], abs=0.3)


def test_in_an_image_that_is_averaged_for_the_networks(model):
    """A PSF twice as wide as the networks know; the galaxy is as large in averaged pixels."""
    wide = replace(CPU, psf_fwhm=1.5 * model.info["psf_fwhm_range"][1])
    image = np.random.default_rng(3).normal(size=(700, 720))
    rows, columns = np.indices(image.shape)
    image += 300 * np.exp(-np.sqrt((columns - 370) ** 2 + (rows - 340) ** 2 + 100) / 45)
    width, flux = wide.psf_fwhm / 2.355, 60_000.0
    distance = np.hypot(columns - 470, rows - 420)
    image += flux / (2 * np.pi * width**2) * np.exp(-((distance / width) ** 2) / 2)
    (found,) = find_sources([image], model, wide)
    assert found.domain.binning > 1
    assert np.count_nonzero(found.flags & Flag.LARGER_THAN_CUTOUT) == 1
    near = np.flatnonzero(np.hypot(found.detections.x - 470, found.detections.y - 420) < 5)
    assert len(near) == 1
    assert found.detections.flux[near[0]] == pytest.approx(flux, rel=0.2)


def test_blocks_change_nothing(model):
    image = noisy(disc() + companions())
    (whole,) = find_sources([image], model, CPU)
    (parts,) = find_sources([image], model, CPU, planes=Planes(block_pixels=40 * SHAPE[1]))
    np.testing.assert_array_equal(whole.detections.flux, parts.detections.flux)
    np.testing.assert_array_equal(whole.segm, parts.segm)
    for one, other in zip(whole.separated, parts.separated, strict=True):
        np.testing.assert_array_equal(one.share, other.share)
