"""Images that no survey means to take, and what becomes of them, as ``docs/limits.md`` has it."""

import warnings
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits

import galsep
from galsep.config import DeblendConfig
from galsep.flags import Flag
from galsep.model.weights import load_model
from galsep.workflows.files import deblend_files
from galsep.workflows.reporting import Reporter

CONFIG = DeblendConfig(device="cpu", batch_size=2)


@pytest.fixture(scope="module")
def model():
    return load_model(device="cpu")


@pytest.fixture
def found(model):
    """Deblend an array; no warning is given but that there is nothing to see."""

    def deblend(image, rms=None, **settings):
        config = replace(CONFIG, **settings)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("always", "image: no valid pixel")
            return galsep.deblend(image, config, model=model, rms=rms)

    return deblend


def galaxy(shape, y, x, flux=3000.0, sigma=3.0):
    rows, columns = np.indices(shape)
    profile = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * sigma**2))
    return flux / (2 * np.pi * sigma**2) * profile


def sky(shape=(140, 150), seed=1):
    """Noise of rms 1 and two galaxies that stand alone."""
    image = np.random.default_rng(seed).normal(size=shape)
    return image + galaxy(shape, 50, 60) + galaxy(shape, 100, 100)


def near(catalog, y, x):
    """The one row within two pixels of a position."""
    close = np.hypot(catalog["x_centroid"] - x, catalog["y_centroid"] - y) < 2
    assert close.sum() == 1, catalog["x_centroid", "y_centroid"]
    return catalog[close][0]


def both(catalog):
    return near(catalog, 50, 60), near(catalog, 100, 100)


EMPTY = {
    "no valid pixel": np.full((70, 80), np.nan),
    "infinite": np.full((70, 80), np.inf),
    "one value": np.full((70, 80), 5.0),
    "zero": np.zeros((70, 80)),
    "one pixel": np.ones((1, 1)),
    "one bright pixel": np.full((1, 1), 1e6),
    "two values in turn": np.indices((70, 80)).sum(0) % 2,
    "one column": np.random.default_rng(1).normal(size=(300, 1)),
    "one row": np.random.default_rng(2).normal(size=(1, 300)),
}


@pytest.mark.parametrize("image", EMPTY.values(), ids=EMPTY)
def test_a_sky_without_sources(found, image):
    nothing = not np.isfinite(image).any()
    with pytest.warns(RuntimeWarning, match="no valid pixel") if nothing else nullcontext():
        result = found(image)
    assert len(result.catalog) == 0
    assert "deblend_flux" in result.catalog.colnames
    assert result.segm.shape == image.shape
    assert not result.segm.any()
    assert (result.rms > 0).all()


@pytest.mark.parametrize("shape", [(121, 119), (120, 120), (119, 121)])
def test_images_as_large_as_a_cutout(found, shape):
    assert len(found(sky(shape)).catalog) == 2


def test_a_source_in_a_single_column(found):
    image = np.random.default_rng(1).normal(size=(300, 1))
    image[100:110] += 50
    catalog = found(image).catalog
    assert 1 <= len(catalog) <= 2
    assert (catalog["flags"] & Flag.IMAGE_EDGE).all()
    assert catalog["y_centroid"].min() > 99
    assert catalog["y_centroid"].max() < 111


@pytest.mark.parametrize("change", [lambda image: image - 5000, lambda image: image * 1e-20])
def test_zero_point_and_scale_of_the_pixels_change_nothing(found, change):
    plain, changed = found(sky()).catalog, found(change(sky())).catalog
    assert len(plain) == len(changed) == 2
    for one, other in zip(both(plain), both(changed), strict=True):
        assert one["x_centroid"] == pytest.approx(other["x_centroid"], abs=0.01)
        assert one["score"] == pytest.approx(other["score"], abs=0.02)


def test_a_saturated_quarter(found):
    image = sky((160, 160))
    image[80:, :80] = 60_000
    # It fills cells of the usual mesh, whose background it then is.
    assert len(found(image).catalog) == 0
    catalog = found(image, background_mesh=160).catalog
    both(catalog)
    large = catalog[catalog["area"] > 5000]
    assert len(large) == 1
    assert large["flags"][0] & Flag.IMAGE_EDGE


def test_a_galaxy_larger_than_a_cutout(found):
    shape = (200, 200)
    image = np.random.default_rng(3).normal(size=shape) + galaxy(shape, 100, 100, 1e6, 25)
    catalog = found(image).catalog
    large = catalog[(catalog["flags"] & Flag.LARGER_THAN_CUTOUT) > 0]
    assert len(large) == 1
    assert large["mask_area"][0] > 120**2
    assert near(catalog, 100, 100)["flags"] & Flag.LARGER_THAN_CUTOUT


