"""Time ``galsep deblend`` against photutils and SEP on a crowded field, whole processes.

The field is 2400×2400 px of LSST's i band with 400 pairs, made with ``galsep simulate --field``;
``--side 10000`` lays it side by side, with noise of its own in every pixel, so that start-up no
longer matters.

photutils runs ``detect_sources``, ``deblend_sources`` and ``SourceCatalog`` as its user guide does
(image smoothed by a Gaussian of FWHM 3 px, 1.5 times the noise, 10 px), everything else at its
defaults, and writes ``to_table()``. SEP subtracts its background and extracts at 1.5 times the
noise, else at its defaults. All read the same FITS file, in turns and on the same cores. The target
is a ratio to photutils of at most 4, or 3 on 10,000×10,000 px.

photutils 3.1, which deblends many times faster than 3.0, needs Python 3.12; name a Python that has
it (and scikit-image) with ``--photutils-python``:

    python benchmarks/deblend.py [--runs 5] [--side 2400] [--cores 2]
        [--photutils-python PYTHON]

On a GPU, galsep by itself on all cores, with the profile that shows what bounds it:

    python benchmarks/deblend.py --alone --device cuda --side 20000 --runs 1 --cores 0
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scaling import PATCH, field

DENSITY = 12.5
"""Galaxies per arcmin²."""

PHOTUTILS = """
import sys, warnings
from astropy.convolution import convolve
from astropy.io import fits
from astropy.stats import sigma_clipped_stats
from photutils.segmentation import (
    SourceCatalog, deblend_sources, detect_sources, make_2dgaussian_kernel,
)

warnings.simplefilter("ignore")
source, target = sys.argv[1:]
data = fits.getdata(source).astype(float)
_, level, rms = sigma_clipped_stats(data)
data -= level
smooth = convolve(data, make_2dgaussian_kernel(3.0, size=5))
segments = detect_sources(smooth, 1.5 * rms, 10)
segments = deblend_sources(smooth, segments, 10, progress_bar=False)
table = SourceCatalog(data, segments, convolved_data=smooth).to_table()
keep = [name for name in table.colnames if table[name].dtype != object]
table[keep].write(target, overwrite=True)
print(len(table))
"""

SEP = """
import sys
import numpy as np
import sep
from astropy.io import fits
from astropy.table import Table

source, target = sys.argv[1:]
data = fits.getdata(source).astype(np.float32)
background = sep.Background(data)
sep.set_extract_pixstack(10_000_000)
found = sep.extract(data - background, 1.5, err=background.globalrms)
Table(found).write(target, overwrite=True)
print(len(found))
"""

# Stages of galsep, timed from outside: (module, function, label). A stage's own time leaves out
# that of the stages it calls.
STAGES = """
import collections, functools, importlib, sys, threading, time
began = time.perf_counter()
own, laid = collections.Counter(), []
# Of each thread: the time of what a stage has called so far.
threads = threading.local()
beside = collections.Counter()

