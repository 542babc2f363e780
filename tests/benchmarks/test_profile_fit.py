"""``benchmarks/profile_fit.py``: what it fits is what GalSim draws."""

import galsim
import numpy as np
import pytest

BENCHMARK = "profile_fit"


def galaxy(kind, fwhm, x, y, shear):
    """Drawn by GalSim on 90×90 px, with a half-light radius of 3 px."""
    profile = kind(half_light_radius=3.0).shear(g1=shear[0], g2=shear[1])
    image = galsim.ImageD(90, 90, scale=1.0)
    centre = galsim.PositionD(x + 1, y + 1)
    convolved = galsim.Convolve(profile, galsim.Kolmogorov(fwhm=fwhm))
    return convolved.drawImage(image, center=centre).array


@pytest.mark.parametrize(
    ("name", "kind"), [("DISK", galsim.Exponential), ("BULGE", galsim.DeVaucouleurs)]
)
def test_mixtures_are_the_profiles(bench, name, kind):
    wanted = galaxy(kind, 4.0, 44.0, 45.5, (0.2, -0.1))
    y, x = np.indices(wanted.shape).astype(float)
    # tanh of the ellipticity is (1 - q) / (1 + q), GalSim's g.
    size = np.hypot(0.2, 0.1)
    e1, e2 = (np.arctanh(size) / size * g for g in (0.2, -0.1))
    shape = (44.0, 45.5, np.log(3.0), e1, e2)
    made = bench.drawn(shape, getattr(bench, name), bench.psf_mixture(4.0), x, y)
    assert np.abs(made - wanted).max() < 0.03 * wanted.max()
    assert made.sum() == pytest.approx(wanted.sum(), rel=0.05)


def test_a_pair_without_noise_is_fitted(bench):
    images = np.stack(
        [
            900 * galaxy(galsim.Exponential, 4.0, 40, 45, (0.1, 0.2)),
            400 * galaxy(galsim.DeVaucouleurs, 4.0, 48, 42, (0.0, 0.0)),
        ]
    )
    nothing = np.zeros(2)
    task = bench.Task(
        images.sum(axis=0), 1.0, bench.psf_mixture(4.0), np.array([40.4, 47.7]),
        np.array([44.8, 42.3]), nothing, np.array([900, 400]), images, nothing, nothing, nothing,
    )  # fmt: skip
    light, seconds = bench.fitted(task)
    assert light.ratio == pytest.approx(1, rel=0.08)
    assert (light.image_error < 0.003).all()
    assert (light.cosine > 0.998).all()
    assert seconds > 0
