"""Several processes that train one network, as ``torchrun`` starts them.

Each takes its share of every batch. A loss that is a mean over the batch is, on each process, its
own sum over the whole batch's count per process (:func:`batch_mean`): the mean over processes, of
losses and of gradients, is then that of one process with the whole batch, however unevenly what is
counted is spread. Batch normalisation takes its statistics over the whole batch, too. In a single
process all of this does nothing.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from galsep.errors import DeviceError
from galsep.model.device import choose_device

__all__ = [
    "batch_mean",
    "from_first",
    "is_first",
    "joined",
    "mean_over_processes",
    "own_share",
    "processes",
    "share_statistics",
]

T = TypeVar("T")


@contextlib.contextmanager
def joined(device: str) -> Iterator[torch.device]:
    """Join the processes that ``torchrun`` has started, if it has, and leave them at the end.

    Parameters
    ----------
    device : str
        As :func:`galsep.model.device.choose_device` takes it; of several processes on CUDA, each
        gets a device of its own.

    Yields
    ------
    torch.device

    Raises
    ------
    DeviceError
        When the device is not available, or there are fewer devices than processes.
    """
    chosen = choose_device(device)
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        yield chosen
        return
    if chosen.type == "cuda":
        chosen = _own_device()
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        with warnings.catch_warnings():
            # Of 1×1 convolutions, whose memory has one order under several names.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
            yield chosen
    finally:
        dist.destroy_process_group()


def _own_device() -> torch.device:
    index = int(os.environ["LOCAL_RANK"])
    if index >= torch.cuda.device_count():
        raise DeviceError(
            f"{os.environ['LOCAL_WORLD_SIZE']} processes on {torch.cuda.device_count()} CUDA "
            "devices; start as many with --nproc-per-node as there are devices"
        )
    return torch.device("cuda", index)


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process writes the files and tells of the progress."""
    return not dist.is_initialized() or dist.get_rank() == 0


def own_share(batch: Sequence[T]) -> Sequence[T]:
    """Give this process's part of a batch."""
    return batch[dist.get_rank() :: dist.get_world_size()] if dist.is_initialized() else batch


def from_first(value: T) -> T:
    """What the first process has; all must call this."""
    if not dist.is_initialized():
        return value
    held = [value]
    dist.broadcast_object_list(held)
    return held[0]


def mean_over_processes(value: Tensor) -> Tensor:
    """Mean of a tensor over processes, without its gradient; all must call this."""
    value = value.detach()
    if not dist.is_initialized():
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / processes()


def batch_mean(total: Tensor, count: Tensor | int) -> Tensor:
    """Divide a sum over this process's share of a batch by the whole batch's count per process.

    Parameters
    ----------
    total : FloatTensor
    count : Tensor or int
        How many terms the sum has. Where the whole batch has none, the result is 0.
    """
    own = total.new_full((), count) if isinstance(count, int) else count.to(total.dtype)
    return total / mean_over_processes(own).clamp_min(1 / processes())


def share_statistics(network: nn.Module) -> None:
    """Have batch normalisation take its statistics over all processes' parts of a batch."""
    for name, child in network.named_children():
        if type(child) is nn.BatchNorm2d:
            setattr(network, name, _SharedBatchNorm.like(child))
        else:
            share_statistics(child)


class _SharedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over several processes; torch's own of that kind needs CUDA."""

    @classmethod
    def like(cls, other: nn.BatchNorm2d) -> "_SharedBatchNorm":
        """One with the state of another."""
        new = cls(other.num_features, other.eps, other.momentum).to(other.weight.device)
        new.load_state_dict(other.state_dict())
        return new.train(other.training)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        wide = x.float()
        cells = wide.new_full((1,), wide.numel() / wide.shape[1])
        sums = _sum_over_processes(torch.cat([wide.sum((0, 2, 3)), cells]))
        count = sums[-1]
        mean = sums[:-1] / count
        centred = wide - mean[:, None, None]
        squares = _sum_over_processes((centred**2).sum((0, 2, 3)))
        scale = self.weight / torch.sqrt(squares / count + self.eps)
        with torch.no_grad():
            momentum = cast(float, self.momentum)
            cast(Tensor, self.running_mean).lerp_(mean, momentum)
            cast(Tensor, self.running_var).lerp_(squares / (count - 1), momentum)
            cast(Tensor, self.num_batches_tracked).add_(1)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class _Sum(torch.autograd.Function):
    """A sum over processes; so is its gradient, since all their losses depend on it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:  # noqa: ARG004 (torch's signature)
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def _sum_over_processes(value: Tensor) -> Tensor:
    return cast(Tensor, _Sum.apply(value)) if dist.is_initialized() else value
