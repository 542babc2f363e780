"""Damage of tile-compressed images, found before a decoder sees it: decoders trust their input."""

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from astropy.io import fits

__all__ = ["stream_problem", "table_problem"]

_MOST = 20_000
"""Tile compression of anything but an empty image shrinks it less than this (PLIO: 8190)."""


def table_problem(header: "fits.Header", axes: tuple[int, ...]) -> str:
    """Compare the tiles with the table that holds them, before memory is set aside for them.

    Parameters
    ----------
    header : fits.Header
        Of the table.
    axes : tuple of int
        ZNAXIS1, ZNAXIS2, ...

    Returns
    -------
    str
        Why they cannot be whole; empty when they may be.
    """
    if not 1 <= int(header["TFIELDS"]) <= 999:
        return f"its table has {header['TFIELDS']} columns"
    settings = {header.get(f"ZNAME{n}"): header.get(f"ZVAL{n}") for n in range(1, 10)}
    if settings.get("BYTEPIX", 4) not in (1, 2, 4, 8) or settings.get("BLOCKSIZE", 32) not in (
        16,
        32,
    ):
        return "its compression settings are invalid"
    tiles = math.prod(
        math.ceil(length / tile) for tile, length in zip(_shape(header, axes), axes, strict=True)
    )
    rows = int(header["NAXIS2"])
    if tiles != rows:
        return f"it has {rows} compressed tiles where its size needs {tiles}"
    stored = int(header["NAXIS1"]) * rows + int(header.get("PCOUNT", 0))
    if math.prod(axes) * abs(int(header["ZBITPIX"])) // 8 > _MOST * stored:
        return f"its {stored} compressed bytes are too few for its size"
    return ""


def stream_problem(hdu: "fits.BinTableHDU", axes: tuple[int, ...]) -> str:
    """Compare what the compressed tiles say of themselves with the header.

    The decoder of HCOMPRESS sets aside what the header asks for, but fills what the stream says;
    that of PLIO reads as far as the stream says that it goes.

    Parameters
    ----------
    hdu : fits.BinTableHDU
        A tile-compressed image, as the table that it is stored in.
    axes : tuple of int
        ZNAXIS1, ZNAXIS2, ...

    Returns
    -------
    str
        What is wrong; empty when the tiles may be decoded.
    """
    algorithm = str(hdu.header.get("ZCMPTYPE", "")).strip()
    if algorithm not in ("HCOMPRESS_1", "PLIO_1"):
        return ""
    sizes = _tile_sizes(hdu.header, axes)
    for number, (stream, size) in enumerate(zip(hdu.data["COMPRESSED_DATA"], sizes, strict=True)):
        content = stream.astype(stream.dtype.newbyteorder(">")).tobytes()
        if not content:  # A tile that the algorithm does not suit is stored elsewhere.
            continue
        if algorithm == "PLIO_1":
            first, after = _plio_list(content)
            if not 0 < first <= after <= len(content) // 2:
                return f"compressed tile {number} is cut short"
        elif int.from_bytes(content[2:6]) * int.from_bytes(content[6:10]) != size:
            return f"compressed tile {number} is not of its size"
    return ""


def _plio_list(content: bytes) -> tuple[int, int]:
    """First word of a PLIO stream's line list, and the one after its last (FITS 4.0, 10.4.3)."""
    words = np.zeros(7, dtype=">i2")
    start = content[: min(14, len(content) // 2 * 2)]
    words[: len(start) // 2] = np.frombuffer(start, dtype=">i2")
    header = words.astype(int).tolist()
    if header[2] > 0:  # an older form
        return 3, header[2]
    return header[1], (header[4] << 15) + header[3]


def _tile_sizes(header: "fits.Header", axes: tuple[int, ...]) -> Iterator[int]:
    """Pixels of each tile, in the order of the table: the first axis runs fastest."""
    # The last tile of an axis may be shorter.
    sides = [
        [min(tile, length - start) for start in range(0, length, tile)]
        for tile, length in zip(_shape(header, axes), axes, strict=True)
    ]
    return map(math.prod, itertools.product(*reversed(sides)))


def _shape(header: "fits.Header", axes: tuple[int, ...]) -> list[int]:
    """Size of a tile along each axis; a row where the header does not say."""
    return [
        int(header.get(f"ZTILE{axis}", length if axis == 1 else 1))
        for axis, length in enumerate(axes, start=1)
    ]
