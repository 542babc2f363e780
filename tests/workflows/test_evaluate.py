import dataclasses
import html
import json
import re
import sys
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from galsep.config import EvaluateConfig
from galsep.errors import DatasetError, OutputExistsError
from galsep.flags import Flag
from galsep.io.dataset import DatasetMeta, load_dataset, write_meta, write_shard
from galsep.model.weights import trained_on
from galsep.scene import Blend, Detections, Footprint, Source, SourceLight
from galsep.workflows.evaluate import (
    CANDIDATE_THRESHOLD,
    FIGURES,
    ISOLATED_FIGURE,
    evaluate,
    summary_rows,
)
from galsep.workflows.evaluation_report import class_table, light_tables
from galsep.workflows.judging import true_sources
from galsep.workflows.reporting import Reporter

RMS = 1.0
ZEROPOINT = 30.0
NO_BASELINES = EvaluateConfig(baselines=False)
POPULATION = {"n": 12, "seed": 7, "survey": "LSST"}


class Listener(Reporter):
    def __init__(self):
        self.warnings, self.open, self.steps, self.total = [], 0, 0, 0

    def begin(self, label, total):
        assert self.open == 0
        self.open, self.steps, self.total = 1, 0, total

    def advance(self, steps=1, note=""):
        self.steps += steps

    def end(self):
        assert self.steps == self.total
        self.open = 0

    def warn(self, message):
        self.warnings.append(message)


def gaussian(x, y, flux, kind="galaxy", sigma=2.0, bands=1):
    rows, columns = np.indices((120, 120))
    light = flux / (2 * np.pi * sigma**2)
    light = light * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
    magnitude = np.full(bands, ZEROPOINT - 2.5 * np.log10(flux))
    return Source(
        kind, x, y, magnitude, np.full(bands, flux), 0.5, 0.0, 0.0,
        np.tile(light.astype(np.float32), (bands, 1, 1)), 0, 0,
    )  # fmt: skip


def make_dataset(folder, blends, counts, bands=("i",)):
    """Write blends of (x, y, flux) sources, or (x, y, flux, kind), the same in all bands."""
    folder.mkdir()
    rng = np.random.default_rng(4)
    scenes, columns = [], []
    for sources in blends:
        drawn = [gaussian(*source, bands=len(bands)) for source in sources]
        image = rng.normal(0, RMS, (len(bands), 120, 120)) + sum(s.light for s in drawn)
        scenes.append(Blend(image.astype(np.float32), drawn, 0.8))
        snr = np.array([np.sqrt(np.sum((s.light / RMS) ** 2)) for s in drawn])
        area = np.array([np.count_nonzero(s.light[0] > 1.5 * RMS) for s in drawn], dtype=int)
        columns.append(
            {"snr": snr, "purity": np.ones(len(drawn)), "area": area,
             "detectable": (snr >= 7) & (area >= 5)}
        )  # fmt: skip
    if blends:
        write_shard(folder / "shard-0000.fits", scenes, columns, 0)
    write_meta(
        folder,
        DatasetMeta(
            "LSST", bands, len(bands) - 1, 0.2,
            *((value,) * len(bands) for value in (ZEROPOINT, RMS, 0.8)),
            dict(zip(("train", "validation", "test"), counts, strict=True)),
            ("shard-0000.fits",) if blends else (), POPULATION, "0.1.0", 7,
        ),
    )  # fmt: skip
    return folder


PAIR = ((52, 60, 900.0), (66, 64, 500.0))
WITH_FAINT = ((50, 50, 900.0), (80, 70, 44.0))
BLENDS = [PAIR] * 3 + [PAIR, WITH_FAINT] + [
    PAIR, ((40, 40, 2000.0), (48, 44, 700.0), (60, 70, 600.0)), WITH_FAINT, (), ((60, 60, 400.0),)
]  # fmt: skip


@pytest.fixture
def dataset(tmp_path):
    return make_dataset(tmp_path / "set", BLENDS, (3, 2, 5))


