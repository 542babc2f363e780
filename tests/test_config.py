import dataclasses
import os
import tomllib
from pathlib import Path

import pytest

from galsep.config import (
    RECIPES,
    DeblendConfig,
    EvaluateConfig,
    ImportConfig,
    SimulateConfig,
    TrainConfig,
    field_shape,
    parse_range,
)
from galsep.errors import UsageError
from galsep.settings import LARGEST_TOML, dump_toml, read_toml, resolve

EVERY = (SimulateConfig, TrainConfig, DeblendConfig, EvaluateConfig, ImportConfig)


def test_the_defaults_are_those_of_the_report():
    config = SimulateConfig()
    assert (config.n, config.galaxies, config.survey, config.bands) == (20_000, "2", "LSST", ("i",))
    assert (config.max_mag, config.max_shift) == (25.3, 2.4)


@pytest.mark.parametrize("cls", EVERY)
def test_a_dumped_configuration_resolves_to_itself(cls, tmp_path):
    file = tmp_path / "config.toml"
    file.write_text(dump_toml(cls()))
    assert resolve(cls, file, {}) == cls()


def test_unset_values_are_not_dumped():
    assert "zeropoint" not in dump_toml(DeblendConfig())
    assert "zeropoint = 27.0" in dump_toml(DeblendConfig(zeropoint=27.0))


