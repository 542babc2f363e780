"""Network weights: safetensors with everything that is needed to use them in the metadata.

Loading never runs code. ``.pth`` files, which are pickles, are read in one place only,
:func:`initial_weights`, with ``weights_only=True``.
"""

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import torch
import torchvision
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.hub import download_url_to_file, get_dir
from torch.overrides import TorchFunctionMode

from galsep.errors import WeightsError
from galsep.image.points import TERMS, ClassFit
from galsep.io.atomic import whole_file
from galsep.model.device import choose_device, one_ahead
from galsep.model.fluxes import FluxFit, FluxRegression
from galsep.model.network import Architecture, build_network
from galsep.model.separation import SeparationNetwork

__all__ = [
    "ADDED",
    "DEFAULT_WEIGHTS",
    "UNCALIBRATED_THRESHOLD",
    "Model",
    "Spread",
    "find_weights",
    "initial_weights",
    "list_weights",
    "load_model",
    "read_info",
    "save_weights",
    "sha256",
    "trained_on",
    "write_tensors",
]

DEFAULT_WEIGHTS = "compact"
"""Name of the weights that lie in the package and are used when none are named."""

METADATA_KEY = "galsep"
SEPARATION = "separation."
"""Begins the names of the separation network's tensors; Mask R-CNN's have no prefix."""

ADDED = ("separation.psf.weight", "separation.psf.bias")
"""Tensors that weights of earlier versions lack; 0 does what these did without them."""

FORMAT_VERSION = 1
NORMALISATION = "asinh(light / sky rms)"
UNCALIBRATED_THRESHOLD = 0.5

LARGEST = 1000.0
"""Size of a number in a calibration."""

COCO_URL = "https://download.pytorch.org/models/maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"
"""torchvision's Mask R-CNN ResNet-50-FPN trained on COCO (weights ``COCO_V1``)."""

COCO_HASH = "bf2d0c1e"
"""Begins the SHA-256 of that file."""

_EARLIER_NAMES = (
    (re.compile(r"(fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)"), r"\1.0.\2"),
    (re.compile(r"(rpn\.head\.conv)\.(weight|bias)"), r"\1.0.0.\2"),
)
_EARLIER_MASK_LAYER = re.compile(r"(roi_heads\.mask_head)\.mask_fcn(\d+)\.(weight|bias)")


Batch = TypeVar("Batch")
Result = TypeVar("Result")
Spread = Callable[[Callable[["Model", Any], Any], Iterable[Any]], Iterator[Any]]


@dataclass(frozen=True, slots=True)
class Model:
    """A network with its weights on a device.

    Parameters
    ----------
    network : torch.nn.Module
        Mask R-CNN in evaluation mode.
    architecture : Architecture
    info : dict
        The weights' metadata.
    sha256 : str
        Of the weights' file.
    device : torch.device
    separator : SeparationNetwork or None
        In evaluation mode; ``None`` where the weights hold none.
    spread : callable, optional
        Has other machines do what :meth:`each` is asked for.
    """

    network: nn.Module
    architecture: Architecture
    info: Mapping[str, Any]
    sha256: str
    device: torch.device
    separator: SeparationNetwork | None = None
    spread: Spread | None = None

    def each(
        self, function: Callable[["Model", Batch], Result], batches: Iterable[Batch]
    ) -> Iterator[Result]:
        """Apply a function of the model and a batch to batches; results come in their order.

        The next batch is worked on while what came of one is looked at.
        """
        if self.spread is not None:
            return self.spread(function, batches)
        return one_ahead(functools.partial(function, self), batches)

    @property
    def threshold(self) -> float:
        """Score above which a source counts, chosen on the validation split."""
        return float(self.info.get("threshold", UNCALIBRATED_THRESHOLD))

    @property
    def mask_level(self) -> float:
        """A pixel belongs to a mask where the network gives it more than this probability."""
        return float(self.info.get("mask_level", UNCALIBRATED_THRESHOLD))

    @property
    def flux_fit(self) -> FluxFit | None:
        """What validation has shown of the separation network's fluxes."""
        fit = self.info.get("separation", {}).get("flux_fit")
        return fit and FluxFit.from_dict(fit)

    @property
    def class_fit(self) -> ClassFit | None:
        """What validation has shown of point sources, as the separation network gives light."""
        fit = self.info.get("class_fit") if self.separator is not None else None
        return fit and ClassFit(tuple(fit["psf"]), tuple(fit["alone"]))


