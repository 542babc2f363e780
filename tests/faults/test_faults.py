"""Kills, full disks, and folders and files that vanish."""

import contextlib
import ctypes
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from galsep.config import DeblendConfig, SimulateConfig, TrainConfig
from galsep.errors import ImageError, OutputError, OutputExistsError
from galsep.io import dataset
from galsep.io.claim import claimed
from galsep.model.weights import load_model
from galsep.settings import dump_toml
from galsep.workflows.files import deblend_files
from galsep.workflows.reporting import Reporter
from galsep.workflows.simulate import simulate
from galsep.workflows.train import train

from .kills import broken, partial

CONFIG = DeblendConfig(device="cpu", batch_size=1)


@pytest.fixture
def images(tmp_path):
    """Three small images."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{name}.fits" for name in "abc"]
    for path in paths:
        image = rng.normal(size=(40, 44)).astype(np.float32)
        image[18:22, 18:22] += 50
        fits.writeto(path, image)
    return paths


ATTACK = """
import pathlib, sys
from tests.faults.kills import attack
print(attack(sys.argv[1], int(sys.argv[2]), 1, pathlib.Path(sys.argv[3])))
"""


@pytest.mark.parametrize(("name", "n"), [("deblend", 4), ("simulate", 3), ("train", 3)])
def test_what_is_killed_leaves_whole_products_and_can_go_on(tmp_path, name, n):
    # A process that has used its threads cannot be forked.
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", ATTACK, name, str(n), str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Counter(")


def limited() -> None:
    """Let no file grow beyond this many bytes, as on a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))


@pytest.mark.parametrize("command", ["deblend", "simulate"])
def test_a_full_disk_is_one_line_and_leaves_nothing(images, tmp_path, command):
    output = tmp_path / "out"
    arguments = {
        "deblend": ("deblend", *map(str, images), "-o", str(output), "--device", "cpu"),
        "simulate": ("simulate", str(output), "--n", "3", "--workers", "1"),
    }[command]
    done = subprocess.run(
        [sys.executable, "-m", "galsep", *arguments, "-q"],
        preexec_fn=limited,
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert len(lines) == (3 if command == "deblend" else 1)
    reason = r"(File too large|\d+ requested and \d+ written; is the disk full\?)"
    for line in lines:
        assert re.match(rf"error: {output}/[\w.-]+: cannot write \({reason}\)$", line)
    assert not partial(output)
    assert not broken(output)
    assert not list(output.glob("*_cat.fits"))
    assert not (output / "dataset.toml").exists()


PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1


def not_almighty() -> None:
    """Have permissions hold for root, too (Linux)."""
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)


EACH = """
import sys
from galsep.cli.main import main
images, data, output = sys.argv[1].split(","), sys.argv[2], sys.argv[3]
for command in (
    ["deblend", *images, "-o", output, "--device", "cpu"],
    ["simulate", output, "--n", "3", "--workers", "1"],
    ["train", data, "-o", output, "--epochs", "1", "--device", "cpu"],
):
    print(main([*command, "-q"]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="root may write everywhere but here")
def test_an_output_folder_that_is_read_only_is_one_line(images, data, tmp_path):
    output = tmp_path / "out"
    output.mkdir(mode=0o500)
    done = subprocess.run(
        [sys.executable, "-c", EACH, ",".join(map(str, images)), str(data), str(output)],
        preexec_fn=not_almighty,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.stdout.split() == ["1", "1", "1"], done.stderr
    refused = f"error: {output}: the output folder is not writable"
    assert done.stderr.splitlines() == [refused] * 3
    assert not list(output.iterdir())


class Removing(Reporter):
    """Removes a folder at the first progress."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def advance(self, steps=1, note=""):
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Blends to train on."""
    folder = tmp_path_factory.mktemp("data") / "set"
    simulate(folder, SimulateConfig(n=40, seed=2, workers=1))
    return folder


TRAINING = TrainConfig(
    epochs=1, separation_epochs=0, epoch_size=2, batch_size=2, validation_size=2, f1_size=0,
    calibrate=False, device="cpu",
)  # fmt: skip


def test_a_data_set_whose_folder_is_removed_while_it_is_simulated(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "SHARD_SIZE", 2)
    output = tmp_path / "out"
    with pytest.raises(OutputError, match=rf"^{output}/shard-0001\.fits: cannot write \(.*\)$"):
        simulate(output, SimulateConfig(n=4, workers=1), reporter=Removing(output))
    assert not output.exists()


def test_a_run_whose_folder_is_removed_while_it_is_trained(data, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(OutputError, match=rf"^{run}/weights\.safetensors: cannot write \(.*\)$"):
        train(data, run, TRAINING, reporter=Removing(run))
    assert not run.exists()


def test_a_data_set_that_is_removed_while_it_is_trained_on_is_in_memory(data, tmp_path):
    copy = tmp_path / "set"
    shutil.copytree(data, copy)
    train(copy, tmp_path / "run", TRAINING, reporter=Removing(copy))
    assert not copy.exists()
    assert load_model(tmp_path / "run" / "weights.safetensors", "cpu").info["epoch"] == 1


def test_a_disk_that_is_full_ends_a_training_with_one_line(data, tmp_path):
    run, settings = tmp_path / "run", tmp_path / "settings.toml"
    settings.write_text(dump_toml(TRAINING))
    command = ["train", str(data), "-o", str(run), "--config", str(settings), "-q"]
    done = subprocess.run(
        [sys.executable, "-m", "galsep", *command],
        preexec_fn=limited,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert re.match(rf"error: {run}/weights\.safetensors: cannot write \(.*\)\n$", done.stderr)
    assert [path.name for path in run.iterdir()] == ["config.toml"]


# The signal comes while the resume state is being written.
TOLD = """
import signal, sys
from galsep.cli import main as program
from galsep.model import weights

