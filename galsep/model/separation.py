"""The separation network: to each source its own light.

It runs after Mask R-CNN, once a source, on a crop about the source's mask. It sees the image, the
two layers that Mask R-CNN gives the source (mask and share of the light), and the sums of its
neighbours' layers; and it is told how wide the PSF is, where that is known. It answers, for every
pixel of the crop, with the logarithm of the source's claim to the light and with an estimate of
all noiseless light there.

The claims of all sources at a pixel, and that of the leftover, which is 1, are normalised
together: ``share = claim / (1 + Σ claims)``, a softmax over sources and leftover. So shares are
exclusive, whatever sources a pixel has. Inside masks the leftover's claim is taken for a half,
since what is there is seldom of a source that was not found. A source's **model** is its share of
the noiseless light, but for what looks otherwise turned by half and may be noise
(:mod:`galsep.model.symmetry`); its **light** is the same share of the data.

Everything is in units of the sky rms, one band at a time, so that one set of weights serves any
number of bands.
"""

from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from galsep.model.convolution import Conv2d
from galsep.model.device import fast_bfloat16, in_batches, uploaded
from galsep.model.fluxes import FluxFit
from galsep.model.network import contrast, smoothed
from galsep.model.symmetry import steadied
from galsep.scene import SoftMask, SourceLight

__all__ = [
    "SIDES",
    "Crops",
    "Said",
    "SeparationNetwork",
    "cut_crops",
    "exclusive",
    "psf_terms",
    "separate",
    "window",
]

SIDES = (32, 48, 64, 96, 128)
"""Sides of the crops, pixels."""

MARGIN = 14
"""A crop is at least this much larger than twice the source's mask, if there is such a side."""

WIDTHS = (64, 96, 128)
"""Channels at strides 2, 4 and 8."""

LAYERS = 5
"""Own mask, own share, neighbours' masks, neighbours' shares, usable pixels."""

PSF_TERMS, USUAL_FWHM = 3, 4.0
"""How many numbers say how wide the PSF is, and the FWHM in pixels that they are relative to."""

DETAIL_SIGMA = 1.0
"""Detail is what differs from an average of this width, pixels."""

LEFTOVER = 0.5
"""Claim of what belongs to none where a source's mask is. Elsewhere, and in training, it is 1."""

LOGIT_LIMIT = 12.0

SUMMARY_LIMIT = 10.0
"""Largest logarithm of a flux's correction or of its error's."""

NOISE_SCALE = 100.0
"""Light, in sky rms, at which corrections of the data may be half as large again."""

Said = tuple[npt.NDArray[np.float32], ...]
"""Of one source: claims and noiseless light on its crop, growth and spread of its flux."""

BATCH = {32: 64, 48: 32, 64: 16, 96: 8, 128: 4}
"""Crops that go through the network at a time, by side."""

CPU_BATCH = {32: 4, 48: 2, 64: 2, 96: 2, 128: 2}
"""... and on a CPU, which gains next to nothing from more,"""

QUICK_CPU_BATCH = {32: 8, 48: 4, 64: 4, 96: 2, 128: 2}
"""... unless bfloat16 is so fast there that it waits for its instructions."""


