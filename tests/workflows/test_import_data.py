"""``galsep import``: the truth that goes in comes out, and no source is in two splits."""

import json

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from PIL import Image
from pycocotools import mask as coco_mask

from galsep.config import ImportConfig, SimulateConfig
from galsep.conventions import MASK_THRESHOLD
from galsep.errors import (
    AnnotationError,
    ImageError,
    OutputError,
    OutputExistsError,
    UsageError,
)
from galsep.io.claim import claimed
from galsep.io.dataset import CLAIM, load_dataset
from galsep.workflows.import_data import import_data, split_stamps
from galsep.workflows.reporting import Reporter
from galsep.workflows.simulate import simulate


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    folder = tmp_path_factory.mktemp("field")
    config = SimulateConfig(
        field="420x700", galaxies="1-2", density=60.0, stars=0.2, seed=8, workers=1
    )
    simulate(folder, config)
    return folder


def truth_of(folder):
    """Truth rows of a field, and each source's light with its place."""
    with fits.open(folder / "truth.fits") as hdus:
        rows, flat, labels = hdus["TRUTH"].data, hdus["LIGHT"].data, hdus["SEGM"].data
    lights = [
        flat[row["offset"] : row["offset"] + row["ny"] * row["nx"]].reshape(row["ny"], row["nx"])
        for row in rows
    ]
    return rows, lights, labels


@pytest.fixture(scope="module")
def labelled(field, tmp_path_factory):
    """The field as a data set, by its label map."""
    folder = tmp_path_factory.mktemp("set")
    truth = field / "truth.fits"
    config = ImportConfig(labels=f"{truth}[SEGM]", classes=f"{truth}[TRUTH]", zeropoint=27.0)
    result = import_data([field / "field_i.fits"], folder, config)
    return result, load_dataset(folder)


def places(data, image):
    """Where in the image each stamp lies: where it agrees with it, but for the background."""
    found = []
    for stamp in data.images[:, 0]:
        y, x = np.unravel_index(stamp.argmax(), stamp.shape)
        corners = np.argwhere(np.abs(image - stamp[y, x]) < 0.1 * stamp[y, x]) - (y, x)
        inside = np.all((corners >= 0) & (corners <= np.subtract(image.shape, 120)), axis=1)
        misfit = {(y0, x0): np.std(image[y0 : y0 + 120, x0 : x0 + 120] - stamp)
                  for y0, x0 in corners[inside].tolist()}  # fmt: skip
        found.append(min(misfit, key=misfit.get))
        assert misfit[found[-1]] < 0.3 * data.meta.detection_rms
    return found


def labels_by_split(data, image, labels):
    """Labels that the stamps of each split show."""
    corner = places(data, image)
    return {
        split: {
            label
            for y0, x0 in (corner[blend] for blend in data.split(split))
            for label in np.unique(labels[y0 : y0 + 120, x0 : x0 + 120])
            if label
        }
        for split in ("train", "validation", "test")
    }


def test_a_field_becomes_stamps_with_its_truth(field, labelled):
    result, data = labelled
    image = fits.getdata(field / "field_i.fits")
    rows, _, labels = truth_of(field)
    assert result.counts == data.meta.counts
    assert sum(result.counts.values()) == len(data) > 15
    assert result.sources == len(data.truth)
    with fits.open(field / "field_i.fits") as hdus:
        assert data.meta.detection_rms == pytest.approx(hdus[0].header["SKYRMS"], rel=0.05)
    assert data.meta.bands == ("i",)
    assert data.pixel_scale == pytest.approx(0.2, rel=1e-4)
    assert np.median(data.psf_fwhm) == pytest.approx(0.79, rel=0.1)
    assert set(data.truth["class"]) == {"galaxy", "star"}
    magnitude = 27.0 - 2.5 * np.log10(data.truth["flux"])
    np.testing.assert_allclose(data.truth["magnitude"], magnitude, atol=1e-3)
    for blend, (y0, x0) in enumerate(places(data, image)):
        seen = labels[y0 : y0 + 120, x0 : x0 + 120]
        light = image[y0 : y0 + 120, x0 : x0 + 120]
        for footprint, source in zip(data.footprints(blend), data.sources(blend), strict=True):
            # Its pixels are those of one label, where the noisy light allows it.
            (label,) = np.unique(seen[footprint.slices][footprint.mask])
            assert label > 0
            assert str(rows[label - 1]["class"]) == source["class"]
            lit = light[seen == label] > (MASK_THRESHOLD + 0.2) * data.meta.detection_rms
            assert footprint.area >= np.count_nonzero(lit)
            if source["snr"] > 50 and (seen == label).sum() == (labels == label).sum():
                true = rows[label - 1]
                # Blended light goes to one label whole, so the centroid is the mask's.
                assert np.hypot(source["x"] + x0 - true["x"], source["y"] + y0 - true["y"]) < 4


