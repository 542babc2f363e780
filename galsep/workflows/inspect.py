"""What galsep would read from a file, found out without a network."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from galsep.config import DeblendConfig
from galsep.errors import GalsepError, ImageError
from galsep.image.detect import detect_blobs
from galsep.image.light import Frame, without_background
from galsep.image.psf import estimate_psf
from galsep.io.image import Plane, read_plane
from galsep.io.listing import Contents, list_contents
from galsep.io.wcs import SkyPlace, sky_place
from galsep.workflows.reporting import Reporter

__all__ = ["FileReport", "ImageReport", "MaskReport", "NoiseReport", "inspect_files"]


@dataclass(frozen=True, slots=True)
class NoiseReport:
    """The noise plane of an image.

    Parameters
    ----------
    plane : str
        Number and name of its extension.
    kind : {"rms", "variance", "weight"}
    scale : float or None
        Measured rms over that of the plane; ``None`` without a valid pixel.
    """

    plane: str
    kind: str
    scale: float | None


@dataclass(frozen=True, slots=True)
class MaskReport:
    """The mask plane of an image.

    Parameters
    ----------
    plane : str
        Number and name of its extension.
    hides : str
        Bits that hide a pixel, in words; ``any`` and ``none`` too.
    hidden_pixels : int
    """

    plane: str
    hides: str
    hidden_pixels: int


@dataclass(frozen=True, slots=True)
class ImageReport:
    """An image as ``galsep deblend`` would take it.

    Parameters
    ----------
    ext : int
        Number of its HDU.
    name, unit : str
        EXTNAME and BUNIT, or empty.
    shape : (int, int)
        Height and width, pixels.
    valid_pixels : int
    noise : NoiseReport or None
    mask : MaskReport or None
    sky : SkyPlace or None
        ``None`` without a usable WCS.
    gain : float or None
        Electrons per unit; ``None`` when unknown.
    background, rms : float or None
        Medians, in the image's unit; ``None`` without a valid pixel.
    seeing : float or None
        FWHM of the PSF, pixels; ``None`` where too few compact objects tell.
    messages : tuple of str
        What ``galsep deblend`` would warn of.
    """

    ext: int
    name: str
    unit: str
    shape: tuple[int, int]
    valid_pixels: int
    noise: NoiseReport | None
    mask: MaskReport | None
    sky: SkyPlace | None
    gain: float | None
    background: float | None
    rms: float | None
    seeing: float | None
    messages: tuple[str, ...]

    @property
    def seeing_arcsec(self) -> float | None:
        """The same in arcsec; ``None`` without a WCS."""
        if self.seeing is None or self.sky is None:
            return None
        return self.seeing * self.sky.pixel_scale


@dataclass(frozen=True, slots=True)
class FileReport:
    """A file as ``galsep deblend`` would take it.

    Parameters
    ----------
    path : Path
    contents : Contents or None
        ``None`` when the file is not readable.
    images : tuple of ImageReport
    errors : tuple of GalsepError
        Why the file, or some of its images, cannot be deblended.
    """

    path: Path
    contents: Contents | None = None
    images: tuple[ImageReport, ...] = ()
    errors: tuple[GalsepError, ...] = ()


def inspect_files(
    paths: Sequence[Path], ext: str = "", *, reporter: Reporter | None = None
) -> list[FileReport]:
    """Look into FITS files.

    A file that is not readable does not keep the others from being looked into.

    Parameters
    ----------
    paths : sequence of Path
    ext : str
        Number, name or ``NAME,VERSION`` of an extension; by default all images.
    reporter : Reporter, optional

    Returns
    -------
    list of FileReport
        One a file, in order.
    """
    reporter = reporter or Reporter()
    reporter.begin("reading", len(paths))
    reports = []
    for path in paths:
        reports.append(_inspect_file(path, ext))
        reporter.advance(note=path.name)
    reporter.end()
    return reports


def _inspect_file(path: Path, ext: str) -> FileReport:
    try:
        contents = list_contents(path, ext)
    except GalsepError as error:
        return FileReport(path, errors=(error,))
    images: list[ImageReport] = []
    errors: list[GalsepError] = [ImageError(contents.problem)] if contents.problem else []
    for number in contents.chosen:
        try:
            images.append(_inspect_image(read_plane(path, str(number))))
        except GalsepError as error:
            errors.append(error)
    return FileReport(path, contents, tuple(images), tuple(errors))


def _inspect_image(plane: Plane) -> ImageReport:
    mask, valid = plane.mask, ~plane.mask
    shape = (mask.shape[0], mask.shape[1])
    background = rms = seeing = scale = None
    if valid.any():
        noise = None if plane.noise is None else plane.noise.rms
        mesh = DeblendConfig().background_mesh
        found = without_background(Frame(plane.data, mask, noise), mesh)
        scale = found.noise_scale
        background = float(np.median(found.background[valid]))
        rms = float(np.median(found.rms[valid]))
        blobs = detect_blobs(found.light, found.rms, found.mask)
        psf = estimate_psf(found.light, found.mask, blobs)
        seeing = None if psf is None else psf.fwhm
    noise_report = mask_report = None
    if plane.noise is not None:
        noise_report = NoiseReport(plane.noise.origin, plane.noise.kind, scale)
    if plane.dq is not None:
        hidden = int(np.count_nonzero(plane.dq.hidden_pixels()))
        mask_report = MaskReport(plane.dq.origin, plane.dq.hidden, hidden)
    return ImageReport(
        ext=plane.ext,
        name=plane.extname,
        unit=plane.unit,
        shape=shape,
        valid_pixels=int(np.count_nonzero(valid)),
        noise=noise_report,
        mask=mask_report,
        sky=None if plane.wcs is None else sky_place(plane.wcs, shape),
        gain=plane.gain or None,
        background=background,
        rms=rms,
        seeing=seeing,
        messages=plane.messages,
    )
