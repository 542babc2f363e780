"""Judge the network on a data set's test split, beside SEP and photutils.

The stamps go the way of ``deblend``'s images (:mod:`galsep.workflows.finding`), with background,
SEP detections, cutouts and merging; the classical methods get the same background-subtracted
images and noise level.

docs/metrics.md describes what ``metrics.json`` and :attr:`EvaluateResult.metrics` hold.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import galsep
from galsep.config import DeblendConfig, EvaluateConfig
from galsep.flags import Flag
from galsep.image.light import Frame, without_background
from galsep.io.atomic import refuse_existing, remove_partial, whole_file, write_text
from galsep.io.claim import alone_in
from galsep.io.dataset import Dataset, DatasetMeta, load_dataset
from galsep.measure.matching import Match, nearest_distance
from galsep.measure.metrics import (
    SELECTIONS,
    Found,
    Judgement,
    Truth,
    owned_footprints,
    ratio,
    score_matches,
)
from galsep.measure.recovery import Recovery
from galsep.plot.isolated import IsolatedRow, plot_isolated
from galsep.scene import Detections, SourceLight
from galsep.workflows.baselines import (
    PHOTUTILS,
    baseline_names,
    run_baselines,
    sep_fluxes,
)
from galsep.workflows.calibrate import THRESHOLDS, spread
from galsep.workflows.evaluation_report import Column, evaluation_case, write_evaluation
from galsep.workflows.judging import (
    FLUX_RIVAL,
    NETWORK,
    MethodReport,
    best_sep,
    judge_classes,
    judge_light,
    judge_methods,
    match_detectable,
    sum_up_light,
    true_sources,
)
from galsep.workflows.reporting import Reporter

__all__ = ["FOUND_COLUMNS", "QUALITY_COLUMNS", "EvaluateResult", "evaluate", "summary_rows"]

FORMAT_VERSION = 1
METRICS_FILE = "metrics.json"
PAGE = "report.html"
FIGURES = (
    "success.png", "failure.png", "by-property.png", "precision-recall.png", "reliability.png",
)  # fmt: skip
ISOLATED_FIGURE = "isolated.png"
STAR_FIGURE = "star-galaxy.png"
"""Drawn only where there are stars."""

FOUND_COLUMNS = (
    Column("precision", "prec.", "IoU≥0.5"),
    Column("recall", "recall", "IoU≥0.5"),
    Column("f1", "F1", "IoU≥0.5"),
    Column("precision_5px", "prec.", "≤5 px"),
    Column("recall_5px", "recall", "≤5 px"),
    Column("f1_5px", "F1", "≤5 px"),
    Column("exact", "exact", "blends"),
)
QUALITY_COLUMNS = (
    Column("map_box50", "box mAP", ".5"),
    Column("map_box", "box mAP", ".5:.95"),
    Column("map_mask50", "mask mAP", ".5"),
    Column("map_mask", "mask mAP", ".5:.95"),
    Column("mask_iou", "mask", "IoU"),
    Column("flux_error", "flux", "error"),
    Column("flux_bias", "flux", "bias"),
)
"""Columns of :func:`summary_rows`."""

MAX_VALIDATION = 500
"""At most so many blends of the validation split are used."""

CANDIDATE_THRESHOLD = 0.01
"""From this score on detections count for the mAP: nearly all that Mask R-CNN gives, since what is
cut off would be lost from the end of its curve."""

N_EXAMPLES = 4
N_ISOLATED = 3
"""Blends whose separated sources are drawn."""


@dataclass(frozen=True, slots=True)
class EvaluateResult:
    """What was judged.

    Parameters
    ----------
    folder : Path
    metrics : dict
        Exactly what is in ``metrics.json``; docs/metrics.md describes it.
    files : tuple of Path
        Everything that was written.
    """

    folder: Path
    metrics: dict[str, Any]
    files: tuple[Path, ...]


def evaluate(
    dataset: Path | str,
    output: Path | str,
    config: EvaluateConfig | None = None,
    *,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> EvaluateResult:
    """Judge the network on the test split of a data set and write a report.

    Parameters
    ----------
    dataset : path
        Folder that ``galsep simulate`` wrote. Where it has a validation split, the score
        threshold is chosen there: the best F1 of detectable sources at 5 px.
    output : path
        Folder for ``metrics.json`` and the figures.
    config : EvaluateConfig, optional
    overwrite : bool
        Replace a report that is there.
    reporter : Reporter, optional
        Hears of the progress.

    Raises
    ------
    DatasetError, WeightsError, DeviceError
        For unusable inputs or a missing device.
    OutputExistsError, OutputError
        When the output exists or cannot be written.
    """
    from galsep.model.weights import load_model

    config = config or EvaluateConfig()
    reporter = reporter or Reporter()
    folder = Path(output)
    names = (METRICS_FILE, *FIGURES, ISOLATED_FIGURE, STAR_FIGURE, PAGE)
    outputs = [folder / name for name in names]
    refuse_existing(outputs, overwrite=overwrite)
    data = load_dataset(Path(dataset))
    model = load_model(config.weights, config.device)
    with alone_in(folder, "evaluation", "call"):
        remove_partial(outputs)
        refuse_existing(outputs, overwrite=overwrite)
        return _evaluate(Path(dataset), data, model, folder, config, reporter)


def _evaluate(
    dataset: Path,
    data: Dataset,
    model: Any,
    folder: Path,
    config: EvaluateConfig,
    reporter: Reporter,
) -> EvaluateResult:
    """Do what :func:`evaluate` says, with its folder to itself."""
    from galsep.model.weights import trained_on

    settings = DeblendConfig(
        weights=config.weights, device=config.device, batch_size=config.batch_size
    )
    test = data.split("test")[: config.limit or None]
    if not test:
        reporter.warn(f"{dataset}: its test split is empty, so there is nothing to judge")
    seen = _seen_in_training(data.meta, test, trained_on(model.info))
    if seen:
        reporter.warn(
            f"{dataset}: {seen} test blends were among those the network was trained on; "
            "simulate with another seed"
        )

    network = _Network(data, model, settings, config.psf, reporter)
    threshold, scan = _choose_threshold(network, config)
    found = _look(network, test, threshold, config)
    truths = [true_sources(data, blend) for blend in test]
    labelled = {NETWORK: (NETWORK, found.sources)}
    if config.baselines:
        labelled.update(_baselines(found.images, found.rms, config.workers, reporter))
    methods = judge_methods(data, truths, labelled, found.candidates, reporter)
    methods[NETWORK].block["light"] = sum_up_light(found.light, truths)
    n_sources = sum(len(truth) for truth in truths)
    n_detectable = sum(int(truth.detectable.sum()) for truth in truths)
    metrics = {
        "format_version": FORMAT_VERSION,
        "galsep_version": galsep.__version__,
        "dataset": _about(dataset, data.meta),
        "n_blends": len(test),
        "n_sources": n_sources,
        "n_detectable": n_detectable,
        "n_not_detectable": n_sources - n_detectable,
        "share_detectable": ratio(n_detectable, n_sources),
        "n_seen": seen,
        "n_network_missed": found.missed,
        "weights_sha256": model.sha256,
        "threshold": threshold,
        "threshold_stored": model.threshold,
        "threshold_scan": scan,
        "psf_known": config.psf,
        "candidate_threshold": CANDIDATE_THRESHOLD,
        "best_sep": best_sep(methods),
        "methods": {
            name: {"label": method.label, **method.block} for name, method in methods.items()
        },
        "class_star": judge_classes(truths, methods[NETWORK]),
    }
    files = _write(folder, data, test, found, truths, methods, metrics, config)
    return EvaluateResult(folder, metrics, files)


def summary_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Flatten the metrics to a table, one row a method and selection of sources.

    Parameters
    ----------
    metrics : mapping
        From :attr:`EvaluateResult.metrics` or ``metrics.json``.

    Returns
    -------
    list of dict
        ``method``, ``label``, ``sources`` ("all" or "detectable"), ``n_true``, ``n_left_out``;
        ``precision``, ``recall``, ``f1`` at mask IoU 0.5 (Table 3 of Kamath's report);
        ``precision_5px``, ``recall_5px``, ``f1_5px``; ``exact``, ``map_box50``, ``map_box``,
        ``map_mask50``, ``map_mask``, ``mask_iou``, ``label_iou``, ``flux_error``, ``flux_bias``.
        Fractions; ``None`` where undefined.
    """
    plain = ("exact", "map_box50", "map_box", "map_mask50", "map_mask",
             "mask_iou", "label_iou", "flux_error", "flux_bias")  # fmt: skip
    rows = []
    for name, method in metrics["methods"].items():
        for selection in SELECTIONS:
            block = method[selection]
            row = {"method": name, "label": method["label"], "sources": selection}
            row |= {key: block[key] for key in ("n_true", "n_left_out")}
            row |= {key: block["iou50"][key] for key in ("precision", "recall", "f1")}
            row |= {f"{key}_5px": block["centroid5"][key] for key in ("precision", "recall", "f1")}
            row |= {key: block[key] for key in plain}
            rows.append(row)
    return rows


