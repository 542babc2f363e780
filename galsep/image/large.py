"""Objects larger than a cutout: their light, so that what lies on it can be seen without it.

No network sees such an object whole. What is its own is told by symmetry, as the SDSS deblender has
it (Lupton, in Bosch et al. 2018, PASJ 70, S5): galaxies, and stars with their haloes, look much the
same turned by half about their centres, and what lies on one side of them alone is most likely
something else. Here the image and its mirror image are compared scale by scale (starlets, that is
the undecimated wavelets of Starck, Murtagh & Bertero 2011): of each coefficient both have, where
they agree, the mean stays, else the smaller one, and nothing of noise.

Arms and clumps are not on both sides. Of what is left, compact objects are taken for sources of
their own, and what is wide and shallow for more of the large object.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from galsep.conventions import MASK_THRESHOLD, STAMP_SIZE
from galsep.image.binning import bin_light, magnify
from galsep.image.detect import Blobs, extract, large_parts
from galsep.image.light import Light
from galsep.image.psf import Domain
from galsep.planes import Planes
from galsep.scene import Footprint, SoftMask

__all__ = [
    "LIGHT_ERROR",
    "Apart",
    "LargeObject",
    "find_large",
    "in_another_image",
    "in_cores",
    "in_outlines",
    "large_columns",
    "surroundings",
    "without_large",
]

LARGE_LIMIT = STAMP_SIZE - 20
"""What is wider than this is large, pixels of a cutout."""

LEAST_FREE, MOST_LEFT = 0.3, 0.03
"""If less than this share of SEP's outline of an object is free of others, and more than that of
its light others', it is a crowd."""

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
"""The light of a large object is known to this share (1 sigma)."""

CORE = 5.0
"""What is nearer to its centre than so many pixels is the large object itself."""

OTHERS_LEVEL = 2.0
"""What stands out of the rest by so many sigma is something."""

WIDEST, SHALLOW = 6.0, 0.6
"""Wider than this (geometric mean of the semi-axes, pixels) and more like a Gaussian, whose flux is
2π a b times its peak, than this, it is of the large object."""

REACH, GROWTH = 4.0, 5
"""Other sources are left out to so many times their semi-axes, or to where they stand out, and some
pixels about that."""

FAINT, FAINT_WIDTH, FAINT_GROWTH = 0.1, 4.0, 20
"""Light of large objects, in rms, under a Gaussian of this width, that the background must not take
for its own, and pixels about it."""

MOST_SIDE, USUAL_FWHM = 1500, 4.0
"""Larger windows, and those of images with a wider PSF, are looked at averaged over blocks of
pixels: the widths here are meant for such a PSF, pixels."""

LEAST_SKY = 0.1
"""Share of the image's usable pixels that must be left to tell the background."""

QUIET = 0.25
"""Quantile of the rms about a large object that is the sky's."""

WINDOW, WIDEST_WINDOW = 0.25, 100
"""A large object's light is looked for so many times its extent beyond SEP's outline, but no
further than so many pixels."""

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
class LargeObject:
    """An object larger than a cutout.

    Parameters
    ----------
    outline : Footprint
        Where its light exceeds 1.5 rms, connected with its centre.
    y0, x0 : int
        Where the crops below lie in the image.
    light : (h, w) float32 array
        Its light, not negative, in the image's unit.
    centre : (float, float)
        ``x, y`` in the image, about which it is symmetric.
    others : (h, w) bool array
        Pixels of other sources, which did not count.
    averaged : int
        Side of the blocks of pixels that it was looked at averaged over; 1 for none.
    """

    outline: Footprint
    y0: int
    x0: int
    light: Image
    centre: tuple[float, float]
    others: Pixels
    averaged: int = 1

    @property
    def box(self) -> tuple[slice, slice]:
        """Slices of the crops in the image."""
        height, width = self.light.shape
        return slice(self.y0, self.y0 + height), slice(self.x0, self.x0 + width)

    @property
    def flux(self) -> float:
        """All of its light."""
        return float(self.light.sum(dtype=np.float64))

    def share_seen(self, image: Light) -> float:
        """How much of what its pixels tell of it, light squared, has data in an image."""
        peak = float(self.light.max(initial=0)) or 1.0
        told = (self.light / peak) ** 2
        total = float(told.sum(dtype=np.float64))
        return float(told[~image.mask[self.box]].sum(dtype=np.float64)) / total if total else 0.0

    def error(self, image: Light) -> float:
        """By how much the noise of an image's sky on its mask changes its flux (1 sigma)."""
        rms = image.rms[self.outline.slices][self.outline.mask].astype(np.float64)
        # Squares may be too small for numbers, or too large.
        scale = rms.max()
        return float(scale * np.sqrt(((rms / scale) ** 2).sum()))


