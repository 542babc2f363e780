"""How long ``galsep --help`` takes, against ``python -c "import typer, rich"``.

Whole processes, in turns, medians. The target is a ratio of at most 2.

    python benchmarks/startup.py [--runs 21]
"""

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = {
    'python -c "import typer, rich"': ["-c", "import typer, rich"],
    "galsep --help": ["-m", "galsep", "--help"],
    "galsep deblend --help": ["-m", "galsep", "deblend", "--help"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=21)
    runs = parser.parse_args().runs
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range(runs + 1):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
            if turn:  # The first one fills the file system's cache.
                seconds[name].append(time.perf_counter() - start)
    reference = statistics.median(next(iter(seconds.values())))
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:32} {1e3 * median:6.0f} ms  {median / reference:5.2f} ×")


if __name__ == "__main__":
    main()
