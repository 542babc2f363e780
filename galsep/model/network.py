"""Mask R-CNN for galaxies, from torchvision's parts.

Two architectures. ``resnet50`` is the report's: ResNet-50-FPN with anchors scaled to 120-px
images. ``compact`` is a narrow residual network whose finest features have stride 2, since
galaxies are 6 to 20 px wide and their neighbours sit 2 to 12 px away.

Both take ``float32[N, 1, 120, 120]``, background-subtracted light in units of the sky rms,
asinh-stretched (see :func:`normalise`). Boxes are ``xyxy`` along pixel edges. Class 0 is the
background, 1 a galaxy, 2 a star.
"""

from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.resnet import BasicBlock
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops import boxes as box_ops
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from galsep.conventions import STAMP_SIZE

__all__ = ["ARCHITECTURES", "GALAXY", "STAR", "Architecture", "build_network", "normalise"]

GALAXY = 1
STAR = 2
NUM_CLASSES = 3

IGNORE_IOU = 0.3
"""Anchors and proposals that overlap an undetectable source this much are left out of the loss."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """Everything that fixes the network's shape and its inference.

    Parameters
    ----------
    backbone : {"compact", "resnet50"}
    widths : tuple of int
        Channels of the compact backbone's stages, at strides 2, 4, 8, 16.
    fpn_channels : int
    anchor_sizes : tuple of tuple of float
        Anchor sides in pixels, one tuple a feature level.
    aspect_ratios : tuple of float
    box_channels : int
        Width of the box head.
    mask_layers : tuple of int
        Channels of the mask head's convolutions.
    proposals : int
        Proposals a cutout that survive the first stage at inference.
    proposals_trained : int
        Proposals a stamp sampled for the second stage's loss.
    rpn_nms, box_nms : float
        Box IoU above which the weaker of two proposals, of two detections, is dropped.
    detections : int
        Detections a cutout at most.
    """

    backbone: str = "compact"
    widths: tuple[int, ...] = (32, 64, 128, 192)
    fpn_channels: int = 64
    anchor_sizes: tuple[tuple[float, ...], ...] = ((6, 9), (13, 18), (26, 36), (52, 72))
    aspect_ratios: tuple[float, ...] = (1.0,)
    box_channels: int = 256
    mask_layers: tuple[int, ...] = (64, 64)
    proposals: int = 64
    proposals_trained: int = 64
    rpn_nms: float = 0.8
    box_nms: float = 0.5
    detections: int = 64

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Architecture":
        """Read what :func:`dataclasses.asdict` wrote, as JSON gives it back."""
        return cls(**{key: _as_tuple(value) for key, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the weights' metadata."""
        return asdict(self)


ARCHITECTURES = {
    "compact": Architecture(),
    # COCO's own head sizes, so that its weights fit; anchors an eighth to a quarter of COCO's.
    "paper": Architecture(
        backbone="resnet50",
        widths=(),
        fpn_channels=256,
        anchor_sizes=((8,), (16,), (32,), (64,), (96,)),
        aspect_ratios=(0.5, 1.0, 2.0),
        box_channels=1024,
        mask_layers=(256, 256, 256, 256),
        proposals=100,
        proposals_trained=128,
        rpn_nms=0.7,
    ),
}
"""The architecture of each training recipe."""


def normalise(image: npt.NDArray[Any], rms: npt.NDArray[Any] | float) -> npt.NDArray[np.float32]:
    """Turn background-subtracted light into the network's input, asinh(light / rms)."""
    return np.arcsinh(image / rms).astype(np.float32)


