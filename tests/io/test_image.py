import bz2
import gzip
import io
import lzma
import re
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from galsep.errors import ImageError
from galsep.io.extensions import choose_extensions, list_extensions, sky_images
from galsep.io.header import header_number, quiet_astropy
from galsep.io.image import Plane, input_stem, read_plane
from galsep.io.labels import read_light

IMAGE = (np.arange(30 * 40, dtype=np.float32).reshape(30, 40) - 500) * 0.5


def card(text: str) -> bytes:
    return text.ljust(80).encode()


def raw_fits(path: Path, data: np.ndarray, *cards: str, axes: tuple[int, ...] = ()) -> Path:
    """Write a FITS file by hand, as other software might: any card, no astropy in between."""
    bitpix = data.dtype.itemsize * (8 if data.dtype.kind in "iu" else -8)
    axes = axes or data.shape[::-1]
    lines = [
        "SIMPLE  =                    T",
        f"BITPIX  = {bitpix:20d}",
        f"NAXIS   = {len(axes):20d}",
    ]
    lines += [f"NAXIS{i:<3d}= {n:20d}" for i, n in enumerate(axes, 1)]
    header = b"".join(card(line) for line in (*lines, *cards, "END"))
    pixels = data.astype(data.dtype.newbyteorder(">")).tobytes()
    blocks = (header.ljust(-(-len(header) // 2880) * 2880), pixels + bytes(-len(pixels) % 2880))
    path.write_bytes(b"".join(blocks))
    return path


def write(path: Path, *hdus) -> Path:
    fits.HDUList(list(hdus)).writeto(path)
    return path


def refused(path: Path, match: str, ext: str = "") -> None:
    """Check that a file is refused with one line that names it."""
    with pytest.raises(ImageError, match=match) as caught:
        read_plane(path, ext)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < len(str(path)) + 300


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a.fits", "a"),
        ("a.fit", "a"),
        ("a.fts", "a"),
        ("A.FITS", "A"),
        ("a.fits.gz", "a"),
        ("a.fit.gz", "a"),
        ("a.fits.fz", "a"),
        ("a.fz", "a"),
        ("a.fits.bz2", "a"),
        ("field.r.fits.gz", "field.r"),
        ("a.fits.fits", "a.fits"),
        ("fits", "fits"),
        (".fits", ".fits"),
        ("a.dat", "a.dat"),
    ],
)
def test_stem_is_the_name_without_endings(name, stem):
    assert input_stem(Path("some.where") / name) == stem


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ("u1", "f4"),
        ("i2", "f4"),
        ("u2", "f4"),
        ("f4", "f4"),
        ("i4", "f8"),
        ("u4", "f8"),
        ("i8", "f8"),
        ("f8", "f8"),
    ],
)
@pytest.mark.parametrize("form", ["plain", "gz", "tiles"])
def test_all_types_and_forms_give_the_same_pixels(tmp_path, stored, expected, form):
    values = (np.abs(IMAGE) // 5).astype(stored)
    if form == "tiles":
        if stored in ("u4", "i8"):
            pytest.skip("astropy does not compress these")
        options = {"compression_type": "GZIP_1" if stored.startswith("f") else "RICE_1"}
        options |= {"quantize_level": 0} if stored.startswith("f") else {}
        path = write(
            tmp_path / "a.fits.fz", fits.PrimaryHDU(), fits.CompImageHDU(values, **options)
        )
    else:
        path = write(tmp_path / "a.fits", fits.PrimaryHDU(values))
    if form == "gz":
        zipped = tmp_path / "a.fits.gz"
        zipped.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
        path = zipped
    plane = read_plane(path)
    assert plane.data.dtype == np.dtype(expected)
    assert plane.data.dtype.isnative
    assert plane.data.flags.c_contiguous
    assert plane.data.flags.writeable
    np.testing.assert_array_equal(plane.data, values)
    assert not plane.mask.any()
    assert (plane.wcs, plane.unit, plane.gain, plane.messages) == (None, "", 0.0, ())
    assert (plane.ext, plane.extname) == ((1, "COMPRESSED_IMAGE") if form == "tiles" else (0, ""))


def test_double_precision_is_kept(tmp_path):
    values = 1e9 + np.arange(12.0).reshape(3, 4) * 1e-3
    assert (read_plane(write(tmp_path / "a.fits", fits.PrimaryHDU(values))).data == values).all()


def test_scaling_is_applied(tmp_path):
    raw = np.array([[0, 1, 2], [-32768, 32767, 7]], dtype=np.int16)
    path = raw_fits(tmp_path / "a.fits", raw, "BSCALE  = 0.01", "BZERO   = 100.0")
    plane = read_plane(path)
    assert plane.data.dtype == np.float32
    np.testing.assert_allclose(plane.data, raw * 0.01 + 100, rtol=1e-7)


def test_scaling_that_single_precision_would_coarsen_stays_double(tmp_path):
    raw = np.arange(6, dtype=np.int16).reshape(2, 3)
    plane = read_plane(raw_fits(tmp_path / "a.fits", raw, "BSCALE  = 0.001", "BZERO   = 1.0E6"))
    assert plane.data.dtype == np.float64
    np.testing.assert_allclose(np.diff(plane.data[0]), 0.001, rtol=1e-6)


@pytest.mark.parametrize("scale", ["0.0", "'one'", "1.0E999"])
def test_unusable_scaling_is_refused(tmp_path, scale):
    path = raw_fits(tmp_path / "a.fits", np.ones((2, 3), np.int16), f"BSCALE  = {scale}")
    refused(path, "BSCALE or BZERO is not a usable number; correct the header")


def test_unusable_pixels_are_masked(tmp_path):
    values = IMAGE.copy()
    values[0, 0], values[1, 1], values[2, 2] = np.nan, np.inf, -np.inf
    plane = read_plane(write(tmp_path / "a.fits", fits.PrimaryHDU(values)))
    assert np.argwhere(plane.mask).tolist() == [[0, 0], [1, 1], [2, 2]]
    assert np.isnan(plane.data[plane.mask]).all()
    np.testing.assert_array_equal(plane.data[~plane.mask], values[~plane.mask])


@pytest.mark.parametrize(
    ("cards", "offset"),
    [((), 0), (("BZERO   = 32768",), 32768), (("BZERO   = 5.0", "BSCALE  = 1.0"), 5)],
)
def test_blank_pixels_are_masked_in_unsigned_images_too(tmp_path, cards, offset):
    raw = np.array([[0, 1, -32768], [4, 5, 6]], dtype=np.int16)
    plane = read_plane(raw_fits(tmp_path / "a.fits", raw, "BLANK   = -32768", *cards))
    assert np.argwhere(plane.mask).tolist() == [[0, 2]]
    np.testing.assert_array_equal(plane.data[~plane.mask], raw[~plane.mask] + float(offset))


def test_blank_pixels_of_tiles_are_masked(tmp_path):
    raw = np.arange(64, dtype=np.int16).reshape(8, 8)
    plain = raw_fits(tmp_path / "a.fits", raw, "BLANK   = 9")
    with fits.open(plain, do_not_scale_image_data=True) as hdus:
        tiles = fits.CompImageHDU(hdus[0].data, hdus[0].header, do_not_scale_image_data=True)
        path = write(tmp_path / "a.fits.fz", fits.PrimaryHDU(), tiles)
    assert np.argwhere(read_plane(path).mask).tolist() == [[1, 1]]


def test_quantised_tiles_keep_nan(tmp_path):
    values = np.random.default_rng(1).normal(size=(32, 32)).astype(np.float32)
    values[3, 4] = np.nan
    tiles = fits.CompImageHDU(values, compression_type="RICE_1")
    plane = read_plane(write(tmp_path / "a.fits.fz", fits.PrimaryHDU(), tiles))
    assert np.argwhere(plane.mask).tolist() == [[3, 4]]
    assert np.nanstd(plane.data - values) < 0.1


def test_other_compressions_are_read(tmp_path):
    plain = write(tmp_path / "a.fits", fits.PrimaryHDU(IMAGE))
    (tmp_path / "a.fits.bz2").write_bytes(bz2.compress(plain.read_bytes()))
    np.testing.assert_array_equal(read_plane(tmp_path / "a.fits.bz2").data, IMAGE)


@pytest.mark.parametrize("shape", [(1, 30, 40), (1, 1, 30, 40), (30, 1, 40), (30, 40, 1)])
def test_axes_of_one_pixel_are_dropped(tmp_path, shape):
    path = write(tmp_path / "a.fits", fits.PrimaryHDU(IMAGE.reshape(shape)))
    np.testing.assert_array_equal(read_plane(path).data, IMAGE)


@pytest.mark.parametrize("shape", [(1, 40), (30, 1), (1, 1), (1, 1, 1)])
def test_thin_images_are_images(tmp_path, shape):
    path = write(tmp_path / "a.fits", fits.PrimaryHDU(np.ones(shape, np.float32)))
    assert read_plane(path).data.shape == shape[-2:]


def sci(name: str = "", **cards) -> fits.ImageHDU:
    hdu = fits.ImageHDU(IMAGE, name=name or None)
    hdu.header.update(cards)
    return hdu


def test_auxiliary_planes_are_passed_over(tmp_path):
    names = ("ERR", "DQ", "VAR_POISSON", "WHT", "MASK", "RMS2", "variance", "sci.weight", "CTX")
    path = write(tmp_path / "a.fits", fits.PrimaryHDU(), sci("SCI"), *map(sci, names))
    plane = read_plane(path)
    assert (plane.ext, plane.extname) == (1, "SCI")
    # ... unless they are asked for.
    assert read_plane(path, "dq").ext == 3


def test_tables_of_distortion_and_masks_of_observatories_are_no_images(tmp_path):
    names = ("ERR", "DQ", "D2IMARR", "WCSDVARR", "OBJMASK", "STAT", "1-1.FLG", "QUAL")
    path = write(tmp_path / "a.fits", fits.PrimaryHDU(), sci("SCI"), *map(sci, names))
    with fits.open(path) as hdus:
        assert [one.name for one in sky_images(list_extensions(path, hdus))] == ["SCI"]


def test_of_a_name_the_only_image_is_taken(tmp_path):
    cube = fits.ImageHDU(np.ones((3, 4, 5), np.float32), name="SCI")
    path = write(tmp_path / "a.fits", fits.PrimaryHDU(), cube, sci("SCI"))
    with fits.open(path) as hdus:
        chosen = choose_extensions(path, list_extensions(path, hdus), "sci")
    assert [one.index for one in chosen] == [2]


def test_distortions_of_a_cube_of_one_plane(tmp_path):
    flat = sci(CTYPE1="RA---TAN-SIP", CTYPE2="DEC--TAN-SIP", CRVAL1=40.0, CRVAL2=-2.0,
               CRPIX1=3.0, CRPIX2=3.0, CDELT1=-1e-4, CDELT2=1e-4, A_ORDER=2, B_ORDER=2,
               A_2_0=1e-3, B_0_2=-2e-3)  # fmt: skip
    cube = fits.ImageHDU(IMAGE[None, None], flat.header.copy())
    cube.header["CTYPE3"], cube.header["CTYPE4"] = "FREQ", "STOKES"
    paths = [
        write(tmp_path / f"{k}.fits", fits.PrimaryHDU(), hdu) for k, hdu in enumerate((flat, cube))
    ]
    one, two = (read_plane(path).wcs.pixel_to_world(1, 2) for path in paths)
    assert one.separation(two).arcsec < 1e-6


def test_a_file_of_auxiliary_planes_only_is_refused(tmp_path):
    path = write(tmp_path / "a.fits", fits.PrimaryHDU(), sci("MASK"))
    refused(path, r"holds only variance, error, weight or mask planes, extensions 1 \(MASK\)")


def test_several_images_are_listed(tmp_path):
    path = write(tmp_path / "a.fits", fits.PrimaryHDU(), sci("CCD1"), sci("CCD2"), sci())
    refused(path, r"holds 3 images, extensions 1 \(CCD1\), 2 \(CCD2\), 3; choose one with --ext")


@pytest.mark.parametrize(("ext", "index"), [("2", 2), ("ccd2", 2), (" CCD2 ", 2), ("SCI,2", 4)])
def test_extensions_by_number_name_and_version(tmp_path, ext, index):
    hdus = (sci("CCD1"), sci("CCD2"), sci("SCI", EXTVER=1), sci("SCI", EXTVER=2))
    path = write(tmp_path / "a.fits", fits.PrimaryHDU(), *hdus)
    assert read_plane(path, ext).ext == index


@pytest.mark.parametrize(
    ("ext", "match"),
    [
        ("9", r"has no extension '9'; its images are extensions 1 \(SCI\), 3 \(SCI\)"),
        ("-1", "has no extension '-1'"),
        ("CCD9", "has no extension 'CCD9'"),
        ("SCI", "extensions 1, 3 are all called SCI; give --ext one of these numbers"),
        ("0", "extension 0 holds no data"),
        ("SRC", r"extension 2 \(SRC\) is a table; .*; its images are extensions 1"),
    ],
)
def test_wrong_extensions_are_explained(tmp_path, ext, match):
    table = fits.BinTableHDU(np.zeros(2, dtype=[("a", "i4")]), name="SRC")
    path = write(tmp_path / "a.fits", fits.PrimaryHDU(), sci("SCI"), table, sci("SCI"))
    refused(path, match, ext)


def test_files_that_hold_no_image(tmp_path):
    table = fits.BinTableHDU(np.zeros(2, dtype=[("a", "i4")]))
    refused(write(tmp_path / "a.fits", fits.PrimaryHDU()), "holds no image")
    refused(write(tmp_path / "b.fits", fits.PrimaryHDU(), table), "holds tables but no image")
    line = fits.PrimaryHDU(np.ones(50, np.float32))
    refused(write(tmp_path / "c.fits", line), r"extension 0 holds 1-D data \(50 px\); cut out")
    cube = fits.PrimaryHDU(np.ones((3, 4, 5), np.float32))
    refused(write(tmp_path / "d.fits", cube), r"holds a 3-D cube \(5×4×3 px\); cut out a 2-D")
    pixelless = raw_fits(tmp_path / "e.fits", np.zeros(0, np.float32), axes=(0, 10))
    refused(pixelless, r"extension 0 has no pixels \(0×10 px\)")


def test_what_is_no_fits_file(tmp_path):
    refused(tmp_path / "gone.fits", "no such file; check the path")
    refused(tmp_path, "is a folder; give the FITS files in it")
    (tmp_path / "empty.fits").touch()
    refused(tmp_path / "empty.fits", "is empty; copy or download it again")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    refused(tmp_path / "a.png", "not a FITS file; convert it")
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"hello"))
    refused(tmp_path / "a.gz", "damaged or not a FITS file")
    refused(tmp_path / "a.png" / "b.fits", "not readable")


