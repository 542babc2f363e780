"""How well each source gets its own light, and what that costs: the figures of docs/model.md.

    python benchmarks/separation.py --work DIR [--weights FILE] [--only pairs,cost] [--n 5000]

======= ===========================================================================================
pairs   N pairs of ``galsep simulate``'s default population: flux bias by magnitude, image error,
        cosine, against SEP's isophotal and Kron fluxes on the same sources
untold  the first 1,000 of these without the PSF, which is told else, as in ``galsep evaluate``
rivals  the first 1,000 of these, on the sources that SEP finds at each of its settings
hst     the same for 500 pairs of unseen real galaxies (needs GALSEP_TEST_DATA)
sums    sums of models over the true light of the same pixels, of pairs and of the real ones
bands   500 pairs in g, r and i, found in i: colours
colours a field of such pairs, found in the mean of its bands: colours and the bands' fluxes
real    real and peer-made images (needs GALSEP_TEST_DATA): is light conserved, how much is left in
        the masks, is what the models leave noise
edges   fluxes of the brighter galaxy of 400 pairs where the image ends some pixels beyond its
        centre, over the whole true ones
cost    CPU time a blend of the separation, on one thread, against scarlet's 0.45 s
digits  what bfloat16 changes in fluxes and CPU time, whether or not it is fast here
cases   a source beside one a hundred times brighter, three equal ones in a row, one on the image's
        edge, a star on a galaxy: DIR/*.png
======= ===========================================================================================
"""

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import galsim
import numpy as np
import torch
from astropy.io import fits
from astropy.table import Table
from model_card import Bench, draw_held_out, unseen_real_pairs

import galsep
from galsep.config import DeblendConfig, SimulateConfig
from galsep.image.light import Frame, without_background
from galsep.io.atomic import write_text
from galsep.io.dataset import Dataset, load_dataset
from galsep.measure import recovery
from galsep.measure.matching import centroid_distances, match_centroids
from galsep.measure.recovery import Recovery
from galsep.model import separation as separation_model
from galsep.model.separation import separate
from galsep.plot.isolated import IsolatedRow, plot_isolated
from galsep.sim.survey import load_survey
from galsep.workflows import finding
from galsep.workflows.baselines import SEP_SETTINGS, SepSetting, sep_fluxes
from galsep.workflows.judging import (
    judge_light,
    match_detectable,
    sum_up_light,
    true_sources,
)
from galsep.workflows.preparing import run_network

SCARLET_SECONDS = 0.45
"""CPU time of scarlet 1 a pair on one core, relative accuracy 1e-6, centres from SEP."""

COST_BLENDS = 200
RIVAL = SEP_SETTINGS["sep_1.5_64_0.0005"]
EXTENT = 120
EDGE_BLENDS, EDGE_REACH, EDGE_RADIUS = 400, (0, 2, 4, 8, 12, 20), 3.0
"""Pairs, and how many pixels are left beyond a centre; what is found nearer to it is the source."""


def judged(
    bench: Bench, name: str, limit: int | None = None, *, psf: bool = True, **settings: Any
) -> dict[str, Any]:
    """Sum up how well light was recovered on the test split of a data set."""
    data, blends = held_out(bench, name, limit, **settings)
    rows = [
        beside_sep(data, blend, found, RIVAL)
        for blend, found in looked_at(bench, data, blends, psf=psf)
    ]
    return sum_up_light(rows, [true_sources(data, blend) for blend in blends]) or {}


def held_out(
    bench: Bench, name: str, limit: int | None = None, **settings: Any
) -> tuple[Dataset, Sequence[int]]:
    """Draw a data set, unless it is there, and give the blends of its test split."""
    config = SimulateConfig(workers=bench.workers, **settings)
    data = load_dataset(draw_held_out(bench.work / "data" / name, config, validation=False))
    return data, data.split("test")[:limit]


def looked_at(
    bench: Bench, data: Dataset, blends: Sequence[int], *, psf: bool = True
) -> Iterator[tuple[int, finding.FoundSources]]:
    frames = (frame(data, blend, psf=psf) for blend in blends)
    yield from zip(blends, finding.find_sources(frames, bench.model), strict=True)


