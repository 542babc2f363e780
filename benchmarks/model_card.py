"""Make every figure of the model card again.

    python benchmarks/model_card.py --work DIR [--weights FILE] [--only pairs,grid]

Writes DIR/model_card.json and prints tables. Data sets and fields that lie in DIR are used again;
so are the parts of model_card.json that are not asked for, if they are of the same weights. Of a
data set only what is judged is drawn, blend by blend the same as ``galsep simulate`` with the
settings given here: the validation split, on which ``galsep evaluate`` chooses the score
threshold, and the test split. The grid has no validation split, so the stored threshold holds, as
it does for an image.

=========== =======================================================================================
pairs       1,000 pairs, ``galsep simulate`` at its defaults
six         1,000 blends of 1 to 6 galaxies within ±5″
crowded     the same within ±2.4″
hst         500 pairs of real galaxies, seen by HST, of the half that no training has seen (needs
            GALSEP_TEST_DATA)
grid        200 blends of 1 to 6 galaxies at each of four seeings and three depths
field       a continuous field, completeness and purity at i < 25.3
stars       300 blends of 1 to 4 sources, half of them stars
star-field  a field with a tenth of stars, whose PSF is measured there
shift       what changes when the window on a field moves
noise       catalogue rows of pure noise
separation  completeness by magnitude and by separation, of the pairs
speed       CPU time of ``galsep deblend`` on the field of benchmarks/deblend.py
=========== =======================================================================================
"""

import argparse
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from cosmos import halve
from deblend import DENSITY as SPEED_DENSITY
from scaling import PATCH
from scaling import field as tiled_field
from scipy.ndimage import gaussian_filter

import galsep
from galsep.config import EvaluateConfig, SimulateConfig
from galsep.io.atomic import write_text
from galsep.io.dataset import is_dataset, write_meta
from galsep.measure.classes import class_scores
from galsep.measure.matching import centroid_distances, match_centroids
from galsep.measure.metrics import ratio, score_matches
from galsep.workflows import simulate as drawing
from galsep.workflows.baselines import PHOTUTILS, SEP_SETTINGS, sep_detections
from galsep.workflows.evaluate import evaluate, summary_rows
from galsep.workflows.pool import map_on_workers

SHARD_SIZE = 100
SIX: dict[str, Any] = {"galaxies": "1-6", "max_shift": 5.0, "seed": 3}
"""Settings of the blends of one to six galaxies within ±5″."""

SEEINGS = (0.5, 0.8, 1.1, 1.3)
DEPTHS = (-1.5, 0.0, 1.5)

STAR_EDGES = (20.0, 21.0, 22.0, 23.0, 24.0, 25.0)
"""Magnitudes between the bins of the field with stars."""

FIELD_LIMIT = 25.3
"""Sources down to here count in the field."""

FAINT_RADIUS = 2.0
"""What is found so near to an undetectable source of the field is left out, pixels."""

SHIFTS = ((1, 0), (0, 1), (2, 3), (5, 1), (7, 11), (13, 8), (17, 29), (23, 5), (31, 37), (41, 19),
          (53, 47), (60, 60))  # fmt: skip
"""``dx, dy`` of the windows, pixels."""

WINDOW = 800
SHIFT_MARGIN = 80
SHIFT_RADIUS = 2.0
NOISE_SIDE = 3000
NOISE_SIGMA = 0.6
SPEED_RUNS = 3

Table = list[dict[str, Any]]