def found_sources(truth, keep, image):
    """Make a FoundSources of the true sources ``keep``."""
    labels = np.zeros(image.shape, dtype=np.int32)
    for label, index in enumerate(keep, 1):
        labels[truth.owned[index].to_full(image.shape)] = label
    detections = Detections(
        [truth.footprints[i] for i in keep], truth.x[keep], truth.y[keep],
        np.full(len(keep), 0.9), truth.flux[keep], np.where(truth.star[keep], 0.7, 0.2),
    )  # fmt: skip
    models = [gaussian(truth.x[i], truth.y[i], truth.flux[i]).light[0] for i in keep]
    everything = np.maximum(sum(models, np.zeros_like(image)), 1e-6)
    return SimpleNamespace(
        detections=detections,
        flags=np.zeros(len(keep), dtype=int),
        segm=labels,
        light=image,
        rms=np.full_like(image, RMS),
        separated=[
            SourceLight(0, 0, model / everything, model, flux, 0.1 * flux)
            for model, flux in zip(models, truth.flux[keep].tolist(), strict=True)
        ],
        photometry=SimpleNamespace(flux=truth.flux[keep], flux_err=0.1 * truth.flux[keep]),
        bands={},
    )


def everything(truth, threshold):
    return list(range(len(truth)))


@dataclass(frozen=True)
class StandIn:
    threshold: float
    info: dict
    sha256: str = "ab" * 32
    separator: str | None = "separates"


def install(monkeypatch, folder, choose=everything, threshold=0.45, info=None, draw=False):
    """Stand in for the network: ``choose(truth, threshold)`` names the sources it finds."""
    if not draw:
        monkeypatch.setattr("galsep.workflows.evaluate._draw", lambda *_: [])
    data = load_dataset(folder)
    known = {data.detection_image(i).tobytes(): true_sources(data, i) for i in range(len(data))}
    calls = []

    def run_network(images, model, config):
        for image in images:
            yield image, known[image.data.tobytes()]

    def finish(image, truth, model, config, threshold):
        calls.append((threshold, model.separator is not None))
        return found_sources(truth, choose(truth, threshold), image.data)

    def load_model(weights, device):
        return StandIn(threshold, info or {})

    stood_in = {
        "galsep.model.weights": {"load_model": load_model, "trained_on": trained_on},
        "galsep.workflows.preparing": {"run_network": run_network},
        "galsep.workflows.finding": {"finish": finish},
    }
    for name, functions in stood_in.items():
        module = ModuleType(name)
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, name, module)
    return calls


def test_perfect_detections(monkeypatch, dataset, tmp_path):
    install(monkeypatch, dataset)
    listener = Listener()
    result = evaluate(dataset, tmp_path / "out", NO_BASELINES, reporter=listener)
    metrics = result.metrics
    assert (metrics["n_blends"], metrics["n_sources"], metrics["n_detectable"]) == (5, 8, 7)
    assert metrics["n_not_detectable"] == 1
    assert metrics["weights_sha256"] == "ab" * 32
    block = metrics["methods"]["galsep"]["all"]
    assert block["centroid5"] == {
        "tp": 8, "fp": 0, "fn": 0, "precision": 1.0, "recall": 1.0, "f1": 1.0
    }  # fmt: skip
    assert (block["exact"], block["mask_iou"], block["label_iou"], block["flux_error"]) == (
        1, 1, 1, 0
    )  # fmt: skip
    detectable = metrics["methods"]["galsep"]["detectable"]
    assert (detectable["n_true"], detectable["n_left_out"], detectable["n_ignored"]) == (7, 1, 1)
    assert detectable["iou50"]["f1"] == detectable["exact"] == 1
    for key in ("map_box50", "map_box", "map_mask50", "map_mask"):
        assert detectable[key] == pytest.approx(1)
        assert detectable["map_at_threshold"][key] == pytest.approx(1)
    assert metrics["share_detectable"] == 7 / 8
    assert metrics["class_star"] is None
    light = metrics["methods"]["galsep"]["light"]
    assert (light["n"], light["exact"]["n"]) == (8, 8)
    assert light["flux_error"] == light["flux_error_all"] == light["pull_width"] == 0
    assert light["image_error"] == pytest.approx(0, abs=1e-4)
    assert light["cosine"] == pytest.approx(1, abs=1e-4)
    assert light["sep"]["n"] == 0
    assert listener.warnings == []
    assert listener.open == 0


