"""Time, size and load time of ``galsep simulate`` at its defaults.

    python benchmarks/simulate.py [--n 20000] [--workers 2] [--folder DIR]

Targets for 20,000 pairs on two cores: 4 minutes, 2 GB, 10 s.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from galsep.io.dataset import load_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=20_000, help="blends")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--folder", type=Path, help="keep the data set here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary) / "set"
        command = [sys.executable, "-m", "galsep", "simulate", str(folder), "--quiet"]
        command += ["--n", str(options.n), "--workers", str(options.workers)]
        start = time.perf_counter()
        subprocess.run(command, check=True)
        simulated = time.perf_counter() - start
        size = sum(path.stat().st_size for path in folder.iterdir())
        start = time.perf_counter()
        dataset = load_dataset(folder)
        loaded = time.perf_counter() - start
    print(f"simulate {options.n} blends: {simulated:.0f} s with {options.workers} workers")
    print(f"size: {size / 1e9:.2f} GB")
    print(f"load {len(dataset)} blends: {loaded:.1f} s")


if __name__ == "__main__":
    main()