@dataclass(frozen=True, slots=True)
class _Network:
    """The network on the blends of a data set."""

    data: Dataset
    model: Any
    settings: DeblendConfig
    psf: bool
    reporter: Reporter

    def deblend(
        self, blends: Sequence[int], thresholds: Sequence[float], separated: int = 0
    ) -> Iterator[list[Any]]:
        """Give for each blend what is found at each threshold, as ``FoundSources``.

        Mask R-CNN runs once; what follows it runs for every threshold, since what is accepted
        changes how the light is shared: a cut through one catalogue is not the same. The
        separation network, which changes no mask, runs for the first ``separated`` of them.
        """
        from galsep.workflows.finding import finish
        from galsep.workflows.preparing import run_network

        plain = replace(self.model, separator=None)
        models = [self.model] * separated + [plain] * (len(thresholds) - separated)
        images = (self._frame(blend, bands=separated > 0) for blend in blends)
        for seen in run_network(images, self.model, self.settings):
            yield [
                finish(*seen, model, self.settings, level)
                for model, level in zip(models, thresholds, strict=True)
            ]
            self.reporter.advance()

    def _frame(self, blend: int, *, bands: bool) -> Frame:
        """A blend in electrons: found in the detection band, measured there or in all."""
        meta, mesh = self.data.meta, self.settings.background_mesh
        frames = {
            band: Frame(image, np.zeros(image.shape, dtype=bool), gain=1.0)
            for band, image in zip(meta.bands, self.data.images[blend], strict=True)
        }
        own = frames.pop(meta.bands[meta.detection_band])
        lights = {name: without_background(one, mesh) for name, one in frames.items() if bands}
        return replace(own, bands=lights, psf_fwhm=self.data.fwhm(blend) if self.psf else None)