def test_calibration_counts_detectable_sources(monkeypatch, dataset, tmp_path):
    def choose(truth, threshold):
        return list(range(len(truth)))[: 1 if threshold > 0.1 else None]

    install(monkeypatch, dataset, choose)
    metrics = evaluate(dataset, tmp_path / "out", NO_BASELINES).metrics
    figures = metrics["methods"]["galsep"]["reliability"]
    # All scores are 0.9. Four blends have a first source; seven of all eight are detectable, and
    # the eighth is left out.
    assert (figures["n"], figures["n_candidates"]) == (4, 7)
    assert figures["ece"] == pytest.approx(0.1)
    assert figures["bins"][9]["n_real"] == 4
    assert figures["bins_candidates"][9]["share_real"] == 1
    assert figures["bins"][3] == {
        "low": 0.3, "high": 0.4, "n": 0, "n_real": 0, "mean_score": None, "share_real": None
    }  # fmt: skip


def test_spurious_sources_lower_the_share_of_real_ones(monkeypatch, dataset, tmp_path):
    original = found_sources

    def shifted(truth, keep, image):
        found = original(truth, keep, image)
        found.detections.x[:1] += 30
        found.flags[:1] = Flag.NETWORK_MISSED
        return found

    monkeypatch.setattr(sys.modules[__name__], "found_sources", shifted)
    install(monkeypatch, dataset)
    figures = evaluate(dataset, tmp_path / "out", NO_BASELINES).metrics["methods"]["galsep"]
    figures = figures["reliability"]
    assert (figures["n"], figures["bins"][9]["n_real"]) == (7, 3)
    assert figures["ece"] == pytest.approx(0.9 - 3 / 7)


@pytest.mark.parametrize("known", [True, False])
def test_the_psf_is_that_of_the_data_set_or_unknown(monkeypatch, dataset, tmp_path, known):
    install(monkeypatch, dataset)
    preparing, told = sys.modules["galsep.workflows.preparing"], []
    plain = preparing.run_network

    def run_network(images, model, config):
        def seen():
            for image in images:
                told.append(image.psf_fwhm)
                assert image.gain == 1
                yield image

        return plain(seen(), model, config)

    monkeypatch.setattr(preparing, "run_network", run_network)
    config = dataclasses.replace(NO_BASELINES, psf=known)
    metrics = evaluate(dataset, tmp_path / "out", config).metrics
    assert metrics["psf_known"] is known
    data = load_dataset(dataset)
    assert set(told) == ({data.fwhm(0)} if known else {None})


@pytest.fixture
def brighter(monkeypatch):
    """Give the sources that are found a tenth too much flux, one error, and half as much in g."""
    original = found_sources

    def changed(truth, keep, image):
        found = original(truth, keep, image)
        true = truth.flux[keep]
        found.photometry = SimpleNamespace(flux=1.1 * true, flux_err=0.1 * true)
        found.bands = {"g": SimpleNamespace(photometry=SimpleNamespace(flux=1.05 * true))}
        return found

    monkeypatch.setattr(sys.modules[__name__], "found_sources", changed)


def test_the_light_of_each_source_is_shown(monkeypatch, brighter, tmp_path):
    dataset = make_dataset(tmp_path / "set", BLENDS, (3, 2, 5), ("g", "i"))
    install(monkeypatch, dataset)
    metrics = evaluate(dataset, tmp_path / "out", NO_BASELINES).metrics
    whole, bins, colors = light_tables(metrics)
    # The models are true; every flux is off by a tenth, which is one error.
    figures = ("8", "0.100", "0.000", "0.100", "0.0000", "1.000", "1.000", "0.000", "0.000")
    assert whole.rows == (("galsep", figures),)
    assert len(whole.columns) == len(figures)
    assert "SEP" not in whole.caption
    assert sum(int(cells[0]) for _, cells in bins.rows) == 8
    assert {cells[1] for _, cells in bins.rows} == {"0.100"}
    # i has more too much than g has: g − i is too red.
    error = f"{2.5 * np.log10(1.1 / 1.05):.3f}"
    assert colors.rows == (("g − i", (error, error)),)
    shown = tables_of(tmp_path / "out" / "report.html")
    assert [shown[table.caption] for table in (whole, bins, colors)] == [
        [[label, *cells] for label, cells in table.rows] for table in (whole, bins, colors)
    ]


