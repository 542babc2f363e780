"""The light of blended sources beside a fit of the profiles that they were drawn with.

    python benchmarks/profile_fit.py --work DIR [--n 500] [--weights FILE]

Each source of a pair is a de Vaucouleurs bulge and an exponential disk of one centre, radius and
shape, seen through the true PSF; all are fitted together by least squares, from galsep's positions
on (Gaussian mixtures, Hogg & Lang 2013; fluxes by variable projection; wide priors on radius, shape
and position). So the fit knows what galsep does not: what kind of profile the simulated galaxies
have, and the PSF. Both are compared on the pairs that galsep recovers exactly: N of the default
population, and with GALSEP_TEST_DATA N of unseen real galaxies, whose profiles nobody knows.
"""

import argparse
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import galsim
import numpy as np
from model_card import Bench, draw_held_out, lines, unseen_real_pairs
from scipy.optimize import least_squares, nnls
from separation import RIVAL, frame

from galsep.config import SimulateConfig
from galsep.io.dataset import Dataset, load_dataset
from galsep.measure import recovery
from galsep.workflows import finding, judging
from galsep.workflows.baselines import sep_fluxes

BORDER = 22
"""Pixels about the sources that are fitted."""

RADIUS, RADIUS_SPREAD = 2.2, 0.6
"""Half-light radius to begin with, pixels, and the width of the prior on its logarithm."""

SHAPE_SPREAD, PLACE_SPREAD = 0.4, 1.0
STEPS = 25
PURITIES = ((0.0, 1.0), (0.98, 1.0), (0.9, 0.98), (0.0, 0.9))

Mixture = tuple[Any, Any]
"""Shares and widths of concentric Gaussians."""


def mixture(profile: Any, widths: Any) -> Mixture:
    """Gaussians that add up to a round profile."""
    radius = np.geomspace(widths[0] / 3, 2.5 * widths[-1], 300)
    wanted = np.array([profile.xValue(r, 0) for r in radius])
    columns = np.exp(-0.5 * (radius[:, None] / widths) ** 2) / (2 * np.pi * widths**2)
    shares, _ = nnls(columns * radius[:, None], wanted * radius)
    used = shares > 0
    return shares[used] / shares[used].sum(), widths[used]


def psf_mixture(fwhm: float) -> Mixture:
    """A Kolmogorov PSF; ``fwhm`` in pixels."""
    widths = fwhm / 2.355 * np.array([0.6, 0.9, 1.3, 2.2, 4.0])
    return mixture(galsim.Kolmogorov(fwhm=fwhm), widths)


DISK = mixture(galsim.Exponential(half_light_radius=1.0), np.geomspace(0.08, 2, 8))
BULGE = mixture(galsim.DeVaucouleurs(half_light_radius=1.0, trunc=8), np.geomspace(0.02, 5, 9))


def drawn(shape: Any, kind: Mixture, psf: Mixture, x: Any, y: Any) -> Any:
    """An elliptical profile of unit flux on pixels, through a PSF."""
    x0, y0, log_radius, e1, e2 = shape
    ellipticity = np.hypot(e1, e2)
    q = (1 - np.tanh(ellipticity)) / (1 + np.tanh(ellipticity))
    along = np.arctan2(e2, e1)
    # Covariance of unit area, whose axes are 1/√q and √q.
    mean, half = (1 / q + q) / 2, (1 / q - q) / 2
    xx, yy, xy = mean + half * np.cos(along), mean - half * np.cos(along), half * np.sin(along)
    dx, dy = x - x0, y - y0
    out = np.zeros(x.shape)
    for share, width in zip(*kind, strict=True):
        area = (width * np.exp(log_radius)) ** 2
        for part, blur in zip(*psf, strict=True):
            # The pixel is a square of variance 1/12.
            round_ = blur**2 + 1 / 12
            a, b, c = xx * area + round_, yy * area + round_, xy * area
            det = a * b - c * c
            power = (b * dx**2 - 2 * c * dx * dy + a * dy**2) / det
            out += share * part / (2 * np.pi * np.sqrt(det)) * np.exp(-0.5 * power)
    return out


@dataclass(frozen=True)
class Task:
    """A pair to fit, and what is known of its sources, in the order of the truth."""

    light: Any
    rms: float
    psf: Mixture
    x: Any
    y: Any
    found: "Light"
    flux: Any
    images: Any
    purity: Any
    snr: Any
    by_sep: Any


@dataclass(frozen=True)
class Light:
    """What the light of sources was taken for: flux over the true one, and how images agree."""

    ratio: Any
    image_error: Any
    cosine: Any


