import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from galsep.config import SimulateConfig
from galsep.errors import CatalogError, OutputError, OutputExistsError, UsageError
from galsep.io.claim import claimed
from galsep.io.dataset import CLAIM, load_dataset
from galsep.sim.catalogs import CatsimCatalog
from galsep.sim.survey import load_survey
from galsep.workflows.reporting import Reporter
from galsep.workflows.simulate import simulate, write_population


class Listener(Reporter):
    def __init__(self) -> None:
        self.heard: list = []

    def begin(self, label: str, total: int) -> None:
        self.heard.append((label, total))

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.heard.append(steps)

    def end(self) -> None:
        self.heard.append("end")


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(
    "settings", [{}, {"varied": True, "stars": 0.3, "pixel_scale": "0.15-0.3", "depth": -1.0}]
)
def test_workers_leave_no_trace(tmp_path, monkeypatch, settings):
    # Workers start afresh and do not see this; the size of shards is the parent's business.
    monkeypatch.setattr("galsep.io.dataset.SHARD_SIZE", 2)
    for workers in (1, 2):
        config = SimulateConfig(
            n=3, galaxies="1-2", bands=("g", "i"), seed=4, workers=workers, **settings
        )
        simulate(tmp_path / str(workers), config)
    one, two = (contents(tmp_path / name) for name in ("1", "2"))
    assert list(one) == ["dataset.toml", "shard-0000.fits", "shard-0001.fits"]
    assert one == two


def test_a_data_set_says_what_it_holds(tmp_path):
    listener = Listener()
    config = SimulateConfig(n=20, galaxies="1-2", seed=2, workers=1)
    result = simulate(tmp_path, config, reporter=listener)
    dataset = load_dataset(tmp_path)
    assert (result.folder, result.blends, result.sources) == (tmp_path, 20, len(dataset.truth))
    assert set(result.files) == set(tmp_path.iterdir())
    assert dataset.meta.counts == {"train": 18, "validation": 1, "test": 1}
    assert (dataset.meta.survey, dataset.meta.bands, dataset.meta.seed) == ("LSST", ("i",), 2)
    assert dataset.meta.population["galaxies"] == "1-2"
    assert "workers" not in dataset.meta.population
    assert listener.heard == [("simulating", 20), 20, "end"]
    # The truth of each blend adds up to its image but for the noise.
    for index in range(3):
        residual = dataset.detection_image(index) - dataset.stack(index).sum(axis=0)
        assert residual.std() == pytest.approx(dataset.meta.detection_rms, rel=0.05)
    areas = [f.area for index in range(20) for f in dataset.footprints(index)]
    assert areas == dataset.truth["area"].tolist()


def test_depth_raises_the_signal_to_noise(tmp_path):
    for depth in (0.0, 1.5):
        simulate(tmp_path / str(depth), SimulateConfig(n=4, depth=depth, workers=1))
    survey, deep = (load_dataset(tmp_path / name) for name in ("0.0", "1.5"))
    # The same galaxies in the same places.
    np.testing.assert_array_equal(survey.truth["magnitude"], deep.truth["magnitude"])
    bright = survey.truth["snr"] > 5
    ratio = deep.truth["snr"][bright] / survey.truth["snr"][bright]
    np.testing.assert_allclose(ratio, 10 ** (0.4 * 1.5), rtol=0.01)
    assert deep.meta.zeropoints[0] == pytest.approx(survey.meta.zeropoints[0] + 3.0)
    assert deep.meta.detection_rms == pytest.approx(survey.meta.detection_rms * 10**0.6)
    assert (deep.truth["area"] >= survey.truth["area"]).all()


