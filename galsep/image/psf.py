"""Width of the PSF, measured on an image's own compact objects, and what to do about it.

A network knows the blur of the images it was trained on. An image with a wider PSF is averaged
over blocks of pixels until the PSF is as wide as that, in pixels; one with a narrower PSF cannot
be helped and is outside the network's domain.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from galsep.conventions import FWHM_PER_SIGMA, PIXEL_VARIANCE, TINY
from galsep.image.detect import Blobs
from galsep.planes import Planes

__all__ = [
    "Domain",
    "Psf",
    "choose_domain",
    "estimate_psf",
    "flat_top",
    "pixel_sigma",
]

MIN_OBJECTS = 10
"""Fewer usable objects than this say too little about the PSF: among the 5 to 9 of a crowded
120×120 stamp there may be no compact one."""

GOOD_SNR = 50.0
"""Objects this significant are measured,"""

FAIR_SNR = 20.0
"""... and fainter ones down to this where the others are few."""

ENOUGH_OBJECTS = 30
"""So many are not few."""

MAX_OBJECTS = 1000
"""Of more, a regular sample is measured."""

FEW_OBJECTS = 64
"""Objects all over an image whose surroundings are looked at before they are let go."""

RADIUS = 25
"""Half-width of the window about an object, pixels."""

MAX_SIGMA = RADIUS / 2
MIN_SIGMA = 0.2
"""Objects that look wider or narrower, pixels, are not measured well."""

MAX_SPAN = 8 * RADIUS
"""Blobs longer than this, pixels, are no compact objects."""

START_SIGMA = 2.0
ITERATIONS = 15

LOCUS_WIDTH = 1.12
"""Point sources differ in measured size by no more than about this factor."""

LOCUS_SHARE = 0.5
"""The compact end is the first interval of sizes with this share of the fullest one's objects: a
few cosmic rays before it do not count, and more galaxies behind it do not hide it."""

BEYOND_LOCUS = 1.2
"""Point sources are known by their number among objects up to this much larger:"""

LOCUS_CONTRAST = 3
"""... so many times as dense, at least,"""

LOCUS_CHANCE = 1e-3
"""... and hardly by chance: galaxies, where there are no stars, are spread evenly."""

FLAT_TOP = 3
"""Saturated is an object with so many times more pixels near its peak (and that many to spare)
than its size lets expect,"""

NEAR_PEAK = 0.97
"""... which is from this share of its brightest pixel on."""


@dataclass(frozen=True, slots=True)
class Psf:
    """What is known of an image's PSF.

    Parameters
    ----------
    fwhm : float
        Pixels, without the pixels' own width: that of the seeing disc (Kolmogorov) with the same
        best Gaussian. Of a Moffat profile with strong wings (β = 2.5) it is a tenth more than the
        profile's own.
    points : bool
        Whether that is the width of point sources; without stars it is that of the most compact
        galaxies.
    """

    fwhm: float
    points: bool = True


@dataclass(frozen=True, slots=True)
class Domain:
    """How an image's PSF compares with those that a network was trained on.

    Parameters
    ----------
    psf : Psf or None
        In pixels of the image; ``None`` where it is not known.
    limits : (float, float) or None
        Smallest and largest FWHM of the training, pixels; ``None`` for no limits.
    binning : int
        Side of the blocks of pixels to average for the network, 1 for none.
    inside : bool
        Whether the (averaged) image is one that the network was trained for.
    """

    psf: Psf | None = None
    limits: tuple[float, float] | None = None
    binning: int = 1
    inside: bool = True

    @property
    def fwhm(self) -> float | None:
        """FWHM of the PSF, pixels; ``None`` where it is not known."""
        return None if self.psf is None else self.psf.fwhm

    @property
    def point_fwhm(self) -> float | None:
        """The same, if it is known to be that of point sources."""
        return self.psf.fwhm if self.psf is not None and self.psf.points else None


def choose_domain(psf: Psf | None, limits: tuple[float, float] | None) -> Domain:
    """Find the smallest blocks of pixels that bring a PSF within a network's limits.

    Parameters
    ----------
    psf : Psf or None
        An unknown one is taken to be within the limits.
    limits : (float, float) or None
        Smallest and largest FWHM, pixels.
    """
    if psf is None or limits is None:
        return Domain(psf, limits)
    low, high = limits
    binning = max(1, math.ceil(psf.fwhm / high))
    if psf.fwhm / binning < low:
        return Domain(psf, limits, inside=False)
    return Domain(psf, limits, binning)


def pixel_sigma(fwhm: float) -> float:
    """σ of the Gaussian that fits a point source's pixels best, for a PSF of this FWHM."""
    return math.sqrt((fwhm / FWHM_PER_SIGMA) ** 2 + PIXEL_VARIANCE)


