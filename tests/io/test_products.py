import csv
import io
import sys

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.io.votable import parse
from astropy.table import Table
from astropy.wcs import WCS

from galsep.errors import OutputError, UsageError
from galsep.flags import Flag
from galsep.io.catalog import catalog_columns, make_catalog, stack_catalogs
from galsep.io.image import read_plane
from galsep.io.products import (
    catalog_text,
    check_catalog_format,
    segmentation_hdus,
    wcs_cards,
    write_catalog,
    write_hdus,
)
from galsep.io.runs import labels_to_runs, runs_to_footprints
from galsep.scene import Footprint

SHAPE = (150, 90)


def sky() -> fits.Header:
    """A WCS with a SIP distortion, and cards that have nothing to do with it."""
    header = fits.Header()
    header["OBJECT"] = "Abell 370"
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN-SIP", "DEC--TAN-SIP"
    header["CRVAL1"], header["CRVAL2"] = 39.97, -1.58
    header["CRPIX1"], header["CRPIX2"] = 45.5, 75.5
    header["CD1_1"], header["CD1_2"] = -5.1e-5, 2e-6
    header["CD2_1"], header["CD2_2"] = 2e-6, 5.1e-5
    header["A_ORDER"], header["B_ORDER"] = 2, 2
    header["A_2_0"], header["B_0_2"], header["A_DMAX"] = 1e-5, -2e-5, 1.0
    header["RADESYS"], header["EQUINOX"] = "ICRS", 2000.0
    header["EXPTIME"] = 1200.0
    return header


def scene() -> dict:
    """Two overlapping masks, their label map and their blob."""
    footprints = [
        Footprint(3, 4, np.ones((20, 30), bool)),
        Footprint(10, 20, np.eye(40, dtype=bool)),
    ]
    segm = np.zeros(SHAPE, np.int32)
    noverlap = np.zeros(SHAPE, np.uint8)
    for label, footprint in enumerate(footprints, start=1):
        segm[footprint.to_full(SHAPE)] = label
        noverlap += footprint.to_full(SHAPE)
    parents = Table({"parent": [1], "x": [20.5], "status": np.array(["split"])})
    parents["x"].unit = "pix"
    masks = labels_to_runs(footprints)
    return {"segm": segm, "noverlap": noverlap, "masks": masks, "parents": parents}


def write_scene(path, **changes) -> None:
    options = {"header": fits.Header(), **scene(), **changes}
    kept = {name: options.pop(name) for name in ("cards", "history") if name in options}
    write_hdus(path, segmentation_hdus(**options), **kept)


def test_segmentation_holds_what_was_given(tmp_path):
    write_scene(tmp_path / "s.fits", extver=3)
    given = scene()
    with fits.open(tmp_path / "s.fits", checksum=True) as hdus:
        hdus.verify("exception")
        assert [hdu.name for hdu in hdus] == ["PRIMARY", "SEGM", "NOVERLAP", "MASKS", "PARENTS"]
        assert [hdu.ver for hdu in hdus[1:]] == [3, 3, 3, 3]
        assert hdus["SEGM", 3].data.dtype == np.int32
        assert hdus["NOVERLAP", 3].data.dtype == np.uint8
        np.testing.assert_array_equal(hdus["SEGM", 3].data, given["segm"])
        np.testing.assert_array_equal(hdus["NOVERLAP", 3].data, given["noverlap"])
        masks = runs_to_footprints(hdus["MASKS", 3].data)
        assert [mask.area for mask in masks] == [600, 40]
        overlap = sum(mask.to_full(SHAPE).astype(np.uint8) for mask in masks)
        np.testing.assert_array_equal(overlap, given["noverlap"])
        assert hdus["PARENTS", 3].data["status"].tolist() == ["split"]
        assert hdus["PARENTS", 3].columns["x"].unit == "pix"
    with fits.open(tmp_path / "s.fits", disable_image_compression=True) as hdus:
        assert all(hdu.verify_checksum() == 1 and hdu.verify_datasum() == 1 for hdu in hdus)