@pytest.mark.parametrize("end", [100, 2000, 2881, 5000])
def test_truncated_files_are_refused(tmp_path, end):
    whole = write(tmp_path / "a.fits", fits.PrimaryHDU(IMAGE)).read_bytes()
    for name, content in (("b.fits", whole[:end]), ("c.fits.gz", gzip.compress(whole)[:end])):
        (tmp_path / name).write_bytes(content)
        if len(content) == end:
            refused(tmp_path / name, "damaged|truncated|cut off")


def test_truncated_tiles_are_refused(tmp_path):
    noise = np.random.default_rng(1).integers(0, 9999, (64, 64)).astype(np.int32)
    whole = write(tmp_path / "a.fits", fits.PrimaryHDU(), fits.CompImageHDU(noise)).read_bytes()
    (tmp_path / "b.fits").write_bytes(whole[:9000])
    refused(tmp_path / "b.fits", r"damaged or truncated \(at least \d+ bytes are missing\)")


def test_tiles_whose_stream_tells_another_size_are_not_decoded(tmp_path):
    """astropy's decoder would write beyond its memory."""
    noise = np.random.default_rng(1).integers(0, 9999, (50, 45)).astype(np.int32)
    tiles = fits.CompImageHDU(noise, compression_type="HCOMPRESS_1", tile_shape=(20, 24))
    path = write(tmp_path / "a.fits", fits.PrimaryHDU(), tiles)
    assert (read_plane(path).data == noise).all()
    content = path.read_bytes()
    streams = list(re.finditer(rb"\xdd\x99(?=\0\0\0)", content))
    assert len(streams) == 6
    for number, stream in enumerate(streams):
        wrong = bytearray(content)
        wrong[stream.end() + 3] ^= 0x40  # the last byte of its height
        path.write_bytes(wrong)
        refused(path, f"is damaged .compressed tile {number} is not of its size")
        with pytest.raises(ImageError, match=f"compressed tile {number} is not of its size"):
            read_light(str(path), np.arange(1), noise.shape)


