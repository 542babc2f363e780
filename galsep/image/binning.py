"""Averaging an image over blocks of pixels, and bringing what is found there back.

Pixel ``i`` of an image averaged over blocks of ``k`` covers the pixels ``k i … k i + k − 1``.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from galsep.planes import Planes
from galsep.scene import SoftMask

__all__ = ["bin_labels", "bin_light", "linear_weights", "magnify", "shrink"]

MIN_VALID = 0.5
"""A block needs at least this share of valid pixels to be one."""


def bin_light(
    light: npt.NDArray[np.float32],
    mask: npt.NDArray[np.bool_],
    binning: int,
    planes: Planes | None = None,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Average an image over blocks of pixels.

    Parameters
    ----------
    light : (h, w) float32 array
    mask : (h, w) bool array
        True where a pixel is unusable; it counts for nothing.
    binning : int
        Side of a block, pixels. Blocks that reach beyond the image hold what is inside.
    planes : Planes, optional
        Where the results are to be.

    Returns
    -------
    light : (⌈h/k⌉, ⌈w/k⌉) float32 array
        0 where unusable.
    mask : bool array of the same shape
        True for blocks of which less than half is valid.
    """
    planes = planes or Planes()
    shape = _binned_shape(light.shape, binning)
    binned, unusable = planes.new(shape, np.float32), planes.new(shape, np.bool_)
    for rows in planes.blocks(light.shape, binning):
        out = _binned_rows(rows, binning)
        good = ~mask[rows]
        total = _blocks(np.where(good, light[rows], np.float32(0)), binning).sum(axis=(1, 3))
        valid = _blocks(good.astype(np.float32), binning).sum(axis=(1, 3))
        inside = np.ones(good.shape, dtype=np.float32)
        unusable[out] = valid < MIN_VALID * _blocks(inside, binning).sum(axis=(1, 3))
        binned[out] = np.where(unusable[out], 0, total / np.maximum(valid, 1))
    return binned, unusable


def bin_labels(
    segm: npt.NDArray[np.int32], binning: int, planes: Planes | None = None
) -> npt.NDArray[np.int32]:
    """Give each block of pixels the highest label in it.

    Parameters
    ----------
    segm : (h, w) int32 array
        Label map, 0 where there is nothing; not negative.
    binning : int
        Side ``k`` of a block, pixels. Blocks that reach beyond the image hold what is inside.
    planes : Planes, optional
        Where the result is to be.

    Returns
    -------
    (⌈h/k⌉, ⌈w/k⌉) int32 array
    """
    planes = planes or Planes()
    binned = planes.new(_binned_shape(segm.shape, binning), np.int32)
    for rows in planes.blocks(segm.shape, binning):
        binned[_binned_rows(rows, binning)] = _blocks(segm[rows], binning).max(axis=(1, 3))
    return binned


def _binned_shape(shape: tuple[int, ...], binning: int) -> tuple[int, ...]:
    return tuple(-(-side // binning) for side in shape)


def _binned_rows(rows: slice, binning: int) -> slice:
    return slice(rows.start // binning, -(-rows.stop // binning))


def magnify(mask: SoftMask, binning: int) -> SoftMask:
    """Interpolate a mask of an averaged image to the image's own pixels, bilinearly.

    Parameters
    ----------
    mask : SoftMask
        In the averaged image's pixels, relative to any pixel of it.
    binning : int

    Returns
    -------
    SoftMask
        In the image's pixels, relative to the first one of that pixel.
    """
    if binning == 1:
        return mask
    height, width = mask.probability.shape
    rows, columns = _interpolation(height, binning), _interpolation(width, binning)
    probability = np.asarray(rows @ mask.probability @ columns.T, dtype=np.float32)
    return SoftMask(mask.y0 * binning, mask.x0 * binning, probability)


def shrink(mask: SoftMask, binning: int, shape: tuple[int, ...]) -> SoftMask:
    """Average a mask over the blocks of an averaged image, the inverse of :func:`magnify`.

    Parameters
    ----------
    mask : SoftMask
        In the image's pixels.
    binning : int
    shape : (int, int)
        Of the averaged image.
    """
    if binning == 1:
        return mask
    y0, x0 = mask.y0 // binning, mask.x0 // binning
    top, left = mask.y0 - y0 * binning, mask.x0 - x0 * binning
    whole = np.pad(mask.probability, ((top, 0), (left, 0)))
    mean = _blocks(whole, binning).mean(axis=(1, 3))
    return SoftMask(y0, x0, mean[: shape[0] - y0, : shape[1] - x0])


def _interpolation(size: int, binning: int) -> npt.NDArray[np.float32]:
    """Weights of linear interpolation from blocks to pixels, constant beyond the outer centres."""
    return linear_weights((np.arange(size * binning) + 0.5) / binning - 0.5, size)


def linear_weights(position: npt.NDArray[Any], cells: int) -> npt.NDArray[np.float32]:
    """Weights ``[n, cells]`` of linear interpolation between cells, constant beyond the outer ones.

    Parameters
    ----------
    position : (n,) float array
        Where to interpolate; whole numbers are cell centres.
    cells : int
    """
    distance = np.abs(np.clip(position, 0, cells - 1)[:, None] - np.arange(cells))
    return np.asarray(np.maximum(0, 1 - distance), dtype=np.float32)


def _blocks(image: npt.NDArray[np.generic], binning: int) -> npt.NDArray[np.generic]:
    """Reshape to ``(rows, k, columns, k)``, filled up with 0."""
    height, width = image.shape
    padded = np.pad(image, ((0, -height % binning), (0, -width % binning)))
    return padded.reshape(padded.shape[0] // binning, binning, -1, binning)
