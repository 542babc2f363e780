"""Files of several images, noise and mask planes, and dual mode. The network is a threshold."""

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from scipy import ndimage

from galsep.config import DeblendConfig
from galsep.errors import ImageError, OutputExistsError, UsageError
from galsep.flags import Flag
from galsep.image.light import Frame
from galsep.image.psf import Psf
from galsep.io.runs import runs_to_footprints
from galsep.model.inference import Found
from galsep.model.network import ARCHITECTURES
from galsep.model.weights import Model
from galsep.scene import SoftMask
from galsep.workflows import deblend as deblending
from galsep.workflows import files as filing
from galsep.workflows import finding, preparing
from galsep.workflows.deblend import deblend
from galsep.workflows.files import deblend_files, stack_catalogs
from galsep.workflows.reporting import Reporter

SHAPE = (200, 220)
STARS = [(60, 70), (160, 60), (110, 140)]


class Listener(Reporter):
    def __init__(self):
        self.warnings, self.infos = [], []

    def warn(self, message):
        self.warnings.append(message)

    def info(self, message):
        self.infos.append(message)


def stars(flux=100.0, seed=1, places=STARS, rms=1.0):
    """Gaussian stars of a peak in white noise."""
    image = np.random.default_rng(seed).normal(0, 1, SHAPE) * rms
    rows, columns = np.indices(SHAPE)
    for x, y in places:
        image += flux * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 2.0**2))
    return image.astype(np.float32)


def outline(cutout):
    """One source for each island above 5 rms."""
    labels, _ = ndimage.label(cutout > np.arcsinh(5))
    masks = [
        SoftMask(box[0].start, box[1].start, (labels[box] == label).astype(np.float32))
        for label, box in enumerate(ndimage.find_objects(labels), 1)
        if (labels[box] == label).sum() > 5
    ]
    shares = [SoftMask(m.y0, m.x0, np.ones_like(m.probability)) for m in masks]
    return Found(masks, shares, np.full(len(masks), 0.9), np.full(len(masks), 0.5))


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    network = Model(
        torch.nn.Identity(), ARCHITECTURES["compact"], {}, "0" * 64, torch.device("cpu")
    )
    monkeypatch.setattr(
        preparing, "detect", lambda model, batch, size, least: [outline(cutout) for cutout in batch]
    )
    for module in (filing, deblending):
        monkeypatch.setattr(module, "load_model", lambda *_: network)


def hdu(data, name="", version=1, **cards):
    one = fits.ImageHDU(data, name=name or None, ver=version)
    one.header.update(cards)
    return one


def write(path, *hdus):
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path)
    return path


def run(path, output=None, **options):
    listener = Listener()
    (result,) = deblend_files([path], output, DeblendConfig(**options), reporter=listener)
    if result.error is not None:
        raise result.error
    return result, listener


def nearest(catalog, x, y):
    return catalog[np.hypot(catalog["x_centroid"] - x, catalog["y_centroid"] - y).argmin()]


@pytest.fixture
def chips(tmp_path):
    """Two images of their own units, sky and sources, with a plane of each."""
    hdus = []
    for version, places in ((1, STARS), (2, STARS[:2])):
        wcs = WCS(naxis=2)
        wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
        wcs.wcs.crval, wcs.wcs.cdelt = [150.0 + version, 2.0], [-5e-5, 5e-5]
        image = hdu(stars(seed=version, places=places), "SCI", version, **wcs.to_header())
        hdus += [image, hdu(np.full(SHAPE, version, np.float32), "ERR", version)]
    return write(tmp_path / "chips.fits", *hdus)


