import pytest

from galsep.config import SimulateConfig
from galsep.io.dataset import load_dataset
from galsep.workflows.simulate import simulate


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """A small data set of galaxy pairs with some stars."""
    folder = tmp_path_factory.mktemp("data") / "pairs"
    simulate(folder, SimulateConfig(n=40, stars=0.2, seed=5, workers=1))
    return load_dataset(folder)