def test_one_pixel_scale_for_all_blends(tmp_path):
    for scale in ("", "0.4"):
        simulate(tmp_path / f"s{scale}", SimulateConfig(n=2, pixel_scale=scale, workers=1))
    own, wide = (load_dataset(tmp_path / name) for name in ("s", "s0.4"))
    assert (own.meta.pixel_scale, wide.meta.pixel_scale) == (0.2, 0.4)
    assert wide.pixel_scale.tolist() == [0.4, 0.4]
    assert wide.meta.detection_rms == pytest.approx(2 * own.meta.detection_rms)
    np.testing.assert_allclose(wide.truth["x"] - 59.5, (own.truth["x"] - 59.5) / 2)


def test_a_range_of_pixel_scales_keeps_the_noise(tmp_path):
    config = SimulateConfig(n=6, pixel_scale="0.1-0.4", workers=1)
    simulate(tmp_path, config)
    dataset = load_dataset(tmp_path)
    assert dataset.meta.pixel_scale == 0.2
    assert len(set(dataset.pixel_scale)) == 6
    assert ((dataset.pixel_scale >= 0.1) & (dataset.pixel_scale <= 0.4)).all()
    for index in range(6):
        residual = dataset.detection_image(index) - dataset.stack(index).sum(axis=0)
        assert residual.std() == pytest.approx(dataset.meta.detection_rms, rel=0.05)


def test_a_field_has_the_pixel_scale_in_its_header(tmp_path):
    config = SimulateConfig(field="150x130", galaxies="1", pixel_scale="0.3-0.4", seed=2)
    simulate(tmp_path, config)
    with fits.open(tmp_path / "field_i.fits") as hdus:
        assert 0.3 <= hdus[0].header["CDELT2"] * 3600 <= 0.4


def test_blends_depend_on_their_number_alone(tmp_path):
    for n in (2, 3):
        simulate(tmp_path / str(n), SimulateConfig(n=n, seed=8, workers=1))
    two, three = (load_dataset(tmp_path / name) for name in ("2", "3"))
    np.testing.assert_array_equal(two.images, three.images[:2])


def test_a_data_set_is_replaced_only_when_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("galsep.io.dataset.SHARD_SIZE", 2)
    simulate(tmp_path, SimulateConfig(n=5, galaxies="1", workers=1))
    with pytest.raises(OutputExistsError, match="holds a data set; give --overwrite"):
        simulate(tmp_path, SimulateConfig(n=1, workers=1))
    simulate(tmp_path, SimulateConfig(n=1, galaxies="1", seed=3, workers=1), overwrite=True)
    # No shard of the larger one stays behind.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset.toml", "shard-0000.fits"]
    assert len(load_dataset(tmp_path)) == 1


def test_pictures_and_bands_of_what_is_replaced_go(tmp_path):
    blends, field = tmp_path / "blends", tmp_path / "field"
    config = SimulateConfig(n=2, galaxies="1", workers=1)
    simulate(blends, config, preview=True)
    simulate(blends, config, overwrite=True)
    assert sorted(path.name for path in blends.iterdir()) == ["dataset.toml", "shard-0000.fits"]
    two = SimulateConfig(field="150x130", galaxies="1", bands=("g", "i"))
    simulate(field, two, preview=True)
    simulate(field, SimulateConfig(field="150x130", galaxies="1", bands=("r",)), overwrite=True)
    assert sorted(path.name for path in field.iterdir()) == ["field_r.fits", "truth.fits"]
    # Images that are none of a simulated field's stay.
    (field / "field_z.fits").touch()
    fits.PrimaryHDU(np.zeros((3, 3))).writeto(field / "field_y.fits")
    simulate(field, two, overwrite=True)
    names = ["field_g.fits", "field_i.fits", "field_y.fits", "field_z.fits", "truth.fits"]
    assert sorted(path.name for path in field.iterdir()) == names


