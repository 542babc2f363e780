"""``galsep evaluate``: exit codes, the report and the tables."""

import json
import re

import pytest

from galsep.cli.console import render
from galsep.cli.evaluate import tables

from .conftest import names

FIGURES = (
    "precision", "recall", "f1", "precision_5px", "recall_5px", "f1_5px", "exact", "map_box50",
    "map_box", "map_mask50", "map_mask", "mask_iou", "label_iou", "flux_error", "flux_bias",
)  # fmt: skip

MODELS = {"image_error": 0.0123, "cosine": 0.987, "ssim": 0.876, "ellipticity_error": 0.054,
          "pull_width": 1.023}  # fmt: skip


def of_flux(kind, error, bias, scatter):
    return {f"{kind}_error": error, f"{kind}_bias": bias, f"{kind}_scatter": scatter}


OWN = {"n": 12_345, **of_flux("flux", 0.1, -0.2, 0.3)}
BESIDE = {
    "n": 11_111, "n_kron": 11_110, **of_flux("flux", 0.11, -0.21, 0.31), **MODELS,
    **of_flux("isophotal", 0.4, -0.5, 0.6), **of_flux("kron", 0.7, -0.8, 0.9),
}  # fmt: skip
LIGHT = {
    **OWN, **MODELS, "sep": BESIDE, "color_error": [0.0314], "color_bias": [-0.0026],
    "by": {"magnitude": [{"low": 24.5, "high": 25.0, **OWN, "sep": BESIDE}]},
}  # fmt: skip
METRICS = {
    "dataset": {"bands": ["g", "i"]},
    "n_blends": 1000, "n_sources": 2000, "n_not_detectable": 312, "share_detectable": 0.844,
    "threshold": 0.5, "candidate_threshold": 0.05, "class_star": None,
    "methods": {
        "galsep": {"reliability": {"ece": 0.0213, "ece_candidates": 0.0344}, "light": LIGHT}
    },
}  # fmt: skip
CLASS = {"n": 10, "completeness": 0.9, "purity": 0.95, "purity_80": None}


def row(label, selection, value):
    return {"method": label, "label": label, "sources": selection, **dict.fromkeys(FIGURES, value)}


def test_tables_fit_80_columns_and_show_what_is_undefined():
    labels = ("galsep", "SEP 1.5σ/64/0.0005", "photutils 1.5σ")
    rows = [row(label, s, -0.0123) for label in labels for s in ("all", "detectable")]
    rows += [row("nothing", "all", None), row("nothing", "detectable", None)]
    text = render(*tables(rows, METRICS))
    assert max(map(len, text.splitlines())) <= 80
    lines = text.splitlines()
    for label in labels:
        assert sum(line.startswith(f"{label}  ") for line in lines) == 4 + (label == "galsep")
    assert "-0.012" in text
    assert "–" in text
    assert "312" in text
    assert "mask mAP.5 -0.012; share detectable 0.844" in text
    assert "ECE) 0.021 in the catalogue, 0.034 from score 0.05 on" in text
    assert "class_star" not in text


def test_the_light_of_each_source_has_tables():
    rows = [row("galsep", s, 0.5) for s in ("all", "detectable")]
    lines = render(*tables(rows, METRICS)).splitlines()
    first = next(k for k, line in enumerate(lines) if line.startswith("Light of each source"))
    whole, bins, colors = (
        [re.split("  +", line) for line in part.splitlines()]
        for part in "\n".join(lines[first:]).split("\n\n")
    )
    models = ["0.0123", "0.987", "0.876", "0.054", "1.023"]
    # A caption, two lines of headings, a rule.
    assert whole[4:] == [
        ["galsep", "12345", "-0.200", "0.300", "0.100", *models],
        ["galsep, SEP's", "11111", "-0.210", "0.310", "0.110", *models],
        ["SEP isophotal", "11111", "-0.500", "0.600", "0.400", *["–"] * 5],
        ["SEP Kron", "11110", "-0.800", "0.900", "0.700", *["–"] * 5],
    ]
    assert bins[2][1:] == ["n", "bias", "scatter", "n", "bias", "scatter", "bias", "scatter"]
    sep = ["11111", "-0.500", "0.600", "-0.800", "0.900"]
    assert bins[4:] == [["24.5–25", "12345", "-0.200", "0.300", *sep]]
    assert colors[4:] == [["g − i", "0.031", "-0.003"]]
    # As wide as a terminal at least is; headings, rule and figures end in the same column.
    assert {len(line) for line in lines[first + 1 : first + 8]} == {80}


