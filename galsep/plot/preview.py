"""The preview of a deblended image: the image, and the same with outlines and centroids.

Where the image is too large for outlines to be seen, its most blended regions stand beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from galsep.conventions import TINY
from galsep.flags import Flag
from galsep.plot.canvas import Shown, new_figure, save_figure
from galsep.plot.colors import MISSED_COLOR, outline_color
from galsep.plot.gallery import Window
from galsep.scene import Footprint

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Preview", "plot_preview", "regions_of_interest"]

PANEL_PIXELS = 1100
"""Roughly the side of a panel on the screen."""

LARGEST_SIDE = 2600
"""Of larger images, the most blended regions are shown, too."""

DPI = 100
REGION = 120
"""Side of such a region, pixels."""

REGION_ROWS, REGION_COLUMNS = 3, 3


@dataclass(frozen=True, slots=True)
class Preview:
    """What is drawn.

    Parameters
    ----------
    image : Shown
    footprints : sequence of Footprint
    x, y : (n,) float arrays
        Centroids, pixels.
    flags : (n,) int array
        Sources that only SEP found are drawn in red.
    blendedness : (n,) float array
    title : str
    """

    image: Shown
    footprints: Sequence[Footprint]
    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    flags: npt.NDArray[np.int64]
    blendedness: npt.NDArray[np.float64]
    title: str

    @property
    def missed(self) -> npt.NDArray[np.bool_]:
        """Sources that only SEP found."""
        return np.asarray((self.flags & Flag.NETWORK_MISSED) > 0)

    @property
    def count(self) -> str:
        """What was found, in words."""
        n = len(self.footprints)
        missed = int(self.missed.sum())
        return f"{n} source{'s' * (n != 1)}; {missed} found by SEP alone (red)"


def plot_preview(preview: Preview, path: Path) -> None:
    """Draw an image beside itself with each source's outline and centroid.

    An image of more than 2600 px a side is shown whole, averaged, beside its nine most blended
    regions with their outlines.

    Parameters
    ----------
    preview : Preview
    path : Path
        PNG file to write.
    """
    large = max(preview.image.shape) > LARGEST_SIDE
    (_draw_large if large else _draw_small)(preview, path)


def regions_of_interest(preview: Preview, most: int) -> list[tuple[int, int]]:
    """Choose the squares around the most blended sources, none over another.

    Returns
    -------
    list of (int, int)
        First pixel ``x0, y0`` of each, most blended first.
    """
    height, width = preview.image.shape
    half = REGION // 2
    chosen: list[tuple[int, int]] = []
    # Of equals, as where nothing is blended, the one with the largest mask.
    area = np.array([footprint.area for footprint in preview.footprints])
    for index in np.lexsort((-area, -np.round(preview.blendedness, 3))).tolist():
        if len(chosen) == most:
            break
        x0 = int(np.clip(round(preview.x[index]) - half, 0, max(0, width - REGION)))
        y0 = int(np.clip(round(preview.y[index]) - half, 0, max(0, height - REGION)))
        if all(max(abs(x0 - x), abs(y0 - y)) >= REGION for x, y in chosen):
            chosen.append((x0, y0))
    return chosen


def _draw_small(preview: Preview, path: Path) -> None:
    height, width = preview.image.shape
    longest = max(height, width)
    zoom = max(1, PANEL_PIXELS // longest)
    plain = _magnified(preview.image.picture(), zoom)
    overlay = plain.copy()
    for index, footprint in enumerate(preview.footprints):
        color = outline_color(index, missed=bool(preview.missed[index]))
        _paint_outline(overlay, footprint, zoom, (0, 0), _rgb(color))
    extent = (-0.5, width - 0.5, -0.5, height - 0.5)
    unit = max(PANEL_PIXELS, longest) / longest / DPI
    figure = new_figure(max(2 * width * unit, 7.0) + 0.8, height * unit + 1.2)
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    left.imshow(plain, origin="lower", extent=extent, interpolation="nearest")
    right.imshow(overlay, origin="lower", extent=extent, interpolation="nearest")
    _mark(right, preview, 24 if longest * zoom > 2000 else 40)
    left.set_title(preview.title)
    right.set_title(preview.count)
    for axes in (left, right):
        axes.set_xlabel("x [pixel]")
    left.set_ylabel("y [pixel]")
    save_figure(figure, path, dpi=DPI)


def _draw_large(preview: Preview, path: Path) -> None:
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    height, width = preview.image.shape
    factor = -(-max(height, width) // LARGEST_SIDE)
    whole = preview.image.picture(factor)
    chosen = regions_of_interest(preview, REGION_ROWS * REGION_COLUMNS)
    figure = new_figure(25, 13)
    left, right = figure.subfigures(1, 2, squeeze=False)[0]
    left.suptitle(preview.title, fontsize=20)
    right.suptitle(f"{preview.count}; the most blended regions", fontsize=20)
    field = left.subplots()
    extent = (-0.5, whole.shape[1] * factor - 0.5, -0.5, whole.shape[0] * factor - 0.5)
    field.imshow(whole, origin="lower", extent=extent)
    field.set_xlabel("x [pixel]", fontsize=14)
    field.set_ylabel("y [pixel]", fontsize=14)
    field.tick_params(labelsize=12)
    panels = right.subplots(REGION_ROWS, REGION_COLUMNS, squeeze=False).ravel()
    for axes in panels[len(chosen) :]:
        axes.set_axis_off()
    for number, ((x0, y0), axes) in enumerate(zip(chosen, panels, strict=False), start=1):
        # Drawn larger than it is: a hundred pixels cannot be seen on this page.
        side = max(REGION, 0.012 * max(height, width))
        corner = x0 + (REGION - side) / 2, y0 + (REGION - side) / 2
        field.add_patch(Rectangle(corner, side, side, fill=False, edgecolor="#ffe14d", lw=1.5))
        field.annotate(
            str(number), (x0 + REGION / 2, corner[1] + side), (0, 2), textcoords="offset points",
            color="#ffe14d", fontsize=14, fontweight="bold", ha="center",
            path_effects=[withStroke(linewidth=3, foreground="black")],
        )  # fmt: skip
        _draw_region(axes, preview, x0, y0)
        middle = x0 + REGION // 2, y0 + REGION // 2
        axes.set_title(f"{number}: around x {middle[0]}, y {middle[1]}", fontsize=14)
    save_figure(figure, path, dpi=DPI)


def _draw_region(axes: "Axes", preview: Preview, x0: int, y0: int) -> None:
    """Draw a region with its outlines, four screen pixels a pixel."""
    zoom = 4
    shown = preview.image.cut(slice(y0, y0 + REGION), slice(x0, x0 + REGION))
    top = float(np.nanmax(shown.light, initial=0.0)) / max(shown.rms, TINY)
    overlay = _magnified(shown.picture(top=max(top, 10.0)), zoom)
    for index in Window(x0, y0, REGION, REGION).touched(preview.footprints):
        color = outline_color(index, missed=bool(preview.missed[index]))
        _paint_outline(overlay, preview.footprints[index], zoom, (y0, x0), _rgb(color))
    height, width = shown.shape
    extent = (x0 - 0.5, x0 + width - 0.5, y0 - 0.5, y0 + height - 0.5)
    axes.imshow(overlay, origin="lower", extent=extent, interpolation="nearest")
    _mark(axes, preview, 40)
    axes.set_xlim(extent[:2])
    axes.set_ylim(extent[2:])
    axes.set_xticks([])
    axes.set_yticks([])


def _magnified(picture: npt.NDArray[np.float64], zoom: int) -> npt.NDArray[np.float64]:
    """Show each pixel as ``zoom`` × ``zoom`` of the screen's."""
    return np.repeat(np.repeat(picture, zoom, axis=0), zoom, axis=1)


