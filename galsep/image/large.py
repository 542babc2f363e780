"""Objects larger than a cutout: their light, so that what lies on it can be seen without it.

No network sees such an object whole. What is its own is told by symmetry
(:mod:`galsep.image.symmetry`).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from galsep.conventions import MASK_THRESHOLD, STAMP_SIZE
from galsep.image.detect import Blobs, large_parts
from galsep.image.light import Light
from galsep.image.psf import Domain
from galsep.image.symmetry import CORE, SHALLOW, View, averaged_light, grown
from galsep.planes import Planes
from galsep.scene import Footprint

__all__ = [
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

LEAST_OWN = 0.6
"""An object has this share of the light within its outline, or more."""

TOGETHER = 2
"""How often each of several that meet is looked at without the light of the others."""

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
    doubt : (h, w) float32 array
        How well that is known (1 sigma), noise apart, in the image's unit.
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
    doubt: Image
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
    # What turned out to be no object of its own was hidden, too.
    rejected = Counter(part.parent for part in parts) - Counter(part.parent for part, _ in found)
    for turn in range(TOGETHER):
        for index, (part, before) in enumerate(found):
            known = [
                one for other, one in found if other is not part and _meet(one.box, before.box)
            ]
            if known or (turn == 0 and rejected[part.parent]):
                again = _by_symmetry(image, blobs, part, averaged, (), known)
                found[index] = part, again or before
    return [one for _, one in found]


def in_another_image(image: Light, large: Sequence[LargeObject]) -> list[LargeObject]:
    """The same objects in another image of the same pixels.

    Of what has no data on either side of an object, light is that of ``large`` times a number.
    """
    seen = []
    for one in large:
        ratio = np.float32(_brightness(image, one, large))
        seen.append(replace(one, light=ratio * one.light, doubt=ratio * one.doubt))
    for index, one in enumerate(large):
        known = [other for k, other in enumerate(seen) if k != index and _meet(other.box, one.box)]
        view = _view(image, one.box, known)
        x, y = one.centre
        outline = one.outline.shifted(-one.y0, -one.x0).to_full(one.others.shape)
        centre = x - one.x0, y - one.y0
        own = averaged_light(view, one.others, outline, one.averaged, centre=centre)
        known_here = view.known(centre)
        unit = view.unit * _faded(one.box, one.outline.bounds, image.light.shape)
        light = np.where(known_here, unit * own.light, seen[index].light)
        doubt = np.where(known_here, unit * own.doubt, seen[index].doubt)
        seen[index] = replace(one, light=light, doubt=doubt)
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
        rms[box] = np.hypot(rms[box], one.doubt)
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
    hidden = grown((labels > 0) & (labels != part.parent))
    for other in beside:
        hidden |= other.pixels.shifted(-y0, -x0).to_full(shape)
    averaged = max(averaged, -(-max(shape) // MOST_SIDE))
    seen = outline & np.isfinite(view.light)
    all_there = float(view.light[seen].sum())
    # What is not alike on both sides may be so much that it is the object after all.
    for shallow in (SHALLOW, 0.0):
        own = averaged_light(view, hidden, outline, averaged, shallow)
        mask = _connected(own.light > MASK_THRESHOLD, own.centre) & np.isfinite(view.light)
        free = (outline & ~own.others).sum() / outline.sum()
        share = float(own.light[seen].sum()) / all_there if all_there > 0 else 0.0
        crowd = free < LEAST_FREE and abs(share - 1) > MOST_LEFT
        if mask.any() and share > LEAST_OWN and not crowd:
            break
    else:
        return None
    unit = view.unit * _faded(box, part.pixels.bounds, image.light.shape)
    unit = np.where(view.known(own.centre), unit, 0)
    return LargeObject(
        outline=Footprint.from_mask(mask, y0, x0),
        y0=y0,
        x0=x0,
        light=unit * own.light,
        doubt=unit * own.doubt,
        centre=(own.centre[0] + x0, own.centre[1] + y0),
        others=own.others,
        averaged=averaged,
    )


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


def _view(image: Light, box: tuple[slice, slice], beside: Sequence[LargeObject]) -> View:
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
    return View(np.where(image.mask[box], np.float32(np.nan), light / unit), noise, unit)


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


def _connected(pixels: Pixels, centre: tuple[float, float]) -> Pixels:
    """The connected ones about a place."""
    from scipy.ndimage import label

    labels, _ = label(pixels)
    x, y = (round(min(max(c, 0), n - 1)) for c, n in zip(centre, pixels.shape[::-1], strict=True))
    return np.asarray((labels == labels[y, x]) & pixels)
