"""``benchmarks/model_card.py``: what it counts itself, and that it draws what simulate draws."""

import numpy as np
import pytest

from galsep.config import SimulateConfig
from galsep.io.dataset import load_dataset
from galsep.workflows.simulate import simulate

BENCHMARK = "model_card"


def test_lost_sources_by_hand(bench):
    low, high = np.array([10.0, 10.0]), np.array([90.0, 90.0])
    first = np.array([[20, 50, 90, 5], [20, 50, 50, 5]], dtype=float)
    second = np.array([[21, 91, 70], [20, 50, 70]], dtype=float)
    # (50, 50) and (70, 70) are alone; (90, 50) has its partner just outside; (5, 5) is outside.
    assert bench.lost(first, second, low, high) == {"n": 5, "lost": 2, "share": 0.4}
    assert bench.lost(first, first, low, high)["share"] == 0
    nothing = np.zeros((2, 0))
    assert bench.lost(nothing, nothing, low, high) == {"n": 0, "lost": 0, "share": 0.0}


def test_field_scores_by_hand(bench):
    truth = np.zeros(4, dtype=[("x", "f8"), ("y", "f8"), ("magnitude", "f8"), ("detectable", "?")])
    truth["x"], truth["y"] = [10, 40, 70, 90], [10, 40, 70, 90]
    truth["magnitude"], truth["detectable"] = [24, 25, 26, 27], [True, True, True, False]
    # The first is found; the faint one at 1 px, and once more at 4 px; one on the empty sky is
    # bright, one is not.
    x = np.array([11.0, 70.0, 90.0, 90.0, 20.0, 30.0])
    y = np.array([10.0, 70.0, 91.0, 94.0, 90.0, 5.0])
    magnitude = np.array([24.1, 26.0, 25.0, 25.0, 25.0, 26.0])
    scores = bench.field_scores(truth, x, y, 10 ** (-0.4 * (magnitude - 30)), 30.0)
    assert scores == {
        "n_bright": 2, "completeness": 0.5, "n_found_bright": 3, "purity": pytest.approx(1 / 3),
        "n_found": 6, "n_left_out": 1, "purity_all": pytest.approx(2 / 5),
    }  # fmt: skip


@pytest.mark.parametrize("validation", [True, False])
def test_held_out_blends_are_those_of_simulate(bench, tmp_path, validation):
    config = SimulateConfig(n=60, workers=1)
    simulate(tmp_path / "whole", config)
    whole = load_dataset(tmp_path / "whole")
    part = load_dataset(bench.draw_held_out(tmp_path / "part", config, validation=validation))
    assert part.meta.counts == {"train": 0, "validation": 3 * validation, "test": 3}
    for split in ("validation", "test") if validation else ("test",):
        here, there = part.split(split), whole.split(split)
        np.testing.assert_array_equal(part.images[here], whole.images[there])
        for a, b in zip(here, there, strict=True):
            np.testing.assert_array_equal(part.sources(a)["flux"], whole.sources(b)["flux"])
    # What is there is used again.
    before = (tmp_path / "part" / "dataset.toml").stat().st_mtime_ns
    bench.draw_held_out(tmp_path / "part", config, validation=validation)
    assert (tmp_path / "part" / "dataset.toml").stat().st_mtime_ns == before


def test_parts_are_shown_as_tables(bench, capsys):
    bench.show("noise", {"rows": [{"noise": "white", "rows": 3, "share": None}]})
    assert capsys.readouterr().out.splitlines() == [
        "", "noise", "  noise  rows  share", "  white     3      –",
    ]  # fmt: skip
    bench.show("hst", None)
    assert "GALSEP_TEST_DATA" in capsys.readouterr().out


def test_an_unknown_part_is_refused(bench, tmp_path, capsys):
    with pytest.raises(SystemExit):
        bench.main(["--work", str(tmp_path), "--only", "pears"])
    assert "no part pears" in capsys.readouterr().err
