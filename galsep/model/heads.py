"""The second stage: what is in each proposal, where exactly, and which light is its own.

Two things differ from torchvision's heads. A proposal may hold **two** sources: galaxies a few
pixels apart have nearly the same box, so one proposal answers for both, each with a class and a
box of its own; predictions are assigned to truths in the order that costs least, and predictions
of one proposal do not suppress each other (Chu et al. 2020, "Detection in crowded scenes: one
proposal, multiple predictions"). And beside the mask there is a second layer, the **share** of
the light in each pixel that is the source's own.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import boxes as box_ops

from galsep.model.pooling import expand, pool, sample_layers

__all__ = ["GALAXY", "NUM_CLASSES", "STAR", "SourceHeads", "near_ignored"]

GALAXY = 1
STAR = 2
NUM_CLASSES = 3

IGNORE_IOU = 0.3
"""Anchors and proposals that overlap an undetectable source this much are left out of the loss."""

BOX_BINS, MASK_BINS, MASK_SIZE = 7, 14, 28
POSITIVE_IOU = 0.5
POSITIVE_FRACTION = 0.25
SCORE_FLOOR = 0.05
"""Detections below this raw score are not looked at."""

VOTING_IOU = 0.6
"""Suppressed boxes that overlap a kept one more than this vote on where it is."""

MASK_SAMPLES = 2
CENTRE_JITTER, SIZE_JITTER = 0.06, 0.08
"""How far boxes to learn masks on lie off the true ones, in box sizes (1 sigma)."""

LIT = 0.5
"""Shares are learnt where all light together exceeds this many sky rms."""


class _Predictor(nn.Module):
    """Class scores and box offsets for each of a proposal's predictions."""

    def __init__(self, channels: int, predictions: int) -> None:
        super().__init__()
        self.predictions = predictions
        self.cls_score = nn.Linear(channels, predictions * NUM_CLASSES)
        self.bbox_pred = nn.Linear(channels, predictions * 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shape = (len(x), self.predictions, -1)
        return self.cls_score(x).view(shape).float(), self.bbox_pred(x).view(shape).float()


class _MaskPredictor(MaskRCNNPredictor):  # type: ignore[misc]
    """torchvision's mask predictor, computed without its large intermediate.

    Its transposed convolution has as large a stride as its kernel, so each cell becomes four bins
    on its own. They are kept as channels until the logits are there: the same numbers at a fifth
    of the time on a CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Raise ``FloatTensor[n, c, h, w]`` to logits ``[n, 2, 2h, 2w]``."""
        n, _, height, width = x.shape
        upsampling, logits = self.conv5_mask, self.mask_fcn_logits
        hidden = upsampling.weight.shape[1]
        weight = upsampling.weight.permute(2, 3, 1, 0).reshape(4 * hidden, -1, 1, 1)
        quarters = F.relu(F.conv2d(x, weight, upsampling.bias.repeat(4)))
        bins = quarters.permute(0, 2, 3, 1).reshape(n, height, width, 2, 2, hidden)
        out = F.linear(bins, logits.weight.flatten(1), logits.bias)
        # The number of classes by name: of no boxes it cannot be worked out.
        return out.permute(0, 5, 1, 3, 2, 4).reshape(n, out.shape[-1], 2 * height, 2 * width)


class SourceHeads(nn.Module):
    """Box head and mask head.

    Parameters
    ----------
    channels : int
        Of the features.
    strides : sequence of int
        Pixels a cell, by level.
    box_channels : int
    mask_layers : tuple of int
        Channels of the mask head's convolutions.
    predictions : {1, 2}
        Sources a proposal may hold.
    sampled : int
        Proposals a stamp sampled for the loss.
    nms : float
        Box IoU above which the weaker of two detections is dropped.
    detections : int
        Detections a cutout at most.
    mask_margin : float
        Share of a box's size by which masks reach beyond it.
    """

    def __init__(
        self,
        *,
        channels: int,
        strides: Sequence[int],
        box_channels: int,
        mask_layers: tuple[int, ...],
        predictions: int,
        sampled: int,
        nms: float,
        detections: int,
        mask_margin: float,
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.nms = nms
        self.detections = detections
        self.mask_margin = mask_margin
        self.score_floor = SCORE_FLOOR
        self.box_head = TwoMLPHead(channels * BOX_BINS**2, box_channels)
        self.box_predictor = _Predictor(box_channels, predictions)
        self.mask_head = MaskRCNNHeads(channels, mask_layers, 1)
        self.mask_predictor = _MaskPredictor(mask_layers[-1], mask_layers[-1], 2)
        self._coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
        self._sampler = BalancedPositiveNegativeSampler(sampled, POSITIVE_FRACTION)

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Give the losses in training mode, else the detections of each image.

        Parameters
        ----------
        features : dict of str to FloatTensor[N, C, H, W]
            Finest level first.
        proposals : list of FloatTensor[k, 4]
        image_shapes : list of (int, int)
        targets : list of dict, optional
            As :func:`galsep.model.network.build_network` describes them; needed for training.
        """
        levels = list(features.values())[: len(self.strides)]
        if self.training:
            if targets is None:
                raise ValueError("training needs targets")
            losses = self._box_losses(levels, proposals, targets)
            return [], losses | self._mask_losses(levels, targets)
        found = self._detect(levels, proposals, image_shapes)
        self._add_masks(levels, found)
        return found, {}

    def _box_losses(
        self, levels: list[Tensor], proposals: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        with torch.no_grad():
            chosen = [self._sample(*pair) for pair in zip(proposals, targets, strict=True)]
        boxes = [item[0] for item in chosen]
        labels = torch.cat([item[1] for item in chosen])
        offsets = torch.cat([item[2] for item in chosen])
        pooled = pool(levels, self.strides, boxes, BOX_BINS)
        logits, deltas = self.box_predictor(self.box_head(pooled))
        return _assigned_losses(logits, deltas, labels, offsets)

    def _sample(
        self, proposals: Tensor, target: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Choose proposals of one stamp; the classes and offsets of the truths each holds."""
        truths = target["boxes"]
        boxes = torch.cat([proposals, truths])
        slots = self.box_predictor.predictions
        labels = torch.zeros((len(boxes), slots), dtype=torch.int64, device=boxes.device)
        matched = torch.zeros_like(labels)
        if len(truths):
            held = min(slots, len(truths))
            iou, index = box_ops.box_iou(boxes, truths).topk(held, dim=1)
            matched[:, :held] = index
            labels[:, :held] = target["labels"][index] * (iou >= POSITIVE_IOU)
        kind = (labels[:, 0] > 0).float()
        kind[(labels[:, 0] == 0) & near_ignored(boxes, target)] = -1
        positive, negative = self._sampler([kind])
        keep = torch.where(positive[0] | negative[0])[0]
        boxes, labels, matched = boxes[keep], labels[keep], matched[keep]
        offsets = boxes.new_zeros((len(boxes), slots, 4))
        for slot in range(slots if len(truths) else 0):
            offsets[:, slot] = self._coder.encode_single(truths[matched[:, slot]], boxes)
        return boxes, labels, offsets

    def _mask_losses(
        self, levels: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        boxes = [_jittered(target["boxes"]) for target in targets]
        layers = [
            torch.stack(
                [
                    target["masks"].float(),
                    target["light"],
                    target["total"].expand_as(target["light"]),
                ],
                1,
            )
            for target in targets
        ]
        around = torch.cat([expand(part, self.mask_margin) for part in boxes])
        logits = self._mask_logits(
            levels, [expand(part, self.mask_margin).flatten(0, 1) for part in boxes]
        )
        wanted = sample_layers(torch.cat(layers), around, MASK_SIZE).flatten(0, 1)
        if not len(wanted):
            nothing = logits.sum() * 0
            return {"loss_mask": nothing, "loss_share": nothing}
        mask, light, total = wanted.unbind(1)
        share = (light / total.clamp_min(1e-3)).clamp(0, 1)
        lit = (total > LIT).float()
        loss = F.binary_cross_entropy_with_logits(logits[:, 1], share, weight=lit, reduction="sum")
        return {
            "loss_mask": F.binary_cross_entropy_with_logits(logits[:, 0], mask),
            "loss_share": loss / lit.sum().clamp_min(1),
        }

    def _mask_logits(self, levels: list[Tensor], boxes: list[Tensor]) -> Tensor:
        pooled = pool(levels, self.strides, boxes, MASK_BINS)
        logits: Tensor = self.mask_predictor(self.mask_head(pooled))
        return logits.float()

    def _detect(
        self,
        levels: list[Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        counts = [len(boxes) for boxes in proposals]
        pooled = pool(levels, self.strides, proposals, BOX_BINS)
        logits, deltas = self.box_predictor(self.box_head(pooled))
        probabilities = torch.softmax(logits, -1)
        scores = 1 - probabilities[..., 0]
        star = probabilities[..., STAR] / scores.clamp_min(1e-6)
        slots = scores.shape[1]
        joined = torch.cat(proposals)
        boxes = torch.stack(
            [self._coder.decode_single(deltas[:, slot], joined) for slot in range(slots)], 1
        )
        found = []
        parts = zip(
            torch.split(boxes, counts),
            torch.split(scores, counts),
            torch.split(star, counts),
            image_shapes,
            strict=True,
        )
        for box, score, point, shape in parts:
            origin = torch.arange(len(box), device=box.device).repeat_interleave(slots)
            box = box_ops.clip_boxes_to_image(box.flatten(0, 1), shape)
            score, point = score.flatten(), point.flatten()
            good = torch.where(score > self.score_floor)[0]
            good = good[box_ops.remove_small_boxes(box[good], min_size=1.0)]
            box, score, point = box[good], score[good], point[good]
            kept = _suppress(box, score, origin[good], self.nms)[: self.detections]
            found.append(
                {
                    "boxes": _voted(box, score, kept),
                    "scores": score[kept],
                    "class_star": point[kept],
                }
            )
        return found

    def _add_masks(self, levels: list[Tensor], found: list[dict[str, Tensor]]) -> None:
        boxes = [expand(item["boxes"], self.mask_margin) for item in found]
        logits = self._mask_logits(levels, boxes)
        # Where threads share them out, single precision rounds some as a vector and some alone.
        wide = logits.double() if logits.device.type == "cpu" else logits
        layers = torch.sigmoid(wide).float()
        parts = torch.split(layers, [len(box) for box in boxes])
        for item, box, part in zip(found, boxes, parts, strict=True):
            item["mask_boxes"] = box
            item["masks"], item["shares"] = part[:, 0], part[:, 1]


def near_ignored(boxes: Tensor, target: dict[str, Tensor]) -> Tensor:
    """Which boxes lie on a source that is neither a positive nor a negative."""
    ignored = target["ignored"]
    if ignored.numel() == 0:
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    near: Tensor = (box_ops.box_iou(ignored, boxes) > IGNORE_IOU).any(0)
    return near


def _assigned_losses(
    logits: Tensor, deltas: Tensor, labels: Tensor, offsets: Tensor
) -> dict[str, Tensor]:
    """Losses with each proposal's predictions assigned to its truths where that costs least.

    Parameters
    ----------
    logits : FloatTensor[k, p, class]
    deltas : FloatTensor[k, p, 4]
    labels : IntTensor[k, p]
        Classes of the truths, 0 where there is none.
    offsets : FloatTensor[k, p, 4]
    """
    slots = labels.shape[1]
    orders = [list(range(slots)), list(reversed(range(slots)))][:slots]
    of_class, of_box = [], []
    for order in orders:
        wanted, where = labels[:, order], offsets[:, order]
        by_class = F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none").sum(1)
        off = F.smooth_l1_loss(deltas, where, beta=1 / 9, reduction="none").sum(2)
        of_class.append(by_class)
        of_box.append((off * (wanted > 0)).sum(1))
    by_class, off = torch.stack(of_class), torch.stack(of_box)
    best = (by_class + off).detach().argmin(0, keepdim=True)
    count = max(1, len(labels))
    return {
        "loss_classifier": by_class.gather(0, best).sum() / count,
        "loss_box_reg": off.gather(0, best).sum() / count,
    }


def _jittered(boxes: Tensor) -> Tensor:
    """Boxes ``[n, r, 4]`` about the true ones, as far off as detected boxes are."""
    size = (boxes[:, 2:] - boxes[:, :2])[:, None]
    centre = (boxes[:, 2:] + boxes[:, :2])[:, None] / 2
    shape = (len(boxes), MASK_SAMPLES, 2)
    centre = centre + torch.randn(shape, device=boxes.device) * CENTRE_JITTER * size
    size = size * torch.exp(torch.randn(shape, device=boxes.device) * SIZE_JITTER)
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def _suppress(boxes: Tensor, scores: Tensor, origin: Tensor, threshold: float) -> Tensor:
    """Drop the weaker of two boxes that overlap too much, unless one proposal gave both.

    Returns the indices of those kept, by falling score.
    """
    order = scores.argsort(descending=True, stable=True)
    overlap = box_ops.box_iou(boxes[order], boxes[order]) > threshold
    rivals = (overlap & (origin[order, None] != origin[order])).cpu().numpy()
    kept: list[int] = []
    for index in range(len(order)):
        if not rivals[index, kept].any():
            kept.append(index)
    return order[torch.tensor(kept, dtype=torch.int64, device=order.device)]


def _voted(boxes: Tensor, scores: Tensor, kept: Tensor) -> Tensor:
    """Mean of each kept box and those it stands for, weighted by score (Gidaris & Komodakis 2015).

    A suppressed box votes for the kept one that it overlaps most.
    """
    if not len(kept):
        return boxes
    iou = box_ops.box_iou(boxes[kept], boxes)
    rank = torch.arange(len(kept), device=boxes.device)
    votes = (iou > VOTING_IOU) & (iou.argmax(0) == rank[:, None])
    votes[rank, kept] = True
    weight = votes * scores
    mean: Tensor = (weight @ boxes) / weight.sum(1, keepdim=True)
    return mean
