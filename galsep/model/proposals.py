"""The first stage: torchvision's region proposal network, its losses for a whole batch at once.

What it learns is what torchvision's learns, but that anchors on undetectable sources are left out
of the loss; how anchors are sampled depends on each stamp's own seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import encode_boxes
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import (
    RegionProposalNetwork,
    RPNHead,
    concat_box_prediction_layers,
)
from torchvision.ops import boxes as box_ops

from galsep.model import draws
from galsep.model.assignment import Truths, box_ious, near_ignored, sample, wide_ious
from galsep.model.parallel import batch_mean

__all__ = ["ProposalNetwork", "Proposals", "SteadyRPNHead", "distinct"]

POSITIVE_IOU, NEGATIVE_IOU = 0.6, 0.3
SAMPLED, POSITIVES = 128, 64
"""Anchors a stamp in the loss, and how many of them may be positives."""

BEST_TRAINED, KEPT_TRAINED, BEST = 200, 150, 100
"""In training, so many of the best anchors of each level become proposals, of which so many are
kept; at inference, so many of the best."""

ROUNDS = 8
"""Rounds of suppression before it is looked at whether they were enough."""

SMALLEST = 1e-3
"""Proposals of smaller sides, in pixels, are dropped."""


@dataclass(frozen=True, slots=True)
class Proposals:
    """Proposals of ``N`` stamps, filled up to ``P`` a stamp.

    Parameters
    ----------
    boxes : FloatTensor[N, P, 4]
    anchor : IntTensor[N, P]
        Number of the anchor that each comes from.
    real : BoolTensor[N, P]
        Which are no fillers.
    """

    boxes: Tensor
    anchor: Tensor
    real: Tensor


class SteadyRPNHead(RPNHead):  # type: ignore[misc]
    """Objectness and box offsets in one convolution, filled up to 16 channels.

    On a CPU, convolutions to few channels sum in an order that depends on the number of threads;
    these two are the only ones of the compact network.
    """

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Give objectness and box offsets of each level."""
        n, last = self.cls_logits.out_channels, 5 * self.cls_logits.out_channels
        weight = torch.cat([self.cls_logits.weight, self.bbox_pred.weight])
        bias = torch.cat([self.cls_logits.bias, self.bbox_pred.bias])
        weight, bias = F.pad(weight, (0, 0) * 3 + (0, -last % 16)), F.pad(bias, (0, -last % 16))
        both = [F.conv2d(self.conv(level), weight, bias) for level in x]
        return [one[:, :n] for one in both], [one[:, n:last] for one in both]


