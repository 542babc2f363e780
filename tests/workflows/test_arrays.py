"""Arrays in Python, and what astropy keeps them in."""

import warnings

import numpy as np
import pytest
from astropy import units
from astropy.io import fits
from astropy.nddata import (
    CCDData,
    InverseVariance,
    NDData,
    NDDataRef,
    StdDevUncertainty,
    UnknownUncertainty,
)
from astropy.utils.masked import Masked
from astropy.wcs import WCS

import galsep
from galsep import DeblendConfig
from galsep.errors import ImageError, UsageError

SHAPE = 150, 170


@pytest.fixture(scope="module")
def model():
    return galsep.load_model(device="cpu")


def sky(noise=1.0, scale=1.0):
    """Twelve Gaussians in white noise."""
    rng = np.random.default_rng(11)
    y, x = np.indices(SHAPE)
    image = rng.normal(0, noise, SHAPE) if noise else np.zeros(SHAPE)
    for _ in range(12):
        top, left = rng.uniform(15, 135), rng.uniform(15, 155)
        image += rng.uniform(20, 200) * np.exp(-((x - left) ** 2 + (y - top) ** 2) / 8)
    return image * scale


def gnomonic():
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = "RA---TAN", "DEC--TAN"
    wcs.wcs.crval, wcs.wcs.crpix, wcs.wcs.cdelt = (150, 2), (85, 75), (-6e-5, 6e-5)
    return wcs


