import json
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from galsep.config import TrainConfig
from galsep.errors import TrainingError, UsageError, WeightsError
from galsep.model import engine
from galsep.model.engine import Detecting, Trainer, learning_rate, part_is_trained
from galsep.model.examples import ExampleMaker, collate
from galsep.model.network import ARCHITECTURES, build_network
from galsep.model.weights import write_tensors
from galsep.settings import resolve

CPU = torch.device("cpu")


def small(**options):
    return resolve(
        TrainConfig,
        None,
        {"epochs": 2, "epoch_size": 6, "batch_size": 3, "validation_size": 2, **options},
    )


def trainer(config):
    torch.manual_seed(config.seed)
    return Trainer(build_network(ARCHITECTURES["compact"]), config, CPU)


def makers(pairs):
    return (
        ExampleMaker(pairs, "train", augment=True, compose=True, max_groups=2),
        ExampleMaker(pairs, "validation", augment=True, compose=True, max_groups=2),
    )


def test_resuming_repeats_the_unbroken_curve(pairs, tmp_path):
    config = small()
    unbroken = trainer(config)
    for _ in range(2):
        unbroken.run_epoch(*makers(pairs), lambda _n, _loss: None)
    broken = trainer(config)
    broken.run_epoch(*makers(pairs), lambda _n, _loss: None)
    broken.save(tmp_path / "state.safetensors")
    torch.manual_seed(99)
    resumed = Trainer(build_network(ARCHITECTURES["compact"]), config, CPU)
    resumed.restore(tmp_path / "state.safetensors")
    assert resumed.epoch == 1
    resumed.run_epoch(*makers(pairs), lambda _n, _loss: None)
    for name in ("loss", *Detecting.parts):
        for kind in ("train", "validation"):
            key = f"{kind}_{name}"
            assert resumed.history[1][key] == unbroken.history[1][key]
    for a, b in zip(resumed.average.parameters(), unbroken.average.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_state_of_another_version_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(engine, "STATE_VERSION", engine.STATE_VERSION - 1)
        trainer(small()).save(path)
    with pytest.raises(WeightsError) as caught:
        trainer(small()).restore(path)
    assert str(caught.value) == (
        f"{path}: resume state of another version of galsep, which would train on otherwise; start "
        "anew with --overwrite, and --init with its weights"
    )


def test_workers_change_no_bit(pairs):
    runs = []
    for workers in (0, 2):
        run = trainer(small(workers=workers))
        for _ in range(2):
            run.run_epoch(*makers(pairs), lambda _n, _loss: None)
        runs.append(run)
    for one, other in zip(*(run.history for run in runs), strict=True):
        for name in ("loss", *Detecting.parts):
            for kind in ("train", "validation"):
                assert one[f"{kind}_{name}"] == other[f"{kind}_{name}"]
    for a, b in zip(*(run.average.parameters() for run in runs), strict=True):
        assert torch.equal(a, b)


class Looks(TorchDispatchMode):
    """Counts what a GPU would be waited for: values that Python or the next shape depends on."""

    names = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "nms", "repeat_interleave")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        given = args[1] if name.startswith("index") else ()
        masks = [t for t in given if isinstance(t, torch.Tensor) and t.dtype == torch.bool]
        if name in self.names or masks:
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


def test_a_step_waits_for_the_device_once(pairs):
    run = trainer(small())
    maker = makers(pairs)[0]
    batch = collate([maker.make(one) for one in maker.plan(3, np.random.default_rng(1))])
    with Looks() as looks:
        run._gradients(run._step(), batch)
    assert looks.seen == ["equal"]  # whether suppression has come to its end


def test_losses_that_are_looked_at_later_are_the_same(pairs):
    """As on a CUDA device, which is not waited for."""
    told = []
    for behind in (0, 1):
        run, seen = trainer(small(epochs=1, stages=(("all", 1, 1e-3),))), []
        run._behind = behind
        figures = run.run_epoch(*makers(pairs), lambda n, loss, seen=seen: seen.append((n, loss)))
        told.append((seen, figures["train_loss"]))
    assert told[0] == told[1]
    assert [n for n, _ in told[0][0]] == [3, 3]


def test_a_process_without_a_part_of_a_batch_is_refused(monkeypatch):
    monkeypatch.setattr(engine, "processes", lambda: 3)
    with pytest.raises(UsageError, match="epoch_size = 8 with batch_size = 3 makes a batch of 2"):
        trainer(small(epoch_size=8))


@pytest.mark.parametrize("behind", [0, 1])
def test_a_loss_that_is_not_finite_names_the_step(pairs, behind):
    broken = trainer(small())
    with torch.no_grad():
        broken.network.rpn.head.cls_logits.bias.fill_(float("nan"))
    broken._behind = behind
    with pytest.raises(TrainingError, match=r"epoch 1, step 1 \(1 in all\)"):
        broken.run_epoch(*makers(pairs), lambda _n, _loss: None)


class Brightness:
    """Loss with room for some images a batch."""

    parts: ClassVar = {"loss_square": "mean square"}

    def __init__(self, room):
        self.room = room
        self.sizes = []

    def prepare(self, examples):
        return collate(examples)

    def __call__(self, network, batch, device, *, autocast):
        if network.training and len(batch) > self.room:
            raise torch.OutOfMemoryError("no room")
        self.sizes.append(len(batch))
        return {"loss_square": network(batch.images.asinh()).square().mean()}


