"""galsep's own galaxies and stars: magnitudes, sizes, shapes and colours from published relations.

Sizes, bulge fractions and ellipticities follow the priors of *lensfit* (Miller et al. 2013,
MNRAS 429, 2858, appendix B), which were fitted to HST/ACS and SDSS galaxies; the counts have the
slope 0.34 dex/mag of Kamath's report; colours are the medians and scatter of the CatSim sample
that BTK distributes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from galsep.sim.survey import REFERENCE_WAVELENGTH, Survey

if TYPE_CHECKING:
    import galsim

__all__ = ["Drawn", "Parameters", "Population", "SourceModel", "Stars", "colors"]

BRIGHTEST_MAG = 18.0
"""Nothing brighter is drawn: such sources are rare and larger than a stamp."""

COUNT_SLOPE = 0.34
"""Slope of the galaxy counts, dex per magnitude (Kamath's report)."""

STAR_COUNT_SLOPE = 0.12
"""Slope of faint star counts at high galactic latitude, dex per magnitude (an assumption:
counts of models of the Galaxy rise by a factor of 1.2 to 1.4 a magnitude there)."""

BULGE_DOMINATED = 0.1
"""Share of galaxies that are bulge only (Miller et al. 2013, appendix B3)."""

# Median and scatter of (band - i) against effective wavelength in nm: the 76 galaxies of BTK's
# CatSim sample in ugrizy. One number a galaxy, its redness, moves along the scatter.
_COLOR_WAVELENGTH = (367.0, 483.0, 622.0, 755.0, 869.0, 971.0)
_COLOR_MEDIAN = (0.41, 0.22, 0.16, 0.0, -0.17, -0.32)
_COLOR_SCATTER = (1.07, 0.69, 0.33, 0.0, -0.24, -0.37)


@dataclass(frozen=True, slots=True)
class Drawn:
    """One source, ready to be rendered.

    Parameters
    ----------
    kind : {"galaxy", "star"}
    magnitude : (band,) float array
    half_light_radius : float
        Arcsec, before the PSF.
    e1, e2 : float
        Ellipticity ``(1 − q)/(1 + q)``.
    profile : galsim.GSObject or None
        Surface brightness of unit flux before the PSF; ``None`` for a point source.
    """

    kind: str
    magnitude: npt.NDArray[np.float64]
    half_light_radius: float
    e1: float
    e2: float
    profile: "galsim.GSObject | None"


@dataclass(frozen=True, slots=True)
class Parameters:
    """A bulge + disk (+ point source) galaxy by numbers, as catalogues list it.

    Parameters
    ----------
    magnitude : (band,) float array
    bulge_fraction, point_fraction : float
        Shares of the flux in the de Vaucouleurs bulge and in a central point source.
    disk_radius, bulge_radius : float
        Half-light radii (geometric mean of the axes), arcsec.
    disk_axis_ratio, bulge_axis_ratio : float
        Minor over major axis.
    position_angle : float
        Degrees, counter-clockwise from +x.
    """

    magnitude: npt.NDArray[np.float64]
    bulge_fraction: float
    point_fraction: float
    disk_radius: float
    bulge_radius: float
    disk_axis_ratio: float
    bulge_axis_ratio: float
    position_angle: float

    def drawn(self) -> Drawn:
        """Turn the numbers into a profile of unit flux."""
        import galsim

        angle = self.position_angle * galsim.degrees
        disk_fraction = 1.0 - self.bulge_fraction - self.point_fraction
        parts = []
        if self.bulge_fraction > 0:
            bulge = galsim.DeVaucouleurs(
                half_light_radius=self.bulge_radius, flux=self.bulge_fraction
            )
            parts.append(bulge.shear(q=self.bulge_axis_ratio, beta=angle))
        if disk_fraction > 1e-6:
            disk = galsim.Exponential(half_light_radius=self.disk_radius, flux=disk_fraction)
            parts.append(disk.shear(q=self.disk_axis_ratio, beta=angle))
        if self.point_fraction > 0:
            parts.append(galsim.DeltaFunction(flux=self.point_fraction))
        q = self.disk_axis_ratio if disk_fraction >= self.bulge_fraction else self.bulge_axis_ratio
        ellipticity = (1 - q) / (1 + q)
        radius = disk_fraction * self.disk_radius + self.bulge_fraction * self.bulge_radius
        return Drawn(
            kind="galaxy",
            magnitude=self.magnitude,
            half_light_radius=radius,
            e1=ellipticity * math.cos(2 * angle.rad),
            e2=ellipticity * math.sin(2 * angle.rad),
            profile=galsim.Add(parts) if len(parts) > 1 else parts[0],
        )


class SourceModel(Protocol):
    """Anything that draws sources: galsep's population, a catalogue, real galaxies."""

    def draw(self, rng: np.random.Generator) -> Drawn:
        """Draw one source."""
        ...


def draw_magnitude(rng: np.random.Generator, slope: float, faintest: float) -> float:
    """Draw from counts ∝ 10^(slope · m) between :data:`BRIGHTEST_MAG` and ``faintest``."""
    low = 10 ** (slope * (BRIGHTEST_MAG - faintest))
    return faintest + math.log10(low + (1 - low) * rng.random()) / slope


def colors(survey: Survey, redness: float) -> npt.NDArray[np.float64]:
    """Magnitude differences (band − i) of a galaxy whose colours deviate by ``redness`` sigma."""
    wavelength = np.array([band.wavelength for band in survey.bands])
    wavelength = np.where(np.abs(wavelength - REFERENCE_WAVELENGTH) < 40, 755.0, wavelength)
    median = np.interp(wavelength, _COLOR_WAVELENGTH, _COLOR_MEDIAN)
    scatter = np.interp(wavelength, _COLOR_WAVELENGTH, _COLOR_SCATTER)
    return np.asarray(median + redness * scatter, dtype=np.float64)


class Population:
    """Bulge + disk galaxies down to a magnitude limit in i.

    Parameters
    ----------
    survey : Survey
    max_mag : float
        Faintest i magnitude.
    """

    def __init__(self, survey: Survey, max_mag: float) -> None:
        self.survey = survey
        self.max_mag = max_mag
        self._disk_ellipticity = _Tabulated(_disk_ellipticity_density, 0.8)
        self._bulge_ellipticity = _Tabulated(_bulge_ellipticity_density, 0.9)

    def draw(self, rng: np.random.Generator) -> Drawn:
        """Draw one galaxy."""
        return self.parameters(rng).drawn()

    def parameters(self, rng: np.random.Generator) -> Parameters:
        """Draw the numbers of one galaxy."""
        magnitude = draw_magnitude(rng, COUNT_SLOPE, self.max_mag)
        scale = draw_scale_length(rng, magnitude)
        if rng.random() < BULGE_DOMINATED:
            bulge_fraction = 1.0
        else:
            # Disk galaxies: B/T from a Gaussian of width 0.1 about 0, cut at 0 (Miller et al.).
            bulge_fraction = min(abs(rng.normal(0.0, 0.1)), 0.95)
        disk_e = self._disk_ellipticity(rng.random())
        bulge_e = self._bulge_ellipticity(rng.random())
        # The exponential's half-light radius is 1.678 of its scale length along the major axis;
        # the bulge's half-light radius equals the disk's scale length (Miller et al.).
        disk_q, bulge_q = (1 - disk_e) / (1 + disk_e), (1 - bulge_e) / (1 + bulge_e)
        return Parameters(
            magnitude=magnitude + colors(self.survey, rng.normal()),
            bulge_fraction=bulge_fraction,
            point_fraction=0.0,
            disk_radius=1.678 * scale * math.sqrt(disk_q),
            bulge_radius=scale * math.sqrt(bulge_q),
            disk_axis_ratio=disk_q,
            bulge_axis_ratio=bulge_q,
            position_angle=rng.uniform(0.0, 180.0),
        )


class Stars:
    """Point sources with flat-ish counts and a grey mean colour.

    Parameters
    ----------
    survey : Survey
    max_mag : float
        Faintest i magnitude.
    """

    def __init__(self, survey: Survey, max_mag: float) -> None:
        self.survey = survey
        self.max_mag = max_mag

    def draw(self, rng: np.random.Generator) -> Drawn:
        """Draw one star."""
        magnitude = draw_magnitude(rng, STAR_COUNT_SLOPE, self.max_mag)
        return Drawn(
            kind="star",
            magnitude=magnitude + colors(self.survey, rng.normal()),
            half_light_radius=0.0,
            e1=0.0,
            e2=0.0,
            profile=None,
        )


def draw_scale_length(rng: np.random.Generator, magnitude: float) -> float:
    """Draw the major-axis exponential scale length of a galaxy, arcsec.

    The median obeys ln r = −1.145 − 0.269 (i − 23), the distribution about it is
    p(r) ∝ r exp(−(r/a)^(4/3)) (Miller et al. 2013, appendix B1). With t = (r/a)^(4/3) that is a
    gamma distribution of shape 3/2, whose median 1.183 fixes a.
    """
    median = math.exp(-1.145 - 0.269 * (magnitude - 23.0))
    # Cut at the extremes, where the profile would be a point or larger than a stamp.
    return float(np.clip(median * (rng.gamma(1.5) / 1.1829) ** 0.75, 0.03, 4.0))


def _disk_ellipticity_density(e: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Miller et al. (2013), equation B2 (disks)."""
    e_max, e_0, a = 0.804, 0.0256, 0.2539
    return np.asarray(e * (1 - np.exp((e - e_max) / a)) / ((1 + e) * np.sqrt(e**2 + e_0**2)))


def _bulge_ellipticity_density(e: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Miller et al. (2013), equation B3 (bulges)."""
    return np.asarray(e * np.exp(-2.368 * e - 6.691 * e**2))


class _Tabulated:
    """Inverse cumulative distribution of a density on [0, top]."""

    def __init__(
        self,
        density: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]],
        top: float,
    ) -> None:
        self._x = np.linspace(0.0, top, 801)
        cumulative = np.concatenate([[0.0], np.cumsum(density(self._x[1:]))])
        self._cdf = cumulative / cumulative[-1]

    def __call__(self, u: float) -> float:
        return float(np.interp(u, self._cdf, self._x))
