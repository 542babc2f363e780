"""How well each source's own light was recovered, against its isolated image.

For a true source with the isolated, noiseless image ``t`` and the model ``m``:

- image error ``‖m − t‖² / ‖t‖²`` (0 is perfect, 1 is as good as no model)
- cosine similarity ``m · t / (‖m‖ ‖t‖)``
- structural similarity (Wang et al. 2004), on the pixels where either exceeds the sky rms, with
  the truth's peak as data range
- flux error ``f / f_true − 1``, and pull ``(f − f_true) / error``
- ellipticity error ``|e − e_true|``, with ``e = (Q_xx − Q_yy + 2i Q_xy) / (Q_xx + Q_yy)`` from the
  unweighted second moments of model and truth on the model's crop
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from galsep.scene import SourceLight

__all__ = ["Recovery", "recover", "summarise_recovery"]

Values = npt.NDArray[np.float64]

SSIM_WINDOW = 7


@dataclass(frozen=True, slots=True)
class Recovery:
    """The true sources of one blend, or of several; arrays have one entry a source.

    Figures of a source that was not found are NaN.

    Parameters
    ----------
    magnitude, purity, separation : (n,) float arrays
        Of the true source; ``separation`` in pixels to the next one, infinite when alone.
    exact : (n,) bool array
        Whether the blend's sources were all found, and nothing else.
    flux_ratio, pull : (n,) float arrays
        Flux over true flux, and how many errors lie between them.
    image_error, cosine, ssim, ellipticity_error : (n,) float arrays
    color_error : (n, band − 1) float array
        Magnitudes by which the colours of neighbouring bands are off, first minus second.
    sep_isophotal, sep_kron : (n,) float arrays
        SEP's fluxes over true flux.
    """

    magnitude: Values
    purity: Values
    separation: Values
    exact: npt.NDArray[np.bool_]
    flux_ratio: Values
    pull: Values
    image_error: Values
    cosine: Values
    ssim: Values
    ellipticity_error: Values
    color_error: Values
    sep_isophotal: Values
    sep_kron: Values

    @classmethod
    def joined(cls, parts: "Sequence[Recovery]") -> "Recovery":
        """The sources of several blends."""
        return cls(
            **{
                f.name: np.concatenate([getattr(part, f.name) for part in parts])
                for f in fields(cls)
            }
        )


def recover(
    truth: npt.NDArray[np.float32],
    about: Mapping[str, Values],
    parts: Sequence[SourceLight],
    flux: Values,
    flux_err: Values,
    pairs: npt.NDArray[np.int64],
    rms: float,
    *,
    exact: bool,
    color_error: Values,
    sep: tuple[Values, Values],
) -> Recovery:
    """Compare models with isolated images.

    Parameters
    ----------
    truth : (n, h, w) float32 array
        Isolated, noiseless images.
    about : mapping of str to (n,) float array
        ``flux``, ``magnitude``, ``purity``, ``separation`` of the true sources.
    parts : sequence of SourceLight
        Of the ``m`` sources found.
    flux, flux_err : (m,) float arrays
    pairs : (k, 2) int array
        Indices of true and found sources that belong together.
    rms : float
        Sky rms of a pixel.
    exact : bool
        Whether the pairs are all there is.
    color_error : (n, band − 1) float array
    sep : pair of (n,) float arrays
        SEP's isophotal and Kron fluxes; NaN where it found nothing.
    """
    n = len(truth)
    columns = {name: np.full(n, np.nan) for name in _FIGURES}
    for i, j in pairs.tolist():
        part, wanted = parts[j], truth[i].astype(np.float64)
        model = np.zeros_like(wanted)
        model[part.slices] = part.model
        figures = _compare(model, wanted, rms) | {
            "flux_ratio": flux[j] / about["flux"][i],
            "pull": (flux[j] - about["flux"][i]) / flux_err[j],
            "ellipticity_error": abs(
                _ellipticity(model[part.slices]) - _ellipticity(wanted[part.slices])
            ),
        }
        for name, value in figures.items():
            columns[name][i] = value
    own = {name: np.asarray(about[name], dtype=np.float64) for name in _ABOUT}
    isophotal, kron = (flux / about["flux"] for flux in sep)
    return Recovery(
        exact=np.full(n, exact),
        color_error=color_error,
        sep_isophotal=isophotal,
        sep_kron=kron,
        **own,
        **columns,
    )


_ABOUT = ("magnitude", "purity", "separation")
_FIGURES = ("flux_ratio", "pull", "image_error", "cosine", "ssim", "ellipticity_error")


def _compare(model: Values, truth: Values, rms: float) -> dict[str, float]:
    """Image error, cosine and structural similarity."""
    from skimage.metrics import structural_similarity

    power, own, both = (truth**2).sum(), (model**2).sum(), (model * truth).sum()
    if not power > 0:
        return {}
    lit = np.maximum(model, truth) > rms
    similarity = np.nan
    if lit.any() and min(truth.shape) >= SSIM_WINDOW:
        _, here = structural_similarity(  # type: ignore[no-untyped-call]
            truth, model, win_size=SSIM_WINDOW, data_range=truth.max(), full=True
        )
        similarity = here[lit].mean()
    return {
        "image_error": ((model - truth) ** 2).sum() / power,
        "cosine": both / np.sqrt(power * own) if own > 0 else 0.0,
        "ssim": similarity,
    }


def _ellipticity(light: Values) -> complex:
    total = light.sum()
    if not total > 0:
        return complex(np.nan)
    rows, columns = np.indices(light.shape)
    dy = rows - (light * rows).sum() / total
    dx = columns - (light * columns).sum() / total
    xx, yy, xy = (light * dx**2).sum(), (light * dy**2).sum(), (light * dx * dy).sum()
    return complex(xx - yy, 2 * xy) / (xx + yy) if xx + yy > 0 else 0j


def summarise_recovery(sources: Recovery, edges: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Sum up how well light was recovered.

    Parameters
    ----------
    sources : Recovery
    edges : mapping of str to sequence of float
        Inner edges of the bins by ``magnitude``, ``purity`` and ``separation``.

    Returns
    -------
    dict
        The figures of :func:`_figures`; ``flux_error_all``, the median flux error with a source
        that was not found as one without flux; ``exact``: the figures of blends found exactly;
        ``color_error`` (median of its size) and ``color_bias`` by colour; ``sep``: the figures of
        :func:`_beside_sep`; ``by``: for each property a list of bins with ``low``, ``high``, the
        figures, ``exact`` and ``sep``.
    """
    everything = np.ones(len(sources.flux_ratio), dtype=bool)
    result = _figures(sources, everything)
    result["flux_error_all"] = _median(np.abs(_or_without_flux(sources) - 1))
    result["exact"] = _figures(sources, sources.exact)
    result["color_error"] = [_median(np.abs(color)) for color in sources.color_error.T]
    result["color_bias"] = [_median(color) for color in sources.color_error.T]
    result["sep"] = _beside_sep(sources, everything)
    result["by"] = {}
    for name, inner in edges.items():
        bounds = [None, *(float(edge) for edge in inner), None]
        where = np.searchsorted(inner, getattr(sources, name), side="right")
        result["by"][name] = [
            {"low": bounds[k], "high": bounds[k + 1]}
            | _figures(sources, where == k)
            | {"exact": _figures(sources, (where == k) & sources.exact)}
            | {"sep": _beside_sep(sources, where == k)}
            for k in range(len(inner) + 1)
        ]
    return result


