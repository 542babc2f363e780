"""Several bands of one field: names, grids, their combination, and what is measured in each."""

import dataclasses

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from galsep.config import DeblendConfig
from galsep.errors import ImageError, UsageError
from galsep.flags import Flag
from galsep.image.light import Frame
from galsep.model.weights import load_model
from galsep.planes import Planes
from galsep.workflows.bands import band_files, check_names, combined_frame
from galsep.workflows.deblend import deblend
from galsep.workflows.files import deblend_files
from galsep.workflows.finding import find_sources
from galsep.workflows.reporting import Reporter

SHAPE = (150, 140)
CPU = DeblendConfig(device="cpu")
PLACES = ((40, 45), (100, 50), (60, 105))


class Listener(Reporter):
    def __init__(self):
        self.warnings = []

    def warn(self, message):
        self.warnings.append(message)


@pytest.fixture(scope="module")
def model():
    """Without a separation network: fluxes are the light of the masks, whatever the weights."""
    return dataclasses.replace(load_model(device="cpu"), separator=None)


def field(brightness=1.0, rms=1.0, seed=1, sky=0.0):
    image = np.random.default_rng(seed).normal(sky, rms, SHAPE)
    rows, columns = np.indices(SHAPE)
    for number, (x, y) in enumerate(PLACES):
        peak = 60 * brightness * (1 + number)
        image += peak * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 2.2**2))
    return image.astype(np.float32)


def header(shift=0.0):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = "RA---TAN", "DEC--TAN"
    wcs.wcs.crval, wcs.wcs.crpix = (150.0, 2.0), (70 + shift, 75)
    wcs.wcs.cdelt = -0.2 / 3600, 0.2 / 3600
    return wcs.to_header()


def frame(image, mask=None):
    return Frame(image, np.zeros(image.shape, dtype=bool) if mask is None else mask)


def test_bands_are_names_and_files():
    files = band_files(["g=a.fits", "r_2=x=y.fits[SCI,2]"])
    assert files == {"g": "a.fits", "r_2": "x=y.fits[SCI,2]"}
    assert list(band_files(["z=z.fits", "g=g.fits"])) == ["z", "g"]


@pytest.mark.parametrize("entry", ["g.fits", "g=", "=g.fits", ""])
def test_what_is_no_name_and_file(entry):
    with pytest.raises(UsageError, match="NAME=FILE"):
        band_files([entry])


@pytest.mark.parametrize("name", ["g r", "g-r", "ġ", "a" * 17, "err", "err_g", "ERR", "Err_g", ""])
def test_names_that_make_no_columns(name):
    with pytest.raises(UsageError, match="letters, digits and _"):
        check_names(["i", name])
    check_names(["i", "F814W", "error", "a" * 16])


def test_names_are_given_once():
    with pytest.raises(UsageError, match=r"g is given twice: a\.fits and b\.fits"):
        band_files(["g=a.fits", "r=a.fits", "g=b.fits"])
    with pytest.raises(UsageError, match="y and Y differ in case"):
        band_files(["y=a.fits", "Y=b.fits"])


def test_the_combination_has_the_least_noise():
    shape = (256, 256)
    rng = np.random.default_rng(2)
    frames = {
        name: frame(rng.normal(sky, rms, shape).astype(np.float32))
        for name, sky, rms in (("g", 50, 1.0), ("r", -7, 2.0), ("z", 0, 4.0))
    }
    combined = combined_frame(frames, 64, Planes())
    expected = 1 / np.sqrt(1 + 1 / 4 + 1 / 16)
    assert np.median(combined.noise) == pytest.approx(expected, rel=0.03)
    assert combined.data.std() == pytest.approx(expected, rel=0.03)
    assert combined.data.mean() == pytest.approx(0, abs=0.03)
    assert not combined.mask.any()
    # Each band goes along without its background.
    assert list(combined.bands) == list(frames)
    for (name, band), sky in zip(combined.bands.items(), (50, -7, 0), strict=True):
        assert np.median(band.background) == pytest.approx(sky, abs=0.1)
        np.testing.assert_allclose(band.light + band.background, frames[name].data, atol=1e-4)


