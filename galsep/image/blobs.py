"""SEP's detection in images of any size: smooth, threshold, connect, clean.

The blobs are those of ``sep.extract`` without deblending (Bertin & Arnouts 1996, Barbary 2016),
found row by row: runs of pixels above the threshold are joined to blobs over the whole image, so
that no block of rows matters. What SEP does in the order in which blobs end (a blob that is
eaten eats no other) is done here from the brightest to the faintest.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from galsep.planes import BAND, Planes

__all__ = ["KERNEL", "BlobTable", "find_blobs"]

KERNEL = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=np.float32) / 16
"""SEP's default filter, normalised."""

SINGULAR = 0.00694
"""Blobs whose moments have a smaller determinant are widened by a pixel's own."""

PIXEL_VARIANCE = 0.0833333

CLEAN_ZONE = 10
"""A blob is held against others within so many times both their sizes."""

CLEAN_RANK = 5
"""The pixel, from the brightest, that has to stand out of the wings of a brighter blob."""

MAX_PAIRS = 2**20
"""Pairs of blobs that are looked at together."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BlobTable:
    """Blobs and their measurements, in the order of their first pixels, rows first.

    Parameters
    ----------
    segm : (h, w) int32 array
        0 outside, 1…n inside.
    x, y : (n,) float arrays
        Barycentres of the smoothed light, pixels.
    npix : (n,) int array
    flux, variance : (n,) float arrays
        Sums of the light and of the squared rms.
    bounds : (n, 4) int array
        ``xmin, ymin, xmax, ymax``, inclusive.
    """

    segm: npt.NDArray[np.int32]
    x: Floats
    y: Floats
    npix: Ints
    flux: Floats
    variance: Floats
    bounds: Ints


@dataclass(frozen=True, slots=True)
class _Runs:
    """Runs of pixels ``y, x0 … x1`` above the threshold, rows first, and the blob of each."""

    y: Ints
    x0: Ints
    x1: Ints
    blob: Ints

    def chosen(self, which: npt.NDArray[np.bool_], blob: Ints) -> "_Runs":
        """Some of the runs, with their blobs numbered anew."""
        return _Runs(self.y[which], self.x0[which], self.x1[which], blob[self.blob[which]])


def find_blobs(
    light: npt.NDArray[np.float32],
    rms: npt.NDArray[np.float32],
    mask: npt.NDArray[np.bool_],
    *,
    threshold: float,
    min_area: int,
    clean: bool = True,
    planes: Planes | None = None,
) -> BlobTable:
    """Find connected regions above a threshold after SEP's 3×3 filter.

    Parameters
    ----------
    light, rms : (h, w) float32 arrays
    mask : (h, w) bool array
        True where a pixel is unusable.
    threshold : float
        Of the smoothed light, in units of the rms.
    min_area : int
        Fewer pixels are no blob.
    clean : bool
        Leave out blobs that the wings of brighter ones (Moffat profiles) account for.
    planes : Planes, optional
        Where the label map is to be.
    """
    planes = planes or Planes()
    runs = _find_runs(light, rms, mask, threshold, planes)
    width = np.bincount(runs.blob, weights=runs.x1 - runs.x0 + 1).astype(np.int64)
    runs = _keep(runs, width >= min_area)
    table = _measure(runs, light, rms, mask, threshold, planes)
    if clean and len(table.npix):
        alive = ~_eaten(table)
        runs = _keep(runs, alive)
        table = table.chosen(alive)
    segm = planes.new(light.shape, np.int32)
    for rows in planes.blocks(light.shape):
        first, last = np.searchsorted(runs.y, [rows.start, rows.stop])
        y, x, blob = _pixels(runs, first, last)
        segm[y, x] = blob + 1
    return BlobTable(
        segm,
        table.xmin + table.mx,
        table.ymin + table.my,
        table.npix,
        table.flux,
        table.variance,
        np.stack([table.xmin, table.ymin, table.xmax, table.ymax], axis=1),
    )


def _smoothed(
    light: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_], rows: slice
) -> npt.NDArray[np.float32]:
    """Smooth some rows of an image; what is unusable or outside it is 0."""
    height, width = light.shape
    low, high = max(rows.start - 1, 0), min(rows.stop + 1, height)
    padded = np.zeros((rows.stop - rows.start + 2, width + 2), dtype=np.float32)
    inside = padded[low - rows.start + 1 : high - rows.start + 1, 1:-1]
    inside[:] = light[low:high]
    inside[mask[low:high]] = 0
    out = np.zeros((rows.stop - rows.start, width), dtype=np.float32)
    term = np.empty_like(out)
    for (dy, dx), weight in np.ndenumerate(KERNEL):
        np.multiply(padded[dy : dy + out.shape[0], dx : dx + width], weight, out=term)
        out += term
    return out


def _find_runs(
    light: npt.NDArray[np.float32],
    rms: npt.NDArray[np.float32],
    mask: npt.NDArray[np.bool_],
    threshold: float,
    planes: Planes,
) -> _Runs:
    """Find the runs of pixels above the threshold and join those that touch."""
    width = light.shape[1]
    pieces = [np.zeros((3, 0), dtype=np.int64)]
    for rows in planes.blocks(light.shape):
        above = np.zeros((rows.stop - rows.start, width + 2), dtype=np.int8)
        above[:, 1:-1] = _smoothed(light, mask, rows) > rms[rows] * np.float32(threshold)
        above[:, 1:-1][mask[rows]] = 0
        # Rising and falling edges alternate along the rows.
        edges = np.flatnonzero(above.ravel()[1:] != above.ravel()[:-1])
        y, first = np.divmod(edges[::2], width + 2)
        last = edges[1::2] % (width + 2) - 1
        pieces.append(np.stack([y + rows.start, first, last]))
    y, x0, x1 = np.concatenate(pieces, axis=1)
    stride = width + 2
    start, end = y * stride + x0, y * stride + x1
    # Runs of the next row that touch a run, corners included.
    low = np.searchsorted(end, start + stride - 1, side="left")
    high = np.searchsorted(start, end + stride + 1, side="right")
    upper, lower = _expanded(low, np.maximum(high, low))
    root = _roots(len(y), upper, lower)
    first_run = root == np.arange(len(y))
    return _Runs(y, x0, x1, (np.cumsum(first_run) - 1)[root])


def _expanded(low: Ints, high: Ints) -> tuple[Ints, Ints]:
    """Number of each range and the integers in it, range after range."""
    count = high - low
    which = np.repeat(np.arange(len(low)), count)
    before = np.cumsum(count) - count
    return which, np.arange(len(which)) - before[which] + low[which]


def _roots(n: int, a: Ints, b: Ints) -> Ints:
    """Lowest node of each node's component, for ``n`` nodes and edges between ``a`` and ``b``."""
    root = np.arange(n)
    while True:
        ends = root[a], root[b]
        apart = ends[0] != ends[1]
        if not apart.any():
            return root
        a, b = a[apart], b[apart]
        np.minimum.at(root, np.maximum(*ends)[apart], np.minimum(*ends)[apart])
        while True:
            above = root[root]
            if np.array_equal(above, root):
                break
            root = above


