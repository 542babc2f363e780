"""Outlines of sources on axes of the caller's, for a notebook or a figure of one's own."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from galsep.flags import Flag
from galsep.plot.canvas import Shown
from galsep.plot.colors import outline_colors
from galsep.scene import Footprint

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_outlines", "edges"]


def draw_outlines(
    image: Shown,
    footprints: Sequence[Footprint],
    x: npt.NDArray[np.float64],
    y: npt.NDArray[np.float64],
    flags: npt.NDArray[np.int64],
    axes: "Axes | None" = None,
) -> "Axes":
    """Draw an image with each source's outline and centroid.

    Parameters
    ----------
    image : Shown
    footprints : sequence of Footprint
    x, y : (n,) float arrays
        Centroids, pixels.
    flags : (n,) int array
        Sources that only SEP found are drawn in red.
    axes : matplotlib Axes, optional
        By default those of a new figure of pyplot.

    Returns
    -------
    matplotlib Axes
    """
    from matplotlib.collections import LineCollection

    if axes is None:
        from matplotlib import pyplot

        _, axes = pyplot.subplots(layout="constrained")
    axes.imshow(image.picture(), origin="lower", interpolation="nearest")
    missed = (np.asarray(flags) & Flag.NETWORK_MISSED) > 0
    segments: list[npt.NDArray[np.float64]] = []
    colors: list[str] = []
    for footprint, color in zip(footprints, outline_colors(missed), strict=True):
        lines = edges(footprint)
        segments += list(lines)
        colors += [color] * len(lines)
    axes.add_collection(LineCollection(segments, colors=colors, linewidths=1.0), autolim=False)
    axes.scatter(x, y, s=16, c="white", marker="+", linewidths=0.8)
    axes.set_xlabel("x [pixel]")
    axes.set_ylabel("y [pixel]")
    return axes


def edges(footprint: Footprint) -> npt.NDArray[np.float64]:
    """The sides of pixels that bound a footprint.

    Returns
    -------
    (n, 2, 2) array
        Ends ``x, y`` of each side; the centre of a pixel has whole coordinates.
    """
    mask = np.pad(footprint.mask, 1)
    left, bottom = footprint.x0 - 1.5, footprint.y0 - 1.5
    rows, columns = np.nonzero(mask[:, 1:] != mask[:, :-1])
    upright = np.stack([columns + 1, rows, columns + 1, rows + 1], axis=1)
    rows, columns = np.nonzero(mask[1:] != mask[:-1])
    level = np.stack([columns, rows + 1, columns + 1, rows + 1], axis=1)
    ends = np.concatenate([upright, level]).astype(np.float64).reshape(-1, 2, 2)
    return np.asarray(ends + np.array([left, bottom]))
