"""The root command: registers every command and turns errors into messages and exit codes.

Importing this must stay cheap (`damcli --help` answers in under half a second): the command modules import what is
heavy inside their functions.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import Annotated, Any, NoReturn

import typer

from damcli import __version__, console
from damcli.commands import demo, evaluate, export, info, predict, prepare, reproduce, train
from damcli.errors import DamcliError, MachineError, UsageError

app = typer.Typer(
    name="damcli",
    help="Train, judge and ship medical image classifiers by Deep AUC Maximization.",
    epilog="Start with: damcli demo",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for room in (prepare, train, evaluate, export, predict, demo):
    app.command(room.__name__.rsplit(".", 1)[-1])(room.command)
app.add_typer(reproduce.app, name="reproduce")
app.add_typer(info.app, name="info")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"damcli {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Train, judge and ship medical image classifiers by Deep AUC Maximization."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run damcli and exit with 0, or with the code of what went wrong (see `damcli.errors`).

    130 and 143 mean interrupted by Ctrl-C and by SIGTERM, 141 that nobody reads the output any more.
    """
    signal.signal(signal.SIGTERM, _terminated)
    try:
        sys.exit(_run(arguments))
    except DamcliError as problem:
        console.error(problem)
        sys.exit(_shared(problem.exit_code))
    except KeyboardInterrupt:
        sys.exit(_shared(130))
    except SystemExit as leaving:
        sys.exit(_shared(leaving.code))
    except BrokenPipeError:
        # Whoever read our output has enough, as `head` does. Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _shared(code: Any) -> Any:
    """Return the exit code of a process of a run: 0 where all end together and the leading one tells the code.

    Fabric kills the leading one, which may still be writing, once another has ended with anything else. Before the run
    has started that is right: the leading one waits for the others, and no signal reaches it there.
    """
    return 0 if console.state.follows and console.state.together and code in (3, 130, 143) else code


def _run(arguments: list[str] | None) -> Any:
    try:
        return app(args=arguments, standalone_mode=False, prog_name="damcli")
    except typer.TyperException as problem:
        raise _usage(problem) from problem
    except SystemExit as leaving:
        # Typer makes exit code 1 of a broken pipe, which is the code of a bug.
        if isinstance(leaving.__context__, BrokenPipeError):
            raise leaving.__context__ from None
        raise
    except OSError as problem:
        if problem.errno != errno.ENOSPC:
            raise
        raise MachineError(
            "no space is left on the disk", where=problem.filename, fix="free some space, then run it again"
        ) from problem


def _usage(problem: typer.TyperException) -> UsageError:
    """Retell what Typer says of the command line in the form of our other errors."""
    context = getattr(problem, "ctx", None)
    path = context.command_path if context else "damcli"
    message = getattr(problem, "format_message", lambda: str(problem))()
    return UsageError(message.rstrip("."), where=path, fix=f"see {path} --help")


def _terminated(signum: int, frame: object) -> None:
    sys.exit(143)
