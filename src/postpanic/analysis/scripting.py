"""Run the user's Python with the program at hand."""

from __future__ import annotations

import runpy
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import drgn
import drgn.cli

from postpanic.errors import FileFaultError, PostpanicError

__all__ = ["ScriptFailedError", "run_script", "script_globals"]


class ScriptFailedError(PostpanicError):
    """
    The user's program raised an exception.

    Attributes
    ----------
    report : str
        The traceback as Python prints it, beginning with the user's first frame.
    """

    code = "script-failed"

    def __init__(self, message: str, *, where: str, report: str) -> None:
        super().__init__(message, where=where)
        self.report = report


def script_globals(prog: drgn.Program) -> dict[str, Any]:
    """
    Make the global variables that drgn's own prompt has: ``prog``, ``drgn``, all kernel helpers.

    *prog* becomes drgn's default program, so that helpers find it by themselves.
    """
    drgn.set_default_prog(prog)
    return drgn.cli.default_globals(prog)


def run_script(prog: drgn.Program, path: Path, arguments: Sequence[str]) -> int:
    """
    Run a Python file as ``__main__``, with :func:`script_globals` and ``sys.argv``.

    Its directory comes first in the module search path, as when Python runs it.

    Returns
    -------
    int
        The status with which the program ended itself (``sys.exit``), else 0.

    Raises
    ------
    FileFaultError
        If the file cannot be read or is not Python.
    ScriptFailedError
        If the program raised anything else than ``SystemExit``.
    KeyboardInterrupt
        If the user interrupted it.
    """
    variables = script_globals(prog)
    saved_arguments, saved_path = sys.argv, sys.path[:]
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.resolve().parent))
    try:
        runpy.run_path(str(path), init_globals=variables, run_name="__main__")
    except SystemExit as exc:
        return _exit_status(exc)
    except BrokenPipeError:
        raise
    except Exception as exc:
        frames = _user_frames(exc.__traceback__, path)
        if frames is None:
            raise FileFaultError(_why_not_run(exc), where=str(path)) from exc
        report = "".join(traceback.format_exception(type(exc), exc, frames))
        raise ScriptFailedError(f"{type(exc).__name__}: {exc}", where=str(path), report=report) from exc
    finally:
        sys.argv, sys.path[:] = saved_arguments, saved_path
    return 0


def _exit_status(end: SystemExit) -> int:
    """Give the status of ``sys.exit(x)`` as Python does: a text is printed and means 1."""
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    sys.stderr.write(f"{end.code}\n")
    return 1


def _user_frames(frames: TracebackType | None, path: Path) -> TracebackType | None:
    """Cut off the frames before the user's file; None if the error came before his code ran."""
    while frames is not None and frames.tb_frame.f_code.co_filename != str(path):
        frames = frames.tb_next
    return frames


def _why_not_run(error: Exception) -> str:
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}"
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    return f"is not a Python program: {error}"