def test_no_source_is_in_two_splits(field, labelled):
    _, data = labelled
    _, _, labels = truth_of(field)
    shown = labels_by_split(data, fits.getdata(field / "field_i.fits"), labels)
    assert all(shown.values())
    assert not shown["train"] & (shown["validation"] | shown["test"])
    assert not shown["validation"] & shown["test"]


def test_given_light_makes_the_true_masks_and_fluxes(field, tmp_path):
    rows, lights, labels = truth_of(field)
    shown = [k for k in range(len(rows)) if np.any(labels == k + 1)]
    cube = np.zeros((len(shown), *labels.shape), dtype=np.float32)
    for plane, k in zip(cube, shown, strict=True):
        y0, x0 = rows[k]["y0"], rows[k]["x0"]
        plane[y0 : y0 + rows[k]["ny"], x0 : x0 + rows[k]["nx"]] = lights[k]
    fits.writeto(tmp_path / "light.fits", cube)
    config = ImportConfig(
        labels=f"{field / 'truth.fits'}[SEGM]", light=str(tmp_path / "light.fits"), seeing=0.8
    )
    import_data([field / "field_i.fits"], tmp_path / "set", config)
    data = load_dataset(tmp_path / "set")
    assert set(data.psf_fwhm) == {0.8}
    level = MASK_THRESHOLD * data.meta.detection_rms
    compared = 0
    for blend, (y0, x0) in enumerate(places(data, fits.getdata(field / "field_i.fits"))):
        window = cube[:, y0 : y0 + 120, x0 : x0 + 120]
        sources = data.sources(blend)
        assert len(sources) == np.count_nonzero(window.any(axis=(1, 2)))
        present = window[window.any(axis=(1, 2))]
        for light, footprint, source in zip(present, data.footprints(blend), sources, strict=True):
            assert np.array_equal(footprint.to_full((120, 120)), light > level)
            assert source["flux"][0] == pytest.approx(light.sum(), rel=1e-4)
            snr = np.sqrt((light.astype(float) ** 2).sum()) / data.meta.detection_rms
            assert source["snr"] == pytest.approx(snr, rel=1e-4)
            assert source["detectable"] == (snr >= 7 and footprint.area >= 5)
            compared += 1
    assert compared > 100


def test_two_images_of_one_field_share_no_source_across_splits(field, tmp_path):
    image, header = fits.getdata(field / "field_i.fits", header=True)
    labels = fits.getdata(field / "truth.fits", "SEGM")
    for name, rows in {"low": slice(0, 420), "high": slice(280, 700)}.items():
        part = header.copy()
        part["CRPIX2"] -= rows.start
        fits.writeto(tmp_path / f"{name}.fits", image[rows], part)
        fits.writeto(tmp_path / f"{name}_segm.fits", labels[rows])
    config = ImportConfig(labels=str(tmp_path / "{stem}_segm.fits"), split="60/20/20", seeing=0.8)
    names = [tmp_path / "high.fits", tmp_path / "low.fits"]
    result = import_data(names, tmp_path / "set", config)
    assert result.left_out > 0
    shown = labels_by_split(load_dataset(tmp_path / "set"), image, labels)
    assert all(shown.values())
    assert not shown["train"] & (shown["validation"] | shown["test"])
    assert not shown["validation"] & shown["test"]


