import pytest
import torch
from torchvision.ops import roi_align

from galsep.model.pooling import expand, image_of, pool_boxes, sample_layers


def pool(features, strides, boxes, size):
    return pool_boxes(features, strides, torch.cat(boxes), image_of(boxes), size)


def boxes_of(count, seed, low=4.0, high=26.0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 90
    size = low + torch.rand(count, 2, generator=generator) * (high - low)
    return torch.cat([corner, corner + size], 1)


@pytest.mark.parametrize("size", [7, 14])
def test_pooling_agrees_with_torchvision(size):
    torch.manual_seed(0)
    stride = 2
    features = torch.randn(3, 5, 60, 60).contiguous(memory_format=torch.channels_last)
    boxes = [boxes_of(4, 1), boxes_of(0, 2), boxes_of(6, 3)]
    # Cells are centred on pixels 0, 2, 4…; torchvision centres them between pixels.
    moved = [part + (stride - 1) / 2 for part in boxes]
    wanted = roi_align(features, moved, size, 1 / stride, sampling_ratio=1, aligned=True)
    torch.testing.assert_close(
        pool([features], [stride], boxes, size), wanted, rtol=1e-4, atol=1e-4
    )


def test_gradients_agree_with_torchvision():
    torch.manual_seed(0)
    features = torch.randn(2, 3, 60, 60)
    weight = torch.randn(5, 3, 7, 7)
    boxes = [boxes_of(2, 1), boxes_of(3, 3)]
    gradients = []
    for ours in (True, False):
        given = features.clone().requires_grad_()
        pooled = (
            pool([given], [2], boxes, 7)
            if ours
            else roi_align(given, [b + 0.5 for b in boxes], 7, 0.5, sampling_ratio=1, aligned=True)
        )
        (pooled * weight).sum().backward()
        gradients.append(given.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_large_boxes_come_from_coarse_levels():
    # Every level holds its own number.
    levels = [torch.full((1, 1, 120 // s, 120 // s), float(s)) for s in (2, 4, 8)]
    boxes = torch.tensor([[0.0, 0, 27, 27], [0, 0, 40, 40], [0, 0, 119, 119], [10, 10, 11, 11]])
    pooled = pool(levels, (2, 4, 8), [boxes], 7)
    assert pooled[:, 0, 3, 3].tolist() == [2, 4, 8, 2]


def test_boxes_beyond_the_image_repeat_its_edge():
    features = torch.arange(60.0).view(1, 1, 1, 60).expand(1, 1, 60, 60)
    pooled = pool([features], [2], [torch.tensor([[100.0, 0, 140, 20]])], 7)
    assert pooled[0, 0, 0, -1] == 59


def test_layers_are_sampled_at_pixel_centres():
    layers = torch.arange(16.0).view(1, 1, 4, 4)
    whole = torch.tensor([[[0.0, 0, 4, 4]]])
    torch.testing.assert_close(sample_layers(layers, whole, 4)[0, 0, 0], layers[0, 0])
    assert sample_layers(torch.zeros(0, 3, 8, 8), torch.zeros(0, 2, 4), 7).shape == (0, 2, 3, 7, 7)


def test_boxes_grow_about_their_centres():
    assert expand(torch.tensor([[10.0, 20, 20, 40]]), 0.2).tolist() == [[9, 18, 21, 42]]