def test_every_image_of_a_file_is_deblended(chips, tmp_path):
    result, listener = run(chips, tmp_path / "out", preview=True)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "chips_cat.fits", "chips_preview_1.png", "chips_preview_3.png", "chips_segm.fits"
    ]  # fmt: skip
    assert {path.name for path in result.files} == {p.name for p in (tmp_path / "out").iterdir()}
    catalog = Table.read(tmp_path / "out" / "chips_cat.fits")
    assert catalog["ext"].tolist() == [1] * 3 + [3] * 2
    assert catalog["label"].tolist() == [1, 2, 3, 1, 2]
    assert catalog["ra"][:3] == pytest.approx(151, abs=0.02)
    assert catalog["ra"][3:] == pytest.approx(152, abs=0.02)
    with fits.open(tmp_path / "out" / "chips_segm.fits", checksum=True) as hdus:
        hdus.verify("exception")
        assert [(one.name, one.ver) for one in hdus[1:]] == [
            (name, ext) for ext in (1, 3) for name in ("SEGM", "NOVERLAP", "MASKS", "PARENTS")
        ]
        assert "RMSPLANE" not in hdus[0].header
        for ext, n in ((1, 3), (3, 2)):
            rows = catalog[catalog["ext"] == ext]
            segm = hdus["SEGM", ext]
            assert np.bincount(segm.data.ravel())[1:].tolist() == rows["area"].tolist()
            assert len(runs_to_footprints(hdus["MASKS", ext].data)) == n
            assert len(hdus["PARENTS", ext].data) >= n
            assert segm.header["CRVAL1"] == 150 + (ext + 1) // 2
            assert segm.header["RMSPLANE"] == f"{ext + 1} (ERR)"
            assert segm.header["RMSSCALE"] == pytest.approx(2 / (ext + 1), rel=0.1)
    assert [info.split(":")[0] for info in listener.infos] == [f"{chips}[1]", f"{chips}[3]"]
    assert listener.warnings == []


def test_regions_of_every_image(chips, tmp_path):
    regions = pytest.importorskip("regions")
    result, _ = run(chips, tmp_path / "out", regions=True)
    assert [path.name for path in result.files[2:]] == ["chips_1.reg", "chips_3.reg"]
    for path, ext in zip(result.files[2:], (1, 3), strict=True):
        rows = result.catalog[result.catalog["ext"] == ext]
        found = regions.Regions.read(str(path), format="ds9")
        assert [str(one.meta["text"]) for one in found] == [str(label) for label in rows["label"]]
        assert [one.center.ra.deg for one in found] == pytest.approx(rows["ra"], abs=1e-7)
        assert [one.center.dec.deg for one in found] == pytest.approx(rows["dec"], abs=1e-7)


