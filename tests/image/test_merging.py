from dataclasses import replace

import numpy as np
import pytest

from galsep.image.detect import Blobs
from galsep.image.large import LargeObject
from galsep.image.merging import Candidates, merge
from galsep.image.tiling import lay_cutouts
from galsep.scene import Footprint


def box_blobs(bounds, shape):
    bounds = np.asarray(bounds)
    segm = np.zeros(shape, dtype=np.int32)
    for label, (xmin, ymin, xmax, ymax) in enumerate(bounds, 1):
        segm[ymin : ymax + 1, xmin : xmax + 1] = label
    n = len(bounds)
    return Blobs(
        segm=segm,
        x=bounds[:, [0, 2]].mean(1),
        y=bounds[:, [1, 3]].mean(1),
        npix=np.full(n, 9),
        snr=np.full(n, 20.0),
        bounds=bounds,
        correlation=1.0,
    )


def square(xmin, ymin, xmax, ymax):
    return Footprint(ymin, xmin, np.ones((ymax - ymin + 1, xmax - xmin + 1), dtype=bool))


def merged(candidates, blobs):
    tiling = lay_cutouts(blobs.bounds, blobs.segm.shape, blobs.segm)
    return tiling, merge(candidates(tiling), blobs, tiling)


def test_a_source_seen_by_two_cutouts_is_kept_from_the_owner_of_its_blob():
    # Two blobs either side of a district's border: two cutouts that overlap widely.
    blobs = box_blobs([[300, 100, 310, 110], [330, 100, 340, 110]], (300, 500))

    def candidates(tiling):
        assert len(tiling) == 2
        footprints = [square(300, 100, 310, 110), square(330, 100, 340, 110)] * 2
        return Candidates(footprints, np.full(4, 0.9), np.array([0, 0, 1, 1]))

    tiling, result = merged(candidates, blobs)
    assert len(result.kept) == 2
    assert sorted(result.parent.tolist()) == [1, 2]
    cutouts = np.array([0, 0, 1, 1])[result.kept]
    assert np.array_equal(cutouts, tiling.owner[result.parent - 1])


def test_two_sources_of_one_blob_are_both_kept():
    blobs = box_blobs([[100, 100, 120, 110]], (300, 300))
    result = merged(
        lambda _: Candidates(
            [square(100, 100, 111, 110), square(108, 100, 120, 110)],
            np.array([0.9, 0.8]),
            np.array([0, 0]),
        ),
        blobs,
    )[1]
    assert result.kept.tolist() == [0, 1]
    assert result.parent.tolist() == [1, 1]


def test_a_source_outside_all_blobs_has_no_parent_and_one_owner():
    blobs = box_blobs([[300, 100, 310, 110], [330, 100, 340, 110]], (300, 500))
    faint = square(290, 120, 294, 124)
    result = merged(
        lambda _: Candidates([faint, faint], np.array([0.6, 0.7]), np.array([0, 1])), blobs
    )[1]
    assert len(result.kept) == 1
    assert result.parent.tolist() == [0]


def test_a_source_in_the_cell_of_no_blob_is_kept_where_it_is_deepest_inside():
    # Both cutouts reach into the cells above, which have no blobs.
    blobs = box_blobs([[300, 82, 310, 92], [330, 82, 340, 92]], (300, 500))
    both, edge = square(316, 70, 320, 74), square(281, 70, 285, 74)

    def candidates(tiling):
        assert tiling.origins.tolist() == [[63, 281], [63, 311]]
        assert tiling.regions[:, 1].min() == 80
        return Candidates([both, both, edge], np.array([0.6, 0.7, 0.9]), np.array([0, 1, 0]))

    result = merged(candidates, blobs)[1]
    assert result.kept.tolist() == [0]
    assert result.parent.tolist() == [0]


@pytest.mark.parametrize(("correlation", "kept"), [(1.05, [0, 1, 2]), (1.5, [1, 2])])
def test_what_may_be_a_peak_of_correlated_noise_is_dropped(correlation, kept):
    blobs = box_blobs([[100, 100, 103, 103], [120, 120, 123, 123]], (300, 300))
    blobs = replace(blobs, snr=np.array([5.0, 6.0]), correlation=correlation)
    places = [square(100, 100, 103, 103), square(120, 120, 123, 123), square(140, 140, 143, 143)]
    found = Candidates(places, np.full(3, 0.9), np.zeros(3, dtype=np.int64))
    assert merged(lambda _: found, blobs)[1].kept.tolist() == kept


