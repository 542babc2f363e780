import numpy as np
import pytest

from galsep.scene import Blend, Detections, Footprint, Source


def square(y0: int, x0: int, side: int) -> Footprint:
    return Footprint(y0, x0, np.ones((side, side), bool))


def test_footprints_check_their_mask():
    with pytest.raises(ValueError, match="2-D bool array, got 2-D uint8"):
        Footprint(0, 0, np.ones((2, 2), np.uint8))
    with pytest.raises(ValueError, match="got 1-D bool"):
        Footprint(0, 0, np.ones(2, bool))


def test_from_mask_is_tight():
    mask = np.zeros((10, 12), bool)
    mask[3, 4] = mask[6, 9] = True
    footprint = Footprint.from_mask(mask, 100, 200)
    assert footprint.bounds == (204, 103, 209, 106)
    assert footprint.slices == (slice(103, 107), slice(204, 210))
    assert footprint.area == 2
    np.testing.assert_array_equal(footprint.shifted(-100, -200).to_full(mask.shape), mask)


def test_an_empty_mask_is_an_empty_footprint():
    empty = Footprint.from_mask(np.zeros((5, 5), bool), 3, 4)
    assert empty.mask.shape == (0, 0)
    assert empty.area == 0
    assert empty.iou(empty) == empty.intersection(square(0, 0, 9)) == 0
    assert not empty.to_full((9, 9)).any()


@pytest.mark.parametrize(
    ("other", "shared"),
    [
        (square(0, 0, 10), 100),
        (square(0, 5, 10), 50),
        (square(9, 9, 10), 1),
        (square(10, 0, 10), 0),
        (square(-5, -5, 10), 25),
        (square(2, 3, 4), 16),
    ],
)
def test_intersection_of_squares(other, shared):
    here = square(0, 0, 10)
    assert here.intersection(other) == other.intersection(here) == shared
    assert here.iou(other) == pytest.approx(shared / (100 + other.area - shared))


def test_intersection_agrees_with_painting():
    rng = np.random.default_rng(4)
    for _ in range(20):
        one, other = (
            Footprint(int(y), int(x), rng.random((int(h), int(w))) < 0.5)
            for y, x, h, w in rng.integers(1, 15, (2, 4))
        )
        both = one.to_full((40, 40)) & other.to_full((40, 40))
        assert one.intersection(other) == both.sum()


def test_clipped_keeps_what_lies_inside():
    clipped = square(-3, 15, 10).clipped((20, 20))
    assert clipped.bounds == (15, 0, 19, 6)
    assert square(30, 30, 5).clipped((20, 20)).area == 0
    assert square(-9, -9, 5).clipped((20, 20)).area == 0
    assert square(-3, 15, 10).to_full((20, 20)).sum() == 35


def test_blends_and_sources_check_their_shapes():
    values = {"kind": "galaxy", "x": 1.0, "y": 2.0, "half_light_radius": 0.3, "e1": 0.0, "e2": 0.0}
    values |= {"y0": 0, "x0": 0, "magnitude": np.zeros(2), "flux": np.zeros(2)}
    assert Source(light=np.zeros((2, 3, 3), np.float32), **values).kind == "galaxy"
    with pytest.raises(ValueError, match="light is"):
        Source(light=np.zeros((3, 3), np.float32), **values)
    with pytest.raises(ValueError, match="1 bands of light but 2 fluxes and 2 magnitudes"):
        Source(light=np.zeros((1, 3, 3), np.float32), **values)
    with pytest.raises(ValueError, match="a blend is"):
        Blend(np.zeros((3, 3), np.float32), [], 0.7)


def test_detections_check_their_lengths():
    footprints = [square(0, 0, 2), square(5, 5, 2)]
    two = np.zeros(2)
    detections = Detections(footprints, two, two, two)
    assert len(detections) == 2
    assert detections.flux.size == detections.class_star.size == 0
    assert len(Detections([], *(np.zeros(0),) * 3)) == 0
    with pytest.raises(ValueError, match="2 footprints but scores has shape"):
        Detections(footprints, two, two, np.zeros(3))
    with pytest.raises(ValueError, match="2 footprints but flux has shape"):
        Detections(footprints, two, two, two, flux=np.zeros(1))
