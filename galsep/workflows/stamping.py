"""Cut an image whose sources are known into stamps with their truth.

Where a source's isolated light is not given, it is what the image shows on its own pixels, never
negative, shared equally where several sources hold one.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from galsep.conventions import MASK_THRESHOLD, STAMP_SIZE
from galsep.errors import UsageError
from galsep.image.detect import detect_blobs
from galsep.image.light import Light
from galsep.image.psf import estimate_psf
from galsep.image.tiling import cut, lay_cutouts
from galsep.io.image import Plane
from galsep.io.wcs import sky_place
from galsep.measure.photometry import Photometry, measure, split_light
from galsep.scene import Blend, Footprint, SoftMask, Source, SourceLight

__all__ = [
    "Known",
    "LitImage",
    "Stamp",
    "cut_stamps",
    "measured_fwhm",
    "sky_positions",
    "source_light",
    "wcs_scale",
]

HALF_LIGHT = 1.1774
"""Half-light radius of a round Gaussian over its sigma."""


@dataclass(frozen=True, slots=True)
class Known:
    """An image with its truth, read.

    Parameters
    ----------
    name : str
        The image's, for messages.
    plane : Plane
    footprints : list of Footprint
        Pixels of each source.
    kinds : list of str
        ``galaxy`` or ``star``, one a source.
    parts : list of SourceLight or None
        Isolated light of each source; ``None`` where it is that of the image on the footprints.
    crowds : list of Footprint
        Regions whose sources are not told apart: stamps leave them out.
    """

    name: str
    plane: Plane
    footprints: list[Footprint]
    kinds: list[str]
    parts: list[SourceLight] | None
    crowds: list[Footprint]


@dataclass(frozen=True, slots=True)
class LitImage:
    """An image without its background, and the light of its sources.

    Parameters
    ----------
    number : int
        Among the images.
    image : Light
    parts : list of SourceLight
        Of each source, in the image's unit.
    kinds : list of str
    sky : (n, 2) float array
        Right ascension and declination of each source, degrees; NaN without a WCS.
    first : int
        Number of its first source among all sources.
    pixel_scale : float
        Arcsec.
    electrons : float
        That one unit stands for.
    zeropoint : float
        Magnitude of one electron.
    """

    number: int
    image: Light
    parts: list[SourceLight]
    kinds: list[str]
    sky: npt.NDArray[np.float64]
    first: int
    pixel_scale: float
    electrons: float
    zeropoint: float


@dataclass(frozen=True, slots=True)
class Stamp:
    """A stamp on its way to the data set.

    Parameters
    ----------
    blend : Blend
        In electrons, without its seeing.
    image : int
        Number of the image that it is from.
    sources : set of int
        Numbers of its sources among all.
    along : float
        Its place along the longer side of the image.
    declination : float
        Degrees; −∞ where it is not known.
    """

    blend: Blend
    image: int
    sources: set[int]
    along: float
    declination: float


def source_light(known: Known, light: Light) -> list[SourceLight]:
    """Each source's isolated light, as it was given or from the image."""
    if known.parts is not None:
        return known.parts
    masks = [SoftMask(one.y0, one.x0, one.mask.astype(np.float32)) for one in known.footprints]
    return split_light(masks, [None] * len(masks), light.light, light.rms)


def cut_stamps(image: LitImage, crowds: Sequence[Footprint] = ()) -> Iterator[Stamp | None]:
    """Cut stamps about the blends; ``None`` for each that shows a pixel of a crowd."""
    for origin, shown in _laid(image):
        crowded = any(_crosses(crowd, origin) for crowd in crowds)
        yield None if crowded else _stamp(image, origin, shown)


def _laid(image: LitImage) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """Lay cutouts about the blends; the first pixel of each, and the sources that it shows."""
    from scipy.ndimage import find_objects, label

    light, parts = image.image, image.parts
    covered = np.zeros(light.light.shape, dtype=bool)
    for part in parts:
        covered[part.slices] |= part.model > MASK_THRESHOLD * light.rms[part.slices]
    blends, _ = label(covered, structure=np.ones((3, 3)))
    bounds = [(box[1].start, box[0].start, box[1].stop - 1, box[0].stop - 1)
              for box in find_objects(blends)]  # fmt: skip
    height, width = light.light.shape
    boxes = np.array(bounds, dtype=np.int64).reshape(-1, 4)
    tiling = lay_cutouts(boxes, (height, width), blends.astype(np.int32), small=False)
    low = np.array([(part.y0, part.x0) for part in parts])
    high = low + np.array([part.model.shape for part in parts])
    for origin in tiling.origins:
        near = np.all((high > origin) & (low < origin + STAMP_SIZE), axis=1)
        y0, x0 = origin.tolist()
        shown = [int(k) for k in np.flatnonzero(near) if _cropped(parts[k], (y0, x0)).model.any()]
        yield (y0, x0), shown


