"""Find and separate the sources of one image: a file, or an array in Python."""

import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import galsep
from galsep.config import DeblendConfig
from galsep.conventions import MAX_PIXEL
from galsep.errors import (
    ImageError,
    UsageError,
)
from galsep.image.light import Frame
from galsep.io.companions import Noise, PlaneOptions, split_reference
from galsep.io.image import Plane, read_plane, read_plane_like
from galsep.io.wcs import usable_wcs
from galsep.model.weights import Model, load_model
from galsep.planes import Planes
from galsep.workflows.bands import (
    check_names,
    combined_frame,
    combined_plane,
    read_bands,
)
from galsep.workflows.finding import FoundSources, find_sources
from galsep.workflows.reporting import Reporter
from galsep.workflows.tables import catalog_table, parents_table
from galsep.workflows.telling import tell_of_planes, tell_of_result

if TYPE_CHECKING:
    from astropy.table import Table
    from astropy.wcs import WCS

from galsep.workflows.result import DeblendResult

__all__ = ["deblend", "deblend_plane", "describe", "plane_options"]


def deblend(
    image: Path | str | npt.NDArray[Any] | Mapping[str, Path | str | npt.NDArray[Any]],
    config: DeblendConfig | None = None,
    *,
    model: Model | None = None,
    wcs: "WCS | None" = None,
    rms: npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]] | None = None,
) -> DeblendResult:
    """Find the sources of one image and separate their light.

    Parameters
    ----------
    image : path, (h, w) array, or mapping of str to either
        A FITS file, or pixels in any unit. Pixels that are not finite, or masked in a masked
        array, are left out. Of astropy's containers ``CCDData`` and ``NDData`` the mask, the WCS,
        the uncertainty and the unit count, of a ``Quantity`` the unit. A mapping names several
        bands of one field on one grid: sources are found in their combination.
    config : DeblendConfig, optional
        Options of ``galsep deblend``, such as ``galsep.config.DeblendConfig(threshold=0.8)``.
    model : Model, optional
        From :func:`galsep.load_model`; loaded anew by default.
    wcs : astropy.wcs.WCS, optional
        Of an array or of arrays, for ``ra`` and ``dec``; a file has its own.
    rms : (h, w) array, or mapping of str to it, optional
        Noise of each pixel of an array, at any scale; where it is masked, or not positive and
        finite, the pixel is left out. Of several bands a mapping of their names to it. A file has
        its own, or the one that ``config`` names.

    Returns
    -------
    DeblendResult

    Raises
    ------
    ImageError
        When the image is missing, damaged, empty or not 2-D, or its planes do not fit.
    UsageError
        When ``config`` names planes of an array, or bands, a band's name is not usable, or ``wcs``
        or ``rms`` are given for a file.
    WeightsError, DeviceError
        When the weights or the device are not usable.

    Warns
    -----
    RuntimeWarning
        Of what ``galsep deblend`` warns of, too: a WCS that is not usable, noise that is of another
        size than was measured, a PSF that is too narrow, bands of different units, no valid pixel.

    Examples
    --------
    >>> import galsep
    >>> result = galsep.deblend("image.fits")  # doctest: +SKIP
    >>> result.catalog["label", "x_centroid", "y_centroid", "deblend_flux"]  # doctest: +SKIP
    """
    config = config or DeblendConfig()
    planes = Planes()
    if config.band and not isinstance(image, Mapping):
        raise UsageError("give several bands as a mapping of their names to images")
    if isinstance(image, Mapping):
        bands = _given_bands(image, config, planes, wcs, rms)
        plane, detection = next(iter(bands.values())), None
        if config.detect:
            detection = read_plane_like(config.detect, plane, planes)
    elif isinstance(image, str | Path):
        _only_for_arrays(wcs, rms)
        bands = {}
        plane = read_plane(Path(image), config.ext, plane_options(config))
        detection = read_plane_like(config.detect, plane) if config.detect else None
    else:
        if plane_options(config) != PlaneOptions() or config.detect or config.ext:
            raise UsageError(
                "ext, variance, weight, rms, mask, mask_bits and detect are for files; give an "
                "array its noise as rms=..., and its mask as a masked array"
            )
        if isinstance(rms, Mapping):
            raise UsageError("rms is a mapping where the image is one of bands")
        bands = {}
        plane, detection = _plane_of_array(image, wcs, rms), None
    model = model or load_model(config.weights, config.device)
    name = str(image) if isinstance(image, str | Path) else "image"
    heard = _Heard()
    read = [*(bands.values() or [plane]), *([] if detection is None else [detection])]
    tell_of_planes(name, read, bands, heard)
    found, plane, catalog = deblend_plane(
        plane, model, config, detection=detection, bands=bands, planes=planes
    )
    describe(catalog, plane, found, model, config)
    tell_of_result(name, plane, found, config, heard)
    for line in heard.lines:
        warnings.warn(line, RuntimeWarning, stacklevel=2)
    return _result(found, catalog)