def test_a_pixel_is_usable_where_any_band_is():
    masks = np.zeros((2, *SHAPE), dtype=bool)
    masks[0, 45:50, 35:45] = masks[1, 48:60, 35:45] = True
    images = [field(), field(brightness=2, rms=2, seed=2)]
    images[0][masks[0]] = np.nan
    frames = {
        name: frame(image, mask) for name, image, mask in zip("gr", images, masks, strict=True)
    }
    combined = combined_frame(frames, 64, Planes())
    assert np.array_equal(combined.mask, masks.all(axis=0))
    assert np.isfinite(combined.data).all()
    assert (combined.data[combined.mask] == 0).all()
    # Where there is only one, it is that one, with its noise.
    only = masks[0] & ~masks[1]
    assert np.median(combined.noise[only]) == pytest.approx(2, rel=0.15)
    assert combined.data[only] == pytest.approx(images[1][only], abs=1)


def test_the_gain_of_the_combination_gives_its_poisson_noise():
    gains, parts, rms = {"g": 20.0, "r": 5.0}, {"g": 1.0, "r": 3.0}, {"g": 1.0, "r": 2.0}
    frames = {
        name: dataclasses.replace(
            frame(field(brightness=parts[name], rms=rms[name])), gain=gains[name]
        )
        for name in gains
    }
    combined = combined_frame(frames, 64, Planes())
    weight = {name: rms[name] ** -2 / (1 + 1 / 4) for name in rms}
    total = sum(weight[name] * parts[name] for name in parts)
    variance = sum(weight[name] ** 2 * parts[name] / gains[name] for name in parts)
    assert combined.gain == pytest.approx(total / variance, rel=0.05)
    # What is not known counts nothing.
    frames["r"] = dataclasses.replace(frames["r"], gain=0.0)
    alone = combined_frame(frames, 64, Planes()).gain
    assert alone == pytest.approx(total / (weight["g"] ** 2 / gains["g"]), rel=0.05)
    frames = {name: dataclasses.replace(one, gain=0.0) for name, one in frames.items()}
    assert combined_frame(frames, 64, Planes()).gain == 0


def test_poisson_noise_of_the_bands_planes_is_in_the_combination():
    frames = {}
    for name, gain, seed in (("g", 4.0, 1), ("r", 4.0, 2)):
        image = field(seed=seed)
        noise = np.sqrt(1 + np.maximum(field(rms=0.0), 0) / gain).astype(np.float32)
        frames[name] = dataclasses.replace(frame(image), noise=noise)
    combined = combined_frame(frames, 64, Planes())
    # Of a mean of two, twice the electrons.
    assert combined.gain == pytest.approx(8, rel=0.1)
    flat = {k: dataclasses.replace(v, noise=np.ones_like(v.noise)) for k, v in frames.items()}
    assert combined_frame(flat, 64, Planes()).gain == 0


@pytest.mark.parametrize("unit", [1e-28, 1e25])
def test_units_do_not_matter(unit):
    images = {"g": field(), "r": field(seed=2, rms=3)}
    plain = combined_frame({k: frame(v) for k, v in images.items()}, 64, Planes())
    scaled = combined_frame(
        {k: frame((v * np.float64(unit)).astype(np.float32)) for k, v in images.items()},
        64,
        Planes(),
    )
    assert not scaled.mask.any()
    assert scaled.data / unit == pytest.approx(plain.data, abs=0.01)
    assert scaled.noise / unit == pytest.approx(plain.noise, rel=1e-3)


def test_fluxes_of_arrays_in_bands(model):
    bands = {"g": field(), "r": field(brightness=3, rms=2, seed=2, sky=100)}
    result = deblend(bands, CPU, model=model)
    assert list(result.bands) == ["g", "r"]
    table = result.catalog
    start = table.colnames.index("deblend_flux_err") + 1
    assert table.colnames[start : start + 4] == [
        "deblend_flux_g", "deblend_flux_err_g", "deblend_flux_r", "deblend_flux_err_r"
    ]  # fmt: skip
    for number, (x, y) in enumerate(PLACES):
        row = table[np.hypot(table["x_centroid"] - x, table["y_centroid"] - y).argmin()]
        assert np.hypot(row["x_centroid"] - x, row["y_centroid"] - y) < 1
        true = 60 * (1 + number) * 2 * np.pi * 2.2**2
        assert row["deblend_flux_g"] == pytest.approx(true, rel=0.15)
        assert row["deblend_flux_r"] == pytest.approx(3 * row["deblend_flux_g"], rel=0.1)
        assert row["deblend_flux_err_r"] == pytest.approx(2 * row["deblend_flux_err_g"], rel=0.2)
        label = int(row["label"])
        own = result.light_of(label, "r").sum(dtype=float)
        assert own == pytest.approx(row["deblend_flux_r"], rel=1e-4)
    for name, data in bands.items():
        image = result.bands[name].image
        parts = sum(result.light_of(label, name) for label in table["label"].tolist())
        assert image.background + parts + result.residual(name) == pytest.approx(data, abs=1e-3)


