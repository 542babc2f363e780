"""Speed of training beside torchvision's own Mask R-CNN, on the same data set.

    python benchmarks/train.py --work DIR [--device cuda] [--only reference,paper,compact]
    python benchmarks/train.py --work DIR --equal-time 20
    python benchmarks/train.py --work DIR --equal-time 20 --device cpu --threads 1 --batch-size 8

The reference is torchvision's ``maskrcnn_resnet50_fpn`` trained as its own reference script does
it: a DataLoader with workers gives lists of images and of targets, the loss is looked at in every
step. Only its sizes are made fit, as a user would: 120×120 images are not enlarged, anchors are
those of galsep's ``paper`` recipe, three classes. Beside it ``galsep train`` with both recipes.

``images/s`` is after a warm-up. FLOPs are those of matrix products and convolutions, forward and
backward, counted by PyTorch on the CPU; the share is of the rate of a large matrix product on the
same device, measured by the same command in the same precision (bfloat16 with AMP).

DIR/train.json keeps each row as soon as it is measured; a command that was stopped goes on behind
the last of them. With ``--equal-time``, reference and compact are trained for as many minutes and
judged alike: centres of boxes within 5 px of detectable sources of the test split, at the score
threshold that is best on the validation split. On a CPU the minutes are CPU time, so that other
work on the machine does not matter; with ``--threads 1`` that is what an idle core takes.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from galsep.config import SimulateConfig, TrainConfig
from galsep.conventions import bounds_to_boxes
from galsep.io.atomic import write_text
from galsep.io.dataset import Dataset, is_dataset, load_dataset
from galsep.measure.metrics import score_matches
from galsep.model.device import choose_device, fast_bfloat16
from galsep.model.network import ARCHITECTURES, normalise
from galsep.model.weights import load_model
from galsep.scene import Detections, Footprint
from galsep.settings import resolve
from galsep.workflows.judging import match_detectable
from galsep.workflows.reporting import Reporter
from galsep.workflows.simulate import simulate
from galsep.workflows.train import train

FLOP_BATCH = 2
"""Images whose FLOPs are counted."""

RATE = 0.005
"""Learning rate of the reference: torchvision's own, 0.02, diverges from random weights."""

WARMUP = 100
"""Steps over which it rises to that."""

THRESHOLDS = np.arange(0.05, 1.0, 0.05)


@dataclass(frozen=True)
class Bench:
    """What is measured, and where."""

    work: Path
    dataset: Path
    device: torch.device
    batch_size: int
    steps: int
    warmup: int
    workers: int

    def galsep(self, recipe: str, **settings: Any) -> TrainConfig:
        """Settings of a short run of a recipe, for the detector alone, from random weights.

        All stamps are as large as the reference's.
        """
        given = {
            "recipe": recipe, "init": "random", "batch_size": self.batch_size,
            "device": str(self.device), "separation_epochs": 0, "calibrate": False,
            "validation_size": 1, "f1_size": 0, "small_every": 0, **settings,
        }  # fmt: skip
        return resolve(TrainConfig, None, given)


class Blends(torch.utils.data.Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Blends of a split as torchvision's reference takes them, one image at a time."""

    def __init__(self, data: Dataset, split: str) -> None:
        self._data = data
        self._blends = data.split(split)

    def __len__(self) -> int:
        return len(self._blends)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        blend = self._blends[index]
        rows = self._data.sources(blend)
        footprints = self._data.footprints(blend)
        wanted = [footprints[k] for k in np.flatnonzero(rows["detectable"])]
        masks = np.zeros((len(wanted), *self._data.images.shape[2:]), dtype=np.uint8)
        for mask, footprint in zip(masks, wanted, strict=True):
            mask[footprint.slices] = footprint.mask
        stars = rows["class"][rows["detectable"]] == "star"
        bounds = np.array([footprint.bounds for footprint in wanted])
        return network_input(self._data, blend), {
            "boxes": torch.from_numpy(bounds_to_boxes(bounds)),
            "labels": torch.from_numpy(1 + stars.astype(np.int64)),
            "masks": torch.from_numpy(masks),
        }


def network_input(data: Dataset, blend: int) -> Tensor:
    """A blend as three equal colours."""
    image = normalise(data.detection_image(blend), data.meta.detection_rms)
    return torch.from_numpy(image).expand(3, -1, -1)


def reference_network() -> nn.Module:
    """Torchvision's own, from random weights, for images as small as these."""
    from torchvision.models.detection import maskrcnn_resnet50_fpn
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    paper = ARCHITECTURES["paper"]
    sizes = paper.anchor_sizes
    return maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=3, min_size=120, max_size=120,
        image_mean=[0.0] * 3, image_std=[1.0] * 3,
        rpn_anchor_generator=AnchorGenerator(sizes, (paper.aspect_ratios,) * len(sizes)),
    )  # fmt: skip