@dataclass(slots=True)
class _Seen:
    """What was found in the test blends, one entry a blend.

    Parameters
    ----------
    images : list of (h, w) array
        Background-subtracted.
    rms : list of float
        Noise of their pixels.
    sources : list of Found
        At the threshold.
    candidates : list of Detections
        At a low one.
    light : list of Recovery
    separated : list of sequence of SourceLight
    missed : int
        Sources of all blends that only SEP found.
    """

    images: list[npt.NDArray[np.float32]] = field(default_factory=list)
    rms: list[float] = field(default_factory=list)
    sources: list[Found] = field(default_factory=list)
    candidates: list[Detections] = field(default_factory=list)
    light: list[Recovery] = field(default_factory=list)
    separated: list[Sequence[SourceLight]] = field(default_factory=list)
    missed: int = 0


def _look(network: _Network, test: range, threshold: float, config: EvaluateConfig) -> _Seen:
    """Deblend the test split."""
    seen = _Seen()
    network.reporter.begin("deblending", len(test))
    founds = network.deblend(test, (threshold, CANDIDATE_THRESHOLD), separated=1)
    for blend, (kept, low) in zip(test, founds, strict=True):
        owned = owned_footprints(kept.segm, len(kept.detections))
        rms = float(np.median(kept.rms))
        sep = sep_fluxes(kept.light, rms, FLUX_RIVAL) if config.baselines and rms else None
        seen.images.append(kept.light)
        seen.rms.append(rms)
        seen.sources.append(Found(kept.detections, owned))
        seen.candidates.append(low.detections)
        seen.light.append(judge_light(network.data, blend, kept, sep))
        seen.separated.append(kept.separated)
        seen.missed += int(np.count_nonzero(kept.flags & Flag.NETWORK_MISSED))
    network.reporter.end()
    return seen


