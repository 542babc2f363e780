import numpy as np
import pytest
import torch
from torchvision.models.detection.roi_heads import project_masks_on_boxes

from galsep.model.inference import _unfold, detect
from galsep.model.network import ARCHITECTURES, build_network
from galsep.model.weights import load_model, save_weights


@pytest.mark.parametrize("centre", [(40.0, 60.0), (41.3, 55.8), (3.0, 117.0)])
@pytest.mark.parametrize("radius", [4.0, 9.5, 25.0])
def test_unfolding_gives_back_the_mask_that_was_trained_on(centre, radius):
    y, x = np.indices((120, 120))
    mask = np.hypot(x - centre[0], y - centre[1]) < radius
    rows, columns = np.nonzero(mask)
    box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], dtype=np.float32)
    target = project_masks_on_boxes(
        torch.from_numpy(mask.astype(np.float32))[None],
        torch.from_numpy(box)[None],
        torch.zeros(1, dtype=torch.int64),
        28,
    )[0].numpy()
    found = _unfold(target, box).footprint(0.5).to_full((120, 120))
    shared = (found & mask).sum() / (found | mask).sum()
    assert shared > 0.97
    assert abs(np.nonzero(found)[1].mean() - columns.mean()) < 0.1
    assert abs(np.nonzero(found)[0].mean() - rows.mean()) < 0.1


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
