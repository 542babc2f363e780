import numpy as np
import pytest

from galsep.conventions import bounds_to_boxes, to_fits


def test_fits_counts_from_one():
    np.testing.assert_array_equal(to_fits([0, 10.5]), [1, 11.5])


def test_positions_agree_with_the_wcs():
    from astropy.wcs import WCS

    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [10.0, 20.0]
    wcs.wcs.cdelt = [-5e-5, 5e-5]
    # The header counts from one: CRPIX of our pixel (7, 3) is (8, 4).
    wcs.wcs.crpix = to_fits([7.0, 3.0])
    sky = wcs.pixel_to_world(7.0, 3.0)
    assert (sky.ra.deg, sky.dec.deg) == pytest.approx((10.0, 20.0))
    x, y = np.array([0.0, 55.5]), np.array([3.25, 80.0])
    np.testing.assert_allclose(
        wcs.all_pix2world(x, y, 0), wcs.all_pix2world(to_fits(x), to_fits(y), 1), rtol=1e-14
    )


def test_positions_agree_with_galsim():
    import galsim

    # A stamp that starts at (0, 0) counts as we do; GalSim's default starts at (1, 1).
    for origin in (0, 1):
        image = galsim.Image(41, 31, xmin=origin, ymin=origin)
        centre = galsim.PositionD(12.25 + origin, 17.5 + origin)
        galsim.Gaussian(sigma=2.0).drawImage(image, scale=1.0, center=centre)
        y, x = np.mgrid[:31, :41]
        light = image.array / image.array.sum()
        assert (light * x).sum() == pytest.approx(12.25, abs=1e-3)
        assert (light * y).sum() == pytest.approx(17.5, abs=1e-3)


def test_boxes_are_those_torchvision_makes_of_masks():
    import torch
    from torchvision.ops import masks_to_boxes

    masks = np.zeros((2, 20, 30), bool)
    masks[0, 3:8, 10:15] = masks[1, 0, 0] = True
    bounds = masks_to_boxes(torch.from_numpy(masks)).numpy()
    # Its helper gives the inclusive bounds; boxes of the detector lie on pixel edges.
    np.testing.assert_array_equal(bounds, [[10, 3, 14, 7], [0, 0, 0, 0]])
    boxes = bounds_to_boxes(bounds)
    assert boxes.dtype == np.float32
    np.testing.assert_array_equal(boxes, [[10, 3, 15, 8], [0, 0, 1, 1]])
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    np.testing.assert_array_equal(area, masks.sum(axis=(1, 2)))


def test_no_bounds_are_no_boxes():
    assert bounds_to_boxes(np.zeros((0, 4))).shape == (0, 4)
