"""The HTML report of one deblended image: a file to open in a browser, without a network."""

import dataclasses
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import galsep
from galsep.config import (
    FILE_SETTINGS,
    MACHINE_SETTINGS,
    DeblendConfig,
    EvaluateConfig,
    without_folder,
)
from galsep.conventions import DETECTABLE_SNR
from galsep.flags import Flag
from galsep.image.background import sampled
from galsep.io.image import Plane
from galsep.io.wcs import sky_place
from galsep.plot.canvas import Shown
from galsep.plot.colors import outline_color
from galsep.plot.distributions import distributions
from galsep.plot.embed import image_uri, outline_path
from galsep.plot.gallery import (
    OwnLight,
    Panel,
    Window,
    blend_panels,
    window_around,
)
from galsep.plot.pages import render_page
from galsep.scene import Footprint, SourceLight
from galsep.workflows.finding import STATUSES, FoundSources

if TYPE_CHECKING:
    from astropy.table import Table

__all__ = [
    "blend_case",
    "own_lights",
    "settings_rows",
    "shown_image",
    "shown_title",
    "versions",
    "write_report",
]

LARGEST_SIDE = 2400
"""Larger fields are averaged down to this many pixels."""

MOST_OUTLINES = 4000
MOST_BLENDS = 24
MOST_MISSED = 12
LIBRARIES = ("torch", "torchvision", "numpy", "astropy", "sep", "matplotlib")

BECAME = {
    "confirmed": "one source",
    "split": "several sources: a blend",
    "missed": f"no network source, S/N of at least {DETECTABLE_SNR:g}: in the catalogue, flagged",
    "rejected": f"no network source, S/N below {DETECTABLE_SNR:g}: in no catalogue",
}
"""What each of :data:`galsep.workflows.finding.STATUSES` says."""

OF_A_SOURCE = (
    "label",
    "x_centroid",
    "y_centroid",
    "deblend_flux",
    "mag",
    "blendedness",
    "class_star",
    "score",
)
"""Columns of the catalogue that a source is described by, where they exist."""


def write_report(
    path: Path,
    title: str,
    plane: Plane,
    found: FoundSources,
    catalog: "Table",
    config: DeblendConfig,
    command: str,
) -> None:
    """Write the page of one deblended image.

    Parameters
    ----------
    path : Path
        HTML file to write, as it is: whoever calls sees to it that it appears whole.
    title : str
        Name of the image.
    plane : Plane
        What was read.
    found : FoundSources
    catalog : Table
        With its meta data.
    config : DeblendConfig
    command : str
        The command line, or empty.
    """
    shown = shown_image(plane, found)
    light, rms = shown.light, shown.rms
    blends = _blends(found)
    missed = _missed(found)
    status = found.parents.status
    statuses = {name: int(np.count_nonzero(status == name)) for name in STATUSES}
    page = render_page(
        "deblend.html",
        title=title,
        numbers={
            "sources": len(catalog),
            "SEP detections": len(found.parents.blobs),
            "blends": len(blends),
            "missed by the network": len(missed),
            "valid pixels": _percent(1 - np.count_nonzero(plane.mask) / plane.mask.size),
        },
        messages=plane.messages,
        image=_about_image(plane, found, catalog, rms),
        parents=[(name, BECAME[name], count) for name, count in statuses.items()],
        flags=[
            (
                str(flag.name).lower(),
                flag.description,
                int(np.count_nonzero(found.flags & flag)),
            )
            for flag in Flag
        ],
        field=_field(shown, found, catalog),
        blends=[
            _case(f"SEP detection {parent}", members, light, rms, found, catalog)
            for parent, members in blends[:MOST_BLENDS]
        ],
        blends_note=_first(MOST_BLENDS, len(blends)),
        plots=_plots(found, catalog) if len(catalog) else [],
        masked=_masked(plane, statuses),
        missed=[
            _case(f"Source {index + 1}", [index], light, rms, found, catalog)
            for index in missed[:MOST_MISSED]
        ],
        missed_note=_first(MOST_MISSED, len(missed)),
        least_snr=f"{DETECTABLE_SNR:g}",
        versions=versions(catalog.meta["WEIGHTS"]),
        settings=settings_rows(config, threshold=catalog.meta["SCORECUT"]),
        command=command,
    )
    path.write_text(page, encoding="utf-8")


