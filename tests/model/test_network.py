import numpy as np
import pytest
import torch

from galsep.model.assignment import collect
from galsep.model.network import (
    ARCHITECTURES,
    Architecture,
    build_network,
    contrast,
    normalise,
)


def target(boxes, ignored=()):
    masks = torch.zeros((len(boxes), 120, 120), dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = 1
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.ones(len(boxes), dtype=torch.int64),
        "masks": masks,
        "light": 5.0 * masks,
        "total": 5.0 * masks.sum(0),
        "ignored": torch.tensor(ignored, dtype=torch.float32).reshape(-1, 4),
        "seed": torch.tensor(7),
    }


def test_compact_stays_below_five_million_parameters():
    network = build_network(ARCHITECTURES["compact"])
    assert sum(p.numel() for p in network.parameters()) < 5_000_000


def test_an_architecture_survives_json():
    import json

    for architecture in ARCHITECTURES.values():
        stored = json.loads(json.dumps(architecture.to_dict()))
        assert Architecture.from_dict(stored) == architecture


def test_training_gives_all_losses_even_without_sources():
    torch.manual_seed(0)
    network = build_network(ARCHITECTURES["compact"]).train()
    truths = collect([target([(10, 10, 20, 22)]), target([])])
    losses = network(torch.randn(2, 1, 120, 120), truths)
    assert set(losses) == {
        "loss_classifier", "loss_box_reg", "loss_mask", "loss_share",
        "loss_objectness", "loss_rpn_box_reg",
    }  # fmt: skip
    assert all(torch.isfinite(value) for value in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_paper_network_trains_a_step():
    torch.manual_seed(0)
    network = build_network(ARCHITECTURES["paper"]).train()
    losses = network(torch.randn(1, 1, 120, 120), collect([target([(10, 10, 30, 32)])]))
    assert all(torch.isfinite(value) for value in losses.values())


def test_evaluation_gives_one_score_and_class_a_source():
    torch.manual_seed(0)
    network = build_network(ARCHITECTURES["compact"]).eval()
    network.roi_heads.score_floor = 0.0
    with torch.inference_mode():
        result = network(torch.randn(2, 1, 120, 120))[0]
    n = len(result["boxes"])
    assert 0 < n <= ARCHITECTURES["compact"].detections
    assert result["masks"].shape == result["shares"].shape == (n, 28, 28)
    assert (result["mask_boxes"][:, :2] <= result["boxes"][:, :2]).all()
    for name in ("scores", "class_star"):
        assert ((result[name] >= 0) & (result[name] <= 1)).all()
    assert (result["scores"].diff() <= 0).all()


def test_normalisation_is_asinh_in_units_of_the_rms():
    image = np.array([[0.0, 5.0, -5.0, 5000.0]])
    assert normalise(image, 5.0)[0] == pytest.approx(np.arcsinh([0, 1, -1, 1000]), rel=1e-6)


def test_contrast_keeps_structure_of_bright_cores_and_leaves_noise_alone():
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 1, 60, 60, generator=rng)
    relative = contrast(noise)
    assert float(relative.std()) == pytest.approx(0.9, abs=0.1)
    y, x = torch.meshgrid(torch.arange(60.0), torch.arange(60.0), indexing="ij")
    pair = sum(torch.exp(-((x - c) ** 2 + (y - 30) ** 2) / 4.5) for c in (27.5, 32.5))
    faint, bright = (contrast(f * pair[None, None])[0, 0] for f in (1e3, 1e5))
    torch.testing.assert_close(faint[25:35, 25:35], bright[25:35, 25:35], rtol=0.01, atol=0.01)
    assert bright[30, 27] > bright[30, 30] < bright[30, 33]
    assert bright.max() < 5