def test_any_label_survives_compression(tmp_path):
    rng = np.random.default_rng(5)
    segm = rng.integers(0, 2**31 - 1, SHAPE, dtype=np.int32)
    noverlap = rng.integers(0, 256, SHAPE, dtype=np.uint8)
    write_scene(tmp_path / "s.fits", segm=segm, noverlap=noverlap)
    with fits.open(tmp_path / "s.fits") as hdus:
        np.testing.assert_array_equal(hdus["SEGM"].data, segm)
        np.testing.assert_array_equal(hdus["NOVERLAP"].data, noverlap)


def test_equal_segmentations_are_equal_bytes(tmp_path):
    for name in ("a.fits", "b.fits"):
        write_scene(
            tmp_path / name, cards={"GALSEP": ("0.1", "version")}, history=["galsep deblend"]
        )
    assert (tmp_path / "a.fits").read_bytes() == (tmp_path / "b.fits").read_bytes()


def test_a_segmentation_without_sources(tmp_path):
    parents = Table({"parent": np.zeros(0, "i4"), "status": np.zeros(0, "U9")})
    nothing = np.zeros((1, 1))
    write_scene(
        tmp_path / "s.fits",
        segm=nothing.astype(np.int32),
        noverlap=nothing.astype(np.uint8),
        masks=labels_to_runs([]),
        parents=parents,
    )
    with fits.open(tmp_path / "s.fits", checksum=True) as hdus:
        assert len(hdus["MASKS"].data) == len(hdus["PARENTS"].data) == 0
        assert hdus["MASKS"].columns.names == ["label", "y", "x0", "x1"]
        assert hdus["SEGM"].data.tolist() == [[0]]


@pytest.mark.parametrize(
    "changes",
    [
        {"segm": np.zeros(SHAPE, np.int64)},
        {"noverlap": np.zeros(SHAPE, np.int32)},
        {"noverlap": np.zeros((2, 2), np.uint8)},
    ],
)
def test_arrays_of_another_kind_are_refused(changes):
    with pytest.raises(ValueError, match="segm"):
        segmentation_hdus(**{"header": fits.Header(), **scene(), **changes})


def test_provenance_goes_to_the_primary_header(tmp_path):
    cards = {
        "GALSEP": ("0.1.0", "version of galsep"),
        "SCORECUT": (0.5, "x" * 100),
        "WEIGHTS": ("f" * 64, "SHA-256 of the network weights"),
        "NOTHING": (None, "no value"),
        "NAN": (float("nan"), "no value either"),
    }
    write_scene(
        tmp_path / "s.fits", cards=cards, history=["galsep deblend Señor_π.fits", "y" * 150]
    )
    header = fits.getheader(tmp_path / "s.fits")
    assert header["GALSEP"] == "0.1.0"
    assert header.comments["GALSEP"] == "version of galsep"
    assert header["SCORECUT"] == 0.5
    assert header["WEIGHTS"] == "f" * 64
    assert header["NOTHING"] is header["NAN"] is None
    assert header["HISTORY"][0] == "galsep deblend Senor_\\u03c0.fits"
    assert "".join(header["HISTORY"][1:]) == "y" * 150


def test_segmentation_lies_where_the_image_does(tmp_path):
    image = fits.PrimaryHDU(np.zeros(SHAPE, np.float32), sky())
    image.writeto(tmp_path / "image.fits")
    plane = read_plane(tmp_path / "image.fits")
    cards = wcs_cards(plane)
    assert "A_2_0" in cards
    assert not {"OBJECT", "EXPTIME", "NAXIS", "SIMPLE"} & set(cards)
    write_scene(tmp_path / "s.fits", header=cards)
    for name in ("SEGM", "NOVERLAP"):
        header = fits.getheader(tmp_path / "s.fits", name)
        x, y = np.array([0.0, 89.0, 45.5]), np.array([0.0, 149.0, 3.0])
        here, there = (wcs.all_pix2world(x, y, 0) for wcs in (WCS(header), plane.wcs))
        np.testing.assert_array_equal(here, there)


def test_distortions_by_polynomial_travel(tmp_path):
    header = sky()
    header["CTYPE1"], header["CTYPE2"] = "RA---TPV", "DEC--TPV"
    for name in ("A_ORDER", "B_ORDER", "A_2_0", "B_0_2", "A_DMAX"):
        del header[name]
    header["PV1_0"], header["PV1_1"], header["PV1_4"] = 0.0, 1.0, 1e-3
    header["PV2_0"], header["PV2_1"] = 0.0, 1.0
    fits.PrimaryHDU(np.zeros(SHAPE, np.float32), header).writeto(tmp_path / "image.fits")
    cards = wcs_cards(read_plane(tmp_path / "image.fits"))
    assert {"PV1_4", "PV2_1", "CD1_2"} <= set(cards)


