import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from galsep.conventions import SMALL_SIDES, STAMP_SIZE
from galsep.model import examples
from galsep.model.examples import ExampleMaker, Planned, _cut, _Placed, collate, turn
from galsep.model.heads import GALAXY, STAR


def epoch(maker, size, rng):
    return map(maker.make, maker.plan(size, rng))


@pytest.mark.parametrize("orientation", range(8))
def test_turning_a_crop_is_turning_the_stamp(orientation):
    rng = np.random.default_rng(0)
    crop = rng.random((13, 22)).astype(np.float32)
    stamp = np.zeros((STAMP_SIZE, STAMP_SIZE), dtype=np.float32)
    stamp[5:18, 80:102] = crop
    expected = np.rot90(stamp[:, ::-1] if orientation >= 4 else stamp, orientation % 4)
    turned, y0, x0 = turn(crop, 5, 80, orientation)
    painted = np.zeros_like(stamp)
    painted[y0 : y0 + turned.shape[0], x0 : x0 + turned.shape[1]] = turned
    assert np.array_equal(painted, expected)


def test_plain_examples_show_the_blends_as_they_are(pairs):
    maker = ExampleMaker(pairs, "train", augment=False, compose=False)
    example = maker.plain(3)
    rms = pairs.meta.detection_rms
    assert np.allclose(np.sinh(example.image) * rms, pairs.detection_image(3), rtol=1e-4, atol=1)
    wanted = [f for f, row in zip(pairs.footprints(3), pairs.sources(3), strict=True)
              if row["detectable"]]  # fmt: skip
    assert [f.bounds for f in example.footprints] == [f.bounds for f in wanted]
    assert all(
        np.array_equal(a.mask, b.mask) for a, b in zip(example.footprints, wanted, strict=True)
    )


def test_augmentation_turns_image_and_masks_together(pairs):
    maker = ExampleMaker(pairs, "train", augment=True, compose=False)
    plain = maker.plain(0)
    turned = next(
        e
        for e in epoch(maker, len(maker), np.random.default_rng(6))
        if np.isclose(np.sort(e.image, None), np.sort(plain.image, None)).all()
    )
    original = [f.to_full((120, 120)) for f in plain.footprints]
    for k in range(8):
        flip = (lambda a: a[:, ::-1]) if k >= 4 else (lambda a: a)
        if np.allclose(np.rot90(flip(plain.image), k % 4), turned.image):
            for mask, footprint in zip(original, turned.footprints, strict=True):
                assert np.array_equal(np.rot90(flip(mask), k % 4), footprint.to_full((120, 120)))
            return
    pytest.fail("the augmented image is no orientation of the original")


def test_composed_scenes_have_unit_noise_and_light_under_their_masks(pairs):
    maker = ExampleMaker(pairs, "train", augment=True, compose=True, max_groups=3)
    examples = list(epoch(maker, 20, np.random.default_rng(3)))
    assert len(examples) == 20
    sky = []
    for example in examples:
        light = np.sinh(example.image)
        covered = np.zeros((120, 120), dtype=bool)
        for footprint in example.footprints:
            assert footprint.area >= 5
            xmin, ymin, xmax, ymax = footprint.bounds
            assert xmin >= 0
            assert ymin >= 0
            assert max(xmax, ymax) < 120
            covered |= footprint.to_full((120, 120))
            # Masks start where the light is 1.5 sky rms.
            assert light[footprint.slices][footprint.mask].mean() > 1
        empty = light[~covered & (light != 0)]
        sky.append(np.median(np.abs(empty)) / 0.6745)
        for xmin, ymin, xmax, ymax in example.ignored:
            assert 0 <= xmin <= xmax < 120
            assert 0 <= ymin <= ymax < 120
    assert np.median(sky) == pytest.approx(1, abs=0.1)


def test_every_other_batch_of_composed_scenes_is_of_small_stamps(pairs):
    maker = ExampleMaker(pairs, "train", augment=True, compose=True, max_groups=8, small_every=2)
    batches = list(maker.batches(40, 8, np.random.default_rng(2)))
    sides = [{one.side for one in batch} for batch in batches]
    assert sides[::2] == [{120}] * 3
    # All stamps of a small batch have one side, not every batch the same.
    assert [len(side) for side in sides] == [1] * 5
    assert sides[1] | sides[3] <= set(SMALL_SIDES)
    sources = 0
    for planned, (side,) in zip(batches[1::2], sides[1::2], strict=True):
        small = [maker.make(one) for one in planned]
        for example in small:
            shapes = {array.shape[-2:] for array in (example.image, example.total, example.light)}
            assert shapes == {(side, side)}
            bounds = [footprint.bounds for footprint in example.footprints]
            for xmin, ymin, xmax, ymax in (*example.ignored, *bounds):
                assert 0 <= xmin <= xmax < side
                assert 0 <= ymin <= ymax < side
            sources += len(bounds)
        batch = collate(small)
        assert batch.images.shape == (8, 1, side, side)
        assert batch.truths.masks.shape[1:] == batch.truths.total.shape[1:] == (side, side)
    assert sources > 10
    # Blends that are shown as they are stay as large as they are.
    shown = ExampleMaker(pairs, "train", augment=True, compose=False, small_every=2)
    assert {p.side for b in shown.batches(40, 8, np.random.default_rng(2)) for p in b} == {120}