def shown_image(plane: Plane, found: FoundSources) -> Shown:
    """The image minus background, NaN where unusable; where it is large, in a file."""
    light = found.planes.new(found.light.shape, np.float32)
    for rows in found.planes.blocks(found.light.shape):
        light[rows] = np.where(plane.mask[rows], np.nan, found.light[rows])
    images = [band.image for band in found.bands.values()]
    bands = [(image.light, float(np.median(sampled(image.rms)))) for image in images]
    return Shown(light, float(np.median(sampled(found.rms))), bands)


def shown_title(name: str, found: FoundSources) -> str:
    """Name of an image and of its bands, and which colours these are where it is in colour."""
    if not found.bands:
        return name
    colours = " as blue, green, red" if len(found.bands) == 3 else ""
    return f"{name}: bands {', '.join(found.bands)}{colours}"


def own_lights(
    footprints: Sequence[Footprint],
    separated: Sequence[SourceLight],
    missed: npt.NDArray[np.bool_],
    window: Window,
) -> list[OwnLight]:
    """Give the own light, with its outline, of each source that reaches into a window.

    Colours take turns within the window, whatever they are in the field.

    Parameters
    ----------
    footprints : sequence of Footprint
    separated : sequence of SourceLight
    missed : (n,) bool array
        Sources that only SEP found.
    window : Window
    """
    here = window.touched(footprints)
    return [
        OwnLight(
            index + 1,
            outline_color(turn, missed=bool(missed[index])),
            footprints[index],
            separated[index].y0,
            separated[index].x0,
            separated[index].model,
        )
        for turn, index in enumerate(here)
    ]


def blend_case(
    title: str,
    note: str,
    window: Window,
    panels: Sequence[Panel],
    rows: Sequence[Mapping[str, Any]] = (),
    field_height: int = 0,
) -> dict[str, Any]:
    """Describe one blend for the template.

    Parameters
    ----------
    title, note : str
        What stands above the pictures; the note smaller.
    window : Window
        The part of the image that they show.
    panels : sequence of Panel
    rows : sequence of mappings
        A row of the table for each source, by column; all have the columns of the first.
    field_height : int
        Height of the field in pixels, to offer to show the blend in it; 0 for no field.

    Returns
    -------
    dict
        What ``parts.html`` knows as a case.
    """
    top = field_height - window.y0 - window.height
    return {
        "title": title,
        "note": note,
        "width": window.width,
        "height": window.height,
        "panels": panels,
        "rows": rows,
        "window": f"{window.x0} {top} {window.width} {window.height}" if field_height else "",
    }


def versions(weights: str) -> dict[str, str]:
    """Versions of what made the figures; ``weights`` is a SHA-256."""
    rows = {"galsep": galsep.__version__, "weights": f"sha256:{weights[:16]}"}
    rows["Python"] = platform.python_version()
    return rows | {name: importlib.metadata.version(name) for name in LIBRARIES}


def settings_rows(config: DeblendConfig | EvaluateConfig, **resolved: float) -> dict[str, str]:
    """Settings as names and values, files without their folders.

    What changes no result or was not set is left out; ``resolved`` are values that stand for a
    default.
    """
    rows = {}
    unset = {field.name: field.default for field in dataclasses.fields(config)}
    for name, value in (dataclasses.asdict(config) | resolved).items():
        if isinstance(value, bool):
            rows[name] = "yes" if value else "no"
        elif (value or value != unset.get(name)) and name not in MACHINE_SETTINGS:
            rows[name] = _setting(name, value)
    return rows


