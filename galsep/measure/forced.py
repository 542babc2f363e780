"""Forced photometry: fluxes in further bands of sources whose profiles are known from one image.

Each band's light about a source is fitted with the models of all sources there, at once, each
times a number. So what is wrong with a profile is wrong in all bands, and a colour is right all the
same; a band in which a source is faint, or not there, has the others' profiles. Of a source's flux,
a band has as much as that number is beside the one that the models' own image gives.

Bands have other PSFs. Of two that differ, the model or, where it is the wider one, the band's light
is smoothed until both are alike; by how much is found from the brighter sources of the image.
"""

import functools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from galsep.measure.photometry import Photometry, pixel_variance
from galsep.planes import Planes, crop_bounds
from galsep.scene import SourceLight

__all__ = ["LEAST_SEEN", "Pixels", "blurred", "forced_fluxes"]

Values = npt.NDArray[np.float64]

BRIGHT = 5.0
"""Light, in rms of the sky, from which pixels weigh less than the sky's noise would have them: the
brighter, the more a sum over the whole source counts, and the less its core alone."""

LEAST_LIGHT = 1e-3
"""A neighbour of which less than this share is in a source's window is left out of its fit."""

ALIKE = 1.0
"""How much neighbours' numbers differ (1 sigma, in shares of their mean) if nothing tells them
apart."""

BRIGHTEST, LEAST_SNR = 300, 10.0
"""So many sources at most, of this S/N at least, tell how much wider a band's PSF is."""

USUAL_BLUR = 0.3
"""By how much PSFs differ (1 sigma) if nothing tells, in px², half the difference of variances."""

OWN_BLUR = 0.1
"""By how much profiles of single sources seem to (1 sigma)."""

MOST_BLUR = 4.0
STEP = 0.2
"""Largest blur, and largest in one step of the smoothing, px²."""

ROUNDS, CLOSE = 3, 0.02
"""Times, at most, that the blur is found anew at the one found before, and how close is enough."""

HIDDEN = 0.02
"""Smoothed pixels of which more than this share has no data are left out."""

LEAST_SEEN = 0.05
"""A band of which less than this share of a source's light, squared, has data tells nothing."""

FEW_SOURCES = 256
"""Large images are let go of after so many."""

CELL = 128
KEPT = 2048
"""Side of the cells that sources are looked up by, pixels; models that are kept in memory."""


class Pixels(Protocol):
    """What is looked at of an image; see :class:`galsep.image.light.Light`."""

    @property
    def light(self) -> npt.NDArray[np.float32]:
        """Image minus background, 0 where unusable."""

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """Unusable pixels."""

    @property
    def rms(self) -> npt.NDArray[np.float32]:
        """Noise of the sky."""

    @property
    def noise(self) -> npt.NDArray[np.float32] | None:
        """Noise of each pixel, where it is known."""

    @property
    def gain(self) -> float:
        """Electrons per unit; 0 when unknown."""


