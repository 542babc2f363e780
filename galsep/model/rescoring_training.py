"""Training the rescoring network: what it sees, what it should say, and the loss.

It sees what Mask R-CNN finds on a training example, down to low scores. A candidate is a source if,
one to one and better scores first, it is within reach of one that is detectable; a second one of
the same source is none.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from galsep.measure.matching import centroid_distances, match_centroids
from galsep.model.device import moved
from galsep.model.examples import Example
from galsep.model.inference import Found, calibrated, candidates, detect
from galsep.model.parallel import batch_mean
from galsep.model.rescoring import CANDIDATE, log_odds
from galsep.model.separation_training import Seen, as_on_images
from galsep.model.weights import Model

__all__ = ["Rescoring"]

REAL, SPURIOUS, NEITHER = 1, 0, -1


class Rescoring:
    """The loss of the rescoring network, on what a trained Mask R-CNN finds.

    Parameters
    ----------
    model : Model
        Mask R-CNN; it stays as it is.
    """

    parts: Mapping[str, str] = {"loss_rescoring": "is each candidate a source of its own"}

    def __init__(self, model: Model) -> None:
        self._model = replace(model, rescorer=None)

    def prepare(self, examples: list[Example]) -> list[Seen]:
        """Have examples seen as images are."""
        return as_on_images(examples)

    def __call__(
        self, network: nn.Module, batch: list[Seen], device: torch.device, *, autocast: bool
    ) -> dict[str, Tensor]:
        """Parts of the loss of a batch."""
        images = [seen.example.image for seen in batch]
        least = float(calibrated(self._model, np.array(CANDIDATE)))
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            found = detect(self._model, images, len(batch), least)
        parts = [candidates(here, image) for here, image in zip(found, images, strict=True)]
        index, pixels, layers = zip(*parts, strict=True)
        scores = [here.scores[own] for here, own in zip(found, index, strict=True)]
        real = [
            _real(seen.example, here, own)
            for seen, here, own in zip(batch, found, index, strict=True)
        ]
        odds = np.concatenate([log_odds(own) for own in scores]).astype(np.float32)
        given = [
            moved(torch.from_numpy(part), device)
            for part in (np.concatenate(pixels), np.concatenate(layers), odds, np.concatenate(real))
        ]
        wanted = given.pop()
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            said = network(*given).float()
        counts = (wanted != NEITHER).float()
        loss = F.binary_cross_entropy_with_logits(
            said, wanted.clamp_min(0).float(), weight=counts, reduction="sum"
        )
        return {"loss_rescoring": batch_mean(loss, counts.sum())}


def _real(example: Example, found: Found, index: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Which candidates are sources to find, and which are fainter ones, so neither."""
    true = [_middle(light) for light in example.light]
    wanted = np.arange(len(true) + len(example.ignored)) < len(example.footprints)
    true += [((y0 + y1) / 2, (x0 + x1) / 2) for x0, y0, x1, y1 in example.ignored]
    real = np.full(len(index), SPURIOUS)
    if not true or not len(index):
        return real
    light = np.maximum(np.sinh(example.image), 0)
    here = []
    for k in index.tolist():
        mask, share = found.masks[k], found.shares[k]
        own = mask.probability * share.probability * light[mask.slices] + 1e-6
        y, x = _middle(own)
        here.append((y + mask.y0, x + mask.x0))
    (true_y, true_x), (y, x) = np.transpose(true), np.transpose(here)
    match = match_centroids(
        centroid_distances((true_x, true_y), (x, y)), wanted=wanted, scores=found.scores[index]
    )
    real[match.pairs[:, 1]] = REAL
    real[match.ignored] = NEITHER
    return real


def _middle(light: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Centroid of light, ``y, x``; not a number where there is none."""
    rows, columns = (light.sum(axis, dtype=np.float64) for axis in (1, 0))
    total = rows.sum()
    if total <= 0:
        return np.nan, np.nan
    y, x = ((part * np.arange(len(part))).sum() / total for part in (rows, columns))
    return float(y), float(x)
