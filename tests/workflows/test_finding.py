"""The way from an array to sources, with the packaged weights."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from galsep.config import DeblendConfig, SimulateConfig
from galsep.flags import Flag
from galsep.image.light import Frame, without_background
from galsep.io.dataset import load_dataset
from galsep.model.fluxes import FluxFit
from galsep.model.separation import SeparationNetwork
from galsep.model.weights import Model, load_model
from galsep.scene import Footprint
from galsep.workflows import finding
from galsep.workflows.finding import STATUSES, find_sources
from galsep.workflows.judging import match_detectable
from galsep.workflows.simulate import simulate


@pytest.fixture(scope="module")
def model():
    return load_model(device="cpu")


@pytest.fixture(scope="module")
def separating(model):
    """With a small separation network that has learnt nothing: what must hold, holds for it, too.

    It takes the flux for the sum of the model, and is told nothing of the PSF, whose measured width
    changes by roundings.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = SeparationNetwork((16, 16, 16))
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, 0, 0.08)
        for parameter in (*network.summary[-1].parameters(), *network.psf.parameters()):
            torch.nn.init.zeros_(parameter)
    info = {k: v for k, v in model.info.items() if k != "separation"}
    return dataclasses.replace(model, separator=network.eval().requires_grad_(False), info=info)


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
    overlaps = 0
    for found in find_sources((pairs.detection_image(i) for i in range(5)), model):
        footprints = found.detections.footprints
        assert footprints
        count = np.zeros(found.segm.shape, dtype=int)
        for label, footprint in enumerate(footprints, 1):
            full = footprint.to_full(found.segm.shape)
            count += full
            # A source owns only pixels of its own mask.
            assert not (found.segm == label)[~full].any()
        assert np.array_equal(count, found.noverlap)
        assert np.array_equal(found.segm > 0, count > 0)
        overlaps += np.count_nonzero(count > 1)
    assert overlaps


def test_without_a_separation_network_masks_share_their_light(pairs, model):
    found = one(pairs.detection_image(0), dataclasses.replace(model, separator=None))
    covered = found.noverlap > 0
    assert found.detections.flux.sum() == pytest.approx(found.light[covered].sum(), rel=1e-4)


@pytest.fixture(scope="module")
def faint():
    """Sources that SEP finds, of about the S/N from which such are kept that it alone finds."""
    image = np.random.default_rng(3).normal(size=(160, 160))
    rows, columns = np.indices(image.shape)
    for x, y in itertools.product((30, 80, 130), repeat=2):
        image += (1.3 + x / 100) * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 8)
    return image


# At the second, nothing of the network's counts.
@pytest.mark.parametrize(
    ("threshold", "some"), [(None, {"confirmed", "split"}), (1.1, {"missed", "rejected"})]
)
def test_every_sep_detection_is_accounted_for(pairs, faint, model, threshold, some):
    images = [faint, *(pairs.detection_image(i) for i in range(10))]
    seen = set()
    for found in find_sources(images, model, threshold=threshold):
        parents = found.parents
        seen |= set(parents.status.tolist())
        rows = np.bincount(found.parent, minlength=len(parents.blobs) + 1)[1:]
        assert np.array_equal(parents.n_child, rows)
        assert (parents.n_child[parents.status == "split"] > 1).all()
        assert (parents.n_child[np.isin(parents.status, ["confirmed", "missed"])] == 1).all()
        rejected = parents.status == "rejected"
        assert (parents.n_child[rejected] == 0).all()
        assert (parents.blobs.snr[rejected] < 7).all()
        assert (parents.blobs.snr[parents.status == "missed"] >= 7).all()
    assert some <= seen <= set(STATUSES)


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


PLACES = (
    (0.2, 0.3, 90), (0.28, 0.33, 60), (0.7, 0.25, 140), (0.6, 0.75, 300), (0, 0.7, 80),
    *((0.1 + 0.2 * k, 0.1 + 0.4 * j, 200) for k in range(4) for j in range(3)),
)  # fmt: skip


def crowd(shape, width, seed=6):
    """Sources of one width, some of them overlapping and one at the edge, in white noise."""
    image = np.random.default_rng(seed).normal(20, 1, shape)
    rows, columns = np.indices(shape)
    for x, y, peak in PLACES:
        distance = np.hypot(columns - x * shape[1], rows - y * shape[0])
        image += peak * np.exp(-((distance / width) ** 2) / 2)
    return image


