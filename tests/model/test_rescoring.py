"""The second look at candidates, and how it is learnt."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from galsep.model.examples import ExampleMaker
from galsep.model.inference import Found, calibrated, candidates, detect
from galsep.model.rescoring import (
    CANDIDATE,
    LAYERS,
    SIDE,
    RescoringNetwork,
    cut_candidates,
    log_odds,
    rescore,
)
from galsep.model.rescoring_training import NEITHER, REAL, SPURIOUS, Rescoring, _real
from galsep.model.weights import load_model
from galsep.scene import SoftMask


def blob(y, x, side=9, value=0.8):
    return SoftMask(y, x, np.full((side, side), value, dtype=np.float32))


@pytest.fixture
def three():
    """A bright candidate, a fainter one on it, and one at the cutout's corner."""
    image = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    masks = [blob(20, 20), blob(26, 24), blob(0, 55)]
    shares = [blob(20, 20, value=0.5), blob(26, 24, value=0.25), blob(0, 55, value=1.0)]
    return image, masks, shares, np.array([0.9, 0.4, 0.6])


def painted(mask, score=1.0, shape=(64, 64)):
    full = np.zeros(shape, dtype=np.float32)
    full[mask.slices] = score * mask.probability
    return full


def padded(image, y0, x0):
    wide = np.pad(image, SIDE)
    return wide[y0 + SIDE : y0 + 2 * SIDE, x0 + SIDE : x0 + 2 * SIDE]


def test_each_candidate_is_shown_beside_better_and_worse_ones(three):
    image, masks, shares, scores = three
    pixels, layers = cut_candidates(image, masks, shares, scores)
    assert pixels.shape == (3, SIDE, SIDE)
    assert layers.shape == (3, LAYERS, SIDE, SIDE)
    better = {0: [], 1: [0, 2], 2: [0]}
    for k, mask in enumerate(masks):
        corner = mask.y0 + (9 - SIDE) // 2, mask.x0 + (9 - SIDE) // 2
        claims = [replace(m, probability=m.probability * s.probability)
                  for m, s in zip(masks, shares, strict=True)]  # fmt: skip
        worse = set(range(3)) - {k, *better[k]}
        expected = [
            painted(mask),
            painted(claims[k]),
            sum((painted(masks[j], scores[j]) for j in better[k]), np.zeros((64, 64))),
            sum((painted(claims[j], scores[j]) for j in better[k]), np.zeros((64, 64))),
            sum((painted(masks[j], scores[j]) for j in worse), np.zeros((64, 64))),
        ]
        assert np.array_equal(pixels[k], padded(image, *corner))
        for layer, full in zip(layers[k], expected, strict=True):
            assert layer == pytest.approx(padded(full, *corner), abs=1e-6)


def test_an_untrained_network_leaves_scores_as_they_are(three):
    image, masks, shares, scores = three
    looked = rescore(
        RescoringNetwork().eval(), *cut_candidates(image, masks, shares, scores), scores
    )
    assert looked == pytest.approx(scores, abs=1e-6)


@pytest.fixture
def opinionated():
    """A network that says something."""
    torch.manual_seed(5)
    network = RescoringNetwork().eval().requires_grad_(False)
    torch.nn.init.normal_(network.out.weight, std=3.0)
    return network


def test_a_candidate_does_not_depend_on_what_shares_its_batch(three, opinionated):
    image, masks, shares, scores = three
    pixels, layers = cut_candidates(image, masks, shares, scores)
    together = rescore(opinionated, np.tile(pixels, (9, 1, 1)), np.tile(layers, (9, 1, 1, 1)),
                       np.tile(scores, 9))  # fmt: skip
    for k in range(3):
        one = slice(k, k + 1)
        alone = rescore(opinionated, pixels[one], layers[one], scores[one])
        assert (together[k::3] == alone).all()
    assert np.abs(log_odds(together[:3]) - log_odds(scores)).max() > 0.1


