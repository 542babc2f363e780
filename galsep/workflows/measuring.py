"""The light of each source: separated and measured, one block of an image after the other."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from galsep.image.background import estimate_background
from galsep.image.binning import bin_light, magnify, shrink
from galsep.image.large import Apart, LargeObject
from galsep.image.light import Light
from galsep.image.noise import scale_noise
from galsep.measure.photometry import Photometry, measure, split_light
from galsep.model.separation import SIDES, Said, separate, window
from galsep.model.weights import Model
from galsep.planes import Made, Planes, SoftMasks, SourceLights
from galsep.scene import SoftMask, SourceLight

__all__ = ["NOT_LARGE", "NO_TILE", "Band", "Sources", "Strengths", "binned", "measure_light"]

NO_TILE = -1
"""Cutout of a source that the network did not find."""

NOT_LARGE = -1
"""Number of a source that is no large object."""

LEAST_MODEL = 0.1
"""Light of the sky's rms that is divided like others' where a large object's light is faint."""

CONTEXT = 2 * SIDES[-1]
"""Sources are separated together with all those within so many rows: those whose crops meet
theirs, and what these see."""


@dataclass(frozen=True, slots=True)
class Band:
    """What was measured in one image.

    Parameters
    ----------
    image : Light
    separated : sequence of SourceLight
        Each source's part of it.
    photometry : Photometry
    """

    image: Light
    separated: Sequence[SourceLight]
    photometry: Photometry


@dataclass(frozen=True, slots=True)
class Sources:
    """Sources on their way to a catalogue.

    Masks are as tight as their crops, and 0 outside. SEP's outlines, whose ``tile`` is
    :data:`NO_TILE`, claim nothing: their claims mean nothing.

    Parameters
    ----------
    masks : SoftMasks
        In image coordinates, sorted by their first rows.
    claims : SoftMasks
        On the same crops, the share of the light that is predicted to be the source's own.
    scores : (n,) float array
        Calibrated.
    class_star : (n,) float array
        Probability of a point source by Mask R-CNN; NaN where it gives none.
    parent : (n,) int array
        SEP detection, counted from 1; 0 for none.
    tile : (n,) int array
        Cutout that owns the source.
    flags : (n,) int array
        Bits of :class:`galsep.flags.Flag`.
    large : (n,) int array
        Which of the image's large objects a source is; :data:`NOT_LARGE` if it is none.
    """

    masks: SoftMasks
    claims: SoftMasks
    scores: npt.NDArray[np.float64]
    class_star: npt.NDArray[np.float64]
    parent: npt.NDArray[np.int64]
    tile: npt.NDArray[np.int64]
    flags: npt.NDArray[np.int64]
    large: npt.NDArray[np.int64]


def measure_light(
    apart: Apart,
    sources: Sources,
    model: Model,
    planes: Planes,
    binning: int,
    mesh: int,
    fwhm: float | None = None,
) -> Band:
    """Separate and measure the light of an image, one block of it after the other.

    Parameters
    ----------
    apart : Apart
        The image, and its large objects.
    sources : Sources
        In its pixels.
    model : Model
    planes : Planes
        Where large arrays are.
    binning : int
        Side of the blocks of pixels that the network sees averages of.
    mesh : int
        Side of the cells of the background of such averages.
    fwhm : float, optional
        Of the image's PSF, pixels, where it is known.
    """
    separates = _Separate(fwhm and fwhm / binning, remembers=model.spread is None)
    seen = _Seen(apart, *binned(apart, binning, mesh, planes), binning)
    separated = SourceLights(planes.folder)
    parts: list[Photometry] = []
    waiting: deque[_Block] = deque()

    def given() -> Iterator[_Given]:
        for block in _blocks(seen, sources, planes):
            waiting.append(block)
            yield _given(seen, block, model)

    for found in model.each(separates, given()):
        some, photometry = _measure(seen, waiting.popleft(), found, model)
        for part in some:
            separated.append(part)
        parts.append(photometry)
    columns = {
        name: np.concatenate([np.zeros(0), *(getattr(part, name) for part in parts)])
        for name in Photometry.__dataclass_fields__
    }
    return Band(apart.image, separated if planes.folder else list(separated), Photometry(**columns))


