"""What every input must come to: products that are whole, or one clear line."""

import contextlib
import dataclasses
import shutil
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table

from galsep.config import DeblendConfig
from galsep.errors import GalsepError
from galsep.io.header import quiet_astropy
from galsep.io.image import list_images, read_plane
from galsep.io.listing import list_contents
from galsep.workflows.files import deblend_files

__all__ = ["bare", "deblended", "everything", "line_problem", "product_problems", "read"]

LONGEST = 400
"""Letters of a message, beside the path."""

SUSPICIOUS = ("please report", "not enough memory", "too large for the memory", "Traceback")
"""Words that no small input may bring about."""


def line_problem(message: str, path: Path) -> str:
    """Say what is wrong with a message on an input; empty where nothing is."""
    if "\n" in message or len(message) > LONGEST + len(str(path)):
        return f"not one line of moderate length: {message!r}"
    if not message.startswith(f"{path}: "):
        return f"does not name the file: {message!r}"
    found = [words for words in SUSPICIOUS if words in message]
    return f"is no clear line: {message!r}" if found else ""


def read(path: Path) -> tuple[bool, str]:
    """Read all images of a file; whether they can be read, and what is wrong with that."""
    readable = True
    with contextlib.suppress(GalsepError):
        list_contents(path)
    try:
        for ext in list_images(path).chosen:
            plane = read_plane(path, str(ext))
            usable = plane.data[~plane.mask]
            if not np.isfinite(usable).all():
                return True, "pixels that are not finite count as usable"
            for message in plane.messages:
                if problem := line_problem(message, path):
                    return True, problem
    except GalsepError as error:
        readable = False
        if problem := line_problem(str(error), path):
            return False, problem
    return readable, ""


def deblended(path: Path, output: Path, config: DeblendConfig) -> tuple[bool, str]:
    """Deblend a file, all side products included; as :func:`read`."""
    (result,) = deblend_files([path], output, config)
    try:
        if result.error is not None:
            problem = line_problem(str(result.error), path)
            left = sorted(file.name for file in output.iterdir())
            return False, problem or (f"left behind: {', '.join(left)}" if left else "")
        missing = [file.name for file in result.files if not file.exists()]
        return True, f"missing: {missing}" if missing else product_problems(output)
    finally:
        shutil.rmtree(output)


def product_problems(folder: Path) -> str:
    """Say which files of a folder are not whole; empty where all are."""
    problems = []
    for file in sorted(folder.iterdir()):
        if ".part." in file.name:
            problems.append(f"{file.name} was left behind")
        elif file.suffix == ".fits":
            problems += _fits_problems(file)
    return "; ".join(problems)


def _fits_problems(file: Path) -> list[str]:
    with quiet_astropy(), fits.open(file, disable_image_compression=True) as hdus:
        wrong = [
            hdu.name for hdu in hdus if (hdu.verify_checksum(), hdu.verify_datasum()) != (1, 1)
        ]
        problems = [f"{file.name}: checksum of {wrong}"] if wrong else []
        if file.stem.endswith("_cat"):
            table = Table.read(hdus["CATALOG"])
            if len(table) and not np.isfinite(table["x_centroid"]).all():
                problems.append(f"{file.name}: positions that are not finite")
    return problems


def everything() -> DeblendConfig:
    """Settings with all side products, and a batch as small as the images."""
    return dataclasses.replace(bare(), preview=True, isolated=True, residual=True, report=True)


def bare() -> DeblendConfig:
    """The same without side products."""
    return DeblendConfig(device="cpu", batch_size=1)
