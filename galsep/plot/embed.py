"""Pictures as text, to stand inside an HTML page: images, figures, outlines."""

import base64
import io
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from galsep.scene import Footprint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["INK", "figure_svg", "image_uri", "outline_path", "png_uri"]

INK = "#0a0b0c"
"""What is drawn in this colour takes the text colour of the page, light or dark."""

JPEG_FROM = 400_000
"""Larger pictures, most of them noise, are JPEG: a fifth of the size, no difference to see."""

JPEG_QUALITY = 88


def image_uri(picture: npt.NDArray[Any]) -> str:
    """Make a ``data:`` address of a picture.

    Parameters
    ----------
    picture : (h, w) or (h, w, 3) array
        Grey or colour, from 0 to 1, first row at the bottom.
    """
    from matplotlib.image import imsave

    pixels = np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    large = pixels.shape[0] * pixels.shape[1] > JPEG_FROM
    file = io.BytesIO()
    options: dict[str, Any] = (
        {"format": "jpg", "pil_kwargs": {"quality": JPEG_QUALITY}}
        if large
        else {"format": "png", "metadata": {"Software": None}}
    )
    imsave(file, pixels, origin="lower", **options)
    return _uri("image/jpeg" if large else "image/png", file.getvalue())


def png_uri(data: bytes) -> str:
    """Make a ``data:`` address of a PNG file's content."""
    return _uri("image/png", data)


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def figure_svg(figure: "Figure") -> str:
    """Make an ``<svg>`` element of a figure; equal figures give equal text.

    It is as wide as what it stands in; its text is text, and :data:`INK` the page's own colour.
    """
    import matplotlib as mpl

    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "galsep"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    # Without a size in points, the page's style sheet decides.
    return re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1).replace(
        ' height="', ' data-height="', 1
    )


def outline_path(footprint: Footprint, y0: int = 0, x0: int = 0) -> str:
    """Trace the border of a footprint as the path data of an SVG.

    Coordinates count from the lower left corner of pixel ``y0, x0``, y upwards; each pixel has
    the side 1.

    Parameters
    ----------
    footprint : Footprint
    y0, x0 : int
        A pixel of the footprint's image.

    Returns
    -------
    str
        A closed path for each border, those of holes too; empty for an empty footprint.
    """
    mask = np.pad(footprint.mask, 1)
    # From each corner the way on, with the inside to its left; two ways where pixels touch at a
    # corner only.
    ways: dict[tuple[int, int], list[tuple[int, int]]] = {}

    def add(rows: npt.NDArray[Any], columns: npt.NDArray[Any], step: tuple[int, int]) -> None:
        dx, dy = step
        # A way leftwards or downwards begins at the far end of its side.
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            start = column - min(dx, 0), row - min(dy, 0)
            ways.setdefault(start, []).append(step)

    lower, upper = mask[:-1], mask[1:]
    add(*_shifted(upper & ~lower, 1, 0), (1, 0))
    add(*_shifted(lower & ~upper, 1, 0), (-1, 0))
    left, right = mask[:, :-1], mask[:, 1:]
    add(*_shifted(left & ~right, 0, 1), (0, 1))
    add(*_shifted(right & ~left, 0, 1), (0, -1))
    parts = []
    shift_x, shift_y = footprint.x0 - x0 - 1, footprint.y0 - y0 - 1
    while ways:
        x, y = corner = next(iter(ways))
        parts.append(f"M{x + shift_x} {y + shift_y}")
        step, length = ways[corner][0], 0
        while corner in ways:
            onward = _turn(ways, corner, step)
            if onward != step:
                parts.append(_stroke(step, length))
                step, length = onward, 0
            corner = corner[0] + step[0], corner[1] + step[1]
            length += 1
        parts.append("z")
    return "".join(parts)


def _shifted(
    sides: npt.NDArray[np.bool_], dy: int, dx: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    rows, columns = np.nonzero(sides)
    return rows + dy, columns + dx


def _turn(
    ways: dict[tuple[int, int], list[tuple[int, int]]],
    corner: tuple[int, int],
    step: tuple[int, int],
) -> tuple[int, int]:
    """Take a way from a corner; of two, the one to the left, which stays at the same pixel."""
    choices = ways[corner]
    left = (-step[1], step[0])
    chosen = left if len(choices) > 1 and left in choices else choices[0]
    choices.remove(chosen)
    if not choices:
        del ways[corner]
    return chosen


def _stroke(step: tuple[int, int], length: int) -> str:
    dx, dy = step
    return f"h{dx * length}" if dx else f"v{dy * length}"
