"""A light portion of what ``make fuzz`` does at length, and files that hypothesis makes up."""

import io

import numpy as np
import pytest
import torch
from astropy.io import fits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from galsep.cli.main import main
from galsep.io.header import quiet_astropy
from galsep.io.image import read_plane

from .check import bare, deblended, everything, line_problem, product_problems, read
from .mutations import samples, spoilt

SEED = 20


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "input.fits"


def test_the_sound_files_are_what_they_should_be(scratch):
    refused = set()
    for sample in samples():
        scratch.write_bytes(sample.content)
        usable, problem = read(scratch)
        assert not problem, (sample.name, problem)
        if not usable:
            refused.add(sample.name)
    assert refused == {"groups"}


def test_spoilt_files_are_read_or_refused_in_one_clear_line(scratch):
    outcomes = []
    for number in range(400):
        scratch.write_bytes(spoilt(SEED, number).content)
        usable, problem = read(scratch)
        assert not problem, f"input {number} of seed {SEED}: {problem}"
        outcomes.append(usable)
    # Not all is broken beyond use, and not all is unharmed.
    assert 80 < sum(outcomes) < 320


@pytest.fixture
def one_thread():
    """Threads cost more than they give on images this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_spoilt_files_give_whole_products_or_none(scratch):
    usable = 0
    for number in range(400, 430):
        scratch.write_bytes(spoilt(SEED, number).content)
        config = bare() if usable else everything()
        here, problem = deblended(scratch, scratch.parent / "out", config)
        assert not problem, f"input {number} of seed {SEED}: {problem}"
        usable += here
    assert usable > 5


@pytest.mark.usefixtures("one_thread")
def test_spoilt_files_through_the_command(scratch, capsys):
    paths = [scratch.with_name(f"{number}.fits") for number in range(12)]
    for number, path in enumerate(paths):
        path.write_bytes(spoilt(SEED + 1, number).content)
    output = scratch.with_name("command")
    arguments = ["deblend", *map(str, paths), "--output", str(output), "--device", "cpu", "-q"]
    code = main([*arguments, "--batch-size", "1"])
    told = capsys.readouterr()
    errors = [line.removeprefix("error: ") for line in told.err.splitlines() if "error" in line]
    for line in errors:
        (path,) = [path for path in paths if line.startswith(f"{path}: ")]
        assert not line_problem(line, path)
    done = [path for path in paths if (output / f"{path.stem}_cat.fits").exists()]
    assert (code, told.out) == (1, "")
    assert 0 < len(done) == len(paths) - len(errors)
    assert not product_problems(output)


KINDS = st.sampled_from(["u1", "i2", "i4", "i8", "f4", "f8"])
CARDS = st.dictionaries(
    st.sampled_from(["BSCALE", "BZERO", "BLANK", "BUNIT", "GAIN", "EXTNAME", "CTYPE1", "CRVAL1"]),
    st.one_of(
        st.integers(-(2**40), 2**40),
        st.floats(allow_nan=False, allow_infinity=False),
        st.booleans(),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30),
    ),
    max_size=4,
)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    kind=KINDS,
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    cards=CARDS,
    content=st.binary(min_size=8, max_size=64),
)
def test_any_pixels_and_cards_are_read_or_refused(scratch, kind, shape, cards, content):
    size = shape[0] * shape[1]
    pixels = np.resize(np.frombuffer(content[: len(content) // 8 * 8], kind), size).reshape(shape)
    hdu = fits.PrimaryHDU(pixels)
    file = io.BytesIO()
    with quiet_astropy():
        hdu.header.update(cards)
        hdu.writeto(file, output_verify="ignore")
    scratch.write_bytes(file.getvalue())
    usable, problem = read(scratch)
    assert not problem
    if not usable:
        return
    plane = read_plane(scratch)
    assert plane.data.shape == shape
    assert np.isnan(plane.data[plane.mask]).all()
    assert np.isfinite(plane.data[~plane.mask]).all()
    assert np.abs(plane.data[~plane.mask]).max(initial=0) < 1e30