def test_stamps_are_split_by_place():
    rng = np.random.default_rng(1)
    place = rng.uniform(0, 1000, 300)
    # Each stamp shows the sources within 30 of it.
    sources = rng.uniform(0, 1000, 200)
    members = [set(np.flatnonzero(np.abs(sources - x) < 30).tolist()) for x in place]
    train, validation, test = split_stamps(members, [(x,) for x in place], (0.8, 0.1, 0.1))
    assert (len(validation), len(test)) == (30, 30)
    assert 180 < len(train) < 240
    seen = [set().union(*(members[k] for k in part)) for part in (train, validation, test)]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]
    assert place[test].min() > place[validation].max() > place[train].max()
    with pytest.raises(AnnotationError, match="cannot be split"):
        split_stamps([{1}, {1, 2}, {2}], [(0,), (1,), (2,)], (0.8, 0.1, 0.1))


# --- COCO's JSON ---------------------------------------------------------------------------------


def disc(y, x, radius, shape):
    rows, columns = np.indices(shape)
    return np.hypot(rows - y, columns - x) <= radius


SHAPE = (400, 160)
CENTRES = [(60, 70, 7), (65, 79, 6), (200, 80, 8), (340, 70, 7)]


@pytest.fixture
def coco(tmp_path):
    """An image of discs on noise as PNG, with its annotations: polygon, lists, text."""
    rng = np.random.default_rng(2)
    values = rng.normal(500, 20, SHAPE)
    masks = [disc(*centre, SHAPE) for centre in CENTRES]
    for mask in masks:
        values += 300 * mask
    (tmp_path / "pictures").mkdir()
    picture = Image.fromarray(values.astype(np.uint16))
    picture.save(tmp_path / "pictures" / "a.png")
    runs = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    y, x, radius = CENTRES[0]
    polygon = np.stack(
        [x + 0.5 + (radius + 0.4) * np.cos(angles), y + 0.5 + (radius + 0.4) * np.sin(angles)], 1
    )
    flat = np.concatenate([[0], masks[1].T.ravel().astype(int), [0]])
    edges = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], edges, [SHAPE[0] * SHAPE[1]]])).tolist()
    segmentations = [
        [polygon.ravel().tolist()],
        {"size": list(SHAPE), "counts": counts},
        *({"size": list(SHAPE), "counts": run["counts"].decode()} for run in runs[2:]),
    ]
    return tmp_path / "truth.json", {
        "images": [{"id": 1, "file_name": "a.png", "width": SHAPE[1], "height": SHAPE[0]}],
        "categories": [{"id": 1, "name": "Galaxy"}, {"id": 2, "name": "star"}],
        "annotations": [
            {"id": k, "image_id": 1, "category_id": 1 + (k == 2), "segmentation": segmentation}
            for k, segmentation in enumerate(segmentations)
        ],
    }


def imported(file, content, tmp_path, **settings):
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    known = {"pixel_scale": 0.2, "seeing": 0.8, "split": "34/33/33", **settings}
    config = ImportConfig(coco=str(file), images=str(tmp_path / "pictures"), **known)
    return import_data([], tmp_path / "set", config)


def test_annotations_become_masks_that_overlap(coco, tmp_path):
    file, content = coco
    result = imported(file, content, tmp_path)
    assert result.counts == {"train": 1, "validation": 1, "test": 1}
    data = load_dataset(tmp_path / "set")
    assert data.truth["class"].tolist() == ["galaxy", "galaxy", "star", "galaxy"]
    np.testing.assert_allclose(data.pixel_scale, 0.2)
    pair = data.footprints(0)
    masks = [disc(*centre, SHAPE) for centre in CENTRES]
    areas = [footprint.area for footprint in pair]
    assert areas == pytest.approx([mask.sum() for mask in masks[:2]], rel=0.05)
    overlap = np.count_nonzero(masks[0] & masks[1])
    assert overlap - 3 <= pair[0].intersection(pair[1]) <= overlap + 8
    # A disc is 300 counts high over a noise of 20, the overlap shared.
    rms = data.meta.detection_rms
    assert data.truth["flux"][2, 0] / rms == pytest.approx(15 * masks[2].sum(), rel=0.1)
    y, x = CENTRES[1][:2]
    assert data.truth["x"][1] - data.truth["x"][0] == pytest.approx(x - CENTRES[0][1], abs=2)
    assert data.truth["y"][1] - data.truth["y"][0] == pytest.approx(y - CENTRES[0][0], abs=1)


