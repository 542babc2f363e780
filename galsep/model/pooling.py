"""Pooling features over boxes: RoIAlign (He et al. 2017) with one bilinear sample a bin.

torchvision's own operator spends a third of a training step on the CPU in its single-threaded
backward pass. A bilinear sample is a weighted sum of four feature vectors, which is what
:func:`torch.nn.functional.embedding_bag` computes, forwards and backwards, on all cores.

Coordinates run along pixel edges: pixel ``i`` covers ``[i, i + 1]``. Cell ``j`` of a feature map
of stride ``s`` is centred on pixel ``s · j``, since every strided convolution here pads evenly.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from galsep.model.device import numbers

__all__ = ["expand", "image_of", "pool_boxes", "sample_layers"]

CELLS_PER_BOX = 14
"""A box is pooled from the finest level on which it is at most so many cells wide."""


def image_of(boxes: Sequence[Tensor]) -> Tensor:
    """Number of the image of each box, of boxes that are listed by image."""
    counts = torch.tensor([len(part) for part in boxes], device=boxes[0].device)
    return torch.repeat_interleave(counts)


def pool_boxes(
    features: Sequence[Tensor], strides: Sequence[int], boxes: Tensor, image: Tensor, size: int
) -> Tensor:
    """Pool every box from the level that suits its size.

    Boxes below 28 px are pooled from the level of stride 2, below 56 px from stride 4, and so on
    (where there are such levels), so that a bin of a 7×7 grid is at most two cells wide and one
    sample a bin suffices.

    Parameters
    ----------
    features : sequence of FloatTensor[N, C, H, W]
        Finest level first.
    strides : sequence of int
        Pixels a cell, by level.
    boxes : FloatTensor[k, 4]
        ``xyxy`` in pixels.
    image : IntTensor[k]
        Number of the image that each is pooled from.
    size : int
        Bins along each side.

    Returns
    -------
    FloatTensor[k, C, size, size]
    """
    channels = features[0].shape[1]
    device = features[0].device
    # One row a cell; channels-last features need no copy but the one that joins the levels.
    table = torch.cat([level.permute(0, 2, 3, 1).reshape(-1, channels) for level in features])
    heights, widths = zip(*(level.shape[2:] for level in features), strict=True)
    cells = [level.shape[0] * level.shape[2] * level.shape[3] for level in features]
    starts = [sum(cells[:index]) for index in range(len(cells))]
    known = numbers([heights, widths, starts, strides], device)
    boxes = boxes.to(torch.float32)
    side = (boxes[:, 2:] - boxes[:, :2]).clamp_min(1e-3).prod(1).sqrt()
    level = torch.floor(torch.log2(side / (strides[0] * CELLS_PER_BOX)) + 1)
    level = level.clamp(0, len(features) - 1).long()
    height, width, start, stride = known[:, level]
    y_low, y_high, y_part = _along(boxes[:, 1], boxes[:, 3], stride, height, size)
    x_low, x_high, x_part = _along(boxes[:, 0], boxes[:, 2], stride, width, size)
    row = (start + image * height * width)[:, None] + torch.stack([y_low, y_high], -1).flatten(
        1
    ) * width[:, None]
    column = torch.stack([x_low, x_high], -1)
    index = row.view(-1, size, 1, 2, 1) + column.view(-1, 1, size, 1, 2)
    y_weight = torch.stack([1 - y_part, y_part], -1)
    x_weight = torch.stack([1 - x_part, x_part], -1)
    weight = y_weight.view(-1, size, 1, 2, 1) * x_weight.view(-1, 1, size, 1, 2)
    pooled = F.embedding_bag(
        index.reshape(-1, 4), table.float(), per_sample_weights=weight.reshape(-1, 4), mode="sum"
    )
    return pooled.view(-1, size, size, channels).permute(0, 3, 1, 2)


def sample_layers(layers: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Sample pixel maps over boxes, one bilinear sample a bin.

    Parameters
    ----------
    layers : FloatTensor[n, c, H, W]
    boxes : FloatTensor[n, r, 4]
        ``xyxy`` in pixels: ``r`` boxes for each of the maps.
    size : int

    Returns
    -------
    FloatTensor[n, r, c, size, size]
    """
    n, r = boxes.shape[:2]
    height, width = layers.shape[2:]
    step = (torch.arange(size, device=boxes.device) + 0.5) / size
    x = boxes[..., 0:1] + step * (boxes[..., 2:3] - boxes[..., 0:1])
    y = boxes[..., 1:2] + step * (boxes[..., 3:4] - boxes[..., 1:2])
    grid = torch.stack(
        [
            (2 * x / width - 1)[:, :, None, :].expand(n, r, size, size),
            (2 * y / height - 1)[:, :, :, None].expand(n, r, size, size),
        ],
        -1,
    )
    sampled = F.grid_sample(layers, grid.reshape(n, r * size, size, 2), align_corners=False)
    return sampled.view(n, layers.shape[1], r, size, size).transpose(1, 2)


def expand(boxes: Tensor, margin: float) -> Tensor:
    """Make boxes wider and higher by a share of their size, about their centres."""
    grow = (boxes[..., 2:] - boxes[..., :2]) * (margin / 2)
    return torch.cat([boxes[..., :2] - grow, boxes[..., 2:] + grow], -1)


def _along(
    low: Tensor, high: Tensor, stride: Tensor, cells: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Cells on either side of each bin's centre along one axis, and the part of the second."""
    step = (torch.arange(size, device=low.device) + 0.5) / size
    centre = low[:, None] + step * (high - low)[:, None]
    position = (centre - 0.5) / stride[:, None]
    last = (cells - 1)[:, None]
    position = position.clamp_min(0).minimum(last.to(position.dtype))
    first = position.floor().long()
    second = (first + 1).minimum(last)
    return first, second, position - first
