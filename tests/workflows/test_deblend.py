import dataclasses
import shutil

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

import galsep
from galsep.config import DeblendConfig, SimulateConfig
from galsep.errors import (
    GalsepError,
    ImageError,
    OutputError,
    OutputExistsError,
    UsageError,
    WorkerError,
)
from galsep.io.runs import runs_to_footprints
from galsep.workflows import files, one_file
from galsep.workflows.deblend import deblend
from galsep.workflows.files import deblend_files, stack_catalogs
from galsep.workflows.simulate import simulate

CPU = DeblendConfig(device="cpu")


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    folder = tmp_path_factory.mktemp("field")
    config = SimulateConfig(
        field="300x260", density=60, galaxies="1-3", stars=0.1, max_mag=26, seed=3, workers=1
    )
    simulate(folder, config)
    return folder / "field_i.fits"


@pytest.fixture(scope="module")
def products(field, tmp_path_factory):
    output = tmp_path_factory.mktemp("out")
    config = DeblendConfig(device="cpu", preview=True, zeropoint=37.0)
    (result,) = deblend_files([field], output, config, command="galsep deblend field_i.fits")
    assert result.error is None
    return output, result


def test_label_map_masks_overlaps_and_catalogue_agree(products):
    output, result = products
    catalog = Table.read(output / "field_i_cat.fits")
    with fits.open(output / "field_i_segm.fits", checksum=True) as hdus:
        hdus.verify("exception")
        segm, noverlap = hdus["SEGM"].data, hdus["NOVERLAP"].data
        footprints = runs_to_footprints(hdus["MASKS"].data, len(catalog))
        parents = Table(hdus["PARENTS"].data)
    assert len(catalog) == result.n_sources > 10
    assert segm.dtype.kind == "i"
    assert catalog["label"].tolist() == list(range(1, len(catalog) + 1))
    assert np.bincount(segm.ravel(), minlength=len(catalog) + 1)[1:].tolist() == (
        catalog["area"].tolist()
    )
    counted = np.zeros(segm.shape, dtype=int)
    for row, footprint in zip(catalog, footprints, strict=True):
        bounds = tuple(row[f"bbox_{name}"] for name in ("xmin", "ymin", "xmax", "ymax"))
        assert footprint.bounds == bounds
        assert footprint.area == row["mask_area"]
        counted += footprint.to_full(segm.shape)
    assert np.array_equal(counted, noverlap)
    # A model reaches beyond its mask: of a faint source cut by a neighbour or by the edge, the
    # centroid may, too.
    inside = np.ones(len(catalog), dtype=bool)
    for axis in "xy":
        centroid, low, high = (
            np.asarray(catalog[name])
            for name in (f"{axis}_centroid", f"bbox_{axis}min", f"bbox_{axis}max")
        )
        inside &= (low <= centroid) & (centroid <= high)
        assert (np.maximum(low - centroid, centroid - high) < 5).all()
    assert inside.mean() > 0.9
    for footprint, share in zip(footprints, catalog["overlap_fraction"], strict=True):
        overlapped = (noverlap[footprint.slices][footprint.mask] > 1).mean()
        assert share == pytest.approx(overlapped, abs=1e-6)
    children = np.bincount(catalog["parent"], minlength=len(parents) + 1)[1:]
    assert children.tolist() == parents["n_child"].tolist()


def test_fluxes_and_magnitudes(products):
    catalog = products[1].catalog
    assert catalog["deblend_flux"].unit == "electron"
    flux = np.asarray(catalog["deblend_flux"])
    good = flux > 0
    assert np.allclose(catalog["mag"][good], 37 - 2.5 * np.log10(flux[good]))
    assert (catalog["deblend_flux_err"] > 0).all()
    assert ((catalog["score"] >= 0) & (catalog["score"] <= 1)).all()


def test_positions_follow_the_wcs(products, field):
    from astropy.wcs import WCS

    catalog = products[1].catalog
    wcs = WCS(fits.getheader(field))
    x, y = wcs.world_to_pixel_values(catalog["ra"], catalog["dec"])
    assert np.allclose(x, catalog["x_centroid"], atol=1e-4)
    assert np.allclose(y, catalog["y_centroid"], atol=1e-4)
    with fits.open(products[0] / "field_i_segm.fits") as hdus:
        assert WCS(hdus["SEGM"].header).wcs.compare(wcs.wcs)


