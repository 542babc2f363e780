"""The stretch of light, in grey and in colour."""

import numpy as np
import pytest

from galsep.plot.canvas import MASKED_COLOR, Shown, new_figure, scale_counts


@pytest.fixture
def sky():
    return np.random.default_rng(1).normal(0, 2.0, (40, 50))


@pytest.mark.parametrize(("most", "scale"), [(3, "linear"), (300, "symlog")])
def test_numbers_of_sources_have_whole_ticks(most, scale):
    axes = new_figure(3, 2).subplots()
    axes.bar([0, 1], [1, most])
    scale_counts(axes)
    assert axes.get_yscale() == scale
    low, high = axes.get_ylim()
    ticks = [tick for tick in axes.get_yticks() if low <= tick <= high]
    assert len(ticks) >= 3
    assert all(tick == int(tick) for tick in ticks)


def test_three_equal_bands_are_grey(sky):
    sky[20, 20] = 500
    picture = Shown(sky, 2.0, [(sky, 2.0)] * 3).picture()
    assert np.ptp(picture, axis=2).max() <= 1.5 / 255
    assert picture[20, 20].min() > 0.95
    assert 0.1 < np.median(picture) < 0.5


def test_colours_are_those_of_the_bands_in_units_of_their_noise(sky):
    blue, green, red = (3.0 * sky).copy(), sky.copy(), sky.copy()
    blue[5, 5] += 6 * 40
    red[30, 30] += 2 * 40
    # White in each: 40 rms, whatever the unit.
    for band, unit in ((blue, 6.0), (green, 2.0), (red, 2.0)):
        band[15, 15] = 40 * unit
    picture = Shown(green, 2.0, [(blue, 6.0), (green, 2.0), (red, 2.0)]).picture(top=60)
    assert picture[5, 5].argmax() == 2
    assert picture[30, 30].argmax() == 0
    assert np.ptp(picture[15, 15]) <= 1.5 / 255
    assert picture[5, 5].max() > 0.5 > picture[5, 5].min()


def test_colour_needs_three_bands(sky):
    assert (Shown(sky, 2.0, [(sky, 2.0)] * 2).picture() == Shown(sky, 2.0).picture()).all()


def test_unusable_pixels_are_violet_at_any_size(sky):
    light = sky.copy()
    light[:10, :10] = np.nan
    image = Shown(light, 2.0, [(sky, 2.0)] * 3)
    assert image.picture()[3, 3] == pytest.approx(MASKED_COLOR)
    assert image.picture(factor=5).shape == (8, 10, 3)
    assert image.picture(factor=5)[1, 1] == pytest.approx(MASKED_COLOR)
    part = image.cut(slice(5, 25), slice(0, 10))
    assert part.shape == (20, 10)
    assert part.bands[0][0].shape == (20, 10)
