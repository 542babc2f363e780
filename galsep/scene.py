"""What is in a picture: footprints, the sources of a blend, and detections.

Dataclasses that check their shapes. A :class:`Footprint` is the common currency: truth masks,
predicted masks and SEP segments are all footprints, so matching, painting and measuring are
written once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Blend", "Detections", "Footprint", "SoftMask", "Source", "SourceLight"]


@dataclass(frozen=True, slots=True)
class Footprint:
    """A set of pixels: a boolean crop and where it lies.

    Parameters
    ----------
    y0, x0 : int
        0-based position of the crop's first pixel in the image; may be negative.
    mask : (h, w) bool array
        Which pixels of the crop belong to the footprint.
    """

    y0: int
    x0: int
    mask: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        if self.mask.ndim != 2 or self.mask.dtype != np.bool_:
            raise ValueError(
                f"a footprint's mask is a 2-D bool array, got {self.mask.ndim}-D {self.mask.dtype}"
            )

    @classmethod
    def from_mask(cls, mask: npt.NDArray[np.bool_], y0: int = 0, x0: int = 0) -> "Footprint":
        """Make the tightest footprint of a mask; an empty mask gives a 0×0 footprint.

        Parameters
        ----------
        mask : (h, w) bool array
        y0, x0 : int
            0-based position of the mask's first pixel in the image.
        """
        rows = np.flatnonzero(mask.any(axis=1))
        if rows.size == 0:
            return cls(y0, x0, np.zeros((0, 0), dtype=bool))
        columns = np.flatnonzero(mask.any(axis=0))
        top, left = int(rows[0]), int(columns[0])
        crop = mask[top : rows[-1] + 1, left : columns[-1] + 1]
        return cls(y0 + top, x0 + left, np.ascontiguousarray(crop))

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(np.count_nonzero(self.mask))

    @property
    def bounds(self) -> tuple[int, int, int, int]:
        """``xmin, ymin, xmax, ymax`` of the crop, inclusive."""
        height, width = self.mask.shape
        return self.x0, self.y0, self.x0 + width - 1, self.y0 + height - 1

    @property
    def slices(self) -> tuple[slice, slice]:
        """Slices of the crop in its image (meaningful only if it lies inside)."""
        height, width = self.mask.shape
        return slice(self.y0, self.y0 + height), slice(self.x0, self.x0 + width)

    def shifted(self, dy: int, dx: int) -> "Footprint":
        """The same pixels, moved by ``dy, dx``."""
        return Footprint(self.y0 + dy, self.x0 + dx, self.mask)

    def intersection(self, other: "Footprint") -> int:
        """Number of pixels shared with another footprint."""
        y0, x0 = max(self.y0, other.y0), max(self.x0, other.x0)
        y1 = min(self.y0 + self.mask.shape[0], other.y0 + other.mask.shape[0])
        x1 = min(self.x0 + self.mask.shape[1], other.x0 + other.mask.shape[1])
        if y1 <= y0 or x1 <= x0:
            return 0
        mine = self.mask[y0 - self.y0 : y1 - self.y0, x0 - self.x0 : x1 - self.x0]
        theirs = other.mask[y0 - other.y0 : y1 - other.y0, x0 - other.x0 : x1 - other.x0]
        return int(np.count_nonzero(mine & theirs))

    def iou(self, other: "Footprint") -> float:
        """Intersection over union with another footprint; 0 where both are empty."""
        shared = self.intersection(other)
        union = self.area + other.area - shared
        return shared / union if union else 0.0

    def clipped(self, shape: tuple[int, int]) -> "Footprint":
        """The part inside an image of this shape, tightened."""
        height, width = shape
        top, left = max(0, -self.y0), max(0, -self.x0)
        bottom = min(self.mask.shape[0], height - self.y0)
        right = min(self.mask.shape[1], width - self.x0)
        crop = self.mask[top : max(top, bottom), left : max(left, right)]
        return Footprint.from_mask(crop, self.y0 + top, self.x0 + left)

    def to_full(self, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
        """Paint the footprint on an empty image of this shape."""
        full = np.zeros(shape, dtype=bool)
        inside = self.clipped(shape)
        if inside.area:
            full[inside.slices] = inside.mask
        return full


@dataclass(frozen=True, slots=True)
class SoftMask:
    """A crop of probabilities that pixels belong to a source, and where it lies.

    Parameters
    ----------
    y0, x0 : int
        0-based position of the crop's first pixel in the image.
    probability : (h, w) float array
        Between 0 and 1.
    """

    y0: int
    x0: int
    probability: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.probability.ndim != 2:
            raise ValueError(f"a soft mask is 2-D, got {self.probability.ndim}-D")

    @property
    def slices(self) -> tuple[slice, slice]:
        """Slices of the crop in its image (meaningful only if it lies inside)."""
        height, width = self.probability.shape
        return slice(self.y0, self.y0 + height), slice(self.x0, self.x0 + width)

    def footprint(self, level: float = 0.5) -> Footprint:
        """The pixels more probable than ``level``."""
        return Footprint.from_mask(self.probability > level, self.y0, self.x0)

    def shifted(self, dy: int, dx: int) -> "SoftMask":
        """The same crop, moved by ``dy, dx``."""
        return SoftMask(self.y0 + dy, self.x0 + dx, self.probability)

    def cropped(self, to: Footprint) -> "SoftMask":
        """The part within the crop of a footprint that this one made."""
        top, left = to.y0 - self.y0, to.x0 - self.x0
        height, width = to.mask.shape
        return SoftMask(to.y0, to.x0, self.probability[top : top + height, left : left + width])


@dataclass(frozen=True, slots=True)
class SourceLight:
    """One source's part of an image, on a crop inside it.

    Parameters
    ----------
    y0, x0 : int
        0-based position of the crop's first pixel in the image.
    share : (h, w) float32 array
        Of the light in each pixel; the shares of all sources add up to one or less.
    model : (h, w) float32 array
        The source's noiseless light, non-negative, in the image's unit; 0 on unusable pixels.
    flux : float
        Total of the model with what lies beyond the crop.
    flux_err : float
        Its error by the noise of the sky and by the splitting, without the sources' own electrons.
    """

    y0: int
    x0: int
    share: npt.NDArray[np.float32]
    model: npt.NDArray[np.float32]
    flux: float
    flux_err: float

    def __post_init__(self) -> None:
        if self.share.ndim != 2 or self.share.shape != self.model.shape:
            raise ValueError(
                f"share and model are 2-D and alike, got {self.share.shape} and {self.model.shape}"
            )

    @property
    def slices(self) -> tuple[slice, slice]:
        """Slices of the crop in its image."""
        height, width = self.share.shape
        return slice(self.y0, self.y0 + height), slice(self.x0, self.x0 + width)


@dataclass(frozen=True, slots=True)
class Source:
    """One true source of a simulated scene.

    Parameters
    ----------
    kind : {"galaxy", "star"}
    x, y : float
        Position in pixels, 0-based.
    magnitude : (band,) float array
    flux : (band,) float array
        Total flux in the image's unit.
    half_light_radius : float
        Half-light radius before the PSF, arcsec; 0 for a star.
    e1, e2 : float
        Ellipticity ``(1 − q)/(1 + q)`` along and at 45° to the x axis.
    light : (band, h, w) float32 array
        Noiseless, PSF-convolved light, cropped.
    y0, x0 : int
        Where the crop's first pixel lies in the image.
    """

    kind: str
    x: float
    y: float
    magnitude: npt.NDArray[np.float64]
    flux: npt.NDArray[np.float64]
    half_light_radius: float
    e1: float
    e2: float
    light: npt.NDArray[np.float32]
    y0: int
    x0: int

    def __post_init__(self) -> None:
        if self.light.ndim != 3:
            raise ValueError(f"light is (band, height, width), got shape {self.light.shape}")
        if len(self.flux) != len(self.light) or len(self.magnitude) != len(self.light):
            raise ValueError(
                f"{len(self.light)} bands of light but {len(self.flux)} fluxes "
                f"and {len(self.magnitude)} magnitudes"
            )


@dataclass(frozen=True, slots=True)
class Blend:
    """A simulated stamp and its true sources.

    Parameters
    ----------
    image : (band, h, w) float32 array
        Background-subtracted, noisy image.
    sources : sequence of Source
    psf_fwhm : float
        Seeing in arcsec, as images are measured: that of the seeing disc that the same Gaussian
        fits best.
    pixel_scale : float
        Arcsec per pixel; NaN where it is not known.
    """

    image: npt.NDArray[np.float32]
    sources: Sequence[Source]
    psf_fwhm: float
    pixel_scale: float = float("nan")

    def __post_init__(self) -> None:
        if self.image.ndim != 3:
            raise ValueError(f"a blend is (band, height, width), got shape {self.image.shape}")


@dataclass(frozen=True, slots=True)
class Detections:
    """Sources found in one image.

    Parameters
    ----------
    footprints : sequence of Footprint
        One mask a source; masks may overlap.
    x, y : (n,) float arrays
        Centroids, pixels, 0-based.
    scores : (n,) float array
        Confidence between 0 and 1.
    flux : (n,) float array, optional
        Light ascribed to each source, in the image's unit.
    class_star : (n,) float array, optional
        Probability of a point source.
    """

    footprints: Sequence[Footprint]
    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    flux: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    class_star: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        n = len(self.footprints)
        for name in ("x", "y", "scores", "flux", "class_star"):
            values: npt.NDArray[Any] = getattr(self, name)
            optional = name in ("flux", "class_star")
            if values.shape != (n,) and not (optional and values.size == 0):
                raise ValueError(f"{n} footprints but {name} has shape {values.shape}")

    def __len__(self) -> int:
        return len(self.footprints)
