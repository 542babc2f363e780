"""Training examples: blends of a data set, turned, mirrored, or composed into new scenes.

Composition places whole blends of the data set, each turned or mirrored, at random positions of a
new stamp and adds fresh noise, so that a stock of some 20,000 blends gives unlimited stamps.
Blends that meet on a stamp have nearly the same seeing. What differs from stamp to stamp beside
the blends: depth, faint texture, the background's error, correlated noise, saturation, pixels
without data.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from galsep.conventions import (
    DETECTABLE_MIN_AREA,
    DETECTABLE_SNR,
    MASK_THRESHOLD,
    SMALL_SIDES,
    STAMP_SIZE,
    bounds_to_boxes,
)
from galsep.io.dataset import Dataset
from galsep.model.assignment import Truths, collect
from galsep.model.device import moved
from galsep.model.heads import GALAXY, STAR
from galsep.model.network import normalise
from galsep.model.separation import window
from galsep.scene import Footprint

__all__ = ["Batch", "Example", "ExampleMaker", "Planned", "collate", "turn"]

ORIENTATIONS = 8
"""Four rotations, each plain and mirrored."""

EMPTY = 0.03
"""Share of composed stamps without a source."""

DEPTH_SCATTER, DEPTH_LIMIT = 0.7, 1.5
"""Scatter (1 sigma) and limit of a composed stamp's depth about the mean, magnitudes."""

TEXTURE = 0.3
"""Share of the blends on a composed stamp, after the first, that are dimmed by one to three
magnitudes: most of their sources are then too faint to be found."""

CROWDING, CROWD_RADIUS = 0.3, 10
"""Share of the blends after the first that are put within so many pixels of the one before."""

CUT_SHARE, CUT_AREA = 0.05, 80
"""Share of the galaxies of at least so many pixels whose light ends at a straight edge, as that of
real galaxies does where they come from stamps that are too small."""

CUT_BLUR = 1.2
"""Softness of such an edge, pixels."""

FAINTEST = 2.0
"""Sources below this S/N have no layer of their own."""

SATURATION = (500.0, 20_000.0)
"""Range of saturation levels of composed stamps, sky rms."""


@dataclass(frozen=True, slots=True)
class Example:
    """One stamp of ``s`` × ``s`` pixels and its targets.

    Parameters
    ----------
    image : (s, s) float32 array
        Network input.
    footprints : list of Footprint
        Masks of the sources to find.
    labels : list of int
        Class of each.
    light : (m, s, s) float32 array
        Noiseless light in sky rms: of each source to find, then of fainter ones, 0 where pixels
        have no data.
    flux : (m,) float array
        Flux of each in sky rms: what of its light the stamp shows, and what of it lies beyond the
        isolated image.
    total : (s, s) float32 array
        All noiseless light in sky rms, 0 where pixels have no data.
    usable : (s, s) bool array
        Which pixels have data.
    electrons : float
        That one sky rms of light stands for.
    ignored : list of tuple
        Inclusive bounds of sources that are neither positive nor negative.
    fwhm : float or None
        Of the PSF, pixels, where it is known.
    seed : int
        Of what else is drawn at random for it.
    """

    image: npt.NDArray[np.float32]
    footprints: list[Footprint]
    labels: list[int]
    light: npt.NDArray[np.float32]
    flux: npt.NDArray[np.float64]
    total: npt.NDArray[np.float32]
    usable: npt.NDArray[np.bool_]
    electrons: float
    ignored: list[tuple[int, int, int, int]]
    fwhm: float | None
    seed: int


@dataclass(frozen=True, slots=True)
class Planned:
    """An example that is still to be made.

    Parameters
    ----------
    position : int
        Of its blend in the split.
    orientation : int
        Of a blend that is shown as it is, see :func:`turn`.
    seed : int
        Of all that is drawn at random for it.
    side : int
        Of the stamp, where it is composed.
    """

    position: int
    orientation: int = 0
    seed: int = 0
    side: int = STAMP_SIZE


