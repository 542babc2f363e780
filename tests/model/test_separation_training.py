import dataclasses
import math
from unittest import mock

import numpy as np
import pytest
import torch

from galsep.model import separation_training as training
from galsep.model.examples import ExampleMaker
from galsep.model.inference import Found
from galsep.model.separation import SeparationNetwork
from galsep.model.separation_training import Given, Separating
from galsep.model.weights import load_model
from galsep.scene import SoftMask

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def examples(pairs):
    maker = ExampleMaker(pairs, "train", augment=False, compose=False)
    found = [maker.plain(k) for k in range(len(maker))]
    return [example for example in found if len(example.footprints) == 2][:6]


@pytest.fixture
def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return SeparationNetwork((16, 16, 16))


def true_masks(example):
    return [
        SoftMask(f.y0, f.x0, np.where(f.mask, 0.9, 0).astype(np.float32))
        for f in example.footprints
    ]


def scene(example):
    masks = true_masks(example)
    return cut_scene(example, masks, masks)


def cut_scene(example, masks, claims, fwhm=math.nan):
    pairs = zip(masks, claims, strict=True)
    return training._cut_scene(example, [Given(*pair, k) for k, pair in enumerate(pairs)], fwhm)


def test_masks_belong_to_the_sources_they_agree_with(examples):
    elsewhere = SoftMask(2, 3, np.ones((4, 5), dtype=np.float32))
    for example in examples:
        masks = [*true_masks(example)[::-1], elsewhere]
        owner, portion = training._owners(example, masks)
        assert owner.tolist() == [1, 0, -1]
        assert portion.tolist() == [1, 1, 1]
    owner, _ = training._owners(example, [])
    assert owner.shape == (0,)


def test_one_mask_twice_is_half_a_source_each(examples):
    first, second = true_masks(examples[0])
    owner, portion = training._owners(examples[0], [first, second, first])
    assert owner.tolist() == [0, 1, 0]
    assert portion.tolist() == [0.5, 1, 0.5]


def test_a_scene_holds_the_light_of_each_source(examples):
    for example in examples:
        made = scene(example)
        assert made.flux == pytest.approx(example.flux[:2])
        for index in range(2):
            y0, x0 = int(made.crops.y0[index]), int(made.crops.x0[index])
            box = example.footprints[index].slices
            here = tuple(
                slice(part.start - start, part.stop - start)
                for part, start in zip(box, (y0, x0), strict=True)
            )
            assert np.array_equal(made.light[index][here], example.light[index][box])
            assert np.array_equal(made.total[index][here], example.total[box])
            assert (made.light[index] <= made.total[index] + 1e-3).all()


def test_a_spurious_source_should_get_nothing(examples):
    spurious = SoftMask(2, 3, np.ones((4, 5), dtype=np.float32))
    masks = [*true_masks(examples[0]), spurious]
    made = cut_scene(examples[0], masks, [*masks[:2], None])
    assert made.flux[2] == 0
    assert not made.light[2].any()


def test_disturbed_sources_stay_on_their_stamp():
    rng = np.random.default_rng(4)
    values = np.linspace(0, 1, 30, dtype=np.float32).reshape(5, 6)
    corners = [SoftMask(y0, x0, values) for y0 in (0, 115) for x0 in (0, 114)]
    inside = SoftMask(50, 60, values)
    masks = [*corners, *[inside] * 4000]
    kept = training._disturbed([Given(mask, mask, k) for k, mask in enumerate(masks)], rng)
    for source in kept:
        mask, was = source.mask, masks[source.detection]
        assert 0 <= mask.y0 <= 115
        assert 0 <= mask.x0 <= 114
        assert (mask.y0 - was.y0, mask.x0 - was.x0) == source.shift
        if source.claim is None:
            assert np.array_equal(mask.probability, values > 0)
        else:
            assert (source.claim.y0, source.claim.x0) == (mask.y0, mask.x0)
    n = len(masks)
    expected = n * (1 - training.LOST) * (1 + training.DOUBLED)
    assert len(kept) == pytest.approx(expected, rel=0.03)
    outlines = sum(source.claim is None for source in kept)
    assert outlines / len(kept) == pytest.approx(training.OUTLINED, rel=0.2)
    moved = sum(source.shift != (0, 0) for source in kept)
    # One of 25 moves leads nowhere.
    assert moved / len(kept) == pytest.approx(training.MOVED * 24 / 25, rel=0.2)
    assert masks[0].probability is values