def build_network(architecture: Architecture) -> MaskRCNN:
    """Build the network with random weights.

    Parameters
    ----------
    architecture : Architecture

    Returns
    -------
    torchvision.models.detection.MaskRCNN
        In training mode it takes ``(images, targets)`` and returns the dictionary of losses; in
        evaluation mode it takes images and returns, for each, ``boxes`` ``FloatTensor[n, 4]``,
        ``scores`` ``FloatTensor[n]``, ``class_star`` ``FloatTensor[n]`` and ``masks``
        ``FloatTensor[n, 1, 28, 28]``, the mask probability over the box. Targets hold ``boxes``,
        ``labels``, ``masks`` ``UInt8Tensor[n, 120, 120]`` and ``ignored`` ``FloatTensor[k, 4]``.
    """
    a = architecture
    backbone = _CompactBackbone(a.widths, a.fpn_channels) if a.backbone == "compact" else (
        _ResNetBackbone(a.fpn_channels)
    )  # fmt: skip
    levels = [str(level) for level in range(len(a.widths) or 4)]
    network = MaskRCNN(
        backbone,
        rpn_anchor_generator=AnchorGenerator(
            a.anchor_sizes, (a.aspect_ratios,) * len(a.anchor_sizes)
        ),
        rpn_pre_nms_top_n_train=500,
        rpn_pre_nms_top_n_test=100,
        rpn_post_nms_top_n_train=150,
        rpn_post_nms_top_n_test=a.proposals,
        rpn_nms_thresh=a.rpn_nms,
        rpn_fg_iou_thresh=0.6,
        rpn_batch_size_per_image=128,
        box_roi_pool=_roi_align(levels, output_size=7),
        box_head=TwoMLPHead(a.fpn_channels * 49, a.box_channels),
        box_predictor=FastRCNNPredictor(a.box_channels, NUM_CLASSES),
        box_score_thresh=0.05,
        box_nms_thresh=a.box_nms,
        box_detections_per_img=a.detections,
        box_batch_size_per_image=a.proposals_trained,
        mask_roi_pool=_roi_align(levels, output_size=14),
        mask_head=MaskRCNNHeads(a.fpn_channels, a.mask_layers, 1),
        mask_predictor=MaskRCNNPredictor(a.mask_layers[-1], a.mask_layers[-1], NUM_CLASSES),
        min_size=STAMP_SIZE,
        max_size=STAMP_SIZE,
    )
    network.transform = _NoTransform()
    network.rpn.__class__ = _IgnoringRPN
    network.roi_heads.__class__ = _SourceHeads
    return network


def _roi_align(levels: list[str], output_size: int) -> MultiScaleRoIAlign:
    """Pool boxes from the level on which they are at most 14 cells wide.

    A bin of the 7×7 grid is then at most two cells wide, so that one sample a bin suffices, and
    the backward pass costs a quarter of that with torchvision's usual four samples.
    """
    return MultiScaleRoIAlign(
        levels, output_size=output_size, sampling_ratio=1, canonical_scale=112
    )