@dataclass(frozen=True, slots=True)
class Batch:
    """Stamps of one size, ``s`` × ``s`` pixels, and what Mask R-CNN should say of them.

    Parameters
    ----------
    images : FloatTensor[N, 1, s, s]
    truths : Truths
    """

    images: Tensor
    truths: Truths

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, part: slice) -> "Batch":
        """Some of the stamps, of a batch that is not on a device yet."""
        start, stop, _ = part.indices(len(self))
        return Batch(self.images[part], self.truths.part(start, stop))

    def share_memory(self) -> None:
        """Move it to memory that other processes can read."""
        self.images.share_memory_()  # type: ignore[no-untyped-call]
        self.truths.each(Tensor.share_memory_)

    def pin_memory(self) -> "Batch":
        """Copy it to memory that a CUDA device can read by itself."""
        return Batch(self.images.pin_memory(), self.truths.each(Tensor.pin_memory))

    def to(self, device: torch.device) -> "Batch":
        """Move it to a device, without waiting where its memory is pinned."""
        images = moved(self.images, device).contiguous(memory_format=torch.channels_last)
        return Batch(images, self.truths.each(lambda tensor: moved(tensor, device)))


@dataclass(frozen=True, slots=True)
class _Placed:
    """A source's light in sky rms on its way to a stamp."""

    light: npt.NDArray[np.float32]
    y0: int
    x0: int
    label: int
    beyond: float
    """Light beyond the crop over the light in it."""


def turn(
    crop: npt.NDArray[np.float32], y0: int, x0: int, orientation: int
) -> tuple[npt.NDArray[np.float32], int, int]:
    """Turn a crop of a 120×120 stamp as the whole stamp turns.

    Parameters
    ----------
    crop : (h, w) array
    y0, x0 : int
        Position of its first pixel.
    orientation : int
        0–3 quarter turns counter-clockwise in array order (:func:`numpy.rot90`); from 4 on, the
        stamp is first mirrored left to right.
    """
    if orientation >= 4:
        crop, x0 = crop[:, ::-1], STAMP_SIZE - x0 - crop.shape[1]
    for _ in range(orientation % 4):
        y0, x0 = STAMP_SIZE - x0 - crop.shape[1], y0
        crop = np.rot90(crop)
    return crop, y0, x0


