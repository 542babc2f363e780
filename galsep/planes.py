"""Arrays as large as an image: in memory, or for large images in files that are mapped into it.

The files have no name: nothing is left of them when the process ends, however it ends.
"""

import errno
import math
import mmap
import os
import shutil
import tempfile
import weakref
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar, overload

import numpy as np
import numpy.typing as npt

from galsep.errors import OutputError
from galsep.scene import Footprint, SoftMask, SourceLight

__all__ = [
    "BAND",
    "LARGE_IMAGE",
    "Footprints",
    "Made",
    "Picked",
    "Planes",
    "SoftMasks",
    "SourceLights",
    "crop_bounds",
    "footprint_bounds",
]

Element = TypeVar("Element")

LARGE_IMAGE = 2**25
"""Images of more pixels than this are worked on in files, about 5800×5800."""

BLOCK_PIXELS = 2**22
"""Pixels that are worked on at once."""

BAND = 256
"""Rows, counted from the image's first one, whose pixels are added up before they are added to
the others'. Sums depend on their order: blocks may change, this may not."""


class Planes:
    """Whole-image arrays of one image or one file.

    Parameters
    ----------
    folder : Path, optional
        Where their files are; without one they are held in memory.
    block_pixels : int
        Pixels that are worked on at once. It changes memory and speed, and no result.
    """

    def __init__(self, folder: Path | None = None, block_pixels: int = BLOCK_PIXELS) -> None:
        self.folder = folder
        self.block_pixels = block_pixels
        self._maps: list[weakref.ref[mmap.mmap]] = []

    @classmethod
    def for_pixels(cls, pixels: int, folder: Path | None = None) -> "Planes":
        """Choose between memory and files.

        Parameters
        ----------
        pixels : int
            Of all images whose planes are needed at the same time.
        folder : Path, optional
            Where files would be; the system's folder for temporary files by default.
        """
        if pixels <= LARGE_IMAGE:
            return cls()
        return cls(folder or Path(tempfile.gettempdir()))

    def new(self, shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Make an array of zeros.

        Raises
        ------
        OutputError
            When the folder has no room for it.
        """
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        if self.folder is None or not size:
            return np.zeros(shape, dtype=kind)
        with _unnamed_file(self.folder) as file:
            _reserve(file, size, self.folder)
            mapped = mmap.mmap(file.fileno(), size)
        self._maps = [one for one in self._maps if one() is not None]
        self._maps.append(weakref.ref(mapped))
        return np.frombuffer(mapped, dtype=kind).reshape(shape)

    def masks(self) -> "SoftMasks":
        """Make an empty list of masks."""
        return SoftMasks(self.folder)

    def release(self) -> None:
        """Take what was touched of the files out of the process's memory.

        The system writes it to the files when it needs the room.
        """
        for reference in self._maps:
            mapped = reference()
            if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)

    def blocks(self, shape: Sequence[int], multiple: int = 1) -> Iterator[slice]:
        """Divide an image into blocks of whole rows, from the first to the last.

        Parameters
        ----------
        shape : (int, int)
            Height and width.
        multiple : int
            Blocks begin at rows that are multiples of this one.
        """
        height, width = shape
        rows = max(1, self.block_pixels // (max(width, 1) * multiple)) * multiple
        for start in range(0, height, rows):
            yield slice(start, min(start + rows, height))
            self.release()


class Made(Sequence[Element]):
    """A list whose elements are made when they are asked for."""

    def one(self, index: int) -> Element:
        """Element ``index``, from 0."""
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Element: ...

    @overload
    def __getitem__(self, index: slice) -> list[Element]: ...

    def __getitem__(self, index: int | slice) -> Element | list[Element]:
        if isinstance(index, slice):
            return [self.one(one) for one in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.one(index)


class Picked(Made[SourceLight]):
    """Some of a list's elements.

    Parameters
    ----------
    parts : sequence of SourceLight
    indices : (n,) int array
        Which, in what order.
    """

    def __init__(self, parts: Sequence[SourceLight], indices: npt.NDArray[np.int64]) -> None:
        self._parts, self._indices = parts, indices.tolist()
        self.bounds = crop_bounds(parts)[indices]

    def __len__(self) -> int:
        return len(self._indices)

    def one(self, index: int) -> SourceLight:
        """Element ``index``, from 0."""
        part: SourceLight = self._parts[self._indices[index]]
        return part


class SoftMasks(Made[SoftMask]):
    """A list of soft masks, in memory or in a file.

    Parameters
    ----------
    folder : Path or None
        Where the file is; ``None`` for memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file = None if folder is None else _Unnamed(folder)
        self._arrays: list[npt.NDArray[np.float32]] = []
        self._places = array("q")  # y0, x0, height, width, position in the file
        self._end = 0

    def append(self, mask: SoftMask) -> None:
        """Add a mask at the end.

        Raises
        ------
        OutputError
            When the folder has no room for it.
        """
        values = np.ascontiguousarray(mask.probability, dtype=np.float32)
        self._places.extend((mask.y0, mask.x0, *values.shape, self._end))
        if self._file is None:
            self._arrays.append(values)
            return
        self._file.write(values.tobytes(), self._end)
        self._end += values.nbytes

    def __len__(self) -> int:
        return len(self._places) // 5

    def one(self, index: int) -> SoftMask:
        """Element ``index``, from 0."""
        y0, x0, height, width, position = self._places[5 * index : 5 * index + 5]
        if self._file is None:
            return SoftMask(y0, x0, self._arrays[index])
        content = self._file.read(4 * height * width, position)
        values = np.frombuffer(content, dtype=np.float32).reshape(height, width)
        return SoftMask(y0, x0, values)

    @property
    def bounds(self) -> npt.NDArray[np.int64]:
        """``xmin, ymin, xmax, ymax`` of each crop, inclusive."""
        y0, x0, height, width, _ = np.array(self._places, dtype=np.int64).reshape(-1, 5).T
        return np.stack([x0, y0, x0 + width - 1, y0 + height - 1], axis=1)

    def picked(self, indices: npt.NDArray[np.int64]) -> "SoftMasks":
        """Some of the masks, in the order given, without a copy of their pixels."""
        chosen = object.__new__(SoftMasks)
        chosen._file, chosen._end = self._file, self._end
        chosen._arrays = [self._arrays[k] for k in indices.tolist()] if self._file is None else []
        places = np.array(self._places, dtype=np.int64).reshape(-1, 5)[indices]
        chosen._places = array("q", places.tobytes())
        return chosen


class SourceLights(Made[SourceLight]):
    """A list of sources' parts of an image, in memory or in a file.

    Parameters
    ----------
    folder : Path or None
        Where the file is; ``None`` for memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._shares, self._models = SoftMasks(folder), SoftMasks(folder)
        self._fluxes = array("d")  # flux, flux_err

    def append(self, part: SourceLight) -> None:
        """Add a part at the end.

        Raises
        ------
        OutputError
            When the folder has no room for it.
        """
        self._shares.append(SoftMask(part.y0, part.x0, part.share))
        self._models.append(SoftMask(part.y0, part.x0, part.model))
        self._fluxes.extend((part.flux, part.flux_err))

    def __len__(self) -> int:
        return len(self._shares)

    @property
    def bounds(self) -> npt.NDArray[np.int64]:
        """``xmin, ymin, xmax, ymax`` of each crop, inclusive."""
        return self._shares.bounds

    def one(self, index: int) -> SourceLight:
        """Element ``index``, from 0."""
        share, model = self._shares[index], self._models[index]
        flux, error = self._fluxes[2 * index : 2 * index + 2]
        return SourceLight(share.y0, share.x0, share.probability, model.probability, flux, error)


class _Unnamed:
    """A file without a name, closed when nobody holds it any more."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with _unnamed_file(folder) as file:
            self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)

    def write(self, content: bytes, position: int) -> None:
        try:
            while content:
                written = os.pwrite(self._descriptor, content, position)
                content, position = content[written:], position + written
        except OSError as error:
            raise OutputError(
                f"{self._folder}: cannot write intermediate results ({error.strerror or error})"
            ) from error

    def read(self, size: int, position: int) -> bytes:
        return os.pread(self._descriptor, size, position)


