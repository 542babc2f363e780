"""From detections to figures: every method judged on the same blends, in one structure.

The structure is that of ``metrics.json``, which docs/metrics.md describes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from galsep.io.dataset import Dataset
from galsep.measure.average_precision import AveragePrecision, average_precision
from galsep.measure.calibration import outcomes, reliability
from galsep.measure.classes import class_scores
from galsep.measure.matching import (
    Match,
    centroid_distances,
    match_centroids,
    nearest_distance,
)
from galsep.measure.metrics import (
    SELECTIONS,
    Found,
    Judgement,
    Truth,
    bin_values,
    binned,
    judge,
    owned_footprints,
    summarise,
)
from galsep.measure.recovery import Recovery, recover, summarise_recovery
from galsep.scene import Detections
from galsep.workflows.baselines import SEP_SETTINGS, SepFluxes
from galsep.workflows.finding import FoundSources
from galsep.workflows.reporting import Reporter

__all__ = [
    "FLUX_RIVAL",
    "NETWORK",
    "MethodReport",
    "best_sep",
    "judge_classes",
    "judge_light",
    "judge_methods",
    "match_detectable",
    "sum_up_light",
    "true_sources",
]

NETWORK = "galsep"
"""Name of the network among the methods."""

FLUX_RIVAL = SEP_SETTINGS["sep_1.5_64_0.0005"]
"""SEP's setting whose sources and fluxes are compared with the separated light."""

SEPARATION_EDGES = (2, 4, 6, 8, 10, 12, 16, 24)
"""Edges of the bins of separation, pixels."""

PURITY_EDGES = (0.5, 0.8, 0.95, 0.99)
"""Edges of the bins of purity; 1 − purity is the true blendedness."""

MAX_SOURCES_BIN = 6
"""Blends of so many sources and more share a bin."""

Kind = Literal["box", "mask"]
Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MethodReport:
    """What one method made of the blends.

    Parameters
    ----------
    label : str
        Its name in a table.
    founds : list of Found
    judgements : list of dict of str to Judgement
        By selection, as :func:`galsep.measure.metrics.judge` gives them.
    block : dict
        The figures, by selection; the network's ``reliability`` too.
    curve : AveragePrecision
        Of masks, all sources.
    """

    label: str
    founds: list[Found]
    judgements: list[dict[str, Judgement]]
    block: dict[str, Any]
    curve: AveragePrecision


def match_detectable(data: Dataset, blend: int, found: Detections) -> Match:
    """Match what was found in a blend to its detectable sources, within 5 px, by score.

    Parameters
    ----------
    data : Dataset
    blend : int
        Number of the blend in the data set.
    found : Detections
        In the blend's pixels.

    Returns
    -------
    Match
        Its true sources are all of the blend's; wanted are the detectable ones.
    """
    rows = data.sources(blend)
    return _match(rows["x"], rows["y"], rows["detectable"], found)


def true_sources(data: Dataset, blend: int) -> Truth:
    """Collect the true sources of one blend, in the detection band."""
    band = data.meta.detection_band
    rows = data.sources(blend)
    footprints = data.footprints(blend)
    shape = data.images.shape[2:]
    owners = np.zeros(shape, dtype=np.int32)
    if footprints:
        covered = np.any([part.to_full((shape[0], shape[1])) for part in footprints], axis=0)
        owners = np.where(covered, data.stack(blend).argmax(axis=0) + 1, 0).astype(np.int32)
    return Truth(
        footprints=footprints,
        owned=owned_footprints(owners, len(footprints)),
        x=rows["x"],
        y=rows["y"],
        flux=rows["flux"][:, band],
        magnitude=rows["magnitude"][:, band],
        detectable=rows["detectable"],
        star=rows["class"] == "star",
    )