def tables_of(page):
    """Labels and cells of the tables of figures on a page, by caption."""
    tables = {}
    for table in re.findall('"right stacked">.*?</table>', page.read_text(), re.S):
        rows = [
            [html.unescape(cell) for cell in re.findall(r"<(?:th|td)[^>]*>([^<]*)<", row)]
            for row in re.findall("<tr.*?</tr>", table, re.S)
        ]
        assert len({len(row) for row in rows}) == 1
        tables[html.unescape(re.search("<caption>(.*?)</caption>", table)[1])] = rows[1:]
    return tables


def beside(isophotal=None, kron=None, flux=None, n=0, n_kron=0, **models):
    """SEP's figures: of each flux error, bias and scatter."""
    of_flux = {"flux": flux, "isophotal": isophotal, "kron": kron}
    return {"n": n, "n_kron": n_kron, **models} | {
        f"{kind}_{name}": value
        for kind, values in of_flux.items()
        for name, value in zip(("error", "bias", "scatter"), values or (None,) * 3, strict=True)
    }


def test_light_beside_sep():
    models = {"image_error": 0.00684, "cosine": 0.9966, "ssim": 0.5, "ellipticity_error": 0.1,
              "pull_width": None}  # fmt: skip
    light = {
        "n": 41, "flux_error": 0.047, "flux_bias": -0.0064, "flux_scatter": 0.0644, **models,
        "color_error": [], "color_bias": [],
        "sep": beside((0.19, -0.171, 0.246), (0.1, -0.0001, 0.219), (1, -1, 0.5), 39, 37, **models),
        "by": {"magnitude": [
            {"low": None, "high": 24.0, "n": 2, "flux_bias": 0.1, "flux_scatter": 0.2,
             "sep": beside((9, -0.3, 0.4), (9, -0.5, 0.6), (9, 9, 9), 1, 1)},
            {"low": 24.0, "high": 24.5, "n": 0, "flux_bias": None, "flux_scatter": None,
             "sep": beside()},
            {"low": 24.5, "high": None, "n": 0, "flux_bias": None, "flux_scatter": None,
             "sep": beside((9, 0.7, None), None, (1, -1, None), 1)},
        ]},
    }  # fmt: skip
    metrics = {"methods": {"galsep": {"light": light}}, "dataset": {"bands": ["i"]}}
    whole, bins = light_tables(metrics)
    assert whole.caption.endswith("SEP 1.5σ/64/0.0005 finds")
    image = ("0.0068", "0.997", "0.500", "0.100", "–")
    none = ("–",) * 5
    assert whole.rows == (
        ("galsep", ("41", "-0.006", "0.064", "0.047", *image)),
        ("galsep, SEP's", ("39", "-1.000", "0.500", "1.000", *image)),
        ("SEP isophotal", ("39", "-0.171", "0.246", "0.190", *none)),
        # Zero has no sign.
        ("SEP Kron", ("37", "0.000", "0.219", "0.100", *none)),
    )
    # A bin without a source is left out; n, bias and scatter, then SEP's n and both its fluxes.
    assert bins.rows == (
        ("< 24", ("2", "0.100", "0.200", "1", "-0.300", "0.400", "-0.500", "0.600")),
        ("≥ 24.5", ("0", "–", "–", "1", "0.700", "–", "–", "–")),
    )
    without = {"methods": {"galsep": {"light": None}}, "dataset": {"bands": ["i"]}}
    assert light_tables(without) == []


STARS = ((40, 60, 900.0, "star"), (66, 64, 500.0), (90, 90, 700.0, "star"))


