"""Images of a PSF that the network was not trained on. The network here is a threshold."""

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.table import Table
from scipy import ndimage

from galsep.config import DeblendConfig
from galsep.flags import Flag
from galsep.image.psf import Psf
from galsep.model.inference import Found
from galsep.model.network import ARCHITECTURES
from galsep.model.weights import Model
from galsep.scene import SoftMask
from galsep.workflows import files as filing
from galsep.workflows import finding, preparing
from galsep.workflows.files import deblend_files, stack_catalogs
from galsep.workflows.reporting import Reporter

CPU = DeblendConfig(device="cpu", batch_size=4)
STARS = [(x + 0.3 * k, y - 0.2 * k) for k, (x, y) in enumerate(
    [(60, 70), (180, 90), (333, 61), (401, 190), (250, 250), (90, 300), (222, 401), (391, 388),
     (60, 180), (310, 310), (300, 170), (150, 220)]
)]  # fmt: skip


class Listener(Reporter):
    def __init__(self):
        self.warnings, self.infos = [], []

    def warn(self, message):
        self.warnings.append(message)

    def info(self, message):
        self.infos.append(message)


def stars(fwhm, shape=(451, 467)):
    """Gaussian stars in white noise of rms 1."""
    image = np.random.default_rng(1).normal(0, 1, shape)
    rows, columns = np.indices(shape)
    sigma = fwhm / 2.3548
    for x, y in STARS:
        image += 100 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
    return image.astype(np.float32)


def outline(cutout):
    """One source for each island above 10 rms."""
    labels, _ = ndimage.label(cutout > np.arcsinh(10))
    masks = [
        SoftMask(box[0].start, box[1].start, (labels[box] == label).astype(np.float32))
        for label, box in enumerate(ndimage.find_objects(labels), 1)
    ]
    shares = [SoftMask(m.y0, m.x0, np.ones_like(m.probability)) for m in masks]
    return Found(masks, shares, np.full(len(masks), 0.9), np.full(len(masks), 0.5))


@pytest.fixture
def seen(monkeypatch):
    """Cutouts that the network was given."""
    cutouts = []

    def detect(model, batch, batch_size, least=0.0):
        cutouts.extend(batch)
        return [outline(cutout) for cutout in batch]

    monkeypatch.setattr(preparing, "detect", detect)
    return cutouts


def model(limits=None):
    info = {} if limits is None else {"psf_fwhm_range": list(limits)}
    return Model(torch.nn.Identity(), ARCHITECTURES["compact"], info, "0" * 64, torch.device("cpu"))


def find(image, limits):
    return next(finding.find_sources([image], model(limits), CPU))


def distances(found):
    own = np.stack([found.detections.x, found.detections.y], axis=1)
    return np.hypot(*(np.array(STARS)[:, None] - own[None]).T).min(axis=0)


def test_weights_without_limits_are_asked_for_no_estimate(seen):
    found = find(stars(4.0), None)
    assert found.domain.fwhm is None
    assert found.domain.binning == found.tiling.scale == 1
    assert not (found.flags & Flag.OUT_OF_DOMAIN).any()


def test_within_the_limits_nothing_changes(seen):
    image = stars(4.0)
    free, bound = find(image, None), find(image, (2.0, 6.0))
    assert bound.domain.fwhm == pytest.approx(4.0, rel=0.1)
    assert np.array_equal(free.segm, bound.segm)
    assert np.array_equal(free.flags, bound.flags)
    assert np.array_equal(free.detections.flux, bound.detections.flux)


@pytest.mark.parametrize(("fwhm", "binning"), [(9.0, 2), (14.0, 3)])
def test_a_wide_psf_is_averaged_into_the_limits(seen, fwhm, binning):
    image = stars(fwhm)
    found = find(image, (2.5, 6.0))
    assert found.domain.binning == found.tiling.scale == binning
    assert found.domain.inside
    # What the network saw: each star at the scale of the blocks, in units of the blocks' noise.
    peak = max(cutout.max() for cutout in seen)
    assert np.sinh(peak) == pytest.approx(100 * binning, rel=0.15)
    # What comes back is in the image's own pixels, each star once.
    assert len(found.detections) == len(STARS)
    assert not found.flags[found.tile >= 0].any()
    assert (found.tile >= 0).all()
    assert distances(found).max() < 0.3
    assert found.segm.shape == image.shape
    assert sorted(found.parent.tolist()) == list(range(1, len(STARS) + 1))
    assert (found.parents.status == "confirmed")[found.parent - 1].all()
    for footprint in found.detections.footprints:
        area = 2 * np.pi * (fwhm / 2.3548) ** 2 * np.log(100 * binning / 10)
        assert footprint.area == pytest.approx(area, rel=0.1)


