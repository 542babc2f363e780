"""Large images: blocks, and whole-image arrays in files, change nothing."""

import dataclasses
import gzip
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from astropy.io import fits

from galsep import planes as planes_module
from galsep.config import DeblendConfig, SimulateConfig
from galsep.image.light import Frame, without_background
from galsep.model import separation
from galsep.model.separation import SeparationNetwork
from galsep.model.weights import load_model
from galsep.planes import Planes
from galsep.workflows import preparing
from galsep.workflows.files import deblend_files
from galsep.workflows.finding import find_sources
from galsep.workflows.simulate import simulate

CPU = DeblendConfig(device="cpu")


@pytest.fixture(scope="module")
def model():
    return load_model(device="cpu")


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    """A crowded field with a galaxy larger than a cutout, and a column of bad pixels."""
    folder = tmp_path_factory.mktemp("field")
    simulate(folder, SimulateConfig(field="400x900", density=60, seed=5, workers=1))
    path = next(folder.glob("field_*.fits"))
    with fits.open(path, mode="update") as hdus:
        image = next(hdu for hdu in hdus if hdu.data is not None)
        y, x = np.indices(image.data.shape)
        image.data += 20 * image.data.std() * np.exp(-np.hypot(x - 200, (y - 470) / 1.5) / 18)
        image.data[100:700, 33] = np.nan
    return path


def assert_same(one, other):
    for name in ("segm", "noverlap", "background", "rms", "light", "flags", "parent", "tile"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    for name in type(one.photometry).__dataclass_fields__:
        assert np.array_equal(getattr(one.photometry, name), getattr(other.photometry, name)), name
    assert len(one.separated) == len(other.separated)
    for mine, theirs in zip(one.separated, other.separated, strict=True):
        assert (mine.y0, mine.x0) == (theirs.y0, theirs.x0)
        assert np.array_equal(mine.share, theirs.share)
        assert np.array_equal(mine.model, theirs.model)
        assert (mine.flux, mine.flux_err) == (theirs.flux, theirs.flux_err)
    assert one.bands.keys() == other.bands.keys()
    for mine, theirs in zip(one.bands.values(), other.bands.values(), strict=True):
        for name in ("flux", "flux_err"):
            fluxes = [getattr(band.photometry, name) for band in (mine, theirs)]
            assert np.array_equal(*fluxes, equal_nan=True), name
    assert np.array_equal(one.parents.blobs.segm, other.parents.blobs.segm)
    assert np.array_equal(one.parents.blobs.x, other.parents.blobs.x)
    assert np.array_equal(one.parents.blobs.snr, other.parents.blobs.snr)
    assert np.array_equal(one.detections.scores, other.detections.scores)
    assert len(one.detections) == len(other.detections)
    for mine, theirs in zip(one.detections.footprints, other.detections.footprints, strict=True):
        assert (mine.y0, mine.x0) == (theirs.y0, theirs.x0)
        assert np.array_equal(mine.mask, theirs.mask)


@pytest.mark.parametrize("noise", [False, True], ids=["", "noise-plane"])
@pytest.mark.parametrize(("rows", "separated"), [(64, True), (7, False)])
def test_blocks_change_nothing(field, model, tmp_path, monkeypatch, rows, separated, noise):
    # Separation looks far beyond narrow blocks, which takes a minute; the next test has it.
    model = model if separated else dataclasses.replace(model, separator=None)
    image = fits.getdata(field).astype(np.float32)
    mask = ~np.isfinite(image)
    rms = 1 + np.linspace(0, 1, image.shape[1], dtype=np.float32) * np.ones_like(image)
    other = np.where(mask, 0, 0.7 * image) + 2 * np.random.default_rng(1).normal(size=image.shape)
    bands = {"other": without_background(Frame(other, mask), 64)}
    frame = Frame(image, mask, rms if noise else None, bands=bands)
    whole = next(find_sources([frame], model, CPU))
    assert len(whole.detections) > 100
    assert np.isfinite(whole.bands["other"].photometry.flux).all()
    monkeypatch.setattr(preparing, "MANY_CUTOUTS", 3)
    parts = Planes(tmp_path, 400 * rows)
    assert_same(whole, next(find_sources([frame], model, CPU, planes=parts)))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def looks(monkeypatch):
    """How many sources the separation network has looked at, one entry a call."""
    counts = []
    look = separation._look

    def counted(network, crops, wanted, fwhm):
        counts.append(int(wanted.sum()))
        return look(network, crops, wanted, fwhm)

    monkeypatch.setattr(separation, "_look", counted)
    return counts


@pytest.mark.parametrize("binning", [1, 2])
def test_blocks_change_no_separated_light(field, model, tmp_path, looks, binning):
    """Also with a network that has learnt nothing, and gives light to every corner of a crop."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        separator = SeparationNetwork((16, 16, 16))
        for parameter in separator.parameters():
            torch.nn.init.normal_(parameter, 0, 0.08)
    limits = {"psf_fwhm_range": (0.1, 100.0 if binning == 1 else 2.5)}
    info = {k: v for k, v in model.info.items() if k != "separation"} | limits
    model = dataclasses.replace(model, separator=separator.eval(), info=info)
    image = fits.getdata(field).astype(np.float32)[:, :250]
    whole = next(find_sources([image], model, CPU))
    assert whole.domain.binning == binning
    assert len(whole.separated) > 30
    parts = Planes(tmp_path, 250 * 60)
    assert_same(whole, next(find_sources([image], model, CPU, planes=parts)))
    # Blocks of 60 rows need the sources of 572, of which few are looked at again.
    once, *by_block = looks
    assert len(by_block) > 10
    assert once <= sum(by_block) < 4 * once


@pytest.mark.parametrize("form", ["plain", "gzip", "tiles"])
def test_a_large_file_gives_the_same_bytes(field, tmp_path, monkeypatch, form):
    image = tmp_path / "field.fits"
    with fits.open(field) as hdus:
        data = next(hdu.data for hdu in hdus if hdu.data is not None).astype(np.float32)
    if form == "tiles":
        fits.CompImageHDU(data, compression_type="GZIP_1").writeto(image)
    else:
        fits.writeto(image, data)
    if form == "gzip":
        with image.open("rb") as plain, gzip.open(tmp_path / "field.fits.gz", "wb") as packed:
            shutil.copyfileobj(plain, packed)
        image = tmp_path / "field.fits.gz"
    config = replace(CPU, preview=form == "plain")
    deblend_files([image], tmp_path / "small", config)
    monkeypatch.setattr(planes_module, "LARGE_IMAGE", 1000)
    monkeypatch.setattr(preparing, "MANY_CUTOUTS", 3)
    deblend_files([image], tmp_path / "large", config)
    names = sorted(path.name for path in (tmp_path / "small").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "large").iterdir())
    for name in names:
        assert (tmp_path / "small" / name).read_bytes() == (tmp_path / "large" / name).read_bytes()
