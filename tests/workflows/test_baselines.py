import importlib.util

import numpy as np
import pytest

from galsep.workflows.baselines import (
    PHOTUTILS,
    SEP_SETTINGS,
    baseline_names,
    photutils_detections,
    run_baselines,
    sep_detections,
    sep_fluxes,
)

DEFAULT = SEP_SETTINGS["sep_1.5_32_0.005"]
needs_skimage = pytest.mark.skipif(
    importlib.util.find_spec("skimage") is None, reason="photutils deblends with scikit-image"
)


def gaussians(*sources, rms=1.0, seed=1):
    """Image of round Gaussians (x, y, flux, sigma) with noise."""
    rows, columns = np.indices((120, 120))
    image = np.random.default_rng(seed).normal(0, rms, (120, 120))
    for x, y, flux, sigma in sources:
        light = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
        image += flux * light / (2 * np.pi * sigma**2)
    return image.astype(np.float32)


def methods():
    return [
        pytest.param(lambda image, rms: sep_detections(image, rms, DEFAULT), id="sep"),
        pytest.param(photutils_detections, id="photutils", marks=needs_skimage),
    ]


@pytest.mark.parametrize("detect", methods())
def test_two_bright_sources_are_found_where_they_are(detect):
    found = detect(gaussians((40.3, 60.7, 5e3, 2.5), (75.0, 52.2, 2e3, 2.5)), 1.0)
    order = np.argsort(found.x)
    assert found.x[order] == pytest.approx([40.3, 75.0], abs=0.2)
    assert found.y[order] == pytest.approx([60.7, 52.2], abs=0.2)
    assert found.flux[order] == pytest.approx([5e3, 2e3], rel=0.1)
    # Brighter ranks higher.
    assert found.scores[order[0]] > found.scores[order[1]] > 0.5
    assert all(part.area > 20 for part in found.footprints)


@pytest.mark.parametrize("detect", methods())
def test_a_close_pair_is_split(detect):
    found = detect(gaussians((55.0, 60.0, 2e4, 2.0), (65.0, 60.0, 2e4, 2.0)), 1.0)
    bright = found.scores > 0.9
    assert np.sort(found.x[bright]) == pytest.approx([55, 65], abs=0.3)
    first, second = np.flatnonzero(bright)
    assert found.footprints[first].intersection(found.footprints[second]) == 0


@pytest.mark.parametrize("detect", methods())
def test_masks_flux_and_image_agree(detect):
    image = gaussians((55.0, 60.0, 2e3, 2.0), (68.0, 64.0, 1e3, 3.0))
    found = detect(image, 1.0)
    assert len(found) >= 2
    for part, flux in zip(found.footprints, found.flux, strict=True):
        assert flux == pytest.approx(image[part.to_full(image.shape)].sum(dtype=float))


@pytest.mark.parametrize("detect", methods())
@pytest.mark.parametrize("level", [0.0, -3.0])
def test_a_flat_image_holds_nothing(detect, level):
    found = detect(np.full((120, 120), level, dtype=np.float32), 1.0)
    assert len(found) == 0
    assert found.flux.shape == found.scores.shape == (0,)


@pytest.mark.parametrize("detect", methods())
def test_bad_pixels_are_masked(detect):
    image = gaussians((40.0, 60.0, 5e3, 2.5))
    image[90:95, 90:95] = np.nan
    found = detect(image, 1.0)
    brightest = found.scores.argmax()
    assert found.x[brightest] == pytest.approx(40, abs=0.2)
    assert not any(part.to_full(image.shape)[90:95, 90:95].any() for part in found.footprints)


@needs_skimage
def test_photutils_centroids_are_those_of_its_catalogue():
    from photutils.segmentation import SegmentationImage, SourceCatalog
    from scipy import ndimage

    from galsep.image.blobs import KERNEL

    image = gaussians((40.3, 60.7, 5e3, 2.5), (48.0, 66.0, 2e3, 2.5)).astype(float)
    found = photutils_detections(image, 1.0)
    labels = np.zeros(image.shape, dtype=int)
    for label, part in enumerate(found.footprints, 1):
        labels[part.to_full(image.shape)] = label
    convolved = ndimage.convolve(image, KERNEL, mode="constant")
    catalog = SourceCatalog(image, SegmentationImage(labels), convolved_data=convolved)
    centroids = np.atleast_2d(catalog.centroid)
    assert found.x == pytest.approx(centroids[:, 0], abs=1e-6)
    assert found.y == pytest.approx(centroids[:, 1], abs=1e-6)
    assert found.flux == pytest.approx(np.atleast_1d(catalog.segment_flux))


