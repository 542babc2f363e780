"""Our detection against SEP's own."""

import numpy as np
import pytest
import sep

from galsep.image.blobs import find_blobs
from galsep.planes import Planes


def crowded(seed, shape=(500, 420)):
    """Sources of all sizes and brightnesses on noise that changes across the image."""
    rng = np.random.default_rng(seed)
    rms = np.linspace(1, 2, shape[1], dtype=np.float32) * np.ones(shape, dtype=np.float32)
    light = rng.normal(0, rms).astype(np.float32)
    y, x = np.indices(shape)
    for _ in range(120):
        cx, cy = rng.uniform(0, shape[1]), rng.uniform(0, shape[0])
        radius = np.hypot((x - cx) / rng.uniform(0.4, 1), y - cy)
        scale = rng.uniform(1, 4)
        light += (10 ** rng.uniform(0.5, 3.5) * (1 + (radius / scale) ** 2) ** -2.5).astype("f4")
    mask = np.zeros(shape, dtype=bool)
    mask[:, 200] = True
    mask[100:130, 300:340] = True
    return light, rms, mask


def seps_own(light, rms, mask, clean):
    return sep.extract(
        light, 1.5, err=rms, mask=mask, minarea=5, filter_type="conv", deblend_cont=1.0,
        clean=clean, segmentation_map=True,
    )  # fmt: skip


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_blobs_are_those_of_sep(seed):
    light, rms, mask = crowded(seed)
    expected, segm = seps_own(light, rms, mask, clean=False)
    blobs = find_blobs(light, rms, mask, threshold=1.5, min_area=5, clean=False)
    assert len(blobs.x) == len(expected) > 50
    assert np.array_equal(blobs.segm > 0, segm > 0)
    theirs = expected[[segm[blobs.segm == label][0] - 1 for label in range(1, len(blobs.x) + 1)]]
    assert np.array_equal(blobs.npix, theirs["npix"])
    for column, name in enumerate(("xmin", "ymin", "xmax", "ymax")):
        assert np.array_equal(blobs.bounds[:, column], theirs[name])
    assert np.allclose(blobs.x, theirs["x"], atol=1e-4)
    assert np.allclose(blobs.y, theirs["y"], atol=1e-4)
    assert np.allclose(blobs.flux, theirs["flux"], rtol=1e-5)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_same_blobs_are_cleaned_away(seed):
    light, rms, mask = crowded(seed)
    every = find_blobs(light, rms, mask, threshold=1.5, min_area=5, clean=False).segm
    ours = find_blobs(light, rms, mask, threshold=1.5, min_area=5).segm
    _, theirs = seps_own(light, rms, mask, clean=True)
    gone = [set(np.unique(every[(every > 0) & (segm == 0)])) for segm in (ours, theirs)]
    # SEP passes over the sixth pixel that it meets, which matters for blobs of a few pixels.
    assert len(gone[0] ^ gone[1]) <= 0.03 * every.max()
    assert gone[0] & gone[1]


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_blocks_change_nothing(tmp_path, rows):
    light, rms, mask = crowded(4)
    whole = find_blobs(light, rms, mask, threshold=1.5, min_area=5)
    parts = find_blobs(
        light, rms, mask, threshold=1.5, min_area=5, planes=Planes(tmp_path, rows * light.shape[1])
    )
    for name in type(whole).__dataclass_fields__:
        assert np.array_equal(getattr(whole, name), getattr(parts, name)), name


def test_one_blob_may_be_as_large_as_the_image():
    rows, columns = np.indices((300, 301))
    light = np.where((rows % 4 == 0) | (columns == 0), 50, -50).astype(np.float32)
    blobs = find_blobs(
        light, np.ones_like(light), light > 100, threshold=1.5, min_area=5,
        planes=Planes(block_pixels=301 * 10),
    )  # fmt: skip
    assert len(blobs.x) == 1
    assert blobs.bounds[0].tolist() == [0, 0, 300, 299]


def test_labels_go_by_the_first_pixel():
    light = np.zeros((40, 40), dtype=np.float32)
    for y, x in ((30, 5), (10, 30), (10, 5)):
        light[y : y + 4, x : x + 4] = 100
    blobs = find_blobs(light, np.ones_like(light), light < -1, threshold=1.5, min_area=5)
    assert np.array_equal(np.argsort(blobs.y * 40 + blobs.x), [0, 1, 2])


@pytest.mark.filterwarnings("error")
def test_blobs_of_negative_pixels():
    # Smoothed, they are as bright as their neighbours, whose noise is higher.
    light, rms = np.zeros((40, 40), dtype=np.float32), np.ones((40, 40), dtype=np.float32)
    light[8:22, 17:24] = -10
    light[10:20, 20], rms[10:20, 20] = 1000, 1e6
    mask = np.zeros(light.shape, dtype=bool)
    blobs = find_blobs(light, rms, mask, threshold=1.5, min_area=5)
    assert len(blobs.x) == 1
    assert blobs.flux[0] < 0