def test_options_win_over_the_file_and_the_file_over_defaults(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('n = 5\nmax-mag = 24\nbands = ["g", "i"]\n')
    config = resolve(SimulateConfig, file, {"n": 7, "seed": None, "max_shift": 1})
    assert (config.n, config.max_mag, config.max_shift, config.seed) == (7, 24.0, 1.0, 1)
    assert config.bands == ("g", "i")
    assert resolve(SimulateConfig, file, {"max_mag": 23.0}).max_mag == 23.0


def test_options_win_however_the_file_spells_a_setting(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('recipe = "paper"\nbatch-size = 8\n')
    assert resolve(TrainConfig, file, {}).batch_size == 8
    assert resolve(TrainConfig, file, {"batch_size": 4}).batch_size == 4
    file.write_text("batch-size = 8\nbatch_size = 9\n")
    with pytest.raises(UsageError, match="holds 'batch_size' twice, in two spellings"):
        resolve(TrainConfig, file, {})


def test_unknown_settings_name_the_nearest(tmp_path):
    with pytest.raises(UsageError, match="unknown setting 'maxmag'; did you mean 'max_mag'"):
        resolve(SimulateConfig, None, {"maxmag": 25.0})
    with pytest.raises(UsageError, match="unknown setting 'xyzzy'; known: n, galaxies, "):
        resolve(SimulateConfig, None, {"xyzzy": 1})


@pytest.mark.parametrize("value", ["5", 5.5, True, [5], {"a": 1}])
def test_wrong_types_are_refused(value):
    with pytest.raises(UsageError, match=r"n: .* has the wrong type"):
        resolve(SimulateConfig, None, {"n": value})


@pytest.mark.parametrize("cls", EVERY)
def test_every_configuration_names_the_nearest(cls, tmp_path):
    field = dataclasses.fields(cls)[0].name
    (tmp_path / "c.toml").write_text(f"{field}x = 1\n")
    said = rf"c\.toml: unknown setting '{field}x'; did you mean '{field}'\?"
    with pytest.raises(UsageError, match=said):
        resolve(cls, tmp_path / "c.toml", {})


HOSTILE = {
    "half a line": b"n = ",
    "no text": b"\xff\xfe",
    "twice": b"n = 1\nn = 2",
    "a number of many digits": b"n = " + b"1" * 5000,
    "nested": b"n = " + b"[" * 5000,
    "tables in tables": b"n = " + b"{a = " * 5000,
    "long": b"#" * (LARGEST_TOML + 1),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_what_is_not_toml_is_refused(tmp_path, content):
    (tmp_path / "c.toml").write_bytes(content)
    with pytest.raises(UsageError, match="not a readable TOML file"):
        read_toml(tmp_path / "c.toml")


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs /dev/zero")
def test_a_file_without_an_end_is_not_read_on():
    with pytest.raises(UsageError, match=f"/dev/zero: .*more than {LARGEST_TOML} bytes"):
        read_toml(Path("/dev/zero"))


def test_a_file_as_long_as_may_be_is_read(tmp_path):
    (tmp_path / "c.toml").write_bytes(b"n = 5\n".ljust(LARGEST_TOML, b"#"))
    assert read_toml(tmp_path / "c.toml") == {"n": 5}


@pytest.mark.parametrize("number", [10**20, -(10**20), 10**400])
def test_numbers_that_nothing_holds_are_refused(number):
    for cls, name in ((SimulateConfig, "seed"), (DeblendConfig, "zeropoint")):
        with pytest.raises(UsageError, match=f"{name}: the number is too large"):
            resolve(cls, None, {name: number})


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"gone\.toml: no such file; check the path"):
        resolve(TrainConfig, tmp_path / "gone.toml", {})


@pytest.mark.parametrize(
    ("cls", "values", "match"),
    [
        (SimulateConfig, {"n": 0}, "n must lie between 1 and 2500000, got 0"),
        (SimulateConfig, {"n": 10**9}, "n must lie between 1 and 2500000, got 1000000000"),
        (SimulateConfig, {"galaxies": "3-1"}, "reversed; write 1-3"),
        (SimulateConfig, {"galaxies": "many"}, "galaxies is a number or a range"),
        (SimulateConfig, {"galaxies": "-1"}, "galaxies is a number or a range"),
        (SimulateConfig, {"stars": 1.5}, "stars must lie between"),
        (SimulateConfig, {"max_mag": float("nan")}, "max_mag must lie between"),
        (SimulateConfig, {"seeing": "0.5-9"}, "seeing must lie between"),
        (SimulateConfig, {"bands": ()}, "one to six different names"),
        (SimulateConfig, {"bands": ("i", "i")}, "one to six different names"),
        (SimulateConfig, {"catalog": "a", "cosmos": "b"}, "exclude each other"),
        (SimulateConfig, {"density": 0.0}, "density is 0 to 10000"),
        (SimulateConfig, {"field": "100x100"}, "a field is 120 to 50000 pixels"),
        (SimulateConfig, {"seed": -1}, "seed must be at least 0"),
        (TrainConfig, {"recipe": "quick"}, "recipe is one of compact, paper, got 'quick'"),
        (TrainConfig, {"recipe": ["paper"]}, "recipe: .* wrong type"),
        (TrainConfig, {"epochs": "all"}, "epochs: 'all' has the wrong type"),
        (TrainConfig, {"threads": -1}, "threads must be at least 0"),
        (TrainConfig, {"optimizer": "adam"}, "optimizer is adamw or sgd"),
        (TrainConfig, {"schedule": "flat"}, "schedule is cosine or steps"),
        (TrainConfig, {"stages": [["tail", 12, 1e-3]]}, "a stage is"),
        (TrainConfig, {"stages": [["all", 12]]}, "stages: expected 3 values"),
        (TrainConfig, {"stages": []}, "stages lists at least one"),
        (TrainConfig, {"stages": [["all", 3, 1e-3]]}, "the last stage ends with epoch 3, "),
        (TrainConfig, {"epochs": 5, "stages": [["all", 9, 0.1], ["heads", 5, 0.1]]}, "one after"),
        (TrainConfig, {"ema": 1.0}, "ema must lie between"),
        (TrainConfig, {"seed": -1}, "seed must be at least 0, got -1"),
        (TrainConfig, {"weight_decay": -0.1}, "weight_decay must be at least 0"),
        (TrainConfig, {"warmup": -1}, "warmup must be at least 0"),
        (TrainConfig, {"clip_norm": -1.0}, "clip_norm must be at least 0"),
        (DeblendConfig, {"threshold": 1.1}, "threshold must lie between"),
        (DeblendConfig, {"background_mesh": 4}, "background_mesh must be at least 8"),
        (DeblendConfig, {"gain": float("nan")}, "gain must be at least"),
        (DeblendConfig, {"gain": float("inf")}, "gain must be finite, got inf"),
        (DeblendConfig, {"zeropoint": float("nan")}, "zeropoint must be finite, got nan"),
        (DeblendConfig, {"catalog_format": "xls"}, "one of fits, ecsv, csv, vot, parquet"),
        (DeblendConfig, {"variance": "a", "rms": "b"}, "exclude each other"),
        (DeblendConfig, {"mask_bits": "SAT,,CR"}, "names or numbers with commas"),
        (DeblendConfig, {"mask_bits": "4096"}, "0 to 62, got 4096; the value 4096 is bit 12"),
        (DeblendConfig, {"mask_bits": "3,99"}, "0 to 62, got 99$"),
        (EvaluateConfig, {"limit": -1}, "limit must be at least 0"),
        (ImportConfig, {"zeropoint": float("nan")}, "zeropoint must be finite"),
        (ImportConfig, {"gain": float("inf")}, "gain must be finite"),
        (ImportConfig, {"seeing": float("inf")}, "seeing must be finite"),
    ],
)
def test_bad_values_are_refused(cls, values, match):
    with pytest.raises(UsageError, match=match) as caught:
        resolve(cls, None, values)
    assert "\n" not in str(caught.value)


def test_recipes_change_defaults_and_options_change_recipes():
    paper = resolve(TrainConfig, None, {"recipe": "paper"})
    assert (paper.optimizer, paper.init, paper.epochs) == ("sgd", "coco", 80)
    assert [stage[0] for stage in paper.stages] == ["heads", "4+", "all", "all"]
    assert resolve(TrainConfig, None, {"recipe": "paper", "init": "random"}).init == "random"
    assert set(RECIPES) == {"compact", "paper"}


def test_another_length_of_a_cosine_run_is_one_stage():
    for epochs in (3, 30):
        config = resolve(TrainConfig, None, {"epochs": epochs})
        assert config.epochs == config.stages[-1][1] == epochs


def test_the_only_stage_of_a_file_ends_with_the_epochs_asked_for(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text('epochs = 3\nstages = [["all", 3, 0.0005]]\n')
    assert resolve(TrainConfig, file, {}).stages == (("all", 3, 5e-4),)
    for epochs in (2, 7):
        assert resolve(TrainConfig, file, {"epochs": epochs}).stages == (("all", epochs, 5e-4),)
    file.write_text('epochs = 3\nstages = [["heads", 1, 0.1], ["all", 3, 0.0005]]\n')
    with pytest.raises(UsageError, match="the last stage ends with epoch 3, but epochs = 7"):
        resolve(TrainConfig, file, {"epochs": 7})


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("2", int, (2, 2)),
        ("1-6", int, (1, 6)),
        ("0.6-0.9", float, (0.6, 0.9)),
        ("3-3", int, (3, 3)),
    ],
)
def test_ranges(text, kind, expected):
    assert parse_range("x", text, kind) == expected


@pytest.mark.parametrize("text", ["", "-", "1-", "-3", "1-2-3", "a-b", "1.5"])
def test_what_is_no_range(text):
    with pytest.raises(UsageError, match="x is a number or a range such as 1-6"):
        parse_range("x", text, int)


def test_fields_are_width_times_height():
    assert field_shape("2400x1200") == field_shape("2400X1200") == (1200, 2400)


@pytest.mark.parametrize("text", ["2400", "2400x", "x5", "12e2x1200", "²400x1200", "-200x300"])
def test_what_is_no_field(text):
    with pytest.raises(UsageError, match="field is WIDTHxHEIGHT"):
        field_shape(text)


@pytest.mark.parametrize("cls", EVERY)
def test_configurations_are_frozen(cls):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(cls(), dataclasses.fields(cls)[0].name, 2)
    assert tomllib.loads(dump_toml(cls()))
