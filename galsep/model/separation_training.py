"""Training the separation network: what it sees, what it should say, and the loss.

The network sees the sources that Mask R-CNN finds on a training example, as in life, some of them
lost, doubled or moved at random. What each should get is the noiseless light of the true source
that its mask agrees with best.
"""

import copy
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from galsep.config import DeblendConfig
from galsep.conventions import STAMP_SIZE
from galsep.image.background import estimate_background
from galsep.image.points import told_fwhm
from galsep.model.examples import Example
from galsep.model.inference import Found, calibrated, detect, harden
from galsep.model.network import normalise
from galsep.model.parallel import batch_mean
from galsep.model.separation import SIDES, Crops, cut_crops, exclusive, psf_terms, window
from galsep.model.symmetry import steadied_crops
from galsep.model.weights import Model
from galsep.scene import SoftMask

__all__ = [
    "THRESHOLDS",
    "Given",
    "Scene",
    "Seen",
    "Separating",
    "make_scene",
    "scene_losses",
]

THRESHOLDS = (0.7, 1.15)
"""Range of the score threshold in training, relative to the detector's own."""

OBSERVED = 0.7
"""Share of examples whose background is estimated as that of an image is."""

LOST, DOUBLED, MOVED, OUTLINED = 0.06, 0.04, 0.15, 0.08
"""Shares of sources that are dropped, given twice, moved by up to two pixels, or known by SEP's
outline alone."""

OTHER_BAND = 0.15
"""Share of examples whose light is separated in another band than they were found in."""

COLOUR, COLOUR_SCATTER = 0.5, 0.7
"""How much fainter sources are there, in magnitudes beside the sky's noise, and the scatter."""

TOLD = 0.7
"""Share of examples whose PSF the network is told, with the error of a measured one."""

LEAST_AGREEMENT = 0.1
"""A source and a true one belong together from this ratio of pixels shared to pixels covered."""

SYSTEMATIC = 0.03
"""Errors count less where they are below this share of all light at a pixel."""

FLUX_SYSTEMATIC = 0.01
LIT = 0.5
"""Shares are learnt where all light exceeds this many sky rms."""

ORIENTATIONS = ((1, False), (2, False), (0, True))
"""Quarter turns, and whether to mirror after them, of crops on which the same is to be said."""

_SEEN = 1
"""Tells what is drawn here from what the example itself was drawn with."""


@dataclass(frozen=True, slots=True)
class Given:
    """A source as the separation network is given it, on a stamp.

    Parameters
    ----------
    mask : SoftMask
    claim : SoftMask or None
        Share of the light, on the same crop; ``None`` for one that is known by its outline alone.
    detection : int
        Number of the detection that it comes from.
    shift : (int, int)
        By how much it was moved, ``dy, dx``.
    """

    mask: SoftMask
    claim: SoftMask | None
    detection: int
    shift: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Scene:
    """One example for the separation network.

    Parameters
    ----------
    given : list of Given
    crops : Crops
    light : list of (s, s) float32 array
        Noiseless light that each source should get, sky rms.
    total : list of (s, s) float32 array
        All noiseless light.
    flux : (n,) float array
        True flux, sky rms.
    electrons : float
        That one sky rms of light stands for.
    fwhm : float
        Of the PSF, pixels, as the network is told; NaN where it is not.
    """

    given: list[Given]
    crops: Crops
    light: list[npt.NDArray[np.float32]]
    total: list[npt.NDArray[np.float32]]
    flux: npt.NDArray[np.float64]
    electrons: float
    fwhm: float


@dataclass(frozen=True, slots=True)
class Seen:
    """An example as it is seen on an image, and what its random numbers come from.

    Parameters
    ----------
    example : Example
    rng : Generator
        For all that is drawn after its background was.
    """

    example: Example
    rng: np.random.Generator