def judge_light(data: Dataset, blend: int, found: FoundSources, sep: SepFluxes | None) -> Recovery:
    """Compare the light that each source of a blend was given with its isolated image.

    Parameters
    ----------
    data : Dataset
    blend : int
    found : FoundSources
    sep : SepFluxes, optional
        What SEP measured on the same image.
    """
    band = data.meta.detection_band
    rows = data.sources(blend)
    everything = np.ones(len(rows), dtype=bool)
    match = _match(rows["x"], rows["y"], everything, found.detections)
    i, j = match.pairs.T
    classical = np.full((2, len(rows)), np.nan)
    if sep is not None:
        distance = centroid_distances((rows["x"], rows["y"]), (sep.x, sep.y))
        a, b = match_centroids(distance, wanted=everything).pairs.T
        classical[:, a] = sep.isophotal[b], sep.kron[b]
    return recover(
        data.stack(blend),
        {
            "flux": rows["flux"][:, band],
            "magnitude": rows["magnitude"][:, band],
            "purity": rows["purity"],
            "separation": nearest_distance(rows["x"], rows["y"]),
        },
        found.separated,
        found.photometry.flux,
        found.photometry.flux_err,
        match.pairs,
        float(np.median(found.rms)),
        exact=match.exact,
        color_error=_color_errors(data, blend, found, i, j),
        sep=(classical[0], classical[1]),
    )


def _color_errors(
    data: Dataset,
    blend: int,
    found: FoundSources,
    i: npt.NDArray[np.int64],
    j: npt.NDArray[np.int64],
) -> Values:
    """Errors of the colours of true sources, found as ``j``: a band minus the next, magnitudes."""
    true = data.sources(blend)["flux"]
    ratio = np.full(true.shape, np.nan)
    for number, band in enumerate(data.meta.bands):
        own = number == data.meta.detection_band
        photometry = found.photometry if own else found.bands[band].photometry
        good = photometry.flux[j] > 0
        ratio[i[good], number] = photometry.flux[j][good] / true[i[good], number]
    return np.asarray(2.5 * np.diff(np.log10(ratio), axis=1))


def sum_up_light(sources: Sequence[Recovery], truths: Sequence[Truth]) -> dict[str, Any] | None:
    """Sum up how well light was recovered, binned like the detections; ``None`` for no sources."""
    if not any(len(truth) for truth in truths):
        return None
    edges = {**_edges(truths), "purity": PURITY_EDGES}
    del edges["n_sources"]
    return summarise_recovery(Recovery.joined(sources), edges)


def judge_methods(
    data: Dataset,
    truths: Sequence[Truth],
    labelled: Mapping[str, tuple[str, list[Found]]],
    candidates: Sequence[Detections],
    reporter: Reporter,
) -> dict[str, MethodReport]:
    """Judge every method.

    Parameters
    ----------
    data : Dataset
    truths : sequence of Truth
        One a blend.
    labelled : mapping of str to (str, list of Found)
        For each method its label and what it found, one a blend.
    candidates : sequence of Detections
        What the network finds at a low threshold; ranked by score they make its mAP.
    reporter : Reporter
    """
    zeropoint = data.meta.zeropoints[data.meta.detection_band]
    shape = (data.images.shape[2], data.images.shape[3])
    edges = _edges(truths)
    methods = {}
    reporter.begin("judging", len(labelled))
    for name, (label, founds) in labelled.items():
        judgements = [judge(t, f) for t, f in zip(truths, founds, strict=True)]
        values = [bin_values(t, f, zeropoint) for t, f in zip(truths, founds, strict=True)]
        ranked = candidates if name == NETWORK else [found.detections for found in founds]
        block: dict[str, Any] = {}
        for selection in SELECTIONS:
            chosen = [judgement[selection] for judgement in judgements]
            summary = summarise(chosen)
            precisions = _precisions(truths, ranked, shape, selection)
            block[selection] = {
                **summary,
                "n_left_out": sum(len(truth) for truth in truths) - summary["n_true"],
                **_flatten(precisions),
                "by": _by_property(truths, chosen, values, edges),
            }
            if name == NETWORK:
                kept = [found.detections for found in founds]
                block[selection]["map_at_threshold"] = _flatten(
                    _precisions(truths, kept, shape, selection)
                )
            if selection == "all":
                curve = precisions["mask"]
        if name == NETWORK:
            block["reliability"] = _reliability(truths, founds, candidates)
        methods[name] = MethodReport(label, founds, judgements, block, curve)
        reporter.advance()
    reporter.end()
    return methods


def _match(x: Values, y: Values, wanted: npt.NDArray[np.bool_], found: Detections) -> Match:
    """Match where the more certain of two that claim one source is it.

    By distance alone, a doubtful candidate at 1 px would make a certain one at 2 px spurious.
    """
    distance = centroid_distances((x, y), (found.x, found.y))
    return match_centroids(distance, wanted=wanted, scores=found.scores)


