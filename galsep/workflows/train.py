"""Train both networks on data sets of blends."""

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from galsep.config import TrainConfig
from galsep.errors import OutputExistsError, UsageError
from galsep.io.claim import alone_in
from galsep.io.dataset import Dataset, join_datasets, load_dataset
from galsep.model.device import flushed_denormals, keep_memory
from galsep.model.engine import Trainer
from galsep.model.loading import dead_workers_told
from galsep.model.network import ARCHITECTURES, build_network
from galsep.model.parallel import from_first, is_first, joined
from galsep.model.weights import find_weights, initial_weights, read_info
from galsep.settings import read_toml, resolve
from galsep.workflows.reporting import Reporter
from galsep.workflows.stages import (
    BEST_FILE,
    CONFIG_FILE,
    METRICS_FILE,
    SEPARATION,
    STATE_FILE,
    WEIGHTS_FILE,
    Run,
    about_data,
    given_info,
    starting_info,
)
from galsep.workflows.watching import check_tensorboard

__all__ = ["TrainResult", "load_splits", "starting_network", "train"]

_RESUMABLE_CHANGES = frozenset(
    {"device", "threads", "workers", "calibrate", "patience", "tensorboard"}
)


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training run made.

    Parameters
    ----------
    folder : Path
    weights : Path
    history : list of dict
        One entry an epoch of Mask R-CNN, as in ``metrics.csv``.
    separation_history : list of dict
        One entry an epoch of the separation network, as in ``separation_metrics.csv``.
    joint_history : list of dict
        One entry an epoch of both together, as in ``joint_metrics.csv``.
    """

    folder: Path
    weights: Path
    history: list[dict[str, float]]
    separation_history: list[dict[str, float]]
    joint_history: list[dict[str, float]]


def train(
    dataset: Path | str | Sequence[Path | str],
    output: Path | str,
    config: TrainConfig | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> TrainResult:
    """Train the networks and write their weights, settings, figures and resume states.

    First Mask R-CNN, then the separation network on what it finds, then, if asked for, both
    together. After each epoch ``weights.safetensors`` (averaged weights), ``state.safetensors``,
    ``metrics.csv`` and ``losses.png`` are whole, with ``separation_`` or ``joint_`` before the last
    three names where they belong to the separation network or to both; ``best.safetensors`` is Mask
    R-CNN as it was after the epoch of the best F1. Score threshold and calibration are chosen on
    the validation split as soon as Mask R-CNN is trained, and anew once both are trained together;
    at the end, fluxes and classes are corrected there and on training blends. A run that was
    stopped in any way and resumed goes on as if it had not been: on a CPU and with as many threads,
    to the last bit. With nothing to train, scores, fluxes and classes of the starting weights are
    calibrated anew.

    Processes that ``torchrun`` has started train together, each on its share of every batch, on
    their own devices; the first of them writes the files.

    Parameters
    ----------
    dataset : path or sequence of path
        Folder that :func:`galsep.simulate` wrote, or several of one survey, to train on all of
        them.
    output : path
        Folder of the run.
    config : TrainConfig, optional
        Defaults to the ``compact`` recipe.
    resume : bool
        Go on where the run in ``output`` stopped; its settings must be the same.
    overwrite : bool
        Replace an earlier run.
    reporter : Reporter, optional

    Raises
    ------
    DatasetError, WeightsError, DeviceError, UsageError
        When the data set, the starting weights, the device or the settings are not usable.
    TrainingError
        When the loss is not finite.
    OutputExistsError, OutputError
        When the output exists or cannot be written.
    KeyboardInterrupt
        When interrupted, after ``weights.safetensors`` has been written, if what it would hold is
        finite.
    """
    config = config or TrainConfig()
    with dead_workers_told(), joined(config.device) as device, flushed_denormals():
        first = (reporter or Reporter()) if is_first() else Reporter()
        return _train_on(
            device,
            dataset,
            Path(output),
            config,
            resume=resume,
            overwrite=overwrite,
            reporter=first,
        )


def _train_on(
    device: torch.device,
    dataset: Path | str | Sequence[Path | str],
    folder: Path,
    config: TrainConfig,
    *,
    resume: bool,
    overwrite: bool,
    reporter: Reporter,
) -> TrainResult:
    started = from_first(_has_begun(folder, resume=resume, overwrite=overwrite))
    resumed = started and resume
    if resumed:
        _check_same(folder, config)
    elif resume:
        reporter.info(f"{folder}: no run to resume; a new one begins")
    own = {(folder / name).resolve() for name in (WEIGHTS_FILE, BEST_FILE)}
    if not resumed and find_weights(config.init).resolve() in own:
        raise UsageError(
            f"init is {config.init}, which this run would replace; give it another folder"
        )
    if config.tensorboard:
        check_tensorboard()
    if config.threads:
        torch.set_num_threads(config.threads)
    keep_memory()
    data = load_splits(dataset)
    if resumed:
        _check_data(folder, config, data)
    network, origin = starting_network(config)
    if config.joint_epochs and not (config.separation_epochs or given_info(config.init)):
        raise UsageError(
            "joint_epochs needs a separation network: give separation_epochs, or init with one"
        )
    reporter.info(f"starting weights: {origin}")
    run = Run(folder, config, data, device, reporter, starting_info(config, data, origin))
    detector = Trainer(network, config, device)
    with alone_in(folder, "run", "training") if is_first() else contextlib.nullcontext():
        if is_first():
            # The data set took its time to load.
            if started != _has_begun(folder, resume=resume, overwrite=overwrite):
                raise OutputExistsError(f"{folder}: another training began there meanwhile")
            run.prepare(anew=not resumed)
        run.detector(detector)
        separator = run.separator(detector) if config.separation_epochs else None
        joint = run.joint(detector, separator) if config.joint_epochs else []
    separation = separator.history if separator else []
    return TrainResult(folder, folder / WEIGHTS_FILE, detector.history, separation, joint)


def load_splits(dataset: Path | str | Sequence[Path | str]) -> Dataset:
    """Load one or more data sets to train and validate on.

    Raises
    ------
    DatasetError, UsageError
        When one is not usable, when they do not go together, or when a split is empty.
    """
    folders = [dataset] if isinstance(dataset, str | Path) else dataset
    places = [Path(folder).resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise UsageError(f"{folder}: is given twice")
    data = join_datasets([load_dataset(Path(folder)) for folder in folders])
    if not data.split("train") or not data.split("validation"):
        names = ", ".join(str(folder) for folder in folders)
        raise UsageError(f"{names}: needs blends in its train and validation splits")
    return data


def starting_network(config: TrainConfig) -> tuple[torch.nn.Module, str]:
    """Build Mask R-CNN with its starting weights, and say where they come from."""
    torch.manual_seed(config.seed)
    network = build_network(ARCHITECTURES[config.recipe])
    return network, initial_weights(network, config.init)


def _has_begun(folder: Path, *, resume: bool, overwrite: bool) -> bool:
    """Whether a folder holds a run that can be resumed.

    Raises
    ------
    OutputExistsError
        When it holds one that would be lost.
    """
    if (folder / STATE_FILE).exists():
        if not (resume or overwrite):
            raise OutputExistsError(f"{folder}: holds a run; give --resume to go on or --overwrite")
        return True
    there = [name for name in (WEIGHTS_FILE, BEST_FILE) if (folder / name).exists()]
    if there and not overwrite and not (resume and _is_at_its_beginning(folder)):
        raise OutputExistsError(
            f"{folder}: holds {there[0]} of a run whose {STATE_FILE} is gone, so that it cannot "
            "be resumed; give --overwrite to replace it, or another folder"
        )
    return False


def _is_at_its_beginning(folder: Path) -> bool:
    """Whether a run was killed before its first epoch's state was there, its last file."""
    metrics = folder / METRICS_FILE
    epochs = len(metrics.read_text(encoding="utf-8").splitlines()) - 1 if metrics.exists() else 0
    return epochs <= 1 and not (folder / (SEPARATION + STATE_FILE)).exists()


def _check_data(folder: Path, config: TrainConfig, data: Dataset) -> None:
    """Refuse to resume a run on other data than it began with."""
    if not (folder / WEIGHTS_FILE).exists():
        return
    info = read_info(folder / WEIGHTS_FILE)
    before = info.get("dataset") if config.epochs else info.get("separation", {}).get("dataset")
    if before is not None and before != json.loads(json.dumps(about_data(data))):
        raise UsageError(
            f"{folder}: the run began on other data; resume it with the same, or start anew with "
            "--overwrite"
        )


def _check_same(folder: Path, config: TrainConfig) -> None:
    """Refuse to resume a run with other settings than it began with."""
    before = dataclasses.asdict(resolve(TrainConfig, None, read_toml(folder / CONFIG_FILE)))
    for name, value in dataclasses.asdict(config).items():
        if name not in _RESUMABLE_CHANGES and before[name] != value:
            raise UsageError(
                f"{folder}: the run began with {name} = {before[name]!r}, not {value!r}; resume "
                f"with --config {folder / CONFIG_FILE} or start anew with --overwrite"
            )