def beside_sep(
    data: Dataset, blend: int, found: finding.FoundSources, setting: SepSetting
) -> Recovery:
    sep = sep_fluxes(found.light, float(np.median(found.rms)), setting)
    return judge_light(data, blend, found, sep)


def frame(data: Dataset, blend: int, *, psf: bool = True) -> Frame:
    """A blend in electrons, found in the detection band, measured in all, its PSF told or not."""
    frames = {
        name: Frame(image, np.zeros(image.shape, dtype=bool), gain=1.0)
        for name, image in zip(data.meta.bands, data.images[blend], strict=True)
    }
    own = frames.pop(data.meta.bands[data.meta.detection_band])
    mesh = DeblendConfig().background_mesh
    bands = {name: without_background(one, mesh) for name, one in frames.items()}
    return replace(own, bands=bands, psf_fwhm=data.fwhm(blend) if psf else None)


def pairs(bench: Bench, n: int) -> dict[str, Any]:
    return judged(bench, f"light-pairs-{n}", n=20 * n, seed=21)


def untold(bench: Bench, n: int) -> dict[str, Any]:
    return judged(bench, f"light-pairs-{n}", 1000, psf=False, n=20 * n, seed=21)


def rivals(bench: Bench, n: int) -> dict[str, Any]:
    data, blends = held_out(bench, f"light-pairs-{n}", 1000, n=20 * n, seed=21)
    truth = [true_sources(data, blend) for blend in blends]
    rows: dict[SepSetting, list[Recovery]] = {setting: [] for setting in SEP_SETTINGS.values()}
    for blend, found in looked_at(bench, data, blends):
        for setting, judgements in rows.items():
            judgements.append(beside_sep(data, blend, found, setting))
    summed = {setting: sum_up_light(judgements, truth) for setting, judgements in rows.items()}
    return {
        "sources": sum(map(len, truth)),
        "rows": [
            {"setting": s.label, **figures["sep"]} for s, figures in summed.items() if figures
        ],
    }


def hst(bench: Bench) -> dict[str, Any]:
    folder = Path(os.environ["GALSEP_TEST_DATA"])
    return judged(bench, "hst-unseen", **unseen_real_pairs(folder, bench.work))


def sums(bench: Bench, n: int) -> dict[str, Any]:
    settings = {f"light-pairs-{n}": {"n": 20 * n, "seed": 21}}
    if folder := os.environ.get("GALSEP_TEST_DATA"):
        settings["hst-unseen"] = unseen_real_pairs(Path(folder), bench.work)
    rows = []
    for name, given in settings.items():
        data, blends = held_out(bench, name, 500, **given)
        ratios = []
        for blend, found in looked_at(bench, data, blends):
            light = data.stack(blend)
            for i, j in match_detectable(data, blend, found.detections).pairs.tolist():
                part = found.separated[j]
                ratios.append(part.model.sum() / light[i][part.slices].sum())
        rows.append({"blends of": name, "sources": len(ratios), "median": float(np.median(ratios))})
    return {"rows": rows}


def bands(bench: Bench) -> dict[str, Any]:
    return judged(bench, "light-bands", bands=("g", "r", "i"), n=10_000, seed=22)


def colours(bench: Bench) -> dict[str, Any]:
    names = ("g", "r", "i")
    settings = {"field": "2400x2400", "density": 12.5, "bands": names, "seed": 8}
    folder = bench.field("colours", **settings)
    truth = Table.read(folder / "truth.fits")
    images = {name: folder / f"field_{name}.fits" for name in names}
    catalog = galsep.deblend(images, DeblendConfig(device="cpu"), model=bench.model).catalog
    distance = centroid_distances(
        (np.asarray(truth["x"]), np.asarray(truth["y"])),
        (np.asarray(catalog["x_centroid"]), np.asarray(catalog["y_centroid"])),
    )
    i, j = match_centroids(distance).pairs.T
    true = np.asarray(truth["flux"])[i].T
    flux, error = (
        np.array([catalog[f"deblend_flux{kind}_{name}"][j] for name in names])
        for kind in ("", "_err")
    )
    off = -np.diff(-2.5 * np.log10(np.maximum(flux / true, 1e-9)), axis=0)
    low, high = np.percentile((flux - true) / error, [15.87, 84.13], axis=1)
    return {
        "sources": len(i),
        "color_error": np.median(np.abs(off), axis=1).tolist(),
        "color_bias": np.median(off, axis=1).tolist(),
        "flux_error": np.median(np.abs(flux / true - 1), axis=1).tolist(),
        "pull_width": ((high - low) / 2).tolist(),
    }


