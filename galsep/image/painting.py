"""Painting sources on label maps."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from galsep.scene import Footprint, SoftMask

__all__ = ["count_overlaps", "paint_labels"]


def paint_labels(
    weights: Sequence[SoftMask],
    scores: npt.NDArray[np.float64],
    shape: tuple[int, int],
) -> npt.NDArray[np.int32]:
    """Give each pixel to the source with the largest weight there.

    Parameters
    ----------
    weights : sequence of SoftMask
        For each source its weight in each pixel; it competes where the weight is positive.
    scores : (n,) float array
        Ties go to the higher score, then to the lower label.
    shape : (int, int)

    Returns
    -------
    (h, w) int32 array
        0 where no source is, else the source's index + 1.
    """
    segm = np.zeros(shape, dtype=np.int32)
    best = np.zeros(shape, dtype=np.float32)
    for index in np.lexsort((np.arange(len(weights)), -scores)).tolist():
        weight = weights[index]
        height, width = weight.probability.shape
        box = slice(weight.y0, weight.y0 + height), slice(weight.x0, weight.x0 + width)
        wins = weight.probability > best[box]
        best[box][wins] = weight.probability[wins]
        segm[box][wins] = index + 1
    return segm


def count_overlaps(
    footprints: Sequence[Footprint], shape: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """Count the masks that cover each pixel; 255 means that many or more."""
    counts = np.zeros(shape, dtype=np.uint16)
    for footprint in footprints:
        counts[footprint.slices] += footprint.mask
    return np.minimum(counts, 255).astype(np.uint8)
