"""Make a data set of one's own images and the sources that are known in them.

Each image loses its background and is cut into stamps as ``galsep deblend`` would cut it around
the known blends. Light is brought to electrons, and all images to the sky noise of the first, since
a data set has but one. Where a source's isolated light is not given, it is what the image shows on
its own pixels, never negative, shared equally where several sources hold one.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

import galsep
from galsep.config import ImportConfig, split_shares
from galsep.conventions import MASK_THRESHOLD, STAMP_SIZE
from galsep.errors import AnnotationError, OutputExistsError, UsageError
from galsep.image.detect import detect_blobs
from galsep.image.light import Frame, Light, without_background
from galsep.image.psf import estimate_fwhm
from galsep.image.tiling import cut, lay_cutouts
from galsep.io.atomic import make_folder
from galsep.io.coco import CocoImage, read_coco
from galsep.io.companions import split_reference
from galsep.io.dataset import (
    META_FILE,
    SPLITS,
    DatasetMeta,
    is_dataset,
    remove_stale_shards,
    shard_slices,
    write_meta,
    write_shard,
)
from galsep.io.image import Plane, input_stem, read_plane
from galsep.io.labels import read_kinds, read_label_map, read_light
from galsep.io.picture import is_picture, read_picture
from galsep.io.wcs import sky_place
from galsep.measure.photometry import Photometry, measure, split_light
from galsep.scene import Blend, Footprint, SoftMask, Source, SourceLight
from galsep.sim.scenes import truth_columns
from galsep.workflows.reporting import Reporter

__all__ = ["ImportResult", "import_data", "split_stamps"]

STEM = "{stem}"
ASSUMED_RMS = 400.0
"""Electrons of sky noise a pixel where an image has no gain: about LSST's after ten years."""

SAME_SOURCE = 1.0
"""Sources of two images closer than so many arcsec are one."""

HALF_LIGHT = 1.1774
"""Half-light radius of a round Gaussian over its sigma."""


@dataclass(frozen=True, slots=True)
class ImportResult:
    """What was imported.

    Parameters
    ----------
    folder : Path
    counts : dict of str to int
        Stamps of ``train``, ``validation`` and ``test``.
    sources : int
        True sources on them; one that several stamps show counts for each.
    left_out : int
        Stamps left out since they share a source with another split.
    crowded : int
        Stamps left out since they show sources that nobody told apart.
    """

    folder: Path
    counts: dict[str, int]
    sources: int
    left_out: int
    crowded: int


@dataclass(frozen=True, slots=True)
class _Known:
    """An image with its truth, read; without ``parts`` the light is that of the footprints."""

    name: str
    plane: Plane
    footprints: list[Footprint]
    kinds: list[str]
    parts: list[SourceLight] | None
    crowds: list[Footprint]


@dataclass(frozen=True, slots=True)
class _Image:
    """An image without its background.

    Parameters
    ----------
    number : int
        Among the images.
    image : Light
    parts : list of SourceLight
        Of each source, in the image's unit.
    kinds : list of str
    sky : (n, 2) float array
        Right ascension and declination of each source, degrees; NaN without a WCS.
    first : int
        Number of its first source among all sources.
    pixel_scale : float
        Arcsec.
    electrons : float
        That one unit stands for.
    zeropoint : float
        Magnitude of one electron.
    """

    number: int
    image: Light
    parts: list[SourceLight]
    kinds: list[str]
    sky: npt.NDArray[np.float64]
    first: int
    pixel_scale: float
    electrons: float
    zeropoint: float


@dataclass(frozen=True, slots=True)
class _Stamp:
    """A stamp on its way to the data set.

    Parameters
    ----------
    blend : Blend
        In electrons, without its seeing.
    image : int
        Number of the image that it is from.
    sources : set of int
        Numbers of its sources among all.
    along : float
        Its place along the longer side of the image.
    declination : float
        Degrees; −∞ where it is not known.
    """

    blend: Blend
    image: int
    sources: set[int]
    along: float
    declination: float


