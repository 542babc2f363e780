import inspect
import json
import re
import tracemalloc
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torchvision.models.detection import maskrcnn_resnet50_fpn

import galsep
from galsep.errors import DeviceError, WeightsError
from galsep.model import weights as weights_module
from galsep.model.device import choose_device
from galsep.model.network import ARCHITECTURES, build_network
from galsep.model.separation import SeparationNetwork
from galsep.model.weights import (
    ADDED,
    COCO_URL,
    initial_weights,
    list_weights,
    load_model,
    read_info,
    save_weights,
    sha256,
)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(1)
    return build_network(ARCHITECTURES["compact"])


@pytest.fixture
def saved(network, tmp_path):
    path = tmp_path / "weights.safetensors"
    info = {"architecture": ARCHITECTURES["compact"].to_dict(), "threshold": 0.4}
    save_weights(path, network, info)
    return path


def test_a_round_trip_keeps_tensors_and_metadata(saved, network):
    model = load_model(saved, "cpu")
    assert model.threshold == 0.4
    assert model.architecture == ARCHITECTURES["compact"]
    assert len(model.sha256) == 64
    for name, tensor in network.state_dict().items():
        assert torch.equal(model.network.state_dict()[name], tensor)
    assert not model.network.training


def test_the_packaged_weights_load_and_are_small():
    packaged = list_weights()
    assert "compact" in packaged
    assert packaged["compact"].stat().st_size < 20e6
    info = load_model().info
    assert info["normalisation"] == "asinh(light / sky rms)"
    assert {"training", "dataset", "calibration", "threshold", "validation"} <= set(info)


def test_files_that_are_no_weights(tmp_path, saved):
    with pytest.raises(WeightsError, match="no such weights"):
        load_model(tmp_path / "missing.safetensors")
    text = tmp_path / "text.safetensors"
    text.write_text("hello")
    with pytest.raises(WeightsError, match="not a safetensors file"):
        load_model(text)
    bare = tmp_path / "bare.safetensors"
    save_file({"a": torch.zeros(3)}, bare)
    with pytest.raises(WeightsError, match="no galsep network"):
        load_model(bare)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(saved.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match="not a safetensors file"):
        load_model(cut)


def test_tensors_that_do_not_fit_are_named(tmp_path, saved):
    tensors = load_file(saved)
    tensors.pop("backbone.stem.0.weight")
    path = tmp_path / "missing-tensor.safetensors"
    info = read_info(saved)
    save_file(tensors, path, metadata={"galsep": json.dumps(info)})
    with pytest.raises(WeightsError, match=r"backbone\.stem\.0\.weight"):
        load_model(path)
    info["architecture"] = {"backbone": "unheard-of", "size": 3}
    save_file(tensors, path, metadata={"galsep": json.dumps(info)})
    with pytest.raises(WeightsError, match="architecture"):
        load_model(path)
    info["format_version"] = 99
    save_file(tensors, path, metadata={"galsep": json.dumps(info)})
    with pytest.raises(WeightsError, match="version 99"):
        load_model(path)


def test_weights_of_before_are_told_nothing_of_the_psf(tmp_path, network):
    path = tmp_path / "earlier.safetensors"
    separator = SeparationNetwork((16, 16, 16))
    torch.nn.init.ones_(separator.psf.weight)
    info = {"architecture": ARCHITECTURES["compact"].to_dict()}
    save_weights(path, network, info, separator)
    now = load_model(path, "cpu").separator
    assert now.psf.weight.eq(1).all()
    tensors = load_file(path)
    for name in ADDED:
        del tensors[name]
    save_file(tensors, path, metadata={"galsep": json.dumps(read_info(path))})
    before = load_model(path, "cpu").separator
    assert not before.psf.weight.any()
    assert not before.psf.bias.any()
    assert torch.equal(before.stem.weight, now.stem.weight)


