"""From an image array to its sources: the way of the data that all commands share.

background → SEP's blobs → cutouts → network → merge → split the light → measure.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from galsep.config import DeblendConfig
from galsep.conventions import DETECTABLE_SNR
from galsep.flags import Flag
from galsep.image.background import estimate_background
from galsep.image.binning import bin_labels, bin_light, magnify
from galsep.image.detect import Blobs, detect_blobs
from galsep.image.light import Frame, Light, without_background
from galsep.image.merging import Candidates, Merged, merge
from galsep.image.noise import scale_noise
from galsep.image.painting import count_overlaps, paint_labels
from galsep.image.psf import Domain, choose_domain, estimate_fwhm
from galsep.image.tiling import Tiling, cut, lay_cutouts
from galsep.measure.photometry import Photometry, measure, split_light
from galsep.model.inference import Found, detect
from galsep.model.network import normalise
from galsep.model.weights import Model
from galsep.scene import Detections, Footprint, SoftMask

__all__ = [
    "FoundSources",
    "Parents",
    "Prepared",
    "calibrated",
    "find_sources",
    "finish",
    "logit",
    "prepare",
    "run_network",
]

MASK_LEVEL = 0.5
"""A pixel belongs to a mask where the network gives it more than this probability, unless the
weights come with a level of their own."""

STATUSES = ("confirmed", "split", "missed", "rejected")
"""What became of a SEP detection: one source, several, none though it is significant, none."""

NO_TILE = -1

OUTLINE = np.float32(1e-3)
"""Strength of SEP's outlines against masks of the network."""


@dataclass(frozen=True, slots=True)
class Parents:
    """SEP's detections and what became of them.

    Parameters
    ----------
    blobs : Blobs
    n_child : (n,) int array
        Catalogue rows that come out of each.
    status : (n,) str array
        One of :data:`STATUSES`.
    """

    blobs: Blobs
    n_child: npt.NDArray[np.int64]
    status: npt.NDArray[np.str_]


@dataclass(frozen=True, slots=True)
class FoundSources:
    """Everything found in one image; arrays have one entry a source, in the order of labels.

    Parameters
    ----------
    detections : Detections
        Masks in image coordinates, calibrated scores, deblended fluxes.
    flags : (n,) int array
        Bits of :class:`galsep.flags.Flag`.
    parent : (n,) int array
        SEP detection, counted from 1; 0 for none.
    tile : (n,) int array
        Cutout that owns the source; −1 for SEP's own outlines.
    segm : (h, w) int32 array
        Label map.
    noverlap : (h, w) uint8 array
        Masks per pixel.
    background, rms : (h, w) float32 arrays
        Of the image that was measured, as are all that follow.
    noise : (h, w) float32 array or None
    noise_scale : float or None
        See :class:`Light`.
    light : (h, w) float32 array
        Image minus background, 0 where unusable.
    shares : sequence of SoftMask
        Share of each pixel that is each source's.
    photometry : Photometry
    parents : Parents
    tiling : Tiling
    domain : Domain
        How the image's PSF compares with those that the network was trained on.
    """

    detections: Detections
    flags: npt.NDArray[np.int64]
    parent: npt.NDArray[np.int64]
    tile: npt.NDArray[np.int64]
    segm: npt.NDArray[np.int32]
    noverlap: npt.NDArray[np.uint8]
    background: npt.NDArray[np.float32]
    rms: npt.NDArray[np.float32]
    noise: npt.NDArray[np.float32] | None
    noise_scale: float | None
    light: npt.NDArray[np.float32]
    shares: Sequence[SoftMask]
    photometry: Photometry
    parents: Parents
    tiling: Tiling
    domain: Domain


@dataclass(frozen=True, slots=True)
class Prepared:
    """An image on its way to the network.

    Parameters
    ----------
    image : Light
    measured : Light
        The image to measure on; the same unless another was given.
    blobs : Blobs
    tiling : Tiling
    cutouts : (m, 120, 120) float32 array
        Network input: pixels of the image, or of its average over blocks of ``domain.binning``.
    domain : Domain
    """

    image: Light
    measured: Light
    blobs: Blobs
    tiling: Tiling
    cutouts: npt.NDArray[np.float32]
    domain: Domain


@dataclass(frozen=True, slots=True)
class _Sources:
    """Sources on their way to a catalogue, before they are sorted."""

    masks: list[SoftMask]
    claims: list[SoftMask | None]
    scores: npt.NDArray[np.float64]
    class_star: npt.NDArray[np.float64]
    parent: npt.NDArray[np.int64]
    tile: npt.NDArray[np.int64]
    flags: npt.NDArray[np.int64]


