"""Whether scores mean what they say: of the sources with score 0.8, 80 % should be real.

A found source is *real* if it is matched, one to one and within 5 px, to a detectable true source
(so of two halves of one galaxy at most one is real, the one of higher score); those matched to an
undetectable one are left out. With ``n_b`` of ``N`` scores in bin ``b``, the expected calibration
error (Naeini, Cooper & Hauskrecht 2015) is

    ECE = Σ_b n_b / N · |mean score_b − share real_b|,

over ten bins of 0.1 here. Without any source it is undefined, ``None``.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from galsep.measure.matching import Match

__all__ = ["BIN_EDGES", "outcomes", "reliability"]

BIN_EDGES: npt.NDArray[np.float64] = np.arange(11) / 10
"""Edges of the bins ``low ≤ score < high``; the last one holds the score 1 too."""

Values = npt.NDArray[np.float64]


def outcomes(scores: npt.NDArray[Any], match: Match) -> tuple[Values, npt.NDArray[np.bool_]]:
    """Scores of one image's found sources, and whether each is real.

    Parameters
    ----------
    scores : (m,) float array
        Of everything found.
    match : Match
        Of what was found with the detectable true sources.

    Returns
    -------
    scores : (k,) float array
        Of those that count: all but ``match.ignored``.
    real : (k,) bool array
    """
    real = np.zeros(len(scores), dtype=bool)
    real[match.pairs[:, 1]] = True
    counts = np.ones(len(scores), dtype=bool)
    counts[match.ignored] = False
    return np.asarray(scores, dtype=np.float64)[counts], real[counts]


def reliability(scores: Values, real: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Compare scores with the share of real sources.

    Parameters
    ----------
    scores : (n,) float array
        Between 0 and 1.
    real : (n,) bool array

    Returns
    -------
    dict
        ``n``, ``ece`` and ``bins``, one a bin: ``low``, ``high``, ``n``, ``n_real``,
        ``mean_score``, ``share_real``. What is undefined is ``None``.
    """
    where = np.searchsorted(BIN_EDGES[1:-1], scores, side="right")
    bins: list[dict[str, Any]] = []
    error = 0.0
    for index, (low, high) in enumerate(pairwise(BIN_EDGES)):
        inside = where == index
        n, n_real = int(inside.sum()), int(real[inside].sum())
        mean = float(scores[inside].mean()) if n else None
        share = n_real / n if n else None
        if mean is not None and share is not None:
            error += n * abs(mean - share)
        bins.append(
            {"low": float(low), "high": float(high), "n": n, "n_real": n_real,
             "mean_score": mean, "share_real": share}
        )  # fmt: skip
    return {"n": len(scores), "ece": error / len(scores) if len(scores) else None, "bins": bins}
