import warnings

import numpy as np
import pytest
import torch

from galsep.model.inference import _unfold, calibrated, detect
from galsep.model.network import ARCHITECTURES, build_network
from galsep.model.pooling import expand, sample_layers
from galsep.model.weights import Model, load_model, save_weights


@pytest.mark.parametrize("centre", [(40.0, 60.0), (41.3, 55.8), (3.0, 117.0)])
@pytest.mark.parametrize("radius", [4.0, 9.5, 25.0])
def test_unfolding_gives_back_the_mask_that_was_trained_on(centre, radius):
    y, x = np.indices((120, 120))
    mask = np.hypot(x - centre[0], y - centre[1]) < radius
    rows, columns = np.nonzero(mask)
    edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    box = expand(torch.tensor(edges, dtype=torch.float32), 0.2)
    layer = torch.from_numpy(mask.astype(np.float32))[None, None]
    target = sample_layers(layer, box[None, None], 28)[0, 0, 0].numpy()
    found = _unfold(target, box.numpy(), 120).footprint(0.5).to_full((120, 120))
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
    model.network.roi_heads.score_floor = 0.1
    cutouts = np.random.default_rng(0).normal(size=(5, 120, 120)).astype(np.float32)
    together = detect(model, cutouts, batch_size=4)
    for index, alone in enumerate(detect(model, cutouts[i : i + 1], 4)[0] for i in range(5)):
        assert np.array_equal(alone.scores, together[index].scores)
        for kind in ("masks", "shares"):
            for a, b in zip(getattr(alone, kind), getattr(together[index], kind), strict=True):
                assert np.array_equal(a.probability, b.probability)


def test_cutouts_of_two_sides_come_back_in_order():
    model = load_model(device="cpu")
    cutouts = [np.zeros((side, side), dtype=np.float32) for side in (120, 64, 64, 120, 64)]
    for cutout, y in zip(cutouts, (70, 20, 40, 30, 30), strict=True):
        rows, columns = np.indices(cutout.shape)
        cutout += np.arcsinh(40 * np.exp(-((rows - y) ** 2 + (columns - 32) ** 2) / 8))
    found = detect(model, cutouts, 2)
    for here, y in zip(found, (70, 20, 40, 30, 30), strict=True):
        best = here.masks[int(here.scores.argmax())].footprint(0.5)
        xmin, ymin, xmax, ymax = best.bounds
        assert (ymin + ymax) / 2 == pytest.approx(y, abs=1)
        assert (xmin + xmax) / 2 == pytest.approx(32, abs=1)


def test_what_scores_too_low_is_left_out_and_the_rest_is_the_same():
    model = load_model(device="cpu")
    rng = np.random.default_rng(0)
    cutouts = [rng.normal(size=(64, 64)).astype(np.float32) for _ in range(4)]
    for cutout in cutouts:
        cutout[28:36, 28:36] += 2
    everything, few = detect(model, cutouts, 4), detect(model, cutouts, 4, least=0.5)
    assert sum(len(here.scores) for here in everything) > sum(len(here.scores) for here in few)
    for all_of, some in zip(everything, few, strict=True):
        kept = np.flatnonzero(calibrated(model, all_of.scores) >= 0.5)
        assert kept.size
        assert set(all_of.scores[kept]) <= set(some.scores)
        for k in kept:
            other = some.masks[some.scores.tolist().index(all_of.scores[k])]
            assert np.array_equal(all_of.masks[k].probability, other.probability)


def test_no_cutouts(tmp_path):
    path = tmp_path / "w.safetensors"
    architecture = ARCHITECTURES["compact"]
    save_weights(path, build_network(architecture), {"architecture": architecture.to_dict()})
    assert detect(load_model(path, "cpu"), np.zeros((0, 120, 120), np.float32), 4) == []


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_the_number_of_threads_changes_not_a_bit(threads):
    torch.manual_seed(0)
    architecture = ARCHITECTURES["compact"]
    network = build_network(architecture).eval().to(memory_format=torch.channels_last)
    model = Model(network, architecture, {}, "", torch.device("cpu"))
    cutouts = np.random.default_rng(0).normal(size=(4, 120, 120)).astype(np.float32)
    cutouts[:, 50:60, 50:60] += 3
    results = []
    for number in (1, 2, 3):
        threads(number)
        results.append(detect(model, cutouts, 4))
    assert sum(len(found.masks) for found in results[0]) > 30
    for one, *others in zip(*results, strict=True):
        for other in others:
            assert one.scores.tobytes() == other.scores.tobytes()
            assert one.class_star.tobytes() == other.class_star.tobytes()
            for kind in ("masks", "shares"):
                for a, b in zip(getattr(one, kind), getattr(other, kind), strict=True):
                    assert (a.y0, a.x0) == (b.y0, b.x0)
                    assert a.probability.tobytes() == b.probability.tobytes()


def test_nothing_is_found_in_nothing():
    empty = np.zeros((3, 120, 120), dtype=np.float32)
    found = detect(load_model(device="cpu"), empty, batch_size=2)
    assert [len(here.masks) for here in found] == [0, 0, 0]
    assert all(here.scores.shape == (0,) for here in found)


@pytest.mark.parametrize(("room", "halved"), [(4, [4]), (1, [4, 2, 1])])
def test_too_little_device_memory_halves_the_batch(monkeypatch, room, halved):
    model = load_model(device="cpu")
    # Of these a CPU, too, takes as many as it is told.
    cutouts = np.random.default_rng(0).normal(size=(5, 48, 48)).astype(np.float32)
    cutouts[:, 15:25, 15:25] += 3
    enough = detect(model, cutouts, 8)
    forward = type(model.network).forward

    def cramped(network, images, **settings):
        if len(images) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(network, images, **settings)

    monkeypatch.setattr(type(model.network), "forward", cramped)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = detect(model, cutouts, 8)
    told = [str(one.message) for one in caught]
    assert [int(text.rpartition(" ")[2]) for text in told] == halved
    assert "memory is too small for batches of 8" in told[0]
    assert sum(len(one.scores) for one in enough) > 3
    for one, other in zip(enough, found, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)


def test_no_room_for_one_cutout_is_an_error(monkeypatch):
    model = load_model(device="cpu")

    def full(network, images, **settings):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(model.network), "forward", full)
    with pytest.warns(RuntimeWarning), pytest.raises(torch.OutOfMemoryError):
        detect(model, np.zeros((1, 120, 120), np.float32), 2)