def test_small_batches_have_all_small_sides_in_turn(pairs):
    maker = ExampleMaker(pairs, "train", augment=True, compose=True, small_every=1)
    batches = maker.batches(200, 2, np.random.default_rng(2))
    assert {one.side for batch in batches for one in batch} == set(SMALL_SIDES)


def test_a_split_without_blends_has_no_examples(pairs):
    counts = {"train": 40, "validation": 0, "test": 0}
    empty = dataclasses.replace(pairs, meta=dataclasses.replace(pairs.meta, counts=counts))
    for compose in (False, True):
        maker = ExampleMaker(empty, "validation", augment=True, compose=compose)
        assert maker.plan(3, np.random.default_rng(1)) == []
        assert list(maker.batches(3, 2, np.random.default_rng(1))) == []


def test_an_epoch_shows_each_blend_once_before_any_again(pairs):
    maker = ExampleMaker(pairs, "train", augment=False, compose=False)
    n = len(maker)
    images = [example.image.tobytes() for example in epoch(maker, n, np.random.default_rng(1))]
    assert len(set(images)) == n


def test_an_epoch_of_four_times_the_blends_shows_four_orientations_of_each(pairs):
    maker = ExampleMaker(pairs, "train", augment=True, compose=False)
    examples = list(epoch(maker, 4 * len(maker), np.random.default_rng(1)))
    images = [example.image.tobytes() for example in examples]
    assert len(set(images)) == 4 * len(maker)
    # The same pixels, whatever their order, are the same blend.
    blends = [np.sort(example.image, axis=None).tobytes() for example in examples]
    assert all(blends.count(blend) == 4 for blend in set(blends))


def test_a_batch_holds_the_truth_of_all_its_stamps(pairs):
    maker = ExampleMaker(pairs, "train", augment=False, compose=False)
    examples = [maker.plain(k) for k in range(4)]
    batch = collate(examples)
    truths = batch.truths
    counts = [len(example.footprints) for example in examples]
    assert batch.images.shape == (4, 1, 120, 120)
    assert truths.boxes.shape == (4, max(counts), 4)
    assert truths.real.sum(1).tolist() == counts
    assert truths.ignored.shape == (4, max(len(example.ignored) for example in examples), 4)
    assert truths.masks.shape == truths.light.shape == (sum(counts), 120, 120)
    assert truths.masks.dtype == torch.uint8
    # A mask is where a source's own light exceeds 1.5 sky rms.
    assert torch.equal(truths.light > 1.5, truths.masks > 0)
    for stamp, place, mask in zip(truths.stamp, truths.place, truths.masks, strict=True):
        # Boxes run along pixel edges.
        rows, columns = np.nonzero(mask.numpy())
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert truths.boxes[stamp, place].tolist() == expected
    for stamp, total in enumerate(truths.total):
        assert (total >= truths.light[truths.stamp == stamp].sum(0) * 0.9999).all()


def test_a_part_of_a_batch_is_a_batch_of_its_examples(pairs):
    maker = ExampleMaker(pairs, "train", augment=True, compose=True, max_groups=3)
    examples = list(epoch(maker, 5, np.random.default_rng(1)))
    whole = collate(examples)
    parts = [whole[start : start + 2] for start in range(0, 5, 2)]
    assert [len(part) for part in parts] == [2, 2, 1]
    for part, start in zip(parts, range(0, 5, 2), strict=True):
        alone = collate(examples[start : start + 2])
        assert torch.equal(part.images, alone.images)
        for field in dataclasses.fields(alone.truths):
            mine, own = (getattr(truths, field.name) for truths in (part.truths, alone.truths))
            if field.name in ("boxes", "labels", "real", "ignored"):
                # Filled up as the whole batch is.
                mine = mine[:, : own.shape[1]]
            assert torch.equal(mine, own), field.name
        assert part.truths.real.sum() == alone.truths.real.sum()


def test_some_composed_scenes_are_empty_and_masks_are_those_of_the_light(pairs):
    maker = ExampleMaker(pairs, "train", augment=True, compose=True, max_groups=2)
    made = list(epoch(maker, 200, np.random.default_rng(5)))
    brightest = np.array([example.total.max() for example in made])
    assert 0 < np.count_nonzero(brightest == 0) < 20
    for example in made:
        for light, footprint in zip(example.light, example.footprints, strict=False):
            assert np.count_nonzero(light > 1.5) == footprint.area
            assert (light**2).sum() >= 49


@pytest.mark.parametrize("depth", [0.0, 1.5])
def test_composed_scenes_differ_in_depth(pairs, depth):
    maker = ExampleMaker(pairs, "train", augment=True, compose=True, depth=depth)
    made = epoch(maker, 300, np.random.default_rng(5))
    # Electrons behind one rms of the sky, which is what depth changes.
    deeper = 2.5 * np.log10([one.electrons / pairs.meta.detection_rms for one in made])
    assert np.mean(deeper) == pytest.approx(depth, abs=0.15)
    assert np.std(deeper) == pytest.approx(examples.DEPTH_SCATTER, rel=0.2)


