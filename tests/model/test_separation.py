import numpy as np
import pytest
import torch

from galsep.model.fluxes import FluxFit
from galsep.model.separation import (
    SIDES,
    SeparationNetwork,
    cut_crops,
    exclusive,
    psf_terms,
    separate,
)
from galsep.model.symmetry import steadied
from galsep.scene import SoftMask


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(3)
    network = SeparationNetwork((16, 16, 16))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.08)
    return network.eval()


def without_weights():
    """A network whose weights are all zero: claims of one, and the data taken for noiseless."""
    network = SeparationNetwork((16, 16, 16))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    return network.eval()


def scene(height=230, width=230, dy=0, dx=0):
    """Three sources, two of which overlap, and their masks."""
    rng = np.random.default_rng(8)
    light = np.zeros((height, width), dtype=np.float32)
    masks, claims = [], []
    for y, x, size in ((100, 110, 9), (106, 116, 13), (80, 150, 30)):
        rows, columns = np.indices((size, size)) - size // 2
        bump = np.exp(-(rows**2 + columns**2) / (size / 2) ** 2).astype(np.float32)
        y0, x0 = y + dy - size // 2, x + dx - size // 2
        light[y0 : y0 + size, x0 : x0 + size] += 50 * bump
        masks.append(SoftMask(y0, x0, bump))
        claims.append(SoftMask(y0, x0, bump * np.float32(rng.uniform(0.5, 1))))
    noise = rng.normal(0, 1, (100, 100)).astype(np.float32)
    light[60 + dy : 160 + dy, 70 + dx : 170 + dx] += noise
    return light, np.ones(light.shape, dtype=bool), masks, claims


def test_shares_of_all_sources_add_up_to_less_than_one(network):
    light, usable, masks, claims = scene()
    total = np.zeros(light.shape)
    for part in separate(network, light, usable, masks, claims):
        assert part.share.shape == part.model.shape
        assert (part.share > 0).all()
        assert (part.model >= 0).all()
        total[part.slices] += part.share
    assert total.max() < 1
    assert total[masks[0].slices].max() > 0.2


def test_inside_masks_the_leftover_counts_half():
    network = without_weights()
    light, usable, masks, claims = scene()
    (part,) = separate(network, light, usable, masks[:1], claims[:1])
    inside = np.zeros(light.shape, dtype=bool)
    inside[masks[0].slices] = masks[0].probability > 0
    inside = inside[part.slices]
    assert part.share[inside] == pytest.approx(1 / 1.5)
    assert part.share[~inside] == pytest.approx(1 / 2)
    # An object that is larger than the largest crop has what would be left.
    large = SoftMask(0, 0, np.ones((230, 230), np.float32))
    small, whole = separate(network, light, usable, [masks[0], large], [claims[0], None])
    assert (small.share + whole.share[small.slices])[inside] == pytest.approx(1)


def test_a_faint_model_is_the_same_turned_by_half():
    network = without_weights()
    light, usable, masks, claims = scene()
    light /= 10
    (part,) = separate(network, light, usable, masks[1:2], claims[1:2])
    plain = (
        part.share
        * torch.nn.functional.softplus(torch.from_numpy(light), beta=5).numpy()[part.slices]
    )
    np.testing.assert_array_equal(part.model, steadied(plain, usable[part.slices]))
    assert abs(part.model - plain).max() > 0.01


def test_a_softmax_over_sources_and_leftover():
    claims = torch.tensor([1.0, 2.0, 0.5])
    shares = exclusive(claims, torch.tensor([4, 4, 7]), 9)
    both = torch.softmax(torch.tensor([0.0, 1.0, 2.0]), 0)
    assert torch.allclose(shares[:2], both[1:])
    assert shares[2] == pytest.approx(torch.sigmoid(torch.tensor(0.5)))


def test_what_is_told_of_a_psf():
    terms = psf_terms(np.array([4.0, 4 * np.e, np.nan]))
    assert terms == pytest.approx(np.array([[1, 0, 0], [1, 1, 1], [0, 0, 0]]))
    assert terms.dtype == np.float32


def test_the_network_is_told_how_wide_the_psf_is(network):
    untold, narrow, wide = (separate(network, *scene(), fwhm=fwhm) for fwhm in (None, 2, 8))
    for parts in zip(untold, narrow, wide, strict=True):
        assert len({part.flux for part in parts}) == 3
    again = separate(network, *scene(), fwhm=8)
    assert [part.flux for part in again] == [part.flux for part in wide]


