import dataclasses
import tomllib

import numpy as np
import pytest
import tomli_w
from astropy.io import fits
from astropy.table import Table

from galsep.config.datasets import MAX_BLENDS
from galsep.errors import DatasetError
from galsep.io.dataset import (
    DatasetMeta,
    is_dataset,
    join_datasets,
    load_dataset,
    load_meta,
    shard_slices,
    write_meta,
    write_shard,
)
from galsep.scene import Blend, Source
from galsep.settings import LARGEST_TOML

BANDS = ("g", "i")
RMS = 10.0


def source(rng: np.random.Generator, kind: str = "galaxy") -> Source:
    height, width = (int(n) for n in rng.integers(3, 30, 2))
    light = (rng.random((2, height, width)) * 40).astype(np.float32)
    return Source(
        kind=kind,
        x=float(rng.uniform(30, 90)),
        y=float(rng.uniform(30, 90)),
        magnitude=rng.uniform(20, 25, 2),
        flux=light.sum(axis=(1, 2), dtype=np.float64),
        half_light_radius=0.5,
        e1=0.1,
        e2=-0.2,
        light=light,
        y0=int(rng.integers(0, 90)),
        x0=int(rng.integers(0, 90)),
    )


def blend(rng: np.random.Generator, n: int) -> Blend:
    kinds = ("galaxy", "star")
    image = rng.normal(size=(2, 120, 120)).astype(np.float32)
    return Blend(image, [source(rng, kinds[i % 2]) for i in range(n)], float(rng.uniform(0.6, 0.9)))


def derived(blend: Blend) -> dict:
    n = len(blend.sources)
    return {
        "snr": np.arange(n) + 5.5,
        "purity": np.full(n, 0.5),
        "area": np.arange(n) + 4,
        "detectable": np.arange(n) % 2 == 1,
    }


def meta(counts: dict, shards: tuple[str, ...]) -> DatasetMeta:
    return DatasetMeta(
        survey="LSST",
        bands=BANDS,
        detection_band=1,
        pixel_scale=0.2,
        zeropoints=(37.0, 37.5),
        sky_rms=(8.0, RMS),
        psf_fwhm=(0.8, 0.7),
        counts=counts,
        shards=shards,
        population={"n": 3, "bands": BANDS},
        galsep_version="0.1.0",
        seed=1,
    )


@pytest.fixture(scope="module")
def blends() -> list[Blend]:
    rng = np.random.default_rng(7)
    return [blend(rng, n) for n in (2, 0, 3)]


@pytest.fixture
def folder(tmp_path, blends):
    """A data set of three blends in two shards."""
    write_shard(tmp_path / "a.fits", blends[:2], [derived(b) for b in blends[:2]], 0)
    write_shard(tmp_path / "b.fits", blends[2:], [derived(b) for b in blends[2:]], 2)
    counts = {"train": 1, "validation": 1, "test": 1}
    write_meta(tmp_path, meta(counts, ("a.fits", "b.fits")))
    return tmp_path


def test_a_data_set_is_read_as_it_was_written(folder, blends):
    dataset = load_dataset(folder)
    assert (len(dataset), len(dataset.truth)) == (3, 5)
    assert dataset.images.dtype == np.float32
    for index, given in enumerate(blends):
        np.testing.assert_array_equal(dataset.images[index], given.image)
        assert dataset.psf_fwhm[index] == given.psf_fwhm
        rows = dataset.sources(index)
        assert rows["class"].tolist() == [s.kind for s in given.sources]
        assert (rows["blend"] == index).all()
        for offset, (row, true) in enumerate(zip(rows, given.sources, strict=True)):
            light, y0, x0 = dataset.source_light(dataset.first[index] + offset)
            np.testing.assert_array_equal(light, true.light)
            assert (y0, x0) == (true.y0, true.x0)
            np.testing.assert_array_equal(row["flux"], true.flux)
            np.testing.assert_array_equal(row["magnitude"], true.magnitude)
            assert (row["x"], row["y"]) == (true.x, true.y)
        np.testing.assert_array_equal(rows["snr"], np.arange(len(rows)) + 5.5)
        np.testing.assert_array_equal(rows["detectable"], np.arange(len(rows)) % 2 == 1)


def test_blends_have_their_own_pixel_scale(tmp_path, blends):
    scales = (0.1, float("nan"), 0.3)
    own = [
        dataclasses.replace(blend, pixel_scale=scale)
        for blend, scale in zip(blends, scales, strict=True)
    ]
    write_shard(tmp_path / "a.fits", own, [derived(b) for b in own], 0)
    write_meta(tmp_path, meta({"train": 1, "validation": 1, "test": 1}, ("a.fits",)))
    # Where it is not known it is the survey's.
    assert load_dataset(tmp_path).pixel_scale.tolist() == [0.1, 0.2, 0.3]


