"""Laying 120×120 cutouts around SEP's blobs, or 64×64 where there is little to see.

The plane is divided into cells of a fixed global grid, and each cell quartered, again and again,
until what it holds fits into a small cutout with a margin, or is one blob. Then cells of the same
district (4×4 of the grid) are joined as long as what they hold fits into one small cutout. What
would take three small cutouts or more but fits into a large one is joined to one of these, and so
is what fits in beside a blob that needs one. What happens in a district depends on nothing but its
blobs and their global pixel coordinates, so the layout does not depend on how an image is read or
by how many workers.
"""

import functools
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from galsep.conventions import SMALL_STAMP_SIZE, STAMP_SIZE

__all__ = ["NO_CUTOUT", "Tiling", "cut", "lay_cutouts"]

CELL = 80
"""Side of a cell, pixels."""

DISTRICT = 4 * CELL
"""Side of a district, pixels."""

MARGIN = 10
"""Pixels between a blob and its cutout's edge, where the image goes on beyond it."""

SMALL_MARGIN = 18
"""The same of a small cutout, wider, since crowded blends that fill one are scored too low."""

LARGE_STRIDE = 60
"""Distance of the cutouts that cover a blob too large for one."""

WORTH_A_LARGE = 3
"""Small cutouts that cost as much as a large one."""

NO_CUTOUT = -1

_Bounds = tuple[int, int, int, int]
_Fits = Callable[[_Bounds], bool]


@dataclass(frozen=True, slots=True)
class Tiling:
    """Where the cutouts lie and what each owns.

    Parameters
    ----------
    origins : (m, 2) int array
        ``y0, x0`` of each cutout's first pixel; negative where an image is smaller than one.
    sides : (m,) int array
    regions : (k, 4) int array
        ``xmin, ymin, xmax, ymax`` (inclusive) of the cells, which do not overlap.
    region_owner : (k,) int array
        The cutout that owns a region's light outside all blobs, or inside a large one.
    owner : (n,) int array
        The cutout that owns each blob, −1 for a blob too large for one.
    scale : int
        Pixels of the image along the side of a cutout's pixel; 1 unless the cutouts were cut
        from an image averaged over blocks. Origins, sides and regions are in the image's pixels.
    """

    origins: npt.NDArray[np.int64]
    sides: npt.NDArray[np.int64]
    regions: npt.NDArray[np.int64]
    region_owner: npt.NDArray[np.int64]
    owner: npt.NDArray[np.int64]
    scale: int = 1

    def __len__(self) -> int:
        return len(self.origins)

    def magnified(self, scale: int) -> "Tiling":
        """The same tiling of an image with ``scale`` times as many pixels along each side."""
        regions = self.regions * scale
        regions[:, 2:] += scale - 1
        return Tiling(
            self.origins * scale,
            self.sides * scale,
            regions,
            self.region_owner,
            self.owner,
            self.scale * scale,
        )


