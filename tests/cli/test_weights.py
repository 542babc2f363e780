"""``galsep weights``: what a network is."""

import hashlib
import json

import pytest

from galsep.cli.weights import describe


def test_a_file(galsep, weights):
    outcome = galsep("weights", weights)
    assert (outcome.code, outcome.err) == (0, "")
    lines = {line.split(maxsplit=1)[0]: line for line in outcome.out.splitlines()}
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in lines["SHA-256"]
    assert "backbone compact" in lines["architecture"]
    assert lines["threshold"].split() == ["threshold", "0.4"]
    assert "random.safetensors" in lines["file"]


def test_as_json(galsep, weights):
    outcome = galsep("weights", weights, "--json")
    assert outcome.code == 0
    (entry,) = json.loads(outcome.out).values()
    assert entry["threshold"] == 0.4
    assert entry["bytes"] == weights.stat().st_size
    assert entry["architecture"]["backbone"] == "compact"


def test_the_packaged_networks_are_listed(galsep):
    from galsep.model.weights import list_weights

    outcome = galsep("weights", "--json")
    assert outcome.code == 0
    assert list(json.loads(outcome.out)) == list(list_weights())


def test_a_description_fits_80_columns():
    training = {"stages": [["all", 9, 0.001]], "init": "", **dict.fromkeys("abcdefgh", 0.123456)}
    entry = {
        "file": "a",
        "sha256": "0",
        "bytes": 2e6,
        "training": training,
        "dataset": {"p": {"n": 5}},
    }
    text = describe("name", entry)
    assert max(map(len, text.splitlines())) <= 80
    assert "stages [[all,9,0.001]], a 0.123456" in text
    assert "p.n 5" in text
    assert "init" not in text


@pytest.mark.parametrize("content", [None, b"not safetensors", b""])
def test_unusable_files(galsep, tmp_path, content):
    path = tmp_path / "w.safetensors"
    if content is not None:
        path.write_bytes(content)
    outcome = galsep("weights", path)
    assert outcome.code == 1
    assert "w.safetensors" in outcome.error


def test_joined_data_sets_stay_apart():
    entry = {"file": "a.safetensors", "sha256": "0", "bytes": 1}
    joined = [{"n": 1, "counts": {"test": 5}}, {"n": 2}]
    text = describe("a", {**entry, "dataset": {"joined": joined, "bands": ["g", "r"]}})
    assert "joined [n 1, counts.test 5; n 2], bands [g,r]" in " ".join(text.split())


def test_long_lists_are_counted():
    entry = {"file": "a.safetensors", "sha256": "0", "bytes": 1}
    fit = {"snr": [1.5, 2.5], "weights": [[[0.5] * 8] * 4, [[1.0] * 4]]}
    text = describe("a", {**entry, "separation": {"flux_fit": fit}})
    assert "flux_fit.snr [1.5,2.5], flux_fit.weights [36 numbers]" in " ".join(text.split())
