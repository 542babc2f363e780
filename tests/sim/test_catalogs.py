from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from galsep.errors import CatalogError
from galsep.sim.catalogs import CATSIM_COLUMNS, CatsimCatalog, CosmosCatalog, population_table
from galsep.sim.population import Population
from galsep.sim.survey import load_survey

SURVEY = load_survey("LSST", ("g", "i"))


def table(n: int = 5) -> Table:
    """A CatSim table of ``n`` disks with i = 20, 21, ..."""
    values = {name: np.zeros(n) for name in CATSIM_COLUMNS}
    values |= {"fluxnorm_disk": np.full(n, 1e-18), "fluxnorm_bulge": np.full(n, 1e-18)}
    values |= {"a_d": np.full(n, 0.8), "b_d": np.full(n, 0.2), "a_b": np.full(n, 0.5)}
    values |= {"b_b": np.full(n, 0.5), "g_ab": np.arange(n) + 21.0, "i_ab": np.arange(n) + 20.0}
    return Table(values)


def write(path: Path, rows: Table) -> Path:
    rows.write(path, format="fits")
    return path


def test_galaxies_have_the_numbers_of_their_row(tmp_path):
    catalog = CatsimCatalog(write(tmp_path / "c.fits", table()), SURVEY, 22.5)
    rng = np.random.default_rng(1)
    drawn = [catalog.draw(rng) for _ in range(30)]
    assert {galaxy.magnitude[1] for galaxy in drawn} == {20.0, 21.0, 22.0}
    for galaxy in drawn:
        assert galaxy.kind == "galaxy"
        assert galaxy.magnitude[0] == galaxy.magnitude[1] + 1
        assert galaxy.profile.flux == pytest.approx(1.0)
        # Half bulge of 0.5", half disk of sqrt(0.8 * 0.2)" with q = 1/4.
        assert galaxy.half_light_radius == pytest.approx(0.5 * 0.5 + 0.5 * 0.4)
        assert np.hypot(galaxy.e1, galaxy.e2) == pytest.approx(0.75 / 1.25)
    # Turned at random.
    assert len({galaxy.e1 for galaxy in drawn}) == 30


def test_the_limit_is_in_the_detection_band(tmp_path):
    rows = table()
    rows["g_ab"] = 40.0
    assert CatsimCatalog(write(tmp_path / "c.fits", rows), SURVEY, 20.5).draw(
        np.random.default_rng(1)
    ).magnitude.tolist() == [40.0, 20.0]


@pytest.mark.parametrize("value", [np.nan, -99.0, 99.0])
@pytest.mark.parametrize("column", ["g_ab", "i_ab"])
def test_rows_with_unknown_magnitudes_are_left_out(tmp_path, column, value):
    rows = table()
    rows[column][:4] = value
    catalog = CatsimCatalog(write(tmp_path / "c.fits", rows), SURVEY, 25.0)
    rng = np.random.default_rng(1)
    assert {tuple(catalog.draw(rng).magnitude) for _ in range(10)} == {(25.0, 24.0)}


def test_missing_columns_are_named(tmp_path):
    rows = table()
    rows.remove_columns(["a_d"])
    with pytest.raises(CatalogError, match=r"c\.fits: lacks the column a_d$"):
        CatsimCatalog(write(tmp_path / "c.fits", rows), SURVEY, 25.0)
    rows.remove_columns(["g_ab", "fluxnorm_agn"])
    with pytest.raises(CatalogError, match=r"lacks the columns fluxnorm_agn, a_d, g_ab$"):
        CatsimCatalog(write(tmp_path / "d.fits", rows), SURVEY, 25.0)


def test_an_empty_selection_names_the_range(tmp_path):
    with pytest.raises(CatalogError, match=r"no galaxy left at i_ab <= 19\.0; .* 20\.00 to 24\.00"):
        CatsimCatalog(write(tmp_path / "c.fits", table()), SURVEY, 19.0)
    with pytest.raises(CatalogError, match="the catalogue holds no row at all"):
        CatsimCatalog(write(tmp_path / "d.fits", table(0)), SURVEY, 25.0)


def test_rows_without_light_are_passed_over(tmp_path):
    rows = table()
    rows["fluxnorm_disk"][:4] = rows["fluxnorm_bulge"][:4] = 0.0
    rows["i_ab"][4] = 23.0
    catalog = CatsimCatalog(write(tmp_path / "c.fits", rows), SURVEY, 25.0)
    rng = np.random.default_rng(1)
    assert {catalog.draw(rng).magnitude[1] for _ in range(5)} == {23.0}


