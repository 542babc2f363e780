"""Simulate data sets of blends, wide fields and galaxy catalogues."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import galsep
from galsep.config import SimulateConfig, parse_range
from galsep.conventions import MASK_THRESHOLD, to_fits
from galsep.errors import UsageError
from galsep.io.atomic import refuse_existing, remove_partial, whole_file, write_fits
from galsep.io.claim import alone_in
from galsep.io.dataset import (
    CLAIM,
    META_FILE,
    DatasetMeta,
    load_dataset,
    pack_blends,
    refuse_dataset,
    remove_stale_shards,
    shard_slices,
    truth_hdu,
    write_meta,
    write_shard,
)
from galsep.scene import Blend
from galsep.sim.catalogs import CatsimCatalog, CosmosCatalog, population_table
from galsep.sim.population import Population, SourceModel, VariedPopulation
from galsep.sim.scenes import SceneMaker, truth_columns
from galsep.sim.survey import Survey, load_survey
from galsep.workflows.pool import map_on_workers
from galsep.workflows.reporting import Reporter

__all__ = ["SimulateResult", "simulate", "write_population"]

FIELD_CENTRE = (150.1, 2.2)
"""Right ascension and declination of a simulated field's centre, degrees (that of COSMOS)."""

PREVIEWS = ("preview-blends.png", "preview-augmentation.png")
FIELD_PREVIEW = "preview-field.png"


@dataclass(frozen=True, slots=True)
class SimulateResult:
    """What was simulated.

    Parameters
    ----------
    folder : Path
    files : tuple of Path
        Everything that was written.
    blends, sources : int
        How many were drawn (a field counts as one blend).
    """

    folder: Path
    files: tuple[Path, ...]
    blends: int
    sources: int


