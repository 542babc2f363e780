"""Pictures as text: addresses that hold an image, figures, outlines as paths."""

import base64
import io
import itertools
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.image import imread

from galsep.plot.canvas import binned, new_figure
from galsep.plot.embed import INK, figure_svg, image_uri, outline_path
from galsep.scene import Footprint


def corners(path):
    """Loops of a path, each a list of its corners."""
    loops = []
    for move in path.split("z")[:-1]:
        x, y, rest = re.fullmatch(r"M(-?\d+) (-?\d+)(.*)", move).groups()
        here = [int(x), int(y)]
        loop = [tuple(here)]
        for axis, step in re.findall(r"([hv])(-?\d+)", rest):
            here[axis == "v"] += int(step)
            loop.append(tuple(here))
        loops.append(loop)
    return loops


def area(loop):
    """Signed area by the shoelace formula: positive counter-clockwise."""
    x, y = np.array(loop).T
    return 0.5 * float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))


def test_a_pixel_is_a_square():
    (loop,) = corners(outline_path(Footprint(3, 5, np.ones((1, 1), bool))))
    assert loop == [(5, 3), (6, 3), (6, 4), (5, 4)]


def test_paths_are_relative_to_their_window():
    footprint = Footprint(3, 5, np.ones((2, 3), bool))
    (loop,) = corners(outline_path(footprint, 2, 5))
    assert set(loop) == {(0, 1), (3, 1), (3, 3), (0, 3)}


def test_the_enclosed_area_is_the_number_of_pixels():
    rng = np.random.default_rng(1)
    for _ in range(20):
        mask = rng.random((7, 9)) < 0.55
        mask[3, 4] = True
        loops = corners(outline_path(Footprint(0, 0, mask)))
        # Holes run the other way round.
        assert sum(area(loop) for loop in loops) == mask.sum()
        for loop in loops:
            ends = [*loop, loop[0]]
            assert all((a[0] == b[0]) != (a[1] == b[1]) for a, b in itertools.pairwise(ends))


def test_nothing_has_no_outline():
    assert outline_path(Footprint(0, 0, np.zeros((0, 0), bool))) == ""


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 3)])
def test_a_picture_comes_back_with_its_first_row_at_the_bottom(shape):
    picture = np.zeros(shape)
    picture[0] = 1
    kind, data = image_uri(picture).split(";base64,")
    assert kind == "data:image/png"
    shown = imread(io.BytesIO(base64.b64decode(data)), format="png")
    assert shown[-1, :, :3].min() == 1
    assert shown[:-1, :, :3].max() == 0


def test_large_pictures_are_jpeg():
    noise = np.random.default_rng(0).random((700, 700))
    uri = image_uri(noise)
    assert uri.startswith("data:image/jpeg;base64,")
    assert len(uri) < noise.size


def test_a_figure_is_an_element_in_the_page_s_ink():
    def draw():
        figure = new_figure(3, 2)
        figure.text(0.5, 0.5, "words < more", color=INK)
        return figure_svg(figure)

    text = draw()
    assert text == draw()
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg")
    assert root.get("width") is None
    assert root.get("height") is None
    assert "words &lt; more" in text
    assert "currentColor" in text
    assert INK not in text


def test_binning_leaves_out_what_is_unusable():
    light = np.arange(30.0).reshape(5, 6)
    light[0, 0] = np.nan
    light[:2, 4:] = np.nan
    means = binned(light, 2)
    assert means.shape == (2, 3)
    assert means[0, 0] == np.mean([1, 6, 7])
    assert np.isnan(means[0, 2])
    assert means[1, 1] == light[2:4, 2:4].mean()


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1)])
def test_binning_of_what_is_thinner_than_a_block(shape):
    light = np.arange(float(np.prod(shape))).reshape(shape)
    means = binned(light, 4)
    assert means.shape == tuple(max(1, side // 4) for side in shape)
    assert means.ravel()[0] == light.ravel()[:4].mean()


def test_binning_in_strips_is_the_same(monkeypatch):
    light = np.random.default_rng(0).normal(size=(31, 29)).astype(np.float32)
    whole = binned(light, 3)
    monkeypatch.setattr("galsep.plot.canvas.STRIP", 1)
    np.testing.assert_array_equal(binned(light, 3), whole)
