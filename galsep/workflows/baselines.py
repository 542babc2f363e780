"""Classical deblenders to stand beside the network: SEP and photutils, on the same images.

Both get a background-subtracted image and the rms of its sky. Masks are the pixels of the
segmentation map, so they do not overlap; the flux is the light on them (isophotal).
"""

import importlib.util
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from galsep.image.blobs import KERNEL
from galsep.measure.metrics import owned_footprints
from galsep.scene import Detections, Footprint
from galsep.workflows.pool import map_on_workers

__all__ = [
    "PHOTUTILS",
    "SEP_SETTINGS",
    "SepFluxes",
    "SepSetting",
    "baseline_names",
    "photutils_detections",
    "run_baselines",
    "sep_detections",
    "sep_fluxes",
]

MIN_AREA = 5
PHOTUTILS_THRESHOLD = 1.5
HALF_SCORE_SNR = 10.0
"""Signal-to-noise ratio at which a classical detection's score is one half."""

KRON_REACH, KRON_FACTOR = 6.0, 2.5
"""Ellipse in which the Kron radius is measured, and the aperture: SExtractor's values."""

CHUNK = 32
"""Images a worker takes at once."""

NOTHING = Detections((), np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0))


@dataclass(frozen=True, slots=True)
class SepSetting:
    """Settings of ``sep.extract``.

    Parameters
    ----------
    threshold : float
        Detection threshold in units of the sky rms of a pixel.
    nthresh : int
        Number of levels for deblending (``deblend_nthresh``).
    contrast : float
        Smallest share of the light that makes a branch a source (``deblend_cont``).
    """

    threshold: float
    nthresh: int
    contrast: float

    @property
    def label(self) -> str:
        """The setting in a table's words."""
        return f"SEP {self.threshold:g}σ/{self.nthresh}/{self.contrast:g}"


SEP_SETTINGS: Mapping[str, SepSetting] = MappingProxyType(
    {
        "sep_1.5_32_0.005": SepSetting(1.5, 32, 0.005),
        "sep_1.5_64_0.0005": SepSetting(1.5, 64, 0.0005),
        "sep_3_64_0.001": SepSetting(3.0, 64, 0.001),
        "sep_5_32_0.005": SepSetting(5.0, 32, 0.005),
    }
)
"""The settings SEP is judged at: its defaults, eager, cautious, and bright sources only."""

PHOTUTILS = "photutils"
"""Name of photutils' ``detect_sources`` and ``deblend_sources`` at their defaults."""


def baseline_names() -> dict[str, str]:
    """Name and label of every baseline that can run here.

    photutils needs scikit-image to deblend; without it, it is left out.
    """
    names = {name: setting.label for name, setting in SEP_SETTINGS.items()}
    if importlib.util.find_spec("skimage") is not None:
        names[PHOTUTILS] = f"photutils {PHOTUTILS_THRESHOLD:g}σ"
    return names


def sep_detections(image: npt.NDArray[Any], rms: float, setting: SepSetting) -> Detections:
    """Detect and deblend with SEP.

    SEP's default 3×3 filter and cleaning, at least 5 pixels a source.

    Parameters
    ----------
    image : (h, w) array
        Background-subtracted; pixels that are not finite are masked.
    rms : float
        Sky rms of a pixel, in the image's unit.
    setting : SepSetting

    Returns
    -------
    Detections
        Scores rise with the signal-to-noise ratio of the isophotal flux.
    """
    data, objects, labels = _extracted(image, rms, setting)
    footprints = owned_footprints(labels, len(objects))
    x, y = np.asarray(objects["x"], dtype=np.float64), np.asarray(objects["y"], dtype=np.float64)
    return _detections(data, rms, footprints, x, y)


def _extracted(
    image: npt.NDArray[Any], rms: float, setting: SepSetting
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.void], npt.NDArray[np.int32]]:
    """The image as SEP wants it, the objects found in it, and their label map."""
    import sep

    data = np.array(image, dtype=np.float64, order="C")
    bad = ~np.isfinite(data)
    data[bad] = 0.0
    objects, labels = sep.extract(
        data,
        setting.threshold,
        err=float(rms),
        mask=bad if bad.any() else None,
        minarea=MIN_AREA,
        deblend_nthresh=setting.nthresh,
        deblend_cont=setting.contrast,
        segmentation_map=True,
    )
    return data, objects, labels


@dataclass(frozen=True, slots=True)
class SepFluxes:
    """SEP's sources and their fluxes.

    Parameters
    ----------
    x, y : (n,) float arrays
    isophotal : (n,) float array
        The light of each source's own segment.
    kron : (n,) float array
        The light in an ellipse of 2.5 Kron radii, without the other sources' segments; NaN where
        SEP gives no radius.
    """

    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    isophotal: npt.NDArray[np.float64]
    kron: npt.NDArray[np.float64]