class Separating:
    """The loss of the separation network, on what a trained Mask R-CNN finds.

    Parameters
    ----------
    model : Model
        Mask R-CNN with its score threshold; it stays as it is.
    consistency : float
        Weight of the same being said of crops that are turned.
    """

    parts: Mapping[str, str] = {
        "loss_model": "each source's noiseless light",
        "loss_total": "all noiseless light",
        "loss_claim": "the source's share of it",
        "loss_flux": "its flux",
        "loss_spread": "how far off the flux is",
    }

    def __init__(self, model: Model, consistency: float = 0.0) -> None:
        self._model = model
        self._consistency = consistency
        if consistency:
            self.parts = {**self.parts, "loss_consistency": "that turned crops give the same"}

    def prepare(self, examples: list[Example]) -> list[Seen]:
        """Have examples seen as images are."""
        rngs = [np.random.default_rng([_SEEN, example.seed]) for example in examples]
        return [Seen(_observed(*pair), pair[1]) for pair in zip(examples, rngs, strict=True)]

    def __call__(
        self, network: nn.Module, batch: list[Seen], device: torch.device, *, autocast: bool
    ) -> dict[str, Tensor]:
        """Parts of the loss of a batch; see :class:`galsep.model.engine.Objective`."""
        images = [seen.example.image for seen in batch]
        least = self._model.threshold * THRESHOLDS[0]
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            found = detect(self._model, images, len(batch), least)
        scenes = [make_scene(self._model, *pair) for pair in zip(batch, found, strict=True)]
        return scene_losses(
            network, scenes, device, autocast=autocast, consistency=self._consistency
        )


def make_scene(model: Model, seen: Seen, found: Found) -> Scene:
    """Make an example for the separation network of what Mask R-CNN finds on a stamp.

    Parameters
    ----------
    model : Model
        Its score threshold, calibration and mask level are looked at.
    seen : Seen
    found : Found
    """
    # A batch can be asked for again: what is drawn for it is the same.
    example, rng = seen.example, copy.deepcopy(seen.rng)
    level = model.threshold * rng.uniform(*THRESHOLDS)
    detected = []
    for k in np.flatnonzero(calibrated(model, found.scores) >= level).tolist():
        mask = harden(found.masks[k], ~example.usable, model.mask_level)
        if mask is not None:
            detected.append(Given(mask, found.shares[k].cropped(mask.footprint(0)), k))
    given = _disturbed(detected, rng)
    if rng.random() < OTHER_BAND:
        example = _in_another_band(example, rng)
    return _cut_scene(example, given, _told(example.fwhm, rng))


def _told(fwhm: float | None, rng: np.random.Generator) -> float:
    """What the network is told of a PSF's width; NaN where it is not known, or not told."""
    if fwhm is None or rng.random() > TOLD:
        return math.nan
    return told_fwhm(fwhm, rng)


def _observed(example: Example, rng: np.random.Generator) -> Example:
    """Most examples as they are once their background has been estimated and subtracted.

    The wings of its sources are part of what is subtracted, and the unit is the estimated noise.
    """
    if rng.random() > OBSERVED:
        return example
    image = np.sinh(example.image)
    hidden = np.ascontiguousarray(~example.usable)
    mesh = DeblendConfig().background_mesh
    background = estimate_background(np.ascontiguousarray(image), hidden, mesh)
    light = np.where(example.usable, image - background.level, 0)
    rms = float(np.median(background.rms))
    return replace(
        example,
        image=normalise(light, rms),
        light=example.light / np.float32(rms),
        flux=example.flux / rms,
        total=example.total / np.float32(rms),
        electrons=example.electrons * rms,
    )


def _in_another_band(example: Example, rng: np.random.Generator) -> Example:
    """An example as another band shows it: sources of other brightness, other noise."""
    fainter = rng.normal(COLOUR, COLOUR_SCATTER, len(example.light))
    growth = (10 ** (-0.4 * fainter)).astype(np.float32)
    change = np.einsum("k,kyx->yx", growth - 1, example.light)
    total = np.maximum(example.total + change, 0)
    noise = rng.standard_normal(total.shape).astype(np.float32)
    image = total + noise * np.sqrt(1 + total / np.float32(example.electrons))
    return replace(
        example,
        image=normalise(np.where(example.usable, image, 0), 1.0),
        light=example.light * growth[:, None, None],
        flux=example.flux * growth,
        total=total,
    )


def _disturbed(detected: Sequence[Given], rng: np.random.Generator) -> list[Given]:
    """Lose, double, move and simplify sources at random, as a detector does."""
    kept = []
    for source in detected:
        if rng.random() < LOST:
            continue
        for _ in range(1 + (rng.random() < DOUBLED)):
            dy, dx = rng.integers(-2, 3, 2).tolist() if rng.random() < MOVED else (0, 0)
            mask = source.mask.shifted(dy, dx)
            claim = None if source.claim is None else source.claim.shifted(dy, dx)
            if not _inside(mask):
                continue
            if rng.random() < OUTLINED:
                mask = replace(mask, probability=(mask.probability > 0).astype(np.float32))
                claim = None
            kept.append(Given(mask, claim, source.detection, (dy, dx)))
    return kept