def _write(
    folder: Path,
    data: Dataset,
    test: range,
    seen: _Seen,
    truths: list[Truth],
    methods: dict[str, MethodReport],
    metrics: dict[str, Any],
    config: EvaluateConfig,
) -> tuple[Path, ...]:
    """Write figures, page and metrics, these last: what exists has its figures beside it."""
    for stale in (METRICS_FILE, STAR_FIGURE, PAGE):
        (folder / stale).unlink(missing_ok=True)
    images, rms = seen.images, data.meta.detection_rms
    good, bad = _choose_examples(truths, methods[NETWORK].judgements)
    rival, classes = metrics["best_sep"], metrics["class_star"]
    files = _draw(folder, images, rms, truths, methods, rival, classes, (good, bad))
    files.append(folder / ISOLATED_FIGURE)
    with whole_file(files[-1]) as file:
        rows = _isolated_rows(data, test, images, seen.separated, truths, methods[NETWORK], good)
        plot_isolated(rows, rms, file)

    def case(blend: int) -> dict[str, Any]:
        return evaluation_case(
            f"test blend {blend}", images[blend], seen.rms[blend], seen.sources[blend].detections,
            seen.separated[blend], truths[blend],
        )  # fmt: skip

    with whole_file(folder / PAGE) as page:
        write_evaluation(
            page,
            metrics,
            summary_rows(metrics),
            {"Found": FOUND_COLUMNS, "How well": QUALITY_COLUMNS},
            {"Failures": [case(i) for i in bad], "Successes": [case(i) for i in good]},
            files,
            config,
        )
    write_text(folder / METRICS_FILE, json.dumps(metrics, indent=1, allow_nan=False) + "\n")
    return folder / METRICS_FILE, *files, folder / PAGE


def _choose_threshold(
    network: _Network, config: EvaluateConfig
) -> tuple[float, dict[str, Any] | None]:
    """Find the score threshold with the best F1 at 5 px on the validation split.

    The stored threshold is among those tried; of equals the one nearest to it is taken.
    """
    stored = network.model.threshold
    limit = min(config.limit or MAX_VALIDATION, MAX_VALIDATION)
    blends = spread(network.data.split("validation"), limit)
    if not any(network.data.sources(blend)["detectable"].any() for blend in blends):
        return stored, None
    thresholds = sorted({*THRESHOLDS, stored})
    matches: list[list[Match]] = [[] for _ in thresholds]
    network.reporter.begin("choosing the threshold", len(blends))
    for blend, founds in zip(blends, network.deblend(blends, thresholds), strict=True):
        for here, found in zip(matches, founds, strict=True):
            here.append(match_detectable(network.data, blend, found.detections))
    network.reporter.end()
    grid = [
        {"threshold": threshold, **score_matches(here)}
        for threshold, here in zip(thresholds, matches, strict=True)
    ]
    best = max(grid, key=lambda row: (row["f1"], -abs(row["threshold"] - stored)))
    return (best["threshold"] if best["f1"] else stored), {"n_blends": len(blends), "grid": grid}


def _baselines(
    images: Sequence[npt.NDArray[Any]], rms: Sequence[float], workers: int, reporter: Reporter
) -> dict[str, tuple[str, list[Found]]]:
    """Run the classical methods on the images the network saw."""
    names = baseline_names()
    if PHOTUTILS not in names:
        reporter.warn("photutils is left out: it needs scikit-image to deblend")
    results: dict[str, tuple[str, list[Found]]] = {
        name: (label, []) for name, label in names.items()
    }
    reporter.begin("SEP and photutils", len(images))
    for found in run_baselines(images, rms, names, workers=workers):
        for name, detections in found.items():
            # Segments do not overlap: each owns all of its pixels.
            results[name][1].append(Found(detections, detections.footprints))
        reporter.advance()
    reporter.end()
    return results


def _seen_in_training(meta: DatasetMeta, test: range, datasets: Sequence[Mapping[str, Any]]) -> int:
    """Count test blends that the networks' training on some data sets saw.

    A blend is the same in every data set of the same settings and seed, whatever their size.
    """

    def settings(population: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in population.items() if key != "n"}

    seen = 0
    parts = (one.get("population", {}).get("joined", [one]) for one in datasets)
    for part in itertools.chain.from_iterable(parts):
        if "population" in part and settings(part["population"]) == settings(meta.population):
            seen = max(seen, part["counts"]["train"] + part["counts"]["validation"])
    return sum(blend < seen for blend in test)


