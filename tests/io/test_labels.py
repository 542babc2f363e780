"""Isolated light from FITS files: how it is stored, and which extension."""

import numpy as np
import pytest
from astropy.io import fits

from galsep.errors import AnnotationError, ImageError
from galsep.io.labels import read_light

SHAPE = (8, 9)
LABELS = np.array([1, 2])


@pytest.fixture
def cube():
    """Light of two sources, as steps of a sixteenth."""
    light = np.zeros((2, *SHAPE), np.float32)
    light[0, 1:4, 2:5] = np.arange(1, 10).reshape(3, 3) / 16
    light[1, 4:7, 5:9] = 3.0
    return light


def stored(data, scale, zero):
    """An image whose stored values become others by BSCALE and BZERO."""
    hdu = fits.ImageHDU(data, name="CUBE")
    hdu.header.update(BSCALE=scale, BZERO=zero)
    return hdu


@pytest.mark.parametrize("form", ["plain", "floats", "integers", "tiles"])
def test_light_is_that_of_the_header(tmp_path, cube, form):
    hdu = {
        "plain": lambda: fits.ImageHDU(cube, name="CUBE"),
        "floats": lambda: stored((cube - 2) / 10, 10.0, 2.0),
        "integers": lambda: stored((cube * 16).astype(np.int16), 1 / 16, 0.0),
        "tiles": lambda: fits.CompImageHDU(cube, None, "CUBE", "GZIP_1", quantize_level=0),
    }[form]()
    path = tmp_path / "light.fits"
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
    with fits.open(path) as written:
        np.testing.assert_allclose(written[1].data, cube, atol=1e-6)
    for reference in (str(path), f"{path}[CUBE]", f"{path}[cube,1]", f"{path}[1]"):
        parts = read_light(reference, LABELS, SHAPE)
        assert [(part.y0, part.x0) for part in parts] == [(1, 2), (4, 5)]
        for part, plane in zip(parts, cube, strict=True):
            np.testing.assert_allclose(part.model, plane[part.slices], atol=1e-6)


def test_stamps_are_scaled(tmp_path):
    stamps = np.array(
        [(1, 2, 1, 2, 2, 0)], [(n, "i4") for n in ("label", "x0", "y0", "nx", "ny", "start")]
    )
    model = stored(np.ones(4, np.float32), 5.0, 0.0)
    model.name = "MODEL"
    hdus = [fits.PrimaryHDU(), fits.BinTableHDU(stamps, name="STAMPS"), model]
    fits.HDUList(hdus).writeto(tmp_path / "light.fits")
    (part,) = read_light(str(tmp_path / "light.fits"), LABELS[:1], SHAPE)
    assert part.flux == 20


def test_stamps_are_those_of_the_image_that_is_asked_for(tmp_path):
    stamps = np.array(
        [(1, 2, 1, 2, 2, 0)], [(n, "i4") for n in ("label", "x0", "y0", "nx", "ny", "start")]
    )
    hdus = [fits.PrimaryHDU()]
    for version in (1, 2):
        hdus.append(fits.BinTableHDU(stamps, name="STAMPS", ver=version))
        model = np.full(4, version, np.float32)
        hdus.append(fits.ImageHDU(model, name="MODEL", ver=version))
    path = tmp_path / "light.fits"
    fits.HDUList(hdus).writeto(path)
    for ext, flux in (("STAMPS,1", 4), ("model, 2", 8)):
        (part,) = read_light(f"{path}[{ext}]", LABELS[:1], SHAPE)
        assert part.flux == flux
    for ext in ("", "[STAMPS]", "[MODEL,3]"):
        with pytest.raises(AnnotationError, match=r"one of \[STAMPS,1\], \[STAMPS,2\]"):
            read_light(f"{path}{ext}", LABELS[:1], SHAPE)


@pytest.mark.parametrize("ext", ["NOPE", "7", "CUBE,2", "-1"])
def test_another_extension_is_answered_with_those_there_are(tmp_path, cube, ext):
    path = tmp_path / "light.fits"
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(cube, name="CUBE"), fits.ImageHDU(cube[0])]
    fits.HDUList(hdus).writeto(path)
    with pytest.raises(ImageError) as caught:
        read_light(f"{path}[{ext}]", LABELS, SHAPE)
    said = f"{path}: has no extension {ext!r}; its images are extensions 1 (CUBE), 2"
    assert str(caught.value) == said
    fits.PrimaryHDU().writeto(path, overwrite=True)
    with pytest.raises(ImageError, match=r"has no extension .*; it holds no image$"):
        read_light(f"{path}[{ext}]", LABELS, SHAPE)
