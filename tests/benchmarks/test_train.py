"""``benchmarks/train.py`` and ``h200.sh``: what they count, how they judge, how they go on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from galsep.config import SimulateConfig
from galsep.io.dataset import load_dataset
from galsep.workflows.simulate import simulate

BENCHMARK = "train"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs") / "set"
    simulate(folder, SimulateConfig(n=40, max_mag=24.0, seed=5, workers=1))
    return folder


def test_the_reference_is_given_the_true_boxes(bench, pairs):
    data = load_dataset(pairs)
    blends = bench.Blends(data, "train")
    assert len(blends) == 36
    image, target = blends[3]
    assert image.shape == (3, 120, 120)
    rows = data.sources(3)
    assert len(target["boxes"]) == rows["detectable"].sum() > 0
    for mask, box, area in zip(
        target["masks"], target["boxes"], rows["area"][rows["detectable"]], strict=True
    ):
        assert mask.sum() == area
        y, x = np.nonzero(mask.numpy())
        assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


class Perfect(torch.nn.Module):
    """Finds every source of a test split exactly, and one more of a low score."""

    def __init__(self, bench, data):
        super().__init__()
        self.known = {}
        for split in ("validation", "test"):
            for blend in data.split(split):
                rows = data.sources(blend)
                x, y = rows["x"] + 0.5, rows["y"] + 0.5
                boxes = np.stack([x - 4, y - 4, x + 4, y + 4], axis=1)
                key = bench.network_input(data, blend)[:1].sum().item()
                self.known[key] = torch.from_numpy(np.concatenate([boxes, [[0, 0, 9, 9]]]))

    def forward(self, images):
        boxes = self.known[images[0].sum().item()]
        scores = torch.full((len(boxes),), 0.9)
        scores[-1] = 0.12
        return [{"boxes": boxes, "scores": scores}]


def test_what_finds_everything_is_judged_perfect(bench, pairs):
    data = load_dataset(pairs)
    one = bench.Bench(pairs, pairs, torch.device("cpu"), 2, 1, 0, 0)
    judged = bench.judged(data, Perfect(bench, data), 1, one)
    assert (judged["precision"], judged["recall"], judged["f1"]) == (1, 1, 1)
    assert judged["threshold"] > 0.12


def test_flops_of_the_reference_are_those_of_its_convolutions(bench, pairs):
    """ResNet-50 has 4.1 G multiplications on 224×224 px; forward and backward take three times."""
    flops = bench.reference_flops(load_dataset(pairs))
    backbone = 3 * 2 * 4.1e9 * (128 / 224) ** 2
    assert 1.5 * backbone < flops < 20 * backbone


def test_a_stopped_measurement_goes_on(bench, pairs, tmp_path, monkeypatch, capsys):
    arguments = ["train.py", "--work", str(tmp_path), "--dataset", str(pairs), "--device", "cpu",
                 "--only", "reference,compact"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(bench, "fast_bfloat16", lambda device: False)
    monkeypatch.setattr(bench, "matrix_rate", lambda *_: 1e12)
    monkeypatch.setattr(bench, "reference_flops", lambda *_: 50e9)
    monkeypatch.setattr(bench, "galsep_flops", lambda *_: 5e9)
    monkeypatch.setattr(bench, "reference_speed", lambda *_, amp: 2.0)

    def stopped(*_, amp):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "galsep_speed", stopped)
    with pytest.raises(KeyboardInterrupt):
        bench.main()
    done = json.loads((tmp_path / "train.json").read_text())
    assert done["rows"] == {"reference fp32": 2.0}
    monkeypatch.setattr(bench, "reference_speed", stopped)
    monkeypatch.setattr(bench, "galsep_speed", lambda *_, amp: 30.0)
    bench.main()
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    # Images a second, over the reference's, GFLOP an image, TFLOP/s, share of the rate.
    assert ["compact", "fp32", "30.0", "15.00", "5.00", "0.150", "15.0%"] in table
    assert ["reference", "fp32", "2.0", "1.00", "50.00", "0.100", "10.0%"] in table


@pytest.mark.slow
def test_a_recipe_is_timed_and_counted(bench, pairs, tmp_path):
    one = bench.Bench(tmp_path, pairs, torch.device("cpu"), 2, 1, 0, 0)
    assert bench.galsep_speed(one, "compact", amp=False) > 0
    assert 2e9 < bench.galsep_flops(one, "compact") < 20e9


PYTHON = """#!/bin/sh
case $1 in -) exec "{real}" "$@" ;; esac
echo "$*" >>"{folder}/asked"
[ -z "$SLEEP" ] || exec sleep "$SLEEP"
case "$*" in
*"galsep train"*)
    [ -z "$EPOCH" ] || {{
        mkdir -p "$WORK/compact"
        printf 'epochs = 20\\nseparation_epochs = 12\\n' >"$WORK/compact/config.toml"
        printf 'seconds,images_per_second,validation_f1\\n90,88.6,0.5\\n30,266,0.875\\n' \\
            >"$WORK/compact/metrics.csv"
    }}
    ;;