class ProposalNetwork(RegionProposalNetwork):  # type: ignore[misc]
    """A region proposal network that learns from a batch as a whole.

    Parameters
    ----------
    anchors : torchvision.models.detection.anchor_utils.AnchorGenerator
    head : torch.nn.Module
    proposals : int
        Proposals a cutout at inference.
    nms : float
        Box IoU above which the weaker of two proposals is dropped.
    smallest_match : float
        Pixels that boxes are widened to where anchors are matched with sources.
    """

    def __init__(
        self,
        anchors: torch.nn.Module,
        head: torch.nn.Module,
        proposals: int,
        nms: float,
        smallest_match: float,
    ) -> None:
        super().__init__(
            anchors,
            head,
            fg_iou_thresh=POSITIVE_IOU,
            bg_iou_thresh=NEGATIVE_IOU,
            batch_size_per_image=SAMPLED,
            positive_fraction=POSITIVES / SAMPLED,
            pre_nms_top_n={"training": BEST_TRAINED, "testing": BEST},
            post_nms_top_n={"training": KEPT_TRAINED, "testing": proposals},
            nms_thresh=nms,
        )
        self.smallest_match = smallest_match

    def learn(
        self, images: ImageList, features: dict[str, Tensor], truths: Truths
    ) -> tuple[Proposals, dict[str, Tensor]]:
        """Propose boxes for the second stage's training, and give this one's losses.

        Parameters
        ----------
        images : torchvision.models.detection.image_list.ImageList
            All of one size.
        features : dict of str to FloatTensor[N, C, H, W]
            The backbone's levels, finest first.
        truths : Truths

        Returns
        -------
        Proposals
        dict of str to FloatTensor
            ``loss_objectness``, ``loss_rpn_box_reg``.
        """
        levels = list(features.values())
        by_level = self.head(levels)
        # All stamps have the same anchors.
        one = ImageList(images.tensors, images.image_sizes[:1])
        anchors = self.anchor_generator(one, levels)[0]
        counts = [part[0].numel() for part in by_level[0]]
        objectness, deltas = concat_box_prediction_layers(*by_level)
        objectness = objectness.float().view(len(truths.real), -1)
        deltas = deltas.float().view(*objectness.shape, 4)
        with torch.no_grad():
            shape = images.image_sizes[0]
            proposals = self._propose(objectness, deltas, anchors, counts, shape)
            index, chosen, labels, offsets = self._assign(anchors, truths)
        return proposals, _losses(objectness, deltas, index, chosen, labels, offsets)

    def _propose(
        self,
        objectness: Tensor,
        deltas: Tensor,
        anchors: Tensor,
        counts: list[int],
        shape: tuple[int, int],
    ) -> Proposals:
        """The best anchors' boxes without doubles, as torchvision chooses them."""
        index = self._get_top_n_idx(objectness, counts)
        taken = [min(self.pre_nms_top_n(), count) for count in counts]
        scores = torch.sigmoid(objectness.gather(1, index))
        best = deltas.gather(1, index[..., None].expand(-1, -1, 4)).flatten(0, 1)
        boxes = self.box_coder.decode_single(best, anchors[index].flatten(0, 1))
        boxes = box_ops.clip_boxes_to_image(boxes, shape).view(*index.shape, 4)
        large = (boxes[..., 2:] - boxes[..., :2] >= SMALLEST).all(2)
        left = torch.cat(distinct(boxes.split(taken, 1), large.split(taken, 1), self.nms_thresh), 1)
        order = torch.where(left, scores, -1).argsort(dim=1, descending=True, stable=True)
        order = order[:, :KEPT_TRAINED]
        chosen = boxes.gather(1, order[..., None].expand(-1, -1, 4))
        return Proposals(chosen, index.gather(1, order), left.gather(1, order))

    def _assign(self, anchors: Tensor, truths: Truths) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sample anchors of each stamp.

        Returns
        -------
        index : IntTensor[N, s]
        chosen : BoolTensor[N, s]
            Which places of the sample are taken.
        labels : FloatTensor[N, s]
            1 where there is a source.
        offsets : FloatTensor[N, s, 4]
            From each anchor to its source.
        """
        kind, matched = _match(anchors, truths, self.smallest_match)
        keys = draws.keys(truths.seed, len(anchors), draws.ANCHORS)
        index, chosen = sample(kind, keys, SAMPLED, POSITIVES)
        labels = kind.gather(1, index).clamp_min(0).float()
        if not truths.boxes.shape[1]:
            return index, chosen, labels, labels[..., None].expand(-1, -1, 4)
        source = matched.gather(1, index)[..., None].expand(-1, -1, 4)
        wanted = truths.boxes.gather(1, source).flatten(0, 1)
        one = torch.ones(4, device=wanted.device)
        offsets = encode_boxes(wanted, anchors[index].flatten(0, 1), one)
        return index, chosen, labels, offsets.view(*index.shape, 4)


def distinct(boxes: Sequence[Tensor], real: Sequence[Tensor], threshold: float) -> list[Tensor]:
    """Non-maximum suppression of many short lists at once.

    A box is left unless it overlaps a better one that is left. A round applies this rule to all
    boxes; the first settles the best, each further one those that are decided by boxes settled
    before. Whether that is all is looked at after some rounds, not for each list: on a GPU, looking
    is waiting.

    Parameters
    ----------
    boxes : sequence of FloatTensor[n, k, 4]
        Lists of any length ``k``, the same of ``n`` stamps; by falling score.
    real : sequence of BoolTensor[n, k]
        Which are no fillers.
    threshold : float
        IoU above which the worse of two is dropped.

    Returns
    -------
    list of BoolTensor[n, k]
        Which are left.
    """
    rivals = [(box_ious(each, each) > threshold).float().triu_(1) for each in boxes]
    left = list(real)
    # Ones and zeros are counted, in the precision in which they are.
    with torch.autocast(boxes[0].device.type, enabled=False):
        while True:
            for _ in range(ROUNDS):
                before = left
                dropped = [
                    torch.bmm(each.float()[:, None], against)[:, 0] > 0
                    for each, against in zip(left, rivals, strict=True)
                ]
                left = [each & ~gone for each, gone in zip(real, dropped, strict=True)]
            if torch.equal(torch.cat(left, 1), torch.cat(before, 1)):
                return left


def _match(anchors: Tensor, truths: Truths, side: float) -> tuple[Tensor, Tensor]:
    """Whether each anchor is a positive (1), a negative (0) or neither (−1), and its source.

    Positives overlap a source by :data:`POSITIVE_IOU`, or most of all anchors; boxes are widened.
    """
    stamps, sources = truths.real.shape
    kind = torch.zeros((stamps, len(anchors)), dtype=torch.int64, device=anchors.device)
    matched = kind
    if sources:
        iou = wide_ious(truths.boxes, anchors, side).masked_fill(~truths.real[..., None], -1)
        best, matched = iou.max(1)
        closest = (iou == iou.max(2, keepdim=True).values) & truths.real[..., None]
        positive = (best >= POSITIVE_IOU) | closest.any(1)
        kind = torch.where(positive, 1, torch.where(best >= NEGATIVE_IOU, -1, 0))
    return torch.where((kind == 0) & near_ignored(anchors, truths, side), -1, kind), matched


def _losses(
    objectness: Tensor,
    deltas: Tensor,
    index: Tensor,
    chosen: Tensor,
    labels: Tensor,
    offsets: Tensor,
) -> dict[str, Tensor]:
    said = objectness.gather(1, index)
    where = deltas.gather(1, index[..., None].expand(-1, -1, 4))
    weight = chosen.float()
    by_class = F.binary_cross_entropy_with_logits(said, labels, weight=weight, reduction="sum")
    off = F.smooth_l1_loss(where, offsets, beta=1 / 9, reduction="none").sum(2)
    return {
        "loss_objectness": batch_mean(by_class, chosen.sum()),
        "loss_rpn_box_reg": batch_mean((off * labels * weight).sum(), chosen.sum()),
    }