def test_classes_where_there_are_stars(monkeypatch, tmp_path):
    dataset = make_dataset(tmp_path / "set", [STARS, PAIR], (0, 0, 2))
    install(monkeypatch, dataset, draw=True)
    result = evaluate(dataset, tmp_path / "out", NO_BASELINES)
    classes = result.metrics["class_star"]
    right = {"completeness": 1.0, "purity": 1.0, "purity_80": 1.0}
    assert (classes["stars"], classes["galaxies"]) == ({"n": 2, **right}, {"n": 3, **right})
    assert sum(row["galaxies"]["n"] for row in classes["by_magnitude"]) == 3
    table = class_table(result.metrics)
    assert table.rows[0] == ("all", ("2", "1.000", "1.000", "3", "1.000", "1.000"))
    assert [sum(int(cells[k]) for _, cells in table.rows[1:]) for k in (0, 3)] == [2, 3]
    # The faintest is a galaxy, and no star is near.
    assert table.rows[-1][1][:3] == ("0", "–", "–")
    shown = tables_of(tmp_path / "out" / "report.html")
    assert shown[table.caption] == [[label, *cells] for label, cells in table.rows]
    assert (tmp_path / "out" / "star-galaxy.png").read_bytes()[1:4] == b"PNG"
    assert tmp_path / "out" / "star-galaxy.png" in result.files


def test_a_report_without_stars_leaves_no_figure_of_an_older_one(monkeypatch, dataset, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "star-galaxy.png").write_bytes(b"old")
    install(monkeypatch, dataset)
    with pytest.raises(OutputExistsError, match="star-galaxy"):
        evaluate(dataset, tmp_path / "out", NO_BASELINES)
    evaluate(dataset, tmp_path / "out", NO_BASELINES, overwrite=True)
    assert not (tmp_path / "out" / "star-galaxy.png").exists()


