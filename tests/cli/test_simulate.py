"""``galsep simulate``: exit codes and the data it leaves."""

import tomllib

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from galsep.io.dataset import load_dataset

from .conftest import names


def test_a_data_set(galsep, tmp_path):
    folder = tmp_path / "set"
    outcome = galsep(
        "simulate", folder, "--n", 20, "--galaxies", "1-3", "--stars", 0.5, "--bands", "g,r,i",
        "--seed", 7, "--workers", 1,
    )  # fmt: skip
    assert outcome.code == 0
    assert outcome.out == ""
    data = load_dataset(folder)
    assert outcome.err == (
        f"wrote 20 blends with {len(data.truth)} sources to {folder} (2 files)\n"
    )
    assert len(data) == 20
    assert data.meta.bands == ("g", "r", "i")
    assert data.meta.seed == 7
    assert data.images.shape == (20, 3, 120, 120)
    assert set(np.diff(data.first).tolist()) <= {1, 2, 3}
    assert {"star", "galaxy"} == set(data.truth["class"].tolist())
    assert names(folder) == ["dataset.toml", "shard-0000.fits"]


def test_the_same_seed_gives_the_same_bytes(galsep, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert galsep("simulate", tmp_path / name, "--n", 5, "--seed", seed, "-q").code == 0
    a, b, c = ((tmp_path / name / "shard-0000.fits").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_quiet_and_verbose(galsep, tmp_path):
    assert galsep("simulate", tmp_path / "a", "--n", 3, "--workers", 1, "-q").err == ""
    outcome = galsep("simulate", tmp_path / "b", "--n", 3, "--workers", 1, "-v")
    assert "seed=1" in outcome.err
    assert "simulating: 3 in" in outcome.err


def test_a_preview(galsep, tmp_path):
    outcome = galsep("simulate", tmp_path, "--n", 6, "--workers", 1, "--preview")
    assert outcome.code == 0
    assert {"preview-blends.png", "preview-augmentation.png"} < set(names(tmp_path))


@pytest.mark.filterwarnings("ignore:'electron' did not parse:astropy.units.UnitsWarning")
def test_a_field_of_sources_that_stand_alone(galsep, tmp_path):
    outcome = galsep("simulate", tmp_path / "sky", "--field", "160x130", "--density", 60)
    assert outcome.code == 0
    assert "wrote a field with" in outcome.err
    with fits.open(tmp_path / "sky" / "field_i.fits") as hdus:
        assert hdus[0].data.shape == (130, 160)
        assert hdus[0].header["CTYPE1"] == "RA---TAN"
    truth = Table.read(tmp_path / "sky" / "truth.fits", hdu="TRUTH")
    area = 160 * 130 * (0.2 / 60) ** 2
    assert len(truth) == round(60 * area)


@pytest.mark.parametrize(
    ("in_file", "flags", "galaxies"),
    [
        ("", [], "2"),
        ("", ["--field", "200x200"], "1"),
        ("", ["--field", "200x200", "--galaxies", "3"], "3"),
        ('field = "200x200"\n', [], "1"),
        ('field = "200x200"\ngalaxies = "2-4"\n', [], "2-4"),
        ('galaxies = "2-4"\n', ["--field", "200x200"], "2-4"),
        ('galaxies = "2-4"\n', ["--galaxies", "5"], "5"),
    ],
)
def test_flags_win_over_the_file_over_defaults(galsep, tmp_path, in_file, flags, galaxies):
    file = tmp_path / "settings.toml"
    file.write_text(in_file)
    outcome = galsep("simulate", "--config", file, *flags, "--dump-config")
    assert (outcome.code, outcome.err) == (0, "")
    assert tomllib.loads(outcome.out)["galaxies"] == galaxies
    assert names(tmp_path) == ["settings.toml"]


def test_a_catalogue_alone(galsep, tmp_path):
    path = tmp_path / "galaxies.fits"
    outcome = galsep("simulate", "--write-catalog", path, "--n", 30, "--bands", "g,i")
    assert outcome.code == 0
    assert outcome.err == f"wrote 30 galaxies to {path}\n"
    table = Table.read(path)
    assert len(table) == 30
    assert {"fluxnorm_bulge", "a_d", "g_ab", "i_ab"} <= set(table.colnames)
    assert galsep("simulate", "--write-catalog", path, "--n", 30).code == 3
    drawn = galsep(
        "simulate", tmp_path / "set", "--catalog", path, "--bands", "g,i", "--n", 4, "-q"
    )
    assert drawn.code == 0
    assert len(load_dataset(tmp_path / "set")) == 4


def test_varied_scenes(galsep, tmp_path):
    outcome = galsep(
        "simulate", tmp_path / "set", "--n", 6, "--galaxies", "1-3", "--stars", 0.3, "--varied",
        "--depth", -0.5, "--pixel-scale", "0.15-0.3", "--workers", 1, "-q",
    )  # fmt: skip
    assert outcome.code == 0
    data = load_dataset(tmp_path / "set")
    assert data.meta.population["varied"] is True
    assert data.meta.population["depth"] == -0.5
    assert ((data.pixel_scale >= 0.15) & (data.pixel_scale <= 0.3)).all()
    assert (np.hypot(data.truth["e1"], data.truth["e2"]) < 1).all()
    assert (data.light >= 0).all()


def test_varied_may_stand_in_the_file(galsep, tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text('varied = true\npixel_scale = "0.3"\ndepth = 1\n')
    outcome = galsep("simulate", "--config", file, "--dump-config", "--depth", 2)
    settings = tomllib.loads(outcome.out)
    assert (settings["varied"], settings["pixel_scale"], settings["depth"]) == (True, "0.3", 2.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "OUT"),
        (["out", "--depth", "5.5"], "depth must lie between -5.0 and 5.0, got 5.5"),
        (["out", "--depth", "nan"], "depth"),
        (["out", "--pixel-scale", "0.4-0.1"], "0.1-0.4"),
        (["out", "--pixel-scale", "fine"], "fine"),
        (["out", "--pixel-scale", "0"], "pixel_scale must lie between"),
        (["out", "--pixel-scale", "0.1-3"], "pixel_scale must lie between"),
        (["out", "--pixel-scale", "nan"], "pixel_scale must lie between"),
        (["out", "--pixel-scale", "0.1", "--max-shift", "6.5"], "max_shift"),
        (["--write-catalog", "w.fits", "--varied"], "varied"),
        (["out", "--survey", "Hubble"], "LSST"),
        (["out", "--bands", "q"], "u, g, r, i, z, y"),
        (["out", "--bands", "i,i"], "i,i"),
        (["out", "--bands", ""], "bands"),
        (["out", "--galaxies", "6-1"], "1-6"),
        (["out", "--galaxies", "some"], "some"),
        (["out", "--stars", "2"], "stars"),
        (["out", "--n", "0"], "n must lie"),
        (["out", "--density", "50"], "--density is that of a field"),
        (["out", "--field", "200x200", "--n", "5"], "--n counts blends"),
        (["--write-catalog", "c.fits", "--preview"], "--preview draws what is written to OUT"),
        (["out", "--max-shift", "50"], "max_shift"),
        (["out", "--seeing", "1.3-0.5"], "0.5-1.3"),
        (["out", "--field", "wide"], "wide"),
        (["out", "--field", "200x20"], "200x20"),
        (["out", "--field", "200x200", "--density", "-1"], "density"),
        (["out", "--catalog", "c.fits", "--cosmos", "d"], "exclude"),
        (["--write-catalog", "w.fits", "--catalog", "c.fits"], "catalog"),
    ],
)
def test_wrong_usage(galsep, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    outcome = galsep("simulate", *arguments)
    assert outcome.code == 2
    assert said in outcome.error
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["missing", "text", "image", "columns", "faint"])
def test_unusable_catalogues(galsep, tmp_path, kind):
    path = tmp_path / "c.fits"
    if kind == "text":
        path.write_text("not FITS")
    elif kind == "image":
        fits.PrimaryHDU(np.zeros((4, 4))).writeto(path)
    elif kind == "columns":
        Table({"i_ab": [20.0]}).write(path)
    elif kind == "faint":
        assert galsep("simulate", "--write-catalog", path, "--n", 5).code == 0
    outcome = galsep("simulate", tmp_path / "out", "--catalog", path, "--n", 3, "--max-mag", 15.5)
    assert outcome.code == 1
    assert "c.fits" in outcome.error
    assert "out" not in names(tmp_path)


def test_an_output_that_exists_is_refused(galsep, dataset):
    before = {path.name: path.read_bytes() for path in dataset.iterdir()}
    outcome = galsep("simulate", dataset, "--n", 3)
    assert outcome.code == 3
    assert "--overwrite" in outcome.error
    assert {path.name: path.read_bytes() for path in dataset.iterdir()} == before


def test_overwrite_leaves_nothing_of_the_old_set(galsep, tmp_path):
    assert galsep("simulate", tmp_path, "--n", 501, "--workers", 2, "-q").code == 0
    assert len(names(tmp_path)) == 3
    assert galsep("simulate", tmp_path, "--n", 3, "--overwrite", "-q").code == 0
    assert names(tmp_path) == ["dataset.toml", "shard-0000.fits"]


@pytest.mark.parametrize("size", [["--n", 3], ["--field", "150x150"]])
def test_an_output_folder_that_cannot_be_made(galsep, tmp_path, size):
    (tmp_path / "file").write_text("in the way")
    outcome = galsep("simulate", tmp_path / "file" / "set", *size)
    assert outcome.code == 1
    assert "file" in outcome.error
    assert names(tmp_path) == ["file"]
