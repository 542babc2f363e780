"""What deblending an image has found, for Python."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from galsep.scene import Footprint, SourceLight
from galsep.workflows.measuring import Band

if TYPE_CHECKING:
    from astropy.table import Table
    from photutils.segmentation import SegmentationImage

__all__ = ["DeblendResult"]


@dataclass(frozen=True, slots=True, repr=False)
class DeblendResult:
    """What :func:`deblend` found in one image.

    ``len(result)`` is the number of sources.

    Parameters
    ----------
    catalog : astropy.table.Table
        One row a source, columns as in ``docs/formats.md``.
    segm : (h, w) int32 array
        Label map: 0 background, else the ``label`` of the source that owns the pixel.
    masks : sequence of Footprint
        The whole mask of label 1, 2, …; masks may overlap.
    noverlap : (h, w) uint8 array
        Masks per pixel.
    parents : astropy.table.Table
        SEP's detections and what became of each.
    background, rms, light : (h, w) float32 arrays
        Background, its noise, and the image minus background (0 where unusable).
    separated : sequence of SourceLight
        Part of label 1, 2, … of ``light``: its share of the pixels and its noiseless model.
    bands : mapping of str to Band
        The same for each of several bands, with its own ``image`` and ``photometry``.
    """

    catalog: "Table"
    segm: npt.NDArray[np.int32]
    masks: Sequence[Footprint]
    noverlap: npt.NDArray[np.uint8]
    parents: "Table"
    background: npt.NDArray[np.float32]
    rms: npt.NDArray[np.float32]
    light: npt.NDArray[np.float32]
    separated: Sequence[SourceLight]
    bands: Mapping[str, Band]

    def __len__(self) -> int:
        return len(self.catalog)

    def light_of(self, label: int, band: str = "") -> npt.NDArray[np.float32]:
        """A source's share of the image's light, ``(h, w)``, 0 elsewhere.

        Parameters
        ----------
        label : int
            From 1.
        band : str
            One of ``bands``; by default the image that sources were measured in.

        Raises
        ------
        KeyError
            For another label or band.
        """
        light, parts = self._measured(band)
        own = np.zeros_like(light)
        part = _part_of(parts, label)
        own[part.slices] = part.share * light[part.slices]
        return own

    def model_of(self, label: int, band: str = "") -> npt.NDArray[np.float32]:
        """A source's noiseless model, ``(h, w)``; see :meth:`light_of`."""
        light, parts = self._measured(band)
        own = np.zeros_like(light)
        part = _part_of(parts, label)
        own[part.slices] = part.model
        return own

    def residual(self, band: str = "") -> npt.NDArray[np.float32]:
        """What is left of the light when all sources' light is taken away, ``(h, w)``."""
        light, parts = self._measured(band)
        left = light.copy()
        for part in parts:
            left[part.slices] -= part.share * light[part.slices]
        return left

    def _measured(self, band: str) -> tuple[npt.NDArray[np.float32], Sequence[SourceLight]]:
        if band:
            return self.bands[band].image.light, self.bands[band].separated
        return self.light, self.separated

    def __repr__(self) -> str:
        about = ", ".join(f"{name} {value}" for name, value in self._summary().items())
        return f"<{type(self).__name__}: {about}>"

    def _repr_html_(self) -> str:
        """A small table for notebooks."""
        rows = "".join(
            f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in self._summary().items()
        )
        return f"<table><caption>{type(self).__name__}</caption>{rows}</table>"

    def _summary(self) -> dict[str, str]:
        height, width = self.segm.shape
        summary = {
            "image": f"{width}×{height} px",
            "sources": str(len(self)),
            "flagged": str(int(np.count_nonzero(self.catalog["flags"]))),
        }
        if "WEIGHTS" in self.catalog.meta:
            summary["weights"] = f"sha256:{self.catalog.meta['WEIGHTS'][:12]}"
        return summary

    def to_segmentation_image(self) -> "SegmentationImage":
        """Make a photutils ``SegmentationImage`` of a copy of the label map.

        Its labels are those of the catalogue; a source that owns no pixel has none.
        """
        from photutils.segmentation import SegmentationImage

        return SegmentationImage(self.segm.copy())

    def plot(self, ax: Any = None) -> Any:
        """Draw the image with each source's outline and centroid; three bands in colour.

        Sources that only SEP found are red.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            By default those of a new figure.

        Returns
        -------
        matplotlib Axes
        """
        from galsep.plot.canvas import Shown
        from galsep.plot.outlines import draw_outlines

        bands = [(b.image.light, float(np.median(b.image.rms))) for b in self.bands.values()]
        return draw_outlines(
            Shown(self.light, float(np.median(self.rms)), bands),
            self.masks,
            np.asarray(self.catalog["x_centroid"]),
            np.asarray(self.catalog["y_centroid"]),
            np.asarray(self.catalog["flags"]),
            ax,
        )


def _part_of(parts: Sequence[SourceLight], label: int) -> SourceLight:
    if not 1 <= label <= len(parts):
        raise KeyError(label)
    return parts[label - 1]
