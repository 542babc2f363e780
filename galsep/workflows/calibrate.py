"""Giving scores a meaning: threshold and calibration from the validation split.

The validation stamps go through the same functions as any image, so the figures hold for what
``galsep deblend`` does.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from galsep.config import DeblendConfig
from galsep.flags import Flag
from galsep.image.light import Frame
from galsep.image.points import TERMS, logistic, logit, told_fwhm
from galsep.io.dataset import Dataset
from galsep.measure.calibration import outcomes
from galsep.measure.matching import Match
from galsep.measure.metrics import score_matches
from galsep.model.fluxes import (
    FLUX_FEATURES,
    FluxFit,
    FluxRegression,
    fit_regression,
    flux_changes,
    flux_features,
)
from galsep.model.inference import Found
from galsep.model.weights import Model
from galsep.scene import SourceLight
from galsep.workflows.finding import FoundSources, class_columns, find_sources, finish
from galsep.workflows.judging import match_detectable
from galsep.workflows.preparing import Prepared, run_network
from galsep.workflows.reporting import Reporter

__all__ = ["THRESHOLDS", "best_f1", "calibrate", "calibrate_sources", "spread"]

Values = npt.NDArray[np.float64]

LIMIT = 1000
"""At most so many validation blends are looked at."""

THRESHOLDS = (0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8)
"""Calibrated scores tried as threshold."""

MASK_LEVELS = (0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1)
"""Mask probabilities tried as the level of a mask's edge."""

SOURCE_LIMIT = 40_000
"""At most so many training blends are looked at for what is measured of sources."""

CUT, CUT_REACH = 0.15, 12.0
"""Share of these that are cut off near a source, or have a gap there, and how far from it at most,
pixels."""

GAP = 4
"""Pixels that a gap is wide at most."""

FLUX_GROUPS, FLUX_GROUP_SIZE = 20, 50
"""Number of groups by true S/N, and how many sources one needs at least."""

LEAST_CLASS = 50
"""Stars and galaxies that a fit of their classes needs at least."""

RIDGE = 1e-5
"""Price of large weights in a logistic fit."""

LOWEST = 0.01
"""Calibrated score from which a detection takes part in the fit."""


def calibrate(model: Model, data: Dataset, reporter: Reporter | None = None) -> dict[str, Any]:
    """Fit scores to the share of real sources, and choose the threshold.

    That is the highest with no more errors than at the best F1 by one standard error (the rule of
    Breiman et al. 1984, section 3.4.3): purity that costs nothing is taken.

    A detection is real if it is matched, one to one and within 5 px, to a detectable true source;
    those matched to an undetectable one are left out. The logistic fit is Platt's (1999), with
    his smoothed targets.

    Parameters
    ----------
    model : Model
    data : Dataset
        Its validation split is used, at most 1,000 blends.
    reporter : Reporter, optional

    Returns
    -------
    dict
        ``calibration`` (``slope``, ``intercept``, ``missed``: the share of real sources among
        SEP's detections of S/N ≥ 7 that the network has not), ``mask_level``, ``threshold``,
        and ``validation`` with the counts and scores at the threshold.
    """
    reporter = reporter or Reporter()
    blends = spread(data.split("validation"), LIMIT)
    config = DeblendConfig()
    # What an earlier calibration left in the weights must not bear on this one.
    plain = {k: v for k, v in model.info.items() if k not in ("calibration", "mask_level")}
    model = dataclasses.replace(model, info=plain, separator=None)
    reporter.begin("calibrating", len(blends))
    seen: list[tuple[Prepared, Iterable[Found]]] = []
    images = (data.detection_image(blend) for blend in blends)
    for item in run_network(images, model, config):
        seen.append(item)
        reporter.advance()
    reporter.end()
    info = {**plain, "mask_level": _mask_level(model, data, blends, seen)}
    model = dataclasses.replace(model, info=info)
    raw, real = _outcomes(data, blends, [finish(*item, model, config, LOWEST) for item in seen])
    slope, intercept = _platt(raw, real)
    info["calibration"] = {"slope": slope, "intercept": intercept}
    fitted = dataclasses.replace(model, info=info)
    threshold, figures, found = _threshold(fitted, data, blends, seen)
    info["calibration"]["missed"] = _missed_share(data, blends, found)
    reporter.info(
        f"threshold {threshold}: validation precision {_show(figures['precision'])}, "
        f"recall {_show(figures['recall'])}, F1 {_show(figures['f1'])} (centroid within 5 px)"
    )
    return {
        "calibration": info["calibration"],
        "mask_level": info["mask_level"],
        "threshold": threshold,
        "validation": {**figures, "blends": len(blends)},
    }


