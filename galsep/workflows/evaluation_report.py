"""The HTML report of an evaluation: ``metrics.json`` and the figures as one page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from galsep.config import EvaluateConfig
from galsep.io.atomic import write_text
from galsep.measure.metrics import SELECTIONS, Truth
from galsep.plot.embed import png_uri
from galsep.plot.gallery import blend_panels, window_around
from galsep.plot.pages import render_page
from galsep.scene import Detections, SourceLight
from galsep.workflows.judging import NETWORK
from galsep.workflows.report import blend_case, own_lights, settings_rows, versions

__all__ = ["evaluation_case", "write_evaluation"]

MEANINGS = {
    "detectable": "detectable sources (by truth: S/N of at least 7 and 5 px)",
    "all": "all sources",
}


def write_evaluation(
    path: Path,
    metrics: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, Sequence[tuple[str, str, str]]],
    galleries: Mapping[str, Sequence[Mapping[str, Any]]],
    figures: Sequence[Path],
    config: EvaluateConfig,
) -> None:
    """Write the page of an evaluation.

    Parameters
    ----------
    path : Path
        HTML file to write.
    metrics : mapping
        As in ``metrics.json``.
    rows : sequence of mappings
        Of :func:`galsep.workflows.evaluate.summary_rows`.
    columns : mapping of str to columns
        The tables: for each column its key in ``rows`` and its heading in two parts.
    galleries : mapping of str to cases
        From :func:`evaluation_case`.
    figures : sequence of Path
        PNG files.
    config : EvaluateConfig
    """
    found = metrics["methods"][NETWORK]["detectable"]
    shown = {
        "test blends": metrics["n_blends"],
        "sources": metrics["n_sources"],
        "F1, within 5 px": _figure(found["centroid5"]["f1"]),
        "F1, mask IoU ≥ 0.5": _figure(found["iou50"]["f1"]),
        "blends exactly right": _figure(found["exact"]),
    }
    about = metrics["dataset"]
    page = render_page(
        "evaluate.html",
        title=f"Evaluation on {about['name']}",
        numbers=shown,
        tables=[
            {
                "caption": f"{name}: {MEANINGS[selection]}",
                "columns": [f"{above}\n{below}".strip() for _, above, below in parts],
                "rows": [
                    {"label": row["label"], "values": [row[key] for key, _, _ in parts]}
                    for row in rows
                    if row["sources"] == selection
                ],
            }
            for selection in reversed(SELECTIONS)
            for name, parts in columns.items()
        ],
        galleries=[(name.lower(), name, cases) for name, cases in galleries.items()],
        figures=[
            {"name": figure.stem.replace("-", " "), "uri": png_uri(figure.read_bytes())}
            for figure in figures
        ],
        dataset={
            "name": about["name"],
            "survey": about["survey"],
            "bands": ", ".join(about["bands"]),
            "detection band": about["detection_band"],
            "seed": about["seed"],
            "drawn by galsep": about["galsep_version"],
            "share of detectable sources": _figure(metrics["share_detectable"]),
            "seen in training": metrics["n_seen"],
        },
        versions=versions(metrics["weights_sha256"]),
        settings=settings_rows(config, threshold=metrics["threshold"]),
    )
    write_text(path, page)


def evaluation_case(
    title: str,
    light: npt.NDArray[Any],
    rms: float,
    given: Detections,
    separated: Sequence[SourceLight],
    truth: Truth,
) -> dict[str, Any]:
    """Describe one blend of the gallery: what was found, with the true outlines dashed.

    Parameters
    ----------
    title : str
    light : (h, w) array
        Background-subtracted image.
    rms : float
        Noise of a pixel.
    given : Detections
        What was found.
    separated : sequence of SourceLight
        The light of each.
    truth : Truth
    """
    footprints = [f for f in (*truth.footprints, *given.footprints) if f.area]
    window = window_around(footprints, light.shape)
    missed = np.zeros(len(given), dtype=bool)
    sources = own_lights(given.footprints, separated, missed, window)
    panels = blend_panels(
        light,
        rms,
        sources,
        window,
        [source.label for source in sources],
        [footprint for footprint in truth.footprints if footprint.area],
    )
    note = f"{len(truth)} true sources, {int(truth.detectable.sum())} of them detectable; "
    rows = [
        {
            "color": source.color,
            "label": str(source.label),
            "x_centroid": f"{given.x[source.label - 1]:.2f}",
            "y_centroid": f"{given.y[source.label - 1]:.2f}",
            "deblend_flux": f"{given.flux[source.label - 1]:.4g}",
            "score": f"{given.scores[source.label - 1]:.2f}",
        }
        for source in sources
    ]
    return blend_case(title, f"{note}{len(given)} found", window, panels, rows)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