def test_tiles_that_end_before_their_stream_are_not_decoded(tmp_path):
    """astropy's decoder would read beyond them."""
    runs = (np.random.default_rng(1).random((50, 45)) > 0.7).astype(np.int32)
    tiles = fits.CompImageHDU(runs, compression_type="PLIO_1", tile_shape=(25, 45))
    path = write(tmp_path / "a.fits", fits.PrimaryHDU(), tiles)
    assert (read_plane(path).data == runs).all()
    content = bytearray(path.read_bytes())
    _, second = re.finditer(rb"\x00\x00\x00\x07\xff\x9c", content)
    content[second.end() + 1] += 1  # the last byte of its length
    path.write_bytes(content)
    refused(path, "is damaged .compressed tile 1 is cut short")


def test_damaged_tiles_are_refused_by_their_checksum(tmp_path):
    noise = np.random.default_rng(1).integers(0, 9999, (64, 64)).astype(np.int32)
    path = tmp_path / "a.fits"
    hdus = fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(noise)])
    hdus.writeto(path, checksum=True)
    content = bytearray(path.read_bytes())
    content[-3000] ^= 0xFF
    path.write_bytes(content)
    refused(path, r"is damaged \(DATASUM is wrong\)")


@pytest.mark.parametrize("zipped", [False, True])
def test_a_promised_size_sets_no_memory_aside(tmp_path, zipped):
    path = raw_fits(tmp_path / "a.fits", IMAGE, axes=(200_000, 100_000))
    if zipped:
        path.write_bytes(gzip.compress(path.read_bytes()))
    tracemalloc.start()
    refused(path, "bytes are missing")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e7