@dataclass(frozen=True, slots=True)
class Apart:
    """An image, its large objects, and the image without them.

    Parameters
    ----------
    image : Light
    large : sequence of LargeObject
    rest : Light
        Without their light, of which ``rms`` holds what is not known of it, too: see
        :func:`without_large`.
    """

    image: Light
    large: Sequence[LargeObject]
    rest: Light

    def other(self, image: Light, planes: Planes) -> "Apart":
        """The same of another image of the same pixels."""
        if image is self.image:
            return self
        large = in_another_image(image, self.large)
        return Apart(image, large, without_large(image, large, planes))


def find_large(
    image: Light, blobs: Blobs, chosen: Sequence[int], domain: Domain
) -> list[LargeObject]:
    """Find the objects larger than a cutout, and their light.

    Parameters
    ----------
    image : Light
    blobs : Blobs
    chosen : sequence of int
        Which blobs are too large for a cutout.
    domain : Domain
        How wide the image's PSF is, and how many pixels of it are one of a cutout.

    Returns
    -------
    list of LargeObject
        Wider than a cutout less a margin, by SEP's default deblending and by their own light.

    Raises
    ------
    ImageError
        When SEP gives up on a blob.
    """
    limit = LARGE_LIMIT * domain.binning
    averaged = max(1, round((domain.fwhm or USUAL_FWHM) / USUAL_FWHM))
    parts: list[_Part] = []
    for blob in chosen:
        xmin, ymin, xmax, ymax = blobs.bounds[blob].tolist()
        box = slice(ymin, ymax + 1), slice(xmin, xmax + 1)
        pixels = blobs.segm[box] == blob + 1
        parts += [
            _Part(blob + 1, Footprint.from_mask(part, ymin, xmin))
            for part in large_parts(image.light[box], image.rms[box], pixels, limit)
        ]
    parts.sort(key=lambda part: -float(image.light[part.pixels.slices][part.pixels.mask].sum()))
    found: list[tuple[_Part, LargeObject]] = []
    for part in parts:
        beside = [other for other in parts if other is not part and other.parent == part.parent]
        # A column without data may have made two blobs of one object.
        known = [one for other, one in found if other.parent != part.parent]
        one = _by_symmetry(image, blobs, part, averaged, beside, known)
        # What SEP leaves to a part may be all that lies about it.
        if one is not None and max(one.outline.mask.shape) > limit:
            found.append((part, one))
    for index, (part, before) in enumerate(found):
        known = [one for other, one in found if other is not part and _meet(one.box, before.box)]
        if known:
            again = _by_symmetry(image, blobs, part, averaged, (), known)
            found[index] = part, again or before
    return [one for _, one in found]


def in_another_image(image: Light, large: Sequence[LargeObject]) -> list[LargeObject]:
    """The same objects in another image of the same pixels.

    Of what has no data on either side of an object, light is that of ``large`` times a number.
    """
    seen = [
        replace(one, light=one.light * np.float32(_brightness(image, one, large))) for one in large
    ]
    for index, one in enumerate(large):
        known = [other for other in seen if other is not seen[index]]
        view = _view(image, one.box, [other for other in known if _meet(other.box, one.box)])
        x, y = one.centre
        outline = one.outline.shifted(-one.y0, -one.x0).to_full(one.others.shape)
        centre = x - one.x0, y - one.y0
        light, _, _ = _averaged_light(view, one.others, outline, one.averaged, centre=centre)
        light *= view.unit * _faded(one.box, one.outline.bounds, image.light.shape)
        light = np.where(view.known(centre), light, seen[index].light)
        seen[index] = replace(one, light=light)
    return seen


