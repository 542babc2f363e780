"""What a user should hear of an image and of how it was taken, whoever asks."""

from collections.abc import Mapping, Sequence

from galsep.config import DeblendConfig
from galsep.image.psf import Domain
from galsep.io.image import Plane
from galsep.workflows.finding import FoundSources
from galsep.workflows.reporting import Reporter

__all__ = ["tell_of_planes", "tell_of_result"]

ODD_SCALE = 4.0
"""A noise plane that is given, and off by this factor, may be of another kind or image."""


def tell_of_planes(
    name: str, planes: Sequence[Plane], bands: Mapping[str, Plane], reporter: Reporter
) -> None:
    """Say what is odd about what was read for an image.

    Parameters
    ----------
    name : str
        Of the image.
    planes : sequence of Plane
        All that were read.
    bands : mapping of str to Plane
        Those of them that are bands.
    reporter : Reporter
    """
    units = list(dict.fromkeys(band.unit or "none" for band in bands.values()))
    if len(units) > 1:
        reporter.warn(
            f"{name}: the bands have different units ({', '.join(units)}); their combination, in "
            "which sources are found, takes them for one"
        )
    for message in dict.fromkeys(line for plane in planes for line in plane.messages):
        reporter.warn(message)


def tell_of_result(
    name: str, plane: Plane, found: FoundSources, config: DeblendConfig, reporter: Reporter
) -> None:
    """Say what is worth knowing about how an image was taken.

    Parameters
    ----------
    name : str
        Of the image.
    plane : Plane
        The image, or the combination of the bands.
    found : FoundSources
    config : DeblendConfig
    reporter : Reporter
    """
    used = []
    if plane.noise is not None:
        used.append(
            f"noise from {plane.noise.origin}, times {found.measured.image.noise_scale:.3g}"
        )
    if plane.dq is not None:
        used.append(f"mask from {plane.dq.origin}, hiding {plane.dq.hidden}")
    if used:
        reporter.info(f"{name}: {'; '.join(used)}")
    scale = found.measured.image.noise_scale
    given = "--rms" if config.rms else "--variance"
    if (config.rms or config.variance) and scale and not 1 / ODD_SCALE < scale < ODD_SCALE:
        reporter.warn(
            f"{name}: the measured noise is {scale:.3g} times that of {given}; only its pattern is "
            "used, but it may be another kind of plane, or another image's"
        )
    _tell_of_domain(name, found.domain, reporter)
    if plane.mask.all():
        reporter.warn(f"{name}: no valid pixel; the catalogue is empty")


def _tell_of_domain(name: str, domain: Domain, reporter: Reporter) -> None:
    """Say so where an image's PSF is not one that the network was trained on."""
    if domain.fwhm is None or domain.limits is None:
        return
    low, high = domain.limits
    outside = (
        f"{name}: PSF FWHM about {domain.fwhm:.1f} px is outside the trained range "
        f"{low:.1f}–{high:.1f} px"
    )
    k = domain.binning
    if not domain.inside:
        reporter.warn(f"{outside}: sources are flagged out_of_domain")
    elif k > 1:
        reporter.info(f"{outside}: the network sees means of {k}×{k} px")
