import pytest
import torch

from galsep.model import draws

SEEDS = torch.tensor([1, 2, 2**61 + 5])


def test_numbers_belong_to_their_seed_and_place():
    keys = draws.keys(SEEDS, 50, draws.ANCHORS)
    assert torch.equal(draws.keys(SEEDS[[2, 0]], 20, draws.ANCHORS), keys[[2, 0], :20])
    assert len(set(keys.flatten().tolist())) == 150
    assert not torch.equal(draws.keys(SEEDS, 50, draws.BOXES), keys)


def test_integers_are_uniform():
    share = draws.keys(torch.arange(200), 500, draws.ANCHORS).double() / 2**63
    assert share.min() >= 0
    assert share.max() < 1
    counts = torch.histc(share.flatten(), 10, 0, 1)
    assert counts.tolist() == pytest.approx([10_000] * 10, rel=0.05)
    # Neighbouring seeds and places know nothing of each other.
    for table in (share, share.T):
        assert abs(float(torch.corrcoef(table[:2])[0, 1])) < 0.2
    assert abs(float(torch.corrcoef(torch.stack([share[:-1].flatten(), share[1:].flatten()]))[0, 1])
               ) < 0.02  # fmt: skip


def test_normal_numbers_are_normal():
    drawn = draws.normal(torch.arange(100), 1000, draws.BOXES)
    assert drawn.dtype == torch.float32
    assert torch.isfinite(drawn).all()
    assert float(drawn.mean()) == pytest.approx(0, abs=0.02)
    assert float(drawn.std()) == pytest.approx(1, abs=0.02)
    assert float((drawn.abs() > 1.96).float().mean()) == pytest.approx(0.05, abs=0.005)