class Strengths(Made[SoftMask]):
    """What sources compete for the pixels of the label map with: their models on their masks.

    Large objects have the pixels that no others' masks hold; of these the brightest there has each.
    """

    def __init__(self, sources: Sources, parts: Sequence[SourceLight]) -> None:
        self._masks, self._parts = sources.masks, parts
        self._large = sources.large != NOT_LARGE
        large = np.flatnonzero(self._large).tolist()
        self._brightest = max((float(parts[k].model.max()) for k in large), default=0.0) or 1.0
        self.bounds = sources.masks.bounds

    def __len__(self) -> int:
        return len(self._masks)

    def one(self, index: int) -> SoftMask:
        """The model of source ``index`` on its mask."""
        mask, part = self._masks[index], self._parts[index]
        least = np.finfo(np.float32).tiny
        height, width = mask.probability.shape
        model = np.zeros((height, width), dtype=np.float32)
        # Crops hold their masks, but for those of the largest objects.
        here, there = window(part.y0 - mask.y0, part.x0 - mask.x0, part.model.shape, model.shape)
        model[here] = part.model[there]
        # Below what others have at least.
        strength = np.maximum(model, 2 * least)
        if self._large[index]:
            strength = least * (1 + np.float32(0.99) * model / np.float32(self._brightest))
        return SoftMask(mask.y0, mask.x0, np.where(mask.probability > 0, strength, 0))


@dataclass(frozen=True, slots=True)
class _Seen:
    """An image, and what the separation network sees of it: averages over ``binning`` pixels."""

    apart: Apart
    pixels: npt.NDArray[np.float32]
    unusable: npt.NDArray[np.bool_]
    rms: npt.NDArray[np.float32]
    binning: int


@dataclass(frozen=True, slots=True)
class _Block:
    """Some sources, and all those whose light their separation depends on.

    Parameters
    ----------
    masks, claims : list
        In the rows of ``rows``; no claim for SEP's outlines.
    own : slice
        The wanted ones among them.
    rows : slice
        Of the image's averaged pixels, those of all crops.
    numbers : list of int
        Of the sources in the image.
    whole : (int, int)
        Of those rows, the ones that all sources are known of, the second exclusive.
    large : list of LargeObject or None
        Which one each source is, if it is one.
    """

    masks: list[SoftMask]
    claims: list[SoftMask | None]
    own: slice
    rows: slice
    numbers: list[int]
    whole: tuple[int, int]
    large: list[LargeObject | None]


def _blocks(seen: _Seen, sources: Sources, planes: Planes) -> Iterator[_Block]:
    """Divide sources by the blocks of the image that their first rows lie in."""
    bounds = sources.masks.bounds
    # Large objects have light beyond their masks.
    reach = bounds.copy()
    for k in np.flatnonzero(sources.large != NOT_LARGE).tolist():
        down = seen.apart.large[sources.large[k]].box[0]
        reach[k, 1], reach[k, 3] = down.start, down.stop - 1
    context = CONTEXT * seen.binning
    for rows in planes.blocks(seen.apart.image.light.shape):
        # Sources are sorted by their first rows.
        first, last = np.searchsorted(bounds[:, 1], [rows.start, rows.stop]).tolist()
        if first == last:
            continue
        top = min(rows.start, reach[first:last, 1].min()) - context
        bottom = reach[first:last, 3].max() + context
        near = np.flatnonzero((reach[:, 3] >= top) & (reach[:, 1] <= bottom))
        own = slice(*np.searchsorted(near, [first, last]).tolist())
        yield _block(seen, sources, near, own, (int(top), int(bottom) + 1))