def import_data(
    images: Sequence[Path | str],
    output: Path | str,
    config: ImportConfig,
    *,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> ImportResult:
    """Make a data set for ``galsep train`` and ``galsep evaluate``.

    Parameters
    ----------
    images : sequence of path
        FITS (``FILE`` or ``FILE[EXT]``) or PNG; none with ``config.coco``, which names its own.
    output : path
        Folder to write to; see ``docs/formats.md``.
    config : ImportConfig
    overwrite : bool
        Replace a data set that is there.
    reporter : Reporter, optional
        Hears of the progress.

    Raises
    ------
    UsageError
        For settings that do not go together, or a scale or seeing that no image tells.
    ImageError, AnnotationError
        For an unusable image or truth.
    OutputExistsError, OutputError
        When the output exists or cannot be written.
    """
    reporter = reporter or Reporter()
    folder = Path(output)
    names = [str(image) for image in images]
    _check_arguments(names, config)
    if is_dataset(folder) and not overwrite:
        raise OutputExistsError(f"{folder}: holds a data set; give --overwrite to replace it")
    n_images, known = _known_images(names, config)
    collected = _Collected(config)
    reporter.begin("importing", n_images)
    for one in known:
        for message in one.plane.messages:
            reporter.warn(message)
        collected.add(one)
        reporter.advance()
    reporter.end()
    seeing = collected.seeing()
    stamps = collected.stamps
    parts = split_stamps(*collected.order(), split_shares(config.split))
    blends = [
        replace(stamps[index].blend, psf_fwhm=seeing[stamps[index].image])
        for part in parts
        for index in part
    ]
    counts = dict(zip(SPLITS, map(len, parts), strict=True))
    make_folder(folder)
    (folder / META_FILE).unlink(missing_ok=True)
    shards = shard_slices(len(blends))
    for name, chosen in shards.items():
        columns = [truth_columns(blend, collected.rms, 0) for blend in blends[chosen]]
        write_shard(folder / name, blends[chosen], columns, chosen.start)
    remove_stale_shards(folder, shards)
    write_meta(folder, collected.meta(counts, tuple(shards), seeing))
    return ImportResult(
        folder,
        counts,
        sum(len(blend.sources) for blend in blends),
        len(stamps) - len(blends),
        collected.crowded,
    )


def split_stamps(
    members: Sequence[set[int]],
    places: Sequence[tuple[float, ...]],
    shares: tuple[float, float, float],
) -> tuple[list[int], list[int], list[int]]:
    """Split stamps so that no source is in two parts.

    In the order of their places the last stamps are the test, those before the validation, the
    first are for training. A stamp that shares a source with a later part is left out.

    Parameters
    ----------
    members : sequence of set of int
        Sources on each stamp.
    places : sequence of tuple of float
        What stamps are ordered by.
    shares : (float, float, float)
        Of training, validation and test.

    Raises
    ------
    AnnotationError
        When the stamps are too few.
    """
    waiting = sorted(range(len(members)), key=lambda index: places[index])
    parts: list[list[int]] = []
    for share in (shares[2], shares[1]):
        wanted = max(1, round(share * len(members))) if share else 0
        part = waiting[len(waiting) - wanted :] if wanted <= len(waiting) else []
        taken = set().union(*(members[index] for index in part))
        waiting = [i for i in waiting if i not in part and not members[i] & taken]
        parts.append(part)
    test, validation = parts
    if not waiting or not validation or (shares[2] and not test):
        raise AnnotationError(
            f"{len(members)} stamps cannot be split so that no source is in two parts; give more "
            "or wider images, or other shares with --split"
        )
    return waiting, validation, test


class _Collected:
    """Stamps of the images read so far, and what the data set has to say of them."""

    def __init__(self, config: ImportConfig) -> None:
        self.config = config
        self.stamps: list[_Stamp] = []
        self.crowded = 0
        self.rms = 0.0
        self._zeropoint = 0.0
        self._band = ""
        self._scales: list[float] = []
        self._seeing: list[float] = []
        self._sky = [np.zeros((0, 2))]
        self._digest = hashlib.sha256()

    def add(self, known: _Known) -> None:
        """Take the stamps of an image."""
        plane = known.plane
        light = without_background(Frame(plane.data, plane.mask), self.config.background_mesh)
        image = self._prepared(known, light)
        self._digest.update(np.ascontiguousarray(light.light, dtype="<f4").tobytes())
        self._seeing.append(self.config.seeing or image.pixel_scale * _fwhm(light))
        self._scales.append(image.pixel_scale)
        self._sky.append(image.sky)
        for origin, shown in _laid(image):
            if any(_crosses(crowd, origin) for crowd in known.crowds):
                self.crowded += 1
            else:
                self.stamps.append(_stamp(image, origin, shown))

    def _prepared(self, known: _Known, light: Light) -> _Image:
        rms = float(np.median(light.rms))
        if not self.rms:
            gain = self.config.gain or known.plane.gain
            self.rms = gain * rms if gain else ASSUMED_RMS
            self._zeropoint = self.config.zeropoint + 2.5 * math.log10(self.rms / rms)
            self._band = str(known.plane.header.get("FILTER", "")).strip() or "image"
        parts = known.parts
        if parts is None:
            masks = [
                SoftMask(one.y0, one.x0, one.mask.astype(np.float32)) for one in known.footprints
            ]
            parts = split_light(masks, [None] * len(masks), light.light, light.rms)
        electrons = self.rms / rms
        return _Image(
            number=len(self._scales),
            image=light,
            parts=parts,
            kinds=known.kinds,
            sky=_sky_positions(known.plane, parts, light),
            first=sum(map(len, self._sky)),
            pixel_scale=self.config.pixel_scale or _pixel_scale(known),
            electrons=electrons,
            zeropoint=self.config.zeropoint + 2.5 * math.log10(electrons),
        )

    def seeing(self) -> list[float]:
        """PSF FWHM of each image, arcsec; where it cannot be measured, that of the others."""
        measured = np.array(self._seeing)
        unknown = np.isnan(measured)
        if unknown.all():
            raise UsageError(
                "the images have too few compact objects to measure their PSF; give its FWHM with "
                "--seeing ARCSEC"
            )
        measured[unknown] = np.median(measured[~unknown])
        return [float(fwhm) for fwhm in measured]

    def order(self) -> tuple[list[set[int]], list[tuple[float, ...]]]:
        """Sources on each stamp, and what to order the stamps by.

        By image and place in it, or where images show the same sources, by place on the sky.
        """
        places: list[tuple[float, ...]] = [(stamp.image, stamp.along) for stamp in self.stamps]
        number = _same_sources(np.concatenate(self._sky))
        if len(np.unique(number)) < len(number):
            places = [(stamp.declination, stamp.image, stamp.along) for stamp in self.stamps]
        return [{int(number[k]) for k in stamp.sources} for stamp in self.stamps], places

    def meta(
        self, counts: dict[str, int], shards: tuple[str, ...], seeing: list[float]
    ) -> DatasetMeta:
        """What ``dataset.toml`` says."""
        settings = asdict(self.config)
        for private in ("labels", "classes", "light", "coco", "images"):
            del settings[private]
        return DatasetMeta(
            survey="imported",
            bands=(self._band,),
            detection_band=0,
            pixel_scale=float(np.median(self._scales)),
            zeropoints=(self._zeropoint,),
            sky_rms=(self.rms,),
            psf_fwhm=(float(np.median(seeing)),),
            counts=counts,
            shards=shards,
            population={
                **settings,
                "truth": "COCO" if self.config.coco else "labels",
                "isolated_light": bool(self.config.light),
                "n_images": len(self._scales),
                "light_sha256": self._digest.hexdigest(),
            },
            galsep_version=galsep.__version__,
            seed=0,
        )


def _check_arguments(names: list[str], config: ImportConfig) -> None:
    if config.coco:
        if names:
            raise UsageError("the images are those that the JSON file names; leave IMAGE out")
        return
    if not config.labels:
        raise UsageError("the truth is missing; give --labels, a label map, or --coco, a JSON file")
    if config.images:
        raise UsageError("--images is the folder of --coco's images; name others as IMAGE")
    if not names:
        raise UsageError("IMAGE is missing (see galsep import --help)")
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UsageError(f"{min(twice)}: is given twice")
    for option in ("labels", "classes", "light"):
        reference = getattr(config, option)
        if reference and len(names) > 1 and STEM not in reference:
            raise UsageError(
                f"--{option} {reference}: with several images it has {STEM} in it, which stands "
                "for an image's name without its ending"
            )


def _known_images(names: list[str], config: ImportConfig) -> tuple[int, Iterator[_Known]]:
    """How many images there are, and each with its truth, read one after the other."""
    if not config.coco:
        return len(names), (_labelled(name, config) for name in names)
    file = Path(config.coco)
    images = read_coco(file, Path(config.images) if config.images else file.parent)
    return len(images), (_annotated(image, config) for image in images)


def _labelled(name: str, config: ImportConfig) -> _Known:
    """An image with a label map."""
    labels, classes, light = (
        reference.replace(STEM, input_stem(split_reference(name)[0]))
        for reference in (config.labels, config.classes, config.light)
    )
    plane = _read_image(name, config)
    known = read_label_map(labels, plane)
    n = len(known.labels)
    height, width = plane.data.shape
    return _Known(
        name,
        plane,
        known.footprints,
        read_kinds(classes, known.labels) if classes else ["galaxy"] * n,
        read_light(light, known.labels, (height, width)) if light else None,
        [],
    )


def _annotated(image: CocoImage, config: ImportConfig) -> _Known:
    """An image of COCO's JSON."""
    plane = _read_image(str(image.path), config)
    if plane.data.shape != image.shape:
        (height, width), (rows, columns) = plane.data.shape, image.shape
        raise AnnotationError(
            f"{config.coco}: says that {image.path} is {columns}×{rows} px, it is {width}×{height}"
        )
    return _Known(str(image.path), plane, image.footprints, image.kinds, None, image.crowds)


def _read_image(name: str, config: ImportConfig) -> Plane:
    path, ext = split_reference(name)
    return read_picture(path) if is_picture(path) else read_plane(path, ext or config.ext)


def _pixel_scale(known: _Known) -> float:
    """Arcsec a pixel by the WCS."""
    height, width = known.plane.data.shape
    place = known.plane.wcs and sky_place(known.plane.wcs, (height, width))
    if place is None:
        raise UsageError(f"{known.name}: has no WCS; give its scale with --pixel-scale ARCSEC")
    return place.pixel_scale


def _fwhm(image: Light) -> float:
    """PSF FWHM in pixels, NaN where it cannot be measured."""
    fwhm = estimate_fwhm(image.light, image.mask, detect_blobs(image.light, image.rms, image.mask))
    return math.nan if fwhm is None else fwhm


def _sky_positions(plane: Plane, parts: list[SourceLight], image: Light) -> npt.NDArray[np.float64]:
    """Right ascension and declination of each source, NaN without a WCS."""
    if plane.wcs is None:
        return np.full((len(parts), 2), np.nan)
    photometry = measure(parts, image.light, image.rms)
    sky = plane.wcs.pixel_to_world(photometry.x, photometry.y).icrs
    return np.stack([sky.ra.deg, sky.dec.deg], axis=1)


def _same_sources(sky: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Number sources so that those at one place of the sky have the same number."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    ra, dec = np.radians(sky.T)
    towards = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)
    placed = np.flatnonzero(np.isfinite(towards).all(axis=1))
    near = cKDTree(towards[placed]).query_pairs(
        np.radians(SAME_SOURCE / 3600), output_type="ndarray"
    )
    i, j = placed[near].T
    links = coo_array((np.ones(len(i)), (i, j)), shape=(len(sky), len(sky)))
    return np.asarray(connected_components(links, directed=False)[1], dtype=np.int64)


def _laid(image: _Image) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """Lay cutouts about the blends; the first pixel of each, and the sources that it shows."""
    from scipy.ndimage import find_objects, label

    light, parts = image.image, image.parts
    covered = np.zeros(light.light.shape, dtype=bool)
    for part in parts:
        covered[part.slices] |= part.model > MASK_THRESHOLD * light.rms[part.slices]
    blends, _ = label(covered, structure=np.ones((3, 3)))
    bounds = [(box[1].start, box[0].start, box[1].stop - 1, box[0].stop - 1)
              for box in find_objects(blends)]  # fmt: skip
    height, width = light.light.shape
    tiling = lay_cutouts(
        np.array(bounds, dtype=np.int64).reshape(-1, 4), (height, width), blends.astype(np.int32)
    )
    low = np.array([(part.y0, part.x0) for part in parts])
    high = low + np.array([part.model.shape for part in parts])
    for origin in tiling.origins:
        near = np.all((high > origin) & (low < origin + STAMP_SIZE), axis=1)
        y0, x0 = origin.tolist()
        shown = [int(k) for k in np.flatnonzero(near) if _cropped(parts[k], (y0, x0)).model.any()]
        yield (y0, x0), shown


def _stamp(image: _Image, origin: tuple[int, int], shown: list[int]) -> _Stamp:
    """Cut a stamp with what it shows of its sources."""
    where = np.array([origin])
    pixels, rms = cut(image.image.light, where)[0], cut(image.image.rms, where, 1)[0]
    crops = [_cropped(image.parts[k], origin) for k in shown]
    photometry = measure(crops, pixels, rms)
    sources = [_source(image, k, crops, photometry, i) for i, k in enumerate(shown)]
    height, width = image.image.light.shape
    declination = image.sky[shown, 1].mean()
    return _Stamp(
        blend=Blend(
            np.float32(image.electrons) * pixels[None], sources, math.nan, image.pixel_scale
        ),
        image=image.number,
        sources={image.first + k for k in shown},
        along=float(origin[0] if height >= width else origin[1]),
        declination=float(declination) if np.isfinite(declination) else -math.inf,
    )


def _cropped(part: SourceLight, origin: tuple[int, int]) -> SourceLight:
    """What a stamp shows of a source, in the stamp's coordinates."""
    y, x = part.y0 - origin[0], part.x0 - origin[1]
    height, width = part.model.shape
    rows = slice(max(0, -y), max(0, min(height, STAMP_SIZE - y)))
    columns = slice(max(0, -x), max(0, min(width, STAMP_SIZE - x)))
    model = part.model[rows, columns]
    return SourceLight(
        y0=min(max(y, 0), STAMP_SIZE),
        x0=min(max(x, 0), STAMP_SIZE),
        share=part.share[rows, columns],
        model=model,
        flux=float(model.sum(dtype=np.float64)),
        flux_err=0.0,
    )


def _crosses(crowd: Footprint, origin: tuple[int, int]) -> bool:
    """Whether a stamp shows a pixel of a region."""
    shown = crowd.shifted(-origin[0], -origin[1]).clipped((STAMP_SIZE, STAMP_SIZE))
    return shown.area > 0


def _source(
    image: _Image, number: int, crops: list[SourceLight], photometry: Photometry, index: int
) -> Source:
    """Flux, place and shape of what a stamp shows of a source; ``index`` counts on the stamp."""
    flux = image.electrons * crops[index].flux
    a, b = photometry.semimajor_axis[index], photometry.semiminor_axis[index]
    angle = 2 * math.radians(photometry.orientation[index])
    extended = image.kinds[number] == "galaxy"
    ellipticity = extended * (a - b) / (a + b)
    return Source(
        kind=image.kinds[number],
        x=float(photometry.x[index]),
        y=float(photometry.y[index]),
        magnitude=np.array([image.zeropoint - 2.5 * math.log10(flux)]),
        flux=np.array([flux]),
        half_light_radius=extended * HALF_LIGHT * math.sqrt(a * b) * image.pixel_scale,
        e1=ellipticity * math.cos(angle),
        e2=ellipticity * math.sin(angle),
        light=np.float32(image.electrons) * crops[index].model[None],
        y0=crops[index].y0,
        x0=crops[index].x0,
    )
