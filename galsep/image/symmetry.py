"""The light of one object by its symmetry, so that what lies on it can be told from it.

As the SDSS deblender has it (Lupton, in Bosch et al. 2018, PASJ 70, S5): galaxies, and stars with
their haloes, look much the same turned by half about their centres, and what lies on one side of
them alone is most likely something else. Here a picture and the same turned are compared scale by
scale (starlets, that is the undecimated wavelets of Starck, Murtagh & Bertero 2011): of each
coefficient both have, where they agree, the mean stays, else the smaller one, and nothing of noise.

Arms and clumps are not on both sides. Of what is left, compact objects are taken for sources of
their own, and what is wide and shallow for more of the object. Where an object is rough, that is
where what is left scatters by more than noise, and not only here and there, what is no rougher is
its own, too: by scale, so that sources which are narrower than its clumps are still seen.
"""

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from galsep.image.binning import bin_light, magnify
from galsep.image.detect import extract
from galsep.scene import SoftMask

__all__ = ["CORE", "SHALLOW", "OwnLight", "View", "averaged_light", "grown"]

SCALES = 6
"""Starlets have features of 1, 2, 4 … 32 px; what is wider is one picture."""

FINE = 3
"""... the first so many of which are compared more strictly: other sources are no wider."""

WIDE = 4
"""What is left of scales from this one on may be more of the large object."""

FINE_LEVEL, COARSE_LEVEL = 5.0, 3.0
"""Coefficients below so many sigma of noise are none."""

AGREE_LEVEL = 3.0
"""Both sides agree if they differ by no more than so many sigma of noise,"""

AGREE_SHARE = 0.01
"""... and this share of the light there."""

LIGHT_ERROR = 0.03
"""The light of a large object is known to this share (1 sigma), where it is not rough."""

ROUGH, ROUGH_SCALE = 1.7, 2
"""An object is rough where the median of what is left, in starlets of this scale, is so many times
that of noise."""

LEVEL_STEP, LEAST_PIXELS = 0.7, 400
"""That is looked at where its light is equal to this, in ln, if that are so many pixels or more."""

OUTLIER = 8.0
"""What is so many times rougher is something else."""

CROWD_SCALE, MOST_ROUGH = 1, 0.12
"""What is rougher than this share of its light, in starlets of this scale, which are as wide as
points are, is a crowd."""

HALF_WITHIN = 0.6745
"""The median of the absolute value of Gaussian noise, in sigma."""

CORE = 5.0
"""What is nearer to its centre than so many pixels is the large object itself."""

OTHERS_LEVEL = 2.0
"""What stands out of the rest by so many sigma is something."""

WIDEST = 6.0
"""Wider than this (geometric mean of the semi-axes, pixels)"""

SHALLOW = 0.6
"""... and more like a Gaussian, whose flux is 2π a b times its peak, than this, it is of the large
object."""

REACH, GROWTH = 4.0, 5
"""Other sources are left out to so many times their semi-axes, or to where they stand out, and some
pixels about that."""

FADED = 1.5
"""Where the large object's light is less than so many rms, what is wide and shallow is less likely
to be of it."""

CENTRES = 3
"""Pixels, along both axes, within which the centre of a large object is looked for,"""

NEAR, FAR = 20, 100
"""... so that the two sides differ least within the first radius and within half of the object's,
but no more than the second, pixels."""

NO_PAIRS = 10.0
"""How much two sides differ of which nothing is known: much."""

FIRST_STEPS = np.array([(-0.3, -0.3), (0.4, -0.1), (-0.1, 0.4)])
"""From the best of whole pixels on, the first three places that are compared."""

NARROW_PEAK = 2.0
"""Width of the Gaussian under which the peak is looked for, pixels."""

ROUNDS = 3
"""How often a large object is looked at, each time without the sources that were found the last."""

_KERNEL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)

