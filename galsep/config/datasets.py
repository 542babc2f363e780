"""Settings of the commands that make data sets."""

import math
from dataclasses import dataclass
from typing import Any

from galsep.config.checks import at_least, between, finite
from galsep.errors import UsageError

__all__ = [
    "MAX_BLENDS",
    "ImportConfig",
    "SimulateConfig",
    "field_shape",
    "parse_range",
    "split_shares",
]

MAX_BLENDS = 2_500_000
"""Blends of a data set: the names of its shards fit into ``dataset.toml``."""


@dataclass(frozen=True, slots=True)
class SimulateConfig:
    """What ``galsep simulate`` draws. Magnitudes are AB, angles arcsec.

    The defaults are those of Kamath's report: 20,000 pairs of bulge + disk galaxies, i < 25.3,
    offsets uniform in ±2.4″, LSST i band at ten-year depth.

    Parameters
    ----------
    n : int
        Blends of a data set.
    galaxies : str
        Sources in a blend, or in a group of a field: one number, or a range such as ``1-6``.
    stars : float
        Share of the sources that are stars, 0 to 1.
    survey : str
        Name of a survey that surveycodex knows.
    bands : tuple of str
        One to six of its filters.
    max_mag : float
        Faintest i magnitude.
    max_shift : float
        Largest offset from the blend's centre in x and in y.
    seeing : str
        FWHM of the PSF in the detection band, or a range that each blend draws from; empty for
        the survey's.
    depth : float
        Magnitudes beyond the survey's full depth; negative is shallower.
    pixel_scale : str
        Arcsec per pixel, or a range that each blend draws from; empty for the survey's.
    varied : bool
        Galaxies of all kinds with more scatter, brighter stars, and PSFs of varied profile and
        ellipticity.
    catalog, cosmos : str
        Where galaxies come from, one of the two: a FITS table of CatSim galaxies in BTK's columns,
        a folder of real HST galaxies for GalSim. Both are empty for galsep's own population.
    field : str
        ``WIDTHxHEIGHT`` in pixels of one wide field in place of blends; empty for blends.
    density : float
        Sources of a field per arcmin².
    seed : int
    workers : int
        Processes; 0 for one for each CPU core.

    Raises
    ------
    UsageError
        For a value out of its range, or settings that exclude each other.
    """

    n: int = 20_000
    galaxies: str = "2"
    stars: float = 0.0
    survey: str = "LSST"
    bands: tuple[str, ...] = ("i",)
    max_mag: float = 25.3
    max_shift: float = 2.4
    seeing: str = ""
    depth: float = 0.0
    pixel_scale: str = ""
    varied: bool = False
    catalog: str = ""
    cosmos: str = ""
    field: str = ""
    density: float = 91.0
    seed: int = 1
    workers: int = 0

    def __post_init__(self) -> None:
        between("n", self.n, 1, MAX_BLENDS)
        low, _ = parse_range("galaxies", self.galaxies, int)
        at_least("galaxies", low, 0)
        between("stars", self.stars, 0.0, 1.0)
        between("max_mag", self.max_mag, 15.0, 35.0)
        between("max_shift", self.max_shift, 0.0, 60.0)
        if self.seeing:
            low_seeing, high_seeing = parse_range("seeing", self.seeing, float)
            between("seeing", low_seeing, 0.05, 5.0)
            between("seeing", high_seeing, 0.05, 5.0)
        between("depth", self.depth, -5.0, 5.0)
        if self.pixel_scale:
            low_scale, high_scale = parse_range("pixel_scale", self.pixel_scale, float)
            between("pixel_scale", low_scale, 0.03, 1.0)
            between("pixel_scale", high_scale, 0.03, 1.0)
        if not 1 <= len(self.bands) <= 6 or len(set(self.bands)) != len(self.bands):
            raise UsageError(f"bands are one to six different names, got {','.join(self.bands)!r}")
        if self.catalog and self.cosmos:
            raise UsageError("catalog and cosmos exclude each other: choose one")
        if self.field:
            field_shape(self.field)
        if not 0 < self.density <= 1e4:
            raise UsageError(f"density is 0 to 10000 per arcmin², got {self.density}")
        at_least("seed", self.seed, 0)
        at_least("workers", self.workers, 0)


