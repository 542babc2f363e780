import numpy as np
import pytest
import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image

from galsep.model.inference import _unfold, detect
from galsep.model.network import ARCHITECTURES, build_network
from galsep.model.weights import load_model, save_weights


@pytest.mark.parametrize("box", [(10.0, 20.0, 30.0, 50.0), (3.3, 7.8, 14.2, 16.1)])
def test_unfolding_a_mask_is_torchvisions_pasting(box):
    y, x = np.indices((28, 28))
    mask = np.exp(-((x - 15) ** 2 + (y - 12) ** 2) / 60.0).astype(np.float32)
    soft = _unfold(mask, np.array(box, dtype=np.float32))
    painted = np.zeros((120, 120), dtype=np.float32)
    height, width = soft.probability.shape
    painted[soft.y0 : soft.y0 + height, soft.x0 : soft.x0 + width] = soft.probability
    pasted = paste_masks_in_image(
        torch.from_numpy(mask)[None, None], torch.tensor([box]), (120, 120), padding=1
    )[0, 0].numpy()
    # torchvision rounds boxes to whole pixels, galsep does not.
    tolerance = 0.02 if all(float(v).is_integer() for v in box) else 0.35
    assert np.abs(painted - pasted).max() < tolerance
    assert (painted > 0.5).sum() == pytest.approx((pasted > 0.5).sum(), rel=0.25)


def test_a_cutouts_result_does_not_depend_on_its_company(tmp_path):
    torch.manual_seed(2)
    path = tmp_path / "w.safetensors"
    architecture = ARCHITECTURES["compact"]
    save_weights(path, build_network(architecture), {"architecture": architecture.to_dict()})
    model = load_model(path, "cpu")
    model.network.roi_heads.score_thresh = 0.1
    cutouts = np.random.default_rng(0).normal(size=(5, 120, 120)).astype(np.float32)
    together = detect(model, cutouts, batch_size=4)
    for index, alone in enumerate(detect(model, cutouts[i : i + 1], 4)[0] for i in range(5)):
        assert np.array_equal(alone.scores, together[index].scores)
        for a, b in zip(alone.masks, together[index].masks, strict=True):
            assert np.array_equal(a.probability, b.probability)


def test_no_cutouts(tmp_path):
    path = tmp_path / "w.safetensors"
    architecture = ARCHITECTURES["compact"]
    save_weights(path, build_network(architecture), {"architecture": architecture.to_dict()})
    assert detect(load_model(path, "cpu"), np.zeros((0, 120, 120), np.float32), 4) == []