Image = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class View:
    """What is seen about an object.

    Parameters
    ----------
    light : (h, w) float32 array
        In units of the sky's rms; NaN where there is no data.
    noise : (h, w) float32 array
        In the same units, at least 1.
    unit : float32
        That rms: one for all pixels, since one that is measured rises where large objects are.
    """

    light: Image
    noise: Image
    unit: np.float32

    def known(self, centre: tuple[float, float]) -> Pixels:
        """Where there is data, or on the other side of the centre."""
        finite = np.isfinite(self.light)
        return finite if finite.all() else finite | np.isfinite(_turned(self.light, centre))

    def averaged(self, k: int) -> "View":
        """Averages over blocks of ``k`` pixels a side."""
        missing = ~np.isfinite(self.light)
        mean, unusable = bin_light(np.where(missing, np.float32(0), self.light), missing, k)
        variance, _ = bin_light(self.noise**2, missing, k)
        light = np.where(unusable, np.float32(np.nan), k * mean)
        return View(light, np.sqrt(np.maximum(variance, 1)), self.unit / np.float32(k))


@dataclass(frozen=True, slots=True)
class OwnLight:
    """What is an object's own.

    Parameters
    ----------
    light : (h, w) float32 array
        Not negative, in the view's unit.
    doubt : (h, w) float32 array
        How well that is known (1 sigma), noise apart.
    others : (h, w) bool array
        Hidden pixels, and those of other sources.
    centre : (float, float)
        ``x, y`` about which it is symmetric.
    """

    light: Image
    doubt: Image
    others: Pixels
    centre: tuple[float, float]


def averaged_light(
    view: View,
    hidden: Pixels,
    outline: Pixels,
    k: int,
    shallow: float = SHALLOW,
    centre: tuple[float, float] | None = None,
) -> OwnLight:
    """Light of an object, looked at averaged over blocks of ``k`` pixels a side.

    Parameters
    ----------
    view : View
    hidden : (h, w) bool array
        Pixels that are not to be looked at.
    outline : (h, w) bool array
        Where most of its light is.
    k : int
    shallow : float
        See :data:`SHALLOW`.
    centre : (float, float), optional
        ``x, y`` in the window, if it is known, and with it that no other sources are to be looked
        for than those in ``hidden``.
    """
    if k == 1:
        return _own_light(view, hidden, outline, shallow, centre)
    height, width = view.light.shape
    nowhere = np.zeros_like(hidden)
    covered, bulk = (bin_light(one.astype(np.float32), nowhere, k)[0] for one in (hidden, outline))
    near = None if centre is None else ((centre[0] + 0.5) / k - 0.5, (centre[1] + 0.5) / k - 0.5)
    own = _own_light(view.averaged(k), covered > 0, bulk > 0.5, shallow, near)
    light, doubt = (
        magnify(SoftMask(0, 0, one / np.float32(k)), k).probability[:height, :width]
        for one in (own.light, own.doubt)
    )
    found = np.repeat(np.repeat(own.others, k, axis=0), k, axis=1)[:height, :width]
    where = k * (own.centre[0] + 0.5) - 0.5, k * (own.centre[1] + 0.5) - 0.5
    return OwnLight(light, doubt, found, centre or where)


def _own_light(
    view: View,
    hidden: Pixels,
    outline: Pixels,
    shallow: float,
    centre: tuple[float, float] | None,
) -> OwnLight:
    """The same of pixels as they are."""
    from scipy.ndimage import gaussian_filter

    window, noise = view.light, view.noise
    others, rounds = hidden, 1
    if known := centre is not None:
        place = centre
    else:
        place, rounds = _centre(np.where(hidden, np.float32(np.nan), window), outline), ROUNDS
    there = gaussian_filter(outline.astype(np.float32), 2.0**FINE)
    for _ in range(rounds):
        light = _symmetric(np.where(others, np.float32(np.nan), window), noise, place)
        rough = _roughness(np.where(hidden, np.float32(np.nan), window - light), noise, light)
        for _ in range(2):
            rest = window - light
            # Of features as wide as other sources are.
            doubt = np.hypot(LIGHT_ERROR * light, np.sqrt((rough[:FINE] ** 2).sum(axis=0)))
            if not known:
                clear = rest - _no_rougher(rest, noise, rough)
                others = hidden | _other_sources(clear, np.hypot(noise, doubt), place, shallow)
            weight = np.clip(gaussian_filter(light, 2.0**FINE) / FADED, there, 1)
            light += weight * _wide(np.where(others, np.float32(np.nan), rest), noise, rough)
            np.maximum(light, 0, out=light)
    return OwnLight(light, doubt, others, place)