def test_an_observed_example_has_another_unit_and_the_same_light(examples):
    example = examples[0]
    rng = np.random.default_rng(0)
    seen = [training._observed(example, rng) for _ in range(40)]
    as_it_was = sum(one is example for one in seen)
    assert 4 <= as_it_was <= 20
    one = next(one for one in seen if one is not example)
    unit = example.total.max() / one.total.max()
    assert unit == pytest.approx(1, abs=0.15)
    assert unit * one.light == pytest.approx(example.light, rel=1e-5)
    assert unit * one.flux == pytest.approx(example.flux, rel=1e-5)
    # As many electrons.
    assert one.flux * one.electrons == pytest.approx(example.flux * example.electrons)
    sky = one.total < 0.1
    assert np.sinh(one.image)[sky].std() == pytest.approx(1, abs=0.05)


def test_the_psf_is_told_now_and_then_with_an_error(examples):
    rng = np.random.default_rng(2)
    assert examples[0].fwhm == pytest.approx(3.9, abs=1)
    told = np.array([training._told(4.0, rng) for _ in range(4000)])
    known = np.isfinite(told)
    assert known.mean() == pytest.approx(training.TOLD, abs=0.03)
    off = np.log(told[known] / 4)
    assert off.mean() == pytest.approx(0, abs=0.002)
    assert off.std() == pytest.approx(0.02, rel=0.1)
    assert all(math.isnan(training._told(None, rng)) for _ in range(20))


def test_each_scene_is_told_its_own_psf(examples, network):
    with torch.no_grad():
        network.psf.weight.normal_(0, 0.3)
    masks = true_masks(examples[0])
    scenes = [cut_scene(examples[0], masks, masks, fwhm) for fwhm in (2.0, 8.0, math.nan)]
    with torch.no_grad():
        together = training.scene_losses(network, scenes, CPU, autocast=False)
        alone = [training.scene_losses(network, [one], CPU, autocast=False) for one in scenes]
    for name, loss in together.items():
        each = [float(one[name]) for one in alone]
        assert len(set(each)) == 3
        assert float(loss) == pytest.approx(np.mean(each), rel=1e-5)


def losses(light, factor=1.0, share=1 - 1e-6, summary=(0.0, 0.0), flux=None):
    """Losses of one source on a crop of bare sky around it, of which a multiple is said."""
    light = torch.tensor(light)[None]
    flux = light.sum((1, 2)) if flux is None else torch.tensor([flux])
    truth = training._Truth(light, light, flux, torch.tensor([100.0]))
    said = training._Answer(
        torch.full_like(light, share), factor * light, torch.tensor([summary]), light > -1
    )
    return training._losses(said, truth)


@pytest.fixture(scope="module")
def bump():
    rows, columns = np.indices((32, 32))
    return (40 * np.exp(-((rows - 15) ** 2 + (columns - 17) ** 2) / 18)).astype(np.float32)


def test_the_truth_costs_nothing(bump):
    found = losses(bump)
    assert set(found) == set(Separating.parts)
    for name in ("loss_model", "loss_total", "loss_flux"):
        assert float(found[name]) == pytest.approx(0, abs=1e-6)
    assert float(found["loss_claim"]) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("name", ["loss_model", "loss_flux", "loss_spread"])
def test_the_farther_off_the_dearer(bump, name):
    costs = [float(losses(bump, factor)[name]) for factor in (1.0, 1.1, 1.3, 2.0)]
    assert costs == sorted(costs)
    assert costs[0] < costs[-1]


def test_light_given_away_costs(bump):
    assert float(losses(bump, share=0.5)["loss_claim"]) > 0.2


