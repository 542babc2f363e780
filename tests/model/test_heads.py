import pytest
import torch
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.roi_heads import fastrcnn_loss

from galsep.model.assignment import collect, widened
from galsep.model.heads import (
    GALAXY,
    SourceHeads,
    _assigned_losses,
    _MaskPredictor,
    _suppress,
    _voted,
)
from galsep.model.proposals import Proposals


def heads(predictions=2):
    torch.manual_seed(0)
    return SourceHeads(
        channels=8, strides=(2, 4), box_channels=16, mask_layers=(8,), predictions=predictions,
        sampled=32, nms=0.5, detections=10, mask_margin=0.2, smallest_match=8.0,
    )  # fmt: skip


def truth(boxes, ignored=()):
    n = len(boxes)
    target = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.full((n,), GALAXY),
        "ignored": torch.tensor(ignored, dtype=torch.float32).reshape(-1, 4),
        "masks": torch.zeros((n, 120, 120), dtype=torch.uint8),
        "light": torch.zeros((n, 120, 120)),
        "total": torch.zeros((120, 120)),
        "seed": torch.tensor(3),
    }
    return collect([target])


def proposed(boxes):
    boxes = torch.tensor(boxes)[None]
    number = torch.arange(boxes.shape[1])[None]
    return Proposals(boxes, number, torch.ones_like(number, dtype=torch.bool))


def test_a_proposal_holds_both_of_a_close_pair():
    pair = truth([(10, 10, 30, 30), (13, 10, 33, 30), (80, 80, 90, 90)])
    proposals = proposed([[11.0, 10, 32, 30], [79, 80, 90, 91], [50, 50, 60, 60]])
    boxes, _, labels, offsets, _ = heads()._sample(proposals, pair)
    both = (labels > 0).all(1)
    assert both.sum() == 3  # the first proposal and the two true boxes, which are proposals too
    single = labels[:, 0] > 0
    assert (single & ~both).sum() == 2
    # Decoded, the offsets of the first proposal give the two true boxes, best first.
    row = int(torch.where((boxes == proposals.boxes[0, 0]).all(1))[0])
    coder = heads()._coder
    decoded = torch.stack([coder.decode_single(offsets[row, k][None], boxes[[row]])[0]
                           for k in range(2)])  # fmt: skip
    assert {tuple(box) for box in decoded.round().tolist()} == {
        tuple(map(float, box)) for box in pair.boxes[0, :2].tolist()
    }


def test_undetectable_sources_are_neither_positive_nor_negative():
    proposals = proposed([[50.0, 50, 60, 60], [90, 90, 100, 100]])
    boxes, stamp, labels, _, chosen = heads()._sample(
        proposals, truth([], ignored=[(50, 50, 60, 60)])
    )
    assert boxes[chosen].tolist() == [[90, 90, 100, 100]]
    assert labels[chosen].tolist() == [[0, 0]]
    assert len(boxes) == len(stamp) == 32


def test_places_that_are_not_taken_change_no_loss_and_no_gradient():
    stage = heads()
    levels = [torch.randn(1, 8, 60, 60), torch.randn(1, 8, 30, 30)]
    proposals = proposed([[11.0, 10, 32, 30], [79, 80, 90, 91], [50, 50, 60, 60]])
    pair = truth([(10, 10, 30, 30), (80, 80, 90, 90)])
    found = []
    for sampled in (16, 32):
        stage._sampled = sampled
        stage.zero_grad()
        losses = stage._box_losses(levels, proposals, pair)
        sum(losses.values()).backward()
        found.append((losses, stage.box_head.fc6.weight.grad.clone()))
    assert stage._sample(proposals, pair)[-1].sum() == 5
    for name, loss in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], loss)
    torch.testing.assert_close(found[1][1], found[0][1])


def test_the_order_of_predictions_does_not_matter():
    torch.manual_seed(1)
    logits, deltas = torch.randn(6, 2, 3), torch.randn(6, 2, 4)
    labels = torch.tensor([[1, 2], [1, 0], [0, 0], [2, 1], [2, 0], [1, 1]])
    offsets = torch.randn(6, 2, 4)
    chosen = torch.arange(6) != 4
    given = _assigned_losses(logits, deltas, labels, offsets, chosen)
    swapped = _assigned_losses(logits.flip(1), deltas.flip(1), labels, offsets, chosen)
    for name, value in given.items():
        torch.testing.assert_close(swapped[name], value)


