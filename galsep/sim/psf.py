"""The point-spread function of a scene: its width, its profile and its shape."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from galsep.conventions import FWHM_PER_SIGMA
from galsep.sim.survey import Band, Survey

if TYPE_CHECKING:
    import galsim

__all__ = ["PsfShape", "band_psf", "seeing_width"]

MAX_SHEAR = 0.06
"""Largest shear |g| of a PSF of varied shape."""

MOFFAT_BETA = (2.5, 4.5)
"""Range of the exponents of Moffat PSFs: the smaller, the wider the wings."""

FINE, REACH = 8, 4
"""A PSF is measured on so many points to its FWHM, out to so many of these from its centre."""


@dataclass(frozen=True, slots=True)
class PsfShape:
    """What one scene's PSF has in common in all bands, beside its width.

    Parameters
    ----------
    moffat_beta : float
        Exponent of a Moffat profile; 0 for a Kolmogorov one. Diffraction-limited PSFs pass it
        over.
    g1, g2 : float
        Shear, along and at 45° to the x axis. It keeps the area, so that the FWHM is the
        geometric mean of the two axes'.
    """

    moffat_beta: float = 0.0
    g1: float = 0.0
    g2: float = 0.0

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "PsfShape":
        """Draw one: Moffat as often as Kolmogorov, |g| uniform up to :data:`MAX_SHEAR`."""
        beta = float(rng.uniform(*MOFFAT_BETA)) if rng.random() < 0.5 else 0.0
        shear, angle = rng.uniform(0.0, MAX_SHEAR), rng.uniform(0.0, 2 * math.pi)
        return cls(beta, shear * math.cos(angle), shear * math.sin(angle))


def band_psf(
    survey: Survey, band: Band, seeing: float | None = None, shape: PsfShape | None = None
) -> "galsim.GSObject":
    """Seeing on the ground; in space an Airy pattern with jitter.

    Parameters
    ----------
    survey : Survey
    band : Band
        One of the survey's.
    seeing : float, optional
        FWHM in the detection band, arcsec, with which this band's scales; the survey's own if
        ``None``.
    shape : PsfShape, optional
        Round and Kolmogorov if ``None``.
    """
    shape = shape or PsfShape()
    fwhm = band.psf_fwhm
    if seeing is not None:
        fwhm *= seeing / survey.bands[survey.detection_band].psf_fwhm
    psf = _round_psf(survey, band, fwhm, shape.moffat_beta)
    return psf.shear(g1=shape.g1, g2=shape.g2) if shape.g1 or shape.g2 else psf


def _round_psf(survey: Survey, band: Band, fwhm: float, moffat_beta: float) -> "galsim.GSObject":
    import galsim

    diffraction = math.degrees(1.03 * band.wavelength * 1e-9 / survey.mirror_diameter)
    diffraction *= 3600
    if diffraction < 0.3 * fwhm:
        if moffat_beta:
            return galsim.Moffat(beta=moffat_beta, fwhm=fwhm)
        return galsim.Kolmogorov(fwhm=fwhm)
    airy = galsim.Airy(
        lam=band.wavelength,
        diam=survey.mirror_diameter,
        obscuration=survey.obscuration,
        scale_unit=galsim.arcsec,
    )
    if fwhm <= 1.05 * diffraction:
        return airy
    return galsim.Convolve(airy, galsim.Gaussian(fwhm=math.sqrt(fwhm**2 - diffraction**2)))


def seeing_width(psf: "galsim.GSObject", fwhm: float) -> float:
    """FWHM of the seeing disc that the same Gaussian fits best, as images are measured; arcsec.

    Of a Kolmogorov profile that is its own, of a Moffat profile with wide wings up to a tenth more.

    Parameters
    ----------
    psf : galsim.GSObject
    fwhm : float
        Its own, about, in arcsec.
    """
    import galsim

    scale = fwhm / FINE
    side = 2 * FINE * REACH + 1
    drawn = psf.drawImage(nx=side, ny=side, scale=scale, method="no_pixel", dtype=np.float64)
    return FWHM_PER_SIGMA * scale * float(galsim.hsm.FindAdaptiveMom(drawn).moments_sigma)
