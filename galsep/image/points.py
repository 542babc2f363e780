"""Point sources: a source's own light beside the PSF.

What a source has more in a filter wider than the PSF than a point of the same brightness would
have, and less in a narrower one, in units of the noise, makes it a galaxy; the idea is that of
SExtractor's ``SPREAD_MODEL`` (Desai et al. 2012, ApJ 757, 83). A logistic fit turns this into a
probability.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from galsep.image.psf import flat_top, pixel_sigma
from galsep.planes import Planes
from galsep.scene import SourceLight

__all__ = [
    "TERMS",
    "ClassFit",
    "fit_columns",
    "logistic",
    "logit",
    "point_features",
    "told_fwhm",
]

NARROW, WIDE = 0.6, 2.0
"""Widths of the filters beside that of the PSF, in units of its own."""

N_FEATURES, SNR = 4, 2
"""Number of :func:`point_features`, and which of them is ln S/N."""

TERMS = {"psf": 4 + N_FEATURES, "alone": 2}
"""Number of terms that the fits of a :class:`ClassFit` add up, constants among them."""

PSF_ERROR = 0.02
"""Relative error of the FWHM and, beyond noise, of the S/N in a filter: no PSF is a Gaussian."""

LEAST_SEEN = 0.9
"""Share of the PSF's filter that usable pixels must hold."""

FEW_SOURCES = 1024
"""Sources that are looked at before their surroundings are let go."""

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ClassFit:
    """Logistic fits of the probability of a point source.

    Parameters
    ----------
    psf : tuple of float
        Constant, and slopes for the log odds by Mask R-CNN, for ``blendedness``, for
        :func:`point_features`, and for ln² S/N, which earlier fits lack.
    alone : tuple of float
        Constant, and slope for the log odds by Mask R-CNN: where nothing else is known.
    """

    psf: tuple[float, ...]
    alone: tuple[float, ...]

    def probability(self, columns: Values) -> Values:
        """Give the probability of a point source; NaN where Mask R-CNN gives none.

        Parameters
        ----------
        columns : (n, 8) float array
            From :func:`fit_columns`.
        """
        alone, full = (columns[:, : len(fit)] @ fit for fit in (self.alone, self.psf))
        return logistic(np.where(np.isfinite(full), full, alone))


def fit_columns(class_star: Values, blendedness: Values, features: Values) -> Values:
    """What the fits of a :class:`ClassFit` add up, one row a source.

    Parameters
    ----------
    class_star : (n,) float array
        Probability of a point source by Mask R-CNN; NaN where it gives none.
    blendedness : (n,) float array
        See :func:`galsep.measure.photometry.measure`.
    features : (n, 4) float array
        From :func:`point_features`.

    Returns
    -------
    (n, 8) float array
        1, the log odds of ``class_star``, ``blendedness``, ``features``, and ln² S/N: the share of
        stars among sources does not fall evenly with their brightness.
    """
    ones, snr = np.ones(len(class_star)), features[:, SNR]
    return np.stack([ones, logit(class_star), blendedness, *features.T, snr**2], axis=1)


def point_features(
    parts: Sequence[SourceLight],
    light: npt.NDArray[np.float32],
    rms: npt.NDArray[np.float32],
    unusable: npt.NDArray[np.bool_],
    fwhm: float | None,
    planes: Planes | None = None,
) -> Values:
    """Compare each source's own light with the PSF.

    Parameters
    ----------
    parts : sequence of SourceLight
    light, rms : (h, w) float32 arrays
        Background-subtracted image (0 where unusable) and the noise of its sky.
    unusable : (h, w) bool array
    fwhm : float or None
        Of the PSF, pixels; ``None`` where it is not known.
    planes : Planes, optional
        Where the arrays are.

    Returns
    -------
    (n, 4) float array
        By how much the S/N in the narrower and in the wider filter exceeds that of a point source,
        over √(1 + (0.02 S/N)²) (arsinh), and the logarithms of the S/N in the PSF's filter and of
        the FWHM. NaN without a PSF, for a source without light, one of which too few pixels are
        usable or inside the crop, and one with a flat top, such as a saturated star's: its shape
        says nothing.
    """
    planes = planes or Planes()
    features = np.full((len(parts), N_FEATURES), math.nan)
    if fwhm is None:
        return features
    sigma = pixel_sigma(fwhm)
    for index, part in enumerate(parts):
        box = part.slices
        usable = (~unusable[box]).astype(np.float64)
        own = part.share * light[box] / rms[box] * usable
        shape = _shape(own, usable, part.model, sigma)
        if shape is not None:
            features[index] = *shape, math.log(fwhm)
        if index % FEW_SOURCES == 0:
            planes.release()
    return features


def logit(probability: npt.NDArray[Any]) -> Values:
    """log(p / (1 − p)), finite also at 0 and 1."""
    low = 1e-6
    return np.asarray(np.log(np.clip(probability, low, 1) / np.clip(1 - probability, low, 1)))


def told_fwhm(fwhm: float, rng: np.random.Generator) -> float:
    """The FWHM of a PSF as an image's stars would tell it, with an error of :data:`PSF_ERROR`."""
    return fwhm * math.exp(PSF_ERROR * rng.standard_normal())


def logistic(value: Values) -> Values:
    """1 / (1 + exp(−value))."""
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-value)))


def _shape(
    own: Values, usable: Values, model: npt.NDArray[np.float32], sigma: float
) -> tuple[float, float, float] | None:
    """Excess in the narrower and in the wider filter, and ln S/N, if it says anything."""
    down, across = (model.sum(axis=axis, dtype=np.float64) for axis in (1, 0))
    total = float(down.sum())
    if total <= 0:
        return None
    dy, dx = (
        np.arange(len(along)) - along @ np.arange(len(along)) / total for along in (down, across)
    )
    if flat_top(own, math.sqrt((down @ dy**2 + across @ dx**2) / (2 * total))):
        return None

    def under(image: Values, widths: Values) -> Values:
        """Sums of an image under Gaussians of several σ."""
        y, x = (np.exp(-0.5 * (d / widths[:, None]) ** 2) for d in (dy, dx))
        return np.asarray((y @ image * x).sum(axis=1))

    widths = sigma * np.array([1.0, NARROW, WIDE])
    # Products of Gaussians are Gaussians: of each with itself, and with the PSF's.
    power = under(usable, widths / math.sqrt(2))
    if power[0] < LEAST_SEEN * math.pi * sigma**2:
        return None
    snr = under(own, widths) / np.sqrt(power)
    alike = under(usable, 1 / np.sqrt(1 / widths**2 + 1 / sigma**2)) / np.sqrt(power * power[0])
    excess = np.arcsinh((snr - alike * snr[0]) / math.hypot(1, PSF_ERROR * snr[0]))
    return float(excess[1]), float(excess[2]), math.log(max(float(snr[0]), 1.0))
