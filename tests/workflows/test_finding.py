"""The way from an array to sources, with the packaged weights."""

import numpy as np
import pytest

from galsep.config import DeblendConfig, SimulateConfig
from galsep.flags import Flag
from galsep.io.dataset import load_dataset
from galsep.model.weights import load_model
from galsep.workflows.finding import find_sources
from galsep.workflows.simulate import simulate


@pytest.fixture(scope="module")
def model():
    return load_model(device="cpu")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "pairs"
    simulate(folder, SimulateConfig(n=20, seed=77, workers=1))
    return load_dataset(folder)


def one(image, model, **options):
    return next(find_sources([image], model, DeblendConfig(**options)))


def test_most_detectable_galaxies_are_found_where_they_are(pairs, model):
    found_all = list(find_sources((pairs.detection_image(i) for i in range(20)), model))
    total = near = 0
    for blend, found in enumerate(found_all):
        truth = pairs.sources(blend)
        for row in truth[truth["detectable"]]:
            distance = np.hypot(found.detections.x - row["x"], found.detections.y - row["y"])
            total += 1
            near += bool((distance < 5).any())
    assert near / total > 0.8
    assert sum(len(found.detections) for found in found_all) < 1.3 * total


def test_label_map_masks_and_counts_agree(pairs, model):
    for found in find_sources((pairs.detection_image(i) for i in range(5)), model):
        footprints = found.detections.footprints
        count = np.zeros(found.segm.shape, dtype=int)
        for label, footprint in enumerate(footprints, 1):
            full = footprint.to_full(found.segm.shape)
            count += full
            # A source owns only pixels of its own mask.
            assert not (found.segm == label)[~full].any()
        assert np.array_equal(count, found.noverlap)
        assert np.array_equal(found.segm > 0, count > 0)


def test_light_is_shared_out_in_full(pairs, model):
    found = one(pairs.detection_image(0), model)
    covered = found.noverlap > 0
    assert found.detections.flux.sum() == pytest.approx(found.light[covered].sum(), rel=1e-4)


def test_every_sep_detection_is_accounted_for(pairs, model):
    for found in find_sources((pairs.detection_image(i) for i in range(10)), model):
        parents = found.parents
        rows = np.bincount(found.parent, minlength=len(parents.blobs) + 1)[1:]
        assert np.array_equal(parents.n_child, rows)
        assert (parents.n_child[parents.status == "split"] > 1).all()
        assert (parents.n_child[np.isin(parents.status, ["confirmed", "missed"])] == 1).all()
        rejected = parents.status == "rejected"
        assert (parents.n_child[rejected] == 0).all()
        assert (parents.blobs.snr[rejected] < 7).all()


def test_the_answer_does_not_depend_on_the_company(pairs, model):
    images = [pairs.detection_image(i) for i in range(6)]
    together = list(find_sources(images, model))
    alone = one(images[3], model)
    assert np.array_equal(alone.segm, together[3].segm)
    assert np.array_equal(alone.detections.scores, together[3].detections.scores)


def test_masked_pixels_belong_to_nobody(pairs, model):
    image = pairs.detection_image(0).astype(float)
    row, column = np.unravel_index(image.argmax(), image.shape)
    image[row - 1 : row + 2, column] = np.nan
    found = one(image, model)
    hidden = np.isnan(image)
    assert (found.segm[hidden] == 0).all()
    assert (found.light[hidden] == 0).all()
    nearest = np.hypot(found.detections.x - column, found.detections.y - row).argmin()
    assert found.flags[nearest] & Flag.MASKED_PIXELS


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((150, 130)),
        np.full((130, 150), 3.5),
        np.full((140, 140), np.nan),
        np.ones((1, 1)),
        np.random.default_rng(0).normal(size=(119, 121)),
        np.random.default_rng(0).normal(size=(300, 1)),
    ],
    ids=["zeros", "constant", "nan", "one-pixel", "small", "column"],
)
def test_odd_images_give_a_defined_result(image, model):
    found = one(image, model)
    assert found.segm.shape == image.shape
    assert len(found.detections) <= 1


def test_an_object_larger_than_a_cutout_keeps_seps_outline(model):
    y, x = np.indices((400, 400))
    radius = np.hypot((x - 200) / 1.2, y - 190)
    image = np.random.default_rng(1).normal(size=(400, 400)) + 3000 * np.exp(-radius / 22)
    found = one(image, model)
    large = np.flatnonzero(found.flags & Flag.LARGER_THAN_CUTOUT)
    assert len(large) == 1
    assert found.detections.x[large[0]] == pytest.approx(200, abs=2)
    assert found.detections.y[large[0]] == pytest.approx(190, abs=2)
    assert found.detections.footprints[large[0]].area > np.pi * 60**2


def test_the_threshold_cuts_scores(pairs, model):
    image = pairs.detection_image(1)
    loose = one(image, model, threshold=0.1)
    strict = one(image, model, threshold=0.9)
    network = (strict.flags & (Flag.NETWORK_MISSED | Flag.LARGER_THAN_CUTOUT)) == 0
    assert (strict.detections.scores[network] >= 0.9).all()
    assert network.sum() <= len(loose.detections)
