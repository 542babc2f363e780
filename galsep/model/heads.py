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
from torchvision.models.detection._utils import BoxCoder, encode_boxes
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import boxes as box_ops

from galsep.model import draws
from galsep.model.assignment import Truths, near_ignored, sample, wide_ious, widened
from galsep.model.device import numbers
from galsep.model.parallel import batch_mean
from galsep.model.pooling import expand, image_of, pool_boxes, sample_layers
from galsep.model.proposals import Proposals

__all__ = ["GALAXY", "NUM_CLASSES", "STAR", "SourceHeads"]

GALAXY = 1
STAR = 2
NUM_CLASSES = 3

BOX_BINS, MASK_BINS, MASK_SIZE = 7, 14, 28
POSITIVE_IOU = 0.5
POSITIVE_FRACTION = 0.25
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
SCORE_FLOOR = 0.05
"""Detections below this raw score are not looked at."""

VOTING_IOU = 0.6
"""Suppressed boxes that overlap a kept one more than this vote on where it is."""

MASK_SAMPLES = 2
CENTRE_JITTER, SIZE_JITTER = 0.06, 0.08
"""How far boxes to learn masks on lie off the true ones, in box sizes (1 sigma)."""

LIT = 0.5
"""Shares are learnt where all light together exceeds this many sky rms."""


