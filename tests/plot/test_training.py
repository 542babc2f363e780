"""The course of a training run."""

import pytest

from galsep.plot import training
from galsep.plot.training import plot_losses

PARTS = {"loss_mask": "L_mask: which pixels", "loss_share": "which part"}


def history(*scores):
    names = [f"{kind}_{part}" for kind in ("train", "validation") for part in ("loss", *PARTS)]
    for epoch, f1 in enumerate(scores, 1):
        yield {"epoch": float(epoch), **dict.fromkeys(names, 1 / epoch)} | (
            {} if f1 is None else {"validation_f1": f1}
        )


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draw, and give the panels that show something."""

    def draw(*scores):
        figures = []
        monkeypatch.setattr(training, "save_figure", lambda figure, _: figures.append(figure))
        plot_losses(list(history(*scores)), PARTS, tmp_path / "losses.png")
        return [axes for axes in figures[0].axes if axes.axison]

    return draw


def test_f1_is_shown_beside_the_losses_with_the_best_epoch_marked(drawn):
    *losses, f1 = drawn(0.5, 0.8, 0.7, 0.8)
    assert [axes.get_ylabel() for axes in losses] == ["loss"] * 3
    curve, best = f1.get_lines()
    assert curve.get_xydata().tolist() == [[1, 0.5], [2, 0.8], [3, 0.7], [4, 0.8]]
    assert best.get_xydata().tolist() == [[2, 0.8]]
    assert f1.get_title() == "validation F1: best 0.800, epoch 2"


def test_without_f1_there_are_losses_alone(drawn):
    assert [axes.get_ylabel() for axes in drawn(None, None)] == ["loss"] * 3
