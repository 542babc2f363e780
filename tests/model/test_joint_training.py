import copy

import numpy as np
import pytest
import torch

from galsep.model.examples import ExampleMaker, collate
from galsep.model.inference import as_found
from galsep.model.joint_training import Both, Joining, drawn_layers
from galsep.model.separation_training import make_scene
from galsep.model.weights import load_model

CPU = torch.device("cpu")
N = 12


@pytest.fixture
def model():
    return load_model("compact", "cpu")


@pytest.fixture
def batch(pairs, model):
    maker = ExampleMaker(pairs, "train", augment=False, compose=False)
    return Joining(model).prepare([maker.plain(k) for k in range(N)])


@pytest.fixture
def both(model):
    return Both(model.network, model.separator).train().requires_grad_(True)


def fix_statistics(network):
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()


def test_the_separation_network_sees_what_it_would_be_given(model, batch, both):
    """Layers that can be learnt from are those of the crops, moved and doubled ones among them."""
    fix_statistics(both)
    stamps = collate([seen.example for seen in batch])
    with torch.no_grad():
        _, found = both.detector.learn_and_detect(stamps.images, stamps.truths)
    kinds = set()
    count = 0
    for index in range(10 * N):
        seen = copy.deepcopy(batch[index % N])
        seen.rng.random(index)  # Other random numbers each time.
        result = found[index % N]
        scene = make_scene(model, seen, as_found(result, 120))
        layers = drawn_layers(scene, result)
        assert len(layers) == len(scene.given)
        count += len(layers)
        for source, layer, expected in zip(scene.given, layers, scene.crops.layers, strict=True):
            assert layer.shape == expected.shape
            assert layer.numpy() == pytest.approx(expected, abs=1e-5)
            kinds |= {("moved", source.shift != (0, 0)), ("outline", source.claim is None)}
    assert len(kinds) == 4
    assert count > 15 * N


def test_detections_are_those_of_evaluation(model, batch, both):
    fix_statistics(both)
    stamps = collate([seen.example for seen in batch])
    with torch.no_grad():
        _, found = both.detector.learn_and_detect(stamps.images, stamps.truths, least=0.3)
        expected = both.detector.eval()(stamps.images, least=0.3)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert both.detector.train().rpn.training


def test_light_teaches_mask_r_cnn_its_masks(model, batch, both):
    losses = Joining(model)(both, batch, CPU, autocast=False)
    assert set(losses) == set(Joining.parts)
    names = [name for name, _ in both.named_parameters()]
    gradients = torch.autograd.grad(
        losses["loss_model"], [value for _, value in both.named_parameters()], allow_unused=True
    )
    taught = {name for name, value in zip(names, gradients, strict=True) if value is not None}
    assert any(name.startswith("separator.") for name in taught)
    parts = ("backbone.stem.0.weight", "roi_heads.mask_head", "roi_heads.mask_predictor")
    assert all(any(name.startswith(f"detector.{part}") for name in taught) for part in parts)
    untaught = ("detector.rpn", "detector.roi_heads.box_")
    assert not any(name.startswith(untaught) for name in taught)


def test_the_gradient_is_right(model, batch, both):
    """Along a mask's logits' bias, against differences of the loss."""
    fix_statistics(both)
    objective = Joining(model)
    bias = both.detector.roi_heads.mask_predictor.mask_fcn_logits.bias

    def loss():
        return objective(both, batch[:4], CPU, autocast=False)["loss_claim"]

    gradient = torch.autograd.grad(loss(), bias)[0]
    values = []
    with torch.no_grad():
        for step in (0.1, -0.1):
            # The share's: it moves no edge of a mask.
            bias[1] += step
            values.append(float(loss()))
            bias[1] -= step
    assert float(gradient[1]) == pytest.approx((values[0] - values[1]) / 0.2, rel=0.05)
    assert abs(float(gradient[1])) > 1e-5


def test_empty_stamps_have_losses_too(model, both, pairs):
    maker = ExampleMaker(pairs, "train", augment=False, compose=False)
    example = maker.plain(0)
    example.image[:] = np.arcsinh(np.random.default_rng(2).normal(size=example.image.shape))
    objective = Joining(model)
    losses = objective(both, objective.prepare([example]), CPU, autocast=False)
    assert set(losses) == set(Joining.parts)
    assert all(bool(loss.isfinite()) for loss in losses.values())
    sum(losses.values()).backward()
