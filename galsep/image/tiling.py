"""Laying 120×120 cutouts around SEP's blobs.

The plane is divided into cells of a fixed global grid. The blobs whose centres share a cell share
a cutout if they fit into one with a margin; otherwise the cell is quartered, again and again.
Then cells of the same district (4×4 of the grid) are joined as long as what they hold fits into
one cutout. What happens in a district depends on nothing but its blobs and their global pixel
coordinates, so the layout does not depend on how an image is read or by how many workers.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from galsep.conventions import STAMP_SIZE

__all__ = ["NO_CUTOUT", "Tiling", "cut", "lay_cutouts"]

CELL = 80
"""Side of a cell, pixels."""

DISTRICT = 4 * CELL
"""Side of a district, pixels."""

MARGIN = 10
"""Pixels between a blob and its cutout's edge, where the image goes on beyond it."""

LARGE_STRIDE = 60
"""Distance of the cutouts that cover a blob too large for one."""

NO_CUTOUT = -1


@dataclass(frozen=True, slots=True)
class Tiling:
    """Where the cutouts lie and what each owns.

    Parameters
    ----------
    origins : (m, 2) int array
        ``y0, x0`` of each cutout's first pixel; negative where an image is smaller than one.
    regions : (k, 4) int array
        ``xmin, ymin, xmax, ymax`` (inclusive) of the cells, which do not overlap.
    region_owner : (k,) int array
        The cutout that owns a region's light outside all blobs, or inside a large one.
    owner : (n,) int array
        The cutout that owns each blob, −1 for a blob too large for one.
    scale : int
        Pixels of the image along the side of a cutout's pixel; 1 unless the cutouts were cut
        from an image averaged over blocks. Origins and regions are in the image's pixels.
    """

    origins: npt.NDArray[np.int64]
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
            self.origins * scale, regions, self.region_owner, self.owner, self.scale * scale
        )


