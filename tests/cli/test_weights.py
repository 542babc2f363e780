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
    assert "compact" in lines["architecture.backbone"]
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


def test_nested_settings_have_a_line_each():
    entry = {"file": "a", "sha256": "0", "bytes": 2e6, "training": {"stages": [["all", 9, 0.001]]}}
    assert "training.stages  [[all, 9, 0.001]]\n" in describe("name", entry)


@pytest.mark.parametrize("content", [None, b"not safetensors", b""])
def test_unusable_files(galsep, tmp_path, content):
    path = tmp_path / "w.safetensors"
    if content is not None:
        path.write_bytes(content)
    outcome = galsep("weights", path)
    assert outcome.code == 1
    assert "w.safetensors" in outcome.error
