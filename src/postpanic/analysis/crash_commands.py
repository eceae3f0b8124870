"""
Run the commands of crash that drgn brings along, through drgn's public door.

drgn registers them when its plug-ins are loaded, and runs them as the words
after its own command ``crash``. That module of drgn is private, so nothing
here imports it: the names and the options are read from what ``help`` prints.

Whatever goes wrong inside a command leaves this module as one
:class:`CommandFailedError` with one line to show; a command that crashes must
never end the session.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import logging
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from drgn import FaultError, Program
from drgn.commands import (
    CommandArgumentError,
    CommandExitStatusError,
    CommandNotFoundError,
    run_command,
)

from postpanic.errors import AbsentError, PostpanicError, UsageError

__all__ = [
    "CommandFailedError",
    "UnknownCommandError",
    "capture_crash_command",
    "command_names",
    "command_options",
    "describe_error",
    "failure_of",
    "load_plugins",
    "run_crash_command",
    "set_pager",
]

PLUGIN_GROUP = "drgn.plugins"
MESSAGE_LIMIT_CHARACTERS = 1000

_log = logging.getLogger(__name__)


class CommandFailedError(PostpanicError):
    """
    A command of the prompt did not do its work.

    The exit status is that of the cause: 3 for memory or facts that the dump
    does not hold, 64 for what the user typed, otherwise 1. An empty message
    means that there is nothing to tell (``ps | grep nothing``).
    """

    code = "command-failed"

    def __init__(self, message: str, *, exit_status: int = 1, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = exit_status


class UnknownCommandError(CommandFailedError):
    """No command and no type has this name."""

    code = "unknown-command"


def load_plugins() -> None:
    """
    Load drgn's plug-ins, its crash commands and other people's among them.

    drgn does it by itself when a program is attached to a dump; a program that
    was put together by hand has not been through that. A plug-in that fails to
    load is a warning in the log. Loading twice costs nothing.
    """
    for entry_point in importlib.metadata.entry_points(group=PLUGIN_GROUP):
        try:
            entry_point.load()
        except Exception as exc:  # noqa: BLE001 - other people's code must not keep a dump from opening
            _log.warning("drgn plug-in %s cannot be loaded: %s", entry_point.name, exc)


def run_crash_command(prog: Program, line: str, *, variables: dict[str, Any] | None = None) -> None:
    """
    Run one line of crash's command language; it prints to ``sys.stdout``.

    Redirection (``> >> <``) and pipes work as drgn has them: everything after
    the first ``|`` is given to ``sh``, so ``sys.stdout`` must have a file
    descriptor then. A pager is put in between only when it has one, too.

    Parameters
    ----------
    line : str
        One command with its words, redirections and pipes; not empty.
    variables : dict, optional
        Global variables of the command ``drgn``, which runs Python.

    Raises
    ------
    UnknownCommandError
        If there is no such command; the hint has names that are near.
    CommandFailedError
        If the command failed, for whatever reason.
    """
    if not line.strip():
        return
    # What the command starts writes to the same file behind our back.
    sys.stdout.flush()
    try:
        run_command(prog, f"crash {line.strip()}", globals={} if variables is None else variables)
        sys.stdout.flush()
    except CommandNotFoundError as exc:
        raise UnknownCommandError(
            f"{exc.name}: no such command or type", exit_status=UsageError.exit_status, hint=_near(prog, exc.name)
        ) from exc
    except BrokenPipeError:
        raise
    except Exception as exc:
        raise failure_of(exc) from exc


def capture_crash_command(prog: Program, line: str, *, variables: dict[str, Any] | None = None) -> str:
    """
    Run one command line and return what it printed, pipes included.

    The pager stays out. Width of the output: ``COLUMNS``, or that of the terminal.

    Raises
    ------
    CommandFailedError
        As :func:`run_crash_command` does; what was printed before is lost.
    """
    # A real file and not a StringIO: the programs of a pipe write to its descriptor.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="backslashreplace") as captured:
        with contextlib.redirect_stdout(captured), _without_pager(prog):
            run_crash_command(prog, line, variables=variables)
        captured.seek(0)
        return captured.read()


def set_pager(prog: Program, pager: str | None) -> None:
    """
    Say which program shows long output, as ``set scroll`` of crash does.

    Parameters
    ----------
    pager : str or None
        A shell command that reads the output; None: no pager at all.
    """
    prog.config["crash_scroll"] = pager is not None
    if pager is not None:
        prog.config["crash_pager"] = pager


def command_names(prog: Program) -> list[str]:
    """Name the commands that can be run on this program, sorted."""
    listing = capture_crash_command(prog, "help").partition("Commands:\n")[2]
    return sorted(listing.partition("\n\n")[0].split())


def command_options(prog: Program, name: str) -> list[str]:
    """Name the options (``-a``, ``--drgn``) that the help of a command explains; none if there is no such command."""
    try:
        text = capture_crash_command(prog, f"help {name}")
    except CommandFailedError:
        return []
    return sorted(set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", text.partition("DESCRIPTION")[2])))


def describe_error(error: BaseException) -> str:
    """
    Put an exception into one line for the user.

    A :exc:`drgn.FaultError` names its address, a ``KeyError`` loses its quotes,
    a group becomes its members.
    """
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(describe_error(member) for member in error.exceptions)
    if isinstance(error, FaultError):
        # The text of a FaultError ends in its address, once for each layer that it came through.
        reason = re.sub(r"(?:: 0x[0-9a-f]+)+\Z", "", _first_line(str(error)))
        text = f"cannot read memory at {error.address:#x}: {reason}"
    elif isinstance(error, KeyError) and len(error.args) == 1:
        # str() of a KeyError is the repr of its message.
        message = _first_line(str(error.args[0]))
        text = message if " " in message else f"not found: {message}"
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif isinstance(error, RecursionError):
        text = "the structures refer to each other without end"
    elif isinstance(error, MemoryError):
        text = "not enough memory"
    else:
        text = _first_line(str(error)) or type(error).__name__
    return text[:MESSAGE_LIMIT_CHARACTERS]


def _first_line(text: str) -> str:
    return " ".join(text.split("\n", 1)[0].split())


def failure_of(error: Exception) -> CommandFailedError:
    """Turn whatever a command raised into the failure that is shown."""
    members: Sequence[Exception] = error.exceptions if isinstance(error, ExceptionGroup) else (error,)
    status = 1
    if isinstance(error, PostpanicError):
        status = error.exit_status
    elif any(isinstance(member, (FaultError, AbsentError)) for member in members):
        status = AbsentError.exit_status
    elif isinstance(error, (CommandArgumentError, SyntaxError)):
        status = UsageError.exit_status
    # grep that finds nothing is an answer, not an error to talk about.
    silent = isinstance(error, CommandExitStatusError) and error.exit_status == 1
    message = "" if silent else describe_error(error)
    if isinstance(error, SyntaxError):
        message = f"syntax error: {message}"
    return CommandFailedError(message, exit_status=status, hint=error.hint if isinstance(error, PostpanicError) else "")


def _near(prog: Program, name: str) -> str:
    try:
        names = command_names(prog)
    except CommandFailedError:
        return ""
    near = difflib.get_close_matches(name, names, n=4, cutoff=0.6)
    near += [other for other in names if other.startswith(name) and other not in near]
    return f"did you mean {', '.join(near)}?" if near else "try: help"


@contextlib.contextmanager
def _without_pager(prog: Program) -> Iterator[None]:
    before = prog.config.get("crash_scroll", True)
    prog.config["crash_scroll"] = False
    try:
        yield
    finally:
        # "set scroll on" inside the captured command stays.
        if prog.config.get("crash_scroll") is False:
            prog.config["crash_scroll"] = before
