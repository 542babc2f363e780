"""Figures of an evaluation: successes and failures, scores by property, precision and recall."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from galsep.conventions import TINY
from galsep.plot.canvas import new_figure, save_figure, stretch
from galsep.plot.colors import outline_color
from galsep.scene import Detections, Footprint

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "Example",
    "bin_label",
    "plot_by_property",
    "plot_examples",
    "plot_precision_recall",
    "wilson_interval",
]

WRONG_COLOR = "#ff4d4d"
FAINT_COLOR = "#b8b8b8"
METHOD_STYLES = (
    ("#d1495b", "o", 2.6),
    ("#00798c", "s", 1.6),
    ("#30638e", "^", 1.6),
    ("#8d96a3", "D", 1.6),
    ("#003d5b", "v", 1.6),
    ("#edae49", "P", 1.6),
)
"""Colour, marker and line width of each method, the network first."""

MARGIN = 7
MIN_SIDE = 34
PROPERTIES = {
    "magnitude": "true magnitude (AB)",
    "separation": "distance to nearest neighbour (px)",
    "n_sources": "sources in the blend",
}


@dataclass(frozen=True, slots=True)
class Example:
    """One blend, true and found.

    Parameters
    ----------
    title : str
    image : (h, w) array
        Background-subtracted.
    footprints : sequence of Footprint
        True masks.
    x, y : (n,) float arrays
        True positions, pixels.
    detectable : (n,) bool array
    found : Detections
    pairs : (k, 2) int array
        Which true source each found one is.
    """

    title: str
    image: npt.NDArray[Any]
    footprints: Sequence[Footprint]
    x: npt.NDArray[Any]
    y: npt.NDArray[Any]
    detectable: npt.NDArray[np.bool_]
    found: Detections
    pairs: npt.NDArray[np.int64]


def plot_examples(examples: Sequence[Example], rms: float, path: Path, *, success: bool) -> None:
    """Draw blends with truth and prediction side by side (Figures 6 and 7 of Kamath's report).

    Outlines are masks, dotted rectangles their boxes. A found source has the colour of the true
    one it matches, and its score; red is what is missed or spurious, grey what is too faint to
    count.

    Parameters
    ----------
    examples : sequence of Example
        None gives a page that says so.
    rms : float
        Noise of the sky, in the images' unit.
    path : Path
        PNG file to write.
    success : bool
        Which of the two pages this is.
    """
    title = "Blends recovered exactly, the closest" if success else "Failures, the most serious"
    if not examples:
        figure = new_figure(8, 2)
        kind = "was recovered exactly" if success else "went wrong"
        figure.text(0.5, 0.5, f"No blend {kind}.", ha="center", va="center", fontsize=16)
        save_figure(figure, path)
        return
    rows = (len(examples) + 1) // 2
    columns = 2 if len(examples) == 1 else 4
    figure = new_figure(3.7 * columns, 4.15 * rows + 0.4)
    figure.suptitle(title, fontsize=15)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[2 * len(examples) :]:
        axes.set_axis_off()
    for example, left, right in zip(examples, grid.flat[::2], grid.flat[1::2], strict=False):
        window = _window(example)
        for axes in (left, right):
            _show_window(axes, example.image, rms, window)
        _draw_truth(left, example)
        _draw_found(right, example)
        left.set_title(f"{example.title}: truth", fontsize=13)
        right.set_title("galsep, with scores", fontsize=13)
    save_figure(figure, path)


def plot_by_property(
    methods: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], path: Path
) -> None:
    """Draw completeness and F1 by magnitude, separation and number of sources.

    Parameters
    ----------
    methods : mapping of str to mapping of str to bins
        For each method's label and each of ``magnitude``, ``separation`` and ``n_sources`` the
        bins: ``low``, ``high``, ``n_true`` and the scores under ``centroid5``.
    path : Path
        PNG file to write.
    """
    figure = new_figure(15.5, 8.2)
    figure.suptitle(
        "All sources, matched within 5 px (in grey: number of true sources)", fontsize=15
    )
    grid = figure.subplots(2, len(PROPERTIES), sharey="row", sharex="col")
    for column, (by, title) in enumerate(PROPERTIES.items()):
        upper, lower = grid[:, column]
        for (label, bins), style in zip(methods.items(), METHOD_STYLES, strict=False):
            rows = bins[by]
            _draw_completeness(upper, rows, label, style)
            _draw_line(lower, [row["centroid5"]["f1"] for row in rows], label, style)
        first = next(iter(methods.values()))[by]
        for position, row in enumerate(first):
            upper.text(position, 0.015, row["n_true"], ha="center", fontsize=9, color="0.35")
        ticks = [bin_label(row["low"], row["high"], whole=by == "n_sources") for row in first]
        lower.set_xticks(range(len(ticks)), ticks, rotation=40, ha="right")
        lower.set_xlim(-0.5, max(len(ticks), 1) - 0.5)
        lower.set_xlabel(title, fontsize=13)
    for axes, name in zip(grid[:, 0], ("completeness", "F1"), strict=True):
        axes.set_ylabel(name, fontsize=13)
    for axes in grid.flat:
        axes.set_ylim(0, 1.03)
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=11)
    grid[0, 0].legend(fontsize=12, loc="lower left", bbox_to_anchor=(0, 0.06))
    save_figure(figure, path)


def plot_precision_recall(
    curves: Mapping[str, npt.NDArray[np.float64]],
    points: Mapping[str, Mapping[str, Any]],
    path: Path,
) -> None:
    """Draw precision against recall at mask IoU 0.5.

    Parameters
    ----------
    curves : mapping of str to (k,) arrays
        For each method's label its precision at ``k`` recalls evenly spaced over [0, 1]; empty
        when there is nothing to find.
    points : mapping of str to mapping
        ``precision`` and ``recall`` where each method works.
    path : Path
        PNG file to write.
    """
    figure = new_figure(8.5, 6.8)
    axes = figure.subplots()
    for (label, precision), (color, marker, width) in zip(
        curves.items(), METHOD_STYLES, strict=False
    ):
        recall = np.linspace(0, 1, precision.size)
        reached = precision > 0
        axes.plot(recall[reached], precision[reached], color=color, lw=width, zorder=width)
        point = points[label]
        known = point["precision"] is not None and point["recall"] is not None
        axes.plot(
            [point["recall"]] if known else [],
            [point["precision"]] if known else [],
            marker,
            color=color,
            markersize=10,
            markeredgecolor="white",
            label=label,
            zorder=2 * width,
        )
    axes.set_xlabel("recall", fontsize=13)
    axes.set_ylabel("precision", fontsize=13)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=11)
    axes.set_title("All sources, mask IoU ≥ 0.5; markers: where each method works", fontsize=13)
    axes.legend(fontsize=12, loc="lower left")
    save_figure(figure, path)


def _show_window(
    axes: "Axes", image: npt.NDArray[Any], rms: float, window: tuple[float, float, float, float]
) -> None:
    """Show a part of an image, stretched so that its brightest pixel is just white."""
    left, right, bottom, top = (round(edge + 0.5) for edge in window)
    peak = float(np.nanmax(image[bottom:top, left:right], initial=0.0)) / max(rms, TINY)
    light = stretch(image, rms, max(peak, 10.0))
    axes.imshow(light, origin="lower", cmap="gray", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlim(window[0], window[1])
    axes.set_ylim(window[2], window[3])


def _draw_truth(axes: "Axes", example: Example) -> None:
    matched = set(example.pairs[:, 0].tolist())
    for index, footprint in enumerate(example.footprints):
        color = outline_color(index, missed=False)
        position = float(example.x[index]), float(example.y[index])
        if not example.detectable[index]:
            note, color = "faint", FAINT_COLOR if index not in matched else color
        else:
            note = str(index + 1) if index in matched else f"{index + 1} missed"
            color = color if index in matched else WRONG_COLOR
        _draw_source(axes, footprint, position, color, note, _middle(example))


def _draw_found(axes: "Axes", example: Example) -> None:
    partner = {found: true for true, found in example.pairs.tolist()}
    found = example.found
    for index, footprint in enumerate(found.footprints):
        note = f"{found.scores[index]:.2f}"
        color = WRONG_COLOR
        if index in partner:
            color = outline_color(partner[index], missed=False)
        else:
            note += " spurious"
        position = float(found.x[index]), float(found.y[index])
        _draw_source(axes, footprint, position, color, note, _middle(example))


def _draw_source(
    axes: "Axes",
    footprint: Footprint,
    position: tuple[float, float],
    color: str,
    note: str,
    middle: tuple[float, float],
) -> None:
    """Draw a mask's outline and box, the centroid, and a note on the side away from the others."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    x, y = position
    axes.plot([x], [y], "+", color=color, markersize=9, markeredgewidth=1.8)
    x0, y0, x1, y1 = footprint.bounds if footprint.area else (x - 3, y - 3, x + 3, y + 3)
    if footprint.area:
        # A border of empty pixels closes the outline.
        mask = np.pad(footprint.mask, 1).astype(float)
        axes.contour(
            np.arange(mask.shape[1]) + x0 - 1, np.arange(mask.shape[0]) + y0 - 1, mask, [0.5],
            colors=[color], linewidths=2.0,
        )  # fmt: skip
        axes.add_patch(
            Rectangle(
                (x0 - 0.5, y0 - 0.5), x1 - x0 + 1, y1 - y0 + 1,
                fill=False, edgecolor=color, linestyle=":", linewidth=1.3,
            )
        )  # fmt: skip
    above, right = y >= middle[1], x >= middle[0]
    axes.text(
        x1 + 0.5 if right else x0 - 0.5,
        y1 + 1.2 if above else y0 - 1.2,
        note,
        color=color,
        fontsize=12,
        fontweight="bold",
        ha="right" if right else "left",
        va="bottom" if above else "top",
        clip_on=True,
        path_effects=[withStroke(linewidth=2.5, foreground="black")],
    )


def _middle(example: Example) -> tuple[float, float]:
    """Find the point that notes keep away from: the mean of the true positions."""
    if len(example.x) == 0:
        return -np.inf, -np.inf
    return float(np.mean(example.x)), float(np.mean(example.y))


def _window(example: Example) -> tuple[float, float, float, float]:
    """Choose a square that holds everything true and found; return its x and y limits."""
    height, width = example.image.shape
    corners = [
        part.bounds for part in (*example.footprints, *example.found.footprints) if part.area
    ]
    if not corners:
        return -0.5, width - 0.5, -0.5, height - 0.5
    low = np.array(corners)[:, :2].min(axis=0) - MARGIN
    high = np.array(corners)[:, 2:].max(axis=0) + MARGIN
    side = min(max(float((high - low).max()) + 1, MIN_SIDE), min(height, width))
    limit = np.array([width, height]) - side
    start = np.clip((low + high + 1 - side) / 2, 0, limit) - 0.5
    return start[0], start[0] + side, start[1], start[1] + side


def _draw_completeness(
    axes: "Axes", rows: Sequence[Mapping[str, Any]], label: str, style: tuple[str, str, float]
) -> None:
    """Draw recall with its 68 % Wilson interval."""
    found = np.array([row["centroid5"]["tp"] for row in rows], dtype=float)
    total = np.array([row["n_true"] for row in rows], dtype=float)
    there = np.flatnonzero(total)
    if there.size:
        low, high = wilson_interval(found[there], total[there])
        axes.vlines(there, low, high, color=style[0], lw=1.2)
    _draw_line(axes, [row["centroid5"]["recall"] for row in rows], label, style)


def _draw_line(
    axes: "Axes", values: Sequence[float | None], label: str, style: tuple[str, str, float]
) -> None:
    color, marker, width = style
    heights = np.array([np.nan if value is None else value for value in values], dtype=float)
    axes.plot(heights, marker + "-", color=color, lw=width, markersize=7, label=label)


def wilson_interval(
    part: npt.NDArray[np.float64], whole: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """68 % interval of a binomial share (Wilson 1927), widened to hold the share itself.

    Parameters
    ----------
    part, whole : (n,) float arrays
        Counts; ``whole`` is positive.
    """
    share = part / whole
    centre = (share + 0.5 / whole) / (1 + 1 / whole)
    half = np.sqrt(share * (1 - share) / whole + 0.25 / whole**2) / (1 + 1 / whole)
    low, high = np.minimum(centre - half, share), np.maximum(centre + half, share)
    return np.clip(low, 0, 1), np.clip(high, 0, 1)


def bin_label(low: float | None, high: float | None, *, whole: bool) -> str:
    """Name a bin on an axis.

    Parameters
    ----------
    low, high : float or None
        Its edges; ``None`` for an open end.
    whole : bool
        Whether a bin with both edges holds the one number ``low``.
    """
    if low is None:
        return "all" if high is None else f"< {high:g}"
    if high is None:
        return f"≥ {low:g}"
    return f"{low:g}" if whole else f"{low:g}–{high:g}"