def sep_fluxes(image: npt.NDArray[Any], rms: float, setting: SepSetting) -> SepFluxes:
    """Detect with SEP and measure isophotal and Kron fluxes.

    Parameters
    ----------
    image, rms, setting
        See :func:`sep_detections`.

    Returns
    -------
    SepFluxes
        In the image's unit, of the same sources.
    """
    import sep

    data, objects, labels = _extracted(image, rms, setting)
    light = np.bincount(labels.ravel(), data.ravel(), len(objects) + 1)
    isophotal = light[1:].astype(np.float64)
    kron = np.full(len(objects), np.nan)
    ellipse = [objects[name] for name in ("x", "y", "a", "b", "theta")]
    own = np.arange(1, len(objects) + 1, dtype=np.int32)
    if len(objects):
        radius, _ = sep.kron_radius(data, *ellipse, KRON_REACH, seg_id=own, segmap=labels)
        good = np.isfinite(radius) & (radius > 0)
        kron[good], _, _ = sep.sum_ellipse(
            data,
            *(part[good] for part in ellipse),
            KRON_FACTOR * radius[good],
            seg_id=own[good],
            segmap=labels,
        )
    return SepFluxes(objects["x"], objects["y"], isophotal, kron)


def photutils_detections(image: npt.NDArray[Any], rms: float) -> Detections:
    """Detect and deblend with photutils at its defaults.

    ``detect_sources`` at 1.5 rms with at least 5 pixels and ``deblend_sources``, both on the
    image convolved with SEP's 3×3 kernel. Centroids are the first moments of the (positive)
    light in each segment, as ``SourceCatalog`` defines them.

    Parameters
    ----------
    image : (h, w) array
        Background-subtracted; pixels that are not finite are masked.
    rms : float
        Sky rms of a pixel, in the image's unit.

    Returns
    -------
    Detections
        Scores rise with the signal-to-noise ratio of the isophotal flux.
    """
    from astropy.utils.exceptions import AstropyWarning
    from photutils.segmentation import deblend_sources, detect_sources
    from scipy import ndimage

    data = np.array(image, dtype=np.float64)
    bad = ~np.isfinite(data)
    data[bad] = 0.0
    # As SEP does by default.
    convolved = ndimage.convolve(data, KERNEL, mode="constant")
    with warnings.catch_warnings():
        # "No sources were found" and "the deblending mode was changed" are no news here.
        warnings.simplefilter("ignore", AstropyWarning)
        # Positional, since photutils 3 renamed npixels.
        segments = detect_sources(convolved, PHOTUTILS_THRESHOLD * rms, MIN_AREA, mask=bad)
        if segments is None:
            return NOTHING
        segments = deblend_sources(convolved, segments, MIN_AREA, progress_bar=False)
    footprints = owned_footprints(segments.data, int(segments.data.max()))
    centroids = np.array([_centroid(footprint, convolved) for footprint in footprints])
    return _detections(data, rms, footprints, centroids[:, 0], centroids[:, 1])


def run_baselines(
    images: Sequence[npt.NDArray[Any]],
    rms: Sequence[float],
    names: Iterable[str],
    *,
    workers: int = 1,
) -> Iterator[dict[str, Detections]]:
    """Run baselines on many images, in order.

    Parameters
    ----------
    images : sequence of (h, w) arrays
        Background-subtracted.
    rms : sequence of float
        Sky rms of each image.
    names : iterable of str
        Keys of :func:`baseline_names`.
    workers : int
        Processes; 0 means one a core, 1 none but this one. The result does not depend on it.

    Yields
    ------
    dict of str to Detections
        By name, one dict an image.
    """
    chosen = tuple(names)
    tasks = [
        (images[start : start + CHUNK], rms[start : start + CHUNK], chosen)
        for start in range(0, len(images), CHUNK)
    ]
    for results in map_on_workers(_run_chunk, tasks, workers):
        yield from results


def _run_chunk(
    task: tuple[Sequence[npt.NDArray[Any]], Sequence[float], tuple[str, ...]],
) -> list[dict[str, Detections]]:
    images, rms, names = task
    return [
        {name: _run_one(name, image, level) for name in names}
        for image, level in zip(images, rms, strict=True)
    ]


def _run_one(name: str, image: npt.NDArray[Any], rms: float) -> Detections:
    if not rms > 0:  # An image without a noise level has no threshold either.
        return NOTHING
    if name == PHOTUTILS:
        return photutils_detections(image, rms)
    return sep_detections(image, rms, SEP_SETTINGS[name])


def _centroid(footprint: Footprint, data: npt.NDArray[np.float64]) -> tuple[float, float]:
    """First moments ``x, y`` of the positive light of a footprint."""
    light = np.where(footprint.mask, np.clip(data[footprint.slices], 0, None), 0.0)
    total = light.sum()
    rows, columns = np.indices(light.shape)
    x = footprint.x0 + float((light * columns).sum() / total)
    y = footprint.y0 + float((light * rows).sum() / total)
    return x, y


def _detections(
    data: npt.NDArray[np.float64],
    rms: float,
    footprints: Sequence[Footprint],
    x: npt.NDArray[np.float64],
    y: npt.NDArray[np.float64],
) -> Detections:
    flux = np.array([data[part.slices][part.mask].sum() for part in footprints], dtype=np.float64)
    area = np.array([part.area for part in footprints], dtype=np.float64)
    snr = np.clip(flux / (rms * np.sqrt(np.maximum(area, 1))), 0, None)
    return Detections(footprints, x, y, snr / (snr + HALF_SCORE_SNR), flux)
