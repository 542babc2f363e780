"""``benchmarks/ablation.py``: networks that lack a part, trained alike."""

import json

import pytest
import torch

BENCHMARK = "ablation"


@pytest.fixture
def small(bench, monkeypatch):
    monkeypatch.setattr(bench, "EPOCH_SIZE", 16)
    monkeypatch.setitem(bench.STOCK, "n", 60)
    for settings in bench.JUDGED.values():
        monkeypatch.setitem(settings, "n", 60)


def test_every_variant_differs_where_it_should(bench):
    image = torch.zeros(1, 1, 120, 120)
    finest, parameters = {}, {}
    for name, variant in bench.VARIANTS.items():
        network = bench.built(variant, "compact").eval()
        levels = network.backbone(image)
        finest[name] = levels["0"].shape[-1]
        strides = [120 // level.shape[-1] for level in levels.values()][:2]
        assert strides == list(network.roi_heads.strides[:2])
        parameters[name] = sum(part.numel() for part in network.parameters())
    assert finest == {name: 30 if name == "stride" else 60 for name in finest}
    same = {name for name, count in parameters.items() if count == parameters["whole"]}
    assert same == {"whole", "stride", "anchors", "normalisation", "masks", "widening"}
    with_groups = bench.built(bench.VARIANTS["normalisation"], "compact").modules()
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in with_groups)


def test_results_are_kept_and_printed(bench, small, tmp_path, capsys):
    run = ["--work", str(tmp_path), "--epochs", "1", "--device", "cpu"]
    bench.main([*run, "--only", "stride"])
    bench.main([*run, "--only", "masks,normalisation"])
    card = json.loads((tmp_path / "ablation.json").read_text())
    assert list(card["rows"]) == ["stride", "masks", "normalisation"]
    for row in card["rows"].values():
        assert row["cpu_ms"] > 0
        assert 0 <= row["pairs"]["exact"] <= 1
    assert len(capsys.readouterr().out.splitlines()[-4].split()) == 10
    with pytest.raises(SystemExit):
        bench.main([*run, "--only", "colour"])