def best_f1(model: Model, data: Dataset, limit: int) -> tuple[float, float]:
    """Choose the score threshold, as :func:`calibrate` does, on a part of the validation split.

    Parameters
    ----------
    model : Model
        Mask R-CNN, not calibrated.
    data : Dataset
    limit : int
        At most so many blends are looked at.

    Returns
    -------
    threshold, f1 : float
        F1 of detectable sources whose centroid is matched within 5 px; 0 where nothing is.
    """
    blends = spread(data.split("validation"), limit)
    images = (data.detection_image(blend) for blend in blends)
    seen = list(run_network(images, model, DeblendConfig()))
    threshold, figures, _ = _threshold(model, data, blends, seen)
    return threshold, float(figures["f1"] or 0)


def calibrate_sources(
    model: Model, data: Dataset, reporter: Reporter | None = None
) -> dict[str, Any]:
    """Measure by how much fluxes and their errors are off, and how stars differ from galaxies.

    On the validation split and a part of the training split, whose noise the networks have not seen
    (in training it is drawn anew). Fluxes count of blends whose sources were found exactly. The
    FWHM of the PSF is the data set's, with an error of 2 %.

    Parameters
    ----------
    model : Model
        With a separation network.
    data : Dataset
    reporter : Reporter, optional

    Returns
    -------
    dict
        ``flux_fit`` (``snr``, ``log_ratio``: medians of S/N and of ln(true flux / flux) by true
        S/N; ``regression``: :class:`galsep.model.fluxes.FluxRegression`, if it helps, and
        ``log_rest``: ``log_ratio`` after it; ``spread``: half the width that holds 68 % of
        (flux − truth) / error, errors as the regression has them), and of ``n_flux`` sources;
        ``class_fit`` (:class:`galsep.image.points.ClassFit`), ``None`` for fewer than 50 stars or
        galaxies.
    """
    reporter = reporter or Reporter()
    blends = [
        *spread(data.split("train"), SOURCE_LIMIT),
        *spread(data.split("validation"), LIMIT),
    ]
    model = dataclasses.replace(model, info=_uncorrected(model.info))
    reporter.begin("correcting fluxes and classes", len(blends))
    fluxes = [np.zeros((0, 4 + FLUX_FEATURES))]
    classes: list[tuple[npt.NDArray[np.bool_], Values]] = []
    images = (_as_seen(data, blend) for blend in blends)
    for blend, found in zip(blends, find_sources(images, model), strict=True):
        match = match_detectable(data, blend, found.detections)
        fluxes.append(_flux_rows(data, blend, found, match))
        classes.append(_class_rows(data, blend, found, match))
        reporter.advance()
    reporter.end()
    rows = np.concatenate(fluxes)
    flux_fit = _fit_fluxes(rows, reporter)
    star, columns = (np.concatenate(part) for part in zip(*classes, strict=True))
    class_fit = _fit_classes(star, columns, reporter)
    return {"flux_fit": flux_fit, "n_flux": len(rows), "class_fit": class_fit}