def timed(label, function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        start = time.perf_counter()
        stack = threads.__dict__.setdefault("stack", [])
        stack.append(0.0)
        try:
            return function(*args, **kwargs)
        finally:
            spent = time.perf_counter() - start
            here = own if threading.current_thread() is threading.main_thread() else beside
            here[label] += spent - stack.pop()
            if stack:
                stack[-1] += spent
    return wrapper

from galsep.cli.main import main
import galsep.workflows.files
own["import"] = time.perf_counter() - began
for home, name, label in STAGES:
    module = importlib.import_module(home)
    setattr(module, name, timed(label, getattr(module, name)))
lay = galsep.workflows.preparing.lay_cutouts

def kept(*args, **settings):
    laid.append(lay(*args, **settings))
    return laid[-1]

galsep.workflows.preparing.lay_cutouts = kept
code = timed("other", main)(sys.argv[1:])
# Meanwhile the main thread waits for what works beside it, or goes on.
own["other"] = max(0.0, own["other"] - sum(beside.values()))
own += beside
for label, seconds in own.most_common():
    print(f"{label}\\t{seconds}")
print(f"cutouts\\t{sum(map(len, laid))}")
sys.exit(code)
"""

PREPARING, FINDING = "galsep.workflows.preparing", "galsep.workflows.finding"
MEASURING = "galsep.workflows.measuring"
FILES, ONE_FILE = "galsep.workflows.files", "galsep.workflows.one_file"
WRAPPED = [
    (FILES, "load_model", "load weights"),
    (ONE_FILE, "read_plane", "read the image"),
    ("galsep.image.light", "estimate_background", "background"),
    (PREPARING, "detect_blobs", "SEP detections"),
    (PREPARING, "lay_cutouts", "lay cutouts"),
    (PREPARING, "cut", "lay cutouts"),
    (PREPARING, "normalise", "lay cutouts"),
    (PREPARING, "detect", "network"),
    (FINDING, "merge", "merge"),
    (MEASURING, "separate", "separate the light"),
    (MEASURING, "measure", "measure"),
    (FINDING, "paint_labels", "label map"),
    (FINDING, "count_overlaps", "label map"),
    ("galsep.io.products", "write_fits", "write"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="runs of each, after one to warm up")
    parser.add_argument("--side", type=int, default=PATCH, help="pixels along each axis")
    parser.add_argument("--cores", type=int, default=2, help="CPU cores for each (0: all)")
    parser.add_argument("--device", default="cpu", help="of galsep's networks")
    parser.add_argument("--alone", action="store_true", help="without photutils and SEP")
    parser.add_argument("--photutils-python", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--folder", type=Path, help="where the field is, or will be")
    parser.add_argument("--weights", default="", help="network weights")
    options = parser.parse_args()
    limit_cores(options.cores)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        galsep = [sys.executable, "-m", "galsep"]
        image = str(field(options.folder or folder, options.side, DENSITY))
        arguments = ["deblend", image, "--output", str(folder / "out"), "--overwrite", "--quiet"]
        arguments += ["--device", options.device]
        if options.weights:
            arguments += ["--weights", options.weights]
        commands = {"galsep": [*galsep, *arguments]}
        if not options.alone:
            photutils = [options.photutils_python, "-c", PHOTUTILS]
            commands["photutils"] = [*photutils, image, f"{folder}/p.fits"]
            commands["SEP"] = [sys.executable, "-c", SEP, image, f"{folder}/s.fits"]
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for turn in range(options.runs + 1):
            for name, command in commands.items():
                start = time.perf_counter()
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                if turn:
                    seconds[name].append(time.perf_counter() - start)
        report(seconds, options)
        print_stages(arguments, options.side**2 / 1e6)


def limit_cores(cores: int) -> None:
    """Keep this process and its children on the first cores, where the system can."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def report(seconds: dict[str, list[float]], options: argparse.Namespace) -> None:
    """Print medians, ranges and the ratios."""
    megapixels = options.side**2 / 1e6
    print(
        f"{options.side} px a side, {options.runs} runs of each, galsep on {options.device}",
        flush=True,
    )
    if "photutils" in seconds:
        asked = "import photutils; print('photutils', photutils.__version__)"
        subprocess.run([options.photutils_python, "-c", asked], check=True)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, values in seconds.items():
        print(
            f"{name:10} {medians[name]:6.2f} s  ({min(values):.2f} to {max(values):.2f})  "
            f"{megapixels / medians[name]:.2f} Mpix/s"
        )
    for name in list(seconds)[1:]:
        print(f"ratio to {name:9} {medians['galsep'] / medians[name]:6.2f}")


def print_stages(arguments: list[str], megapixels: float) -> None:
    """Print where one run's time goes, and how many cutouts it takes."""
    script = f"STAGES = {WRAPPED!r}\n{STAGES}"
    run = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},  # As the command itself sets it.
    )
    rows = dict(line.split("\t") for line in run.stdout.splitlines() if "\t" in line)
    cutouts = int(rows.pop("cutouts"))
    seconds = {label: float(value) for label, value in rows.items()}
    total = sum(seconds.values())
    print(f"galsep's time in one run ({total:.2f} s):")
    for label, value in seconds.items():
        print(f"  {label:16} {value:6.2f} s  {100 * value / total:4.0f} %")
    print(f"{cutouts} cutouts: {cutouts / megapixels:.0f} a Mpix, {cutouts / total:.0f} a second")


if __name__ == "__main__":
    main()
