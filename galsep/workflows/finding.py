"""From an image array to its sources: the way of the data that all commands share.

background → SEP's blobs → cutouts → network → merge → split the light → measure.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from galsep.config import DeblendConfig
from galsep.conventions import DETECTABLE_SNR
from galsep.flags import Flag
from galsep.image.background import estimate_background
from galsep.image.binning import bin_labels, bin_light, magnify, shrink
from galsep.image.detect import Blobs, detect_blobs
from galsep.image.light import Frame, Light, without_background
from galsep.image.merging import Candidates, Merged, merge
from galsep.image.noise import scale_noise
from galsep.image.painting import count_overlaps, paint_labels
from galsep.image.psf import Domain, choose_domain, estimate_fwhm
from galsep.image.tiling import Tiling, cut, lay_cutouts
from galsep.measure.photometry import Photometry, measure, split_light
from galsep.model.inference import Found, calibrated, detect, harden
from galsep.model.network import normalise
from galsep.model.separation import separate
from galsep.model.weights import Model
from galsep.scene import Detections, Footprint, SoftMask, SourceLight

__all__ = [
    "Band",
    "FoundSources",
    "Parents",
    "Prepared",
    "find_sources",
    "finish",
    "prepare",
    "run_network",
]

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
class Band:
    """What was measured in one of several images of the same sources.

    Parameters
    ----------
    image : Light
    separated : sequence of SourceLight
    photometry : Photometry
    """

    image: Light
    separated: Sequence[SourceLight]
    photometry: Photometry


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
    separated : sequence of SourceLight
        Each source's part of ``light``.
    photometry : Photometry
    bands : mapping of str to Band
        The same of further images.
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
    separated: Sequence[SourceLight]
    photometry: Photometry
    bands: Mapping[str, "Band"]
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
    bands : mapping of str to Light
        Further images to measure on.
    blobs : Blobs
    tiling : Tiling
    cutouts : (m, 120, 120) float32 array
        Network input: pixels of the image, or of its average over blocks of ``domain.binning``.
    domain : Domain
    """

    image: Light
    measured: Light
    bands: Mapping[str, Light]
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
    bands = {name: without_background(band, mesh) for name, band in image.bands.items()}
    light, mask = own.light, own.mask
    blobs = detect_blobs(light, own.rms, mask)
    domain = choose_domain(estimate_fwhm(light, mask, blobs) if psf_limits else None, psf_limits)
    if domain.binning == 1:
        tiling = lay_cutouts(blobs.bounds, (light.shape[0], light.shape[1]), blobs.segm)
        cutouts = cut(normalise(light, own.rms), tiling.origins)
    else:
        tiling, cutouts = _cut_binned(own, blobs, domain.binning, mesh)
    return Prepared(own, measured, bands, blobs, tiling, cutouts, domain)


def _cut_binned(
    image: Light, blobs: Blobs, binning: int, mesh: int
) -> tuple[Tiling, npt.NDArray[np.float32]]:
    """Cut an image averaged over blocks; the tiling comes back in the image's own pixels."""
    binned, _, rms = _binned(image, binning, mesh)
    tiling = lay_cutouts(
        blobs.bounds // binning,
        (binned.shape[0], binned.shape[1]),
        bin_labels(blobs.segm, binning),
    )
    return tiling.magnified(binning), cut(normalise(binned, rms), tiling.origins)


def _binned(
    image: Light, binning: int, mesh: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
    """Light, unusable pixels and rms of an image averaged over blocks."""
    if binning == 1:
        return image.light, image.mask, image.rms
    binned, unusable = bin_light(image.light, image.mask, binning)
    # Measured anew, since the noise of neighbouring pixels may be correlated.
    rms = estimate_background(binned, unusable, mesh).rms
    if image.noise is not None:
        pattern, _ = bin_light(image.rms, image.mask, binning)
        rms = scale_noise(pattern, binned, rms, unusable).sky
    return binned, unusable, rms


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
    sources = _sorted(sources)
    binning = prepared.domain.binning

    def measure_in(band: Light) -> Band:
        separated = _separated(band, sources, model, binning, config.background_mesh)
        gain = config.gain
        return Band(band, separated, measure(separated, band.light, band.rms, gain, band.noise))

    own = measure_in(measured)
    photometry = own.photometry
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
        separated=own.separated,
        photometry=photometry,
        bands={name: measure_in(band) for name, band in prepared.bands.items()},
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
    level = model.mask_level
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
            mask = harden(whole, prepared.image.mask, level)
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


def _sorted(sources: _Sources) -> _Sources:
    """The sources sorted by position: rows first."""
    masks = sources.masks
    # Masks are as tight as their crops.
    order = sorted(
        range(len(masks)),
        key=lambda k: (masks[k].y0, masks[k].x0, *masks[k].probability.shape, k),
    )
    index = np.array(order, dtype=np.int64)
    return _Sources(
        masks=[masks[k] for k in order],
        claims=[sources.claims[k] for k in order],
        scores=sources.scores[index],
        class_star=sources.class_star[index],
        parent=sources.parent[index],
        tile=sources.tile[index],
        flags=sources.flags[index],
    )


def _separated(
    image: Light, sources: _Sources, model: Model, binning: int, mesh: int
) -> list[SourceLight]:
    """Each source's part of an image; the separation network sees what Mask R-CNN saw of it."""
    masks, claims = sources.masks, sources.claims
    if model.separator is None:
        return split_light(masks, claims, image.light, image.rms)
    light, unusable, rms = _binned(image, binning, mesh)
    parts = separate(
        model.separator,
        light / rms,
        ~unusable,
        [shrink(mask, binning, light.shape) for mask in masks],
        [None if claim is None else shrink(claim, binning, light.shape) for claim in claims],
        model.flux_fit,
    )
    return [_in_units(part, rms, binning, image) for part in parts]


def _in_units(
    part: SourceLight, rms: npt.NDArray[np.float32], binning: int, image: Light
) -> SourceLight:
    """Bring a part from sky rms of averaged pixels to the image's unit and pixels."""
    model = part.model * rms[part.slices]
    before = float(part.model.sum(dtype=np.float64))
    # The rms of a pixel where the source's light is.
    unit = float(model.sum(dtype=np.float64)) / before if before > 0 else float(np.median(rms))
    scale = unit * binning**2
    share = part.share
    if binning > 1:
        share = magnify(SoftMask(part.y0, part.x0, share), binning).probability
        model = magnify(SoftMask(part.y0, part.x0, model), binning).probability
        height, width = image.light.shape
        rows, columns = height - part.y0 * binning, width - part.x0 * binning
        share, model = share[:rows, :columns], model[:rows, :columns]
        box = slice(part.y0 * binning, height), slice(part.x0 * binning, width)
        hidden = image.mask[box][: share.shape[0], : share.shape[1]]
        model = np.where(hidden, np.float32(0), model)
    return SourceLight(
        part.y0 * binning, part.x0 * binning, share, model, part.flux * scale, part.flux_err * scale
    )


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