class _Heard(Reporter):
    """Keeps the lines of warnings."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, message: str) -> None:
        self.lines.append(message)


def deblend_plane(
    plane: Plane,
    model: Model,
    config: DeblendConfig,
    *,
    detection: Plane | None = None,
    bands: Mapping[str, Plane] | None = None,
    planes: Planes | None = None,
    separate_bands: bool = True,
) -> tuple[FoundSources, Plane, "Table"]:
    """Find the sources of an image and measure them.

    They are found in the detection image, if there is one. Bands take the image's place: sources
    are found in their combination, and measured in it and in each.

    Parameters
    ----------
    plane : Plane
        The image; not looked at where there are bands.
    model : Model
    config : DeblendConfig
        Files that it names are not read; a ``gain`` above 0 counts for that of every plane.
    detection : Plane, optional
        An image of the same pixels to find the sources in.
    bands : mapping of str to Plane, optional
        By their names, all of the same pixels.
    planes : Planes, optional
        Where whole-image arrays are to be; in memory by default.
    separate_bands : bool
        Give each source its own light in every band, too, and not only its flux.

    Returns
    -------
    found : FoundSources
    plane : Plane
        The image, or the combination of the bands.
    catalog : Table
        Without what :func:`describe` adds; ``docs/formats.md`` describes its columns.

    Raises
    ------
    ImageError
        When SEP gives up on a blob that is larger than a cutout.
    OutputError
        When the folder of ``planes`` has no room.
    torch.OutOfMemoryError
        When the device has no room for one cutout.
    """
    planes = planes or Planes()
    units = {name: band.unit for name, band in (bands or {}).items()}
    if bands:
        frames = {name: _frame(band, config) for name, band in bands.items()}
        frame = combined_frame(frames, config.background_mesh, planes)
        plane = combined_plane(bands, frame, planes)
    else:
        frame = _frame(plane, config)
    if detection is not None:
        frame = replace(_frame(detection, config), measured=frame, bands=frame.bands)
    found = next(find_sources([frame], model, config, planes=planes, separate_bands=separate_bands))
    return found, plane, catalog_table(found, plane, config, units)


def _frame(plane: Plane, config: DeblendConfig) -> Frame:
    rms = None if plane.noise is None else plane.noise.rms
    return Frame(plane.data, plane.mask, rms, gain=config.gain or plane.gain)


def plane_options(config: DeblendConfig) -> PlaneOptions:
    """What settings say about an image's noise and mask planes."""
    return PlaneOptions(
        variance=config.variance,
        weight=config.weight,
        rms=config.rms,
        mask=config.mask,
        mask_bits=config.mask_bits,
    )


def _only_for_arrays(wcs: "WCS | None", rms: Any) -> None:
    if wcs is not None or rms is not None:
        raise UsageError("wcs and rms are for arrays; a file has its own")


def _given_bands(
    images: Mapping[str, Path | str | npt.NDArray[Any]],
    config: DeblendConfig,
    planes: Planes,
    wcs: "WCS | None",
    rms: npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]] | None,
) -> dict[str, Plane]:
    """Planes of bands given in Python."""
    if not images:
        raise UsageError("no band is given")
    if config.band or plane_options(config) != PlaneOptions():
        raise UsageError("with bands, noise and mask planes are those of their own files")
    check_names(images)
    files = {name: str(one) for name, one in images.items() if isinstance(one, str | Path)}
    if len(files) == len(images):
        _only_for_arrays(wcs, rms)
        path, ext = split_reference(next(iter(files.values())))
        return read_bands(files, read_plane(path, ext or config.ext), planes)
    if files:
        raise UsageError("bands are all files or all arrays")
    if config.ext:
        raise UsageError("ext is for files, and bands are arrays")
    if rms is not None and not (isinstance(rms, Mapping) and rms.keys() <= images.keys()):
        raise UsageError(f"rms is a mapping of the bands' names ({', '.join(images)}) to arrays")
    noise = rms or {}
    bands = {name: _plane_of_array(one, wcs, noise.get(name)) for name, one in images.items()}
    shapes = {plane.data.shape for plane in bands.values()}
    if len(shapes) > 1:
        raise ImageError(f"the bands differ in shape: {sorted(shapes)}")
    return bands


