"""Colours of outlines, the same in every picture of what was found."""

import numpy as np
import numpy.typing as npt

__all__ = ["MISSED_COLOR", "outline_color", "outline_colors"]

COLORS = ("#ff9f1c", "#2ec4b6", "#9bc53d", "#c77dff", "#5bc0eb", "#f7d716")
"""Outlines take turns, so that neighbours can be told apart."""

MISSED_COLOR = "#ff2d2d"


def outline_color(index: int, *, missed: bool) -> str:
    """Colour of the outline of the source with this index; red if only SEP found it."""
    return MISSED_COLOR if missed else COLORS[index % len(COLORS)]


def outline_colors(missed: npt.NDArray[np.bool_]) -> list[str]:
    """Colour of each source's outline; those that only SEP found are red."""
    return [outline_color(index, missed=bool(one)) for index, one in enumerate(missed)]