def forced_fluxes(
    parts: Sequence[SourceLight],
    photometry: Photometry,
    own: Pixels,
    bands: Mapping[str, Pixels],
    planes: Planes | None = None,
) -> dict[str, tuple[Values, Values]]:
    """Measure sources in further bands by their models in one image.

    Parameters
    ----------
    parts : sequence of SourceLight
        Each source's light in that image.
    photometry : Photometry
        Of that image.
    own : Pixels
        That image.
    bands : mapping of str to Pixels
        Images of the same ``h`` × ``w`` pixels.
    planes : Planes, optional
        Where the images are.

    Returns
    -------
    dict of str to ((n,) float array, (n,) float array)
        Flux and its error in each band's unit, NaN where the band, or the image, tells nothing.
    """
    models = _Models(parts, planes or Planes())
    bright = _bright(photometry)
    number, variance = _amplitudes(models, own, own, _blur(models, bright, own, own))
    # Of what is known of a source, the part that is not about its own noise is common to all bands.
    number = np.where(number > 0, number, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        common = (photometry.flux_err / photometry.flux) ** 2 - variance / number**2
    fluxes = {}
    for name, band in bands.items():
        found, error2 = _amplitudes(models, own, band, _blur(models, bright, own, band))
        growth = photometry.flux / number
        flux = growth * found
        with np.errstate(invalid="ignore"):
            total = growth**2 * error2 + flux**2 * np.maximum(common, 0)
            fluxes[name] = flux, np.sqrt(total)
    return fluxes


def blurred(pixels: Values, blur: float) -> Values:
    """Smooth pictures by a kernel of variance ``2 · blur`` along both axes; 0 lies beyond them.

    Parameters
    ----------
    pixels : (..., h, w) float array
    blur : float
        Not negative, px².
    """
    steps = _steps(blur)
    for _ in range(steps):
        for axis in (-2, -1):
            pixels = pixels + (blur / steps) * _second_difference(pixels, axis)
    return pixels


def _steps(blur: float) -> int:
    """Steps that smoothing takes; each reaches a pixel far."""
    return math.ceil(abs(blur) / STEP)


def _second_difference(pixels: Values, axis: int) -> Values:
    change = -2.0 * pixels
    along, values = (np.moveaxis(one, axis, 0) for one in (change, pixels))
    along[1:] += values[:-1]
    along[:-1] += values[1:]
    return change


class _Models:
    """Models of sources, and which of them meet."""

    def __init__(self, parts: Sequence[SourceLight], planes: Planes) -> None:
        self._count, self._planes = len(parts), planes
        self.bounds = crop_bounds(parts)
        self._cells: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for k, cells in enumerate(map(_cells_of, self.bounds.tolist())):
            for cell in cells:
                self._cells[cell].append(k)
        # Not their shares, of which nothing is needed.
        self.one = functools.lru_cache(KEPT)(lambda k: parts[k].model)

    def __len__(self) -> int:
        return self._count

    def window(self, k: int) -> tuple[slice, slice]:
        """Where in the image the crop of a source lies."""
        if k % FEW_SOURCES == 0:
            # What was looked at of large images need not stay in memory.
            self._planes.release()
        x0, y0, x1, y1 = self.bounds[k].tolist()
        return slice(y0, y1 + 1), slice(x0, x1 + 1)

    def about(self, k: int) -> Values:
        """Models on the crop of a source: its own, then those of its neighbours there."""
        x0, y0, x1, y1 = self.bounds[k].tolist()
        layers = [self.one(k).astype(np.float64)]
        near = {j for cell in _cells_of([x0, y0, x1, y1]) for j in self._cells[cell]}
        for j in sorted(near - {k}):
            left, top, right, bottom = self.bounds[j].tolist()
            if left > x1 or right < x0 or top > y1 or bottom < y0:
                continue
            model = self.one(j)
            rows = slice(max(y0, top), min(y1, bottom) + 1)
            columns = slice(max(x0, left), min(x1, right) + 1)
            part = model[
                rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
            ]
            if part.sum() > LEAST_LIGHT * model.sum():
                layer = np.zeros_like(layers[0])
                layer[rows.start - y0 : rows.stop - y0, columns.start - x0 : columns.stop - x0] = (
                    part
                )
                layers.append(layer)
        return np.stack(layers)


def _cells_of(bounds: Sequence[int]) -> list[tuple[int, int]]:
    x0, y0, x1, y1 = (edge // CELL for edge in bounds)
    return [(y, x) for y in range(y0, y1 + 1) for x in range(x0, x1 + 1)]


@dataclass(frozen=True, slots=True)
class _Window:
    """What is fitted about one source.

    Parameters
    ----------
    models : (m, p) float array
        Smoothed as the band's light is; the source's own first.
    light, weight : (p,) float arrays
        The band's light, and what each pixel counts.
    seen : float
        How much of what its pixels tell of the source has data.
    """

    models: Values
    light: Values
    weight: Values
    seen: float

    def fit(self) -> tuple[Values, Values]:
        """By what to multiply the models, and how the first depends on the pixels.

        Raises
        ------
        numpy.linalg.LinAlgError
            When the pixels say nothing of the first.
        """
        information = _products(self.models, self.models, self.weight)
        total = self.models.sum(axis=0)[None]
        known = float(_products(total, total, self.weight)[0, 0])
        if not (known > 0 and information[0, 0] > 0 and self.seen >= LEAST_SEEN):
            raise np.linalg.LinAlgError("too little of the source has data")
        mean = float(_products(total, self.light[None], self.weight)[0, 0]) / known
        # Neighbours that nothing tells apart have the same.
        scatter = ALIKE * max(mean, known**-0.5)
        information[np.diag_indices(len(information))] += scatter**-2
        rest = (self.light - mean * total[0])[None]
        change = np.linalg.solve(information, _products(self.models, rest, self.weight)[:, 0])
        first = np.linalg.solve(information, np.eye(len(information))[0])
        return np.asarray(mean + change), self.sum(first) * self.weight

    def sum(self, numbers: Values) -> Values:
        """All models together, each times a number, ``(p,)``."""
        total: Values = np.einsum("i,ip->p", numbers, self.models)
        return total


def _products(some: Values, others: Values, weight: Values) -> Values:
    """Weighted sums of the products of pictures, in one order, however many threads there are."""
    products: Values = np.einsum("ip,jp->ij", some * weight, others)
    return products


def _seen(
    models: Values, box: tuple[slice, slice], own: Pixels, band: Pixels, blur: float
) -> _Window:
    """What is fitted of a band on a source's crop, models and light brought to one PSF."""
    sky = float(np.median(own.rms[box]))
    variance = band.rms[box].astype(np.float64) ** 2 * (1 + models.sum(0) / (BRIGHT * sky))
    light, usable = band.light[box].astype(np.float64), ~band.mask[box]
    if blur > 0:
        models = blurred(models, blur)
        usable = usable & _whole(own.mask, box, blur)
    elif blur < 0:
        light = _smoothed(band.light, box, -blur, beyond=0.0)
        usable = _whole(band.mask, box, -blur)
    told = models[0] ** 2 / variance
    seen = float((told * usable).sum()) / max(float(told.sum()), np.finfo(np.float64).tiny)
    weight = usable / variance
    return _Window(models.reshape(len(models), -1), light.ravel(), weight.ravel(), seen)


def _smoothed(
    plane: npt.NDArray[Any], box: tuple[slice, slice], blur: float, beyond: float
) -> Values:
    """A part of a plane, smoothed as the whole is, with a value beyond the image's edges."""
    reach = _steps(blur)
    rows, columns = _grown(box, reach)
    there = plane[rows, columns]
    top, left = rows.start - box[0].start + reach, columns.start - box[1].start + reach
    shape = tuple(part.stop - part.start + 2 * reach for part in box)
    wide = np.full(shape, beyond)
    wide[top : top + there.shape[0], left : left + there.shape[1]] = there
    return blurred(wide, blur)[reach : shape[0] - reach, reach : shape[1] - reach]


def _grown(box: tuple[slice, slice], reach: int) -> tuple[slice, slice]:
    """A part of an image with so many pixels more on all sides, as far as it goes."""
    rows, columns = (slice(max(part.start - reach, 0), part.stop + reach) for part in box)
    return rows, columns


def _whole(
    mask: npt.NDArray[np.bool_], box: tuple[slice, slice], blur: float
) -> npt.NDArray[np.bool_]:
    """Pixels that are smoothed from such as have data."""
    reach = _steps(blur)
    if not mask[_grown(box, reach)].any() and all(
        part.start >= reach and part.stop + reach <= size
        for part, size in zip(box, mask.shape, strict=True)
    ):
        return np.ones(tuple(part.stop - part.start for part in box), dtype=bool)
    return _smoothed(mask, box, blur, beyond=1.0) < HIDDEN


def _fitted(
    models: Values, box: tuple[slice, slice], own: Pixels, band: Pixels, blur: float
) -> tuple[_Window, Values, Values] | None:
    """What is fitted about a source and what :meth:`_Window.fit` gives, if the pixels tell it."""
    window = _seen(models, box, own, band, blur)
    try:
        return window, *window.fit()
    except np.linalg.LinAlgError:
        return None


def _amplitudes(models: _Models, own: Pixels, band: Pixels, blur: float) -> tuple[Values, Values]:
    """By what to multiply each source's model in a band, and the variance of that number."""
    numbers, variances = np.full((2, len(models)), np.nan)
    for k in range(len(models)):
        box = models.window(k)
        layers = models.about(k)
        fitted = _fitted(layers, box, own, band, blur)
        if fitted is None and blur:
            # Of what ends at the image's edge, there may be no data but as they are.
            fitted = _fitted(layers, box, own, band, 0.0)
        if fitted is None:
            continue
        window, found, gradient = fitted
        noise = None if band.noise is None else band.noise[box].ravel()
        variance = pixel_variance(window.sum(found), band.rms[box].ravel(), band.gain, noise)
        numbers[k], variances[k] = found[0], float((gradient**2 * variance).sum())
    return numbers, variances


def _bright(photometry: Photometry) -> list[int]:
    """Sources, from all parts of the image, that tell how wide a band's PSF is."""
    with np.errstate(divide="ignore", invalid="ignore"):
        bright = np.flatnonzero(photometry.flux / photometry.flux_err >= LEAST_SNR)
    chosen = np.linspace(0, len(bright), min(len(bright), BRIGHTEST), endpoint=False)
    return [int(bright[index]) for index in chosen.astype(np.int64)]


def _blur(models: _Models, bright: Sequence[int], own: Pixels, band: Pixels) -> float:
    """By how much the PSF of a band is wider than that of the models, px²; narrower: negative.

    Half the difference of their variances, as the median source has it.
    """
    blur = 0.0
    for _ in range(ROUNDS):
        pairs = [_wider(models, k, own, band, blur) for k in bright]
        seen = np.array([pair for pair in pairs if pair is not None]).reshape(-1, 2)
        # What is known without them counts as a source on which PSFs are alike.
        values = np.append(seen[:, 0], -blur)
        weights = np.append(1 / (seen[:, 1] + OWN_BLUR**2), USUAL_BLUR**-2)
        order = np.argsort(values, kind="stable")
        middle = np.searchsorted(np.cumsum(weights[order]), weights.sum() / 2)
        before, blur = blur, min(max(blur + float(values[order][middle]), -MOST_BLUR), MOST_BLUR)
        if abs(blur - before) < CLOSE:
            break
    return blur


def _wider(
    models: _Models, k: int, own: Pixels, band: Pixels, blur: float
) -> tuple[float, float] | None:
    """How much more blur suits a source, and the variance of that."""
    fitted = _fitted(models.about(k), models.window(k), own, band, blur)
    if fitted is None:
        return None
    window, numbers, _ = fitted
    light = window.sum(numbers).reshape(models.one(k).shape)
    change = _second_difference(light, -2).ravel() + _second_difference(light, -1).ravel()
    # Apart from what other numbers would do.
    beside: Values = np.linalg.lstsq(
        _products(window.models, window.models, window.weight),
        _products(window.models, change[None], window.weight)[:, 0],
        rcond=1e-6,
    )[0].astype(np.float64)
    change = change - window.sum(beside)
    power = float((change**2 * window.weight).sum())
    if not power > 0:
        return None
    return float((change * window.weight * window.light).sum()) / power, 1 / power