def test_stamps_with_a_crowd_are_left_out(coco, tmp_path):
    file, content = coco
    crowd = {"id": 9, "image_id": 1, "category_id": 1, "iscrowd": 1,
             "segmentation": [[100, 330, 120, 330, 120, 350, 100, 350]]}  # fmt: skip
    content["annotations"].append(crowd)
    result = imported(file, content, tmp_path, split="50/50/0")
    assert result.crowded == 1
    assert result.counts == {"train": 1, "validation": 1, "test": 0}


def changed(content, where, **values):
    key, number = where
    content[key][number].update(values)
    return content


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda c: "{", "not readable as JSON"),
        (lambda c: "[1]", "JSON object"),
        (lambda c: {**c, "images": {}}, "no list of 'images'"),
        (lambda c: {**c, "annotations": []}, "no annotation"),
        (lambda c: changed(c, ("images", 0), id=-1), "id -1"),
        (lambda c: changed(c, ("images", 0), id="x"), "id 'x'"),
        (lambda c: changed(c, ("images", 0), file_name="../truth.json"), "may not lead out"),
        (lambda c: changed(c, ("images", 0), file_name="/etc/passwd"), "may not lead out"),
        (lambda c: changed(c, ("images", 0), file_name="b.png"), "'b.png', is not in"),
        (lambda c: changed(c, ("images", 0), file_name=7), "no file_name"),
        (lambda c: changed(c, ("images", 0), width=0), "no width"),
        (lambda c: changed(c, ("images", 0), width=161), "size .* its image has"),
        (lambda c: changed(c, ("categories", 0), name="dog"), "called 'dog'"),
        (lambda c: changed(c, ("annotations", 0), id=-4), "id -4"),
        (lambda c: changed(c, ("annotations", 0), id=1), "have the id 1"),
        (lambda c: changed(c, ("annotations", 0), image_id=5), "image_id 5"),
        (lambda c: changed(c, ("annotations", 0), category_id=[]), "category_id"),
        (lambda c: changed(c, ("annotations", 0), segmentation=None), "no segmentation"),
        (lambda c: changed(c, ("annotations", 0), segmentation=[]), "no segmentation"),
        (lambda c: changed(c, ("annotations", 0), segmentation=[[1, 2, 3, 4]]), "three corners"),
        (lambda c: changed(c, ("annotations", 0), segmentation=[[1, 2, 9, 9, 1e9, 4]]), "outside"),
        (lambda c: changed(c, ("annotations", 0), segmentation=[[1, 2, 9, "x", 5, 4]]), "corner"),
        (lambda c: changed(c, ("annotations", 0), segmentation=[[1.1, 1.1, 1.2, 1.1, 1.2, 1.2]]),
         "covers no pixel"),
        (lambda c: changed(c, ("annotations", 1),
                           segmentation={"size": list(SHAPE), "counts": [5, -3]}), "damaged"),
        (lambda c: changed(c, ("annotations", 1),
                           segmentation={"size": list(SHAPE), "counts": [5, 3]}), "8 pixels"),
        (lambda c: changed(c, ("annotations", 2),
                           segmentation={"size": list(SHAPE), "counts": "zz~~PP"}), "damaged"),
        (lambda c: changed(c, ("annotations", 2),
                           segmentation={"size": list(SHAPE), "counts": ""}), "0 pixels"),
        (lambda c: changed(c, ("annotations", 2),
                           segmentation={"size": list(SHAPE), "counts": "o"}), "damaged"),
    ],
)  # fmt: skip
def test_hostile_annotations_are_one_line(coco, tmp_path, spoil, said):
    file, content = coco
    with pytest.raises(AnnotationError, match=said) as caught:
        imported(file, spoil(content), tmp_path)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "set").exists()


