"""``benchmarks/separation.py``: the scenes that it draws, and what it calls conserved."""

import numpy as np
import pytest

import galsep
from galsep.config import SimulateConfig
from galsep.io.dataset import load_dataset
from galsep.model.weights import load_model
from galsep.scene import SoftMask
from galsep.workflows.finding import find_sources
from galsep.workflows.simulate import simulate

BENCHMARK = "separation"


def test_a_source_is_drawn_where_it_should_be_with_its_flux(bench):
    star = bench.drawn("star", 20.0, 66.0, 57.0, 0.0, 0.0, 0.0, 27.5)
    assert star.sum() == pytest.approx(1000, rel=0.02)
    rows, columns = np.indices(star.shape)
    assert (star * columns).sum() / star.sum() == pytest.approx(66, abs=0.05)
    assert (star * rows).sum() / star.sum() == pytest.approx(57, abs=0.05)
    galaxy = bench.drawn("galaxy", 20.0, 66.0, 57.0, 4.0, 0.7, 0.2, 27.5)
    assert galaxy.max() < star.max() / 2


def test_light_is_conserved_on_the_example(bench):
    image = np.random.default_rng(1).normal(100, 5, (90, 100)).astype(np.float32)
    image[40:52, 45:57] += 60
    image[10:12] = np.nan
    figures = bench.conserved(galsep.deblend(image), image)
    assert figures["off"] < 1e-4
    assert figures["noise_outside"] == pytest.approx(1, abs=0.1)
    assert abs(figures["left_in_masks"]) < 0.5


def test_blends_side_by_side_keep_their_masks(bench):
    mask = SoftMask(3, 4, np.ones((5, 5), np.float32))
    one = (np.zeros((120, 120), np.float32), np.ones((120, 120), bool), [mask], [mask])
    other = (np.ones((120, 120), np.float32), np.ones((120, 120), bool), [mask], [mask])
    light, usable, masks, claims = bench.side_by_side([one, other])
    assert light.shape == usable.shape == (120, 240)
    assert light[0, 119] == 0
    assert light[0, 120] == 1
    assert [m.x0 for m in masks] == [c.x0 for c in claims] == [4, 124]


def test_all_bands_of_a_blend_are_measured(bench, tmp_path):
    config = SimulateConfig(n=20, bands=("g", "i"), seed=3, workers=1)
    data = load_dataset(simulate(tmp_path / "set", config).folder)
    frame = bench.frame(data, 0)
    assert frame.psf_fwhm == data.fwhm(0)
    assert bench.frame(data, 0, psf=False).psf_fwhm is None
    (found,) = find_sources([frame], load_model(device="cpu"))
    assert set(found.bands) == {"g"}
    assert len(found.bands["g"].photometry.flux) == len(found.photometry.flux) > 0


def test_an_image_ends_beyond_the_brighter_galaxy(bench, tmp_path):
    data = load_dataset(simulate(tmp_path / "set", SimulateConfig(n=40, seed=5, workers=1)).folder)
    whole = bench.frame(data, 0)
    part = bench.cropped(whole, 63)
    assert part.data.shape == part.mask.shape == (120, 64)
    assert (part.data == whole.data[:, :64]).all()
    assert part.psf_fwhm == whole.psf_fwhm
    figures = bench.cut_off(bench.Bench(tmp_path, "", "cpu", 1), data, 20)
    assert figures["pixels_beyond"] == 20
    # Of the two blends of the test split.
    assert figures["n"] == len(data.split("test"))
    assert figures["flux_error"] < 0.3
