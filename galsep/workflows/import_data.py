"""Make a data set of one's own images and the sources that are known in them.

Each image loses its background and is cut into stamps as ``galsep deblend`` would cut it around
the known blends. Light is brought to electrons, and all images to the sky noise of the first, since
a data set has but one.
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
from galsep.errors import AnnotationError, UsageError
from galsep.image.light import Frame, Light, without_background
from galsep.io.atomic import remove_partial
from galsep.io.claim import alone_in
from galsep.io.coco import CocoImage, read_coco
from galsep.io.companions import split_reference
from galsep.io.dataset import (
    CLAIM,
    META_FILE,
    SPLITS,
    DatasetMeta,
    refuse_dataset,
    remove_stale_shards,
    shard_slices,
    write_meta,
    write_shard,
)
from galsep.io.image import Plane, input_stem, read_plane
from galsep.io.labels import read_kinds, read_label_map, read_light
from galsep.io.picture import is_picture, read_picture
from galsep.sim.scenes import truth_columns
from galsep.workflows.reporting import Reporter
from galsep.workflows.stamping import (
    Known,
    LitImage,
    Stamp,
    cut_stamps,
    measured_fwhm,
    sky_positions,
    source_light,
    wcs_scale,
)

__all__ = ["ImportResult", "import_data", "split_stamps"]

STEM = "{stem}"
ASSUMED_RMS = 400.0
"""Electrons of sky noise a pixel where an image has no gain: about LSST's after ten years."""

SAME_SOURCE = 1.0
"""Sources of two images closer than so many arcsec are one."""


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
    refuse_dataset(folder, overwrite=overwrite)
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
    shards = shard_slices(len(blends))
    with alone_in(folder, CLAIM, "call"):
        # One may have been written while the images were read.
        refuse_dataset(folder, overwrite=overwrite)
        remove_partial(folder / name for name in (META_FILE, *shards))
        (folder / META_FILE).unlink(missing_ok=True)
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
        waiting = [i for i in waiting[: len(waiting) - len(part)] if not members[i] & taken]
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
        self.stamps: list[Stamp] = []
        self.crowded = 0
        self.rms = 0.0
        self._zeropoint = 0.0
        self._band = ""
        self._scales: list[float] = []
        self._seeing: list[float] = []
        self._sky: list[npt.NDArray[np.float64]] = []
        self._digest = hashlib.sha256()

    def add(self, known: Known) -> None:
        """Take the stamps of an image."""
        plane = known.plane
        light = without_background(Frame(plane.data, plane.mask), self.config.background_mesh)
        image = self._prepared(known, light)
        self._digest.update(np.ascontiguousarray(light.light, dtype="<f4").tobytes())
        self._seeing.append(self.config.seeing or image.pixel_scale * measured_fwhm(light))
        self._scales.append(image.pixel_scale)
        self._sky.append(image.sky)
        for stamp in cut_stamps(image, known.crowds):
            if stamp is None:
                self.crowded += 1
            else:
                self.stamps.append(stamp)

    def _prepared(self, known: Known, light: Light) -> LitImage:
        rms = float(np.median(light.rms))
        if not self.rms:
            gain = self.config.gain or known.plane.gain
            self.rms = gain * rms if gain else ASSUMED_RMS
            self._zeropoint = self.config.zeropoint + 2.5 * math.log10(self.rms / rms)
            self._band = str(known.plane.header.get("FILTER", "")).strip() or "image"
        parts = source_light(known, light)
        electrons = self.rms / rms
        return LitImage(
            number=len(self._scales),
            image=light,
            parts=parts,
            kinds=known.kinds,
            sky=sky_positions(known.plane, parts, light),
            first=sum(map(len, self._sky)),
            pixel_scale=self.config.pixel_scale or wcs_scale(known),
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
        number = _same_sources(self._sky)
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


def _known_images(names: list[str], config: ImportConfig) -> tuple[int, Iterator[Known]]:
    """How many images there are, and each with its truth, read one after the other."""
    if not config.coco:
        return len(names), (_labelled(name, config) for name in names)
    file = Path(config.coco)
    images = read_coco(file, Path(config.images) if config.images else file.parent)
    return len(images), (_annotated(image, config) for image in images)


def _labelled(name: str, config: ImportConfig) -> Known:
    """An image with a label map."""
    labels, classes, light = (
        reference.replace(STEM, input_stem(split_reference(name)[0]))
        for reference in (config.labels, config.classes, config.light)
    )
    plane = _read_image(name, config)
    known = read_label_map(labels, plane)
    n = len(known.labels)
    height, width = plane.data.shape
    return Known(
        name,
        plane,
        known.footprints,
        read_kinds(classes, known.labels) if classes else ["galaxy"] * n,
        read_light(light, known.labels, (height, width)) if light else None,
        [],
    )


def _annotated(image: CocoImage, config: ImportConfig) -> Known:
    """An image of COCO's JSON."""
    plane = _read_image(str(image.path), config)
    if plane.data.shape != image.shape:
        (height, width), (rows, columns) = plane.data.shape, image.shape
        raise AnnotationError(
            f"{config.coco}: says that {image.path} is {columns}×{rows} px, it is {width}×{height}"
        )
    return Known(str(image.path), plane, image.footprints, image.kinds, None, image.crowds)


def _read_image(name: str, config: ImportConfig) -> Plane:
    path, ext = split_reference(name)
    return read_picture(path) if is_picture(path) else read_plane(path, ext or config.ext)


def _same_sources(positions: Sequence[npt.NDArray[np.float64]]) -> npt.NDArray[np.int64]:
    """Number sources so that those of several images at one place of the sky have one number.

    Parameters
    ----------
    positions : sequence of (n, 2) float arrays
        Right ascension and declination, degrees, of the sources of each image.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    ra, dec = np.radians(np.concatenate(positions).T)
    image = np.repeat(np.arange(len(positions)), [len(one) for one in positions])
    towards = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)
    placed = np.flatnonzero(np.isfinite(towards).all(axis=1))
    near = cKDTree(towards[placed]).query_pairs(
        np.radians(SAME_SOURCE / 3600), output_type="ndarray"
    )
    i, j = placed[near].T
    other = image[i] != image[j]
    links = coo_array((other[other], (i[other], j[other])), shape=(len(ra), len(ra)))
    return np.asarray(connected_components(links, directed=False)[1], dtype=np.int64)