def test_blends_without_galaxies(tmp_path):
    simulate(tmp_path, SimulateConfig(n=2, galaxies="0", workers=1))
    dataset = load_dataset(tmp_path)
    assert len(dataset.truth) == 0
    assert dataset.images.std() == pytest.approx(dataset.meta.detection_rms, rel=0.05)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"survey": "nowhere"}, UsageError),
        ({"bands": ("q",)}, UsageError),
        ({"catalog": "gone.fits"}, CatalogError),
        ({"cosmos": "gone"}, CatalogError),
        ({"max_shift": 30.0}, UsageError),
        ({"pixel_scale": "0.03-0.3"}, UsageError),
    ],
)
def test_bad_settings_leave_nothing_behind(tmp_path, monkeypatch, settings, error):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error):
        simulate(tmp_path / "out", SimulateConfig(n=1, workers=1, **settings))
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    folder = tmp_path_factory.mktemp("field")
    config = SimulateConfig(field="240x160", bands=("g", "i"), density=40.0, stars=0.3, seed=6)
    return simulate(folder, config)


def test_a_field_lies_on_the_sky(field):
    assert [path.name for path in field.files] == ["field_g.fits", "field_i.fits", "truth.fits"]
    assert field.blends == 1
    for name in ("g", "i"):
        with fits.open(field.folder / f"field_{name}.fits", checksum=True) as hdus:
            hdus.verify("exception")
            header, image = hdus[0].header, hdus[0].data
        assert image.shape == (160, 240)
        assert (header["FILTER"], header["BUNIT"], header["GAIN"]) == (name, "electron", 1.0)
        assert header["SKYRMS"] > 0
        wcs = WCS(header)
        centre = wcs.pixel_to_world(119.5, 79.5)
        assert (centre.ra.deg, centre.dec.deg) == pytest.approx((150.1, 2.2))
        aside = wcs.pixel_to_world(129.5, 79.5)
        assert centre.separation(aside).arcsec == pytest.approx(10 * 0.2, rel=1e-6)
        assert aside.ra < centre.ra


def test_a_field_has_its_truth(field):
    with fits.open(field.folder / "truth.fits", checksum=True) as hdus:
        hdus.verify("exception")
        truth, light = hdus["TRUTH"].data, hdus["LIGHT"].data
        assert len(truth) == field.sources > 10
        assert set(truth["class"]) == {"galaxy", "star"}
        total = np.zeros((2, 160, 240))
        for row in truth:
            shape = (2, row["ny"], row["nx"])
            stamp = light[row["offset"] : row["offset"] + np.prod(shape)].reshape(shape)
            y, x = (slice(row[f"{a}0"], row[f"{a}0"] + row[f"n{a}"]) for a in "yx")
            total[:, y, x] += stamp
    for index, name in enumerate(("g", "i")):
        with fits.open(field.folder / f"field_{name}.fits") as hdus:
            residual = hdus[0].data - total[index]
            assert residual.std() == pytest.approx(hdus[0].header["SKYRMS"], rel=0.05)


def test_the_same_field_twice_is_the_same_bytes(field, tmp_path):
    config = SimulateConfig(field="240x160", bands=("g", "i"), density=40.0, stars=0.3, seed=6)
    simulate(tmp_path, config)
    assert contents(tmp_path) == contents(field.folder)
    with pytest.raises(OutputExistsError, match="exists already; give --overwrite"):
        simulate(tmp_path, config)
    simulate(tmp_path, config, overwrite=True)


def test_a_population_can_be_simulated_from(tmp_path):
    path = tmp_path / "new" / "catalog.fits"
    config = SimulateConfig(n=50, bands=("r", "i"), max_mag=23.0)
    result = write_population(path, config)
    assert (result.files, result.sources) == ((path,), 50)
    catalog = CatsimCatalog(path, load_survey("LSST", ("r", "i")), 23.0)
    assert catalog.draw(np.random.default_rng(1)).magnitude[1] <= 23.0
    again = tmp_path / "again.fits"
    write_population(again, config)
    assert again.read_bytes() == path.read_bytes()
    with pytest.raises(OutputExistsError):
        write_population(path, config)
    simulate(tmp_path / "set", SimulateConfig(n=1, catalog=str(path), max_mag=23.0, workers=1))
    assert load_dataset(tmp_path / "set").truth["magnitude"].max() <= 23.0


