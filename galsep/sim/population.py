"""galsep's own galaxies and stars: magnitudes, sizes, shapes and colours from published relations.

Sizes, bulge fractions and ellipticities follow the priors of *lensfit* (Miller et al. 2013,
MNRAS 429, 2858, appendix B), which were fitted to HST/ACS and SDSS galaxies; the counts have the
slope 0.34 dex/mag of Kamath's report; colours are the medians and scatter of the CatSim sample
that BTK distributes.

:class:`VariedPopulation` spreads wider than these relations, for networks that are to meet images
of other telescopes and depths.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from galsep.sim.survey import REFERENCE_WAVELENGTH, Survey

if TYPE_CHECKING:
    import galsim

__all__ = [
    "BRIGHTEST_MAG",
    "BRIGHTEST_VARIED_STAR",
    "Drawn",
    "Parameters",
    "Population",
    "SourceModel",
    "Stars",
    "VariedPopulation",
    "colors",
]

BRIGHTEST_MAG = 18.0
"""Nothing brighter is drawn: such sources are rare and larger than a stamp."""

LEAST_RANGE = 1.0
"""Magnitudes between the faintest and the brightest source, at least."""

BRIGHTEST_VARIED_STAR = 15.0
"""Stars reach to here in varied scenes: their wings fill the stamp."""

COUNT_SLOPE = 0.34
"""Slope of the galaxy counts, dex per magnitude (Kamath's report)."""

STAR_COUNT_SLOPE = 0.12
"""Slope of faint star counts at high galactic latitude, dex per magnitude (an assumption:
counts of models of the Galaxy rise by a factor of 1.2 to 1.4 a magnitude there)."""

BULGE_DOMINATED = 0.1
"""Share of galaxies that are bulge only (Miller et al. 2013, appendix B3)."""

# The make-up of varied galaxies; the rest are bulge + disk. These are choices, not measurements.
_SERSIC_SHARE = 0.3
_IRREGULAR_SHARE = 0.2
_SPIRAL_SHARE = 0.1
_SIZE_SCATTER = 0.2

SERSIC_INDICES = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0)
"""Sérsic indices of varied galaxies, equally frequent. GalSim tabulates each index once, which
takes longer than to draw a galaxy; so there are few."""

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


def draw_magnitude(
    rng: np.random.Generator, slope: float, faintest: float, brightest: float = BRIGHTEST_MAG
) -> float:
    """Draw a magnitude from counts ∝ 10^(slope · m).

    Parameters
    ----------
    rng : Generator
    slope : float
        Dex per magnitude, not 0.
    faintest, brightest : float
        Limits, magnitudes; the brighter one is at least :data:`LEAST_RANGE` above the fainter.
    """
    brightest = min(brightest, faintest - LEAST_RANGE)
    low = 10 ** (slope * (brightest - faintest))
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


class VariedPopulation:
    """Galaxies of several kinds: 40 % bulge + disk, 30 % Sérsic, 20 % irregular, 10 % spirals.

    Magnitudes, sizes and shapes are those of :class:`Population`, with 20 % of extra scatter in
    size. A Sérsic profile of index below 2.5 takes the size and the shape of the disk, the others
    those of the bulge. An irregular galaxy is an exponential disk that holds 30 to 80 % of the
    light, and 5 to 30 point-like knots strewn over it like the disk's light. A spiral is a bulge +
    disk of which 20 to 50 % of the light lie on two or three arms.

    Parameters
    ----------
    survey : Survey
    max_mag : float
        Faintest i magnitude.
    """

    def __init__(self, survey: Survey, max_mag: float) -> None:
        self._population = Population(survey, max_mag)

    def draw(self, rng: np.random.Generator) -> Drawn:
        """Draw one galaxy."""
        galaxy = self._population.parameters(rng)
        scatter = math.exp(_SIZE_SCATTER * rng.normal())
        galaxy = replace(
            galaxy,
            disk_radius=galaxy.disk_radius * scatter,
            bulge_radius=galaxy.bulge_radius * scatter,
        )
        kind = rng.random()
        if kind < _SERSIC_SHARE:
            return _sersic(galaxy, SERSIC_INDICES[int(rng.integers(len(SERSIC_INDICES)))])
        if kind < _SERSIC_SHARE + _IRREGULAR_SHARE:
            return _irregular(galaxy, rng)
        if kind < _SERSIC_SHARE + _IRREGULAR_SHARE + _SPIRAL_SHARE:
            return _spiral(galaxy, rng)
        return galaxy.drawn()