def _stamp(image: LitImage, origin: tuple[int, int], shown: list[int]) -> Stamp:
    """Cut a stamp with what it shows of its sources."""
    pixels = cut(image.image.light, *origin, STAMP_SIZE)
    rms = cut(image.image.rms, *origin, STAMP_SIZE, 1)
    crops = [_cropped(image.parts[k], origin) for k in shown]
    photometry = measure(crops, pixels, rms)
    sources = [_source(image, k, crops, photometry, i) for i, k in enumerate(shown)]
    height, width = image.image.light.shape
    declination = image.sky[shown, 1].mean()
    return Stamp(
        blend=Blend(
            np.float32(image.electrons) * pixels[None], sources, math.nan, image.pixel_scale
        ),
        image=image.number,
        sources={image.first + k for k in shown},
        along=float(origin[0] if height >= width else origin[1]),
        declination=float(declination) if np.isfinite(declination) else -math.inf,
    )


def _cropped(part: SourceLight, origin: tuple[int, int]) -> SourceLight:
    """What a stamp shows of a source, in the stamp's coordinates."""
    y, x = part.y0 - origin[0], part.x0 - origin[1]
    height, width = part.model.shape
    rows = slice(max(0, -y), max(0, min(height, STAMP_SIZE - y)))
    columns = slice(max(0, -x), max(0, min(width, STAMP_SIZE - x)))
    model = part.model[rows, columns]
    return SourceLight(
        y0=min(max(y, 0), STAMP_SIZE),
        x0=min(max(x, 0), STAMP_SIZE),
        share=part.share[rows, columns],
        model=model,
        flux=float(model.sum(dtype=np.float64)),
        flux_err=0.0,
    )


def _crosses(crowd: Footprint, origin: tuple[int, int]) -> bool:
    """Whether a stamp shows a pixel of a region."""
    shown = crowd.shifted(-origin[0], -origin[1]).clipped((STAMP_SIZE, STAMP_SIZE))
    return shown.area > 0


def _source(
    image: LitImage, number: int, crops: list[SourceLight], photometry: Photometry, index: int
) -> Source:
    """Flux, place and shape of what a stamp shows of a source; ``index`` counts on the stamp."""
    flux = image.electrons * crops[index].flux
    a, b = photometry.semimajor_axis[index], photometry.semiminor_axis[index]
    angle = 2 * math.radians(photometry.orientation[index])
    extended = image.kinds[number] == "galaxy"
    ellipticity = extended * (a - b) / (a + b)
    return Source(
        kind=image.kinds[number],
        x=float(photometry.x[index]),
        y=float(photometry.y[index]),
        magnitude=np.array([image.zeropoint - 2.5 * math.log10(flux)]),
        flux=np.array([flux]),
        half_light_radius=extended * HALF_LIGHT * math.sqrt(a * b) * image.pixel_scale,
        e1=ellipticity * math.cos(angle),
        e2=ellipticity * math.sin(angle),
        light=np.float32(image.electrons) * crops[index].model[None],
        y0=crops[index].y0,
        x0=crops[index].x0,
    )


def wcs_scale(known: Known) -> float:
    """Arcsec a pixel by the WCS."""
    height, width = known.plane.data.shape
    place = known.plane.wcs and sky_place(known.plane.wcs, (height, width))
    if place is None:
        raise UsageError(f"{known.name}: has no WCS; give its scale with --pixel-scale ARCSEC")
    return place.pixel_scale


def measured_fwhm(image: Light) -> float:
    """PSF FWHM in pixels, NaN where it cannot be measured."""
    psf = estimate_psf(image.light, image.mask, detect_blobs(image.light, image.rms, image.mask))
    return math.nan if psf is None else psf.fwhm


def sky_positions(plane: Plane, parts: list[SourceLight], image: Light) -> npt.NDArray[np.float64]:
    """Positions of sources on the sky.

    Parameters
    ----------
    plane : Plane
        The image with its WCS.
    parts : list of SourceLight
        The sources' light.
    image : Light
        The same image without its background.

    Returns
    -------
    (n, 2) float array
        Right ascension and declination (ICRS) of each source, degrees; NaN without a WCS.
    """
    if plane.wcs is None:
        return np.full((len(parts), 2), np.nan)
    photometry = measure(parts, image.light, image.rms)
    sky = plane.wcs.pixel_to_world(photometry.x, photometry.y).icrs
    return np.stack([sky.ra.deg, sky.dec.deg], axis=1)
