import numpy as np
import pytest

from galsep.conventions import SMALL_SIDES, STAMP_SIZE
from galsep.image.tiling import NO_CUTOUT, OVERHEAD, cut, lay_cutouts


def random_bounds(rng, n, shape, largest=20):
    size = rng.integers(3, largest, (n, 2))
    low = rng.integers(0, np.array([shape[1], shape[0]]) - size, (n, 2))
    return np.concatenate([low, low + size - 1], axis=1)


def segm_of(bounds, shape):
    segm = np.zeros(shape, dtype=np.int32)
    for label, (xmin, ymin, xmax, ymax) in enumerate(bounds, 1):
        segm[ymin : ymax + 1, xmin : xmax + 1] = label
    return segm


@pytest.mark.parametrize("shape", [(500, 700), (120, 120), (121, 119), (90, 300)])
@pytest.mark.parametrize("n", [1, 40, 400])
def test_every_blob_lies_well_inside_its_cutout(shape, n):
    bounds = random_bounds(np.random.default_rng(n), n, shape)
    tiling = lay_cutouts(bounds, shape, segm_of(bounds, shape))
    assert (tiling.owner >= 0).all()
    y0, x0 = tiling.origins[tiling.owner].T
    side = tiling.sides[tiling.owner]
    assert set(side.tolist()) <= {*SMALL_SIDES, STAMP_SIZE}
    last_x, last_y = x0 + side - 1, y0 + side - 1
    # Well inside: a margin of 10 px, except where the image itself ends.
    assert (np.minimum(bounds[:, 0], 10) <= bounds[:, 0] - x0).all()
    assert (np.minimum(bounds[:, 1], 10) <= bounds[:, 1] - y0).all()
    assert (np.minimum(shape[1] - 1 - bounds[:, 2], 10) <= last_x - bounds[:, 2]).all()
    assert (np.minimum(shape[0] - 1 - bounds[:, 3], 10) <= last_y - bounds[:, 3]).all()


def test_crowded_fields_need_far_fewer_cutouts_than_blobs():
    shape = (1000, 1000)
    bounds = random_bounds(np.random.default_rng(0), 2000, shape, largest=12)
    tiling = lay_cutouts(bounds, shape, segm_of(bounds, shape))
    assert len(tiling) < 2000 / 6


def test_neighbouring_cells_share_a_cutout_when_they_can():
    # Four blobs about a corner of the grid, in four cells.
    bounds = np.array([[70, 70, 75, 75], [85, 70, 90, 75], [70, 85, 75, 90], [85, 85, 90, 90]])
    tiling = lay_cutouts(bounds, (300, 300), segm_of(bounds, (300, 300)))
    assert len(tiling) == 1
    assert (tiling.owner == 0).all()
    assert len(tiling.regions) == 4


def test_far_parts_of_an_image_do_not_change_the_layout_here():
    """Cutouts are a function of global coordinates: blobs far away make no difference."""
    rng = np.random.default_rng(5)
    shape = (600, 1200)
    here = random_bounds(rng, 60, (600, 480))
    there = random_bounds(rng, 60, (600, 400)) + np.array([720, 0, 720, 0])
    both = np.concatenate([here, there])
    alone = lay_cutouts(here, shape, segm_of(here, shape))
    together = lay_cutouts(both, shape, segm_of(both, shape))
    assert np.array_equal(alone.origins[alone.owner], together.origins[together.owner[: len(here)]])


def test_a_blob_larger_than_a_cutout_is_covered_by_several():
    shape = (400, 500)
    bounds = np.array([[100, 100, 299, 219], [400, 50, 410, 60]])
    segm = segm_of(bounds, shape)
    tiling = lay_cutouts(bounds, shape, segm)
    assert tiling.owner[0] == NO_CUTOUT
    assert tiling.owner[1] >= 0
    covered = np.zeros(shape, dtype=int)
    for xmin, ymin, xmax, ymax in tiling.regions[tiling.region_owner != tiling.owner[1]]:
        covered[ymin : ymax + 1, xmin : xmax + 1] += 1
    assert (covered[segm == 1] == 1).all()


def test_no_blobs_no_cutouts():
    tiling = lay_cutouts(np.zeros((0, 4), dtype=int), (200, 200), np.zeros((200, 200), np.int32))
    assert len(tiling) == 0