def test_headers_say_how_it_was_made(products):
    header = fits.getheader(products[0] / "field_i_segm.fits")
    assert header["GALSEP"] == galsep.__version__
    assert len(header["WEIGHTS"]) == 64
    assert list(header["HISTORY"]) == ["galsep deblend field_i.fits"]


def test_the_same_input_gives_the_same_bytes(products, field, tmp_path):
    output, _ = products
    config = DeblendConfig(device="cpu", preview=True, zeropoint=37.0)
    deblend_files([field], tmp_path, config, command="galsep deblend field_i.fits")
    for path in output.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_python_gives_the_same_as_the_files(products, field):
    result = deblend(field, CPU)
    assert len(result) == products[1].n_sources
    array = deblend(fits.getdata(field), CPU)
    assert np.array_equal(array.segm, result.segm)
    assert np.isnan(array.catalog["ra"]).all()
    assert len(result.masks) == len(result)


@pytest.mark.parametrize("image", [np.zeros(5), np.zeros((2, 3, 4)), np.zeros((0, 3))])
def test_arrays_that_are_no_image(image):
    with pytest.raises(ImageError, match="2-D array"):
        deblend(image, CPU)


def test_arrays_with_a_wcs_that_is_none_of_the_sky():
    image = np.random.default_rng(1).normal(size=(60, 70)).astype(np.float32)
    image[25:32, 30:37] += 40
    flat = WCS(naxis=2)
    flat.wcs.ctype, flat.wcs.crval = ("RA---TAN", "DEC--TAN"), (40.0, -2.0)
    flat.wcs.cdelt, flat.wcs.crpix = (-1e-4, 1e-4), (30.0, 30.0)
    deep = WCS(naxis=3)
    deep.wcs.ctype, deep.wcs.crval = ("RA---TAN", "DEC--TAN", "FREQ"), (40.0, -2.0, 1e9)
    deep.wcs.cdelt, deep.wcs.crpix = (-1e-4, 1e-4, 1e6), (30.0, 30.0, 1.0)
    known, in_cube = (deblend(image, CPU, wcs=wcs).catalog for wcs in (flat, deep))
    assert len(known) == 1
    assert np.isfinite(known["ra"][0])
    assert (in_cube["ra"][0], in_cube["dec"][0]) == (known["ra"][0], known["dec"][0])
    for nothing in (WCS(fits.Header()), WCS(naxis=2)):
        with pytest.warns(RuntimeWarning, match="ra and dec will be NaN"):
            catalog = deblend(image, CPU, wcs=nothing).catalog
        assert len(catalog) == 1
        assert np.isnan(catalog["ra"][0])


def test_an_empty_sky_gives_an_empty_catalogue_with_its_columns(tmp_path):
    path = tmp_path / "sky.fits"
    fits.writeto(path, np.zeros((200, 180), dtype=np.float32))
    (result,) = deblend_files([path], tmp_path / "out", CPU)
    assert result.error is None
    assert result.n_sources == 0
    catalog = Table.read(tmp_path / "out" / "sky_cat.fits")
    assert "deblend_flux" in catalog.colnames


def test_one_bad_file_does_not_stop_the_others(field, tmp_path):
    bad = tmp_path / "bad.fits"
    bad.write_text("no FITS")
    results = deblend_files([bad, field], tmp_path / "out", CPU)
    assert isinstance(results[0].error, ImageError)
    assert results[1].error is None
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "field_i_segm.fits",
        "field_i_cat.fits",
    }
    table = stack_catalogs(results)
    assert table.colnames[0] == "file"
    assert set(table["file"]) == {"field_i.fits"}


def test_outputs_are_protected(field, products, tmp_path):
    output, _ = products
    with pytest.raises(OutputExistsError, match="--overwrite"):
        deblend_files([field], output, CPU)
    (result,) = deblend_files([field], output, CPU, skip_existing=True)
    assert result.skipped
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(UsageError, match="both write"):
        deblend_files([field, other / "field_i.fits.gz"], tmp_path / "out", CPU)