@dataclass(frozen=True)
class Bench:
    """Where data sets lie and which network is judged.

    Parameters
    ----------
    work : Path
    weights, device : str
    workers : int
    """

    work: Path
    weights: str
    device: str
    workers: int

    @cached_property
    def model(self) -> Any:
        """The network, loaded once."""
        return galsep.load_model(self.weights, self.device)

    def judged(
        self,
        name: str,
        *,
        validation: bool = True,
        reuse: bool = False,
        psf: bool = True,
        **settings: Any,
    ) -> dict[str, Any]:
        """Draw a data set where there is none, and return ``galsep evaluate``'s metrics.

        Without the PSF, the network alone is judged.
        """
        report = self.work / "reports" / (name if psf else f"{name}-alone")
        if reuse and (report / "metrics.json").is_file():
            metrics: dict[str, Any] = json.loads((report / "metrics.json").read_text())
            if metrics["weights_sha256"] == self.model.sha256:
                return metrics
        config = SimulateConfig(workers=self.workers, **settings)
        folder = draw_held_out(self.work / "data" / name, config, validation=validation)
        judging = EvaluateConfig(
            weights=self.weights, device=self.device, workers=self.workers, psf=psf, baselines=psf
        )
        return evaluate(folder, report, judging, overwrite=True).metrics

    def field(self, name: str, **settings: Any) -> Path:
        """Draw a field where there is none."""
        folder = self.work / "data" / name
        if not (folder / "truth.fits").is_file():
            galsep.simulate(folder, SimulateConfig(**settings), overwrite=True)
        return folder

    def deblend(self, image: Any) -> Any:
        """Deblend a file or an array."""
        return galsep.deblend(image, model=self.model)


def draw_held_out(folder: Path, config: SimulateConfig, *, validation: bool) -> Path:
    """Draw the last tenth of a data set, or its last twentieth: blends that no training uses."""
    if is_dataset(folder):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    survey = drawing._maker(config).survey
    whole = drawing._meta(config, survey, ())
    counts = {**whole.counts, "train": 0, "validation": whole.counts["validation"] * validation}
    starts = range(config.n - sum(counts.values()), config.n, SHARD_SIZE)
    names = [f"shard-{index:04d}.fits" for index in range(len(starts))]
    tasks = [
        (config, folder / name, start, min(config.n, start + SHARD_SIZE))
        for name, start in zip(names, starts, strict=True)
    ]
    for _ in map_on_workers(drawing._write_task, tasks, config.workers):
        pass
    population = {**whole.population, "drawn": "what is not for training"}
    write_meta(
        folder,
        dataclasses.replace(whole, counts=counts, shards=tuple(names), population=population),
    )
    return folder


def brief(metrics: dict[str, Any]) -> dict[str, Any]:
    """Keep of the metrics what a model card shows."""
    keys = ("n_blends", "n_sources", "n_detectable", "share_detectable", "n_network_missed",
            "threshold", "threshold_stored", "best_sep")  # fmt: skip
    reliability = metrics["methods"]["galsep"]["reliability"]
    return {
        **{key: metrics[key] for key in keys},
        "ece": reliability["ece"],
        "ece_candidates": reliability["ece_candidates"],
        "rows": summary_rows(metrics),
    }


def pairs(bench: Bench) -> dict[str, Any]:
    return brief(bench.judged("pairs"))


def six(bench: Bench) -> dict[str, Any]:
    return brief(bench.judged("six", **SIX))


def crowded(bench: Bench) -> dict[str, Any]:
    return brief(bench.judged("crowded", galaxies="1-6", seed=3))


def hst(bench: Bench) -> dict[str, Any] | None:
    folder = os.environ.get("GALSEP_TEST_DATA", "")
    if not folder:
        return None
    return brief(bench.judged("hst-unseen", **unseen_real_pairs(Path(folder), bench.work)))


def unseen_real_pairs(test_data: Path, work: Path) -> dict[str, Any]:
    """Settings for 500 pairs of the real galaxies that the default weights were not trained on."""
    _, unseen = halve(test_data / "cosmos", work / "cosmos")
    return {"cosmos": str(unseen), "max_shift": 1.6, "n": 10_000, "seed": 4}


