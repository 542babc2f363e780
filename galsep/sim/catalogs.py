"""Galaxies from elsewhere: CatSim catalogues in BTK's columns, and real HST galaxies."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from galsep.errors import CatalogError
from galsep.sim.population import Drawn, Parameters, Population, colors
from galsep.sim.survey import Survey

if TYPE_CHECKING:
    import galsim
    from astropy.table import Table

__all__ = ["CatsimCatalog", "CosmosCatalog", "population_table"]

CATSIM_COLUMNS = (
    "galtileid",
    "ra",
    "dec",
    "redshift",
    "fluxnorm_bulge",
    "fluxnorm_disk",
    "fluxnorm_agn",
    "a_b",
    "a_d",
    "b_b",
    "b_d",
    "pa_bulge",
    "pa_disk",
)
"""Columns that BTK reads beside one ``<band>_ab`` a band; axes in arcsec, angles in degrees."""

_NEEDED = CATSIM_COLUMNS[4:]

FAINTEST = 50.0
"""No galaxy's magnitude."""

STRETCH, LARGEST_SHEAR = 0.15, 0.2
"""Of varied real galaxies: scatter of the logarithm of their size, and reduced shear."""


class CatsimCatalog:
    """Draw galaxies from a CatSim table, each turned by a random angle.

    Parameters
    ----------
    path : Path
        FITS table with the columns of BTK and WeakLensingDeblending.
    survey : Survey
    max_mag : float
        Faintest magnitude in the detection band.

    Raises
    ------
    CatalogError
        When the file is no table, lacks columns or has no usable row.
    """

    def __init__(self, path: Path, survey: Survey, max_mag: float) -> None:
        table = _read_table(path)
        wanted = [f"{band.name.lower()}_ab" for band in survey.bands]
        missing = [name for name in (*_NEEDED, *wanted) if name not in table.colnames]
        if missing:
            raise CatalogError(
                f"{path}: lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}"
            )
        try:
            self._columns = {
                name: np.asarray(table[name], dtype=np.float64) for name in (*_NEEDED, *wanted)
            }
        except (TypeError, ValueError) as error:
            raise CatalogError(f"{path}: a column is not numeric ({error})") from error
        magnitude = self._columns[wanted[survey.detection_band]]
        flux = sum(self._columns[f"fluxnorm_{part}"] for part in ("bulge", "disk", "agn"))
        # Some catalogues have −99 or 99 where a galaxy was not seen.
        known = np.all([_plausible(self._columns[name]) for name in wanted], axis=0)
        sized = np.all([np.isfinite(self._columns[name]) for name in _NEEDED], axis=0)
        self._rows = np.flatnonzero((magnitude <= max_mag) & (flux > 0) & known & sized)
        self._bands = wanted
        if self._rows.size == 0:
            reach = (
                f"{np.nanmin(magnitude):.2f} to {np.nanmax(magnitude):.2f}"
                if magnitude.size
                else "no row at all"
            )
            raise CatalogError(
                f"{path}: no galaxy left at {wanted[survey.detection_band]} <= {max_mag}; "
                f"the catalogue holds {reach}"
            )

    def draw(self, rng: np.random.Generator) -> Drawn:
        """Draw one galaxy."""
        row = int(self._rows[rng.integers(self._rows.size)])
        value = {name: float(column[row]) for name, column in self._columns.items()}
        flux = value["fluxnorm_bulge"] + value["fluxnorm_disk"] + value["fluxnorm_agn"]
        tiny = 1e-3
        return Parameters(
            magnitude=np.array([value[name] for name in self._bands]),
            bulge_fraction=value["fluxnorm_bulge"] / flux,
            point_fraction=value["fluxnorm_agn"] / flux,
            disk_radius=max(tiny, (value["a_d"] * value["b_d"]) ** 0.5),
            bulge_radius=max(tiny, (value["a_b"] * value["b_b"]) ** 0.5),
            disk_axis_ratio=_axis_ratio(value["b_d"], value["a_d"]),
            bulge_axis_ratio=_axis_ratio(value["b_b"], value["a_b"]),
            position_angle=rng.uniform(0.0, 180.0),
        ).drawn()