def real(bench: Bench) -> dict[str, Any]:
    rows = []
    for path in sorted(Path(os.environ["GALSEP_TEST_DATA"]).glob("*.fits")):
        try:
            data = fits.getdata(path).astype(np.float64)
        except (TypeError, ValueError, AttributeError):
            continue  # A table.
        if data.ndim != 2:
            continue
        spoilt = data.copy()
        spoilt[40:44] = np.nan
        for name, image in ((path.name, data), (f"{path.name}, rows missing", spoilt)):
            rows.append({"image": name, **conserved(bench.deblend(image), image)})
    return {"rows": rows}


def edges(bench: Bench) -> dict[str, Any]:
    """Fluxes, over the whole true ones, of galaxies that an image shows a part of."""
    config = SimulateConfig(workers=bench.workers, n=20 * EDGE_BLENDS, seed=24)
    data = load_dataset(draw_held_out(bench.work / "data" / "edges", config, validation=False))
    return {"rows": [cut_off(bench, data, reach) for reach in EDGE_REACH]}


def cut_off(bench: Bench, data: Dataset, reach: int) -> dict[str, Any]:
    """How far off fluxes are where the image ends ``reach`` pixels beyond the brighter centre."""
    blends = data.split("test")
    brighter = [int(data.sources(blend)["snr"].argmax()) for blend in blends]
    shown = (
        cropped(frame(data, blend), round(float(data.sources(blend)["x"][k])) + reach)
        for blend, k in zip(blends, brighter, strict=True)
    )
    off, pull = [], []
    for blend, k, found in zip(
        blends, brighter, finding.find_sources(shown, bench.model), strict=True
    ):
        true = data.sources(blend)[k]
        whole = float(true["flux"][data.meta.detection_band])
        light = found.photometry
        away = np.hypot(light.x - true["x"], light.y - true["y"])
        if len(away) and away.min() < EDGE_RADIUS:
            flux, error = (float(part[away.argmin()]) for part in (light.flux, light.flux_err))
            off.append(flux / whole - 1)
            pull.append((flux - whole) / error)
    return {
        "pixels_beyond": reach,
        "n": len(off),
        **recovery._of_flux("flux", np.array(off)),
        "pull_width": recovery._width(np.array(pull)),
    }


def cropped(whole: Frame, last: int) -> Frame:
    """An image of one band up to a column."""
    image, mask = whole.data[:, : last + 1], whole.mask[:, : last + 1]
    return replace(whole, data=image, mask=mask)


def conserved(result: Any, image: Any) -> dict[str, Any]:
    """Largest departure of background + light + residual from the data; what masks still hold."""
    light = sum(
        (result.light_of(k) for k in range(1, len(result) + 1)), np.zeros_like(result.light)
    )
    models = sum((result.model_of(k) for k in range(1, len(result) + 1)), np.zeros_like(light))
    good = np.isfinite(image)
    residual = result.residual()
    masks = (result.noverlap > 0) & good
    unmodelled = (result.light - models) / result.rms
    sky = good & ~masks
    return {
        "off": float(np.abs(result.background + light + residual - image)[good].max()),
        "largest_value": float(np.abs(image[good]).max()),
        "left_in_masks": float(residual[masks].sum() / result.light[masks].sum()),
        "noise_in_masks": spread(unmodelled[masks]),
        "noise_outside": spread(unmodelled[sky]),
    }


def spread(values: Any) -> float:
    """Standard deviation of the core of a distribution."""
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


def cost(bench: Bench) -> dict[str, Any]:
    """Time the separation of the pairs of a field on one thread."""
    joined = field_of_pairs(bench)
    each, sources = timed(bench, joined)
    each /= COST_BLENDS
    return {
        "blends": COST_BLENDS,
        "sources": len(sources),
        "cpu_ms_a_blend": 1e3 * each,
        "scarlet_over_galsep": SCARLET_SECONDS / each,
    }


