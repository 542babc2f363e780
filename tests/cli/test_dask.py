"""``galsep deblend --dask``, on a cluster of two processes, and runs that are killed."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from astropy.io import ascii, fits

from .conftest import names

N = 4


@pytest.fixture(scope="module")
def night(field, tmp_path_factory):
    """Images of different content."""
    folder = tmp_path_factory.mktemp("night")
    image = fits.getdata(field)
    for number in range(N):
        part = np.roll(image, 11 * number, 1)[: 120 - 9 * number]
        fits.writeto(folder / f"f{number}.fits", part)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def queue(night, tmp_path_factory):
    """More of them than two workers finish between a first result and a signal."""
    folder = tmp_path_factory.mktemp("queue")
    for number in range(6 * N):
        (folder / f"g{number:02}.fits").symlink_to(night[0])
    return night + sorted(folder.iterdir())


@pytest.fixture(scope="module")
def options(weights):
    return ("--weights", weights, "--device", "cpu", "--threshold", 0.45)


@pytest.fixture(scope="module")
def here(night, options, tmp_path_factory):
    """What a run without a cluster writes."""
    from galsep.cli.main import main

    folder = tmp_path_factory.mktemp("here")
    run = ["deblend", *night, *options, "-o", folder, "-q"]
    assert main([str(word) for word in run]) == 0
    return folder


def same(one, two):
    assert names(one) == names(two)
    for name in names(one):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_a_cluster_writes_the_same_bytes(galsep, cluster, night, options, here, tmp_path):
    bad = tmp_path / "bad.fits"
    bad.write_text("no FITS")
    run = ("deblend", night[0], bad, *night[1:], *options, "--catalog", "-")
    with_cluster = galsep(*run, "-o", tmp_path / "out", "--dask", cluster)
    assert with_cluster.code == 1
    same(tmp_path / "out", here)
    told = with_cluster.err.splitlines()
    assert f"error: {bad}: not a FITS file; convert it to FITS first" in told
    assert f"  label map  {tmp_path / 'out' / 'f0_segm.fits'}" in told
    assert told[-1] == f"{N + 1} images: {N} done, 1 failed: {bad}"
    rows = [fits.getheader(here / f"f{n}_cat.fits", 1)["NAXIS2"] for n in range(N)]
    table = ascii.read(with_cluster.out, format="ecsv")
    assert list(table["file"]) == np.repeat([f"f{n}.fits" for n in range(N)], rows).tolist()


@pytest.mark.parametrize(
    "images",
    [
        ("r.fits", "--rms", "noise.fits", "--detect", "s.fits[0]", "--variance", ""),
        ("--band", "r=r.fits", "--band", "s=s.fits[0]"),
    ],
    ids=["planes", "bands"],
)
def test_names_are_those_of_the_folder_one_is_in(
    galsep, cluster, night, options, tmp_path, monkeypatch, images
):
    monkeypatch.chdir(tmp_path)
    image = fits.getdata(night[0])
    for name, data in (("r", image), ("s", image), ("noise", np.full_like(image, 400))):
        fits.writeto(f"{name}.fits", data)
    run = ("deblend", *images, *options, "--report", "--preview", "-q", "-o")
    for way in (("one",), ("two", "--dask", cluster)):
        outcome = galsep(*run, *way)
        assert (outcome.code, outcome.err) == (0, "")
    same(Path("one"), Path("two"))


def wait_for_results(running, folder):
    """Wait until a first result is there."""
    while running.poll() is None and not list(folder.glob("f*_cat.fits")):
        time.sleep(0.02)


def test_a_killed_worker_changes_nothing(process, cluster, night, options, here, tmp_path):
    from distributed import Client

    with (
        Client(cluster, set_as_default=False) as client,
        process("deblend", *night, *options, "-o", tmp_path, "--dask", cluster, "-q") as running,
    ):
        pids = client.run(os.getpid)
        while not (busy := [worker for worker, tasks in client.processing().items() if tasks]):
            assert running.poll() is None
            time.sleep(0.02)
        # It stands still with a file in hand until the other one has brought a first result.
        lost = pids[busy[0]]
        os.kill(lost, signal.SIGSTOP)
        wait_for_results(running, tmp_path)
        assert running.poll() is None
        os.kill(lost, signal.SIGKILL)
        _, err = running.communicate(timeout=300)
        assert lost not in client.run(os.getpid).values()
    assert (running.returncode, err) == (0, "")
    same(tmp_path, here)


def test_files_of_workers_that_leave_with_the_results(
    galsep, cluster, night, options, here, tmp_path, monkeypatch
):
    """As at the end of a worker's lifetime: its files are written, but done again by another."""
    from galsep.workflows.cluster import Cluster

    work = Cluster.work

    def lost_and_done_again(self, function, tasks, ahead=1):
        tasks = list(tasks)
        assert [done.result[0].error for done in work(self, function, tasks)] == [None, None]
        yield from work(self, function, tasks, ahead)

    monkeypatch.setattr(Cluster, "work", lost_and_done_again)
    run = ("deblend", *night[:2], *options, "-o", tmp_path, "--dask", cluster)
    outcome = galsep(*run)
    assert outcome.code == 0
    assert outcome.err.splitlines()[-1] == "2 images: 2 done"
    for name in names(tmp_path):
        assert (tmp_path / name).read_bytes() == (here / name).read_bytes(), name


