"""The entry point: from the command line to an exit code.

Exit codes: 0 done, 1 an input failed or something cannot be written, 2 wrong usage, 3 an output
exists, 130 interrupted, 143 terminated. An error is one line on stderr.
"""

import contextlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn, TextIO

import typer
from typer.main import get_command

import galsep
from galsep.cli import deblend, doctor, evaluate, import_data, info, simulate, train, weights
from galsep.cli.console import abandon_stdout, emit, one_line, say
from galsep.cli.help import HELP_TEXT, Group
from galsep.errors import GalsepError, OutputExistsError, UsageError
from galsep.interrupts import hear, interrupt_behind

__all__ = ["app", "main", "run"]

FAILED, MISUSED, EXISTS, INTERRUPTED, TERMINATED = 1, 2, 3, 130, 143

COMPLETION = "_GALSEP_COMPLETE"
"""Set by a shell that asks what could be typed next."""

SHELLS = ("bash", "zsh", "fish")

ZSH_SCRIPT = Path(".zfunc") / "_galsep"
"""Where typer installs the script of zsh, below the home folder."""

FIRST_TAB = """
# zsh reads this file at the first TAB, which would else complete nothing.
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
  _galsep_completion "$@"
fi
"""

app = typer.Typer(
    name="galsep",
    cls=Group,
    options_metavar="COMMAND [OPTIONS]",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Separate overlapping galaxies in astronomical images with Mask R-CNN.",
    epilog="""
    Examples:
      galsep deblend image.fits --output out --preview
      galsep simulate train-set --n 2000
      galsep train train-set --output run
      galsep deblend --help

    Exit status: 0 done, 1 an input failed, 2 wrong usage, 3 an output exists,
    130 interrupted, 143 terminated.
    """,
)
for module in (deblend, info, simulate, import_data, train, evaluate, weights, doctor):
    module.add_to(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        emit(f"galsep {galsep.__version__}\n")
        raise typer.Exit


def _print_help(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        emit(f"{ctx.get_help()}\n")
        raise typer.Exit


def _complete(ctx: typer.Context, param: typer.CallbackParam, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from typer.completion import install_callback, show_callback

        # What was typed: the option, and a shell where one is named.
        named = " ".join(ctx.obj[1:])
        if named and named not in SHELLS:
            raise UsageError(f"completion is for {', '.join(SHELLS)}, not for {named!r}")
        act = install_callback if param.name == "_install_completion" else show_callback
        try:
            # True lets typer see which shell is running.
            act(ctx, param, named or True)
        finally:
            if param.name == "_install_completion":
                _complete_at_the_first_tab(Path.home() / ZSH_SCRIPT)


def _complete_at_the_first_tab(script: Path) -> None:
    """Add to zsh's script, where it was installed, what typer leaves out."""
    if script.is_file() and FIRST_TAB not in (text := script.read_text(encoding="utf-8")):
        script.write_text(f"{text.rstrip()}\n{FIRST_TAB}", encoding="utf-8")


# Options of its own for help and completion: the parser's would load pydantic, and with it every
# command be slower.
@app.callback(invoke_without_command=True, add_help_option=False)
def _top(
    ctx: typer.Context,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and stop"
        ),
    ] = False,
    _install_completion: Annotated[
        bool,
        typer.Option(
            "--install-completion",
            callback=_complete,
            is_eager=True,
            help="Teach the running shell, or the one named after it (bash, zsh, fish), to "
            "complete commands and options",
        ),
    ] = False,
    _show_completion: Annotated[
        bool,
        typer.Option(
            "--show-completion",
            callback=_complete,
            is_eager=True,
            help="Print the script that does so",
        ),
    ] = False,
    _help: Annotated[
        bool,
        typer.Option("-h", "--help", callback=_print_help, is_eager=True, help=HELP_TEXT),
    ] = False,
) -> None:
    if ctx.invoked_subcommand is None:
        say(ctx.get_help())
        raise typer.Exit(MISUSED)


def run() -> NoReturn:
    """Run galsep as a program."""
    if COMPLETION in os.environ:
        from typer.completion import get_completion_inspect_parameters

        get_completion_inspect_parameters()  # Which is how typer comes to know the shells.
        get_command(app).main(prog_name="galsep")
    # Threads that wait for one another without spinning: PyTorch is as fast on a free machine, and
    # up to eight times faster on one where other programs take turns on the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, _terminate)
    # Where a shell has the signal ignored, it stays so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    _leave(main(sys.argv[1:]))


def _leave(code: int) -> NoReturn:
    """End the process without taking its modules apart, which takes PyTorch over a second.

    All files are closed and all worker processes have ended by now.
    """
    for stream in (sys.stdout, sys.stderr):
        # Data has been flushed where it was written, with its errors told.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    os._exit(code)


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; errors become one line on stderr.

    Parameters
    ----------
    arguments : sequence of str
        What follows the program's name; with ``--debug`` among it, tracebacks are shown.
    """
    debug = "--debug" in arguments
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            command = get_command(app)
            with command.make_context("galsep", list(arguments), obj=arguments) as context:
                command.invoke(context)
    except typer.Exit as leave:
        return leave.exit_code
    except (KeyboardInterrupt, SystemExit) as stop:
        return _stopped(stop)
    except Exception as error:  # noqa: BLE001 (whatever it is, the user gets one line)
        behind = interrupt_behind(error)
        if debug:
            traceback.print_exc()
        return _explain(error, arguments) if behind is None else _stopped(behind)
    return 0


def _stopped(stop: KeyboardInterrupt | SystemExit) -> int:
    """Say why a command was stopped, and choose the exit code."""
    if isinstance(stop, KeyboardInterrupt):
        say("interrupted")
        return INTERRUPTED
    code = stop.code if isinstance(stop.code, int) else FAILED
    if code == TERMINATED:
        say("terminated")
    return code


def _explain(error: Exception, arguments: Sequence[str]) -> int:
    """Say what went wrong in one line and choose the exit code."""
    if isinstance(error, typer.TyperException):
        say(f"error: {_usage_message(error, arguments)}")
        return MISUSED
    if isinstance(error, GalsepError):
        say(f"error: {one_line(error)}")
        if isinstance(error, UsageError):
            return MISUSED
        return EXISTS if isinstance(error, OutputExistsError) else FAILED
    if isinstance(error, BrokenPipeError):
        abandon_stdout()
        say("error: standard output: it was closed before everything was written")
    elif isinstance(error, OSError) and error.strerror:
        say(f"error: {f'{error.filename}: ' if error.filename else ''}{error.strerror}")
    elif isinstance(error, MemoryError):
        say("error: out of memory; give smaller inputs or a smaller --batch-size")
    else:
        say(
            f"error: unexpected {type(error).__name__}: {one_line(error)}; "
            "please report it with what --debug shows"
        )
    return FAILED


def _usage_message(error: Any, arguments: Sequence[str]) -> str:
    """Turn a parser's error into one line that names the help page."""
    message = one_line(error.format_message()).rstrip(".")
    context = getattr(error, "ctx", None)
    # An option without its value is an error that does not know its command.
    typed = [word for word in arguments[:1] if not word.startswith("-")]
    path = context.command_path if context is not None else " ".join(["galsep", *typed])
    return f"{message} (see {path} --help)"


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,  # noqa: ARG001 (Python's signature)
    lineno: int,  # noqa: ARG001
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    """Show a library's warning in one line."""
    say(f"warning: {category.__name__}: {one_line(message)}")


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 (Python's signature)
    """Leave on SIGTERM by way of all ``finally`` blocks, so that no partial file stays."""
    raise hear(SystemExit(TERMINATED))


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    """Leave on Ctrl-C in the same way."""
    raise hear(KeyboardInterrupt())
