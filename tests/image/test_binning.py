import numpy as np
import pytest

from galsep.image.binning import bin_labels, bin_light, magnify, shrink
from galsep.scene import SoftMask


def test_blocks_are_means_of_their_valid_pixels():
    light = np.arange(24, dtype=np.float32).reshape(4, 6)
    mask = np.zeros(light.shape, dtype=bool)
    mask[0, 0] = True
    mask[2:, 2] = mask[2, 3] = True
    light[mask] = 1e9
    binned, unusable = bin_light(light, mask, 2)
    assert unusable.tolist() == [[False, False, False], [False, True, False]]
    assert binned[0].tolist() == pytest.approx([(1 + 6 + 7) / 3, 5.5, 7.5])
    assert binned[1].tolist() == pytest.approx([15.5, 0, 19.5])


def test_blocks_at_the_edge_hold_what_is_there():
    light = np.full((5, 7), 3, dtype=np.float32)
    binned, unusable = bin_light(light, np.zeros(light.shape, dtype=bool), 3)
    assert binned.shape == (2, 3)
    assert (binned == 3).all()
    assert not unusable.any()


def test_labels_survive():
    segm = np.zeros((7, 7), dtype=np.int32)
    segm[1, 1], segm[6, 6] = 4, 7
    assert bin_labels(segm, 2).tolist() == [[4, 0, 0, 0], [0] * 4, [0] * 4, [0, 0, 0, 7]]


@pytest.mark.parametrize("binning", [1, 2, 3])
def test_masks_keep_place_and_size(binning):
    size = 30
    rows, columns = np.indices((size, size))
    radius = np.hypot(rows - 12, columns - 16)
    small = SoftMask(5, -3, np.clip(8 - radius, 0, 1).astype(np.float32))
    large = magnify(small, binning)
    assert large.probability.shape == (binning * size, binning * size)
    assert large.probability.dtype == np.float32
    assert (large.y0, large.x0) == (binning * 5, binning * -3)
    weight = large.probability
    rows, columns = np.indices(weight.shape)
    # Pixel i covers k i … k i + k − 1.
    assert (weight * (rows + 0.5)).sum() / weight.sum() == pytest.approx(binning * 12.5)
    assert (weight * (columns + 0.5)).sum() / weight.sum() == pytest.approx(binning * 16.5)
    assert weight.sum() == pytest.approx(binning**2 * small.probability.sum(), rel=1e-5)


def test_a_full_mask_stays_full():
    large = magnify(SoftMask(0, 0, np.ones((3, 1), dtype=np.float32)), 4)
    assert (large.probability == 1).all()
    assert large.probability.shape == (12, 4)


@pytest.mark.parametrize("binning", [1, 2, 3])
def test_a_smooth_mask_survives_both_ways(binning):
    rows, columns = np.indices((24, 30))
    smooth = np.exp(-((rows - 11) ** 2 + (columns - 14) ** 2) / (2 * 5.0**2))
    small = SoftMask(5, 3, smooth.astype(np.float32))
    back = shrink(magnify(small, binning), binning, (80, 90))
    assert (back.y0, back.x0) == (5, 3)
    assert back.probability.shape == (24, 30)
    assert back.probability == pytest.approx(small.probability, abs=0.01)
    assert back.probability.sum() == pytest.approx(small.probability.sum(), rel=1e-4)


def test_a_mask_that_begins_within_a_block_is_averaged_with_the_rest_of_it():
    mask = SoftMask(3, 5, np.ones((3, 2), dtype=np.float32))
    small = shrink(mask, 2, (10, 10))
    # Rows 3–5 and columns 5–6 lie in the blocks 1–2 and 2–3.
    assert (small.y0, small.x0) == (1, 2)
    assert small.probability.tolist() == [[0.25, 0.25], [0.5, 0.5]]
    assert 4 * small.probability.sum() == mask.probability.sum()


def test_a_mask_at_the_edge_stays_in_the_image():
    image = np.zeros((7, 9), dtype=np.float32)
    binned, _ = bin_light(image, image > 0, 2)
    small = shrink(SoftMask(2, 3, np.ones((5, 6), dtype=np.float32)), 2, binned.shape)
    assert (small.y0, small.x0) == (1, 1)
    assert small.probability.shape == (3, 4)
    # The first column holds half of its block.
    assert (small.probability[:-1, 0] == 0.5).all()
    assert (small.probability[:-1, 1:-1] == 1).all()
