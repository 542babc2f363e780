"""``galsep deblend``: exit codes, files and data on stdout."""

import contextlib
import gc
import io
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.io import ascii, fits
from astropy.table import Table

from galsep.cli import inputs
from galsep.cli.deblend import command_line, summary
from galsep.errors import ImageError
from galsep.workflows.files import FileResult

from .conftest import names


@pytest.fixture(scope="module")
def outputs(field, tmp_path_factory, weights):
    """The outputs of one run, for tests that only look."""
    from galsep.cli.main import main

    folder = tmp_path_factory.mktemp("out")
    arguments = ["deblend", field, "--output", folder, "--preview", "--quiet", "--device", "cpu"]
    arguments += ["--threshold", 0.45]
    assert main([str(argument) for argument in arguments]) == 0
    return folder


def read_ecsv(text):
    return ascii.read(text.splitlines(), format="ecsv")


def test_the_outputs_agree_with_each_other(outputs):
    assert names(outputs) == ["field_i_cat.fits", "field_i_preview.png", "field_i_segm.fits"]
    assert (outputs / "field_i_preview.png").read_bytes().startswith(b"\x89PNG")
    table = Table.read(outputs / "field_i_cat.fits")
    with fits.open(outputs / "field_i_segm.fits", checksum=True) as hdus:
        segm = hdus["SEGM"].data
        assert segm.shape == (125, 140)
        assert [hdu.name for hdu in hdus[1:]] == ["SEGM", "NOVERLAP", "MASKS", "PARENTS"]
    assert len(table) > 3
    assert table["label"].tolist() == list(range(1, len(table) + 1))
    areas = np.bincount(segm.ravel(), minlength=len(table) + 1)[1:]
    assert areas.tolist() == table["area"].tolist()
    assert np.isfinite(table["ra"]).all()


def test_a_threshold_of_zero_takes_all_candidates(galsep, field):
    counts = {}
    for threshold in ("0", "0.001", "0.45"):
        outcome = galsep("deblend", field, "--catalog", "-", "--threshold", threshold)
        table = read_ecsv(outcome.out)
        assert table.meta["SCORECUT"] == float(threshold)
        counts[threshold] = len(table)
    assert counts["0"] >= counts["0.001"] > counts["0.45"] > 0


def test_history_holds_the_command_without_folders_and_devices(outputs):
    for file in ("field_i_cat.fits", "field_i_segm.fits"):
        history = " ".join(fits.getheader(outputs / file)["HISTORY"])
        assert "galsep deblend field_i.fits --threshold 0.45 --preview" in history
        assert "/" not in history
        assert "cpu" not in history


def test_what_is_said(galsep, field, tmp_path):
    outcome = galsep("deblend", field, "--output", tmp_path / "out", "--preview")
    assert outcome.code == 0
    assert outcome.out == ""
    lines = outcome.err.splitlines()
    n = len(Table.read(tmp_path / "out" / "field_i_cat.fits"))
    assert lines[0] == f"{field}: {n} sources"
    assert [line.split()[-1] for line in lines[1:]] == [
        str(tmp_path / "out" / name)
        for name in ("field_i_segm.fits", "field_i_cat.fits", "field_i_preview.png")
    ]
    assert "label map" in lines[1]
    assert "catalogue" in lines[2]
    assert "picture" in lines[3]


def test_regions(galsep, field, tmp_path):
    regions = pytest.importorskip("regions")
    outcome = galsep("deblend", field, "--output", tmp_path / "out", "--regions")
    assert outcome.code == 0
    assert outcome.err.splitlines()[-1].split() == ["regions", str(tmp_path / "out/field_i.reg")]
    table = Table.read(tmp_path / "out" / "field_i_cat.fits")
    found = regions.Regions.read(str(tmp_path / "out" / "field_i.reg"), format="ds9")
    assert [int(one.meta["text"]) for one in found] == table["label"].tolist()
    assert [one.center.ra.deg for one in found] == pytest.approx(table["ra"].tolist(), abs=1e-7)
    assert "--regions" in " ".join(fits.getheader(tmp_path / "out" / "field_i_cat.fits")["HISTORY"])
    assert galsep("deblend", field, "-o", tmp_path / "out", "--regions").code == 3


