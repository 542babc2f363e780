import numpy as np

from galsep.image.painting import count_overlaps, paint_labels
from galsep.scene import SoftMask


def flat(y0, x0, size, value):
    return SoftMask(y0, x0, np.full((size, size), value, dtype=np.float32))


def test_the_largest_weight_owns_a_pixel():
    segm = paint_labels([flat(0, 0, 4, 1), flat(2, 2, 4, 3)], np.array([0.9, 0.5]), (8, 8))
    assert (segm[2:4, 2:4] == 2).all()
    assert segm[0, 0] == 1
    assert segm[7, 7] == 0
    assert segm.dtype == np.int32


def test_ties_go_to_the_higher_score_then_the_lower_label():
    two = [flat(0, 0, 3, 1), flat(0, 0, 3, 1)]
    assert (paint_labels(two, np.array([0.5, 0.9]), (3, 3)) == 2).all()
    assert (paint_labels(two, np.array([0.5, 0.5]), (3, 3)) == 1).all()


def test_a_weight_of_zero_owns_nothing():
    assert (paint_labels([flat(0, 0, 3, 0)], np.array([0.9]), (3, 3)) == 0).all()


def test_counts():
    masks = [flat(0, 0, 3, 1)] * 2
    counts = count_overlaps(masks, (4, 4))
    assert (counts[:3, :3] == 2).all()
    assert counts[3, 3] == 0
    assert counts.dtype == np.uint8
    assert count_overlaps(masks * 200, (4, 4))[0, 0] == 255
