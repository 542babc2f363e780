"""Load: many files, calls at the same time, and memory over many deblends in one process.

``python benchmarks/load.py --files 1000 --calls 5 --repeat 2000`` says how long each takes, and
fails where a file is not whole, differs, or memory grows. What is given as 0 is left out.
"""

import argparse
import gc
import hashlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from astropy.io import fits

import galsep
from galsep.config import DeblendConfig

SETTINGS = ("--device", "cpu", "--batch-size", "1", "--skip-existing", "-q")

GROWTH = 0.05
"""Share by which memory may grow once it has settled."""


def make_images(folder: Path, n: int, side: int = 48) -> list[Path]:
    """Write images of noise and three galaxies."""
    rng = np.random.default_rng(0)
    rows, columns = np.indices((side, side))
    folder.mkdir()
    paths = []
    for number in range(n):
        image = rng.normal(size=(side, side))
        for y, x in rng.uniform(8, side - 8, (3, 2)):
            image += 60 * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 9)
        paths.append(folder / f"image{number:04d}.fits")
        fits.writeto(paths[-1], image.astype(np.float32))
    return paths


def start(images: list[Path], output: Path) -> subprocess.Popen[str]:
    """Start ``galsep deblend`` on a list of images."""
    names = output.with_suffix(".txt")
    names.write_text("".join(f"{image}\n" for image in images))
    command = [sys.executable, "-m", "galsep", "deblend", f"@{names}", "-o", str(output)]
    return subprocess.Popen([*command, *SETTINGS], stderr=subprocess.PIPE, text=True)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of all files of a folder, partial ones too."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
    }


def files_in_one_call(folder: Path, n: int) -> None:
    images = make_images(folder / "many", n)
    began = time.monotonic()
    process = start(images, folder / "many-out")
    error = process.communicate()[1]
    seconds = time.monotonic() - began
    written = len(digests(folder / "many-out"))
    assert (process.returncode, written) == (0, 2 * n), error
    print(f"{n} files in one call: {seconds:.0f} s, {written} products")


def calls_at_once(folder: Path, calls: int, n: int) -> None:
    images = make_images(folder / "few", n)
    assert start(images, folder / "alone").wait() == 0
    shared = folder / "shared"
    running = [start(images, shared) for _ in range(calls)]
    errors = [process.communicate()[1] for process in running]
    assert all(process.returncode == 0 for process in running), errors
    assert digests(shared) == digests(folder / "alone")
    print(f"{calls} calls at once into one folder: {2 * n} products, equal to those of one call")


def memory() -> int:
    """Bytes of memory in use by this process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def again_and_again(n: int, settled: int) -> None:
    # Images this small are faster with one.
    torch.set_num_threads(1)
    model = galsep.load_model(device="cpu")
    config = DeblendConfig(device="cpu", batch_size=1)
    rng = np.random.default_rng(0)
    used = []
    began = time.monotonic()
    for _ in range(n):
        image = rng.normal(size=(48, 48)).astype(np.float32)
        image[20:26, 20:26] += 20
        galsep.deblend(image, config, model=model)
        gc.collect()
        used.append(memory())
    later = used[settled:]
    growth = max(later) / later[0] - 1
    print(
        f"{n} deblends in one process: {time.monotonic() - began:.0f} s, "
        f"{later[0] / 2**20:.0f} MB after {settled}, at most {100 * growth:.1f} % more later"
    )
    assert growth < GROWTH, "memory grows"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=2000)
    parser.add_argument("--settled", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if options.files:
            files_in_one_call(Path(scratch), options.files)
        if options.calls:
            calls_at_once(Path(scratch), options.calls, max(2, options.files // 100))
    if options.repeat:
        again_and_again(options.repeat, options.settled)


if __name__ == "__main__":
    main()