def zipped(content: bytes) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.fits", content)
    return archive.getvalue()


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zipped])
@pytest.mark.parametrize("keep", [0.2, 0.6, 0.97])
def test_compressed_files_that_are_cut_off_are_refused(tmp_path, pack, keep):
    noise = np.random.default_rng(1).normal(size=(40, 50)).astype(np.float32)
    content = pack(write(tmp_path / "a.fits", fits.PrimaryHDU(noise)).read_bytes())
    (tmp_path / "b.fits").write_bytes(content[: int(keep * len(content))])
    refused(tmp_path / "b.fits", "damaged|truncated|too large")


@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress, zipped])
def test_a_compressed_promise_sets_no_memory_aside(tmp_path, pack):
    content = raw_fits(tmp_path / "a.fits", IMAGE, axes=(200_000, 100_000)).read_bytes()
    (tmp_path / "b.fits").write_bytes(pack(content))
    refused(tmp_path / "b.fits", r"truncated \(at least 799\d+ bytes are missing\)")


@pytest.mark.parametrize("start", ["SIMPLE  =                    T", "XTENSION= 'IMAGE   '"])
@pytest.mark.parametrize("axes", [1000, 2**31 - 1, -1])
def test_more_axes_than_fits_has_are_not_looked_for(tmp_path, axes, start):
    path = raw_fits(tmp_path / "a.fits", IMAGE)
    sound = path.read_bytes()
    wrong = sound.replace(b"NAXIS   =                    2", b"NAXIS   = %20d" % axes)
    wrong = card(start) + wrong[80:]
    path.write_bytes(wrong if start.startswith("SIMPLE") else sound + wrong)
    refused(path, f"NAXIS is {axes}")