def test_a_perfect_prediction_costs_nothing_in_either_order():
    labels = torch.tensor([[1, 0]])
    offsets = torch.tensor([[[0.1, 0.2, 0.3, 0.4], [0.0, 0, 0, 0]]])
    logits = torch.tensor([[[50.0, 0, 0], [0, 50.0, 0]]])
    deltas = torch.tensor([[[9.0, 9, 9, 9], [0.1, 0.2, 0.3, 0.4]]])
    chosen = torch.ones(1, dtype=torch.bool)
    for value in _assigned_losses(logits, deltas, labels, offsets, chosen).values():
        assert value == pytest.approx(0, abs=1e-6)


def test_of_one_prediction_losses_are_torchvisions():
    torch.manual_seed(2)
    logits, deltas = torch.randn(40, 1, 3), torch.randn(40, 1, 4)
    labels, offsets = torch.randint(0, 3, (40, 1)), torch.randn(40, 1, 4)
    # torchvision has box offsets for each class.
    by_class, off = fastrcnn_loss(
        logits[:, 0], deltas.expand(-1, 3, -1).flatten(1), [labels[:, 0]], [offsets[:, 0]]
    )
    found = _assigned_losses(logits, deltas, labels, offsets, torch.ones(40, dtype=torch.bool))
    torch.testing.assert_close(found["loss_classifier"], by_class)
    torch.testing.assert_close(found["loss_box_reg"], off)


def test_predictions_of_one_proposal_do_not_suppress_each_other():
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 11], [50, 50, 60, 60]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.95])
    origin = torch.tensor([4, 4, 5, 6])
    assert _suppress(boxes, scores, origin, 0.5).tolist() == [3, 0, 1]
    assert _suppress(boxes, scores, torch.arange(4), 0.5).tolist() == [3, 0]


def test_the_mask_predictor_computes_what_torchvisions_does():
    torch.manual_seed(0)
    ours = _MaskPredictor(6, 5, 2)
    features = torch.randn(3, 6, 14, 14)
    wanted = MaskRCNNPredictor.forward(ours, features)
    torch.testing.assert_close(ours(features), wanted, rtol=1e-4, atol=1e-5)


def test_suppressed_boxes_vote_on_where_the_kept_ones_are():
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 4, 10, 14], [50, 50, 60, 60]])
    scores = torch.tensor([0.75, 0.25, 0.5, 0.9])
    voted = _voted(boxes, scores, torch.tensor([3, 0, 2]))
    assert voted.tolist() == [[50, 50, 60, 60], [0.25, 0, 10.25, 10], [0, 4, 10, 14]]
    assert _voted(boxes[:0], scores[:0], torch.zeros(0, dtype=torch.int64)).shape == (0, 4)


def test_boxes_of_a_few_pixels_are_of_one_source_where_they_nearly_touch():
    faint = truth([(40, 40, 43, 43)], ignored=[(80, 80, 82, 82), (0, 0, 0, 0)])
    near = [[41.0, 41, 45, 44], [81, 79, 84, 82], [49, 40, 53, 44], [0, 0, 5, 5]]
    boxes, _, labels, _, chosen = heads()._sample(proposed(near), faint)
    held = dict(zip(map(tuple, boxes[chosen].tolist()), labels[chosen, 0].tolist(), strict=True))
    assert held == {
        (40, 40, 43, 43): GALAXY,
        tuple(near[0]): GALAXY,  # IoU of the boxes themselves: 0.24
        tuple(near[2]): 0,
        tuple(near[3]): 0,  # Empty boxes are nowhere, and stay so.
    }


def test_widened_boxes_keep_their_centres():
    boxes = torch.tensor([[40.0, 40, 43, 50], [5, 5, 5, 5]])
    assert widened(boxes, 8).tolist() == [[37.5, 40, 45.5, 50], [5, 5, 5, 5]]
    assert torch.equal(widened(boxes, 0), boxes)