def test_axes_of_one_pixel_leave_the_wcs(tmp_path):
    header = fits.Header()
    for axis, (kind, value) in enumerate((("RA---TAN", 10.0), ("FREQ", 1e9), ("DEC--TAN", 5.0)), 1):
        header[f"CTYPE{axis}"], header[f"CRVAL{axis}"] = kind, value
        header[f"CRPIX{axis}"], header[f"CDELT{axis}"] = 1.0, 1e-4
    header["PC3_1"] = 0.1
    header["WCSAXES"] = 3
    header["WCSNAME"] = "sky"
    cube = np.zeros((SHAPE[0], 1, SHAPE[1]), np.float32)
    fits.PrimaryHDU(cube, header).writeto(tmp_path / "image.fits")
    plane = read_plane(tmp_path / "image.fits")
    cards = wcs_cards(plane)
    assert (cards["WCSAXES"], cards["CTYPE1"], cards["CTYPE2"]) == (2, "RA---TAN", "DEC--TAN")
    assert (cards["CRVAL2"], cards["PC2_1"]) == (5.0, 0.1)
    assert "CTYPE3" not in cards
    here, there = (wcs.all_pix2world(5.0, 7.0, 0) for wcs in (WCS(cards), plane.wcs))
    np.testing.assert_allclose(here, there, rtol=1e-12)


def test_no_wcs_gives_no_cards(tmp_path):
    fits.PrimaryHDU(np.zeros(SHAPE, np.float32)).writeto(tmp_path / "image.fits")
    assert len(wcs_cards(read_plane(tmp_path / "image.fits"))) == 0


def columns(n: int = 3, bands=(), **options) -> dict:
    return {c.name: np.arange(n) + 0.25 for c in catalog_columns(bands, **options)}


def empty_catalog(**options) -> Table:
    given = columns(0, options.get("bands", ()), zeropoint=options.get("zeropoint", False))
    return make_catalog(given, **options)


def catalog(unit: str = "nJy") -> Table:
    cards = {"GALSEP": ("0.1.0", "version"), "SCORECUT": (0.5, "")}
    return make_catalog(columns(), unit=unit, cards=cards, history=["galsep deblend a.fits"])


def test_columns_of_the_design():
    names = [column.name for column in catalog_columns()]
    assert names[:4] == ["label", "parent", "parent_n_child", "ext"]
    assert names[-4:] == ["class_star", "flags", "flags_dq", "tile_id"]
    assert len(names) == len(set(names)) == 28
    assert "mag" not in names
    full = [column.name for column in catalog_columns(("g", "r"), zeropoint=True)]
    start = full.index("deblend_flux_err") + 1
    assert full[start : start + 11] == [
        *("deblend_flux_g", "deblend_flux_err_g", "deblend_flux_r", "deblend_flux_err_r"),
        *("blendedness", "mag", "mag_err", "mag_g", "mag_err_g", "mag_r", "mag_err_r"),
    ]


def test_each_band_has_its_own_unit():
    bands = {"g": "nJy", "r": "adu", "z": "furlong2"}
    table = make_catalog(columns(3, bands), bands=bands)
    assert table["deblend_flux"].unit is None
    for end in ("", "_err"):
        assert table[f"deblend_flux{end}_g"].unit == u.nJy
        assert table[f"deblend_flux{end}_r"].unit == u.adu
        assert table[f"deblend_flux{end}_z"].unit is None
        assert table[f"deblend_flux{end}_z"].description.endswith("; unit: furlong2")
    assert "BUNIT" not in table.meta


def test_a_catalogue_is_in_order_with_types_and_units():
    given = columns()
    table = make_catalog(dict(reversed(given.items())), unit="nJy")
    assert table.colnames == list(given)
    assert table["label"].dtype == np.int32
    assert table["flags_dq"].dtype == np.int64
    assert table["score"].dtype == np.float32
    assert table["ra"].unit == u.deg
    assert table["area"].unit == u.pix**2
    assert table["segment_flux"].unit == u.nJy
    assert table["score"].unit is None
    assert all(column.description for column in table.itercols())
    assert table.meta["BUNIT"] == "nJy"
    assert table.meta["FLAGS"]["network_missed"] == Flag.NETWORK_MISSED == 1