def load_model(weights: Path | str = "", device: str = "auto") -> Model:
    """Load network weights.

    Parameters
    ----------
    weights : path or str
        A safetensors file of galsep, the name of packaged weights, or ``""`` for the default.
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises
    ------
    WeightsError
        When the file is missing, is not safetensors or does not fit the architecture it names.
    DeviceError
        When the device is not available.
    """
    chosen = choose_device(device)
    path = find_weights(weights)
    info = read_info(path)
    _check_fits(path, info)
    network, separator, architecture = _networks_for(path, info)
    try:
        with safe_open(path, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        own = {name: tensors.pop(name) for name in list(tensors) if name.startswith(SEPARATION)}
        network.load_state_dict(tensors)
        if separator is not None:
            # What earlier weights lack stays 0, as it is built.
            given = {k.removeprefix(SEPARATION): v for k, v in own.items()}
            separator.load_state_dict(separator.state_dict() | given)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise WeightsError(f"{path}: damaged weights ({_first_line(error)})") from error
    for part in (network, separator):
        if part is not None:
            part.eval().requires_grad_(False)
            part.to(chosen).to(memory_format=torch.channels_last)
    return Model(network, architecture, info, sha256(path), chosen, separator)


def _tensors(network: nn.Module, separator: nn.Module | None) -> dict[str, Tensor]:
    """Tensors of both networks, under the names that they have in a file."""
    own = {} if separator is None else separator.state_dict()
    return dict(network.state_dict()) | {SEPARATION + name: own[name] for name in own}


def save_weights(
    path: Path,
    network: nn.Module,
    info: Mapping[str, Any],
    separator: SeparationNetwork | None = None,
) -> None:
    """Write networks' weights and metadata whole.

    Parameters
    ----------
    path : Path
    network : torch.nn.Module
        Mask R-CNN.
    info : mapping
        JSON-able; must hold ``architecture``.
    separator : SeparationNetwork, optional
    """
    about = {"format_version": FORMAT_VERSION, "normalisation": NORMALISATION, **info}
    if separator is not None:
        about["separation"] = {"widths": separator.widths, **about.get("separation", {})}
    tensors = _tensors(network, separator)
    write_tensors(path, tensors, {METADATA_KEY: json.dumps(about)})


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]
) -> None:
    """Write a safetensors file whole.

    Parameters
    ----------
    path : Path
        Replaced when it exists.
    tensors : mapping of str to Tensor
        By name, on any device.
    metadata : dict of str to str
        For the file's header.

    Raises
    ------
    OutputError
        When the operating system refuses.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with whole_file(path) as temporary:
        # Its own writer has a temporary file of another name, which would outlast a kill.
        temporary.write_bytes(save(plain, metadata))


def read_info(path: Path) -> dict[str, Any]:
    """Read the metadata of a weights file.

    Raises
    ------
    WeightsError
        When the file is missing, is not safetensors or was not written by galsep.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: not a safetensors file ({_first_line(error)})") from error
    try:
        info = json.loads(metadata[METADATA_KEY])
        version = info["format_version"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"{path}: holds no galsep network; train one with galsep train"
        ) from error
    if version != FORMAT_VERSION:
        raise WeightsError(
            f"{path}: weights of format version {version}, this galsep reads {FORMAT_VERSION}"
        )
    return dict(info)


