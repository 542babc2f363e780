"""SEP's detections: the blobs that cutouts are laid around and sources are children of."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from galsep.errors import ImageError
from galsep.image.blobs import find_blobs
from galsep.planes import Planes

__all__ = ["Blobs", "detect_blobs", "extract", "large_parts", "noise_correlation"]

THRESHOLD = 1.5
MIN_AREA = 5
DEBLEND_THRESHOLDS = 32
DEBLEND_CONTRAST = 0.005
"""SExtractor's default deblending, used to take a blob larger than a cutout apart."""


BLOCK = 5
"""Side of the blocks of pixels whose sums tell how correlated the noise is, about a faint blob's
size."""

MIN_BLOCKS, MAX_BLOCKS = 100, 40_000
"""Fewer empty blocks say too little; of more, a regular sample is looked at."""


CORRELATED = 1.2
"""Noise of sums over that of independent noise from which it is taken for correlated."""

SCATTER = 0.6745
"""Median of the absolute values of a Gaussian, in sigma."""

PEAK_SNR = 5.5
"""Correlated noise makes peaks of lower S/N that look like sources: 45 of the 49 on 3000×3000 px,
smoothed by a Gaussian of 0.6 px. Of what is detectable in independent noise, 1.5 mag shallower than
LSST's, one in two hundred is in such a blob."""


@dataclass(frozen=True, slots=True)
class Blobs:
    """Connected regions above SEP's threshold, not deblended.

    Parameters
    ----------
    segm : (h, w) int32 array
        0 outside, 1…n inside.
    x, y : (n,) float arrays
        Barycentres, pixels.
    npix : (n,) int array
    snr : (n,) float array
        Flux over its sky noise, Σ light / √Σ rms², less where the noise of neighbouring pixels
        is correlated, see :func:`noise_correlation`.
    bounds : (n, 4) int array
        ``xmin, ymin, xmax, ymax``, inclusive.
    correlation : float
        See :func:`noise_correlation`.
    """

    segm: npt.NDArray[np.int32]
    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    npix: npt.NDArray[np.int64]
    snr: npt.NDArray[np.float64]
    bounds: npt.NDArray[np.int64]
    correlation: float

    def __len__(self) -> int:
        return len(self.x)

    def with_objects(
        self,
        x: npt.NDArray[np.float64],
        y: npt.NDArray[np.float64],
        npix: npt.NDArray[np.int64],
        snr: npt.NDArray[np.float64],
        bounds: npt.NDArray[np.int64],
    ) -> "Blobs":
        """These and, after them, others that the label map does not hold."""
        return replace(
            self,
            x=np.append(self.x, x),
            y=np.append(self.y, y),
            npix=np.append(self.npix, npix),
            snr=np.append(self.snr, snr),
            bounds=np.concatenate([self.bounds, bounds]),
        )

    @property
    def noise_peaks(self) -> npt.NDArray[np.bool_]:
        """Which are too faint to be told from peaks of correlated noise."""
        return (self.snr < PEAK_SNR) & (self.correlation > CORRELATED)


def detect_blobs(
    light: npt.NDArray[np.float32],
    rms: npt.NDArray[np.float32],
    mask: npt.NDArray[np.bool_],
    planes: Planes | None = None,
) -> Blobs:
    """Detect connected regions at 1.5 rms, at least 5 px, after SEP's 3×3 kernel.

    Parameters
    ----------
    light : (h, w) float32 array
        Background-subtracted image.
    rms : (h, w) float32 array
    mask : (h, w) bool array
        True where a pixel is unusable.
    planes : Planes, optional
        Where the label map is to be.
    """
    planes = planes or Planes()
    found = find_blobs(light, rms, mask, threshold=THRESHOLD, min_area=MIN_AREA, planes=planes)
    noise = np.sqrt(np.maximum(found.variance, np.finfo(np.float64).tiny))
    correlation = noise_correlation(light, rms, mask, found.segm, planes)
    return Blobs(
        segm=found.segm,
        x=found.x,
        y=found.y,
        npix=found.npix,
        snr=found.flux / (noise * correlation),
        bounds=found.bounds,
        correlation=correlation,
    )