def digits(bench: Bench) -> dict[str, Any]:
    """Separate the same sources in single precision and in bfloat16."""
    joined = field_of_pairs(bench)
    spent, flux = {}, {}
    for quick in (False, True):
        with mock.patch.object(separation_model, "fast_bfloat16", lambda _, quick=quick: quick):
            spent[quick], sources = timed(bench, joined)
        flux[quick] = np.array([source.flux for source in sources])
    off = np.abs(flux[True] / flux[False] - 1)
    return {
        "fast_here": separation_model.fast_bfloat16(torch.device("cpu")),
        "cpu_ratio": spent[False] / spent[True],
        "within_0.1_percent": float((off < 1e-3).mean()),
        **{f"off_{share}": float(np.percentile(off, share)) for share in (50, 90, 99, 100)},
    }


def timed(bench: Bench, joined: tuple[Any, ...]) -> tuple[float, list[Any]]:
    """CPU seconds of a separation on one thread, mean of three, and what came of it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = bench.model
    sources = separate(model.separator, *joined, fit=model.flux_fit)
    before = time.process_time()
    for _ in range(3):
        separate(model.separator, *joined, fit=model.flux_fit)
    seconds = (time.process_time() - before) / 3
    torch.set_num_threads(threads)
    return seconds, sources


def field_of_pairs(bench: Bench) -> tuple[Any, ...]:
    """What the separation is given of pairs that lie side by side on one image, as on a field."""
    config = SimulateConfig(n=20 * COST_BLENDS, seed=23, workers=bench.workers)
    data = load_dataset(draw_held_out(bench.work / "data" / "cost", config, validation=False))
    inputs = []
    for prepared, found in run_network(
        (data.detection_image(blend) for blend in data.split("test")), bench.model, DeblendConfig()
    ):
        masks, claims, candidates, _ = finding._candidates(
            prepared, found, bench.model, bench.model.threshold
        )
        kept = finding.merge(
            candidates, prepared.blobs, prepared.tiling, prepared.image.light, prepared.image.rms
        ).kept.tolist()
        scaled = prepared.image.light / prepared.image.rms
        inputs.append(
            (scaled, ~prepared.image.mask, [masks[k] for k in kept], [claims[k] for k in kept])
        )
    return side_by_side(inputs)


def side_by_side(inputs: Sequence[Any]) -> tuple[Any, ...]:
    light = np.concatenate([one[0] for one in inputs], axis=1)
    usable = np.concatenate([one[1] for one in inputs], axis=1)
    masks, claims = (
        [mask.shifted(0, EXTENT * k) for k, one in enumerate(inputs) for mask in one[which]]
        for which in (2, 3)
    )
    return light, usable, masks, claims


def cases(bench: Bench) -> dict[str, Any]:
    survey = load_survey("LSST", ("i",))
    rms, zeropoint = survey.bands[0].sky_rms, survey.bands[0].zeropoint
    rows = []
    for name, scene in CASES.items():
        rng = np.random.default_rng(5)
        layers = [drawn(*source, zeropoint) for source in scene]
        total = np.sum(layers, axis=0)
        image = rng.normal(0, 1, total.shape) * np.sqrt(rms**2 + total) + total
        result = bench.deblend(image.astype(np.float32))
        parts = result.separated
        models = sum(
            (result.model_of(k + 1) for k in range(len(parts))), np.zeros_like(result.light)
        )
        shown = []
        for (kind, magnitude, x, y, *_), layer in zip(scene, layers, strict=True):
            near = [
                np.hypot(row["x_centroid"] - x, row["y_centroid"] - y) for row in result.catalog
            ]
            k = int(np.argmin(near)) if near else -1
            found = k >= 0 and bool(near[k] < 4)
            whole = 10 ** (-0.4 * (magnitude - zeropoint))
            flux = float(result.catalog["deblend_flux"][k]) if found else None
            rows.append(
                {"case": name, "source": f"{kind} {magnitude:g}", "found": found,
                 "flux_over_true": flux and flux / whole}
            )  # fmt: skip
            if found:
                title = f"{kind} of {magnitude:g} mag"
                shown.append(IsolatedRow(title, result.light, models, parts[k], layer))
        plot_isolated(shown, rms, bench.work / f"separation-{name}.png")
    return {"rows": rows}


CASES: dict[str, list[tuple[Any, ...]]] = {
    "hundredfold": [("galaxy", 19.5, 55, 58, 4.0, 0.9, 0.2),
                    ("galaxy", 24.5, 74, 65, 2.5, 0.4, 0.1)],
    "row": [("galaxy", 23.5, 50, 60, 4.0, 0.7, 0.2), ("galaxy", 23.5, 60, 60, 4.0, 0.7, -0.2),
            ("galaxy", 23.5, 70, 60, 4.0, 0.7, 0.1)],
    "edge": [("galaxy", 22.5, 2, 60, 5.0, 0.9, 0.1), ("galaxy", 24.0, 14, 66, 3.5, 0.6, 0.2)],
    "star": [("galaxy", 21.0, 60, 60, 6.0, 1.2, 0.3), ("star", 22.5, 66, 65, 0.0, 0.0, 0.0)],
}  # fmt: skip
"""Kind, magnitude, x, y, and of galaxies: Sérsic index times two (rounded), half-light radius in
arcsec and shear."""


def drawn(
    kind: str, magnitude: float, x: float, y: float, index: float, radius: float, shear: float,
    zeropoint: float,
) -> Any:  # fmt: skip
    """A noiseless source through LSST's median seeing on a stamp."""
    flux = 10 ** (-0.4 * (magnitude - zeropoint))
    profile = galsim.Kolmogorov(fwhm=0.79)
    if kind == "galaxy":
        galaxy = galsim.Sersic(n=index / 2, half_light_radius=radius).shear(g1=shear)
        profile = galsim.Convolve(galaxy, profile)
    centre = galsim.PositionD(x + 1, y + 1)
    stamp = galsim.ImageF(EXTENT, EXTENT, scale=0.2)
    return profile.withFlux(flux).drawImage(stamp, center=centre, method="auto").array


