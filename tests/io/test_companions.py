"""Noise and mask planes beside an image, in its own file and in others."""

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import (
    CCDData,
    InverseVariance,
    StdDevUncertainty,
    UnknownUncertainty,
    VarianceUncertainty,
)

from galsep.errors import ImageError
from galsep.io.companions import PlaneOptions, split_reference
from galsep.io.image import list_images, read_plane, read_plane_like

SHAPE = (30, 40)
IMAGE = np.arange(1200, dtype=np.float32).reshape(SHAPE)
RMS = (2 + IMAGE / 1000).astype(np.float32)

LSST_BITS = {"BAD": 0, "SAT": 1, "CR": 3, "EDGE": 4, "DETECTED": 5, "NO_DATA": 8}


def hdu(data, name: str = "", version: int = 1, **cards) -> fits.ImageHDU:
    one = fits.ImageHDU(data, name=name or None, ver=version)
    one.header.update(cards)
    return one


def write(path: Path, *hdus) -> Path:
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path)
    return path


def bits(dtype: str = "i4", **pixels: int) -> np.ndarray:
    """A mask with one value a row: ``r3=4`` is 4 at (3, 3)."""
    mask = np.zeros(SHAPE, dtype)
    for place, value in pixels.items():
        mask[int(place[1:]), int(place[1:])] = value
    return mask


def where(plane) -> list[int]:
    """Rows of the unusable pixels, all on the diagonal."""
    rows, columns = np.nonzero(plane.mask)
    assert (rows == columns).all()
    assert np.isnan(plane.data[plane.mask]).all()
    return rows.tolist()


def lsst(path: Path, form=hdu) -> Path:
    mask = bits(r1=1, r2=2, r3=8, r4=16, r5=32, r8=256, r9=32 + 256)
    cards = {f"HIERARCH MP_{name}": bit for name, bit in LSST_BITS.items()}
    variance = RMS**2
    variance[12, 12] = np.nan
    planes = (form(IMAGE, "IMAGE"), form(mask, "MASK"), form(variance, "VARIANCE"))
    planes[1].header.update(cards)
    table = fits.BinTableHDU(np.zeros(2, dtype=[("a", "i4")]), name="ARCHIVE_INDEX")
    return write(path, *planes, table)


def test_lsst(tmp_path):
    plane = read_plane(lsst(tmp_path / "calexp.fits"))
    assert (plane.ext, plane.extname) == (1, "IMAGE")
    # BAD, SAT and NO_DATA hide pixels; cosmic rays, edges and detections do not.
    assert where(plane) == [1, 2, 8, 9, 12]
    good = ~np.isnan(plane.noise.rms)
    np.testing.assert_allclose(plane.noise.rms[good], RMS[good], rtol=1e-6)
    assert np.argwhere(~good).tolist() == [[12, 12]]
    assert plane.noise.rms.dtype == np.float32
    assert plane.noise.origin == "3 (VARIANCE)"
    assert (plane.dq.origin, plane.dq.hidden) == ("2 (MASK)", "NO_DATA,BAD,SAT")
    assert plane.dq.bits[9, 9] == 288
    assert plane.messages == ()


def test_lsst_compressed_in_tiles(tmp_path):
    def tiles(data, name):
        options = {"quantize_level": 0, "compression_type": "GZIP_1"} if data.dtype == "f4" else {}
        return fits.CompImageHDU(data, name=name, **options)

    plain = read_plane(lsst(tmp_path / "calexp.fits"))
    packed = read_plane(lsst(tmp_path / "calexp.fits.fz", tiles))
    assert where(packed) == where(plain)
    np.testing.assert_array_equal(packed.noise.rms, plain.noise.rms)
    np.testing.assert_array_equal(packed.dq.bits, plain.dq.bits)


def test_early_lsst_files_name_planes_by_exttype(tmp_path):
    planes = [hdu(IMAGE, EXTTYPE="IMAGE"), hdu(bits(r1=1), EXTTYPE="MASK", MP_BAD=0)]
    plane = read_plane(write(tmp_path / "a.fits", *planes, hdu(RMS**2, EXTTYPE="VARIANCE")))
    assert where(plane) == [1]
    np.testing.assert_allclose(plane.noise.rms, RMS, rtol=1e-6)


@pytest.mark.parametrize(
    ("wanted", "rows", "hidden"),
    [
        ("CR", [3], "CR"),
        ("cr, detected", [3, 5, 9], "CR,DETECTED"),
        ("0,8", [1, 8, 9], "0,8"),
        ("any", [1, 2, 3, 4, 5, 8, 9], "any"),
        ("none", [], "none"),
    ],
)
def test_bits_by_name_and_number(tmp_path, wanted, rows, hidden):
    plane = read_plane(lsst(tmp_path / "a.fits"), options=PlaneOptions(mask_bits=wanted))
    assert where(plane) == sorted([*rows, 12])
    assert plane.dq.hidden == hidden


