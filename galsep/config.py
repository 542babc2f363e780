"""Settings of the commands: frozen dataclasses that check their values."""

import math
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from galsep.errors import UsageError

__all__ = [
    "CATALOG_FORMATS",
    "FILE_SETTINGS",
    "MACHINE_SETTINGS",
    "MAX_BIT",
    "RECIPES",
    "TEXT_FORMATS",
    "DeblendConfig",
    "EvaluateConfig",
    "ImportConfig",
    "SimulateConfig",
    "TrainConfig",
    "field_shape",
    "parse_range",
    "split_shares",
    "without_folder",
]

MAX_BIT = 62
"""Highest bit of a mask."""

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
        _between("n", self.n, 1, MAX_BLENDS)
        low, _ = parse_range("galaxies", self.galaxies, int)
        _at_least("galaxies", low, 0)
        _between("stars", self.stars, 0.0, 1.0)
        _between("max_mag", self.max_mag, 15.0, 35.0)
        _between("max_shift", self.max_shift, 0.0, 60.0)
        if self.seeing:
            low_seeing, high_seeing = parse_range("seeing", self.seeing, float)
            _between("seeing", low_seeing, 0.05, 5.0)
            _between("seeing", high_seeing, 0.05, 5.0)
        _between("depth", self.depth, -5.0, 5.0)
        if self.pixel_scale:
            low_scale, high_scale = parse_range("pixel_scale", self.pixel_scale, float)
            _between("pixel_scale", low_scale, 0.03, 1.0)
            _between("pixel_scale", high_scale, 0.03, 1.0)
        if not 1 <= len(self.bands) <= 6 or len(set(self.bands)) != len(self.bands):
            raise UsageError(f"bands are one to six different names, got {','.join(self.bands)!r}")
        if self.catalog and self.cosmos:
            raise UsageError("catalog and cosmos exclude each other: choose one")
        if self.field:
            field_shape(self.field)
        if not 0 < self.density <= 1e4:
            raise UsageError(f"density is 0 to 10000 per arcmin², got {self.density}")
        _at_least("seed", self.seed, 0)
        _at_least("workers", self.workers, 0)


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """What ``galsep train`` does. The two recipes are in :data:`RECIPES`.

    When Mask R-CNN has had its epochs, the separation network is trained, on scenes of fewer blends
    and more depth: of sources that are barely found, there is little to learn about their light.
    Then both may be trained together, on such scenes, too.

    Parameters
    ----------
    recipe : {"compact", "paper"}
        Architecture of Mask R-CNN. What else belongs to it is set by :func:`resolve`, and not here.
    init : str
        ``random``, ``coco``, or the file or packaged name of weights to start from.
    epochs : int
        Of Mask R-CNN; with none, it stays as ``init`` has it.
    separation_epochs : int
        Of the separation network.
    separation_rate : float
        Its learning rate, which warms up and falls to zero.
    separation_groups : int
        Blends on its composed scenes, at most.
    separation_depth : float
        Magnitudes by which these are deeper than the data set, on average.
    joint_epochs : int
        Of both networks together.
    joint_rate : float
        Their learning rate, which warms up and falls to zero.
    epoch_size, batch_size : int
        Stamps in an epoch and in a step.
    optimizer : {"adamw", "sgd"}
        Of Mask R-CNN, as all up to ``ema``; the separation network has
        :func:`galsep.workflows.stages.separation_config`.
    weight_decay : float
        Biases and normalisation have none.
    schedule : {"cosine", "steps"}
        With ``cosine`` the one stage's rate warms up and falls to zero; with ``steps`` each stage
        has its own.
    warmup : int
        Steps in which the rate warms up.
    stages : tuple of (str, int, float)
        First trainable part, last epoch and learning rate of each; the part is ``heads``, ``4+``
        (backbone stage 4 and everything above) or ``all``.
    ema : float
        Decay of the averaged weights in a step; 0 for no average.
    clip_norm : float
        Largest norm of the gradient; 0 for any.
    fixed_statistics : bool
        Batch normalisation of Mask R-CNN keeps the means and variances of the starting weights,
        while its scales and offsets are trained; random weights have none to keep, so that from
        these they are learnt.
    augment : bool
        Turn and mirror blends at random, where these are shown as they are; composed ones always
        are turned and mirrored.
    compose : bool
        Compose new scenes of blends for Mask R-CNN in place of showing these as they are; the
        separation network has composed ones in any case.
    max_groups : int
        Blends on a composed scene, at most.
    small_every : int
        Every so many batches of Mask R-CNN's composed scenes is of small cutouts; 0 for none.
    validation_size : int
        Validation blends that the losses are measured on after each epoch, at most.
    f1_size : int
        Validation blends that F1 is measured on after each epoch of Mask R-CNN, at most; with 0,
        it is not.
    patience : int
        Epochs without a better F1 after which training of Mask R-CNN ends; 0 for never.
    tensorboard : bool
        Also write curves and pictures for TensorBoard.
    calibrate : bool
        Choose the score threshold and calibrate scores, fluxes and classes on the validation split.
    amp : bool
        Compute in bfloat16 where the device is faster with it.
    seed : int
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    threads : int
        Of the CPU; 0 for PyTorch's choice.
    workers : int
        Processes that make examples ahead of the one that trains: −1 as suits the device, 0 none.

    Raises
    ------
    UsageError
        For a value out of its range, or settings that do not go together.
    """

    recipe: str = "compact"
    init: str = "random"
    epochs: int = 20
    separation_epochs: int = 12
    separation_rate: float = 1e-3
    separation_groups: int = 5
    separation_depth: float = 0.7
    joint_epochs: int = 0
    joint_rate: float = 1e-4
    epoch_size: int = 8_000
    batch_size: int = 16
    optimizer: str = "adamw"
    weight_decay: float = 0.02
    schedule: str = "cosine"
    warmup: int = 200
    stages: tuple[tuple[str, int, float], ...] = (("all", 20, 1e-3),)
    ema: float = 0.999
    clip_norm: float = 5.0
    fixed_statistics: bool = False
    augment: bool = True
    compose: bool = True
    max_groups: int = 8
    small_every: int = 2
    validation_size: int = 500
    f1_size: int = 200
    patience: int = 0
    tensorboard: bool = False
    calibrate: bool = True
    amp: bool = True
    seed: int = 1
    device: str = "auto"
    threads: int = 0
    workers: int = -1

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise UsageError(f"recipe is one of {', '.join(sorted(RECIPES))}, got {self.recipe!r}")
        _at_least("epochs", self.epochs, 0)
        _at_least("separation_epochs", self.separation_epochs, 0)
        if not self.epochs and self.init in ("random", "coco"):
            raise UsageError("epochs = 0 needs init to name weights that are trained already")
        _between("separation_rate", self.separation_rate, 1e-6, 1.0)
        _at_least("separation_groups", self.separation_groups, 1)
        _between("separation_depth", self.separation_depth, -5.0, 5.0)
        _at_least("joint_epochs", self.joint_epochs, 0)
        _between("joint_rate", self.joint_rate, 1e-6, 1.0)
        _at_least("epoch_size", self.epoch_size, 1)
        _at_least("batch_size", self.batch_size, 1)
        _at_least("max_groups", self.max_groups, 1)
        _at_least("small_every", self.small_every, 0)
        _at_least("validation_size", self.validation_size, 1)
        _at_least("f1_size", self.f1_size, 0)
        _at_least("patience", self.patience, 0)
        if self.patience and not self.f1_size:
            raise UsageError("patience needs an F1 to look at: give f1_size a value above 0")
        _at_least("threads", self.threads, 0)
        _at_least("workers", self.workers, -1)
        _at_least("seed", self.seed, 0)
        _at_least("weight_decay", self.weight_decay, 0.0)
        _at_least("warmup", self.warmup, 0)
        _at_least("clip_norm", self.clip_norm, 0.0)
        _between("ema", self.ema, 0.0, 0.99999)
        if self.optimizer not in ("adamw", "sgd"):
            raise UsageError(f"optimizer is adamw or sgd, got {self.optimizer!r}")
        if self.schedule not in ("cosine", "steps"):
            raise UsageError(f"schedule is cosine or steps, got {self.schedule!r}")
        if not self.stages:
            raise UsageError("stages lists at least one [heads|4+|all, last epoch, rate]")
        for part, last, rate in self.stages:
            if part not in ("heads", "4+", "all") or last < 1 or rate <= 0:
                raise UsageError(
                    f"a stage is [heads|4+|all, last epoch, rate], got {[part, last, rate]}"
                )
        if self.stages[-1][1] < self.epochs:
            raise UsageError(
                f"the last stage ends with epoch {self.stages[-1][1]}, but epochs = {self.epochs}"
            )