def test_a_report_without_light_has_no_table_of_it():
    rows = [row("galsep", s, None) for s in ("all", "detectable")]
    network = {**METRICS["methods"]["galsep"], "light": None}
    assert "Light" not in render(*tables(rows, {**METRICS, "methods": {"galsep": network}}))


def test_stars_have_a_line():
    rows = [row("galsep", s, 0.5) for s in ("all", "detectable")]
    classes = {"threshold": 0.5, "stars": CLASS, "galaxies": {**CLASS, "purity_80": 0.99}}
    text = render(*tables(rows, {**METRICS, "class_star": classes}))
    assert "stars at class_star 0.5: completeness 0.900, purity 0.950 (– at 80 %)" in text
    assert "galaxies at class_star 0.5: completeness 0.900, purity 0.950 (0.990 at 80 %)" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_report(galsep, dataset, tmp_path, weights):
    folder = tmp_path / "report"
    run = ("evaluate", dataset, "--output", folder, "--weights", weights, "--device", "cpu")
    outcome = galsep(*run, "--limit", 2, "--no-baselines")
    assert outcome.code == 0
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["n_blends"] == 2
    assert list(metrics["methods"]) == ["galsep"]
    assert outcome.out.startswith("2 test blends, 4 sources")
    assert "Detectable sources" in outcome.out
    n = metrics["methods"]["galsep"]["light"]["n"]
    assert re.search(rf"Light of each source within 5 px\n.*\n.*\n.*\ngalsep +{n} ", outcome.out)
    assert "Kron" not in outcome.out
    assert str(folder / "metrics.json") in outcome.err
    before = (folder / "metrics.json").read_bytes()
    refused = galsep(*run)
    assert refused.code == 3
    assert "--overwrite" in refused.error
    assert (folder / "metrics.json").read_bytes() == before


def test_beside_the_classical_methods(galsep, dataset, tmp_path, weights):
    run = ("evaluate", dataset, "--output", tmp_path, "--weights", weights, "--workers", 1, "-q")
    outcome = galsep(*run, "--limit", 1)
    assert outcome.code == 0
    assert outcome.out.count("SEP 1.5σ/32/0.005") == 4
    assert outcome.out.count("SEP isophotal") == outcome.out.count("SEP Kron") == 1
    assert "share detectable 1.000" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "DATASET"),
        (["set"], "--output"),
        (["set", "--output", "report", "--limit", "-1"], "limit"),
    ],
)
def test_wrong_usage(galsep, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    outcome = galsep("evaluate", *arguments)
    assert outcome.code == 2
    assert said in outcome.error
    assert names(tmp_path) == []


def test_unusable_inputs(galsep, dataset, other_version, tmp_path, weights):
    report = ("--output", tmp_path / "report")
    outcome = galsep("evaluate", other_version, *report, "--weights", weights)
    assert outcome.code == 1
    assert "version 99" in outcome.error
    assert galsep("evaluate", tmp_path, *report).code == 1
    bad = tmp_path / "w.safetensors"
    bad.write_bytes(b"not safetensors")
    outcome = galsep("evaluate", dataset, *report, "--weights", bad)
    assert outcome.code == 1
    assert "w.safetensors" in outcome.error
    assert names(tmp_path) == ["w.safetensors"]


def test_a_device_that_is_not_there(galsep, dataset, tmp_path, no_cuda):
    outcome = galsep("evaluate", dataset, "--output", tmp_path / "report", "--device", "cuda")
    assert outcome.code == 2
    assert "CUDA" in outcome.error
    assert names(tmp_path) == []


def test_an_output_folder_that_cannot_be_made(galsep, dataset, tmp_path, weights):
    (tmp_path / "file").write_text("in the way")
    outcome = galsep("evaluate", dataset, "--output", tmp_path / "file" / "x", "--weights", weights)
    assert outcome.code == 1
    assert "file" in outcome.error
    assert names(tmp_path) == ["file"]
