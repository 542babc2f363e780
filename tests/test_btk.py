"""galsep as a deblender of BTK; most environments lack BTK, which pins astropy below 7."""

import dataclasses

import numpy as np
import pytest

from galsep.config import DeblendConfig

btk = pytest.importorskip("btk")

# BTK hands GalSim arrays of one element where it takes numbers.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0")


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """Six blends of BTK's own, drawn from a catalogue that galsep wrote."""
    from btk.catalog import CatsimCatalog
    from btk.draw_blends import CatsimGenerator

    from galsep.config import SimulateConfig
    from galsep.workflows.simulate import write_population

    path = tmp_path_factory.mktemp("btk") / "galaxies.fits"
    write_population(path, SimulateConfig(n=200, bands=("u", "g", "r", "i", "z", "y")))
    sampling = btk.sampling_functions.DefaultSampling(max_number=3, max_mag=24, seed=2)
    survey = btk.survey.get_surveys("LSST")
    return next(
        CatsimGenerator(CatsimCatalog.from_file(path), sampling, survey, batch_size=6, seed=2)
    )


@pytest.fixture(scope="module")
def deblender():
    from galsep.btk import GalsepDeblender

    return GalsepDeblender(10, 3, DeblendConfig(device="cpu"))


def test_sources_lie_where_btk_put_them(batch, deblender):
    found = deblender(batch)
    nearest = []
    assert found.segmentation.shape == (6, 10, batch.image_size, batch.image_size)
    assert found.deblended_images.shape == (6, 10, 1, batch.image_size, batch.image_size)
    for truth, table, masks, light in zip(
        batch.catalog_list, found.catalog_list, found.segmentation, found.deblended_images,
        strict=True,
    ):  # fmt: skip
        n = len(table)
        assert masks[:n].any(axis=(1, 2)).all()
        assert not masks[n:].any()
        # The models go on beyond the masks, which end where the noise begins.
        assert not light[n:].any()
        assert (light[:n, 0] * masks[:n]).sum() > 0.5 * light.sum() > 0
        distance = np.hypot(
            table["x_peak"][:, None] - truth["x_peak"], table["y_peak"][:, None] - truth["y_peak"]
        )
        nearest += distance.min(axis=1).tolist()
        np.testing.assert_allclose(
            np.hypot(table["ra"][:, None] - truth["ra"], table["dec"][:, None] - truth["dec"]),
            distance * 0.2,
            atol=0.02,
        )
    assert len(nearest) >= 6
    assert np.mean(np.array(nearest) < 2) > 0.7


def test_one_blend_is_as_in_its_batch(batch, deblender):
    one = deblender.deblend(4, batch)
    np.testing.assert_array_equal(one.segmentation, deblender(batch).segmentation[4])


def test_too_many_sources_are_an_error(batch):
    from galsep.btk import GalsepDeblender

    small = GalsepDeblender(0, 3, DeblendConfig(device="cpu"))
    with pytest.raises(ValueError, match="max_n_sources = 0; give a larger one"):
        small(batch)


def test_classes_are_judged_by_the_psf(batch, deblender):
    import galsep

    fwhm = float(batch.psf[3].calculateFWHM()) / 0.2
    assert 2 < fwhm < 6
    for image, table in zip(batch.blend_images[:, 3], deblender(batch).catalog_list, strict=True):
        alone = galsep.deblend(image, DeblendConfig(psf_fwhm=fwhm, device="cpu")).catalog
        np.testing.assert_allclose(table["class_star"], alone["class_star"], rtol=1e-4)


def test_a_stored_batch_has_no_psf_to_go_by(batch, deblender):
    import galsim

    stored = dataclasses.replace(batch, psf=[galsim.Image(9, 9)] * len(batch.psf))
    told, untold = (deblender(one) for one in (batch, stored))
    np.testing.assert_array_equal(told.segmentation, untold.segmentation)
    for here, there in zip(told.catalog_list, untold.catalog_list, strict=True):
        assert (here["class_star"] != there["class_star"]).all()