def trained_on(info: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Data sets that weights were trained on, and those that they started from, each once.

    Parameters
    ----------
    info : mapping
        The weights' metadata.
    """
    stages = [info, info.get("separation"), info.get("joint")]
    own = [stage.get("dataset") for stage in stages if isinstance(stage, dict)]
    earlier = info.get("earlier_datasets")
    every = [*own, *(earlier if isinstance(earlier, list) else [])]
    every = [one for one in every if isinstance(one, dict)]
    return [one for k, one in enumerate(every) if one not in every[:k]]


def _check_fits(path: Path, info: Mapping[str, Any]) -> None:
    """Refuse metadata whose calibration and limits are none.

    Raises
    ------
    WeightsError
    """
    calibration = info.get("calibration", {})
    separation = info.get("separation") or {}
    fit = separation.get("flux_fit") if isinstance(separation, dict) else None
    sound = {
        "threshold": _number(info.get("threshold", 0.5), 0, 1),
        "mask_level": _number(info.get("mask_level", 0.5), 0, 1),
        "psf_fwhm_range": not info.get("psf_fwhm_range")
        or _rising(info["psf_fwhm_range"], 0.1, 1000, 2),
        "calibration": isinstance(calibration, dict)
        and _number(calibration.get("slope", 1.0), -LARGEST, LARGEST)
        and _number(calibration.get("intercept", 0.0), -LARGEST, LARGEST)
        and _number(calibration.get("missed", 0.5), 0, 1),
        "separation": isinstance(separation, dict) and (fit is None or _is_flux_fit(fit)),
        "class_fit": not info.get("class_fit") or _is_class_fit(info["class_fit"]),
    }
    for name, well in sound.items():
        if not well:
            raise WeightsError(f"{path}: its {name} is not usable; train or copy the weights again")


def _number(value: Any, low: float, high: float) -> bool:
    """Whether a value is a number within limits; NaN is not."""
    return type(value) in (int, float) and low <= value <= high


def _rising(values: Any, low: float, high: float, count: int = 0) -> bool:
    """Whether a value is a list of numbers within limits, none smaller than the one before."""
    return (
        isinstance(values, list)
        and len(values) == (count or len(values)) > 0
        and all(_number(value, low, high) for value in values)
        and values == sorted(values)
    )


def _is_flux_fit(fit: Any) -> bool:
    """Whether a value is what :class:`galsep.model.fluxes.FluxFit` is made of."""
    if not isinstance(fit, dict) or not _rising(fit.get("snr"), 1e-3, 1e12):
        return False
    regression = fit.get("regression")
    curves = [fit.get("log_ratio"), *([] if regression is None else [fit.get("log_rest")])]
    return (
        all(
            isinstance(curve, list)
            and len(curve) == len(fit["snr"])
            and all(_number(ratio, -LARGEST, LARGEST) for ratio in curve)
            for curve in curves
        )
        and _number(fit.get("spread"), 1e-3, LARGEST)
        and (regression is None or _is_regression(regression))
    )


def _is_regression(stored: Any) -> bool:
    """Whether a value is what :class:`galsep.model.fluxes.FluxRegression` is made of."""
    try:
        FluxRegression.from_dict(stored)
    except ValueError:
        return False
    return True


def _is_class_fit(fit: Any) -> bool:
    """Whether a value is what :class:`galsep.image.points.ClassFit` is made of."""
    return isinstance(fit, dict) and all(
        isinstance(fit.get(name), list)
        # Earlier fits of "psf" lack the last term.
        and count - (name == "psf") <= len(fit[name]) <= count
        and all(_number(value, -LARGEST, LARGEST) for value in fit[name])
        for name, count in TERMS.items()
    )


def find_weights(weights: Path | str = "") -> Path:
    """Turn a path, a packaged name or nothing into the path of a weights file."""
    name = str(weights) or DEFAULT_WEIGHTS
    packaged = list_weights()
    return packaged[name] if name in packaged else Path(name)


def list_weights() -> dict[str, Path]:
    """The weights that lie in the package, by name."""
    folder = Path(str(files("galsep"))) / "weights"
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def initial_weights(network: nn.Module, init: str) -> str:
    """Give a network its starting weights.

    Parameters
    ----------
    network : torch.nn.Module
        Changed in place.
    init : str
        ``random`` (leave it), ``coco`` (torchvision's COCO weights, from torch's cache or else
        downloaded into it), a ``.safetensors`` file of galsep, the name of packaged weights, or a
        ``.pth`` file of a torch state dict.

    Returns
    -------
    str
        Where the weights came from: name, address if it has one, and SHA-256 of the file, how much
        of it fits, and the version of torchvision, whose names of tensors these are.

    Raises
    ------
    WeightsError
        When they cannot be had or nothing in them fits.
    """
    if init == "random":
        return "random"
    path = _coco_file() if init == "coco" else find_weights(init)
    if not path.is_file():
        raise WeightsError(
            f"{path}: no such file to start from; --init takes random, coco, a name that galsep "
            "weights lists, or a file"
        )
    state = _read_state(path)
    fitted = _fitting(network, state)
    if not fitted:
        raise WeightsError(f"{init}: no tensor in it fits the network")
    network.load_state_dict(fitted, strict=False)
    source = f" from {COCO_URL}" if init == "coco" else ""
    return (
        f"{path.name}{source} sha256:{sha256(path)} ({len(fitted)} of "
        f"{len(network.state_dict())} tensors, torchvision {torchvision.__version__})"
    )


def sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal text."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _coco_file() -> Path:
    """Path of torchvision's COCO weights in torch's cache, where they are put on first use."""
    path = Path(get_dir()) / "checkpoints" / COCO_URL.rpartition("/")[2]
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        download_url_to_file(COCO_URL, str(path), hash_prefix=COCO_HASH, progress=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(
            f"{COCO_URL}: cannot be downloaded ({_first_line(error)}); give a local copy with "
            "--init FILE.pth, or --init random to start from scratch"
        ) from error
    return path


def _read_state(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        read_info(path)
        with safe_open(path, framework="pt") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(
            f"{path}: neither .safetensors nor a torch state dict that is safe to load"
        ) from error
    if not isinstance(state, dict):
        raise WeightsError(f"{path}: holds a {type(state).__name__}, not a state dict")
    return {
        _current_name(k): v
        for k, v in state.items()
        if isinstance(k, str) and isinstance(v, Tensor)
    }


def _current_name(name: str) -> str:
    """What torchvision calls a tensor today; its COCO weights are older than some of its names."""
    for pattern, current in _EARLIER_NAMES:
        name = pattern.sub(current, name)
    return _EARLIER_MASK_LAYER.sub(lambda m: f"{m[1]}.{int(m[2]) - 1}.0.{m[3]}", name)


def _fitting(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a state dict that fit.

    A first layer of three colours is summed over them: to one band it answers as it did to a grey
    image.
    """
    fitted = {}
    for name, own in network.state_dict().items():
        given = state.get(name)
        if given is None:
            continue
        if given.ndim == 4 and own.shape[1] == 1 and given.shape[1] == 3:
            given = given.sum(1, keepdim=True)
        if given.shape == own.shape:
            fitted[name] = given
    return fitted


class _NoRandomStart(TorchFunctionMode):
    """Leave out the random start of networks that get other weights, or none at all.

    It takes a tenth of a second, and of tensors without storage two: ``normal_`` would load torch's
    compiler.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__name__", "").endswith(("normal_", "uniform_")):
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def _networks_for(
    path: Path, info: Mapping[str, Any]
) -> tuple[nn.Module, SeparationNetwork | None, Architecture]:
    """Build the networks that the metadata name, after checking the file's tensors."""

    def build() -> tuple[nn.Module, SeparationNetwork | None]:
        about = info.get("separation")
        with _NoRandomStart():
            separator = None if about is None else SeparationNetwork(tuple(about["widths"]))
            return build_network(architecture), separator

    try:
        architecture = Architecture.from_dict(dict(info["architecture"]))
        with torch.device("meta"):
            expected = {name: tuple(tensor.shape) for name, tensor in _tensors(*build()).items()}
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise WeightsError(
            f"{path}: names no usable architecture ({_first_line(error)})"
        ) from error
    with safe_open(path, framework="pt") as stored:
        found = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
    lacking = {name for name in ADDED if name not in found}
    wrong = sorted(
        name
        for name in (expected.keys() | found.keys()) - lacking
        if expected.get(name) != found.get(name)
    )
    if wrong:
        raise WeightsError(
            f"{path}: {len(wrong)} tensors do not fit the architecture, first {wrong[0]!r}"
        )
    return *build(), architecture


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