class Footprints(Made[Footprint]):
    """Where each of some masks is not 0."""

    def __init__(self, masks: Sequence[SoftMask]) -> None:
        self._masks = masks

    def __len__(self) -> int:
        return len(self._masks)

    @property
    def bounds(self) -> npt.NDArray[np.int64]:
        """``xmin, ymin, xmax, ymax`` of each, inclusive, of masks as tight as their crops."""
        return crop_bounds(self._masks)

    def one(self, index: int) -> Footprint:
        """Element ``index``, from 0."""
        return self._masks[index].footprint(0)


def crop_bounds(parts: Sequence[SoftMask] | Sequence[SourceLight]) -> npt.NDArray[np.int64]:
    """Bounds of the crops of masks or of sources' light; what is in a file is not read for it.

    Parameters
    ----------
    parts : sequence of SoftMask or of SourceLight

    Returns
    -------
    (n, 4) int array
        ``xmin, ymin, xmax, ymax`` in pixels, inclusive; whether the mask is 0 at its crop's edge
        does not matter.
    """
    bounds: npt.NDArray[np.int64] | None = getattr(parts, "bounds", None)
    if bounds is not None:
        return bounds
    boxes = [
        (columns.start, rows.start, columns.stop - 1, rows.stop - 1)
        for rows, columns in (one.slices for one in parts)
    ]
    return np.array(boxes, dtype=np.int64).reshape(-1, 4)


def footprint_bounds(footprints: Sequence[Footprint]) -> npt.NDArray[np.int64]:
    """Bounds of footprints; those of masks in a file are not read for it.

    Parameters
    ----------
    footprints : sequence of Footprint

    Returns
    -------
    (n, 4) int array
        ``xmin, ymin, xmax, ymax`` of each one's crop in pixels, inclusive.
    """
    bounds: npt.NDArray[np.int64] | None = getattr(footprints, "bounds", None)
    if bounds is not None:
        return bounds
    return np.array([one.bounds for one in footprints], dtype=np.int64).reshape(-1, 4)


def _unnamed_file(folder: Path) -> IO[bytes]:
    try:
        return tempfile.TemporaryFile(dir=folder)
    except OSError as error:
        raise OutputError(f"{folder}: cannot write ({error.strerror or error})") from error


def _reserve(file: IO[bytes], size: int, folder: Path) -> None:
    """Make a file as large as needed; a mapped one that finds no room later ends the process."""
    try:
        if size > shutil.disk_usage(folder).free:  # Or else the disk would be filled first.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
    except (OSError, OverflowError) as error:
        raise OutputError(
            f"{folder}: has no room for {size / 2**30:.1f} GiB of intermediate images "
            f"({getattr(error, 'strerror', None) or error})"
        ) from error
