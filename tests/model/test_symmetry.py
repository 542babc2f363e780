import numpy as np
import pytest
import torch

from galsep.model.symmetry import LOBES, NOISE, SYSTEMATIC, steadied, steadied_crops

SIDE = 48
WHOLE = np.ones((SIDE, SIDE), dtype=bool)
Y, X = np.mgrid[:SIDE, :SIDE]


def disk(y=22.3, x=25.7, peak=10.0, major=3.2, minor=2.2, angle=0.4):
    """A Gaussian with axes of these widths."""
    cos, sin = np.cos(angle), np.sin(angle)
    along, across = (X - x) * cos + (Y - y) * sin, (Y - y) * cos - (X - x) * sin
    return (peak * np.exp(-0.5 * ((along / major) ** 2 + (across / minor) ** 2))).astype(np.float32)


def off(model, truth):
    """Sum of squares of an error, over the truth's."""
    return float(((model - truth) ** 2).sum() / (truth**2).sum())


def bumpy(truth, rng, size):
    """A model that is off by smooth noise where it has light."""
    from scipy.ndimage import gaussian_filter

    bumps = gaussian_filter(rng.standard_normal(truth.shape), 1.0)
    return np.maximum(truth + size * bumps * (truth / truth.max()) ** 0.5, 0).astype(np.float32)


@pytest.mark.parametrize("centre", [(22.0, 25.0), (22.5, 25.5), (21.73, 26.21), (30.2, 17.9)])
def test_what_is_symmetric_stays(centre):
    model = disk(*centre)
    steady = steadied(model, WHOLE)
    assert steady.dtype == np.float32
    np.testing.assert_allclose(steady, model, atol=0.002 * model.max())


def test_noise_is_halved_and_flux_is_kept():
    rng = np.random.default_rng(1)
    truth = disk(peak=3.0)
    before, after = [], []
    for _ in range(60):
        model = bumpy(truth, rng, 0.5)
        steady = steadied(model, WHOLE)
        before.append(off(model, truth))
        after.append(off(steady, truth))
        assert steady.sum() == pytest.approx(model.sum(), rel=2e-3)
        assert (steady >= 0).all()
    # Errors of position and of symmetric form are left.
    assert np.mean(after) < 0.8 * np.mean(before)


def test_what_a_bright_galaxy_has_on_one_side_stays():
    arm = disk(26.0, 30.0, 0.2, 1.5, 1.5)
    shares = []
    for peak in (3.0, 3000.0):
        model = peak * (disk(peak=1.0) + arm)
        shares.append(off(steadied(model, WHOLE), model) / off(peak * disk(peak=1.0), model))
    faint, bright = shares
    assert faint > 0.1
    assert bright < 1e-3 * faint


def test_asymmetry_fades_in_with_brightness():
    """Squares of what is odd shrink by the noise that is expected of them."""
    lopsided = disk(peak=1.0) * np.maximum(1 + 0.05 * (X - 25.7) / 3, 0).astype(np.float32)

    def odd(model):
        symmetric = steadied(model * np.float32(1e-3), WHOLE) * 1000
        return model - symmetric

    unit = odd(lopsided)
    for excess in (1.5, 4.0):
        peak = np.sqrt(excess * NOISE / (unit**2).sum()).astype(np.float32)
        model = peak * lopsided
        noise = NOISE + SYSTEMATIC**2 * (model**2).sum()
        kept = 1 - noise / (odd(model) ** 2).sum()
        moved = model - steadied(model, WHOLE)
        assert moved.sum(where=X > 28) == pytest.approx(
            (1 - max(kept, 0)) * odd(model).sum(where=X > 28), rel=0.02
        )


def test_pixels_without_a_usable_counterpart_stay():
    rng = np.random.default_rng(2)
    model = bumpy(disk(peak=3.0), rng, 0.5)
    usable = WHOLE.copy()
    usable[:, 33] = False
    model[~usable] = 0
    steady = steadied(model, usable)
    assert not steady[~usable].any()
    # The gap's counterpart about x ≈ 25.7, as wide as the kernel.
    same = steady == model
    assert same[:, 18].all()
    assert same[:, 19 - LOBES : 18 + LOBES].all()
    assert not same[15:30, 25].any()


def test_a_source_cut_through_its_core_stays_as_it_is():
    rng = np.random.default_rng(3)
    model = bumpy(disk(y=-1.0, peak=5.0), rng, 0.5)
    np.testing.assert_array_equal(steadied(model, WHOLE), model)
    narrow = disk()[20:25, 24:28]
    np.testing.assert_array_equal(steadied(narrow, np.ones(narrow.shape, dtype=bool)), narrow)


def test_nothing_stays_nothing():
    nothing = np.zeros((SIDE, SIDE), dtype=np.float32)
    assert not steadied(nothing, WHOLE).any()


def test_training_sees_the_same():
    rng = np.random.default_rng(4)
    arm = disk(26.0, 30.0, 2.0, 1.5, 1.5)
    usable = np.ones((5, SIDE, SIDE), dtype=bool)
    usable[1, :, 33] = False
    usable[2, 30:] = False
    models = np.stack(
        [
            bumpy(disk(peak=3.0), rng, 0.5),
            bumpy(disk(peak=3.0), rng, 0.5),
            bumpy(disk(y=31.0), rng, 0.5),
            bumpy(disk() + arm, rng, 0.5),
            np.zeros((SIDE, SIDE), dtype=np.float32),
        ]
    )
    models *= usable
    alone = np.stack([steadied(*pair) for pair in zip(models, usable, strict=True)])
    together = steadied_crops(torch.from_numpy(models), torch.from_numpy(usable).float())
    np.testing.assert_allclose(together.numpy(), alone, atol=1e-4)
    assert (alone != models).any(axis=(1, 2)).tolist() == [True, True, False, True, False]


def test_gradients_are_halved_between_counterparts():
    model = torch.from_numpy(bumpy(disk(peak=3.0), np.random.default_rng(5), 0.5))[None]
    model.requires_grad_()
    usable = torch.ones_like(model)
    steadied_crops(model, usable)[0, 20:24, 28:32].sum().backward()
    gradient = model.grad[0]
    assert gradient[20:24, 28:32].sum() == pytest.approx(8, rel=0.05)
    # About (22.3, 25.7).
    assert gradient[19:27, 18:26].sum() == pytest.approx(8, rel=0.05)
