"""``benchmarks/cosmos.py``: no galaxy is in both halves, and GalSim reads both."""

import pytest

BENCHMARK = "cosmos"


def test_halves(bench, test_data, tmp_path):
    galsim = pytest.importorskip("galsim")
    halves = bench.halve(test_data / "cosmos", tmp_path)
    assert halves == (tmp_path / "train", tmp_path / "test")
    read = [galsim.RealGalaxyCatalog("real_galaxy_catalog.fits", dir=str(half)) for half in halves]
    idents = [set(catalog.ident) for catalog in read]
    assert [len(some) for some in idents] == [25, 25]
    assert not idents[0] & idents[1]
    assert all(catalog.getGalImage(3).array.any() for catalog in read)