def test_masked_pixels_stay_masked_when_averaged(seen):
    image = stars(9.0).astype(float)
    x, y = (round(value) for value in STARS[4])
    image[y + 3, x - 2 : x + 3] = np.nan
    found = find(image, (2.5, 6.0))
    assert found.domain.binning == 2
    assert (found.segm[np.isnan(image)] == 0).all()
    nearest = np.hypot(found.detections.x - x, found.detections.y - y).argmin()
    assert found.flags[nearest] & Flag.MASKED_PIXELS


def test_a_narrow_psf_is_flagged(seen):
    found = find(stars(2.0), (3.0, 6.0))
    assert found.domain.binning == 1
    assert len(found.detections) >= len(STARS)
    assert (found.flags & Flag.OUT_OF_DOMAIN).all()


def test_a_given_psf_takes_the_place_of_the_measured_one(seen):
    config = DeblendConfig(device="cpu", psf_fwhm=9.0)
    found = next(finding.find_sources([stars(4.0)[:130, :130]], model((2.5, 6.0)), config))
    assert found.domain.psf == Psf(9.0)
    assert found.domain.binning == 2


def test_what_is_said_of_the_psf_says_of_what_it_is(tmp_path, monkeypatch, seen):
    fits.writeto(tmp_path / "a.fits", stars(4.0))
    monkeypatch.setattr(filing, "load_model", lambda *_: model((2.5, 6.0)))
    for points in (True, False):
        monkeypatch.setattr(preparing, "estimate_psf", lambda *_, p=points: Psf(4.0, points=p))
        config = DeblendConfig(device="cpu", report=True)
        deblend_files([tmp_path / "a.fits"], tmp_path / "out", config, overwrite=True)
        assert fits.getheader(tmp_path / "out" / "a_cat.fits")["PSFSTARS"] is points
        page = (tmp_path / "out" / "a_report.html").read_text()
        assert ("by galaxies: no stars stand out" in page) is not points


def test_small_stamps_are_taken_as_they_are(seen):
    image = stars(9.0)[:130, :130]
    found = find(image, (2.5, 6.0))
    assert found.domain.fwhm is None
    assert found.domain.binning == 1
    assert not (found.flags & Flag.OUT_OF_DOMAIN).any()


@pytest.fixture
def files(seen, tmp_path, monkeypatch):
    """Deblend two star fields, of a wide and of a narrow PSF."""
    monkeypatch.setattr(filing, "load_model", lambda *_: model((3.0, 6.0)))
    paths = [tmp_path / "wide.fits", tmp_path / "narrow.fits"]
    for path, fwhm in zip(paths, (10.0, 2.0), strict=True):
        fits.writeto(path, stars(fwhm))
    listener = Listener()
    results = deblend_files(paths, tmp_path / "out", CPU, reporter=listener)
    assert [result.error for result in results] == [None, None]
    return tmp_path / "out", listener, results


def test_one_line_an_image(files):
    _, listener, _ = files
    (info,), (warning,) = listener.infos, listener.warnings
    assert "wide.fits: PSF FWHM about 9." in info
    assert "outside the trained range 3.0–6.0 px: the network sees means of 2×2 px" in info
    assert "narrow.fits: PSF FWHM about 1.8 px is outside the trained range 3.0–6.0 px" in warning
    assert warning.endswith("sources are flagged out_of_domain")


def test_headers_and_flags_say_it(files):
    output, _, results = files
    for product in ("segm", "cat"):
        wide = fits.getheader(output / f"wide_{product}.fits")
        assert wide["RESAMPLE"] == 2
        assert wide["PSFFWHM"] == pytest.approx(10, rel=0.1)
        assert wide["PSFSTARS"]
        assert fits.getheader(output / f"narrow_{product}.fits")["RESAMPLE"] == 1
    wide, narrow = (Table.read(output / f"{stem}_cat.fits") for stem in ("wide", "narrow"))
    assert not (wide["flags"] & Flag.OUT_OF_DOMAIN).any()
    assert (narrow["flags"] & Flag.OUT_OF_DOMAIN).all()
    # Two images have no common PSF.
    assert "PSFFWHM" not in stack_catalogs(results).meta