def test_the_light_of_bands_is_separated_where_it_is_asked_for():
    frames = {"g": frame(field()), "r": frame(field(brightness=3, rms=2, seed=2))}
    combined = combined_frame(frames, 64, Planes())
    default = load_model(device="cpu")
    without, with_light = (
        next(find_sources([combined], default, CPU, separate_bands=separate))
        for separate in (False, True)
    )
    assert len(without.detections) >= len(PLACES)
    for name in frames:
        assert not without.bands[name].separated
        assert len(with_light.bands[name].separated) == len(with_light.detections)
        mine, theirs = (found.bands[name].photometry for found in (without, with_light))
        assert np.array_equal(mine.flux, theirs.flux)
        assert np.array_equal(mine.flux_err, theirs.flux_err)
    flux = {name: band.photometry.flux for name, band in without.bands.items()}
    assert flux["r"] == pytest.approx(3 * flux["g"], rel=0.1)
    # The combination is the mean of both, weighted by 1 and 1/4.
    mean = (flux["g"] + flux["r"] / 4) / 1.25
    assert without.photometry.flux == pytest.approx(mean, rel=0.01)


@pytest.mark.parametrize("separated", [True, False])
def test_a_band_without_data_at_a_source_knows_nothing_of_it(model, separated):
    left = np.ma.masked_array(field(), np.broadcast_to(np.arange(SHAPE[1]) > 80, SHAPE))
    bands = {"g": left, "r": field(brightness=3, rms=2, seed=2)}
    table = deblend(bands, CPU, model=load_model(device="cpu") if separated else model).catalog
    for x, y in PLACES:
        row = table[np.hypot(table["x_centroid"] - x, table["y_centroid"] - y).argmin()]
        seen = x < 80
        assert np.isfinite(row["deblend_flux_g"]) == np.isfinite(row["deblend_flux_err_g"]) == seen
        assert bool(row["flags"] & Flag.MASKED_PIXELS) == (not seen)
        assert np.isfinite(row["deblend_flux_r"])
        assert np.isfinite(row["deblend_flux"])


def test_files_give_what_arrays_give(model, tmp_path):
    bands = {"g": field(), "r": field(brightness=3, rms=2, seed=2)}
    images = [fits.ImageHDU(image, name=f"BAND{name}") for name, image in bands.items()]
    fits.HDUList([fits.PrimaryHDU(), *images]).writeto(tmp_path / "both.fits")
    files = {"g": tmp_path / "both.fits[1]", "r": f"{tmp_path}/both.fits[BANDR]"}
    one, two = deblend(bands, CPU, model=model), deblend(files, CPU, model=model)
    assert np.array_equal(one.segm, two.segm)
    for name in one.catalog.colnames:
        if name not in ("ext", "ra", "dec"):
            same = np.array_equal(one.catalog[name], two.catalog[name])
            assert same, name


def test_an_extension_of_the_first_band_is_the_only_image(tmp_path):
    images = [fits.ImageHDU(field(seed=seed)) for seed in (1, 2, 3)]
    fits.HDUList([fits.PrimaryHDU(), *images]).writeto(tmp_path / "night.fits")
    bands = tuple(f"b{k}={tmp_path}/night.fits[{k}]" for k in (2, 1, 3))
    config = dataclasses.replace(CPU, band=bands, isolated=True)
    (result,) = deblend_files([], tmp_path / "out", config)
    assert result.error is None
    assert set(result.catalog["ext"].tolist()) == {2}
    assert "deblend_flux_b3" in result.catalog.colnames
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "night_cat.fits", "night_isolated.fits", "night_segm.fits"
    ]  # fmt: skip


