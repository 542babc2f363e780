"""Mask R-CNN for galaxies, from torchvision's parts.

Two architectures. ``resnet50`` is the report's: ResNet-50-FPN with anchors scaled to 120-px
images. ``compact`` is a narrow residual network whose finest features have stride 2, since
galaxies are 6 to 20 px wide and their neighbours sit 2 to 12 px away.

Both take ``float32[N, 1, s, s]``, background-subtracted light in units of the sky rms,
asinh-stretched (see :func:`normalise`). Boxes are ``xyxy`` along pixel edges. Class 0 is the
background, 1 a galaxy, 2 a star. The first stage is in :mod:`galsep.model.proposals`, the second in
:mod:`galsep.model.heads`.
"""

import math
from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.resnet import BasicBlock
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from galsep.conventions import STAMP_SIZE
from galsep.model.assignment import Truths
from galsep.model.heads import SourceHeads
from galsep.model.proposals import ProposalNetwork, SteadyRPNHead

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "MaskRCNN",
    "build_network",
    "contrast",
    "normalise",
    "smoothed",
]

LOCAL_SIGMA = 2.0
"""Width in pixels of the average that the contrast channel compares a pixel with."""


MOST_BOXES = 10_000
"""Proposals or detections a cutout that an architecture may ask for."""


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
    predictions : {1, 2}
        Sources that one proposal may hold.
    contrast : bool
        Whether the backbone also sees each pixel relative to its surroundings, in which bright
        cores keep their structure.
    mask_margin : float
        Share of a box's size by which masks reach beyond it.
    small_cutouts : bool
        Whether the network may see what is little in cutouts smaller than 120×120 px.
    smallest_match : float
        Pixels that smaller boxes are widened to where it matters of which source they are: in
        training, where anchors and proposals are matched with true sources, and among detections,
        where the weaker of two is dropped.
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
    predictions: int = 2
    contrast: bool = True
    mask_margin: float = 0.2
    small_cutouts: bool = True
    smallest_match: float = 8.0

    def __post_init__(self) -> None:
        for name in ("proposals", "proposals_trained", "detections"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= MOST_BOXES:
                raise ValueError(f"{name} is 1 to {MOST_BOXES}, got {value!r}")
        limits = {"rpn_nms": 1, "box_nms": 1, "mask_margin": 1, "smallest_match": STAMP_SIZE}
        for name, most in limits.items():
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value <= most:
                raise ValueError(f"{name} lies between 0 and {most}, got {value!r}")

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels a cell of the levels that boxes are pooled from."""
        return (2, 4, 8, 16) if self.backbone == "compact" else (4, 8, 16, 32)

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
        predictions=1,
        contrast=False,
        mask_margin=0.0,
        small_cutouts=False,
        smallest_match=0.0,
    ),
}
"""The architecture of each training recipe."""


def normalise(image: npt.NDArray[Any], rms: npt.NDArray[Any] | float) -> npt.NDArray[np.float32]:
    """Turn background-subtracted light into the network's input, asinh(light / rms).

    Parameters
    ----------
    image : (h, w) array
        Background-subtracted; 0 where unusable.
    rms : (h, w) array or float
        Noise of the sky in the same unit, positive.

    Returns
    -------
    (h, w) float32 array
    """
    return np.arcsinh(image / rms).astype(np.float32)


def build_network(architecture: Architecture) -> "MaskRCNN":
    """Build the network with random weights.

    Parameters
    ----------
    architecture : Architecture

    Returns
    -------
    MaskRCNN
        In training mode it takes ``(images, truths)`` and returns the dictionary of losses; in
        evaluation mode it takes images and returns, for each, ``boxes`` ``FloatTensor[n, 4]``,
        ``scores`` ``FloatTensor[n]``, ``class_star`` ``FloatTensor[n]``, and over ``mask_boxes``
        ``FloatTensor[n, 4]`` the layers ``masks`` and ``shares`` ``FloatTensor[n, 28, 28]``: the
        probability that a bin belongs to the source's mask, and the share of the light there
        that is its own.
    """
    a = architecture
    backbone: nn.Module = (
        _CompactBackbone(a.widths, a.fpn_channels, a.contrast)
        if a.backbone == "compact"
        else _ResNetBackbone(a.fpn_channels)
    )
    anchors = AnchorGenerator(a.anchor_sizes, (a.aspect_ratios,) * len(a.anchor_sizes))
    rpn = ProposalNetwork(
        anchors,
        SteadyRPNHead(a.fpn_channels, anchors.num_anchors_per_location()[0]),
        a.proposals,
        a.rpn_nms,
        a.smallest_match,
    )
    heads = SourceHeads(
        channels=a.fpn_channels,
        strides=a.strides,
        box_channels=a.box_channels,
        mask_layers=a.mask_layers,
        predictions=a.predictions,
        sampled=a.proposals_trained,
        nms=a.box_nms,
        detections=a.detections,
        mask_margin=a.mask_margin,
        smallest_match=a.smallest_match,
    )
    return MaskRCNN(backbone, rpn, heads)


class _CompactBackbone(nn.Module):
    """A narrow residual network with feature levels at strides 2, 4, 8 and 16."""

    def __init__(self, widths: tuple[int, ...], out_channels: int, contrast: bool) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.contrast = contrast
        self.stem = nn.Sequential(
            nn.Conv2d(1 + contrast, widths[0], 5, stride=2, padding=2, bias=False),
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
        # Eight bits of mantissa are coarser than the noise on a bright core.
        with torch.autocast(x.device.type, enabled=False):
            if self.contrast:
                x = torch.cat([x, contrast(torch.sinh(x))], 1)
            x = self.stem(x)
        levels = OrderedDict()
        for index, stage in enumerate(self.stages):
            x = stage(x)
            levels[str(index)] = x
        return cast(dict[str, Tensor], self.fpn(levels))


def smoothed(light: Tensor, sigma: float) -> Tensor:
    """Images ``[n, 1, h, w]`` convolved with a Gaussian of ``sigma`` pixels; 0 lies beyond."""
    reach = math.ceil(3 * sigma)
    offset = torch.arange(-reach, reach + 1, device=light.device, dtype=light.dtype)
    kernel = torch.exp(-0.5 * (offset / sigma) ** 2)
    kernel = kernel / kernel.sum()
    average = F.conv2d(light, kernel.view(1, 1, 1, -1), padding=(0, reach))
    return F.conv2d(average, kernel.view(1, 1, -1, 1), padding=(reach, 0))


def contrast(light: Tensor) -> Tensor:
    """Light over its average within some pixels: bounded, however bright the source.

    Parameters
    ----------
    light : FloatTensor[n, 1, h, w]
        In sky rms.
    """
    return light / (1 + smoothed(light, LOCAL_SIGMA).abs())


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


class MaskRCNN(nn.Module):
    """Backbone, region proposal network and the heads for what it proposes.

    In training mode it takes ``(images, truths)`` and returns the dictionary of losses; in
    evaluation mode it takes images and returns the detections of each. See :func:`build_network`.

    Parameters
    ----------
    backbone : torch.nn.Module
        Gives feature levels by name, finest first, as a feature pyramid does.
    rpn : ProposalNetwork
    roi_heads : SourceHeads
    """

    def __init__(self, backbone: nn.Module, rpn: ProposalNetwork, roi_heads: SourceHeads) -> None:
        super().__init__()
        self.backbone = backbone
        self.rpn = rpn
        self.roi_heads = roi_heads

    def forward(self, images: Tensor, truths: Truths | None = None, *, least: float = 0.0) -> Any:
        """Give losses in training mode, else detections; see :func:`build_network`.

        Parameters
        ----------
        images : FloatTensor[N, 1, s, s]
            As :func:`normalise` makes them.
        truths : Truths, optional
            What is on them; looked at in training mode alone, which needs it.
        least : float
            Raw score below which detections are left out; looked at in evaluation mode alone.

        Raises
        ------
        ValueError
            In training mode without truths.
        """
        stamps, features = self._seen(images)
        if not self.training:
            return self._detect(stamps, features, least)
        if truths is None:
            raise ValueError("training needs truths")
        return self._learn(stamps, features, truths)

    def learn_and_detect(
        self, images: Tensor, truths: Truths, *, least: float = 0.0
    ) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
        """Give losses and detections, whose masks and shares can be learnt from in turn.

        Parameters
        ----------
        images, truths, least
            See :meth:`forward`.

        Returns
        -------
        losses : dict of str to FloatTensor
        detections : list of dict of str to FloatTensor
        """
        stamps, features = self._seen(images)
        losses = self._learn(stamps, features, truths)
        training = self.rpn.training
        # In training mode it would ask for torchvision's targets.
        self.rpn.eval()
        detections = self._detect(stamps, features, least)
        self.rpn.train(training)
        return losses, detections

    def _seen(self, images: Tensor) -> tuple[ImageList, dict[str, Tensor]]:
        shapes = [(images.shape[2], images.shape[3])] * len(images)
        return ImageList(images, shapes), self.backbone(images)

    def _detect(
        self, stamps: ImageList, features: dict[str, Tensor], least: float
    ) -> list[dict[str, Tensor]]:
        proposals, _ = self.rpn(stamps, features)
        # They come best first, and what is small holds few.
        few = self.rpn.post_nms_top_n() * stamps.tensors.shape[3] // STAMP_SIZE
        best = [boxes[:few] for boxes in proposals]
        found: list[dict[str, Tensor]] = self.roi_heads(features, best, stamps.image_sizes, least)
        return found

    def _learn(
        self, stamps: ImageList, features: dict[str, Tensor], truths: Truths
    ) -> dict[str, Tensor]:
        trained, losses = self.rpn.learn(stamps, features, truths)
        return self.roi_heads.learn(features, trained, truths) | losses


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value
