"""Matching found sources to true ones, one to one.

Pure functions on arrays. Rows are true sources, columns found ones. Both criteria, centroid
distance and mask overlap, become a matrix of costs and a matrix of allowed pairs; the Hungarian
algorithm then finds, of all assignments with the most allowed pairs, the one of least total cost.
A pair out of range therefore never keeps two good pairs from each other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from galsep.conventions import MATCH_RADIUS
from galsep.scene import Footprint

__all__ = [
    "MATCH_IOU",
    "Match",
    "centroid_distances",
    "iou_matrix",
    "match_centroids",
    "match_masks",
    "nearest_distance",
]

MATCH_IOU = 0.5
"""Smallest intersection over union of two masks that match (PASCAL VOC's rule)."""

LARGE = 10_000
"""A matrix of more pairs, that of a wide field, is matched part by part."""


@dataclass(frozen=True, slots=True)
class Match:
    """Who is who in one image.

    Parameters
    ----------
    pairs : (k, 2) int array
        Index of a wanted true source and of the found one that is it, in order of the true ones.
    missed : (m,) int array
        Wanted true sources without a partner.
    spurious : (s,) int array
        Found sources that are no true source.
    ignored : (i,) int array
        Found sources that match an unwanted true source and no wanted one: neither right nor
        wrong.
    """

    pairs: npt.NDArray[np.int64]
    missed: npt.NDArray[np.int64]
    spurious: npt.NDArray[np.int64]
    ignored: npt.NDArray[np.int64]

    @property
    def exact(self) -> bool:
        """Whether every wanted source was found and nothing else."""
        return self.missed.size == 0 and self.spurious.size == 0


def centroid_distances(
    true: tuple[npt.NDArray[Any], npt.NDArray[Any]],
    found: tuple[npt.NDArray[Any], npt.NDArray[Any]],
) -> npt.NDArray[np.float64]:
    """Distances between true and found centroids.

    Parameters
    ----------
    true, found : pairs of (n,) and (m,) float arrays
        ``x, y`` in pixels.

    Returns
    -------
    (n, m) float array
        Pixels; infinite where a position is not finite.
    """
    with np.errstate(invalid="ignore"):
        dx = np.subtract.outer(np.asarray(true[0], float), np.asarray(found[0], float))
        dy = np.subtract.outer(np.asarray(true[1], float), np.asarray(found[1], float))
    distance: npt.NDArray[np.float64] = np.hypot(dx, dy)
    distance[~np.isfinite(distance)] = np.inf
    return distance


def iou_matrix(true: Sequence[Footprint], found: Sequence[Footprint]) -> npt.NDArray[np.float64]:
    """Intersection over union of every true with every found mask.

    Only pairs whose boxes overlap are counted out.

    Parameters
    ----------
    true, found : sequences of ``n`` and ``m`` Footprint
        In the same pixels.

    Returns
    -------
    (n, m) float array
        Between 0 and 1; 0 also for two empty masks.
    """
    result = np.zeros((len(true), len(found)))
    if result.size == 0:
        return result
    a = np.array([footprint.bounds for footprint in true])[:, None]
    b = np.array([footprint.bounds for footprint in found])[None]
    overlap = (np.minimum(a[..., 2:], b[..., 2:]) >= np.maximum(a[..., :2], b[..., :2])).all(-1)
    for i, j in np.argwhere(overlap):
        result[i, j] = true[i].iou(found[j])
    return result


def match_centroids(
    distance: npt.NDArray[np.float64],
    radius: float = MATCH_RADIUS,
    wanted: npt.NDArray[np.bool_] | None = None,
    scores: npt.NDArray[np.float64] | None = None,
) -> Match:
    """Match by centroid distance, at most ``radius`` pixels (the rule of BTK).

    Parameters
    ----------
    distance : (n, m) float array
        From :func:`centroid_distances`.
    radius : float
        Largest distance of a match, pixels.
    wanted : (n,) bool array, optional
        True sources that count; all by default. See :class:`Match`.
    scores : (m,) float array, optional
        Between 0 and 1. Of as many pairs, those of highest total score are taken, and distance
        decides only between equals: where two claim one true source, the more certain one is it.
    """
    cost = distance
    if scores is not None:
        # All distances together weigh less than a difference of 0.0001 in score.
        cost = 1 - scores + 1e-4 * distance / (radius * max(len(distance), 1))
    return _match(cost, distance <= radius, wanted)


def match_masks(
    iou: npt.NDArray[np.float64],
    threshold: float = MATCH_IOU,
    wanted: npt.NDArray[np.bool_] | None = None,
) -> Match:
    """Match by mask overlap of at least ``threshold``.

    Parameters
    ----------
    iou : (n, m) float array
        From :func:`iou_matrix`.
    threshold : float
        Smallest intersection over union of a match, above 0.
    wanted : (n,) bool array, optional
        True sources that count; all by default. See :class:`Match`.
    """
    return _match(1.0 - iou, (iou >= threshold) & (iou > 0), wanted)


def nearest_distance(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Distance of each source to its nearest neighbour.

    Parameters
    ----------
    x, y : (n,) float arrays
        Centroids, pixels.

    Returns
    -------
    (n,) float array
        Pixels; infinite for a source alone and for one whose position is not finite.
    """
    distance = centroid_distances((x, y), (x, y))
    np.fill_diagonal(distance, np.inf)
    result: npt.NDArray[np.float64] = distance.min(axis=1, initial=np.inf)
    return result


def _match(
    cost: npt.NDArray[np.float64],
    allowed: npt.NDArray[np.bool_],
    wanted: npt.NDArray[np.bool_] | None,
) -> Match:
    """Match the wanted true sources first; unwanted ones may then claim what is left over."""
    n_true, n_found = cost.shape
    chosen = np.ones(n_true, dtype=bool) if wanted is None else np.asarray(wanted, dtype=bool)
    if chosen.shape != (n_true,):
        raise ValueError(f"{n_true} true sources but wanted has shape {chosen.shape}")
    rows, unwanted = np.flatnonzero(chosen), np.flatnonzero(~chosen)
    i, j = _assign(cost[rows], allowed[rows])
    pairs = np.stack([rows[i], j], axis=1)
    left = np.setdiff1d(np.arange(n_found), j)
    _, k = _assign(cost[np.ix_(unwanted, left)], allowed[np.ix_(unwanted, left)])
    return Match(
        pairs=pairs,
        missed=np.setdiff1d(rows, rows[i]),
        spurious=np.delete(left, k),
        ignored=np.sort(left[k]),
    )


def _assign(
    cost: npt.NDArray[np.float64], allowed: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Find the allowed pairs of the best assignment, in order of rows."""
    if not allowed.any():
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    if cost.size <= LARGE:
        return _assign_whole(cost, allowed)
    pairs = []
    for i, j in _connected(allowed):
        block = np.ix_(i, j)
        rows, columns = _assign_whole(cost[block], allowed[block])
        pairs.append(np.stack([i[rows], j[columns]]))
    joined = np.concatenate(pairs, axis=1)
    first, second = joined[:, np.argsort(joined[0])]
    return first, second


def _assign_whole(
    cost: npt.NDArray[np.float64], allowed: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Find the allowed pairs of the best assignment by the Hungarian algorithm."""
    from scipy.optimize import linear_sum_assignment

    # One forbidden pair costs more than any number of allowed ones.
    forbidden = (min(cost.shape) + 1) * max(1.0, float(cost[allowed].max()))
    i, j = linear_sum_assignment(np.where(allowed, cost, forbidden))
    good = allowed[i, j]
    return np.asarray(i[good], dtype=np.int64), np.asarray(j[good], dtype=np.int64)


def _connected(
    allowed: npt.NDArray[np.bool_],
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Rows and columns of each connected part of the allowed pairs; no assignment crosses them."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows, columns = np.nonzero(allowed)
    nodes = sum(allowed.shape)
    graph = coo_array((np.ones(len(rows)), (rows, columns + len(allowed))), shape=(nodes, nodes))
    _, part = connected_components(graph, directed=False)
    order = np.argsort(part[rows], kind="stable")
    borders = np.flatnonzero(np.diff(part[rows][order])) + 1
    for edges in np.split(order, borders):
        yield np.unique(rows[edges]), np.unique(columns[edges])
