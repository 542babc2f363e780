"""What ``galsep.deblend`` returns, in Python: words, pictures, photutils."""

import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from astropy.table import Table
from photutils.segmentation import SourceCatalog

from galsep.flags import Flag
from galsep.image.light import Light
from galsep.plot.colors import MISSED_COLOR
from galsep.plot.outlines import edges
from galsep.scene import Footprint, SourceLight
from galsep.workflows.measuring import Band
from galsep.workflows.result import DeblendResult

SHAPE = (40, 60)


def result(boxes, flags=(), weights="f46221d8f666a3a1"):
    """Sources that are rectangles ``x0, y0, width, height``, the later ones on top.

    Each has half of the light of its pixels, also in the band ``r``, which is twice as bright.
    """
    n = len(boxes)
    segm = np.zeros(SHAPE, np.int32)
    light = np.random.default_rng(0).normal(0, 1, SHAPE).astype(np.float32)
    masks = []
    for label, (x, y, width, height) in enumerate(boxes, 1):
        masks.append(Footprint(y, x, np.ones((height, width), bool)))
        segm[masks[-1].slices] = label
        light[masks[-1].slices] += 20
    catalog = Table(
        {
            "label": np.arange(1, n + 1),
            "x_centroid": np.array([x + (w - 1) / 2 for x, _, w, _ in boxes], float),
            "y_centroid": np.array([y + (h - 1) / 2 for _, y, _, h in boxes], float),
            "flags": np.array(flags or [0] * n, int),
        },
        meta={"WEIGHTS": weights} if weights else {},
    )
    sky = np.ones(SHAPE, np.float32)
    noverlap = np.zeros(SHAPE, np.uint8)
    halves = [np.full(m.mask.shape, 0.5, np.float32) for m in masks]
    separated, brighter = (
        [SourceLight(m.y0, m.x0, h, k * h, 0, 0) for m, h in zip(masks, halves, strict=True)]
        for k in (20, 40)
    )
    in_r = Light(2 * light, light > np.inf, 0 * sky, sky, None, None)
    bands = {"r": Band(in_r, brighter, None)}
    return DeblendResult(
        catalog, segm, masks, noverlap, Table(), 0 * sky, sky, light, separated, bands
    )


@pytest.fixture
def two():
    return result([(5, 6, 4, 3), (30, 20, 5, 5)], flags=[0, int(Flag.NETWORK_MISSED)])


def test_repr_says_what_matters_in_a_line(two):
    assert repr(two) == (
        "<DeblendResult: image 60×40 px, sources 2, flagged 1, weights sha256:f46221d8f666>"
    )
    assert "weights" not in repr(result([], weights=""))


def test_html_is_small_and_whole(two):
    html = two._repr_html_()
    assert len(html) < 500
    cells = [cell.text for cell in ElementTree.fromstring(html).iter("td")]
    assert cells == ["60×40 px", "2", "1", "sha256:f46221d8f666"]


def test_segmentation_image(two):
    image = two.to_segmentation_image()
    assert image.labels.tolist() == [1, 2]
    assert image.areas.tolist() == [12, 25]
    sources = SourceCatalog(two.light, image)
    assert sources.x_centroid == pytest.approx([6.5, 32], abs=0.2)
    image.data[:] = 0
    assert two.segm.max() == 2
    assert result([]).to_segmentation_image().n_labels == 0


def test_plot_on_given_axes(two):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    assert two.plot(axes) is axes
    (lines,) = axes.collections[:1]
    # One side of a pixel each: the perimeters.
    assert len(lines.get_segments()) == 2 * (4 + 3) + 2 * (5 + 5)
    colors = {tuple(color) for color in lines.get_colors()[14:]}
    from matplotlib.colors import to_rgba

    assert colors == {to_rgba(MISSED_COLOR)}
    assert axes.get_xlim() == (-0.5, 59.5)
    assert axes.get_ylim() == (-0.5, 39.5)
    axes.figure.canvas.draw()


def test_plot_on_a_figure_of_its_own_and_without_sources():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes = result([]).plot()
    assert axes.figure.number in pyplot.get_fignums()
    pyplot.close(axes.figure)


def test_edges_bound_the_pixels():
    sides = edges(Footprint(10, 20, np.ones((1, 1), bool)))
    found = {tuple(sorted(map(tuple, side.tolist()))) for side in sides}
    assert found == {
        ((19.5, 9.5), (20.5, 9.5)),
        ((19.5, 10.5), (20.5, 10.5)),
        ((19.5, 9.5), (19.5, 10.5)),
        ((20.5, 9.5), (20.5, 10.5)),
    }
    hole = np.ones((3, 3), bool)
    hole[1, 1] = False
    assert len(edges(Footprint(0, 0, hole))) == 16


def test_matplotlib_and_photutils_are_loaded_when_asked_for():
    code = (
        "import sys, galsep; galsep.deblend; "
        "print([m for m in ('matplotlib', 'photutils') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_light_and_models_lie_where_their_sources_are(two):
    light, model = two.light_of(2), two.model_of(2)
    assert light.shape == model.shape == SHAPE
    box = np.s_[20:25, 30:35]
    assert light[box] == pytest.approx(two.light[box] / 2)
    assert (model[box] == 10).all()
    light[box] = model[box] = 0
    assert not light.any()
    assert not model.any()


@pytest.mark.parametrize("band", ["", "r"])
def test_light_and_residual_add_up(two, band):
    light = two.bands["r"].image.light if band else two.light
    before = light.copy()
    parts = [two.light_of(label, band) for label in (1, 2)]
    assert sum(parts) + two.residual(band) == pytest.approx(light, rel=1e-6)
    assert parts[0].sum() > 0
    assert np.array_equal(light, before)


def test_bands_have_light_of_their_own(two):
    assert np.array_equal(two.light_of(1, "r"), 2 * two.light_of(1))
    assert np.array_equal(two.model_of(1, "r"), 2 * two.model_of(1))
    assert np.array_equal(two.residual("r"), 2 * two.residual())


@pytest.mark.parametrize("label", [0, -1, 3])
def test_labels_that_are_not_there(two, label):
    for method in (two.light_of, two.model_of):
        with pytest.raises(KeyError, match=str(label)):
            method(label)


def test_bands_that_are_not_there(two):
    for call in (lambda: two.light_of(1, "u"), lambda: two.model_of(1, "u")):
        with pytest.raises(KeyError, match="u"):
            call()
    with pytest.raises(KeyError, match="u"):
        two.residual("u")