def lay_cutouts(
    bounds: npt.NDArray[np.int64],
    shape: tuple[int, int],
    segm: npt.NDArray[np.int32],
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

    Returns
    -------
    Tiling
        Cutouts in the order of their regions, rows first.
    """
    cells: dict[tuple[int, int], list[int]] = defaultdict(list)
    large = []
    centre_x = (bounds[:, 0] + bounds[:, 2]) // 2
    centre_y = (bounds[:, 1] + bounds[:, 3]) // 2
    for blob, (x, y) in enumerate(zip(centre_x.tolist(), centre_y.tolist(), strict=True)):
        if _span(bounds[blob : blob + 1]) > STAMP_SIZE - 2:
            large.append(blob)
        else:
            cells[y // CELL, x // CELL].append(blob)
    districts: dict[tuple[int, int], list[_Tile]] = defaultdict(list)
    for (row, column), blobs in cells.items():
        y, x = row * CELL, column * CELL
        districts[y // DISTRICT, x // DISTRICT] += _divide(blobs, bounds, y, x, CELL, shape)
    tiles = [tile for parts in districts.values() for tile in _join(parts, bounds, shape)]
    tiles += [
        _Tile([(y, x, LARGE_STRIDE)], [])
        for y, x in {cell for blob in large for cell in _large_cells(blob, bounds, segm)}
    ]
    tiles.sort(key=lambda tile: (tile.cells[0], not tile.blobs))
    owner = np.full(len(bounds), NO_CUTOUT, dtype=np.int64)
    for index, tile in enumerate(tiles):
        owner[tile.blobs] = index
    cells_of = [(index, *cell) for index, tile in enumerate(tiles) for cell in tile.cells]
    return Tiling(
        origins=np.array([_origin(tile, bounds, shape) for tile in tiles], dtype=np.int64).reshape(
            -1, 2
        ),
        regions=np.array(
            [(x, y, x + size - 1, y + size - 1) for _, y, x, size in cells_of], dtype=np.int64
        ).reshape(-1, 4),
        region_owner=np.array([cell[0] for cell in cells_of], dtype=np.int64),
        owner=owner,
    )


def cut(
    image: npt.NDArray[np.float32], origins: npt.NDArray[np.int64], outside: float = 0
) -> npt.NDArray[np.float32]:
    """Cut 120×120 pieces out of an image.

    Parameters
    ----------
    image : (h, w) float32 array
    origins : (m, 2) int array
        ``y0, x0`` of each cutout.
    outside : float
        What lies outside the image.

    Returns
    -------
    (m, 120, 120) float32 array
    """
    cutouts = np.full((len(origins), STAMP_SIZE, STAMP_SIZE), outside, dtype=np.float32)
    for cutout, (y0, x0) in zip(cutouts, origins.tolist(), strict=True):
        top, left = max(0, y0), max(0, x0)
        piece = image[top : y0 + STAMP_SIZE, left : x0 + STAMP_SIZE]
        cutout[top - y0 : top - y0 + piece.shape[0], left - x0 : left - x0 + piece.shape[1]] = piece
    return cutouts


@dataclass(slots=True)
class _Tile:
    """A cutout in the making: its cells ``(y, x, side)`` and the blobs it owns."""

    cells: list[tuple[int, int, int]]
    blobs: list[int]


def _divide(
    blobs: list[int],
    bounds: npt.NDArray[np.int64],
    y: int,
    x: int,
    size: int,
    shape: tuple[int, int],
) -> list[_Tile]:
    """Quarter a cell until what each part holds fits into a cutout."""
    if len(blobs) == 1 or _fits(blobs, bounds, shape):
        return [_Tile([(y, x, size)], blobs)]
    if size < 2:
        return [_Tile([(y, x, size)], [blob]) for blob in blobs]
    half = (size + 1) // 2
    parts: dict[tuple[int, int], list[int]] = defaultdict(list)
    for blob in blobs:
        centre_y = (bounds[blob, 1] + bounds[blob, 3]) // 2
        centre_x = (bounds[blob, 0] + bounds[blob, 2]) // 2
        parts[int(centre_y >= y + half), int(centre_x >= x + half)].append(blob)
    divided = []
    for (down, right), part in parts.items():
        divided += _divide(part, bounds, y + down * half, x + right * half, half, shape)
    return divided


def _join(tiles: list[_Tile], bounds: npt.NDArray[np.int64], shape: tuple[int, int]) -> list[_Tile]:
    """Join tiles of a district while their blobs fit into one cutout, nearest first."""
    waiting = sorted(tiles, key=lambda tile: tile.cells[0])
    joined = []
    while waiting:
        tile = waiting.pop(0)
        y, x, _ = tile.cells[0]
        near = sorted(
            waiting, key=lambda t: (abs(t.cells[0][0] - y) + abs(t.cells[0][1] - x), t.cells[0])
        )
        for other in near:
            if _fits(tile.blobs + other.blobs, bounds, shape):
                tile = _Tile(tile.cells + other.cells, tile.blobs + other.blobs)
                waiting.remove(other)
        joined.append(tile)
    return joined


def _fits(blobs: list[int], bounds: npt.NDArray[np.int64], shape: tuple[int, int]) -> bool:
    """Whether some blobs fit into one cutout with a margin."""
    return _span(_with_margin(bounds[blobs], shape)[None]) <= STAMP_SIZE


def _with_margin(bounds: npt.NDArray[np.int64], shape: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Common bounds of some blobs with a margin, cut at the image's edges."""
    low = np.maximum(bounds[:, :2].min(axis=0) - MARGIN, 0)
    high = np.minimum(bounds[:, 2:].max(axis=0) + MARGIN, [shape[1] - 1, shape[0] - 1])
    return np.concatenate([low, high])


def _span(bounds: npt.NDArray[np.int64]) -> int:
    """The longer side of the common bounds, pixels."""
    extent = bounds[:, 2:].max(axis=0) - bounds[:, :2].min(axis=0) + 1
    return int(extent.max())


def _origin(tile: _Tile, bounds: npt.NDArray[np.int64], shape: tuple[int, int]) -> tuple[int, int]:
    """Origin of the cutout centred on a tile's blobs, moved inside the image where it can be.

    Without blobs of its own the cutout is centred on its cell.
    """
    if tile.blobs:
        own = bounds[tile.blobs]
        low, high = own[:, :2].min(axis=0), own[:, 2:].max(axis=0)
        x, y = ((low + high + 1) // 2 - STAMP_SIZE // 2).tolist()
    else:
        y, x, size = tile.cells[0]
        y, x = y - (STAMP_SIZE - size) // 2, x - (STAMP_SIZE - size) // 2
    return _clip(y, shape[0]), _clip(x, shape[1])


def _clip(start: int, size: int) -> int:
    if size < STAMP_SIZE:
        return -((STAMP_SIZE - size) // 2)
    return min(max(start, 0), size - STAMP_SIZE)


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