def _other_sources(rest: Image, noise: Image, centre: tuple[float, float], least: float) -> Pixels:
    """Pixels of what stands out of the rest, but for its centre and what is wide and shallow."""
    import sep

    missing = ~np.isfinite(rest)
    objects, segm = extract(np.where(missing, 0, rest), noise, missing, OTHERS_LEVEL)
    area = 2 * np.pi * objects["a"] * objects["b"]
    shallow = objects["cflux"] > least * area * objects["cpeak"]
    wide = objects["a"] * objects["b"] > WIDEST**2
    core = np.hypot(objects["x"] - centre[0], objects["y"] - centre[1]) < CORE
    chosen = ~(core | (wide & shallow))
    pixels = np.append(False, chosen)[segm]
    places = (objects[name][chosen] for name in ("x", "y", "a", "b", "theta"))
    sep.mask_ellipse(pixels, *places, r=REACH)
    return grown(pixels)


def grown(pixels: Pixels) -> Pixels:
    """Pixels and those near to them, which hold the wings of what is there."""
    from scipy.ndimage import binary_dilation

    if not pixels.any():
        return pixels
    return np.asarray(binary_dilation(pixels, iterations=GROWTH))


def _symmetric(window: Image, noise: Image, centre: tuple[float, float]) -> Image:
    """What a window and the same turned have in common, scale by scale, not negative.

    Parameters
    ----------
    window : (h, w) float32 array
        NaN where nothing is known.
    noise : (h, w) float32 array
        Of a pixel.
    centre : (float, float)
        ``x, y`` in the window.
    """
    turned = _turned(window, centre)
    one = _filled(np.where(np.isfinite(window), window, turned))
    other = _filled(np.where(np.isfinite(turned), turned, window))
    mean: Image = ((one + other) / 2).astype(np.float32)
    known = AGREE_SHARE * np.maximum(_smooth(_smooth(mean, 1), 2), 0)
    total = np.zeros_like(one)
    for scale, unit in enumerate(_starlet_noise()):
        sigma = unit * noise
        if scale == SCALES:
            agree = np.abs(one - other) < AGREE_LEVEL * np.sqrt(2) * sigma
            total += np.where(agree, (one + other) / 2, np.minimum(one, other))
            break
        wide, other_wide = _smooth(one, 2**scale), _smooth(other, 2**scale)
        here, there = one - wide, other - other_wide
        one, other = wide, other_wide
        agree = np.abs(here - there) < AGREE_LEVEL * np.sqrt(2) * sigma + known
        least = np.where(np.abs(here) < np.abs(there), here, there) * (here * there > 0)
        both = np.where(agree, (here + there) / 2, least)
        level = FINE_LEVEL if scale < FINE else COARSE_LEVEL
        total += np.where(np.abs(both) > level * sigma / np.sqrt(2), both, 0)
    return np.asarray(np.maximum(total, 0), dtype=np.float32)


def _wide(rest: Image, noise: Image, rough: Image) -> Image:
    """What is left on wide scales, and what is no rougher; NaN where it is not to be looked at."""
    parts, wider = _starlets(_filled(rest), SCALES)
    total = np.zeros_like(wider)
    for scale, (here, unit) in enumerate(zip(parts, _starlet_noise(), strict=False)):
        if scale >= WIDE:
            total += np.where(np.abs(here) > COARSE_LEVEL * unit * noise, here, 0)
        elif rough[scale].any():
            total += _share(rough[scale], unit * noise) * here
    return total + wider


def _no_rougher(rest: Image, noise: Image, rough: Image) -> Image:
    """What is left that is no rougher than the object is, on all but wide scales."""
    total = np.zeros_like(rest)
    if not rough.any():
        return total
    parts, _ = _starlets(_filled(rest), WIDE)
    for here, unit, spread in zip(parts, _starlet_noise(), rough, strict=False):
        sigma = unit * noise
        usual = np.abs(here) < OUTLIER * np.hypot(spread, sigma)
        total += usual * _share(spread, sigma) * here
    return total


