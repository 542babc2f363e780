"""FITS files in, label maps, catalogues and what else is asked for out."""

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from galsep.config import DeblendConfig
from galsep.errors import (
    GalsepError,
    ImageError,
    OutputError,
    UsageError,
    WorkerError,
)
from galsep.interrupts import interrupt_behind
from galsep.io import catalog as catalogs
from galsep.io.atomic import make_folder
from galsep.io.claim import claimed
from galsep.io.companions import split_reference
from galsep.io.image import list_images
from galsep.io.products import check_catalog_format
from galsep.io.regions import check_regions
from galsep.model.device import choose_device
from galsep.model.weights import Model, load_model
from galsep.planes import LARGE_IMAGE
from galsep.workflows.bands import band_files
from galsep.workflows.cluster import Cluster, check_dask, connect
from galsep.workflows.elsewhere import (
    absolute_names,
    check_arrived,
    check_seen,
    load_same,
    spread_over,
)
from galsep.workflows.one_file import deblend_file, without_image_cards
from galsep.workflows.pool import Done, work_on_workers
from galsep.workflows.reporting import Record, Recorder, Reporter
from galsep.workflows.targets import Existing, Targets, files_of, name_targets, tidy

if TYPE_CHECKING:
    from astropy.table import Table

__all__ = ["FileResult", "deblend_files", "stack_catalogs"]


@dataclass(frozen=True, slots=True)
class FileResult:
    """What became of one file.

    Parameters
    ----------
    path : Path
    files : tuple of Path
        What was written.
    catalog : Table or None
        ``None`` when the file failed or was passed over, or it was not to be kept.
    n_sources : int
    skipped : bool
        Passed over, since its outputs exist.
    error : GalsepError or None
    """

    path: Path
    files: tuple[Path, ...] = ()
    catalog: "Table | None" = None
    n_sources: int = 0
    skipped: bool = False
    error: GalsepError | None = None


def deblend_files(
    images: Sequence[Path],
    output: Path | None,
    config: DeblendConfig | None = None,
    *,
    overwrite: bool = False,
    skip_existing: bool = False,
    keep_catalogs: bool = True,
    command: str = "",
    reporter: Reporter | None = None,
    listener: Callable[[FileResult], object] | None = None,
) -> list[FileResult]:
    """Deblend FITS files and write their label maps and catalogues, each as soon as it is done.

    A file that fails does not keep the others from being done. With ``config.jobs`` several
    processes share the files and the CPU cores, with ``config.dask`` the workers of a cluster; what
    is written is the same.

    Parameters
    ----------
    images : sequence of Path
        None where ``config`` names bands: the first one's file gives the outputs their name.
    output : Path or None
        Folder to write to; ``None`` only returns the catalogues.
    config : DeblendConfig, optional
    overwrite, skip_existing : bool
        Replace outputs that exist, or pass over their inputs.
    keep_catalogs : bool
        Return the catalogues; without it, memory does not grow with the number of files.
    command : str
        For the outputs' HISTORY; file names without folders. ``IMAGE...`` in it stands for the
        input at hand.
    reporter : Reporter, optional
    listener : callable, optional
        Called with the result of each file as soon as it is known: with several jobs, in the
        order in which they end.

    Returns
    -------
    list of FileResult
        One an input, in order.

    Raises
    ------
    UsageError
        When two inputs would write the same files.
    OutputExistsError
        When an output exists and may neither be replaced nor passed over.
    WeightsError, DeviceError, OutputError, ClusterError
        When the weights, the device, the output folder or the cluster are not usable.
    """
    config = config or DeblendConfig()
    reporter = reporter or Reporter()
    if config.band:
        if images:
            raise UsageError(
                f"{images[0]}: bands take the place of the image; name it as one of them"
            )
        first, ext = split_reference(next(iter(band_files(config.band).values())))
        images, config = [first], replace(config, ext=ext or config.ext)
    check_catalog_format(config.catalog_format)
    if config.regions:
        check_regions()
    if config.dask:
        check_dask()
    targets = name_targets(images, output, config)
    existing = Existing(overwrite, skip_existing)
    done = {path for path in images if existing.suffices(targets[path])}
    # Other processes have models of their own: here it is only checked, off the device.
    left = len(images) - len(done)
    several = min(config.jobs, left) > 1 or (config.dask != "" and left > 0)
    device = "cpu" if config.dask else str(choose_device(config.device))
    model = load_model(config.weights, "cpu" if several else device)
    if output is not None:
        make_folder(output)
    results = {path: FileResult(path, skipped=True) for path in images if path in done}
    todo = [(path, targets[path]) for path in images if path not in done]
    own = None if several else model
    work = _Work(config, command, keep_catalogs, existing, model.sha256, own)
    reporter.begin("deblending", len(images))

    def tell(result: FileResult) -> None:
        results[result.path] = result
        if listener is not None:
            listener(result)
        reporter.advance(note=result.path.name)

    for skipped in list(results.values()):
        tell(skipped)
    try:
        with contextlib.closing(_worked(work, todo, reporter)) as finished:
            for result in finished:
                tell(result)
    finally:
        # Of what is passed over, too: who was killed may have got as far as to have written it.
        tidy([own for own in targets.values() if own is not None])
    reporter.end()
    return [results[path] for path in images]


_Task = tuple[Path, Targets | None]
"""An input and what it is to write."""