def _setting(name: str, value: Any) -> str:
    if name == "band":
        return ", ".join(map(without_folder, value))
    if name in FILE_SETTINGS:
        return Path(value).name
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _about_image(
    plane: Plane, found: FoundSources, catalog: "Table", rms: float
) -> dict[str, object]:
    height, width = plane.mask.shape
    meta, valid = catalog.meta, ~sampled(plane.mask)
    rows: dict[str, object] = {
        "extension": f"{plane.ext} {plane.extname}".rstrip(),
        "size": f"{width}×{height} px",
        "unit": plane.unit or "not known",
    }
    sky = None if plane.wcs is None else sky_place(plane.wcs, (height, width))
    if sky is None:
        rows["sky coordinates"] = "none" if plane.wcs is None else "yes; the centre is off the sky"
    else:
        rows["centre, ICRS"] = f"ra {sky.ra:.5f}°, dec {sky.dec:+.5f}°"
        rows["pixel scale"] = f"{sky.pixel_scale:.4g}″"
    if valid.any():
        rows["background, median"] = f"{np.median(sampled(found.background)[valid]):.4g}"
        rows["noise of a pixel, median"] = f"{rms:.4g}"
    if "PSFFWHM" in meta:
        k = meta["RESAMPLE"]
        seen = f", the network sees means of {k}×{k} px" if k > 1 else ""
        angle = "" if sky is None else f", {meta['PSFFWHM'] * sky.pixel_scale:.3g}″"
        kind = "" if meta["PSFSTARS"] else ", by galaxies: no stars stand out"
        rows["PSF FWHM"] = f"{meta['PSFFWHM']} px{angle}{kind}{seen}"
    if "RMSPLANE" in meta:
        rows["noise plane"] = f"{meta['RMSPLANE']}, times {meta['RMSSCALE']:.3g}"
    if "DQPLANE" in meta:
        rows["mask plane"] = f"{meta['DQPLANE']}, hiding {meta['DQHIDES']}"
    if "DETIMAGE" in meta:
        rows["found in"] = meta["DETIMAGE"]
    elif found.bands:
        rows["found in"] = f"mean of {', '.join(found.bands)}, weighted by inverse variance"
    return rows


