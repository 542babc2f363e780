"""Convolutions give what PyTorch's own do, from the weights as they are."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from galsep.model import convolution
from galsep.model.convolution import Conv2d


@pytest.fixture
def layer():
    torch.manual_seed(5)
    return Conv2d(32, 32, 3, padding=1)


@pytest.fixture
def pictures():
    return torch.randn(2, 2, 32, 12, 10, generator=torch.Generator().manual_seed(6))


def plain(layer, x, plus=None, relu=False):
    out = F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding)
    out = out if plus is None else plus + out
    return F.relu(out) if relu else out


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
def test_addition_and_relu_in_one_go(layer, pictures, gradients, added, relu):
    x, plus = pictures
    plus = plus if added else None
    wanted = plain(layer, x, plus, relu)
    with torch.inference_mode(not gradients):
        out = layer(x, plus, relu=relu)
        assert out.requires_grad == gradients
        assert torch.allclose(out, wanted, atol=1e-5)
        assert (out >= 0).all() == relu


@pytest.mark.parametrize(
    "settings", [{"stride": 2}, {"padding": 1, "bias": False}, {"padding": 1, "groups": 4}]
)
def test_other_settings(settings, pictures):
    own = Conv2d(32, 16, 3, **settings)
    torchs = nn.Conv2d(32, 16, 3, **settings)
    torchs.load_state_dict(own.state_dict())
    with torch.inference_mode():
        assert torch.allclose(own(pictures[0]), torchs(pictures[0]), atol=1e-5)


@pytest.mark.skipif(not convolution._X86, reason="only on x86")
def test_weights_are_laid_out_once_for_each_size_and_type(layer, pictures, monkeypatch):
    made = []
    real = torch.ops.aten.mkldnn_reorder_conv2d_weight

    def counted(weight, *args):
        made.append((weight.dtype, tuple(args[-1])))
        return real(weight, *args)

    monkeypatch.setattr(torch.ops.aten, "mkldnn_reorder_conv2d_weight", counted)
    x, plus = pictures
    with torch.inference_mode():
        for _ in range(3):
            layer(x, plus)
            layer(x[..., :8])
            with torch.autocast("cpu", torch.bfloat16):
                assert layer(x, plus, relu=True).dtype == torch.bfloat16
    wide, narrow = (2, 32, 12, 10), (2, 32, 12, 8)
    types = torch.float32, torch.bfloat16
    assert made == [(types[0], wide), (types[0], narrow), (types[1], wide)]


@pytest.mark.parametrize("quick", [False, True])
def test_weights_that_change_are_laid_out_anew(layer, pictures, quick):
    x = pictures[0]
    for change in (
        lambda: layer.weight.mul_(2),
        lambda: layer.load_state_dict(Conv2d(32, 32, 3, padding=1).state_dict()),
        lambda: layer.bias.add_(1),
        lambda: setattr(layer, "weight", nn.Parameter(layer.weight + 1)),
    ):
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=quick):
            layer(x)
        with torch.no_grad():
            change()
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=quick):
            off = layer(x).float() - plain(layer, x).float()
            assert off.abs().max() < (0.05 if quick else 1e-4)


def test_weights_made_in_inference_mode(pictures):
    with torch.inference_mode():
        layer = Conv2d(32, 32, 3, padding=1)
        for _ in range(2):
            assert torch.allclose(layer(pictures[0]), plain(layer, pictures[0]), atol=1e-5)


def test_copies_have_weights_of_their_own(layer, pictures):
    x = pictures[0]
    with torch.inference_mode():
        before = layer(x)
    other = copy.deepcopy(layer)
    nn.init.zeros_(other.weight)
    with torch.inference_mode():
        assert torch.equal(layer(x), before)
        assert torch.allclose(other(x), plain(other, x))


def test_without_the_operators_it_is_pytorchs_own(layer, pictures, monkeypatch):
    x, plus = pictures
    with torch.inference_mode():
        wanted = layer(x, plus, relu=True)
        monkeypatch.setattr(convolution, "_has_operators", lambda: False)
        assert torch.allclose(layer(x, plus, relu=True), wanted, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16


def test_threads_change_no_bit(layer, pictures):
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                found.append(layer(*pictures, relu=True))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, found[0]) for one in found)