def test_unknown_bits_are_refused(tmp_path):
    path = lsst(tmp_path / "a.fits")
    with pytest.raises(ImageError, match=r"has no bit called 'STAR'; it names BAD, CR, DETECTED"):
        read_plane(path, options=PlaneOptions(mask_bits="BAD,STAR"))
    path = write(tmp_path / "b.fits", hdu(IMAGE, "SCI"), hdu(bits(), "DQ"))
    with pytest.raises(ImageError, match=r"2 \(DQ\) has no bit called 'BAD'; it names none"):
        read_plane(path, options=PlaneOptions(mask_bits="BAD"))


def test_bits_without_a_mask_are_told_of(tmp_path):
    path = write(tmp_path / "a.fits", hdu(IMAGE))
    plane = read_plane(path, options=PlaneOptions(mask_bits="3"))
    assert plane.messages == (f"{path}: there is no mask plane, so --mask-bits chooses nothing",)


@pytest.mark.parametrize("name", ["ERR", "VAR", "WHT"])
def test_sci_with_its_planes_by_version(tmp_path, name):
    stored = {"ERR": RMS, "VAR": RMS**2, "WHT": RMS**-2}[name]
    hdus = []
    for version in (2, 1):  # HST's second chip comes first in no rule.
        hdus += [
            hdu(IMAGE + version, "SCI", version),
            hdu(stored * version, name, version),
            hdu(bits("i2", **{f"r{version}": 4096}), "DQ", version),
        ]
    path = write(tmp_path / "flt.fits", *hdus)
    assert list_images(path).chosen == (1, 4)
    assert list_images(path).several
    for ext, version in (("1", 2), ("SCI,1", 1)):
        plane = read_plane(path, ext)
        assert where(plane) == [version]
        factor = {"ERR": version, "VAR": version**0.5, "WHT": version**-0.5}[name]
        np.testing.assert_allclose(plane.noise.rms, RMS * factor, rtol=1e-5)
        assert plane.dq.hidden == "any"
        assert plane.messages == ()


def test_what_has_no_noise_is_unusable(tmp_path):
    stored = {"ERR": [0, np.nan, np.inf, -1], "VAR": [0, np.nan, np.inf, -1], "WHT": [0, -1]}
    for name, values in stored.items():
        plane_of = np.ones(SHAPE, np.float32)
        for row, value in enumerate(values):
            plane_of[row, row] = value
        plane = read_plane(write(tmp_path / f"{name}.fits", hdu(IMAGE, "SCI"), hdu(plane_of, name)))
        assert where(plane) == list(range(len(values)))


def test_a_noise_plane_of_nothing_is_not_used(tmp_path):
    path = write(tmp_path / "a.fits", hdu(IMAGE, "SCI"), hdu(RMS * 0, "ERR"), hdu(RMS, "WHT"))
    plane = read_plane(path)
    assert plane.noise is None
    assert not plane.mask.any()
    assert plane.messages == (f"{path}: plane 2 (ERR) is not used, since it is nowhere positive",)
    with pytest.raises(ImageError, match="is nowhere positive; --rms takes the noise of each"):
        read_plane(path, options=PlaneOptions(rms=f"{path}[ERR]"))


def test_jwst_hides_what_is_not_to_be_used(tmp_path):
    stored = bits("u4", r1=1, r2=4, r3=5, r4=2**31)
    hdus = [hdu(IMAGE, "SCI"), hdu(RMS, "ERR"), hdu(stored, "DQ"), hdu(IMAGE, "AREA")]
    hdus.append(hdu(RMS**2, "VAR_POISSON"))
    path = write(tmp_path / "cal.fits", *hdus)
    with fits.open(path, mode="update") as file:
        file[0].header["TELESCOP"] = "JWST"
    plane = read_plane(path)
    assert where(plane) == [1, 3]
    assert plane.noise.origin == "2 (ERR)"
    # Unsigned bits survive.
    assert plane.dq.bits.dtype == np.int64
    assert plane.dq.bits[4, 4] == 2**31


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "u4", "f4", "f8"])
def test_masks_of_any_type(tmp_path, dtype):
    path = write(tmp_path / "a.fits", hdu(IMAGE, "SCI"), hdu(bits(dtype, r1=1, r7=100), "DQ"))
    plane = read_plane(path)
    assert where(plane) == [1, 7]
    assert plane.dq.bits[7, 7] == 100
    assert plane.dq.bits.dtype.isnative


def test_the_sign_is_a_bit(tmp_path):
    path = write(tmp_path / "a.fits", hdu(IMAGE, "SCI"), hdu(bits("i2", r1=-32768), "DQ"))
    plane = read_plane(path, options=PlaneOptions(mask_bits="15"))
    assert where(plane) == [1]
    assert plane.dq.bits[1, 1] == 32768
    plane = read_plane(path, options=PlaneOptions(mask_bits="62"))
    assert where(plane) == []