def test_wrong_columns_are_refused():
    given = columns()
    del given["score"]
    with pytest.raises(ValueError, match=r"missing: \['score'\], unknown: \['mag'\]"):
        make_catalog({**given, "mag": given["ra"]})
    with pytest.raises(ValueError, match="column ra has shape"):
        make_catalog({**columns(), "ra": np.zeros(2)})


@pytest.mark.parametrize(
    ("bunit", "unit"),
    [
        ("", None),
        ("nJy", u.nJy),
        ("ADU", u.adu),
        ("counts", u.ct),
        ("ELECTRONS/S", u.electron / u.s),
        ("e-/s", u.electron / u.s),
        ("electron", u.electron),
        ("10**(-17) erg/s/cm**2", 1e-17 * u.erg / u.s / u.cm**2),
        ("arbitrary units", None),
        ("1PB(9999999)", None),
    ],
)
def test_flux_units(tmp_path, bunit, unit):
    table = empty_catalog(unit=bunit)
    assert table["deblend_flux"].unit == unit
    note = f"; unit: {bunit}"
    assert table["deblend_flux"].description.endswith(note) == (unit is None and bunit != "")
    # A unit that FITS lacks stays readable in the file, and reading it warns of nothing.
    write_catalog(tmp_path / "c.fits", table)
    stored = Table.read(tmp_path / "c.fits")
    index = stored.colnames.index("deblend_flux") + 1
    header = fits.getheader(tmp_path / "c.fits", "CATALOG")
    if stored["deblend_flux"].unit is None and bunit:
        assert "unit:" in header[f"TCOMM{index}"]
    for text in ("ecsv", "csv", "vot"):
        catalog_text(table, text)


def test_fits_catalogue(tmp_path):
    write_catalog(tmp_path / "c.fits", catalog(), comments={"GALSEP": "version of galsep"})
    with fits.open(tmp_path / "c.fits", checksum=True) as hdus:
        hdus.verify("exception")
        assert hdus[0].header["GALSEP"] == "0.1.0"
        assert hdus[0].header.comments["GALSEP"] == "version of galsep"
        assert hdus[0].header["BUNIT"] == "nJy"
        assert list(hdus[0].header["HISTORY"]) == ["galsep deblend a.fits"]
        header = hdus["CATALOG"].header
        for flag in Flag:
            assert header[f"FLAG{flag.value}"] == flag.name.lower()
            assert header.comments[f"FLAG{flag.value}"] == flag.description
        assert header["TUNIT5"] == "deg"
        assert header["TCOMM1"].startswith("value of the source in SEGM")
        assert "DATASUM" in header
    back = Table.read(tmp_path / "c.fits")
    assert back.colnames == catalog().colnames
    assert back["segment_flux"].unit == u.nJy
    np.testing.assert_array_equal(back["ra"], [0.25, 1.25, 2.25])


def test_ecsv_keeps_everything():
    text = catalog_text(catalog("electron"))
    assert text.startswith("# %ECSV")
    back = Table.read(text, format="ascii.ecsv")
    given = catalog("electron")
    assert back.meta == given.meta
    for name in given.colnames:
        assert back[name].unit == given[name].unit
        assert back[name].dtype == given[name].dtype
        assert back[name].description == given[name].description
        np.testing.assert_array_equal(back[name], given[name])


def test_csv_is_plain():
    rows = list(csv.reader(io.StringIO(catalog_text(catalog(), "csv"))))
    assert rows[0] == catalog().colnames
    assert len(rows) == 4
    assert rows[1][:5] == ["0", "0", "0", "0", "0.25"]


def test_votable_is_valid_and_keeps_meta():
    document = parse(io.BytesIO(catalog_text(catalog(), "vot").encode()), verify="exception")
    table = document.get_first_table()
    assert [field.name for field in table.fields] == catalog().colnames
    assert str(table.get_field_by_id("segment_flux").unit) == "nJy"
    infos = [(info.name, info.value) for info in document.resources[0].infos]
    assert ("GALSEP", "0.1.0") in infos
    assert ("HISTORY", "galsep deblend a.fits") in infos