def _keep(runs: _Runs, which: npt.NDArray[np.bool_]) -> _Runs:
    """Keep the runs of some blobs."""
    return runs.chosen(which[runs.blob], np.cumsum(which) - 1)


def _pixels(runs: _Runs, first: int, last: int) -> tuple[Ints, Ints, Ints]:
    """Row, column and blob of the pixels of some runs."""
    which, x = _expanded(runs.x0[first:last], runs.x1[first:last] + 1)
    return runs.y[first:last][which], x, runs.blob[first:last][which]


@dataclass(frozen=True, slots=True)
class _Measured:
    """What is measured of each blob; positions and moments from ``xmin, ymin``."""

    npix: Ints
    xmin: Ints
    ymin: Ints
    xmax: Ints
    ymax: Ints
    flux: Floats
    smooth_flux: Floats
    variance: Floats
    mx: Floats
    my: Floats
    mxx: Floats
    myy: Floats
    mxy: Floats
    threshold: Floats
    peak: Floats
    above: Floats
    half: Floats
    rank: Floats

    def chosen(self, which: npt.NDArray[np.bool_]) -> "_Measured":
        return _Measured(*(getattr(self, name)[which] for name in self.__dataclass_fields__))


def _measure(
    runs: _Runs,
    light: npt.NDArray[np.float32],
    rms: npt.NDArray[np.float32],
    mask: npt.NDArray[np.bool_],
    threshold: float,
    planes: Planes,
) -> _Measured:
    """Add up what belongs to each blob, band after band."""
    n = int(runs.blob.max(initial=-1)) + 1
    npix = np.bincount(runs.blob, weights=runs.x1 - runs.x0 + 1, minlength=n).astype(np.int64)
    low = np.full((2, n), np.iinfo(np.int64).max)
    high = np.full((2, n), -1)
    np.minimum.at(low[0], runs.blob, runs.x0)
    np.minimum.at(low[1], runs.blob, runs.y)
    np.maximum.at(high[0], runs.blob, runs.x1)
    np.maximum.at(high[1], runs.blob, runs.y)
    sums = np.zeros((9, n))
    peak = np.full(n, -np.inf)
    top = np.full((CLEAN_RANK, n), -np.inf)
    for rows, y, x, blob, starts in _bands(runs, light.shape, planes):
        here = blob[starts]
        value = light[y, x].astype(np.float64)
        smooth = _smoothed(light, mask, rows)[y - rows.start, x].astype(np.float64)
        noise = rms[y, x].astype(np.float64)
        dx, dy = x - low[0][blob], y - low[1][blob]
        terms = (
            value,
            smooth,
            noise**2,
            smooth * dx,
            smooth * dy,
            smooth * dx**2,
            smooth * dy**2,
            smooth * dx * dy,
            threshold * noise,
        )
        for total, term in zip(sums, terms, strict=True):
            total[here] += np.add.reduceat(term, starts)
        peak[here] = np.maximum(peak[here], np.maximum.reduceat(value, starts))
        brightest = _brightest(smooth - threshold * noise, blob, starts, CLEAN_RANK)
        top[:, here] = np.sort(np.concatenate([top[:, here], brightest]), axis=0)[-CLEAN_RANK:]
    flux, smooth_flux, variance, mx, my, mxx, myy, mxy, level = sums
    mx, my, mxx, myy, mxy = (total / smooth_flux for total in (mx, my, mxx, myy, mxy))
    level = level / np.maximum(npix, 1)
    counts = np.zeros((2, n))
    for _, y, x, blob, starts in _bands(runs, light.shape, planes):
        here, pixels = blob[starts], light[y, x]
        for count, limit in zip(counts, (level, (level + peak) / 2), strict=True):
            count[here] += np.add.reduceat((pixels > limit[blob]).astype(np.int64), starts)
    return _Measured(
        npix=npix,
        xmin=low[0],
        ymin=low[1],
        xmax=high[0],
        ymax=high[1],
        flux=flux,
        smooth_flux=smooth_flux,
        variance=variance,
        mx=mx,
        my=my,
        mxx=mxx - mx**2,
        myy=myy - my**2,
        mxy=mxy - mx * my,
        threshold=level,
        peak=peak,
        above=counts[0],
        half=counts[1],
        rank=top[0],
    )