def test_a_galaxy_that_fills_the_image(found):
    """The scale of a galaxy of 2,000 px against the mesh's cells, in fewer pixels."""
    shape = (600, 600)
    rows, columns = np.indices(shape)
    light = 800 * np.exp(-np.hypot(rows - 300, (columns - 300) / 1.3) / 50)
    image = np.random.default_rng(3).normal(size=shape) + light
    # Cells of the usual mesh take some of its outer light for background, larger ones do not.
    for mesh, least in ((64, 0.9), (600, 0.99)):
        whole = near(found(image, background_mesh=mesh).catalog, 300, 300)
        assert whole["flags"] & Flag.LARGER_THAN_CUTOUT
        assert least < whole["deblend_flux"] / light.sum() < 1.01


def test_more_stars_than_a_cutout_has_room_for(found):
    """A piece of a field of 300,000 sources: one every 10 px."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[5:150:10, 5:150:10].reshape(2, -1) + rng.uniform(-1.5, 1.5, (2, 225))
    image = rng.normal(size=(150, 150))
    for row, column, flux in zip(y, x, 10 ** rng.uniform(2, 4, 225), strict=True):
        image += galaxy(image.shape, row, column, flux, 1.3)
    result = found(image)
    catalog, owned = result.catalog, np.bincount(result.segm.ravel(), minlength=2)[1:]
    # One row a label, each within its own pixels; what the network has no room for is SEP's.
    assert len(catalog) > 100
    np.testing.assert_array_equal(catalog["label"], np.arange(1, len(catalog) + 1))
    np.testing.assert_array_equal(owned, catalog["area"])
    assert np.isfinite(catalog["deblend_flux"]).all()


def test_a_satellite_trail(found):
    image = sky()
    rows = np.arange(140)
    for offset in (-1, 0, 1):
        image[rows, np.clip(rows // 2 + 70 + offset, 0, 149)] += 40
    catalog = found(image).catalog
    near(catalog, 50, 60)
    # The trail is a source, or several, of which nothing says that they are none.
    assert len(catalog) > 2
    assert np.isfinite(catalog["deblend_flux"]).all()


def test_half_the_image_masked(found):
    image = sky()
    mask = np.zeros(image.shape, dtype=bool)
    mask[:, 80:] = True
    result = found(np.ma.array(image, mask=mask))
    assert len(result.catalog) == 1
    near(result.catalog, 50, 60)
    assert not result.segm[mask].any()


def test_no_noise(found):
    shape = (140, 150)
    image = galaxy(shape, 50, 60) + galaxy(shape, 100, 100)
    for row in both(found(image).catalog):
        assert row["segment_flux"] == pytest.approx(3000, rel=0.001)
        assert row["deblend_flux"] == pytest.approx(3000, rel=0.02)


def test_pixels_that_are_no_data(found):
    image = sky()
    image[20, 20], image[21, 21] = 1.6e38, 1e25
    image[30:40, 120:130] = -1e20
    result = found(image)
    assert len(result.catalog) == 2
    both(result.catalog)
    assert result.rms.max() < 2


def test_noise_that_is_zero(found):
    image, rms = sky(), np.ones((140, 150))
    rms[:, 80:] = 0
    catalog = found(image, rms=rms).catalog
    assert len(catalog) == 1
    near(catalog, 50, 60)
    with pytest.warns(RuntimeWarning, match="no valid pixel"):
        assert len(found(image, rms=np.zeros_like(rms)).catalog) == 0


@pytest.mark.parametrize("unit", [None, "", "furlong", "ADU"])
def test_units_are_handed_on_as_they_are(tmp_path, unit):
    hdu = fits.PrimaryHDU(sky().astype(np.float32))
    if unit is not None:
        hdu.header["BUNIT"] = unit
    hdu.writeto(tmp_path / "a.fits")
    (result,) = deblend_files([tmp_path / "a.fits"], tmp_path / "out", CONFIG)
    assert result.error is None
    with fits.open(tmp_path / "out" / "a_cat.fits") as hdus:
        columns = hdus["CATALOG"].columns
        assert columns["deblend_flux"].unit == ("adu" if unit == "ADU" else None)
        described = str(hdus["CATALOG"].header)
    assert ("furlong" in described) == (unit == "furlong")


class Warned(Reporter):
    def __init__(self):
        self.warnings = []

    def warn(self, message):
        self.warnings.append(message)


@pytest.mark.parametrize(("border", "said"), [(30, True), (0, False)])
def test_a_border_of_zeros_is_told_of(tmp_path, border, said):
    image = np.pad(sky(), border).astype(np.float32)
    fits.writeto(tmp_path / "a.fits", image)
    reporter = Warned()
    deblend_files([tmp_path / "a.fits"], tmp_path / "out", CONFIG, reporter=reporter)
    assert [("% of the image is exactly 0" in line) for line in reporter.warnings] == [True] * said


def test_a_border_without_data_is_none(found):
    plain = both(found(sky()).catalog)
    framed = found(np.pad(sky(), 40, constant_values=np.nan)).catalog
    assert len(framed) == 2
    for row, (y, x) in zip(plain, ((90, 100), (140, 140)), strict=True):
        assert near(framed, y, x)["deblend_flux"] == pytest.approx(row["deblend_flux"], rel=0.03)