def test_a_higher_threshold_finds_fewer():
    image = gaussians(*[(x, y, 60 * (1 + x / 20), 2.0) for x in (20, 50, 80) for y in (30, 80)])
    counts = [
        len(sep_detections(image, 1.0, SEP_SETTINGS[name]))
        for name in ("sep_1.5_32_0.005", "sep_3_64_0.001", "sep_5_32_0.005")
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


def test_the_four_settings_and_photutils():
    settings = [(s.threshold, s.nthresh, s.contrast) for s in SEP_SETTINGS.values()]
    assert settings == [(1.5, 32, 0.005), (1.5, 64, 0.0005), (3, 64, 0.001), (5, 32, 0.005)]
    assert baseline_names()["sep_1.5_64_0.0005"] == "SEP 1.5σ/64/0.0005"


def test_photutils_is_left_out_without_scikit_image(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert list(baseline_names()) == list(SEP_SETTINGS)


def test_no_images_and_no_noise():
    assert list(run_baselines([], [], SEP_SETTINGS)) == []
    blank = np.zeros((120, 120), dtype=np.float32)
    results = list(run_baselines([blank] * 2, [0.0, np.nan], [*SEP_SETTINGS, PHOTUTILS]))
    assert [len(found) for result in results for found in result.values()] == [0] * 10


def test_workers_change_nothing(monkeypatch):
    monkeypatch.setattr("galsep.workflows.baselines.CHUNK", 2)
    images = [gaussians((60, 60, 900, 2.0), seed=seed) for seed in range(4)]
    names = iter(["sep_1.5_32_0.005"])
    alone = list(run_baselines(images, [1.0] * 4, names))
    shared = list(run_baselines(images, [1.0] * 4, ["sep_1.5_32_0.005"], workers=2))
    assert len(alone) == len(shared) == 4
    for one, two in zip(alone, shared, strict=True):
        (a,), (b,) = one.values(), two.values()
        assert np.array_equal(a.x, b.x)
        assert np.array_equal(a.flux, b.flux)


def test_kron_fluxes_hold_what_segments_lack():
    image = gaussians((40.3, 60.7, 5e3, 2.5), (85.0, 52.2, 2e3, 2.5))
    found = sep_fluxes(image, 1.0, DEFAULT)
    bright = np.argsort(-found.isophotal)[:2]
    assert found.x[bright] == pytest.approx([40.3, 85.0], abs=0.2)
    assert found.y[bright] == pytest.approx([60.7, 52.2], abs=0.2)
    true = np.array([5e3, 2e3])
    assert found.kron[bright] == pytest.approx(true, rel=0.05)
    assert (found.isophotal[bright] < found.kron[bright]).all()
    assert (found.isophotal[bright] > 0.8 * true).all()


def test_isophotal_fluxes_are_those_of_the_detections():
    image = gaussians((55.0, 60.0, 2e4, 2.0), (65.0, 60.0, 2e4, 2.0), (20, 90, 700, 2.0))
    found, detections = sep_fluxes(image, 1.0, DEFAULT), sep_detections(image, 1.0, DEFAULT)
    assert found.isophotal == pytest.approx(detections.flux)
    assert np.array_equal(found.x, detections.x)


def test_a_neighbour_is_left_out_of_the_kron_aperture():
    alone = sep_fluxes(gaussians((50.0, 60.0, 5e3, 2.5)), 1.0, DEFAULT)
    beside = sep_fluxes(gaussians((50.0, 60.0, 5e3, 2.5), (64.0, 60.0, 5e4, 2.5)), 1.0, DEFAULT)
    first = np.hypot(beside.x - 50, beside.y - 60).argmin()
    assert beside.kron[first] == pytest.approx(alone.kron.max(), rel=0.3)


def test_no_source_has_no_flux():
    found = sep_fluxes(np.zeros((120, 120), dtype=np.float32), 1.0, DEFAULT)
    assert found.x.shape == found.isophotal.shape == found.kron.shape == (0,)
