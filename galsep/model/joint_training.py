"""Training both networks together, once each has been trained on its own.

The loss is that of Mask R-CNN and that of the separation network, which sees the masks and shares
that Mask R-CNN gives in the same step: through them, the light that the separation network gives
to each source teaches Mask R-CNN, too. Which sources are found, and where, is not learnt in this
way, but by Mask R-CNN's own loss.
"""

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from galsep.conventions import STAMP_SIZE
from galsep.model.engine import Detecting
from galsep.model.examples import collate
from galsep.model.inference import as_found, uncalibrated, unfolding
from galsep.model.network import MaskRCNN
from galsep.model.separation import SeparationNetwork
from galsep.model.separation_training import (
    THRESHOLDS,
    Given,
    Scene,
    Seen,
    Separating,
    make_scene,
    scene_losses,
)

__all__ = ["Both", "Joining", "drawn_layers"]


class Both(nn.Module):
    """Both networks.

    Parameters
    ----------
    detector : MaskRCNN
    separator : SeparationNetwork
    """

    def __init__(self, detector: MaskRCNN, separator: SeparationNetwork) -> None:
        super().__init__()
        self.detector = detector
        self.separator = separator


class Joining(Separating):
    """The losses of both networks.

    Parameters
    ----------
    model : Model
        Its score threshold, calibration and mask level say which detections are given on.
    """

    parts: Mapping[str, str] = {**Detecting.parts, **Separating.parts}

    def __call__(
        self, network: nn.Module, batch: list[Seen], device: torch.device, *, autocast: bool
    ) -> dict[str, Tensor]:
        """Parts of the loss of a batch; see :class:`galsep.model.engine.Objective`."""
        both = cast(Both, network)
        stamps = collate([seen.example for seen in batch]).to(device)
        least = uncalibrated(self._model, self._model.threshold * THRESHOLDS[0])
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            losses, detections = both.detector.learn_and_detect(
                stamps.images, stamps.truths, least=least
            )
        scenes = [
            make_scene(self._model, seen, as_found(result, STAMP_SIZE))
            for seen, result in zip(batch, detections, strict=True)
        ]
        layers = [
            layer
            for scene, result in zip(scenes, detections, strict=True)
            for layer in drawn_layers(scene, result)
        ]
        return losses | scene_losses(
            both.separator, scenes, device, autocast=autocast, layers_of=layers.__getitem__
        )


def drawn_layers(scene: Scene, result: Mapping[str, Tensor]) -> list[Tensor]:
    """What :func:`galsep.model.separation.cut_crops` cuts out, with gradients.

    Parameters
    ----------
    scene : Scene
    result : mapping of str to FloatTensor
        Mask R-CNN's detections on its stamp.

    Returns
    -------
    list of FloatTensor[5, s, s]
        Of each source.
    """
    if not scene.given:
        return []
    own = _drawn(scene.given, result)
    others = own.sum(0) - own
    crops = scene.crops
    layers = []
    for y0, x0, side, known, *parts in zip(
        crops.y0.tolist(), crops.x0.tolist(), crops.side.tolist(), crops.layers, own, others,
        strict=True,
    ):  # fmt: skip
        # Where the crop reaches beyond the stamp, the padding is positive, else it cuts.
        padding = (-x0, x0 + side - STAMP_SIZE, -y0, y0 + side - STAMP_SIZE)
        usable = torch.from_numpy(known[4:]).to(own.device)
        layers.append(torch.cat([F.pad(torch.cat(parts), padding), usable]))
    return layers


def _drawn(given: Sequence[Given], result: Mapping[str, Tensor]) -> Tensor:
    """Mask and share ``[k, 2, h, w]`` of each source on its stamp."""
    device = result["masks"].device
    which = torch.tensor([source.detection for source in given], device=device)
    boxes = result["mask_boxes"].double().cpu().numpy()
    cells = result["masks"].shape[-1]
    rows, columns = np.zeros((2, len(given), STAMP_SIZE, cells), dtype=np.float32)
    shape = (len(given), 2, STAMP_SIZE, STAMP_SIZE)
    # Where a mask or a share is Mask R-CNN's, and what it is where it is not.
    learnt, fixed = np.zeros((2, *shape), dtype=np.float32)
    for k, source in enumerate(given):
        top, down, left, across = unfolding(boxes[source.detection], cells, STAMP_SIZE)
        for weights, first, part, shift in (
            (rows[k], top, down, source.shift[0]),
            (columns[k], left, across, source.shift[1]),
        ):
            # What is moved off the stamp is no part of the mask.
            low = max(0, -(first + shift))
            kept = part[low : STAMP_SIZE - (first + shift)]
            weights[first + shift + low :][: len(kept)] = kept
        box = source.mask.slices
        if source.claim is None:
            fixed[(k, slice(None), *box)] = source.mask.probability
        else:
            learnt[(k, 0, *box)] = source.mask.probability > 0
            learnt[(k, 1, *box)] = 1
    said = torch.stack([result["masks"], result["shares"]], 1)[which].float()
    down_to, across_to, weight, rest = (
        torch.from_numpy(part).to(device) for part in (rows, columns, learnt, fixed)
    )
    with torch.autocast(device.type, enabled=False):
        pixels = down_to[:, None] @ said @ across_to[:, None].mT
    return pixels * weight + rest