def test_values_that_are_no_data_are_masked(tmp_path):
    image = IMAGE.copy()
    image[0, :4] = 1.6e38, -3e38, 1e30, 9e29  # The first is IRAF's INDEF.
    path = write(tmp_path / "a.fits", fits.PrimaryHDU(image))
    assert read_plane(path).mask[0, :5].tolist() == [True, True, True, False, False]


def test_tiles_that_cannot_hold_the_promised_size_are_refused(tmp_path):
    path = write(tmp_path / "a.fits", fits.PrimaryHDU(), fits.CompImageHDU(IMAGE.astype("i4")))
    with fits.open(path, mode="update", disable_image_compression=True) as hdus:
        hdus[1].header["ZNAXIS1"] = hdus[1].header["ZTILE1"] = 2_000_000_000
    refused(path, r"compressed bytes are too few for its size")
    with fits.open(path, mode="update", disable_image_compression=True) as hdus:
        hdus[1].header["ZNAXIS2"] = 500
    refused(path, r"has 30 compressed tiles where its size needs 500")


def test_a_whole_image_before_the_damage_is_read(tmp_path):
    whole = write(tmp_path / "a.fits", fits.PrimaryHDU(IMAGE), sci("ERR")).read_bytes()
    (tmp_path / "b.fits").write_bytes(whole[:-2000])
    np.testing.assert_array_equal(read_plane(tmp_path / "b.fits").data, IMAGE)