def told(image, model, config=None, **settings):
    """The result, and what is warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = galsep.deblend(image, config, model=model, **settings)
    return result, [str(one.message) for one in caught if one.category is RuntimeWarning]


def same(one, other):
    assert len(one) > 5
    for name in ("x_centroid", "deblend_flux", "deblend_flux_err", "ra", "flags"):
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("dtype", [bool, int, float])
def test_what_ccddata_and_nddata_hold_counts(model, dtype):
    image, hidden = sky(), np.zeros(SHAPE, dtype)
    hidden[40:60, 50:70] = 1 if dtype is bool else 4
    deviation = np.where(np.arange(SHAPE[1]) > 80, 2.0, 1.0) * np.ones(SHAPE)
    plain = np.ma.masked_array(image, hidden != 0)
    known = galsep.deblend(plain, model=model, wcs=gnomonic(), rms=deviation)
    for given in (
        CCDData(image, unit="adu", mask=hidden, wcs=gnomonic(),
                uncertainty=StdDevUncertainty(deviation)),
        NDData(image, unit="adu", mask=hidden, wcs=gnomonic(),
               uncertainty=InverseVariance(deviation**-2)),
    ):  # fmt: skip
        found, heard = told(given, model)
        same(found.catalog, known.catalog)
        assert not heard
        assert found.catalog["deblend_flux"].unit == units.adu
        assert np.isfinite(found.catalog["ra"]).all()
    # What is given beside it comes first.
    plain = galsep.deblend(plain, model=model, wcs=gnomonic(), rms=np.ones(SHAPE))
    same(galsep.deblend(given, model=model, rms=np.ones(SHAPE)).catalog, plain.catalog)


def test_quantities_keep_their_unit(model):
    image = sky()
    known = galsep.deblend(image, model=model)
    quantity = galsep.deblend(image * units.nJy, model=model, rms=np.ones(SHAPE) * units.nJy)
    assert quantity.catalog["deblend_flux"].unit == units.nJy
    hidden = np.zeros(SHAPE, bool)
    hidden[:, :60] = True
    masked = galsep.deblend(Masked(image * units.nJy, hidden), model=model)
    same(masked.catalog, galsep.deblend(np.ma.array(image, mask=hidden), model=model).catalog)
    assert len(masked.catalog) < len(known.catalog)


def test_lists_and_tensors_are_arrays(model):
    torch = pytest.importorskip("torch")
    image = sky()
    known = galsep.deblend(image, model=model).catalog
    same(galsep.deblend(image.tolist(), model=model).catalog, known)
    same(galsep.deblend(torch.from_numpy(image), model=model).catalog, known)


def test_what_does_not_fit_is_refused(model):
    image = sky()
    with pytest.raises(ImageError, match="the mask has the shape"):
        galsep.deblend(NDData(image, mask=np.zeros((3, 3), bool)), model=model)
    with pytest.raises(ImageError, match="uncertain"):
        galsep.deblend(NDData(image, uncertainty=UnknownUncertainty(image)), model=model)
    with pytest.raises(UsageError, match="ext is for files"):
        galsep.deblend({"i": image}, DeblendConfig(ext="2"), model=model)


def test_the_mask_of_the_noise_hides_pixels(model):
    hidden = np.zeros(SHAPE, bool)
    hidden[:, :80] = True
    found = galsep.deblend(sky(), model=model, rms=np.ma.array(np.ones(SHAPE), mask=hidden))
    assert len(found.catalog) > 2
    assert (found.catalog["x_centroid"] > 79).all()


@pytest.mark.parametrize("wcs", [fits.Header(), {}, "TAN"])
def test_what_is_no_wcs_is_told_of(model, wcs):
    result, heard = told(sky(), model, wcs=wcs)
    assert heard == [
        f"image: the WCS is not usable (it is no astropy.wcs.WCS, but a {type(wcs).__name__}); "
        "ra and dec will be NaN"
    ]
    assert np.isnan(result.catalog["ra"]).all()


def test_a_slice_of_nddata_is_deblended(model):
    data = NDDataRef(sky(), wcs=gnomonic())[5:, 10:]
    result, heard = told(data, model)
    assert len(result.catalog) > 5
    # Its WCS is that of the slice, as astropy has it, which is none of WCSLIB's.
    assert heard == [
        "image: the WCS is not usable (it is no astropy.wcs.WCS, but a HighLevelWCSWrapper); "
        "ra and dec will be NaN"
    ]


def test_python_warns_of_what_the_command_warns_of(model, tmp_path):
    image = sky()
    path = tmp_path / "odd.fits"
    header = gnomonic().to_header()
    header["CRVAL1"] = "abc"
    fits.PrimaryHDU(image, header).writeto(path)
    result, heard = told(path, model)
    assert len(result.catalog) > 8
    assert len(heard) == 1
    assert "odd.fits" in heard[0]
    assert "WCS" in heard[0]
    other = tmp_path / "rms.fits"
    fits.PrimaryHDU(np.full(SHAPE, 150.0)).writeto(other)
    fits.PrimaryHDU(image).writeto(path, overwrite=True)
    _, heard = told(path, model, DeblendConfig(rms=str(other)))
    assert len(heard) == 1
    assert "times that of --rms" in heard[0]
    _, heard = told({"g": image * units.nJy, "r": image * units.adu}, model)
    assert heard == [
        "image: the bands have different units (nJy, adu); their combination, in which sources "
        "are found, takes them for one"
    ]
    result, heard = told(np.full(SHAPE, np.nan), model)
    assert len(result.catalog) == 0
    assert heard == ["image: no valid pixel; the catalogue is empty"]


@pytest.mark.parametrize("scale", [1e-20, 1e-26, 1e-33, 1e20])
def test_the_unit_does_not_matter(model, scale):
    config = DeblendConfig(gain=0.5)
    known = galsep.deblend(sky(), config, model=model)
    config = DeblendConfig(gain=0.5 / scale)
    found, heard = told(sky(scale=scale), model, config)
    assert not heard
    assert len(found.catalog) == len(known.catalog)
    for name in ("deblend_flux", "deblend_flux_err", "segment_flux_err"):
        np.testing.assert_allclose(found.catalog[name] / scale, known.catalog[name], rtol=2e-3)
    np.testing.assert_allclose(found.parents["snr"], known.parents["snr"], rtol=1e-4)
    assert found.catalog.meta.get("PSFFWHM") == known.catalog.meta.get("PSFFWHM")


@pytest.mark.parametrize("level", [0.0, 7.0])
def test_a_band_of_one_value_does_not_weigh(model, level):
    g = sky()
    alone = galsep.deblend({"g": g}, model=model).catalog
    both = galsep.deblend({"g": g, "r": np.full(SHAPE, level)}, model=model).catalog
    for name in ("deblend_flux", "deblend_flux_g"):
        np.testing.assert_allclose(both[name], alone[name], rtol=1e-6)
    assert abs(both["deblend_flux_r"]).max() < 1e-3 * alone["deblend_flux"].max()
