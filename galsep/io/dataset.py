"""Data sets of simulated blends: a folder of FITS shards and a ``dataset.toml``.

Each shard holds the blends (``BLENDS``, ``[n, band, 120, 120]`` float32), the table of true
sources (``TRUTH``), one row a source, a table with one row a blend (``SCENES``) and the sources'
noiseless isolated light as one flat array (``LIGHT``) that the truth rows point into. Light is
stored where it exceeds 0.005 sky rms; ``flux`` is the total with all that lies outside.
"""

import difflib
import math
import sys
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tomli_w

from galsep.conventions import MASK_THRESHOLD, STAMP_SIZE
from galsep.errors import DatasetError, OutputExistsError
from galsep.io.atomic import write_fits, write_text
from galsep.io.header import one_line, quiet_astropy
from galsep.scene import Blend, Footprint
from galsep.settings import parse_toml

__all__ = [
    "CLAIM",
    "FORMAT_VERSION",
    "META_FILE",
    "SPLITS",
    "Dataset",
    "DatasetMeta",
    "is_dataset",
    "join_datasets",
    "load_dataset",
    "pack_blends",
    "refuse_dataset",
    "remove_stale_shards",
    "shard_slices",
    "truth_hdu",
    "write_meta",
    "write_shard",
]

FORMAT_VERSION = 1
META_FILE = "dataset.toml"
CLAIM = "dataset"
"""What is claimed in a folder by those who write simulated or imported data to it."""

SPLITS = ("train", "validation", "test")
SHARD_SIZE = 500


@dataclass(frozen=True, slots=True)
class DatasetMeta:
    """What ``dataset.toml`` says.

    Parameters
    ----------
    survey : str
    bands : tuple of str
    detection_band : int
        Index of the band that defines masks and ``snr``.
    pixel_scale : float
        Arcsec per pixel of the survey, to which ``sky_rms`` belongs; a blend may have its own.
    zeropoints, sky_rms, psf_fwhm : tuple of float
        One a band; magnitudes, electrons per pixel, arcsec.
    counts : mapping
        Number of blends in ``train``, ``validation`` and ``test``, stored in this order.
    shards : tuple of str
        Names of the shard files.
    population : mapping
        The resolved settings of ``galsep simulate``; of joined data sets ``joined`` alone, a list
        of mappings with each one's ``population`` and ``counts``.
    galsep_version : str
    seed : int
    """

    survey: str
    bands: tuple[str, ...]
    detection_band: int
    pixel_scale: float
    zeropoints: tuple[float, ...]
    sky_rms: tuple[float, ...]
    psf_fwhm: tuple[float, ...]
    counts: Mapping[str, int]
    shards: tuple[str, ...]
    population: Mapping[str, Any]
    galsep_version: str
    seed: int

    @property
    def detection_rms(self) -> float:
        """Sky rms of the detection band."""
        return self.sky_rms[self.detection_band]


