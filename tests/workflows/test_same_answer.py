"""What "the same" means: the same sources from any batch, number of threads, form and device."""

import gzip

import numpy as np
import pytest
import torch
from astropy.io import fits

import galsep
from galsep.config import DeblendConfig, SimulateConfig
from galsep.model import separation
from galsep.model.weights import load_model
from galsep.workflows.simulate import simulate

NEAR_THRESHOLD = 0.02
POSITION = 0.01
FLUX = 1e-3
ROUGH_FLUX = 5e-3
"""Where one of two processors has fast bfloat16; most are the same to FLUX."""


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    folder = tmp_path_factory.mktemp("field")
    config = SimulateConfig(field="130x125", galaxies="1-2", density=150.0, seed=4, workers=1)
    simulate(folder, config)
    return folder / "field_i.fits"


@pytest.fixture(scope="module")
def model():
    return load_model(device="cpu")


@pytest.fixture(scope="module")
def reference(field, model):
    catalog = galsep.deblend(field, DeblendConfig(device="cpu", batch_size=2), model=model).catalog
    assert len(catalog) > 3
    return catalog


def assert_same(one, other, threshold, flux=FLUX, pixels=0):
    """Every source has its like in the other catalogue, but for those near the threshold.

    In the label map, it may have so many pixels more or less, and then another segment_flux.
    """
    for here, there in ((one, other), (other, one)):
        sure = here[np.abs(here["score"] - threshold) > NEAR_THRESHOLD]
        distance = np.hypot(
            sure["x_centroid"][:, None] - there["x_centroid"],
            sure["y_centroid"][:, None] - there["y_centroid"],
        )
        nearest = there[distance.argmin(1)]
        assert distance.min(1).max() < POSITION
        np.testing.assert_allclose(nearest["deblend_flux"], sure["deblend_flux"], rtol=flux)
        moved = np.abs(nearest["area"] - sure["area"])
        assert moved.max() <= pixels
        same, wanted = nearest[moved == 0], sure[moved == 0]
        np.testing.assert_allclose(same["segment_flux"], wanted["segment_flux"], rtol=FLUX)


@pytest.mark.parametrize("size", [1, 3])
def test_batch_sizes(field, model, reference, size):
    config = DeblendConfig(device="cpu", batch_size=size)
    found = galsep.deblend(field, config, model=model).catalog
    assert_same(reference, found, model.threshold)


@pytest.mark.parametrize("number", [1, 3])
def test_threads(field, model, reference, number):
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        found = galsep.deblend(field, DeblendConfig(device="cpu", batch_size=2), model=model)
    finally:
        torch.set_num_threads(before)
    assert_same(reference, found.catalog, model.threshold)


def test_processors(field, model, reference, monkeypatch):
    quick = separation.fast_bfloat16(torch.device("cpu"))
    monkeypatch.setattr(separation, "fast_bfloat16", lambda device: not quick)
    found = galsep.deblend(field, DeblendConfig(device="cpu", batch_size=2), model=model).catalog
    # Where two sources are all but equally bright, rounding decides whose a pixel is.
    assert_same(reference, found, model.threshold, ROUGH_FLUX, pixels=1)
    off = np.abs(found["deblend_flux"] / reference["deblend_flux"] - 1)
    assert 1e-6 < np.median(off) < FLUX / 2


def double(pixels, header):
    return fits.HDUList([fits.PrimaryHDU(pixels.astype(np.float64), header)])


def scaled(pixels, header):
    """Integers, of a thousandth of an electron each."""
    hdu = fits.PrimaryHDU(np.round(pixels * 1000).astype(np.int32), header)
    hdu.header["BSCALE"] = 0.001
    return fits.HDUList([hdu])


def tiles(pixels, header):
    hdu = fits.CompImageHDU(pixels, header, compression_type="GZIP_2", quantize_level=0)
    return fits.HDUList([fits.PrimaryHDU(), hdu])


@pytest.mark.parametrize("form", [double, scaled, tiles])
def test_forms_of_a_file(field, model, reference, form, tmp_path):
    pixels, header = fits.getdata(field, header=True)
    path = tmp_path / "form.fits"
    form(pixels, header).writeto(path)
    if form is double:
        path.with_suffix(".fits.gz").write_bytes(gzip.compress(path.read_bytes()))
        path = path.with_suffix(".fits.gz")
    config = DeblendConfig(device="cpu", batch_size=2)
    assert_same(reference, galsep.deblend(path, config, model=model).catalog, model.threshold)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_devices(field, reference):
    model = load_model(device="cuda")
    config = DeblendConfig(device="cuda", batch_size=2)
    found = galsep.deblend(field, config, model=model).catalog
    assert_same(reference, found, model.threshold, ROUGH_FLUX, pixels=1)


def test_another_answer_is_noticed(reference):
    other = reference.copy()
    other["x_centroid"][0] += 0.05
    with pytest.raises(AssertionError):
        assert_same(reference, other, 0.5)
    other = reference.copy()
    other["deblend_flux"][0] *= 1.01
    with pytest.raises(AssertionError):
        assert_same(reference, other, 0.5)
    with pytest.raises(AssertionError):
        assert_same(reference, reference[1:], 0.5)
