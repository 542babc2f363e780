"""From an image array to what Mask R-CNN says of it.

background → SEP's blobs → PSF → cutouts, without what is larger than one → network.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from galsep.config import DeblendConfig
from galsep.image.binning import bin_labels
from galsep.image.detect import Blobs, detect_blobs
from galsep.image.large import Apart, LargeObject, find_large, surroundings, without_large
from galsep.image.light import Frame, Light, background_again, without_background
from galsep.image.psf import Domain, Psf, choose_domain, estimate_psf
from galsep.image.tiling import Tiling, cut, lay_cutouts, too_large
from galsep.model.inference import Found, detect
from galsep.model.network import normalise
from galsep.model.weights import Model
from galsep.planes import Planes
from galsep.workflows.measuring import binned

__all__ = ["Prepared", "prepare", "run_network"]

MANY_CUTOUTS = 1000
"""An image of more cutouts is large: they are not held in memory together."""

FEW_CUTOUTS = 64
"""So many are cut before the pixels of a large image are let go."""


MOST_ROUNDS, GROWS = 4, 1.5
"""How often, at most, the background is estimated again without what is larger than a cutout, and
by how much that must have grown."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """An image on its way to the network.

    Parameters
    ----------
    apart : Apart
        The image, and what is larger than a cutout in it.
    measured : Light
        The image to measure on; the same unless another was given.
    bands : mapping of str to Light
        Further images to measure on.
    blobs : Blobs
        Of the image without its large objects.
    tiling : Tiling
    pixels, pixel_rms : (h, w) float32 arrays
        What cutouts are cut from, and its noise: the image without its large objects, or the
        average of that over blocks of ``domain.binning``.
    domain : Domain
    planes : Planes
        Where its arrays are.
    """

    apart: Apart
    measured: Light
    bands: Mapping[str, Light]
    blobs: Blobs
    tiling: Tiling
    pixels: npt.NDArray[np.float32]
    pixel_rms: npt.NDArray[np.float32]
    domain: Domain
    planes: Planes

    @property
    def image(self) -> Light:
        """The image that sources are found in."""
        return self.apart.image

    def cutouts(self, chosen: slice) -> list[npt.NDArray[np.float32]]:
        """Network input, square arrays, of some of the cutouts."""
        tiling = self.tiling
        places = np.column_stack([tiling.origins, tiling.sides])[chosen] // tiling.scale
        cutouts = []
        for index, (y0, x0, side) in enumerate(places.tolist(), 1):
            light, rms = cut(self.pixels, y0, x0, side), cut(self.pixel_rms, y0, x0, side, 1)
            cutouts.append(normalise(light, rms))
            if index % FEW_CUTOUTS == 0:
                self.planes.release()
        self.planes.release()
        return cutouts


def run_network(
    images: Iterable[npt.NDArray[Any] | Frame],
    model: Model,
    config: DeblendConfig,
    planes: Planes | None = None,
    least: float = 0.0,
) -> Iterator[tuple[Prepared, Iterable[Found]]]:
    """Prepare images and run the network on their cutouts, several small images a batch.

    Parameters
    ----------
    images : iterable of (h, w) arrays or Frame
        See :func:`galsep.workflows.finding.find_sources`.
    model : Model
    config : DeblendConfig
        Of it, ``background_mesh``, ``psf_fwhm`` and ``batch_size`` are looked at.
    planes : Planes, optional
        Where whole-image arrays are to be; in memory by default.
    least : float
        Calibrated score below which sources are not wanted, see
        :func:`galsep.model.inference.detect`.

    Yields
    ------
    prepared : Prepared
        The images, in order.
    found : iterable of Found
        What the network finds in each cutout, in the order of ``prepared.tiling``. In a large
        image that shares no batch with others it is found while it is asked for, anew each time.

    Raises
    ------
    OutputError
        When the folder of ``planes`` has no room.
    ImageError
        When SEP gives up on a blob that is larger than a cutout.
    torch.OutOfMemoryError
        When the device has no room for one cutout.
    """
    planes = planes or Planes()
    waiting: list[Prepared] = []
    limits, small = _psf_limits(model), model.architecture.small_cutouts
    for image in images:
        waiting.append(prepare(image, config, limits, planes, small=small))
        if len(waiting) == 1 and len(waiting[0].tiling) > MANY_CUTOUTS:
            yield waiting[0], _InTurn(waiting.pop(), model, config, least)
        elif sum(len(prepared.tiling) for prepared in waiting) >= 4 * config.batch_size:
            yield from _run_waiting(waiting, model, config, least)
            waiting = []
    yield from _run_waiting(waiting, model, config, least)


@dataclass(frozen=True, slots=True)
class _InTurn(Iterable[Found]):
    """What is found in the cutouts of an image, a few batches at a time."""

    prepared: Prepared
    model: Model
    config: DeblendConfig
    least: float

    def __iter__(self) -> Iterator[Found]:
        size = self.config.batch_size
        # Many at a time, since a batch holds cutouts of one size.
        step = max(MANY_CUTOUTS, 16 * size)
        few = (
            self.prepared.cutouts(slice(start, start + step))
            for start in range(0, len(self.prepared.tiling), step)
        )
        for found in self.model.each(
            functools.partial(detect, batch_size=size, least=self.least), few
        ):
            yield from found


def prepare(
    image: npt.NDArray[Any] | Frame,
    config: DeblendConfig,
    psf_limits: tuple[float, float] | None = None,
    planes: Planes | None = None,
    *,
    small: bool = True,
) -> Prepared:
    """Subtract the background, run SEP, and lay the cutouts that the network is to see.

    An image whose PSF is wider than ``psf_limits`` allow is averaged over blocks of pixels for the
    network, and for nothing else.

    Parameters
    ----------
    image : (h, w) array or Frame
        In any unit; pixels that are not finite, or masked in a masked array, are left out.
    config : DeblendConfig
        Of it, ``background_mesh`` and ``psf_fwhm`` are looked at.
    psf_limits : (float, float), optional
        Smallest and largest FWHM of the PSF that the network knows, pixels. Without them the PSF
        is not measured, and nothing is averaged.
    planes : Planes, optional
        Where whole-image arrays are to be; in memory by default.
    small : bool
        Whether the network knows cutouts smaller than 120×120 px.

    Returns
    -------
    Prepared

    Raises
    ------
    OutputError
        When the folder of ``planes`` has no room.
    ImageError
        When SEP gives up on a blob that is larger than a cutout.
    """
    planes = planes or Planes()
    if not isinstance(image, Frame):
        image = Frame(np.ma.getdata(image), np.ma.getmaskarray(image))
    mesh = config.background_mesh
    own = without_background(image, mesh, planes)
    blobs = detect_blobs(own.light, own.rms, own.mask, planes)
    fwhm = image.psf_fwhm or config.psf_fwhm
    psf = Psf(fwhm) if fwhm else None
    if psf is None and psf_limits:
        psf = estimate_psf(own.light, own.mask, blobs, planes)
    domain = choose_domain(psf, psf_limits)
    k = domain.binning
    large = _large(own, blobs, domain)
    some, before, outside = bool(large), 0, None
    for _ in range(MOST_ROUNDS):
        hidden = surroundings(own, large, planes)
        size = 0 if hidden is None else int(np.count_nonzero(hidden))
        if hidden is None or size < GROWS * before:
            break
        # The mesh has taken some of their light for background, and its changes for noise.
        before, outside = size, hidden
        own = background_again(own, hidden, mesh, planes)
        large = _large(own, detect_blobs(own.light, own.rms, own.mask, planes), domain)
    measured, bands = own, image.bands
    if image.measured is not None:
        measured = without_background(image.measured, mesh, planes)
    if outside is not None:
        bands = {
            name: background_again(band, outside, mesh, planes) for name, band in bands.items()
        }
        if image.measured is not None:
            measured = background_again(measured, outside, mesh, planes)
    apart = Apart(own, large, without_large(own, large, planes))
    rest = apart.rest
    if some:
        blobs = detect_blobs(rest.light, rest.rms, rest.mask, planes)
    segm = blobs.segm if k == 1 else bin_labels(blobs.segm, k, planes)
    shape = (segm.shape[0], segm.shape[1])
    tiling = lay_cutouts(blobs.bounds // k, shape, segm, small=small).magnified(k)
    pixels, _, rms = binned(apart, k, mesh, planes)
    return Prepared(apart, measured, bands, blobs, tiling, pixels, rms, domain, planes)


def _large(image: Light, blobs: Blobs, domain: Domain) -> list[LargeObject]:
    """What is larger than a cutout of an image, or of its average over blocks of pixels."""
    chosen = np.flatnonzero(too_large(blobs.bounds // domain.binning)).tolist()
    return find_large(image, blobs, chosen, domain)


def _psf_limits(model: Model) -> tuple[float, float] | None:
    """Smallest and largest FWHM, in pixels, that the network was trained on, where it says so."""
    limits = model.info.get("psf_fwhm_range")
    return (float(limits[0]), float(limits[1])) if limits else None


def _run_waiting(
    waiting: list[Prepared], model: Model, config: DeblendConfig, least: float
) -> Iterator[tuple[Prepared, Iterable[Found]]]:
    if not waiting:
        return
    cutouts = [cutout for prepared in waiting for cutout in prepared.cutouts(slice(None))]
    found = detect(model, cutouts, config.batch_size, least)
    start = 0
    for prepared in waiting:
        stop = start + len(prepared.tiling)
        yield prepared, found[start:stop]
        start = stop
