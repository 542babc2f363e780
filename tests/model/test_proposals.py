"""The first stage learns what torchvision's does, for a whole batch at once."""

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import nms

from galsep.model import draws
from galsep.model.assignment import collect, sample
from galsep.model.proposals import ProposalNetwork, SteadyRPNHead, _match, distinct


def target(boxes, ignored=(), seed=1):
    n = len(boxes)
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.ones(n, dtype=torch.int64),
        "masks": torch.zeros((n, 120, 120), dtype=torch.uint8),
        "light": torch.zeros((n, 120, 120)),
        "total": torch.zeros((120, 120)),
        "ignored": torch.tensor(ignored, dtype=torch.float32).reshape(-1, 4),
        "seed": torch.tensor(seed),
    }


TARGETS = [
    target([(10, 10, 22, 24), (15, 12, 30, 31), (80, 90, 87, 96)], seed=1),
    target([], seed=2),
    target([(40, 30, 90, 88)], seed=3),
]


@pytest.fixture
def stage():
    torch.manual_seed(0)
    anchors = AnchorGenerator(((6, 9), (13, 18)), ((1.0,), (1.0,)))
    network = ProposalNetwork(anchors, SteadyRPNHead(8, 2), 20, 0.7, 0.0).train()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    features = {"0": torch.randn(3, 8, 60, 60), "1": torch.randn(3, 8, 30, 30)}
    return network, ImageList(torch.zeros(3, 1, 120, 120), [(120, 120)] * 3), features


class Given:
    """Samples what it was told to."""

    def __init__(self, index, chosen, labels, anchors):
        self.positive = torch.zeros((len(index), anchors), dtype=torch.uint8)
        self.negative = torch.zeros_like(self.positive)
        for row, (where, taken, label) in enumerate(zip(index, chosen, labels, strict=True)):
            self.positive[row, where[taken & (label == 1)]] = 1
            self.negative[row, where[taken & (label == 0)]] = 1

    def __call__(self, matched):
        return list(self.positive), list(self.negative)


def test_losses_and_gradients_are_torchvisions(stage):
    network, images, features = stage
    truths = collect(TARGETS)
    anchors = network.anchor_generator(images, list(features.values()))[0]
    index, chosen, labels, _ = network._assign(anchors, truths)
    proposals, losses = network.learn(images, features, truths)
    sum(losses.values()).backward()
    gradients = [parameter.grad.clone() for parameter in network.parameters()]

    network.zero_grad()
    network.fg_bg_sampler = Given(index, chosen, labels, len(anchors))
    # torchvision's own way through the same network.
    boxes, wanted = RegionProposalNetwork.forward(network, images, features, TARGETS)
    for name, value in wanted.items():
        torch.testing.assert_close(losses[name], value)
    assert float(wanted["loss_rpn_box_reg"].detach()) > 0
    sum(wanted.values()).backward()
    for gradient, parameter in zip(gradients, network.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)
    for mine, real, theirs in zip(proposals.boxes, proposals.real, boxes, strict=True):
        assert torch.equal(mine[real], theirs)


def test_doubles_are_suppressed_as_torchvision_does():
    """In a crowd, and where each is a rival of the one before alone: the longest way to the end."""
    torch.manual_seed(5)
    crowd = torch.rand(3, 60, 4) * 20
    crowd[..., 2:] = crowd[..., :2] + 20
    row = torch.tensor([0.0, 0, 4, 9]) + torch.arange(40.0)[:, None] * torch.tensor([1, 0, 1, 0])
    row = row.expand(3, -1, -1)
    lists = crowd, row
    real = [torch.rand(3, 60) < 0.9, torch.ones(3, 40, dtype=torch.bool)]
    left = distinct(lists, real, 0.5)
    for boxes, there, kept in zip(lists, real, left, strict=True):
        for box, wanted, found in zip(boxes, there, kept, strict=True):
            number = torch.where(wanted)[0]
            ours = nms(box[number], torch.arange(len(number), 0, -1).float(), 0.5)
            assert torch.equal(torch.where(found)[0], number[ours])
            assert 0 < len(ours) < len(number)


def test_anchors_are_matched_as_torchvision_does(stage):
    network, images, features = stage
    anchors = network.anchor_generator(images, list(features.values()))[0]
    labels, matched = network.assign_targets_to_anchors([anchors] * 3, TARGETS)
    kind, source = _match(anchors, collect(TARGETS), 0.0)
    assert torch.equal(kind, torch.stack(labels).long())
    for row, wanted in enumerate(matched):
        positive = kind[row] == 1
        assert torch.equal(TARGETS[row]["boxes"][source[row][positive]], wanted[positive])


def test_ignored_sources_are_neither_positive_nor_negative():
    anchors = torch.tensor([[10.0, 10, 20, 20], [50, 50, 60, 60], [90, 90, 100, 100]])
    wanted = target([(10, 10, 20, 20)], ignored=[(50, 50, 60, 60)])
    kind, _ = _match(anchors, collect([wanted]), 8.0)
    assert kind.tolist() == [[1, -1, 0]]


def test_what_is_sampled_does_not_depend_on_the_batch(stage):
    network, images, features = stage
    anchors = network.anchor_generator(images, list(features.values()))[0]
    together = network._assign(anchors, collect(TARGETS))
    for row, one in enumerate(TARGETS):
        alone = network._assign(anchors, collect([one]))
        for whole, part in zip(together[:3], alone[:3], strict=True):
            assert torch.equal(whole[row], part[0])
    assert not torch.equal(together[0][0], together[0][1])


def test_a_sample_holds_positives_first_and_is_filled_up():
    kind = torch.tensor([[1, 0, 1, -1, 0, 0, 1], [0, -1, -1, -1, -1, 1, -1]])
    keys = draws.keys(torch.tensor([1, 2]), 7, draws.ANCHORS)
    index, chosen = sample(kind, keys, 5, 2)
    assert chosen.tolist() == [[True] * 5, [True, True, False, False, False]]
    picked = kind.gather(1, index)
    assert picked[0].tolist() == [1, 1, 0, 0, 0]
    assert picked[1, :2].tolist() == [1, 0]
    assert len(set(index[0].tolist())) == 5
