"""``benchmarks/cosmos.py``: no galaxy is in both halves, and GalSim reads both."""

import importlib.util
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "cosmos.py"
if not FILE.is_file():
    pytest.skip("the benchmarks are not part of the package", allow_module_level=True)


def test_halves(test_data, tmp_path):
    galsim = pytest.importorskip("galsim")
    spec = importlib.util.spec_from_file_location("cosmos", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    halves = module.halve(test_data / "cosmos", tmp_path)
    assert halves == (tmp_path / "train", tmp_path / "test")
    read = [galsim.RealGalaxyCatalog("real_galaxy_catalog.fits", dir=str(half)) for half in halves]
    idents = [set(catalog.ident) for catalog in read]
    assert [len(some) for some in idents] == [25, 25]
    assert not idents[0] & idents[1]
    assert all(catalog.getGalImage(3).array.any() for catalog in read)