RECIPES: Mapping[str, Mapping[str, Any]] = types.MappingProxyType(
    {
        "compact": {},
        # Table 2 of the report: 18,000 training blends in four orientations an epoch.
        "paper": {
            "init": "coco",
            "epochs": 80,
            "epoch_size": 72_000,
            "batch_size": 64,
            "optimizer": "sgd",
            "weight_decay": 1e-4,
            "schedule": "steps",
            "warmup": 0,
            "stages": (("heads", 15, 1e-3), ("4+", 20, 5e-3), ("all", 60, 1e-3), ("all", 80, 1e-4)),
            "ema": 0.0,
            # As in Matterport's code, where TRAIN_BN is False by default.
            "fixed_statistics": True,
            "compose": False,
        },
    }
)
"""What each training recipe changes in the defaults of :class:`TrainConfig`."""


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
            _between("threshold", self.threshold, 0.0, 1.0)
        if self.zeropoint is not None:
            _finite("zeropoint", self.zeropoint)
        _at_least("batch_size", self.batch_size, 1)
        if sum(bool(noise) for noise in (self.variance, self.weight, self.rms)) > 1:
            raise UsageError("variance, weight and rms exclude each other: choose one")
        if self.band and (self.variance or self.weight or self.rms or self.mask or self.mask_bits):
            raise UsageError("with bands, noise and mask planes are those of their own files")
        _check_bits(self.mask_bits)
        _at_least("background_mesh", self.background_mesh, 8)
        _at_least("jobs", self.jobs, 1)
        if self.dask and self.jobs > 1:
            raise UsageError("jobs and dask exclude each other: choose one")
        _at_least("gain", self.gain, 0.0)
        _finite("gain", self.gain)
        _between("psf_fwhm", self.psf_fwhm, 0.0, 100.0)
        if self.catalog_format not in CATALOG_FORMATS:
            raise UsageError(
                f"catalog_format is one of {', '.join(CATALOG_FORMATS)}, "
                f"got {self.catalog_format!r}"
            )