def judge_classes(truths: Sequence[Truth], network: MethodReport) -> dict[str, Any] | None:
    """Judge the network's classes of the detectable sources it found; ``None`` without stars."""
    if not any(truth.star.any() for truth in truths):
        return None
    class_star, star, magnitude = [], [], []
    for truth, found, judgement in zip(truths, network.founds, network.judgements, strict=True):
        i, j = judgement["detectable"].matches["centroid5"].pairs.T
        given = found.detections.class_star
        class_star.append(given[j] if given.size else np.full(len(j), np.nan))
        star.append(truth.star[i])
        magnitude.append(truth.magnitude[i])
    return class_scores(
        np.concatenate(class_star),
        np.concatenate(star),
        np.concatenate(magnitude),
        _edges(truths)["magnitude"],
    )


def _reliability(
    truths: Sequence[Truth],
    founds: Sequence[Found],
    candidates: Sequence[Detections],
) -> dict[str, Any]:
    """Compare scores with shares of real sources, in the catalogue and for all candidates."""
    parts = [
        [
            outcomes(found.scores, _match(truth.x, truth.y, truth.detectable, found))
            for truth, found in zip(truths, detections, strict=True)
        ]
        for detections in ([found.detections for found in founds], candidates)
    ]
    catalogue, every = (
        reliability(
            np.concatenate([np.zeros(0), *(scores for scores, _ in part)]),
            np.concatenate([np.zeros(0, dtype=bool), *(real for _, real in part)]),
        )
        for part in parts
    )
    return {**catalogue, **{f"{key}_candidates": value for key, value in every.items()}}


def _precisions(
    truths: Sequence[Truth], founds: Sequence[Detections], shape: tuple[int, int], selection: str
) -> dict[Kind, AveragePrecision]:
    masks = [truth.footprints for truth in truths]
    wanted = [truth.detectable for truth in truths] if selection == "detectable" else None
    kinds: tuple[Kind, Kind] = ("box", "mask")
    return {
        kind: average_precision(masks, founds, shape, kind=kind, wanted=wanted) for kind in kinds
    }


def _flatten(precisions: Mapping[Kind, AveragePrecision]) -> dict[str, float | None]:
    flat = {}
    for kind, precision in precisions.items():
        flat[f"map_{kind}50"], flat[f"map_{kind}"] = precision.ap50, precision.ap
    return flat


def _edges(truths: Sequence[Truth]) -> dict[str, list[float]]:
    """Inner edges of the bins: half magnitudes (whole ones for a wide range) that hold sources."""
    magnitude = np.concatenate([np.zeros(0), *(truth.magnitude for truth in truths)])
    inner: list[float] = []
    if magnitude.size:
        low, high = np.percentile(magnitude, [3, 99])
        step = 0.5 if high - low <= 5 else 1.0
        inner = (np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step).tolist()
    most = min(max((len(truth) for truth in truths), default=0), MAX_SOURCES_BIN)
    return {
        "n_sources": [float(count) for count in range(most + (most < MAX_SOURCES_BIN) + 1)],
        "separation": [float(edge) for edge in SEPARATION_EDGES],
        "magnitude": inner,
    }


def _by_property(
    truths: Sequence[Truth],
    judgements: Sequence[Judgement],
    values: Sequence[Mapping[str, tuple[Values, Values]]],
    edges: Mapping[str, Sequence[float]],
) -> dict[str, list[dict[str, Any]]]:
    """Bin by each property; of the numbers of sources only those that occur have a bin."""
    by = {
        name: binned(judgements, [value[name] for value in values], inner)
        for name, inner in edges.items()
    }
    counts = {min(len(truth), MAX_SOURCES_BIN) for truth in truths}
    by["n_sources"] = [row for row in by["n_sources"] if row["low"] in counts]
    return by


def best_sep(methods: Mapping[str, MethodReport]) -> str | None:
    """Name the SEP setting with the highest F1 of detectable sources at 5 px."""
    names = [name for name in SEP_SETTINGS if name in methods]
    if not names:
        return None
    return max(names, key=lambda n: methods[n].block["detectable"]["centroid5"]["f1"] or 0.0)