def _sersic(galaxy: Parameters, index: float) -> Drawn:
    """One Sérsic profile of a galaxy's size and shape."""
    import galsim

    disk_like = index < 2.5
    radius = galaxy.disk_radius if disk_like else galaxy.bulge_radius
    q = galaxy.disk_axis_ratio if disk_like else galaxy.bulge_axis_ratio
    return _sheared(galaxy, galsim.Sersic(index, half_light_radius=radius), radius, q)


def _irregular(galaxy: Parameters, rng: np.random.Generator) -> Drawn:
    """A disk with bright knots of a galaxy's size and shape."""
    import galsim

    smooth = rng.uniform(0.3, 0.8)
    disk = galsim.Exponential(half_light_radius=galaxy.disk_radius)
    knots = galsim.RandomKnots(
        int(rng.integers(5, 31)),
        profile=disk,
        rng=galsim.BaseDeviate(int(rng.integers(1, 2**31))),  # 0 would be a random seed.
    )
    profile = galsim.Add(disk.withFlux(smooth), knots.withFlux(1 - smooth))
    return _sheared(galaxy, profile, galaxy.disk_radius, galaxy.disk_axis_ratio)


def _spiral(galaxy: Parameters, rng: np.random.Generator) -> Drawn:
    """A bulge, a disk, and clumps along logarithmic arms, of a galaxy's size and shape."""
    import galsim

    radius = galaxy.disk_radius
    arms, clumps = int(rng.integers(2, 4)), 8
    # Pitch angles of 10° to 40°, as those of spirals are (Kennicutt 1981, AJ 86, 1847).
    winding = rng.choice([-1.0, 1.0]) / math.tan(math.radians(rng.uniform(10, 40)))
    along = np.linspace(0.4, 2.0, clumps)
    parts = []
    for arm in range(arms):
        angle = winding * np.log(along) + 2 * math.pi * arm / arms + rng.normal(0, 0.15, clumps)
        weight = np.exp(-along) * rng.gamma(2.0, 0.5, clumps)
        for distance, phi, flux in zip(along * radius, angle, weight, strict=True):
            clump = galsim.Gaussian(sigma=0.18 * radius, flux=float(flux))
            parts.append(clump.shift(distance * math.cos(phi), distance * math.sin(phi)))
    strength = rng.uniform(0.2, 0.5)
    bulge = galsim.DeVaucouleurs(half_light_radius=0.3 * radius)
    centre = min(galaxy.bulge_fraction, 0.4)
    profile = galsim.Add(
        galsim.Add(parts).withFlux(strength),
        galsim.Exponential(half_light_radius=radius, flux=(1 - strength) * (1 - centre)),
        bulge.withFlux((1 - strength) * centre),
    )
    return _sheared(galaxy, profile, radius, galaxy.disk_axis_ratio)


def _sheared(galaxy: Parameters, profile: "galsim.GSObject", radius: float, q: float) -> Drawn:
    """Give a round profile of unit flux the axis ratio and a galaxy's angle and magnitudes."""
    import galsim

    angle = galaxy.position_angle * galsim.degrees
    ellipticity = (1 - q) / (1 + q)
    return Drawn(
        kind="galaxy",
        magnitude=galaxy.magnitude,
        half_light_radius=radius,
        e1=ellipticity * math.cos(2 * angle.rad),
        e2=ellipticity * math.sin(2 * angle.rad),
        profile=profile.shear(q=q, beta=angle),
    )


class Stars:
    """Point sources with flat-ish counts and a grey mean colour.

    Parameters
    ----------
    survey : Survey
    max_mag, brightest : float
        Faintest and brightest i magnitude.
    """

    def __init__(self, survey: Survey, max_mag: float, brightest: float = BRIGHTEST_MAG) -> None:
        self.survey = survey
        self.max_mag = max_mag
        self.brightest = brightest

    def draw(self, rng: np.random.Generator) -> Drawn:
        """Draw one star."""
        magnitude = draw_magnitude(rng, STAR_COUNT_SLOPE, self.max_mag, self.brightest)
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
