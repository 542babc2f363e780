"""The second stage learns what torchvision's does from the same features, weights and proposals."""

import pytest
import torch
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.roi_heads import (
    RoIHeads,
    maskrcnn_loss,
    project_masks_on_boxes,
)

from galsep.model import heads as module
from galsep.model.assignment import collect
from galsep.model.heads import BOX_BINS, MASK_BINS, MASK_SIZE, SourceHeads
from galsep.model.pooling import pool_boxes, sample_layers
from galsep.model.proposals import Proposals

STRIDES = (2, 4)


def ellipse(x, y, a, b):
    """A mask, its box along pixel edges, and light that falls off from its middle."""
    row, column = torch.meshgrid(torch.arange(120.0), torch.arange(120.0), indexing="ij")
    distance = ((column - x) / a) ** 2 + ((row - y) / b) ** 2
    mask = distance <= 1
    rows, columns = torch.where(mask)
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    return mask.to(torch.uint8), torch.tensor(box).float(), 10 * torch.exp(-distance)


def target(*shapes, seed):
    masks, boxes, light = zip(*(ellipse(*shape) for shape in shapes), strict=True)
    return {
        "boxes": torch.stack(boxes),
        "labels": 1 + torch.arange(len(boxes)) % 2,
        "masks": torch.stack(masks),
        "light": torch.stack(light),
        "total": torch.stack(light).sum(0),
        "ignored": torch.zeros((0, 4)),
        "seed": torch.tensor(seed),
    }


TARGETS = [
    target((20, 22, 6, 8), (33, 27, 11, 5), (90, 80, 3, 3), seed=1),
    target((60, 50, 26, 19), seed=2),
    target((70, 15, 9, 7), (80, 100, 40, 17), seed=3),
]


@pytest.fixture
def stage():
    torch.manual_seed(0)
    heads = SourceHeads(
        channels=8, strides=STRIDES, box_channels=16, mask_layers=(8,), predictions=1,
        sampled=24, nms=0.5, detections=10, mask_margin=0.2, smallest_match=0.0,
    ).train()  # fmt: skip
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    features = {"0": torch.randn(3, 8, 60, 60), "1": torch.randn(3, 8, 30, 30)}
    return heads, features


def proposals():
    """Boxes about the true ones and elsewhere; some stamps have fewer."""
    boxes = torch.rand((3, 30, 4), generator=torch.Generator().manual_seed(4)) * 60
    boxes[..., 2:] += boxes[..., :2] + 2
    off = torch.tensor([[0.7, -0.4, 1.1, 0.8], [-0.6, 0.3, 0.2, -0.5]])
    for row, truth in enumerate(TARGETS):
        for k, box in enumerate(truth["boxes"]):
            boxes[row, 2 * k : 2 * k + 2] = box + off
    real = torch.arange(30) < torch.tensor([30, 28, 25])[:, None]
    return Proposals(boxes, torch.arange(30).expand(3, -1), real)


class Given:
    """Samples, of each image's candidates, those it was told to."""

    def __init__(self, candidates, boxes, stamp):
        self.sampled = [
            (every[:, None] == boxes[stamp == row]).all(2).any(1)
            for row, every in enumerate(candidates)
        ]

    def __call__(self, labels):
        both = list(zip(self.sampled, labels, strict=True))
        return tuple(
            [(sampled & wanted(label)).to(torch.uint8) for sampled, label in both]
            for wanted in (lambda label: label > 0, lambda label: label == 0)
        )


def pooling(size):
    """This pooling as torchvision's stage calls it."""

    def pool(features, boxes, _shapes):
        stamp = torch.repeat_interleave(torch.tensor([len(part) for part in boxes]))
        return pool_boxes(list(features.values()), STRIDES, torch.cat(boxes), stamp, size)

    return pool


def torchvisions(heads, sampler):
    """torchvision's second stage with the same layers; its boxes are by class, so thrice ours."""

    def predict(pooled):
        logits, offsets = heads.box_predictor(pooled)
        return logits[:, 0], offsets[:, 0].repeat(1, 3)

    theirs = RoIHeads(
        pooling(BOX_BINS), heads.box_head, predict, 0.5, 0.5, 24, 0.25, None, 0.05, 0.5, 10
    )
    theirs.fg_bg_sampler = sampler
    return theirs.train()


def gradients(heads, loss):
    heads.zero_grad()
    loss.backward()
    return {k: p.grad.clone() for k, p in heads.named_parameters() if p.grad is not None}


