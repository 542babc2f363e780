"""Galaxies look the same turned by half about their centres, but for noise.

What a model and the same turned by half differ by is part noise, part the galaxy's own. So much of
it is kept as stands out of what noise leaves: the positive part of James & Stein (1961).
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["steadied", "steadied_crops"]

NOISE, SYSTEMATIC = 1.0, 0.005
"""What noise leaves there: a sum of squares of so many sky rms, and this share of the model."""

LEAST_SEEN = 0.9
"""A model is left as it is where less of it, in squares, has a counterpart that is usable."""

LOBES = 4
"""Half-width of the kernel that interpolates, pixels: Lanczos's, whose weights are made to add up
to 1 (Duchon 1979)."""

Image = npt.NDArray[np.float32]


def steadied(model: Image, usable: npt.NDArray[np.bool_]) -> Image:
    """Bring a source's model nearer to itself turned by half about its centroid.

    Parameters
    ----------
    model : (h, w) float32 array
        In sky rms, not negative, 0 where unusable.
    usable : (h, w) bool array
        Pixels whose counterpart is not usable, or not on the crop, stay as they are.
    """
    square = model**2
    sums = [square.sum(axis=axis, dtype=np.float64) for axis in (1, 0)]
    power = float(sums[0].sum())
    if power <= 0:
        return model
    # Rows and columns whose counterparts' kernels lie on the crop; where these do.
    box, back, rests = [], [], []
    for along in sums:
        size = len(along)
        last, rest = divmod(2 * float(along @ np.arange(size)) / power, 1)
        low = max(0, int(last) + LOBES - size + 1)
        high = max(low, min(size, int(last) - LOBES + 2))
        box.append(slice(low, high))
        back.append(slice(int(last) - high + 2 - LOBES, int(last) - low + LOBES + 1))
        rests.append(rest)
    kernels = _kernels(np.array(rests))
    inside, across = (box[0], box[1]), (back[0], back[1])
    turned = _filtered(model[across], kernels)
    if turned.size == 0:
        return model
    both = usable[inside]
    if not usable.all():
        taps = _filtered(usable[across].astype(np.float32), np.ones_like(kernels))
        both = both & (taps > (2 * LOBES) ** 2 - 0.5)
    if float((square[inside] * both).sum(dtype=np.float64)) < LEAST_SEEN * power:
        return model
    odd = (model[inside] - turned) / 2 * both
    kept = _kept(float((odd**2).sum(dtype=np.float64)), power)
    steady = model.copy()
    steady[inside] = np.maximum(model[inside] - np.float32(1 - kept) * odd, 0)
    return steady


def _filtered(crop: Image, kernels: npt.NDArray[np.float64]) -> Image:
    """Sums of a crop turned by half, weighted with kernels of its rows and of its columns."""
    from scipy.ndimage import correlate1d

    if crop.size:
        for axis, kernel in enumerate(kernels):
            crop = correlate1d(crop, kernel, axis, mode="constant")
    return crop[LOBES : 1 - LOBES, LOBES : 1 - LOBES][::-1, ::-1]


def _kept(odd: float, power: float) -> float:
    """What share of a sum of squares ``odd`` is not noise's."""
    noise = NOISE + SYSTEMATIC**2 * power
    return 1 - noise / odd if odd > noise else 0.0


def _kernels(rests: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Weights of the pixels about each of some places."""
    away = np.arange(1 - LOBES, LOBES + 1) - rests[:, None]
    weights = np.sinc(away) * np.sinc(away / LOBES)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def steadied_crops(models: Tensor, usable: Tensor) -> Tensor:
    """:func:`steadied` of crops of one size, with gradients of the models, not of their centroids.

    Parameters
    ----------
    models : FloatTensor[n, s, s]
    usable : BoolTensor[n, s, s] or FloatTensor[n, s, s]
        In which 1 is true.
    """
    usable = usable.to(models.dtype)
    with torch.no_grad():
        square = models**2
        power = square.sum((1, 2))
        pixels = torch.arange(models.shape[-1], device=models.device, dtype=models.dtype)
        kernels, reaches = [], []
        for axis in (2, 1):
            centre = square.sum(axis) @ pixels / power.clamp_min(1e-6)
            # Of each pixel's counterpart, [n, pixel, pixel of the flipped crop].
            away = pixels - pixels[:, None] - (pixels[-1] - 2 * centre)[:, None, None]
            reach = ((away > -LOBES) & (away <= LOBES)).to(models.dtype)
            kernel = torch.sinc(away) * torch.sinc(away / LOBES) * reach
            kernels.append(kernel / kernel.sum(2, keepdim=True).clamp_min(0.5))
            reaches.append(reach)
        seen = reaches[0] @ usable.flip((1, 2)) @ reaches[1].mT
        both = (seen > (2 * LOBES) ** 2 - 0.5) & (usable > 0)
        enough = (square * both).sum((1, 2)) >= LEAST_SEEN * power
        both = both & enough[:, None, None]
    turned = kernels[0] @ models.flip((1, 2)) @ kernels[1].mT
    odd = torch.where(both, (models - turned) / 2, 0.0)
    noise = NOISE + SYSTEMATIC**2 * power
    kept = (1 - noise / (odd**2).sum((1, 2)).clamp_min(1e-6)).clamp_min(0)
    return (models - (1 - kept)[:, None, None] * odd).clamp_min(0)