def _about(folder: Path, meta: DatasetMeta) -> dict[str, Any]:
    return {
        "name": folder.resolve().name,
        "survey": meta.survey,
        "bands": list(meta.bands),
        "detection_band": meta.bands[meta.detection_band],
        "seed": meta.seed,
        "galsep_version": meta.galsep_version,
        "split": "test",
    }


def _draw(
    folder: Path,
    images: Sequence[npt.NDArray[Any]],
    rms: float,
    truths: Sequence[Truth],
    methods: Mapping[str, MethodReport],
    rival: str | None,
    classes: Mapping[str, Any] | None,
    examples: tuple[Sequence[int], Sequence[int]],
) -> list[Path]:
    """Draw the figures."""
    from galsep.plot import evaluation as plot
    from galsep.plot.scores import plot_classes, plot_reliability

    network = methods[NETWORK]
    good, bad = examples

    def example(blend: int) -> plot.Example:
        truth, found = truths[blend], network.founds[blend].detections
        match = network.judgements[blend]["all"].matches["centroid5"]
        return plot.Example(
            f"test blend {blend}", images[blend], truth.footprints, truth.x, truth.y,
            truth.detectable, found, match.pairs,
        )  # fmt: skip

    compared = [network] if rival is None else [network, methods[rival]]
    paths = [folder / name for name in FIGURES]
    with whole_file(paths[0]) as file:
        plot.plot_examples([example(i) for i in good], rms, file, success=True)
    with whole_file(paths[1]) as file:
        plot.plot_examples([example(i) for i in bad], rms, file, success=False)
    with whole_file(paths[2]) as file:
        plot.plot_by_property({m.label: m.block["all"]["by"] for m in compared}, file)
    with whole_file(paths[3]) as file:
        plot.plot_precision_recall(
            {m.label: m.curve.precision50 for m in methods.values()},
            {m.label: m.block["all"]["iou50"] for m in methods.values()},
            file,
        )
    with whole_file(paths[4]) as file:
        plot_reliability(network.block["reliability"], file)
    if classes is not None:
        paths.append(folder / STAR_FIGURE)
        with whole_file(paths[5]) as file:
            plot_classes(classes, file)
    return paths


def _isolated_rows(
    data: Dataset,
    test: range,
    images: Sequence[npt.NDArray[np.float32]],
    separated: Sequence[Sequence[SourceLight]],
    truths: Sequence[Truth],
    network: MethodReport,
    good: Sequence[int],
) -> list[IsolatedRow]:
    """The sources of the closest blends that came out exactly."""
    rows = []
    for blend in good[:N_ISOLATED]:
        models = np.zeros_like(images[blend])
        for part in separated[blend]:
            models[part.slices] += part.model
        layers = data.stack(test[blend])
        pairs = network.judgements[blend]["all"].matches["centroid5"].pairs
        for i, j in pairs.tolist():
            title = f"test blend {blend}, {truths[blend].magnitude[i]:.1f} mag"
            rows.append(IsolatedRow(title, images[blend], models, separated[blend][j], layers[i]))
    return rows


def _choose_examples(
    truths: Sequence[Truth], judgements: Sequence[Mapping[str, Judgement]]
) -> tuple[list[int], list[int]]:
    """Pick the closest blends that came out exactly, and the worst of those that did not."""
    exact, wrong = [], []
    for blend, (truth, judgement) in enumerate(zip(truths, judgements, strict=True)):
        matches = judgement["all"].matches
        serious = judgement["detectable"].matches["centroid5"]
        if len(truth) > 1 and all(match.exact for match in matches.values()):
            exact.append((float(nearest_distance(truth.x, truth.y).min()), blend))
        elif not serious.exact:
            errors = len(serious.missed) + len(serious.spurious)
            brightest = truth.magnitude[serious.missed].min(initial=np.inf)
            wrong.append((-errors, float(brightest), blend))
    good = [blend for _, blend in sorted(exact)[:N_EXAMPLES]]
    return good, [blend for _, _, blend in sorted(wrong)[:N_EXAMPLES]]