esac
exit "$CODE"
"""


@pytest.fixture
def script(bench, tmp_path):
    """Run h200.sh with a Python that notes what it is asked for and ends as it is told."""
    python = tmp_path / "python"
    python.write_text(PYTHON.format(real=sys.executable, folder=tmp_path))
    python.chmod(0o755)

    def run(*arguments, code=0, **variables):
        environment = {**os.environ, "PYTHON": str(python), "WORK": str(tmp_path / "work"),
                       "CODE": str(code), "SLEEP": "", "EPOCH": "", **variables}  # fmt: skip
        command = ["sh", str(Path(bench.__file__).with_name("h200.sh")), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    run.asked = tmp_path / "asked"
    run.work = tmp_path / "work"
    return run


def drawn(script, name):
    (script.work / name).mkdir(parents=True, exist_ok=True)
    (script.work / name / "dataset.toml").touch()


def test_the_script_draws_once_resumes_and_judges(script):
    ran = script("paper", DEVICE="cpu", EPOCHS="3", INIT="random")
    assert (ran.returncode, ran.stdout) == (0, "done\n"), ran.stderr
    simulated, trained, judged = script.asked.read_text().splitlines()
    assert simulated == f"-m galsep simulate {script.work}/pairs --n 20000 --quiet"
    assert trained == (
        f"-m galsep train {script.work}/pairs --output {script.work}/paper --recipe paper "
        "--device cpu --resume --epochs 3 --init random"
    )
    assert judged == (
        f"-m galsep evaluate {script.work}/pairs --output {script.work}/paper-report "
        f"--weights {script.work}/paper/weights.safetensors --device cpu --overwrite"
    )
    drawn(script, "pairs")
    script.asked.unlink()
    assert script("bench").stdout == "done\n"
    (measured,) = script.asked.read_text().splitlines()
    assert "benchmarks/train.py" in measured
    script.asked.unlink()
    assert script("deblend", SIDE="9000").stdout == "done\n"
    (measured,) = script.asked.read_text().splitlines()
    assert "benchmarks/deblend.py --alone --device cuda" in measured
    assert "--side 9000" in measured


def test_the_script_says_whether_there_is_more_to_do(script):
    drawn(script, "varied")
    ran = script("compact", code=130, EPOCH="1")
    assert ran.returncode == 0
    assert ran.stdout.splitlines() == [
        "not done yet: say it again",
        "Mask R-CNN: 2 of 20 epochs, 1.00 min an epoch, 20 min for all, 266 images/s, F1 0.875",
    ]
    assert script("compact", code=1).returncode == 1
    ran = script("everything")
    assert ran.returncode == 2
    assert "bench, deblend, paper or compact" in ran.stderr


def test_the_script_stops_where_no_epoch_ends_in_time(script):
    drawn(script, "varied")
    ran = script("compact", SLEEP="60", LIMIT="8")
    assert (ran.returncode, ran.stdout) == (1, "not done yet: say it again\n")
    assert "smaller EPOCH_SIZE" in ran.stderr


def test_the_script_installs_what_is_missing_or_old_but_no_pytorch(script, monkeypatch, tmp_path):
    """Of what is drawn already, GalSim is not missed."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HIDING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    drawn(script, "pairs")
    assert script("bench", WHEELS="wheels").returncode == 0
    installed = script.asked.read_text().splitlines()[0]
    assert installed == (
        f"-m pip install --quiet --no-index --find-links wheels -r {script.work}/needed.txt"
    )
    assert (script.work / "needed.txt").read_text() == "numpy>=1.26\nsep>=1.4\n"
    assert (script.work / "to-judge.txt").read_text() == "photutils>=2.0\n"
    (script.work / "pairs" / "dataset.toml").unlink()
    script("bench")
    assert (script.work / "needed.txt").read_text() == "galsim>=2.6\nnumpy>=1.26\nsep>=1.4\n"


HIDING = """
import importlib.metadata as metadata

known = metadata.version
older = {"numpy": "1.20"}


def version(name):
    if name in ("galsim", "photutils", "sep", "torch"):
        raise metadata.PackageNotFoundError(name)
    return older.get(name) or known(name)


metadata.version = version
"""
