"""Distributions of what a catalogue holds, drawn for a page that may be light or dark."""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from galsep.plot.canvas import new_figure, scale_counts
from galsep.plot.embed import INK, figure_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["distributions"]

BAR_COLOR, PART_COLOR = "#5b9bd5", "#ff9f1c"
MOST_BINS = 40


def distributions(
    brightness: npt.NDArray[Any],
    brightness_name: str,
    scores: npt.NDArray[Any],
    blendedness: npt.NDArray[Any],
    threshold: float,
) -> list[str]:
    """Draw the distributions of brightness, score and blendedness.

    Parameters
    ----------
    brightness : (n,) float array
        Magnitudes or what stands for them; NaN counts nothing.
    brightness_name : str
        What it is called.
    scores, blendedness : (n,) float arrays
        From 0 to 1.
    threshold : float
        Score that the network's sources reach at least.

    Returns
    -------
    list of str
        An ``<svg>`` element each.
    """
    shared = blendedness >= 0.05
    pages = []
    for values, name in (
        (brightness, brightness_name),
        (scores, "score"),
        (blendedness, "blendedness"),
    ):
        figure = new_figure(4.6, 3.1)
        axes = figure.subplots()
        values = np.asarray(values, dtype=np.float64)
        good = np.isfinite(values)
        edges = _edges(values[good], unit=name != brightness_name).tolist()
        axes.hist(values[good], edges, color=BAR_COLOR, label="all")
        axes.hist(values[good & shared], edges, color=PART_COLOR, label="blendedness ≥ 0.05")
        shown = name
        if name == "score":
            axes.axvline(threshold, color=INK, lw=1, ls="--")
            shown = f"score (dashed: threshold {threshold:.2g})"
        if name == "blendedness":
            scale_counts(axes)
        if name == brightness_name:
            axes.legend(frameon=False, labelcolor=INK, fontsize=9)
        axes.set_xlabel(shown)
        axes.set_ylabel("sources")
        _in_ink(axes)
        pages.append(figure_svg(figure))
    return pages


def _edges(values: npt.NDArray[np.float64], *, unit: bool) -> npt.NDArray[np.float64]:
    if unit or not values.size:
        return np.linspace(0, 1, 26)
    low, high = np.floor(values.min() * 2) / 2, np.ceil(values.max() * 2) / 2
    n = int(np.clip((high - low) * 4, 4, MOST_BINS))
    return np.linspace(low, max(high, low + 1), n + 1)


def _in_ink(axes: "Axes") -> None:
    """Draw axes and their text in the colour of the page's text."""
    for spine in axes.spines.values():
        spine.set_color(INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, which="both")
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
