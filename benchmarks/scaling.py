"""How ``galsep deblend`` scales with an image's area and crowding, and with the number of jobs.

Fields are made of one simulated patch (2400×2400 px of LSST's i band, ``galsep simulate --field``),
without its noise, mirrored at random and laid side by side, with noise of their own in every pixel.
Each run is a whole process; its CPU seconds and its peak of resident memory are the operating
system's. CPU seconds, unlike wall seconds, say something on a busy machine too.

    python benchmarks/scaling.py area   [--sides 2400,4800,10000,20000] [--density 12.5]
    python benchmarks/scaling.py density [--densities 6,12.5,25,50,91]
    python benchmarks/scaling.py jobs   [--jobs 1,2] [--files 8]
    python benchmarks/scaling.py stars  [--stars 10000,300000]

``stars`` is denser than any sky: a star every 10 px, in every direction.
``--plot FILE`` draws what was measured, ``--folder DIR`` keeps the fields, which a later run uses.
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits

from galsep.plot.canvas import new_figure, save_figure

PATCH = 2400
STRIP = 400
"""Rows of a field that are made at once."""

STAR_CELL, STAR_SIGMA = 10, 1.3
"""Distance of the stars of a field of stars, and the width of each, pixels."""

MEMORY_LIMIT, TIME_RATIO = 4.0, 1.2
"""Targets: GiB at 20,000×20,000 px, and seconds a Mpix there over those at 2400×2400."""


@dataclass(frozen=True, slots=True)
class Run:
    """Cost of one run: of its process, or with several jobs of all of them together.

    Parameters
    ----------
    value : float
        What was varied: side in pixels, galaxies per arcmin², number of jobs or of stars.
    megapixels : float
    sources : int
    wall, cpu : float
        Seconds.
    memory : float
        Peak of resident memory, GiB; of the largest process.
    """

    value: float
    megapixels: float
    sources: int
    wall: float
    cpu: float
    memory: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("area", "density", "jobs", "stars"))
    parser.add_argument("--sides", default="2400,4800,10000,20000", help="pixels")
    parser.add_argument("--density", type=float, default=12.5, help="of the other fields")
    parser.add_argument("--densities", default="6,12.5,25,50,91", help="galaxies per arcmin²")
    parser.add_argument("--jobs", default="1,2", help="processes")
    parser.add_argument("--files", type=int, default=8, help="fields of 2400×2400 px for the jobs")
    parser.add_argument("--stars", default="10000,300000", help="stars in a field of their own")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, help="where the fields are, or will be")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="PNG to draw")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if options.what == "area":
            label = "side [px]"
            runs = [
                deblend(side, [field(folder, side, options.density)], options.device)
                for side in map(int, options.sides.split(","))
            ]
        elif options.what == "density":
            label = "galaxies per arcmin²"
            runs = [
                deblend(density, [field(folder, PATCH, density)], options.device)
                for density in map(float, options.densities.split(","))
            ]
        elif options.what == "stars":
            label = "stars"
            runs = [
                deblend(n, [star_field(folder, n)], options.device)
                for n in map(int, options.stars.split(","))
            ]
        else:
            label = "jobs"
            files = [field(folder, PATCH, options.density, copy) for copy in range(options.files)]
            runs = [
                deblend(jobs, files, options.device, jobs)
                for jobs in map(int, options.jobs.split(","))
            ]
    report(label, runs)
    if options.plot:
        draw(label, runs, options.plot)


def field(folder: Path, side: int, density: float, copy: int = 0) -> Path:
    """Make a square field, unless it is there."""
    path = folder / f"field-{side}-{density:g}-{copy}.fits"
    if path.exists():
        return path
    scene, sky_rms, header = patch(folder, density)
    rng = np.random.default_rng([side, copy])
    turns = rng.integers(0, 2, (-(-side // PATCH), -(-side // PATCH), 2)) * 2 - 1
    header.update(NAXIS=2, NAXIS1=side, NAXIS2=side, CRPIX1=(side + 1) / 2, CRPIX2=(side + 1) / 2)
    temporary = path.with_suffix(".part")
    temporary.unlink(missing_ok=True)
    stream = fits.StreamingHDU(str(temporary), header)
    for start in range(0, side, STRIP):
        rows = slice(start % PATCH, start % PATCH + min(STRIP, side - start))
        strip = [scene[::down, ::right][rows] for down, right in turns[start // PATCH]]
        mean = np.concatenate(strip, axis=1)[:, :side]
        noise = rng.standard_normal(mean.shape, dtype=np.float32)
        stream.write((mean + noise * np.sqrt(mean + sky_rms**2)).astype(np.float32))
    stream.close()
    temporary.rename(path)
    return path


def star_field(folder: Path, n: int) -> Path:
    """Make a square field of stars of S/N 30 to 3,000, one every 10 px, unless it is there."""
    path = folder / f"stars-{n}.fits"
    if path.exists():
        return path
    cells = math.ceil(math.sqrt(n))
    rng = np.random.default_rng(n)
    image = rng.standard_normal((cells * STAR_CELL, cells * STAR_CELL), dtype=np.float32)
    pixels = np.arange(STAR_CELL) - STAR_CELL // 2
    for number in range(n):
        y, x = np.array(divmod(number, cells)) * STAR_CELL
        dy, dx = rng.uniform(-1.5, 1.5, 2)
        light = np.exp(-((pixels[:, None] - dy) ** 2 + (pixels - dx) ** 2) / (2 * STAR_SIGMA**2))
        flux = 10 ** rng.uniform(2, 4)
        image[y : y + STAR_CELL, x : x + STAR_CELL] += flux / light.sum() * light
    fits.writeto(path, image)
    return path


def patch(folder: Path, density: float) -> tuple[np.ndarray, float, fits.Header]:
    """Simulate a patch; its light without noise, the noise of its sky and its header."""
    home = folder / f"patch-{density:g}"
    if not (home / "truth.fits").exists():
        command = [sys.executable, "-m", "galsep", "simulate", str(home), "--quiet"]
        command += ["--field", f"{PATCH}x{PATCH}", "--density", str(density), "--seed", "1"]
        subprocess.run(command, check=True)
    with fits.open(home / "field_i.fits") as hdus:
        header = hdus[0].header.copy()
    scene = np.zeros((PATCH, PATCH), dtype=np.float32)
    with fits.open(home / "truth.fits") as hdus:
        light = hdus["LIGHT"].data
        for row in hdus["TRUTH"].data:
            shape = row["ny"], row["nx"]
            stamp = light[row["offset"] : row["offset"] + shape[0] * shape[1]].reshape(shape)
            y0, x0 = row["y0"], row["x0"]
            top, left = max(-y0, 0), max(-x0, 0)
            stamp = stamp[top : PATCH - y0, left : PATCH - x0]
            y, x = y0 + top, x0 + left
            scene[y : y + stamp.shape[0], x : x + stamp.shape[1]] += np.maximum(stamp, 0)
    return scene, header["SKYRMS"], header


def deblend(value: float, files: Sequence[Path], device: str, jobs: int = 1) -> Run:
    """Run the command on some files, and read off what it cost."""
    with tempfile.TemporaryDirectory(dir=files[0].parent) as out:
        command = [sys.executable, "-m", "galsep", "deblend", *map(str, files), "--output", out]
        command += ["--quiet", "--device", device, "--jobs", str(jobs)]
        start = time.perf_counter()
        process = subprocess.Popen(command)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"galsep deblend ended with {process.returncode}")
        sources = sum(fits.getheader(path, 1)["NAXIS2"] for path in Path(out).glob("*_cat.fits"))
    pixels = sum(np.prod(fits.open(path)[0].shape) for path in files) / 1e6
    cpu = usage.ru_utime + usage.ru_stime
    run = Run(value, float(pixels), sources, wall, cpu, usage.ru_maxrss / 2**20)
    print(
        f"{value:8g}  {pixels:6.1f} Mpix  {sources:7d} sources  {wall:7.1f} s wall  "
        f"{cpu:7.1f} s CPU  {run.memory:5.2f} GiB",
        flush=True,
    )
    return run


def report(label: str, runs: Sequence[Run]) -> None:
    """Print costs and ratios to the first run."""
    print(f"\n{label:>20}  CPU s/Mpix  wall s/Mpix  CPU ms/source  GiB   CPU s/Mpix over the first")
    first = runs[0].cpu / runs[0].megapixels
    for run in runs:
        cpu, wall = run.cpu / run.megapixels, run.wall / run.megapixels
        print(
            f"{run.value:20g}  {cpu:10.3f}  {wall:11.3f}  {1e3 * run.cpu / run.sources:13.2f}"
            f"  {run.memory:4.2f}  {cpu / first:10.2f}"
        )
    if label.startswith("side") and runs[-1].value == 20_000:
        print(f"targets: at most {MEMORY_LIMIT:g} GiB, and {TIME_RATIO:g} times the first")


def draw(label: str, runs: Sequence[Run], path: Path) -> None:
    """Draw CPU seconds and memory against what was varied."""
    figure = new_figure(8, 3.6)
    left, right = figure.subplots(1, 2)
    values = [run.value for run in runs]
    cost, memory = [run.cpu / run.megapixels for run in runs], [run.memory for run in runs]
    for axes, measured, title in (
        (left, cost, "CPU seconds per Mpix"), (right, memory, "peak memory [GiB]"),
    ):  # fmt: skip
        axes.plot(values, measured, "o-")
        axes.set_xlabel(label)
        axes.set_ylabel(title)
        axes.set_ylim(0, 1.1 * max(measured))
    save_figure(figure, path)


if __name__ == "__main__":
    main()