def test_cut_copies_pixels_and_pads_with_zero():
    image = np.arange(50 * 200, dtype=np.float32).reshape(50, 200) + 1
    cutout = cut(image, -35, 70, 120)
    assert np.array_equal(cutout[35:85], image[:, 70:190])
    assert (cutout[:35] == 0).all()
    assert (cutout[85:] == 0).all()


def test_a_magnified_tiling_covers_the_same_sky():
    bounds = np.array([[70, 70, 75, 75], [285, 70, 290, 75]])
    small = lay_cutouts(bounds, (200, 400), segm_of(bounds, (200, 400)))
    large = small.magnified(3)
    assert large.scale == 3
    assert np.array_equal(large.origins, 3 * small.origins)
    assert np.array_equal(large.sides, 3 * small.sides)
    # Inclusive bounds: a pixel becomes three.
    assert np.array_equal(large.regions[:, :2], 3 * small.regions[:, :2])
    assert np.array_equal(large.regions[:, 2:] + 1, 3 * (small.regions[:, 2:] + 1))
    assert np.array_equal(large.owner, small.owner)


def test_little_is_cut_small_and_much_together():
    few = np.array([[30, 30, 40, 40], [200, 200, 210, 210], [215, 205, 225, 215]])
    tiling = lay_cutouts(few, (400, 400), segm_of(few, (400, 400)))
    assert tiling.sides.tolist() == [48, 64]
    # In small ones the margin is wider.
    assert (few[:, :2] - tiling.origins[tiling.owner][:, ::-1] >= 18).all()
    # Two small ones are sooner done than the large one that would hold both.
    apart = np.array([[100, 100, 105, 105], [170, 100, 175, 105]])
    tiling = lay_cutouts(apart, (400, 400), segm_of(apart, (400, 400)))
    assert tiling.sides.tolist() == [48, 48]
    near = np.array([[100, 100, 105, 105], [130, 100, 135, 105]])
    tiling = lay_cutouts(near, (400, 400), segm_of(near, (400, 400)))
    assert tiling.sides.tolist() == [80]
    beside = np.array([[100, 100, 160, 150], [170, 140, 175, 145]])
    tiling = lay_cutouts(beside, (400, 400), segm_of(beside, (400, 400)))
    assert tiling.sides.tolist() == [STAMP_SIZE]
    assert (tiling.owner == 0).all()


def grid_bounds(step, side):
    x, y = (axis.ravel() for axis in np.mgrid[step // 2 : side : step, step // 2 : side : step])
    return np.stack([x - 2, y - 2, x + 2, y + 2], axis=1).clip(0, side - 1)


@pytest.mark.parametrize(
    ("bounds", "share"),
    [
        (grid_bounds(10, 960), 1.05),
        (grid_bounds(15, 960), 1.0),
        (grid_bounds(40, 960), 1.0),
        (grid_bounds(120, 960), 0.3),
        (random_bounds(np.random.default_rng(4), 4000, (960, 960), largest=12), 1.1),
        (random_bounds(np.random.default_rng(5), 150, (960, 960), largest=12), 0.75),
    ],
    ids=["every 10 px", "every 15 px", "every 40 px", "alone", "a crowd", "few"],
)
def test_small_cutouts_cost_little_more_in_crowds_and_less_elsewhere(bounds, share):
    segm = segm_of(bounds, (960, 960))
    cost = [
        (lay_cutouts(bounds, (960, 960), segm, small=small).sides ** 2 + OVERHEAD).sum()
        for small in (True, False)
    ]
    assert cost[0] <= share * cost[1]


def test_without_small_cutouts_all_are_large():
    bounds = random_bounds(np.random.default_rng(3), 60, (600, 600))
    tiling = lay_cutouts(bounds, (600, 600), segm_of(bounds, (600, 600)), small=False)
    assert set(tiling.sides.tolist()) == {STAMP_SIZE}


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_a_blob_and_the_ring_about_it_are_both_owned(order):
    # Of one centre, and a neighbour that fits into a small cutout with the inner one alone.
    bounds = np.array([[128, 128, 132, 132], [100, 100, 160, 160], [140, 128, 144, 132]])
    bounds = bounds[list(order)]
    tiling = lay_cutouts(bounds, (400, 400), segm_of(bounds, (400, 400)))
    assert (tiling.owner >= 0).all()
