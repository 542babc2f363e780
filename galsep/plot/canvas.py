"""What every figure shares: a canvas without global state, and one stretch for light."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from galsep.conventions import TINY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Shown",
    "binned",
    "figure_pixels",
    "new_figure",
    "save_figure",
    "scale_counts",
    "shade",
    "show_light",
    "stretch",
]

MASKED_COLOR = (0.42, 0.30, 0.62)
STRIP = 1 << 22
"""Pixels of a large image that are averaged at once."""

SCREEN_DPI = 80

DARKEST = -1.5
"""What is black, in sky rms."""


@dataclass(frozen=True, slots=True)
class Shown:
    """An image to be shown: in grey, or of three bands in colour.

    Parameters
    ----------
    light : (h, w) array
        Background-subtracted; NaN where unusable.
    rms : float
        Typical noise of a pixel.
    bands : sequence of pair
        Light and rms of bands, blue first. Three of them are shown in colour, each in units of
        its noise.
    """

    light: npt.NDArray[Any]
    rms: float
    bands: Sequence[tuple[npt.NDArray[Any], float]] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, pixels."""
        return self.light.shape[0], self.light.shape[1]

    def cut(self, rows: slice, columns: slice) -> "Shown":
        """A part of it."""
        parts = [(light[rows, columns], rms) for light, rms in self.bands]
        return replace(self, light=self.light[rows, columns], bands=parts)

    def picture(self, factor: int = 1, top: float = 0.0) -> npt.NDArray[np.float64]:
        """Height × width × RGB from 0 to 1, averaged over ``factor`` × ``factor`` pixels.

        Stretched as by :func:`stretch`; violet where the image is NaN.
        """
        light, rms = binned(self.light, factor), self.rms / factor
        if len(self.bands) != 3:
            return shade(light, rms, top)
        picture = _lupton(
            [binned(band, factor) * (factor / max(noise, TINY)) for band, noise in self.bands],
            top,
        )
        picture[np.isnan(light)] = MASKED_COLOR
        return picture


def new_figure(width: float, height: float) -> "Figure":
    """Make a figure of so many inches that does not touch pyplot's state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", path: Path, dpi: int = 110) -> None:
    """Write a figure as PNG; equal figures give equal bytes."""
    figure.savefig(path, dpi=dpi, metadata={"Software": None})


def scale_counts(axes: "Axes") -> None:
    """Show numbers of sources so that few stand beside many; where all are few, linearly."""
    few = 10
    if axes.get_ylim()[1] > few:
        axes.set_yscale("symlog", linthresh=few)
    else:
        axes.locator_params(axis="y", integer=True)
    axes.set_ylim(bottom=0)


def figure_pixels(figure: "Figure") -> npt.NDArray[np.uint8]:
    """Draw a figure to an array ``[height, width, 3]``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(SCREEN_DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return pixels[..., :3].copy()


def stretch(image: npt.NDArray[Any], rms: float, top: float = 0.0) -> npt.NDArray[np.float64]:
    """Map light to [0, 1]: asinh, from −1.5 sky rms on.

    Parameters
    ----------
    image : (h, w) array
        Background-subtracted; pixels that are not finite count as empty sky.
    rms : float
        Noise of the sky, in the image's unit.
    top : float
        What becomes 1, in sky rms; 0 for the 99.8th percentile, or 10 if that is less.

    Returns
    -------
    (h, w) float array
    """
    scaled = _finite(np.asarray(image, dtype=np.float64) / max(rms, TINY))
    low, high = np.arcsinh(DARKEST), np.arcsinh(top or _top(scaled))
    return np.asarray(np.clip((np.arcsinh(scaled) - low) / (high - low), 0, 1))


def _finite(image: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    return np.asarray(np.nan_to_num(image, posinf=0, neginf=0), dtype=np.float64)


def _top(scaled: npt.NDArray[np.float64]) -> float:
    """What is white, in sky rms."""
    return max(10.0, float(np.percentile(scaled, 99.8))) if scaled.size else 10.0


def _lupton(bands: Sequence[npt.NDArray[Any]], top: float) -> npt.NDArray[np.float64]:
    """Colours of blue, green and red light in sky rms, by the rule of Lupton et al. (2004).

    Of one colour everywhere, light is as bright as that of one band. In the rule's terms the scale
    is one sky rms, and ``Q`` follows from what is white: astropy maps light ``I`` to
    asinh(Q I / stretch) / (10 asinh(Q / 10)).
    """
    from astropy.visualization import make_lupton_rgb

    blue, green, red = (_finite(band) for band in bands)
    top = top or _top((blue + green + red) / 3)
    q = 10 * np.sinh(np.arcsinh(top - DARKEST) / 10)
    picture = make_lupton_rgb(red, green, blue, minimum=DARKEST, stretch=q, Q=q)
    return np.asarray(picture / 255.0)


def binned(light: npt.NDArray[Any], factor: int) -> npt.NDArray[np.float64]:
    """Average an image over blocks of ``factor`` × ``factor`` pixels; what is left over is cut off.

    A side that is shorter than a block is one block. Unusable (NaN) pixels count nothing; a block
    of which more than half is unusable is NaN.
    """
    if factor == 1:
        return np.asarray(light, dtype=np.float64)
    tall, wide = (max(1, min(factor, side)) for side in light.shape)
    height, width = light.shape[0] // tall, light.shape[1] // wide
    means = np.empty((height, width))
    rows = max(1, STRIP // max(1, light.shape[1] * tall))
    # In strips: an image may be nearly as large as the memory.
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        strip = np.asarray(light[start * tall : stop * tall, : width * wide])
        blocks = strip.reshape(stop - start, tall, width, wide)
        good = np.isfinite(blocks)
        count = good.sum(axis=(1, 3))
        total = np.where(good, blocks, 0).sum(axis=(1, 3), dtype=np.float64)
        means[start:stop] = np.where(2 * count >= tall * wide, total / np.maximum(count, 1), np.nan)
    return means


def shade(light: npt.NDArray[Any], rms: float, top: float = 0.0) -> npt.NDArray[np.float64]:
    """Make a grey picture of an image stretched by :func:`stretch`.

    Parameters
    ----------
    light : (h, w) array
        Background-subtracted; violet where it is NaN: unusable.
    rms, top : float
        See :func:`stretch`.

    Returns
    -------
    (h, w, 3) float array
        RGB from 0 to 1.
    """
    picture = np.repeat(stretch(light, rms, top)[:, :, None], 3, axis=2)
    picture[np.isnan(light)] = MASKED_COLOR
    return picture


def show_light(axes: "Axes", image: npt.NDArray[Any], rms: float) -> None:
    """Show an image, stretched by :func:`stretch` with this rms, y upwards, without ticks."""
    axes.imshow(stretch(image, rms), origin="lower", cmap="gray", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
