"""What each part of Mask R-CNN brings: the same short training from nothing, with and without it.

    python benchmarks/ablation.py --work DIR [--epochs 2] [--only whole,stride]

Writes DIR/ablation.json and prints a table. Every variant sees the same 8,000 composed stamps an
epoch, of the same seed, is calibrated on the validation split, and judged on 1,000 pairs
(``galsep simulate``'s defaults) and on 1,000 blends of one to six galaxies within ±5″ at the
threshold of best F1. Trained so little, all are worse than the default weights: what counts is how
they differ from the first. Results that lie in DIR are kept, unless --epochs differs.

============== ====================================================================================
whole          the network as it is
stride         finest features at stride 4 instead of 2 (all levels are half as fine)
anchors        anchors from 12 px instead of 6
predictions    one source a proposal instead of two
contrast       without the channel that shows bright cores
normalisation  GroupNorm instead of BatchNorm
masks          mask head of 14×14 instead of 28×28 bins
widening       boxes matched as they are, not widened to 8 px
============== ====================================================================================
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from model_card import SIX, draw_held_out
from torch import nn

from galsep.config import DeblendConfig, EvaluateConfig, SimulateConfig, TrainConfig
from galsep.io.atomic import write_text
from galsep.io.dataset import Dataset, is_dataset, load_dataset
from galsep.model import heads
from galsep.model.device import choose_device, flushed_denormals, keep_memory
from galsep.model.engine import Trainer
from galsep.model.network import ARCHITECTURES, MaskRCNN, build_network
from galsep.model.weights import UNCALIBRATED_THRESHOLD, Model
from galsep.workflows.calibrate import calibrate
from galsep.workflows.evaluate import evaluate
from galsep.workflows.preparing import run_network
from galsep.workflows.simulate import simulate
from galsep.workflows.stages import example_makers

STOCK = {
    "n": 12_000, "galaxies": "1-4", "stars": 0.15, "max_mag": 26.0, "seeing": "0.5-1.3",
    "pixel_scale": "0.1-0.3", "seed": 61,
}  # fmt: skip
EPOCH_SIZE = 8_000
JUDGED: dict[str, dict[str, Any]] = {
    "pairs": {},
    "six": dict(SIX),
}
GROUPS = 8
"""Of GroupNorm."""


def coarser(network: nn.Module) -> None:
    """Have every level of features half as fine."""
    network.backbone.stem[0].stride = (4, 4)
    network.roi_heads.strides = tuple(2 * stride for stride in network.roi_heads.strides)


def with_groups(module: nn.Module) -> None:
    """Put GroupNorm in the place of BatchNorm."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(GROUPS, child.num_features))
        else:
            with_groups(child)


@dataclass(frozen=True)
class Variant:
    """How a network differs from the whole one.

    Parameters
    ----------
    changed : dict
        Of its architecture.
    change : callable, optional
        What is done to it, once it is built.
    constants : dict of str to int
        Of :mod:`galsep.model.heads`.
    """

    changed: dict[str, Any] = field(default_factory=dict)
    change: Callable[[nn.Module], None] | None = None
    constants: dict[str, int] = field(default_factory=dict)


VARIANTS = {
    "whole": Variant(),
    "stride": Variant(change=coarser),
    "anchors": Variant({"anchor_sizes": ((12, 18), (24, 36), (48, 64), (80, 104))}),
    "predictions": Variant({"predictions": 1}),
    "contrast": Variant({"contrast": False}),
    "normalisation": Variant(change=with_groups),
    "masks": Variant(constants={"MASK_BINS": 7, "MASK_SIZE": 14}),
    "widening": Variant({"smallest_match": 0.0}),
}


def built(variant: Variant, recipe: str) -> MaskRCNN:
    """A network of a variant with random weights."""
    network = build_network(replace(ARCHITECTURES[recipe], **variant.changed))
    if variant.change:
        variant.change(network)
    return network


