"""Many spoilt inputs, in one process and through the command: ``make fuzz``.

What fails is kept in a folder, and its number makes it again. A process that dies or hangs is
started anew behind the input that it died of.
"""

import argparse
import collections
import json
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

from galsep.config import DeblendConfig

from .check import bare, deblended, everything, line_problem, product_problems, read
from .mutations import spoilt

PATIENCE = 60
"""Seconds that an input may take."""

ALL_PRODUCTS = 20
"""One input in so many is given pictures and a report, too."""

ROOM = 2 * 2**30
"""Bytes of address space beyond what the libraries take at the start."""


class Hang(BaseException):
    """An input took too long. No handler of errors may stop it."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=10_000, help="inputs in one process")
    parser.add_argument("--command", type=int, default=200, help="inputs through the command")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--read-only", action="store_true", help="read, but do not deblend")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"))
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        _work(options)
        return 0
    failed = _supervise(options) + _through_command(options)
    print(f"{failed} of {options.n + options.command} inputs failed")
    return int(failed > 0)


def _supervise(options: argparse.Namespace) -> int:
    """Run the process that takes the inputs, again where it died."""
    failed, number, stop = 0, options.first, options.first + options.n
    counts: collections.Counter[str] = collections.Counter()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        while number < stop:
            log = Path(scratch) / "log"
            log.write_text("")
            command = [sys.executable, "-m", __spec__.name, *sys.argv[1:], "--worker", str(log)]
            command += ["--first", str(number), "--n", str(stop - number)]
            code = _watched(command, log)
            entries = [json.loads(line) for line in log.read_text().splitlines()]
            for entry in entries:
                counts[entry["outcome"]] += 1
                if entry["outcome"] == "failed":
                    failed += 1
                    print(f"input {entry['number']}: {entry['problem']}", flush=True)
            number += len(entries)
            if number < stop:
                failed += 1
                _keep(options, number)
                print(f"input {number}: the process ended with {code}", flush=True)
                number += 1
            if entries:
                print(f"  memory at most {entries[-1]['megabytes']} MB", flush=True)
    seconds = time.monotonic() - started
    print(f"in one process: {dict(counts)}, {seconds:.0f} s", flush=True)
    return failed


def _watched(command: list[str], log: Path) -> int:
    """Wait for a process, and kill it when its log stands still."""
    with subprocess.Popen(command) as process:
        size, since = -1, time.monotonic()
        while process.poll() is None:
            time.sleep(0.2)
            if log.stat().st_size != size:
                size, since = log.stat().st_size, time.monotonic()
            elif time.monotonic() - since > 3 * PATIENCE:
                process.kill()
        return process.returncode


def _work(options: argparse.Namespace) -> None:
    """Take one input after the other, and write down what became of each."""
    signal.signal(signal.SIGALRM, _hang)
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    configs = [everything(), bare()]
    with tempfile.TemporaryDirectory() as scratch, options.worker.open("a") as log:
        folder = Path(scratch)
        path = folder / "input.fits"
        _limit_memory(configs[0], folder)
        for number in range(options.first, options.first + options.n):
            path.write_bytes(spoilt(options.seed, number).content)
            # Drawing takes most of the time.
            config = configs[number % ALL_PRODUCTS > 0]
            outcome, problem = _outcome(path, folder / "out", config, options.read_only)
            if outcome == "failed":
                _keep(options, number)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            entry = {"number": number, "outcome": outcome, "problem": problem, "megabytes": peak}
            log.write(json.dumps(entry) + "\n")
            log.flush()


def _outcome(path: Path, output: Path, config: DeblendConfig, read_only: bool) -> tuple[str, str]:
    signal.alarm(PATIENCE)
    try:
        usable, problem = read(path)
        if usable and not problem and not read_only:
            usable, problem = deblended(path, output, config)
    except Hang:
        return "failed", f"took longer than {PATIENCE} s"
    except Exception as error:  # noqa: BLE001 (whatever it is, it should not have come here)
        return "failed", f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    return ("failed" if problem else "product" if usable else "refused"), problem


def _hang(*_: object) -> None:
    raise Hang


def _limit_memory(config: DeblendConfig, folder: Path) -> None:
    """Allow for what the libraries take, and little more."""
    from .mutations import samples

    whole = folder / "whole.fits"
    whole.write_bytes(samples()[0].content)
    deblended(whole, folder / "out", config)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _through_command(options: argparse.Namespace) -> int:
    """Give inputs to ``galsep deblend``, ten at a time."""
    failed = 0
    group = 10
    with tempfile.TemporaryDirectory() as scratch:
        for first in range(0, options.command, group):
            numbers = range(first, min(first + group, options.command))
            folder = Path(scratch) / str(first)
            folder.mkdir()
            paths = [folder / f"input{number}.fits" for number in numbers]
            for number, path in zip(numbers, paths, strict=True):
                path.write_bytes(spoilt(options.seed + 1, number).content)
            problem = _command_problem(paths, folder / "out")
            if problem:
                failed += 1
                print(f"through the command, {first} to {numbers[-1]}: {problem}", flush=True)
    return failed


def _command_problem(paths: list[Path], output: Path) -> str:
    command = [sys.executable, "-m", "galsep", "deblend", *map(str, paths), "-o", str(output)]
    command += ["-q", "--device", "cpu", "--batch-size", "1", "--preview"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE * len(paths), check=False
        )
    except subprocess.TimeoutExpired:
        return "hangs"
    lines = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    told = [line.removeprefix("error: ") for line in lines]
    for line in told:
        named = [path for path in paths if line.startswith(f"{path}: ")]
        if not named or line_problem(line, named[0]):
            return f"says {line!r}"
    if done.returncode != int(bool(told)) or done.stdout:
        return f"ends with {done.returncode} and {done.stdout!r}"
    products = len(list(output.glob("*_cat.fits")))
    if products + len(told) != len(paths):
        return f"{products} products and {len(told)} errors"
    return product_problems(output)


def _keep(options: argparse.Namespace, number: int) -> None:
    options.keep.mkdir(parents=True, exist_ok=True)
    (options.keep / f"{options.seed}-{number}.fits").write_bytes(
        spoilt(options.seed, number).content
    )


if __name__ == "__main__":
    sys.exit(main())