def test_threads_do_not_change_gradients():
    rng = torch.Generator().manual_seed(4)
    claims = torch.randn(500_000, generator=rng).requires_grad_()
    # Many crops on few pixels, so that threads meet.
    index = torch.randint(50, (len(claims),), generator=rng)
    wanted = torch.rand(len(claims), generator=rng)
    gradients = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 4, 4, 4):
            torch.set_num_threads(threads)
            (gradient,) = torch.autograd.grad((exclusive(claims, index, 50) * wanted).sum(), claims)
            gradients.append(gradient)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


def test_parts_move_with_the_image(network):
    before = separate(network, *scene())
    after = separate(network, *scene(dy=7, dx=-3))
    for a, b in zip(before, after, strict=True):
        assert (b.y0 - a.y0, b.x0 - a.x0) == (7, -3)
        assert b.share == pytest.approx(a.share, abs=1e-4)
        assert b.flux == pytest.approx(a.flux, rel=1e-4)


def test_the_order_of_sources_does_not_matter(network):
    light, usable, masks, claims = scene()
    forwards = separate(network, light, usable, masks, claims)
    backwards = separate(network, light, usable, masks[::-1], claims[::-1])
    for a, b in zip(forwards, backwards[::-1], strict=True):
        assert b.flux == pytest.approx(a.flux, rel=1e-5)


def test_crops_hold_their_mask_in_the_middle_and_see_nothing_beyond_the_image():
    light, usable, masks, claims = scene()
    usable[105:110] = False
    corner = SoftMask(0, 220, np.ones((6, 10), dtype=np.float32))
    crops = cut_crops(light, usable, [*masks, corner], [*claims, None])
    assert crops.side.tolist() == [32, 48, 96, 48]
    assert (crops.y0[3], crops.x0[3]) == (-21, 201)
    assert crops.light[3][:21].sum() == 0
    own, claim, rivals, _, seen = crops.layers[3]
    assert own.sum() == claim.sum() == 60
    assert rivals.sum() == 0
    assert seen[21:, :29].all()
    assert not seen[:21].any()
    assert crops.layers[0][2].sum() > 0
    assert not crops.layers[0][4][105 - crops.y0[0]].any()


def test_unusable_pixels_have_no_model(network):
    light, usable, masks, claims = scene()
    usable[98:102] = False
    light[98:102] = 0
    part = separate(network, light, usable, masks, claims)[0]
    assert (part.model[98 - part.y0 : 102 - part.y0] == 0).all()
    assert part.model.sum() > 0


def test_a_source_larger_than_any_crop_gets_what_is_left(network):
    light, usable, masks, claims = scene()
    large = SoftMask(5, 5, np.ones((140, SIDES[-1] + 5), dtype=np.float32))
    parts = separate(network, light, usable, [large, *masks], [None, *claims])
    total = np.zeros(light.shape)
    for part in parts:
        total[part.slices] += part.share
    assert np.allclose(total[large.slices], 1, atol=1e-5)
    assert parts[0].share[-1, 0] == 1


def test_the_fit_corrects_flux_and_error(network):
    plain = separate(network, *scene())
    fit = FluxFit((1.0, 1e6), (np.log(1.1), np.log(1.1)), 2.0)
    for a, b in zip(plain, separate(network, *scene(), fit=fit), strict=True):
        assert b.flux == pytest.approx(1.1 * a.flux)
        assert b.model.sum() == pytest.approx(np.sqrt(1.1) * a.model.sum())
        assert b.flux_err == pytest.approx(2 * a.flux_err)
    fit = FluxFit((10.0, 1000.0), (0.0, 1.0), 1.0)
    assert fit.correction(5.0) == fit.correction(10.0) == 1
    assert fit.correction(100.0) == pytest.approx(np.exp(0.25))


def test_no_sources(network):
    light, usable, _, _ = scene()
    assert separate(network, light, usable, [], []) == []


def test_flux_corrections_are_bounded():
    """Else a step too large overflows the loss."""
    network = SeparationNetwork((16, 16, 16))
    with torch.no_grad():
        for parameter in network.summary.parameters():
            parameter.fill_(1e6)
    _, _, summary = network(torch.ones(1, 32, 32), torch.ones(1, 5, 32, 32), torch.ones(1, 3))
    assert (summary.exp() ** 2).isfinite().all()