def test_the_file_holds_the_metrics(monkeypatch, dataset, tmp_path):
    install(monkeypatch, dataset, draw=True)
    result = evaluate(dataset, tmp_path / "out", NO_BASELINES)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == result.metrics
    figures = [*FIGURES, ISOLATED_FIGURE]
    assert [file.name for file in result.files] == ["metrics.json", *figures, "report.html"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(
        file.name for file in result.files
    )
    assert str(tmp_path) not in (tmp_path / "out" / "metrics.json").read_text()


def test_nothing_found(monkeypatch, dataset, tmp_path):
    install(monkeypatch, dataset, lambda truth, threshold: [])
    metrics = evaluate(dataset, tmp_path / "out", NO_BASELINES).metrics
    block = metrics["methods"]["galsep"]["all"]
    assert (block["iou50"]["precision"], block["iou50"]["recall"], block["iou50"]["f1"]) == (
        None, 0, 0
    )  # fmt: skip
    assert block["exact"] == 0.2  # The empty stamp.
    assert block["map_mask"] == 0
    assert metrics["threshold"] == metrics["threshold_stored"] == 0.45
    light = metrics["methods"]["galsep"]["light"]
    # Sources that are missed count as sources without flux.
    assert (light["n"], light["flux_error"], light["flux_error_all"]) == (0, None, 1)


def test_one_of_each_blend_missed(monkeypatch, dataset, tmp_path):
    install(monkeypatch, dataset, lambda truth, threshold: list(range(1, len(truth))))
    block = evaluate(dataset, tmp_path / "out", NO_BASELINES).metrics["methods"]["galsep"]["all"]
    assert (block["centroid5"]["tp"], block["centroid5"]["fn"]) == (4, 4)
    by_number = {row["low"]: row["centroid5"]["recall"] for row in block["by"]["n_sources"]}
    assert by_number == {0: None, 1: 0, 2: 0.5, 3: pytest.approx(2 / 3)}
    for rows in block["by"].values():
        assert sum(row["n_true"] for row in rows) == 8


def test_the_threshold_comes_from_the_validation_split(monkeypatch, dataset, tmp_path):
    def choose(truth, threshold):
        return [] if threshold < 0.56 or threshold > 0.75 else list(range(len(truth)))

    calls = install(monkeypatch, dataset, choose)
    metrics = evaluate(dataset, tmp_path / "out", NO_BASELINES).metrics
    # 0.6 and 0.7 are equally good: the one nearer to the stored threshold is taken.
    assert (metrics["threshold"], metrics["threshold_stored"]) == (0.6, 0.45)
    scan = metrics["threshold_scan"]
    assert scan["n_blends"] == 2
    assert [row["f1"] for row in scan["grid"]] == [0, 0, 0, 0, 0, 0, 0, 1, 1, 0]
    assert {row["threshold"] for row in scan["grid"]} == {level for level, _ in calls} - {
        CANDIDATE_THRESHOLD
    }
    # Validation, and the catalogue of the test blends, whose light alone is separated.
    assert calls.count((0.6, False)) == 2
    assert calls.count((0.6, True)) == calls.count((CANDIDATE_THRESHOLD, False)) == 5
    assert {level for level, separated in calls if separated} == {0.6}


def test_without_a_validation_split_the_stored_threshold_is_used(monkeypatch, tmp_path):
    dataset = make_dataset(tmp_path / "set", [PAIR, PAIR], (0, 0, 2))
    install(monkeypatch, dataset)
    metrics = evaluate(dataset, tmp_path / "out", NO_BASELINES).metrics
    assert metrics["threshold"] == 0.45
    assert metrics["threshold_scan"] is None


def test_an_empty_test_split(monkeypatch, tmp_path):
    dataset = make_dataset(tmp_path / "set", [PAIR, PAIR], (2, 0, 0))
    install(monkeypatch, dataset, draw=True)
    listener = Listener()
    metrics = evaluate(dataset, tmp_path / "out", reporter=listener).metrics
    assert metrics["n_blends"] == metrics["n_sources"] == 0
    assert metrics["share_detectable"] is metrics["class_star"] is None
    assert light_tables(metrics) == []
    assert class_table(metrics) is None
    assert metrics["methods"]["galsep"]["reliability"]["ece"] is None
    assert any("test split is empty" in message for message in listener.warnings)
    for row in summary_rows(metrics):
        assert row["n_true"] == 0
        assert row["f1"] is row["exact"] is row["map_mask"] is None


def test_only_empty_stamps(monkeypatch, tmp_path):
    dataset = make_dataset(tmp_path / "set", [(), ()], (0, 0, 2))
    install(monkeypatch, dataset, draw=True)
    block = evaluate(dataset, tmp_path / "out").metrics["methods"]["galsep"]["detectable"]
    assert (block["exact"], block["centroid5"]["f1"], block["map_box50"]) == (1, None, None)


def test_classical_methods_stand_beside_the_network(monkeypatch, dataset, tmp_path):
    install(monkeypatch, dataset)
    metrics = evaluate(dataset, tmp_path / "out", EvaluateConfig(workers=1)).metrics
    names = list(metrics["methods"])
    assert names[:5] == [
        "galsep", "sep_1.5_32_0.005", "sep_1.5_64_0.0005", "sep_3_64_0.001", "sep_5_32_0.005"
    ]  # fmt: skip
    assert metrics["best_sep"] in names
    sep = metrics["methods"]["sep_1.5_32_0.005"]["detectable"]
    assert sep["centroid5"]["recall"] > 0.7
    assert -0.5 < sep["flux_bias"] < 0.05
    assert sep["mask_iou"] > 0.5
    rival = metrics["methods"]["galsep"]["light"]["sep"]
    assert 6 <= rival["n"] <= 8
    assert rival["flux_error"] == 0
    # Segments end before the light does.
    assert rival["kron_error"] < rival["isophotal_error"] < 0.4
    assert -0.4 < rival["isophotal_bias"] < rival["kron_bias"] < 0.1
    bins = metrics["methods"]["galsep"]["light"]["by"]["magnitude"]
    assert sum(row["sep"]["n"] for row in bins) == rival["n"]
    # All that the file holds is described, names of methods apart.
    told = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    assert keys_of(metrics) - set(names) - set(re.findall(r"\w+", told)) == set()
    rows = summary_rows(metrics)
    assert len(rows) == 2 * len(names)
    assert {row["sources"] for row in rows} == {"all", "detectable"}
    assert (rows[0]["label"], rows[2]["label"]) == ("galsep", "SEP 1.5σ/32/0.005")
    assert rows[1]["n_left_out"] == 1
    assert rows[0]["f1_5px"] == 1


def keys_of(value):
    """Every key of nested mappings and lists."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    keys = set(value) if isinstance(value, dict) else set()
    return keys.union(*(keys_of(one) for one in inner))


def test_the_classical_methods_get_the_background_subtracted_image(monkeypatch, dataset, tmp_path):
    install(monkeypatch, dataset)
    before = evaluate(dataset, tmp_path / "one", EvaluateConfig(workers=1)).metrics
    original = found_sources

    def other_light(truth, keep, image):
        found = original(truth, keep, image)
        found.light = image + 100
        found.flags[:1] = Flag.NETWORK_MISSED
        return found

    monkeypatch.setattr(sys.modules[__name__], "found_sources", other_light)
    after = evaluate(dataset, tmp_path / "two", EvaluateConfig(workers=1)).metrics
    name = "sep_5_32_0.005"
    assert (before["n_network_missed"], after["n_network_missed"]) == (0, 4)
    light = [report["methods"]["galsep"].pop("light") for report in (before, after)]
    assert after["methods"]["galsep"] == before["methods"]["galsep"]
    # Of the network's own light only what it is compared with changes.
    sep = [
        [part.pop("sep") for part in (figures, *chain(*figures["by"].values()))]
        for figures in light
    ]
    assert light[0] == light[1]
    assert sep[0] != sep[1]
    assert after["methods"][name] != before["methods"][name]


def test_the_limit_takes_the_first_blends(monkeypatch, dataset, tmp_path):
    install(monkeypatch, dataset)
    config = EvaluateConfig(baselines=False, limit=2)
    metrics = evaluate(dataset, tmp_path / "out", config).metrics
    assert (metrics["n_blends"], metrics["n_sources"]) == (2, 5)


def test_blends_seen_in_training_are_told(monkeypatch, dataset, tmp_path):
    seen = {"population": {**POPULATION, "n": 20}, "counts": {"train": 6, "validation": 1}}
    install(monkeypatch, dataset, info={"dataset": seen})
    listener = Listener()
    metrics = evaluate(dataset, tmp_path / "one", NO_BASELINES, reporter=listener).metrics
    assert metrics["n_seen"] == 2
    assert "trained on" in listener.warnings[0]
    other = {**seen, "population": {**POPULATION, "seed": 8}}
    install(monkeypatch, dataset, info={"dataset": other})
    assert evaluate(dataset, tmp_path / "two", NO_BASELINES).metrics["n_seen"] == 0
    for info in ({"separation": {"dataset": seen}}, {"earlier_datasets": [other, seen]}):
        install(monkeypatch, dataset, info={"dataset": other, **info})
        metrics = evaluate(dataset, tmp_path / "two", NO_BASELINES, overwrite=True).metrics
        assert metrics["n_seen"] == 2
    joined = {"population": {"joined": [other, seen]}, "counts": {"train": 12, "validation": 2}}
    install(monkeypatch, dataset, info={"dataset": joined})
    assert evaluate(dataset, tmp_path / "three", NO_BASELINES).metrics["n_seen"] == 2


def test_a_report_is_replaced_only_when_asked(monkeypatch, dataset, tmp_path):
    install(monkeypatch, dataset, draw=True)
    evaluate(dataset, tmp_path / "out", NO_BASELINES)
    before = (tmp_path / "out" / "metrics.json").read_bytes()
    with pytest.raises(OutputExistsError, match="--overwrite"):
        evaluate(dataset, tmp_path / "out", NO_BASELINES)
    evaluate(dataset, tmp_path / "out", NO_BASELINES, overwrite=True)
    assert (tmp_path / "out" / "metrics.json").read_bytes() == before


def test_a_missing_data_set_makes_no_folder(monkeypatch, dataset, tmp_path):
    install(monkeypatch, dataset)
    with pytest.raises(DatasetError, match="galsep simulate"):
        evaluate(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_true_sources_own_the_pixels_where_they_are_brightest(dataset):
    data = load_dataset(dataset)
    truth = true_sources(data, 5)
    layers = data.stack(5)
    whole = truth.footprints[0].to_full((120, 120)) | truth.footprints[1].to_full((120, 120))
    first, second = (part.to_full((120, 120)) for part in truth.owned)
    assert not (first & second).any()
    assert ((first | second) == whole).all()
    assert (layers[0] >= layers[1])[first].all()
    assert truth.detectable.all()
    assert isinstance(truth.footprints[0], Footprint)
