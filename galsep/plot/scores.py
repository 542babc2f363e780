"""Figures of what scores are worth: their reliability, and stars among galaxies."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from galsep.plot.canvas import new_figure, save_figure, scale_counts
from galsep.plot.evaluation import bin_label, wilson_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_classes", "plot_reliability"]

CATALOGUE, CANDIDATES = "#d1495b", "#8d96a3"
CLASSES = (("stars", "#edae49", "*"), ("galaxies", "#00798c", "o"))
"""Name, colour and marker of each class."""


def plot_reliability(figures: Mapping[str, Any], path: Path) -> None:
    """Draw the share of real sources against their score, over a histogram of the scores.

    Parameters
    ----------
    figures : mapping
        ``ece``, ``bins``, ``ece_candidates`` and ``bins_candidates`` of ``metrics.json``.
    path : Path
        PNG file to write.
    """
    figure = new_figure(7.6, 8.2)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], "--", color="0.6", lw=1.2)
    for key, color, marker, name in (
        ("_candidates", CANDIDATES, "s", "all candidates"),
        ("", CATALOGUE, "o", "catalogue"),
    ):
        bins = figures[f"bins{key}"]
        there = [row for row in bins if row["n"]]
        n = np.array([row["n"] for row in there], dtype=float)
        score = np.array([row["mean_score"] for row in there], dtype=float)
        real = np.array([row["n_real"] for row in there], dtype=float)
        if there:
            low, high = wilson_interval(real, n)
            upper.vlines(score, low, high, color=color, lw=1.6)
        label = f"{name}, ECE {_figure(figures[f'ece{key}'])}"
        upper.plot(score, real / n, marker + "-", color=color, markersize=8, lw=1.6, label=label)
        lower.stairs(
            [row["n"] for row in bins],
            [bins[0]["low"], *(row["high"] for row in bins)],
            color=color,
            lw=1.8,
            fill=bool(key),
            alpha=0.5 if key else 1.0,
        )
    upper.set_title("Calibration: 68 % intervals; dashed: as it should be", fontsize=13)
    upper.set_ylabel("share of real sources", fontsize=13)
    lower.set_ylabel("sources", fontsize=13)
    lower.set_xlabel("score", fontsize=13)
    scale_counts(lower)
    upper.set_ylim(0, 1.03)
    lower.set_xlim(0, 1)
    upper.legend(fontsize=12, loc="upper left")
    _finish((upper, lower))
    save_figure(figure, path)


def plot_classes(figures: Mapping[str, Any], path: Path) -> None:
    """Draw purity against completeness of stars and galaxies, and both by magnitude.

    Parameters
    ----------
    figures : mapping
        ``class_star`` of ``metrics.json``.
    path : Path
        PNG file to write.
    """
    figure = new_figure(15.5, 5.4)
    curves, complete, pure = figure.subplots(1, 3, sharey=True)
    rows = figures["by_magnitude"]
    for name, color, marker in CLASSES:
        curve = [row[name] for row in figures["curve"]]
        curves.plot(_column(curve, "completeness"), _column(curve, "purity"), color=color, lw=2)
        point = figures[name]
        curves.plot(
            _column([point], "completeness"),
            _column([point], "purity"),
            marker,
            color=color,
            markersize=11,
            markeredgecolor="white",
            label=f"{name} ({point['n']})",
        )
        bins = [row[name] for row in rows]
        for axes, key in ((complete, "completeness"), (pure, "purity")):
            axes.plot(_column(bins, key), marker + "-", color=color, lw=1.8, markersize=8)
    ticks = [bin_label(row["low"], row["high"], whole=False) for row in rows]
    for axes, name in ((complete, "completeness"), (pure, "purity")):
        axes.set_title(f"{name} at class_star {figures['threshold']:g}", fontsize=13)
        axes.set_xticks(range(len(ticks)), ticks, rotation=40, ha="right")
        axes.set_xlim(-0.5, len(ticks) - 0.5)
        axes.set_xlabel("true magnitude (AB)", fontsize=13)
    curves.set_title("every threshold; markers: 0.5", fontsize=13)
    curves.set_xlabel("completeness", fontsize=13)
    curves.set_ylabel("purity", fontsize=13)
    curves.set_xlim(0, 1.02)
    curves.set_ylim(0, 1.03)
    curves.legend(fontsize=12, loc="lower left")
    _finish((curves, complete, pure))
    save_figure(figure, path)


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> npt.NDArray[np.float64]:
    """One figure of each row; NaN where it is undefined, which leaves a gap."""
    return np.array([np.nan if row[key] is None else row[key] for row in rows], dtype=np.float64)


def _finish(panels: "Sequence[Axes]") -> None:
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=11)


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