def find_sources(
    images: Iterable[npt.NDArray[Any] | Frame],
    model: Model,
    config: DeblendConfig | None = None,
    *,
    threshold: float | None = None,
) -> Iterator[FoundSources]:
    """Find and measure the sources of images, one result an image, in order.

    Cutouts of several images share a batch of the network.

    Parameters
    ----------
    images : iterable of (h, w) arrays or Frame
        In any unit; pixels that are not finite, or masked in a masked array, are left out.
    model : Model
    config : DeblendConfig, optional
    threshold : float, optional
        Calibrated score from which a source counts; by default that of ``config``, and if this
        is 0, the one stored with the weights.
    """
    config = config or DeblendConfig()
    if threshold is None:
        threshold = config.threshold or model.threshold
    for prepared, found in run_network(images, model, config):
        yield finish(prepared, found, model, config, threshold)


def run_network(
    images: Iterable[npt.NDArray[Any] | Frame], model: Model, config: DeblendConfig
) -> Iterator[tuple[Prepared, list[Found]]]:
    """Prepare images and run the network on their cutouts, several images a batch."""
    waiting: list[Prepared] = []
    limits = _psf_limits(model)
    for image in images:
        waiting.append(prepare(image, config, limits))
        if sum(len(prepared.cutouts) for prepared in waiting) >= 4 * config.batch_size:
            yield from _run_waiting(waiting, model, config)
            waiting = []
    yield from _run_waiting(waiting, model, config)