def test_the_summary_makes_up_for_what_the_crop_lacks(bump):
    flux = 1.2 * float(bump.sum())
    without = losses(bump, flux=flux)["loss_flux"]
    grown = losses(bump, flux=flux, summary=(float(np.log(1.2)), 0.0))["loss_flux"]
    assert float(grown) == pytest.approx(0, abs=1e-6)
    assert float(without) > 0.1


def test_the_best_error_is_about_as_wide_as_what_is_off(bump):
    """Too small an error costs, and so does too large a one."""
    formal = float(bump.sum() / np.sqrt((bump**2).sum())) + 1
    flux = float(bump.sum())
    costs = {}
    for spread in (-2.0, 0.0, 1.0, 2.0, 4.0):
        off = [
            float(losses(bump, summary=(0.0, spread), flux=flux + 5 * formal * z)["loss_spread"])
            for z in np.random.default_rng(1).normal(size=60)
        ]
        costs[spread] = np.mean(off)
    assert min(costs, key=costs.get) in (1.0, 2.0)


class SameOfTurned(torch.nn.Module):
    """Says of each pixel what that pixel holds."""

    def forward(self, light, layers, psf):
        return layers[:, 0], torch.relu(light), 0.1 * psf[:, :2]


@pytest.mark.parametrize("orientation", training.ORIENTATIONS)
def test_turned_crops_turn_back(orientation):
    pixels = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
    turned = training._turned(pixels, *orientation)
    assert not torch.equal(turned, pixels)
    assert torch.equal(training._turned_back(turned, *orientation), pixels)


def test_saying_the_same_of_turned_crops_costs_nothing(examples, network):
    scenes = [scene(example) for example in examples[:3]]

    def loss(network, consistency):
        found = training.scene_losses(network, scenes, CPU, autocast=False, consistency=consistency)
        return {name: float(part) for name, part in found.items()}

    with torch.no_grad():
        assert loss(SameOfTurned(), 4.0)["loss_consistency"] == pytest.approx(0, abs=1e-9)
        without, once, twice = (loss(network, consistency) for consistency in (0.0, 1.0, 2.0))
    first, second = (found.pop("loss_consistency") for found in (once, twice))
    assert second == pytest.approx(2 * first)
    assert first > 1e-3
    # Nothing else is changed by it.
    assert without == once == twice


def test_a_network_learns_to_say_the_same(examples, network):
    scenes = [scene(example) for example in examples[:3]]
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    history = []
    for _ in range(12):
        found = training.scene_losses(network, scenes, CPU, autocast=False, consistency=1.0)
        optimizer.zero_grad()
        found["loss_consistency"].backward()
        optimizer.step()
        history.append(float(found["loss_consistency"].detach()))
    assert history[-1] < 0.5 * history[0]


def test_another_band_shows_the_same_sources(examples):
    example = dataclasses.replace(examples[0], usable=examples[0].usable.copy())
    example.usable[:20] = False
    rng = np.random.default_rng(5)
    seen = [training._in_another_band(example, rng) for _ in range(60)]
    growth = np.array([one.flux / example.flux for one in seen])
    assert np.median(-2.5 * np.log10(growth)) == pytest.approx(training.COLOUR, abs=0.25)
    for one, factors in zip(seen, growth, strict=True):
        assert one.light == pytest.approx(example.light * factors[:, None, None], rel=1e-5)
        assert one.total == pytest.approx(
            example.total + one.light.sum(0) - example.light.sum(0), abs=1e-2
        )
        assert not one.image[:20].any()
    # The noise is its own, as wide as the sky's.
    sky = (example.total < 0.1) & example.usable
    first, second = (np.sinh(one.image)[sky] for one in seen[:2])
    assert first.std() == pytest.approx(1, abs=0.05)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05
    assert abs(np.corrcoef(first, np.sinh(example.image)[sky])[0, 1]) < 0.05