def test_shards_without_pixel_scales_are_read(folder):
    for name in ("a.fits", "b.fits"):
        with fits.open(folder / name) as hdus:
            scenes = Table(hdus["SCENES"].data)
            scenes.remove_column("pixel_scale")
            hdus["SCENES"].data = fits.table_to_hdu(scenes).data
            hdus.writeto(folder / "old.fits")
        (folder / "old.fits").replace(folder / name)
    assert load_dataset(folder).pixel_scale.tolist() == [0.2, 0.2, 0.2]


def test_meta_survives(folder):
    assert dataclasses.replace(load_dataset(folder).meta, population={}) == dataclasses.replace(
        meta({"train": 1, "validation": 1, "test": 1}, ("a.fits", "b.fits")), population={}
    )
    assert load_dataset(folder).meta.detection_rms == RMS


def test_masks_are_where_own_light_exceeds_the_threshold(folder, blends):
    dataset = load_dataset(folder)
    for footprint, true in zip(dataset.footprints(2), blends[2].sources, strict=True):
        full = np.zeros((150, 150), np.float32)
        height, width = true.light.shape[1:]
        full[true.y0 : true.y0 + height, true.x0 : true.x0 + width] = true.light[1]
        np.testing.assert_array_equal(footprint.to_full(full.shape), full > 1.5 * RMS)
    assert dataset.footprints(1) == []


def test_stack_holds_the_light_of_the_detection_band(folder, blends):
    dataset = load_dataset(folder)
    layers = dataset.stack(0)
    assert layers.shape == (2, 120, 120)
    for layer, true in zip(layers, blends[0].sources, strict=True):
        assert layer.sum(dtype=np.float64) == pytest.approx(true.flux[1])
    np.testing.assert_array_equal(dataset.detection_image(0), blends[0].image[1])
    assert dataset.stack(1).shape == (0, 120, 120)


def test_splits_follow_each_other(folder):
    dataset = load_dataset(folder)
    assert [dataset.split(name) for name in ("train", "validation", "test")] == [
        *(range(0, 1), range(1, 2), range(2, 3))
    ]
    with pytest.raises(DatasetError, match="no split 'trian'; there are train, validation, test"):
        dataset.split("trian")


def test_joined_data_sets_keep_their_splits_and_each_blend_its_sources(folder, tmp_path):
    others = [blend(np.random.default_rng(8), n) for n in (1, 2, 0, 1)]
    (tmp_path / "other").mkdir()
    write_shard(tmp_path / "other" / "a.fits", others, [derived(b) for b in others], 0)
    counts = {"train": 2, "validation": 1, "test": 1}
    write_meta(tmp_path / "other", meta(counts, ("a.fits",)))
    parts = [load_dataset(folder), load_dataset(tmp_path / "other")]
    dataset = join_datasets(parts)
    assert dataset.meta.counts == {"train": 3, "validation": 2, "test": 2}
    order = [(parts[n], i) for n, i in ((0, 0), (1, 0), (1, 1), (0, 1), (1, 2), (0, 2), (1, 3))]
    for index, (part, before) in enumerate(order):
        np.testing.assert_array_equal(dataset.images[index], part.images[before])
        assert dataset.psf_fwhm[index] == part.psf_fwhm[before]
        assert (dataset.sources(index)["blend"] == index).all()
        assert dataset.sources(index)["x"].tolist() == part.sources(before)["x"].tolist()
        np.testing.assert_array_equal(dataset.stack(index), part.stack(before))
    assert join_datasets(parts[:1]) is parts[0]


def test_data_sets_of_other_noise_are_not_joined(folder):
    dataset = load_dataset(folder)
    other = dataclasses.replace(
        dataset, meta=dataclasses.replace(dataset.meta, sky_rms=(8.0, 11.0))
    )
    with pytest.raises(DatasetError, match=r"sky_rms.*\(8.0, 10.0\) and \(8.0, 11.0\)"):
        join_datasets([dataset, other])


def test_blends_without_any_source(tmp_path):
    empty = blend(np.random.default_rng(1), 0)
    write_shard(tmp_path / "a.fits", [empty], [derived(empty)], 0)
    write_meta(tmp_path, meta({"train": 1, "validation": 0, "test": 0}, ("a.fits",)))
    dataset = load_dataset(tmp_path)
    assert len(dataset.truth) == dataset.light.size == 0
    assert dataset.footprints(0) == []


def test_units_are_in_the_shard(folder):
    with fits.open(folder / "a.fits", checksum=True) as hdus:
        assert hdus["BLENDS"].header["BUNIT"] == "electron"
        assert hdus["TRUTH"].columns["x"].unit == "pix"
        assert hdus[0].header["GSFORMAT"] == 1
    # Every unit is one that astropy knows: reading the table warns of nothing.
    assert Table.read(folder / "a.fits", hdu="TRUTH")["half_light_radius"].unit == "arcsec"


