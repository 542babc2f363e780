import errno
import importlib.util
import os
import subprocess
import sys
import threading

import pytest

from galsep.errors import OutputError
from galsep.io.atomic import remove_partial
from galsep.io.claim import alone_in, claimed

HOLDER = """
import pathlib, sys
from galsep.io.claim import claimed
with claimed(pathlib.Path(sys.argv[1])) as ours:
    print(ours, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def target(tmp_path):
    return tmp_path / "product"


@pytest.fixture
def holder(target):
    command = [sys.executable, "-c", HOLDER, str(target)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True) as process:
        assert process.stdout.readline() == "True\n"
        yield process
        process.kill()


def test_leaves_nothing(target, tmp_path):
    with claimed(target) as ours:
        assert ours
        assert os.listdir(tmp_path)
    assert not os.listdir(tmp_path)


def test_nothing_is_left_after_an_error(target, tmp_path):
    with pytest.raises(KeyError), claimed(target):
        raise KeyError
    assert not os.listdir(tmp_path)


def test_others_are_refused(target, holder):
    with claimed(target) as ours:
        assert not ours
    with claimed(target.with_name("other")) as ours:
        assert ours
    holder.communicate("")
    with claimed(target) as ours:
        assert ours


def test_others_wait(target, holder):
    said = []

    def waiting():
        said.append("waiting")
        threading.Timer(0.2, holder.stdin.close).start()

    with claimed(target, waiting) as ours:
        assert ours
    assert said == ["waiting"]


def test_a_killed_process_loses_its_claim(target, holder, tmp_path):
    holder.kill()
    holder.wait()
    assert os.listdir(tmp_path)
    with claimed(target) as ours:
        assert ours
    assert not os.listdir(tmp_path)


def test_what_a_killed_process_left_is_tidied_up(target, holder, tmp_path):
    holder.kill()
    holder.wait()
    remove_partial([target])
    assert not os.listdir(tmp_path)


def test_one_at_a_time(target, tmp_path):
    inside, most = [], []

    def work():
        for _ in range(50):
            with claimed(target, lambda: None):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(most), max(most)) == (400, 1)
    assert not os.listdir(tmp_path)


def test_file_systems_without_locks(target, holder, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with claimed(target) as ours:
        assert ours


def test_systems_without_locks(target, tmp_path, monkeypatch):
    """Windows has neither fcntl nor O_CLOEXEC, nor lets it unlink what is open."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "fcntl" else find(n))
    monkeypatch.delattr(os, "O_CLOEXEC")
    with claimed(target) as ours, claimed(target) as others:
        assert ours
        assert others
        assert not os.listdir(tmp_path)


def test_a_folder_is_one_calls_alone(target, holder, tmp_path):
    with (
        pytest.raises(OutputError, match=f"^{tmp_path}: another training is at work in it$"),
        alone_in(tmp_path, target.name, "training"),
    ):
        pass
    with alone_in(tmp_path / "new" / "folder", target.name, "training"):
        assert len(os.listdir(tmp_path / "new" / "folder")) == 1
    assert not os.listdir(tmp_path / "new" / "folder")


def test_no_folder(target):
    with pytest.raises(OutputError, match="cannot write"), claimed(target / "below"):
        pass
