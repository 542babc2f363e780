"""Survey constants (pixel scale, zero point, sky, seeing), from surveycodex."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from galsep.errors import UsageError

__all__ = ["REFERENCE_WAVELENGTH", "Band", "Survey", "load_survey"]

REFERENCE_WAVELENGTH = 756.0
"""Effective wavelength of the i band, nm; magnitudes are drawn and cut there."""


@dataclass(frozen=True, slots=True)
class Band:
    """One filter of a survey at its full depth.

    Parameters
    ----------
    name : str
    zeropoint : float
        Magnitude of a source of one electron over the full exposure time.
    sky_level : float
        Mean sky, electrons per pixel over the full exposure time.
    psf_fwhm : float
        Seeing, arcsec.
    wavelength : float
        Effective wavelength, nm.
    """

    name: str
    zeropoint: float
    sky_level: float
    psf_fwhm: float
    wavelength: float

    @property
    def sky_rms(self) -> float:
        """Noise of the empty sky, electrons per pixel."""
        return math.sqrt(self.sky_level)


@dataclass(frozen=True, slots=True)
class Survey:
    """The constants of a survey that a simulation needs.

    Parameters
    ----------
    name : str
    pixel_scale : float
        Arcsec per pixel.
    mirror_diameter : float
        Metres.
    obscuration : float
        Diameter of the central obscuration over that of the mirror.
    bands : tuple of Band
    """

    name: str
    pixel_scale: float
    mirror_diameter: float
    obscuration: float
    bands: tuple[Band, ...]

    @property
    def detection_band(self) -> int:
        """Index of the band that defines masks and ``snr``: the one nearest to i."""
        offsets = [abs(band.wavelength - REFERENCE_WAVELENGTH) for band in self.bands]
        return offsets.index(min(offsets))

    def deepened(self, depth: float) -> "Survey":
        """The survey with ``depth`` magnitudes more of depth (less where negative).

        The exposure time is 10^(0.8 · depth) times as long: the light grows with it, the noise
        of the sky with its square root.
        """
        if depth == 0:
            return self
        time = 10 ** (0.8 * depth)
        bands = tuple(
            replace(
                band,
                zeropoint=band.zeropoint + 2.5 * math.log10(time),
                sky_level=band.sky_level * time,
            )
            for band in self.bands
        )
        return replace(self, bands=bands)

    def resampled(self, pixel_scale: float) -> "Survey":
        """The survey with pixels of ``pixel_scale`` arcsec, which collect sky by their area."""
        if pixel_scale == self.pixel_scale:
            return self
        area = (pixel_scale / self.pixel_scale) ** 2
        bands = tuple(replace(band, sky_level=band.sky_level * area) for band in self.bands)
        return replace(self, pixel_scale=pixel_scale, bands=bands)


def load_survey(name: str, bands: Sequence[str]) -> Survey:
    """Look a survey up in surveycodex.

    Parameters
    ----------
    name : str
        Name of the survey, such as ``"LSST"``; case does not matter.
    bands : sequence of str
        Names of its filters.

    Raises
    ------
    UsageError
        For an unknown survey or filter.
    """
    import surveycodex
    from surveycodex.utilities import mean_sky_level

    known = {survey.lower(): survey for survey in surveycodex.available_surveys}
    if name.lower() not in known:
        raise UsageError(f"unknown survey {name!r}; known: {', '.join(sorted(known.values()))}")
    codex = surveycodex.get_survey(known[name.lower()])
    unknown = [band for band in bands if band not in codex.available_filters]
    if unknown:
        raise UsageError(
            f"{codex.name} has no band {unknown[0]!r}; it has {', '.join(codex.available_filters)}"
        )
    chosen = []
    for band in bands:
        codex_filter = codex.get_filter(band)
        exposure = codex_filter.full_exposure_time.to_value("s")
        chosen.append(
            Band(
                name=band,
                zeropoint=float(
                    codex_filter.zeropoint.to_value("mag") + 2.5 * math.log10(exposure)
                ),
                sky_level=float(mean_sky_level(codex, codex_filter).to_value("electron")),
                psf_fwhm=float(codex_filter.psf_fwhm.to_value("arcsec")),
                wavelength=float(codex_filter.effective_wavelength.to_value("nm")),
            )
        )
    return Survey(
        name=codex.name,
        pixel_scale=float(codex.pixel_scale.to_value("arcsec")),
        mirror_diameter=float(codex.mirror_diameter.to_value("m")),
        obscuration=float(codex.obscuration),
        bands=tuple(chosen),
    )