class ExampleMaker:
    """Makes training examples from one split of a data set.

    Parameters
    ----------
    dataset : Dataset
    split : str
    augment : bool
        Turn and mirror at random.
    compose : bool
        Compose new scenes of up to ``max_groups`` blends instead of showing the blends as they
        are.
    max_groups : int
    depth : float
        Magnitudes by which composed scenes are deeper than the data set, on average.
    small_every : int
        Every so many batches of composed scenes is of small stamps, of one of their sides; 0 for
        none.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        *,
        augment: bool,
        compose: bool,
        max_groups: int = 1,
        depth: float = 0.0,
        small_every: int = 0,
    ) -> None:
        self._dataset = dataset
        self._blends = np.array(dataset.split(split), dtype=np.int64)
        self._augment = augment
        self._compose = compose
        self._max_groups = max_groups
        self._depth = depth
        self._small_every = small_every if compose else 0
        self._rms = dataset.meta.detection_rms
        # Neighbours in this order have nearly the same seeing.
        seeing = dataset.psf_fwhm[self._blends] / dataset.pixel_scale[self._blends]
        order = np.argsort(seeing, kind="stable")
        self._by_seeing = self._blends[order]
        self._rank = np.empty(len(order), dtype=np.int64)
        self._rank[order] = np.arange(len(order))

    def __len__(self) -> int:
        return len(self._blends)

    def plan(self, size: int, rng: np.random.Generator) -> list[Planned]:
        """Plan ``size`` examples; each blend comes once before any comes again.

        A blend that comes again is shown in another orientation, so that an epoch of four times
        the split shows each blend in four. What was planned can be made in any order, and by
        several processes. Of a split without blends there are none.
        """
        n = len(self._blends)
        if not n:
            return []
        turns = np.zeros((n, ORIENTATIONS), dtype=np.int64)
        if self._augment and not self._compose:
            turns = rng.permuted(np.tile(np.arange(ORIENTATIONS), (n, 1)), axis=1)
        planned = []
        for start in range(0, size, n):
            orientation = turns[:, start // n % ORIENTATIONS]
            for position in rng.permutation(n)[: size - start].tolist():
                seed = int(rng.integers(2**62))
                planned.append(Planned(position, int(orientation[position]), seed))
        return planned

    def batches(
        self, size: int, batch_size: int, rng: np.random.Generator
    ) -> Iterator[list[Planned]]:
        """Plan examples, batch by batch, all stamps of a batch of one size.

        Parameters
        ----------
        size : int
            Number of examples.
        batch_size : int
            Examples in a batch; the last one may have fewer.
        rng : Generator

        Yields
        ------
        list of Planned
            Of a split without blends there are none.
        """
        planned = self.plan(size, rng)
        for number, start in enumerate(range(0, len(planned), batch_size), 1):
            batch = planned[start : start + batch_size]
            if self._small_every and number % self._small_every == 0:
                side = int(rng.choice(SMALL_SIDES))
                batch = [replace(one, side=side) for one in batch]
            yield batch

    def make(self, planned: Planned) -> Example:
        """Make an example: compose a scene about its blend, or show the blend as it is."""
        if self._compose:
            return self._composed(planned)
        return self._shown(planned)

    def plain(self, position: int) -> Example:
        """One blend of the split as it is."""
        return self._shown(Planned(position))

    def _shown(self, planned: Planned) -> Example:
        blend, orientation = int(self._blends[planned.position]), planned.orientation
        image, _, _ = turn(self._dataset.detection_image(blend), 0, 0, orientation)
        sources = self._sources(blend, orientation, 0, 0, 1.0)
        image = image / np.float32(self._rms)
        light = _stacked(sources, STAMP_SIZE)
        hidden = np.zeros(light.shape, dtype=bool)
        fwhm = self._dataset.fwhm(blend)
        return _example(image, sources, light, hidden, self._rms, fwhm, planned.seed)

    def _sources(
        self, blend: int, orientation: int, dy: int, dx: int, brightness: float
    ) -> list[_Placed]:
        dataset = self._dataset
        placed = []
        for row in range(dataset.first[blend], dataset.first[blend + 1]):
            light, y0, x0 = dataset.source_light(row)
            crop, y0, x0 = turn(light[dataset.meta.detection_band], y0, x0, orientation)
            label = STAR if dataset.truth[row]["class"] == "star" else GALAXY
            scaled = crop * np.float32(brightness / self._rms)
            flux = float(dataset.truth[row]["flux"][dataset.meta.detection_band])
            stored = float(crop.sum(dtype=np.float64))
            beyond = max(0.0, flux / stored - 1) if stored > 0 else 0.0
            placed.append(_Placed(scaled, y0 + dy, x0 + dx, label, beyond))
        return placed

    def _composed(self, planned: Planned) -> Example:
        rng = np.random.default_rng(planned.seed)
        side = planned.side
        scatter = np.clip(rng.normal(0, DEPTH_SCATTER), -DEPTH_LIMIT, DEPTH_LIMIT)
        depth = self._depth + scatter
        deeper = 10 ** (0.4 * float(depth))
        sources: list[_Placed] = []
        offset = np.zeros(2, dtype=np.int64)
        middle = (side - STAMP_SIZE) // 2
        for number, blend in enumerate(self._companions(planned, rng)):
            dimming = rng.uniform(1, 3) if number and rng.random() < TEXTURE else 0.0
            orientation = int(rng.integers(ORIENTATIONS))
            if number and rng.random() < CROWDING:
                offset = offset + rng.integers(-CROWD_RADIUS, CROWD_RADIUS + 1, 2)
            else:
                offset = rng.integers(-side // 2, side // 2 + 1, 2)
            brightness = deeper * 10 ** (-0.4 * dimming)
            dy, dx = (offset + middle).tolist()
            placed = self._sources(blend, orientation, dy, dx, brightness)
            sources += [_cut(source, rng) for source in placed]
        light = _stacked(sources, side)
        electrons = deeper * self._rms
        image = light + _noise(rng, side) * np.sqrt(1 + light / electrons)
        hidden = _hidden(rng, side)
        saturated = image > np.exp(rng.uniform(*np.log(SATURATION)))
        if saturated.any() and rng.random() < 0.7:
            image[saturated] = image[saturated].min()
            # Surveys mask saturated pixels, or do not.
            if rng.random() < 0.5:
                hidden |= saturated
        # The noise is not known exactly, and it is the unit.
        unit = rng.uniform(0.95, 1.05)
        image = (image + _background_error(rng, side)) * unit
        image[hidden] = 0
        sources = [replace(source, light=source.light * np.float32(unit)) for source in sources]
        light = light * np.float32(unit)
        # Its companions have nearly the same.
        fwhm = self._dataset.fwhm(int(self._blends[planned.position]))
        return _example(image, sources, light, hidden, electrons / unit, fwhm, planned.seed)

    def _companions(self, planned: Planned, rng: np.random.Generator) -> list[int]:
        """Blends to compose: one at a position of the split, and others of its seeing."""
        if rng.random() < EMPTY:
            return []
        most = max(1, self._max_groups * planned.side**2 // STAMP_SIZE**2)
        n_groups = int(rng.integers(1, most + 1))
        reach = max(1, len(self._by_seeing) // 50)
        rank = self._rank[planned.position] + rng.integers(-reach, reach + 1, n_groups)
        blends = self._by_seeing[np.clip(rank, 0, len(self._by_seeing) - 1)]
        return [int(self._blends[planned.position]), *blends[1:].tolist()]


def collate(examples: Sequence[Example]) -> Batch:
    """Join examples into what Mask R-CNN takes in training."""
    images = np.stack([example.image for example in examples])[:, None]
    return Batch(torch.from_numpy(images), collect([_target(example) for example in examples]))


def _target(example: Example) -> dict[str, Tensor]:
    masks = np.zeros((len(example.footprints), *example.image.shape), dtype=np.uint8)
    for layer, footprint in zip(masks, example.footprints, strict=True):
        layer[footprint.slices] = footprint.mask
    bounds = np.array([footprint.bounds for footprint in example.footprints])
    return {
        "boxes": torch.from_numpy(bounds_to_boxes(bounds)),
        "labels": torch.tensor(example.labels, dtype=torch.int64),
        "masks": torch.from_numpy(masks),
        "light": torch.from_numpy(example.light[: len(masks)]),
        "total": torch.from_numpy(example.total),
        "ignored": torch.from_numpy(bounds_to_boxes(np.array(example.ignored))),
        "seed": torch.tensor(example.seed),
    }


def _example(
    image: npt.NDArray[np.float32],
    sources: list[_Placed],
    total: npt.NDArray[np.float32],
    hidden: npt.NDArray[np.bool_],
    electrons: float,
    fwhm: float | None,
    seed: int,
) -> Example:
    """Cut the masks to what the stamp shows and sort sources into positives and ignored ones.

    A source is a positive if what the stamp shows of it is detectable.
    """
    footprints, labels, positives, faint, ignored = [], [], [], [], []
    for source in sources:
        there, here = _overlap(source, len(total))
        light = np.where(hidden[there], 0, source.light[here])
        footprint = Footprint.from_mask(light > MASK_THRESHOLD, there[0].start, there[1].start)
        power = float((light * light).sum())
        shown = (there, light, float(light.sum(dtype=np.float64)) * (1 + source.beyond))
        if footprint.area >= DETECTABLE_MIN_AREA and power >= DETECTABLE_SNR**2:
            footprints.append(footprint)
            labels.append(source.label)
            positives.append(shown)
            continue
        if power >= FAINTEST**2:
            faint.append(shown)
        if (bounds := _ignored_bounds(source, footprint, len(total))) is not None:
            ignored.append(bounds)
    layers = np.zeros((len(positives) + len(faint), *total.shape), dtype=np.float32)
    for layer, (there, light, _) in zip(layers, positives + faint, strict=True):
        layer[there] = light
    return Example(
        image=normalise(image, 1.0),
        footprints=footprints,
        labels=labels,
        light=layers,
        flux=np.array([flux for _, _, flux in positives + faint], dtype=np.float64),
        total=np.where(hidden, 0, total),
        usable=~hidden,
        electrons=electrons,
        ignored=ignored,
        fwhm=fwhm,
        seed=seed,
    )


def _cut(source: _Placed, rng: np.random.Generator) -> _Placed:
    """Now and then end a galaxy's light at the edges of a square of any orientation."""
    if source.label != GALAXY or rng.random() > CUT_SHARE:
        return source
    area = np.count_nonzero(source.light > MASK_THRESHOLD)
    if area < CUT_AREA:
        return source
    half = 0.5 * math.sqrt(area) * rng.uniform(0.7, 1.1)
    angle = rng.uniform(0, math.pi / 2)
    peak_y, peak_x = np.unravel_index(int(source.light.argmax()), source.light.shape)
    dy = np.arange(source.light.shape[0])[:, None] - peak_y
    dx = np.arange(source.light.shape[1]) - peak_x
    window = np.ones(source.light.shape)
    for along in (
        dx * math.cos(angle) + dy * math.sin(angle), dy * math.cos(angle) - dx * math.sin(angle),
    ):  # fmt: skip
        window *= 0.5 + 0.5 * np.tanh((half - np.abs(along)) / CUT_BLUR)
    return replace(source, light=(source.light * window).astype(np.float32))