def _figures(sources: Recovery, chosen: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Medians over the chosen sources that were found.

    ``n`` sources; ``flux_error``, ``flux_bias`` and ``flux_scatter``: median of |f/f_true − 1|
    and of f/f_true − 1, half the width that holds 68 % of it; ``flux_mean``, its mean without the
    outer 1 % on either side; ``pull_median`` and ``pull_width``; ``image_error``, ``cosine``,
    ``ssim``, ``ellipticity_error``: medians.
    """
    found = chosen & np.isfinite(sources.flux_ratio)
    off = sources.flux_ratio[found] - 1
    return {
        "n": int(found.sum()),
        **_of_flux("flux", off),
        "flux_mean": _trimmed_mean(off),
        **_of_models(sources, found),
    }


def _beside_sep(sources: Recovery, chosen: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Figures of the chosen sources that SEP finds.

    ``n`` sources, ``n_kron`` of them with a Kron flux; ``flux_error``, ``flux_bias`` and
    ``flux_scatter`` of the network, a source that it has not being one without flux; the same of
    SEP as ``isophotal_error`` and so on, and ``kron_error`` and so on; the other figures of
    :func:`_figures` over the sources that the network has.
    """
    seen = chosen & np.isfinite(sources.sep_isophotal)
    kron = sources.sep_kron[seen]
    return {
        "n": int(seen.sum()),
        "n_kron": len(_finite(kron)),
        **_of_flux("flux", _or_without_flux(sources)[seen] - 1),
        **_of_flux("isophotal", sources.sep_isophotal[seen] - 1),
        **_of_flux("kron", kron - 1),
        **_of_models(sources, seen),
    }


def _or_without_flux(sources: Recovery) -> Values:
    """Flux over true flux, 0 for sources that were not found."""
    return np.where(np.isfinite(sources.flux_ratio), sources.flux_ratio, 0.0)


def _of_flux(name: str, off: Values) -> dict[str, float | None]:
    """Error, bias and scatter of f/f_true − 1."""
    return {
        f"{name}_error": _median(np.abs(off)),
        f"{name}_bias": _median(off),
        f"{name}_scatter": _width(off),
    }


def _of_models(sources: Recovery, chosen: npt.NDArray[np.bool_]) -> dict[str, float | None]:
    pull = sources.pull[chosen]
    plain = ("image_error", "cosine", "ssim", "ellipticity_error")
    return {
        "pull_median": _median(pull),
        "pull_width": _width(pull),
        **{name: _median(getattr(sources, name)[chosen]) for name in plain},
    }


def _finite(values: Values) -> Values:
    return values[np.isfinite(values)]


def _median(values: Values) -> float | None:
    good = _finite(values)
    return float(np.median(good)) if good.size else None


def _width(values: Values) -> float | None:
    """Half the width that holds 68 % of the values, two or more: Gaussian ones' deviation."""
    good = _finite(values)
    return float(np.subtract(*np.percentile(good, [84.13, 15.87])) / 2) if good.size > 1 else None


def _trimmed_mean(values: Values) -> float | None:
    good = np.sort(_finite(values))
    cut = len(good) // 100
    return float(good[cut : len(good) - cut].mean()) if good.size else None
