"""From the command line to an exit code, for all commands."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
import tomllib

import pytest
import typer
from typer.main import get_command

from galsep import __version__
from galsep.cli import main as cli
from galsep.config import (
    DeblendConfig,
    EvaluateConfig,
    ImportConfig,
    SimulateConfig,
    TrainConfig,
)
from galsep.errors import (
    CatalogError,
    DatasetError,
    DeviceError,
    ImageError,
    OutputError,
    OutputExistsError,
    TrainingError,
    UsageError,
    WeightsError,
)

COMMANDS = ("deblend", "info", "simulate", "import", "train", "evaluate", "weights", "doctor")

CONFIGS = {
    "simulate": SimulateConfig,
    "import": ImportConfig,
    "train": TrainConfig,
    "deblend": DeblendConfig,
    "evaluate": EvaluateConfig,
}

TOML_ONLY = {
    "simulate": set(),
    "import": set(),
    "train": {
        "optimizer",
        "weight_decay",
        "schedule",
        "warmup",
        "stages",
        "ema",
        "clip_norm",
        "fixed_statistics",
        "augment",
        "compose",
        "max_groups",
        "small_every",
        "joint_rate",
        "separation_rate",
        "separation_groups",
        "separation_depth",
        "separation_consistency",
        "validation_size",
        "f1_size",
        "calibrate",
        "amp",
    },
    "deblend": set(),
    "evaluate": {"batch_size"},
}
"""Settings without an option of their own."""

OTHER_NAMES = {"baselines": "no_baselines", "psf": "no_psf"}


@pytest.fixture
def raising(monkeypatch):
    """Make ``galsep weights`` raise an error."""

    def raise_it(error):
        command = get_command(cli.app)

        def callback(**_):
            raise error

        monkeypatch.setattr(command.commands["weights"], "callback", callback)
        monkeypatch.setattr(cli, "get_command", lambda _: command)

    return raise_it


def test_version(galsep):
    outcome = galsep("--version")
    assert outcome.code == 0
    assert outcome.out == f"galsep {__version__}\n"
    assert outcome.err == ""


def test_without_a_command_the_help_is_shown_as_an_error(galsep):
    outcome = galsep()
    assert outcome.code == 2
    assert outcome.out == ""
    assert "Usage: galsep COMMAND" in outcome.err


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_fits_80_columns_and_names_every_option(galsep, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    outcome = galsep(*command, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert max(map(len, outcome.out.splitlines())) <= 80
    top = get_command(cli.app)
    parser = top.commands[command[0]] if command else top
    for param in parser.params:
        for option in param.opts:
            assert option in outcome.out or param.param_type_name == "argument"
        assert param.help
    assert galsep(*command, "-h").out == outcome.out
    if not command:
        assert all(name in outcome.out for name in COMMANDS)


def test_every_command_has_examples(galsep):
    for name in COMMANDS:
        assert f"\n  galsep {name}" in galsep(name, "--help").out


@pytest.mark.parametrize("name", CONFIGS)
def test_every_setting_has_an_option_or_is_listed(name):
    params = {param.name for param in get_command(cli.app).commands[name].params}
    fields = {field.name for field in dataclasses.fields(CONFIGS[name])}
    reachable = {field for field in fields if OTHER_NAMES.get(field, field) in params}
    assert fields - reachable == TOML_ONLY[name]


@pytest.mark.parametrize("name", CONFIGS)
def test_options_leave_settings_alone_unless_given(name):
    """Else a default of an option would win over the file of --config."""
    params = get_command(cli.app).commands[name].params
    fields = {field.name for field in dataclasses.fields(CONFIGS[name])}
    for param in params:
        if param.name in fields:
            assert not param.default


@pytest.mark.parametrize("name", CONFIGS)
def test_dumped_settings_can_be_read_back(galsep, name, tmp_path):
    dumped = galsep(name, "--dump-config")
    assert (dumped.code, dumped.err) == (0, "")
    file = tmp_path / "settings.toml"
    file.write_text(dumped.out)
    assert galsep(name, "--config", file, "--dump-config").out == dumped.out


GIVEN = {
    "background_mesh": 32, "band": ["g=g.fits", "r=r.fits"], "bands": ["g", "r"],
    "baselines": False, "batch_size": 7, "catalog": "galaxies.fits", "catalog_format": "csv",
    "classes": "classes.csv", "coco": "coco.json", "cosmos": "cosmos", "dask": "tcp://here:8786",
    "density": 40.0, "depth": 0.5, "detect": "deep.fits", "device": "cpu", "epoch_size": 99,
    "epochs": 3, "ext": "SCI", "field": "900x700", "gain": 2.5, "galaxies": "1-3",
    "images": "image_*.fits", "init": "compact", "isolated": True, "jobs": 3, "joint_epochs": 2,
    "labels": "labels.fits", "light": "light.fits", "limit": 12, "mask": "mask.fits",
    "mask_bits": "SAT,CR", "max_mag": 24.5, "max_shift": 1.5, "n": 40, "patience": 4,
    "preview": True, "psf": False, "psf_fwhm": 3.5, "recipe": "paper", "regions": True,
    "report": True, "residual": True, "rms": "rms.fits", "seed": 11, "seeing": "0.6-0.9",
    "separation_epochs": 5, "split": "80/10/10", "stars": 0.25, "survey": "HSC",
    "tensorboard": True, "threads": 2, "threshold": 0.4, "variance": "var.fits", "varied": True,
    "weight": "weight.fits", "weights": "mine.safetensors", "workers": 2, "zeropoint": 27.0,
}  # fmt: skip
"""A value for each setting that has an option."""

ELSEWHERE = {("simulate", "pixel_scale"): "0.2-0.3", ("import", "pixel_scale"): 0.3,
             ("import", "seeing"): 0.8}  # fmt: skip
BESIDE = {"density": ["--field", "900x700"], "mask_bits": ["--mask", "mask.fits"]}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_option_is_a_setting(galsep, name):
    params = {param.name: param for param in get_command(cli.app).commands[name].params}
    for field in dataclasses.fields(CONFIGS[name]):
        param = params.get(OTHER_NAMES.get(field.name, field.name))
        if param is None or param.param_type_name == "argument":
            continue
        value = ELSEWHERE.get((name, field.name), GIVEN.get(field.name))
        option = max(
            [*param.opts, *param.secondary_opts] if value is False else param.opts, key=len
        )
        if isinstance(value, bool):
            given = [option]
        elif field.name == "band":
            given = [part for one in value for part in (option, one)]
        else:
            given = [option, ",".join(value) if isinstance(value, list) else value]
        outcome = galsep(name, *given, *BESIDE.get(field.name, ()), "--dump-config")
        assert outcome.code == 0, outcome.err
        assert tomllib.loads(outcome.out)[field.name] == value, field.name


@pytest.mark.parametrize("name", CONFIGS)
def test_unusable_settings_files(galsep, name, tmp_path):
    assert "nothing.toml" in galsep(name, "--config", tmp_path / "nothing.toml").error
    file = tmp_path / "bad.toml"
    file.write_text("= what\n")
    assert "bad.toml" in galsep(name, "--config", file).error
    file.write_text('frobnicate = "yes"\n')
    outcome = galsep(name, "--config", file)
    assert outcome.code == 2
    assert "frobnicate" in outcome.error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["frobnicate"], "galsep --help"),
        (["deblnd"], "deblend"),
        (["--frobnicate"], "galsep --help"),
        (["deblend", "--frobnicate"], "galsep deblend --help"),
        (["simulate", "out", "--n", "many"], "--n"),
        (["simulate", "out", "more"], "more"),
        (["train", "set", "--output"], "--output"),
    ],
)
def test_wrong_usage_is_one_line(galsep, arguments, said):
    outcome = galsep(*arguments)
    assert outcome.code == 2
    assert said in outcome.error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), 2),
        (DeviceError("x"), 2),
        (OutputExistsError("x"), 3),
        (OutputError("x"), 1),
        (ImageError("x"), 1),
        (CatalogError("x"), 1),
        (DatasetError("x"), 1),
        (WeightsError("x"), 1),
        (TrainingError("x"), 1),
        (OSError(28, "No space left on device", "out/x.fits"), 1),
        (BrokenPipeError(32, "Broken pipe"), 1),
        (MemoryError(), 1),
        (ZeroDivisionError("division by zero"), 1),
        (typer.Exit(5), 5),
    ],
)
def test_errors_become_exit_codes(galsep, raising, error, code):
    raising(error)
    outcome = galsep("weights")
    assert outcome.code == code
    assert len(outcome.err.splitlines()) == (0 if isinstance(error, typer.Exit) else 1)
    assert "Traceback" not in outcome.err


def test_an_error_of_several_lines_is_put_on_one(galsep, raising):
    raising(ImageError("a.fits: bad\n  and worse\n"))
    assert galsep("weights").error == "error: a.fits: bad and worse"


def test_an_unexpected_error_names_itself_and_asks_for_a_report(galsep, raising):
    raising(ZeroDivisionError("division by zero"))
    error = galsep("weights").error
    assert "ZeroDivisionError" in error
    assert "report" in error
    assert "--debug" in error


def test_debug_shows_the_traceback(galsep, raising):
    raising(ImageError("a.fits: bad"))
    outcome = galsep("weights", "--debug")
    assert outcome.code == 1
    assert "Traceback" in outcome.err
    assert outcome.err.splitlines()[-1] == "error: a.fits: bad"


def test_an_option_without_its_value_names_the_page_that_has_it(galsep):
    outcome = galsep("deblend", "a.fits", "--zeropoint")
    assert outcome.code == 2
    assert outcome.err == (
        "error: Option '--zeropoint' requires an argument (see galsep deblend --help)\n"
    )


def test_interrupted(galsep, raising):
    raising(KeyboardInterrupt())
    outcome = galsep("weights")
    assert (outcome.code, outcome.err) == (130, "interrupted\n")


@pytest.mark.parametrize(
    ("stop", "code", "said"),
    [(KeyboardInterrupt(), 130, "interrupted\n"), (SystemExit(143), 143, "terminated\n")],
)
def test_interrupted_inside_a_library(galsep, raising, stop, code, said):
    error = RuntimeError("Error calling __set_name__ on 'Field' instance")
    error.__cause__ = stop
    raising(error)
    outcome = galsep("weights")
    assert (outcome.code, outcome.err) == (code, said)


def test_interrupted_before_a_command_is_known(galsep, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("galsep.cli.main.get_command", interrupt)
    outcome = galsep("weights")
    assert (outcome.code, outcome.err) == (130, "interrupted\n")


def test_help_loads_nothing_heavy():
    script = (
        "import sys; from galsep.cli.main import main; main(['--help']); main(['deblend', '-h']); "
        "print([m for m in ('torch', 'galsim', 'astropy', 'matplotlib', 'numpy', 'scipy', "
        "'pydantic') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_fits_a_narrow_terminal(galsep, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "40")
    page = galsep(*command, "--help").out
    # What is to be copied stays on its line.
    told = page[: page.find("Examples:")]
    wide = [line for line in told.splitlines() if len(line) > 40]
    assert [line for line in wide if not line.startswith("  --")] == []
    # Names have lines of their own, so that their texts have room.
    assert "\n  -h, --help\n" in told


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["deblend", "--help"]])
def test_closed_stdout_is_one_line(process, arguments):
    read, write = os.pipe()
    os.close(read)
    with process(*arguments, stdout=write) as run:
        os.close(write)
        err = run.communicate()[1]
    assert run.returncode == 1
    assert len(err.splitlines()) == 1
    assert "standard output" in err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_stdout_is_one_line(process):
    with open("/dev/full", "w") as full, process("--version", stdout=full) as run:
        err = run.communicate()[1]
    assert run.returncode == 1
    assert len(err.splitlines()) == 1
    assert "No space left" in err


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_signals_end_a_command_cleanly(process, tmp_path, number, code, said):
    folder = tmp_path / "set"
    # A process group of its own, and the signal to all of it: that is what Ctrl-C does.
    with process(
        "simulate", folder, "--n", 20000, "--workers", 2, "-q", start_new_session=True
    ) as run:
        for _ in range(600):
            if folder.exists() and any(folder.iterdir()):
                break
            time.sleep(0.1)
        os.killpg(run.pid, number) if number == signal.SIGINT else run.send_signal(number)
        out, err = run.communicate(timeout=120)
    assert run.returncode == code
    assert (out, err) == ("", f"{said}\n")
    assert not (folder / "dataset.toml").exists()
    assert not [name for name in os.listdir(folder) if ".part." in name]