def _block(
    seen: _Seen,
    sources: Sources,
    near: npt.NDArray[np.int64],
    own: slice,
    known: tuple[int, int],
) -> _Block:
    masks = [sources.masks[k] for k in near.tolist()]
    binning, margin = seen.binning, SIDES[-1]
    large = [
        None if which == NOT_LARGE else seen.apart.large[which]
        for which in sources.large[near].tolist()
    ]
    rows = [mask.slices[0] for mask in masks] + [one.box[0] for one in large if one is not None]
    # The first of the rows begins a block of averaged pixels.
    first = max(0, min(part.start for part in rows) // binning - margin)
    last = -(-max(part.stop for part in rows) // binning) + margin
    top = first * binning
    masks = [mask.shifted(-top, 0) for mask in masks]
    claims: list[SoftMask | None] = []
    for index, k in enumerate(near.tolist()):
        if sources.tile[k] == NO_TILE:
            whole = (masks[index].probability > 0).astype(np.float32)
            masks[index] = replace(masks[index], probability=whole)
            claims.append(None)
        else:
            claims.append(sources.claims[k].shifted(-top, 0))
    whole = -(-known[0] // binning) - first, known[1] // binning - first
    return _Block(masks, claims, own, slice(first, last), near.tolist(), whole, large)


_Given = tuple[npt.NDArray[np.float32], npt.NDArray[Any], _Block]
"""Light, its noise or which of it is usable, and the block, its masks in the same pixels."""


def _given(seen: _Seen, block: _Block, model: Model) -> _Given:
    """What the separation of a block's sources needs to know, and nothing else.

    Large objects are not among them: their light has been taken out.
    """
    binning = seen.binning
    kept = [index for index, one in enumerate(block.large) if one is None]
    block = replace(
        block,
        masks=[block.masks[index] for index in kept],
        claims=[block.claims[index] for index in kept],
        numbers=[block.numbers[index] for index in kept],
        large=[],
    )
    if model.separator is None:
        rows = _magnified(block.rows, binning)
        rest = seen.apart.rest
        return rest.light[rows], rest.rms[rows], block
    pixels, rms = seen.pixels[block.rows], seen.rms[block.rows]
    masks = [shrink(mask, binning, pixels.shape) for mask in block.masks]
    claims = [
        None if claim is None else shrink(claim, binning, pixels.shape) for claim in block.claims
    ]
    shrunk = replace(block, masks=masks, claims=claims)
    return pixels / rms, ~seen.unusable[block.rows], shrunk


class _Separate:
    """Separates the light of the sources of one block after the other.

    Parameters
    ----------
    fwhm : float or None
        Of the PSF, in the pixels that the network sees.
    remembers : bool
        Keep what the network has said of a block's sources for the next one, which begins with
        some of them.
    """

    def __init__(self, fwhm: float | None, *, remembers: bool) -> None:
        self._fwhm = fwhm
        self._remembers = remembers
        self._said: dict[int, Said] = {}

    def __call__(self, model: Model, given: _Given) -> list[SourceLight]:
        """Separate the light of a block's sources."""
        light, beside, block = given
        masks, numbers = block.masks, block.numbers
        if model.separator is None:
            return split_light(masks, block.claims, light, beside)
        said = {k: self._said[one] for k, one in enumerate(numbers) if one in self._said}
        parts = separate(
            model.separator,
            light,
            beside,
            masks,
            block.claims,
            fit=model.flux_fit,
            fwhm=self._fwhm,
            said=said,
        )
        if self._remembers:
            low, high = block.whole[0] + SIDES[-1] // 2, block.whole[1] - SIDES[-1] // 2
            middle = [mask.y0 + len(mask.probability) // 2 for mask in masks]
            # What the others' crops show may not have been all there.
            self._said = {numbers[k]: one for k, one in said.items() if low < middle[k] < high}
        return parts


def _magnified(rows: slice, binning: int) -> slice:
    return slice(rows.start * binning, rows.stop * binning)


def _measure(
    seen: _Seen, block: _Block, parts: list[SourceLight], model: Model
) -> tuple[list[SourceLight], Photometry]:
    """Measure the separated light of a block's sources.

    Returns
    -------
    separated : list of SourceLight
        Of the wanted sources, in image coordinates.
    photometry : Photometry
        Of the wanted sources.
    """
    image, binning = seen.apart.image, seen.binning
    rows = _magnified(block.rows, binning)
    light, rms, hidden = image.light[rows], image.rms[rows], image.mask[rows]
    if model.separator is not None:
        pixel_rms = seen.rms[block.rows]
        parts = [_in_units(part, pixel_rms, binning, hidden) for part in parts]
        if binning > 1:
            parts = _exclusive(parts, light.shape)
    parts = _with_large(parts, block, seen.apart, rows)
    noise = None if image.noise is None else image.noise[rows]
    photometry = measure(parts, light, rms, image.gain, noise, block.own, rows.start)
    # Of a source without any data, nothing is known: of one in another band, or another image.
    unseen = [
        bool(hidden[mask.slices][mask.probability > 0].all()) for mask in block.masks[block.own]
    ]
    photometry = replace(
        photometry,
        flux=np.where(unseen, np.nan, photometry.flux),
        flux_err=np.where(unseen, np.nan, photometry.flux_err),
    )
    return [replace(part, y0=part.y0 + rows.start) for part in parts[block.own]], photometry


def _in_units(
    part: SourceLight,
    rms: npt.NDArray[np.float32],
    binning: int,
    hidden: npt.NDArray[np.bool_],
) -> SourceLight:
    """Bring a part from the sky rms of averaged pixels to the image's unit and pixels."""
    model = part.model * rms[part.slices]
    before = float(part.model.sum(dtype=np.float64))
    # The rms where the source's light is.
    unit = float(model.sum(dtype=np.float64)) / before if before > 0 else float(np.median(rms))
    scale = unit * binning**2
    y0, x0, share = part.y0 * binning, part.x0 * binning, part.share
    if binning > 1:
        height, width = hidden.shape[0] - y0, hidden.shape[1] - x0
        share, model = (
            magnify(SoftMask(0, 0, layer), binning).probability[:height, :width]
            for layer in (share, model)
        )
        model = model * ~hidden[y0 : y0 + model.shape[0], x0 : x0 + model.shape[1]]
    return SourceLight(y0, x0, share, model, part.flux * scale, part.flux_err * scale)


def _exclusive(parts: Sequence[SourceLight], shape: tuple[int, ...]) -> list[SourceLight]:
    """Keep shares together to one: interpolated, they are more where one's crop ends."""
    total = np.zeros(shape, dtype=np.float32)
    for part in parts:
        total[part.slices] += part.share
    np.maximum(total, 1, out=total)
    return [replace(part, share=part.share / total[part.slices]) for part in parts]


def _with_large(
    parts: Sequence[SourceLight], block: _Block, apart: Apart, rows: slice
) -> list[SourceLight]:
    """Put large objects back among the sources whose light was separated without theirs.

    A pixel's light is shared in proportion to the models. Of what the large object's own does not
    account for, that of others is still theirs, and what no source has is the large object's.
    """
    if not any(block.large):
        return list(parts)
    rms, hidden = apart.image.rms[rows], apart.image.mask[rows]
    models, shares, known, doubt, holders = np.zeros((5, *rms.shape), dtype=np.float32)
    for part in parts:
        models[part.slices] += part.model
        shares[part.slices] += part.share
    boxes: list[tuple[slice, slice]] = []
    for one in block.large:
        if one is None:
            boxes.append((slice(0), slice(0)))
            continue
        down, across = one.box
        boxes.append((slice(down.start - rows.start, down.stop - rows.start), across))
        known[boxes[-1]] += one.light
        doubt[boxes[-1]] += one.doubt
        holders[one.outline.shifted(-rows.start, 0).slices] += one.outline.mask
    models += np.float32(LEAST_MODEL) * rms
    others = models / (models + known)
    apportioned = iter(parts)
    joined = []
    for one, box in zip(block.large, boxes, strict=True):
        if one is None:
            part = next(apportioned)
            joined.append(
                replace(
                    part,
                    share=part.share * others[part.slices],
                    flux_err=math.hypot(part.flux_err, _under(part, doubt[part.slices])),
                )
            )
            continue
        mask = one.outline.shifted(-one.y0, -one.x0).to_full(one.light.shape)
        left = np.maximum(1 - shares[box], 0) * others[box] * mask / np.maximum(holders[box], 1)
        share = one.light / (models + known)[box] + left
        joined.append(
            SourceLight(
                y0=box[0].start,
                x0=box[1].start,
                share=np.asarray(share, dtype=np.float32),
                model=np.where(hidden[box], np.float32(0), one.light),
                flux=one.flux,
                flux_err=one.error(apart.image),
            )
        )
    return joined


def _under(part: SourceLight, doubt: npt.NDArray[np.float32]) -> float:
    """Error of a flux by that of the large objects' light under the source, alike in all pixels.

    Of a flux that is a sum weighted by the source's model.
    """
    model = part.model.astype(np.float64)
    # Relative to the peak: squares may be too small for numbers, or too large.
    peak = float(model.max(initial=0))
    if not (peak > 0 and doubt.any()):
        return 0.0
    profile = model / peak
    return float((profile * doubt).sum() * profile.sum() / (profile**2).sum())


def binned(
    apart: Apart, binning: int, mesh: int, planes: Planes
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
    """Light, unusable pixels and noise of an image without large objects, averaged over blocks.

    Parameters
    ----------
    apart : Apart
        Of ``h`` × ``w`` pixels.
    binning : int
        Side ``k`` of a block, pixels; with 1, what is returned are the rest's own arrays.
    mesh : int
        Side of a cell of the background mesh that the noise is measured on, in averaged pixels.
    planes : Planes
        Where the results are to be.

    Returns
    -------
    light : (⌈h/k⌉, ⌈w/k⌉) float32 array
        In the image's unit, 0 where unusable.
    unusable : bool array of the same shape
        True for blocks of which less than half is valid.
    rms : float32 array of the same shape
        Noise of the sky in an averaged pixel, and what is not known of the large objects' light.

    Raises
    ------
    OutputError
        When the folder of ``planes`` has no room.
    """
    image, rest = apart.image, apart.rest
    if binning == 1:
        return rest.light, rest.mask, rest.rms
    binned, unusable = bin_light(rest.light, rest.mask, binning, planes)
    # Measured anew: the noise of neighbouring pixels may be correlated.
    rms = estimate_background(binned, unusable, mesh, planes).rms
    if image.noise is not None:
        pattern, _ = bin_light(image.rms, image.mask, binning, planes)
        rms = scale_noise(pattern, binned, rms, unusable, planes).sky
    if apart.large:
        doubt = planes.new(rest.rms.shape, np.float32)
        for rows in planes.blocks(doubt.shape):
            sky = np.minimum(image.rms[rows] / rest.rms[rows], 1)
            doubt[rows] = rest.rms[rows] * np.sqrt(1 - sky**2)
        # It is alike in neighbouring pixels.
        doubt, _ = bin_light(doubt, rest.mask, binning, planes)
        for rows in planes.blocks(rms.shape):
            rms[rows] = np.hypot(rms[rows], doubt[rows])
    return binned, unusable, rms