def test_scenes_do_not_mix(examples, network):
    scenes = [scene(example) for example in examples]
    with torch.no_grad():
        together = training.scene_losses(network, scenes, CPU, autocast=False)
        alone = [training.scene_losses(network, [one], CPU, autocast=False) for one in scenes]
    for name, loss in together.items():
        assert float(loss) == pytest.approx(np.mean([float(one[name]) for one in alone]), rel=1e-3)


def test_rivals_take_light_from_each_other(examples, network):
    """The shares of one scene are normalised together: without its neighbour, a source has more."""
    masks = true_masks(examples[0])
    with torch.no_grad():
        both = cut_scene(examples[0], masks, masks)
        one = cut_scene(examples[0], masks[:1], masks[:1])
        pair = training.scene_losses(network, [both], CPU, autocast=False)
        single = training.scene_losses(network, [one], CPU, autocast=False)
    assert float(pair["loss_model"]) != pytest.approx(float(single["loss_model"]), rel=1e-3)


def test_nothing_found_can_be_learnt_from(examples, network):
    nothing = cut_scene(examples[0], [], [])
    found = training.scene_losses(network, [nothing], CPU, autocast=False)
    sum(found.values()).backward()
    assert all(float(loss.detach()) == 0 for loss in found.values())
    assert all((p.grad == 0).all() for p in network.parameters())


def test_training_on_one_batch_lowers_its_loss(examples, network):
    scenes = [scene(example) for example in examples[:3]]
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    history = []
    for _ in range(25):
        found = training.scene_losses(network, scenes, CPU, autocast=False)
        loss = sum(found.values())
        optimizer.zero_grad()
        loss.backward()
        if not history:
            reached = [name for name, p in network.named_parameters() if p.grad.abs().sum() > 0]
        optimizer.step()
        history.append(float(loss.detach()))
    # What is behind the zeros that residuals begin with is reached from the second step on.
    assert {"stem.weight", "out.weight", "summary.2.weight"} <= set(reached)
    assert history[-1] < history[0] - 0.3


def test_the_weight_of_consistency_arrives(examples, network):
    model = load_model(device="cpu")
    for weight in (0.0, 3.0):
        objective = Separating(model, weight)
        with torch.no_grad():
            found = objective(network, objective.prepare(examples[:2]), CPU, autocast=False)
        assert found.keys() == objective.parts.keys()
        assert ("loss_consistency" in found) == (weight > 0)


def test_some_scenes_are_of_another_band(examples):
    model = load_model(device="cpu")
    example = examples[0]
    seen = training.Seen(example, np.random.default_rng(0))
    found = Found([], [], np.zeros(0), np.zeros(0))
    shown = []
    with mock.patch.object(training, "_cut_scene", lambda one, *_: shown.append(one)):
        for seed in range(400):
            training.make_scene(
                model, dataclasses.replace(seen, rng=np.random.default_rng(seed)), found
            )
    other = np.mean([one is not example for one in shown])
    assert other == pytest.approx(training.OTHER_BAND, abs=0.05)


def test_the_detector_says_what_is_seen(examples, network):
    model = load_model(device="cpu")
    objective = Separating(model)

    def loss(seed):
        seeded = [dataclasses.replace(example, seed=seed) for example in examples[:2]]
        with torch.no_grad():
            return objective(network, objective.prepare(seeded), CPU, autocast=False)

    first, again, other = loss(1), loss(1), loss(3)
    assert set(first) == set(Separating.parts)
    assert all(torch.isfinite(part) for part in first.values())
    assert first == again
    assert first != other


def test_of_an_empty_stamp_nothing_is_asked(examples, network):
    zero = np.zeros((120, 120), dtype=np.float32)
    empty = dataclasses.replace(
        examples[0],
        image=zero,
        footprints=[],
        labels=[],
        light=np.zeros((0, 120, 120), dtype=np.float32),
        flux=np.zeros(0),
        total=zero,
    )
    objective = Separating(load_model(device="cpu"))
    with torch.no_grad():
        found = objective(network, objective.prepare([empty]), CPU, autocast=False)
    assert all(torch.isfinite(part) for part in found.values())
