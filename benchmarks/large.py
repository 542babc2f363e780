"""Sources on galaxies larger than a cutout, and on bright stars: the figures of docs/model.md.

    python benchmarks/large.py --work DIR [--weights FILE] [--scenes 12] [--only spiral,star]

Each scene is an image of 640×640 px of LSST's i band with 60 galaxies per arcmin² down to i = 26.5,
and one large object in its middle. Of the detectable galaxies with i < 25.3 whose centre lies where
that is brighter than 1.5 times the noise of the sky: how many are found, what their fluxes are over
the true ones, and what is found there that is none of them; beside them those further off.
DIR/large.png shows the first scene of each kind.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import galsim
import numpy as np

import galsep
from galsep.config import DeblendConfig, SimulateConfig
from galsep.flags import Flag
from galsep.image.light import Frame
from galsep.measure.matching import centroid_distances, match_centroids
from galsep.plot.isolated import IsolatedRow, plot_isolated
from galsep.scene import Source
from galsep.sim import population
from galsep.sim.scenes import truth_columns
from galsep.workflows import simulate as drawing
from galsep.workflows.finding import FoundSources, find_sources

SIDE = 640
RADIUS = 3.0
"""What is found within so many pixels of a source is that source."""

LIMIT = 25.3

LEAST = 0.3
"""What lies on the large object and has this share of its light or more is the large object."""

Profile = tuple[galsim.GSObject, float]
"""Surface brightness before the PSF, and magnitude."""


def disc(rng: np.random.Generator) -> Profile:
    """A disc with a bulge of a tenth of the light."""
    return numbers(rng, 0.1).drawn().profile, rng.uniform(15.0, 17.0)


def elliptical(rng: np.random.Generator) -> Profile:
    """De Vaucouleurs' profile."""
    return numbers(rng, 1.0).drawn().profile, rng.uniform(15.0, 17.0)


def spiral(rng: np.random.Generator) -> Profile:
    """Two or three arms of clumps, which are not the same turned by half, in a disc."""
    return population._spiral(numbers(rng, 0.1), rng).profile, rng.uniform(15.0, 17.0)


def star(rng: np.random.Generator) -> Profile:
    """A point, whose PSF has wings that fall like r⁻³, as aureoles do."""
    return galsim.DeltaFunction(), rng.uniform(13.0, 15.0)


def nothing(_: np.random.Generator) -> Profile:
    """Nothing to speak of."""
    return galsim.DeltaFunction(), 40.0


KINDS: dict[str, Callable[[np.random.Generator], Profile]] = {
    "nothing": nothing,
    "disc": disc,
    "elliptical": elliptical,
    "spiral": spiral,
    "star": star,
}


def numbers(rng: np.random.Generator, bulge: float) -> population.Parameters:
    """A galaxy with a half-light radius of 6″ to 12″."""
    radius, ratio = rng.uniform(6.0, 12.0), rng.uniform(0.3, 0.95)
    return population.Parameters(
        magnitude=np.zeros(1),
        bulge_fraction=bulge,
        point_fraction=0.0,
        disk_radius=radius,
        bulge_radius=radius if bulge == 1 else 0.3 * radius,
        disk_axis_ratio=ratio,
        bulge_axis_ratio=ratio if bulge == 1 else math.sqrt(ratio),
        position_angle=rng.uniform(0, 180),
    )


@dataclass(frozen=True)
class Scene:
    """An image and what is in it."""

    frame: Frame
    large: Any
    sources: Sequence[Source]
    detectable: Any
    rms: float

    def on_large(self, x: Any, y: Any) -> Any:
        """Which places lie on the large object."""
        place = tuple(np.rint([y, x]).astype(int).clip(0, SIDE - 1))
        return self.large[place] > 1.5 * self.rms


def draw(kind: str, number: int) -> Scene:
    """Draw a scene; the other galaxies are the same whatever the large object is."""
    config = SimulateConfig(field=f"{SIDE}x{SIDE}", galaxies="1", density=60.0, max_mag=26.5)
    maker = drawing._maker(config)
    blend = maker.field(np.random.default_rng((91, number)))
    band = maker.survey.bands[0]
    rng = np.random.default_rng((92, number))
    profile, magnitude = KINDS[kind](rng)
    psf = galsim.Kolmogorov(fwhm=blend.psf_fwhm)
    if kind == "star":
        psf = 0.9 * psf + 0.1 * galsim.Moffat(beta=1.5, fwhm=4 * blend.psf_fwhm, trunc=60.0)
    coarse = galsim.GSParams(
        maximum_fft_size=16384, folding_threshold=0.02, stepk_minimum_hlr=3
    )  # fmt: skip
    light = galsim.Convolve(profile, psf, gsparams=coarse).withFlux(
        10 ** (-0.4 * (magnitude - band.zeropoint))
    )
    picture = galsim.ImageD(SIDE, SIDE, scale=blend.pixel_scale)
    middle = galsim.PositionD(*(SIDE / 2 + rng.uniform(-1, 1, 2)))
    large = light.drawImage(picture, center=middle).array.clip(0)
    clean = large.copy()
    for source in blend.sources:
        height, width = source.light.shape[1:]
        clean[source.y0 : source.y0 + height, source.x0 : source.x0 + width] += source.light[0]
    sky = band.sky_level
    image = (np.random.default_rng((93, number)).poisson(clean + sky) - sky).astype(np.float32)
    return Scene(
        Frame(
            image,
            np.zeros(image.shape, dtype=bool),
            gain=1.0,
            psf_fwhm=blend.psf_fwhm / blend.pixel_scale,
        ),
        large,
        blend.sources,
        truth_columns(blend, band.sky_rms, 0)["detectable"],
        band.sky_rms,
    )


