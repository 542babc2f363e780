"""The preview: legible on the largest image and on the smallest."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread

from galsep.flags import Flag
from galsep.plot import preview as module
from galsep.plot.canvas import Shown
from galsep.plot.preview import Preview, plot_preview, regions_of_interest
from galsep.scene import Footprint


def make(shape, positions, blendedness=None, flags=None):
    n = len(positions)
    light = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    footprints = [Footprint(y - 2, x - 2, np.ones((5, 5), bool)) for x, y in positions]
    x, y = np.array(positions, dtype=float).reshape(-1, 2).T
    return Preview(
        Shown(light, 1.0), footprints, x, y,
        np.zeros(n, dtype=np.int64) if flags is None else np.array(flags),
        np.zeros(n) if blendedness is None else np.array(blendedness),
        "image.fits",
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(64, 64), (20, 90), (1, 1)])
def test_small_images_are_enlarged(tmp_path, shape):
    positions = [(10, 10)] if min(shape) > 15 else []
    plot_preview(make(shape, positions), tmp_path / "p.png")
    picture = imread(tmp_path / "p.png")
    # Half a kilopixel a panel at least, so that the words above fit.
    assert picture.shape[1] > 700
    if positions:
        colored = np.ptp(picture[..., :3], axis=-1) > 0.3
        assert colored.sum() > 4 * 5 * (700 // max(shape))


def test_large_images_show_their_most_blended_regions(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LARGEST_SIDE", 400)
    many = make(
        (500, 900),
        [(100, 100), (110, 100), (600, 300), (880, 490), (300, 300)],
        [0.5, 0.4, 0.9, 0.2, 0.0],
        [0, 0, 0, int(Flag.NETWORK_MISSED), 0],
    )
    regions = regions_of_interest(many, 9)
    # The most blended first, neighbours once, inside the image.
    assert regions == [(540, 240), (40, 40), (780, 380), (240, 240)]
    assert regions_of_interest(many, 2) == regions[:2]
    titles = []
    monkeypatch.setattr(Axes, "set_title", lambda axes, text, **_: titles.append(text))
    plot_preview(many, tmp_path / "p.png")
    assert imread(tmp_path / "p.png").shape[:2] == (1300, 2500)
    # Where to look for them in another viewer.
    assert titles[:2] == ["1: around x 600, y 300", "2: around x 100, y 100"]


def test_a_large_image_without_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LARGEST_SIDE", 100)
    plot_preview(make((90, 150), []), tmp_path / "p.png")
    assert imread(tmp_path / "p.png").shape[:2] == (1300, 2500)


def test_equal_previews_give_equal_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        plot_preview(make((64, 64), [(20, 30)]), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