def test_box_losses_and_gradients_are_torchvisions(stage):
    heads, features = stage
    proposed, truths = proposals(), collect(TARGETS)
    boxes, stamp, labels, _, chosen = heads._sample(proposed, truths)
    assert 6 <= int((labels > 0).sum()) < int(chosen.sum()) == len(labels) == 72
    given = [box[real] for box, real in zip(proposed.boxes, proposed.real, strict=True)]
    candidates = [torch.cat([box, t["boxes"]]) for box, t in zip(given, TARGETS, strict=True)]
    theirs = torchvisions(heads, Given(candidates, boxes, stamp))
    _, wanted = theirs(features, given, [(120, 120)] * 3, TARGETS)
    found = heads.learn(features, proposed, truths)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)
    ours = gradients(heads, found["loss_classifier"] + found["loss_box_reg"])
    for name, gradient in gradients(heads, sum(wanted.values())).items():
        torch.testing.assert_close(ours[name], gradient)


def cut_by_torchvision(layers, boxes, size):
    """What :func:`sample_layers` gives, sampled as torchvision samples masks."""
    n, r = boxes.shape[:2]
    number = torch.arange(n).repeat_interleave(r)
    cut = [project_masks_on_boxes(layer, boxes.flatten(0, 1), number, size)
           for layer in layers.unbind(1)]  # fmt: skip
    return torch.stack(cut, 1).view(n, r, -1, size, size)


def test_the_mask_loss_and_its_gradients_are_torchvisions(stage, monkeypatch):
    heads, features = stage
    truths = collect(TARGETS)
    seen = []

    def cut(layers, boxes, size):
        seen.append(boxes.flatten(0, 1))
        return cut_by_torchvision(layers, boxes, size)

    monkeypatch.setattr(module, "sample_layers", cut)
    found = heads.learn(features, proposals(), truths)["loss_mask"]
    ours = gradients(heads, found)
    number = torch.arange(len(truths.masks)).repeat_interleave(module.MASK_SAMPLES)
    stamp, first = truths.stamp[number], torch.tensor([0, 3, 4])
    shared = [seen[0][stamp == row] for row in range(3)]
    pooled = pooling(MASK_BINS)(features, shared, None)
    logits = MaskRCNNPredictor.forward(heads.mask_predictor, heads.mask_head(pooled))
    # Its channels are classes; here the first is the mask and the second the share of the light.
    classes = [torch.zeros_like(t["labels"]) for t in TARGETS]
    held = [number[stamp == row] - first[row] for row in range(3)]
    wanted = maskrcnn_loss(logits, shared, [t["masks"] for t in TARGETS], classes, held)
    torch.testing.assert_close(found, wanted)
    for name, gradient in gradients(heads, wanted).items():
        torch.testing.assert_close(ours[name], gradient)


def masks_and_boxes():
    truths = collect(TARGETS)
    boxes = module._jittered(truths.boxes, truths.seed)[truths.real]
    return truths.masks.float()[:, None], boxes


def test_small_masks_are_sampled_as_torchvision_does_but_at_pixel_centres():
    """It takes a pixel's value to be at the pixel's corner: half a pixel off."""
    masks, boxes = masks_and_boxes()
    small = (boxes[..., 2:] - boxes[..., :2]).amax((1, 2)) <= MASK_SIZE
    masks, boxes = masks[small], boxes[small]
    assert len(boxes) == 4
    found = sample_layers(masks, boxes + 0.5, MASK_SIZE)
    theirs = cut_by_torchvision(masks, boxes, MASK_SIZE)
    torch.testing.assert_close(found, theirs, rtol=0, atol=1e-4)


def test_large_masks_differ_at_their_edges_alone():
    """Of more pixels than bins torchvision averages several samples a bin."""
    masks, boxes = masks_and_boxes()
    large = (boxes[..., 2:] - boxes[..., :2]).amin((1, 2)) > MASK_SIZE
    assert large.sum() == 2
    found = sample_layers(masks[large], boxes[large] + 0.5, MASK_SIZE)
    apart = (found - cut_by_torchvision(masks[large], boxes[large], MASK_SIZE)).abs()
    assert 0 < float(apart.mean()) < 0.015
    assert float(apart.max()) < 0.5


def test_targets_of_the_same_boxes_are_half_a_pixel_apart():
    """Moved so far along both axes, a mask of side s changes on at most 2/s of its box."""
    masks, boxes = masks_and_boxes()
    ours = sample_layers(masks, boxes, MASK_SIZE)
    apart = (ours - cut_by_torchvision(masks, boxes, MASK_SIZE)).abs().flatten(1).mean(1)
    side = (boxes[..., 2:] - boxes[..., :2]).amin((1, 2))
    assert (apart > 0).all()
    assert (apart < 2 / side).all()
