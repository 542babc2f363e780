"""Splitting light among overlapping sources, and measuring the shares."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from galsep.scene import SoftMask

__all__ = ["Photometry", "measure", "pixel_variance", "split_light"]

LEAST_CLAIM = 0.01
"""A source claims at least this much of each pixel of its mask."""


@dataclass(frozen=True, slots=True)
class Photometry:
    """Measurements of the separated light, one entry a source.

    Fluxes are in the image's unit, lengths in pixels, angles in degrees counter-clockwise from
    +x. A source without positive light has its moments from the bare mask.
    """

    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    flux: npt.NDArray[np.float64]
    flux_err: npt.NDArray[np.float64]
    semimajor_axis: npt.NDArray[np.float64]
    semiminor_axis: npt.NDArray[np.float64]
    orientation: npt.NDArray[np.float64]
    blendedness: npt.NDArray[np.float64]


def split_light(
    masks: Sequence[SoftMask], claims: Sequence[SoftMask | None], shape: tuple[int, int]
) -> list[SoftMask]:
    """Split each pixel among the sources whose masks hold it, in proportion to their claims.

    Parameters
    ----------
    masks : sequence of SoftMask
        Mask probabilities, inside the image; 0 outside the mask.
    claims : sequence of SoftMask or None
        On the same crops, the share of the light that is predicted to be the source's own. A
        source without a prediction claims what the others leave.
    shape : (int, int)
        Height and width of the image.

    Returns
    -------
    list of SoftMask
        Each source's share of each pixel of its mask: they add up to one in every masked pixel.
    """
    claimed = np.zeros(shape, dtype=np.float32)
    weights: list[SoftMask | None] = []
    for mask, claim in zip(masks, claims, strict=True):
        if claim is None:
            weights.append(None)
            continue
        own = np.where(mask.probability > 0, np.maximum(claim.probability, LEAST_CLAIM), 0)
        weights.append(SoftMask(mask.y0, mask.x0, own.astype(np.float32)))
        claimed[_box(mask)] += own
    filled = []
    for mask, weight in zip(masks, weights, strict=True):
        if weight is None:
            left = np.maximum(1 - claimed[_box(mask)], LEAST_CLAIM)
            weight = SoftMask(mask.y0, mask.x0, np.where(mask.probability > 0, left, 0))
        filled.append(weight)
    total = np.zeros(shape, dtype=np.float32)
    for weight in filled:
        total[_box(weight)] += weight.probability
    shares = []
    for weight in filled:
        share = np.divide(
            weight.probability,
            total[_box(weight)],
            out=np.zeros_like(weight.probability),
            where=weight.probability > 0,
        )
        shares.append(SoftMask(weight.y0, weight.x0, share))
    return shares


def measure(
    shares: Sequence[SoftMask],
    light: npt.NDArray[np.float32],
    rms: npt.NDArray[np.float32],
    gain: float = 0.0,
    noise: npt.NDArray[np.float32] | None = None,
) -> Photometry:
    """Measure the separated light of each source.

    Parameters
    ----------
    shares : sequence of SoftMask
    light, rms : (h, w) float32 arrays
        Background-subtracted image (0 where unusable) and the noise of its sky.
    gain : float
        Electrons per unit of the image; adds the sources' Poisson noise when positive.
    noise : (h, w) float32 array, optional
        Noise of each pixel, where it is known; see :func:`pixel_variance`.

    Notes
    -----
    ``blendedness`` = 1 − Σ m² / Σ (m · Σⱼ mⱼ), with m the source's share of the positive light
    (Bosch et al. 2018, PASJ 70, S5, use the same idea with models).
    """
    n = len(shares)
    columns = {name: np.zeros(n) for name in Photometry.__dataclass_fields__}
    for index, share in enumerate(shares):
        box = _box(share)
        part = share.probability.astype(np.float64)
        here = light[box].astype(np.float64)
        own = part * here
        known = None if noise is None else noise[box]
        variance = pixel_variance(here, rms[box], gain, known)
        columns["flux"][index] = own.sum()
        columns["flux_err"][index] = np.sqrt((part**2 * variance).sum())
        positive = np.maximum(own, 0)
        power = (positive**2).sum()
        among = (positive * np.maximum(here, 0)).sum()
        columns["blendedness"][index] = 1 - power / among if among > 0 else 0.0
        moments = _moments(positive if positive.sum() > 0 else (part > 0).astype(np.float64))
        columns["x"][index] = share.x0 + moments[0]
        columns["y"][index] = share.y0 + moments[1]
        columns["semimajor_axis"][index] = moments[2]
        columns["semiminor_axis"][index] = moments[3]
        columns["orientation"][index] = moments[4]
    np.clip(columns["blendedness"], 0, 1, out=columns["blendedness"])
    return Photometry(**columns)


def pixel_variance(
    light: npt.NDArray[np.floating[Any]],
    rms: npt.NDArray[np.float32],
    gain: float = 0.0,
    noise: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float64]:
    """Variance of each pixel: of the sky, and of the sources where it is known.

    Parameters
    ----------
    light, rms, gain
        See :func:`measure`.
    noise : (h, w) float32 array, optional
        Noise of each pixel, with or without that of the sources: where it is more than that of
        the sky and of the light's electrons, it counts in their place.
    """
    variance: npt.NDArray[np.float64] = rms.astype(np.float64) ** 2
    if gain > 0:
        variance += np.maximum(light, 0) / gain
    if noise is not None:
        np.maximum(variance, noise.astype(np.float64) ** 2, out=variance)
    return variance


def _moments(light: npt.NDArray[np.float64]) -> tuple[float, float, float, float, float]:
    """Centroid, rms along the axes, and the major axis's angle of non-negative light.

    A pixel's own width (1/12 px²) is part of the second moments, so no axis is zero.
    """
    rows, columns = np.indices(light.shape)
    total = light.sum()
    x, y = (light * columns).sum() / total, (light * rows).sum() / total
    dx, dy = columns - x, rows - y
    xx = (light * dx**2).sum() / total + 1 / 12
    yy = (light * dy**2).sum() / total + 1 / 12
    xy = (light * dx * dy).sum() / total
    spread = np.hypot((xx - yy) / 2, xy)
    mean = (xx + yy) / 2
    angle = np.degrees(0.5 * np.arctan2(2 * xy, xx - yy))
    return float(x), float(y), float(np.sqrt(mean + spread)), float(
        np.sqrt(max(mean - spread, 0.0))
    ), float(angle)  # fmt: skip


def _box(mask: SoftMask) -> tuple[slice, slice]:
    height, width = mask.probability.shape
    return slice(mask.y0, mask.y0 + height), slice(mask.x0, mask.x0 + width)
