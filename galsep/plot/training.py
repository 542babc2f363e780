"""Pictures of training data and of the course of a training run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from galsep.plot.canvas import figure_pixels, new_figure, save_figure, show_light
from galsep.scene import Footprint

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_found", "plot_augmentation", "plot_blends", "plot_field", "plot_losses"]


def plot_losses(
    history: Sequence[Mapping[str, float]], parts: Mapping[str, str], path: Path
) -> None:
    """Draw training and validation losses against the epoch (Figure 5 of the report), and F1.

    Parameters
    ----------
    history : sequence of mappings
        One an epoch, with ``epoch`` and ``train_<part>``, ``validation_<part>``; where
        ``validation_f1`` was measured, it is drawn too, and the best is marked.
    parts : mapping of str to str
        Parts of the loss and what they mean; drawn after their sum, ``loss``.
    path : Path
        PNG file to write.
    """
    shown = {"loss": "sum", **parts}
    judged = any("validation_f1" in entry for entry in history)
    columns = (len(shown) + judged + 1) // 2
    figure = new_figure(3.7 * columns, 6.5)
    epochs = [entry["epoch"] for entry in history]
    panels = list(figure.subplots(2, columns).flat)
    for axes, (part, title) in zip(panels, shown.items(), strict=False):
        for kind, style in (("train", "o-"), ("validation", "s--")):
            values = [entry[f"{kind}_{part}"] for entry in history]
            axes.plot(epochs, values, style, label=kind, markersize=4)
        name, _, meaning = title.partition(": ")
        axes.set_title(name if name.startswith("L_") or not meaning else title, fontsize=10)
        axes.set_ylabel("loss")
        axes.set_ylim(bottom=min(0, *axes.get_ylim()))
        axes.legend()
    if judged:
        _draw_f1(panels[len(shown)], epochs, [entry["validation_f1"] for entry in history])
    for axes in panels[: len(shown) + judged]:
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    for axes in panels[len(shown) + judged :]:
        axes.set_axis_off()
    save_figure(figure, path)


def _draw_f1(axes: "Axes", epochs: Sequence[float], f1: Sequence[float]) -> None:
    """Draw F1 against the epoch, and mark the first of the best."""
    best = max(range(len(f1)), key=f1.__getitem__)
    axes.plot(epochs, f1, "s--", color="C1", markersize=4)
    axes.plot(epochs[best], f1[best], "*", color="C3", markersize=12)
    axes.set_title(f"validation F1: best {f1[best]:.3f}, epoch {epochs[best]:.0f}", fontsize=10)
    axes.set_ylabel("F1")


def plot_blends(
    images: npt.NDArray[Any],
    layers: Sequence[npt.NDArray[Any]],
    rms: float,
    level: float,
    path: Path,
) -> None:
    """Draw blends with their true masks, boxes and overlaps (Figure 3 of the report).

    Parameters
    ----------
    images : (n, h, w) array
        Blends.
    layers : sequence of (source, h, w) arrays
        Isolated light of each blend's sources.
    rms : float
        Noise of the sky.
    level : float
        Light above which a pixel belongs to a mask.
    path : Path
        PNG file to write.
    """
    n = len(images)
    figure = new_figure(2.6 * n, 5.6)
    grid = figure.subplots(2, n, squeeze=False)
    for column, (image, light) in enumerate(zip(images, layers, strict=True)):
        show_light(grid[0][column], image, rms)
        show_light(grid[1][column], image, rms)
        _draw_masks(grid[1][column], light > level)
    grid[0][0].set_ylabel("blend")
    grid[1][0].set_ylabel("true masks and boxes")
    save_figure(figure, path)


def draw_found(
    images: npt.NDArray[Any],
    truth: Sequence[Sequence[Footprint]],
    found: Sequence[Sequence[Footprint]],
    rms: float,
) -> npt.NDArray[np.uint8]:
    """Draw blends with the true masks of their sources, and below with those that were found.

    Parameters
    ----------
    images : (n, h, w) array
    truth, found : sequence of sequence of Footprint
        Of each blend.
    rms : float
        Noise of the sky.

    Returns
    -------
    (height, width, 3) uint8 array
    """
    figure = new_figure(2.6 * len(images), 5.6)
    grid = figure.subplots(2, len(images), squeeze=False)
    for row, title, footprints in ((grid[0], "true", truth), (grid[1], "found", found)):
        for axes, image, sources in zip(row, images, footprints, strict=True):
            show_light(axes, image, rms)
            masks = [source.to_full((image.shape[0], image.shape[1])) for source in sources]
            _draw_masks(axes, np.array(masks, dtype=bool).reshape(-1, *image.shape))
        row[0].set_ylabel(f"{title} masks and boxes")
    return figure_pixels(figure)


def plot_augmentation(
    orientations: Sequence[tuple[str, npt.NDArray[Any], npt.NDArray[Any]]],
    rms: float,
    level: float,
    path: Path,
) -> None:
    """Draw one blend in its orientations (Figure 4 of the report).

    Parameters
    ----------
    orientations : sequence of (title, (h, w) image, (source, h, w) light)
    rms, level, path
        As in :func:`plot_blends`.
    """
    figure = new_figure(2.6 * len(orientations), 3.2)
    grid = figure.subplots(1, len(orientations), squeeze=False)
    for axes, (title, image, light) in zip(grid[0], orientations, strict=True):
        show_light(axes, image, rms)
        _draw_masks(axes, light > level)
        axes.set_title(title)
    save_figure(figure, path)


def plot_field(
    image: npt.NDArray[Any],
    rms: float,
    x: npt.NDArray[Any],
    y: npt.NDArray[Any],
    detectable: npt.NDArray[np.bool_],
    path: Path,
) -> None:
    """Draw a simulated field and where its sources are.

    Parameters
    ----------
    image : (h, w) array
    rms : float
    x, y : (n,) arrays
        True positions, pixels.
    detectable : (n,) bool array
    path : Path
        PNG file to write.
    """
    figure = new_figure(10, 10)
    axes = figure.subplots()
    show_light(axes, image, rms)
    for chosen, color, label in (
        (detectable, "#ff9f1c", "detectable"),
        (~detectable, "#2ec4b6", "below the limit"),
    ):
        axes.scatter(
            x[chosen], y[chosen], s=40, facecolors="none", edgecolors=color, label=label, lw=0.8
        )
    axes.legend(loc="upper right")
    save_figure(figure, path)


def _draw_masks(axes: "Axes", masks: npt.NDArray[np.bool_]) -> None:
    from matplotlib.patches import Rectangle

    for mask, color in zip(masks, _colors(len(masks)), strict=True):
        if not mask.any():
            continue
        axes.contour(mask, [0.5], colors=[color], linewidths=1.2)
        rows, columns = np.nonzero(mask)
        axes.add_patch(
            Rectangle(
                (columns.min() - 0.5, rows.min() - 0.5),
                float(np.ptp(columns) + 1),
                float(np.ptp(rows) + 1),
                fill=False,
                edgecolor=color,
                linestyle=":",
            )
        )


def _colors(n: int) -> list[str]:
    palette = ["#ff9f1c", "#2ec4b6", "#e71d36", "#9bc53d", "#c77dff", "#5bc0eb"]
    return [palette[index % len(palette)] for index in range(n)]