def batches(bench: Bench, data: Dataset) -> Iterator[Any]:
    """Batches without end, from a DataLoader that shuffles."""
    loader = DataLoader(
        Blends(data, "train"), bench.batch_size, shuffle=True, num_workers=bench.workers,
        collate_fn=collate, drop_last=True, persistent_workers=bench.workers > 0,
        multiprocessing_context="fork" if bench.workers else None,
    )  # fmt: skip
    while True:
        yield from loader


def collate(batch: list[Any]) -> tuple[Any, ...]:
    return tuple(zip(*batch, strict=True))


def reference_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, batch: Any, device: torch.device,
    *, amp: bool,
) -> float:  # fmt: skip
    """A step as in torchvision's ``references/detection/engine.py``."""
    images = [image.to(device) for image in batch[0]]
    targets = [{name: value.to(device) for name, value in one.items()} for one in batch[1]]
    with torch.autocast(device.type, torch.bfloat16, enabled=amp):
        losses = sum(network(images, targets).values())
    value = float(losses.detach())
    if not math.isfinite(value):
        raise SystemExit(f"the reference's loss is {value}")
    optimizer.zero_grad()
    losses.backward()
    optimizer.step()
    return value


def reference_speed(bench: Bench, data: Dataset, *, amp: bool) -> float:
    """Images a second after the warm-up."""
    torch.manual_seed(1)
    network = reference_network().to(bench.device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=0.9, weight_decay=1e-4)
    waiting = batches(bench, data)
    for step in range(bench.warmup + bench.steps):
        if step == bench.warmup:
            wait_for(bench.device)
            start = time.perf_counter()
        set_rate(optimizer, step, 0.0)
        reference_step(network, optimizer, next(waiting), bench.device, amp=amp)
    wait_for(bench.device)
    return bench.steps * bench.batch_size / (time.perf_counter() - start)


def galsep_speed(bench: Bench, recipe: str, *, amp: bool) -> float:
    """Images a second of ``galsep train`` in its last epoch; the ones before are the warm-up."""
    config = bench.galsep(
        recipe, epochs=2, epoch_size=bench.batch_size * bench.steps, amp=amp,
        stages=(("all", 2, 1e-4),),
    )  # fmt: skip
    with tempfile.TemporaryDirectory(dir=bench.work) as run:
        return train(bench.dataset, run, config).history[-1]["images_per_second"]


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reference_flops(data: Dataset) -> float:
    """FLOPs of training on one image."""
    torch.manual_seed(1)
    network = reference_network().train()
    blends = Blends(data, "train")
    batch = collate([blends[index] for index in range(FLOP_BATCH)])
    with FlopCounterMode(display=False) as counter:
        sum(network(list(batch[0]), list(batch[1])).values()).backward()
    return counter.get_total_flops() / FLOP_BATCH


