"""Stars among galaxies: how complete and how pure are the two classes.

Judged on sources that were matched to a true one. With a threshold ``t``, a source is called a
star where ``class_star ≥ t`` and a galaxy where ``class_star < t``; where it is NaN, the source is
called neither, which lowers the completeness of its class. For each class

    completeness = rightly called so / truly so,  purity = rightly called so / called so,

``None`` where the denominator is zero.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from galsep.measure.metrics import ratio

__all__ = ["CLASS_COMPLETENESS", "CLASS_THRESHOLD", "CURVE_THRESHOLDS", "class_scores"]

CLASS_THRESHOLD = 0.5
"""Conventional threshold of ``class_star``."""

CLASS_COMPLETENESS = 0.8
"""Completeness at which the purity of a class is given."""

CURVE_THRESHOLDS = (0.01, 0.02, *(k / 20 for k in range(1, 20)), 0.98, 0.99)
"""Thresholds of the curve of completeness and purity."""

Values = npt.NDArray[np.float64]
Chosen = npt.NDArray[np.bool_]


def class_scores(
    class_star: Values, star: Chosen, magnitude: Values, edges: Sequence[float]
) -> dict[str, Any]:
    """Judge the classes of matched sources.

    Parameters
    ----------
    class_star : (n,) float array
        Found probability of a star; NaN where unknown.
    star : (n,) bool array
        Whether the true source is a star.
    magnitude : (n,) float array
        Of the true source.
    edges : sequence of float
        The ``k`` inner edges of the bins of magnitude, increasing; they make ``k + 1`` bins
        ``low ≤ magnitude < high``.

    Returns
    -------
    dict
        ``threshold`` (0.5), ``n_unclassified``; ``stars`` and ``galaxies``, each
        ``{n, completeness, purity, purity_80}``, where ``purity_80`` is that of the strictest
        threshold with a completeness of at least 80 %; ``curve``, for each threshold
        ``{threshold, stars: {completeness, purity}, galaxies: {completeness, purity}}``;
        ``by_magnitude``, for each bin ``{low, high, stars, galaxies}`` with figures as above.
    """
    where = np.searchsorted(np.asarray(edges, dtype=np.float64), magnitude, side="right")
    bounds = [None, *(float(edge) for edge in edges), None]
    return {
        "threshold": CLASS_THRESHOLD,
        "n_unclassified": int(np.isnan(class_star).sum()),
        **_both(class_star, star),
        "curve": [
            {"threshold": threshold, **_at(class_star, star, threshold)}
            for threshold in CURVE_THRESHOLDS
        ],
        "by_magnitude": [
            {"low": bounds[k], "high": bounds[k + 1],
             **_both(class_star[where == k], star[where == k])}
            for k in range(len(edges) + 1)
        ],
    }  # fmt: skip


def _both(class_star: Values, star: Chosen) -> dict[str, dict[str, Any]]:
    """Figures of both classes at the conventional threshold, and their purity at 80 %."""
    figures = _at(class_star, star, CLASS_THRESHOLD)
    return {
        name: {"n": int(truly.sum()), **figures[name], "purity_80": _purity(value, truly)}
        for name, value, truly in (("stars", class_star, star), ("galaxies", -class_star, ~star))
    }


def _at(class_star: Values, star: Chosen, threshold: float) -> dict[str, dict[str, float | None]]:
    """Completeness and purity of both classes; no comparison with NaN is true."""
    return {
        name: {
            "completeness": ratio(int((called & truly).sum()), int(truly.sum())),
            "purity": ratio(int((called & truly).sum()), int(called.sum())),
        }
        for name, called, truly in (
            ("stars", class_star >= threshold, star),
            ("galaxies", class_star < threshold, ~star),
        )
    }


def _purity(value: Values, truly: Chosen) -> float | None:
    """Purity of the fewest sources of largest value that hold 80 % of a class."""
    known = np.flatnonzero(np.isfinite(value))
    order = known[np.argsort(-value[known], kind="stable")]
    right = np.cumsum(truly[order])
    # Equal values are taken together.
    last = np.append(np.diff(value[order]) != 0, True)[: len(order)]
    wanted = CLASS_COMPLETENESS * int(truly.sum()) - 1e-9
    enough = np.flatnonzero(last & (right >= wanted))
    if not truly.any() or enough.size == 0:
        return None
    return float(right[enough[0]] / (enough[0] + 1))
