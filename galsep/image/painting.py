"""Painting sources on label maps."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from galsep.planes import Planes, crop_bounds
from galsep.scene import SoftMask

__all__ = ["count_overlaps", "paint_labels"]


def paint_labels(
    weights: Sequence[SoftMask],
    scores: npt.NDArray[np.float64],
    shape: tuple[int, int],
    planes: Planes | None = None,
) -> npt.NDArray[np.int32]:
    """Give each pixel to the source with the largest weight there.

    Parameters
    ----------
    weights : sequence of SoftMask
        For each source its weight in each pixel, inside the image; it competes where the weight
        is positive.
    scores : (n,) float array
        Ties go to the higher score, then to the lower label.
    shape : (int, int)
    planes : Planes, optional
        Where the result is to be.

    Returns
    -------
    (h, w) int32 array
        0 where no source is, else the source's index + 1.
    """
    planes = planes or Planes()
    segm = planes.new(shape, np.int32)
    rank = np.empty(len(weights), dtype=np.int64)
    rank[np.lexsort((np.arange(len(weights)), -scores))] = np.arange(len(weights))
    for rows, indices in _by_block(weights, shape, planes):
        best = np.zeros((rows.stop - rows.start, shape[1]), dtype=np.float32)
        owner = segm[rows]
        for index in indices[np.argsort(rank[indices])].tolist():
            box, weight = _inside(weights[index], rows)
            wins = weight > best[box]
            best[box][wins] = weight[wins]
            owner[box][wins] = index + 1
    return segm


def count_overlaps(
    masks: Sequence[SoftMask], shape: tuple[int, int], planes: Planes | None = None
) -> npt.NDArray[np.uint8]:
    """Count the masks that are positive in each pixel.

    Parameters
    ----------
    masks : sequence of SoftMask
        Inside the image.
    shape : (int, int)
        Height and width of the image.
    planes : Planes, optional
        Where the result is to be.

    Returns
    -------
    (h, w) uint8 array
        255 means that many or more.
    """
    planes = planes or Planes()
    noverlap = planes.new(shape, np.uint8)
    for rows, indices in _by_block(masks, shape, planes):
        counts = np.zeros((rows.stop - rows.start, shape[1]), dtype=np.uint16)
        for index in indices.tolist():
            box, inside = _inside(masks[index], rows)
            counts[box] += inside > 0
        noverlap[rows] = np.minimum(counts, 255)
    return noverlap


def _by_block(
    masks: Sequence[SoftMask], shape: tuple[int, int], planes: Planes
) -> Iterator[tuple[slice, npt.NDArray[np.int64]]]:
    """Blocks of rows and the masks that meet them."""
    bounds = crop_bounds(masks)
    for rows in planes.blocks(shape):
        yield rows, np.flatnonzero((bounds[:, 1] < rows.stop) & (bounds[:, 3] >= rows.start))


def _inside(mask: SoftMask, rows: slice) -> tuple[tuple[slice, slice], npt.NDArray[np.float32]]:
    """Where a crop lies in a block of rows, and the part of it that does."""
    top = max(rows.start - mask.y0, 0)
    part = mask.probability[top : max(rows.stop - mask.y0, 0)]
    first = mask.y0 + top - rows.start
    return (slice(first, first + part.shape[0]), slice(mask.x0, mask.x0 + part.shape[1])), part