def grid(bench: Bench) -> dict[str, Any]:
    points = []
    for seeing in SEEINGS:
        for depth in DEPTHS:
            metrics = bench.judged(
                f"grid-{seeing:g}-{depth:+g}", validation=False,
                seeing=f"{seeing:g}", depth=depth, galaxies="1-6", n=4000,
            )  # fmt: skip
            rival = metrics["best_sep"]
            photutils = metrics["methods"].get(PHOTUTILS)
            here, there = (
                metrics["methods"][name]["detectable"]["centroid5"] for name in ("galsep", rival)
            )
            points.append(
                {"seeing": seeing, "depth": depth, "share_detectable": metrics["share_detectable"],
                 "f1": here["f1"], "best_sep": rival, "f1_sep": there["f1"],
                 "f1_photutils": photutils and photutils["detectable"]["centroid5"]["f1"],
                 **{f"{key}_gain": difference(here[key], there[key])
                    for key in ("f1", "precision", "recall")},
                 "ece": metrics["methods"]["galsep"]["reliability"]["ece"]}
            )  # fmt: skip
    return {"rows": points}


def difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def field(bench: Bench) -> dict[str, Any]:
    settings = {"galaxies": "1", "density": 91.0, "max_mag": 27.5, "seed": 5}
    folder = bench.field("field", field="2400x2400", **settings)
    truth = fits.getdata(folder / "truth.fits", "TRUTH")
    zeropoint = fits.getval(folder / "field_i.fits", "MAGZERO")
    result = bench.deblend(folder / "field_i.fits")
    rms = float(np.median(result.rms))
    table = result.catalog
    found = {
        "galsep": tuple(
            np.asarray(table[key]) for key in ("x_centroid", "y_centroid", "deblend_flux")
        )
    }
    for name, setting in SEP_SETTINGS.items():
        detections = sep_detections(result.light, rms, setting)
        found[name] = (detections.x, detections.y, detections.flux)
    rows = [
        {"method": name, **field_scores(truth, x, y, flux, zeropoint)}
        for name, (x, y, flux) in found.items()
    ]
    return {"n_true": len(truth), "limit": FIELD_LIMIT, "rows": rows}


def magnitudes(truth: Any) -> Any:
    """In the first band of a field's truth."""
    return np.asarray(truth["magnitude"]).reshape(len(truth), -1)[:, 0]


def field_scores(truth: Any, x: Any, y: Any, flux: Any, zeropoint: float) -> dict[str, Any]:
    """Completeness of true sources brighter than the limit, and purity of found ones.

    A found source is real if it is matched to any detectable one. Purity is that of all found
    sources, and of those whose measured magnitude is brighter than the limit.
    """
    magnitude = magnitudes(truth)
    detectable = np.asarray(truth["detectable"], dtype=bool)
    distance = centroid_distances((truth["x"], truth["y"]), (x, y))
    complete = score_matches([match_centroids(distance, wanted=magnitude < FIELD_LIMIT)])
    distance[~detectable[:, None] & (distance > FAINT_RADIUS)] = np.inf
    match = match_centroids(distance, wanted=detectable)
    bright = np.asarray(flux) > 10 ** (-0.4 * (FIELD_LIMIT - zeropoint))
    real, spurious = match.pairs[:, 1], match.spurious
    n_real, n_spurious = (int(bright[chosen].sum()) for chosen in (real, spurious))
    return {
        "n_bright": int((magnitude < FIELD_LIMIT).sum()),
        "completeness": complete["recall"],
        "n_found_bright": n_real + n_spurious,
        "purity": ratio(n_real, n_real + n_spurious),
        "n_found": len(x),
        "n_left_out": len(match.ignored),
        "purity_all": ratio(len(real), len(real) + len(spurious)),
    }


def stars(bench: Bench) -> dict[str, Any]:
    settings = {"galaxies": "1-4", "stars": 0.5, "n": 6000, "seed": 6}
    metrics = bench.judged("stars", **settings)
    blind = bench.judged("stars", psf=False, **settings)
    classes = metrics["class_star"]
    return {
        "class_star": classes,
        "rows": class_rows(classes),
        "judged": brief(metrics),
        "psf_unknown": {"rows": class_rows(blind["class_star"])},
    }