class _CompactBackbone(nn.Module):
    """A narrow residual network with feature levels at strides 2, 4, 8 and 16."""

    def __init__(self, widths: tuple[int, ...], out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.stem = nn.Sequential(
            nn.Conv2d(1, widths[0], 5, stride=2, padding=2, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
        )
        stages = []
        before = widths[0]
        for index, width in enumerate(widths):
            stages.append(_stage(before, width, stride=1 if index == 0 else 2))
            before = width
        self.stages = nn.ModuleList(stages)
        self.fpn = FeaturePyramidNetwork(list(widths), out_channels)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        levels = OrderedDict()
        for index, stage in enumerate(self.stages):
            x = stage(x)
            levels[str(index)] = x
        return cast(dict[str, Tensor], self.fpn(levels))


def _stage(before: int, width: int, stride: int) -> nn.Sequential:
    downsample = None
    if stride != 1 or before != width:
        downsample = nn.Sequential(
            nn.Conv2d(before, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
        )
    return nn.Sequential(BasicBlock(before, width, stride, downsample), BasicBlock(width, width))


class _ResNetBackbone(nn.Module):
    """ResNet-50-FPN with one input channel; names match torchvision's, so COCO weights load."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        body = resnet50(weights=None)
        body.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
        del body.fc, body.avgpool
        self.body = body
        self.fpn = FeaturePyramidNetwork([256, 512, 1024, 2048], out_channels, LastLevelMaxPool())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        body = self.body
        x = body.maxpool(body.relu(body.bn1(body.conv1(x))))
        levels = OrderedDict()
        for index, name in enumerate(("layer1", "layer2", "layer3", "layer4")):
            x = getattr(body, name)(x)
            levels[str(index)] = x
        return cast(dict[str, Tensor], self.fpn(levels))


class _NoTransform(nn.Module):
    """Cutouts have their size and normalisation already; masks stay relative to their boxes."""

    def forward(
        self, images: Tensor | list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[ImageList, list[dict[str, Tensor]] | None]:
        batch = images if isinstance(images, Tensor) else torch.stack(list(images))
        height, width = batch.shape[-2:]
        return ImageList(batch, [(height, width)] * len(batch)), targets

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],  # noqa: ARG002 (torchvision's signature)
        original_image_sizes: list[tuple[int, int]],  # noqa: ARG002
    ) -> list[dict[str, Tensor]]:
        return result


class _IgnoringRPN(RegionProposalNetwork):  # type: ignore[misc]
    """A region proposal network that leaves anchors on undetectable sources out of its loss."""

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        labels, matched = super().assign_targets_to_anchors(anchors, targets)
        for label, boxes, target in zip(labels, anchors, targets, strict=True):
            label[(label == 0) & _near_ignored(boxes, target)] = -1.0
        return labels, matched


class _SourceHeads(RoIHeads):  # type: ignore[misc]
    """Box and mask heads that give each source one score, whatever its class."""

    def assign_targets_to_proposals(
        self, proposals: list[Tensor], gt_boxes: list[Tensor], gt_labels: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        matched, labels = super().assign_targets_to_proposals(proposals, gt_boxes, gt_labels)
        for label, boxes, target in zip(labels, proposals, self._targets, strict=True):
            label[(label == 0) & _near_ignored(boxes, target)] = -1
        return matched, labels

    def select_training_samples(
        self, proposals: list[Tensor], targets: list[dict[str, Tensor]] | None
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        self._targets = targets or []
        return cast(
            tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]],
            super().select_training_samples(proposals, targets),
        )

    def postprocess_detections(
        self,
        class_logits: Tensor,
        box_regression: Tensor,
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Take each proposal's likelier class and its box; suppress across classes."""
        counts = [len(boxes) for boxes in proposals]
        boxes = self.box_coder.decode(box_regression.float(), proposals)
        probabilities = torch.softmax(class_logits.float(), -1)
        labels = probabilities[:, 1:].argmax(1) + 1
        boxes = boxes[torch.arange(len(boxes), device=boxes.device), labels]
        scores = 1 - probabilities[:, 0]
        kept_boxes, kept_scores, kept_labels = [], [], []
        self.class_star: list[Tensor] = []
        star = probabilities[:, STAR] / scores.clamp_min(1e-6)
        for box, score, label, point, shape in zip(
            *(part.split(counts) for part in (boxes, scores, labels, star)),
            image_shapes,
            strict=True,
        ):
            box = box_ops.clip_boxes_to_image(box, shape)
            good = torch.where(score > self.score_thresh)[0]
            good = good[box_ops.remove_small_boxes(box[good], min_size=1.0)]
            good = good[box_ops.nms(box[good], score[good], self.nms_thresh)]
            good = good[: self.detections_per_img]
            kept_boxes.append(box[good])
            kept_scores.append(score[good])
            kept_labels.append(label[good])
            self.class_star.append(point[good])
        return kept_boxes, kept_scores, kept_labels

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        result, losses = super().forward(features, proposals, image_shapes, targets)
        if not self.training:
            for found, star in zip(result, self.class_star, strict=True):
                found["class_star"] = star
        return result, losses


def _near_ignored(boxes: Tensor, target: dict[str, Tensor]) -> Tensor:
    """Which boxes lie on a source that is neither a positive nor a negative."""
    ignored = target["ignored"]
    if ignored.numel() == 0:
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    return cast(Tensor, (box_ops.box_iou(ignored, boxes) > IGNORE_IOU).any(0))


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value
