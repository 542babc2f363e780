"""What each anchor and each proposal should say, for a whole batch of stamps at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

__all__ = ["Truths", "box_ious", "collect", "near_ignored", "sample", "wide_ious", "widened"]

IGNORE_IOU = 0.3
"""Anchors and proposals that overlap an undetectable source this much are left out of the loss."""


@dataclass(frozen=True, slots=True)
class Truths:
    """True sources of ``N`` stamps, filled up to ``T`` a stamp.

    Parameters
    ----------
    boxes : FloatTensor[N, T, 4]
        Fillers are boxes of one pixel.
    labels : IntTensor[N, T]
        Classes; 0 for fillers.
    real : BoolTensor[N, T]
        Which are no fillers.
    ignored : FloatTensor[N, K, 4]
        Sources that are neither positive nor negative; fillers are empty.
    masks : UInt8Tensor[M, s, s]
        Of all real sources in order.
    light : FloatTensor[M, s, s]
        Their noiseless light, sky rms.
    total : FloatTensor[N, s, s]
        All noiseless light of each stamp.
    seed : IntTensor[N]
    stamp, place : IntTensor[M]
        Where each real source is among those of all stamps.
    """

    boxes: Tensor
    labels: Tensor
    real: Tensor
    ignored: Tensor
    masks: Tensor
    light: Tensor
    total: Tensor
    seed: Tensor
    stamp: Tensor
    place: Tensor

    def each(self, change: Callable[[Tensor], Tensor]) -> "Truths":
        """Change all tensors alike, as when they are moved to a device."""
        return Truths(*(change(getattr(self, field.name)) for field in fields(self)))

    def part(self, start: int, stop: int) -> "Truths":
        """Those of some of the stamps, still filled up as all were."""
        first, last = torch.searchsorted(self.stamp, torch.tensor([start, stop])).tolist()
        stamps, sources = slice(start, stop), slice(first, last)
        return Truths(
            boxes=self.boxes[stamps],
            labels=self.labels[stamps],
            real=self.real[stamps],
            ignored=self.ignored[stamps],
            masks=self.masks[sources],
            light=self.light[sources],
            total=self.total[stamps],
            seed=self.seed[stamps],
            stamp=self.stamp[sources] - start,
            place=self.place[sources],
        )


def collect(targets: Sequence[dict[str, Tensor]]) -> Truths:
    """Join the targets of stamps.

    Parameters
    ----------
    targets : sequence of dict
        Of each stamp: ``boxes`` ``FloatTensor[n, 4]``, ``labels`` ``IntTensor[n]``, ``masks``
        ``UInt8Tensor[n, s, s]``, ``light`` ``FloatTensor[n, s, s]``, ``total``
        ``FloatTensor[s, s]``, ``ignored`` ``FloatTensor[k, 4]`` and ``seed`` ``IntTensor[]``.
    """
    labels = pad_sequence([target["labels"] for target in targets], batch_first=True)
    boxes = pad_sequence([target["boxes"] for target in targets], batch_first=True)
    real = labels > 0
    stamp, place = torch.where(real)
    pixel = boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
    return Truths(
        boxes=torch.where(real[..., None], boxes, pixel),
        labels=labels,
        real=real,
        ignored=pad_sequence([target["ignored"] for target in targets], batch_first=True),
        masks=torch.cat([target["masks"] for target in targets]),
        light=torch.cat([target["light"] for target in targets]),
        total=torch.stack([target["total"] for target in targets]),
        seed=torch.stack([target["seed"] for target in targets]),
        stamp=stamp,
        place=place,
    )


def box_ious(first: Tensor, second: Tensor) -> Tensor:
    """IoU of all boxes of each stamp with each other.

    Parameters
    ----------
    first : FloatTensor[N, a, 4]
    second : FloatTensor[N, b, 4] or FloatTensor[b, 4]

    Returns
    -------
    FloatTensor[N, a, b]
    """
    # Coordinate by coordinate: no dimension of four is in the way of the processor's vectors.
    x0, y0, x1, y1 = (part[:, :, None] for part in first.unbind(-1))
    u0, v0, u1, v1 = (part[..., None, :] for part in second.unbind(-1))
    width = (torch.minimum(x1, u1) - torch.maximum(x0, u0)).clamp_min_(0)
    both = (torch.minimum(y1, v1) - torch.maximum(y0, v0)).clamp_min_(0).mul_(width)
    areas = (x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0)
    return both / areas.sub_(both)


def widened(boxes: Tensor, side: float) -> Tensor:
    """Boxes of at least a side, in pixels, about the same centres; empty ones stay empty.

    The box of a faint source is the few pixels that stand out of the noise, and two such boxes a
    pixel apart hardly overlap. Overlap of widened boxes says whether they are of one source.
    """
    size = boxes[..., 2:] - boxes[..., :2]
    grow = ((side - size) / 2).clamp_min(0) * (size > 0)
    return torch.cat([boxes[..., :2] - grow, boxes[..., 2:] + grow], -1)


def wide_ious(first: Tensor, second: Tensor, side: float) -> Tensor:
    """IoU of all boxes of each stamp with each other, once they are widened.

    Parameters
    ----------
    first, second : FloatTensor
        See :func:`box_ious`.
    side : float
        Pixels that boxes are widened to, see :func:`widened`.

    Returns
    -------
    FloatTensor[N, a, b]
    """
    return box_ious(widened(first, side), widened(second, side))


def near_ignored(boxes: Tensor, truths: Truths, side: float) -> Tensor:
    """Which boxes lie on a source that is neither a positive nor a negative.

    Parameters
    ----------
    boxes : FloatTensor[N, b, 4] or FloatTensor[b, 4]
    truths : Truths
    side : float
        Pixels that boxes are widened to.

    Returns
    -------
    BoolTensor[N, b]
    """
    near: Tensor = (wide_ious(truths.ignored, boxes, side) > IGNORE_IOU).any(1)
    return near


def sample(kind: Tensor, keys: Tensor, size: int, positives: int) -> tuple[Tensor, Tensor]:
    """Choose at random positives, at most so many, and fill up with negatives, a stamp.

    Parameters
    ----------
    kind : Tensor[N, b]
        1 for a positive, 0 for a negative, −1 for neither.
    keys : IntTensor[N, b]
        Not negative; those with the highest are chosen.
    size, positives : int

    Returns
    -------
    index : IntTensor[N, size]
        What was chosen, positives first.
    chosen : BoolTensor[N, size]
        Which places are taken.
    """
    best, first = _highest(torch.where(kind == 1, keys, -1), positives)
    others, then = _highest(torch.where(kind == 0, keys, -1), size)
    taken, left = (best >= 0).sum(1, keepdim=True), (others >= 0).sum(1, keepdim=True)
    place = torch.arange(size, device=kind.device).expand(len(kind), -1)
    after = then.gather(1, (place - taken).clamp_min(0))
    before = first.gather(1, place.clamp_max(first.shape[1] - 1))
    return torch.where(place < taken, before, after), place < taken + left


def _highest(keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The highest keys and where they are; −1 where there are too few."""
    missing = count - keys.shape[1]
    if missing > 0:
        keys = torch.cat([keys, keys.new_full((len(keys), missing), -1)], 1)
    highest = keys.topk(count, dim=1)
    index = highest.indices.clamp_max(keys.shape[1] - 1 - max(0, missing))
    return highest.values, index