def test_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", exc_type=ImportError)
    write_catalog(tmp_path / "c.parquet", catalog(), "parquet")
    table = parquet.read_table(tmp_path / "c.parquet")
    assert table.column_names == catalog().colnames
    assert table["ra"].to_pylist() == [0.25, 1.25, 2.25]


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=r"pip install 'galsep\[parquet\]'"):
        write_catalog(tmp_path / "c.parquet", catalog(), "parquet")
    assert list(tmp_path.iterdir()) == []


def test_parquet_with_a_pyarrow_that_does_not_load_says_why(tmp_path, monkeypatch):
    def fail(_):
        raise ImportError("pyarrow requires NumPy 2.0 or newer, found 1.26.0")

    monkeypatch.setattr("galsep.io.products.importlib.import_module", fail)
    with pytest.raises(UsageError, match=r"cannot be loaded here \(pyarrow requires NumPy"):
        write_catalog(tmp_path / "c.parquet", catalog(), "parquet")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["fits", "ecsv", "csv", "vot"])
def test_files_hold_the_text_and_equal_catalogues_are_equal_bytes(tmp_path, name):
    for copy in ("a", "b"):
        write_catalog(tmp_path / f"{copy}.{name}", catalog(), name)
    content = (tmp_path / f"a.{name}").read_bytes()
    assert content == (tmp_path / f"b.{name}").read_bytes()
    if name != "fits":
        assert content.decode() == catalog_text(catalog(), name)


@pytest.mark.parametrize("name", ["fits", "ecsv", "csv", "vot"])
def test_an_empty_catalogue_has_the_full_schema(tmp_path, name):
    table = empty_catalog(bands={"g": "adu"}, zeropoint=True, unit="adu")
    path = tmp_path / f"c.{name}"
    write_catalog(path, table, name)
    formats = {"fits": "fits", "ecsv": "ascii.ecsv", "csv": "ascii.csv", "vot": "votable"}
    back = Table.read(path, format=formats[name])
    assert len(back) == 0
    assert back.colnames == [c.name for c in catalog_columns(("g",), zeropoint=True)]


def test_nan_survives_as_text():
    table = make_catalog({**columns(), "ra": np.full(3, np.nan)})
    for name in ("ecsv", "csv"):
        back = Table.read(catalog_text(table, name), format=f"ascii.{name}")
        assert np.isnan(back["ra"]).all()


def test_binary_formats_do_not_go_to_standard_output():
    for name in ("fits", "parquet"):
        with pytest.raises(UsageError, match=f"a {name} catalogue is binary"):
            catalog_text(catalog(), name)


def test_unknown_formats_are_refused():
    with pytest.raises(UsageError, match="one of fits, ecsv, csv, vot, parquet, got 'hdf5'"):
        check_catalog_format("hdf5")


def test_a_folder_that_is_not_there_is_an_output_error(tmp_path):
    for name in ("fits", "csv"):
        with pytest.raises(OutputError, match="cannot write"):
            write_catalog(tmp_path / "gone" / "c", catalog(), name)


def test_catalogues_of_several_files(tmp_path):
    one, other = catalog("nJy"), catalog("adu")
    other.meta["HISTORY"] = ["galsep deblend b.fits"]
    joined = stack_catalogs(["a.fits", "größer.fits"], [one, other])
    assert joined.colnames == ["file", *one.colnames]
    assert joined["file"].tolist() == ["a.fits"] * 3 + ["größer.fits"] * 3
    assert joined["ra"].unit == u.deg
    assert joined["deblend_flux"].unit is None
    assert joined["label"].dtype == one["label"].dtype
    assert joined.meta["HISTORY"] == ["galsep deblend a.fits", "galsep deblend b.fits"]
    assert "BUNIT" not in joined.meta
    write_catalog(tmp_path / "c.fits", joined)
    stored = Table.read(tmp_path / "c.fits")
    assert stored["file"].tolist()[-1] == "gro\\xdfer.fits"


def test_catalogues_of_empty_files():
    joined = stack_catalogs(["a.fits"], [empty_catalog()])
    assert len(joined) == 0
    assert joined["file"].dtype.kind == "U"
