"""Draw scenes with GalSim: blends on stamps, and wide fields.

Light is in electrons over the survey's full exposure, background-subtracted. Noise is the Poisson
noise of sky and sources.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from galsep.config import SimulateConfig, field_shape, parse_range
from galsep.conventions import (
    DETECTABLE_MIN_AREA,
    DETECTABLE_SNR,
    MASK_THRESHOLD,
    STAMP_SIZE,
)
from galsep.errors import UsageError
from galsep.scene import Blend, Footprint, Source
from galsep.sim.population import Drawn, SourceModel, Stars
from galsep.sim.survey import Band, Survey

if TYPE_CHECKING:
    import galsim

__all__ = ["SceneMaker", "truth_columns"]

CROP_LEVEL = 0.005
"""A source's light is stored where any band exceeds this many sky rms; what lies outside would
change no mask and is part of the source's total flux in the truth table."""

MAX_FIELD_STAMP = 768
"""Largest stamp a source of a field is drawn on, pixels."""


@dataclass(frozen=True, slots=True)
class SceneMaker:
    """Draws blends and fields of one configuration.

    Parameters
    ----------
    config : SimulateConfig
    survey : Survey
    galaxies : SourceModel
        Where galaxies come from.

    Raises
    ------
    UsageError
        When ``max_shift`` leaves the stamp.
    """

    config: SimulateConfig
    survey: Survey
    galaxies: SourceModel

    def __post_init__(self) -> None:
        largest = STAMP_SIZE / 2 * self.survey.pixel_scale
        if not self.config.field and self.config.max_shift > largest:
            raise UsageError(
                f"max_shift {self.config.max_shift} arcsec leaves the stamp: at most "
                f"{largest:g} arcsec for {self.survey.name}"
            )

    def blend(self, rng: np.random.Generator) -> Blend:
        """Draw one blend on a 120×120 stamp.

        Offsets from the stamp's centre are uniform in ± ``max_shift`` along both axes.
        """
        shift = self.config.max_shift / self.survey.pixel_scale
        seeing = self._draw_seeing(rng)
        psfs = [self._psf(band, seeing) for band in self.survey.bands]
        low, high = parse_range("galaxies", self.config.galaxies, int)
        sources = []
        shape = (STAMP_SIZE, STAMP_SIZE)
        centre = (STAMP_SIZE - 1) / 2
        for _ in range(int(rng.integers(low, high + 1))):
            x, y = centre + rng.uniform(-shift, shift, 2)
            drawn = self._draw_source(rng)
            sources.append(self._render(drawn, psfs, float(x), float(y), shape))
        image = np.zeros((len(self.survey.bands), *shape))
        for source in sources:
            _add(image, source)
        return Blend(self._with_noise(image, rng), tuple(sources), self._fwhm(seeing))

    def field(self, rng: np.random.Generator) -> Blend:
        """Draw one wide field of ``config.density`` sources per arcmin².

        Sources come in groups of ``config.galaxies``, each with offsets uniform in
        ± ``max_shift`` about the group's position; positions are uniform over the field.
        """
        shape = field_shape(self.config.field)
        seeing = self._draw_seeing(rng)
        psfs = [self._psf(band, seeing) for band in self.survey.bands]
        area = shape[0] * shape[1] * (self.survey.pixel_scale / 60) ** 2
        image = np.zeros((len(self.survey.bands), *shape))
        sources = []
        for x, y in self._field_positions(rng, shape, self.config.density * area):
            source = self._render(self._draw_source(rng), psfs, x, y, shape)
            _add(image, source)
            sources.append(source)
        return Blend(self._with_noise(image, rng), tuple(sources), self._fwhm(seeing))

    def _field_positions(
        self, rng: np.random.Generator, shape: tuple[int, int], expected: float
    ) -> Iterator[tuple[float, float]]:
        low, high = parse_range("galaxies", self.config.galaxies, int)
        mean_size = (low + high) / 2
        if mean_size <= 0:
            return
        shift = self.config.max_shift / self.survey.pixel_scale
        for _ in range(round(expected / mean_size)):
            centre = rng.uniform(-0.5, [shape[1] - 0.5, shape[0] - 0.5])
            size = int(rng.integers(low, high + 1))
            offsets = np.zeros((1, 2)) if high == 1 else rng.uniform(-shift, shift, (size, 2))
            for dx, dy in offsets[:size]:
                x = float(np.clip(centre[0] + dx, 0, shape[1] - 1))
                y = float(np.clip(centre[1] + dy, 0, shape[0] - 1))
                yield x, y

    def _draw_source(self, rng: np.random.Generator) -> Drawn:
        if self.config.stars and rng.random() < self.config.stars:
            return Stars(self.survey, self.config.max_mag).draw(rng)
        return self.galaxies.draw(rng)

    def _draw_seeing(self, rng: np.random.Generator) -> float | None:
        """PSF FWHM of the detection band if it varies, else ``None``: the survey's own."""
        if not self.config.seeing:
            return None
        low, high = parse_range("seeing", self.config.seeing, float)
        return float(rng.uniform(low, high))

    def _fwhm(self, seeing: float | None) -> float:
        return seeing or self.survey.bands[self.survey.detection_band].psf_fwhm

    def _psf(self, band: Band, seeing: float | None) -> "galsim.GSObject":
        """Kolmogorov seeing on the ground; in space an Airy pattern with jitter."""
        import galsim

        fwhm = band.psf_fwhm
        if seeing is not None:
            fwhm *= seeing / self.survey.bands[self.survey.detection_band].psf_fwhm
        diffraction = math.degrees(1.03 * band.wavelength * 1e-9 / self.survey.mirror_diameter)
        diffraction *= 3600
        if diffraction < 0.3 * fwhm:
            return galsim.Kolmogorov(fwhm=fwhm)
        airy = galsim.Airy(
            lam=band.wavelength,
            diam=self.survey.mirror_diameter,
            obscuration=self.survey.obscuration,
            scale_unit=galsim.arcsec,
        )
        if fwhm <= 1.05 * diffraction:
            return airy
        return galsim.Convolve(airy, galsim.Gaussian(fwhm=math.sqrt(fwhm**2 - diffraction**2)))

    def _render(
        self,
        drawn: Drawn,
        psfs: "list[galsim.GSObject]",
        x: float,
        y: float,
        shape: tuple[int, int],
    ) -> Source:
        """Draw a source's noiseless light in all bands and crop it."""
        import galsim

        bands = self.survey.bands
        flux = np.array(
            [
                10 ** (-0.4 * (magnitude - band.zeropoint))
                for magnitude, band in zip(drawn.magnitude, bands, strict=True)
            ]
        )
        if shape == (STAMP_SIZE, STAMP_SIZE):
            size, left, bottom = STAMP_SIZE, 0, 0
        else:
            size = self._stamp_size(drawn, flux)
            left, bottom = round(x) - size // 2, round(y) - size // 2
        light = np.zeros((len(bands), size, size), dtype=np.float32)
        for index, psf in enumerate(psfs):
            profile = psf if drawn.profile is None else galsim.Convolve(drawn.profile, psf)
            stamp = galsim.Image(light[index], xmin=left, ymin=bottom)
            profile.withFlux(flux[index]).drawImage(
                stamp, scale=self.survey.pixel_scale, center=galsim.PositionD(x, y)
            )
        np.maximum(light, 0, out=light)
        rms = np.array([band.sky_rms for band in bands], dtype=np.float32)
        lit = np.asarray((light > CROP_LEVEL * rms[:, None, None]).any(axis=0))
        crop = Footprint.from_mask(lit, bottom, left).clipped(shape)
        if crop.area == 0:
            # Too faint to store: keep the one pixel it sits on.
            crop = Footprint(
                int(np.clip(round(y), 0, shape[0] - 1)),
                int(np.clip(round(x), 0, shape[1] - 1)),
                np.ones((1, 1), dtype=bool),
            )
        height, width = crop.mask.shape
        dy, dx = crop.y0 - bottom, crop.x0 - left
        return Source(
            kind=drawn.kind,
            x=x,
            y=y,
            magnitude=np.asarray(drawn.magnitude, dtype=np.float64),
            flux=flux,
            half_light_radius=drawn.half_light_radius,
            e1=drawn.e1,
            e2=drawn.e2,
            light=np.ascontiguousarray(light[:, dy : dy + height, dx : dx + width]),
            y0=crop.y0,
            x0=crop.x0,
        )

    def _stamp_size(self, drawn: Drawn, flux: npt.NDArray[np.float64]) -> int:
        """Side of a stamp that holds the light down to the crop level, roughly."""
        contrast = max(
            float(f) / (CROP_LEVEL * band.sky_rms)
            for f, band in zip(flux, self.survey.bands, strict=True)
        )
        # The wings of seeing and of a de Vaucouleurs bulge fall like r^(-11/3) and faster.
        radius = drawn.half_light_radius / self.survey.pixel_scale
        size = 24 + 6 * radius + 2 * contrast ** (1 / 3)
        return int(min(MAX_FIELD_STAMP, 2 * math.ceil(size / 2)))

    def _with_noise(
        self, image: npt.NDArray[np.float64], rng: np.random.Generator
    ) -> npt.NDArray[np.float32]:
        noisy = np.empty(image.shape, dtype=np.float32)
        for index, band in enumerate(self.survey.bands):
            noisy[index] = rng.poisson(image[index] + band.sky_level) - band.sky_level
        return noisy


