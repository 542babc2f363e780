"""Commands that are ended at random moments: ``python -m tests.faults.kills deblend --n 200``.

After each end, every product is whole; after a signal that can be heard, no partial file is left
and the exit code is its own. When the command has at last been let run, its products equal those
of one that was left alone, and what killed ones have left is gone.
"""

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from astropy.io import fits

# Loaded here, so that a process that is forked can begin at once.
import galsep.workflows.files
import galsep.workflows.simulate
import galsep.workflows.train  # noqa: F401
from galsep.cli import main as program
from galsep.io.header import quiet_astropy

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


def deblend_command(folder: Path) -> Callable[[Path], list[str]]:
    """Make images; the command that deblends them into a folder."""
    rng = np.random.default_rng(0)
    rows, columns = np.indices((48, 48))
    images = []
    for number in range(3):
        image = rng.normal(size=(48, 48))
        for y, x in rng.uniform(10, 38, (3, 2)):
            image += 60 * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 9)
        images.append(folder / f"image{number}.fits")
        fits.writeto(images[-1], image.astype(np.float32))
    settings = ["--skip-existing", "--isolated", "--device", "cpu", "--batch-size", "1", "-q"]
    return lambda output: ["deblend", *map(str, images), "-o", str(output), *settings]


def simulate_command(folder: Path) -> Callable[[Path], list[str]]:
    """Return the command that simulates a data set into a folder."""
    settings = ["--n", "60", "--workers", "1", "--pixel-scale", "0.2", "--overwrite", "-q"]
    return lambda output: ["simulate", str(output), *settings]


def train_command(folder: Path) -> Callable[[Path], list[str]]:
    """Simulate blends; the command that trains on them, and goes on where it stopped."""
    data, settings = folder / "data", folder / "settings.toml"
    simulate = ["simulate", str(data), "--n", "40", "--workers", "1", "--pixel-scale", "0.2", "-q"]
    assert run(simulate, None, 0) == 0
    settings.write_text("validation_size = 2\nf1_size = 2\ncalibrate = false\n")
    sizes = ["--epochs", "2", "--separation-epochs", "1", "--epoch-size", "4", "--batch-size", "2"]
    ahead = "1" if sys.platform == "linux" else "0"
    fixed = [*sizes, "--config", str(settings), "--device", "cpu", "--threads", "1", "-q"]
    fixed += ["--workers", ahead]
    return lambda output: ["train", str(data), "--output", str(output), "--resume", *fixed]


COMMANDS = {"deblend": deblend_command, "simulate": simulate_command, "train": train_command}

TIMED = ("metrics.csv", "losses.png", "state.safetensors")
"""What names end with of files that hold the times that epochs took."""


def run(
    arguments: Sequence[str], delay: float | None, number: int, said: Path = Path(os.devnull)
) -> int:
    """Run a command in a process of its own; end it after a while, by a signal.

    What it says on stderr goes to a file.

    Returns
    -------
    int
        Its exit code, or minus the signal that ended it.
    """
    # A signal that comes too early ends the process as if it had not begun.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, CODES)
    pid = os.fork()
    if not pid:
        for heard in CODES:
            signal.signal(heard, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _become(arguments, said)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if delay is not None:
        time.sleep(delay)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _become(arguments: Sequence[str], said: Path) -> None:
    torch.set_num_threads(1)
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    code = 99
    try:
        signal.signal(signal.SIGTERM, program._terminate)
        signal.signal(signal.SIGINT, program._interrupt)
        code = program.main(arguments)
    finally:
        os._exit(code)


def contents(folder: Path) -> dict[str, bytes]:
    """All finished files of a folder, but those that tell the time."""
    files = sorted(folder.glob("[!.]*")) if folder.exists() else []
    return {file.name: file.read_bytes() for file in files if not file.name.endswith(TIMED)}


def differing(folder: Path, expected: dict[str, bytes]) -> list[str]:
    """Names of files that are missing, too many or not what is expected."""
    here = contents(folder)
    return sorted(name for name in {*here, *expected} if here.get(name) != expected.get(name))


def partial(folder: Path) -> list[str]:
    """Files of a folder that were begun, and no others that are hidden.

    Raises
    ------
    AssertionError
        When there is a hidden file that a later run would not know for what it is.
    """
    hidden = sorted(file.name for file in folder.glob(".*")) if folder.exists() else []
    assert all(".part." in name for name in hidden), hidden
    return hidden


def broken(folder: Path) -> list[str]:
    """FITS files of a folder whose checksums are missing or wrong."""
    found = []
    for file in sorted(folder.glob("[!.]*.fits")) if folder.exists() else []:
        with quiet_astropy(), fits.open(file, disable_image_compression=True) as hdus:
            if any((hdu.verify_checksum(), hdu.verify_datasum()) != (1, 1) for hdu in hdus):
                found.append(file.name)
    return found


def attack(name: str, n: int, seed: int, folder: Path) -> Counter[str]:
    """End a command so many times.

    Raises
    ------
    AssertionError
        When a product is not whole, something is left behind or another result comes out.
    """
    command = COMMANDS[name](folder)
    clock = time.monotonic()
    assert run(command(folder / "alone"), None, 0) == 0
    takes = time.monotonic() - clock
    expected = contents(folder / "alone")
    assert len(expected) > 1
    chance, outcomes = random.Random(seed), Counter[str]()
    output = folder / "out"
    for _ in range(n):
        number = chance.choice(SIGNALS)
        before = set(partial(output))
        said = folder / "stderr"
        code = run(command(output), chance.uniform(0, 1.1 * takes), number, said)
        assert not broken(output), (code, broken(output))
        if number != signal.SIGKILL:
            # Before its first line a process still dies of the signal itself.
            assert code in (0, CODES[number], -number), (number, code, said.read_text())
            assert set(partial(output)) <= before, (number, partial(output))
        outcomes["finished" if code == 0 else signal.Signals(number).name] += 1
        if code == 0:  # Begin anew, with what earlier ones have left.
            assert not differing(output, expected)
            for file in output.glob("[!.]*"):
                file.unlink()
    assert run(command(output), None, 0) == 0
    assert not differing(output, expected)
    assert not partial(output), partial(output)
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=COMMANDS)
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        outcomes = attack(options.name, options.n, options.seed, Path(scratch))
    print(f"{options.name}: {options.n} runs, {dict(outcomes)}; all products whole and the same")


if __name__ == "__main__":
    sys.exit(main())