@dataclass(frozen=True, slots=True)
class Dataset:
    """A loaded data set.

    Parameters
    ----------
    meta : DatasetMeta
    images : (n, band, 120, 120) float32 array
    psf_fwhm : (n,) float array
        Seeing of each blend, arcsec.
    pixel_scale : (n,) float array
        Arcsec per pixel of each blend.
    truth : structured array
        One row a source, in the order of blends.
    light : (m,) float32 array
        All isolated light, flat.
    first : (n + 1,) int array
        The sources of blend ``i`` are rows ``first[i]`` to ``first[i + 1]``.
    """

    meta: DatasetMeta
    images: npt.NDArray[np.float32]
    psf_fwhm: npt.NDArray[np.float64]
    pixel_scale: npt.NDArray[np.float64]
    truth: npt.NDArray[np.void]
    light: npt.NDArray[np.float32]
    first: npt.NDArray[np.int64] = field(repr=False)

    def __len__(self) -> int:
        return len(self.images)

    def split(self, name: str) -> range:
        """Return the indices of the blends in ``"train"``, ``"validation"`` or ``"test"``."""
        start = 0
        for split in SPLITS:
            stop = start + self.meta.counts[split]
            if split == name:
                return range(start, stop)
            start = stop
        raise DatasetError(f"no split {name!r}; there are {', '.join(SPLITS)}")

    def fwhm(self, blend: int) -> float | None:
        """FWHM of a blend's PSF, pixels; ``None`` where it is not known."""
        fwhm = float(self.psf_fwhm[blend] / self.pixel_scale[blend])
        return fwhm if 0 < fwhm < math.inf else None

    def sources(self, blend: int) -> npt.NDArray[np.void]:
        """Truth rows of one blend."""
        return self.truth[self.first[blend] : self.first[blend + 1]]

    def source_light(self, row: int) -> tuple[npt.NDArray[np.float32], int, int]:
        """Isolated light ``[band, h, w]`` of a truth row and its crop's ``y0, x0``."""
        entry = self.truth[row]
        height, width = int(entry["ny"]), int(entry["nx"])
        start = int(entry["offset"])
        flat = self.light[start : start + len(self.meta.bands) * height * width]
        return flat.reshape(-1, height, width), int(entry["y0"]), int(entry["x0"])

    def footprints(self, blend: int) -> list[Footprint]:
        """Return the true masks of one blend: own light over 1.5 sky rms in the detection band."""
        level = MASK_THRESHOLD * self.meta.detection_rms
        masks = []
        for row in range(self.first[blend], self.first[blend + 1]):
            light, y0, x0 = self.source_light(row)
            masks.append(Footprint.from_mask(light[self.meta.detection_band] > level, y0, x0))
        return masks

    def stack(self, blend: int) -> npt.NDArray[np.float32]:
        """Isolated light of one blend's sources in the detection band, ``[source, h, w]``."""
        rows = range(self.first[blend], self.first[blend + 1])
        layers = np.zeros((len(rows), *self.images.shape[2:]), dtype=np.float32)
        for layer, row in zip(layers, rows, strict=True):
            light, y0, x0 = self.source_light(row)
            height, width = light.shape[1:]
            layer[y0 : y0 + height, x0 : x0 + width] = light[self.meta.detection_band]
        return layers

    def detection_image(self, blend: int) -> npt.NDArray[np.float32]:
        """Return the blend's image in the detection band."""
        image: npt.NDArray[np.float32] = self.images[blend, self.meta.detection_band]
        return image


def pack_blends(
    blends: Sequence[Blend], columns: Sequence[Mapping[str, npt.NDArray[Any]]], first_blend: int
) -> tuple[npt.NDArray[np.void], npt.NDArray[np.float32]]:
    """Turn blends into truth rows and one flat array of light.

    Parameters
    ----------
    blends : sequence of Blend
    columns : sequence of mappings
        For each blend the derived columns ``snr``, ``purity``, ``area``, ``detectable``.
    first_blend : int
        Number of the first blend.
    """
    bands = len(blends[0].image)
    n = sum(len(blend.sources) for blend in blends)
    rows = np.zeros(n, dtype=truth_dtype(bands))
    pieces = [np.zeros(0, dtype=np.float32)]
    offset = index = 0
    for number, (blend, derived) in enumerate(zip(blends, columns, strict=True), first_blend):
        for position, source in enumerate(blend.sources):
            row = rows[index]
            row["blend"] = number
            row["class"] = source.kind
            for name in ("x", "y", "flux", "magnitude", "half_light_radius", "e1", "e2"):
                row[name] = getattr(source, name)
            for name in ("snr", "purity", "area", "detectable"):
                row[name] = derived[name][position]
            row["y0"], row["x0"] = source.y0, source.x0
            row["ny"], row["nx"] = source.light.shape[1:]
            row["offset"] = offset
            offset += source.light.size
            pieces.append(source.light.ravel())
            index += 1
    return rows, np.concatenate(pieces)


def truth_dtype(bands: int) -> np.dtype[np.void]:
    """Columns of a truth table."""
    return np.dtype(
        [
            ("blend", "i4"),
            ("class", "U6"),
            ("x", "f8"),
            ("y", "f8"),
            ("flux", "f8", (bands,)),
            ("magnitude", "f8", (bands,)),
            ("half_light_radius", "f4"),
            ("e1", "f4"),
            ("e2", "f4"),
            ("snr", "f4"),
            ("purity", "f4"),
            ("area", "i4"),
            ("detectable", "?"),
            ("y0", "i4"),
            ("x0", "i4"),
            ("ny", "i4"),
            ("nx", "i4"),
            ("offset", "i8"),
        ]
    )