def _bands(
    runs: _Runs, shape: tuple[int, ...], planes: Planes
) -> Iterator[tuple[slice, Ints, Ints, Ints, Ints]]:
    """Pixels of the blobs by band: rows, then ``y, x, blob`` sorted by blob, and where each begins.

    A band with no pixel of a blob is left out.
    """
    for start in range(0, shape[0], BAND):
        rows = slice(start, min(start + BAND, shape[0]))
        first, last = np.searchsorted(runs.y, [rows.start, rows.stop])
        if first == last:
            continue
        order = first + np.argsort(runs.blob[first:last], kind="stable")
        here = _Runs(runs.y[order], runs.x0[order], runs.x1[order], runs.blob[order])
        y, x, blob = _pixels(here, 0, len(order))
        starts = np.flatnonzero(np.concatenate([[True], blob[1:] != blob[:-1]]))
        yield rows, y, x, blob, starts
        planes.release()


def _brightest(values: Floats, blob: Ints, starts: Ints, count: int) -> Floats:
    """The highest values of each blob, one row after the other; −∞ where it has no more."""
    values = values.copy()
    place = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(blob))))
    highest = np.empty((count, len(starts)))
    for row in highest:
        row[:] = np.maximum.reduceat(values, starts)
        values[values == row[place]] = -np.inf
    return highest