def sky(**changes) -> fits.Header:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.0, 2.0]
    wcs.wcs.crpix = [20.5, 15.5]
    wcs.wcs.cdelt = [-5e-5, 5e-5]
    header = wcs.to_header()
    header.update(changes)
    return header


def test_wcs_counts_pixels_from_zero(tmp_path):
    plane = read_plane(write(tmp_path / "a.fits", fits.PrimaryHDU(IMAGE, sky())))
    position = plane.wcs.pixel_to_world(19.5, 14.5).icrs
    assert (position.ra.deg, position.dec.deg) == pytest.approx((150.0, 2.0), abs=1e-9)
    assert plane.messages == ()


def test_wcs_of_degenerate_cubes_loses_their_axes(tmp_path):
    header = sky(WCSAXES=3, CTYPE3="FREQ", CRVAL3=1.4e9, CRPIX3=1.0, CDELT3=1.0, CUNIT3="Hz")
    plane = read_plane(write(tmp_path / "a.fits", fits.PrimaryHDU(IMAGE[None], header)))
    assert plane.wcs.naxis == 2
    assert plane.wcs.pixel_to_world(19.5, 14.5).ra.deg == pytest.approx(150.0)


def test_swapped_sky_axes_keep_the_pixel_axes(tmp_path):
    header = sky(CTYPE1="DEC--TAN", CTYPE2="RA---TAN", CRVAL1=2.0, CRVAL2=150.0)
    plane = read_plane(write(tmp_path / "a.fits", fits.PrimaryHDU(IMAGE, header)))
    ahead = plane.wcs.pixel_to_world(29.5, 14.5)
    assert ahead.ra.deg == pytest.approx(150.0)
    assert ahead.dec.deg == pytest.approx(2.0 - 10 * 5e-5)


def test_galactic_coordinates_count_as_sky(tmp_path):
    header = sky(CTYPE1="GLON-TAN", CTYPE2="GLAT-TAN", RADESYS="")
    assert read_plane(write(tmp_path / "a.fits", fits.PrimaryHDU(IMAGE, header))).wcs is not None


@pytest.mark.parametrize("kind", ["", "LINEAR"])
def test_no_sky_is_no_problem(tmp_path, kind):
    header = sky(CTYPE1=kind, CTYPE2=kind)
    plane = read_plane(write(tmp_path / "a.fits", fits.PrimaryHDU(IMAGE, header)))
    assert plane.wcs is None
    assert plane.messages == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"CDELT1": 0.0},
        {"CTYPE1": "RA---XYZ"},
        {"CTYPE2": "DEC--SIN"},
        {"CTYPE1": "HPLN-TAN", "CTYPE2": "HPLT-TAN"},
        {"CRVAL1": "here"},
        {"CRPIX2": None},
        {"RADESYS": "FK5", "EQUINOX": -1e308},
        {"D2IMDIS1": "SPLINE"},
        {"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "A_ORDER": 40000, "B_ORDER": 2},
        {"CRVAL2": 200.0, "CTYPE1": "RA---CAR", "CTYPE2": "DEC--CAR", "LONPOLE": 7.0},
    ],
)
def test_a_broken_wcs_costs_only_the_sky(tmp_path, capsys, changes):
    plane = read_plane(write(tmp_path / "a.fits", fits.PrimaryHDU(IMAGE, sky(**changes))))
    assert plane.wcs is None
    assert len(plane.messages) == 1
    assert "the WCS is not usable (" in plane.messages[0]
    assert "\n" not in plane.messages[0]
    assert capsys.readouterr() == ("", "")