def test_annotations_without_end_are_not_read_on(coco, tmp_path, monkeypatch):
    file, content = coco
    monkeypatch.setattr("galsep.io.coco.LARGEST_JSON", 1000)
    with pytest.raises(AnnotationError, match=r"not readable as JSON \(more than 1000 bytes\)"):
        imported(file, content, tmp_path)


def test_a_picture_of_another_size_or_none(coco, tmp_path):
    file, content = coco
    picture = tmp_path / "pictures" / "a.png"
    Image.fromarray(np.zeros((300, 160), np.uint8)).save(picture)
    with pytest.raises(AnnotationError, match="160×400 px, it is 160×300"):
        imported(file, content, tmp_path)
    picture.write_bytes(b"not a picture")
    with pytest.raises(ImageError, match="PNG"):
        imported(file, content, tmp_path)


# --- hostile label maps --------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    rng = np.random.default_rng(3)
    fits.writeto(tmp_path / "a.fits", rng.normal(size=(200, 150)).astype(np.float32))
    labels = np.zeros((200, 150), np.int32)
    labels[50:56, 60:66] = 3
    labels[150:156, 60:66] = 8
    fits.writeto(tmp_path / "labels.fits", labels)
    return tmp_path, labels


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda labels: labels[:, :-1], "149×200"),
        (lambda labels: labels * 0, "no pixel is labelled"),
        (lambda labels: -labels, "no labels"),
        (lambda labels: labels * 0.5, "no labels"),
        (lambda labels: np.where(labels, np.nan, 0.0), "no value"),
        (lambda labels: labels.astype(float) * 1e12, "no labels"),
    ],
)
def test_hostile_label_maps_are_one_line(small, spoil, said):
    folder, labels = small
    fits.writeto(folder / "labels.fits", spoil(labels), overwrite=True)
    config = ImportConfig(labels=str(folder / "labels.fits"), pixel_scale=0.2, seeing=0.8)
    with pytest.raises((AnnotationError, ImageError), match=said) as caught:
        import_data([folder / "a.fits"], folder / "set", config)
    assert "labels.fits" in str(caught.value)
    assert not (folder / "set").exists()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"label": [3, 4], "class": ["star", "star"]}, "label 4 has no pixel"),
        ({"label": [3], "class": ["planet"]}, "'planet' of label 3"),
        ({"label": [3]}, "no column 'class'"),
        (None, "no readable"),
    ],
)
def test_hostile_classes_are_one_line(small, table, said):
    folder, _ = small
    if table is None:
        (folder / "classes.fits").write_text("nothing")
    else:
        Table(table).write(folder / "classes.fits")
    config = ImportConfig(
        labels=str(folder / "labels.fits"), classes=str(folder / "classes.fits"), pixel_scale=0.2
    )
    with pytest.raises(AnnotationError, match=said):
        import_data([folder / "a.fits"], folder / "set", config)


@pytest.mark.parametrize(
    ("light", "said"),
    [
        (np.zeros((2, 200, 150), np.float32), "nowhere positive"),
        (np.ones((3, 200, 150), np.float32), "for each label"),
        (np.ones((200, 150), np.float32), "for each label"),
        (np.ones((2, 200, 150), np.int32), "floating"),
        (np.full((2, 200, 150), np.nan, np.float32), "without a value"),
    ],
)
def test_hostile_light_is_one_line(small, light, said):
    folder, _ = small
    fits.writeto(folder / "light.fits", light)
    config = ImportConfig(
        labels=str(folder / "labels.fits"), light=str(folder / "light.fits"), pixel_scale=0.2
    )
    with pytest.raises(AnnotationError, match=said):
        import_data([folder / "a.fits"], folder / "set", config)