def _plausible(magnitude: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which magnitudes a galaxy may have."""
    return (magnitude > 0) & (magnitude < FAINTEST)


class CosmosCatalog:
    """Draw real HST/ACS galaxies, each turned by a random angle.

    Parameters
    ----------
    folder : Path
        Folder with a ``galsim.RealGalaxyCatalog`` called ``real_galaxy_catalog.fits``.
    survey : Survey
        Its bands beyond the HST image's take the colours of galsep's own population.
    max_mag : float
        Faintest F814W magnitude.
    varied : bool
        Whether to mirror, stretch and shear them, so that a few serve as many.

    Raises
    ------
    CatalogError
        When the folder holds no such catalogue or no galaxy is left.
    """

    def __init__(
        self, folder: Path, survey: Survey, max_mag: float, *, varied: bool = False
    ) -> None:
        import galsim

        try:
            self._catalog = galsim.RealGalaxyCatalog("real_galaxy_catalog.fits", dir=str(folder))
        except (OSError, galsim.GalSimError, KeyError) as error:
            raise CatalogError(
                f"{folder}: not a folder with a GalSim real_galaxy_catalog.fits ({error})"
            ) from error
        magnitude = np.asarray(self._catalog.mag, dtype=np.float64)
        self._rows = np.flatnonzero(magnitude <= max_mag)
        if self._rows.size == 0:
            raise CatalogError(
                f"{folder}: no galaxy left at F814W <= {max_mag}; the catalogue holds "
                f"{magnitude.min():.2f} to {magnitude.max():.2f}"
            )
        self._magnitude = magnitude
        self._survey = survey
        self._varied = varied
        self._galaxies: dict[int, tuple[galsim.GSObject, float]] = {}

    def draw(self, rng: np.random.Generator) -> Drawn:
        """Draw one galaxy."""
        import galsim

        row = int(self._rows[rng.integers(self._rows.size)])
        if row not in self._galaxies:
            # A fixed seed: the stochastic choice is only the noise that GalSim may pad with.
            galaxy = galsim.RealGalaxy(
                self._catalog, index=row, rng=galsim.BaseDeviate(row + 1), flux=1.0
            )
            self._galaxies[row] = (galaxy, _half_light_radius(galaxy.original_gal))
        galaxy, radius = self._galaxies[row]
        if self._varied:
            galaxy, radius = _changed(galaxy, radius, rng)
        return Drawn(
            kind="galaxy",
            magnitude=self._magnitude[row] + colors(self._survey, rng.normal()),
            half_light_radius=radius,
            e1=float("nan"),
            e2=float("nan"),
            profile=galaxy.rotate(rng.uniform(0.0, 360.0) * galsim.degrees),
        )


def _changed(
    galaxy: "galsim.GSObject", radius: float, rng: np.random.Generator
) -> tuple["galsim.GSObject", float]:
    """A galaxy mirrored, stretched and sheared at random, of the same flux, and its radius."""
    stretch = float(np.exp(np.clip(rng.normal(0, STRETCH), -2 * STRETCH, 2 * STRETCH)))
    if rng.random() < 0.5:
        galaxy = galaxy.transform(-1, 0, 0, 1)
    shear = rng.uniform(0, LARGEST_SHEAR)
    angle = rng.uniform(0, 2 * np.pi)
    sheared = galaxy.shear(g1=shear * np.cos(angle), g2=shear * np.sin(angle))
    return sheared.dilate(stretch), radius * stretch


def population_table(population: Population, n: int, rng: np.random.Generator) -> "Table":
    """Draw galaxies of galsep's own population as a table in BTK's columns.

    Positions are uniform on one square degree and redshifts unset (−1); the ugrizy magnitudes
    stand as ``<band>_ab`` for the population's bands.

    Parameters
    ----------
    population : Population
    n : int
        Number of galaxies.
    rng : Generator

    Returns
    -------
    Table
        One row a galaxy; half-light axes in arcsec, angles and positions in degrees.
    """
    from astropy.table import Table

    rows = [population.parameters(rng) for _ in range(n)]
    magnitude = np.array([row.magnitude for row in rows])
    bulge = np.array([row.bulge_fraction for row in rows])
    # Any common normalisation serves: BTK uses the ratio of the three parts alone.
    norm = 10 ** (-0.4 * (magnitude[:, population.survey.detection_band] + 48.6))
    disk_q = np.array([row.disk_axis_ratio for row in rows])
    bulge_q = np.array([row.bulge_axis_ratio for row in rows])
    disk_r = np.array([row.disk_radius for row in rows]) * (bulge < 1)
    bulge_r = np.array([row.bulge_radius for row in rows]) * (bulge > 0)
    angle = np.array([row.position_angle for row in rows])
    values: dict[str, npt.NDArray[np.generic]] = {
        "galtileid": np.arange(n),
        "ra": rng.uniform(0.0, 1.0, n),
        "dec": rng.uniform(-0.5, 0.5, n),
        "redshift": np.full(n, -1.0),
        "fluxnorm_bulge": norm * bulge,
        "fluxnorm_disk": norm * (1 - bulge),
        "fluxnorm_agn": np.zeros(n),
        "a_b": bulge_r / np.sqrt(bulge_q),
        "a_d": disk_r / np.sqrt(disk_q),
        "b_b": bulge_r * np.sqrt(bulge_q),
        "b_d": disk_r * np.sqrt(disk_q),
        "pa_bulge": angle,
        "pa_disk": angle,
    }
    for index, band in enumerate(population.survey.bands):
        values[f"{band.name.lower()}_ab"] = magnitude[:, index]
    return Table(values)


def _axis_ratio(minor: float, major: float) -> float:
    return float(np.clip(minor / major, 0.05, 1.0)) if major > 0 else 1.0


def _half_light_radius(galaxy: "galsim.GSObject") -> float:
    """Half-light radius of the HST image, arcsec; it includes HST's narrow PSF."""
    return float(galaxy.calculateHLR())


def _read_table(path: Path) -> "Table":
    from astropy.io import fits
    from astropy.table import Table

    try:
        with (
            warnings.catch_warnings(),
            path.open("rb") as file,
            fits.open(file, memmap=False) as hdus,
        ):
            warnings.simplefilter("ignore")  # What is truncated is an error below.
            for hdu in hdus:
                if isinstance(hdu, fits.BinTableHDU):
                    return Table(hdu.data)
    except FileNotFoundError as error:
        raise CatalogError(f"{path}: no such file; check the path") from error
    except (OSError, LookupError, TypeError, ValueError, fits.VerifyError) as error:
        reason = " ".join(str(error).split())
        raise CatalogError(f"{path}: not a readable FITS table ({reason})") from error
    raise CatalogError(f"{path}: holds no FITS table")