@dataclass(frozen=True, slots=True)
class ImportConfig:
    """How ``galsep import`` turns images with known sources into a data set.

    The truth is either ``labels``, with ``classes`` and ``light``, or ``coco``.

    Parameters
    ----------
    labels : str
        Label map, ``FILE`` or ``FILE[EXT]``, in which ``{stem}`` stands for an image's name without
        its ending.
    classes : str
        Table of the labels' classes, of the same form; empty where all are galaxies.
    light : str
        Each source's isolated light, of the same form; empty for that of the image on the labelled
        pixels.
    coco : str
        JSON file of annotations in COCO's format.
    images : str
        Folder of its images; empty for the JSON file's own.
    ext : str
        Extension of each image: number, ``NAME`` or ``NAME,VERSION``; empty for the only image.
    split : str
        Shares of training, validation and test, see :func:`split_shares`.
    pixel_scale, seeing : float
        Arcsec per pixel and FWHM of the PSF, arcsec; 0 for what the images say themselves.
    zeropoint : float
        Magnitude of one unit of the image.
    gain : float
        Electrons per unit of the image; 0 for what its header says, or else for a sky whose noise
        is that of 400² electrons.
    background_mesh : int
        Side of a cell of the background mesh, pixels, at least 8.

    Raises
    ------
    UsageError
        For a value out of its range, or truth of both kinds.
    """

    labels: str = ""
    classes: str = ""
    light: str = ""
    coco: str = ""
    images: str = ""
    ext: str = ""
    split: str = "90/5/5"
    pixel_scale: float = 0.0
    seeing: float = 0.0
    zeropoint: float = 0.0
    gain: float = 0.0
    background_mesh: int = 64

    def __post_init__(self) -> None:
        if self.coco and (self.labels or self.classes or self.light):
            raise UsageError("labels, classes and light are one kind of truth, coco is another")
        split_shares(self.split)
        for name in ("pixel_scale", "seeing", "gain"):
            at_least(name, getattr(self, name), 0.0)
        for name in ("pixel_scale", "seeing", "gain", "zeropoint"):
            finite(name, getattr(self, name))
        at_least("background_mesh", self.background_mesh, 8)


def split_shares(text: str) -> tuple[float, float, float]:
    """Read ``"90/5/5"`` as shares of training, validation and test that add up to one.

    Raises
    ------
    UsageError
        When the text has another form, or leaves nothing to train or to validate.
    """
    try:
        train, validation, test = (float(part) for part in text.split("/"))
    except ValueError:
        train = validation = test = -1.0
    if not (train > 0 and validation > 0 and test >= 0 and train + validation + test < math.inf):
        raise UsageError(
            "split is the shares of training, validation and test such as 90/5/5, the first two "
            f"above 0, got {text!r}"
        )
    whole = train + validation + test
    return train / whole, validation / whole, test / whole


def parse_range(name: str, text: str, kind: type[int] | type[float]) -> tuple[Any, Any]:
    """Read ``"2"`` or ``"1-6"`` as an inclusive range.

    Parameters
    ----------
    name : str
        Of the setting, for messages.
    text : str
        One number or two; neither is negative.
    kind : type
        ``int`` or ``float``, what they are.

    Returns
    -------
    low, high : int or float
        Equal for one number.

    Raises
    ------
    UsageError
        When the text is no range or the range is reversed.
    """
    parts = text.split("-")
    try:
        low, high = kind(parts[0]), kind(parts[-1])
    except ValueError:
        low, high = kind(1), kind(0)
        parts = []
    if not 1 <= len(parts) <= 2:
        raise UsageError(f"{name} is a number or a range such as 1-6, got {text!r}")
    if high < low:
        raise UsageError(f"{name}: the range {text!r} is reversed; write {high}-{low}")
    return low, high


def field_shape(text: str) -> tuple[int, int]:
    """Read ``"WIDTHxHEIGHT"`` and return ``(height, width)`` in pixels.

    Raises
    ------
    UsageError
        When the text has another form or a side is not within 120 to 50,000 px.
    """
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise UsageError(f"field is WIDTHxHEIGHT in pixels, such as 2400x2400, got {text!r}")
    shape = int(height), int(width)
    if min(shape) < 120 or max(shape) > 50_000:
        raise UsageError(f"a field is 120 to 50000 pixels wide and high, got {text!r}")
    return shape