def _share(rough: Image, sigma: Image) -> Image:
    """How much of a coefficient is taken for the object's, where it is so rough."""
    return np.asarray(np.maximum(rough**2 - sigma**2, 0) / (rough**2 + sigma**2), np.float32)


def _roughness(rest: Image, noise: Image, light: Image) -> Image:
    """By how much more than noise what is left of an object scatters (1 sigma).

    Parameters
    ----------
    rest : (h, w) float32 array
        Also where other sources are, which count for little in a median; NaN where nothing is
        known.
    noise, light : (h, w) float32 arrays
        Of a pixel, and of the object.

    Returns
    -------
    (``WIDE``, h, w) float32 array
        Of coefficients, scale by scale; 0 where the object is not rough. The same share of its
        light wherever it is equally bright.
    """
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(light, 2.0**FINE)
    level = np.log(np.maximum(smooth, 1))
    rough = np.zeros((WIDE, *rest.shape), dtype=np.float32)
    seen = np.isfinite(rest) & (level > 0)
    bins = [
        (low, there)
        for low in np.arange(0, level.max(), LEVEL_STEP)
        if (there := seen & (level > low) & (level <= low + LEVEL_STEP)).sum() >= LEAST_PIXELS
    ]
    if not bins:
        return rough
    parts, _ = _starlets(_filled(rest), WIDE)
    units = _starlet_noise()
    expected = units[ROUGH_SCALE] * np.hypot(noise, LIGHT_ERROR * light)
    shares = np.zeros((len(bins), WIDE))
    for index, (_, there) in enumerate(bins):
        if np.median(np.abs(parts[ROUGH_SCALE][there]) / expected[there]) > ROUGH * HALF_WITHIN:
            for scale, part in enumerate(parts):
                spread = np.abs(part[there]) / HALF_WITHIN
                more = np.sqrt(np.maximum(spread**2 - (units[scale] * noise[there]) ** 2, 0))
                shares[index, scale] = np.median(more / smooth[there])
    if shares[:, CROWD_SCALE].max() > MOST_ROUGH:
        return rough
    middles = [low + LEVEL_STEP / 2 for low, _ in bins]
    for scale in np.flatnonzero(shares.any(axis=0)).tolist():
        rough[scale] = np.interp(level, middles, shares[:, scale]) * smooth * (level > 0)
    return rough


def _turned(window: Image, centre: tuple[float, float]) -> Image:
    """The window turned by half about a place; NaN where nothing is known of it."""
    from scipy.ndimage import binary_dilation, shift

    turned, moved = window, []
    for axis, place in ((0, centre[1]), (1, centre[0])):
        across = int(np.floor(2 * place + 0.5))
        moved.append(2 * place - across)
        index = across - np.arange(window.shape[axis])
        inside = (index >= 0) & (index < window.shape[axis])
        turned = np.take(turned, np.clip(index, 0, window.shape[axis] - 1), axis=axis)
        inside = inside[:, None] if axis == 0 else inside[None]
        turned = np.where(inside, turned, np.float32(np.nan))
    missing = ~np.isfinite(turned)
    if missing.all() or not any(moved):
        return turned
    values = shift(np.where(missing, 0, turned), moved, order=3, mode="nearest", output=np.float32)
    if missing.any():
        values[binary_dilation(missing, np.ones((3, 3), dtype=bool))] = np.nan
    return np.asarray(values)


def _filled(window: Image) -> Image:
    """The window, with values from nearby where there are none."""
    from scipy.ndimage import distance_transform_edt, gaussian_filter

    missing = ~np.isfinite(window)
    if not missing.any():
        return window
    if missing.all():
        return np.zeros_like(window)
    nearest = distance_transform_edt(missing, return_distances=False, return_indices=True)
    smooth = gaussian_filter(window[tuple(nearest)], GROWTH)
    return np.where(missing, smooth, window)