def _inside(mask: SoftMask) -> bool:
    """Whether a mask lies on the stamp."""
    height, width = mask.probability.shape
    inside: bool = 0 <= mask.y0 <= STAMP_SIZE - height and 0 <= mask.x0 <= STAMP_SIZE - width
    return inside


def _cut_scene(example: Example, given: list[Given], fwhm: float) -> Scene:
    """Cut a stamp into what the network sees and should say."""
    masks = [source.mask for source in given]
    image = np.sinh(example.image)
    crops = cut_crops(image, example.usable, masks, [source.claim for source in given])
    owner, portion = _owners(example, masks)
    light, total = [], []
    flux = np.zeros(len(masks))
    for index, (k, part) in enumerate(zip(owner.tolist(), portion.tolist(), strict=True)):
        place = int(crops.y0[index]), int(crops.x0[index]), int(crops.side[index])
        total.append(_padded(example.total, *place))
        if k < 0:
            light.append(np.zeros_like(total[-1]))
        else:
            light.append(_padded(example.light[k], *place) * np.float32(part))
            flux[index] = example.flux[k] * part
    return Scene(given, crops, light, total, flux, example.electrons, fwhm)


def _owners(
    example: Example, masks: Sequence[SoftMask]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Which true source each mask belongs to (−1 for none), and what part of it."""
    from scipy.optimize import linear_sum_assignment

    owner = np.full(len(masks), -1)
    portion = np.ones(len(masks))
    if not len(masks) or not len(example.light):
        return owner, portion
    shares = example.light / np.maximum(example.total, 1e-3)
    lit = (example.light > 1).reshape(len(example.light), -1)
    covers = np.zeros((len(masks), STAMP_SIZE, STAMP_SIZE), dtype=np.float32)
    for cover, mask in zip(covers, masks, strict=True):
        cover[mask.slices] = mask.probability > 0
    flat = covers.reshape(len(masks), -1)
    both = flat @ np.minimum(shares, 1).reshape(len(shares), -1).T
    either = flat.sum(1)[:, None] + (lit * shares.reshape(lit.shape)).sum(1) - both
    agreement = both / np.maximum(either, 1)
    rows, columns = linear_sum_assignment(-agreement)
    good = agreement[rows, columns] > LEAST_AGREEMENT
    owner[rows[good]] = columns[good]
    # One mask twice: both get half.
    for index in np.flatnonzero(owner < 0).tolist():
        twin = np.flatnonzero((owner >= 0) & ((flat == flat[index]).all(1)))
        if twin.size:
            owner[index] = owner[twin[0]]
            portion[[index, twin[0]]] = 0.5
    return owner, portion


def _padded(layer: npt.NDArray[np.float32], y0: int, x0: int, side: int) -> npt.NDArray[np.float32]:
    there, here = window(y0, x0, (side, side), (STAMP_SIZE, STAMP_SIZE))
    crop = np.zeros((side, side), dtype=np.float32)
    crop[here] = layer[there]
    return crop


def scene_losses(
    network: nn.Module,
    scenes: Sequence[Scene],
    device: torch.device,
    *,
    autocast: bool,
    layers_of: Callable[[int], Tensor] | None = None,
    consistency: float = 0.0,
) -> dict[str, Tensor]:
    """Losses of several scenes together.

    Parameters
    ----------
    network : torch.nn.Module
        As :class:`galsep.model.separation.SeparationNetwork`.
    scenes : sequence of Scene
    device : torch.device
    autocast : bool
    layers_of : callable, optional
        Gives the layers ``FloatTensor[5, s, s]`` of a source by its number in all scenes, where
        they are to be learnt from; by default those of its crop.
    consistency : float
        Weight of the same being said of crops that are turned; with 0, none is turned.

    Returns
    -------
    dict of str to FloatTensor
        By the names of :attr:`Separating.parts`, and ``loss_consistency`` where it has a weight.
    """
    crops = _joined([scene.crops for scene in scenes])
    which = np.repeat(np.arange(len(scenes)), [len(scene.light) for scene in scenes])
    light = [part for scene in scenes for part in scene.light]
    total = [part for scene in scenes for part in scene.total]
    flux = np.concatenate([scene.flux for scene in scenes])
    electrons = np.array([scene.electrons for scene in scenes])[which]
    psf = psf_terms(np.array([scene.fwhm for scene in scenes])[which])
    # A canvas for each scene, wide enough for crops that reach beyond their stamp.
    border = SIDES[-1]
    reach = STAMP_SIZE + 2 * border
    count = len(crops.side)
    if not len(crops.side):
        # Nothing was found on any of them.
        nothing = torch.stack([p.sum() for p in network.parameters()]).sum() * 0
        names = [*Separating.parts, *(["loss_consistency"] if consistency else [])]
        return {name: batch_mean(nothing, count) for name in names}
    outs, means, index = [], [], []
    for batch in crops.batches(256):
        side = int(crops.side[batch[0]])
        pixels = torch.from_numpy(np.stack([crops.light[k] for k in batch])).to(device)
        if layers_of is None:
            layers = torch.from_numpy(np.stack([crops.layers[k] for k in batch])).to(device)
        else:
            layers = torch.stack([layers_of(k) for k in batch.tolist()])
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            told = torch.from_numpy(psf[batch]).to(device)
            out = network(pixels, layers, told)
            if consistency:
                means.append(_mean_of_turned(network, (pixels, layers.detach(), told), out))
        outs.append((batch, layers[:, 4].detach(), *out))
        offset = np.arange(side)
        rows = (which[batch] * reach + crops.y0[batch] + border)[:, None] + offset
        columns = crops.x0[batch][:, None] + border + offset
        index.append(torch.from_numpy(rows[:, :, None] * reach + columns[:, None, :]).to(device))
    pixel = torch.cat([one.flatten() for one in index])
    shares = _shares([claims for _, _, claims, _, _ in outs], pixel, len(scenes) * reach**2)
    steady = _shares([claims for claims, _, _ in means], pixel, len(scenes) * reach**2)
    losses: dict[str, list[Tensor]] = {}
    for number, (batch, usable, _, estimate, summary) in enumerate(outs):
        truth = _Truth(
            torch.from_numpy(np.stack([light[k] for k in batch])).to(device),
            torch.from_numpy(np.stack([total[k] for k in batch])).to(device),
            torch.from_numpy(flux[batch]).float().to(device),
            torch.from_numpy(electrons[batch]).float().to(device),
        )
        said = _Answer(shares[number], estimate, summary, usable)
        parts = _losses(said, truth)
        if consistency:
            mean = _Answer(steady[number], *means[number][1:], usable)
            parts["loss_consistency"] = consistency * _distance(said, mean, truth)
        for name, part in parts.items():
            losses.setdefault(name, []).append(part)
    return {name: batch_mean(torch.cat(parts).sum(), count) for name, parts in losses.items()}


@torch.no_grad()
def _mean_of_turned(
    network: nn.Module, crops: tuple[Tensor, Tensor, Tensor], own: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Claims, light and summary: means of what is said of crops as they are and turned."""
    light, layers, told = crops
    answers = [own]
    for turns, mirror in ORIENTATIONS:
        turned = (_turned(part, turns, mirror) for part in (light, layers))
        claims, total, summary = network(*turned, told)
        answers.append((*(_turned_back(part, turns, mirror) for part in (claims, total)), summary))
    claims, total, summary = (torch.stack(parts).mean(0) for parts in zip(*answers, strict=True))
    return claims, total, summary


def _turned(pixels: Tensor, turns: int, mirror: bool) -> Tensor:
    turned = torch.rot90(pixels, turns, (-2, -1))
    return (turned.flip(-1) if mirror else turned).contiguous()


def _turned_back(pixels: Tensor, turns: int, mirror: bool) -> Tensor:
    return torch.rot90(pixels.flip(-1) if mirror else pixels, -turns, (-2, -1))


def _shares(claims: Sequence[Tensor], pixel: Tensor, size: int) -> list[Tensor]:
    """Shares of several batches of crops together; see :func:`exclusive`."""
    if not claims:
        return []
    joined = exclusive(torch.cat([one.flatten() for one in claims]), pixel, size)
    parts = torch.split(joined, [one.numel() for one in claims])
    return [part.view(one.shape) for part, one in zip(parts, claims, strict=True)]


@dataclass(frozen=True)
class _Truth:
    """What is true of ``n`` sources on crops of one size."""

    light: Tensor
    total: Tensor
    flux: Tensor
    electrons: Tensor

    @functools.cached_property
    def tolerance(self) -> Tensor:
        """Errors that count as one, ``[n, s, s]``."""
        noise = self.total / self.electrons[:, None, None]
        return torch.sqrt(1 + (SYSTEMATIC * self.total) ** 2 + noise)

    @functools.cached_property
    def noise(self) -> Tensor:
        """The flux's error, were its profile known: what sky and own electrons allow."""
        seen, power = self.light.sum((1, 2)), (self.light**2).sum((1, 2))
        systematic = (FLUX_SYSTEMATIC * self.flux) ** 2
        return torch.sqrt(
            seen**2 / power.clamp_min(1.0) + self.flux / self.electrons + systematic + 1
        )


@dataclass(frozen=True)
class _Answer:
    """What the network says of them, and which of their pixels have data."""

    share: Tensor
    total: Tensor
    summary: Tensor
    usable: Tensor

    @functools.cached_property
    def model(self) -> Tensor:
        return steadied_crops(self.share * self.total * self.usable, self.usable)

    @functools.cached_property
    def flux(self) -> Tensor:
        return self.model.sum((1, 2)) * torch.exp(self.summary[:, 0])


def _losses(said: _Answer, truth: _Truth) -> dict[str, Tensor]:
    """Losses of each source, but that of consistency."""
    usable, model, measured = said.usable, said.model, said.flux
    off = _huber((model - truth.light) / truth.tolerance, 3.0) * usable
    off_total = _huber((said.total - truth.total) / truth.tolerance, 3.0) * usable
    lit = (truth.total > LIT).float() * usable
    wanted = (truth.light / truth.total.clamp_min(1e-3)).clamp(0, 1)
    claim = F.binary_cross_entropy(
        said.share.clamp(1e-6, 1 - 1e-6), wanted, weight=lit, reduction="none"
    )
    fixed = measured.detach()
    own = model.detach()
    formal = own.sum((1, 2)) / torch.sqrt((own**2).sum((1, 2)).clamp_min(1e-2)) + 1
    error = torch.sqrt((formal * torch.exp(said.summary[:, 1])) ** 2 + fixed / truth.electrons)
    pull = (fixed - truth.flux) / error
    # Student's t with four degrees of freedom: a few outliers do not widen the rest.
    spread = torch.log(error / formal) + 2.5 * torch.log1p(pull**2 / 4)
    return {
        "loss_model": torch.log1p(off.sum((1, 2)) / 20),
        "loss_total": 0.3 * torch.log1p(off_total.sum((1, 2)) / 40),
        "loss_claim": 0.5 * claim.sum((1, 2)) / lit.sum((1, 2)).clamp_min(1),
        "loss_flux": 0.5 * torch.log1p(((measured - truth.flux) / truth.noise) ** 2 / 4),
        "loss_spread": 0.1 * spread,
    }


def _distance(said: _Answer, mean: _Answer, truth: _Truth) -> Tensor:
    """How far models and fluxes are from others, weighed as their distances from the truth are."""
    off = ((said.model - mean.model) / truth.tolerance) ** 2
    from_truth = _huber((mean.model - truth.light) / truth.tolerance, 3.0) * said.usable
    off_flux = ((said.flux - mean.flux) / truth.noise) ** 2
    flux_from_truth = ((mean.flux - truth.flux) / truth.noise) ** 2
    return off.sum((1, 2)) / (20 + from_truth.sum((1, 2))) + 0.5 * off_flux / (4 + flux_from_truth)


def _huber(off: Tensor, limit: float) -> Tensor:
    """Squares that turn linear at a limit."""
    size = off.abs()
    return torch.where(size < limit, off**2, limit * (2 * size - limit))


def _joined(crops: Sequence[Crops]) -> Crops:
    return Crops(
        np.concatenate([part.y0 for part in crops]),
        np.concatenate([part.x0 for part in crops]),
        np.concatenate([part.side for part in crops]),
        [one for part in crops for one in part.light],
        [one for part in crops for one in part.layers],
    )
