"""BTK's own metrics on BTK's own blends, for SEP and galsep.

    galsep simulate --write-catalog galaxies.fits --n 20000 --bands u,g,r,i,z,y
    python examples/btk_metrics.py galaxies.fits [BLENDS]

Needs ``pip install blending_toolkit 'numpy<2.4'``: BTK pins astropy below 7, which knows no
later NumPy. Blends of one to four galaxies to i = 25.3 in LSST's i band, matched within 5 px; masks
are compared with the true ones at 1.5 times the noise, where both methods detect, and images with
each galaxy's isolated one.
"""

import sys

import btk
import numpy as np
from btk.catalog import CatsimCatalog
from btk.deblend import SepSingleBand
from btk.draw_blends import CatsimGenerator
from btk.match import PixelHungarianMatcher
from btk.metrics.detection import F1, Precision, Recall
from btk.metrics.reconstruction import MSE, PSNR
from btk.metrics.segmentation import IoU
from btk.metrics.utils import get_segmentation
from surveycodex.utilities import mean_sky_level

from galsep.btk import GalsepDeblender

BATCH = 50
MOST = 12


def main() -> None:
    """Print a line of metrics for each deblender."""
    catalog, n = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 500
    survey = btk.survey.get_surveys("LSST")
    band = survey.available_filters.index("i")
    sky = mean_sky_level(survey, "i").to_value("electron")
    sampling = btk.sampling_functions.DefaultSampling(max_number=4, max_mag=25.3, seed=1)
    batch_size = min(BATCH, n)
    batches = CatsimGenerator(
        CatsimCatalog.from_file(catalog), sampling, survey, batch_size=batch_size, seed=1
    )
    deblenders = {
        "SEP": SepSingleBand(max_n_sources=MOST, thresh=1.5, use_band=band),
        "galsep": GalsepDeblender(max_n_sources=MOST, use_band=band),
    }
    metrics = {
        name: [kind(batch_size) for kind in (Precision, Recall, F1, IoU, MSE, PSNR)]
        for name in deblenders
    }
    for _ in range(n // batch_size):
        batch = next(batches)
        isolated = batch.isolated_images[:, :, band]
        true_masks = get_segmentation(isolated, sky, sigma_noise=1.5)
        for name, deblender in deblenders.items():
            measure(deblender(batch), batch, isolated, true_masks, metrics[name])
    print(f"{'':8}", *(f"{type(m).__name__:>10}" for m in metrics["SEP"]))
    for name, values in metrics.items():
        print(f"{name:8}", *(f"{metric.aggregate():10.4g}" for metric in values))


def measure(found, batch, isolated, true_masks, metrics) -> None:
    """Match what was found in a batch, and let each metric take its part."""
    match = PixelHungarianMatcher(pixel_max_sep=5.0)(batch.catalog_list, found.catalog_list)
    images = (
        match.match_true_arrays(isolated),
        match.match_pred_arrays(found.deblended_images[:, :, 0]),
    )
    masks = match.match_true_arrays(true_masks), match.match_pred_arrays(found.segmentation)
    for metric in metrics[:3]:
        metric(match.tp, match.t, match.p)
    metrics[3](*(np.nan_to_num(mask).astype(bool) for mask in masks))
    for metric in metrics[4:]:
        metric(*images)


if __name__ == "__main__":
    main()