def trained(variant: Variant, data: Dataset, config: TrainConfig, device: torch.device) -> Model:
    """A network of a variant, trained from nothing and calibrated."""
    torch.manual_seed(config.seed)
    trainer = Trainer(built(variant, config.recipe), config, device)
    examples = example_makers(data, config)
    while trainer.epoch < config.epochs:
        figures = trainer.run_epoch(*examples, lambda *_: None)
        print(f"  epoch {trainer.epoch}: loss {figures['train_loss']:.3f}", flush=True)
    model = Model(
        trainer.average.eval().requires_grad_(False),
        replace(ARCHITECTURES[config.recipe], **variant.changed),
        {"threshold": UNCALIBRATED_THRESHOLD},
        "",
        device,
    )
    return replace(model, info={**model.info, **calibrate(model, data)})


def judged(model: Model, folder: Path, report: Path) -> dict[str, Any]:
    """Figures of a network on a data set."""
    with mock.patch("galsep.model.weights.load_model", return_value=model):
        config = EvaluateConfig(psf=False, baselines=False, workers=1)
        metrics = evaluate(folder, report, config, overwrite=True).metrics
    block = metrics["methods"]["galsep"]["detectable"]
    found = block["centroid5"]
    return {
        "threshold": metrics["threshold"],
        **{key: found[key] for key in ("precision", "recall", "f1")},
        **{key: block[key] for key in ("exact", "mask_iou", "label_iou")},
    }


def cpu_ms(model: Model, data: Dataset, blends: int = 200) -> float:
    """CPU milliseconds a blend of background, SEP and network, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    images = [data.detection_image(blend) for blend in data.split("test")[:blends]]
    spent = []
    for _ in range(2):
        start = time.process_time()
        for _, found in run_network(images, model, DeblendConfig()):
            list(found)
        spent.append(time.process_time() - start)
    torch.set_num_threads(threads)
    return 1e3 * min(spent) / len(images)


def show(rows: dict[str, Any]) -> None:
    print(f"\n{'':14}" + "".join(f"{name:^33}" for name in JUDGED) + " CPU ms")
    print(f"{'':14}" + f"{'F1':>8} {'exact':>7} {'mask IoU':>9} {'label':>6}" * len(JUDGED))
    for name, row in rows.items():
        parts = "".join(
            f"{part['f1']:8.4f} {part['exact']:7.3f} {part['mask_iou']:9.3f} "
            f"{part['label_iou']:6.3f}"
            for part in (row[key] for key in JUDGED)
        )
        print(f"{name:14}{parts} {row['cpu_ms']:6.1f}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for data and reports")
    parser.add_argument("--epochs", type=int, default=2, help="of 8,000 stamps (default: 2)")
    parser.add_argument("--only", default="", metavar="NAME,...", help=", ".join(VARIANTS))
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    chosen = options.only.split(",") if options.only else list(VARIANTS)
    if unknown := [name for name in chosen if name not in VARIANTS]:
        parser.error(f"no variant {', '.join(unknown)}; there are {', '.join(VARIANTS)}")
    options.work.mkdir(parents=True, exist_ok=True)
    stock = options.work / "data" / "ablation"
    if not is_dataset(stock):
        simulate(stock, SimulateConfig(**STOCK))
    folders = {
        name: draw_held_out(
            options.work / "data" / name, SimulateConfig(**settings), validation=True
        )
        for name, settings in JUDGED.items()
    }
    data = load_dataset(stock)
    config = TrainConfig(
        epochs=options.epochs, epoch_size=EPOCH_SIZE, stages=(("all", options.epochs, 1e-3),),
        f1_size=0, validation_size=100, calibrate=False,
    )  # fmt: skip
    device = choose_device(options.device)
    keep_memory()
    target = options.work / "ablation.json"
    before = json.loads(target.read_text()) if target.is_file() else {}
    rows = before["rows"] if before.get("epochs") == options.epochs else {}
    for name in chosen:
        print(name, flush=True)
        variant = VARIANTS[name]
        with ExitStack() as stack:
            stack.enter_context(flushed_denormals())
            for constant, value in variant.constants.items():
                stack.enter_context(mock.patch.object(heads, constant, value))
            model = trained(variant, data, config, device)
            row = {"cpu_ms": cpu_ms(model, load_dataset(folders["pairs"]))}
            for key, folder in folders.items():
                row[key] = judged(model, folder, options.work / "reports" / f"{name}-{key}")
        rows[name] = row
        card = {"epochs": options.epochs, "rows": rows}
        write_text(target, json.dumps(card, indent=1, allow_nan=False) + "\n")
        show(rows)
    print(f"\nwrote {target}")


if __name__ == "__main__":
    main()