def _brightness(image: Light, one: LargeObject, large: Sequence[LargeObject]) -> float:
    """Light of an image on an object's mask over that of all ``large`` there."""
    box, mask = one.outline.slices, one.outline.mask
    total = np.zeros(mask.shape)
    for other in large:
        inside, there = _overlap(other.box, box)
        total[inside] += other.light[there]
    usable = mask & ~image.mask[box]
    expected = float(total[usable].sum())
    return max(float(image.light[box][usable].sum()) / expected, 0.0) if expected > 0 else 0.0


def without_large(
    image: Light, large: Sequence[LargeObject], planes: Planes | None = None
) -> Light:
    """Take the light of large objects from an image.

    Parameters
    ----------
    image : Light
    large : sequence of LargeObject
        In this image.
    planes : Planes, optional
        Where the result is to be.

    Returns
    -------
    Light
        Of which ``rms`` holds what is not known of their light, too; the same image if there are
        none.
    """
    if not large:
        return image
    planes = planes or Planes()
    light, rms = (planes.new(image.light.shape, np.float32) for _ in range(2))
    for rows in planes.blocks(image.light.shape):
        light[rows], rms[rows] = image.light[rows], image.rms[rows]
    for one in large:
        box = one.box
        light[box] -= np.where(image.mask[box], 0, one.light)
        rms[box] = np.hypot(rms[box], LIGHT_ERROR * one.light)
        if image.gain > 0:
            rms[box] = np.hypot(rms[box], np.sqrt(one.light / image.gain))
    planes.release()
    return replace(image, light=light, rms=rms)


