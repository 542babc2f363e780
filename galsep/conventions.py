"""Constants and pixel conventions that everything else shares.

Four conventions are in use:

* galsep, NumPy, SEP and photutils count from 0 and put integers at pixel centres;
* FITS, and so the WCS keywords, count from 1 and put integers at pixel centres: :func:`to_fits`;
* a GalSim image runs from 1 to N by default, integers at pixel centres; ours are told to begin
  where they do in galsep's count;
* a torchvision box is ``(x0, y0, x1, y1)`` in ``[0, W] × [0, H]``, integers at pixel
  *edges*: the pixel ``i`` covers ``[i, i + 1]``: :func:`bounds_to_boxes`. The networks work with
  such boxes throughout.

An inclusive pixel range ``(xmin, xmax)`` therefore is the torchvision interval
``(xmin, xmax + 1)``, and a position ``x`` of ours is ``x + 0.5`` there and ``x + 1`` in FITS.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "DETECTABLE_MIN_AREA",
    "DETECTABLE_SNR",
    "FWHM_PER_SIGMA",
    "MASK_THRESHOLD",
    "MATCH_RADIUS",
    "MAX_PIXEL",
    "PIXEL_VARIANCE",
    "SMALL_SIDES",
    "STAMP_SIZE",
    "TINY",
    "bounds_to_boxes",
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

TINY = float(np.finfo(np.float32).tiny)
"""Noise is less than this in no unit: what may be 0 is made so large before it divides."""

PIXEL_VARIANCE = 1 / 12
"""Second moment of a pixel, pix², which the image adds to that of the PSF."""

FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2)) / 1.055
"""FWHM of a seeing disc (Kolmogorov) over the σ of the Gaussian that fits it best: its wings
widen that Gaussian by 5.5 %."""


def to_fits(position: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Turn 0-based pixel positions into FITS's 1-based ones."""
    return np.asarray(position, dtype=np.float64) + 1


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
