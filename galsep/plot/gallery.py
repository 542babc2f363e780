"""A blend in pictures: the data, the outlines, each source's own light, what is left."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from galsep.conventions import TINY
from galsep.planes import footprint_bounds
from galsep.plot.canvas import shade
from galsep.plot.embed import image_uri, outline_path
from galsep.scene import Footprint

__all__ = ["OwnLight", "Panel", "Window", "blend_panels", "window_around"]

MARGIN = 5
"""Pixels shown around the sources."""

LEAST_SIDE, LARGEST_SIDE = 32, 160
MOST_SOURCES = 8
"""Sources of a blend whose own light is shown, the brightest."""

TRUTH_COLOR = "#ff5ce1"


@dataclass(frozen=True, slots=True)
class Window:
    """A part of an image.

    Parameters
    ----------
    x0, y0 : int
        First pixel.
    width, height : int
    """

    x0: int
    y0: int
    width: int
    height: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns of the image."""
        return slice(self.y0, self.y0 + self.height), slice(self.x0, self.x0 + self.width)

    def touched(self, footprints: Sequence[Footprint]) -> list[int]:
        """Numbers of the footprints, from 0, whose boxes reach into it."""
        xmin, ymin, xmax, ymax = footprint_bounds(footprints).T
        inside = (xmin < self.x0 + self.width) & (xmax >= self.x0)
        inside &= (ymin < self.y0 + self.height) & (ymax >= self.y0)
        return np.flatnonzero(inside).tolist()


@dataclass(frozen=True, slots=True)
class OwnLight:
    """The light of one source.

    Parameters
    ----------
    label : int
    color : str
        Of its outline.
    footprint : Footprint
    y0, x0 : int
        Where the crop's first pixel lies in the image.
    light : (h, w) array
    """

    label: int
    color: str
    footprint: Footprint
    y0: int
    x0: int
    light: npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture of a blend.

    Parameters
    ----------
    caption : str
    uri : str
        The picture.
    outlines : sequence of (str, str, bool)
        Path, colour and whether it is dashed, in the window's coordinates.
    """

    caption: str
    uri: str
    outlines: Sequence[tuple[str, str, bool]] = ()


def window_around(footprints: Sequence[Footprint], shape: tuple[int, ...]) -> Window:
    """Choose the part of an image that shows some sources, at most 160 px wide and high.

    Parameters
    ----------
    footprints : sequence of Footprint
        The one that must be in it first; without any, the image's corner is shown.
    shape : (int, int)
        Of the image.
    """
    if not footprints:
        return Window(0, 0, min(LARGEST_SIDE, shape[1]), min(LARGEST_SIDE, shape[0]))
    bounds = np.array([footprint.bounds for footprint in footprints])
    low = bounds[:, :2].min(axis=0) - MARGIN
    high = bounds[:, 2:].max(axis=0) + MARGIN + 1
    first = (bounds[0, :2] + bounds[0, 2:] + 1) / 2
    size = np.clip(high - low, LEAST_SIDE, LARGEST_SIDE)
    # A window that cannot hold them all is laid around the first.
    centre = np.where(high - low > LARGEST_SIDE, first, (low + high) / 2)
    limit = np.array([shape[1], shape[0]])
    size = np.minimum(size, limit)
    x0, y0 = np.clip(np.round(centre - size / 2), 0, limit - size).astype(int).tolist()
    return Window(x0, y0, int(size[0]), int(size[1]))


def blend_panels(
    light: npt.NDArray[Any],
    rms: float,
    sources: Sequence[OwnLight],
    window: Window,
    labels: Sequence[int],
    truth: Sequence[Footprint] = (),
) -> list[Panel]:
    """Draw a blend: data, outlines, each source's own light, residual; all with one stretch.

    Parameters
    ----------
    light : (h, w) array
        Background-subtracted image; NaN where unusable.
    rms : float
        Typical noise of a pixel.
    sources : sequence of OwnLight
        Those that reach into the window.
    window : Window
    labels : sequence of int
        The blend's own sources; of the others there is only the outline.
    truth : sequence of Footprint
        True outlines, dashed.
    """
    here = np.asarray(light[window.slices], dtype=np.float64)
    top = max(10.0, float(np.nanmax(here, initial=0.0)) / max(rms, TINY))
    parts = {source.label: _crop(source, window) for source in sources}
    rest = here - sum(parts.values(), np.zeros_like(here))

    def picture(values: npt.NDArray[np.float64]) -> str:
        return image_uri(shade(np.where(np.isnan(here), np.nan, values), rms, top))

    outlines = [
        (outline_path(source.footprint, window.y0, window.x0), source.color, False)
        for source in sources
    ]
    dashed = [(outline_path(one, window.y0, window.x0), TRUTH_COLOR, True) for one in truth]
    data = picture(here)
    own = [source for source in sources if source.label in labels]
    brightest = sorted(own, key=lambda s: -float(parts[s.label].sum()))[:MOST_SOURCES]
    panels = [
        Panel("data", data),
        Panel("outlines, truth dashed" if truth else "outlines", data, [*outlines, *dashed]),
    ]
    panels += [
        Panel(
            f"light of {source.label}",
            picture(parts[source.label]),
            [(outline_path(source.footprint, window.y0, window.x0), source.color, False)],
        )
        for source in sorted(brightest, key=lambda s: s.label)
    ]
    return [*panels, Panel("residual", picture(rest))]


def _crop(source: OwnLight, window: Window) -> npt.NDArray[np.float64]:
    """A source's light on the pixels of a window."""
    part = np.zeros((window.height, window.width))
    height, width = source.light.shape
    y0, x0 = max(source.y0, window.y0), max(source.x0, window.x0)
    y1 = max(y0, min(source.y0 + height, window.y0 + window.height))
    x1 = max(x0, min(source.x0 + width, window.x0 + window.width))
    part[y0 - window.y0 : y1 - window.y0, x0 - window.x0 : x1 - window.x0] = source.light[
        y0 - source.y0 : y1 - source.y0, x0 - source.x0 : x1 - source.x0
    ]
    return part
