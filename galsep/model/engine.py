"""Training: one epoch is one function; a run's state can be saved and resumed.

Random choices depend on the seed, the epoch and the example's number alone, so a resumed run, or
one of several processes, repeats what one unbroken process would have done.
"""

import copy
import itertools
import json
import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from galsep.config import TrainConfig
from galsep.errors import TrainingError, UsageError, WeightsError
from galsep.model.device import fast_bfloat16
from galsep.model.examples import Batch, Example, ExampleMaker, Planned, collate
from galsep.model.loading import Prepared, batches_ahead, worker_count
from galsep.model.parallel import mean_over_processes, own_share, processes, share_statistics
from galsep.model.weights import write_tensors

__all__ = ["Detecting", "Objective", "Trainer", "learning_rate", "part_is_trained"]


class Objective(Protocol):
    """What a network is trained for.

    Attributes
    ----------
    parts : mapping of str to str
        Names of the loss's parts and what they mean, logged for training and validation.
    """

    parts: Mapping[str, str]

    def prepare(self, examples: list[Example]) -> Prepared:
        """Make a batch of examples, in memory: workers do so while the device is busy."""

    def __call__(
        self, network: nn.Module, batch: Any, device: torch.device, *, autocast: bool
    ) -> dict[str, Tensor]:
        """Parts of the loss of a batch.

        Parameters
        ----------
        network : torch.nn.Module
            On the device, in training mode.
        batch : object
            What :meth:`prepare` has made, or a slice of it.
        device : torch.device
        autocast : bool
            Compute in bfloat16 where PyTorch takes that to be safe.

        Returns
        -------
        dict of str to FloatTensor[]
            By the names of ``parts``.
        """


class Detecting:
    """Mask R-CNN's loss: L_cls + L_box + L_mask, of both stages, and that of the shares."""

    parts: Mapping[str, str] = {
        "loss_classifier": "L_cls: is it a galaxy, a star, or nothing",
        "loss_box_reg": "L_box: where the box is",
        "loss_mask": "L_mask: which pixels it covers",
        "loss_share": "which part of the light there is its own",
        "loss_objectness": "region proposal network: is there anything",
        "loss_rpn_box_reg": "region proposal network: where",
    }

    def prepare(self, examples: list[Example]) -> Batch:
        """Join examples."""
        return collate(examples)

    def __call__(
        self, network: nn.Module, batch: Batch, device: torch.device, *, autocast: bool
    ) -> dict[str, Tensor]:
        """Parts of the loss of a batch; see :class:`Objective`."""
        batch = batch.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            losses: dict[str, Tensor] = network(batch.images, batch.truths)
        return losses


STATE_VERSION = 2

# What reading a state raises where it is damaged or another network's.
_STATE_ERRORS = (
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)

_STEP_SEED, _VALIDATION_SEED = 0, 1
_FIRST_STAGES = (
    *("body.conv1", "body.bn1", "body.layer1", "body.layer2"),
    *("stem", "stages.0", "stages.1", "stages.2"),
)