def _mark(axes: "Axes", preview: Preview, size: float) -> None:
    """Mark centroids; a dark rim keeps the crosses visible on bright cores."""
    x, y, missed = preview.x, preview.y, preview.missed
    for color, width in (("black", 2.4), ("white", 1.0)):
        axes.scatter(x[~missed], y[~missed], s=size, c=color, marker="+", linewidths=width)
    axes.scatter(x[missed], y[missed], s=size, c=MISSED_COLOR, marker="x", linewidths=1.0)


def _paint_outline(
    overlay: npt.NDArray[np.float64],
    footprint: Footprint,
    zoom: int,
    corner: tuple[int, int],
    color: npt.NDArray[np.float64],
) -> None:
    """Colour the border of a mask, one screen pixel wide (two where there is room).

    ``corner`` is the overlay's first pixel ``y, x`` in the image.
    """
    from scipy.ndimage import binary_erosion

    mask = np.pad(footprint.mask, 1)
    large = np.repeat(np.repeat(mask, zoom, axis=0), zoom, axis=1)
    inner = binary_erosion(large, iterations=2 if zoom >= 4 else 1)
    rows, columns = np.nonzero(large & ~inner)
    rows = rows + (footprint.y0 - corner[0] - 1) * zoom
    columns = columns + (footprint.x0 - corner[1] - 1) * zoom
    inside = (rows >= 0) & (rows < overlay.shape[0]) & (columns >= 0)
    inside &= columns < overlay.shape[1]
    overlay[rows[inside], columns[inside]] = color


def _rgb(color: str) -> npt.NDArray[np.float64]:
    return np.array([int(color[index : index + 2], 16) / 255 for index in (1, 3, 5)])