def flat_top(light: npt.NDArray[np.floating[Any]], sigma: float) -> bool:
    """Whether an object of this width has a plateau in place of a peak."""
    return bool(np.count_nonzero(light >= NEAR_PEAK * light.max()) > _most_near_peak(sigma))


def estimate_psf(
    light: npt.NDArray[np.float32],
    mask: npt.NDArray[np.bool_],
    blobs: Blobs,
    planes: Planes | None = None,
) -> Psf | None:
    """Estimate the FWHM of the PSF from the compact end of the objects' sizes.

    Sizes are those of the round Gaussian that fits best (adaptive moments, Bernstein & Jarvis
    2002, AJ 123, 583) about each blob's brightest pixel. Without stars the most compact galaxies
    set the value, which then is too large by some ten per cent.

    Parameters
    ----------
    light : (h, w) float32 array
        Background-subtracted image.
    mask : (h, w) bool array
        True where a pixel is unusable.
    blobs : Blobs
    planes : Planes, optional
        Where the arrays are.

    Returns
    -------
    Psf or None
        ``None`` with fewer than 10 usable objects, as in an image whose PSF is wider than 28
        pixels.
    """
    planes = planes or Planes()
    objects = _compact_objects(light, mask, blobs, planes)
    if len(objects) < MIN_OBJECTS:
        return None
    windows = _windows(light, objects, planes)
    sigma = _adaptive_sigma(windows)
    good = (sigma > MIN_SIGMA) & (sigma < 0.99 * MAX_SIGMA) & ~_flat_topped(windows, sigma)
    if np.count_nonzero(good) < MIN_OBJECTS:
        return None
    core = _shortest_half(_compact_end(sigma[good]))
    variance = float(np.median(core)) ** 2 - PIXEL_VARIANCE
    fwhm = FWHM_PER_SIGMA * math.sqrt(max(variance, MIN_SIGMA**2))
    return Psf(fwhm, _stands_out(core, sigma[good]))


def _compact_objects(
    light: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_], blobs: Blobs, planes: Planes
) -> npt.NDArray[np.int64]:
    """Brightest pixels ``y, x`` of significant blobs clear of the edge and of unusable pixels."""
    height, width = light.shape
    xmin, ymin, xmax, ymax = blobs.bounds.T
    clear = (xmin > 0) & (ymin > 0) & (xmax < width - 1) & (ymax < height - 1)
    clear &= np.maximum(xmax - xmin, ymax - ymin) < MAX_SPAN
    chosen = np.flatnonzero(clear & (blobs.snr > GOOD_SNR))
    if len(chosen) < ENOUGH_OBJECTS:
        chosen = np.flatnonzero(clear & (blobs.snr > FAIR_SNR))
    if len(chosen) < MIN_OBJECTS:
        return np.zeros((0, 2), dtype=np.int64)
    any_masked = bool(mask.any())
    peaks = []
    for blob in chosen[:: math.ceil(len(chosen) / MAX_OBJECTS)].tolist():
        x0, y0, x1, y1 = blobs.bounds[blob].tolist()
        if any_masked and mask[y0 - 1 : y1 + 2, x0 - 1 : x1 + 2].any():
            continue
        box = slice(y0, y1 + 1), slice(x0, x1 + 1)
        brightest = np.where(blobs.segm[box] == blob + 1, light[box], -np.inf).argmax()
        row, column = divmod(int(brightest), x1 - x0 + 1)
        peaks.append((y0 + row, x0 + column))
        if len(peaks) % FEW_OBJECTS == 0:
            planes.release()
    return np.array(peaks, dtype=np.int64).reshape(-1, 2)