def test_light_of_any_size_gives_a_finite_score(three, opinionated):
    _, masks, shares, scores = three
    for value in (0.0, 30.0, 88.0, -40.0):
        image = np.full((64, 64), value, dtype=np.float32)
        looked = rescore(opinionated, *cut_candidates(image, masks, shares, scores), scores)
        assert np.isfinite(looked).all()
    nothing = rescore(opinionated, *cut_candidates(image, [], [], scores[:0]), scores[:0])
    assert nothing.shape == (0,)


def test_detection_with_a_second_look(pairs, opinionated):
    model = load_model(device="cpu")
    plain = replace(model, rescorer=None)
    looking = replace(model, rescorer=opinionated)
    images = [ExampleMaker(pairs, "train", augment=False, compose=False).plain(k).image
              for k in range(6)]  # fmt: skip
    before, after = (detect(one, images, 4) for one in (plain, looking))
    changed = 0
    for image, old, new in zip(images, before, after, strict=True):
        index, pixels, layers = candidates(old, image)
        expected = old.scores.copy()
        expected[index] = rescore(opinionated, pixels, layers, old.scores[index])
        assert new.scores == pytest.approx(expected, abs=1e-9)
        assert (old.scores[index] >= CANDIDATE).all()
        changed += int((np.abs(new.scores - old.scores) > 0.01).sum())
    assert changed > 6
    # What is to be left out is so by its new score.
    least = 0.5
    for kept, new in zip(detect(looking, images, 4, least), after, strict=True):
        sure = calibrated(looking, new.scores) >= least + 0.001
        assert set(new.scores[sure].tolist()) <= set(kept.scores.tolist())
        assert (calibrated(looking, kept.scores) >= least - 0.001).all()
        assert len(kept.masks) == len(kept.shares) == len(kept.scores) == len(kept.class_star)


def test_only_the_best_candidate_of_a_source_is_real(pairs):
    example = next(
        one
        for k in range(20)
        if (one := ExampleMaker(pairs, "train", augment=False, compose=False).plain(k)).footprints
    )
    there = example.footprints[0]
    y0, x0 = there.y0, there.x0
    own = SoftMask(y0, x0, there.mask.astype(np.float32))
    far = SoftMask((y0 + 60) % 100, (x0 + 60) % 100, np.ones((4, 4), dtype=np.float32))
    masks = [own, replace(own, probability=own.probability * 0.9), far]
    shares = [replace(mask, probability=np.ones_like(mask.probability)) for mask in masks]
    found = Found(masks, shares, np.array([0.3, 0.7, 0.5]), np.zeros(3))
    alone = replace(example, footprints=[there], light=example.light[:1], ignored=[])
    assert _real(alone, found, np.arange(3)).tolist() == [SPURIOUS, REAL, SPURIOUS]
    # Of a source that is too faint to be wanted, a candidate is neither.
    faint = replace(example, footprints=[], light=example.light[:1], ignored=[])
    assert _real(faint, found, np.arange(3)).tolist().count(NEITHER) >= 1
    assert _real(faint, found, np.arange(3))[2] == SPURIOUS
    nothing = replace(example, footprints=[], light=example.light[:0], ignored=[])
    assert _real(nothing, found, np.arange(3)).tolist() == [SPURIOUS] * 3
    assert _real(alone, found, np.arange(0)).tolist() == []


def test_the_loss_falls(pairs):
    objective = Rescoring(load_model(device="cpu"))
    maker = ExampleMaker(pairs, "train", augment=True, compose=True, max_groups=3)
    batch = objective.prepare([maker.make(one) for one in maker.plan(24, np.random.default_rng(0))])
    torch.manual_seed(0)
    network = RescoringNetwork()
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss = objective(network, batch, torch.device("cpu"), autocast=False)["loss_rescoring"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_a_batch_on_which_nothing_is_found_costs_nothing(pairs, monkeypatch):
    objective = Rescoring(load_model(device="cpu"))
    maker = ExampleMaker(pairs, "train", augment=False, compose=False)
    batch = objective.prepare([maker.plain(0)])
    empty = Found([], [], np.zeros(0), np.zeros(0))
    monkeypatch.setattr("galsep.model.rescoring_training.detect", lambda *_: [empty])
    network = RescoringNetwork()
    loss = objective(network, batch, torch.device("cpu"), autocast=False)["loss_rescoring"]
    loss.backward()
    assert loss.item() == 0
