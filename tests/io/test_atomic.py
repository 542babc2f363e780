import contextlib
import os
import signal
import stat
import time

import numpy as np
import pytest
from astropy.io import fits

from galsep.errors import OutputError, OutputExistsError
from galsep.io.atomic import make_folder, refuse_existing, whole_file, write_fits, write_text


def test_a_failed_block_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "out.txt"
    target.write_text("old")

    def fail() -> None:
        with whole_file(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.txt"]


def test_the_temporary_file_keeps_the_ending(tmp_path):
    with whole_file(tmp_path / "cat.ecsv") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".ecsv"
        assert not (tmp_path / "cat.ecsv").exists()
        temporary.write_text("x")
    assert os.listdir(tmp_path) == ["cat.ecsv"]


def test_outputs_have_the_permissions_of_any_new_file(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("x")
    with whole_file(tmp_path / "private") as temporary:
        temporary.touch(mode=0o600)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_an_operating_system_error_names_the_target(tmp_path):
    with pytest.raises(OutputError, match=r"gone/out\.txt: cannot write \(No such file"):
        write_text(tmp_path / "gone" / "out.txt", "text")


def test_several_files_are_there_together_or_not_at_all(tmp_path):
    one, other = tmp_path / "one.txt", tmp_path / "other.txt"
    other.write_text("old")
    with contextlib.ExitStack() as until:
        write_text(one, "1", until)
        write_text(other, "2", until)
        assert not one.exists()
        assert other.read_text() == "old"
    assert (one.read_text(), other.read_text()) == ("1", "2")

    def fail():
        with contextlib.ExitStack() as until:
            write_text(other, "3", until)
            write_text(tmp_path / "gone" / "x.txt", "4", until)

    # The one that fails is told of, not those that wait.
    with pytest.raises(OutputError, match=r"^\S*/gone/x\.txt: cannot write \(No such file"):
        fail()
    assert other.read_text() == "2"
    assert sorted(os.listdir(tmp_path)) == ["one.txt", "other.txt"]


def test_text_is_utf8(tmp_path):
    write_text(tmp_path / "t", "σ ≥ 7")
    assert (tmp_path / "t").read_bytes() == "σ ≥ 7".encode()


def hdus() -> fits.HDUList:
    image = np.arange(60, dtype=np.float32).reshape(6, 10)
    table = np.array([(1, 2.5)], dtype=[("n", "i4"), ("x", "f8")])
    labels = fits.CompImageHDU(image.astype(np.int32), name="TILES", compression_type="RICE_1")
    return fits.HDUList([fits.PrimaryHDU(image), fits.BinTableHDU(table, name="TABLE"), labels])


def test_every_hdu_carries_valid_checksums(tmp_path):
    path = tmp_path / "x.fits"
    write_fits(path, hdus())
    with fits.open(path, disable_image_compression=True) as stored:
        stored.verify("exception")
        for hdu in stored:
            assert hdu.verify_checksum() == 1
            assert hdu.verify_datasum() == 1
            # No time in the comments.
            assert hdu.header.comments["CHECKSUM"] == "HDU checksum"
            assert hdu.header.comments["DATASUM"] == "data unit checksum"
    with fits.open(path) as stored:
        np.testing.assert_array_equal(stored["TILES"].data, stored[0].data.astype(np.int32))


def test_equal_content_gives_equal_bytes_at_another_time(tmp_path, monkeypatch):
    write_fits(tmp_path / "a.fits", hdus())
    monkeypatch.setattr(time, "time", lambda: 1e9)
    write_fits(tmp_path / "b.fits", hdus())
    assert (tmp_path / "a.fits").read_bytes() == (tmp_path / "b.fits").read_bytes()


def test_folders_are_made_with_their_parents(tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_a_file_in_the_way_of_a_folder_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot make the output folder"):
        make_folder(tmp_path / "file")
    with pytest.raises(OutputError, match="cannot make the output folder"):
        make_folder(tmp_path / "file" / "below")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_a_folder_that_is_not_writable_is_an_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="not writable"):
        make_folder(tmp_path)


def test_existing_outputs_are_refused_unless_they_may_go(tmp_path):
    there = tmp_path / "there"
    there.write_text("")
    refuse_existing([tmp_path / "new"], overwrite=False)
    refuse_existing([there], overwrite=True)
    with pytest.raises(OutputExistsError, match="there: exists already; give --overwrite"):
        refuse_existing([tmp_path / "new", there], overwrite=False)


def test_an_interrupt_while_a_file_is_updated_leaves_nothing(tmp_path, monkeypatch, recwarn):
    verify = fits.HDUList.verify

    def interrupted(self, option="warn"):
        if self.fileinfo(0):
            signal.raise_signal(signal.SIGINT)
        return verify(self, option)

    monkeypatch.setattr(fits.HDUList, "verify", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_fits(tmp_path / "a.fits", hdus())
    assert not os.listdir(tmp_path)
    assert not recwarn.list
