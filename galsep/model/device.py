"""The computing device: choosing it, and working on it.

Batches that fit into its memory, threads on its cores, copies that it need not wait for, and what
keeps a CPU from being slow: no denormal numbers, no memory given back between steps.
"""

import contextlib
import functools
import itertools
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy.typing as npt
import torch
from torch import Tensor

from galsep.errors import DeviceError

__all__ = [
    "choose_device",
    "fast_bfloat16",
    "flushed_denormals",
    "in_batches",
    "keep_memory",
    "moved",
    "numbers",
    "on_own_cores",
    "one_ahead",
    "peak_memory",
    "uploaded",
]

Task = TypeVar("Task")
Result = TypeVar("Result")


def choose_device(name: str = "auto") -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps`` into a device.

    ``auto`` takes the first of CUDA, MPS and CPU that is there. A device asked for by name is
    never replaced by another.

    Raises
    ------
    DeviceError
        When the name is unknown or the device is not available.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not index.isdigit()):
        raise DeviceError(f"unknown device {name!r}; choose auto, cpu, cuda, cuda:N or mps")
    if kind == "cuda" and not cuda:
        raise DeviceError(f"device {name!r} was asked for, but PyTorch sees no CUDA device here")
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise DeviceError(
            f"device {name!r} was asked for, but there are {torch.cuda.device_count()} CUDA devices"
        )
    if kind == "mps" and not mps:
        raise DeviceError("device 'mps' was asked for, but PyTorch sees no Metal device here")
    return torch.device(name)


def in_batches(
    work: Callable[[Sequence[int], int], Sequence[Result]],
    sides: Sequence[int],
    size_for: Callable[[int], int],
    device: torch.device,
) -> list[Result]:
    """Work through pictures in batches of one side, smaller ones where memory is too small.

    On a CPU batches run side by side, see :func:`on_own_cores`.

    Parameters
    ----------
    work : callable
        Is given the numbers of a batch's pictures and the size to fill the batch up to; returns a
        result a picture. Runs in other threads: a mode of torch that it needs, it must enter
        itself.
    sides : sequence of int
        Of each picture.
    size_for : callable
        Pictures a batch by side; halved, with a warning, as often as the memory is too small.
    device : torch.device

    Returns
    -------
    list
        A result a picture, in order.

    Raises
    ------
    torch.OutOfMemoryError
        Where there is no room for one picture.
    """
    by_side = defaultdict(list)
    for number, side in enumerate(sides):
        by_side[side].append(number)
    tasks = []
    # What takes longest first, so that no core waits long for the others in the end.
    for side, some in sorted(by_side.items(), reverse=True):
        # Elsewhere what has been halved stays so.
        step = size_for(side) if device.type == "cpu" else len(some)
        tasks += [some[start : start + step] for start in range(0, len(some), step)]
    results = on_own_cores(
        lambda some: _halving(work, some, size_for(sides[some[0]])), tasks, device
    )
    found = {
        number: result
        for some, those in zip(tasks, results, strict=True)
        for number, result in zip(some, those, strict=True)
    }
    return [found[number] for number in range(len(sides))]


def _halving(
    work: Callable[[Sequence[int], int], Sequence[Result]], some: Sequence[int], size: int
) -> list[Result]:
    """Work through some pictures, so many at a time, or half as many where memory is too small."""
    results: list[Result] = []
    while len(results) < len(some):
        try:
            results += work(some[len(results) : len(results) + size], size)
            continue
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        # Out here, the error no longer holds on to what was allocated.
        torch.cuda.empty_cache()
        asked, size = size, size // 2
        warnings.warn(
            f"the device's memory is too small for batches of {asked}, or is in use by others; "
            f"going on with {size}",
            RuntimeWarning,
            stacklevel=2,
        )
    return results