def test_saturated_cores_are_flat_or_hidden(pairs, monkeypatch):
    monkeypatch.setattr(examples, "SATURATION", (20.0, 20.001))
    # Nothing else is without data.
    monkeypatch.setattr(examples, "_hidden", lambda _, side: np.zeros((side, side), dtype=bool))
    maker = ExampleMaker(pairs, "train", augment=True, compose=True, max_groups=2)
    bright = flat = hidden = 0
    for example in epoch(maker, 150, np.random.default_rng(5)):
        if not ((example.total > 40).any() or not example.usable.all()):
            continue
        bright += 1
        hidden += not example.usable.all()
        flat += example.usable.all() and np.sinh(example.image).max() < 25
    assert bright > 30
    # Seven in ten are saturated at all, and half of these hidden.
    assert hidden / bright == pytest.approx(0.35, abs=0.15)
    assert flat / bright == pytest.approx(0.35, abs=0.15)


def test_some_companions_are_dimmed(pairs, monkeypatch):
    def light(texture):
        monkeypatch.setattr(examples, "TEXTURE", texture)
        maker = ExampleMaker(pairs, "train", augment=True, compose=True, max_groups=6)
        made = epoch(maker, 100, np.random.default_rng(3))
        return np.sum([np.minimum(one.total, 20).sum() for one in made])

    assert light(1.0) < 0.75 * light(0.0)


def test_companions_have_nearly_the_same_seeing():
    rng = np.random.default_rng(1)
    seeing = rng.uniform(0.5, 1.3, 600)
    dataset = SimpleNamespace(
        split=lambda _: range(100, 600),
        meta=SimpleNamespace(detection_rms=1.0),
        psf_fwhm=seeing,
        pixel_scale=np.full(600, 0.2),
    )
    maker = ExampleMaker(dataset, "train", augment=True, compose=True, max_groups=8)
    off = []
    for position in range(200):
        first, *others = maker._companions(Planned(position, side=STAMP_SIZE), rng) or [0]
        assert not others or first == 100 + position
        off += (seeing[others] - seeing[first]).tolist()
    assert len(off) > 200
    assert np.abs(off).max() < 0.06


def test_noise_is_of_unit_rms_and_now_and_then_correlated():
    rng = np.random.default_rng(2)
    noise = [examples._noise(rng, 120) for _ in range(300)]
    assert np.std(noise, axis=(1, 2)) == pytest.approx(np.ones(300), abs=0.03)
    beside = [np.mean(one[:, 1:] * one[:, :-1]) for one in noise]
    assert np.mean(np.array(beside) > 0.1) == pytest.approx(0.15, abs=0.06)


def test_the_background_is_off_a_little(pairs):
    maker = ExampleMaker(pairs, "train", augment=True, compose=True)
    sky = []
    for example in epoch(maker, 150, np.random.default_rng(4)):
        empty = (example.total < 0.02) & example.usable
        if empty.sum() > 5000:
            sky.append(np.sinh(example.image)[empty].mean())
    # The noise alone leaves 0.01.
    assert len(sky) > 80
    assert np.std(sky) == pytest.approx(0.075, abs=0.03)


def test_a_cut_galaxy_ends_at_a_square(monkeypatch):
    monkeypatch.setattr("galsep.model.examples.CUT_SHARE", 1.0)
    y, x = np.indices((61, 61))
    light = (100 * np.exp(-np.hypot(x - 30, y - 30) / 5)).astype(np.float32)
    galaxy = _Placed(light, 10, 20, GALAXY, 0.0)
    whole = np.count_nonzero(light > 1.5)
    cut = _cut(galaxy, np.random.default_rng(1))
    inside = cut.light > 1.5
    assert (cut.y0, cut.x0) == (10, 20)
    assert cut.light[30, 30] == pytest.approx(100, rel=1e-3)
    # A square of side 0.7 to 1.1 √area, a little more for its soft edge.
    assert 0.45 * whole < np.count_nonzero(inside) < 1.4 * whole
    assert (cut.light <= light).all()
    assert cut.light[0].max() < 1e-3
    assert _cut(_Placed(light, 10, 20, STAR, 0.0), np.random.default_rng(1)).light is light
    small = _Placed(light[28:33, 28:33], 0, 0, GALAXY, 0.0)
    assert _cut(small, np.random.default_rng(1)) is small


def test_blends_crowd_together(pairs, monkeypatch):
    def spread():
        maker = ExampleMaker(pairs, "train", augment=True, compose=True, max_groups=6)
        overlaps = 0
        for example in epoch(maker, 100, np.random.default_rng(2)):
            covered = sum(f.to_full((120, 120)).astype(int) for f in example.footprints)
            overlaps += np.count_nonzero(np.asarray(covered) > 1)
        return overlaps

    monkeypatch.setattr("galsep.model.examples.CROWDING", 0.0)
    apart = spread()
    monkeypatch.setattr("galsep.model.examples.CROWDING", 0.9)
    assert spread() > 1.5 * apart
