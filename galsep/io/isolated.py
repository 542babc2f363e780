"""What the separation makes, as FITS: ``STEM_isolated.fits`` and ``STEM_residual.fits``.

``docs/formats.md`` describes both.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from galsep.scene import SourceLight

if TYPE_CHECKING:
    from astropy.io import fits

__all__ = ["STAMP_DTYPE", "isolated_hdus", "residual_hdus"]

STAMP_DTYPE = np.dtype(
    [
        ("label", "i4"),
        ("band", "U16"),
        ("x0", "i4"),
        ("y0", "i4"),
        ("nx", "i4"),
        ("ny", "i4"),
        ("start", "i8"),
    ]
)
"""Columns of ``STAMPS``: the stamp of a source in a band covers the pixels ``x0 … x0 + nx − 1``,
``y0 … y0 + ny − 1`` of the image, and ``nx · ny`` values from ``start`` on of ``LIGHT`` and
``MODEL``, rows first."""


def isolated_hdus(
    bands: Mapping[str, tuple[npt.NDArray[np.float32], Sequence[SourceLight]]],
    extver: int = 1,
    unit: str = "",
) -> "list[fits.BinTableHDU | fits.ImageHDU]":
    """Make the HDUs ``STAMPS``, ``LIGHT`` and ``MODEL`` of one image.

    Parameters
    ----------
    bands : mapping of str to pair
        For each band its background-subtracted light and the sources' parts of it, one a label.
    extver : int
        EXTVER of all three.
    unit : str
        BUNIT of ``LIGHT`` and ``MODEL``; empty where it is not known, or not that of all bands.
    """
    from astropy.io import fits

    rows, light, model = [], [np.zeros(0, np.float32)], [np.zeros(0, np.float32)]
    start = 0
    for band, (image, parts) in bands.items():
        for label, part in enumerate(parts, start=1):
            height, width = part.share.shape
            rows.append((label, band, part.x0, part.y0, width, height, start))
            light.append((part.share * image[part.slices]).ravel())
            model.append(part.model.ravel())
            start += height * width
    table = fits.BinTableHDU(np.array(rows, dtype=STAMP_DTYPE), name="STAMPS")
    hdus = [
        table,
        fits.ImageHDU(np.concatenate(light), name="LIGHT"),
        fits.ImageHDU(np.concatenate(model), name="MODEL"),
    ]
    for hdu in hdus:
        hdu.header["EXTVER"] = extver
        if unit and hdu is not table:
            hdu.header["BUNIT"] = unit
    return hdus


def residual_hdus(
    bands: Mapping[str, tuple[npt.NDArray[np.float32], Sequence[SourceLight]]],
    background: Mapping[str, npt.NDArray[np.float32]],
    mask: Mapping[str, npt.NDArray[np.bool_]],
    header: "fits.Header",
    units: Mapping[str, str],
    extver: int = 1,
) -> "list[fits.ImageHDU]":
    """Make the HDUs ``RESIDUAL``, ``UNMODELLED`` and ``BACKGROUND`` of one image.

    Parameters
    ----------
    bands : mapping of str to pair
        As for :func:`isolated_hdus`; bands but the first have their name in that of the HDUs.
    background : mapping of str to (h, w) float32 array
    mask : mapping of str to (h, w) bool array
        Unusable pixels, NaN in what is written.
    header : fits.Header
        WCS keywords.
    units : mapping of str to str
        BUNIT of each band; empty where it is not known.
    extver : int
        EXTVER of all.
    """
    from astropy.io import fits

    hdus = []
    for number, (band, (light, parts)) in enumerate(bands.items()):
        residual, unmodelled = light.copy(), light.copy()
        for part in parts:
            residual[part.slices] -= part.share * light[part.slices]
            unmodelled[part.slices] -= part.model
        for name, image in (
            ("RESIDUAL", residual), ("UNMODELLED", unmodelled), ("BACKGROUND", background[band]),
        ):  # fmt: skip
            if name != "BACKGROUND":
                image[mask[band]] = np.nan
            hdu = fits.ImageHDU(image, header.copy(), name=f"{name}_{band}" if number else name)
            hdu.header["EXTVER"] = extver
            if units[band]:
                hdu.header["BUNIT"] = units[band]
            hdus.append(hdu)
    return hdus
