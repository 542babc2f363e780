"""How good a set of detections is, against truth.

With ``TP`` matched pairs, ``FP`` found sources that are none and ``FN`` true sources not found,

    precision = TP / (TP + FP),  recall = TP / (TP + FN),  F1 = 2 TP / (2 TP + FP + FN).

A ratio whose denominator is zero is undefined and given as ``None``: precision where nothing was
found, recall where nothing was there, F1 where neither was. So nothing found among some true
sources is recall 0, F1 0; some found on an empty sky is precision 0, F1 0.

Everything is judged twice. For ``"all"`` every true source counts. For ``"detectable"`` the set
``D`` of detectable sources (S/N of its light alone ≥ 7, and a mask of 5 px) is matched first,
alone; then the sources left over are matched to those outside ``D``, and these pairs drop out: with
``I`` of them and ``P`` sources found, ``FN = |D| − TP`` and ``FP = P − TP − I``. Finding a source
too faint to count is neither right nor wrong; taking its light for a detectable one's second half
is still wrong.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from galsep.measure.matching import (
    Match,
    centroid_distances,
    iou_matrix,
    match_centroids,
    match_masks,
    nearest_distance,
)
from galsep.scene import Detections, Footprint

__all__ = [
    "CRITERIA",
    "SELECTIONS",
    "Found",
    "Judgement",
    "Truth",
    "bin_values",
    "binned",
    "judge",
    "owned_footprints",
    "ratio",
    "score_matches",
    "scores",
    "summarise",
]

SELECTIONS = ("all", "detectable")
CRITERIA = ("centroid5", "iou50")

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Truth:
    """The true sources of one blend.

    Parameters
    ----------
    footprints : sequence of Footprint
        Masks; they may overlap, and be empty.
    owned : sequence of Footprint
        The pixels where each source is the brightest, see :func:`owned_footprints`.
    x, y, flux, magnitude : (n,) float arrays
        Pixels, the image's unit and AB, in the detection band.
    detectable, star : (n,) bool array
        Whether a source is detectable, and whether it is a star.
    """

    footprints: Sequence[Footprint]
    owned: Sequence[Footprint]
    x: Values
    y: Values
    flux: Values
    magnitude: Values
    detectable: npt.NDArray[np.bool_]
    star: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        n = len(self.footprints)
        for name in ("owned", "x", "y", "flux", "magnitude", "detectable", "star"):
            if len(getattr(self, name)) != n:
                raise ValueError(f"{n} footprints but {name} has {len(getattr(self, name))}")

    def __len__(self) -> int:
        return len(self.footprints)


@dataclass(frozen=True, slots=True)
class Found:
    """What a method found in one blend.

    Parameters
    ----------
    detections : Detections
    owned : sequence of Footprint
        The pixels of each source in the label map.
    """

    detections: Detections
    owned: Sequence[Footprint]

    def __post_init__(self) -> None:
        if len(self.owned) != len(self.detections):
            raise ValueError(f"{len(self.detections)} detections but {len(self.owned)} owned")


@dataclass(frozen=True, slots=True)
class Judgement:
    """One blend, judged.

    Parameters
    ----------
    n_true : int
        Number of true sources that count.
    matches : mapping of str to Match
        By :data:`CRITERIA`: centroids within 5 px, masks with an overlap of 0.5.
    mask_iou, label_iou, flux_ratio : (k,) float arrays
        Of the pairs matched by centroid: overlap of the masks, overlap of the pixels owned in the
        label maps (NaN where the true source has none), found over true flux (NaN where either is
        unknown or the true one zero).
    """

    n_true: int
    matches: Mapping[str, Match]
    mask_iou: Values
    label_iou: Values
    flux_ratio: Values


def ratio(part: int, whole: int) -> float | None:
    """Divide two counts; ``None`` where the denominator is zero."""
    return float(part / whole) if whole else None


def scores(tp: int, fp: int, fn: int) -> dict[str, Any]:
    """Make precision, recall and F1 of counts.

    Parameters
    ----------
    tp, fp, fn : int
        Matched pairs, found sources that are none, and true sources not found.

    Returns
    -------
    dict
        The counts, and ``precision``, ``recall`` and ``f1``, ``None`` where the denominator is
        zero.
    """
    return {
        "tp": int(tp),
        "fp": int(fp),
        "fn": int(fn),
        "precision": ratio(tp, tp + fp),
        "recall": ratio(tp, tp + fn),
        "f1": ratio(2 * tp, 2 * tp + fp + fn),
    }


def score_matches(matches: Sequence[Match]) -> dict[str, Any]:
    """Sum up the matches of several images; see :func:`scores`."""
    return scores(
        sum(len(match.pairs) for match in matches),
        sum(len(match.spurious) for match in matches),
        sum(len(match.missed) for match in matches),
    )


def owned_footprints(labels: npt.NDArray[np.integer[Any]], n: int) -> list[Footprint]:
    """Footprints of the labels 1 to ``n`` of a label map.

    Parameters
    ----------
    labels : (h, w) int array
        Label of each pixel's owner; 0 and labels above ``n`` belong to none.
    n : int
        Number of sources.

    Returns
    -------
    list of Footprint
        One a label, in their order, as tight as can be; 0×0 where a label owns no pixel.
    """
    from scipy import ndimage

    boxes = ndimage.find_objects(labels, max_label=n) if n else []
    footprints = []
    for label, box in enumerate(boxes, 1):
        if box is None:
            footprints.append(Footprint(0, 0, np.zeros((0, 0), dtype=bool)))
        else:
            rows, columns = box
            footprints.append(Footprint(rows.start, columns.start, labels[box] == label))
    return footprints


def judge(truth: Truth, found: Found) -> dict[str, Judgement]:
    """Judge one blend, for all of its sources and for the detectable ones.

    Parameters
    ----------
    truth : Truth
    found : Found
        In the same pixels and, where it has fluxes, the same unit.

    Returns
    -------
    dict of str to Judgement
        By :data:`SELECTIONS`.
    """
    detections = found.detections
    distance = centroid_distances((truth.x, truth.y), (detections.x, detections.y))
    iou = iou_matrix(truth.footprints, detections.footprints)
    flux = detections.flux if detections.flux.size else np.full(len(detections), np.nan)
    result = {}
    for selection in SELECTIONS:
        wanted = truth.detectable if selection == "detectable" else np.ones(len(truth), dtype=bool)
        near = match_centroids(distance, wanted=wanted)
        i, j = near.pairs.T
        known = np.isfinite(flux[j]) & (truth.flux[i] != 0)
        result[selection] = Judgement(
            n_true=int(np.count_nonzero(wanted)),
            matches={"centroid5": near, "iou50": match_masks(iou, wanted=wanted)},
            mask_iou=np.where([truth.footprints[a].area > 0 for a in i], iou[i, j], np.nan),
            label_iou=np.array(
                [
                    truth.owned[a].iou(found.owned[b]) if truth.owned[a].area else np.nan
                    for a, b in near.pairs
                ],
                dtype=np.float64,
            ),
            flux_ratio=np.divide(flux[j], truth.flux[i], out=np.full(len(i), np.nan), where=known),
        )
    return result


def summarise(judgements: Sequence[Judgement]) -> dict[str, Any]:
    """Sum up the blends of a data set.

    Returns
    -------
    dict
        ``n_true``, ``n_ignored`` (by centroid); for each criterion the dict of :func:`scores`;
        ``exact`` and ``exact_iou50``, the share of blends in which every source was found and
        nothing else, by centroid and by mask; ``mask_iou``, ``label_iou``, means over the pairs
        matched by centroid; ``flux_error`` = median |f/f_true − 1|, ``flux_bias`` = median
        f/f_true − 1, ``n_flux`` pairs with a flux. What is undefined is ``None``.
    """
    by_criterion = {name: score_matches([j.matches[name] for j in judgements]) for name in CRITERIA}
    exact = {
        name: ratio(sum(j.matches[name].exact for j in judgements), len(judgements))
        for name in CRITERIA
    }
    return {
        "n_true": sum(j.n_true for j in judgements),
        "n_ignored": sum(len(j.matches["centroid5"].ignored) for j in judgements),
        **by_criterion,
        "exact": exact["centroid5"],
        "exact_iou50": exact["iou50"],
        "mask_iou": _mean(_join(j.mask_iou for j in judgements)),
        "label_iou": _mean(_join(j.label_iou for j in judgements)),
        **_flux_scores(_join(j.flux_ratio for j in judgements)),
    }


def bin_values(truth: Truth, found: Found, zeropoint: float) -> dict[str, tuple[Values, Values]]:
    """By what the tables are binned: a value for each true and for each found source.

    A true source is binned by its own value. A found one, which matters where it is spurious,
    takes the number of true sources in its blend; the separation of the true source nearest to
    it, which it most probably was split from (infinite on an empty sky); and its own measured
    magnitude (infinite where it has no positive flux).

    Parameters
    ----------
    truth : Truth
    found : Found
    zeropoint : float
        AB magnitude of one unit of flux.

    Returns
    -------
    dict
        For ``n_sources``, ``separation`` (pixels to the nearest true neighbour, infinite for a
        source alone) and ``magnitude`` the ``(n,)`` and ``(m,)`` arrays.
    """
    detections = found.detections
    n, m = len(truth), len(detections)
    separation = nearest_distance(truth.x, truth.y)
    nearest = np.full(m, np.inf)
    if n and m:
        distance = centroid_distances((truth.x, truth.y), (detections.x, detections.y))
        nearest = separation[distance.argmin(axis=0)]
    magnitude = np.full(m, np.inf)
    flux = detections.flux if detections.flux.size else np.zeros(m)
    good = np.isfinite(flux) & (flux > 0)
    magnitude[good] = zeropoint - 2.5 * np.log10(flux[good])
    return {
        "n_sources": (np.full(n, float(n)), np.full(m, float(n))),
        "separation": (separation, nearest),
        "magnitude": (np.asarray(truth.magnitude, dtype=np.float64), magnitude),
    }


def binned(
    judgements: Sequence[Judgement],
    values: Sequence[tuple[Values, Values]],
    edges: Sequence[float],
) -> list[dict[str, Any]]:
    """Scores in bins of one property.

    True positives and misses fall in the bin of their true source, false positives in that of the
    found one.

    Parameters
    ----------
    judgements : sequence of Judgement
    values : sequence of pairs of arrays
        For each blend the value of each true and of each found source, see :func:`bin_values`.
    edges : sequence of float
        The ``k`` inner edges, increasing; they make ``k + 1`` bins ``low ≤ value < high``.

    Returns
    -------
    list of dict
        ``low``, ``high`` (``None`` where the bin is open), ``n_true``, the :func:`scores` by
        criterion, ``mask_iou``, ``label_iou`` and the flux errors, as in :func:`summarise`.
    """
    bounds = [None, *(float(edge) for edge in edges), None]
    n = len(edges) + 1

    def bins(parts: Iterable[Values]) -> npt.NDArray[np.int64]:
        return np.asarray(np.searchsorted(edges, _join(parts), side="right"), dtype=np.int64)

    def count(parts: Iterable[Values]) -> npt.NDArray[np.int64]:
        return np.bincount(bins(parts), minlength=n)

    both = list(zip(judgements, values, strict=True))
    rows: list[dict[str, Any]] = [
        {"low": bounds[k], "high": bounds[k + 1], "n_true": 0} for k in range(n)
    ]
    for name in CRITERIA:
        tp = count(true[j.matches[name].pairs[:, 0]] for j, (true, _) in both)
        fn = count(true[j.matches[name].missed] for j, (true, _) in both)
        fp = count(found[j.matches[name].spurious] for j, (_, found) in both)
        for k, row in enumerate(rows):
            row["n_true"] = int(tp[k] + fn[k])
            row[name] = scores(tp[k], fp[k], fn[k])
    where = bins(true[j.matches["centroid5"].pairs[:, 0]] for j, (true, _) in both)
    mask_iou = _join(j.mask_iou for j in judgements)
    label_iou = _join(j.label_iou for j in judgements)
    flux_ratio = _join(j.flux_ratio for j in judgements)
    for k, row in enumerate(rows):
        row["mask_iou"] = _mean(mask_iou[where == k])
        row["label_iou"] = _mean(label_iou[where == k])
        row.update(_flux_scores(flux_ratio[where == k]))
    return rows


def _flux_scores(ratio: Values) -> dict[str, Any]:
    good = ratio[np.isfinite(ratio)]
    if good.size == 0:
        return {"flux_error": None, "flux_bias": None, "n_flux": 0}
    return {
        "flux_error": float(np.median(np.abs(good - 1))),
        "flux_bias": float(np.median(good - 1)),
        "n_flux": int(good.size),
    }


def _mean(values: Values) -> float | None:
    good = values[np.isfinite(values)]
    return float(good.mean()) if good.size else None


def _join(parts: Iterable[Values]) -> Values:
    return np.concatenate([np.zeros(0), *parts])