def test_regions_without_their_library_are_refused_before_any_work(chips, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UsageError, match="--regions needs the library regions"):
        run(chips, tmp_path / "out", regions=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ext", ["3", "SCI,2"])
def test_one_of_several_images_keeps_its_number(chips, tmp_path, ext):
    run(chips, tmp_path / "out", ext=ext, preview=True)
    assert (tmp_path / "out" / "chips_preview.png").exists()
    catalog = Table.read(tmp_path / "out" / "chips_cat.fits")
    assert catalog["ext"].tolist() == [3, 3]
    with fits.open(tmp_path / "out" / "chips_segm.fits") as hdus:
        assert [one.ver for one in hdus[1:]] == [3, 3, 3, 3]
        assert hdus[0].header["RMSPLANE"] == "4 (ERR)"


def test_a_name_stands_for_all_images_of_it(chips, tmp_path):
    with fits.open(chips) as hdus:
        fits.HDUList([*hdus, hdu(stars(seed=9), "FOCUS")]).writeto(tmp_path / "more.fits")
    result, _ = run(tmp_path / "more.fits", ext="sci")
    assert sorted(set(result.catalog["ext"].tolist())) == [1, 3]
    everything, _ = run(tmp_path / "more.fits")
    assert sorted(set(everything.catalog["ext"].tolist())) == [1, 3, 5]


def test_an_image_in_the_primary_hdu_counts_too(tmp_path):
    path = tmp_path / "a.fits"
    fits.HDUList([fits.PrimaryHDU(stars()), hdu(stars(seed=2), "B")]).writeto(path)
    run(path, tmp_path / "out")
    assert set(Table.read(tmp_path / "out" / "a_cat.fits")["ext"]) == {0, 1}
    with fits.open(tmp_path / "out" / "a_segm.fits") as hdus:
        assert hdus["SEGM", 0].data.max() == 3
        assert hdus["SEGM", 1].data.max() == 3


def test_tiles_of_several_images(chips, tmp_path):
    with fits.open(chips) as hdus:
        tiles = [
            fits.CompImageHDU(one.data, one.header, compression_type="GZIP_1", quantize_level=0)
            for one in hdus[1:]
        ]
        packed = write(tmp_path / "packed.fits.fz", *tiles)
    one, _ = run(chips)
    other, _ = run(packed)
    for name in one.catalog.colnames:
        np.testing.assert_array_equal(one.catalog[name], other.catalog[name])


def test_an_image_that_fails_leaves_nothing(chips, tmp_path):
    hidden = {"mask": f"{tmp_path / 'mask.fits'}"}
    fits.writeto(tmp_path / "mask.fits", np.zeros((3, 3), np.uint8))
    with pytest.raises(ImageError, match="3×3 px"):
        run(chips, tmp_path / "out", **hidden)
    content = chips.read_bytes()
    chips.write_bytes(content[:-250_000])  # The second image has no end.
    with pytest.raises(ImageError, match=r"extension 3 \(SCI\) is damaged or truncated"):
        run(chips, tmp_path / "out", preview=True)
    assert list((tmp_path / "out").iterdir()) == []


def test_pictures_of_several_images_are_protected(chips, tmp_path):
    run(chips, tmp_path / "out", preview=True)
    (tmp_path / "out" / "chips_cat.fits").unlink()
    (tmp_path / "out" / "chips_segm.fits").unlink()
    with pytest.raises(OutputExistsError, match=r"chips_preview_1\.png: exists already"):
        run(chips, tmp_path / "out", preview=True)


def test_files_of_several_images_stack(chips, tmp_path):
    fits.writeto(tmp_path / "plain.fits", stars())
    results = deblend_files([chips, tmp_path / "plain.fits"], None, DeblendConfig())
    table = stack_catalogs(results)
    assert table["file"].tolist() == ["chips.fits"] * 5 + ["plain.fits"] * 3
    assert table["ext"].tolist() == [1] * 3 + [3] * 2 + [0] * 3
    assert "RMSPLANE" not in table.meta


def test_python_asks_for_one_of_several_images(chips):
    with pytest.raises(ImageError, match="holds 2 images"):
        deblend(chips)
    assert len(deblend(chips, DeblendConfig(ext="1"))) == 3


def calexp(path, scale=1.0, gain=2.0):
    """An image with LSST's planes; the variance holds the sources' noise, as LSST's does."""
    image = stars(1000.0)
    variance = (1 + np.maximum(image, 0) / gain) * scale
    mask = np.zeros(SHAPE, np.int32)
    mask[:, :20] = 1 << 8
    x, y = STARS[0]
    mask[y - 1 : y + 2, x - 1 : x + 2] = (1 << 1) | (1 << 5)
    x, y = STARS[1]
    mask[y - 5 : y + 6, x] = 1 << 3
    bits = {"HIERARCH MP_NO_DATA": 8, "MP_SAT": 1, "MP_CR": 3, "HIERARCH MP_DETECTED": 5}
    planes = (hdu(image, "IMAGE"), hdu(mask, "MASK", **bits), hdu(variance, "VARIANCE"))
    return write(path, *planes)


def test_lsst_masks_hide_pixels_and_flag_sources(tmp_path):
    path = calexp(tmp_path / "calexp.fits")
    result, listener = run(path, tmp_path / "out")
    catalog = result.catalog
    saturated, hit, clean = (nearest(catalog, *place) for place in STARS)
    # Hidden pixels are no source's, yet the one that they belong to knows of them.
    assert saturated["flags_dq"] == (1 << 1) | (1 << 5)
    assert saturated["flags"] & Flag.MASKED_PIXELS
    # Cosmic rays are repaired: they only flag.
    assert hit["flags_dq"] == 1 << 3
    assert not hit["flags"] & Flag.MASKED_PIXELS
    assert clean["flags_dq"] == 0
    assert catalog["flags_dq"].dtype == np.int64
    with fits.open(tmp_path / "out" / "calexp_segm.fits") as hdus:
        assert (hdus["SEGM"].data[:, :20] == 0).all()
        assert hdus["SEGM"].data[STARS[0][1], STARS[0][0]] == 0
        header = hdus[0].header
        assert hdus["SEGM"].ver == 1
    assert (header["DQPLANE"], header["DQHIDES"]) == ("2 (MASK)", "NO_DATA,SAT")
    assert header["RMSPLANE"] == "3 (VARIANCE)"
    assert "noise from 3 (VARIANCE), times" in listener.infos[0]
    assert "mask from 2 (MASK), hiding NO_DATA,SAT" in listener.infos[0]
    chosen, _ = run(path, mask_bits="CR")
    saturated, hit, _ = (nearest(chosen.catalog, *place) for place in STARS)
    assert not saturated["flags"] & Flag.MASKED_PIXELS
    assert hit["flags"] & Flag.MASKED_PIXELS


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_a_variance_with_the_sources_noise_costs_no_significance(tmp_path, scale):
    path = calexp(tmp_path / "calexp.fits", scale)
    with_plane, _ = run(path, mask="none")
    without, _ = run(path, mask="none", variance="none")
    by_gain, _ = run(path, mask="none", variance="none", gain=2.0)
    assert with_plane.catalog.meta["RMSSCALE"] == pytest.approx(scale**-0.5, rel=0.05)
    assert len(with_plane.catalog) == len(without.catalog) == len(by_gain.catalog) == 3
    for one, bare, gained in zip(with_plane.catalog, without.catalog, by_gain.catalog, strict=True):
        # The mask is as large as without the plane.
        assert one["mask_area"] == pytest.approx(bare["mask_area"], rel=0.05)
        for name in ("segment_flux_err", "deblend_flux_err"):
            # The errors hold the sources' noise once, from the plane as from the gain.
            assert one[name] == pytest.approx(gained[name], rel=0.1)
            assert one[name] > 2 * bare[name]
    both, _ = run(path, mask="none", gain=2.0)
    errors = [np.asarray(r.catalog["deblend_flux_err"]) for r in (with_plane, both)]
    np.testing.assert_allclose(*errors, rtol=0.05)


def uneven():
    """Noise with a strip of few exposures, narrower than the background's mesh."""
    rms = np.ones(SHAPE, np.float32)
    rms[:, 90:130] = 6.0
    return rms, stars(40.0, rms=rms)


@pytest.mark.parametrize("kind", ["variance", "weight", "rms"])
def test_thresholds_follow_the_local_noise(tmp_path, kind):
    rms, image = uneven()
    fits.writeto(tmp_path / "a.fits", image)
    stored = {"variance": rms**2, "weight": rms**-2 / 100, "rms": rms * 3}[kind]
    fits.writeto(tmp_path / "noise.fits", stored)
    result, _ = run(tmp_path / "a.fits", tmp_path / "out", **{kind: str(tmp_path / "noise.fits")})
    header = fits.getheader(tmp_path / "out" / "a_cat.fits")
    assert header["RMSPLANE"] == "noise.fits[0]"
    assert header["RMSSCALE"] == pytest.approx(
        {"variance": 1, "weight": 0.1, "rms": 1 / 3}[kind], rel=0.15
    )
    assert len(result.catalog) == 3
    plain, _ = run(tmp_path / "a.fits")
    assert len(plain.catalog) >= 3
    quiet, _, noisy = (nearest(result.catalog, *place) for place in STARS)
    error = [row["segment_flux_err"] / np.sqrt(row["area"]) for row in (noisy, quiet)]
    assert error[0] / error[1] == pytest.approx(6, rel=0.1)


@pytest.mark.parametrize(("kind", "warns"), [("rms", True), ("weight", False)])
def test_a_plane_of_another_scale_is_told_of(tmp_path, kind, warns):
    rms, image = uneven()
    fits.writeto(tmp_path / "a.fits", image)
    fits.writeto(tmp_path / "noise.fits", {"rms": rms * 400, "weight": rms**-2 / 400**2}[kind])
    _, listener = run(tmp_path / "a.fits", **{kind: str(tmp_path / "noise.fits")})
    said = [message for message in listener.warnings if "times that of --rms" in message]
    assert len(said) == warns


def test_an_array_with_its_noise():
    rms, image = uneven()
    rms[50:60, 150:160] = np.nan
    result = deblend(image, rms=rms)
    assert len(result) == 3
    assert (result.light[50:60, 150:160] == 0).all()
    assert result.rms[100, 110] / result.rms[100, 10] == pytest.approx(6)
    with pytest.raises(ImageError, match="rms has the shape"):
        deblend(image, rms=rms[:9])
    with pytest.raises(UsageError, match="are for files"):
        deblend(image, DeblendConfig(detect="a.fits"))
    with pytest.raises(UsageError, match="rms is a mapping where the image is one of bands"):
        deblend(image, rms={"g": rms})


def test_arrays_of_several_bands_with_their_place_and_noise():
    rms, image = uneven()
    rms[50:60, 150:160] = np.nan
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.cdelt = [150.0, 2.0], [-5e-5, 5e-5]
    result = deblend({"g": image, "r": image}, wcs=wcs, rms={"g": rms})
    assert np.isfinite(result.catalog["ra"]).all()
    assert (result.bands["g"].image.light[50:60, 150:160] == 0).all()
    assert (result.bands["r"].image.light[50:60, 150:160] != 0).any()
    for wrong in (rms, {"i": rms}):
        with pytest.raises(UsageError, match=r"names \(g, r\) to arrays"):
            deblend({"g": image, "r": image}, rms=wrong)


def test_files_have_their_own_place_and_noise(tmp_path):
    rms, image = uneven()
    fits.writeto(tmp_path / "a.fits", image)
    path = str(tmp_path / "a.fits")
    for image_or_bands in (path, {"g": path, "r": path}):
        with pytest.raises(UsageError, match="wcs and rms are for arrays"):
            deblend(image_or_bands, rms=rms)
        with pytest.raises(UsageError, match="wcs and rms are for arrays"):
            deblend(image_or_bands, wcs=WCS(naxis=2))


def test_a_wide_psf_sees_the_noise_pattern_too(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        preparing,
        "detect",
        lambda model, batch, size, least: [seen.append(c) or outline(c) for c in batch],
    )
    monkeypatch.setattr(preparing, "_psf_limits", lambda model: (0.5, 1.0))
    monkeypatch.setattr(preparing, "estimate_psf", lambda *_: Psf(2.0))
    rms, _ = uneven()
    image = stars(300.0, rms=rms)
    found = next(finding.find_sources([Frame(image, image != image, rms * 5)], Model(
        torch.nn.Identity(), ARCHITECTURES["compact"], {}, "", torch.device("cpu")
    )))  # fmt: skip
    assert found.domain.binning == 2
    assert found.measured.image.noise_scale == pytest.approx(0.2, rel=0.1)
    # In the strip as elsewhere the network sees noise of rms 1.
    noise = np.concatenate([c[np.abs(c) < 2].ravel() for c in seen])
    assert np.std(np.sinh(noise)) == pytest.approx(1, rel=0.25)


def test_detect_in_one_image_and_measure_in_another(tmp_path):
    fits.writeto(tmp_path / "r.fits", stars(100.0))
    # Half as bright, one star not there at all, and a star that r does not have.
    other = stars(50.0, seed=5, places=[*STARS[:2], (30, 170)])
    other[STARS[1][1], STARS[1][0] + 1] = np.nan
    fits.writeto(tmp_path / "g.fits", other)
    alone, _ = run(tmp_path / "r.fits")
    dual, _ = run(tmp_path / "g.fits", tmp_path / "out", detect=str(tmp_path / "r.fits"))
    for name in ("label", "parent", "bbox_xmin", "area", "mask_area", "tile_id", "score"):
        np.testing.assert_array_equal(dual.catalog[name], alone.catalog[name])
    ratio = np.asarray(dual.catalog["deblend_flux"]) / np.asarray(alone.catalog["deblend_flux"])
    order = [int(nearest(alone.catalog, *place)["label"]) - 1 for place in STARS]
    assert ratio[order[0]] == pytest.approx(0.5, rel=0.05)
    assert abs(ratio[order[2]]) < 0.05
    np.testing.assert_allclose(
        dual.catalog["segment_flux"], dual.catalog["deblend_flux"], rtol=1e-4
    )
    # What is missing in the measured image is flagged.
    assert dual.catalog["flags"][order[1]] & Flag.MASKED_PIXELS
    assert not alone.catalog["flags"][order[1]] & Flag.MASKED_PIXELS
    header = fits.getheader(tmp_path / "out" / "g_segm.fits")
    assert header["DETIMAGE"] == "r.fits"
    same, _ = run(tmp_path / "r.fits", detect=str(tmp_path / "r.fits"))
    for name in alone.catalog.colnames:
        np.testing.assert_array_equal(same.catalog[name], alone.catalog[name])


def test_detection_images_of_another_shape_are_refused(tmp_path):
    fits.writeto(tmp_path / "r.fits", stars()[:, :100])
    fits.writeto(tmp_path / "g.fits", stars())
    with pytest.raises(ImageError) as caught:
        run(tmp_path / "g.fits", detect=str(tmp_path / "r.fits"))
    assert str(caught.value) == (
        f"{tmp_path / 'r.fits'}: is 100×200 px, the image 220×200 px; --detect takes a plane of "
        "the image's own pixels"
    )
    with pytest.raises(ImageError, match=r"gone\.fits: no such file"):
        run(tmp_path / "g.fits", detect=str(tmp_path / "gone.fits"))


def test_detection_images_of_another_place_are_refused(chips, tmp_path):
    header = fits.getheader(chips, 1)
    header["CRPIX1"] += 40
    fits.HDUList([fits.PrimaryHDU(), hdu(stars(), "SCI", **header)]).writeto(tmp_path / "r.fits")
    with pytest.raises(ImageError, match=r"r\.fits: lies on another grid than the image, 40\.0 px"):
        run(chips, ext="1", detect=str(tmp_path / "r.fits"))


def test_planes_go_with_the_image_of_their_name(tmp_path):
    names = ("N1", "N2")
    write(tmp_path / "a.fits", *(hdu(stars(seed=k), name) for k, name in enumerate(names)))
    planes = (hdu(np.full(SHAPE, 5, np.float32), "N2"), hdu(np.ones(SHAPE, np.float32), "N1"))
    write(tmp_path / "rms.fits", *planes)
    run(tmp_path / "a.fits", tmp_path / "out", rms=str(tmp_path / "rms.fits"))
    for version, scale in ((1, 1.0), (2, 0.2)):
        header = fits.getheader(tmp_path / "out" / "a_segm.fits", ("SEGM", version))
        assert header["RMSSCALE"] == pytest.approx(scale, rel=0.05)


def test_several_images_are_detected_in_those_of_their_number(chips, tmp_path):
    fits.HDUList([fits.PrimaryHDU(), *(hdu(stars(seed=k), "SCI", k) for k in (1, 2))]).writeto(
        tmp_path / "measured.fits"
    )
    # The extensions differ in number: it has to be said which.
    with pytest.raises(ImageError, match=r"chips\.fits: holds 2 images"):
        run(tmp_path / "measured.fits", detect=str(chips))
    result, _ = run(tmp_path / "measured.fits", ext="2", detect=f"{chips}[SCI,2]")
    assert len(result.catalog) == 2
    result, _ = run(chips, detect=str(chips))
    assert result.catalog["ext"].tolist() == [1] * 3 + [3] * 2


def test_bits_without_a_mask_are_told_of(tmp_path):
    fits.writeto(tmp_path / "a.fits", stars())
    _, listener = run(tmp_path / "a.fits", mask_bits="3")
    assert listener.warnings == [
        f"{tmp_path / 'a.fits'}: there is no mask plane, so --mask-bits chooses nothing"
    ]


def test_the_result_of_an_array_knows_the_weights():
    result = deblend(stars())
    assert result.catalog.meta["WEIGHTS"] == "0" * 64
    assert repr(result) == (
        "<DeblendResult: image 220×200 px, sources 3, flagged 0, weights sha256:000000000000>"
    )