def _field(image: Shown, found: FoundSources, catalog: "Table") -> dict[str, Any]:
    """The whole image, and the outlines to lay over it in pixels of the image."""
    height, width = image.shape
    factor = -(-max(height, width) // LARGEST_SIDE)
    picture = image.picture(factor)
    footprints = found.detections.footprints
    area = np.array([footprint.area for footprint in footprints], dtype=np.int64)
    chosen = np.argsort(-found.photometry.flux, kind="stable")[:MOST_OUTLINES]
    # Large ones first, so that the pointer finds the small ones above them.
    chosen = chosen[np.argsort(-area[chosen], kind="stable")]
    missed = (found.flags & Flag.NETWORK_MISSED) > 0
    sources = [
        {
            "path": outline_path(footprints[index]),
            "color": outline_color(index, missed=bool(missed[index])),
            "tip": _tip(catalog[index]),
        }
        for index in chosen.tolist()
    ]
    note = "Red outlines: found by SEP alone; violet: pixels without valid data."
    if factor > 1:
        note += f" The picture shows means of {factor}×{factor} px."
    if len(footprints) > MOST_OUTLINES:
        note += f" Outlined are the {MOST_OUTLINES} brightest of {len(footprints)} sources."
    return {
        "uri": image_uri(picture),
        "width": width,
        "height": height,
        "shown_width": picture.shape[1] * factor,
        "shown_height": picture.shape[0] * factor,
        "sources": sources,
        "note": note,
    }


def _blends(found: FoundSources) -> list[tuple[int, list[int]]]:
    """SEP detections with several sources and these sources, the most blended first."""
    blendedness = found.photometry.blendedness
    members: dict[int, list[int]] = {}
    for index, parent in enumerate(found.parent.tolist()):
        if parent:
            members.setdefault(parent, []).append(index)
    several = [(parent, own) for parent, own in members.items() if len(own) > 1]
    # Within a blend, too: the picture is laid around the first.
    several = [(p, sorted(own, key=lambda k: -float(blendedness[k]))) for p, own in several]
    return sorted(several, key=lambda item: (-float(blendedness[item[1][0]]), item[0]))


def _missed(found: FoundSources) -> list[int]:
    missed = np.flatnonzero(found.flags & Flag.NETWORK_MISSED)
    snr = found.parents.blobs.snr[found.parent[missed] - 1]
    return [int(index) for index in missed[np.argsort(-snr, kind="stable")]]


def _case(
    title: str,
    members: Sequence[int],
    light: npt.NDArray[Any],
    rms: float,
    found: FoundSources,
    catalog: "Table",
) -> dict[str, Any]:
    footprints = [found.detections.footprints[index] for index in members]
    window = window_around(footprints, light.shape)
    middle = f"x {window.x0 + window.width / 2:.0f}, y {window.y0 + window.height / 2:.0f}"
    missed = (found.flags & Flag.NETWORK_MISSED) > 0
    sources = own_lights(found.detections.footprints, found.separated, missed, window)
    color = {source.label - 1: source.color for source in sources}
    # The window of a very large blend leaves some out.
    shown = sorted({*members} & {*color})
    rows = [{"color": color[index], **_figures(catalog[index])} for index in shown]
    panels = blend_panels(light, rms, sources, window, [index + 1 for index in shown])
    return blend_case(title, f"at {middle}", window, panels, rows, light.shape[0])


def _figures(row: Any) -> dict[str, str]:
    """What one source is described by, ready to read."""
    figures = {}
    for name in OF_A_SOURCE:
        if name in row.colnames:
            form = "d" if name == "label" else ".4g" if "flux" in name else ".2f"
            figures[name] = format(row[name], form)
        if name == "deblend_flux":
            bands = [column for column in row.colnames if column.startswith("deblend_flux_")]
            errors = "deblend_flux_err"
            figures |= {n: format(row[n], ".4g") for n in bands if not n.startswith(errors)}
    return figures


def _tip(row: Any) -> str:
    lines = [f"{name} {value}" for name, value in _figures(row).items()]
    names = [str(flag.name).lower() for flag in Flag if int(row["flags"]) & flag]
    return "\n".join([*lines, *names])


def _plots(found: FoundSources, catalog: "Table") -> list[str]:
    if "mag" in catalog.colnames:
        brightness, name = np.asarray(catalog["mag"]), "mag"
    else:
        flux = found.photometry.flux
        brightness = -2.5 * np.log10(np.where(flux > 0, flux, np.nan))
        name = "−2.5 log₁₀(deblend_flux)"
    return distributions(
        brightness,
        name,
        found.detections.scores,
        found.photometry.blendedness,
        float(catalog.meta["SCORECUT"]),
    )


def _masked(plane: Plane, statuses: Mapping[str, int]) -> str:
    """Say in words what was left out."""
    count = int(np.count_nonzero(plane.mask))
    share = _percent(count / plane.mask.size)
    parts = [
        f"{count} pixels ({share}) hold no valid data." if count else "All pixels hold valid data."
    ]
    if plane.dq is not None:
        hidden = int(np.count_nonzero(plane.dq.hidden_pixels()))
        parts.append(f"The mask plane hides {hidden} of them.")
    parts.append(
        f"In {statuses['rejected']} SEP detections with S/N below {DETECTABLE_SNR:g} the network "
        "saw no source; they are in no catalogue."
    )
    return " ".join(parts)


def _first(most: int, n: int) -> str:
    return f"; the first {most} of {n}" if n > most else ""


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