def _centre(window: Image, outline: Pixels) -> tuple[float, float]:
    """Where an object's two sides differ least: about a peak of it or its centroid."""
    from scipy.ndimage import center_of_mass, gaussian_filter
    from scipy.optimize import minimize

    light = np.where(outline & np.isfinite(window), window, 0).clip(0)
    radius = float(np.sqrt(outline.sum() / np.pi))
    places = []
    for width in (NARROW_PEAK, max(NARROW_PEAK, radius / 8)):
        peak = np.unravel_index(int(gaussian_filter(light, width).argmax()), light.shape)
        places.append((float(peak[1]), float(peak[0])))
    if light.any():
        middle = center_of_mass(light)
        places.append((float(round(middle[1])), float(round(middle[0]))))

    def near(centre: npt.NDArray[np.float64]) -> float:
        place = float(centre[0]), float(centre[1])
        return sum(_asymmetry(window, place, r) for r in (NEAR, min(radius / 2, FAR)))

    def differ(centre: npt.NDArray[np.float64]) -> float:
        # Of what has a plateau, only the edges tell the centre.
        whole = _asymmetry(window, (float(centre[0]), float(centre[1])), min(radius, 2 * FAR))
        return near(centre) + whole

    steps = range(-CENTRES, CENTRES + 1)
    starts = [
        min((np.array([x + dx, y + dy]) for dy in steps for dx in steps), key=near)
        for x, y in dict.fromkeys(places)
    ]
    start = min(starts, key=differ)
    best = minimize(
        differ, start, method="Nelder-Mead",
        options={"initial_simplex": start + FIRST_STEPS, "xatol": 0.005, "maxiter": 80},
    ).x  # fmt: skip
    return float(best[0]), float(best[1])


def _asymmetry(window: Image, centre: tuple[float, float], radius: float) -> float:
    """How much the two sides about a place differ, over how much light there is on both."""
    x, y = centre
    reach = int(radius) + 2
    top, left = max(0, round(y) - reach), max(0, round(x) - reach)
    part = window[top : max(round(y) + reach + 1, 0), left : max(round(x) + reach + 1, 0)]
    if not part.size:
        return NO_PAIRS
    differs = np.abs(part - _turned(part, (x - left, y - top)))
    rows, columns = np.indices(part.shape)
    near = np.hypot(rows + top - y, columns + left - x) < radius
    seen = near & np.isfinite(differs)
    total = float(np.abs(part[seen]).sum())
    return float(differs[seen].sum()) / total if total > 0 else NO_PAIRS


def _starlets(picture: Image, scales: int) -> tuple[list[Image], Image]:
    """Starlet coefficients of so many scales, finest first, and what is wider."""
    parts = []
    for scale in range(scales):
        wide = _smooth(picture, 2**scale)
        parts.append(picture - wide)
        picture = wide
    return parts, picture


def _smooth(image: Image, step: int) -> Image:
    """One step of the starlet transform: a B-spline whose nodes are ``step`` pixels apart."""
    for axis in (0, 1):
        size, reach = image.shape[axis], 2 * step
        # As in a mirror at the edges, as often as it takes.
        place = np.arange(-reach, size + reach) % (2 * size)
        padded = np.take(image, np.where(place < size, place, 2 * size - 1 - place), axis=axis)
        image = np.zeros_like(image)
        for index, weight in enumerate(_KERNEL):
            part = slice(index * step, index * step + size)
            image += np.float32(weight) * (padded[part] if axis == 0 else padded[:, part])
    return image


@functools.cache
def _starlet_noise() -> tuple[float, ...]:
    """Noise of starlet coefficients, scale by scale, and of what is wider, for pixels' of 1."""
    noise, before = [], np.ones(1)
    for scale in range(SCALES):
        spread = np.zeros(4 * 2**scale + 1)
        spread[:: 2**scale] = _KERNEL
        wider = np.convolve(before, spread)
        before = np.pad(before, 2 * 2**scale)
        coefficient = np.outer(before, before) - np.outer(wider, wider)
        noise.append(float(np.sqrt((coefficient**2).sum())))
        before = wider
    return (*noise, float((before**2).sum()))