def part_is_trained(parameter: str, part: str) -> bool:
    """Whether a stage trains a parameter.

    Parameters
    ----------
    parameter : str
        Its name in the network.
    part : {"heads", "4+", "all"}
        ``heads``: all but the backbone's body (the pyramid counts as a head, as in the report's
        Matterport code); ``4+``: also the body from its fourth stage (stride 16) on.
    """
    if part == "all" or not parameter.startswith("backbone.") or ".fpn." in parameter:
        return True
    if part == "heads":
        return False
    return not parameter.removeprefix("backbone.").startswith(_FIRST_STAGES)


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Learning rate of a step.

    ``steps``: the rate of the stage the epoch falls in. ``cosine``: a linear warm-up over
    ``warmup`` steps, or a tenth of a short run, then half a cosine down to zero at the end.

    Parameters
    ----------
    config : TrainConfig
    step : int
        Counted from 0 through the whole run.
    steps_per_epoch : int
    """
    epoch = step // steps_per_epoch + 1
    rate = _stage(config, epoch)[1]
    if config.schedule == "steps":
        return rate
    total = config.epochs * steps_per_epoch
    # A warm-up never takes more than a tenth of a short run.
    warmup = min(config.warmup, total // 10)
    if step < warmup:
        return rate * (step + 1) / warmup
    return rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _stage(config: TrainConfig, epoch: int) -> tuple[str, float]:
    for part, last, rate in config.stages:
        if epoch <= last:
            return part, rate
    return config.stages[-1][0], config.stages[-1][2]


class _Step(nn.Module):
    """An objective as a module, which is what gradients are averaged over processes for."""

    def __init__(
        self, network: nn.Module, objective: Objective, device: torch.device, *, autocast: bool
    ) -> None:
        super().__init__()
        self.network = network
        self._objective = objective
        self._device = device
        self._autocast = autocast

    def forward(self, batch: Prepared) -> dict[str, Tensor]:
        parts = self._objective(self.network, batch, self._device, autocast=self._autocast)
        return {"loss": torch.stack([part.float() for part in parts.values()]).sum(), **parts}


class Trainer:
    """Holds a network, its optimiser and its history through a training run.

    Parameters
    ----------
    network : torch.nn.Module
        As :func:`galsep.model.network.build_network` makes it, or the objective's own.
    config : TrainConfig
    device : torch.device
    objective : Objective, optional
        By default Mask R-CNN's.

    Raises
    ------
    UsageError
        When the settings leave one of several processes without a part of a batch.
    """

    def __init__(
        self,
        network: nn.Module,
        config: TrainConfig,
        device: torch.device,
        objective: Objective | None = None,
    ) -> None:
        _check_shares("epoch_size", config.epoch_size, config.batch_size)
        least = min(config.validation_size, config.batch_size)
        _check_shares("validation_size", least, config.batch_size)
        self.objective = objective or Detecting()
        if processes() > 1:
            share_statistics(network)
        self.network = network.to(device).to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.network) if config.ema else self.network
        self.config = config
        self.device = device
        self.optimizer = _optimizer(self.network, config)
        self.autocast = config.amp and fast_bfloat16(device)
        self.epoch = 0
        self._workers = worker_count(config.workers, device)
        self._names = ("loss", *self.objective.parts)
        self._parts = 1
        # Looked at at once, a step's losses would keep the next step waiting for the device.
        self._behind = 1 if device.type == "cuda" else 0
        self.history: list[dict[str, float]] = []

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch; a last, smaller batch counts as one."""
        return math.ceil(self.config.epoch_size / self.config.batch_size)

    def run_epoch(
        self,
        training: ExampleMaker,
        validation: ExampleMaker,
        on_step: Callable[[int, float], None],
        judge: Callable[[nn.Module], Mapping[str, float]] | None = None,
    ) -> dict[str, float]:
        """Train one epoch, validate, and append the figures to the history.

        Parameters
        ----------
        training, validation : ExampleMaker
        on_step : callable
            Called with the number of images and the loss after each step.
        judge : callable, optional
            Gives further figures of the averaged network.

        Returns
        -------
        dict
            ``epoch``, ``learning_rate``, ``seconds``, ``images_per_second``, and
            ``train_<part>``, ``validation_<part>`` for the sum, ``loss``, and its
            parts.

        Raises
        ------
        TrainingError
            When the loss is not finite; the message names epoch and step.
        """
        epoch = self.epoch + 1
        start = time.perf_counter()
        rng = np.random.default_rng([self.config.seed, _STEP_SEED, epoch])
        shown = min(self.config.validation_size, len(validation))
        train = self._train(training, self.config.epoch_size, rng, epoch, on_step)
        seconds = time.perf_counter() - start
        figures = {
            "epoch": float(epoch),
            "learning_rate": learning_rate(
                self.config, epoch * self.steps_per_epoch - 1, self.steps_per_epoch
            ),
            "seconds": seconds,
            "images_per_second": self.config.epoch_size / seconds,
            **{f"train_{name}": value for name, value in train.items()},
            **{f"validation_{k}": v for k, v in self.validate(validation, shown).items()},
            **({} if judge is None else judge(self.average)),
        }
        self.epoch = epoch
        self.history.append(figures)
        return figures

    def run_steps(
        self, training: ExampleMaker, steps: int, on_step: Callable[[int, float], None]
    ) -> None:
        """Train some steps, as a trial, of the stage that has the most epochs.

        Parameters
        ----------
        training : ExampleMaker
        steps : int
        on_step : callable
            Called with the number of images and the loss after each step.

        Raises
        ------
        TrainingError
            When the loss is not finite.
        """
        ends = [0, *(last for _, last, _ in self.config.stages)]
        _, before = max((last - start, start) for start, last in itertools.pairwise(ends))
        rng = np.random.default_rng([self.config.seed, _STEP_SEED, before + 1])
        self._train(training, steps * self.config.batch_size, rng, before + 1, on_step)

    def _train(
        self,
        training: ExampleMaker,
        size: int,
        rng: np.random.Generator,
        epoch: int,
        on_step: Callable[[int, float], None],
    ) -> dict[str, float]:
        part, _ = _stage(self.config, epoch)
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(part_is_trained(name, part))
        step_losses = self._step()
        self.network.train()
        if self.config.fixed_statistics and self.config.init != "random":
            _fix_statistics(self.network)
        first = (epoch - 1) * self.steps_per_epoch
        means = _Means(self._names)
        coming = deque[tuple[_Coming, int]]()
        done = 0

        def look(left: int) -> None:
            """Look at the losses of all steps but the last ones."""
            nonlocal done
            while len(coming) > left:
                losses, images = coming.popleft()
                values = losses.read()
                done += 1
                if not math.isfinite(values[0]):
                    raise TrainingError(
                        f"the loss is {values[0]} at epoch {epoch}, step {done} "
                        f"({first + done} in all); lower the learning rate or check the data set"
                    )
                means.add(values, images)
                on_step(images, values[0])

        batches = list(training.batches(size, self.config.batch_size, rng))
        with self._made_ahead(training, batches) as ready:
            for step, (batch, prepared) in enumerate(zip(batches, ready, strict=True), first):
                for group in self.optimizer.param_groups:
                    group["lr"] = learning_rate(self.config, step, self.steps_per_epoch)
                self.optimizer.zero_grad(set_to_none=True)
                coming.append((_Coming(self._gradients(step_losses, prepared)), len(batch)))
                look(self._behind)
                if self.config.clip_norm:
                    nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm)
                self.optimizer.step()
                self._follow(step)
            look(0)
        return means.result()

    def _made_ahead(
        self, examples: ExampleMaker, batches: Sequence[Sequence[Planned]]
    ) -> AbstractContextManager[Iterator[Prepared]]:
        """Have this process's parts of batches made ahead."""
        own = [own_share(batch) for batch in batches]
        return batches_ahead(examples, own, self.objective.prepare, self._workers, self.device)

    def _gradients(self, step: nn.Module, batch: Prepared) -> Tensor:
        """Add up a batch's gradients, of parts of it where the device's memory is too small.

        Processes that share a batch would wait for one another, so with several an error it is.
        """
        while True:
            size = math.ceil(len(batch) / self._parts)
            try:
                parts = [batch[start : start + size] for start in range(0, len(batch), size)]
                values = []
                for part in parts:
                    losses = step(part)
                    share = len(part) / len(batch)
                    (share * losses["loss"]).backward()
                    values.append(share * self._values(losses))
                return torch.stack(values).sum(0)
            except torch.OutOfMemoryError:
                if size == 1 or processes() > 1:
                    raise
            # Out here, the error no longer holds on to what was allocated.
            self.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            self._parts *= 2
            warnings.warn(
                f"the device's memory is too small for batches of {size}, or is in use by others; "
                f"going on with gradients summed over batches of {math.ceil(size / 2)}",
                RuntimeWarning,
                stacklevel=2,
            )

    def _values(self, losses: Mapping[str, Tensor]) -> Tensor:
        """A batch's losses, over all processes, still on the device."""
        together = [losses[name].detach().float() for name in self._names]
        return mean_over_processes(torch.stack(together))

    def _step(self) -> nn.Module:
        """The module of a training step, with gradients averaged over processes."""
        step = _Step(self.network, self.objective, self.device, autocast=self.autocast)
        if processes() == 1:
            return step
        # What is trained changes from stage to stage, and must not within one of these.
        return DistributedDataParallel(step)

    def _follow(self, step: int) -> None:
        """Move the averaged weights towards the trained ones (exponential moving average)."""
        if self.average is self.network:
            return
        # The average starts quickly, so that the first epoch's weights are already of use.
        decay = min(self.config.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, value in zip(
                self.average.state_dict().values(), self.network.state_dict().values(), strict=True
            ):
                if mean.is_floating_point():
                    mean.lerp_(value, 1 - decay)
                else:
                    mean.copy_(value)

    @property
    def sound(self) -> bool:
        """Whether the averaged weights are all finite."""
        values = self.average.state_dict().values()
        return all(bool(value.isfinite().all()) for value in values)

    @torch.no_grad()
    def validate(self, validation: ExampleMaker, size: int) -> dict[str, float]:
        """Losses of the averaged weights on the same stamps each epoch.

        A last batch with too few stamps for all processes is left out.
        """
        # The losses need training mode; normalisation must not learn.
        self.average.train()
        _fix_statistics(self.average)
        rng = np.random.default_rng([self.config.seed, _VALIDATION_SEED])
        step = _Step(self.average, self.objective, self.device, autocast=self.autocast)
        batches = list(validation.batches(size, self.config.batch_size, rng))
        if len(batches) > 1 and len(batches[-1]) < processes():
            batches.pop()
        with self._made_ahead(validation, batches) as ready:
            losses = [self._values(step(prepared)) for prepared in ready]
        means = _Means(self._names)
        for batch, values in zip(batches, losses, strict=True):
            means.add(values.tolist(), len(batch))
        return means.result()

    def save(self, path: Path) -> None:
        """Write the state of the run (tensors and JSON, no pickle)."""
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        if self.average is not self.network:
            tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {
                f"optimizer.{index}.{k}": v for k, v in state.items() if isinstance(v, Tensor)
            }
        about = {"version": STATE_VERSION, "epoch": self.epoch, "history": self.history}
        write_tensors(path, tensors, {"galsep_state": json.dumps(about)})

    def restore(self, path: Path) -> None:
        """Go back to a saved state.

        Raises
        ------
        WeightsError
            When the file is damaged or belongs to another network.
        """
        try:
            with safe_open(path, framework="pt") as stored:
                about = json.loads((stored.metadata() or {})["galsep_state"])
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
            if about.get("version") != STATE_VERSION:
                raise WeightsError(
                    f"{path}: resume state of another version of galsep, which would train on "
                    "otherwise; start anew with --overwrite, and --init with its weights"
                )
            self.network.load_state_dict(_below(tensors, "network."))
            if self.average is not self.network:
                self.average.load_state_dict(_below(tensors, "average."))
            self._restore_optimizer(_below(tensors, "optimizer."))
            self.epoch, self.history = int(about["epoch"]), list(about["history"])
        except WeightsError:
            raise
        except _STATE_ERRORS as error:
            line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise WeightsError(f"{path}: no usable resume state ({line})") from error

    def _restore_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        groups = self.optimizer.state_dict()["param_groups"]
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            index, _, key = name.partition(".")
            like = parameters[int(index)]
            # In its order in memory, as if it had never been written.
            own = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
            state.setdefault(int(index), {})[key] = own
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})