def test_other_galaxies_are_no_population_of_galseps():
    with pytest.raises(UsageError, match="writes galsep's own population"):
        write_population("unused.fits", SimulateConfig(catalog="c.fits"))


def test_varied_scenes_of_catalogue_galaxies(test_data, tmp_path):
    catalog = str(test_data / "catsim_sample.fits")
    config = SimulateConfig(n=8, catalog=catalog, max_mag=28.0, stars=0.5, varied=True, workers=1)
    simulate(tmp_path, config)
    truth = load_dataset(tmp_path).truth
    listed = fits.getdata(catalog)["i_ab"]
    galaxies = truth[truth["class"] == "galaxy"]
    assert 0 < len(galaxies) < len(truth)
    assert np.isin(galaxies["magnitude"][:, 0], listed).all()


def test_a_table_lists_no_varied_galaxies(tmp_path):
    with pytest.raises(UsageError, match="write-catalog lists bulge"):
        write_population(tmp_path / "c.fits", SimulateConfig(varied=True))
    assert not any(tmp_path.iterdir())


def test_real_galaxies(test_data, tmp_path):
    cosmos = SimulateConfig(n=2, cosmos=str(test_data / "cosmos"), seed=5, workers=1)
    simulate(tmp_path / "cosmos", cosmos)
    dataset = load_dataset(tmp_path / "cosmos")
    assert dataset.meta.population["cosmos"] == "cosmos"
    assert len(dataset.truth) == 4
    assert (dataset.truth["snr"] > 0).all()
    catalog = str(test_data / "catsim_sample.fits")
    simulate(tmp_path / "catsim", SimulateConfig(n=2, catalog=catalog, max_mag=28.0, workers=1))
    assert load_dataset(tmp_path / "catsim").truth["magnitude"].min() > 25.3


def left_by_killed(folder, names) -> None:
    """Make partial files, and a claim that nobody holds."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / f".01234567.part.{name}").touch()
    (folder / ".lock.part.dataset").touch()


DATASET = ["dataset.toml", "shard-0000.fits"]


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"n": 3}, [*DATASET, "preview-blends.png", "preview-augmentation.png"]),
        (
            {"field": "150x130", "galaxies": "1", "density": 30.0},
            ["field_i.fits", "truth.fits", "preview-field.png"],
        ),
    ],
)
@pytest.mark.parametrize("preview", [False, True])
def test_what_killed_simulations_left_is_tidied_up(tmp_path, settings, names, preview):
    left_by_killed(tmp_path, names)
    foreign = tmp_path / ".01234567.part.weights.safetensors"
    foreign.touch()
    result = simulate(tmp_path, SimulateConfig(workers=1, **settings), preview=preview)
    assert set(result.files) == set(tmp_path.iterdir()) - {foreign}
    assert {path.name for path in result.files} == set(names if preview else names[:2])
    # What is not of a simulation is left to those who write it.
    assert foreign.exists()


@pytest.mark.parametrize("settings", [{}, {"field": "150x130"}])
def test_two_simulations_do_not_mix(tmp_path, settings):
    config = SimulateConfig(n=3, workers=1, **settings)
    simulate(tmp_path, config)
    before = contents(tmp_path)
    others = tmp_path / ".01234567.part.shard-0000.fits"
    others.touch()
    with (
        claimed(tmp_path / CLAIM),
        pytest.raises(OutputError, match=f"^{tmp_path}: another call is at work in it$"),
    ):
        simulate(tmp_path, config, overwrite=True)
    assert others.exists()
    others.unlink()
    assert contents(tmp_path) == before


def test_what_a_killed_call_left_of_a_catalogue_is_tidied_up(tmp_path):
    (tmp_path / ".01234567.part.own.fits").touch()
    (tmp_path / ".01234567.part.other.fits").touch()
    write_population(tmp_path / "own.fits", SimulateConfig(n=5))
    assert {path.name for path in tmp_path.iterdir()} == {"own.fits", ".01234567.part.other.fits"}