class _BoxHead(TwoMLPHead):  # type: ignore[misc]
    """torchvision's two layers, the first computed as the convolution over all bins that it is.

    Some processors' matrix products split so long a sum by the number of threads and of boxes;
    convolutions sum every box alike.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Raise ``FloatTensor[n, c, b, b]`` to ``FloatTensor[n, k]``."""
        weight = self.fc6.weight.view(-1, *x.shape[1:])
        return F.relu(self.fc7(F.relu(F.conv2d(x, weight, self.fc6.bias).flatten(1))))


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
    smallest_match : float
        Pixels that boxes are widened to where they are matched with sources or with each other.
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
        smallest_match: float,
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.nms = nms
        self.detections = detections
        self.mask_margin = mask_margin
        self.smallest_match = smallest_match
        self.score_floor = SCORE_FLOOR
        self.box_head = _BoxHead(channels * BOX_BINS**2, box_channels)
        self.box_predictor = _Predictor(box_channels, predictions)
        self.mask_head = MaskRCNNHeads(channels, mask_layers, 1)
        self.mask_predictor = _MaskPredictor(mask_layers[-1], mask_layers[-1], 2)
        self._coder = BoxCoder(BOX_WEIGHTS)
        self._sampled = sampled

    def learn(
        self, features: dict[str, Tensor], proposals: Proposals, truths: Truths
    ) -> dict[str, Tensor]:
        """Give the losses.

        Parameters
        ----------
        features : dict of str to FloatTensor[N, C, H, W]
            Finest level first.
        proposals : Proposals
        truths : Truths

        Returns
        -------
        dict of str to FloatTensor
            ``loss_classifier``, ``loss_box_reg``, ``loss_mask``, ``loss_share``.
        """
        levels = self._levels(features)
        return self._box_losses(levels, proposals, truths) | self._mask_losses(levels, truths)

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        least: float = 0.0,
    ) -> list[dict[str, Tensor]]:
        """Give the detections of each image; of what they hold, masks and shares have gradients.

        Parameters
        ----------
        features : dict of str to FloatTensor[N, C, H, W]
            Finest level first.
        proposals : list of FloatTensor[k, 4]
        image_shapes : list of (int, int)
        least : float
            Raw score from which detections are given.
        """
        levels = self._levels(features)
        with torch.no_grad():
            found = self._detect(levels, proposals, image_shapes, least)
        self._add_masks(levels, found)
        return found

    def _levels(self, features: dict[str, Tensor]) -> list[Tensor]:
        return list(features.values())[: len(self.strides)]

    def _box_losses(
        self, levels: list[Tensor], proposals: Proposals, truths: Truths
    ) -> dict[str, Tensor]:
        with torch.no_grad():
            boxes, stamp, labels, offsets, chosen = self._sample(proposals, truths)
        pooled = pool_boxes(levels, self.strides, boxes, stamp, BOX_BINS)
        logits, deltas = self.box_predictor(self.box_head(pooled))
        return _assigned_losses(logits, deltas, labels, offsets, chosen)

    def _sample(
        self, proposals: Proposals, truths: Truths
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Choose as many proposals of each stamp, true boxes among them.

        Returns
        -------
        boxes : FloatTensor[k, 4]
        stamp : IntTensor[k]
        labels : IntTensor[k, p]
            Classes of the truths that each holds.
        offsets : FloatTensor[k, p, 4]
            From each to them.
        chosen : BoolTensor[k]
            Which are no fillers, boxes of one pixel where there are too few.
        """
        boxes = torch.cat([proposals.boxes, truths.boxes], 1)
        real = torch.cat([proposals.real, truths.real], 1)
        labels, matched = self._held(boxes, truths)
        kind = torch.where(near_ignored(boxes, truths, self.smallest_match), -1, 0)
        kind = torch.where(labels[..., 0] > 0, 1, kind).masked_fill(~real, -1)
        index, chosen = sample(
            kind,
            _own_keys(proposals, truths),
            self._sampled,
            int(self._sampled * POSITIVE_FRACTION),
        )
        stamp = torch.arange(len(index), device=index.device).repeat_interleave(index.shape[1])
        index, chosen = index.flatten(), chosen.flatten()
        boxes, labels, matched = (part[stamp, index] for part in (boxes, labels, matched))
        pixel = numbers((0.0, 0.0, 1.0, 1.0), boxes.device)
        boxes, labels = torch.where(chosen[:, None], boxes, pixel), labels * chosen[:, None]
        slots = labels.shape[1]
        if not truths.real.shape[1]:
            return boxes, stamp, labels, boxes.new_zeros((len(boxes), slots, 4)), chosen
        wanted = truths.boxes[stamp[:, None], matched].flatten(0, 1)
        weights = numbers(BOX_WEIGHTS, boxes.device)
        offsets = encode_boxes(wanted, boxes.repeat_interleave(slots, 0), weights)
        return boxes, stamp, labels, offsets.view(len(boxes), slots, 4), chosen

    def _held(self, boxes: Tensor, truths: Truths) -> tuple[Tensor, Tensor]:
        """Classes and numbers of the true sources that each box holds, closest first.

        Parameters
        ----------
        boxes : FloatTensor[N, b, 4]
        truths : Truths

        Returns
        -------
        labels, matched : IntTensor[N, b, p]
        """
        slots = self.box_predictor.predictions
        shape = (*boxes.shape[:2], slots)
        labels = torch.zeros(shape, dtype=torch.int64, device=boxes.device)
        matched = torch.zeros_like(labels)
        held = min(slots, truths.real.shape[1])
        if held:
            iou = wide_ious(boxes, truths.boxes, self.smallest_match)
            iou = iou.masked_fill(~truths.real[:, None], -1)
            best, matched[..., :held] = iou.topk(held, dim=2)
            stamp = torch.arange(len(boxes), device=boxes.device)[:, None, None]
            classes = truths.labels[stamp, matched[..., :held]]
            labels[..., :held] = classes * (best >= POSITIVE_IOU)
        return labels, matched

    def _mask_losses(self, levels: list[Tensor], truths: Truths) -> dict[str, Tensor]:
        stamp = truths.stamp
        about = _jittered(truths.boxes, truths.seed)[stamp, truths.place]
        boxes = expand(about, self.mask_margin)
        around = boxes.flatten(0, 1)
        logits = self._mask_logits(levels, around, stamp.repeat_interleave(MASK_SAMPLES))
        layers = torch.stack([truths.masks.float(), truths.light, truths.total[stamp]], 1)
        wanted = sample_layers(layers, boxes, MASK_SIZE).flatten(0, 1)
        mask, light, total = wanted.unbind(1)
        share = (light / total.clamp_min(1e-3)).clamp(0, 1)
        lit = (total > LIT).float()
        of_mask = F.binary_cross_entropy_with_logits(logits[:, 0], mask, reduction="sum")
        of_share = F.binary_cross_entropy_with_logits(
            logits[:, 1], share, weight=lit, reduction="sum"
        )
        return {
            "loss_mask": batch_mean(of_mask, mask.numel()),
            "loss_share": batch_mean(of_share, lit.sum()),
        }

    def _mask_logits(self, levels: list[Tensor], boxes: Tensor, stamp: Tensor) -> Tensor:
        pooled = pool_boxes(levels, self.strides, boxes, stamp, MASK_BINS)
        logits: Tensor = self.mask_predictor(self.mask_head(pooled))
        return logits.float()

    def _detect(
        self,
        levels: list[Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        least: float,
    ) -> list[dict[str, Tensor]]:
        counts = [len(boxes) for boxes in proposals]
        joined = torch.cat(proposals)
        pooled = pool_boxes(levels, self.strides, joined, image_of(proposals), BOX_BINS)
        logits, deltas = self.box_predictor(self.box_head(pooled))
        probabilities = torch.softmax(logits, -1)
        scores = 1 - probabilities[..., 0]
        star = probabilities[..., STAR] / scores.clamp_min(1e-6)
        slots = scores.shape[1]
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
            wide = widened(box, self.smallest_match)
            kept = _suppress(wide, score, origin[good], self.nms)[: self.detections]
            voted = _voted(box, score, kept)
            given = score[kept] >= least
            kept = kept[given]
            found.append({"boxes": voted[given], "scores": score[kept], "class_star": point[kept]})
        return found

    def _add_masks(self, levels: list[Tensor], found: list[dict[str, Tensor]]) -> None:
        boxes = [expand(item["boxes"], self.mask_margin) for item in found]
        logits = self._mask_logits(levels, torch.cat(boxes), image_of(boxes))
        # Where threads share them out, single precision rounds some as a vector and some alone.
        wide = logits.double() if logits.device.type == "cpu" else logits
        layers = torch.sigmoid(wide).float()
        parts = torch.split(layers, [len(box) for box in boxes])
        for item, box, part in zip(found, boxes, parts, strict=True):
            item["mask_boxes"] = box
            item["masks"], item["shares"] = part[:, 0], part[:, 1]


def _own_keys(proposals: Proposals, truths: Truths) -> Tensor:
    """Random numbers of proposals and true boxes, whatever the order of the proposals.

    Where scores are all but equal, rounding orders them.
    """
    keys = draws.keys_at(truths.seed, proposals.anchor, draws.PROPOSALS)
    return torch.cat([keys, draws.keys(truths.seed, truths.real.shape[1], draws.TRUTHS)], 1)


def _assigned_losses(
    logits: Tensor, deltas: Tensor, labels: Tensor, offsets: Tensor, chosen: Tensor
) -> dict[str, Tensor]:
    """Losses with each proposal's predictions assigned to its truths where that costs least.

    Parameters
    ----------
    logits : FloatTensor[k, p, class]
    deltas : FloatTensor[k, p, 4]
    labels : IntTensor[k, p]
        Classes of the truths, 0 where there is none.
    offsets : FloatTensor[k, p, 4]
    chosen : BoolTensor[k]
        Which count.
    """
    orders = [(labels, offsets), (labels.flip(1), offsets.flip(1))][: labels.shape[1]]
    of_class, of_box = [], []
    for wanted, where in orders:
        by_class = F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none").sum(1)
        off = F.smooth_l1_loss(deltas, where, beta=1 / 9, reduction="none").sum(2)
        of_class.append(by_class)
        of_box.append((off * (wanted > 0)).sum(1))
    by_class, off = torch.stack(of_class), torch.stack(of_box)
    best = (by_class + off).detach().argmin(0, keepdim=True)
    return {
        "loss_classifier": batch_mean((by_class.gather(0, best)[0] * chosen).sum(), chosen.sum()),
        "loss_box_reg": batch_mean((off.gather(0, best)[0] * chosen).sum(), chosen.sum()),
    }


def _jittered(boxes: Tensor, seed: Tensor) -> Tensor:
    """Boxes ``[N, T, r, 4]`` about true ones ``[N, T, 4]``, as far off as detected boxes are."""
    size = (boxes[..., 2:] - boxes[..., :2])[..., None, :]
    centre = (boxes[..., 2:] + boxes[..., :2])[..., None, :] / 2
    stamps, sources = boxes.shape[:2]
    off = draws.normal(seed, sources * MASK_SAMPLES * 4, draws.BOXES)
    off = off.view(stamps, sources, MASK_SAMPLES, 4)
    centre = centre + off[..., :2] * CENTRE_JITTER * size
    size = size * torch.exp(off[..., 2:] * SIZE_JITTER)
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