def _eaten(blobs: _Measured) -> npt.NDArray[np.bool_]:
    """Which blobs the wings of brighter ones account for."""
    xx, yy, xy = blobs.mxx, blobs.myy, blobs.mxy
    thin = xx * yy - xy**2 < SINGULAR
    xx, yy = xx + PIXEL_VARIANCE * thin, yy + PIXEL_VARIANCE * thin
    spread = np.sqrt((xx - yy) ** 2 / 4 + xy**2)
    major = np.sqrt((xx + yy) / 2 + spread)
    minor = np.sqrt(np.maximum((xx + yy) / 2 - spread, 0))
    determinant = xx * yy - xy**2
    area = math.pi * major * minor
    # Share of the profile above the threshold, from how much of the blob is above half its peak.
    # A smoothed image is bright also where negative pixels lie among bright ones.
    middle = (blobs.threshold + blobs.peak) / 2
    positive = middle > 0
    ratio = blobs.threshold / np.where(positive, middle, 1)
    fewer = np.where(blobs.half < blobs.above, blobs.half - blobs.above, -1)
    share = fewer / (2 * area * np.log(np.where(positive & (ratio < 1), ratio, 0.99)))
    share = np.where(positive, np.minimum(share, 1), 1)
    height = blobs.smooth_flux / (2 * area * share)
    fall = (height / blobs.threshold - 1) * area / blobs.npix
    shape = np.stack([yy, xx, -2 * xy]) / determinant
    x, y = blobs.xmin + blobs.mx, blobs.ymin + blobs.my
    eaters, victims = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for one, other in _near_pairs(x, y, major):
        brighter = blobs.smooth_flux[one] > blobs.smooth_flux[other]
        eater, victim = np.where(brighter, one, other), np.where(brighter, other, one)
        dx, dy = x[eater] - x[victim], y[eater] - y[victim]
        distance = shape[0, eater] * dx**2 + shape[1, eater] * dy**2 + shape[2, eater] * dx * dy
        profile = 1 + fall[eater] * distance
        with np.errstate(divide="ignore"):
            eats = (
                (blobs.smooth_flux[victim] < blobs.smooth_flux[eater])
                & (dx**2 + dy**2 <= (CLEAN_ZONE * (major[eater] + major[victim])) ** 2)
                & (profile > 1)
                & (height[eater] / profile > blobs.rank[victim])
            )
        eaters.append(eater[eats])
        victims.append(victim[eats])
    eater, victim = np.concatenate(eaters), np.concatenate(victims)
    eaten = np.zeros(len(x), dtype=bool)
    for k in np.lexsort((eater, -blobs.smooth_flux[eater])).tolist():
        if not eaten[eater[k]]:
            eaten[victim[k]] = True
    return eaten


def _near_pairs(x: Floats, y: Floats, size: Floats) -> Iterator[tuple[Ints, Ints]]:
    """Pairs of blobs that may lie within the clean zone of each other, some at a time.

    Blobs of a class of sizes (a factor of two) are paired with those of theirs and of smaller
    ones, over a grid whose cells are as wide as their zone.
    """
    level = np.ceil(np.log2(np.maximum(size, 2))).astype(np.int64)
    for k in np.unique(level).tolist():
        reach = CLEAN_ZONE * 2 * 2.0**k
        members = np.flatnonzero(level <= k)
        columns = int(x.max() // reach) + 3
        cell = (y // reach).astype(np.int64) * columns + (x // reach).astype(np.int64) + 1
        members = members[np.argsort(cell[members], kind="stable")]
        cells = cell[members]
        own = np.flatnonzero(level == k)
        for row in (-columns, 0, columns):
            low = np.searchsorted(cells, cell[own] + row - 1, side="left")
            high = np.searchsorted(cells, cell[own] + row + 1, side="right")
            groups = np.cumsum(high - low) // MAX_PAIRS
            for group in np.unique(groups).tolist():
                here = groups == group
                which, place = _expanded(low[here], high[here])
                yield own[here][which], members[place]