def judged(scene: Scene, found: FoundSources) -> dict[str, Any]:
    """What is found of a scene's galaxies, on the large object and off it, and its own flux."""
    x, y = (np.array([getattr(source, axis) for source in scene.sources]) for axis in "xy")
    true = np.array([source.flux[0] for source in scene.sources])
    magnitude = np.array([source.magnitude[0] for source in scene.sources])
    wanted = np.asarray(scene.detectable) & (magnitude < LIMIT)
    detections = found.detections
    central = np.zeros(len(detections), dtype=bool)
    if scene.large.max() > scene.rms and len(detections):
        brightest = np.where(scene.on_large(detections.x, detections.y), detections.flux, 0)
        central[brightest.argmax()] = brightest.max() > LEAST * scene.large.sum()
    at_x, at_y, flux, error = (
        values[~central]
        for values in (detections.x, detections.y, detections.flux, found.photometry.flux_err)
    )
    distance = centroid_distances((x, y), (at_x, at_y))
    distance[distance > RADIUS] = np.inf
    pairs = match_centroids(distance, wanted=wanted).pairs
    spurious = match_centroids(distance, wanted=np.ones(len(x), dtype=bool)).spurious
    on, found_on = scene.on_large(x, y), scene.on_large(at_x, at_y)
    judgement: dict[str, Any] = {
        "large": float(detections.flux[central].sum() / scene.large.sum()) or math.nan
    }
    for name, here, found_here in (("on", on, found_on), ("off", ~on, ~found_on)):
        i, j = pairs[here[pairs[:, 0]]].T
        judgement[name] = {
            "wanted": int((wanted & here).sum()),
            "spurious": int(found_here[spurious].sum()),
            "ratio": flux[j] / true[i],
            "pull": (flux[j] - true[i]) / error[j],
        }
    return judgement


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for pictures")
    parser.add_argument("--weights", default="", help="default: the packaged ones")
    parser.add_argument("--only", default=",".join(KINDS), help=f"some of {', '.join(KINDS)}")
    parser.add_argument("--scenes", type=int, default=12, help="images of each kind")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    model = galsep.load_model(given.weights, "cpu")
    shown: list[IsolatedRow] = []
    for kind in given.only.split(","):
        scenes = [draw(kind, number) for number in range(given.scenes)]
        founds = list(
            find_sources([scene.frame for scene in scenes], model, DeblendConfig(device="cpu"))
        )
        show(kind, [judged(*one) for one in zip(scenes, founds, strict=True)])
        shown += row(kind, scenes[0], founds[0])
    plot_isolated(shown, scenes[0].rms, given.work / "large.png")


def row(kind: str, scene: Scene, found: FoundSources) -> list[IsolatedRow]:
    """The large object of a scene: all light, its true light, its model and light, what is left."""
    large = np.flatnonzero(found.flags & Flag.LARGER_THAN_CUTOUT)
    if not len(large):
        return []
    models = np.zeros((SIDE, SIDE), dtype=np.float32)
    for part in found.separated:
        models[part.slices] += part.model
    brightest = max(large.tolist(), key=lambda k: float(found.detections.flux[k]))
    return [IsolatedRow(kind, found.light, models, found.separated[brightest], scene.large)]


def show(kind: str, judgements: Sequence[dict[str, Any]]) -> None:
    """Print what is found of all scenes of a kind."""
    fluxes = " ".join(f"{judgement['large']:.2f}" for judgement in judgements)
    print(f"\n{kind}: flux of the large object over the true one {fluxes}")
    for where in ("on", "off"):
        parts = [judgement[where] for judgement in judgements]
        wanted, spurious = (sum(part[key] for part in parts) for key in ("wanted", "spurious"))
        ratio, pull = (np.concatenate([part[key] for part in parts]) for key in ("ratio", "pull"))
        print(f"  {where}: {len(ratio)} of {wanted} found, {spurious} spurious")
        if len(ratio):
            low, middle, high = np.percentile(ratio, [16, 50, 84])
            width = float(np.diff(np.percentile(pull, [16, 84]))[0]) / 2
            print(
                f"    flux over the true one {middle:.3f} ({low:.2f} to {high:.2f}), "
                f"flux error {np.median(np.abs(ratio - 1)):.3f}, pull width {width:.2f}"
            )


if __name__ == "__main__":
    main()
