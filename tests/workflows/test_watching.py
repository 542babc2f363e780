import sys

import pytest

from galsep.config import SimulateConfig, TrainConfig
from galsep.errors import UsageError
from galsep.io.dataset import load_dataset
from galsep.model.weights import load_model
from galsep.workflows.simulate import simulate
from galsep.workflows.train import train
from galsep.workflows.watching import Board


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "set"
    simulate(folder, SimulateConfig(n=40, seed=2, workers=1))
    return folder


@pytest.mark.filterwarnings("default")
def test_curves_and_pictures_are_read_back(dataset, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def row(epoch, loss):
        return {"epoch": epoch, "seconds": 2.0, "train_loss": loss, "validation_loss": 2 * loss}

    board = Board(tmp_path, 0)
    board.figures(row(1.0, 3.0))
    board.figures(row(2.0, 9.0))
    board.pictures(load_model(device="cpu"), load_dataset(dataset), 1)
    board.close()
    # A process that stopped in the second epoch and was resumed.
    board = Board(tmp_path, 1)
    board.figures(row(2.0, 2.5))
    board.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert {"loss/train", "loss/validation", "seconds"} == set(events.Tags()["scalars"])
    curve = [(point.step, point.value) for point in events.Scalars("loss/train")]
    assert curve == [(1, 3.0), (2, 2.5)]
    (picture,) = events.Images("found")
    assert (picture.width, picture.height) == (416, 448)


def test_without_tensorboard_nothing_is_begun(dataset, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    config = TrainConfig(tensorboard=True, device="cpu")
    with pytest.raises(UsageError, match=r"pip install 'galsep\[tensorboard\]'"):
        train(dataset, tmp_path / "run", config)
    assert not (tmp_path / "run").exists()