# Fluxes are in electrons, a unit that FITS tables have no name for.
_UNITS = {"x": "pix", "y": "pix", "magnitude": "mag", "half_light_radius": "arcsec",
          "area": "pix2"}  # fmt: skip


def truth_hdu(rows: npt.NDArray[np.void]) -> Any:
    """Make a FITS table of truth rows."""
    from astropy.io import fits

    hdu = fits.BinTableHDU(rows, name="TRUTH")
    for name, unit in _UNITS.items():
        hdu.columns[name].unit = unit
    return hdu


def write_shard(
    path: Path,
    blends: Sequence[Blend],
    columns: Sequence[Mapping[str, npt.NDArray[Any]]],
    first_blend: int,
) -> None:
    """Write one shard.

    Parameters
    ----------
    path : Path
        Replaced when it exists.
    blends, columns, first_blend
        See :func:`pack_blends`; there is at least one blend.

    Raises
    ------
    OutputError
        When the operating system refuses.
    """
    from astropy.io import fits

    rows, light = pack_blends(blends, columns, first_blend)
    scenes = np.zeros(
        len(blends), dtype=[("psf_fwhm", "f8"), ("pixel_scale", "f8"), ("n_source", "i4")]
    )
    scenes["psf_fwhm"] = [blend.psf_fwhm for blend in blends]
    scenes["pixel_scale"] = [blend.pixel_scale for blend in blends]
    scenes["n_source"] = [len(blend.sources) for blend in blends]
    scene_hdu = fits.BinTableHDU(scenes, name="SCENES")
    scene_hdu.columns["psf_fwhm"].unit = "arcsec"
    scene_hdu.columns["pixel_scale"].unit = "arcsec"
    blend_hdu = fits.ImageHDU(np.stack([blend.image for blend in blends]), name="BLENDS")
    blend_hdu.header["BUNIT"] = "electron"
    light_hdu = fits.ImageHDU(light, name="LIGHT")
    light_hdu.header["BUNIT"] = "electron"
    primary = fits.PrimaryHDU()
    primary.header["GSFORMAT"] = (FORMAT_VERSION, "version of galsep's data set format")
    write_fits(path, fits.HDUList([primary, blend_hdu, scene_hdu, truth_hdu(rows), light_hdu]))


def shard_slices(n: int) -> dict[str, slice]:
    """Names of the shards of ``n`` blends, and which blends each holds."""
    starts = range(0, n, SHARD_SIZE)
    return {
        f"shard-{number:04d}.fits": slice(start, min(n, start + SHARD_SIZE))
        for number, start in enumerate(starts)
    }


def remove_stale_shards(folder: Path, shards: Container[str]) -> None:
    """Remove shards of an earlier, larger data set that was overwritten."""
    for path in folder.glob("shard-[0-9][0-9][0-9][0-9].fits"):
        if path.name not in shards:
            path.unlink()


def write_meta(folder: Path, meta: DatasetMeta) -> None:
    """Write ``dataset.toml``; done last, it makes the folder a data set."""
    values = {name: getattr(meta, name) for name in DatasetMeta.__dataclass_fields__}
    write_text(folder / META_FILE, tomli_w.dumps({"format_version": FORMAT_VERSION, **values}))


def is_dataset(folder: Path) -> bool:
    """Whether a folder holds a finished data set."""
    return (folder / META_FILE).is_file()


def refuse_dataset(folder: Path, *, overwrite: bool) -> None:
    """Refuse to write where a data set is.

    Raises
    ------
    OutputExistsError
        Unless ``overwrite`` is given.
    """
    if is_dataset(folder) and not overwrite:
        raise OutputExistsError(f"{folder}: holds a data set; give --overwrite to replace it")


