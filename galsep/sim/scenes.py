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
from galsep.sim.population import (
    BRIGHTEST_MAG,
    BRIGHTEST_VARIED_STAR,
    Drawn,
    SourceModel,
    Stars,
)
from galsep.sim.psf import PsfShape, band_psf, seeing_width
from galsep.sim.survey import Survey

if TYPE_CHECKING:
    import galsim

__all__ = ["SceneMaker", "truth_columns"]

CROP_LEVEL = 0.005
"""A source's light is stored where any band exceeds this many sky rms; what lies outside would
change no mask and is part of the source's total flux in the truth table."""

MAX_FFT = 8192
"""Largest Fourier transform, pixels a side: about 1 GB. GalSim asks for several times that where a
galaxy of several arcsec with wide wings meets pixels of a few hundredths."""

WIDE = 40
"""Half-light radius, pixels, from which the size of a source's Fourier transform is looked at."""

MAX_FIELD_STAMP = 768
"""Largest stamp a source of a field is drawn on, pixels."""


@dataclass(frozen=True, slots=True)
class _Observation:
    """What all sources of one scene share."""

    psfs: "list[galsim.GSObject]"
    fwhm: float
    pixel_scale: float


@dataclass(frozen=True, slots=True)
class SceneMaker:
    """Draws blends and fields of one configuration.

    Parameters
    ----------
    config : SimulateConfig
        ``depth`` and a single ``pixel_scale`` are for the caller to give to ``survey``; a range
        of pixel scales is drawn from here, at the survey's noise in a pixel.
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
        scale = self.survey.pixel_scale
        if self.config.pixel_scale:
            # The stamp is smallest on the sky where the pixels are.
            scale, _ = parse_range("pixel_scale", self.config.pixel_scale, float)
        largest = STAMP_SIZE / 2 * scale
        if not self.config.field and self.config.max_shift > largest:
            raise UsageError(
                f"max_shift {self.config.max_shift} arcsec leaves the stamp: at most "
                f"{largest:g} arcsec with pixels of {scale:g} arcsec"
            )

    def blend(self, rng: np.random.Generator) -> Blend:
        """Draw one blend on a 120×120 stamp.

        Offsets from the stamp's centre are uniform in ± ``max_shift`` along both axes.
        """
        observed = self._observe(rng)
        shift = self.config.max_shift / observed.pixel_scale
        low, high = parse_range("galaxies", self.config.galaxies, int)
        sources = []
        shape = (STAMP_SIZE, STAMP_SIZE)
        centre = (STAMP_SIZE - 1) / 2
        for _ in range(int(rng.integers(low, high + 1))):
            x, y = centre + rng.uniform(-shift, shift, 2)
            drawn = self._draw_source(rng)
            sources.append(self._render(drawn, observed, float(x), float(y), shape))
        image = np.zeros((len(self.survey.bands), *shape))
        for source in sources:
            _add(image, source)
        noisy = self._with_noise(image, rng)
        return Blend(noisy, tuple(sources), observed.fwhm, observed.pixel_scale)

    def field(self, rng: np.random.Generator) -> Blend:
        """Draw one wide field of ``config.density`` sources per arcmin².

        Sources come in groups of ``config.galaxies``, each with offsets uniform in
        ± ``max_shift`` about the group's position; positions are uniform over the field.
        """
        shape = field_shape(self.config.field)
        observed = self._observe(rng)
        expected = self.config.density * shape[0] * shape[1] * (observed.pixel_scale / 60) ** 2
        shift = self.config.max_shift / observed.pixel_scale
        image = np.zeros((len(self.survey.bands), *shape))
        sources = []
        for x, y in self._field_positions(rng, shape, expected, shift):
            source = self._render(self._draw_source(rng), observed, x, y, shape)
            _add(image, source)
            sources.append(source)
        noisy = self._with_noise(image, rng)
        return Blend(noisy, tuple(sources), observed.fwhm, observed.pixel_scale)

    def _field_positions(
        self, rng: np.random.Generator, shape: tuple[int, int], expected: float, shift: float
    ) -> Iterator[tuple[float, float]]:
        low, high = parse_range("galaxies", self.config.galaxies, int)
        mean_size = (low + high) / 2
        if mean_size <= 0:
            return
        for _ in range(round(expected / mean_size)):
            centre = rng.uniform(-0.5, [shape[1] - 0.5, shape[0] - 0.5])
            size = int(rng.integers(low, high + 1))
            offsets = np.zeros((1, 2)) if high == 1 else rng.uniform(-shift, shift, (size, 2))
            for dx, dy in offsets[:size]:
                # What would lie beyond an edge lies as far within.
                yield _reflected(centre[0] + dx, shape[1]), _reflected(centre[1] + dy, shape[0])

    def _draw_source(self, rng: np.random.Generator) -> Drawn:
        if self.config.stars and rng.random() < self.config.stars:
            brightest = BRIGHTEST_VARIED_STAR if self.config.varied else BRIGHTEST_MAG
            return Stars(self.survey, self.config.max_mag, brightest).draw(rng)
        return self.galaxies.draw(rng)

    def _observe(self, rng: np.random.Generator) -> "_Observation":
        """Draw what all sources of a scene share."""
        import galsim

        detection = self.survey.bands[self.survey.detection_band]
        seeing, scale = None, self.survey.pixel_scale
        if self.config.seeing:
            seeing = float(rng.uniform(*parse_range("seeing", self.config.seeing, float)))
        if self.config.pixel_scale:
            low, high = parse_range("pixel_scale", self.config.pixel_scale, float)
            if low < high:
                scale = float(rng.uniform(low, high))
        shape = PsfShape.draw(rng) if self.config.varied else None
        psfs = [band_psf(self.survey, band, seeing, shape) for band in self.survey.bands]
        fwhm = seeing or detection.psf_fwhm
        psf = psfs[self.survey.detection_band]
        if not isinstance(psf, galsim.Kolmogorov):
            fwhm = seeing_width(psf, fwhm)
        return _Observation(psfs, fwhm, scale)

    def _render(
        self,
        drawn: Drawn,
        observed: _Observation,
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
            size = self._stamp_size(drawn, flux, observed.pixel_scale)
            left, bottom = round(x) - size // 2, round(y) - size // 2
        light = np.zeros((len(bands), size, size), dtype=np.float32)
        for index, psf in enumerate(observed.psfs):
            profile = _convolved(drawn, psf, observed.pixel_scale)
            stamp = galsim.Image(light[index], xmin=left, ymin=bottom)
            profile.withFlux(flux[index]).drawImage(
                stamp, scale=observed.pixel_scale, center=galsim.PositionD(x, y)
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

    def _stamp_size(self, drawn: Drawn, flux: npt.NDArray[np.float64], pixel_scale: float) -> int:
        """Side of a stamp that holds the light down to the crop level, roughly."""
        contrast = max(
            float(f) / (CROP_LEVEL * band.sky_rms)
            for f, band in zip(flux, self.survey.bands, strict=True)
        )
        # The wings of seeing and of a de Vaucouleurs bulge fall like r^(-11/3) and faster.
        radius = drawn.half_light_radius / pixel_scale
        size = 24 + 6 * radius + 2 * contrast ** (1 / 3)
        return int(min(MAX_FIELD_STAMP, 2 * math.ceil(size / 2)))

    def _with_noise(
        self, image: npt.NDArray[np.float64], rng: np.random.Generator
    ) -> npt.NDArray[np.float32]:
        noisy = np.empty(image.shape, dtype=np.float32)
        for index, band in enumerate(self.survey.bands):
            noisy[index] = rng.poisson(image[index] + band.sky_level) - band.sky_level
        return noisy


def _reflected(place: float, size: int) -> float:
    """A place between the first and the last pixel's centre, as in a mirror at either."""
    last = size - 1
    turn = place % (2 * last) if last else 0.0
    return float(min(turn, 2 * last - turn))


def _convolved(drawn: Drawn, psf: "galsim.GSObject", pixel_scale: float) -> "galsim.GSObject":
    """A source under the PSF; its far wings fold back where the FFT would exceed MAX_FFT."""
    import galsim

    if drawn.profile is None:
        return psf
    if drawn.half_light_radius < WIDE * pixel_scale:
        return galsim.Convolve(drawn.profile, psf)
    for folding in (0.005, 0.01, 0.02, 0.04, 0.08, 0.16):
        # The first are GalSim's defaults, but for a limit of its own: that makes GalSim copy the
        # profile, which else would keep the extent it once worked out.
        loose = galsim.GSParams(
            folding_threshold=folding,
            stepk_minimum_hlr=5.0 if folding == 0.005 else 2.0,
            maximum_fft_size=2 * MAX_FFT,
        )
        profile = galsim.Convolve(drawn.profile, psf, gsparams=loose)
        if 2 * max(profile.maxk, math.pi / pixel_scale) / profile.stepk <= MAX_FFT:
            break
    return profile


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
