"""What an evaluation shows: its tables, and ``metrics.json`` and the figures as one HTML page."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from galsep.config import EvaluateConfig
from galsep.measure.metrics import SELECTIONS, Truth
from galsep.plot.embed import png_uri
from galsep.plot.evaluation import bin_label
from galsep.plot.gallery import blend_panels, window_around
from galsep.plot.pages import render_page
from galsep.scene import Detections, SourceLight
from galsep.workflows.judging import FLUX_RIVAL, NETWORK
from galsep.workflows.report import blend_case, own_lights, settings_rows, versions

__all__ = [
    "Column",
    "ReportTable",
    "class_table",
    "evaluation_case",
    "figure_table",
    "light_tables",
    "write_evaluation",
]


class Column(NamedTuple):
    """A column of a table of figures.

    Parameters
    ----------
    key : str
        Of its figures in the rows.
    above, below : str
        The two lines of its heading.
    digits : int
        Decimals.
    """

    key: str
    above: str
    below: str
    digits: int = 3


@dataclass(frozen=True, slots=True)
class ReportTable:
    """A table as it is shown.

    Parameters
    ----------
    caption : str
    first : str
        Heading of the first column.
    columns : tuple of str
        The other headings.
    rows : tuple of (str, tuple of str)
        Label and cells of each row.
    """

    caption: str
    first: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


LIGHT_COLUMNS = (
    Column("n", "", "n", 0),
    Column("flux_bias", "flux", "bias"),
    Column("flux_scatter", "flux", "scatter"),
    Column("flux_error", "flux", "error"),
    Column("image_error", "image", "error", 4),
    Column("cosine", "", "cos."),
    Column("ssim", "", "SSIM"),
    Column("ellipticity_error", "shape", "error"),
    Column("pull_width", "pull", "width"),
)
BIN_COLUMNS = (
    Column("n", "galsep", "n", 0),
    Column("flux_bias", "galsep", "bias"),
    Column("flux_scatter", "galsep", "scatter"),
)
SEP_BIN_COLUMNS = (
    Column("sep_n", "SEP", "n", 0),
    Column("isophotal_bias", "isoph.", "bias"),
    Column("isophotal_scatter", "isoph.", "scatter"),
    Column("kron_bias", "Kron", "bias"),
    Column("kron_scatter", "Kron", "scatter"),
)
COLOR_COLUMNS = (Column("error", "error", "mag"), Column("bias", "bias", "mag"))
CLASSES = ("stars", "galaxies")
CLASS_FIGURES = ("n", "completeness", "purity")
CLASS_COLUMNS = tuple(
    Column(f"{name}_{key}", name, key, 0 if key == "n" else 3)
    for name in CLASSES
    for key in CLASS_FIGURES
)

PROPERTIES = {
    "magnitude": ("magnitude", "magnitude"),
    "separation": ("px", "distance to the nearest true neighbour"),
    "purity": ("purity", "purity (1 − blendedness), of the true light"),
}
"""What bins are of: heading of their names, and what it means."""

MEANINGS = {
    "detectable": "detectable sources (by truth: S/N of at least 7 and 5 px)",
    "all": "all sources",
}


def write_evaluation(
    path: Path,
    metrics: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, Sequence[Column]],
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
    columns : mapping of str to sequence of Column
        The tables of ``rows``.
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
            figure_table(
                f"{name}: {MEANINGS[selection]}",
                [row for row in rows if row["sources"] == selection],
                parts,
            )
            for selection in reversed(SELECTIONS)
            for name, parts in columns.items()
        ],
        light=light_tables(metrics, ("magnitude", "separation", "purity")),
        classes=class_table(metrics),
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
    path.write_text(page, encoding="utf-8")


def figure_table(
    caption: str, rows: Iterable[Mapping[str, Any]], columns: Sequence[Column], first: str = ""
) -> ReportTable:
    """Write figures as a table.

    Parameters
    ----------
    caption : str
    rows : iterable of mappings
        ``label`` and the figures; ``None`` is a dash.
    columns : sequence of Column
    first : str
        Heading of the labels.
    """
    return ReportTable(
        caption,
        first,
        tuple(f"{column.above}\n{column.below}" for column in columns),
        tuple(
            (row["label"], tuple(_figure(row[key], digits) for key, _, _, digits in columns))
            for row in rows
        ),
    )


def light_tables(
    metrics: Mapping[str, Any], properties: Sequence[str] = ("magnitude",)
) -> list[ReportTable]:
    """Write how well each source's own light was recovered.

    Parameters
    ----------
    metrics : mapping
        As in ``metrics.json``.
    properties : sequence of str
        Of ``magnitude``, ``separation`` and ``purity``: for each, a table of bias and scatter of
        the flux.

    Returns
    -------
    list of ReportTable
        All sources, one row a method; the bins; the colours, where there are any. Empty for a
        data set without sources.
    """
    light = metrics["methods"][NETWORK]["light"]
    if light is None:
        return []
    beside = bool(light["sep"]["n"])
    whose = f"; SEP's: those that {FLUX_RIVAL.label} finds" if beside else ""
    caption = f"Light of each source within 5 px{whose}"
    tables = [figure_table(caption, _light_rows(light), LIGHT_COLUMNS)]
    columns = (*BIN_COLUMNS, *(SEP_BIN_COLUMNS if beside else ()))
    for name in properties:
        first, meaning = PROPERTIES[name]
        rows = [
            # The figures of all sources in the bin, not those of SEP's, and SEP's own.
            {**one["sep"], **one, "sep_n": one["sep"]["n"], "label": _bin_label(one)}
            for one in light["by"][name]
            if one["n"] or one["sep"]["n"]
        ]
        tables.append(figure_table(f"Bias and scatter by {meaning}", rows, columns, first))
    colors = [
        {"label": f"{first} − {second}", "error": error, "bias": bias}
        for (first, second), error, bias in zip(
            pairwise(metrics["dataset"]["bands"]),
            light["color_error"],
            light["color_bias"],
            strict=True,
        )
    ]
    if colors:
        tables.append(figure_table("Colours of neighbouring bands", colors, COLOR_COLUMNS))
    return tables


def _light_rows(light: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One row a method; beside SEP, the network's on the same sources too."""
    sep, nothing = light["sep"], {column.key: None for column in LIGHT_COLUMNS}
    yield {**light, "label": NETWORK}
    if sep["n"]:
        yield {**sep, "label": f"{NETWORK}, SEP's"}
        for kind, label, n in (
            ("isophotal", "SEP isophotal", sep["n"]),
            ("kron", "SEP Kron", sep["n_kron"]),
        ):
            figures = {f"flux_{key}": sep[f"{kind}_{key}"] for key in ("bias", "scatter", "error")}
            yield {**nothing, **figures, "n": n, "label": label}


def class_table(metrics: Mapping[str, Any]) -> ReportTable | None:
    """Write how complete and pure the classes are, by magnitude; ``None`` without stars.

    Parameters
    ----------
    metrics : mapping
        As in ``metrics.json``.
    """
    classes = metrics["class_star"]
    if classes is None:
        return None
    bins = [{**one, "label": _bin_label(one)} for one in classes["by_magnitude"]]
    # Of one bin, it holds everything.
    parts = [{**classes, "label": "all"}, *(bins if len(bins) > 1 else ())]
    rows = [
        {
            "label": part["label"],
            **{f"{name}_{key}": part[name][key] for name in CLASSES for key in CLASS_FIGURES},
        }
        for part in parts
        if any(part[name]["n"] for name in CLASSES)
    ]
    caption = f"Stars and galaxies at class_star {classes['threshold']:g}, by magnitude"
    return figure_table(caption, rows, CLASS_COLUMNS, "magnitude")


def _bin_label(one: Mapping[str, Any]) -> str:
    return bin_label(one["low"], one["high"], whole=False)


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


def _figure(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:z.{digits}f}"
