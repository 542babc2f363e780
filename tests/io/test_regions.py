"""DS9 regions, read back with the library that DS9's format is tested with."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from astropy import units
from astropy.table import Table
from astropy.wcs import WCS

from galsep.errors import UsageError
from galsep.io.atomic import partial_files, whole_file
from galsep.io.regions import regions_text, write_regions

regions = pytest.importorskip("regions")


def catalog(**changes):
    columns = {
        "label": [1, 2, 3],
        "x_centroid": [10.25, 40.0, 70.5],
        "y_centroid": [20.5, 30.0, 5.0],
        "semimajor_axis": [4.0, 2.0, 3.0],
        "semiminor_axis": [2.0, 2.0, 1.0],
        "orientation": [30.0, 0.0, -75.0],
        "mask_area": [100, 50, 30],
    }
    return Table(columns | changes)


def tan(frame="icrs", mirrored=False, rotation=25.0):
    wcs = WCS(naxis=2)
    names = ("GLON-TAN", "GLAT-TAN") if frame == "galactic" else ("RA---TAN", "DEC--TAN")
    wcs.wcs.ctype = names
    wcs.wcs.crpix, wcs.wcs.crval = [40, 30], [150, 62]
    wcs.wcs.cdelt = [5e-5 if mirrored else -5e-5, 5e-5]
    cos, sin = np.cos(np.radians(rotation)), np.sin(np.radians(rotation))
    wcs.wcs.pc = [[cos, -sin], [sin, cos]]
    if frame != "galactic":
        wcs.wcs.radesys = frame.upper()
    return wcs


def read(path):
    return regions.Regions.read(str(path), format="ds9")


def check(found, table):
    """Ellipses in pixels are those of the table; angles count modulo half a turn."""
    assert len(found) == len(table)
    for one, row in zip(found, table, strict=True):
        assert str(one.meta["text"]) == str(row["label"])
        assert (one.center.x, one.center.y) == pytest.approx(
            (row["x_centroid"], row["y_centroid"]), abs=2e-3
        )
        assert one.width == pytest.approx(4 * row["semimajor_axis"], rel=2e-3)
        assert one.height == pytest.approx(4 * row["semiminor_axis"], rel=2e-3)
        if row["semimajor_axis"] != row["semiminor_axis"]:
            turn = (one.angle.to_value("deg") - row["orientation"] + 90) % 180 - 90
            assert abs(turn) < 0.01


def test_pixels_without_a_wcs(tmp_path):
    path = tmp_path / "a.reg"
    write_regions(path, catalog())
    assert "image" in path.read_text()
    # DS9 counts from 1.
    assert "ellipse(11.2500,21.5000,8.0000,4.0000,30.0000) # text={1}" in path.read_text()
    check(read(path), catalog())


@pytest.mark.parametrize("frame", ["icrs", "fk5", "fk4", "galactic"])
@pytest.mark.parametrize("mirrored", [False, True])
def test_icrs_with_a_wcs_of_any_frame(tmp_path, frame, mirrored):
    path = tmp_path / "a.reg"
    wcs = tan(frame, mirrored)
    write_regions(path, catalog(), wcs)
    assert "icrs" in path.read_text()
    found = read(path)
    sky = wcs.pixel_to_world(catalog()["x_centroid"], catalog()["y_centroid"]).icrs
    assert [one.center.ra.deg for one in found] == pytest.approx(sky.ra.deg, abs=1e-7)
    assert [one.center.dec.deg for one in found] == pytest.approx(sky.dec.deg, abs=1e-7)
    if frame == "icrs":
        check([one.to_pixel(wcs) for one in found], catalog())
    # In whatever frame: the tips of the major axes lie where they do in pixels.
    for one, row in zip(found, catalog(), strict=True):
        tip = one.center.directional_offset_by(one.angle - 90 * units.deg, one.width / 2)
        x, y = wcs.world_to_pixel(tip)
        angle = np.degrees(np.arctan2(y - row["y_centroid"], x - row["x_centroid"]))
        if row["semimajor_axis"] != row["semiminor_axis"]:
            assert abs((angle - row["orientation"] + 90) % 180 - 90) < 0.05


def test_sources_without_moments_are_discs_of_their_masks():
    table = catalog(
        semimajor_axis=[np.nan, 0.0, 0.01], semiminor_axis=[np.nan, 0.0, 0.01],
        orientation=[np.nan, 0.0, 0.0],
    )  # fmt: skip
    found = regions.Regions.parse(regions_text(table), format="ds9")
    widths = [2 * np.sqrt(100 / np.pi), 2 * np.sqrt(50 / np.pi), 1.0]
    assert [one.width for one in found] == pytest.approx(widths, abs=1e-3)
    assert [one.height for one in found] == pytest.approx(widths, abs=1e-3)


@pytest.mark.parametrize("wcs", [None, tan()])
def test_one_source_and_none(wcs):
    (only,) = regions.Regions.parse(regions_text(catalog()[:1], wcs), format="ds9")
    assert str(only.meta["text"]) == "1"
    text = regions_text(catalog()[:0], wcs)
    assert text.startswith("# Region file format: DS9")
    assert len(regions.Regions.parse(text, format="ds9")) == 0


def test_without_the_library_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"pip install 'galsep\[regions\]'"):
        regions_text(catalog())


def test_what_is_killed_while_it_writes_leaves_what_is_tidied_up(tmp_path, monkeypatch):
    target, left = tmp_path / "a.reg", []
    write = Path.write_text

    def seen(self, *args, **kwargs):
        write(self, *args, **kwargs)
        left.extend(tmp_path.iterdir())

    monkeypatch.setattr(Path, "write_text", seen)
    with whole_file(target) as file:
        write_regions(file, catalog())
        assert left == [file]
        assert partial_files([target]) == {target: left}
    assert read(target)
