"""gdb's ``monitor``: a line of our prompt, run on the thread that gdb is at."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

from postpanic.analysis.commands.language import find_line_command
from postpanic.analysis.program import OpenedProgram
from postpanic.analysis.workspace import Workspace
from postpanic.cli.session import Session, SessionEndError, split_commands
from postpanic.errors import PostpanicError, UsageError

if TYPE_CHECKING:
    from drgn import Object

__all__ = ["PromptMonitor"]

_CHUNK_CHARACTERS = 1 << 15
_REFUSED = frozenset({"alias", "extend", "gdb", "repeat", "rustfilt"})
"""Commands that start programs, load files, or run others."""
_FILE_OPTIONS = {
    "dev": re.compile(r"-\w*v"),
    "dis": re.compile(r"-\w*s"),
    "mod": re.compile(r"-\w*[sS]"),
    "rd": re.compile(r"-\w*r"),
    "wr": re.compile(r"--"),
}
"""Options that read or write files of the host."""


class PromptMonitor:
    """
    Runs lines of ``monitor`` as the prompt runs them.

    Parameters
    ----------
    opened : OpenedProgram
    trusted : bool
        Whether whoever sends them may start programs and name files, as at the
        prompt; otherwise pipes, redirections and what else leads out of the dump
        are refused.
    """

    def __init__(self, opened: OpenedProgram, *, trusted: bool) -> None:
        self._session = Session(opened)
        self._trusted = trusted

    @property
    def workspace(self) -> Workspace:
        """The workspace that the commands share."""
        return self._session.workspace

    def __call__(self, line: str, task: Object | None) -> Iterator[str]:
        """Run a line on a ``struct task_struct *``; gives what it prints, errors included, piece by piece."""
        if task is not None:
            self.workspace.task = task
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="backslashreplace") as printed:
            try:
                with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                    self._run(line or "help")
            except KeyboardInterrupt:
                # gdb got the same signal, and reads one more packet: what was printed would answer its next command.
                return
            printed.seek(0)
            while text := printed.read(_CHUNK_CHARACTERS):
                yield text

    def _run(self, line: str) -> None:
        try:
            if not self._trusted:
                for command in split_commands(line):
                    self._check(command)
            self._session.run_line(line)
        except SessionEndError:
            print('the session is gdb\'s: "quit" there ends it')
        except PostpanicError as exc:
            print(f"{exc}" + (f"\n  hint: {exc.hint}" if exc.hint else ""))

    def _check(self, line: str) -> None:
        """Refuse what leads out of the dump."""
        refusal = UsageError(
            f"{line.split(maxsplit=1)[0]}: only commands on the dump itself are run here",
            hint="no files, pipes and programs: gdb has its own (pipe monitor ps | head)",
        )
        split, command = find_line_command(self.workspace, self.workspace.aliases.expand(line))
        if command is None or split.redirections or split.pipeline is not None:
            raise refusal
        options = _FILE_OPTIONS.get(command.name)
        if (
            command.name in _REFUSED
            or "--drgn" in split.words
            or (options is not None and any(options.match(word) for word in split.words))
        ):
            raise refusal