class SeparationNetwork(nn.Module):
    """A residual U-Net from crops to claims, noiseless light and the flux's correction.

    Parameters
    ----------
    widths : tuple of int
        Channels at strides 2, 4 and 8.
    """

    def __init__(self, widths: tuple[int, int, int] = WIDTHS) -> None:
        super().__init__()
        a, b, c = widths
        self.widths = (a, b, c)
        self.stem = Conv2d(4 * (3 + LAYERS), a, 3, padding=1)
        self.first = nn.Sequential(_Residual(a), _Residual(a))
        self.down = Conv2d(a, b, 2, stride=2)
        self.second = nn.Sequential(_Residual(b), _Residual(b))
        self.deeper = Conv2d(b, c, 2, stride=2)
        self.third = nn.Sequential(_Residual(c), _Residual(c))
        self.rise = Conv2d(c, 4 * b, 1)
        self.fourth = _Residual(b)
        self.up = Conv2d(b, 4 * a, 1)
        self.fifth = nn.Sequential(_Residual(a), _Residual(a))
        # Two layers at four pixels a cell, filled up: a CPU sums few channels in an order that
        # depends on the number of threads.
        self.out = Conv2d(a, 16, 3, padding=1)
        self.summary = nn.Sequential(_Linear(2 * c, 64), nn.ReLU(), _Linear(64, 2))
        self.psf = _Linear(PSF_TERMS, a + b + c)
        for parameter in self.psf.parameters():
            nn.init.zeros_(parameter)

    def forward(self, light: Tensor, layers: Tensor, psf: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Look at crops of one size.

        Parameters
        ----------
        light : FloatTensor[n, s, s]
            Background-subtracted light in sky rms, 0 where there is none.
        layers : FloatTensor[n, 5, s, s]
            See :data:`LAYERS`.
        psf : FloatTensor[n, 3]
            See :func:`psf_terms`.

        Returns
        -------
        claims : FloatTensor[n, s, s]
            Logarithm of the source's claim to each pixel's light.
        total : FloatTensor[n, s, s]
            Estimate of all noiseless light, in sky rms, positive.
        summary : FloatTensor[n, 2]
            Logarithms of the flux in and beyond the crop over that of the model in it, and of the
            flux's error over that of an optimally weighted sum.
        """
        # Eight bits of mantissa are coarser than the noise on a bright core.
        with torch.autocast(light.device.type, enabled=False):
            light = light[:, None]
            detail = torch.asinh(light - smoothed(light, DETAIL_SIGMA))
            x = torch.cat([torch.asinh(light), detail, contrast(light), layers], 1)
            x = self.stem(F.pixel_unshuffle(x, 2), relu=True)
            told = self.psf(psf)[:, :, None, None].split(self.widths, 1)
        first = self.first(_plus(x, told[0]))
        second = self.second(_plus(self.down(first, relu=True), told[1]))
        third = self.third(_plus(self.deeper(second, relu=True), told[2]))
        pooled = torch.cat([third.mean((2, 3)), third.amax((2, 3))], 1)
        x = self.fourth(second + F.pixel_shuffle(self.rise(third), 2))
        x = self.fifth(first + F.pixel_shuffle(self.up(x), 2))
        with torch.autocast(light.device.type, enabled=False):
            out = F.pixel_shuffle(self.out(x.float())[:, :8], 2)
            claims = out[:, 0].clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
            light = light[:, 0]
            room = torch.sqrt(1 + light.abs() / NOISE_SCALE)
            total = F.softplus(light + out[:, 1] * room, beta=5)
            # Bounded, since a step too large would else overflow their exponentials.
            summary = self.summary(pooled.float()).clamp(-SUMMARY_LIMIT, SUMMARY_LIMIT)
            return claims, total, summary


def _plus(x: Tensor, told: Tensor) -> Tensor:
    return x + told.to(x.dtype)


class _Linear(nn.Linear):
    """A small linear layer whose sums depend neither on threads nor on the size of the batch.

    Those of matrix products do, on some processors.
    """

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, None] * self.weight).sum(-1) + self.bias


class _Residual(nn.Module):
    """Two convolutions beside the identity; without normalisation, so crops do not mix."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(channels, channels, 3, padding=1)
        self.conv2 = Conv2d(channels, channels, 3, padding=1)
        for parameter in self.conv2.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(self.conv1(x, relu=True), x)
        return out


@dataclass(frozen=True, slots=True)
class Crops:
    """What the network sees of each source; arrays have one entry a source.

    Parameters
    ----------
    y0, x0, side : (n,) int arrays
        Position and size of each crop; it may reach beyond the image.
    light : list of (s, s) float32 array
    layers : list of (5, s, s) float32 array
    """

    y0: npt.NDArray[np.int64]
    x0: npt.NDArray[np.int64]
    side: npt.NDArray[np.int64]
    light: list[npt.NDArray[np.float32]]
    layers: list[npt.NDArray[np.float32]]

    def batches(self, size: int) -> Iterator[npt.NDArray[np.int64]]:
        """Indices of crops of one side, the largest first, at most so many at a time."""
        for side in reversed(SIDES):
            index = np.flatnonzero(self.side == side)
            for start in range(0, len(index), size):
                yield index[start : start + size]


def cut_crops(
    light: npt.NDArray[np.float32],
    usable: npt.NDArray[np.bool_],
    masks: Sequence[SoftMask],
    claims: Sequence[SoftMask | None],
) -> Crops:
    """Cut out what the network sees of each source.

    Parameters
    ----------
    light : (h, w) float32 array
        In sky rms, 0 where unusable.
    usable : (h, w) bool array
    masks : sequence of SoftMask
        Inside the image, 0 outside the mask.
    claims : sequence of SoftMask or None
        Shares of the light by Mask R-CNN, on the same crops; for ``None`` the mask stands in.
    """
    shape = (light.shape[0], light.shape[1])
    own = [mask if claim is None else claim for mask, claim in zip(masks, claims, strict=True)]
    all_masks, all_claims = np.zeros((2, *shape), dtype=np.float32)
    for mask, claim in zip(masks, own, strict=True):
        all_masks[mask.slices] += mask.probability
        all_claims[claim.slices] += claim.probability
    crops = _empty_crops(masks)
    for mask, claim, y0, x0, side in zip(
        masks, own, crops.y0.tolist(), crops.x0.tolist(), crops.side.tolist(), strict=True
    ):
        there, here = window(y0, x0, (side, side), shape)
        layers = np.zeros((LAYERS, side, side), dtype=np.float32)
        for layer, part in zip(layers, (mask, claim), strict=False):
            height, width = part.probability.shape
            top, left = part.y0 - y0, part.x0 - x0
            inner, outer = window(-top, -left, (side, side), (height, width))
            layer[outer] = part.probability[inner]
        layers[2][here] = all_masks[there]
        layers[3][here] = all_claims[there]
        layers[2:4] -= layers[:2]
        layers[4][here] = usable[there]
        pixels = np.zeros((side, side), dtype=np.float32)
        pixels[here] = light[there]
        crops.light.append(pixels)
        crops.layers.append(layers)
    return crops


def _empty_crops(masks: Sequence[SoftMask]) -> Crops:
    """Position and side of each crop: the source's mask lies in its middle."""
    boxes = np.array(
        [(mask.y0, mask.x0, *mask.probability.shape) for mask in masks], dtype=np.int64
    ).reshape(-1, 4)
    wanted = 2 * boxes[:, 2:].max(axis=1, initial=0) + MARGIN
    side = np.array(SIDES)[np.minimum(np.searchsorted(SIDES, wanted), len(SIDES) - 1)]
    corner = boxes[:, :2] + (boxes[:, 2:] - side[:, None]) // 2
    return Crops(corner[:, 0], corner[:, 1], side, [], [])


def window(
    y0: int, x0: int, size: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Slices of an image and of a crop where they overlap (possibly empty).

    Parameters
    ----------
    y0, x0 : int
        Where the crop's first pixel lies in the image.
    size, shape : (int, int)
        Height and width of the crop and of the image.
    """
    there, here = [], []
    for start, extent, limit in zip((y0, x0), size, shape, strict=True):
        low = min(max(0, start), limit)
        high = max(low, min(limit, start + extent))
        there.append(slice(low, high))
        here.append(slice(low - start, high - start))
    return (there[0], there[1]), (here[0], here[1])


def psf_terms(fwhm: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """What the network is told of PSFs: that they are known, and powers of the FWHM's logarithm.

    Parameters
    ----------
    fwhm : (n,) float array
        Pixels; NaN where it is not known.

    Returns
    -------
    (n, 3) float32 array
        0 where it is not known.
    """
    width = np.log(np.asarray(fwhm, dtype=np.float64) / USUAL_FWHM)
    terms = np.stack([np.ones_like(width), width, width**2], 1)
    return np.where(np.isfinite(width)[:, None], terms, 0).astype(np.float32)


def exclusive(claims: Tensor, index: Tensor, size: int) -> Tensor:
    """Turn claims into shares: a softmax over all sources of a pixel and the leftover.

    Parameters
    ----------
    claims : FloatTensor[k]
        Logarithms of claims, of all pixels of all crops.
    index : IntTensor[k]
        Which pixel each belongs to, below ``size``.
    size : int
    """
    weights = torch.exp(claims)
    all_claims = torch.ones(size, dtype=weights.dtype, device=weights.device)
    # Not all_claims[index]: its gradient is summed in whichever order threads come.
    return weights / all_claims.index_add(0, index, weights).index_select(0, index)


def separate(
    network: SeparationNetwork,
    light: npt.NDArray[np.float32],
    usable: npt.NDArray[np.bool_],
    masks: Sequence[SoftMask],
    claims: Sequence[SoftMask | None],
    *,
    fit: FluxFit | None = None,
    fwhm: float | None = None,
    said: MutableMapping[int, Said] | None = None,
) -> list[SourceLight]:
    """Give each source its own light.

    A source whose mask is larger than the largest crop gets what the others leave of the data.

    Parameters
    ----------
    network : SeparationNetwork
        In evaluation mode.
    light, usable, masks, claims
        See :func:`cut_crops`.
    fit : FluxFit, optional
        What is known of the network's fluxes.
    fwhm : float, optional
        Of the PSF, pixels, where it is known; the network and the fit are told.
    said : mutable mapping of int to Said, optional
        What the network has said of some sources before, by their number in ``masks``; that of the
        others is added.

    Returns
    -------
    list of SourceLight
        In sky rms.
    """
    shape = (light.shape[0], light.shape[1])
    large = np.array([max(mask.probability.shape) > SIDES[-1] for mask in masks], dtype=bool)
    crops = cut_crops(light, usable, masks, claims)
    seen = {} if said is None else said
    wanted = ~large
    wanted[list(seen)] = False
    seen.update(_look(network, crops, wanted, fwhm))
    boxes = [
        window(y0, x0, (side, side), shape)
        for y0, x0, side in zip(
            crops.y0.tolist(), crops.x0.tolist(), crops.side.tolist(), strict=True
        )
    ]
    all_claims = np.ones(shape, dtype=np.float32)
    # Large objects last: they have what would be left.
    for index in [*np.flatnonzero(~large), *np.flatnonzero(large)]:
        inside = masks[index].probability > 0
        all_claims[masks[index].slices][inside] = 1.0 if large[index] else LEFTOVER
    # In one order, since sums depend on it.
    for index in sorted(seen):
        claim, (there, here) = seen[index][0], boxes[index]
        all_claims[there] += claim[here]
    held = np.zeros(shape, dtype=np.float32)
    for index in np.flatnonzero(large).tolist():
        held[masks[index].slices] += masks[index].probability > 0
    parts = []
    for index, (mask, (there, here)) in enumerate(zip(masks, boxes, strict=True)):
        if large[index]:
            box = mask.slices
            rivals = all_claims[box] * np.maximum(held[box], 1)
            parts.append(_rest(mask, rivals, light[box]))
            continue
        claim, total, summary = seen[index]
        share = claim[here] / all_claims[there]
        model = steadied(share * total[here] * usable[there], usable[there])
        flux, error = _flux(model, float(summary[0]), float(summary[1]))
        parts.append(SourceLight(there[0].start, there[1].start, share, model, flux, error))
    return parts if fit is None else fit.corrected(parts, light, usable, ~large, fwhm)


def _rest(
    mask: SoftMask, rivals: npt.NDArray[np.float32], light: npt.NDArray[np.float32]
) -> SourceLight:
    """What is left on a mask by its rivals, whose claims stand beside a claim of one."""
    share = ((mask.probability > 0) / rivals).astype(np.float32)
    own = share * light
    return SourceLight(
        y0=mask.y0,
        x0=mask.x0,
        share=share,
        model=np.maximum(own, 0),
        flux=float(own.sum(dtype=np.float64)),
        flux_err=float(np.sqrt((share**2).sum(dtype=np.float64))),
    )


def _look(
    network: SeparationNetwork, crops: Crops, wanted: npt.NDArray[np.bool_], fwhm: float | None
) -> dict[int, Said]:
    """Claims, noiseless light and summary of some sources.

    Batches are filled up with empty crops to one size, so that a source does not depend on how many
    others there are.
    """
    device = next(network.parameters()).device
    sizes = BATCH
    if device.type == "cpu":
        sizes = QUICK_CPU_BATCH if fast_bfloat16(device) else CPU_BATCH
    chosen = np.flatnonzero(wanted)
    psf = psf_terms(np.array([fwhm or np.nan]))

    def look(some: Sequence[int], size: int) -> list[Said]:
        return _look_at(network, crops, chosen[some].tolist(), size, psf)

    sides = crops.side[chosen].tolist()
    results = in_batches(look, sides, sizes.__getitem__, device)
    return dict(zip(chosen.tolist(), results, strict=True))


@torch.inference_mode()
def _look_at(
    network: SeparationNetwork,
    crops: Crops,
    batch: Sequence[int],
    size: int,
    psf: npt.NDArray[np.float32],
) -> list[Said]:
    """Look at crops of one side in a batch filled up to a size."""
    device = next(network.parameters()).device
    side = int(crops.side[batch[0]])
    pixels = np.zeros((size, side, side), dtype=np.float32)
    layers = np.zeros((size, LAYERS, side, side), dtype=np.float32)
    for position, k in enumerate(batch):
        pixels[position], layers[position] = crops.light[k], crops.layers[k]
    # What it says is relative to the data, of which eight bits of mantissa are enough here.
    with torch.autocast(device.type, torch.bfloat16, enabled=fast_bfloat16(device)):
        out = network(
            uploaded(pixels, device),
            uploaded(layers, device),
            uploaded(np.repeat(psf, size, 0), device),
        )
    claims, total, summary = (part[: len(batch)].float().cpu() for part in out)
    parts = (torch.exp(claims).numpy(), total.numpy(), torch.exp(summary).numpy())
    return list(zip(*parts, strict=True))


def _flux(model: npt.NDArray[np.float32], growth: float, spread: float) -> tuple[float, float]:
    """Flux of a model and its error, in sky rms.

    Parameters
    ----------
    model : (h, w) float32 array
        In sky rms.
    growth : float
        Flux over the model's sum.
    spread : float
        Error over that of a sum weighted by the model.
    """
    total = float(model.sum(dtype=np.float64))
    power = float((model**2).sum(dtype=np.float64))
    # As wide as a pixel if nothing is known of its shape.
    width = total / np.sqrt(power) if power > 0 else 1.0
    return growth * total, growth * spread * max(float(width), 1.0)