def on_own_cores(
    function: Callable[[Task], Result], tasks: Sequence[Task], device: torch.device
) -> list[Result]:
    """Apply a function to tasks: on a CPU each on cores of its own, elsewhere one by one.

    A batch of small pictures keeps one core busy, and several cores little more.

    Parameters
    ----------
    function : callable
        Runs in other threads: a mode of torch that it needs, it must enter itself.
    tasks : sequence
    device : torch.device
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1 or len(tasks) < 2:
        return [function(task) for task in tasks]
    workers = min(threads, len(tasks))
    pool = ThreadPoolExecutor(
        workers, initializer=torch.set_num_threads, initargs=(threads // workers,)
    )
    try:
        return list(pool.map(function, tasks))
    finally:
        pool.shutdown(cancel_futures=True)
        # What one thread asks for, those that start later get.
        torch.set_num_threads(threads)


def one_ahead(function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
    """Apply a function to tasks in another thread, while what came of the one before is looked at.

    Results come in the order of the tasks; a task is taken before the one before it is done. An
    interrupt waits for the task at hand. A single task is done in this thread.

    Parameters
    ----------
    function : callable
        Spends its time where Python lets other threads run.
    tasks : iterable
        Taken in the thread that takes the results.
    """
    left = iter(tasks)
    some = list(itertools.islice(left, 2))
    if len(some) < 2:
        # Nothing to be ahead of; what runs in this thread can be interrupted.
        yield from map(function, some)
        return
    worker = ThreadPoolExecutor(1)
    try:
        waiting: list[Future[Result]] = []
        for task in itertools.chain(some, left):
            waiting.append(worker.submit(function, task))
            if len(waiting) > 1:
                yield waiting.pop(0).result()
        yield waiting.pop().result()
    finally:
        worker.shutdown(cancel_futures=True)


@functools.cache
def fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is faster than float32 on a device."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if device.type == "cpu":
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        if any(capabilities.get(name, False) for name in ("amx_bf16", "bf16")):
            return True
        # Intel's vectors take twice as long over bfloat16 as over float32; AMD's are faster.
        intel = "intel" in str(capabilities.get("cpu_name", "")).lower()
        return bool(capabilities.get("avx512_bf16", False)) and not intel
    return False


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device.

    To CUDA, one in pinned memory, or of a few KiB, is copied without waiting for it.

    Parameters
    ----------
    tensor : torch.Tensor
    device : torch.device

    Returns
    -------
    torch.Tensor
        The same one where it is on the device already.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")


def uploaded(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Make a tensor on a device of an array; to CUDA through pinned memory, without waiting.

    Parameters
    ----------
    array : array
        Of a type that PyTorch has. A CPU's tensor shares its memory.
    device : torch.device

    Returns
    -------
    torch.Tensor
        Of the array's shape and type.

    Raises
    ------
    TypeError
        For an array of another type.
    """
    tensor = torch.from_numpy(array)
    return moved(tensor.pin_memory() if device.type == "cuda" else tensor, device)


def numbers(values: Sequence[Any], device: torch.device) -> Tensor:
    """Make a small tensor on a device without waiting for what the device is at.

    Parameters
    ----------
    values : sequence of numbers, or of such sequences
        At most a few KiB.
    device : torch.device

    Returns
    -------
    torch.Tensor
        Of whole numbers ``int64``, of others PyTorch's default type.
    """
    return moved(torch.tensor(values), device)


@contextlib.contextmanager
def flushed_denormals() -> Iterator[None]:
    """Take numbers below the smallest normal one for zero, where a CPU can.

    Gradients of well-classified proposals fall below it, where processors take several times as
    long: RoIAlign's backward pass would slow to a crawl. Threads that are started meanwhile keep to
    it.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def keep_memory() -> None:
    """Have the C library keep freed memory for the next tensors instead of giving it back.

    Each step allocates the same large blocks; fresh ones cost a page fault every 4 KiB, a seventh
    of a training step. Does nothing where the C library is not glibc.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD (its largest value), see mallopt(3).
    for parameter, value in ((-1, 2**31 - 1), (-2, 2**28), (-3, 2**25)):
        mallopt(parameter, value)


def peak_memory(device: torch.device) -> int | None:
    """Most bytes that this process has had, or on a CUDA device, its tensors; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