@pytest.mark.parametrize("shift", [0.3, 2.0, 500.0])
def test_bands_lie_on_one_grid(model, tmp_path, shift):
    fits.writeto(tmp_path / "g.fits", field(), header())
    fits.writeto(tmp_path / "r.fits", field(seed=2), header(shift))
    bands = {name: tmp_path / f"{name}.fits" for name in "gr"}
    if shift < 0.5:
        assert np.isfinite(deblend(bands, CPU, model=model).catalog["ra"]).all()
        return
    with pytest.raises(ImageError, match=rf"r\.fits: lies on another grid.* {shift:.1f} px off"):
        deblend(bands, CPU, model=model)


def test_a_band_without_a_wcs_is_taken_at_its_pixels(model, tmp_path):
    fits.writeto(tmp_path / "g.fits", field(), header())
    fits.writeto(tmp_path / "r.fits", field(seed=2))
    result = deblend({name: tmp_path / f"{name}.fits" for name in "gr"}, CPU, model=model)
    assert np.isfinite(result.catalog["ra"]).all()


def test_bands_of_other_shapes(model, tmp_path):
    bands = {"g": field(), "r": field()[:-1]}
    with pytest.raises(ImageError, match="differ in shape"):
        deblend(bands, CPU, model=model)
    for name, image in bands.items():
        fits.writeto(tmp_path / f"{name}.fits", image)
    with pytest.raises(ImageError, match=r"r\.fits.*--band") as caught:
        deblend({name: tmp_path / f"{name}.fits" for name in bands}, CPU, model=model)
    assert "149" in str(caught.value)


@pytest.mark.parametrize(
    ("bands", "config", "said"),
    [
        ({}, {}, "no band"),
        ({"g": "g.fits", "r": np.zeros(SHAPE)}, {}, "all files or all arrays"),
        ({"g": np.zeros(SHAPE)}, {"rms": "s.fits"}, "their own files"),
        ({"g": np.zeros(SHAPE)}, {"band": ("g=g.fits",)}, "their own files"),
        ({"a b": np.zeros(SHAPE)}, {}, "letters"),
        (np.zeros(SHAPE), {"band": ("g=g.fits",)}, "mapping"),
        ("g.fits", {"band": ("g=g.fits",)}, "mapping"),
    ],
)
def test_bands_that_are_not_usable(model, bands, config, said):
    with pytest.raises(UsageError, match=said):
        deblend(bands, dataclasses.replace(CPU, **config), model=model)


@pytest.mark.parametrize("plane", ["variance", "weight", "rms", "mask", "mask_bits"])
def test_planes_are_those_of_the_bands_files(plane):
    with pytest.raises(UsageError, match="their own files"):
        DeblendConfig(band=("g=g.fits",), **{plane: "3"})


def test_messages_of_all_bands_are_told(tmp_path):
    fits.writeto(tmp_path / "g.fits", field())
    noise = fits.ImageHDU(np.zeros(SHAPE, dtype=np.float32), name="ERR")
    images = [fits.ImageHDU(field(seed=2), name="SCI"), noise]
    fits.HDUList([fits.PrimaryHDU(), *images]).writeto(tmp_path / "r.fits")
    bands = tuple(f"{name}={tmp_path / name}.fits" for name in "gr")
    listener = Listener()
    config = dataclasses.replace(CPU, band=bands)
    deblend_files([], None, config, reporter=listener)
    assert [message for message in listener.warnings if "r.fits" in message]
    assert len(set(listener.warnings)) == len(listener.warnings)


def test_one_band_is_its_own_combination(model):
    image = field()
    alone, band = deblend(image, CPU, model=model), deblend({"i": image}, CPU, model=model)
    assert len(band) == len(alone)
    for x, y in PLACES:
        one, other = (
            table[np.hypot(table["x_centroid"] - x, table["y_centroid"] - y).argmin()]
            for table in (alone.catalog, band.catalog)
        )
        assert other["deblend_flux_i"] == pytest.approx(one["deblend_flux"], rel=0.03)
