"""
A session at an opened dump: lines in, output and one-line errors out.

The language is crash's: one command per line, here also several with ``;``
between them; pipes and redirection; ``!`` for the shell; ``#`` for comments.
"""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from postpanic.analysis.commands.language import run_native
from postpanic.analysis.crash_commands import CommandFailedError, failure_of, run_crash_command, set_pager
from postpanic.analysis.workspace import Workspace
from postpanic.cli.progress import Progress
from postpanic.errors import AbsentError
from postpanic.findings.table import Answer
from postpanic.report.json import encode_json
from postpanic.report.text import render_problems, render_text

if TYPE_CHECKING:
    from postpanic.analysis.program import OpenedProgram
    from postpanic.analysis.symbols_only import SymbolsOnly

__all__ = ["END_WORDS", "Session", "SessionEndError", "split_commands"]

END_WORDS = frozenset({"exit", "q", "quit"})

# Shell and Python have their own semicolons: these take the rest of the line.
_WHOLE_LINE = re.compile(r"\s*(?:!|drgn(?:\s|\Z))")
_TOKEN = re.compile(r"""(?P<comment>(?<!\S)\#.*)|(?P<end>;)|\\.|"(?:\\.|[^"\\])*"|'[^']*'|[^;\\"'\#]+|.""", re.DOTALL)
_FIRST_WORD = re.compile(r"[^\s|<>]+")


class SessionEndError(Exception):
    """The user wants to leave; not a failure."""


def split_commands(text: str) -> list[str]:
    """
    Split a line at the semicolons that separate commands.

    Quotes and backslashes protect a semicolon; a ``#`` at the start of a word
    begins a comment; ``!`` and ``drgn`` take the whole rest of their line.

    >>> split_commands("bt; ps | grep 'a;b'  # done")
    ['bt', "ps | grep 'a;b'"]
    """
    commands: list[str] = []
    for line in text.split("\n"):
        current = ""
        position = 0
        while match := _TOKEN.match(line, position):
            if not current.strip() and _WHOLE_LINE.match(line, position):
                current = line[position:]
                break
            position = match.end()
            if match.lastgroup == "end":
                commands.append(current)
                current = ""
            elif match.lastgroup is None:
                current += match.group()
        commands.append(current)
    return [command.strip() for command in commands if command.strip()]


class Session:
    """
    Commands on one opened dump.

    Parameters
    ----------
    opened : OpenedProgram
        The dump; the session does not close it.
    pager : str or None
        Shell command that shows long output.
    symbols_only : SymbolsOnly, optional
        Of a kernel without types: then only the commands that need none work.
    as_json : bool
        Print the answers of native commands as JSON, one document each.
    """

    def __init__(
        self,
        opened: OpenedProgram,
        *,
        pager: str | None = None,
        symbols_only: SymbolsOnly | None = None,
        as_json: bool = False,
    ) -> None:
        self.opened = opened
        self.workspace = Workspace(opened)
        self.symbols_only = symbols_only
        self.ended = False
        """Whether a command said ``exit``."""
        self._variables: dict[str, Any] = {}
        self._pager = pager
        self._as_json = as_json
        self._progress = Progress()
        set_pager(opened.prog, pager)

    def run_lines(self, lines: Iterable[str]) -> int:
        """
        Run commands until they end or one of them says ``exit``.

        A failure is printed and the next command runs. Returns the exit status
        of the first failure, else 0.
        """
        first_status = 0
        try:
            for line in lines:
                status = self.run_line(line)
                first_status = first_status or status
        except SessionEndError:
            self.ended = True
        return first_status

    def run_line(self, line: str) -> int:
        """
        Run the commands of one line; print what goes wrong.

        Returns the exit status of the first command that failed, else 0.

        Raises
        ------
        SessionEndError
            At ``exit``, ``quit`` or ``q``.
        KeyboardInterrupt
            If the user stopped a command; the rest of the line is not run.
        """
        first_status = 0
        for command in split_commands(line):
            try:
                self.run_command(command)
            except CommandFailedError as exc:
                first_status = first_status or exc.status
                _print_failure(command, exc)
        return first_status

    def run_command(self, command: str) -> None:
        """
        Run one command; its aliases are crash's.

        Raises
        ------
        CommandFailedError
            If it fails.
        SessionEndError
            At ``exit``, ``quit`` or ``q``.
        """
        match = _FIRST_WORD.match(command)
        word = match.group() if match else ""
        if word in END_WORDS:
            raise SessionEndError
        command = self.workspace.aliases.expand(command)
        match = _FIRST_WORD.match(command)
        word = match.group() if match else ""
        if word in END_WORDS:
            raise SessionEndError
        if word == "drgn" and not self._variables:
            from postpanic.analysis.scripting import script_globals

            self._variables = script_globals(self.opened.prog)
        with _interruptible():
            if self.symbols_only is None:
                self._run_with_types(command)
                return
            from postpanic.analysis.symbols_only import run_without_types

            run_without_types(self.opened, self.symbols_only, command, pager=self._pager, variables=self._variables)

    def _run_with_types(self, command: str) -> None:
        try:
            if command.startswith("!") or (answer := self._run_native(command)) is None:
                run_crash_command(self.opened.prog, command, variables=self._variables)
                return
        except (CommandFailedError, BrokenPipeError):
            raise
        except Exception as exc:
            raise failure_of(exc) from exc
        for line in render_problems(answer):
            print(line, file=sys.stderr)
        if answer.says_nothing:
            raise CommandFailedError("", exit_status=AbsentError.exit_status)

    def _run_native(self, command: str) -> Answer | None:
        config = self.opened.prog.config
        pager = config.get("crash_pager") if config.get("crash_scroll") else None
        with Progress() as progress:
            progress(command)
            self._progress = self.workspace.progress = progress
            return run_native(self.workspace, command, self._show, pager=pager)

    def _show(self, answer: Answer, as_json: bool) -> None:
        self._progress.stop()
        if as_json or self._as_json:
            print(encode_json(answer))
            return
        for line in render_text(answer):
            sys.stdout.write(f"{line}\n")


def _print_failure(command: str, failure: CommandFailedError) -> None:
    message = str(failure)
    if not message:
        return
    match = _FIRST_WORD.match(command)
    name = match.group() if match else command
    prefix = "" if message.startswith((f"{name}:", f"{name} -")) else f"{name}: "
    # Output comes before the error that ended it.
    sys.stdout.flush()
    print(f"{prefix}{message}", file=sys.stderr)
    if failure.hint:
        print(f"  hint: {failure.hint}", file=sys.stderr)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """
    Let Ctrl-C stop the command, but leave it to the pager once that is all we wait for.

    The terminal sends the signal to every process in the foreground. When the
    command has ended and its pager still shows the output, the signal is meant
    for the pager; waking up here would make two readers of one terminal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, _on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _on_interrupt(_signal: int, frame: FrameType | None) -> None:
    while frame is not None:
        code = frame.f_code
        if code.co_name in {"wait", "_wait"} and frame.f_globals.get("__name__") == "subprocess":
            return
        frame = frame.f_back
    raise KeyboardInterrupt