@dataclass(slots=True)
class _Work:
    """What is done with every file, in this process or, without a model, in another.

    ``threads`` 0 leaves torch what it has. ``shared`` asks whether a machine sees what others do.
    """

    config: DeblendConfig
    command: str
    keep_catalogs: bool
    existing: Existing
    weights: str
    model: Model | None = None
    threads: int = 0
    shared: bool = False

    def on_file(self, task: _Task, reporter: Reporter) -> FileResult:
        """Deblend a file; what fails is in the result."""
        path, targets = task

        def wait() -> None:
            reporter.info(f"{path}: another call is at work on it; waiting for its end")

        try:
            if self.shared:
                check_seen(path, files_of(targets))
            with contextlib.nullcontext() if targets is None else claimed(targets.catalog, wait):
                # Another call may have been at work on it.
                if self.existing.suffices(targets):
                    return FileResult(path, skipped=True)
                catalog = self._deblended(path, targets, reporter)
        except Exception as error:  # noqa: BLE001 (whatever it is, the other files can be done)
            return FileResult(path, error=_told(path, error))
        kept = catalog if self.keep_catalogs else None
        return FileResult(path, files_of(targets), kept, len(catalog))

    def _deblended(self, path: Path, targets: Targets | None, reporter: Reporter) -> "Table":
        if self.model is None:
            if self.threads:
                torch.set_num_threads(self.threads)
            self.model = load_same(self.config, self.weights)
        command = self.command.replace("IMAGE...", path.name)
        return deblend_file(path, targets, self.model, self.config, command, reporter)

    def __call__(self, task: _Task) -> tuple[FileResult, Record]:
        """Deblend a file for another process."""
        with Recorder() as recorder:
            result = self.on_file(task, recorder)
        return result, recorder.record()


def _worked(
    work: _Work, tasks: Sequence[_Task], reporter: Reporter
) -> Generator[FileResult, None, None]:
    """Results of files as they are done."""
    if work.model is not None:
        for task in tasks:
            yield work.on_file(task, reporter)
        return
    seen: dict[Any, Any] = {}
    with _handed_out(work, tasks, reporter) as finished:
        for one in finished:
            path, targets = tasks[one.number]
            if isinstance(one.result, WorkerError):
                yield FileResult(path, error=WorkerError(f"{path}: {one.result}"))
                continue
            result, record = one.result
            record.replay(reporter, seen)
            yield _arrived(result, path, targets)


def _arrived(result: FileResult, path: Path, targets: Targets | None) -> FileResult:
    """What another process has done, with the names that files have here."""
    if result.error is not None:
        return replace(result, path=path)
    try:
        check_arrived(files_of(targets))
    except OutputError as error:
        return FileResult(path, error=error)
    return replace(result, path=path, files=files_of(targets))


_Finished = Iterator[Done[tuple[FileResult, Record]]]


@contextlib.contextmanager
def _handed_out(work: _Work, tasks: Sequence[_Task], reporter: Reporter) -> Iterator[_Finished]:
    """Have files worked on elsewhere: on a cluster, or in processes of this machine."""
    if work.config.dask:
        with (
            connect(work.config.dask, reporter) as cluster,
            contextlib.closing(_on_cluster(work, tasks, cluster)) as finished,
        ):
            yield finished
        return
    jobs = min(work.config.jobs, len(tasks))
    work = replace(work, threads=max(1, torch.get_num_threads() // jobs))
    with contextlib.closing(work_on_workers(work, tasks, jobs)) as finished:
        yield finished


def _on_cluster(
    work: _Work, tasks: Sequence[_Task], cluster: Cluster
) -> Generator[Done[tuple[FileResult, Record]], None, None]:
    """Send files to workers, and of large ones, if there are more workers, their blocks."""
    few = len(tasks) < cluster.count_workers()
    large = {number for number, (path, _) in enumerate(tasks) if few and _is_large(path, work)}
    whole = [number for number in range(len(tasks)) if number not in large]
    config = absolute_names(work.config)
    # No output was there at first. One that is there now may be of a worker that left the cluster
    # before it told of it, and whose file is done again.
    existing = replace(work.existing, overwrite=not work.existing.skip)
    sent = [_absolute_task(tasks[number]) for number in whole]
    with contextlib.closing(
        cluster.work(replace(work, config=config, existing=existing, shared=True), sent)
    ) as finished:
        for done in finished:
            yield replace(done, number=whole[done.number])
    if large:
        model = load_model(work.config.weights, "cpu")
        work = replace(work, model=replace(model, spread=spread_over(cluster, config, model)))
        for number in sorted(large):
            yield Done(number, work(tasks[number]))


def _is_large(path: Path, work: _Work) -> bool:
    """Whether a file is worked on in blocks."""
    try:
        return list_images(path, work.config.ext).pixels > LARGE_IMAGE
    except GalsepError:
        return False  # It is told of when it is its turn.


def _absolute_task(task: _Task) -> _Task:
    path, targets = task
    return path.absolute(), targets and targets.absolute()


def _told(path: Path, error: Exception) -> GalsepError:
    """What made a file fail, as an error that names it.

    Raises
    ------
    KeyboardInterrupt, SystemExit
        When it was an interrupt.
    """
    stop = interrupt_behind(error)
    if stop is not None:
        raise stop
    if isinstance(error, WorkerError):
        return WorkerError(f"{path}: {error}")
    if isinstance(error, GalsepError):
        return error
    what = f"unexpected {type(error).__name__}: {error}; please report it"
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        what = "there is not enough memory"
    failure = ImageError(f"{path}: {what}")
    failure.__cause__ = error
    return failure


def stack_catalogs(results: Sequence[FileResult]) -> "Table":
    """Make one table of several files' catalogues, with the file's name as first column.

    A single input keeps its table as it is. At least one has a catalogue.
    """
    done = [(r.path.name, r.catalog) for r in results if r.catalog is not None]
    if len(results) == 1:
        return done[0][1]
    table = catalogs.stack_catalogs([name for name, _ in done], [table for _, table in done])
    return without_image_cards(table)
