"""Laying 120×120 cutouts around SEP's blobs, or smaller ones where these suffice.

The plane is divided into cells of a fixed global grid, and each cell quartered, again and again,
until what it holds fits into the smallest cutout with a margin, or is one blob. Then what lies
nearby in the same district (4×4 cells) is joined where one larger cutout takes the network less
time than those that it stands for. What happens in a district depends on nothing but its blobs and
their global pixel coordinates, so the layout does not depend on how an image is read or by how many
workers.
"""

import functools
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from galsep.conventions import SMALL_SIDES, STAMP_SIZE

__all__ = ["NO_CUTOUT", "Tiling", "cut", "lay_cutouts", "too_large"]

CELL = 80
"""Side of a cell, pixels."""

DISTRICT = 4 * CELL
"""Side of a district, pixels."""

MARGIN = 10
"""Pixels between a blob and its cutout's edge, where the image goes on beyond it."""

SMALL_MARGIN = 18
"""The same of a smaller one, wider, since crowded blends that fill one are scored too low."""

LARGE_STRIDE = 60
"""Distance of the cutouts that cover a blob too large for one."""

OVERHEAD = 1900
"""Pixels that take the network as long as what a cutout costs whatever its side."""

NO_CUTOUT = -1

_Bounds = tuple[int, int, int, int]
_SideFor = Callable[[_Bounds], int]


@dataclass(frozen=True, slots=True)
class Tiling:
    """Where the cutouts lie and what each owns.

    Parameters
    ----------
    origins : (m, 2) int array
        ``y0, x0`` of each cutout's first pixel; negative where an image is smaller than one.
    sides : (m,) int array
    regions : (k, 4) int array
        ``xmin, ymin, xmax, ymax`` (inclusive) of the cells. Those of cutouts that own blobs do not
        overlap, nor do those of cutouts that cover a large one, but these may lie over those.
    region_owner : (k,) int array
        The cutout that owns a region's light: of the former outside all blobs, of the latter inside
        a large one, and outside all blobs where there is none of the former.
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
        Whether there may be smaller cutouts than those of 120×120 px.

    Returns
    -------
    Tiling
        Cutouts in the order of their regions, rows first.
    """
    boxes: list[_Bounds] = [tuple(box) for box in bounds.tolist()]
    cells: dict[tuple[int, int], list[int]] = defaultdict(list)
    wide = too_large(bounds)
    large = np.flatnonzero(wide).tolist()
    for blob in np.flatnonzero(~wide).tolist():
        x, y = _centre(boxes[blob])
        cells[y // CELL, x // CELL].append(blob)
    side_for = _sides(shape, small)
    least, *larger = (*SMALL_SIDES, STAMP_SIZE) if small else (STAMP_SIZE, STAMP_SIZE)

    def fits(together: _Bounds) -> bool:
        return side_for(together) == least

    districts: dict[tuple[int, int], list[_Tile]] = defaultdict(list)
    for (row, column), blobs in cells.items():
        y, x = row * CELL, column * CELL
        districts[y // DISTRICT, x // DISTRICT] += _divide(blobs, boxes, y, x, CELL, fits)
    tiles = []
    for parts in districts.values():
        for side in larger:
            parts = _join(parts, side, side_for)
        tiles += parts
    tiles += [
        _Tile(((y, x, LARGE_STRIDE),), (), (x, y, x + LARGE_STRIDE - 1, y + LARGE_STRIDE - 1))
        for y, x in {cell for blob in large for cell in _large_cells(blob, bounds, segm)}
    ]
    tiles.sort(key=lambda tile: (tile.cells[0], not tile.blobs))
    # What covers a part of a large blob is large itself, and so is what fits into none.
    sides = [(side_for(tile.bounds) if tile.blobs else 0) or STAMP_SIZE for tile in tiles]
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


def too_large(bounds: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which blobs are too large for a cutout.

    Parameters
    ----------
    bounds : (n, 4) int array
        ``xmin, ymin, xmax, ymax``, inclusive.
    """
    return np.asarray((bounds[:, 2:] - bounds[:, :2]).max(axis=1, initial=0) >= STAMP_SIZE - 2)


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
    blobs: list[int],
    bounds: list[_Bounds],
    y: int,
    x: int,
    size: int,
    fits: Callable[[_Bounds], bool],
) -> list[_Tile]:
    """Quarter a cell until what each part holds fits, or is one blob."""
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


def _join(tiles: list[_Tile], side: int, side_for: _SideFor) -> list[_Tile]:
    """Join tiles of a district, nearest first, into cutouts of at most a side, where that saves.

    Parameters
    ----------
    tiles : list of _Tile
    side : int
    side_for : callable
        See :func:`_sides`.
    """
    tiles = sorted(tiles, key=lambda tile: (tile.cells[0], tile.bounds))
    bounds = np.array([tile.bounds for tile in tiles], dtype=np.int64)
    low, high, middle = bounds[:, :2], bounds[:, 2:], bounds[:, :2] + bounds[:, 2:]
    cost = [(side_for(tile.bounds) or STAMP_SIZE) ** 2 + OVERHEAD for tile in tiles]
    waiting = np.ones(len(tiles), dtype=bool)
    joined = []
    for first, tile in enumerate(tiles):
        if not waiting[first]:
            continue
        waiting[first] = False
        reach = np.maximum(high, high[first]) - np.minimum(low, low[first])
        near = np.flatnonzero(waiting & (reach.max(axis=1) < side))
        distance = np.abs(middle[near] - middle[first]).max(axis=1)
        some, together = [first], tile.bounds
        for other in near[np.argsort(distance, kind="stable")].tolist():
            union = _union(together, tiles[other].bounds)
            if 0 < side_for(union) <= side:
                some.append(other)
                together = union
        saved = sum(cost[index] for index in some) - side_for(together) ** 2 - OVERHEAD
        if len(some) > 1 and saved > 0:
            waiting[some] = False
            tile = functools.reduce(_Tile.with_, (tiles[index] for index in some))
        joined.append(tile)
    return joined


def _sides(shape: tuple[int, int], small: bool) -> _SideFor:
    """Which side a cutout needs to hold bounds with a margin, where the image goes on beyond it.

    What is returned takes bounds and gives a side; 0 where none suffices.
    """
    margins = dict.fromkeys(SMALL_SIDES, SMALL_MARGIN) if small else {}
    margins[STAMP_SIZE] = MARGIN
    last_y, last_x = shape[0] - 1, shape[1] - 1

    def side_for(bounds: _Bounds) -> int:
        xmin, ymin, xmax, ymax = bounds
        for side, margin in margins.items():
            width = min(xmax + margin, last_x) - max(xmin - margin, 0)
            height = min(ymax + margin, last_y) - max(ymin - margin, 0)
            if width < side and height < side:
                return side
        return 0

    return side_for


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