def load_meta(folder: Path) -> DatasetMeta:
    """Read ``dataset.toml``.

    Raises
    ------
    DatasetError
        When it is missing, damaged or of another version.
    """
    path = folder / META_FILE
    try:
        values = parse_toml(path)
    except FileNotFoundError as error:
        raise DatasetError(
            f"{folder}: no data set here (no {META_FILE}); make one with galsep simulate"
        ) from error
    except NotADirectoryError as error:
        raise DatasetError(f"{folder}: is a file; give the folder of a data set") from error
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: not readable ({one_line(error)})") from error
    version = values.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise DatasetError(
            f"{folder}: data set of format version {version}, this galsep reads version "
            f"{FORMAT_VERSION}; simulate it again"
        )
    try:
        for name in ("bands", "zeropoints", "sky_rms", "psf_fwhm", "shards"):
            values[name] = tuple(values[name])
        meta = DatasetMeta(**values)
        counts = [meta.counts[split] for split in SPLITS]
    except (KeyError, TypeError) as error:
        raise DatasetError(
            f"{path}: incomplete or with unknown keys ({_unknown_key(values) or error})"
        ) from error
    if not _sound(meta):
        raise DatasetError(f"{path}: its bands and their figures do not fit; simulate it again")
    if not all(map(_is_file_name, meta.shards)) or not all(map(_is_count, counts)):
        raise DatasetError(
            f"{path}: shards lie in the data set's own folder, counts are whole numbers from 0 on"
        )
    if not meta.shards:
        raise DatasetError(f"{path}: names no shard; simulate the data set again")
    return meta


def _unknown_key(values: Mapping[str, Any]) -> str:
    """Name a key that ``dataset.toml`` does not have, and the nearest that it has."""
    known = DatasetMeta.__dataclass_fields__
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            return f"{key!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    return ""


def _is_file_name(name: Any) -> bool:
    """Whether a value names a file of the folder, and nothing outside it."""
    return isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name


def _is_count(value: Any) -> bool:
    """Whether a value is a number of blends."""
    return type(value) is int and value >= 0


def _sound(meta: DatasetMeta) -> bool:
    """Whether the bands and their figures are of the types and numbers that they should be."""
    figures = (*meta.zeropoints, *meta.sky_rms, *meta.psf_fwhm, meta.pixel_scale)
    return (
        all(isinstance(band, str) for band in meta.bands)
        and 0 < len(meta.bands) == len(meta.zeropoints) == len(meta.sky_rms) == len(meta.psf_fwhm)
        and all(
            type(figure) in (int, float) and abs(figure) <= sys.float_info.max for figure in figures
        )
        and min(*meta.sky_rms, *meta.psf_fwhm, meta.pixel_scale) > 0
        and type(meta.detection_band) is int
        and 0 <= meta.detection_band < len(meta.bands)
        and isinstance(meta.population, Mapping)
    )