def with_holes(image):
    """A masked array with NaN, a masked column through a source, and infinities."""
    image = image.copy()
    height, width = image.shape
    image[height // 3 : height // 3 + 9, : width // 2] = np.nan
    image[5, 5:9] = np.inf
    masked = np.ma.masked_array(image, np.zeros(image.shape, dtype=bool))
    masked[:, int(0.7 * width)] = np.ma.masked
    return masked


def add_up(parts, light):
    """Sums over the sources: light, shares and models."""
    total, shares, models = np.zeros((3, *light.shape))
    for part in parts:
        total[part.slices] += part.share * light[part.slices]
        shares[part.slices] += part.share
        models[part.slices] += part.model
    return total, shares, models


@pytest.mark.parametrize("binning", [1, 2])
@pytest.mark.parametrize("network", ["packaged", "small"])
def test_light_is_conserved(model, separating, network, binning):
    shape, width = ((150, 141), 2.2) if binning == 1 else ((403, 391), 6.0)
    data = with_holes(crowd(shape, width))
    found = one(data, separating if network == "small" else model)
    assert found.domain.binning == binning
    assert len(found.separated) == len(found.detections) >= 3
    for part in found.separated:
        assert part.share.min() >= 0
        assert part.model.min() >= 0
        assert np.isfinite(part.model).all()
        assert part.slices[0].stop <= shape[0]
        assert part.slices[1].stop <= shape[1]
    hidden = np.ma.getmaskarray(data) | ~np.isfinite(data.data)
    light, shares, models = add_up(found.separated, found.light)
    residual = found.light * (1 - shares)
    assert shares.max() <= 1 + 1e-6
    assert (light[hidden] == 0).all()
    assert (models[hidden] == 0).all()
    whole = found.background + light + residual
    assert whole[~hidden] == pytest.approx(data.data[~hidden], abs=1e-3)
    assert models.sum() > 0


@pytest.mark.parametrize("binning", [1, 2])
def test_fluxes_are_in_the_images_unit(separating, binning):
    shape, width = ((150, 141), 2.2) if binning == 1 else ((402, 390), 6.0)
    image = crowd(shape, width)
    found = one(image, separating)
    assert found.domain.binning == binning
    # The network takes the flux for the sum of the model; that of averaged pixels loses nothing.
    flux = np.array([part.flux for part in found.separated])
    sums = np.array([part.model.sum(dtype=float) for part in found.separated])
    assert flux == pytest.approx(sums, rel=1e-5 if binning == 1 else 0.02)
    assert found.photometry.flux == pytest.approx(flux)
    assert (found.photometry.flux_err > 0).all()
    scaled = one(1000 * image, separating)
    # By roundings, a pixel at the edge of a mask may belong to it or not.
    assert scaled.photometry.flux == pytest.approx(1000 * flux, rel=2e-3)
    assert scaled.photometry.flux_err == pytest.approx(1000 * found.photometry.flux_err, rel=2e-3)


def test_neighbours_that_meet_are_separated_alike_in_the_same_and_another_image(separating):
    image = crowd((150, 141), 2.2)
    alone = one(image, separating)
    again = list(find_sources([image[::-1].copy(), image], separating))[1]
    for mine, theirs in zip(alone.separated, again.separated, strict=True):
        assert np.array_equal(mine.share, theirs.share)
        assert (mine.flux, mine.flux_err) == (theirs.flux, theirs.flux_err)


def test_fluxes_are_told_the_psf_of_the_image_that_sources_are_found_in(pairs, model, monkeypatch):
    image = pairs.detection_image(0)
    told = []

    def look(features):
        told.append(np.exp(features[-2]) if features[-1] else None)
        return 0.0, 0.0

    monkeypatch.setattr(Model, "flux_fit", FluxFit((1.0,), (0.0,), 1.0, look, (0.0,)))

    def seen(binning=1, separate_bands=False, **more):
        told.clear()
        pixels = np.kron(image, np.ones((binning, binning)))
        frame = Frame(pixels, np.zeros(pixels.shape, dtype=bool), **more)
        next(find_sources([frame], model, DeblendConfig(), separate_bands=separate_bands))
        return {value and round(value, 3) for value in told}

    other = Frame(image, np.zeros(image.shape, dtype=bool))
    band = without_background(other, 64)
    assert seen() == {None}
    assert seen(psf_fwhm=4.0) == {4.0}
    assert seen(psf_fwhm=4.0, bands={"g": band}) == {4.0}
    # Of a band's PSF nothing is known.
    assert seen(psf_fwhm=4.0, bands={"g": band}, separate_bands=True) == {4.0, None}
    assert seen(psf_fwhm=4.0, measured=other) == {None, 4.0}
    # Wider than the networks know, they see averages of 2×2 pixels.
    assert seen(2, psf_fwhm=14.0) == {7.0}


def test_isolated_galaxies_have_their_flux(pairs, model):
    """What any weights must manage: bright galaxies alone on a stamp, together within a tenth."""
    ratio = []
    for blend in range(20):
        rows = pairs.sources(blend)
        brightest = rows["snr"].argmax()
        if rows["snr"][brightest] < 60 or (len(rows) > 1 and rows["purity"][brightest] < 0.98):
            continue
        found = one(pairs.detection_image(blend), model)
        x, y = rows["x"][brightest], rows["y"][brightest]
        nearest = np.hypot(found.detections.x - x, found.detections.y - y).argmin()
        ratio.append(found.photometry.flux[nearest] / rows["flux"][brightest, 0])
    assert len(ratio) >= 3
    assert np.median(ratio) == pytest.approx(1, abs=0.1)


@pytest.fixture(scope="module")
def stars(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "stars"
    simulate(folder, SimulateConfig(n=60, stars=0.5, max_mag=23.5, seed=8, workers=1))
    return load_dataset(folder)


def classes(data, model, **options):
    """Of sources found: whether they are stars, and how probable that is said to be."""
    images = (data.detection_image(blend) for blend in range(len(data)))
    star, said = [], []
    for blend, found in enumerate(find_sources(images, model, DeblendConfig(**options))):
        i, j = match_detectable(data, blend, found.detections).pairs.T
        star.append(data.sources(blend)["class"][i] == "star")
        said.append(found.detections.class_star[j])
    return np.concatenate(star), np.concatenate(said)


def test_stars_are_told_from_galaxies_where_the_psf_is_known(stars, model):
    fwhm = stars.fwhm(0)
    star, said = classes(stars, model, psf_fwhm=fwhm)
    assert (said[star] > 0.5).mean() > 0.85
    assert (said[~star] < 0.5).mean() > 0.85
    # By the light, not by Mask R-CNN alone: with a much narrower PSF all are galaxies.
    assert (classes(stars, model, psf_fwhm=fwhm / 2)[1] < 0.5).mean() > 0.9
    unknown = classes(stars, model)[1]
    assert np.abs(said - star).mean() < np.abs(unknown - star).mean()


def test_what_the_network_has_not_found_has_no_class(model):
    image = np.random.default_rng(2).normal(size=(240, 240)).astype(np.float32)
    rows, columns = np.indices(image.shape)
    image += 30 * np.exp(-(((rows - 120) / 60.0) ** 2) - ((columns - 120) / 60.0) ** 2)
    found = one(image, model, psf_fwhm=3.5)
    outlines = found.tile == -1
    assert outlines.any()
    assert np.isnan(found.detections.class_star[outlines]).all()


def test_classes_are_those_of_the_image_that_sources_are_found_in(stars, model):
    image = stars.detection_image(1)
    frame = Frame(image, np.zeros(image.shape, dtype=bool), psf_fwhm=stars.fwhm(1))
    noise = np.random.default_rng(3).normal(0, stars.meta.detection_rms, image.shape)
    elsewhere = Frame(noise.astype(np.float32), frame.mask)
    plain, dual = find_sources([frame, dataclasses.replace(frame, measured=elsewhere)], model)
    assert len(plain.detections) > 0
    assert np.allclose(plain.detections.class_star, dual.detections.class_star, rtol=1e-6)
    assert not np.allclose(plain.detections.flux, dual.detections.flux, rtol=0.5)


def test_classes_are_told_where_the_network_sees_averaged_pixels(stars, model):
    wide = dataclasses.replace(model, info=model.info | {"psf_fwhm_range": [1.0, 2.0]})
    fwhm = stars.fwhm(0)
    found = next(find_sources([stars.detection_image(0)], wide, DeblendConfig(psf_fwhm=fwhm)))
    assert found.domain.binning == 2
    star, said = classes(stars, wide, psf_fwhm=fwhm)
    assert said[star].mean() > 0.6
    assert said[~star].mean() < 0.4


def test_without_a_separation_network_classes_are_the_detectors(stars, model):
    plain = dataclasses.replace(model, separator=None)
    bare = dataclasses.replace(plain, info={**model.info, "class_fit": None})
    one, other = (classes(stars, given, psf_fwhm=stars.fwhm(0))[1] for given in (plain, bare))
    assert np.array_equal(one, other)


def test_unusable_pixels_at_a_corner_belong_to_a_source():
    one = Footprint(0, 3, np.ones((2, 2), dtype=bool))
    for (y, x), touches in (((2, 5), True), ((2, 3), True), ((0, 4), True), ((3, 4), False)):
        hidden = np.zeros((8, 9), dtype=bool)
        hidden[y, x] = True
        box, pixels, _ = finding.with_hidden_neighbours(one, [hidden, np.zeros_like(hidden)])
        whole = np.zeros(hidden.shape, dtype=bool)
        whole[box] = pixels
        assert whole[y, x] == touches
        whole[y, x] = False
        assert whole.sum() == 4 - (y < 2)