def simulate(
    output: Path | str,
    config: SimulateConfig | None = None,
    *,
    preview: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> SimulateResult:
    """Draw blends (or one wide field) and write them with their truth.

    Equal configurations give equal bytes, whatever the number of workers: each blend has its own
    generator, spawned from the seed by its number.

    Parameters
    ----------
    output : path
        Folder to write to; see ``docs/formats.md``.
    config : SimulateConfig, optional
        Defaults to 20,000 galaxy pairs.
    preview : bool
        Also draw pictures of the data and of its augmentation.
    overwrite : bool
        Replace a data set that is there.
    reporter : Reporter, optional
        Hears of the progress.

    Raises
    ------
    UsageError
        For settings that do not go together.
    CatalogError
        For an unusable galaxy catalogue.
    OutputExistsError, OutputError
        When the output exists or cannot be written.
    """
    config = config or SimulateConfig()
    reporter = reporter or Reporter()
    folder = Path(output)
    maker = _maker(config)  # Refuses bad settings before anything is written.
    if config.field:
        return _simulate_field(folder, config, maker, preview=preview, overwrite=overwrite)
    refuse_dataset(folder, overwrite=overwrite)
    shards = shard_slices(config.n)
    tasks = [(config, folder / name, part.start, part.stop) for name, part in shards.items()]
    files = [folder / META_FILE, *(folder / name for name in shards)]
    previews = [folder / name for name in PREVIEWS]
    sources = 0
    with alone_in(folder, CLAIM, "call"):
        remove_partial([*files, *previews])
        for path in (folder / META_FILE, *previews):
            path.unlink(missing_ok=True)
        reporter.begin("simulating", config.n)
        drawn_counts = map_on_workers(_write_task, tasks, config.workers)
        for task, drawn in zip(tasks, drawn_counts, strict=True):
            sources += drawn
            reporter.advance(task[3] - task[2])
        reporter.end()
        remove_stale_shards(folder, shards)
        write_meta(folder, _meta(config, maker.survey, tuple(shards)))
        if preview:
            _draw_previews(folder, *previews)
            files += previews
    return SimulateResult(folder, tuple(files), config.n, sources)


def write_population(
    path: Path, config: SimulateConfig, *, overwrite: bool = False
) -> SimulateResult:
    """Write galaxies of galsep's own population as a table in BTK's columns.

    Equal configurations give equal bytes.

    Parameters
    ----------
    path : Path
        FITS table to write; its folder is made.
    config : SimulateConfig
        ``n`` galaxies are drawn; of the rest, ``survey``, ``bands``, ``max_mag`` and ``seed``
        matter.
    overwrite : bool
        Replace a file that is there.

    Returns
    -------
    SimulateResult
        ``n`` sources in no blend.

    Raises
    ------
    UsageError
        When ``catalog``, ``cosmos`` or ``varied`` is set, or for an unknown survey or band.
    OutputExistsError
        When the file exists and may not be replaced.
    OutputError
        When it cannot be written, or another call is writing it.
    """
    from astropy.io import fits

    if config.catalog or config.cosmos:
        raise UsageError("write-catalog writes galsep's own population: leave catalog and cosmos")
    if config.varied:
        raise UsageError("write-catalog lists bulge + disk galaxies, varied ones do not fit in")
    refuse_existing([path], overwrite=overwrite)
    survey = load_survey(config.survey, config.bands)
    population = Population(survey, config.max_mag)
    table = population_table(population, config.n, np.random.default_rng(config.seed))
    with alone_in(path.parent, f"catalog-{path.name}", "call"):
        # It may have been written since.
        refuse_existing([path], overwrite=overwrite)
        remove_partial([path])
        write_fits(path, fits.HDUList([fits.PrimaryHDU(), fits.table_to_hdu(table)]))
    return SimulateResult(path.parent, (path,), 0, config.n)


def _write_task(task: tuple[SimulateConfig, Path, int, int]) -> int:
    """Draw and write one shard; return the number of its sources."""
    config, path, start, stop = task
    maker = _maker(config)
    blends = [maker.blend(_generator(config.seed, number)) for number in range(start, stop)]
    write_shard(path, blends, list(_derived(blends, maker.survey)), start)
    return sum(len(blend.sources) for blend in blends)


def _generator(seed: int, number: int) -> np.random.Generator:
    """Make the generator of one blend: child ``number`` of the seed."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number,)))


def _derived(blends: Iterable[Blend], survey: Survey) -> Iterator[dict[str, Any]]:
    band = survey.detection_band
    for blend in blends:
        yield truth_columns(blend, survey.bands[band].sky_rms, band)


def _survey(config: SimulateConfig) -> Survey:
    """The survey at the depth and the pixel scale asked for."""
    survey = load_survey(config.survey, config.bands).deepened(config.depth)
    if config.pixel_scale:
        low, high = parse_range("pixel_scale", config.pixel_scale, float)
        if low == high:
            return survey.resampled(low)
    return survey


def _maker(config: SimulateConfig) -> SceneMaker:
    survey = _survey(config)
    galaxies: SourceModel
    if config.catalog:
        galaxies = CatsimCatalog(Path(config.catalog), survey, config.max_mag)
    elif config.cosmos:
        galaxies = CosmosCatalog(Path(config.cosmos), survey, config.max_mag, varied=config.varied)
    elif config.varied:
        galaxies = VariedPopulation(survey, config.max_mag)
    else:
        galaxies = Population(survey, config.max_mag)
    return SceneMaker(config, survey, galaxies)


def _meta(config: SimulateConfig, survey: Survey, shards: tuple[str, ...]) -> DatasetMeta:
    validation = round(0.05 * config.n)
    # The workers leave no trace, since they do not change what is drawn, nor does the machine.
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k != "workers"}
    settings |= {k: Path(settings[k]).name for k in ("catalog", "cosmos")}
    return DatasetMeta(
        survey=survey.name,
        bands=tuple(band.name for band in survey.bands),
        detection_band=survey.detection_band,
        pixel_scale=survey.pixel_scale,
        zeropoints=tuple(band.zeropoint for band in survey.bands),
        sky_rms=tuple(band.sky_rms for band in survey.bands),
        psf_fwhm=tuple(band.psf_fwhm for band in survey.bands),
        counts={
            "train": config.n - 2 * validation,
            "validation": validation,
            "test": validation,
        },
        shards=shards,
        population=settings,
        galsep_version=galsep.__version__,
        seed=config.seed,
    )


def _simulate_field(
    folder: Path, config: SimulateConfig, maker: SceneMaker, *, preview: bool, overwrite: bool
) -> SimulateResult:
    """Write ``field_<band>.fits`` for each band and ``truth.fits``."""
    images = [folder / f"field_{band.name}.fits" for band in maker.survey.bands]
    files = [*images, folder / "truth.fits"]
    refuse_existing(files, overwrite=overwrite)
    drawn = folder / FIELD_PREVIEW
    with alone_in(folder, CLAIM, "call"):
        # Of a field that is replaced: the truth first, and bands and pictures that will not be.
        for path in [files[-1], drawn, *filter(_is_of_a_field, folder.glob("field_*.fits"))]:
            path.unlink(missing_ok=True)
        remove_partial([*files, drawn])
        sources = _write_field(images, files[-1], config, maker, drawn if preview else None)
    return SimulateResult(folder, (*files, drawn) if preview else tuple(files), 1, sources)


def _is_of_a_field(path: Path) -> bool:
    """Whether an image is one that :func:`_write_field` has written."""
    from astropy.io import fits

    try:
        return "SKYRMS" in fits.getheader(path)
    except (OSError, fits.VerifyError):
        return False


def _write_field(
    images: Sequence[Path],
    truth: Path,
    config: SimulateConfig,
    maker: SceneMaker,
    preview: Path | None,
) -> int:
    """Draw a field and write its files; return the number of its sources."""
    from astropy.io import fits

    survey = maker.survey
    blend = maker.field(_generator(config.seed, 0))
    for path, band, image in zip(images, survey.bands, blend.image, strict=True):
        hdu = fits.PrimaryHDU(image, header=_field_header(blend.pixel_scale, image.shape))
        hdu.header["FILTER"] = band.name
        hdu.header["MAGZERO"] = (band.zeropoint, "magnitude of one electron")
        hdu.header["SKYRMS"] = (band.sky_rms, "noise of the empty sky, electrons")
        write_fits(path, fits.HDUList([hdu]))
    derived = list(_derived([blend], survey))
    rows, light = pack_blends([blend], derived, 0)
    light_hdu = fits.ImageHDU(light, name="LIGHT")
    light_hdu.header["BUNIT"] = "electron"
    labels = fits.CompImageHDU(_label_map(blend, survey), name="SEGM")
    write_fits(truth, fits.HDUList([fits.PrimaryHDU(), truth_hdu(rows), light_hdu, labels]))
    if preview is not None:
        from galsep.plot.training import plot_field

        shown = survey.detection_band
        with whole_file(preview) as picture:
            plot_field(
                blend.image[shown],
                survey.bands[shown].sky_rms,
                rows["x"],
                rows["y"],
                rows["detectable"],
                picture,
            )
    return len(blend.sources)


def _label_map(blend: Blend, survey: Survey) -> npt.NDArray[np.int32]:
    """The brightest source of each pixel within a mask, counted from 1 as the truth rows are."""
    band = survey.detection_band
    labels = np.zeros(blend.image.shape[1:], dtype=np.int32)
    brightest = np.full(labels.shape, MASK_THRESHOLD * survey.bands[band].sky_rms, np.float32)
    for label, source in enumerate(blend.sources, start=1):
        height, width = source.light.shape[1:]
        box = slice(source.y0, source.y0 + height), slice(source.x0, source.x0 + width)
        own = source.light[band] > brightest[box]
        labels[box][own] = label
        brightest[box][own] = source.light[band][own]
    return labels


def _draw_previews(folder: Path, blends: Path, augmentation: Path) -> None:
    """Draw the first blends, and the first one in its orientations."""
    from galsep.plot.training import plot_augmentation, plot_blends

    dataset = load_dataset(folder)
    rms = dataset.meta.detection_rms
    level = MASK_THRESHOLD * rms
    shown = range(min(len(dataset), 6))
    layers = [dataset.stack(number) for number in shown]
    with whole_file(blends) as picture:
        plot_blends(
            np.stack([dataset.detection_image(number) for number in shown]),
            layers,
            rms,
            level,
            picture,
        )
    image, light = dataset.detection_image(0), layers[0]
    turned = [
        (f"{90 * turns}°", np.rot90(image, turns), np.rot90(light, turns, (1, 2)))
        for turns in range(4)
    ]
    turned.append(("mirrored", image[:, ::-1], light[:, :, ::-1]))
    with whole_file(augmentation) as picture:
        plot_augmentation(turned, rms, level, picture)


def _field_header(pixel_scale: float, shape: tuple[int, ...]) -> Any:
    from astropy.io import fits

    header = fits.Header()
    header["BUNIT"] = "electron"
    header["GAIN"] = (1.0, "electrons per unit")
    degrees = pixel_scale / 3600
    for axis, (kind, value, size, step) in enumerate(
        (
            ("RA---TAN", FIELD_CENTRE[0], shape[1], -degrees),
            ("DEC--TAN", FIELD_CENTRE[1], shape[0], degrees),
        ),
        start=1,
    ):
        header[f"CTYPE{axis}"] = kind
        header[f"CUNIT{axis}"] = "deg"
        header[f"CRVAL{axis}"] = value
        header[f"CRPIX{axis}"] = float(to_fits((size - 1) / 2))
        header[f"CDELT{axis}"] = step
    header["RADESYS"] = "ICRS"
    return header