def load_dataset(folder: Path) -> Dataset:
    """Read a whole data set into memory.

    Raises
    ------
    DatasetError
        When a part of it is missing, damaged or of another version.
    """
    meta = load_meta(folder)
    promised = sum(meta.counts[split] for split in SPLITS)
    # No more room than the files can fill, whatever dataset.toml promises.
    size = sum(path.stat().st_size for name in meta.shards if (path := folder / name).is_file())
    room = min(promised, size // (4 * len(meta.bands) * STAMP_SIZE**2))
    # Shards are copied into place, changing byte order on the way: no second copy of the images.
    images = np.empty((room, len(meta.bands), STAMP_SIZE, STAMP_SIZE), dtype=np.float32)
    fwhm, scales, numbers, truth, light = [], [], [], [], []
    offset = total = 0
    for name in meta.shards:
        shard_images, scenes, rows, shard_light = _read_shard(folder / name, len(meta.bands))
        rows["offset"] += offset
        offset += shard_light.size
        images[total : total + len(shard_images)] = shard_images[: max(0, room - total)]
        total += len(shard_images)
        fwhm.append(np.asarray(scenes["psf_fwhm"], dtype=np.float64))
        scales.append(_pixel_scale(scenes, meta.pixel_scale))
        numbers.append(np.asarray(scenes["n_source"], dtype=np.int64))
        truth.append(rows)
        light.append(shard_light)
    if total != promised:
        raise DatasetError(
            f"{folder}: dataset.toml promises {promised} blends, the shards hold {total}"
        )
    first = np.concatenate([[0], np.cumsum(np.concatenate(numbers))])
    return Dataset(
        meta=meta,
        images=images,
        psf_fwhm=np.concatenate(fwhm),
        pixel_scale=np.concatenate(scales),
        truth=np.concatenate(truth),
        light=np.concatenate(light),
        first=first,
    )


def join_datasets(datasets: Sequence[Dataset]) -> Dataset:
    """Join data sets of one survey to one: split after split, in each one data set after another.

    Raises
    ------
    DatasetError
        When their bands, zero points or noise differ.
    """
    if len(datasets) == 1:
        return datasets[0]
    metas = [dataset.meta for dataset in datasets]
    for name in ("bands", "detection_band", "zeropoints", "sky_rms"):
        if any(getattr(meta, name) != getattr(metas[0], name) for meta in metas):
            values = " and ".join(str(getattr(meta, name)) for meta in metas)
            raise DatasetError(f"data sets with different {name} cannot be joined: {values}")
    starts = np.cumsum([0, *(dataset.light.size for dataset in datasets)])
    order = [(number, dataset.split(split)) for split in SPLITS
             for number, dataset in enumerate(datasets)]  # fmt: skip
    truth = []
    for number, blends in order:
        first = datasets[number].first
        rows = datasets[number].truth[first[blends.start] : first[blends.stop]].copy()
        rows["offset"] += starts[number]
        truth.append(rows)

    def joined(name: str) -> Any:
        return np.concatenate([getattr(datasets[number], name)[blends] for number, blends in order])

    n_sources = np.concatenate(
        [np.diff(datasets[number].first)[blends] for number, blends in order]
    )
    rows = np.concatenate(truth)
    rows["blend"] = np.repeat(np.arange(len(n_sources)), n_sources)
    return Dataset(
        meta=replace(
            metas[0],
            counts={split: sum(meta.counts[split] for meta in metas) for split in SPLITS},
            shards=(),
            population={
                "joined": [
                    {"population": dict(meta.population), "counts": dict(meta.counts)}
                    for meta in metas
                ]
            },
        ),
        images=joined("images"),
        psf_fwhm=joined("psf_fwhm"),
        pixel_scale=joined("pixel_scale"),
        truth=rows,
        light=np.concatenate([dataset.light for dataset in datasets]),
        first=np.concatenate([[0], np.cumsum(n_sources)]),
    )


def _pixel_scale(scenes: npt.NDArray[np.void], default: float) -> npt.NDArray[np.float64]:
    """Pixel scale of each blend; shards of earlier versions have but the survey's."""
    if "pixel_scale" not in (scenes.dtype.names or ()):
        return np.full(len(scenes), default)
    scale = np.asarray(scenes["pixel_scale"], dtype=np.float64)
    return np.where(scale > 0, scale, default)


def _read_shard(path: Path, bands: int) -> tuple[Any, Any, Any, Any]:
    from astropy.io import fits

    try:
        with quiet_astropy(), path.open("rb") as file, fits.open(file, memmap=False) as hdus:
            images = np.asanyarray(hdus["BLENDS"].data)
            scenes = np.array(hdus["SCENES"].data)
            table = hdus["TRUTH"].data
            # An image of no pixel, that of blends without sources, is read as None.
            flat = hdus["LIGHT"].data
            light = np.zeros(0, np.float32) if flat is None else np.ascontiguousarray(flat, "f4")
            rows = np.zeros(len(table), dtype=truth_dtype(bands))
            for name in rows.dtype.names or ():
                rows[name] = table[name].reshape(rows[name].shape)
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DatasetError(
            f"{path}: damaged or missing shard ({one_line(error)}); simulate the data set again"
        ) from error
    if images.ndim != 4 or images.shape[1:] != (bands, STAMP_SIZE, STAMP_SIZE):
        raise DatasetError(f"{path}: blends have shape {images.shape}, not [n, {bands}, 120, 120]")
    ends = rows["offset"] + bands * rows["ny"].astype(np.int64) * rows["nx"]
    low = np.min([rows[name].min(initial=0) for name in ("offset", "y0", "x0", "ny", "nx")])
    high = np.max([(rows[a] + rows[b]).max(initial=0) for a, b in (("y0", "ny"), ("x0", "nx"))])
    if (
        low < 0
        or high > STAMP_SIZE
        or len(scenes) != len(images)
        or scenes["n_source"].min(initial=0) < 0
        or scenes["n_source"].sum() != len(rows)
        or ends.max(initial=0) > light.size
    ):
        raise DatasetError(f"{path}: its tables do not fit together; simulate the data set again")
    return images, scenes, rows, light
