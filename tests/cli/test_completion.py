"""Completion in the shell: commands, options, and file names where there is nothing else."""

import os
import shutil
import subprocess
import sys

import pytest

from galsep.cli.main import main


@pytest.fixture
def ask(tmp_path):
    """Ask galsep, as the completion script of a shell does."""

    def run(**environment):
        environment = {**os.environ, "HOME": str(tmp_path), **environment}
        return subprocess.run(
            [sys.executable, "-m", "galsep"], capture_output=True, text=True, env=environment
        )

    return run


def bash(ask, *words):
    run = ask(
        _GALSEP_COMPLETE="complete_bash",
        COMP_WORDS=" ".join(("galsep", *words)),
        COMP_CWORD=str(len(words)),
    )
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout.split()


def test_commands(ask):
    assert bash(ask, "de") == ["deblend"]
    assert {"info", "doctor", "simulate", "train"} <= set(bash(ask, ""))


def test_options(ask):
    assert bash(ask, "deblend", "--reg") == ["--regions"]
    assert bash(ask, "info", "image.fits", "--js") == ["--json"]
    assert bash(ask, "--sh") == ["--show-completion"]


def test_values(ask):
    formats = {"fits", "ecsv", "csv", "vot", "parquet"}
    assert set(bash(ask, "deblend", "--catalog-format", "")) == formats
    assert bash(ask, "train", "pairs", "--device", "c") == ["cpu", "cuda"]
    assert bash(ask, "train", "--recipe", "p") == ["paper"]


@pytest.mark.parametrize(
    "words", [("deblend", "im"), ("deblend", "--output", "im"), ("deblend", "--weights", "im")]
)
def test_file_names_are_left_to_bash(ask, words):
    """An empty answer is what makes the shell offer files."""
    assert bash(ask, *words) == []
    assert "complete -o default" in ask(_GALSEP_COMPLETE="source_bash").stdout


def test_zsh_and_fish(ask):
    zsh = {"_GALSEP_COMPLETE": "complete_zsh"}
    assert '"--regions"' in ask(**zsh, _TYPER_COMPLETE_ARGS="galsep deblend --reg").stdout
    assert ask(**zsh, _TYPER_COMPLETE_ARGS="galsep deblend im").stdout == "_files\n"
    fish = {"_GALSEP_COMPLETE": "complete_fish"}
    arguments = {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    found = ask(**fish, **arguments, _TYPER_COMPLETE_ARGS="galsep deblend --reg").stdout
    assert found.startswith("--regions\t")
    # Exit status 1 lets fish offer files.
    conditions = {"_TYPER_COMPLETE_FISH_ACTION": "is-args"}
    assert ask(**fish, **conditions, _TYPER_COMPLETE_ARGS="galsep deblend im").returncode == 1


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_script_works_in_bash(ask, tmp_path):
    command = tmp_path / "galsep"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m galsep "$@"\n')
    command.chmod(0o755)
    script = ask(_GALSEP_COMPLETE="source_bash").stdout
    script += "\nCOMP_WORDS=(galsep deblend --skip); COMP_CWORD=2; _galsep_completion galsep\n"
    script += 'echo "${COMPREPLY[@]}"\n'
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run(
        ["bash", "--norc", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PATH": path},
    )
    assert run.stdout == "--skip-existing\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_a_script(ask, shell):
    run = ask(_GALSEP_COMPLETE=f"source_{shell}")
    assert run.returncode == 0
    assert f"_GALSEP_COMPLETE=complete_{shell}" in run.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_be_named(capfd, shell):
    assert main(["--show-completion", shell]) == 0
    assert f"_GALSEP_COMPLETE=complete_{shell}" in capfd.readouterr().out


def test_another_shell_is_refused(capfd):
    for words in ("tcsh", "zsh zsh"):
        assert main(["--show-completion", *words.split()]) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert err == f"error: completion is for bash, zsh, fish, not for '{words}'\n"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_show_and_install_for_the_shell_that_is_running(tmp_path):
    def run(option):
        return subprocess.run(
            # With a second command, so that bash stays and is found.
            ["bash", "--norc", "-c", f'"{sys.executable}" -m galsep {option} && true'],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "HOME": str(tmp_path)},
        )

    shown = run("--show-completion")
    assert "complete -o default -F _galsep_completion galsep" in shown.stdout
    assert list(tmp_path.iterdir()) == []
    assert "bash completion installed" in run("--install-completion").stdout
    installed = tmp_path / ".bash_completions" / "galsep.sh"
    assert installed.read_text().strip() == shown.stdout.strip()
    assert "galsep.sh" in (tmp_path / ".bashrc").read_text()


TYPED = """
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "PS1=; fpath+=$HOME/.zfunc; autoload -Uz compinit; compinit -u; echo rea''dy"
zpty -r shell out '*ready*'
zpty -w -n shell $'galsep deblend --isol\t'
zpty -r shell out '*--isolated*'
print -r -- "$out"
"""


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_completes_at_the_first_tab(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for _ in range(2):
        installed = [sys.executable, "-m", "galsep", "--install-completion", "zsh"]
        subprocess.run(installed, capture_output=True, check=True)
    assert (tmp_path / ".zfunc" / "_galsep").read_text().count("loadautofunc") == 1
    command = tmp_path / "galsep"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m galsep "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    run = subprocess.run(
        ["zsh", "-f", "-c", TYPED], capture_output=True, text=True, timeout=60, check=True
    )
    assert "--isolated" in run.stdout