def lay_cutouts(
    bounds: npt.NDArray[np.int64],
    shape: tuple[int, int],
    segm: npt.NDArray[np.int32],
    *,
    small: bool = True,
) -> Tiling:
    """Lay cutouts so that every blob lies well inside one.

    Parameters
    ----------
    bounds : (n, 4) int array
        ``xmin, ymin, xmax, ymax`` of the blobs, inclusive.
    shape : (int, int)
        Height and width of the image.
    segm : (h, w) int32 array
        The blobs' label map.
    small : bool
        Whether there may be small cutouts.

    Returns
    -------
    Tiling
        Cutouts in the order of their regions, rows first.
    """
    boxes: list[_Bounds] = [tuple(box) for box in bounds.tolist()]
    cells: dict[tuple[int, int], list[int]] = defaultdict(list)
    large = []
    for blob, box in enumerate(boxes):
        xmin, ymin, xmax, ymax = box
        if max(xmax - xmin, ymax - ymin) >= STAMP_SIZE - 2:
            large.append(blob)
        else:
            x, y = _centre(box)
            cells[y // CELL, x // CELL].append(blob)
    fits_large = _fits_into(STAMP_SIZE, MARGIN, shape)
    fits = _fits_into(SMALL_STAMP_SIZE, SMALL_MARGIN, shape) if small else fits_large
    districts: dict[tuple[int, int], list[_Tile]] = defaultdict(list)
    for (row, column), blobs in cells.items():
        y, x = row * CELL, column * CELL
        districts[y // DISTRICT, x // DISTRICT] += _divide(blobs, boxes, y, x, CELL, fits)

    def worth_a_large(some: list[_Tile]) -> bool:
        return len(some) >= WORTH_A_LARGE or not all(fits(tile.bounds) for tile in some)

    tiles = []
    for parts in districts.values():
        joined = _join(parts, fits, lambda _: True)
        tiles += _join(joined, fits_large, worth_a_large) if small else joined
    tiles += [
        _Tile(((y, x, LARGE_STRIDE),), (), (x, y, x + LARGE_STRIDE - 1, y + LARGE_STRIDE - 1))
        for y, x in {cell for blob in large for cell in _large_cells(blob, bounds, segm)}
    ]
    tiles.sort(key=lambda tile: (tile.cells[0], not tile.blobs))
    sides = [
        SMALL_STAMP_SIZE if small and tile.blobs and fits(tile.bounds) else STAMP_SIZE
        for tile in tiles
    ]
    owner = np.full(len(bounds), NO_CUTOUT, dtype=np.int64)
    for index, tile in enumerate(tiles):
        owner[list(tile.blobs)] = index
    cells_of = [(index, *cell) for index, tile in enumerate(tiles) for cell in tile.cells]
    return Tiling(
        origins=np.array(
            [_origin(tile, side, shape) for tile, side in zip(tiles, sides, strict=True)],
            dtype=np.int64,
        ).reshape(-1, 2),
        sides=np.array(sides, dtype=np.int64),
        regions=np.array(
            [(x, y, x + size - 1, y + size - 1) for _, y, x, size in cells_of], dtype=np.int64
        ).reshape(-1, 4),
        region_owner=np.array([cell[0] for cell in cells_of], dtype=np.int64),
        owner=owner,
    )


def cut(
    image: npt.NDArray[np.float32], y0: int, x0: int, side: int, outside: float = 0
) -> npt.NDArray[np.float32]:
    """Cut a square piece out of an image.

    Parameters
    ----------
    image : (h, w) float32 array
    y0, x0 : int
        Its first pixel, which may lie outside the image.
    side : int
    outside : float
        What lies outside the image.

    Returns
    -------
    (side, side) float32 array
    """
    cutout = np.full((side, side), outside, dtype=np.float32)
    top, left = max(0, y0), max(0, x0)
    piece = image[top : y0 + side, left : x0 + side]
    cutout[top - y0 : top - y0 + piece.shape[0], left - x0 : left - x0 + piece.shape[1]] = piece
    return cutout


@dataclass(frozen=True, slots=True)
class _Tile:
    """A cutout in the making.

    Parameters
    ----------
    cells : tuple of (y, x, side)
    blobs : tuple of int
        What it owns.
    bounds : tuple of int
        ``xmin, ymin, xmax, ymax`` of these together.
    """

    cells: tuple[tuple[int, int, int], ...]
    blobs: tuple[int, ...]
    bounds: _Bounds

    def with_(self, other: "_Tile") -> "_Tile":
        """Both in one cutout."""
        return _Tile(
            self.cells + other.cells, self.blobs + other.blobs, _union(self.bounds, other.bounds)
        )


def _union(first: _Bounds, second: _Bounds) -> _Bounds:
    return (
        min(first[0], second[0]),
        min(first[1], second[1]),
        max(first[2], second[2]),
        max(first[3], second[3]),
    )


def _divide(
    blobs: list[int], bounds: list[_Bounds], y: int, x: int, size: int, fits: _Fits
) -> list[_Tile]:
    """Quarter a cell until what each part holds fits into a cutout."""
    together = functools.reduce(_union, (bounds[blob] for blob in blobs))
    if len(blobs) == 1 or fits(together):
        return [_Tile(((y, x, size),), tuple(blobs), together)]
    if size < 2:
        return [_Tile(((y, x, size),), (blob,), bounds[blob]) for blob in blobs]
    half = (size + 1) // 2
    parts: dict[tuple[bool, bool], list[int]] = defaultdict(list)
    for blob in blobs:
        centre_x, centre_y = _centre(bounds[blob])
        parts[centre_y >= y + half, centre_x >= x + half].append(blob)
    return [
        tile
        for (down, right), part in parts.items()
        for tile in _divide(part, bounds, y + down * half, x + right * half, half, fits)
    ]


def _join(tiles: list[_Tile], fits: _Fits, worth: Callable[[list[_Tile]], bool]) -> list[_Tile]:
    """Join tiles of a district while their blobs fit into one cutout, nearest first.

    Parameters
    ----------
    tiles : list of _Tile
    fits : callable
        Whether bounds fit into a cutout.
    worth : callable
        Whether some tiles should be joined.
    """
    waiting = sorted(tiles, key=lambda tile: tile.cells[0])
    joined = []
    while waiting:
        tile = waiting.pop(0)
        y, x, _ = tile.cells[0]
        together, some = tile, [tile]
        for other in sorted(
            waiting, key=lambda t: (abs(t.cells[0][0] - y) + abs(t.cells[0][1] - x), t.cells[0])
        ):
            if fits(_union(together.bounds, other.bounds)):
                together = together.with_(other)
                some.append(other)
        if len(some) > 1 and worth(some):
            tile = together
            # By themselves, for blobs of one centre that do not fit together share their cell.
            taken = {id(other) for other in some}
            waiting = [other for other in waiting if id(other) not in taken]
        joined.append(tile)
    return joined


def _fits_into(side: int, margin: int, shape: tuple[int, int]) -> _Fits:
    """Whether bounds fit into a cutout with a margin, where the image goes on beyond it."""

    def fits(bounds: _Bounds) -> bool:
        xmin, ymin, xmax, ymax = bounds
        width = min(xmax + margin, shape[1] - 1) - max(xmin - margin, 0) + 1
        height = min(ymax + margin, shape[0] - 1) - max(ymin - margin, 0) + 1
        return max(width, height) <= side

    return fits


def _centre(bounds: _Bounds) -> tuple[int, int]:
    xmin, ymin, xmax, ymax = bounds
    return (xmin + xmax) // 2, (ymin + ymax) // 2


def _origin(tile: _Tile, side: int, shape: tuple[int, int]) -> tuple[int, int]:
    """Origin of the cutout centred on a tile's blobs, moved inside the image where it can be."""
    xmin, ymin, xmax, ymax = tile.bounds
    x, y = (xmin + xmax + 1) // 2 - side // 2, (ymin + ymax + 1) // 2 - side // 2
    return _clip(y, side, shape[0]), _clip(x, side, shape[1])


def _clip(start: int, side: int, size: int) -> int:
    if size < side:
        return -((side - size) // 2)
    return min(max(start, 0), size - side)


def _large_cells(
    blob: int, bounds: npt.NDArray[np.int64], segm: npt.NDArray[np.int32]
) -> list[tuple[int, int]]:
    """Grid cells that hold a pixel of a blob too large for a cutout."""
    xmin, ymin, xmax, ymax = bounds[blob].tolist()
    rows, columns = np.nonzero(segm[ymin : ymax + 1, xmin : xmax + 1] == blob + 1)
    cells = np.unique(
        np.stack([(rows + ymin) // LARGE_STRIDE, (columns + xmin) // LARGE_STRIDE], axis=1), axis=0
    )
    return [(int(y) * LARGE_STRIDE, int(x) * LARGE_STRIDE) for y, x in cells]
