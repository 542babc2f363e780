"""Putting the cutouts' sources together: each belongs to exactly one cutout.

A source belongs to the blob that its mask shares most pixels with, and is kept only from the
cutout that owns this blob. A source inside a blob too large for a cutout is kept from that of the
cutouts which cover the blob in whose region its centre lies, and a source outside all blobs from
the cutout of the region there: of the cells of blobs, or else of what covers a large one, or else
from the cutout that has it deepest inside. So no source is kept twice, wherever a cutout's edge
falls; what two cutouts see slightly differently is caught by a last comparison.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from galsep.conventions import STAMP_SIZE
from galsep.image.detect import Blobs
from galsep.image.large import LargeObject, in_cores
from galsep.image.tiling import NO_CUTOUT, Tiling
from galsep.planes import Planes
from galsep.scene import Footprint

__all__ = ["Candidates", "Merged", "merge"]

DUPLICATE_IOU = 0.5
"""Sources of different cutouts whose masks overlap this much are one."""

NO_PARENT = 0

DEEP = 6
"""A source outside all regions is so many pixels of a cutout from its edge, at least, but where the
image ends there."""

FEW_SOURCES = 512
"""Sources that are looked at before their pixels are let go."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """What the network found, in image coordinates.

    Parameters
    ----------
    footprints : sequence of Footprint
    scores : (n,) float array
    cutout : (n,) int array
        Number of the cutout each was found in.
    """

    footprints: Sequence[Footprint]
    scores: npt.NDArray[np.float64]
    cutout: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Merged:
    """Which candidates stay.

    Parameters
    ----------
    kept : (k,) int array
        Indices of the candidates that stay.
    parent : (k,) int array
        Blob of each, counted from 1; 0 for a source outside all blobs.
    """

    kept: npt.NDArray[np.int64]
    parent: npt.NDArray[np.int64]


def merge(
    candidates: Candidates,
    blobs: Blobs,
    tiling: Tiling,
    large: Sequence[LargeObject] = (),
    planes: Planes | None = None,
) -> Merged:
    """Keep each source once, and none that lies in a peak of correlated noise.

    Parameters
    ----------
    candidates : Candidates
        Every footprint lies inside the image and is not empty.
    blobs : Blobs
    tiling : Tiling
    large : sequence of LargeObject
        What is found at the centre of one is no other source.
    planes : Planes, optional
        Where the blobs are.
    """
    parents = _parents(candidates.footprints, blobs.segm, planes or Planes())
    owns = _Regions.of(tiling, blobs.segm.shape).owns
    peaks = np.append(False, blobs.noise_peaks)
    own = [
        index
        for index, (footprint, parent, cutout) in enumerate(
            zip(candidates.footprints, parents.tolist(), candidates.cutout.tolist(), strict=True)
        )
        if not peaks[parent] and owns(cutout, footprint, parent)
    ]
    if large:
        centres = np.array([_centre(candidates.footprints[index]) for index in own]).reshape(-1, 2)
        cores = in_cores(large, centres[:, 0], centres[:, 1])
        own = [index for index, core in zip(own, cores.tolist(), strict=True) if not core]
    kept = np.array(_without_duplicates(own, candidates), dtype=np.int64)
    return Merged(kept=kept, parent=parents[kept] if kept.size else kept)


def _parents(
    footprints: Sequence[Footprint], segm: npt.NDArray[np.int32], planes: Planes
) -> npt.NDArray[np.int64]:
    """Blob that each mask shares most pixels with, of several the first one."""
    parents = np.full(len(footprints), NO_PARENT, dtype=np.int64)
    for index, footprint in enumerate(footprints):
        labels = segm[footprint.slices][footprint.mask]
        found, counts = np.unique(labels[labels > 0], return_counts=True)
        if found.size:
            parents[index] = found[counts.argmax()]
        if index % FEW_SOURCES == 0:
            planes.release()
    return parents


@dataclass(frozen=True, slots=True)
class _Regions:
    """Who owns what.

    Parameters
    ----------
    owner : (n,) int array
        See :class:`galsep.image.tiling.Tiling`.
    regions : sequence of (k, 4) int array
        Those of each cutout.
    covers : (m,) bool array
        Whether a cutout covers a part of a blob too large for one: its regions may overlap those of
        the others.
    ordinary, every : (k, 4) int array
        Regions of all others, and all regions.
    inner : (n, 4) float array
        Where a source is not too near to the edge of each cutout, inclusive.
    """

    owner: npt.NDArray[np.int64]
    regions: Sequence[npt.NDArray[np.int64]]
    covers: npt.NDArray[np.bool_]
    ordinary: npt.NDArray[np.int64]
    every: npt.NDArray[np.int64]
    inner: npt.NDArray[np.float64]

    @classmethod
    def of(cls, tiling: Tiling, shape: tuple[int, ...]) -> "_Regions":
        numbers = np.arange(len(tiling))
        order = np.argsort(tiling.region_owner, kind="stable")
        edges = np.searchsorted(tiling.region_owner[order], np.append(numbers, len(tiling)))
        covers = ~np.isin(numbers, tiling.owner)
        low = tiling.origins[:, ::-1]
        high = low + tiling.sides[:, None] - 1
        inner = np.concatenate(
            [
                np.where(low > 0, low, -np.inf),
                np.where(high < (shape[1] - 1, shape[0] - 1), high, np.inf),
            ],
            axis=1,
        )
        return cls(
            tiling.owner,
            np.split(tiling.regions[order], edges[1:-1]),
            covers,
            tiling.regions[~covers[tiling.region_owner]],
            tiling.regions,
            inner + DEEP * tiling.scale * np.array([1, 1, -1, -1]),
        )

    def owns(self, cutout: int, footprint: Footprint, parent: int) -> bool:
        """Whether a source of a blob (0: of none) is to be taken from a cutout."""
        owner = int(self.owner[parent - 1]) if parent != NO_PARENT else NO_CUTOUT
        if owner != NO_CUTOUT:
            return cutout == owner
        centre = _centre(footprint)
        if parent == NO_PARENT and not _lies_in(self.every, centre):
            return cutout == self._deepest(centre)
        if not _lies_in(self.regions[cutout], centre):
            return False
        if parent != NO_PARENT:
            return bool(self.covers[cutout])
        return not self.covers[cutout] or not _lies_in(self.ordinary, centre)

    def _deepest(self, centre: tuple[float, float]) -> int:
        """Cutout that has a place furthest from its edge, −1 for none."""
        from_low, from_high = centre - self.inner[:, :2], self.inner[:, 2:] - centre
        depth = np.minimum(from_low, from_high).min(axis=1)
        return int(depth.argmax()) if depth.size and depth.max() >= 0 else NO_CUTOUT


def _lies_in(regions: npt.NDArray[np.int64], centre: tuple[float, float]) -> bool:
    xmin, ymin, xmax, ymax = regions.T
    x, y = centre
    inside = (xmin - 0.5 <= x) & (x < xmax + 0.5) & (ymin - 0.5 <= y) & (y < ymax + 0.5)
    return bool(inside.any())


def _centre(footprint: Footprint) -> tuple[float, float]:
    rows, columns = np.nonzero(footprint.mask)
    return footprint.x0 + float(columns.mean()), footprint.y0 + float(rows.mean())


def _without_duplicates(own: list[int], candidates: Candidates) -> list[int]:
    """Drop the weaker of two sources of different cutouts that are one."""
    bounds = np.array([candidates.footprints[index].bounds for index in own]).reshape(-1, 4)
    order = sorted(range(len(own)), key=lambda k: (-candidates.scores[own[k]], own[k]))
    dropped: set[int] = set()
    cutout = candidates.cutout[own] if own else np.zeros(0, dtype=np.int64)
    # Only sources whose boxes meet need a look; each box is filed under all cells it lies in.
    cells: dict[tuple[int, int], list[int]] = defaultdict(list)
    low, high = bounds[:, :2] // STAMP_SIZE, bounds[:, 2:] // STAMP_SIZE
    spans = [
        [(x, y) for y in range(y0, y1 + 1) for x in range(x0, x1 + 1)]
        for (x0, y0), (x1, y1) in zip(low.tolist(), high.tolist(), strict=True)
    ]
    for k, span in enumerate(spans):
        for cell in span:
            cells[cell].append(k)
    for k in order:
        if k in dropped:
            continue
        xmin, ymin, xmax, ymax = bounds[k]
        near = np.unique(np.concatenate([cells[cell] for cell in spans[k]]))
        meets = (
            (bounds[near, 0] <= xmax)
            & (bounds[near, 2] >= xmin)
            & (bounds[near, 1] <= ymax)
            & (bounds[near, 3] >= ymin)
            & (cutout[near] != cutout[k])
        )
        if not meets.any():
            continue
        footprint = candidates.footprints[own[k]]
        for other in near[meets].tolist():
            if other not in dropped and (
                footprint.iou(candidates.footprints[own[other]]) > DUPLICATE_IOU
            ):
                dropped.add(other)
    return [index for k, index in enumerate(own) if k not in dropped]
