"""The preview of a deblended image: the image, and the same with outlines and centroids."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from galsep.flags import Flag
from galsep.plot.canvas import new_figure, save_figure, stretch
from galsep.scene import Footprint

__all__ = ["outline_colors", "plot_preview"]

PANEL_PIXELS = 1100
"""Roughly the side of a panel on the screen."""

LARGEST_SIDE = 2600
"""Larger images are binned down to this many pixels."""

COLORS = ("#ff9f1c", "#2ec4b6", "#9bc53d", "#c77dff", "#5bc0eb", "#f7d716")
"""Outlines take turns, so that neighbours can be told apart."""

MISSED_COLOR = "#ff2d2d"


def outline_colors(missed: npt.NDArray[np.bool_]) -> list[str]:
    """Colour of each source's outline; those that only SEP found are red."""
    return [
        MISSED_COLOR if one else COLORS[index % len(COLORS)] for index, one in enumerate(missed)
    ]


def plot_preview(
    light: npt.NDArray[Any],
    rms: float,
    footprints: Sequence[Footprint],
    x: npt.NDArray[np.float64],
    y: npt.NDArray[np.float64],
    flags: npt.NDArray[np.int64],
    title: str,
    path: Path,
) -> None:
    """Draw an image beside itself with each source's outline and centroid.

    Parameters
    ----------
    light : (h, w) array
        Background-subtracted image; NaN where unusable.
    rms : float
        Typical noise of a pixel.
    footprints : sequence of Footprint
    x, y : (n,) float arrays
        Centroids, pixels.
    flags : (n,) int array
        Sources that only SEP found are drawn in red.
    title : str
    path : Path
        PNG file to write.
    """
    zoom, binning = _scale(light.shape)
    shown = _binned(light, binning)
    gray = np.repeat(np.repeat(stretch(shown, rms / binning), zoom, axis=0), zoom, axis=1)
    overlay = np.repeat(gray[:, :, None], 3, axis=2)
    missed = (flags & Flag.NETWORK_MISSED) > 0
    for footprint, color in zip(footprints, outline_colors(missed), strict=True):
        _paint_outline(overlay, footprint, zoom, binning, _rgb(color))
    high, wide = gray.shape
    extent = (-0.5, light.shape[1] - 0.5, -0.5, light.shape[0] - 0.5)
    dpi = 100
    longest = max(high, wide)
    unit = max(PANEL_PIXELS, longest) / longest / dpi
    figure = new_figure(2 * wide * unit + 0.8, high * unit + 1.2)
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    left.imshow(gray, origin="lower", cmap="gray", vmin=0, vmax=1, extent=extent)
    right.imshow(overlay, origin="lower", extent=extent, interpolation="nearest")
    size = 24 if longest > 2000 else 40
    # A dark rim keeps the crosses visible on bright cores.
    for color, width in (("black", 2.4), ("white", 1.0)):
        right.scatter(x[~missed], y[~missed], s=size, c=color, marker="+", linewidths=width)
    right.scatter(x[missed], y[missed], s=size, c=MISSED_COLOR, marker="x", linewidths=1.0)
    left.set_title(title)
    count = f"{len(footprints)} source{'s' * (len(footprints) != 1)}"
    right.set_title(f"{count}; {int(missed.sum())} found by SEP alone (red)")
    for axes in (left, right):
        axes.set_xlabel("x [pixel]")
    left.set_ylabel("y [pixel]")
    save_figure(figure, path, dpi=dpi)


def _scale(shape: tuple[int, ...]) -> tuple[int, int]:
    """Whole factors by which small images are enlarged and large ones binned."""
    longest = max(shape)
    if longest > LARGEST_SIDE:
        return 1, -(-longest // LARGEST_SIDE)
    return max(1, PANEL_PIXELS // longest), 1


def _binned(light: npt.NDArray[Any], factor: int) -> npt.NDArray[np.float64]:
    if factor == 1:
        return np.asarray(light, dtype=np.float64)
    height, width = light.shape[0] // factor, light.shape[1] // factor
    binned = np.empty((height, width))
    # Row by row: the image may be larger than memory.
    for row, line in enumerate(binned):
        strip = light[row * factor : (row + 1) * factor, : width * factor]
        line[:] = np.nan_to_num(strip).reshape(factor, width, factor).mean(axis=(0, 2))
    return binned


def _paint_outline(
    overlay: npt.NDArray[np.float64],
    footprint: Footprint,
    zoom: int,
    binning: int,
    color: npt.NDArray[np.float64],
) -> None:
    """Colour the border of a mask, one screen pixel wide (two where there is room)."""
    from scipy.ndimage import binary_erosion

    mask = np.pad(footprint.mask, binning)[::binning, ::binning]
    large = np.repeat(np.repeat(mask, zoom, axis=0), zoom, axis=1)
    inner = binary_erosion(large, iterations=2 if zoom >= 4 else 1)
    rows, columns = np.nonzero(large & ~inner)
    rows = rows + (footprint.y0 // binning - 1) * zoom
    columns = columns + (footprint.x0 // binning - 1) * zoom
    inside = (rows >= 0) & (rows < overlay.shape[0]) & (columns >= 0)
    inside &= columns < overlay.shape[1]
    overlay[rows[inside], columns[inside]] = color


def _rgb(color: str) -> npt.NDArray[np.float64]:
    return np.array([int(color[index : index + 2], 16) / 255 for index in (1, 3, 5)])