def test_doubles_of_different_cutouts_are_dropped():
    blobs = box_blobs([[310, 100, 319, 110], [320, 100, 330, 110]], (300, 500))

    def candidates(tiling):
        # Each cutout sees the source mostly on its own blob.
        first, second = tiling.owner
        return Candidates(
            [square(311, 100, 324, 110), square(313, 100, 328, 110)],
            np.array([0.8, 0.9]),
            np.array([first, second]),
        )

    assert merged(candidates, blobs)[1].kept.tolist() == [1]


@pytest.mark.parametrize(
    ("averaged", "centre", "kept"),
    [(1, (200.0, 200.0), [1]), (1, (200.0, 206.0), [0, 1]), (2, (200.0, 206.0), [1])],
    ids=["core", "further-off", "averaged"],
)
def test_what_is_found_at_the_centre_of_a_large_object_is_no_source(averaged, centre, kept):
    blobs = box_blobs([[195, 195, 205, 205], [230, 195, 240, 205]], (400, 400))
    tiling = lay_cutouts(blobs.bounds, (400, 400), blobs.segm)
    candidates = Candidates(
        [square(196, 197, 204, 203), square(231, 197, 239, 203)], np.full(2, 0.9), tiling.owner
    )
    light = np.ones((200, 200), dtype=np.float32)
    large = LargeObject(
        square(100, 100, 299, 299), 100, 100, light, 0.03 * light, centre, light > 2, averaged
    )
    assert merge(candidates, blobs, tiling, [large]).kept.tolist() == kept


def test_beside_a_large_object_nothing_is_kept_twice():
    """Cells that cover a large blob lie over those of its neighbours."""
    blobs = box_blobs(
        [[100, 100, 299, 219], [310, 150, 318, 158], [302, 228, 308, 236]], (500, 500)
    )
    in_large, between = square(287, 150, 298, 162), square(301, 221, 303, 223)

    def candidates(tiling):
        # Each cutout sees both; those of the neighbours so little of the first that it is not like
        # its double.
        n = len(tiling)
        footprints = [
            square(291, 150, 295, 162) if k in tiling.owner else in_large for k in range(n)
        ]
        footprints += [between] * n
        return Candidates(footprints, np.full(2 * n, 0.9), np.tile(np.arange(n), 2))

    tiling, result = merged(candidates, blobs)
    x, y = 292.5, 156
    assert sum(low_x <= x <= high_x and low_y <= y <= high_y
               for low_x, low_y, high_x, high_y in tiling.regions.tolist()) > 1  # fmt: skip
    parents = result.parent.tolist()
    assert sorted(parents) == [0, 1]
    assert tiling.owner[0] == -1
    kept = result.kept % len(tiling)
    assert not np.isin(kept[parents.index(1)], tiling.owner)
    assert np.isin(kept[parents.index(0)], tiling.owner)


def test_of_an_averaged_image_large_means_larger_than_its_cutouts():
    # 150 px wide: larger than a cutout's 120, smaller than the 240 that one covers here.
    shape = (500, 500)
    segm = np.zeros(shape, dtype=np.int32)
    segm[100:250, 150:300] = 1
    bounds = np.array([[150, 100, 299, 249]])
    blobs = Blobs(segm, np.array([224.5]), np.array([174.5]), np.array([150**2]),
                  np.array([1e4]), bounds, 1.0)  # fmt: skip
    tiling = lay_cutouts(bounds // 2, (250, 250), segm[::2, ::2]).magnified(2)
    assert tiling.owner.tolist() == [0]
    y0, x0 = tiling.origins[0]
    assert y0 <= 100 - 20
    assert x0 <= 150 - 20
    assert y0 + 240 >= 250 + 20
    assert x0 + 240 >= 300 + 20
    beside = square(x0 + 2, 100, x0 + 8, 110)
    result = merge(
        Candidates([square(150, 100, 299, 249), beside], np.array([0.9, 0.8]), np.array([0, 0])),
        blobs,
        tiling,
    )
    # The second one lies in the same cutout, but outside the cell that it owns.
    assert result.kept.tolist() == [0]
    assert result.parent.tolist() == [1]


def test_nothing_found():
    blobs = box_blobs([[60, 100, 70, 110]], (300, 300))
    result = merged(lambda _: Candidates([], np.zeros(0), np.zeros(0, dtype=np.int64)), blobs)[1]
    assert result.kept.size == result.parent.size == 0