def _plane_of_array(image: Any, wcs: "WCS | None", rms: Any) -> Plane:
    from astropy.io import fits

    given = _unpacked(image)
    data, mask = given.pixels, given.mask
    if data.ndim != 2 or data.size == 0 or data.dtype.kind not in "iuf":
        raise ImageError(
            f"an image is a 2-D array of numbers, got shape {data.shape} of {data.dtype}"
        )
    kind = np.float32 if data.dtype == np.float32 else np.float64
    values: npt.NDArray[np.floating[Any]] = np.array(data, dtype=kind)
    mask = mask | ~(np.abs(values) < MAX_PIXEL)
    noise = None
    uncertain = given.rms if rms is None else _unpacked(rms)
    if uncertain is not None:
        if uncertain.pixels.shape != data.shape:
            raise ImageError(f"rms has the shape {uncertain.pixels.shape}, the image {data.shape}")
        noise = Noise(np.asarray(uncertain.pixels, dtype=np.float32), "array")
        with np.errstate(invalid="ignore"):
            mask |= uncertain.mask | ~(np.isfinite(noise.rms) & (noise.rms > 0))
    values[mask] = np.nan
    messages: tuple[str, ...] = ()
    wcs = given.wcs if wcs is None else wcs
    if wcs is not None:
        wcs, problem = usable_wcs(wcs, (data.shape[0], data.shape[1]))
        if problem:
            messages = (f"image: the WCS is not usable ({problem}); ra and dec will be NaN",)
    return Plane(values, mask, fits.Header(), wcs, 0, "", given.unit, 0.0, messages, noise)


@dataclass(frozen=True, slots=True)
class _Given:
    """What an array, or what astropy keeps one in, holds."""

    pixels: npt.NDArray[Any]
    mask: npt.NDArray[np.bool_]
    unit: str = ""
    wcs: Any = None
    rms: "_Given | None" = None


def _unpacked(image: Any) -> _Given:
    """Take apart masked arrays, quantities and, where they have been imported, NDData."""
    nddata = sys.modules.get("astropy.nddata")
    mask, unit, wcs, rms = None, None, None, None
    if nddata is not None and isinstance(image, nddata.NDData):
        mask, unit, wcs, rms = image.mask, image.unit, image.wcs, _uncertainty(image, nddata)
        image = image.data
    unit = getattr(image, "unit", None) if unit is None else unit
    if hasattr(image, "unmasked"):
        # Of astropy's own masked arrays.
        image, mask = image.unmasked, image.mask
    pixels = np.asarray(np.ma.getdata(image) if isinstance(image, np.ndarray) else image)
    hidden = np.zeros(pixels.shape, dtype=bool)
    try:
        for layer in (np.ma.getmask(image), False if mask is None else np.asarray(mask)):
            hidden |= layer != 0
    except ValueError:
        shape = np.shape(layer)
        raise ImageError(f"the mask has the shape {shape}, the image {pixels.shape}") from None
    return _Given(pixels, hidden, "" if unit is None else str(unit), wcs, rms)


def _uncertainty(image: Any, nddata: ModuleType) -> _Given | None:
    """Standard deviations of NDData that has any."""
    if image.uncertainty is None:
        return None
    try:
        # As another kind it looks at the data that it belongs to.
        deviation = image.uncertainty.represent_as(nddata.StdDevUncertainty)
    except (TypeError, AttributeError) as error:
        raise ImageError(f"what is uncertain about the image is not known: {error}") from error
    return _unpacked(np.asarray(deviation.array))


def describe(
    catalog: "Table",
    plane: Plane,
    found: FoundSources,
    model: Model,
    config: DeblendConfig,
    command: str = "",
) -> None:
    """Say in the catalogue's meta data how it was made.

    Parameters
    ----------
    catalog : Table
        Its ``meta`` is added to, in place.
    plane : Plane
        The image, or the combination of the bands, as :func:`deblend_plane` gives it.
    found : FoundSources
    model : Model
    config : DeblendConfig
    command : str
        For HISTORY; empty for none.
    """
    catalog.meta |= {
        "GALSEP": galsep.__version__,
        "WEIGHTS": model.sha256,
        "SCORECUT": model.threshold if config.threshold is None else config.threshold,
    }
    if (psf := found.domain.psf) is not None:
        catalog.meta["PSFFWHM"] = round(psf.fwhm, 2)
        catalog.meta["PSFSTARS"] = psf.points
        catalog.meta["RESAMPLE"] = found.domain.binning
    if plane.noise is not None and found.measured.image.noise_scale is not None:
        catalog.meta["RMSPLANE"] = plane.noise.origin
        catalog.meta["RMSSCALE"] = float(f"{found.measured.image.noise_scale:.6g}")
    if plane.dq is not None:
        catalog.meta["DQPLANE"] = plane.dq.origin
        catalog.meta["DQHIDES"] = plane.dq.hidden
    if config.detect:
        catalog.meta["DETIMAGE"] = Path(config.detect).name
    if command:
        catalog.meta["HISTORY"] = [command]


def _result(found: FoundSources, catalog: "Table") -> DeblendResult:
    return DeblendResult(
        catalog=catalog,
        segm=found.segm,
        masks=found.detections.footprints,
        noverlap=found.noverlap,
        parents=parents_table(found),
        background=found.background,
        rms=found.rms,
        light=found.light,
        separated=found.separated,
        bands=found.bands,
    )