@pytest.mark.parametrize("how", ["here", "cluster"])
def test_a_killed_run_is_completed(process, galsep, request, queue, options, here, tmp_path, how):
    images = queue[: 3 * N]
    run = ["deblend", *images, *options, "-o", tmp_path, "--skip-existing"]
    if how == "cluster":
        run += ["--dask", request.getfixturevalue("cluster")]
    with process(*run) as running:
        wait_for_results(running, tmp_path)
        running.kill()
    assert 0 < len(names(tmp_path)) < 2 * len(images)
    # As if it had been in the middle of a file.
    (tmp_path / ".0123abcd.part.f3_segm.fits").write_text("half of it")
    outcome = galsep(*run)
    assert outcome.code == 0
    assert "passed over" in outcome.err.splitlines()[-1]
    assert len(names(tmp_path)) == 2 * len(images)
    for name in names(here):
        assert (tmp_path / name).read_bytes() == (here / name).read_bytes(), name


def test_an_interrupt_withdraws_what_is_left(process, cluster, queue, options, here, tmp_path):
    run = ("deblend", *queue, *options, "-o", tmp_path, "--dask", cluster, "-q")
    with process(*run, start_new_session=True) as running:
        wait_for_results(running, tmp_path)
        os.killpg(running.pid, signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert (running.returncode, out, err) == (130, "", "interrupted\n")
    # The files that were in work may still come, whole.
    before = set(names(tmp_path))
    time.sleep(3)
    latest = time.monotonic() + 60
    while [name for name in names(tmp_path) if ".part." in name]:
        assert time.monotonic() < latest
        time.sleep(0.2)
    written = set(names(tmp_path))
    assert len({name.split("_")[0] for name in written - before}) <= 2
    assert len(written) < 2 * len(queue)
    for name in written & set(names(here)):
        assert (tmp_path / name).read_bytes() == (here / name).read_bytes(), name


def test_folders_that_workers_do_not_see(galsep, cluster, night, options, tmp_path, monkeypatch):
    from galsep.workflows import elsewhere

    gone = tmp_path / "gone.fits"
    outcome = galsep("deblend", gone, *options, "-o", tmp_path / "out", "--dask", cluster, "-q")
    assert outcome.code == 1
    assert outcome.error.startswith(f"error: {gone}: not there on ")
    assert outcome.error.endswith("must lie in folders that all workers share")
    # A folder of the same name elsewhere takes what is written.
    monkeypatch.setattr(elsewhere, "missing_files", list)
    outcome = galsep("deblend", night[3], *options, "-o", tmp_path / "out", "--dask", cluster, "-q")
    assert outcome.code == 1
    assert "a worker has written it, but it is not there" in outcome.error


def test_weights_that_change_during_a_run(galsep, cluster, night, options, weights, tmp_path):
    from galsep.workflows import files

    own = tmp_path / "own.safetensors"
    own.write_bytes(weights.read_bytes())
    run = ("deblend", night[3], "--weights", own, "-o", tmp_path / "out", "--dask", cluster, "-q")

    def changed(*arguments):
        model = files_load(*arguments)
        from dataclasses import replace

        return replace(model, sha256="0" * 64)

    files_load = files.load_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "load_model", changed)
        outcome = galsep(*run)
    assert outcome.code == 1
    assert "not the weights that the run began with" in outcome.error
    assert galsep(*run).code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--dask", "host"), 2, "host: not the address of a Dask scheduler"),
        (("--dask", "127.0.0.1:1"), 1, "127.0.0.1:1: no Dask scheduler answers"),
        (("--dask", "host:1", "--jobs", 2), 2, "jobs and dask exclude each other"),
    ],
)
def test_clusters_that_are_none(
    cluster, galsep, night, options, tmp_path, monkeypatch, arguments, code, said
):
    from galsep.workflows import cluster as clusters

    monkeypatch.setattr(clusters, "ANSWER", 1.0)
    outcome = galsep("deblend", night[0], *options, "-o", tmp_path / "out", *arguments)
    assert outcome.code == code
    assert outcome.error.startswith(f"error: {said}")
    assert names(tmp_path / "out") == []


def test_blocks_of_a_large_image_go_to_workers(galsep, cluster, field, tmp_path, monkeypatch):
    from galsep import planes
    from galsep.workflows import cluster as clusters
    from galsep.workflows import files, preparing

    run = ("deblend", field, "--device", "cpu", "--batch-size", 1, "--isolated", "-q", "-o")
    assert galsep(*run, tmp_path / "one").code == 0
    sent = []
    submit = clusters.Cluster._submit
    monkeypatch.setattr(
        clusters.Cluster, "_submit", lambda self, *what: (sent.append(what), submit(self, *what))[1]
    )
    # Each file goes to a worker as long as it is no large one, and there are not fewer files.
    assert galsep(*run, tmp_path / "two", "--dask", cluster).code == 0
    assert len(sent) == 1
    monkeypatch.setattr(planes, "LARGE_IMAGE", 100)
    monkeypatch.setattr(files, "LARGE_IMAGE", 100)
    monkeypatch.setattr(planes.Planes.__init__, "__defaults__", (None, 140 * 32))
    monkeypatch.setattr(preparing, "MANY_CUTOUTS", 0)
    outcome = galsep(*run, tmp_path / "three", "--dask", cluster)
    assert (outcome.code, outcome.err) == (0, "")
    kinds = {function for function, _ in sent[1:]}
    assert len(kinds) == 2, "cutouts and separation"
    assert len(sent) > 5
    for folder in ("two", "three"):
        same(tmp_path / "one", tmp_path / folder)
