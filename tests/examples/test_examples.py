"""The examples run as they stand."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from astropy.io import fits

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def run(command):
    scripts = os.path.dirname(sys.executable)
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment, cwd=ROOT
    )


def test_the_example_image_is_small_and_has_a_wcs():
    path = EXAMPLES / "field.fits.fz"
    assert path.stat().st_size < 1_000_000
    with fits.open(path, checksum=True) as hdus:
        assert hdus["SCI"].data.shape == (512, 512)
        assert hdus["SCI"].header["CTYPE1"] == "RA---TAN"


def test_from_python():
    out = run([sys.executable, EXAMPLES / "deblend.py"]).stdout
    assert "sources from" in out.splitlines()[0]
    assert "px" in out.splitlines()[-1]


def test_with_photutils():
    done = run([sys.executable, EXAMPLES / "photutils_photometry.py"])
    lines = done.stdout.splitlines()
    header, *rows = [line.split() for line in lines if not line.startswith("-")]
    assert header[:4] == ["label", "kron_flux", "fwhm", "gini"]
    # What one copies from an example should work tomorrow.
    assert "Deprecat" not in done.stderr
    fluxes = [float(row[1]) for row in rows if len(row) == len(header)]
    assert len(fluxes) == 10
    assert fluxes == sorted(fluxes, reverse=True)


def test_with_btk(tmp_path):
    """BTK pins astropy below 7, so most environments lack it."""
    pytest.importorskip("btk")
    catalog = tmp_path / "galaxies.fits"
    write = ["simulate", "--write-catalog", catalog, "--n", "300", "--bands", "u,g,r,i,z,y"]
    run([sys.executable, "-m", "galsep", *write])
    out = run([sys.executable, EXAMPLES / "btk_metrics.py", catalog, "4"]).stdout
    header, *rows = [line.split() for line in out.splitlines()]
    assert header == ["Precision", "Recall", "F1", "IoU", "MSE", "PSNR"]
    figures = {name: [float(value) for value in values] for name, *values in rows}
    assert list(figures) == ["SEP", "galsep"]
    assert all(0 < value <= 1 for values in figures.values() for value in values[:4])


in_a_shell = pytest.mark.skipif(
    not (shutil.which("galsep", path=os.path.dirname(sys.executable)) and shutil.which("sh")),
    reason="galsep is not installed as a command",
)


@in_a_shell
@pytest.mark.parametrize(
    ("jobs", "shares"),
    [
        # Jobs are numbered from anywhere; the last one may have nothing to do.
        ([{"ARRAY_TASK_ID": job} for job in (1, 2, 3, 4, 5, 6)], ["a", "b", "c", "d", "e", ""]),
        # Two tasks of srun in each of two jobs.
        (
            [
                {"ARRAY_TASK_ID": job, "STEP_NUM_TASKS": 2, "PROCID": task}
                for job in (0, 1)
                for task in (0, 1)
            ],
            ["ae", "b", "c", "d"],
        ),
        ([{}], ["abcde"]),
    ],
)
def test_slurm_jobs_share_a_list(tmp_path, monkeypatch, jobs, shares):
    """What ``galsep`` would be given, by a stand-in for it."""
    galsep = tmp_path / "galsep"
    galsep.write_text("#!/bin/sh\ncat\n")
    galsep.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    images = tmp_path / "a list.txt"
    images.write_text("# of one night\na\n\nb\nc\nd\ne\n")
    numbers = [job["ARRAY_TASK_ID"] for job in jobs if job]
    if numbers:
        monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", str(min(numbers)))
        monkeypatch.setenv("SLURM_ARRAY_TASK_MAX", str(max(numbers)))
        monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", str(len(set(numbers))))
    found = []
    for job in jobs:
        for name, value in job.items():
            monkeypatch.setenv(f"SLURM_{name}", str(value))
        done = subprocess.run(
            [EXAMPLES / "slurm_array.sh", images, tmp_path / "out"],
            capture_output=True,
            text=True,
            check=True,
        )
        found.append("" if "none for this job" in done.stdout else "".join(done.stdout.split()))
    assert found == shares


@in_a_shell
@pytest.mark.parametrize(
    ("most", "name", "said"), [("2", "images.txt", "--array has gaps"), ("1", "none", "none")]
)
def test_a_slurm_array_that_would_leave_images_out(tmp_path, monkeypatch, most, name, said):
    (tmp_path / "images.txt").write_text("a\nb\nc\n")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "0")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MAX", most)
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    with pytest.raises(subprocess.CalledProcessError) as error:
        run([EXAMPLES / "slurm_array.sh", tmp_path / name, tmp_path / "out"])
    assert error.value.returncode == 2
    assert said in error.value.stderr


@in_a_shell
def test_as_a_slurm_array(tmp_path, monkeypatch):
    names = [tmp_path / f"{name}.fits" for name in "abcde"]
    with fits.open(EXAMPLES / "field.fits.fz") as hdus:
        for name in names:
            fits.writeto(name, hdus["SCI"].data[:64, :64])
    (tmp_path / "images.txt").write_text("".join(f"{name}\n" for name in names))
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "0")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MAX", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")
    done = []
    for job in range(3):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(job))
        run([EXAMPLES / "slurm_array.sh", tmp_path / "images.txt", tmp_path / "out"])
        now = sorted(path.name[0] for path in (tmp_path / "out").glob("*_cat.fits"))
        done.append(sorted(set(now) - {name for part in done for name in part}))
    assert done == [["a", "d"], ["b", "e"], ["c"]]


@pytest.mark.slow
@in_a_shell
def test_fine_tuning(tmp_path):
    run([EXAMPLES / "fine_tune.sh", tmp_path / "tuned", "40", "1", "16"])
    for when in ("before", "after"):
        assert (tmp_path / "tuned" / when / "report.html").exists()


@in_a_shell
def test_in_a_shell():
    done = run([EXAMPLES / "pipeline.sh"])
    rows = [line.split() for line in done.stdout.splitlines()]
    assert len(rows) == 10
    fluxes = [float(row[0]) for row in rows]
    assert fluxes == sorted(fluxes, reverse=True)
    assert done.stderr == ""
