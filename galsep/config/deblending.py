"""Settings of ``galsep deblend``."""

import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from galsep.config.checks import at_least, between, finite
from galsep.errors import UsageError

__all__ = [
    "CATALOG_FORMATS",
    "FILE_SETTINGS",
    "MACHINE_SETTINGS",
    "MAX_BIT",
    "TEXT_FORMATS",
    "DeblendConfig",
    "without_folder",
]

MAX_BIT = 62
"""Highest bit of a mask."""


@dataclass(frozen=True, slots=True)
class DeblendConfig:
    """How ``galsep deblend`` works.

    In Python, :func:`galsep.deblend` writes no file: ``catalog_format``, ``preview``, ``regions``,
    ``isolated``, ``residual``, ``report``, ``jobs`` and ``dask`` mean nothing to it.

    Parameters
    ----------
    weights : str
        File or packaged name; empty for the default ones.
    threshold : float or None
        Calibrated score from which a source counts, 0 to 1; ``None`` for the one stored with the
        weights.
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    batch_size : int
        Cutouts that the network takes at once.
    background_mesh : int
        Side of a cell of the background mesh, pixels, at least 8.
    catalog_format : str
        One of :data:`CATALOG_FORMATS`.
    zeropoint : float or None
        Magnitude of one unit of flux; adds magnitudes to the catalogue.
    gain : float
        Electrons per unit of the image; 0 for what its header says.
    psf_fwhm : float
        FWHM of the PSF where sources are found, pixels; 0 to have it measured.
    ext : str
        Extension of a file: number, ``NAME`` or ``NAME,VERSION``. Empty for all its images, or for
        :func:`galsep.deblend` the only one.
    variance, weight, rms : str
        Noise of each pixel, at any scale, as one of the three: a file, ``FILE[EXT]``, or ``none``
        for no plane at all. All are empty for the plane that comes with the image.
    mask : str
        Mask, likewise.
    mask_bits : str
        Bits of the mask that hide a pixel: names or numbers from 0, with commas, ``any`` or
        ``none``; empty for what is usual for the kind of mask.
    detect : str
        Image of the same pixels, a file or ``FILE[EXT]``, to find the sources in.
    band : tuple of str
        ``NAME=FILE`` of each band of one field; they take the place of the input.
    preview, regions, isolated, residual, report : bool
        Files to write beside label map and catalogue.
    jobs : int
        Files to work on at once, each in a process of its own.
    dask : str
        Scheduler of the Dask cluster that does the work: its address, or the file that it left it
        in; empty for none.

    Raises
    ------
    UsageError
        For a value out of its range, or settings that exclude each other.
    """

    weights: str = ""
    threshold: float | None = None
    device: str = "auto"
    batch_size: int = 16
    background_mesh: int = 64
    catalog_format: str = "fits"
    zeropoint: float | None = None
    gain: float = 0.0
    psf_fwhm: float = 0.0
    ext: str = ""
    variance: str = ""
    weight: str = ""
    rms: str = ""
    mask: str = ""
    mask_bits: str = ""
    detect: str = ""
    band: tuple[str, ...] = ()
    preview: bool = False
    regions: bool = False
    isolated: bool = False
    residual: bool = False
    report: bool = False
    jobs: int = 1
    dask: str = ""

    def __post_init__(self) -> None:
        if self.threshold is not None:
            between("threshold", self.threshold, 0.0, 1.0)
        if self.zeropoint is not None:
            finite("zeropoint", self.zeropoint)
        at_least("batch_size", self.batch_size, 1)
        if sum(bool(noise) for noise in (self.variance, self.weight, self.rms)) > 1:
            raise UsageError("variance, weight and rms exclude each other: choose one")
        if self.band and (self.variance or self.weight or self.rms or self.mask or self.mask_bits):
            raise UsageError("with bands, noise and mask planes are those of their own files")
        _check_bits(self.mask_bits)
        at_least("background_mesh", self.background_mesh, 8)
        at_least("jobs", self.jobs, 1)
        if self.dask and self.jobs > 1:
            raise UsageError("jobs and dask exclude each other: choose one")
        at_least("gain", self.gain, 0.0)
        finite("gain", self.gain)
        between("psf_fwhm", self.psf_fwhm, 0.0, 100.0)
        if self.catalog_format not in CATALOG_FORMATS:
            raise UsageError(
                f"catalog_format is one of {', '.join(CATALOG_FORMATS)}, "
                f"got {self.catalog_format!r}"
            )


MACHINE_SETTINGS = ("device", "batch_size", "jobs", "workers", "dask")
"""Settings of the machine, which change results by roundings at most; outputs do not tell them."""

FILE_SETTINGS = ("weights", "variance", "weight", "rms", "mask", "detect")
"""Settings that are files, named without folders there."""


def without_folder(band: str) -> str:
    """Name the file of a ``NAME=FILE`` entry without its folder."""
    name, _, file = band.partition("=")
    return f"{name}={Path(file).name}"


CATALOG_FORMATS: Mapping[str, str] = types.MappingProxyType(
    {"fits": ".fits", "ecsv": ".ecsv", "csv": ".csv", "vot": ".vot", "parquet": ".parquet"}
)
"""Catalogue formats and the endings of their files."""

TEXT_FORMATS = ("ecsv", "csv", "vot")
"""Catalogue formats that can go to stdout."""


def _check_bits(text: str) -> None:
    """Refuse what is no list of names and numbers of bits."""
    for word in text.split(",") if text else ():
        bit = word.strip()
        if not re.fullmatch(r"\w+", bit):
            raise UsageError(f"mask_bits are names or numbers with commas, got {text!r}")
        if bit.isdecimal() and int(bit) > MAX_BIT:
            value = int(bit)
            hint = f"; the value {value} is bit {value.bit_length() - 1}"
            raise UsageError(
                f"mask_bits count from 0 to {MAX_BIT}, got {bit}"
                + (hint if value.bit_count() == 1 and value <= 2**MAX_BIT else "")
            )