def test_only_a_finished_folder_is_a_data_set(folder):
    assert is_dataset(folder)
    (folder / "dataset.toml").unlink()
    assert not is_dataset(folder)
    with pytest.raises(DatasetError, match=r"no data set here .*; make one with galsep simulate"):
        load_dataset(folder)
    (folder / "image.fits").touch()
    with pytest.raises(
        DatasetError, match=r"image\.fits: is a file; give the folder of a data set"
    ):
        load_dataset(folder / "image.fits")


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        (
            "format_version = 1",
            "format_version = 99",
            "of format version 99, .*; simulate it again",
        ),
        ("format_version = 1", "", "of format version None"),
        ("seed = 1", "", "incomplete or with unknown keys"),
        ("seed = 1", "seed = " + "[" * 5000, "not readable .*nested too deeply"),
        ("seed = 1", "seed = 1 #" + "#" * LARGEST_TOML, "not readable .*more than"),
        ("pixel_scale = ", "pixel_scale = 1" + "0" * 400 + " # ", "figures do not fit"),
        ("train = 1", "train = inf", "counts are whole numbers"),
        ("seed = 1", "seed = 1\nsede = 2", "unknown keys .*'sede'; did you mean 'seed'"),
        ("detection_band = ", "detection_band = 7 # ", "bands and their figures do not fit"),
        ("pixel_scale = ", "pixel_scale = nan # ", "bands and their figures do not fit"),
        ("pixel_scale = ", "pixel_scale = 'fine' # ", "bands and their figures do not fit"),
        ("seed = 1", "seed = 1\nzero = 0", "unknown keys"),
        ("seed = 1", "seed = ", "not readable"),
        ("train = 1", "train = 5", "promises 7 blends, the shards hold 3"),
        ("train = 1", "train = 1000000000000", "the shards hold 3"),
        ("train = 1", "train = -1", "counts are whole numbers from 0 on"),
        ("train = 1", 'train = "1"', "counts are whole numbers"),
        ("train = 1", "train = 1.5", "counts are whole numbers"),
        ("train = 1", "train = true", "counts are whole numbers"),
        ("train = 1", "", "incomplete"),
        ('"a.fits"', '"../a.fits"', "shards lie in the data set's own folder"),
        ('"a.fits"', '"/dev/zero"', "shards lie in the data set's own folder"),
        ('"a.fits"', '".."', "shards lie in the data set's own folder"),
        ('"a.fits"', "7", "shards lie in the data set's own folder"),
        ('"a.fits"', '"gone.fits"', r"gone\.fits: damaged or missing shard"),
    ],
)
def test_wrong_descriptions_are_refused(folder, old, new, match):
    path = folder / "dataset.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(DatasetError, match=match) as caught:
        load_dataset(folder)
    assert "\n" not in str(caught.value)


def test_the_largest_data_set_can_be_described(tmp_path):
    shards = tuple(shard_slices(MAX_BLENDS))
    write_meta(tmp_path, meta({"train": MAX_BLENDS, "validation": 0, "test": 0}, shards))
    assert load_meta(tmp_path).shards == shards


@pytest.mark.parametrize("end", [0, 1000, 5000, 60_000, 240_000])
def test_truncated_shards_are_refused(folder, end):
    content = (folder / "a.fits").read_bytes()
    (folder / "a.fits").write_bytes(content[:end])
    with pytest.raises(DatasetError, match=r"a\.fits: damaged or missing shard") as caught:
        load_dataset(folder)
    assert "\n" not in str(caught.value)


def test_shards_of_other_bands_are_refused(folder):
    path = folder / "dataset.toml"
    values = tomllib.loads(path.read_text())
    per_band = ("bands", "zeropoints", "sky_rms", "psf_fwhm")
    values |= {name: values[name][1:] for name in per_band} | {"detection_band": 0}
    path.write_text(tomli_w.dumps(values))
    with pytest.raises(DatasetError, match=r"a\.fits: "):
        load_dataset(folder)


@pytest.mark.parametrize(
    ("column", "value"), [("y0", 120), ("x0", -1), ("ny", -5), ("nx", 10**6), ("offset", -1)]
)
def test_sources_beyond_their_stamp_are_refused(folder, column, value):
    with fits.open(folder / "a.fits", mode="update", memmap=False) as hdus:
        hdus["TRUTH"].data[column][0] = value
    with pytest.raises(DatasetError, match="tables do not fit together; simulate"):
        load_dataset(folder)


def test_tables_that_do_not_fit_together_are_refused(folder):
    with fits.open(folder / "a.fits", mode="update", memmap=False) as hdus:
        hdus["SCENES"].data["n_source"] = 5
    with pytest.raises(DatasetError, match="tables do not fit together; simulate"):
        load_dataset(folder)
