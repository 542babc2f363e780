"""Truth that comes as FITS: label maps, classes of labels, each source's isolated light."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from galsep.errors import AnnotationError
from galsep.io.companions import split_reference
from galsep.io.extensions import list_extensions, named_extension, opened_fits, refuse_damaged
from galsep.io.header import one_line, quiet_astropy
from galsep.io.image import Plane, read_plane_like
from galsep.scene import Footprint, SourceLight

__all__ = ["KINDS", "LabelMap", "read_kinds", "read_label_map", "read_light"]

KINDS = ("galaxy", "star")
MAX_LABEL = 2**31 - 1


@dataclass(frozen=True, slots=True)
class LabelMap:
    """The labels of an image in ascending order, and the pixels of each.

    Parameters
    ----------
    labels : (n,) int array
    footprints : sequence of Footprint
        One a label.
    """

    labels: npt.NDArray[np.int64]
    footprints: list[Footprint]


def read_label_map(reference: str, image: Plane) -> LabelMap:
    """Read a label map: 0 is the background, each positive number one source.

    Parameters
    ----------
    reference : str
        ``FILE`` or ``FILE[EXT]``.
    image : Plane
        That it belongs to.

    Raises
    ------
    ImageError, AnnotationError
        When it is missing, of another shape, or holds anything but such numbers.
    """
    from scipy.ndimage import find_objects

    plane = read_plane_like(reference, image, option="--labels")
    if plane.mask.any():
        raise AnnotationError(
            f"{reference}: {np.count_nonzero(plane.mask)} pixels have no value; a label map has 0 "
            "where there is no source"
        )
    lowest, highest = plane.data.min(), plane.data.max()
    if lowest < 0 or highest > MAX_LABEL or np.any(plane.data % 1):
        raise AnnotationError(
            f"{reference}: values from {lowest:g} to {highest:g} are no labels, which are whole "
            "numbers from 1 on, with 0 for the background"
        )
    labels, numbered = np.unique(plane.data.astype(np.int64), return_inverse=True)
    numbered = numbered.reshape(plane.data.shape).astype(np.int32) + (labels[0] > 0)
    labels = labels[labels > 0]
    if not len(labels):
        raise AnnotationError(f"{reference}: no pixel is labelled; a source's are 1 or more")
    footprints = [
        Footprint(box[0].start, box[1].start, numbered[box] == number)
        for number, box in enumerate(find_objects(numbered), start=1)
    ]
    return LabelMap(labels, footprints)


def read_kinds(reference: str, labels: npt.NDArray[np.int64]) -> list[str]:
    """Read which labels are galaxies and which are stars.

    Parameters
    ----------
    reference : str
        ``FILE`` or ``FILE[EXT]``: a FITS, ECSV or CSV table with columns ``class`` and ``label``;
        without the latter, its rows are the labels from 1 on. Labels that it leaves out are
        galaxies.
    labels : (n,) int array
        Of the label map.

    Raises
    ------
    AnnotationError
        When it is no such table, or names a label that has no pixel.
    """
    table = _read_table(reference)
    if "class" not in table.colnames:
        raise AnnotationError(
            f"{reference}: has no column 'class', only {', '.join(table.colnames)}"
        )
    kinds = [str(kind).strip() for kind in table["class"]]
    given = range(1, len(table) + 1)
    if "label" in table.colnames:
        given = table["label"].tolist()
        missing = sorted(set(given) - set(labels.tolist()), key=str)
        if missing:
            raise AnnotationError(f"{reference}: label {missing[0]} has no pixel in the label map")
    for label, kind in zip(given, kinds, strict=True):
        if kind not in KINDS:
            raise AnnotationError(
                f"{reference}: class {kind!r} of label {label} is neither galaxy nor star"
            )
    by_label = dict(zip(given, kinds, strict=True))
    return [by_label.get(label, "galaxy") for label in labels.tolist()]


def read_light(
    reference: str, labels: npt.NDArray[np.int64], shape: tuple[int, int]
) -> list[SourceLight]:
    """Read each source's isolated light, in the image's unit.

    Parameters
    ----------
    reference : str
        ``FILE`` or ``FILE[EXT]``: what ``galsep deblend --isolated`` writes, or a cube of as many
        planes of the image's size as there are labels, in their order.
    labels : (n,) int array
        Of the label map.
    shape : (int, int)
        Height and width of the image.

    Raises
    ------
    ImageError, AnnotationError
        When it is missing, or holds no light for a label.
    """
    stamps, values = _read_light(reference)
    if stamps is not None:
        return _from_stamps(reference, stamps, values, labels, shape)
    wanted = (len(labels), *shape)
    if values.shape != wanted:
        raise AnnotationError(
            f"{reference}: has the shape {values.shape}; isolated light has a plane of the image's "
            f"size for each label, {wanted}"
        )
    return [_part(reference, plane, 0, 0) for plane in values]


def _read_light(reference: str) -> tuple[npt.NDArray[Any] | None, npt.NDArray[Any]]:
    """Stamps with their flat values, or none and a cube."""
    path, ext = split_reference(reference)
    with opened_fits(path) as hdus:
        extensions = list_extensions(path, hdus)
        for extension in extensions:
            if extension.compressed:
                refuse_damaged(path, hdus, extension)
    with opened_fits(path, tiles=True, scaled=True) as hdus:
        version = _version_of_stamps(reference, ext, [h.ver for h in hdus if h.name == "STAMPS"])
        if version is not None:
            return np.array(hdus["STAMPS", version].data), np.array(hdus["MODEL", version].data)
        if ext:
            chosen = named_extension(path, extensions, ext, cubes=True)
            cube = hdus[chosen.index].data
        else:
            cube = next((hdu.data for hdu in hdus if hdu.is_image and hdu.header["NAXIS"]), None)
        return None, np.zeros(0) if cube is None else np.array(cube)


def _version_of_stamps(reference: str, ext: str, versions: Sequence[int]) -> int | None:
    """EXTVER of the stamps that are asked for; none where something else is, or there are none."""
    name, _, version = (part.strip() for part in ext.upper().partition(","))
    if not versions or name not in ("", "STAMPS", "MODEL"):
        return None
    chosen = [one for one in versions if version in ("", str(one))]
    if len(chosen) == 1:
        return chosen[0]
    listed = ", ".join(f"[STAMPS,{one}]" for one in versions)
    raise AnnotationError(
        f"{reference}: holds the light of sources of several images, or not of this one; choose "
        f"one of {listed}"
    )


def _from_stamps(
    reference: str,
    stamps: npt.NDArray[Any],
    values: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
    shape: tuple[int, int],
) -> list[SourceLight]:
    """Light as ``galsep deblend --isolated`` stores it; of several bands, the first."""
    rows = {int(row["label"]): row for row in reversed(stamps)}
    parts = []
    for label in labels.tolist():
        if label not in rows:
            raise AnnotationError(f"{reference}: holds no light of label {label}")
        x0, y0, nx, ny, start = (int(rows[label][n]) for n in ("x0", "y0", "nx", "ny", "start"))
        inside = min(x0, y0, start) >= 0 and x0 + nx <= shape[1] and y0 + ny <= shape[0]
        if not inside or min(nx, ny) < 1 or start + nx * ny > values.size:
            raise AnnotationError(f"{reference}: the stamp of label {label} leaves the image")
        stamp = values[start : start + nx * ny].reshape(ny, nx)
        parts.append(_part(reference, stamp, y0, x0))
    return parts


def _part(reference: str, light: npt.NDArray[Any], y0: int, x0: int) -> SourceLight:
    """Light on the smallest crop that holds it."""
    if light.dtype.kind != "f":
        raise AnnotationError(f"{reference}: isolated light is floating-point numbers, not these")
    if not np.isfinite(light).all():
        raise AnnotationError(f"{reference}: isolated light holds pixels without a value")
    box = Footprint.from_mask(np.asarray(light > 0))
    if not box.area:
        raise AnnotationError(f"{reference}: the isolated light of a label is nowhere positive")
    model = np.maximum(light[box.slices], 0).astype(np.float32)
    return SourceLight(
        y0=y0 + box.y0,
        x0=x0 + box.x0,
        share=np.ones_like(model),
        model=model,
        flux=float(model.sum(dtype=np.float64)),
        flux_err=0.0,
    )


def _read_table(reference: str) -> Any:
    from astropy.table import Table

    path, ext = split_reference(reference)
    ascii_format = {".csv": "ascii.csv", ".ecsv": "ascii.ecsv"}.get(path.suffix.lower())
    try:
        with quiet_astropy():
            if ascii_format:
                return Table.read(path, format=ascii_format)
            hdu = {"hdu": int(ext) if ext.isdecimal() else ext} if ext else {}
            return Table.read(path, format="fits", **hdu)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise AnnotationError(
            f"{Path(path)}: no readable FITS, ECSV or CSV table of classes ({one_line(error)})"
        ) from error