def galsep_flops(bench: Bench, recipe: str) -> float:
    """FLOPs of training on one image: what a run of two steps has more than one of one."""
    cpu = replace(bench, device=torch.device("cpu"), batch_size=FLOP_BATCH)
    counted = []
    for steps in (1, 2):
        config = cpu.galsep(
            recipe, epochs=1, epoch_size=FLOP_BATCH * steps, stages=(("all", 1, 1e-4),), amp=False
        )
        with (
            tempfile.TemporaryDirectory(dir=bench.work) as run,
            FlopCounterMode(display=False) as counter,
        ):
            train(bench.dataset, run, config)
        counted.append(counter.get_total_flops())
    return (counted[1] - counted[0]) / FLOP_BATCH


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs a second of a large matrix product, the best of some."""
    side = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = math.inf
    for _ in range(8):
        wait_for(device)
        start = time.perf_counter()
        a @ b
        wait_for(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


ROWS: dict[str, tuple[str, bool]] = {
    "reference fp32": ("reference", False),
    "reference bf16": ("reference", True),
    "paper fp32": ("paper", False),
    "paper bf16": ("paper", True),
    "compact fp32": ("compact", False),
    "compact bf16": ("compact", True),
}
"""What is trained, and whether with AMP."""


def measure(bench: Bench, done: dict[str, Any], only: list[str], keep: Callable[[], None]) -> None:
    """Measure what is not there yet, row by row."""
    data = load_dataset(bench.dataset)
    # Without fast bfloat16, galsep trains in single precision whatever is asked for.
    fast = fast_bfloat16(bench.device)
    for precision, dtype in {"fp32": torch.float32, "bf16": torch.bfloat16}.items():
        if precision not in done["rate"] and (fast or precision == "fp32"):
            done["rate"][precision] = matrix_rate(bench.device, dtype)
            keep()
    for name, (what, amp) in ROWS.items():
        if what not in only or name in done["rows"] or (amp and not fast):
            continue
        if what not in done["flops"]:
            counted = reference_flops(data) if what == "reference" else galsep_flops(bench, what)
            done["flops"][what] = counted
            keep()
        done["rows"][name] = (
            reference_speed(bench, data, amp=amp)
            if what == "reference"
            else galsep_speed(bench, what, amp=amp)
        )
        keep()


def show(done: dict[str, Any]) -> None:
    """Print the table."""
    print(f"batch {done['batch_size']}, {done['device']}; rate of a matrix product: "
          + ", ".join(f"{rate / 1e12:.3g} TFLOP/s {name}" for name, rate in done["rate"].items())
          )  # fmt: skip
    print(f"{'':16}{'images/s':>10}{'ratio':>8}{'GFLOP/image':>13}{'TFLOP/s':>10}{'share':>8}")
    base = done["rows"].get("reference fp32")
    for name, speed in done["rows"].items():
        flops = done["flops"][ROWS[name][0]]
        rate = done["rate"][name.split()[1]]
        ratio = f"{speed / base:.2f}" if base else ""
        print(f"{name:16}{speed:10.1f}{ratio:>8}{flops / 1e9:13.2f}"
              f"{speed * flops / 1e12:10.3f}{speed * flops / rate:8.1%}")  # fmt: skip


def equal_time(bench: Bench, minutes: float) -> dict[str, Any]:
    """Train reference and compact for as long, and judge both."""
    data = load_dataset(bench.dataset)
    seconds = 60 * minutes
    amp = fast_bfloat16(bench.device)
    clock = clock_of(bench.device)
    start = clock()
    reference, seen = reference_for(bench, data, seconds, amp=amp)
    took = clock() - start
    results = {"reference": {"seconds": took, "images": seen, **judged(data, reference, 3, bench)}}
    del reference
    epochs = 10
    trial = bench.galsep(
        "compact", epochs=2, epoch_size=bench.batch_size * bench.steps, amp=amp,
        stages=(("all", 2, 1e-3),),
    )  # fmt: skip
    timed = Timed(clock)
    with tempfile.TemporaryDirectory(dir=bench.work) as folder:
        train(bench.dataset, folder, trial, reporter=timed)
    size = max(bench.batch_size, int(trial.epoch_size * seconds / (timed.seconds * epochs)))
    config = bench.galsep(
        "compact", epochs=epochs, epoch_size=size, amp=amp, stages=(("all", epochs, 1e-3),)
    )
    run = bench.work / "equal-time"
    start = clock()
    weights = train(bench.dataset, run, config, overwrite=True).weights
    took = clock() - start
    network = load_model(weights, str(bench.device)).network
    seen = epochs * config.epoch_size
    return results | {
        "compact": {"seconds": took, "images": seen, **judged(data, network, 1, bench)}
    }


def clock_of(device: torch.device) -> Callable[[], float]:
    """Time passing, or on a CPU the time that this process spends on it."""
    return time.process_time if device.type == "cpu" else time.perf_counter


class Timed(Reporter):
    """Notes how long the last task took."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.seconds = math.nan
        self._start = 0.0

    def begin(self, label: str, total: int) -> None:  # noqa: ARG002 (a reporter's signature)
        """Note when it begins."""
        self._start = self.clock()

    def end(self) -> None:
        """Note how long it took."""
        self.seconds = self.clock() - self._start


