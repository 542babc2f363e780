"""What a call of ``deblend_files`` is to write, and what of it is there."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from galsep.config import CATALOG_FORMATS, FILE_SETTINGS, DeblendConfig
from galsep.errors import GalsepError, OutputExistsError, UsageError
from galsep.io.atomic import partial_files
from galsep.io.claim import LOCK, claimed
from galsep.io.companions import split_reference
from galsep.io.image import input_stem, list_images

__all__ = ["Existing", "Targets", "files_of", "name_targets", "tidy"]


@dataclass(frozen=True, slots=True)
class Targets:
    """Files that an input will write.

    Parameters
    ----------
    segm, catalog : Path
    isolated, residual : Path or None
        ``None`` where they are not asked for.
    previews, regions, reports : tuple of Path
        One for each image of the input that is deblended; none where they are not asked for.
    """

    segm: Path
    catalog: Path
    isolated: Path | None = None
    residual: Path | None = None
    previews: tuple[Path, ...] = ()
    regions: tuple[Path, ...] = ()
    reports: tuple[Path, ...] = ()

    def absolute(self) -> "Targets":
        """Named so that they are found from any folder."""

        def whole(value: Any) -> Any:
            return tuple(map(whole, value)) if isinstance(value, tuple) else value.absolute()

        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Targets(**{name: value and whole(value) for name, value in values.items()})

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them."""
        images = [path for path in (self.isolated, self.residual) if path is not None]
        pictures = *self.previews, *self.regions, *self.reports
        return (self.segm, self.catalog, *images, *pictures)


def files_of(targets: Targets | None) -> tuple[Path, ...]:
    """All files that an input will write, if it is to write any."""
    return targets.files if targets else ()


@dataclass(frozen=True, slots=True)
class Existing:
    """What is done about outputs that exist: they are replaced, or their inputs passed over."""

    overwrite: bool
    skip: bool

    def suffices(self, targets: Targets | None) -> bool:
        """Whether all outputs of an input are there and it may be passed over.

        Raises
        ------
        OutputExistsError
            When one is there and may neither be replaced nor passed over.
        """
        files = files_of(targets)
        there = [target for target in files if target.exists()]
        if not there or self.overwrite:
            return False
        if not self.skip:
            raise OutputExistsError(
                f"{there[0]}: exists already; give --overwrite to replace it or --skip-existing "
                "to pass over its input"
            )
        return len(there) == len(files)


def name_targets(
    images: Sequence[Path], output: Path | None, config: DeblendConfig
) -> Mapping[Path, Targets | None]:
    """Files that each input will write, refusing inputs that would write the same ones.

    Parameters
    ----------
    images : sequence of Path
        The inputs.
    output : Path or None
        Folder to write to; ``None`` where nothing is written.
    config : DeblendConfig

    Returns
    -------
    mapping of Path to Targets or None
        By input; ``None`` without a folder.

    Raises
    ------
    UsageError
        When an input is named twice, two inputs would write the same file, or one would write a
        file that is read.
    """
    by_stem: dict[str, Path] = {}
    writers: dict[Path, Path] = {}
    read = {path.resolve(): path for path in (*_files_read(config), *images)} if output else {}
    targets: dict[Path, Targets | None] = {}
    for path in images:
        stem = input_stem(path)
        if by_stem.get(stem) == path:
            raise UsageError(f"{path}: named twice; name each image once")
        if stem in by_stem:
            raise UsageError(
                f"{by_stem[stem]} and {path} would both write {stem}_cat and {stem}_segm; "
                "deblend them into different folders"
            )
        by_stem[stem] = path
        if output is None:
            targets[path] = None
            continue
        beside = config.preview or config.regions or config.report
        numbers = _numbers(path, config) if beside else []
        own = targets[path] = Targets(
            output / f"{stem}_segm.fits",
            output / f"{stem}_cat{CATALOG_FORMATS[config.catalog_format]}",
            output / f"{stem}_isolated.fits" if config.isolated else None,
            output / f"{stem}_residual.fits" if config.residual else None,
            tuple(output / f"{stem}_preview{n}.png" for n in numbers if config.preview),
            tuple(output / f"{stem}{n}.reg" for n in numbers if config.regions),
            tuple(output / f"{stem}_report{n}.html" for n in numbers if config.report),
        )
        for file in own.files:
            other = writers.setdefault(file, path)
            if other != path:
                raise UsageError(
                    f"{other} and {path} would both write {file.name}; deblend them into "
                    "different folders"
                )
            # What is not there is no file that is read.
            if file.exists() and (victim := read.get(file.resolve())) is not None:
                raise UsageError(f"{path} would write {file.name} over {victim}, which is read")
    return targets


def _files_read(config: DeblendConfig) -> Iterator[Path]:
    """Files that are read beside the images."""
    bands = [band.partition("=")[2] for band in config.band]
    for reference in (*(getattr(config, name) for name in FILE_SETTINGS), *bands):
        if reference:
            yield split_reference(reference)[0]


def _numbers(path: Path, config: DeblendConfig) -> list[str]:
    """What tells the side products of a file's images apart; nothing where there is one."""
    try:
        chosen = list_images(path, config.ext).chosen
    except GalsepError:
        return [""]  # It is told of when it is its turn.
    return [f"_{ext}" for ext in chosen] if len(chosen) > 1 else [""]


def tidy(tasks: Sequence[Targets]) -> None:
    """Remove what processes left that were killed, now or in an earlier run."""
    partial = partial_files(file for targets in tasks for file in targets.files)
    for targets in tasks:
        left = [path for file in targets.files for path in partial.get(file, ())]
        if left:
            # It may be another call's, and that at work. Claims go with their locks.
            with claimed(targets.catalog) as ours:
                for path in left if ours else ():
                    if not path.name.startswith(LOCK):
                        path.unlink(missing_ok=True)