def test_catalogue_on_stdout(galsep, field, outputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = galsep("deblend", field, "--catalog", "-", "--quiet", "--threshold", 0.45)
    assert (outcome.code, outcome.err) == (0, "")
    table = read_ecsv(outcome.out)
    written = Table.read(outputs / "field_i_cat.fits")
    assert table.colnames == written.colnames
    assert table["x_centroid"].tolist() == pytest.approx(written["x_centroid"].tolist())
    assert names(tmp_path) == []


@pytest.mark.parametrize("form", ["csv", "vot"])
def test_catalogue_on_stdout_in_other_formats(galsep, field, form):
    outcome = galsep("deblend", field, "--catalog", "-", "--catalog-format", form, "-q")
    assert outcome.code == 0
    if form == "csv":
        assert outcome.out.startswith("label,parent,parent_n_child,ext,ra,dec,x_centroid")
    else:
        assert "<VOTABLE" in outcome.out


def test_files_and_stdout_at_once(galsep, field, tmp_path):
    outcome = galsep("deblend", field, "--catalog", "-", "-o", tmp_path, "-q", "--zeropoint", 37.2)
    assert outcome.code == 0
    table = read_ecsv(outcome.out)
    assert len(table) == len(Table.read(tmp_path / "field_i_cat.fits"))
    assert "mag" in table.colnames


def test_several_inputs_make_one_table_with_their_names(galsep, field, tmp_path):
    other = tmp_path / "other.fits"
    other.write_bytes(field.read_bytes())
    outcome = galsep("deblend", field, other, "--catalog", "-", "-q")
    assert outcome.code == 0
    table = read_ecsv(outcome.out)
    assert table.colnames[0] == "file"
    half = len(table) // 2
    assert table["file"].tolist() == ["field_i.fits"] * half + ["other.fits"] * half


@pytest.mark.parametrize("form", ["ecsv", "csv", "vot", "parquet"])
def test_catalogue_formats(galsep, field, outputs, tmp_path, form):
    if form == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet", exc_type=ImportError)
    arguments = ("--output", tmp_path, "--catalog-format", form, "--threshold", 0.45)
    assert galsep("deblend", field, *arguments).code == 0
    assert names(tmp_path) == [f"field_i_cat.{form}", "field_i_segm.fits"]
    path = tmp_path / f"field_i_cat.{form}"
    if form == "parquet":
        # astropy writes Parquet without pandas but does not read it.
        n = parquet.read_metadata(path).num_rows
    else:
        reader = {"vot": "votable", "csv": "ascii.csv", "ecsv": "ascii.ecsv"}[form]
        n = len(Table.read(path, format=reader))
    assert n == len(Table.read(outputs / "field_i_cat.fits"))


def test_an_empty_sky_is_done_with_a_warning(galsep, tmp_path):
    rng = np.random.default_rng(1)
    sky = tmp_path / "sky.fits"
    fits.PrimaryHDU(rng.normal(0, 1, (90, 90)).astype("f4")).writeto(sky)
    nothing = tmp_path / "nothing.fits"
    fits.PrimaryHDU(np.full((90, 90), np.nan, "f4")).writeto(nothing)
    outcome = galsep("deblend", sky, nothing, "--output", tmp_path / "out", "--threshold", 0.99)
    assert outcome.code == 0
    assert "warning: " in outcome.err
    assert "nothing.fits" in outcome.err
    for name in ("sky", "nothing"):
        table = Table.read(tmp_path / "out" / f"{name}_cat.fits")
        assert len(table) == 0
        assert "deblend_flux" in table.colnames
        assert fits.getdata(tmp_path / "out" / f"{name}_segm.fits", "SEGM").max() == 0


def write_bad(path, kind):
    """Write an input that cannot be deblended."""
    if kind == "text":
        path.write_text("this is not FITS")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        fits.PrimaryHDU(np.zeros((300, 300), "f4")).writeto(path)
        path.write_bytes(path.read_bytes()[:9000])
    elif kind == "no image":
        fits.PrimaryHDU().writeto(path)
    elif kind == "table":
        hdu = fits.BinTableHDU.from_columns([fits.Column("a", "E", array=np.zeros(3))])
        fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
    elif kind == "1-D":
        fits.PrimaryHDU(np.zeros(100, "f4")).writeto(path)
    elif kind == "3-D":
        fits.PrimaryHDU(np.zeros((3, 40, 40), "f4")).writeto(path)
    elif kind == "zero size":
        header = fits.PrimaryHDU(np.zeros((40, 40), "f4")).header
        header["NAXIS1"] = 0
        path.write_bytes(header.tostring().encode())
    else:
        assert kind == "missing"


BAD = (
    "missing", "text", "empty", "truncated", "no image", "table", "1-D", "3-D", "zero size",
)  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("to", ["folder", "stdout"])
def test_bad_inputs(galsep, tmp_path, weights, kind, to):
    path = tmp_path / "bad.fits"
    write_bad(path, kind)
    where = ("--output", tmp_path / "out") if to == "folder" else ("--catalog", "-")
    outcome = galsep("deblend", path, *where, "--weights", weights)
    assert outcome.code == 1
    assert "bad.fits" in outcome.error
    assert names(tmp_path / "out") == []


def test_a_bad_input_does_not_keep_the_others_from_being_done(galsep, field, tmp_path, weights):
    outcome = galsep(
        "deblend", tmp_path / "bad.fits", field, "--output", tmp_path, "--weights", weights, "-q"
    )
    assert outcome.code == 1
    assert "bad.fits" in outcome.error
    assert names(tmp_path) == ["field_i_cat.fits", "field_i_segm.fits"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--output"),
        (["--output", "out", "--threshold", "1.5"], "threshold"),
        (["--output", "out", "--catalog", "cat.csv"], "cat.csv"),
        (["--output", "out", "--catalog-format", "xml"], "parquet"),
        (["--catalog", "-", "--catalog-format", "fits"], "ecsv"),
        (["--output", "out", "--batch-size", "0"], "batch_size"),
        (["--output", "out", "--jobs", "0"], "jobs must be at least 1"),
        (["--output", "out", "--background-mesh", "1"], "background_mesh"),
        (["--output", "out", "--overwrite", "--skip-existing"], "exclude"),
        (["--output", "out", "--device", "abacus"], "abacus"),
        (["--output", "out", "--rms", "a.fits", "--weight", "b.fits"], "exclude"),
        (["--output", "out", "--mask-bits", "4096"], "bit 12"),
        (["--output", "out", "--zeropoint", "nan"], "zeropoint must be finite"),
        (["--output", "out", "--catalog", "-", "--skip-existing"], "choose one"),
        (["--catalog", "-", "--preview"], "--preview writes a file: give --output DIR"),
        (["--catalog", "-", "--isolated", "--residual"], "--isolated writes a file"),
    ],
)
def test_wrong_usage(galsep, field, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    outcome = galsep("deblend", field, *arguments)
    assert outcome.code == 2
    assert said in outcome.error
    assert names(tmp_path) == []


def test_no_image_at_all(galsep, tmp_path):
    outcome = galsep("deblend", "--output", tmp_path)
    assert outcome.code == 2
    assert "IMAGE" in outcome.error


def test_a_device_that_is_not_there(galsep, field, tmp_path, no_cuda):
    outcome = galsep("deblend", field, "--output", tmp_path / "out", "--device", "cuda")
    assert outcome.code == 2
    assert "CUDA" in outcome.error
    assert names(tmp_path) == []


def test_two_inputs_of_one_name_are_refused(galsep, field, tmp_path):
    other = tmp_path / "field_i.fits"
    other.write_bytes(field.read_bytes())
    outcome = galsep("deblend", field, other, "--output", tmp_path / "out")
    assert outcome.code == 2
    assert "field_i" in outcome.error
    assert names(tmp_path) == ["field_i.fits"]


@pytest.mark.parametrize("content", [b"not safetensors", None])
def test_weights_that_are_none(galsep, field, tmp_path, content):
    path = tmp_path / "w.safetensors"
    if content is not None:
        path.write_bytes(content)
    outcome = galsep("deblend", field, "--output", tmp_path / "out", "--weights", path)
    assert outcome.code == 1
    assert "w.safetensors" in outcome.error
    assert "out" not in names(tmp_path)


def test_outputs_that_exist(galsep, field, tmp_path, weights):
    run = ("deblend", field, "--output", tmp_path, "--weights", weights)
    assert galsep(*run).code == 0
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    refused = galsep(*run)
    assert refused.code == 3
    assert "--overwrite" in refused.error
    skipped = galsep(*run, "--skip-existing")
    assert skipped.code == 0
    assert "passed over" in skipped.err
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before
    assert galsep(*run, "--overwrite").code == 0
    # The same input and command give the same bytes.
    again = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    assert again == before


def test_an_output_folder_that_cannot_be_made(galsep, field, tmp_path, weights):
    (tmp_path / "file").write_text("in the way")
    outcome = galsep("deblend", field, "--output", tmp_path / "file", "--weights", weights)
    assert outcome.code == 1
    assert "file" in outcome.error
    assert names(tmp_path) == ["file"]


def test_an_extension_that_is_not_there(galsep, field, tmp_path, weights):
    outcome = galsep("deblend", field, "--output", tmp_path, "--ext", "SCI,7", "--weights", weights)
    assert outcome.code == 1
    assert "SCI,7" in outcome.error


def test_images_with_planes(galsep, field, tmp_path, weights):
    image = fits.getdata(field)
    hdus = [fits.PrimaryHDU()]
    for version in (1, 2):
        planes = {"SCI": image, "ERR": np.full_like(image, 3), "DQ": np.zeros(image.shape, "i2")}
        planes["DQ"][40:60, 40:60] = 16
        hdus += [fits.ImageHDU(data, name=name, ver=version) for name, data in planes.items()]
    fits.HDUList(hdus).writeto(tmp_path / "two.fits")
    run = ("deblend", tmp_path / "two.fits", "--weights", weights, "--device", "cpu")
    outcome = galsep(*run, "--output", tmp_path / "out", "--preview", "--mask-bits", "3")
    assert outcome.code == 0
    lines = outcome.err.splitlines()
    assert lines[0].startswith(f"{tmp_path / 'two.fits'}[1]: noise from 2 (ERR), times ")
    assert lines[0].endswith("; mask from 3 (DQ), hiding 3")
    assert [line.split()[0] for line in lines[3:]] == ["label", "catalogue", "picture", "picture"]
    table = Table.read(tmp_path / "out" / "two_cat.fits")
    one, two = (table[table["ext"] == ext] for ext in (1, 4))
    assert len(one) == len(two) > 0
    assert set(one["flags_dq"]) <= {0, 16}
    assert np.array_equal(one["deblend_flux"], two["deblend_flux"])
    assert np.isfinite(table["deblend_flux_err"]).all()
    history = " ".join(fits.getheader(tmp_path / "out" / "two_segm.fits")["HISTORY"])
    assert "--mask-bits 3" in history
    printed = galsep(*run, "--ext", "SCI,2", "--catalog", "-", "--detect", field, "-q")
    assert printed.code == 0
    assert set(read_ecsv(printed.out)["ext"]) == {4}


@pytest.mark.parametrize("option", ["--variance", "--mask", "--detect"])
def test_planes_that_do_not_fit(galsep, field, tmp_path, weights, option):
    fits.PrimaryHDU(np.ones((9, 9), "f4")).writeto(tmp_path / "small.fits")
    run = ("deblend", field, "--catalog", "-", "--weights", weights)
    outcome = galsep(*run, option, tmp_path / "small.fits")
    assert outcome.code == 1
    assert f"small.fits: is 9×9 px, the image 140×125 px; {option} takes" in outcome.error
    outcome = galsep(*run, option, tmp_path / "gone.fits")
    assert outcome.code == 1
    assert "gone.fits: no such file" in outcome.error


def test_closed_stdout_is_one_line(process, field, tmp_path, weights):
    read, write = os.pipe()
    os.close(read)
    run = ("deblend", field, "--catalog", "-", "--weights", weights, "--quiet")
    with process(*run, stdout=write) as running:
        os.close(write)
        err = running.communicate()[1]
    assert running.returncode == 1
    assert len(err.splitlines()) == 1
    assert "standard output" in err


def test_the_command_that_is_written_down(tmp_path):
    given = {
        "weights": "/a/b/w.safetensors",
        "threshold": 0.5,
        "zeropoint": None,
        "preview": True,
        "device": "cuda",
        "batch_size": 4,
        "jobs": 3,
    }
    assert command_line([tmp_path / "a.fits"], tmp_path / "c.toml", given) == (
        "galsep deblend a.fits --config c.toml --weights w.safetensors --threshold 0.5 --preview"
    )
    planes = {"variance": "/d/v.fits[2]", "mask_bits": "BAD,3", "detect": "/d/r.fits"}
    assert command_line([tmp_path / "a.fits"], None, planes) == (
        "galsep deblend a.fits --variance v.fits[2] --mask-bits BAD,3 --detect r.fits"
    )
    assert command_line([tmp_path / "a.fits", tmp_path / "b.fits"], None, {}) == (
        "galsep deblend IMAGE..."
    )


@pytest.fixture
def night(field, tmp_path):
    """Three images of different content, and a bad one between them."""
    folder = tmp_path / "night"
    folder.mkdir()
    image = fits.getdata(field)
    for number, name in enumerate(("a", "b", "c")):
        fits.PrimaryHDU(np.roll(image, 11 * number, 1)[: 120 - 9 * number]).writeto(
            folder / f"{name}.fits"
        )
    (folder / "aa.fits").write_text("no FITS")
    return [folder / f"{name}.fits" for name in ("a", "aa", "b", "c")]


def test_jobs_change_nothing_but_the_time(galsep, night, tmp_path, weights):
    run = ("deblend", *night, "--weights", weights, "--device", "cpu", "--threshold", 0.45)
    run += ("--catalog", "-", "--preview", "-o")
    one = galsep(*run, tmp_path / "one")
    two = galsep(*run, tmp_path / "two", "--jobs", 2)
    assert (one.code, two.code) == (1, 1)
    assert one.out == two.out
    assert set(read_ecsv(two.out)["file"]) == {"a.fits", "b.fits", "c.fits"}
    assert len(names(tmp_path / "one")) == 9
    assert names(tmp_path / "one") == names(tmp_path / "two")
    for name in names(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    told = [outcome.err.replace("/two/", "/one/").splitlines() for outcome in (one, two)]
    assert sorted(told[0]) == sorted(told[1])
    assert told[0][-1] == told[1][-1] == f"4 images: 3 done, 1 failed: {night[1]}"
    # Told of when it happened, not at the end.
    (error,) = [line for line in told[0] if line.startswith("error: ")]
    assert told[0].index(error) == 4


def test_what_is_missing_is_done_later(galsep, night, tmp_path, weights):
    run = ("deblend", *night, "-o", tmp_path / "out", "--weights", weights, "--skip-existing")
    assert galsep(*run).code == 1
    written = {name: (tmp_path / "out" / name).read_bytes() for name in names(tmp_path / "out")}
    (tmp_path / "out" / "b_cat.fits").unlink()
    fits.PrimaryHDU(fits.getdata(night[0])[:50]).writeto(night[1], overwrite=True)
    outcome = galsep(*run, "--jobs", 2)
    assert outcome.code == 0
    assert outcome.err.splitlines()[-1] == "4 images: 2 done, 2 passed over"
    for name, content in written.items():
        assert (tmp_path / "out" / name).read_bytes() == content
    assert len(names(tmp_path / "out")) == 8


def started(folder):
    """Wait until a first result is there."""
    for _ in range(1200):
        if any(name.endswith("_cat.fits") for name in names(folder)):
            return
        time.sleep(0.05)


def many(folder, field, n=400):
    for number in range(n):
        os.link(field, folder / f"f{number}.fits")
    return [folder / f"f{number}.fits" for number in range(n)]


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_signals_end_all_jobs(process, field, tmp_path, weights, number, code, said):
    run = ("deblend", *many(tmp_path, field), "-o", tmp_path / "out", "--weights", weights)
    with process(*run, "--jobs", 2, "-q", start_new_session=True) as running:
        started(tmp_path / "out")
        workers = children(running.pid)
        os.killpg(running.pid, number)
        out, err = running.communicate(timeout=120)
    assert not any(runs(worker) for worker in workers)
    assert (running.returncode, out, err) == (code, "", f"{said}\n")
    assert not [name for name in names(tmp_path / "out") if ".part." in name]


def children(pid):
    """Worker processes of a process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = path.read_text().rpartition(")")[2].split()[1]
            command = (path.parent / "cmdline").read_text()
        except OSError:
            continue
        if int(parent) == pid and "spawn_main" in command:
            found.append(int(path.parent.name))
    return found


def runs(pid):
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_text())
    except OSError:
        return False


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")
def test_a_killed_job_costs_its_image_alone(process, field, tmp_path, weights):
    run = ("deblend", *many(tmp_path, field, 6), "-o", tmp_path / "out", "--weights", weights)
    with process(*run, "--jobs", 2, "-q") as running:
        started(tmp_path / "out")
        os.kill(children(running.pid)[0], signal.SIGKILL)
        err = running.communicate(timeout=300)[1]
    assert running.returncode == 1
    (line,) = err.splitlines()
    assert "its process was killed, perhaps for lack of memory" in line
    killed = Path(line.removeprefix("error: ").split(":")[0])
    assert killed.parent == tmp_path
    # It may have been killed between two of its files; what is there is whole.
    others = [name for name in names(tmp_path / "out") if not name.startswith(killed.stem)]
    stems = {f"f{number}" for number in range(6)} - {killed.stem}
    assert others == sorted(f"{stem}_{kind}.fits" for stem in stems for kind in ("cat", "segm"))
    assert not [name for name in names(tmp_path / "out") if ".part" in name]


def test_lists_of_names(galsep, night, tmp_path, weights, monkeypatch):
    monkeypatch.chdir(night[0].parent)
    Path("list.txt").write_text("# the night\n\n  a.fits\r\nb.fits\n")
    run = ("--catalog", "-", "-q", "--weights", weights, "--threshold", 0.45)
    outcome = galsep("deblend", "@list.txt", "c.fits", *run)
    assert outcome.code == 0
    assert list(dict.fromkeys(read_ecsv(outcome.out)["file"])) == ["a.fits", "b.fits", "c.fits"]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"a.fits\nb.fits\nc.fits")))
    assert galsep("deblend", "-", *run).out == outcome.out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "@list.txt: cannot read the list of images (No such file or directory)"),
        (b"# nothing\n\n", "@list.txt: the list of images is empty"),
        (b"SIMPLE\0", "@list.txt: not a list of images"),
        (b"a.fits\na.fits\n", "a.fits: named twice"),
        (b"a.fits\nb/a.fits.gz\n", "a.fits and b/a.fits.gz would both write"),
    ],
)
def test_lists_that_are_refused(galsep, tmp_path, monkeypatch, content, said):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("list.txt").write_bytes(content)
    outcome = galsep("deblend", "@list.txt", "--output", "out")
    assert outcome.code == 2
    assert said in outcome.error
    assert "out" not in names(tmp_path)


@pytest.mark.parametrize("origin", ["@list.txt", "-"])
def test_a_list_that_is_too_long_is_not_read_on(galsep, tmp_path, monkeypatch, origin):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inputs, "LARGEST_LIST", 1000)
    (tmp_path / "list.txt").write_text("a.fits\n" * 200)
    with open("list.txt") as stream:
        monkeypatch.setattr("sys.stdin", stream)
        outcome = galsep("deblend", origin, "--output", "out")
    assert outcome.code == 2
    assert "the list of images is too long; give it in several calls" in outcome.error
    assert names(tmp_path) == ["list.txt"]


def test_an_empty_or_closed_stdin(galsep, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"")))
    assert "standard input: the list of images is empty" in galsep("deblend", "-", "-o", "x").error
    monkeypatch.setattr(sys, "stdin", None)
    outcome = galsep("deblend", "-", "-o", "x")
    assert outcome.code == 2
    assert "standard input: cannot read" in outcome.error


def test_the_summary_names_some_that_failed():
    bad = [FileResult(Path(f"{n}.fits"), error=ImageError("")) for n in range(7)]
    rest = [FileResult(Path("a.fits")), FileResult(Path("b.fits"), skipped=True)]
    assert summary([*bad, *rest]) == (
        "9 images: 1 done, 1 passed over, 7 failed: 0.fits, 1.fits, 2.fits, 3.fits, 4.fits and "
        "2 more"
    )
    assert summary(rest * 2) == "4 images: 2 done, 2 passed over"


@pytest.fixture(scope="module")
def holed(field, tmp_path_factory):
    """The field with a patch of NaN and a column that its mask hides."""
    path = tmp_path_factory.mktemp("holed") / "holed.fits"
    image = fits.getdata(field).astype("f4")
    image[30:40, 20:60] = np.nan
    mask = np.zeros(image.shape, "i2")
    mask[:, 77] = 4
    planes = [fits.ImageHDU(image, name="SCI"), fits.ImageHDU(mask, name="DQ")]
    fits.HDUList([fits.PrimaryHDU(), *planes]).writeto(path)
    return path


def test_light_model_and_residual_add_up_in_the_files(galsep, holed, tmp_path):
    outcome = galsep("deblend", holed, "-o", tmp_path, "--isolated", "--residual")
    assert outcome.code == 0
    said = [line.split() for line in outcome.err.splitlines()]
    for kind in ("isolated", "residual"):
        assert [kind, str(tmp_path / f"holed_{kind}.fits")] in said
    data, hidden = fits.getdata(holed, "SCI"), fits.getdata(holed, "DQ") > 0
    hidden |= ~np.isfinite(data)
    table = Table.read(tmp_path / "holed_cat.fits")
    with (
        fits.open(tmp_path / "holed_isolated.fits", checksum=True) as isolated,
        fits.open(tmp_path / "holed_residual.fits", checksum=True) as residual,
    ):
        history = " ".join(isolated[0].header["HISTORY"])
        assert "--isolated" in history
        assert isolated[0].header["WEIGHTS"] == residual[0].header["WEIGHTS"]
        stamps = isolated["STAMPS"].data
        assert stamps["label"].tolist() == table["label"].tolist()
        assert set(stamps["band"]) == {""}
        light, models = np.zeros((2, *data.shape))
        for row in stamps:
            y0, x0, ny, nx, start = (int(row[key]) for key in ("y0", "x0", "ny", "nx", "start"))
            box = np.s_[y0 : y0 + ny, x0 : x0 + nx]
            for image, name in ((light, "LIGHT"), (models, "MODEL")):
                values = isolated[name].data[start : start + ny * nx]
                image[box] += values.reshape(ny, nx)
        left, unmodelled = residual["RESIDUAL"].data, residual["UNMODELLED"].data
        background = residual["BACKGROUND"].data
        assert np.array_equal(np.isnan(left), hidden)
        assert np.array_equal(np.isnan(unmodelled), hidden)
        good = ~hidden
        scale = float(np.abs(data[good]).max())
        for part in (light + left, models + unmodelled):
            assert (background + part)[good] == pytest.approx(data[good], abs=1e-6 * scale)
        assert not light[hidden].any()
        assert not models[hidden].any()
        assert models.min() >= 0
        assert models.sum() > 0


def test_the_residual_lies_on_the_images_sky(galsep, field, tmp_path):
    assert galsep("deblend", field, "-o", tmp_path, "--residual", "-q").code == 0
    before, after = fits.getheader(field), fits.getheader(tmp_path / "field_i_residual.fits", 1)
    for card in ("CTYPE1", "CRVAL1", "CRVAL2"):
        assert after[card] == before[card]


def test_light_of_several_images(galsep, field, tmp_path, weights):
    image = fits.getdata(field)
    hdus = [fits.ImageHDU(image, name="SCI", ver=version) for version in (1, 2)]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(tmp_path / "two.fits")
    run = ("deblend", tmp_path / "two.fits", "-o", tmp_path / "out", "--weights", weights)
    assert galsep(*run, "--isolated", "--residual", "-q").code == 0
    with fits.open(tmp_path / "out" / "two_isolated.fits") as hdus:
        assert [(hdu.name, hdu.ver) for hdu in hdus[1:]] == [
            (name, extver) for extver in (1, 2) for name in ("STAMPS", "LIGHT", "MODEL")
        ]
        assert np.array_equal(hdus["LIGHT", 1].data, hdus["LIGHT", 2].data)


@pytest.mark.parametrize("kind", ["isolated", "residual"])
def test_files_of_light_are_outputs_like_others(galsep, field, tmp_path, weights, kind):
    run = ("deblend", field, "-o", tmp_path, "--weights", weights, f"--{kind}")
    product = tmp_path / f"field_i_{kind}.fits"
    product.write_bytes(b"mine")
    refused = galsep(*run)
    assert refused.code == 3
    assert product.name in refused.error
    assert names(tmp_path) == [product.name]
    # Not all outputs are there, so nothing is passed over.
    assert "passed over" not in galsep(*run, "--skip-existing").err
    whole = product.read_bytes()
    assert whole.startswith(b"SIMPLE")
    assert "passed over" in galsep(*run, "--skip-existing").err
    product.write_bytes(b"mine")
    assert galsep(*run, "--overwrite").code == 0
    assert product.read_bytes() == whole
    # Without the option, the file is no output.
    product.unlink()
    assert "passed over" in galsep(*run[:-1], "--skip-existing").err
    assert not product.exists()


def test_an_empty_sky_has_files_of_light(galsep, tmp_path, weights):
    sky = np.random.default_rng(1).normal(0, 1, (90, 90)).astype("f4")
    fits.PrimaryHDU(sky).writeto(tmp_path / "sky.fits")
    run = ("deblend", tmp_path / "sky.fits", "-o", tmp_path / "out", "--weights", weights)
    assert galsep(*run, "--threshold", 0.99, "--isolated", "--residual").code == 0
    with fits.open(tmp_path / "out" / "sky_isolated.fits") as hdus:
        assert len(hdus["STAMPS"].data) == 0
    with fits.open(tmp_path / "out" / "sky_residual.fits") as hdus:
        total = hdus["RESIDUAL"].data + hdus["BACKGROUND"].data
        assert total == pytest.approx(sky, abs=1e-5)


@pytest.fixture
def bands(field, tmp_path):
    """The field in two bands, the second three times as bright."""
    with fits.open(field) as hdus:
        index = next(k for k, hdu in enumerate(hdus) if hdu.data is not None)
        hdus[index].data = 3 * hdus[index].data
        hdus.writeto(tmp_path / "r.fits")
    (tmp_path / "g.fits").write_bytes(field.read_bytes())
    return ("--band", f"g={tmp_path / 'g.fits'}", "--band", f"r={tmp_path / 'r.fits'}")


def test_bands(galsep, bands, tmp_path):
    out = tmp_path / "out"
    arguments = ("-o", out, "--isolated", "--residual", "--zeropoint", "30")
    outcome = galsep("deblend", *bands, *arguments)
    assert outcome.code == 0
    assert "warning" not in outcome.err
    # The first band gives the outputs their name.
    assert names(out) == [
        "g_cat.fits", "g_isolated.fits", "g_residual.fits", "g_segm.fits"
    ]  # fmt: skip
    table = Table.read(out / "g_cat.fits")
    assert len(table) > 3
    assert table["deblend_flux_r"] == pytest.approx(3 * table["deblend_flux_g"], rel=1e-3)
    assert table["deblend_flux_err_r"] == pytest.approx(3 * table["deblend_flux_err_g"], rel=5e-3)
    assert table["mag_g"] == pytest.approx(30 - 2.5 * np.log10(table["deblend_flux_g"]))
    assert table["mag_r"] == pytest.approx(table["mag_g"] - 2.5 * np.log10(3), abs=2e-3)
    assert table["mag_err_r"] == pytest.approx(table["mag_err_g"], rel=1e-2)
    history = " ".join(fits.getheader(out / "g_cat.fits")["HISTORY"])
    assert "--band g=g.fits --band r=r.fits" in history
    stamps = fits.getdata(out / "g_isolated.fits", "STAMPS")
    assert [(row["band"], row["label"]) for row in stamps] == [
        (band, label) for band in ("", "g", "r") for label in table["label"].tolist()
    ]
    with fits.open(out / "g_residual.fits") as hdus:
        assert {"RESIDUAL", "RESIDUAL_G", "RESIDUAL_R", "BACKGROUND_R"} <= {h.name for h in hdus}
        assert {hdu.header["BUNIT"] for hdu in hdus[1:]} == {"electron"}
    for name in ("LIGHT", "MODEL"):
        assert fits.getheader(out / "g_isolated.fits", name)["BUNIT"] == "electron"
    assert galsep("deblend", *bands, "-o", out, "--isolated").code == 3


def test_bands_of_different_units_are_told_of(galsep, bands, tmp_path):
    with fits.open(tmp_path / "r.fits", mode="update") as hdus:
        index = next(k for k, hdu in enumerate(hdus) if hdu.data is not None)
        hdus[index].header["BUNIT"] = "nJy"
    outcome = galsep("deblend", *bands, "-o", tmp_path / "out", "--isolated", "--residual")
    assert outcome.code == 0
    assert "the bands have different units (electron, nJy)" in outcome.err
    table = Table.read(tmp_path / "out" / "g_cat.fits")
    assert table["deblend_flux"].unit is None
    assert str(table["deblend_flux_r"].unit) == "nJy"
    with fits.open(tmp_path / "out" / "g_residual.fits") as hdus:
        units = {hdu.name: hdu.header.get("BUNIT") for hdu in hdus[1:]}
    assert units["RESIDUAL"] is None
    assert (units["RESIDUAL_G"], units["RESIDUAL_R"]) == ("electron", "nJy")
    assert "BUNIT" not in fits.getheader(tmp_path / "out" / "g_isolated.fits", "LIGHT")


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (["g"], "NAME=FILE"),
        (["=g.fits"], "NAME=FILE"),
        (["g="], "NAME=FILE"),
        (["g i=g.fits"], "letters"),
        (["err=g.fits"], "err"),
        (["g=g.fits", "g=r.fits"], "given twice"),
        (["y=g.fits", "Y=r.fits"], "case"),
    ],
)
def test_bands_that_are_none(galsep, tmp_path, entries, said):
    given = [word for entry in entries for word in ("--band", entry)]
    outcome = galsep("deblend", *given, "--output", tmp_path / "out")
    assert outcome.code == 2
    assert said in outcome.error
    assert names(tmp_path) == []


def test_bands_take_the_place_of_the_image(galsep, field, bands, tmp_path):
    outcome = galsep("deblend", field, *bands, "--output", tmp_path / "out")
    assert outcome.code == 2
    assert "field_i.fits: bands take the place of the image" in outcome.error
    outcome = galsep("deblend", *bands, "--output", tmp_path / "out", "--rms", "s.fits")
    assert outcome.code == 2
    assert "out" not in names(tmp_path)


@pytest.mark.parametrize("kind", ["shape", "grid", "missing"])
def test_bands_that_do_not_fit(galsep, bands, tmp_path, kind):
    path = tmp_path / "r.fits"
    with fits.open(path) as hdus:
        index = next(k for k, hdu in enumerate(hdus) if hdu.data is not None)
        image = hdus[index].data[:-2] if kind == "shape" else hdus[index].data
        header = hdus[index].header.copy()
        header["CRPIX1"] += 3
        fits.PrimaryHDU(np.array(image), header).writeto(path, overwrite=True)
    if kind == "missing":
        path.unlink()
    outcome = galsep("deblend", *bands, "--output", tmp_path / "out")
    assert outcome.code == 1
    assert "r.fits" in outcome.error
    said = {"shape": "--band", "grid": "3.0 px off at a corner", "missing": "no such file"}[kind]
    assert said in outcome.error
    assert names(tmp_path / "out") == []


def test_what_loads_is_not_looked_through_for_garbage(monkeypatch):
    """But what comes after it is."""
    from galsep.cli.deblend import _loading

    monkeypatch.delitem(sys.modules, "torch")
    assert gc.isenabled()
    frozen = gc.get_freeze_count()
    try:
        with contextlib.suppress(ImportError), _loading():
            assert not gc.isenabled()
            raise ImportError("one that is missing")
        assert gc.isenabled()
        assert gc.get_freeze_count() > frozen
        gc.disable()
        with _loading():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()