def test_no_output_is_a_file_that_is_read(tmp_path):
    """Nor one of another input."""
    images = [fits.ImageHDU(np.zeros((30, 30), np.float32)) for _ in range(2)]
    fits.HDUList([fits.PrimaryHDU(), *images]).writeto(tmp_path / "m.fits")
    for name in ("m_1", "m_segm"):
        fits.PrimaryHDU(np.zeros((30, 30), np.float32)).writeto(tmp_path / f"{name}.fits")
    whole = tmp_path / "m.fits"
    regions = dataclasses.replace(CPU, regions=True)
    with pytest.raises(UsageError, match=r"both write m_1\.reg; deblend them"):
        deblend_files([whole, tmp_path / "m_1.fits"], tmp_path / "out", regions)
    with pytest.raises(UsageError, match=r"m\.fits would write m_segm\.fits over \S*m_segm\.fits"):
        deblend_files([whole, tmp_path / "m_segm.fits"], tmp_path, CPU, overwrite=True)
    masked = dataclasses.replace(CPU, mask=f"{tmp_path}/m_segm.fits[0]")
    with pytest.raises(UsageError, match="would write m_segm"):
        deblend_files([whole], tmp_path / "." / "", masked, overwrite=True)
    assert not fits.getdata(tmp_path / "m_segm.fits").any()


def test_of_an_input_that_fails_late_no_output_is_there(field, tmp_path, monkeypatch):
    def full(path, *_, **__):
        raise OutputError(f"{path}: cannot write (No space left on device)")

    monkeypatch.setattr(one_file, "write_catalog", full)
    every = dataclasses.replace(CPU, isolated=True, residual=True, preview=True)
    (result,) = deblend_files([field], tmp_path, every)
    assert (
        str(result.error) == f"{tmp_path}/field_i_cat.fits: cannot write (No space left on device)"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(1, 3000), (3000, 1)])
def test_pictures_of_an_image_of_one_row(tmp_path, shape):
    fits.PrimaryHDU(np.random.default_rng(0).normal(size=shape)).writeto(tmp_path / "row.fits")
    config = dataclasses.replace(CPU, preview=True, report=True)
    (result,) = deblend_files([tmp_path / "row.fits"], tmp_path / "out", config)
    assert result.error is None
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_what_a_killed_call_left_beside_whole_outputs_is_tidied_up(field, products, tmp_path):
    output, _ = products
    for path in output.glob("field_i_*.fits"):
        shutil.copy(path, tmp_path)
    (tmp_path / ".lock.part.field_i_cat.fits").touch()
    (result,) = deblend_files([field], tmp_path, CPU, skip_existing=True)
    assert result.skipped
    assert {path.name for path in tmp_path.iterdir()} == {"field_i_segm.fits", "field_i_cat.fits"}


def test_real_frame(test_data, tmp_path):
    """NTT/EMMI: SExtractor's own catalogue of the frame is recovered by the network."""
    path = test_data / "sep_emmi.fits"
    (result,) = deblend_files([path], tmp_path, CPU)
    catalog = result.catalog
    assert np.isnan(catalog["ra"]).all()
    reference = np.loadtxt(test_data / "sep_emmi_sextractor.cat", comments="#", usecols=(1, 2))
    network = catalog[(catalog["flags"] & 1) == 0]
    dx = np.subtract.outer(reference[:, 0] - 1, np.asarray(network["x_centroid"]))
    dy = np.subtract.outer(reference[:, 1] - 1, np.asarray(network["y_centroid"]))
    assert (np.hypot(dx, dy).min(axis=1) < 2).sum() >= 60
    assert (catalog["flags"] & 1).mean() <= 0.15


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (MemoryError(), "there is not enough memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "there is not enough memory"),
        (KeyError("SEGM"), "unexpected KeyError: 'SEGM'; please report it"),
        (ImageError("b.fits: bad"), None),
        (WorkerError("worker 3 died"), "worker 3 died"),
    ],
)
def test_what_makes_a_file_fail_is_told_with_its_name(field, monkeypatch, error, what):
    monkeypatch.setattr(files, "deblend_file", raiser(error))
    (result,) = deblend_files([field], None, CPU)
    assert isinstance(result.error, GalsepError)
    assert str(result.error) == ("b.fits: bad" if what is None else f"{field}: {what}")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_inside_a_library_ends_all_files(field, monkeypatch, stop):
    error = RuntimeError("Error calling __set_name__")
    error.__cause__ = stop()
    monkeypatch.setattr(files, "deblend_file", raiser(error))
    with pytest.raises(stop):
        deblend_files([field], None, CPU)


def raiser(error):
    def fail(*_):
        raise error

    return fail
