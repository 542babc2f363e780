"""Masks as runs: the table ``MASKS`` of a segmentation file.

A run is a stretch of one mask along a row, ``x0`` to ``x1`` at ``y``, 0-based and inclusive.
Unlike a label map, runs hold masks that overlap.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from galsep.scene import Footprint

__all__ = ["RUN_DTYPE", "labels_to_runs", "runs_to_footprints"]

RUN_DTYPE = np.dtype([("label", "i4"), ("y", "i4"), ("x0", "i4"), ("x1", "i4")])
"""Columns of a run."""


def labels_to_runs(footprints: Sequence[Footprint]) -> npt.NDArray[np.void]:
    """Turn masks into runs.

    Parameters
    ----------
    footprints : sequence of Footprint
        The mask of label 1, of label 2, ...

    Returns
    -------
    structured array of :data:`RUN_DTYPE`
        Sorted by ``label``, ``y``, ``x0``. An empty mask has no run.
    """
    pieces = [np.zeros(0, dtype=RUN_DTYPE)]
    for label, footprint in enumerate(footprints, start=1):
        height, width = footprint.mask.shape
        padded = np.zeros((height, width + 2), dtype=np.int8)
        padded[:, 1:-1] = footprint.mask
        step = np.diff(padded, axis=1)
        # Rising and falling edges alternate along a row, so both lists are in the same order.
        rows, first = np.nonzero(step == 1)
        _, behind = np.nonzero(step == -1)
        runs = np.zeros(rows.size, dtype=RUN_DTYPE)
        runs["label"] = label
        runs["y"] = rows + footprint.y0
        runs["x0"] = first + footprint.x0
        runs["x1"] = behind - 1 + footprint.x0
        pieces.append(runs)
    return np.concatenate(pieces)


def runs_to_footprints(runs: npt.NDArray[np.void], n: int | None = None) -> list[Footprint]:
    """Turn runs back into masks; the inverse of :func:`labels_to_runs`.

    Parameters
    ----------
    runs : structured array of :data:`RUN_DTYPE`
        In any order; a FITS table of runs will do.
    n : int, optional
        Number of masks, by default the largest label.

    Returns
    -------
    list of Footprint
        The tightest footprints of labels 1 to ``n``; empty for a label without runs.

    Raises
    ------
    ValueError
        For a label outside 1 to ``n`` or a run that ends before it begins.
    """
    label, y, x0, x1 = (
        np.asarray(runs[name], dtype=np.int64) for name in ("label", "y", "x0", "x1")
    )
    count = int(label.max(initial=0)) if n is None else n
    if label.size and (label.min() < 1 or label.max() > count):
        raise ValueError(f"labels run from 1 to {count}, got {label.min()} to {label.max()}")
    if np.any(x1 < x0):
        raise ValueError("a run ends before it begins")
    order = np.argsort(label, kind="stable")
    edges = np.searchsorted(label[order], np.arange(1, count + 2))
    footprints = []
    for start, stop in itertools.pairwise(edges):
        rows = order[start:stop]
        footprints.append(_paint(y[rows], x0[rows], x1[rows]))
    return footprints


def _paint(
    y: npt.NDArray[np.int64], x0: npt.NDArray[np.int64], x1: npt.NDArray[np.int64]
) -> Footprint:
    """Make the footprint of the runs of one label."""
    if y.size == 0:
        return Footprint(0, 0, np.zeros((0, 0), dtype=bool))
    top, left = int(y.min()), int(x0.min())
    step = np.zeros((int(y.max()) - top + 1, int(x1.max()) - left + 2), dtype=np.int32)
    np.add.at(step, (y - top, x0 - left), 1)
    np.add.at(step, (y - top, x1 + 1 - left), -1)
    return Footprint(top, left, np.cumsum(step, axis=1)[:, :-1] > 0)