def with_room(room, pairs):
    torch.manual_seed(0)
    network = torch.nn.Conv2d(1, 1, 3)
    config = small(epochs=1, epoch_size=5, batch_size=5, amp=False, ema=0.0)
    run = Trainer(network, config, CPU, Brightness(room))
    return run, run.run_epoch(*makers(pairs), lambda _n, _loss: None)


def test_gradients_are_summed_over_smaller_batches_where_memory_is_too_small(pairs):
    whole, expected = with_room(5, pairs)
    with pytest.warns(RuntimeWarning, match="gradients summed over batches of") as told:
        parted, figures = with_room(2, pairs)
    assert [str(warning.message)[-1] for warning in told] == ["3", "2"]
    assert parted.objective.sizes[:3] == [2, 2, 1]
    assert figures["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-5)
    for a, b in zip(parted.network.parameters(), whole.network.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    with pytest.warns(RuntimeWarning), pytest.raises(torch.OutOfMemoryError):
        with_room(0, pairs)


def test_a_damaged_state_is_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    path.write_bytes(b"not a state")
    with pytest.raises(WeightsError, match="resume"):
        trainer(small()).restore(path)


@pytest.mark.parametrize(
    ("about", "tensors", "said"),
    [
        ([], {}, "'list' object has no attribute 'get'"),
        ({}, {"optimizer.99.step": torch.ones(1)}, "list index out of range"),
        ({"epoch": None}, {}, "int() argument must be"),
        ({"history": 3}, {}, "'int' object is not iterable"),
    ],
)
def test_a_state_that_holds_other_things_is_refused(tmp_path, about, tensors, said):
    path = tmp_path / "state.safetensors"
    network = torch.nn.Conv2d(1, 1, 3)
    run = Trainer(network, small(ema=0.0), CPU)
    if isinstance(about, dict):
        about = {"version": engine.STATE_VERSION, "epoch": 1, "history": [], **about}
    stored = {f"network.{name}": value for name, value in network.state_dict().items()}
    write_tensors(path, stored | tensors, {"galsep_state": json.dumps(about)})
    with pytest.raises(WeightsError) as caught:
        run.restore(path)
    assert str(caught.value).startswith(f"{path}: no usable resume state ({said}")


def test_stages_of_the_paper_train_what_the_report_says():
    config = resolve(TrainConfig, None, {"recipe": "paper"})
    names = [name for name, _ in build_network(ARCHITECTURES["paper"]).named_parameters()]
    heads = {name for name in names if part_is_trained(name, "heads")}
    upper = {name for name in names if part_is_trained(name, "4+")}
    assert not any(name.startswith("backbone.body") for name in heads)
    assert {n.split(".")[2] for n in upper - heads} == {"layer3", "layer4"}
    assert all(part_is_trained(name, "all") for name in names)
    steps = config.epoch_size // config.batch_size
    rates = [learning_rate(config, (epoch - 1) * steps, steps) for epoch in (1, 15, 16, 20, 21, 61)]
    assert rates == [1e-3, 1e-3, 5e-3, 5e-3, 1e-3, 1e-4]


def test_the_cosine_warms_up_and_ends_at_zero():
    config = resolve(TrainConfig, None, {"epochs": 4, "epoch_size": 16000, "warmup": 100})
    rates = np.array([learning_rate(config, step, 1000) for step in range(4000)])
    assert rates[0] == pytest.approx(1e-5)
    assert rates.argmax() in (99, 100)
    assert rates.max() == pytest.approx(1e-3)
    assert (np.diff(rates[100:]) <= 0).all()
    assert rates[-1] < 1e-8


@pytest.mark.parametrize(("init", "fixed"), [("coco", True), ("random", False)])
def test_statistics_stay_those_of_the_starting_weights(pairs, init, fixed):
    config = small(epochs=1, fixed_statistics=True, init=init, stages=(("all", 1, 1e-3),))
    run = trainer(config)
    norm = run.network.backbone.stem[1]
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    run.run_epoch(*makers(pairs), lambda _n, _loss: None)
    after = norm.state_dict()
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(after[name], before[name]) == fixed
    for name in ("weight", "bias"):
        assert not torch.equal(after[name], before[name])


def test_of_the_recipes_only_the_paper_fixes_statistics():
    fixed = {name: resolve(TrainConfig, None, {"recipe": name}).fixed_statistics
             for name in ("compact", "paper")}  # fmt: skip
    assert fixed == {"compact": False, "paper": True}


def test_frozen_parts_do_not_move(pairs):
    config = small(epochs=1, stages=(("heads", 1, 1e-3),))
    run = trainer(config)
    before = run.network.backbone.stem[0].weight.clone()
    head = run.network.roi_heads.box_predictor.cls_score.weight.clone()
    run.run_epoch(*makers(pairs), lambda _n, _loss: None)
    assert torch.equal(run.network.backbone.stem[0].weight, before)
    assert not torch.equal(run.network.roi_heads.box_predictor.cls_score.weight, head)
