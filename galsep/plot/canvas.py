"""What every figure shares: a canvas without global state, and one stretch for light."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["binned", "figure_pixels", "new_figure", "save_figure", "shade", "show_light", "stretch"]

MASKED_COLOR = (0.42, 0.30, 0.62)
STRIP = 1 << 22
"""Pixels of a large image that are averaged at once."""


def new_figure(width: float, height: float) -> "Figure":
    """Make a figure of so many inches that does not touch pyplot's state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", path: Path, dpi: int = 110) -> None:
    """Write a figure as PNG; equal figures give equal bytes."""
    figure.savefig(path, dpi=dpi, metadata={"Software": None})


def figure_pixels(figure: "Figure", dpi: int = 80) -> npt.NDArray[np.uint8]:
    """Draw a figure to an array ``[height, width, 3]``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return pixels[..., :3].copy()


def stretch(image: npt.NDArray[Any], rms: float, top: float = 0.0) -> npt.NDArray[np.float64]:
    """Map light to [0, 1]: asinh, from −1.5 sky rms to ``top`` (default: the 99.8th percentile).

    Pixels that are not finite become 0.
    """
    scaled = np.nan_to_num(
        np.asarray(image, dtype=np.float64) / max(rms, 1e-30), posinf=0, neginf=0
    )
    top = top or max(10.0, float(np.percentile(scaled, 99.8))) if scaled.size else 10.0
    low, high = np.arcsinh(-1.5), np.arcsinh(top)
    return np.asarray(np.clip((np.arcsinh(scaled) - low) / (high - low), 0, 1))


def binned(light: npt.NDArray[Any], factor: int) -> npt.NDArray[np.float64]:
    """Average an image over blocks of ``factor`` × ``factor`` pixels; what is left over is cut off.

    Unusable (NaN) pixels count nothing; a block of which more than half is unusable is NaN.
    """
    if factor == 1:
        return np.asarray(light, dtype=np.float64)
    height, width = light.shape[0] // factor, light.shape[1] // factor
    means = np.empty((height, width))
    rows = max(1, STRIP // max(1, light.shape[1] * factor))
    # In strips: an image may be nearly as large as the memory.
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        strip = np.asarray(light[start * factor : stop * factor, : width * factor])
        blocks = strip.reshape(stop - start, factor, width, factor)
        good = np.isfinite(blocks)
        count = good.sum(axis=(1, 3))
        total = np.where(good, blocks, 0).sum(axis=(1, 3), dtype=np.float64)
        means[start:stop] = np.where(2 * count >= factor**2, total / np.maximum(count, 1), np.nan)
    return means


def shade(light: npt.NDArray[Any], rms: float, top: float = 0.0) -> npt.NDArray[np.float64]:
    """Make a picture, height × width × RGB from 0 to 1, of an image stretched by :func:`stretch`.

    Grey, and violet where the image is NaN: unusable. This is where colour from several bands
    belongs.
    """
    picture = np.repeat(stretch(light, rms, top)[:, :, None], 3, axis=2)
    picture[np.isnan(light)] = MASKED_COLOR
    return picture


def show_light(axes: "Axes", image: npt.NDArray[Any], rms: float) -> None:
    """Show an image, y upwards, without ticks."""
    axes.imshow(stretch(image, rms), origin="lower", cmap="gray", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