def in_cores(
    large: Sequence[LargeObject], x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> Pixels:
    """Which places, ``(n,)`` in pixels, are so near to a large object's centre as to be it."""
    inside = np.zeros(len(x), dtype=bool)
    for one in large:
        inside |= np.hypot(x - one.centre[0], y - one.centre[1]) <= CORE * one.averaged
    return inside


def in_outlines(
    large: Sequence[LargeObject], x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> Pixels:
    """Which places, ``(n,)`` in pixels, lie on the mask of a large object."""
    inside = np.zeros(len(x), dtype=bool)
    for one in large:
        rows, columns = np.rint(y) - one.outline.y0, np.rint(x) - one.outline.x0
        height, width = one.outline.mask.shape
        near = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        inside[near] |= one.outline.mask[rows[near].astype(int), columns[near].astype(int)]
    return inside


def large_columns(apart: Apart, correlation: float) -> tuple[npt.NDArray[Any], ...]:
    """What :meth:`galsep.image.detect.Blobs.with_objects` wants to know of large objects.

    Parameters
    ----------
    apart : Apart
    correlation : float
        Of the noise, see :func:`galsep.image.detect.noise_correlation`.
    """
    snr = [one.flux / (one.error(apart.image) * correlation) for one in apart.large]
    bounds = [one.outline.bounds for one in apart.large]
    npix = [one.outline.area for one in apart.large]
    x, y = np.array([one.centre for one in apart.large]).T
    return x, y, np.array(npix), np.array(snr), np.array(bounds)


def surroundings(
    image: Light, large: Sequence[LargeObject], planes: Planes | None = None
) -> Pixels | None:
    """Where large objects have any light: pixels that say nothing of the background.

    Parameters
    ----------
    image : Light
    large : sequence of LargeObject
        In this image.
    planes : Planes, optional
        Where the result is to be.

    Returns
    -------
    (h, w) bool array or None
        ``None`` if too little would be left of the image, or there are no large objects.
    """
    from scipy.ndimage import binary_dilation, gaussian_filter

    if not large:
        return None
    planes = planes or Planes()
    lit: Pixels = planes.new(image.light.shape, np.bool_)
    for one in large:
        smooth = gaussian_filter(one.light, FAINT_WIDTH) > FAINT * _unit(image, one.box)
        lit[one.box] |= binary_dilation(smooth, iterations=FAINT_GROWTH)
    usable = seen = 0
    for rows in planes.blocks(lit.shape):
        usable += int(np.count_nonzero(~image.mask[rows]))
        seen += int(np.count_nonzero(~(image.mask[rows] | lit[rows])))
    return lit if seen >= LEAST_SKY * usable else None


@dataclass(frozen=True, slots=True)
class _Part:
    """Part of a SEP blob, whose number is counted from 1."""

    parent: int
    pixels: Footprint


def _by_symmetry(
    image: Light,
    blobs: Blobs,
    part: _Part,
    averaged: int,
    beside: Sequence[_Part],
    known: Sequence[LargeObject],
) -> LargeObject | None:
    """Light of one part of a blob; ``None`` if it is no large object.

    Parameters
    ----------
    image : Light
    blobs : Blobs
    part : _Part
    averaged : int
        Side of the blocks of pixels to average over, at least.
    beside : sequence of _Part
        Other parts, which are not to be looked at.
    known : sequence of LargeObject
        What is to be looked at without its light.
    """
    box = _around(part.pixels, image.light.shape)
    y0, x0 = box[0].start, box[1].start
    shape = (box[0].stop - y0, box[1].stop - x0)
    outline = part.pixels.shifted(-y0, -x0).to_full(shape)
    view = _view(image, box, known)
    labels = blobs.segm[box]
    hidden = _grown((labels > 0) & (labels != part.parent))
    for other in beside:
        hidden |= other.pixels.shifted(-y0, -x0).to_full(shape)
    averaged = max(averaged, -(-max(shape) // MOST_SIDE))
    # What is not alike on both sides may be so much that it is the object after all.
    for shallow in (SHALLOW, 0.0):
        light, others, centre = _averaged_light(view, hidden, outline, averaged, shallow)
        mask = _connected(light > MASK_THRESHOLD, centre) & np.isfinite(view.light)
        free = (outline & ~others).sum() / outline.sum()
        seen = outline & np.isfinite(view.light)
        light_there, all_there = float(light[seen].sum()), float(view.light[seen].sum())
        if mask.any() and (
            free >= LEAST_FREE or abs(light_there - all_there) < MOST_LEFT * all_there
        ):
            break
    else:
        return None
    light = view.unit * light * _faded(box, part.pixels.bounds, image.light.shape)
    light = np.where(view.known(centre), light, 0)
    where = centre[0] + x0, centre[1] + y0
    footprint = Footprint.from_mask(mask, y0, x0)
    return LargeObject(footprint, y0, x0, light, where, others, averaged)


def _around(part: Footprint, shape: tuple[int, ...]) -> tuple[slice, slice]:
    xmin, ymin, xmax, ymax = part.bounds
    across, down = (
        min(int(WINDOW * (1 + high - low)), WIDEST_WINDOW)
        for low, high in ((xmin, xmax), (ymin, ymax))
    )
    return (
        slice(max(0, ymin - down), min(shape[0], ymax + down + 1)),
        slice(max(0, xmin - across), min(shape[1], xmax + across + 1)),
    )


def _faded(
    box: tuple[slice, slice], bounds: tuple[int, int, int, int], shape: tuple[int, ...]
) -> Image:
    """1 in the middle of a window, and less towards those of its edges that are not the image's.

    Parameters
    ----------
    box : (slice, slice)
    bounds : tuple of int
        ``xmin, ymin, xmax, ymax`` of what is in the middle.
    shape : (int, int)
        Of the image.
    """
    xmin, ymin, xmax, ymax = bounds
    ramps = []
    for part, low, high, size in zip(box, (ymin, xmin), (ymax, xmax), shape, strict=True):
        place = np.arange(part.start, part.stop)
        ramp = np.ones(len(place), dtype=np.float32)
        if part.start > 0:
            ramp = np.minimum(ramp, 2 * (place - part.start + 1) / (low - part.start + 1))
        if part.stop < size:
            ramp = np.minimum(ramp, 2 * (part.stop - place) / (part.stop - high))
        ramps.append(ramp.astype(np.float32))
    return np.outer(*ramps)


@dataclass(frozen=True, slots=True)
class _View:
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

    def averaged(self, k: int) -> "_View":
        """Averages over blocks of ``k`` pixels a side."""
        missing = ~np.isfinite(self.light)
        mean, unusable = bin_light(np.where(missing, np.float32(0), self.light), missing, k)
        variance, _ = bin_light(self.noise**2, missing, k)
        light = np.where(unusable, np.float32(np.nan), k * mean)
        return _View(light, np.sqrt(np.maximum(variance, 1)), self.unit / np.float32(k))


def _view(image: Light, box: tuple[slice, slice], beside: Sequence[LargeObject]) -> _View:
    """What is seen about an object without the light of others."""
    light, unit = image.light[box].copy(), _unit(image, box)
    noise = np.ones_like(light)
    if image.gain > 0:
        noise = np.sqrt(1 + np.maximum(light, 0) / unit / np.float32(image.gain * unit))
    if image.noise is not None:
        noise = np.maximum(noise, image.noise[box] / unit)
    for one in beside:
        inside, there = _overlap(one.box, box)
        light[inside] -= one.light[there]
    return _View(np.where(image.mask[box], np.float32(np.nan), light / unit), noise, unit)


def _overlap(
    box: tuple[slice, slice], within: tuple[slice, slice]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where two crops meet, in pixels of the second and of the first; maybe nowhere."""
    inside, there = [], []
    for part, whole in zip(box, within, strict=True):
        low = max(part.start, whole.start)
        high = max(low, min(part.stop, whole.stop))
        inside.append(slice(low - whole.start, high - whole.start))
        there.append(slice(low - part.start, high - part.start))
    return (inside[0], inside[1]), (there[0], there[1])


def _meet(one: tuple[slice, slice], other: tuple[slice, slice]) -> bool:
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(one, other, strict=True))


def _unit(image: Light, box: tuple[slice, slice]) -> np.float32:
    return np.float32(np.quantile(image.rms[box], QUIET))


def _averaged_light(
    view: _View,
    hidden: Pixels,
    outline: Pixels,
    k: int,
    shallow: float = SHALLOW,
    centre: tuple[float, float] | None = None,
) -> tuple[Image, Pixels, tuple[float, float]]:
    """Light of an object, looked at averaged over blocks of ``k`` pixels a side.

    Parameters
    ----------
    view : _View
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

    Returns
    -------
    light : (h, w) float32 array
        Not negative, in the view's unit.
    others : (h, w) bool array
        Hidden pixels, and those of other sources.
    centre : (float, float)
    """
    if k == 1:
        return _own_light(view, hidden, outline, shallow, centre)
    height, width = view.light.shape
    nowhere = np.zeros_like(hidden)
    covered, bulk = (bin_light(one.astype(np.float32), nowhere, k)[0] for one in (hidden, outline))
    near = None if centre is None else ((centre[0] + 0.5) / k - 0.5, (centre[1] + 0.5) / k - 0.5)
    light, others, place = _own_light(view.averaged(k), covered > 0, bulk > 0.5, shallow, near)
    whole = magnify(SoftMask(0, 0, light / np.float32(k)), k).probability[:height, :width]
    found = np.repeat(np.repeat(others, k, axis=0), k, axis=1)[:height, :width]
    where = k * (place[0] + 0.5) - 0.5, k * (place[1] + 0.5) - 0.5
    return whole, found, centre or where


def _own_light(
    view: _View,
    hidden: Pixels,
    outline: Pixels,
    shallow: float,
    centre: tuple[float, float] | None,
) -> tuple[Image, Pixels, tuple[float, float]]:
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
        for _ in range(2):
            rest = window - light
            if not known:
                doubt = np.hypot(noise, LIGHT_ERROR * light)
                others = hidden | _other_sources(rest, doubt, place, shallow)
            weight = np.clip(gaussian_filter(light, 2.0**FINE) / FADED, there, 1)
            light += weight * _wide(np.where(others, np.float32(np.nan), rest), noise)
            np.maximum(light, 0, out=light)
    return light, others, place


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
    return _grown(pixels)


def _grown(pixels: Pixels) -> Pixels:
    from scipy.ndimage import binary_dilation

    if not pixels.any():
        return pixels
    return np.asarray(binary_dilation(pixels, iterations=GROWTH))


def _connected(pixels: Pixels, centre: tuple[float, float]) -> Pixels:
    """The connected ones about a place."""
    from scipy.ndimage import label

    labels, _ = label(pixels)
    x, y = (round(min(max(c, 0), n - 1)) for c, n in zip(centre, pixels.shape[::-1], strict=True))
    return np.asarray((labels == labels[y, x]) & pixels)


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


def _wide(rest: Image, noise: Image) -> Image:
    """What is left on wide scales; NaN where it is not to be looked at."""
    picture = _filled(rest)
    total = np.zeros_like(picture)
    for scale, unit in enumerate(_starlet_noise()[:SCALES]):
        wide = _smooth(picture, 2**scale)
        if scale >= WIDE:
            here = picture - wide
            total += np.where(np.abs(here) > COARSE_LEVEL * unit * noise, here, 0)
        picture = wide
    return total + picture


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
