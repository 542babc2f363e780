"""From an image array to its sources: the way of the data that all commands share.

background → SEP's blobs → cutouts → network → merge → split the light → measure.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from galsep.config import DeblendConfig
from galsep.conventions import DETECTABLE_SNR
from galsep.flags import Flag
from galsep.image.binning import magnify
from galsep.image.detect import Blobs
from galsep.image.large import Apart, in_outlines, large_columns
from galsep.image.light import Frame
from galsep.image.merging import Candidates, Merged, merge
from galsep.image.painting import count_overlaps, paint_labels
from galsep.image.points import fit_columns, point_features
from galsep.image.psf import Domain
from galsep.image.tiling import Tiling
from galsep.measure.forced import LEAST_SEEN, forced_fluxes
from galsep.measure.photometry import Photometry
from galsep.model.inference import Found, calibrated, harden
from galsep.model.weights import Model
from galsep.planes import Footprints, Picked, Planes, SoftMasks
from galsep.scene import Detections, Footprint, SoftMask, SourceLight
from galsep.workflows.measuring import NO_TILE, NOT_LARGE, Band, Sources, Strengths, measure_light
from galsep.workflows.preparing import Prepared, run_network

__all__ = [
    "STATUSES",
    "FoundSources",
    "Parents",
    "class_columns",
    "find_sources",
    "finish",
    "with_hidden_neighbours",
]

STATUSES = ("confirmed", "split", "missed", "rejected")
"""What became of a SEP detection: one source, several, none though it is significant, none."""


OUTLINE = np.float32(1e-3)
"""Strength of SEP's outlines against masks of the network."""


FEW_SOURCES = 512
"""So many are looked at before the pixels of a large image are let go."""


@dataclass(frozen=True, slots=True)
class Parents:
    """SEP's detections and what became of them.

    Parameters
    ----------
    blobs : Blobs
        Of the image without its large objects; then these, of which the label map holds none.
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
    measured : Band
        What was measured in the image, or in the one to measure on.
    bands : mapping of str to Band
        What was measured in further images; without their separated light if it was not asked for.
    parents : Parents
    tiling : Tiling
    domain : Domain
        How the image's PSF compares with those that the network was trained on.
    planes : Planes
        Where its arrays are.
    """

    detections: Detections
    flags: npt.NDArray[np.int64]
    parent: npt.NDArray[np.int64]
    tile: npt.NDArray[np.int64]
    segm: npt.NDArray[np.int32]
    noverlap: npt.NDArray[np.uint8]
    measured: Band
    bands: Mapping[str, Band]
    parents: Parents
    tiling: Tiling
    domain: Domain
    planes: Planes

    @property
    def light(self) -> npt.NDArray[np.float32]:
        """Image minus background, 0 where unusable."""
        return self.measured.image.light

    @property
    def background(self) -> npt.NDArray[np.float32]:
        """What was subtracted."""
        return self.measured.image.background

    @property
    def rms(self) -> npt.NDArray[np.float32]:
        """Noise of the sky."""
        return self.measured.image.rms

    @property
    def photometry(self) -> Photometry:
        """Measurements of the separated light."""
        return self.measured.photometry

    @property
    def separated(self) -> Sequence[SourceLight]:
        """Each source's part of the light."""
        return self.measured.separated