def _fix_statistics(network: nn.Module) -> None:
    """Have batch normalisation keep its means and variances, in training mode too."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def _check_shares(name: str, size: int, batch_size: int) -> None:
    """Refuse sizes that leave a process without an example in some batch."""
    count = processes()
    for batch in (min(size, batch_size), size % batch_size or batch_size):
        if batch < count:
            raise UsageError(
                f"{name} = {size} with batch_size = {batch_size} makes a batch of {batch}, too "
                f"few for {count} processes; choose a multiple of the batch size"
            )


class _Coming:
    """Numbers on their way from the device, which goes on meanwhile."""

    def __init__(self, values: Tensor) -> None:
        self._there: torch.cuda.Event | None = None
        self._values = values
        if values.is_cuda:
            self._values = values.to("cpu", non_blocking=True)
            self._there = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._there.record()

    def read(self) -> list[float]:
        """Wait until they are there."""
        if self._there is not None:
            self._there.synchronize()
        numbers: list[float] = self._values.tolist()
        return numbers


class _Means:
    """Mean of each loss over images."""

    def __init__(self, names: Sequence[str]) -> None:
        self._sums: dict[str, float] = dict.fromkeys(names, 0.0)
        self._images = 0

    def add(self, losses: Sequence[float], images: int) -> None:
        for name, loss in zip(self._sums, losses, strict=True):
            self._sums[name] += loss * images
        self._images += images

    def result(self) -> dict[str, float]:
        return {name: value / max(1, self._images) for name, value in self._sums.items()}


def _optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    # Biases and normalisation are not decayed.
    matrices = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    rate = config.stages[0][2]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=0.9)
    return torch.optim.AdamW(groups, lr=rate)


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