signal.signal(signal.SIGTERM, program._terminate)
signal.signal(signal.SIGINT, signal.default_int_handler)
save = weights.save

def saved(tensors, metadata):
    if number and "galsep_state" in metadata:
        signal.raise_signal(number)
    return save(tensors, metadata)

weights.save = saved
sys.exit(program.main(arguments))
"""


def test_a_training_that_is_told_to_stop_leaves_whole_files_and_goes_on(forked, data, tmp_path):
    settings, run = tmp_path / "settings.toml", tmp_path / "run"
    settings.write_text(dump_toml(TRAINING))
    arguments = ["train", str(data), "-o", str(run), "--config", str(settings), "-q", "--resume"]
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (0, 0)):
        child = forked(TOLD, arguments=arguments, number=int(number))
        child.join(300)
        assert child.exitcode == code
        assert not partial(run)
        load_model(run / "weights.safetensors", "cpu")
        assert (run / "state.safetensors").exists() == (code == 0)


def test_an_output_folder_that_is_removed_costs_the_files_after_it(images, tmp_path):
    output = tmp_path / "out"

    def remove(result):
        if result.path == images[0]:
            shutil.rmtree(output)

    results = deblend_files(images, output, CONFIG, listener=remove)
    assert [type(result.error) for result in results] == [type(None), OutputError, OutputError]
    for path, result in zip(images[1:], results[1:], strict=True):
        text = str(result.error)
        assert text.startswith(f"{output / path.stem}_cat.fits: cannot write")
        assert "\n" not in text
    assert not output.exists()


def test_an_input_that_is_removed_costs_itself_alone(images, tmp_path):
    def remove(result):
        images[1].unlink(missing_ok=True)

    results = deblend_files(images, tmp_path / "out", CONFIG, listener=remove)
    assert [type(result.error) for result in results] == [type(None), ImageError, type(None)]
    assert str(results[1].error) == f"{images[1]}: no such file; check the path"


def test_a_broken_product_is_noticed(images, tmp_path):
    deblend_files(images[:1], tmp_path / "out", CONFIG)
    assert not broken(tmp_path / "out")
    path = tmp_path / "out" / "a_segm.fits"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    assert broken(tmp_path / "out") == ["a_segm.fits"]


class Listening(Reporter):
    """Once the call waits for another's output, has that written and the claim to it dropped."""

    def __init__(self, write, other):
        super().__init__()
        self.write, self.other, self.heard = write, other, []

    def info(self, message):
        self.heard.append(message)
        if "waiting" in message:
            self.write()
            self.other.close()


@pytest.mark.parametrize(
    ("options", "written"),
    [({"skip_existing": True}, False), ({"overwrite": True}, True), ({}, False)],
)
def test_a_file_that_another_call_is_at_work_on_is_waited_for(images, tmp_path, options, written):
    output = tmp_path / "out"
    output.mkdir()
    products = [output / f"a{ending}.fits" for ending in ("_segm", "_cat")]
    unfinished = output / ".01234567.part.b_cat.fits"
    unfinished.touch()

    def write():
        for product in products:
            product.write_text("by the other call")

    with contextlib.ExitStack() as other, claimed(output / "b_cat.fits"):
        other.enter_context(claimed(products[1]))
        reporter = Listening(write, other)
        (result,) = deblend_files(images[:1], output, CONFIG, reporter=reporter, **options)
        assert sum("another call is at work" in line for line in reporter.heard) == 1
        assert (products[1].read_bytes() == b"by the other call") != written
        assert result.skipped == ("skip_existing" in options)
        assert isinstance(result.error, OutputExistsError) == (not options)
        # What is not this call's is left alone, of whatever call it is.
        assert unfinished.exists()


def test_what_another_call_is_writing_is_not_tidied_up(images, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    abandoned, live = (output / f".01234567.part.{name}_segm.fits" for name in "ab")
    abandoned.touch()
    live.touch()
    for name in "ab":
        (output / f"{name}_segm.fits").touch()
    with contextlib.ExitStack() as stack:
        # The other call begins when this one is done with the file.
        def listener(result):
            if result.path == images[1]:
                stack.enter_context(claimed(output / "b_cat.fits"))

        deblend_files(images[:2], output, CONFIG, overwrite=True, listener=listener)
        assert not abandoned.exists()
        assert live.exists()