def fitted(task: Task) -> tuple[Light, float]:
    """The sources' light by the fit, and CPU seconds."""
    began = time.process_time()
    n = len(task.x)
    height, width = task.light.shape
    rows = slice(max(0, int(min(task.y)) - BORDER), min(height, int(max(task.y)) + BORDER + 1))
    columns = slice(max(0, int(min(task.x)) - BORDER), min(width, int(max(task.x)) + BORDER + 1))
    everywhere = np.indices(task.light.shape).astype(float)
    y, x = everywhere[:, rows, columns]
    data = (task.light[rows, columns] / task.rms).ravel()
    begin = np.array(
        [(*at, np.log(RADIUS), 0, 0) for at in zip(task.x, task.y, strict=True)], dtype=float
    )
    spread = np.array([PLACE_SPREAD, PLACE_SPREAD, RADIUS_SPREAD, SHAPE_SPREAD, SHAPE_SPREAD])

    def fluxes(shapes: Any) -> tuple[Any, Any]:
        parts = [
            drawn(shape, kind, task.psf, x, y).ravel() for shape in shapes for kind in (DISK, BULGE)
        ]
        columns = np.stack(parts, axis=1)
        return columns, nnls(columns, data)[0]

    def off(flat: Any) -> Any:
        shapes = flat.reshape(n, 5)
        columns, flux = fluxes(shapes)
        return np.concatenate([data - columns @ flux, ((shapes - begin) / spread).ravel()])

    best = least_squares(off, begin.ravel(), max_nfev=STEPS, diff_step=1e-3, x_scale=0.2)
    shapes = best.x.reshape(n, 5)
    flux = fluxes(shapes)[1].reshape(n, 2) * task.rms
    seconds = time.process_time() - began
    models = [
        sum(
            part * drawn(shape, kind, task.psf, everywhere[1], everywhere[0])
            for part, kind in zip(parts, (DISK, BULGE), strict=True)
        )
        for parts, shape in zip(flux, shapes, strict=True)
    ]
    agree = [
        recovery._compare(model, true, task.rms)
        for model, true in zip(models, task.images, strict=True)
    ]
    image_error, cosine = (
        np.array([one[key] for one in agree]) for key in ("image_error", "cosine")
    )
    return Light(flux.sum(axis=1) / task.flux, image_error, cosine), seconds


def tasks(bench: Bench, data: Dataset, n: int) -> Iterator[Task]:
    """The pairs that galsep recovers exactly."""
    psf = psf_mixture(data.meta.psf_fwhm[data.meta.detection_band] / data.meta.pixel_scale)
    blends = data.split("test")[:n]
    frames = (frame(data, blend) for blend in blends)
    for blend, found in zip(blends, finding.find_sources(frames, bench.model), strict=True):
        rms = float(np.median(found.rms))
        sep = sep_fluxes(found.light, rms, RIVAL)
        judged, truth = judging.judge_light(data, blend, found, sep), data.sources(blend)
        if not judged.exact.all():
            continue
        x, y, everything = found.detections.x, found.detections.y, np.ones(len(truth), dtype=bool)
        pairs = judging._match(truth["x"], truth["y"], everything, found.detections).pairs
        order = pairs[np.argsort(pairs[:, 0]), 1]
        flux = truth["flux"][:, data.meta.detection_band]
        by_sep = np.isfinite(judged.sep_isophotal)
        light = Light(judged.flux_ratio, judged.image_error, judged.cosine)
        yield Task(
            found.light, rms, psf, x[order], y[order], light, flux,
            np.array(data.stack(blend), dtype=float), truth["purity"], truth["snr"], by_sep,
        )  # fmt: skip


def joined(parts: list[Light]) -> Light:
    """The light of all sources together."""
    names = [field.name for field in fields(Light)]
    return Light(*(np.concatenate([getattr(one, name) for one in parts]) for name in names))


def compare(bench: Bench, name: str, n: int, settings: dict[str, Any]) -> None:
    """Print median errors on the sources that SEP finds."""
    config = SimulateConfig(workers=bench.workers, **settings)
    data = load_dataset(draw_held_out(bench.work / "data" / name, config, validation=False))
    given = list(tasks(bench, data, n))
    with ProcessPoolExecutor(bench.workers or None) as pool:
        made = list(pool.map(fitted, given))
    found, fit = joined([task.found for task in given]), joined([light for light, _ in made])
    purity, snr, by_sep = (
        np.concatenate([getattr(task, key) for task in given])
        for key in ("purity", "snr", "by_sep")
    )
    print(f"\n{name}: {len(given)} of {n} pairs recovered exactly;", end=" ")
    print(f"a fit takes {np.mean([seconds for _, seconds in made]):.2f} CPU seconds")
    rows = []
    for low, high in PURITIES:
        here = by_sep & (purity >= low) & (purity <= high)
        ratios = found.ratio, fit.ratio, (found.ratio + fit.ratio) / 2
        errors = [np.median(np.abs(ratio[here] - 1)) for ratio in ratios]
        figures = dict(zip(("flux error", "by the fit", "by both"), errors, strict=True))
        figures["by noise alone"] = 0.6745 * np.median(1 / snr[here])
        for name in ("image_error", "cosine"):
            for end, light in (("", found), (" by the fit", fit)):
                figures[name + end] = np.median(getattr(light, name)[here])
        which = {"purity": f"{low:.2f} to {high:.2f}", "sources": int(here.sum())}
        rows.append(which | {name: f"{value:.4f}" for name, value in figures.items()})
    print("\n".join(lines(rows)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for data sets")
    parser.add_argument("--weights", default="", help="default: the packaged ones")
    parser.add_argument("--n", type=int, default=500, help="pairs of each kind")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw and fit")
    given = parser.parse_args()
    bench = Bench(given.work.resolve(), given.weights, "cpu", given.workers)
    compare(bench, f"light-pairs-{given.n}", given.n, {"n": 20 * given.n, "seed": 21})
    if os.environ.get("GALSEP_TEST_DATA"):
        folder = Path(os.environ["GALSEP_TEST_DATA"])
        compare(bench, "hst-unseen", given.n, unseen_real_pairs(folder, bench.work))


if __name__ == "__main__":
    main()