def test_fractions_count_as_bad(tmp_path):
    stored = bits("f4")
    stored[2, 2], stored[3, 3], stored[4, 4] = 0.3, np.nan, 2.7
    plane = read_plane(write(tmp_path / "a.fits", hdu(IMAGE, "SCI"), hdu(stored, "MASK")))
    assert where(plane) == [2, 3, 4]
    assert [int(plane.dq.bits[k, k]) for k in (2, 3, 4)] == [1, 1, 2]


@pytest.mark.parametrize(
    ("kind", "stored"),
    [(StdDevUncertainty, RMS), (VarianceUncertainty, RMS**2), (InverseVariance, RMS**-2)],
)
def test_ccddata(tmp_path, kind, stored):
    mask = bits("u1", r6=1).astype(bool)
    psf = np.ones((7, 7))
    CCDData(IMAGE, unit="adu", mask=mask, uncertainty=kind(stored), psf=psf).write(
        tmp_path / "ccd.fits"
    )
    plane = read_plane(tmp_path / "ccd.fits")
    assert (plane.ext, plane.unit) == (0, "adu")
    assert where(plane) == [6]
    np.testing.assert_allclose(plane.noise.rms, RMS, rtol=1e-6)
    assert plane.noise.origin == "2 (UNCERT)"
    assert plane.messages == ()
    assert not list_images(tmp_path / "ccd.fits").several


def test_an_uncertainty_of_unknown_type_is_refused(tmp_path):
    assert UnknownUncertainty.__name__ == "UnknownUncertainty"
    path = write(tmp_path / "a.fits", hdu(IMAGE), hdu(RMS, "UNCERT", UTYPE="UnknownUncertainty"))
    with pytest.raises(ImageError, match="of unknown UTYPE 'UnknownUncertainty'; give it as --rms"):
        read_plane(path)
    assert read_plane(path, options=PlaneOptions(rms="none")).noise is None
    given = read_plane(path, options=PlaneOptions(rms=f"{path}[UNCERT]"))
    np.testing.assert_array_equal(given.noise.rms, RMS)


def test_planes_of_several_images_without_versions_are_not_used(tmp_path):
    path = write(tmp_path / "a.fits", hdu(IMAGE, "CCD1"), hdu(IMAGE, "CCD2"), hdu(bits(), "MASK"))
    plane = read_plane(path, "CCD2")
    assert plane.dq is None
    assert plane.messages == (
        f"{path}: planes 3 (MASK) are not used, since they may belong to any of the images "
        "1 (CCD1), 2 (CCD2)",
    )
    # What the user says about them ends the doubt.
    options = PlaneOptions(rms="none", mask=f"{path}[3]")
    assert read_plane(path, "CCD2", options).messages == ()


def test_planes_of_another_size_or_cut_off_are_not_used(tmp_path):
    path = write(tmp_path / "a.fits", hdu(IMAGE, "SCI"), hdu(RMS[:5], "ERR"), hdu(bits(), "DQ"))
    content = path.read_bytes()
    plane = read_plane(path)
    assert plane.noise is None
    assert plane.dq is not None
    assert "planes 2 (ERR) are not used" in plane.messages[0]
    path.write_bytes(content[:-2880])
    plane = read_plane(path)
    assert plane.dq is None
    assert "planes 2 (ERR), 3 (DQ) are not used" in plane.messages[0]


def test_recognised_planes_can_be_turned_off(tmp_path):
    path = lsst(tmp_path / "a.fits")
    plane = read_plane(path, options=PlaneOptions(variance="none", mask="none"))
    assert plane.noise is plane.dq is None
    assert not plane.mask.any()


def test_a_plane_that_is_asked_for_as_an_image_has_no_planes(tmp_path):
    plane = read_plane(lsst(tmp_path / "a.fits"), "VARIANCE")
    assert plane.noise is plane.dq is None


@pytest.mark.parametrize(
    ("kind", "stored"), [("variance", RMS**2), ("weight", RMS**-2), ("rms", RMS)]
)
def test_noise_from_another_file(tmp_path, kind, stored):
    image = write(tmp_path / "a.fits", hdu(IMAGE, "SCI"), hdu(RMS * 9, "ERR"))
    plain = tmp_path / "noise.fits"
    fits.PrimaryHDU(stored).writeto(plain)
    plane = read_plane(image, options=PlaneOptions(**{kind: str(plain)}))
    np.testing.assert_allclose(plane.noise.rms, RMS, rtol=1e-5)
    assert plane.noise.origin == "noise.fits[0]"
    many = write(tmp_path / "many.fits", hdu(IMAGE), hdu(stored, "N"), hdu(IMAGE, "N", 2))
    plane = read_plane(image, options=PlaneOptions(**{kind: f"{many}[n,1]"}))
    np.testing.assert_allclose(plane.noise.rms, RMS, rtol=1e-5)