def find_sources(
    images: Iterable[npt.NDArray[Any] | Frame],
    model: Model,
    config: DeblendConfig | None = None,
    *,
    threshold: float | None = None,
    planes: Planes | None = None,
    separate_bands: bool = False,
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
        has none, the one stored with the weights.
    planes : Planes, optional
        Where whole-image arrays are to be; in memory by default.
    separate_bands : bool
        Give each source its own light in every band, too, and not only its flux.

    Raises
    ------
    ImageError
        When SEP gives up on an image.
    """
    config = config or DeblendConfig()
    if threshold is None:
        threshold = model.threshold if config.threshold is None else config.threshold
    for prepared, found in run_network(images, model, config, planes, threshold):
        yield finish(prepared, found, model, config, threshold, separate_bands=separate_bands)


def finish(
    prepared: Prepared,
    found: Iterable[Found],
    model: Model,
    config: DeblendConfig,
    threshold: float,
    *,
    separate_bands: bool = False,
) -> FoundSources:
    """Merge what the network found in an image's cutouts, split the light and measure it.

    Parameters
    ----------
    prepared : Prepared
    found : iterable of Found
        What :func:`run_network` gives with it: one a cutout, gone through once.
    model : Model
    config : DeblendConfig
        Of it, ``background_mesh`` is looked at.
    threshold : float
        Calibrated score from which a source counts.
    separate_bands : bool
        See :func:`find_sources`.

    Returns
    -------
    FoundSources

    Raises
    ------
    ValueError
        When ``found`` has more or fewer entries than there are cutouts.
    """
    apart, measured, planes = prepared.apart, prepared.measured, prepared.planes
    image = apart.image
    shape = (image.light.shape[0], image.light.shape[1])
    masks, claims, candidates, class_star = _candidates(prepared, found, model, threshold)
    merged = merge(candidates, prepared.blobs, prepared.tiling, apart.large, planes)
    missed_score = float(model.info.get("calibration", {}).get("missed", 0.5))
    sources = _sources(prepared, merged, masks, claims, candidates, class_star, missed_score)
    how = model, planes, prepared.domain.binning, config.background_mesh
    # The PSF is that of the image in which sources are found.
    fwhm = prepared.domain.point_fwhm
    there = apart.other(measured, planes)
    own = measure_light(there, sources, *how, fwhm if measured is image else None)
    bands = {}
    images = {name: apart.other(band, planes) for name, band in prepared.bands.items()}
    if separate_bands or model.separator is None:
        bands = {name: measure_light(band, sources, *how) for name, band in images.items()}
    if images and model.separator is not None:
        bands = _forced(own, there, sources, images, bands, planes)
    photometry, detected = own.photometry, own
    if measured is not image and model.separator is not None:
        detected = measure_light(apart, sources, *how, fwhm)
    footprints = Footprints(sources.masks)
    noverlap = count_overlaps(sources.masks, shape, planes)
    hidden = [one.mask for one in (image, measured, *prepared.bands.values())]
    flags = sources.flags | _pixel_flags(footprints, noverlap, hidden, planes)
    if not prepared.domain.inside:
        flags |= Flag.OUT_OF_DOMAIN
    detections = Detections(
        footprints=footprints if planes.folder else list(footprints),
        x=photometry.x,
        y=photometry.y,
        scores=sources.scores,
        flux=photometry.flux,
        class_star=_class_star(prepared, sources.class_star, detected, model),
    )
    return FoundSources(
        detections=detections,
        flags=flags,
        parent=sources.parent,
        tile=sources.tile,
        segm=paint_labels(
            # Without models, the probability of the masks agrees better with the brightest
            # source's pixels than Mask R-CNN's shares do.
            sources.masks if model.separator is None else Strengths(sources, detected.separated),
            sources.scores,
            shape,
            planes,
        ),
        noverlap=noverlap,
        measured=own,
        bands=bands,
        parents=_parents(prepared.blobs, apart, sources),
        tiling=prepared.tiling,
        domain=prepared.domain,
        planes=planes,
    )


def _forced(
    own: Band,
    there: Apart,
    sources: Sources,
    images: Mapping[str, Apart],
    separated: Mapping[str, Band],
    planes: Planes,
) -> dict[str, Band]:
    """Bands whose fluxes are those of the models in the image, with their light where it is.

    Large objects have their own light in each band.
    """
    few = np.flatnonzero(sources.large == NOT_LARGE)
    parts, photometry = own.separated, own.photometry
    if len(few) < len(sources.large):
        parts = Picked(parts, few)
        photometry = photometry.picked(few)
    rest = {name: image.rest for name, image in images.items()}
    fluxes = forced_fluxes(parts, photometry, there.rest, rest, planes)
    bands = {}
    for name, image in images.items():
        flux, error = np.empty((2, len(sources.large)))
        flux[few], error[few] = fluxes[name]
        for index in np.flatnonzero(sources.large != NOT_LARGE).tolist():
            which = sources.large[index]
            flux[index] = error[index] = np.nan
            if there.large[which].share_seen(image.image) >= LEAST_SEEN:
                one = image.large[which]
                flux[index], error[index] = one.flux, one.error(image.image)
        bands[name] = Band(
            image.image,
            separated[name].separated if name in separated else (),
            replace(own.photometry, flux=flux, flux_err=error),
        )
    return bands


def _candidates(
    prepared: Prepared, found: Iterable[Found], model: Model, threshold: float
) -> tuple[SoftMasks, SoftMasks, Candidates, npt.NDArray[np.float64]]:
    """What the network found above the threshold, in image coordinates, masks cut to size.

    Beside the masks come the shares of the light that their sources claim.
    """
    level = model.mask_level
    binning = prepared.domain.binning
    masks, claims = prepared.planes.masks(), prepared.planes.masks()
    scores, star, cutout = [], [], []
    for index, (here, (y0, x0)) in enumerate(
        zip(found, prepared.tiling.origins.tolist(), strict=True)
    ):
        probabilities = calibrated(model, here.scores)
        for position in np.flatnonzero(probabilities >= threshold).tolist():
            whole = magnify(here.masks[position], binning).shifted(y0, x0)
            mask = harden(whole, prepared.image.mask, level)
            if mask is None:
                continue
            masks.append(mask)
            claim = magnify(here.shares[position], binning).shifted(y0, x0)
            claims.append(claim.cropped(mask.footprint(0)))
            scores.append(probabilities[position])
            star.append(here.class_star[position])
            cutout.append(index)
    candidates = Candidates(
        Footprints(masks), np.array(scores, dtype=np.float64), np.array(cutout, dtype=np.int64)
    )
    return masks, claims, candidates, np.array(star, dtype=np.float64)


def _sources(
    prepared: Prepared,
    merged: Merged,
    masks: SoftMasks,
    claims: SoftMasks,
    candidates: Candidates,
    class_star: npt.NDArray[np.float64],
    missed_score: float,
) -> Sources:
    """Join what stays of the candidates and SEP's outlines, sorted by position: rows first.

    Outlines are those of objects larger than a cutout, and SEP's of blobs that the network missed.
    """
    blobs, large = prepared.blobs, prepared.apart.large
    # Each is a parent of its own, after the blobs.
    outlines = [
        (parent, one.outline, Flag.LARGER_THAN_CUTOUT)
        for parent, one in enumerate(large, len(blobs) + 1)
    ]
    which_large = list(range(len(large)))
    childless = np.bincount(merged.parent, minlength=len(blobs) + 1)[1:] == 0
    # On a large object, what the network does not take for a source is most likely its structure.
    wanted = childless & (blobs.snr >= DETECTABLE_SNR) & ~in_outlines(large, blobs.x, blobs.y)
    for index in np.flatnonzero(wanted).tolist():
        xmin, ymin, xmax, ymax = blobs.bounds[index].tolist()
        pixels = blobs.segm[ymin : ymax + 1, xmin : xmax + 1] == index + 1
        footprint = Footprint.from_mask(pixels, ymin, xmin)
        outlines.append((index + 1, footprint, Flag.NETWORK_MISSED))
        which_large.append(NOT_LARGE)
    first, n = len(masks), len(outlines)
    for _, outline, _ in outlines:
        # What no mask of the network holds is theirs.
        soft = SoftMask(outline.y0, outline.x0, outline.mask.astype(np.float32) * OUTLINE)
        masks.append(soft)
        claims.append(soft)
    which = np.concatenate([merged.kept, np.arange(first, first + n)])
    xmin, ymin, xmax, ymax = masks.bounds[which].T
    order = np.lexsort((np.arange(len(which)), xmax - xmin, ymax - ymin, xmin, ymin))

    def joined(kept: npt.NDArray[Any], added: Any) -> npt.NDArray[Any]:
        return np.concatenate([kept, np.broadcast_to(added, n).astype(kept.dtype)])[order]

    return Sources(
        masks=masks.picked(which[order]),
        claims=claims.picked(which[order]),
        scores=joined(candidates.scores[merged.kept], missed_score),
        # Nothing has been learnt about the class of a source that the network did not see.
        class_star=joined(class_star[merged.kept], math.nan),
        parent=joined(merged.parent, [parent for parent, _, _ in outlines]),
        tile=joined(candidates.cutout[merged.kept], NO_TILE),
        flags=joined(np.zeros(len(merged.kept), np.int64), [int(flag) for _, _, flag in outlines]),
        large=joined(np.full(len(merged.kept), NOT_LARGE), which_large),
    )


def _class_star(
    prepared: Prepared, said: npt.NDArray[np.float64], detected: Band, model: Model
) -> npt.NDArray[np.float64]:
    """Probabilities of point sources: by Mask R-CNN, and by each source's light beside the PSF."""
    fit = model.class_fit
    if fit is None:
        return said
    return fit.probability(class_columns(said, detected, prepared.domain, prepared.planes))


def class_columns(
    said: npt.NDArray[np.float64], detected: Band, domain: Domain, planes: Planes
) -> npt.NDArray[np.float64]:
    """What tells point sources from galaxies, as :class:`galsep.image.points.ClassFit` wants it.

    Parameters
    ----------
    said : (n,) float array
        Probability by Mask R-CNN.
    detected : Band
        The image that sources were found in.
    domain : Domain
    planes : Planes
    """
    image = detected.image
    features = point_features(
        detected.separated, image.light, image.rms, image.mask, domain.point_fwhm, planes
    )
    return fit_columns(said, detected.photometry.blendedness, features)


def _pixel_flags(
    footprints: Sequence[Footprint],
    noverlap: npt.NDArray[np.uint8],
    hidden_in: Sequence[npt.NDArray[np.bool_]],
    planes: Planes,
) -> npt.NDArray[np.int64]:
    """Flags that follow from a source's pixels alone, hidden in any of several images."""
    height, width = noverlap.shape
    different = list({id(mask): mask for mask in hidden_in}.values())
    flags = np.zeros(len(footprints), dtype=np.int64)
    for index, footprint in enumerate(footprints):
        xmin, ymin, xmax, ymax = footprint.bounds
        if xmin == 0 or ymin == 0 or xmax == width - 1 or ymax == height - 1:
            flags[index] |= Flag.IMAGE_EDGE
        _, pixels, hidden = with_hidden_neighbours(footprint, different)
        if (pixels & hidden).any():
            flags[index] |= Flag.MASKED_PIXELS
        if (noverlap[footprint.slices][footprint.mask] > 1).any():
            flags[index] |= Flag.OVERLAPS
        if index % FEW_SOURCES == 0:
            planes.release()
    return flags


def with_hidden_neighbours(
    footprint: Footprint, hidden_in: Sequence[npt.NDArray[np.bool_]]
) -> tuple[tuple[slice, slice], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Pixels of a source, and the unusable ones that have a side or a corner in common with one.

    Parameters
    ----------
    footprint : Footprint
        Inside the image.
    hidden_in : sequence of (h, w) bool array
        Unusable pixels, in any of several images.

    Returns
    -------
    box : (slice, slice)
        The footprint's crop and a pixel more on all sides, inside the image.
    pixels, hidden : bool arrays
        Which pixels of it, and which of all there are unusable.
    """
    from scipy.ndimage import binary_dilation

    xmin, ymin, xmax, ymax = footprint.bounds
    top, left = max(0, ymin - 1), max(0, xmin - 1)
    box = slice(top, ymax + 2), slice(left, xmax + 2)
    hidden = np.logical_or.reduce([mask[box] for mask in hidden_in])
    pixels = np.zeros(hidden.shape, dtype=bool)
    pixels[footprint.shifted(-top, -left).slices] = footprint.mask
    if hidden.any():
        pixels |= binary_dilation(pixels, np.ones((3, 3), dtype=bool)) & hidden
    return box, pixels, hidden


def _parents(blobs: Blobs, apart: Apart, sources: Sources) -> Parents:
    known = blobs
    if apart.large:
        known = blobs.with_objects(*large_columns(apart, blobs.correlation))
    children = np.bincount(sources.parent, minlength=len(known) + 1)[1:]
    missed = np.zeros(len(known), dtype=bool)
    missed[sources.parent[(sources.flags & Flag.NETWORK_MISSED) > 0] - 1] = True
    status = np.select(
        [missed, children > 1, children == 1], ["missed", "split", "confirmed"], "rejected"
    )
    return Parents(known, children, status)