def test_columns_of_text_are_refused(tmp_path):
    rows = table()
    rows["a_d"] = ["wide"] * 5
    with pytest.raises(CatalogError, match="a column is not numeric"):
        CatsimCatalog(write(tmp_path / "c.fits", rows), SURVEY, 25.0)


def test_what_is_no_table_is_refused(tmp_path):
    fits.PrimaryHDU(np.zeros((3, 3))).writeto(tmp_path / "image.fits")
    (tmp_path / "text.fits").write_text("ra,dec\n1,2\n")
    whole = write(tmp_path / "c.fits", table(500)).read_bytes()
    (tmp_path / "cut.fits").write_bytes(whole[:20_000])
    for name, match in (
        ("gone.fits", "no such file; check the path"),
        ("text.fits", "not a readable FITS table"),
        ("image.fits", "holds no FITS table"),
        ("cut.fits", "not a readable FITS table"),
    ):
        with pytest.raises(CatalogError, match=rf"{name}: {match}") as caught:
            CatsimCatalog(tmp_path / name, SURVEY, 25.0)
        assert "\n" not in str(caught.value)


def test_galseps_own_population_can_be_read_back(tmp_path):
    population = Population(SURVEY, 24.0)
    rows = population_table(population, 300, np.random.default_rng(2))
    assert set(rows.colnames) == {*CATSIM_COLUMNS, "g_ab", "i_ab"}
    assert rows["i_ab"].max() <= 24.0
    catalog = CatsimCatalog(write(tmp_path / "c.fits", rows), SURVEY, 24.0)
    rng = np.random.default_rng(3)
    drawn = [catalog.draw(rng) for _ in range(20)]
    assert all(galaxy.magnitude[1] in rows["i_ab"] for galaxy in drawn)
    # Sizes and shapes come back: pick the row by its magnitude.
    for galaxy in drawn:
        row = rows[rows["i_ab"] == galaxy.magnitude[1]][0]
        bulge = row["fluxnorm_bulge"] / (row["fluxnorm_bulge"] + row["fluxnorm_disk"])
        radius = (1 - bulge) * np.sqrt(row["a_d"] * row["b_d"])
        radius += bulge * np.sqrt(row["a_b"] * row["b_b"])
        assert galaxy.half_light_radius == pytest.approx(radius, rel=1e-6)


def test_the_catsim_sample(test_data):
    path = test_data / "catsim_sample.fits"
    catalog = CatsimCatalog(path, SURVEY, 28.0)
    rng = np.random.default_rng(4)
    magnitude = [catalog.draw(rng).magnitude[1] for _ in range(50)]
    assert 25.3 < min(magnitude) < max(magnitude) < 28.0
    with pytest.raises(CatalogError, match=r"no galaxy left at i_ab <= 25\.3; .* 25\.33 to 27\.93"):
        CatsimCatalog(path, SURVEY, 25.3)


def test_varied_real_galaxies_keep_their_light_and_change_their_shape(test_data):
    plain, varied = (
        CosmosCatalog(test_data / "cosmos", SURVEY, 25.3, varied=varied) for varied in (False, True)
    )
    for seed in range(4):
        one, other = (each.draw(np.random.default_rng(seed)) for each in (plain, varied))
        assert 0.7 < other.half_light_radius / one.half_light_radius < 1.4
        assert other.profile.flux == pytest.approx(one.profile.flux, rel=1e-6)
        assert other.profile != one.profile


def test_the_cosmos_sample(test_data):
    catalog = CosmosCatalog(test_data / "cosmos", SURVEY, 25.3)
    drawn = [catalog.draw(np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert drawn[0].magnitude.tolist() == drawn[1].magnitude.tolist()
    for galaxy in drawn:
        assert galaxy.kind == "galaxy"
        assert galaxy.magnitude[1] <= 25.3
        assert 0.05 < galaxy.half_light_radius < 3.0
        assert galaxy.profile.flux == pytest.approx(1.0, rel=0.05)
    with pytest.raises(CatalogError, match=r"no galaxy left at F814W <= 10\.0"):
        CosmosCatalog(test_data / "cosmos", SURVEY, 10.0)


def test_a_folder_without_real_galaxies_is_refused(tmp_path):
    with pytest.raises(CatalogError, match="not a folder with a GalSim real_galaxy_catalog"):
        CosmosCatalog(tmp_path, SURVEY, 25.0)