def test_a_mask_from_another_file(tmp_path):
    image = write(tmp_path / "a.fits", hdu(IMAGE, "SCI"), hdu(bits(r1=1), "DQ"))
    fits.PrimaryHDU(bits(r2=1, r3=6)).writeto(tmp_path / "mask.fits")
    reference = str(tmp_path / "mask.fits")
    assert where(read_plane(image, options=PlaneOptions(mask=reference))) == [2, 3]
    chosen = read_plane(image, options=PlaneOptions(mask=reference, mask_bits="1,2"))
    assert where(chosen) == [3]
    # Of a file with its own image, the plane that is called a mask; LSST's meaning goes along.
    other = lsst(tmp_path / "calexp.fits")
    assert where(read_plane(image, options=PlaneOptions(mask=str(other)))) == [1, 2, 8, 9]


def test_files_of_many_extensions_go_together_by_number_and_name(tmp_path):
    chips = ("N1", "N2")
    image = write(tmp_path / "a.fits", *(hdu(IMAGE, name) for name in chips))
    weight = write(
        tmp_path / "w.fits", *(hdu(np.full(SHAPE, 0.25 / k**2), n) for k, n in enumerate(chips, 1))
    )
    for ext in (1, 2):
        plane = read_plane(image, str(ext), PlaneOptions(weight=str(weight)))
        assert (plane.noise.rms == 2 * ext).all()
        assert plane.noise.origin == f"w.fits[N{ext}]"
    lone = write(tmp_path / "b.fits", hdu(IMAGE, "X"))
    with pytest.raises(ImageError, match=r"w\.fits: holds 2 images, .*; choose one as w\.fits\[EX"):
        read_plane(lone, options=PlaneOptions(weight=str(weight)))


def test_planes_that_do_not_fit_are_refused(tmp_path):
    image = write(tmp_path / "a.fits", hdu(IMAGE))
    fits.PrimaryHDU(RMS[:, :20]).writeto(tmp_path / "small.fits")
    for kind in ("variance", "weight", "rms", "mask"):
        options = PlaneOptions(**{kind: str(tmp_path / "small.fits")})
        with pytest.raises(ImageError) as caught:
            read_plane(image, options=options)
        assert str(caught.value) == (
            f"{tmp_path / 'small.fits'}: is 20×30 px, the image 40×30 px; --{kind} takes a plane "
            "of the image's own pixels"
        )
    with pytest.raises(ImageError, match=r"gone\.fits: no such file"):
        read_plane(image, options=PlaneOptions(rms=str(tmp_path / "gone.fits[1]")))
    with pytest.raises(ImageError, match=r"has no extension '7'"):
        read_plane(image, options=PlaneOptions(rms=f"{tmp_path / 'small.fits'}[7]"))


def test_references(tmp_path):
    assert split_reference("d/a.fits") == (Path("d/a.fits"), "")
    assert split_reference("d/a.fits[SCI,2]") == (Path("d/a.fits"), "SCI,2")
    assert split_reference("a[1].fits[ 3 ]") == (Path("a[1].fits"), "3")
    odd = tmp_path / "a[1]"
    odd.touch()
    assert split_reference(str(odd)) == (odd, "")


def test_every_image_is_listed_but_planes_are_not(tmp_path):
    path = write(tmp_path / "a.fits", hdu(IMAGE, "A"), hdu(RMS, "ERR"), hdu(IMAGE, "B"), hdu(IMAGE))
    assert list_images(path).chosen == (1, 3, 4)
    chosen = list_images(path, "B")
    assert chosen.chosen == (3,)
    assert chosen.several
    assert list_images(path, "2").chosen == (2,)


def test_the_image_that_goes_with_another(tmp_path):
    names = ("A", "B")
    image = write(tmp_path / "a.fits", *(hdu(IMAGE, name) for name in names))
    other = write(tmp_path / "b.fits", *(hdu(IMAGE * k, n) for k, n in enumerate(names, 2)))
    plane = read_plane_like(str(other), read_plane(image, "B"))
    assert plane.extname == "B"
    np.testing.assert_array_equal(plane.data, IMAGE * 3)
    named = read_plane_like(str(lsst(tmp_path / "c.fits")), read_plane(image, "A"))
    assert where(named) == [1, 2, 8, 9, 12]
    small = tmp_path / "small.fits"
    fits.PrimaryHDU(RMS[:9]).writeto(small)
    with pytest.raises(ImageError, match=r"is 40×9 px, the image 40×30 px; --detect takes"):
        read_plane_like(str(small), read_plane(image, "A"))
