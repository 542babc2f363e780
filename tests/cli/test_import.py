"""``galsep import``: a data set of one's own, to train and to judge with."""

import json
import tomllib

import pytest
from astropy.io import fits

from galsep.config import SimulateConfig
from galsep.io.dataset import load_dataset
from galsep.model.weights import load_model

from .conftest import names


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A field with its label map."""
    from galsep.workflows.simulate import simulate

    folder = tmp_path_factory.mktemp("own")
    config = SimulateConfig(
        field="300x620", galaxies="1-2", density=50.0, stars=0.2, seed=4, workers=1
    )
    simulate(folder, config)
    return folder


@pytest.fixture(scope="module")
def truth(own):
    file = own / "truth.fits"
    return ("--labels", f"{file}[SEGM]", "--classes", f"{file}[TRUTH]", "--seeing", 0.79)


def test_import_train_evaluate(galsep, own, truth, tmp_path):
    mine = tmp_path / "mine"
    split = ("--split", "60/20/20")
    outcome = galsep("import", own / "field_i.fits", *truth, "--output", mine, *split)
    assert (outcome.code, outcome.out) == (0, "")
    data = load_dataset(mine)
    assert f"wrote {len(data)} stamps" in outcome.err.splitlines()[-1]
    assert set(data.truth["class"]) == {"galaxy", "star"}
    (tmp_path / "own.toml").write_text("compose = false\nvalidation_size = 2\ncalibrate = false\n")
    run = tmp_path / "run"
    outcome = galsep(
        "train", mine, "--output", run, "--init", "compact", "--config", tmp_path / "own.toml",
        "--epochs", 1, "--epoch-size", 4, "--batch-size", 2, "--separation-epochs", 0,
        "--device", "cpu", "--threads", 1, "-q",
    )  # fmt: skip
    assert (outcome.code, outcome.err) == (0, "")
    tuned, packaged = load_model(run / "weights.safetensors", "cpu"), load_model("", "cpu")
    assert tuned.info["dataset"]["survey"] == "imported"
    # The separation network of the weights it began with is still there, with its flux fit.
    assert tuned.flux_fit == packaged.flux_fit is not None
    assert tuned.class_fit == packaged.class_fit is not None
    for name, tensor in packaged.separator.state_dict().items():
        assert tensor.equal(tuned.separator.state_dict()[name])
    report = tmp_path / "report"
    outcome = galsep(
        "evaluate", mine, "--output", report, "--weights", run / "weights.safetensors",
        "--limit", 2, "--no-baselines", "--device", "cpu", "-q",
    )  # fmt: skip
    assert outcome.code == 0
    metrics = json.loads((report / "metrics.json").read_text())
    assert metrics["n_seen"] == 0
    assert metrics["n_sources"] > 2
    assert metrics["methods"]["galsep"]["detectable"]["centroid5"]["tp"] > 0


def test_settings_in_a_file(galsep, tmp_path):
    (tmp_path / "import.toml").write_text('labels = "{stem}_segm.fits"\ngain = 2.5\n')
    given = ("import", "--config", tmp_path / "import.toml", "--split", "50/25/25")
    settings = tomllib.loads(galsep(*given, "--dump-config").out)
    assert (settings["labels"], settings["gain"]) == ("{stem}_segm.fits", 2.5)
    assert settings["split"] == "50/25/25"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a.fits"], "--output"),
        (["a.fits", "-o", "set"], "--labels"),
        (["-o", "set", "--labels", "l.fits"], "IMAGE"),
        (["a.fits", "-o", "set", "--coco", "c.json"], "leave IMAGE out"),
        (["-o", "set", "--coco", "c.json", "--labels", "l.fits"], "another"),
        (["a.fits", "-o", "set", "--labels", "l.fits", "--images", "x"], "--images"),
        (["a.fits", "-o", "set", "--labels", "l.fits", "--split", "90/10"], "90/10"),
        (["a.fits", "-o", "set", "--labels", "l.fits", "--split", "100/0/0"], "100/0/0"),
        (["a.fits", "-o", "set", "--labels", "l.fits", "--gain", "-1"], "gain"),
    ],
)
def test_wrong_usage(galsep, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    outcome = galsep("import", *arguments)
    assert outcome.code == 2
    assert said in outcome.error
    assert names(tmp_path) == []


def test_what_is_missing_or_unfit_is_one_line(galsep, own, truth, tmp_path):
    outcome = galsep("import", tmp_path / "no.fits", *truth, "-o", tmp_path / "set")
    assert outcome.code == 1
    assert "no.fits" in outcome.error
    fits.writeto(tmp_path / "cut.fits", fits.getdata(own / "field_i.fits")[:-1])
    outcome = galsep("import", tmp_path / "cut.fits", *truth, "-o", tmp_path / "set")
    assert outcome.code == 1
    assert "300×620 px, the image 300×619 px" in outcome.error
    outcome = galsep("import", "--coco", tmp_path / "no.json", "-o", tmp_path / "set")
    assert outcome.code == 1
    assert "no.json" in outcome.error
    assert names(tmp_path) == ["cut.fits"]


def test_a_data_set_that_exists(galsep, own, truth, dataset):
    outcome = galsep("import", own / "field_i.fits", *truth, "--output", dataset)
    assert outcome.code == 3
    assert "--overwrite" in outcome.error