@pytest.mark.parametrize(
    ("keys", "value", "named"),
    [
        (["threshold"], None, "threshold"),
        (["threshold"], 1.5, "threshold"),
        (["mask_level"], "0.5", "mask_level"),
        (["mask_level"], float("nan"), "mask_level"),
        (["calibration"], [], "calibration"),
        (["calibration"], {"slope": 1e308}, "calibration"),
        (["calibration"], {"missed": "often"}, "calibration"),
        (["psf_fwhm_range"], [3.0], "psf_fwhm_range"),
        (["psf_fwhm_range"], [5.0, 2.0], "psf_fwhm_range"),
        (["psf_fwhm_range"], 4, "psf_fwhm_range"),
        (["separation", "flux_fit"], {"snr": [1.0]}, "separation"),
        (
            ["separation", "flux_fit"],
            {"snr": [9, 3], "log_ratio": [0, 0], "spread": 1},
            "separation",
        ),
        (
            ["separation", "flux_fit"],
            {"snr": [3], "log_ratio": [0], "spread": 1, "regression": {"centre": [0.0]}},
            "separation",
        ),
        (["separation", "flux_fit"], [], "separation"),
        (["class_fit"], [1.0], "class_fit"),
        (["class_fit"], {"psf": [0.0] * 8}, "class_fit"),
        (["class_fit"], {"psf": [0.0] * 6, "alone": [0.0, 1.0]}, "class_fit"),
        (["class_fit"], {"psf": [0.0] * 8, "alone": [0.0, float("nan")]}, "class_fit"),
        (["separation", "widths"], [10**9] * 3, "architecture"),
        (["separation", "widths"], "wide", "architecture"),
        (["architecture", "widths"], [10**8] * 4, "architecture"),
        (["architecture", "widths"], [-1] * 4, "architecture"),
        (["architecture", "proposals"], 10**12, "architecture"),
        (["architecture", "detections"], "all", "architecture"),
        (["architecture", "box_nms"], None, "architecture"),
        (["architecture", "mask_margin"], 1e308, "architecture"),
        (["architecture", "smallest_match"], -1.0, "architecture"),
        (["architecture", "colour"], 1, "architecture"),
    ],
)
def test_metadata_that_nothing_can_be_done_with(tmp_path, keys, value, named):
    source = list_weights()["compact"]
    info = read_info(source)
    inner = info
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path = tmp_path / "w.safetensors"
    save_file(load_file(source), path, metadata={"galsep": json.dumps(info)})
    tracemalloc.start()
    with pytest.raises(WeightsError, match=named) as caught:
        load_model(path, "cpu")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert peak < 5e7


@pytest.mark.parametrize("length", [2**63, 10**9, 120, 0])
def test_a_header_of_another_size_is_refused(tmp_path, length):
    content = list_weights()["compact"].read_bytes()
    path = tmp_path / "w.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + content[8:])
    with pytest.raises(WeightsError, match="not a safetensors file"):
        load_model(path, "cpu")


def test_pickles_are_read_in_one_place_only():
    loading = re.compile(
        r"torch\.load\(|load_state_dict_from_url\(|\bpickle\b|\bshelve\b|\bmarshal\b|joblib"
        r"|allow_pickle=True|\beval\(|\bexec\(|yaml\.load"
    )
    found = {}
    for file in Path(galsep.__file__).parent.rglob("*.py"):
        # What stands behind an attribute's dot, as in network.eval(), is none of these.
        text = re.sub(r"\.eval\(", "", file.read_text(encoding="utf-8"))
        text = re.sub(r'"""[\s\S]*?"""|#.*', "", text)
        if calls := loading.findall(text):
            found[file.name] = calls
    # Dask's own messages are pickles: whoever names a scheduler trusts it.
    assert set(found.pop("cluster.py")) == {"pickle"}
    assert found == {"weights.py": ["torch.load("]}
    source = inspect.getsource(weights_module)
    assert source.count("weights_only=True") == 2  # Once in the module's own description.


class Malicious:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_pickle_with_code_is_refused(tmp_path, network, capsys):
    path = tmp_path / "evil.pth"
    torch.save({"weight": Malicious()}, path)
    with pytest.raises(WeightsError, match="safe to load"):
        initial_weights(network, str(path))
    assert "code ran" not in capsys.readouterr().out


def test_starting_from_three_band_weights_sums_the_bands(tmp_path):
    network = build_network(ARCHITECTURES["paper"])
    given = torch.randn(64, 3, 7, 7)
    path = tmp_path / "start.pth"
    torch.save({"backbone.body.conv1.weight": given, "unrelated": torch.zeros(2)}, path)
    origin = initial_weights(network, str(path))
    assert "start.pth sha256:" in origin
    assert "(1 of" in origin
    assert torch.allclose(network.backbone.body.conv1.weight, given.sum(1, keepdim=True))
    torch.save({"unrelated": torch.zeros(2)}, path)
    with pytest.raises(WeightsError, match="fits"):
        initial_weights(network, str(path))