def noise_correlation(
    light: npt.NDArray[np.float32],
    rms: npt.NDArray[np.float32],
    mask: npt.NDArray[np.bool_],
    segm: npt.NDArray[np.int32],
    planes: Planes | None = None,
) -> float:
    """Measure how much noisier sums of pixels are than with independent noise.

    Resampled and stacked images have correlated noise: the sum of ``n`` pixels is noisier than
    √n times a pixel. Compared are the scatters (median absolute deviations) of the sums over
    blocks of 5×5 pixels and of those pixels, where no source is.

    Parameters
    ----------
    light, rms : (h, w) float32 arrays
    mask : (h, w) bool array
        True where a pixel is unusable.
    segm : (h, w) int32 array
        0 where no source is.
    planes : Planes, optional
        Where the arrays are.

    Returns
    -------
    float
        At least 1; 1 too where fewer than 100 blocks are empty.
    """
    planes = planes or Planes()
    height, width = (side // BLOCK * BLOCK for side in light.shape)
    empty = np.zeros((height // BLOCK, width // BLOCK), dtype=bool)
    for rows in planes.blocks((height, width), BLOCK):
        used = (mask[rows] | (segm[rows] > 0))[:, :width]
        shape = (len(used) // BLOCK, BLOCK, width // BLOCK, BLOCK)
        empty[rows.start // BLOCK : rows.stop // BLOCK] = ~used.reshape(shape).any(axis=(1, 3))
    places = np.flatnonzero(empty)
    if len(places) < MIN_BLOCKS:
        return 1.0
    places = places[:: -(-len(places) // MAX_BLOCKS)]
    y, x = np.divmod(places, width // BLOCK)
    shape = (height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    values = []
    for image in (light, rms):
        values.append(image[:height, :width].reshape(shape)[y, :, x, :])
        planes.release()
    unit = values[0] / values[1]
    sums = unit.sum(axis=(1, 2))
    pixel, block = _scatter(unit), _scatter(sums)
    if pixel < SCATTER / 2 and unit.std() > 0.5:
        # There is noise, but of few different values: half of the pixels and more may have one.
        pixel, block = float(unit.std()), float(sums.std())
    return max(1.0, block / (BLOCK * pixel)) if pixel > 0 else 1.0


def _scatter(values: npt.NDArray[np.floating[Any]]) -> float:
    return float(np.median(np.abs(values - np.median(values))))


def large_parts(
    light: npt.NDArray[np.float32],
    rms: npt.NDArray[np.float32],
    blob: npt.NDArray[np.bool_],
    limit: int,
) -> list[npt.NDArray[np.bool_]]:
    """Take a blob apart by SEP's default deblending; give the parts wider than ``limit``.

    Parameters
    ----------
    light, rms : (h, w) float32 arrays
        The blob's bounding box.
    blob : (h, w) bool array
        Its pixels.
    limit : int
        Pixels.

    Raises
    ------
    ImageError
        When SEP gives up on the blob.
    """
    objects, segm = extract(light, rms, ~blob)
    wide = (objects["xmax"] - objects["xmin"] >= limit) | (
        objects["ymax"] - objects["ymin"] >= limit
    )
    return [segm == index + 1 for index in np.flatnonzero(wide)]


def extract(
    light: npt.NDArray[np.float32],
    rms: npt.NDArray[np.float32],
    mask: npt.NDArray[np.bool_],
    threshold: float = THRESHOLD,
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int32]]:
    """Detect objects as SEP does by default, deblended as SExtractor does.

    Parameters
    ----------
    light, rms : (h, w) float32 arrays
    mask : (h, w) bool array
        True where a pixel is not to be looked at.
    threshold : float
        In rms, after SEP's 3×3 kernel.

    Returns
    -------
    objects : (n,) structured array
        SEP's.
    segm : (h, w) int32 array
        0 outside, 1…n inside.

    Raises
    ------
    ImageError
        When SEP gives up.
    """
    import sep

    # SEP's buffers hold all pixels above the threshold; the whole image is the safe bound.
    stack, objects = sep.get_extract_pixstack(), sep.get_sub_object_limit()
    sep.set_extract_pixstack(max(stack, light.size))
    sep.set_sub_object_limit(max(objects, 4096))
    try:
        found, segm = sep.extract(
            np.ascontiguousarray(light),
            threshold,
            err=np.ascontiguousarray(rms),
            mask=mask,
            minarea=MIN_AREA,
            filter_type="conv",
            deblend_nthresh=DEBLEND_THRESHOLDS,
            deblend_cont=DEBLEND_CONTRAST,
            segmentation_map=True,
        )
    except Exception as error:
        # SEP raises a plain Exception with the C library's message.
        raise ImageError(f"SEP cannot detect sources in the image ({error})") from error
    finally:
        sep.set_extract_pixstack(stack)
        sep.set_sub_object_limit(objects)
    return found, segm.astype(np.int32, copy=False)
