"""Pictures of separated light: blend, truth, model, light and residual in a row."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from galsep.plot.canvas import new_figure, save_figure, stretch
from galsep.scene import SourceLight

__all__ = ["IsolatedRow", "plot_isolated"]

LEAST_SIDE = 32
RESIDUAL_RANGE = 5.0
"""Residuals are shown up to so many sky rms."""


@dataclass(frozen=True, slots=True)
class IsolatedRow:
    """One source of a blend.

    Parameters
    ----------
    title : str
    image : (h, w) array
        The blend, background-subtracted.
    models : (h, w) array
        Sum of all models.
    part : SourceLight
    truth : (h, w) array
        The source's isolated image.
    """

    title: str
    image: npt.NDArray[np.float32]
    models: npt.NDArray[np.float32]
    part: SourceLight
    truth: npt.NDArray[np.float32]


def plot_isolated(rows: Sequence[IsolatedRow], rms: float, path: Path) -> None:
    """Draw a row of pictures for each source.

    The blend, the source's isolated image, its model, its light (its share of the
    data), and the blend without all models in units of the sky rms.

    Parameters
    ----------
    rows : sequence of IsolatedRow
    rms : float
        Noise of the sky.
    path : Path
        PNG file to write.
    """
    titles = ["blend", "truth", "model", "light", "blend − all models"]
    figure = new_figure(2.0 * len(titles), 2.15 * max(1, len(rows)) + 0.2)
    grid = figure.subplots(max(1, len(rows)), len(titles), squeeze=False)
    for axes, row in zip(grid, rows, strict=False):
        box = _window(row.part, row.image.shape)
        light = np.zeros_like(row.image)
        light[row.part.slices] = row.part.share * row.image[row.part.slices]
        model = np.zeros_like(row.image)
        model[row.part.slices] = row.part.model
        pictures = [row.image, row.truth, model, light]
        extent = (box[1].start - 0.5, box[1].stop - 0.5, box[0].start - 0.5, box[0].stop - 0.5)
        for ax, picture in zip(axes, pictures, strict=False):
            ax.imshow(stretch(picture[box], rms), origin="lower", cmap="gray", extent=extent)
        axes[-1].imshow(
            (row.image - row.models)[box] / rms,
            origin="lower",
            cmap="RdBu_r",
            vmin=-RESIDUAL_RANGE,
            vmax=RESIDUAL_RANGE,
            extent=extent,
        )
        axes[0].set_ylabel(row.title, fontsize=7)
    for ax, title in zip(grid[0], titles, strict=True):
        ax.set_title(title, fontsize=9)
    for ax in grid.flat:
        ax.set_xticks([])
        ax.set_yticks([])
    save_figure(figure, path)


def _window(part: SourceLight, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """The source's surroundings: half its crop, at least some pixels."""
    slices = []
    for start, size, limit in zip((part.y0, part.x0), part.model.shape, shape, strict=True):
        side = min(max(LEAST_SIDE, size // 2), limit)
        low = min(max(0, start + (size - side) // 2), limit - side)
        slices.append(slice(low, low + side))
    return slices[0], slices[1]
