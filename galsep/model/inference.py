"""Running the network on cutouts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from galsep.image.binning import linear_weights
from galsep.image.points import logistic, logit
from galsep.model.device import in_batches, uploaded
from galsep.model.weights import Model
from galsep.scene import Footprint, SoftMask

__all__ = ["Found", "as_found", "calibrated", "detect", "harden", "uncalibrated", "unfolding"]

CPU_BATCH = {64: 8, 80: 8, 120: 4}
"""Cutouts in a batch at most, by side, on a CPU, which gains nothing from more of these."""


@dataclass(frozen=True, slots=True)
class Found:
    """The network's detections in one cutout, in the cutout's coordinates.

    Parameters
    ----------
    masks : list of SoftMask
        Mask probabilities about each box.
    shares : list of SoftMask
        On the same pixels, the share of the light that is the source's own.
    scores : (n,) float array
        Raw scores, not calibrated.
    class_star : (n,) float array
    """

    masks: list[SoftMask]
    shares: list[SoftMask]
    scores: npt.NDArray[np.float64]
    class_star: npt.NDArray[np.float64]


def detect(
    model: Model,
    cutouts: Sequence[npt.NDArray[np.float32]],
    batch_size: int,
    least: float = 0.0,
) -> list[Found]:
    """Find sources in cutouts.

    Parameters
    ----------
    model : Model
    cutouts : sequence of (s, s) float32 array
        Network input, see :func:`galsep.model.network.normalise`.
    batch_size : int
        Batches hold cutouts of one side and are filled up with empty ones to this size, or to that
        of :data:`CPU_BATCH`, so that a cutout's result does not depend on how many there are. Where
        the device's memory is too small, they are halved.
    least : float
        Calibrated score below which sources are left out, as their masks would cost time.
    """
    floor = uncalibrated(model, least)
    on_cpu = model.device.type == "cpu"

    def size_for(side: int) -> int:
        return min(batch_size, CPU_BATCH.get(side, batch_size)) if on_cpu else batch_size

    def find(some: Sequence[int], size: int) -> list[Found]:
        side = len(cutouts[some[0]])
        images = np.zeros((size, 1, side, side), dtype=np.float32)
        for image, index in zip(images[:, 0], some, strict=False):
            image[:] = cutouts[index]
        return _detect_batch(model, images, floor)[: len(some)]

    return in_batches(find, [len(cutout) for cutout in cutouts], size_for, model.device)


def calibrated(model: Model, raw: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Turn the network's scores into probabilities, by the logistic fit stored with it.

    p = logistic(a · logit(raw) + b) (Platt 1999); without a fit, a = 1 and b = 0.

    Parameters
    ----------
    model : Model
    raw : (n,) float array
        Scores as :class:`Found` has them, between 0 and 1.

    Returns
    -------
    (n,) float array
        Probabilities, between 0 and 1.
    """
    fit = model.info.get("calibration", {})
    value = fit.get("slope", 1.0) * logit(raw) + fit.get("intercept", 0.0)
    return logistic(value)


def uncalibrated(model: Model, score: float) -> float:
    """Give a raw score below which no calibrated one reaches ``score``."""
    fit = model.info.get("calibration", {})
    slope, intercept = fit.get("slope", 1.0), fit.get("intercept", 0.0)
    if score <= 0 or slope <= 0:
        return 0.0
    value = (float(logit(np.array(score))) - intercept) / slope
    # A little lower, so that rounding loses none.
    return float(logistic(np.array(value))) - 1e-5


def harden(mask: SoftMask, unusable: npt.NDArray[np.bool_], level: float) -> SoftMask | None:
    """Set a mask to 0 where it is not above a level, outside the image and on unusable pixels.

    Parameters
    ----------
    mask : SoftMask
        In image coordinates; it may reach beyond the image.
    unusable : (h, w) bool array
        True for the image's unusable pixels.
    level : float
        Probability that a pixel has to exceed.

    Returns
    -------
    SoftMask or None
        As tight as can be; ``None`` where nothing is left.
    """
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


@torch.inference_mode()
def _detect_batch(model: Model, images: npt.NDArray[np.float32], floor: float) -> list[Found]:
    side = images.shape[-1]
    tensor = uploaded(images, model.device)
    tensor = tensor.contiguous(memory_format=torch.channels_last)
    return [as_found(result, side) for result in model.network(tensor, least=floor)]


def as_found(result: Mapping[str, torch.Tensor], side: int) -> Found:
    """Bring what the network says of one cutout to the cutout's pixels.

    Parameters
    ----------
    result : mapping of str to FloatTensor
        See :func:`galsep.model.network.build_network`.
    side : int
        Of the cutout.
    """
    here = {name: tensor.detach().double().cpu().numpy() for name, tensor in result.items()}
    boxes = here["mask_boxes"]
    layers = (here[name].astype(np.float32) for name in ("masks", "shares"))
    masks, shares = (
        [_unfold(*pair, side) for pair in zip(layer, boxes, strict=True)] for layer in layers
    )
    return Found(masks, shares, here["scores"], here["class_star"])


def _unfold(mask: npt.NDArray[np.float32], box: npt.NDArray[np.float64], side: int) -> SoftMask:
    """Interpolate a mask given over a box to the pixels whose centres the box holds."""
    top, rows, left, columns = unfolding(box, mask.shape[0], side)
    return SoftMask(top, left, np.asarray(rows @ mask @ columns.T, dtype=np.float32))


def unfolding(
    box: npt.NDArray[np.float64], cells: int, side: int
) -> tuple[int, npt.NDArray[np.float32], int, npt.NDArray[np.float32]]:
    """How to interpolate what is given over a box to the pixels whose centres the box holds.

    Parameters
    ----------
    box : (4,) float array
        ``xyxy`` along pixel edges.
    cells : int
        Along each side of the box.
    side : int
        Of the cutout, pixels.

    Returns
    -------
    top : int
        First row of pixels.
    rows : (h, cells) float32 array
        Weights of the cells in each row.
    left, columns
        The same along x.
    """
    x0, y0, x1, y1 = box.tolist()
    return *_interpolation(y0, y1, cells, side), *_interpolation(x0, x1, cells, side)


def _interpolation(
    low: float, high: float, cells: int, side: int
) -> tuple[int, npt.NDArray[np.float32]]:
    """First pixel of an interval, and weights of linear interpolation from cells to its pixels."""
    first = min(max(math.ceil(low - 0.5), 0), side - 1)
    last = max(min(math.floor(high - 0.5), side - 1), first)
    position = (np.arange(first, last + 1) + 0.5 - low) / max(high - low, 1e-6) * cells - 0.5
    return first, linear_weights(position, cells)