def star_field(bench: Bench) -> dict[str, Any]:
    settings = {"galaxies": "1", "density": 91.0, "max_mag": 27.5, "stars": 0.1, "seed": 8}
    folder = bench.field("star-field", field="2400x2400", **settings)
    truth = fits.getdata(folder / "truth.fits", "TRUTH")
    result = bench.deblend(folder / "field_i.fits")
    table = result.catalog
    magnitude = magnitudes(truth)
    bright = magnitude < FIELD_LIMIT
    found = np.asarray(table["x_centroid"]), np.asarray(table["y_centroid"])
    distance = centroid_distances((truth["x"], truth["y"]), found)
    i, j = match_centroids(distance, wanted=bright).pairs.T
    classes = class_scores(
        np.asarray(table["class_star"], dtype=np.float64)[j],
        np.char.strip(truth["class"][i]) == "star",
        magnitude[i],
        STAR_EDGES,
    )
    return {"psf_fwhm": table.meta["PSFFWHM"], "rows": class_rows(classes)}


def class_rows(classes: dict[str, Any]) -> Table:
    """What is known of the classes of all, and by magnitude."""
    return [
        {"low": row["low"], "high": row["high"],
         **{f"{kind}_{key}": value
            for kind in ("stars", "galaxies") for key, value in row[kind].items()}}
        for row in [{"low": None, "high": None, **classes}, *classes["by_magnitude"]]
    ]  # fmt: skip


def shift(bench: Bench) -> dict[str, Any]:
    side = WINDOW + max(max(pair) for pair in SHIFTS)
    folder = bench.field("shift", field=f"{side}x{side}", galaxies="1", seed=7)
    image = fits.getdata(folder / "field_i.fits").astype(np.float32)

    def positions(dx: int, dy: int) -> Any:
        table = bench.deblend(image[dy : dy + WINDOW, dx : dx + WINDOW]).catalog
        return np.stack([table["x_centroid"] + dx, table["y_centroid"] + dy])

    reference = positions(0, 0)
    rows = []
    for dx, dy in SHIFTS:
        low = np.array([dx, dy]) + SHIFT_MARGIN
        high = np.array([WINDOW - 1, WINDOW - 1]) - SHIFT_MARGIN
        rows.append({"dx": dx, "dy": dy, **lost(reference, positions(dx, dy), low, high)})
    shares = [row["share"] for row in rows]
    return {"mean": statistics.mean(shares), "max": max(shares), "rows": rows}


def lost(first: Any, second: Any, low: Any, high: Any) -> dict[str, Any]:
    """Count sources inside a box, of either catalogue, that the other one does not have.

    Parameters
    ----------
    first, second : (2, n) and (2, m) arrays
        ``x, y``.
    low, high : (2,) arrays
        The box's corners; a counterpart may lie outside.
    """
    match = match_centroids(centroid_distances(first, second), SHIFT_RADIUS)
    inside = [((p >= low[:, None]) & (p <= high[:, None])).all(axis=0) for p in (first, second)]
    n = sum(int(here.sum()) for here in inside)
    alone = int(inside[0][match.missed].sum() + inside[1][match.spurious].sum())
    return {"n": n, "lost": alone, "share": ratio(alone, n) or 0.0}


def noise(bench: Bench) -> dict[str, Any]:
    white = np.random.default_rng(8).normal(0, 1, (NOISE_SIDE, NOISE_SIDE)).astype(np.float32)
    images = {"white": white, "correlated": gaussian_filter(white, NOISE_SIGMA)}
    area = NOISE_SIDE**2 / 1e6
    rows = []
    for name, image in images.items():
        n = len(bench.deblend(image))
        rows.append({"noise": name, "rows": n, "rows_per_1000x1000": n / area})
    return {"rows": rows}


def separation(bench: Bench) -> dict[str, Any]:
    metrics = bench.judged("pairs", reuse=True)
    rival = metrics["best_sep"]
    blocks = [metrics["methods"][name]["detectable"]["by"] for name in ("galsep", rival)]
    rows = [
        {"by": by, "low": here["low"], "high": here["high"], "n_true": here["n_true"],
         **{f"{key}{end}": row["centroid5"][key]
            for key in ("recall", "f1") for row, end in ((here, ""), (there, "_sep"))}}
        for by in ("magnitude", "separation")
        for here, there in zip(blocks[0][by], blocks[1][by], strict=True)
    ]  # fmt: skip
    return {"best_sep": rival, "rows": rows}