def test_astropy_says_nothing(tmp_path, capsys):
    # A SIP polynomial without its suffix makes astropy log to standard output.
    header = sky(A_ORDER=2, B_ORDER=2, A_2_0=1e-7, B_0_2=1e-7)
    header["DATE-OBS"] = "26/10/92"
    plane = read_plane(write(tmp_path / "a.fits", fits.PrimaryHDU(IMAGE, header)))
    assert plane.wcs is not None
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("cards", "gain"),
    [
        ({}, 0.0),
        ({"GAIN": 2.5}, 2.5),
        ({"EGAIN": 1.5, "GAIN": 120}, 1.5),
        ({"EGAIN": 0, "GAIN": 3}, 3.0),
        ({"GAIN": -1.0}, 0.0),
        ({"GAIN": "high"}, 0.0),
        ({"GAIN": True}, 0.0),
        ({"GAIN": 1e-300}, 0.0),
    ],
)
def test_gain(tmp_path, cards, gain):
    path = write(tmp_path / "a.fits", fits.PrimaryHDU(IMAGE, fits.Header(cards)))
    assert read_plane(path).gain == gain


def test_unit_and_gain_are_inherited_from_a_primary_header_without_image(tmp_path):
    primary = fits.PrimaryHDU(header=fits.Header({"GAIN": 2.0, "BUNIT": " nJy "}))
    plane = read_plane(write(tmp_path / "a.fits", primary, sci("SCI")))
    assert (plane.gain, plane.unit) == (2.0, "nJy")
    both = write(tmp_path / "b.fits", primary, sci("SCI", GAIN=3.0, BUNIT="adu"))
    plane = read_plane(both)
    assert (plane.gain, plane.unit) == (3.0, "adu")


def test_unreadable_cards_are_left_out_and_named(tmp_path):
    path = raw_fits(
        tmp_path / "a.fits",
        IMAGE,
        "BUNIT   = 'adu     '",
        "A+B     = 5",
        "DATAMAX = 1.0E999",
        "lowcase = 5",
        "HISTORY as it comes",
    )
    plane = read_plane(path)
    assert plane.unit == "adu"
    assert plane.header["LOWCASE"] == 5
    assert header_number(plane.header, "DATAMAX") is None
    assert plane.messages == (f"{path}: 2 header cards not readable and left out (A+B, DATAMAX)",)
    assert plane.header.tostring()


def test_planes_check_their_shapes():
    with pytest.raises(ValueError, match="a plane is 2-D"):
        Plane(IMAGE, np.zeros((2, 2), bool), fits.Header(), None, 0, "", "", 0.0, ())


def test_the_ntt_frame_of_1992(test_data, capsys):
    plane = read_plane(test_data / "sep_emmi.fits")
    assert plane.data.shape == (256, 256)
    assert plane.data.dtype == np.float32
    assert not plane.mask.any()
    assert plane.messages == ()
    with quiet_astropy(), fits.open(test_data / "sep_emmi.fits") as hdus:
        np.testing.assert_allclose(plane.data, hdus[0].data, rtol=1e-6)
    assert plane.wcs is None
    assert plane.header.tostring()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("band", ["g", "r", "z"])
def test_the_decam_field(test_data, band):
    plane = read_plane(test_data / f"decam_sim_{band}.fits")
    assert plane.data.shape == (512, 512)
    centre = plane.wcs.pixel_to_world(255.5, 255.5).icrs
    assert centre.ra.deg == pytest.approx(197.860331)
    assert plane.messages == ()