PARTS: dict[str, Any] = {
    "pairs": pairs,
    "untold": untold,
    "rivals": rivals,
    "hst": hst,
    "sums": sums,
    "bands": bands,
    "colours": colours,
    "real": real,
    "edges": edges,
    "cost": cost,
    "digits": digits,
    "cases": cases,
}
NEEDS_DATA = ("hst", "real")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for data and pictures")
    parser.add_argument("--weights", default="", help="default: the packaged ones")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--n", type=int, default=5000, help="pairs")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw")
    given = parser.parse_args()
    bench = Bench(given.work.resolve(), given.weights, "cpu", given.workers)
    bench.work.mkdir(parents=True, exist_ok=True)
    file = bench.work / "separation.json"
    done: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    if done.get("weights") != bench.model.sha256:
        done = {"weights": bench.model.sha256}
    for name in given.only.split(","):
        if name in NEEDS_DATA and not os.environ.get("GALSEP_TEST_DATA"):
            print(f"\n{name}: left out (set GALSEP_TEST_DATA)")
            continue
        size = [given.n] if name in ("pairs", "untold", "rivals", "sums") else []
        done[name] = PARTS[name](bench, *size)
        write_text(file, json.dumps(done, indent=1) + "\n")
        show(name, done[name])


def show(name: str, part: dict[str, Any]) -> None:
    """Print a part: its single figures, then what it says of bins or of single images."""
    print(f"\n{name}")
    print("  " + words(part))
    for key in ("exact", "sep"):
        if key in part:
            print(f"  {key}: {words(part[key])}")
    for property_, rows in part.get("by", {}).items():
        for row in rows:
            print(f"  {property_} {row['low']} to {row['high']}, exact: {words(row['exact'])}")
    for row in part.get("rows", []):
        print("  " + words(row))


def words(values: dict[str, Any]) -> str:
    plain = {k: v for k, v in values.items() if not isinstance(v, dict) and k not in ("by", "rows")}
    return ", ".join(
        f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in plain.items()
    )


if __name__ == "__main__":
    main()
