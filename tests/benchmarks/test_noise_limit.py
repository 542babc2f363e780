"""``benchmarks/noise_limit.py``: what the noise leaves of a source beside others."""

import numpy as np
import pytest

BENCHMARK = "noise_limit"

SIDE = 60


def gaussian(flux, x0, y0, width, e1=0.0, e2=0.0):
    y, x = np.mgrid[:SIDE, :SIDE]
    dx, dy = x - x0, y - y0
    # The shear to first order.
    u, v = dx * (1 - e1) - dy * e2, dy * (1 + e1) - dx * e2
    profile = np.exp(-(u**2 + v**2) / (2 * width**2)) / (2 * np.pi * width**2)
    return flux * profile


def test_alone_it_is_that_of_the_source(bench):
    light = gaussian(100, 30, 30, 3)
    assert bench.beside_neighbours(light[None]) == pytest.approx([np.sqrt((light**2).sum())])
    far = np.stack([gaussian(100, 12, 12, 2), gaussian(50, 48, 48, 2)])
    np.testing.assert_allclose(bench.beside_neighbours(far), np.sqrt((far**2).sum(axis=(1, 2))))


@pytest.mark.parametrize("distance", [3, 5, 8])
def test_beside_another_it_is_that_of_a_fit(bench, distance):
    own, other = (60, 30, 30, 3.0), (200, 30 + distance, 31, 3.5)
    light = np.stack([gaussian(*own), gaussian(*other)])
    # Flux of the one; flux, position, size and shape of the other, by differences.
    step = 1e-4
    columns = [gaussian(1, *own[1:])]
    for k in range(6):
        change = np.zeros(6)
        change[k] = step
        high, low = (gaussian(*(np.array([*other, 0, 0]) + sign * change)) for sign in (1, -1))
        columns.append((high - low) / (2 * step))
    matrix = np.stack([column.ravel() for column in columns], axis=1)
    error = np.sqrt(np.linalg.inv(matrix.T @ matrix)[0, 0])
    snr = bench.beside_neighbours(light)[0]
    assert snr == pytest.approx(own[0] / error, rel=0.06)
    assert snr < np.sqrt((light[0] ** 2).sum())


def test_what_lies_on_an_equal_one_cannot_be_told(bench):
    light = gaussian(100, 30, 30, 3)
    assert bench.beside_neighbours(np.stack([light, 2 * light])) == pytest.approx([0, 0], abs=1e-6)


def test_rows_count_each_source_once(bench):
    table = np.array([[1, 0, 0], [6.9, 1, 0], [7, 1, 1], [80, 1, 1]], dtype=float)
    rows = bench.rows(table)
    *bins, below, above, whole = rows
    assert sum(row["n"] for row in bins) == whole["n"] == 4
    assert (below["n"], below["share"], below["galsep"], below["SEP"]) == (2, 0.5, 0.5, 0.0)
    assert (above["n"], above["galsep"]) == (2, 1.0)
    assert all(row["galsep"] is None for row in bins if not row["n"])