def _windows(
    light: npt.NDArray[np.float32], centres: npt.NDArray[np.int64], planes: Planes
) -> npt.NDArray[np.float32]:
    """Square windows about pixels; what lies outside the image is 0."""
    size = 2 * RADIUS + 1
    windows = np.zeros((len(centres), size, size), dtype=np.float32)
    for number, (window, (y, x)) in enumerate(zip(windows, centres.tolist(), strict=True)):
        top, left = max(0, y - RADIUS), max(0, x - RADIUS)
        piece = light[top : y + RADIUS + 1, left : x + RADIUS + 1]
        row, column = top - y + RADIUS, left - x + RADIUS
        window[row : row + piece.shape[0], column : column + piece.shape[1]] = piece
        if number % FEW_OBJECTS == 0:
            planes.release()
    return windows


def _adaptive_sigma(windows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Width of the round Gaussian that fits each window's central object best, pixels.

    The weight is as wide as the object: the moments under it are then half the object's own.
    """
    offsets = np.arange(-RADIUS, RADIUS + 1, dtype=np.float32)
    n = len(windows)
    x, y = np.zeros(n), np.zeros(n)
    variance = np.full(n, START_SIGMA**2)
    for _ in range(ITERATIONS):
        dx = (offsets - x[:, None]).astype(np.float32)
        dy = (offsets - y[:, None]).astype(np.float32)
        scale = (-0.5 / variance[:, None]).astype(np.float32)
        across, down = np.exp(scale * dx**2), np.exp(scale * dy**2)
        # Moments 0, 1, 2 along x of every row, then along y.
        powers = np.stack([across, across * dx, across * dx**2], axis=2)
        rows = np.matmul(windows, powers).astype(np.float64)
        flux = np.maximum((rows[:, :, 0] * down).sum(axis=1), TINY)
        mean_x = (rows[:, :, 1] * down).sum(axis=1) / flux
        mean_y = (rows[:, :, 0] * down * dy).sum(axis=1) / flux
        square = (rows[:, :, 2] * down).sum(axis=1) + (rows[:, :, 0] * down * dy**2).sum(axis=1)
        variance = np.clip(square / flux - mean_x**2 - mean_y**2, MIN_SIGMA**2, MAX_SIGMA**2)
        x = np.clip(x + mean_x, -RADIUS / 4, RADIUS / 4)
        y = np.clip(y + mean_y, -RADIUS / 4, RADIUS / 4)
    return np.asarray(np.sqrt(variance))


def _flat_topped(
    windows: npt.NDArray[np.float32], sigma: npt.NDArray[np.float64]
) -> npt.NDArray[np.bool_]:
    """Whether an object has a plateau in place of a peak."""
    offsets = np.arange(-RADIUS, RADIUS + 1)
    inside = np.hypot(offsets[:, None], offsets) <= 2 * sigma[:, None, None]
    peak = windows[:, RADIUS, RADIUS, None, None]
    count = np.count_nonzero((windows >= NEAR_PEAK * peak) & inside, axis=(1, 2))
    return np.asarray(count > _most_near_peak(sigma))


def _most_near_peak(sigma: Any) -> Any:
    """Pixels near the peak of an object of this width, at most, if it is not saturated."""
    return FLAT_TOP * (1 - 2 * math.pi * math.log(NEAR_PEAK) * sigma**2)


def _compact_end(sizes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The first well populated interval of sizes, sorted."""
    sizes = np.sort(sizes)
    last = np.searchsorted(sizes, LOCUS_WIDTH * sizes, side="right")
    counts = last - np.arange(len(sizes))
    first = int(np.flatnonzero(counts >= LOCUS_SHARE * counts.max())[0])
    return sizes[first : last[first]]


def _stands_out(core: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64]) -> bool:
    """Whether sorted sizes are much denser than those just beyond, and not by Poisson's chance."""
    low, high = float(core[0]), float(core[-1])
    beyond = int(np.count_nonzero((sizes > high) & (sizes <= BEYOND_LOCUS * high)))
    expected = (beyond + 1) * math.log(high / low) / math.log(BEYOND_LOCUS)
    if len(core) - 1 < LOCUS_CONTRAST * expected:
        return False
    term = fewer = math.exp(-expected)
    for k in range(1, len(core)):
        term *= expected / k
        fewer += term
    return 1 - fewer < LOCUS_CHANCE


def _shortest_half(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The half of sorted values that lies in the narrowest interval, in relation to them."""
    half = len(values) // 2
    first = int((values[half:] / values[: len(values) - half]).argmin())
    return values[first : first + half + 1]