def _as_seen(data: Dataset, blend: int) -> Frame:
    """A blend's image, its PSF known with an error, and now and then not all of its pixels."""
    image, fwhm, rng = data.detection_image(blend), data.fwhm(blend), np.random.default_rng(blend)
    if fwhm is not None:
        fwhm = told_fwhm(fwhm, rng)
    rows = data.sources(blend)
    mask = np.zeros(image.shape, dtype=bool)
    if len(rows) and rng.random() < CUT:
        mask = _hidden(np.stack([rows["y"], rows["x"]]), image.shape, rng)
    return Frame(image, mask, psf_fwhm=fwhm)


def _hidden(
    places: Values, shape: tuple[int, ...], rng: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """What lies beyond an edge close to the outermost of some sources, or a gap close to any.

    Parameters
    ----------
    places : (2, n) float array
        ``y, x`` of the sources.
    shape : (int, int)
    rng : numpy.random.Generator
    """
    axis = int(rng.integers(2))
    along = places[axis]
    pixels = np.arange(shape[axis])
    if rng.random() < 0.5:
        reach = rng.uniform(0, CUT_REACH)
        beyond = (pixels > along.max() + reach, pixels < along.min() - reach)[rng.integers(2)]
    else:
        start = rng.choice(along) + rng.uniform(-CUT_REACH, CUT_REACH)
        beyond = (pixels > start) & (pixels <= start + rng.integers(1, GAP + 1))
    return np.broadcast_to(beyond if axis else beyond[:, None], shape).copy()


def _flux_rows(data: Dataset, blend: int, found: FoundSources, match: Match) -> Values:
    """True flux, flux, its error, the model's S/N and features of sources of a blend found exactly.

    Features are not of this kind where the network has seen averages of pixels: NaN.
    """
    pairs = match.pairs if match.exact else match.pairs[:0]
    rows = np.zeros((len(pairs), 4 + FLUX_FEATURES))
    if not len(rows):
        return rows
    parts = [_in_sky_rms(part, found.rms) for part in found.separated]
    light, usable = found.light / found.rms, ~found.measured.image.mask
    features = flux_features(parts, light, usable, found.domain.point_fwhm)
    if found.domain.binning > 1:
        features[:] = np.nan
    true = data.sources(blend)["flux"][:, data.meta.detection_band]
    for row, (i, j) in zip(rows, pairs.tolist(), strict=True):
        part = found.separated[j]
        power = float((parts[j].model ** 2).sum(dtype=np.float64))
        row[:4] = true[i], part.flux, part.flux_err, np.sqrt(power)
        row[4:] = features[j]
    return rows


def _in_sky_rms(part: SourceLight, rms: npt.NDArray[np.float32]) -> SourceLight:
    """Bring a part from the image's unit to what the network sees."""
    model = part.model / rms[part.slices]
    before, after = float(part.model.sum(dtype=np.float64)), float(model.sum(dtype=np.float64))
    unit = before / after if after > 0 else float(np.median(rms))
    return dataclasses.replace(
        part, model=model, flux=part.flux / unit, flux_err=part.flux_err / unit
    )


def _fit_fluxes(rows: Values, reporter: Reporter) -> dict[str, Any]:
    rows = rows[(rows[:, 0] > 0) & (rows[:, 1] > 0)]
    truth, flux, error, snr = rows[:, :4].T
    first = np.log(truth / flux)
    features = rows[:, 4:]
    known = np.isfinite(features).all(axis=1)
    # The data set's unit is the electron.
    how_far = first, error / flux, 1 / np.sqrt(truth)
    regression = fit_regression(features[known], *(part[known] for part in how_far))
    if regression is not None:
        # With the digits that are stored.
        regression = FluxRegression.from_dict(regression.to_dict())
        growth, widening = np.exp(flux_changes(regression, features)).T
        flux, error = flux * growth, error * growth * widening
    snrs, log_ratio, log_rest = _medians_by_true_snr(snr, first, np.log(truth / flux))
    fit = FluxFit(tuple(snrs), tuple(log_ratio), 1.0, regression, tuple(log_rest))
    corrected = flux * np.array([fit.rest(one) for one in snr.tolist()])
    pull = (corrected - truth) / np.sqrt(error**2 + truth)
    spread = float(np.subtract(*np.percentile(pull, [84.13, 15.87])) / 2) if pull.size else 1.0
    reporter.info(
        f"fluxes of {len(rows)} sources: median error {_size(np.expm1(-first))}, "
        f"corrected {_size(corrected / truth - 1)}; errors times {spread:.2f}"
    )
    stored = {"snr": snrs, "log_ratio": log_ratio, "spread": spread}
    if regression is None:
        return stored
    return {**stored, "regression": regression.to_dict(), "log_rest": log_rest}


def _size(errors: Values) -> str:
    return f"{np.median(np.abs(errors)):.1%}" if errors.size else "undefined"


def _class_rows(
    data: Dataset, blend: int, found: FoundSources, match: Match
) -> tuple[npt.NDArray[np.bool_], Values]:
    """Whether each source that Mask R-CNN found is a star, and what tells."""
    i, j = match.pairs.T
    columns = class_columns(found.detections.class_star, found.measured, found.domain, found.planes)
    return data.sources(blend)["class"][i] == "star", columns[j]


def _fit_classes(
    star: npt.NDArray[np.bool_], columns: Values, reporter: Reporter
) -> dict[str, list[float]] | None:
    reporter.info(f"classes of {star.sum()} stars and {(~star).sum()} galaxies")
    fit = {}
    for name, count in TERMS.items():
        known = np.isfinite(columns[:, :count]).all(axis=1)
        target = star[known].astype(np.float64)
        if min(target.sum(), (1 - target).sum()) < LEAST_CLASS:
            return None
        fit[name] = _logistic_fit(columns[known, :count], target).tolist()
    return fit


def _uncorrected(info: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata without what an earlier calibration of sources left there."""
    separation = {k: v for k, v in info["separation"].items() if k != "flux_fit"}
    return {**info, "separation": separation, "class_fit": None}


def _medians_by_true_snr(
    snr: Values, log_ratio: Values, log_rest: Values
) -> tuple[list[float], list[float], list[float]]:
    """Medians of all three in groups of equal number by true S/N.

    By what was measured, those that noise has made brighter would be grouped with truly brighter
    ones, and how many there are depends on the data set. (1, 0, 0) where there are too few sources.

    Parameters
    ----------
    snr : (n,) float array
    log_ratio, log_rest : (n,) float arrays
        ln(true flux / flux), as the separation network gives it and after the regression.
    """
    groups = min(FLUX_GROUPS, len(snr) // FLUX_GROUP_SIZE)
    if not groups:
        return [1.0], [0.0], [0.0]
    parts = np.array_split(np.argsort(np.log(snr) + log_ratio, kind="stable"), groups)
    columns = np.stack([snr, log_ratio, log_rest], axis=1)
    medians = np.array([np.median(columns[part], axis=0) for part in parts])
    # They rise with the true S/N, but for chance.
    snrs, ratios, rests = medians[np.argsort(medians[:, 0], kind="stable")].T.tolist()
    return snrs, ratios, rests


def _threshold(
    model: Model, data: Dataset, blends: list[int], seen: list[tuple[Prepared, Iterable[Found]]]
) -> tuple[float, dict[str, Any], list[FoundSources]]:
    """Highest threshold with no more errors than the best has, by one standard error."""
    tried = []
    for threshold in THRESHOLDS:
        found = [finish(*item, model, DeblendConfig(), threshold) for item in seen]
        matches = [
            match_detectable(data, blend, here.detections)
            for blend, here in zip(blends, found, strict=True)
        ]
        tried.append((threshold, score_matches(matches), found))
    best = max(tried, key=lambda item: item[1]["f1"] or 0)[1]
    return [item for item in tried if _as_good(item[1], best)][-1]


def _as_good(figures: Mapping[str, Any], best: Mapping[str, Any]) -> bool:
    """Whether errors differ by no more than chance does, between thresholds of the same scores.

    Only what one threshold takes and the other leaves can differ (McNemar 1947).
    """
    missed, spurious = figures["fn"] - best["fn"], figures["fp"] - best["fp"]
    return bool(missed + spurious <= np.sqrt(abs(missed) + abs(spurious)))


def spread(blends: range, limit: int) -> list[int]:
    """Choose at most so many blends, from all parts: data sets that are joined follow one another.

    Parameters
    ----------
    blends : range
    limit : int
    """
    chosen = np.linspace(0, len(blends), min(limit, len(blends)), endpoint=False, dtype=np.int64)
    return [blends[index] for index in chosen.tolist()]


def _mask_level(
    model: Model, data: Dataset, blends: list[int], seen: list[tuple[Prepared, Iterable[Found]]]
) -> float:
    """Mask probability at which masks agree best with the true ones."""
    agreement = {}
    for level in MASK_LEVELS:
        cut = dataclasses.replace(model, info={**model.info, "mask_level": level})
        overlaps = [0.0]
        for blend, item in zip(blends, seen, strict=True):
            found = finish(*item, cut, DeblendConfig(), 0.5)
            truth = data.footprints(blend)
            overlaps += [
                truth[i].iou(found.detections.footprints[j])
                for i, j in match_detectable(data, blend, found.detections).pairs.tolist()
            ]
        agreement[level] = sum(overlaps) / len(overlaps)
    return max(MASK_LEVELS, key=lambda level: agreement[level])


def _outcomes(
    data: Dataset, blends: list[int], found: list[FoundSources]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Scores of the network's detections, and whether each is real."""
    values, real = [np.zeros(0)], [np.zeros(0, dtype=bool)]
    for blend, here in zip(blends, found, strict=True):
        match = match_detectable(data, blend, here.detections)
        outlines = np.flatnonzero(here.flags & (Flag.NETWORK_MISSED | Flag.LARGER_THAN_CUTOUT))
        left_out = np.union1d(match.ignored, outlines)
        scores, good = outcomes(
            here.detections.scores, dataclasses.replace(match, ignored=left_out)
        )
        values.append(scores)
        real.append(good)
    return np.concatenate(values), np.concatenate(real)


def _platt(raw: npt.NDArray[np.float64], real: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Slope and intercept of the logistic fit; the identity if there is nothing to fit."""
    positive, negative = int(real.sum()), int((~real).sum())
    if not positive or not negative:
        return 1.0, 0.0
    target = np.where(real, (positive + 1) / (positive + 2), 1 / (negative + 2))
    intercept, slope = _logistic_fit(np.stack([np.ones(len(raw)), logit(raw)], axis=1), target)
    # A score that means less the higher it is comes from a network that has learnt nothing.
    return (float(slope), float(intercept)) if slope > 0 else (1.0, 0.0)


def _logistic_fit(columns: Values, target: Values) -> Values:
    """Weights of columns whose sum has the target as its logistic, by maximum likelihood.

    They are kept from growing without end where the target can be told without error.
    """
    from scipy.optimize import minimize

    def loss(weights: Values) -> tuple[float, Values]:
        value = columns @ weights
        misfit = float((np.logaddexp(0, value) - target * value).mean())
        slope = columns.T @ (logistic(value) - target) / len(target)
        return misfit + RIDGE * float(weights @ weights), slope + 2 * RIDGE * weights

    start = np.zeros(columns.shape[1])
    return np.asarray(minimize(loss, start, jac=True, method="BFGS").x)


def _missed_share(data: Dataset, blends: list[int], found: list[FoundSources]) -> float:
    """Share of real sources among the blobs that the network missed, by Laplace's rule."""
    real = total = 0
    for blend, here in zip(blends, found, strict=True):
        missed = np.flatnonzero(here.flags & Flag.NETWORK_MISSED)
        match = match_detectable(data, blend, here.detections)
        real += int(np.isin(missed, match.pairs[:, 1]).sum())
        total += int((~np.isin(missed, match.ignored)).sum())
    return (real + 1) / (total + 2)


def _show(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
