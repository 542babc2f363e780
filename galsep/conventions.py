"""Constants and pixel conventions that everything else shares.

Four conventions meet here, and nowhere else:

* galsep, NumPy, SEP and photutils count from 0 and put integers at pixel centres;
* FITS, and so the WCS keywords, count from 1 and put integers at pixel centres;
* a GalSim image runs from 1 to N by default, integers at pixel centres;
* a torchvision box is ``(x0, y0, x1, y1)`` in ``[0, W] × [0, H]``, integers at pixel
  *edges*: the pixel ``i`` covers ``[i, i + 1]``.

An inclusive pixel range ``(xmin, xmax)`` therefore is the torchvision interval
``(xmin, xmax + 1)``, and a position ``x`` of ours is ``x + 0.5`` there and ``x + 1`` in FITS.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "DETECTABLE_MIN_AREA",
    "DETECTABLE_SNR",
    "FITS_ORIGIN",
    "MASK_THRESHOLD",
    "MATCH_RADIUS",
    "MAX_PIXEL",
    "SMALL_SIDES",
    "STAMP_SIZE",
    "bounds_to_boxes",
    "boxes_to_bounds",
    "to_fits",
]

STAMP_SIZE = 120
"""Side of a stamp and of a cutout, in pixels (Kamath's report)."""

SMALL_SIDES = (48, 64, 80)
"""Sides of cutouts that hold less; multiples of the coarsest features' stride."""

MASK_THRESHOLD = 1.5
"""A source's mask is where its own noiseless light exceeds this many sky rms."""

DETECTABLE_SNR = 7.0
"""A source is detectable from this signal-to-noise ratio of its isolated light on."""

DETECTABLE_MIN_AREA = 5
"""... if its mask has at least this many pixels."""

MATCH_RADIUS = 5.0
"""Largest centroid distance of a match, in pixels (the rule of BTK)."""

MAX_PIXEL = 1e30
"""Pixel values of this size and beyond count as no data, like IRAF's INDEF (1.6e38): single
precision holds no sum of their squares."""

FITS_ORIGIN = 1
"""FITS counts pixels from one."""


def to_fits(position: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Turn 0-based pixel positions into FITS's 1-based ones."""
    return np.asarray(position, dtype=np.float64) + FITS_ORIGIN


def bounds_to_boxes(bounds: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Turn inclusive pixel bounds into torchvision boxes.

    Parameters
    ----------
    bounds : (n, 4) array
        ``xmin, ymin, xmax, ymax``, 0-based and inclusive.

    Returns
    -------
    (n, 4) float32 array
        ``x0, y0, x1, y1`` along pixel edges.
    """
    boxes = np.asarray(bounds, dtype=np.float32).reshape(-1, 4).copy()
    boxes[:, 2:] += 1
    return boxes


def boxes_to_bounds(
    boxes: npt.NDArray[Any], shape: tuple[int, int] = (STAMP_SIZE, STAMP_SIZE)
) -> npt.NDArray[np.int64]:
    """Turn torchvision boxes into the inclusive bounds of all pixels they touch.

    Parameters
    ----------
    boxes : (n, 4) array
        ``x0, y0, x1, y1`` along pixel edges.
    shape : (int, int)
        Height and width of the image; bounds are clipped to it.

    Returns
    -------
    (n, 4) int64 array
        ``xmin, ymin, xmax, ymax``, 0-based and inclusive; at least one pixel each.
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    height, width = shape
    limit = np.array([width - 1, height - 1])
    low = np.clip(np.floor(boxes[:, :2]), 0, limit)
    high = np.clip(np.ceil(boxes[:, 2:]) - 1, low, limit)
    return np.concatenate([low, high], axis=1).astype(np.int64)
