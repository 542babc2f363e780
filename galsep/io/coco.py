"""Truth in COCO's JSON: images, categories, and masks as polygons or run lengths.

Coordinates are COCO's: ``x`` and ``y`` along pixel edges, ``y`` counted from the first row that the
file stores (that which viewers of FITS files show at the bottom). The format is described at
https://cocodataset.org/#format-data.
"""

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from galsep.errors import AnnotationError
from galsep.io.header import one_line
from galsep.io.labels import KINDS
from galsep.scene import Footprint
from galsep.settings import read_bounded

__all__ = ["CocoImage", "read_coco"]

LARGEST_JSON = 2**31
"""Bytes of a file of annotations; one that is larger is not read on. COCO's own have 2**29."""


@dataclass(frozen=True, slots=True)
class CocoImage:
    """An image and its annotations.

    Parameters
    ----------
    path : Path
    shape : (int, int)
        Height and width.
    footprints : sequence of Footprint
    kinds : sequence of {"galaxy", "star"}
        One a footprint.
    crowds : sequence of Footprint
        Regions of sources that nobody told apart (``iscrowd``).
    """

    path: Path
    shape: tuple[int, int]
    footprints: list[Footprint]
    kinds: list[str]
    crowds: list[Footprint]


def read_coco(file: Path, folder: Path) -> list[CocoImage]:
    """Read annotations in COCO's format.

    Parameters
    ----------
    file : Path
        JSON with ``images``, ``categories`` (galaxy and star, in any case) and ``annotations``.
    folder : Path
        Where the images lie; their names may not lead out of it.

    Returns
    -------
    list of CocoImage
        All that have an annotation, in the order of the file.

    Raises
    ------
    AnnotationError
        For anything that is missing, contradictory or not COCO's format.
    """
    try:
        content = json.loads(read_bounded(file, LARGEST_JSON))
    except (OSError, ValueError, RecursionError) as error:
        raise AnnotationError(f"{file}: not readable as JSON ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise AnnotationError(f"{file}: holds no COCO annotations, which are a JSON object")
    kinds = {}
    for number, entry in _entries(file, content, "categories"):
        name = str(entry.get("name", "")).lower()
        if name not in KINDS:
            raise AnnotationError(
                f"{file}: category {number} is called {entry.get('name')!r}; those that galsep "
                "knows are galaxy and star"
            )
        kinds[number] = name
    images: dict[int, CocoImage] = {}
    for number, entry in _entries(file, content, "images"):
        images[number] = _image(file, folder, number, entry)
    paths = [image.path for image in images.values()]
    if len(set(paths)) < len(paths):
        raise AnnotationError(f"{file}: two of its images are one file")
    for number, entry in _entries(file, content, "annotations"):
        image = images.get(_whole(entry.get("image_id")))
        kind = kinds.get(_whole(entry.get("category_id")))
        if image is None or kind is None:
            what = "image_id" if image is None else "category_id"
            raise AnnotationError(
                f"{file}: annotation {number} has {what} {entry.get(what)!r}, which is not there"
            )
        footprint = _footprint(f"{file}: annotation {number}", entry, image.shape)
        if entry.get("iscrowd"):
            image.crowds.append(footprint)
        else:
            image.footprints.append(footprint)
            image.kinds.append(kind)
    annotated = [image for image in images.values() if image.footprints]
    if not annotated:
        raise AnnotationError(f"{file}: holds no annotation of a single source")
    return annotated


def _entries(file: Path, content: Mapping[str, Any], key: str) -> list[tuple[int, dict[str, Any]]]:
    """Entries of one of the lists, with their ids."""
    entries = content.get(key)
    if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        raise AnnotationError(f"{file}: has no list of {key!r}, so it is not in COCO's format")
    numbers = [_whole(entry.get("id")) for entry in entries]
    for number, entry in zip(numbers, entries, strict=True):
        if number < 0:
            raise AnnotationError(
                f"{file}: id {entry.get('id')!r} among its {key} is no whole number from 0 on"
            )
    if len(set(numbers)) < len(numbers):
        twice = next(n for n in numbers if numbers.count(n) > 1)
        raise AnnotationError(f"{file}: two of its {key} have the id {twice}")
    return list(zip(numbers, entries, strict=True))


def _whole(value: Any) -> int:
    """A whole number, or −1 for anything else."""
    return value if type(value) is int else -1


def _image(file: Path, folder: Path, number: int, entry: Mapping[str, Any]) -> CocoImage:
    name = entry.get("file_name")
    width, height = _whole(entry.get("width")), _whole(entry.get("height"))
    if not isinstance(name, str) or not name or "\0" in name:
        raise AnnotationError(f"{file}: image {number} has no file_name")
    if width < 1 or height < 1:
        raise AnnotationError(f"{file}: image {number}, {name!r}, has no width and height")
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise AnnotationError(
            f"{file}: image {number}, {name!r}, is not in the folder {folder}; names of images "
            "are relative to it (see --images) and may not lead out"
        )
    if not path.is_file():
        raise AnnotationError(
            f"{file}: image {number}, {name!r}, is not in {folder}; --images names another folder"
        )
    return CocoImage(folder / name, (height, width), [], [], [])


def _footprint(where: str, entry: Mapping[str, Any], shape: tuple[int, int]) -> Footprint:
    """Pixels of one annotation."""
    segmentation = entry.get("segmentation")
    if isinstance(segmentation, dict):
        mask = _from_runs(where, segmentation, shape)
    elif isinstance(segmentation, list) and segmentation:
        mask = _from_polygons(_polygons(where, segmentation, shape), shape)
    else:
        raise AnnotationError(f"{where} has no segmentation, a list of polygons or run lengths")
    footprint = Footprint.from_mask(mask)
    if not footprint.area:
        raise AnnotationError(f"{where} covers no pixel")
    return footprint


def _from_polygons(polygons: list[list[float]], shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    from pycocotools import mask as coco_mask

    with warnings.catch_warnings():
        # pycocotools' arrays do not know NumPy 2's copy keyword.
        warnings.simplefilter("ignore", DeprecationWarning)
        runs = coco_mask.merge(coco_mask.frPyObjects(polygons, *shape))
        return np.asarray(coco_mask.decode(runs), dtype=bool)


def _polygons(where: str, polygons: list[Any], shape: tuple[int, int]) -> list[list[float]]:
    """Check polygons: three corners or more each, none far outside the image."""
    height, width = shape
    for corners in polygons:
        if not isinstance(corners, list) or len(corners) < 6 or len(corners) % 2:
            raise AnnotationError(
                f"{where} has a polygon that is no list x1, y1, x2, y2, … of three corners or more"
            )
        for value, limit in zip(corners, (width, height) * (len(corners) // 2), strict=True):
            number = value if isinstance(value, int | float) else math.nan
            if not -limit <= number <= 2 * limit:
                raise AnnotationError(
                    f"{where} has a corner at {value!r}, far outside its image of {width}×{height}"
                )
    return polygons


def _from_runs(
    where: str, segmentation: Mapping[str, Any], shape: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """Mask of run lengths, of nothing and of the source in turns, down the columns."""
    height, width = shape
    counts = segmentation.get("counts")
    if segmentation.get("size") != [height, width]:
        raise AnnotationError(
            f"{where} has size {segmentation.get('size')!r}; its image has {[height, width]}, "
            "height first"
        )
    if isinstance(counts, str):
        counts = _uncompressed(counts)
    if not isinstance(counts, list) or any(_whole(one) < 0 for one in counts):
        raise AnnotationError(f"{where} has damaged counts, which are runs of pixels")
    if sum(counts) != height * width:
        raise AnnotationError(
            f"{where} has counts of {sum(counts)} pixels in all; its image has {height * width}"
        )
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(width, height).T


def _uncompressed(text: str) -> list[int] | None:
    """Run lengths of COCO's text, six bits a character; ``None`` for a damaged one.

    Numbers come in groups of five bits, the least first, the sixth bit says that more follow; from
    the fourth on they are differences to the last but one. pycocotools would not notice damage.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - ord("0")
        if not 0 <= code < 64 or shift > 30:
            return None
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (1 << shift) if code & 16 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return None if shift else counts