def truth_columns(blend: Blend, sky_rms: float, band: int) -> dict[str, npt.NDArray[np.generic]]:
    """Signal-to-noise, purity, mask area and detectability of each source of a blend.

    ``snr`` = √Σ(light/σ)² of the isolated light; ``purity`` = Σ light² / Σ(light · all light),
    1 for a source without neighbours; ``detectable`` = snr ≥ 7 and a mask of at least 5 px. All
    follow from the noiseless truth.

    Parameters
    ----------
    blend : Blend
    sky_rms : float
        Noise of the empty sky in the detection band, electrons.
    band : int
        Index of the detection band.
    """
    total = np.zeros((1, *blend.image.shape[1:]))
    for source in blend.sources:
        _add(total, source, band)
    n = len(blend.sources)
    snr, purity = np.zeros(n), np.ones(n)
    area = np.zeros(n, dtype=np.int32)
    for index, source in enumerate(blend.sources):
        light = source.light[band].astype(np.float64)
        height, width = light.shape
        around = total[0, source.y0 : source.y0 + height, source.x0 : source.x0 + width]
        power = float((light**2).sum())
        snr[index] = math.sqrt(power) / sky_rms
        weighted = float((light * around).sum())
        purity[index] = power / weighted if weighted > 0 else 1.0
        area[index] = np.count_nonzero(light > MASK_THRESHOLD * sky_rms)
    detectable = (snr >= DETECTABLE_SNR) & (area >= DETECTABLE_MIN_AREA)
    return {"snr": snr, "purity": purity, "area": area, "detectable": detectable}


def _add(image: npt.NDArray[np.float64], source: Source, band: int | None = None) -> None:
    """Add a source's light to an image of all bands, or of the one given."""
    height, width = source.light.shape[1:]
    rows, columns = slice(source.y0, source.y0 + height), slice(source.x0, source.x0 + width)
    light = source.light if band is None else source.light[band : band + 1]
    image[:, rows, columns] += light