def calibrated(model: Model, raw: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Turn the network's scores into probabilities, by the logistic fit stored with it.

    p = 1 / (1 + exp(−(a · logit(raw) + b))) (Platt 1999); without a fit, a = 1 and b = 0.
    """
    fit = model.info.get("calibration", {})
    value = fit.get("slope", 1.0) * logit(raw) + fit.get("intercept", 0.0)
    return np.asarray(1 / (1 + np.exp(-value)))


def logit(probability: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """log(p / (1 − p)), finite also at 0 and 1."""
    low = 1e-6
    return np.asarray(np.log(np.clip(probability, low, 1) / np.clip(1 - probability, low, 1)))


def prepare(
    image: npt.NDArray[Any] | Frame,
    config: DeblendConfig,
    psf_limits: tuple[float, float] | None = None,
) -> Prepared:
    """Subtract the background, run SEP, and cut the image into the network's input.

    An image whose PSF is wider than ``psf_limits`` (smallest and largest FWHM, pixels) allow is
    averaged over blocks of pixels for the network, and for nothing else.
    """
    if not isinstance(image, Frame):
        image = Frame(np.ma.getdata(image), np.ma.getmaskarray(image))
    mesh = config.background_mesh
    own = without_background(image, mesh)
    measured = own if image.measured is None else without_background(image.measured, mesh)
    light, mask = own.light, own.mask
    blobs = detect_blobs(light, own.rms, mask)
    domain = choose_domain(estimate_fwhm(light, mask, blobs) if psf_limits else None, psf_limits)
    if domain.binning == 1:
        tiling = lay_cutouts(blobs.bounds, (light.shape[0], light.shape[1]), blobs.segm)
        cutouts = cut(normalise(light, own.rms), tiling.origins)
    else:
        tiling, cutouts = _cut_binned(own, blobs, domain.binning, mesh)
    return Prepared(own, measured, blobs, tiling, cutouts, domain)


def _cut_binned(
    image: Light, blobs: Blobs, binning: int, mesh: int
) -> tuple[Tiling, npt.NDArray[np.float32]]:
    """Cut an image averaged over blocks; the tiling comes back in the image's own pixels."""
    binned, unusable = bin_light(image.light, image.mask, binning)
    # Measured anew, since the noise of neighbouring pixels may be correlated.
    rms = estimate_background(binned, unusable, mesh).rms
    if image.noise is not None:
        pattern, _ = bin_light(image.rms, image.mask, binning)
        rms = scale_noise(pattern, binned, rms, unusable).sky
    tiling = lay_cutouts(
        blobs.bounds // binning,
        (binned.shape[0], binned.shape[1]),
        bin_labels(blobs.segm, binning),
    )
    return tiling.magnified(binning), cut(normalise(binned, rms), tiling.origins)


def _psf_limits(model: Model) -> tuple[float, float] | None:
    """Smallest and largest FWHM, in pixels, that the network was trained on, where it says so."""
    limits = model.info.get("psf_fwhm_range")
    return (float(limits[0]), float(limits[1])) if limits else None


def _run_waiting(
    waiting: list[Prepared], model: Model, config: DeblendConfig
) -> Iterator[tuple[Prepared, list[Found]]]:
    if not waiting:
        return
    cutouts = np.concatenate([prepared.cutouts for prepared in waiting])
    found = detect(model, cutouts, config.batch_size)
    start = 0
    for prepared in waiting:
        stop = start + len(prepared.cutouts)
        yield prepared, found[start:stop]
        start = stop


def finish(
    prepared: Prepared, found: list[Found], model: Model, config: DeblendConfig, threshold: float
) -> FoundSources:
    """Merge what the network found in an image's cutouts, split the light and measure it."""
    image, measured = prepared.image, prepared.measured
    shape = (image.light.shape[0], image.light.shape[1])
    masks, claims, candidates, class_star = _candidates(prepared, found, model, threshold)
    merged = merge(candidates, prepared.blobs, prepared.tiling, image.light, image.rms)
    sources = _with_outlines(
        prepared,
        merged,
        _Sources(
            masks=[masks[index] for index in merged.kept.tolist()],
            claims=[claims[index] for index in merged.kept.tolist()],
            scores=candidates.scores[merged.kept],
            class_star=class_star[merged.kept],
            parent=merged.parent,
            tile=candidates.cutout[merged.kept],
            flags=np.zeros(len(merged.kept), dtype=np.int64),
        ),
        float(model.info.get("calibration", {}).get("missed", 0.5)),
    )
    shares, photometry, sources = _measured(measured, sources, config)
    footprints = [mask.footprint(0) for mask in sources.masks]
    noverlap = count_overlaps(footprints, shape)
    flags = sources.flags | _pixel_flags(footprints, noverlap, image.mask | measured.mask)
    if not prepared.domain.inside:
        flags |= Flag.OUT_OF_DOMAIN
    detections = Detections(
        footprints=footprints,
        x=photometry.x,
        y=photometry.y,
        scores=sources.scores,
        flux=photometry.flux,
        class_star=sources.class_star,
    )
    return FoundSources(
        detections=detections,
        flags=flags,
        parent=sources.parent,
        tile=sources.tile,
        segm=paint_labels(_strengths(sources), sources.scores, shape),
        noverlap=noverlap,
        background=measured.background,
        rms=measured.rms,
        noise=measured.noise,
        noise_scale=measured.noise_scale,
        light=measured.light,
        shares=shares,
        photometry=photometry,
        parents=_parents(prepared.blobs, sources),
        tiling=prepared.tiling,
        domain=prepared.domain,
    )


def _candidates(
    prepared: Prepared, found: list[Found], model: Model, threshold: float
) -> tuple[list[SoftMask], list[SoftMask | None], Candidates, npt.NDArray[np.float64]]:
    """What the network found above the threshold, in image coordinates, masks cut to size.

    Beside the masks come the shares of the light that their sources claim.
    """
    level = float(model.info.get("mask_level", MASK_LEVEL))
    binning = prepared.domain.binning
    masks: list[SoftMask] = []
    claims: list[SoftMask | None] = []
    footprints, scores, star, cutout = [], [], [], []
    for index, (here, (y0, x0)) in enumerate(
        zip(found, prepared.tiling.origins.tolist(), strict=True)
    ):
        probabilities = calibrated(model, here.scores)
        for position in np.flatnonzero(probabilities >= threshold).tolist():
            whole = magnify(here.masks[position], binning).shifted(y0, x0)
            mask = _hard(whole, prepared.image.mask, level)
            if mask is None:
                continue
            footprint = mask.footprint(0)
            masks.append(mask)
            claim = magnify(here.shares[position], binning).shifted(y0, x0)
            claims.append(claim.cropped(footprint))
            footprints.append(footprint)
            scores.append(probabilities[position])
            star.append(here.class_star[position])
            cutout.append(index)
    candidates = Candidates(
        footprints, np.array(scores, dtype=np.float64), np.array(cutout, dtype=np.int64)
    )
    return masks, claims, candidates, np.array(star, dtype=np.float64)


def _hard(mask: SoftMask, unusable: npt.NDArray[np.bool_], level: float) -> SoftMask | None:
    """Set a mask to 0 outside itself, outside the image and on unusable pixels."""
    footprint = mask.footprint(level).clipped((unusable.shape[0], unusable.shape[1]))
    if footprint.area == 0:
        return None
    good = Footprint.from_mask(
        footprint.mask & ~unusable[footprint.slices], footprint.y0, footprint.x0
    )
    if good.area == 0:
        return None
    inside = mask.cropped(good)
    return SoftMask(good.y0, good.x0, np.where(good.mask, inside.probability, 0))


def _with_outlines(
    prepared: Prepared, merged: Merged, sources: _Sources, missed_score: float
) -> _Sources:
    """Add SEP's outlines: objects larger than a cutout, and blobs that the network missed."""
    outlines = [(parent, footprint, Flag.LARGER_THAN_CUTOUT) for parent, footprint in merged.large]
    blobs = prepared.blobs
    children = np.bincount(
        np.concatenate([sources.parent, np.array([o[0] for o in outlines], dtype=np.int64)]),
        minlength=len(blobs) + 1,
    )
    for index in np.flatnonzero((children[1:] == 0) & (blobs.snr >= DETECTABLE_SNR)).tolist():
        xmin, ymin, xmax, ymax = blobs.bounds[index].tolist()
        pixels = blobs.segm[ymin : ymax + 1, xmin : xmax + 1] == index + 1
        footprint = Footprint.from_mask(pixels, ymin, xmin)
        outlines.append((index + 1, footprint, Flag.NETWORK_MISSED))
    n = len(outlines)
    return _Sources(
        masks=sources.masks
        + [SoftMask(f.y0, f.x0, f.mask.astype(np.float32)) for _, f, _ in outlines],
        claims=sources.claims + [None] * n,
        scores=np.concatenate([sources.scores, np.full(n, missed_score)]),
        # Nothing has been learnt about the class of a source that the network did not see.
        class_star=np.concatenate([sources.class_star, np.full(n, math.nan)]),
        parent=np.concatenate([sources.parent, np.array([o[0] for o in outlines], dtype=np.int64)]),
        tile=np.concatenate([sources.tile, np.full(n, NO_TILE)]),
        flags=np.concatenate([sources.flags, np.array([int(o[2]) for o in outlines], np.int64)]),
    )


def _measured(
    image: Light, sources: _Sources, config: DeblendConfig
) -> tuple[list[SoftMask], Photometry, _Sources]:
    """Split and measure the light, with the sources sorted by position: rows first."""
    masks = sources.masks
    # Masks are as tight as their crops.
    order = sorted(
        range(len(masks)),
        key=lambda k: (masks[k].y0, masks[k].x0, *masks[k].probability.shape, k),
    )
    index = np.array(order, dtype=np.int64)
    sources = _Sources(
        masks=[masks[k] for k in order],
        claims=[sources.claims[k] for k in order],
        scores=sources.scores[index],
        class_star=sources.class_star[index],
        parent=sources.parent[index],
        tile=sources.tile[index],
        flags=sources.flags[index],
    )
    shape = (image.light.shape[0], image.light.shape[1])
    shares = split_light(sources.masks, sources.claims, shape)
    photometry = measure(shares, image.light, image.rms, config.gain, image.noise)
    return shares, photometry, sources


def _strengths(sources: _Sources) -> list[SoftMask]:
    """What sources compete for pixels of the label map with: the probability of their masks.

    It agrees better with the brightest source's pixels than the predicted shares do. SEP's
    outlines, which have no probability, get what no mask holds.
    """
    return [
        mask if claim is not None else SoftMask(mask.y0, mask.x0, mask.probability * OUTLINE)
        for mask, claim in zip(sources.masks, sources.claims, strict=True)
    ]


def _pixel_flags(
    footprints: Sequence[Footprint],
    noverlap: npt.NDArray[np.uint8],
    unusable: npt.NDArray[np.bool_],
) -> npt.NDArray[np.int64]:
    """Flags that follow from a source's pixels alone."""
    from scipy.ndimage import binary_dilation

    height, width = unusable.shape
    near_unusable = binary_dilation(unusable) if unusable.any() else unusable
    flags = np.zeros(len(footprints), dtype=np.int64)
    for index, footprint in enumerate(footprints):
        xmin, ymin, xmax, ymax = footprint.bounds
        if xmin == 0 or ymin == 0 or xmax == width - 1 or ymax == height - 1:
            flags[index] |= Flag.IMAGE_EDGE
        if near_unusable[footprint.slices][footprint.mask].any():
            flags[index] |= Flag.MASKED_PIXELS
        if (noverlap[footprint.slices][footprint.mask] > 1).any():
            flags[index] |= Flag.OVERLAPS
    return flags


def _parents(blobs: Blobs, sources: _Sources) -> Parents:
    children = np.bincount(sources.parent, minlength=len(blobs) + 1)[1:]
    missed = np.zeros(len(blobs), dtype=bool)
    missed[sources.parent[(sources.flags & Flag.NETWORK_MISSED) > 0] - 1] = True
    status = np.select(
        [missed, children > 1, children == 1], ["missed", "split", "confirmed"], "rejected"
    )
    return Parents(blobs, children, status)