def reference_for(
    bench: Bench, data: Dataset, seconds: float, *, amp: bool
) -> tuple[nn.Module, int]:
    """Train the reference until the time is up."""
    torch.manual_seed(1)
    clock = clock_of(bench.device)
    start = clock()
    network = reference_network().to(bench.device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=0.9, weight_decay=1e-4)
    step = 0
    for batch in batches(bench, data):
        share = (clock() - start) / seconds
        if share >= 1:
            break
        set_rate(optimizer, step, share)
        reference_step(network, optimizer, batch, bench.device, amp=amp)
        step += 1
    return network, step * bench.batch_size


def set_rate(optimizer: torch.optim.Optimizer, step: int, share: float) -> None:
    """Rise over the first steps, as the reference does, then half a cosine down to 0."""
    rate = RATE * min(1, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * share))
    for group in optimizer.param_groups:
        group["lr"] = rate


@torch.inference_mode()
def judged(data: Dataset, network: nn.Module, channels: int, bench: Bench) -> dict[str, float]:
    """F1 on the test split, at the threshold of the validation split."""
    network.eval()

    def found(blend: int) -> Detections:
        image = network_input(data, blend)[:channels].to(bench.device).contiguous()
        # torchvision's network takes a list, galsep's a batch.
        result = network([image] if channels == 3 else image[None])[0]
        boxes = result["boxes"].double().cpu().numpy()
        scores = result["scores"].double().cpu().numpy()
        x, y = (boxes[:, :2] + boxes[:, 2:]).T / 2 - 0.5
        spot = Footprint(0, 0, np.ones((1, 1), dtype=bool))
        return Detections([spot] * len(x), x, y, scores)

    every = {
        split: [(blend, found(blend)) for blend in data.split(split)]
        for split in ("validation", "test")
    }

    def scores(split: str, threshold: float) -> dict[str, Any]:
        return score_matches(
            [match_detectable(data, blend, above(one, threshold)) for blend, one in every[split]]
        )

    best = max(THRESHOLDS.tolist(), key=lambda level: scores("validation", level)["f1"] or 0.0)
    test = scores("test", best)
    return {"threshold": best} | {name: test[name] for name in ("precision", "recall", "f1")}


def above(found: Detections, threshold: float) -> Detections:
    keep = found.scores >= threshold
    return Detections(
        [part for part, kept in zip(found.footprints, keep, strict=True) if kept],
        found.x[keep], found.y[keep], found.scores[keep],
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for data and results")
    parser.add_argument("--dataset", type=Path, help="default: DIR/pairs, drawn if need be")
    parser.add_argument("--n", type=int, default=20_000, help="blends to draw")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", default="reference,paper,compact", help="rows to measure")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20, help="steps that are timed")
    parser.add_argument("--warmup", type=int, default=5, help="steps of the reference before")
    parser.add_argument("--workers", type=int, default=4, help="of the reference's DataLoader")
    parser.add_argument("--threads", type=int, default=0, help="of a CPU")
    parser.add_argument("--equal-time", type=float, metavar="MINUTES", help="compare F1 instead")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    dataset = given.dataset or given.work / "pairs"
    given.work.mkdir(parents=True, exist_ok=True)
    if not is_dataset(dataset):
        simulate(dataset, SimulateConfig(n=given.n))
    device = choose_device(given.device)
    # What other processes spend would not count.
    workers = 0 if given.equal_time and device.type == "cpu" else given.workers
    bench = Bench(given.work, dataset, device, given.batch_size, given.steps, given.warmup, workers)
    if given.equal_time:
        results = equal_time(bench, given.equal_time)
        write_text(given.work / "equal-time.json", json.dumps(results, indent=1) + "\n")
        for name, row in results.items():
            figures = (f"{k} {'–' if v is None else f'{v:.4g}'}" for k, v in row.items())
            print(f"{name:10}" + ", ".join(figures))
        return
    file = given.work / "train.json"
    setup = {"batch_size": given.batch_size, "device": device_name(bench.device)}
    done: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    if {key: done.get(key) for key in setup} != setup:
        done = {**setup, "rate": {}, "flops": {}, "rows": {}}
    measure(
        bench, done, given.only.split(","),
        lambda: write_text(file, json.dumps(done, indent=1) + "\n"),
    )  # fmt: skip
    show(done)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
