import gc
import os

import numpy as np
import pytest

from galsep.errors import OutputError
from galsep.planes import LARGE_IMAGE, Footprints, Planes, SoftMasks, SourceLights, crop_bounds
from galsep.scene import SoftMask, SourceLight


def masks():
    rng = np.random.default_rng(1)
    return [
        SoftMask(y0, x0, rng.random((height, width), dtype=np.float32))
        for y0, x0, height, width in ((3, 4, 5, 6), (0, 0, 1, 9), (700, 2, 30, 1))
    ]


@pytest.mark.parametrize("in_file", [False, True])
def test_planes_hold_what_is_written(tmp_path, in_file):
    planes = Planes(tmp_path if in_file else None)
    image = planes.new((50, 70), np.float32)
    assert image.shape == (50, 70)
    assert (image == 0).all()
    image[10:20] = 3
    planes.release()
    assert image.sum() == 3 * 10 * 70
    assert planes.new((0, 5), np.int32).shape == (0, 5)


def test_nothing_stays_in_the_folder(tmp_path):
    planes = Planes(tmp_path)
    image, stored = planes.new((50, 70), np.float32), planes.masks()
    stored.append(masks()[0])
    image[0] = 1
    assert not list(tmp_path.iterdir())


def test_files_are_closed_with_their_arrays(tmp_path):
    planes = Planes(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        planes.new((50, 70), np.float32)
        planes.masks().append(masks()[0])
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before + 1


@pytest.mark.parametrize(("rows", "multiple"), [(7, 1), (64, 64), (100, 5), (1, 64)])
def test_blocks_cover_an_image_once(rows, multiple):
    blocks = list(Planes(block_pixels=rows * 30).blocks((333, 30), multiple))
    covered = np.concatenate([np.arange(333)[block] for block in blocks])
    assert np.array_equal(covered, np.arange(333))
    assert all(block.start % multiple == 0 for block in blocks)


def test_only_large_images_are_in_files(tmp_path):
    assert Planes.for_pixels(LARGE_IMAGE, tmp_path).folder is None
    assert Planes.for_pixels(LARGE_IMAGE + 1, tmp_path).folder == tmp_path
    assert Planes.for_pixels(LARGE_IMAGE + 1).folder is not None


def test_no_room_is_an_error_at_once(tmp_path):
    with pytest.raises(OutputError, match="no room"):
        Planes(tmp_path).new((2**30, 2**30), np.float64)
    with pytest.raises(OutputError, match="nowhere"):
        Planes(tmp_path / "nowhere").new((2, 2), np.float32)


@pytest.mark.parametrize("in_file", [False, True])
def test_masks_come_back_as_they_were(tmp_path, in_file):
    stored = SoftMasks(tmp_path if in_file else None)
    for mask in masks():
        stored.append(mask)
    chosen = stored.picked(np.array([2, 0]))
    stored.append(masks()[1])
    for mask, expected in zip(chosen, [masks()[2], masks()[0]], strict=True):
        assert (mask.y0, mask.x0) == (expected.y0, expected.x0)
        assert np.array_equal(mask.probability, expected.probability)
    assert len(stored) == 4
    assert len(stored[1:3]) == 2
    assert np.array_equal(stored.bounds, crop_bounds([*masks(), masks()[1]]))
    assert stored.bounds[0].tolist() == [4, 3, 9, 7]
    with pytest.raises(IndexError):
        stored[4]


def test_footprints_are_where_masks_are_positive():
    values = np.zeros((4, 4), dtype=np.float32)
    values[1:3, 2] = 0.001
    footprint = Footprints([SoftMask(10, 20, values)])[0]
    assert footprint.bounds == (22, 11, 22, 12)


@pytest.mark.parametrize("in_file", [False, True])
def test_parts_of_sources_come_back_as_they_were(tmp_path, in_file):
    stored = SourceLights(tmp_path if in_file else None)
    given = [
        SourceLight(mask.y0, mask.x0, mask.probability, 30 * mask.probability, 1e9 / 3, 0.1 + k)
        for k, mask in enumerate(masks())
    ]
    for part in given:
        stored.append(part)
    assert len(stored) == 3
    for part, expected in zip(stored, given, strict=True):
        assert (part.y0, part.x0) == (expected.y0, expected.x0)
        assert np.array_equal(part.share, expected.share)
        assert np.array_equal(part.model, expected.model)
        # In full precision.
        assert (part.flux, part.flux_err) == (expected.flux, expected.flux_err)
    assert [part.flux_err for part in stored[1:]] == [1.1, 2.1]
    assert not list(tmp_path.iterdir())
    with pytest.raises(IndexError):
        stored[3]
