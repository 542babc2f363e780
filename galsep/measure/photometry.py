"""Splitting light among overlapping sources, and measuring the shares."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from galsep.conventions import PIXEL_VARIANCE
from galsep.scene import SoftMask, SourceLight

__all__ = ["Photometry", "measure", "pixel_variance", "split_light"]

LEAST_CLAIM = 0.01
"""A source claims at least this much of each pixel of its mask."""


@dataclass(frozen=True, slots=True)
class Photometry:
    """Measurements of the separated light, one entry a source.

    Positions and axes are moments of the source's model; a source without light has them from the
    bare shape of its share.

    Parameters
    ----------
    x, y : (n,) float arrays
        Centroids, pixels, 0-based.
    flux, flux_err : (n,) float arrays
        In the image's unit.
    semimajor_axis, semiminor_axis : (n,) float arrays
        Rms along the axes, pixels.
    orientation : (n,) float array
        Of the major axis, degrees counter-clockwise from +x, between −90 and 90.
    blendedness : (n,) float array
        Between 0 and 1, see :func:`measure`.
    """

    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    flux: npt.NDArray[np.float64]
    flux_err: npt.NDArray[np.float64]
    semimajor_axis: npt.NDArray[np.float64]
    semiminor_axis: npt.NDArray[np.float64]
    orientation: npt.NDArray[np.float64]
    blendedness: npt.NDArray[np.float64]

    def picked(self, indices: npt.NDArray[np.int64]) -> "Photometry":
        """Those of some sources."""
        return Photometry(
            **{name: getattr(self, name)[indices] for name in Photometry.__dataclass_fields__}
        )


def split_light(
    masks: Sequence[SoftMask],
    claims: Sequence[SoftMask | None],
    light: npt.NDArray[np.float32],
    rms: npt.NDArray[np.float32],
) -> list[SourceLight]:
    """Split each pixel among the sources whose masks hold it, in proportion to their claims.

    For weights without a separation network: a source's model is its share of the data.

    Parameters
    ----------
    masks : sequence of SoftMask
        Mask probabilities, inside the image; 0 outside the mask.
    claims : sequence of SoftMask or None
        On the same crops, the share of the light that is predicted to be the source's own. A
        source without a prediction claims what the others leave.
    light, rms : (h, w) float32 arrays
        Background-subtracted image (0 where unusable) and the noise of its sky.

    Returns
    -------
    list of SourceLight
        Shares add up to one in every masked pixel.
    """
    claimed = np.zeros(light.shape, dtype=np.float32)
    weights: list[npt.NDArray[np.float32] | None] = []
    for mask, claim in zip(masks, claims, strict=True):
        if claim is None:
            weights.append(None)
            continue
        own = np.where(mask.probability > 0, np.maximum(claim.probability, LEAST_CLAIM), 0)
        weights.append(own.astype(np.float32))
        claimed[mask.slices] += own
    filled = []
    for mask, weight in zip(masks, weights, strict=True):
        if weight is None:
            left = np.maximum(1 - claimed[mask.slices], LEAST_CLAIM)
            weight = np.where(mask.probability > 0, left, np.float32(0))
        filled.append(weight)
    total = np.zeros(light.shape, dtype=np.float32)
    for mask, weight in zip(masks, filled, strict=True):
        total[mask.slices] += weight
    parts = []
    for mask, weight in zip(masks, filled, strict=True):
        box = mask.slices
        share = np.divide(weight, total[box], out=np.zeros_like(weight), where=weight > 0)
        own = share * light[box]
        parts.append(
            SourceLight(
                y0=mask.y0,
                x0=mask.x0,
                share=share,
                model=np.maximum(own, 0),
                flux=float(own.sum(dtype=np.float64)),
                flux_err=float(np.sqrt(((share * rms[box]) ** 2).sum(dtype=np.float64))),
            )
        )
    return parts


def measure(
    parts: Sequence[SourceLight],
    light: npt.NDArray[np.float32],
    rms: npt.NDArray[np.float32],
    gain: float = 0.0,
    noise: npt.NDArray[np.float32] | None = None,
    chosen: slice = slice(None),
    top: int = 0,
) -> Photometry:
    """Measure the separated light of each source.

    Parameters
    ----------
    parts : sequence of SourceLight
        All sources of the image.
    light, rms : (h, w) float32 arrays
        Background-subtracted image (0 where unusable) and the noise of its sky.
    gain : float
        Electrons per unit of the image; adds the sources' Poisson noise when positive.
    noise : (h, w) float32 array, optional
        Noise of each pixel, where it is known; see :func:`pixel_variance`.
    chosen : slice
        Sources that are wanted; the others are their neighbours.
    top : int
        Row of the whole image that the first one here is; the measured ``y`` are those of the
        whole image.

    Returns
    -------
    Photometry
        Of the wanted sources, in their order; ``flux_err`` holds what sky, splitting and, where
        they are known, the sources' own electrons add.

    Notes
    -----
    ``blendedness`` = 1 − Σ m² / Σ (m · Σⱼ mⱼ) over the models (Bosch et al. 2018, PASJ 70, S5).
    """
    wanted = parts[chosen]
    columns = {name: np.zeros(len(wanted)) for name in Photometry.__dataclass_fields__}
    modelled = np.zeros(light.shape, dtype=np.float32)
    for part in parts:
        modelled[part.slices] += part.model
    for index, part in enumerate(wanted):
        box = part.slices
        model = part.model.astype(np.float64)
        known = None if noise is None else noise[box]
        # Beyond that of the sky: of the sources' electrons.
        more = pixel_variance(modelled[box], rms[box], gain, known) - rms[box].astype(float) ** 2
        columns["flux"][index] = part.flux
        columns["flux_err"][index] = np.sqrt(part.flux_err**2 + (part.share**2 * more).sum())
        among = (model * modelled[box]).sum()
        columns["blendedness"][index] = 1 - (model**2).sum() / among if among > 0 else 0.0
        moments = _moments(model if model.sum() > 0 else (part.share > 0).astype(np.float64))
        columns["x"][index] = part.x0 + moments[0]
        # One sum, rounded once: the same whatever rows of the image are here.
        columns["y"][index] = top + part.y0 + moments[1]
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
        variance += np.maximum(light, 0).astype(np.float64) / gain
    if noise is not None:
        np.maximum(variance, noise.astype(np.float64) ** 2, out=variance)
    return variance


def _moments(light: npt.NDArray[np.float64]) -> tuple[float, float, float, float, float]:
    """Centroid, rms along the axes, and the major axis's angle of non-negative light.

    As SExtractor has it, what is thinner than a pixel is given a pixel's own width, so no axis is
    zero. Angles are from above −90° to 90°.
    """
    rows, columns = np.indices(light.shape)
    total = light.sum()
    x, y = (light * columns).sum() / total, (light * rows).sum() / total
    dx, dy = columns - x, rows - y
    xx, yy = (light * dx**2).sum() / total, (light * dy**2).sum() / total
    xy = (light * dx * dy).sum() / total
    if xx * yy - xy**2 < PIXEL_VARIANCE**2:
        xx, yy = xx + PIXEL_VARIANCE, yy + PIXEL_VARIANCE
    spread = np.hypot((xx - yy) / 2, xy)
    mean = (xx + yy) / 2
    angle = np.float32(np.degrees(0.5 * np.arctan2(2 * xy, xx - yy)))
    if angle <= -90:
        angle = np.float32(90)
    return float(x), float(y), float(np.sqrt(mean + spread)), float(
        np.sqrt(max(mean - spread, 0.0))
    ), float(angle)  # fmt: skip