def speed(bench: Bench) -> dict[str, Any]:
    image = tiled_field(bench.work / "data", PATCH, SPEED_DENSITY)
    command = [sys.executable, "-m", "galsep", "deblend", str(image), "--quiet"]
    command += ["--output", str(bench.work / "out"), "--overwrite", "--device", bench.device]
    command += ["--weights", bench.weights] if bench.weights else []
    cpu, wall = [], []
    for _ in range(SPEED_RUNS):
        before, start = children_seconds(), time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        cpu.append(children_seconds() - before)
        wall.append(time.perf_counter() - start)
    rows = [{"cpu_s": c, "wall_s": w} for c, w in zip(cpu, wall, strict=True)]
    return {"cpu_s": statistics.median(cpu), "wall_s": statistics.median(wall), "rows": rows}


def children_seconds() -> float:
    """CPU time, user's and system's, of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


PARTS: dict[str, Callable[[Bench], dict[str, Any] | None]] = {
    "pairs": pairs, "six": six, "crowded": crowded, "hst": hst, "grid": grid,
    "field": field, "stars": stars, "star-field": star_field, "shift": shift, "noise": noise,
    "separation": separation, "speed": speed,
}  # fmt: skip

HIDDEN = ("label", "n_left_out", "map_box", "map_mask", "label_iou")
"""Columns of the judged data sets that a printed table has no room for."""


def show(name: str, part: dict[str, Any] | None) -> None:
    """Print a part: its single figures, then its rows as a table."""
    print(f"\n{name}" if part else f"\n{name}: left out (set GALSEP_TEST_DATA)")
    if not part:
        return
    single = {key: value for key, value in part.items() if not isinstance(value, dict | list)}
    if single:
        print("  " + ", ".join(f"{key} {cell(value)}" for key, value in single.items()))
    for line in lines(part["rows"]):
        print("  " + line)
    for further in ("judged", "psf_unknown"):
        if further in part:
            show(f"{name}, {further}", part[further])


def lines(rows: Table) -> Iterator[str]:
    """Lay rows out in columns."""
    hidden = HIDDEN if "map_mask50" in rows[0] else ()
    names = [name for name in rows[0] if name not in hidden]
    cells = [names, *([cell(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[k]) for line in cells) for k in range(len(names))]
    for line in cells:
        yield "  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True))


def cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for data and reports")
    parser.add_argument("--weights", default="", help="network weights (default: the packaged)")
    parser.add_argument("--only", default="", metavar="NAME,...", help=", ".join(PARTS))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=0, help="processes (0: one a core)")
    options = parser.parse_args(arguments)
    chosen = options.only.split(",") if options.only else list(PARTS)
    if unknown := [name for name in chosen if name not in PARTS]:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    bench = Bench(options.work, options.weights, options.device, options.workers)
    target = options.work / "model_card.json"
    options.work.mkdir(parents=True, exist_ok=True)
    about = {
        "galsep_version": galsep.__version__,
        "weights_sha256": bench.model.sha256,
        "threshold_stored": bench.model.threshold,
    }
    before = json.loads(target.read_text()) if target.is_file() else {}
    same = before.get("weights_sha256") == about["weights_sha256"]
    parts = before["parts"] if same else {}
    seconds = before["seconds"] if same else {}
    for name in chosen:
        start = time.perf_counter()
        parts[name] = PARTS[name](bench)
        seconds[name] = round(time.perf_counter() - start, 1)
        card = {**about, "seconds": seconds, "parts": parts}
        write_text(target, json.dumps(card, indent=1, allow_nan=False) + "\n")
        show(name, parts[name])
        print(f"  {seconds[name]:.0f} s", flush=True)
    print(f"\nwrote {target}")


if __name__ == "__main__":
    main()
