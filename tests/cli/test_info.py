"""``galsep info``: what would be read from a file."""

import json
import subprocess
import sys

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

SHAPE = (200, 220)
SIGMA = 2.0


def stars(n=30, seed=1):
    """Gaussian stars on a sky of 50 with noise of rms 2."""
    rng = np.random.default_rng(seed)
    image = rng.normal(50, 2, SHAPE)
    rows, columns = np.indices(SHAPE)
    for x, y in rng.uniform(10, 190, (n, 2)):
        image += 300 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * SIGMA**2))
    return image.astype(np.float32)


def tan(scale=0.2, mirrored=False):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crpix = [(SHAPE[1] + 1) / 2, (SHAPE[0] + 1) / 2]
    wcs.wcs.crval = [150.0, -2.0]
    wcs.wcs.cdelt = [(1 if mirrored else -1) * scale / 3600, scale / 3600]
    return wcs.to_header()


@pytest.fixture(scope="module")
def science(tmp_path_factory):
    """An image with its error and quality planes, and a table."""
    path = tmp_path_factory.mktemp("info") / "science.fits"
    dq = np.zeros(SHAPE, np.int16)
    dq[:2] = 1
    image = fits.ImageHDU(stars(), tan(), name="SCI")
    image.header["BUNIT"], image.header["GAIN"] = "nJy", 1.5
    fits.HDUList(
        [
            fits.PrimaryHDU(),
            image,
            fits.ImageHDU(np.full(SHAPE, 4, np.float32), name="VAR"),
            fits.ImageHDU(dq, name="DQ"),
            fits.BinTableHDU.from_columns([fits.Column("a", "J", array=[1])], name="LOG"),
        ]
    ).writeto(path)
    return path


def test_everything_as_json(galsep, science):
    outcome = galsep("info", science, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    (report,) = json.loads(outcome.out)
    assert report["file"] == str(science)
    assert report["form"] == "plain FITS"
    assert (report["tables"], report["deblended"], report["errors"]) == (1, [1], [])
    assert [(e["ext"], e["name"], e["type"], e["use"]) for e in report["extensions"]] == [
        (1, "SCI", "float32", "image"),
        (2, "VAR", "float32", "noise of 1"),
        (3, "DQ", "int16", "mask of 1"),
    ]
    assert report["extensions"][0]["axes"] == [220, 200]
    (image,) = report["images"]
    assert (image["width"], image["height"], image["unit"]) == (220, 200, "nJy")
    assert image["valid_pixels"] == 220 * 198
    assert (image["noise"]["plane"], image["noise"]["kind"]) == ("2 (VAR)", "variance")
    assert image["noise"]["scale"] == pytest.approx(1, abs=0.05)
    assert image["mask"] == {"plane": "3 (DQ)", "hides": "any", "hidden_pixels": 440}
    assert image["wcs"]["ra"] == pytest.approx(150)
    assert image["wcs"]["dec"] == pytest.approx(-2)
    assert image["wcs"]["pixel_scale_arcsec"] == pytest.approx(0.2)
    assert image["gain"] == 1.5
    assert image["background"] == pytest.approx(50, abs=0.5)
    assert image["rms"] == pytest.approx(2, rel=0.1)
    # A Gaussian's FWHM, but for the wings that the estimate takes a seeing disc to have.
    assert image["seeing_pixels"] == pytest.approx(2.355 * SIGMA, rel=0.1)
    assert image["seeing_arcsec"] == pytest.approx(0.2 * image["seeing_pixels"])


def test_columns_for_people(galsep, science):
    outcome = galsep("info", science)
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0] == f"{science}: plain FITS, 3 images, 1 table"
    assert lines[1].split() == ["ext", "name", "version", "size", "type", "unit", "used", "as"]
    assert lines[2].split() == ["1", "SCI", "1", "220×200", "float32", "nJy", "image"]
    assert lines[3].endswith("noise of 1")
    text = outcome.out
    for said in ("variance in 2 (VAR)", "bits that hide: any (440 pixels)", "0.2 arcsec", "1.5 e-"):
        assert said in text


def test_an_image_of_which_little_is_known(galsep, tmp_path):
    path = tmp_path / "bare.fits.gz"
    fits.PrimaryHDU(np.full((40, 50), np.nan, np.float32)).writeto(path)
    (report,) = json.loads(galsep("info", path, "--json").out)
    assert report["form"] == "FITS in gzip"
    (image,) = report["images"]
    for key in ("noise", "mask", "wcs", "gain", "background", "rms", "seeing_pixels", "unit"):
        assert image[key] is None
    outcome = galsep("info", path)
    assert outcome.code == 0
    assert "no valid pixel" in outcome.out
    assert "ra and dec will be NaN" in outcome.out


def test_types_compression_and_several_images(galsep, tmp_path):
    path = tmp_path / "chips.fits.fz"
    counts = stars().astype(np.uint16)
    hdus = [fits.CompImageHDU(counts, name=name, compression_type="RICE_1") for name in "AB"]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path)
    (report,) = json.loads(galsep("info", path, "--json").out)
    assert report["deblended"] == [1, 2]
    assert [(e["type"], e["compression"]) for e in report["extensions"]] == [
        ("uint16", "RICE_1")
    ] * 2
    (report,) = json.loads(galsep("info", path, "--ext", "B", "--json").out)
    assert report["deblended"] == [2]
    assert [image["ext"] for image in report["images"]] == [2]


@pytest.mark.parametrize("content", [None, b"", b"no FITS", b"SIMPLE  = broken"])
def test_an_unreadable_file_is_one_line(galsep, tmp_path, content):
    path = tmp_path / "bad.fits"
    if content is not None:
        path.write_bytes(content)
    outcome = galsep("info", path)
    assert outcome.code == 1
    assert "bad.fits" in outcome.error


def test_one_bad_file_leaves_the_others(galsep, science, tmp_path):
    outcome = galsep("info", tmp_path / "nothing.fits", science, "--json")
    assert outcome.code == 1
    bad, good = json.loads(outcome.out)
    assert "no such file" in bad["errors"][0]
    assert good["images"]
    assert len(outcome.err.splitlines()) == 1


def test_a_file_without_an_image_is_listed_all_the_same(galsep, tmp_path):
    path = tmp_path / "cube.fits"
    fits.PrimaryHDU(np.zeros((3, 40, 50), np.float32)).writeto(path)
    outcome = galsep("info", path)
    assert outcome.code == 1
    assert "50×40×3" in outcome.out
    assert outcome.err.startswith(f"error: {path}: ")
    assert len(outcome.err.splitlines()) == 1


def test_images_are_required(galsep):
    outcome = galsep("info")
    assert outcome.code == 2
    assert "IMAGE" in outcome.error


def test_no_network_is_loaded(science):
    script = (
        "import sys; from galsep.cli.main import main; "
        f"assert main(['info', {str(science)!r}]) == 0; "
        "print([m for m in ('torch', 'galsim', 'matplotlib') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"