def test_what_galsep_separated_can_be_given_back(small):
    folder, _ = small
    stamps = Table({"label": [3, 8], "band": ["", ""], "x0": [58, 58], "y0": [48, 148],
                    "nx": [9, 9], "ny": [9, 9], "start": [0, 81]})  # fmt: skip
    model = np.concatenate([np.full(81, 5.0), np.full(81, 7.0)]).astype(np.float32)
    hdus = [fits.PrimaryHDU(), fits.table_to_hdu(stamps), fits.ImageHDU(model, name="MODEL")]
    hdus[1].name = "STAMPS"
    fits.HDUList(hdus).writeto(folder / "light.fits")
    config = ImportConfig(
        labels=str(folder / "labels.fits"), light=str(folder / "light.fits"), pixel_scale=0.2,
        seeing=0.8, gain=1.0, split="50/50/0",
    )  # fmt: skip
    import_data([folder / "a.fits"], folder / "set", config)
    data = load_dataset(folder / "set")
    assert data.truth["flux"][:, 0].tolist() == pytest.approx([405, 567], rel=1e-4)
    assert data.truth["area"].tolist() == [81, 81]
    stamps["x0"] = 145
    hdus[1] = fits.table_to_hdu(stamps)
    hdus[1].name = "STAMPS"
    fits.HDUList(hdus).writeto(folder / "light.fits", overwrite=True)
    with pytest.raises(AnnotationError, match="leaves the image"):
        import_data([folder / "a.fits"], folder / "other", config)


def test_what_the_images_do_not_say_is_asked_for(small):
    folder, _ = small
    labels = str(folder / "labels.fits")
    images = [folder / "a.fits"]
    with pytest.raises(UsageError, match="--pixel-scale"):
        import_data(images, folder / "set", ImportConfig(labels=labels))
    with pytest.raises(UsageError, match="--seeing"):
        import_data(images, folder / "set", ImportConfig(labels=labels, pixel_scale=0.2))
    with pytest.raises(UsageError, match=r"\{stem\}"):
        import_data([*images, "b.fits"], folder / "set", ImportConfig(labels=labels))
    with pytest.raises(UsageError, match="twice"):
        import_data([*images, *images], folder / "set", ImportConfig(labels=labels))
    assert not (folder / "set").exists()


def test_an_existing_data_set_is_kept(field, labelled):
    result, _ = labelled
    config = ImportConfig(labels=f"{field / 'truth.fits'}[SEGM]")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        import_data([field / "field_i.fits"], result.folder, config)


def test_calls_do_not_mix_and_what_killed_ones_left_is_tidied_up(small):
    folder, _ = small
    config = ImportConfig(
        labels=str(folder / "labels.fits"), pixel_scale=0.2, seeing=0.8, split="50/50/0"
    )
    output = folder / "set"
    output.mkdir()
    left = [output / f".01234567.part.{name}" for name in ("shard-0000.fits", "dataset.toml")]
    for path in left:
        path.touch()
    with claimed(output / CLAIM), pytest.raises(OutputError, match="another call is at work"):
        import_data([folder / "a.fits"], output, config)
    assert set(output.iterdir()) == set(left)
    import_data([folder / "a.fits"], output, config)
    assert {path.name for path in output.iterdir()} == {"shard-0000.fits", "dataset.toml"}


def test_a_data_set_that_another_call_makes_meanwhile_is_kept(small):
    folder, _ = small

    class Other(Reporter):
        def advance(self, steps=1, note=""):
            (folder / "set").mkdir()
            (folder / "set" / "dataset.toml").write_text("another's")

    config = ImportConfig(
        labels=str(folder / "labels.fits"), pixel_scale=0.2, seeing=0.8, split="50/50/0"
    )
    with pytest.raises(OutputExistsError, match="--overwrite"):
        import_data([folder / "a.fits"], folder / "set", config, reporter=Other())
    assert [path.read_text() for path in (folder / "set").iterdir()] == ["another's"]