def _stacked(sources: list[_Placed], side: int) -> npt.NDArray[np.float32]:
    """All light on the stamp."""
    total = np.zeros((side, side), dtype=np.float32)
    for source in sources:
        there, here = _overlap(source, side)
        total[there] += source.light[here]
    return total


def _ignored_bounds(
    source: _Placed, footprint: Footprint, side: int
) -> tuple[int, int, int, int] | None:
    """Bounds of an undetectable source: its mask, or 7×7 px about its peak if that is inside."""
    if footprint.area:
        return footprint.bounds
    peak_y, peak_x = np.unravel_index(int(source.light.argmax()), source.light.shape)
    y, x = source.y0 + int(peak_y), source.x0 + int(peak_x)
    last = side - 1
    if not (0 <= y <= last and 0 <= x <= last):
        return None
    return max(0, x - 3), max(0, y - 3), min(last, x + 3), min(last, y + 3)


def _overlap(source: _Placed, side: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Slices of the stamp and of the source's crop where they overlap (possibly empty)."""
    return window(source.y0, source.x0, source.light.shape, (side, side))


def _noise(rng: np.random.Generator, side: int) -> npt.NDArray[np.float32]:
    """Sky noise of unit rms: white, now and then correlated as resampled images have it."""
    noise = rng.standard_normal((side, side), dtype=np.float32)
    if rng.random() < 0.2:
        noise = gaussian_filter(noise, rng.uniform(0.3, 0.8), mode="wrap")
        noise /= noise.std()
    return noise


def _background_error(rng: np.random.Generator, side: int) -> npt.NDArray[np.float32]:
    """What a background estimate is off by, roughly: a constant and a gradient, sky rms."""
    ramp = np.linspace(-1, 1, side, dtype=np.float32)
    constant, along_y, along_x = rng.normal(0, (0.07, 0.05, 0.05)).astype(np.float32)
    error: npt.NDArray[np.float32] = constant + along_y * ramp[:, None] + along_x * ramp
    return error


def _hidden(rng: np.random.Generator, side: int) -> npt.NDArray[np.bool_]:
    """Pixels without data: the far side of an image edge, now and then a bad column or patch."""
    hidden = np.zeros((side, side), dtype=bool)
    if rng.random() < 0.15:
        hidden[:, : int(rng.integers(1, 7 * side // 12))] = True
    if rng.random() < 0.05:
        column = int(rng.integers(side))
        hidden[:, column : column + int(rng.integers(1, 4))] = True
    if rng.random() < 0.05:
        y, x = rng.integers(0, side - 10, 2)
        hidden[y : y + int(rng.integers(2, 10)), x : x + int(rng.integers(2, 10))] = True
    return np.rot90(hidden, int(rng.integers(4)))