MACHINE_SETTINGS = ("device", "batch_size", "jobs", "workers", "dask")
"""Settings that change no result, left out where outputs say how they were made."""

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


@dataclass(frozen=True, slots=True)
class EvaluateConfig:
    """How ``galsep evaluate`` judges.

    Parameters
    ----------
    weights : str
        File or packaged name; empty for the default ones.
    limit : int
        Test blends to judge; 0 for the whole test split.
    psf : bool
        Stars are told from galaxies by the PSF that the data set gives; a stamp is too small to
        measure it on.
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    batch_size : int
        Cutouts that the network takes at once.
    baselines : bool
        Judge SEP and photutils, too.
    workers : int
        Processes for these; 0 for one for each CPU core.

    Raises
    ------
    UsageError
        For a value out of its range.
    """

    weights: str = ""
    limit: int = 0
    psf: bool = True
    device: str = "auto"
    batch_size: int = 32
    baselines: bool = True
    workers: int = 0

    def __post_init__(self) -> None:
        _at_least("limit", self.limit, 0)
        _at_least("batch_size", self.batch_size, 1)
        _at_least("workers", self.workers, 0)


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
            _at_least(name, getattr(self, name), 0.0)
        _at_least("background_mesh", self.background_mesh, 8)


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


def _at_least(name: str, value: float, low: float) -> None:
    if not value >= low:
        raise UsageError(f"{name} must be at least {low}, got {value}")


def _finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise UsageError(f"{name} must be finite, got {value}")


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UsageError(f"{name} must lie between {low} and {high}, got {value}")
