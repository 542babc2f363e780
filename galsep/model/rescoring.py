"""The rescoring network: a second look at each candidate, beside the others.

Mask R-CNN scores every box by what is in it. Whether a faint bump next to a bright core is a
companion or the galaxy's own light depends on what the better candidates about it explain already,
which no box says. So each candidate is looked at once more, on a crop about it that shows the
image, its own mask, and the masks of the candidates with better and with lower scores; what is
added to the logarithm of its odds makes it more or less certain.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from galsep.model.network import SteadyLinear, contrast, smoothed
from galsep.model.separation import window
from galsep.scene import SoftMask

__all__ = ["CANDIDATE", "RescoringNetwork", "cut_candidates", "log_odds", "rescore"]

CANDIDATE = 0.08
"""Raw score from which a detection is looked at, and shown to others."""

SIDE = 32
"""Side of a crop, pixels."""

LAYERS = 5
"""Besides the image: the candidate's mask; its mask times its share of the light; both summed over
better candidates, times their scores; masks summed over those with lower scores, likewise."""

WIDTHS = (24, 32, 64, 96)
HIDDEN = 64
DETAIL_SIGMA = 1.0
BATCH = 16

RANGE = 80.0
"""Largest asinh of light that is raised to light again; single precision holds it."""


class RescoringNetwork(nn.Module):
    """A small convolutional network, from a candidate's crop to the logarithm of its odds.

    Parameters
    ----------
    widths : tuple of int
        Channels at strides 1, 2, 4 and 8.
    """

    def __init__(self, widths: tuple[int, int, int, int] = WIDTHS) -> None:
        super().__init__()
        a, b, c, d = widths
        self.widths = (a, b, c, d)
        self.stem = nn.Conv2d(3 + LAYERS, a, 3, padding=1)
        self.second = nn.Conv2d(a, b, 3, stride=2, padding=1)
        self.second_more = nn.Conv2d(b, b, 3, padding=1)
        self.third = nn.Conv2d(b, c, 3, stride=2, padding=1)
        self.third_more = nn.Conv2d(c, c, 3, padding=1)
        self.fourth = nn.Conv2d(c, d, 3, stride=2, padding=1)
        self.hidden = SteadyLinear(2 * d + 1, HIDDEN)
        self.out = SteadyLinear(HIDDEN, 1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, image: Tensor, layers: Tensor, odds: Tensor) -> Tensor:
        """Look at candidates.

        Parameters
        ----------
        image : FloatTensor[n, 32, 32]
            Mask R-CNN's input, see :func:`galsep.model.network.normalise`.
        layers : FloatTensor[n, 5, 32, 32]
            See :data:`LAYERS`.
        odds : FloatTensor[n]
            Logarithm of the odds that Mask R-CNN gives each.

        Returns
        -------
        FloatTensor[n]
            Logarithm of the odds on second thought.
        """
        with torch.autocast(image.device.type, enabled=False):
            image = image[:, None]
            light = torch.sinh(image.clamp(-RANGE, RANGE))
            detail = torch.asinh(light - smoothed(light, DETAIL_SIGMA))
            x = torch.cat([image, detail, contrast(light), layers], 1)
        x = F.relu(self.stem(x))
        x = F.relu(self.second(x))
        x = x + F.relu(self.second_more(x))
        x = F.relu(self.third(x))
        x = x + F.relu(self.third_more(x))
        x = F.relu(self.fourth(x)).float()
        with torch.autocast(image.device.type, enabled=False):
            pooled = torch.cat([x.mean((2, 3)), x.amax((2, 3)), odds[:, None] / 3], 1)
            added: Tensor = self.out(F.relu(self.hidden(pooled)))[:, 0]
            return odds + added


def log_odds(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """log(p / (1 − p)), finite also at 0 and 1."""
    low = 1e-6
    return np.asarray(np.log(np.clip(scores, low, 1) / np.clip(1 - scores, low, 1)))


def cut_candidates(
    image: npt.NDArray[np.float32],
    masks: Sequence[SoftMask],
    shares: Sequence[SoftMask],
    scores: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Cut out what the network sees of each of a cutout's candidates.

    Parameters
    ----------
    image : (s, s) float32 array
        Mask R-CNN's input.
    masks, shares : sequence of SoftMask
        On the same crops, inside the cutout.
    scores : (n,) float array
        Raw.

    Returns
    -------
    pixels : (n, 32, 32) float32 array
    layers : (n, 5, 32, 32) float32 array
    """
    pixels = np.zeros((len(masks), SIDE, SIDE), dtype=np.float32)
    layers = np.zeros((len(masks), LAYERS, SIDE, SIDE), dtype=np.float32)
    # Sums over the better candidates, masks and claims, and over all the others.
    better, claimed, others = np.zeros((3, *image.shape), dtype=np.float32)
    for mask, score in zip(masks, scores.tolist(), strict=True):
        others[mask.slices] += np.float32(score) * mask.probability
    for index in np.argsort(-scores, kind="stable").tolist():
        mask, score = masks[index], np.float32(scores[index])
        claim = mask.probability * shares[index].probability
        height, width = mask.probability.shape
        y0, x0 = mask.y0 + (height - SIDE) // 2, mask.x0 + (width - SIDE) // 2
        there, here = window(y0, x0, (SIDE, SIDE), image.shape)
        others[mask.slices] -= score * mask.probability
        pixels[index][here] = image[there]
        inner, outer = window(y0 - mask.y0, x0 - mask.x0, (SIDE, SIDE), (height, width))
        own = layers[index]
        own[0][outer], own[1][outer] = mask.probability[inner], claim[inner]
        own[2][here], own[3][here], own[4][here] = better[there], claimed[there], others[there]
        better[mask.slices] += score * mask.probability
        claimed[mask.slices] += score * claim
    return pixels, layers


@torch.inference_mode()
def rescore(
    network: RescoringNetwork,
    pixels: npt.NDArray[np.float32],
    layers: npt.NDArray[np.float32],
    scores: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Look at candidates once more, in batches that are filled up to one size.

    Parameters
    ----------
    network : RescoringNetwork
        In evaluation mode.
    pixels, layers
        See :func:`cut_candidates`.
    scores : (n,) float array
        Raw.

    Returns
    -------
    (n,) float array
        Raw scores on second thought.
    """
    device = next(network.parameters()).device
    odds = log_odds(scores).astype(np.float32)
    looked = np.zeros(len(scores))
    for start in range(0, len(scores), BATCH):
        some = slice(start, min(start + BATCH, len(scores)))
        filled = []
        for part in (pixels, layers, odds):
            batch = np.zeros((BATCH, *part.shape[1:]), dtype=np.float32)
            batch[: some.stop - start] = part[some]
            filled.append(torch.from_numpy(batch).to(device))
        looked[some] = network(*filled)[: some.stop - start].double().cpu().numpy()
    return np.asarray(1 / (1 + np.exp(-looked)))
