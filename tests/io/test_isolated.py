import numpy as np
import pytest
from astropy.io import fits

from galsep.io.isolated import isolated_hdus, residual_hdus
from galsep.io.products import write_hdus
from galsep.scene import SourceLight

SHAPE = (30, 40)


def parts(seed=0):
    """Two sources that overlap, and one of a single row at the edge."""
    rng = np.random.default_rng(seed)
    made = []
    for y0, x0, height, width in ((4, 6, 9, 12), (8, 10, 14, 7), (29, 0, 1, 5)):
        share, model = rng.uniform(0, 0.5, (2, height, width)).astype(np.float32)
        made.append(SourceLight(y0, x0, share, model, 1.0, 0.1))
    return made


@pytest.fixture
def bands():
    rng = np.random.default_rng(5)
    return {
        name: (rng.normal(3, 1, SHAPE).astype(np.float32), parts(seed))
        for seed, name in enumerate(["", "g", "r"])
    }


def written(path, hdus):
    write_hdus(path, hdus)
    return fits.open(path, checksum=True)


def test_stamps_lead_to_light_and_model(bands, tmp_path):
    with written(tmp_path / "i.fits", isolated_hdus(bands)) as hdus:
        assert [hdu.name for hdu in hdus[1:]] == ["STAMPS", "LIGHT", "MODEL"]
        stamps = hdus["STAMPS"].data
        light, model = hdus["LIGHT"].data, hdus["MODEL"].data
        assert [(row["band"], row["label"]) for row in stamps] == [
            (band, label) for band in bands for label in (1, 2, 3)
        ]
        for row in stamps:
            image, sources = bands[row["band"]]
            part = sources[row["label"] - 1]
            y0, x0, ny, nx = (int(row[name]) for name in ("y0", "x0", "ny", "nx"))
            values = slice(row["start"], row["start"] + ny * nx)
            box = np.s_[y0 : y0 + ny, x0 : x0 + nx]
            assert np.array_equal(model[values].reshape(ny, nx), part.model)
            assert np.array_equal(light[values].reshape(ny, nx), part.share * image[box])
        # All values belong to a stamp, one after the other.
        sizes = (stamps["nx"] * stamps["ny"]).tolist()
        assert stamps["start"].tolist() == np.cumsum([0, *sizes[:-1]]).tolist()
        assert len(light) == len(model) == sum(sizes)


def test_an_image_without_sources_has_an_empty_table(tmp_path):
    image = np.ones(SHAPE, dtype=np.float32)
    with written(tmp_path / "i.fits", isolated_hdus({"": (image, [])}, 2, "nJy")) as hdus:
        assert len(hdus["STAMPS", 2].data) == 0
        assert {"label", "band", "start"} <= set(hdus["STAMPS", 2].columns.names)
        assert hdus["LIGHT", 2].size == hdus["MODEL", 2].size == 0
        units = [hdus[name, 2].header.get("BUNIT") for name in ("STAMPS", "LIGHT", "MODEL")]
        assert units == [None, "nJy", "nJy"]


def test_light_and_residual_make_the_image(bands, tmp_path):
    background = {name: np.full(SHAPE, 7, dtype=np.float32) for name in bands}
    mask = {name: np.zeros(SHAPE, dtype=bool) for name in bands}
    mask["g"][9:12, 13] = True
    before = {name: image.copy() for name, (image, _) in bands.items()}
    header = fits.Header([("CTYPE1", "RA---TAN"), ("CRVAL1", 150.5)])
    units = {"": "", "g": "nJy", "r": "adu"}
    hdus = residual_hdus(bands, background, mask, header, units, extver=3)
    names = ["RESIDUAL", "UNMODELLED", "BACKGROUND"]
    with written(tmp_path / "r.fits", hdus) as file:
        assert [hdu.name for hdu in file[1:]] == [
            *names, *(f"{name}_G" for name in names), *(f"{name}_R" for name in names)
        ]  # fmt: skip
        assert all(hdu.header["EXTVER"] == 3 for hdu in file[1:])
        assert all(hdu.header["CRVAL1"] == 150.5 for hdu in file[1:])
        of_bands = [hdu.header.get("BUNIT", "") for hdu in file[1:]]
        assert of_bands == [unit for unit in units.values() for _ in names]
        for band, (image, sources) in bands.items():
            end = f"_{band}" if band else ""
            total, modelled = file[f"RESIDUAL{end}"].data.copy(), file[f"UNMODELLED{end}"].data
            good = ~mask[band]
            assert np.array_equal(np.isnan(total), mask[band])
            assert np.array_equal(np.isnan(modelled), mask[band])
            models = np.zeros(SHAPE, dtype=np.float32)
            for part in sources:
                total[part.slices] += part.share * image[part.slices]
                models[part.slices] += part.model
            assert total[good] == pytest.approx(image[good], rel=1e-5)
            assert (modelled + models)[good] == pytest.approx(image[good], abs=1e-5)
            assert (file[f"BACKGROUND{end}"].data == 7).all()
            assert np.array_equal(image, before[band])
