"""
Start programs: the only place of postpanic that does.

No shell is ever involved. A failure is one :class:`~postpanic.errors.ProcessError`
that carries the command as it can be pasted into a terminal, the exit status
and the end of what the program wrote to stderr.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from postpanic.errors import ProcessError

__all__ = ["find_program", "run", "start"]

STDERR_TAIL_CHARACTERS = 400


def find_program(name: str, *, hint: str = "") -> Path:
    """
    Locate a program on the search path, ``sbin`` directories included.

    Raises
    ------
    ProcessError
        If there is no such program.
    """
    found = shutil.which(name) or shutil.which(name, path="/usr/local/sbin:/usr/sbin:/sbin")
    if found is None:
        raise ProcessError(f"{name}: program not found", hint=hint or f"install the package that has {name}")
    return Path(found)


def run(
    command: Sequence[str | Path],
    *,
    stdin: bytes | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    check: bool = True,
    stdout: IO[bytes] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """
    Run a program to its end and return what it printed.

    Parameters
    ----------
    stdin : bytes, optional
        Fed to the program; without it the program reads an empty input.
    env : mapping, optional
        The whole environment; without it ours is inherited.
    timeout_s : float, optional
        The program is killed after this many seconds.
    check : bool
        Whether an exit status other than 0 is an error.
    stdout : file, optional
        Where standard output goes; without it it is returned.

    Raises
    ------
    ProcessError
        If the program is missing, times out, or (with *check*) fails.
    """
    words = [str(word) for word in command]
    try:
        finished = subprocess.run(
            words,
            input=stdin if stdin is not None else b"",
            stdout=stdout if stdout is not None else subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=env,
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError as exc:
        raise ProcessError(f"{words[0]}: program not found") from exc
    except OSError as exc:
        raise ProcessError(f"{words[0]}: {exc.strerror}") from exc
    except subprocess.TimeoutExpired as exc:
        raise ProcessError(f"{shlex.join(words)}: still running after {timeout_s:g} s, killed") from exc
    if check and finished.returncode != 0:
        tail = finished.stderr.decode(errors="replace").strip()[-STDERR_TAIL_CHARACTERS:]
        raise ProcessError(f"{shlex.join(words)}: exit status {finished.returncode}: {tail}")
    return finished


def start(
    command: Sequence[str | Path],
    *,
    stdin: int | IO[bytes] | None = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """
    Start a program and return at once; the caller owns its end.

    Raises
    ------
    ProcessError
        If the program cannot be started.
    """
    words = [str(word) for word in command]
    try:
        return subprocess.Popen(words, stdin=stdin, stdout=stdout, stderr=stderr, cwd=cwd, env=env)
    except OSError as exc:
        raise ProcessError(f"{words[0]}: {exc.strerror}") from exc