def earlier_name(name):
    """What a tensor was called when torchvision's COCO weights were written."""
    name = re.sub(r"(_blocks\.\d)\.0\.", r"\1.", name).replace("head.conv.0.0.", "head.conv.")
    return re.sub(r"mask_head\.(\d)\.0", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}", name)


@pytest.fixture(scope="module")
def theirs():
    """torchvision's network as it begins, with statistics as after some training."""
    torch.manual_seed(3)
    network = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).eval()
    for name, tensor in network.state_dict().items():
        if "running" in name:
            tensor.uniform_(0.5, 1.5)
    return network


OF_CLASSES = ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_fcn_logits")
"""Layers that name COCO's 91 classes."""


def test_a_local_copy_of_torchvisions_network_is_taken_but_for_its_classes(theirs, tmp_path):
    path = tmp_path / "local.pth"
    torch.save(theirs.state_dict(), path)
    torch.manual_seed(4)
    ours = build_network(ARCHITECTURES["paper"])
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    origin = initial_weights(ours, str(path))
    assert origin.startswith(f"local.pth sha256:{sha256(path)} ({len(before) - 6} of {len(before)}")
    given = theirs.state_dict()
    assert given.keys() == before.keys()
    for name, tensor in ours.state_dict().items():
        wanted = given[name]
        if any(layer in name for layer in OF_CLASSES):
            wanted = before[name]
        elif name == "backbone.body.conv1.weight":
            wanted = wanted.sum(1, keepdim=True)
        assert torch.equal(tensor, wanted), name


def test_the_fetched_file_is_of_earlier_names_and_sees_a_grey_image_alike(
    theirs, tmp_path, monkeypatch
):
    state = {k: v for k, v in theirs.state_dict().items() if "num_batches" not in k}
    early = {earlier_name(name): tensor for name, tensor in state.items()}
    assert len(set(early) - set(state)) == 26

    def fetch(url, path, **_options):
        assert url == COCO_URL
        torch.save(early, path)

    monkeypatch.setattr(weights_module, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(weights_module, "download_url_to_file", fetch)
    ours = build_network(ARCHITECTURES["paper"]).eval()
    origin = initial_weights(ours, "coco")
    cached = tmp_path / "checkpoints" / COCO_URL.rpartition("/")[2]
    assert origin.startswith(f"{cached.name} from {COCO_URL} sha256:{sha256(cached)}")
    assert torchvision.__version__ in origin
    # All but the counters of batches and the layers that name COCO's classes.
    assert f"({len(state) - 6} of " in origin
    image = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        expected = theirs.backbone(image.expand(-1, 3, -1, -1))
        seen = ours.backbone(image)
    for name, level in expected.items():
        torch.testing.assert_close(seen[name], level, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.rpn.head.conv[0][0].weight, theirs.rpn.head.conv[0][0].weight)
    given = theirs.roi_heads.mask_head[3][0].weight
    torch.testing.assert_close(ours.roi_heads.mask_head[3][0].weight, given)
    # From the cache, it is not fetched again.
    monkeypatch.setattr(weights_module, "download_url_to_file", None)
    assert initial_weights(ours, "coco") == origin


def test_coco_weights_that_cannot_be_had_offer_a_way_out(network, monkeypatch, tmp_path):
    def refuse(*_args, **_options):
        raise OSError("no network")

    monkeypatch.setattr(weights_module, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(weights_module, "download_url_to_file", refuse)
    with pytest.raises(WeightsError, match=r"https://\S+ .*--init FILE\.pth, or --init random"):
        initial_weights(network, "coco")
    assert not list(tmp_path.rglob("*.pth"))


@pytest.mark.parametrize("content", [[1, 2], {"weight": 3}, {4: torch.zeros(2)}])
def test_a_torch_file_that_is_no_state_dict(network, tmp_path, content):
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(WeightsError, match=r"other\.pth"):
        initial_weights(network, str(path))


def test_devices():
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in {"cpu", "cuda", "mps"}
    with pytest.raises(DeviceError, match="unknown device"):
        choose_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="CUDA"):
            choose_device("cuda")
