"""galsep as a deblender of the Blending ToolKit (BTK), beside BTK's own.

Needs ``pip install blending_toolkit 'numpy<2.4'`` beside galsep: BTK pins astropy below 7, and that
does not work with later NumPy, though pip does not know it. https://lsstdesc.org/BlendingToolKit
"""

from collections.abc import Iterator
from typing import Any

import galsim
import numpy as np
from astropy.table import Table
from btk.blend_batch import BlendBatch, DeblendBatch, DeblendExample
from btk.deblend import Deblender

from galsep.config import DeblendConfig
from galsep.image.light import Frame
from galsep.model.weights import load_model
from galsep.workflows.finding import FoundSources, find_sources

__all__ = ["GalsepDeblender"]


class GalsepDeblender(Deblender):
    """Deblend one band of BTK's blends.

    ``segmentation`` holds the whole masks, which may overlap, ``deblended_images`` each source's
    noiseless model, which goes on beyond its mask, both in the order of the catalogue: ``ra`` and
    ``dec`` in arcsec as BTK has them, ``x_peak`` and ``y_peak`` the centroids in pixels, ``score``,
    ``class_star`` and ``flags``. ``class_star`` takes the PSF into account, unless the batch was
    read from a file, which lacks the PSF's scale.

    Parameters
    ----------
    max_n_sources : int
        A blend in which more are found is an error, as it is for BTK's own deblenders.
    use_band : int
        Index of the band.
    config : DeblendConfig, optional
    """

    def __init__(
        self, max_n_sources: int, use_band: int, config: DeblendConfig | None = None
    ) -> None:
        super().__init__(max_n_sources)
        self.use_band = use_band
        self.config = config or DeblendConfig()
        self.model = load_model(self.config.weights, self.config.device)

    def deblend(self, ii: int, blend_batch: BlendBatch) -> DeblendExample:
        """Deblend one blend of a batch."""
        return next(self._examples([ii], blend_batch))

    def batch_call(self, blend_batch: BlendBatch, njobs: int = 1, **kwargs: Any) -> DeblendBatch:  # noqa: ARG002 (BTK's signature)
        """Deblend all blends of a batch: several share a batch of the network, in one process."""
        examples = list(self._examples(range(blend_batch.batch_size), blend_batch))
        return DeblendBatch(
            blend_batch.batch_size,
            self.max_n_sources,
            [example.catalog for example in examples],
            1,
            blend_batch.image_size,
            np.array([example.segmentation for example in examples]),
            np.array([example.deblended_images for example in examples]),
        )

    def _examples(self, blends: Any, batch: BlendBatch) -> Iterator[DeblendExample]:
        images = (batch.blend_images[ii, self.use_band] for ii in blends)
        psf, fwhm = batch.psf[self.use_band], None
        if isinstance(psf, galsim.GSObject):
            fwhm = psf.calculateFWHM() / batch.survey.pixel_scale.to_value("arcsec")
        frames = (
            Frame(image, np.zeros(image.shape, dtype=bool), psf_fwhm=fwhm) for image in images
        )
        for found in find_sources(frames, self.model, self.config):
            yield self._example(found, batch)

    def _example(self, found: FoundSources, batch: BlendBatch) -> DeblendExample:
        detections, size = found.detections, batch.image_size
        n = len(detections)
        if n > self.max_n_sources:
            raise ValueError(
                f"galsep found {n} sources, more than max_n_sources = {self.max_n_sources}; give "
                "a larger one"
            )
        masks = np.zeros((self.max_n_sources, size, size), dtype=bool)
        light = np.zeros((self.max_n_sources, 1, size, size), dtype=np.float32)
        for index, footprint in enumerate(detections.footprints):
            masks[index][footprint.slices] = footprint.mask
            part = found.separated[index]
            light[index, 0][part.slices] = part.model
        ra, dec = batch.wcs.pixel_to_world_values(detections.x, detections.y)
        catalog = Table(
            {
                # BTK's blends lie around 0°; a source to the west is not 360° away.
                "ra": ((np.asarray(ra) + 180) % 360 - 180) * 3600,
                "dec": np.asarray(dec) * 3600,
                "x_peak": detections.x,
                "y_peak": detections.y,
                "score": detections.scores,
                "class_star": detections.class_star,
                "flags": found.flags,
            }
        )
        return DeblendExample(self.max_n_sources, catalog, 1, size, masks, light)
