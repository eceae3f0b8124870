"""
The language of the prompt: words, redirections and pipes around a native command.

Pipes and files are drgn's work (its public command machinery); what is split
here by our own rules are the words. A ``>`` that is part of ``->``, and whatever
stands in quotes or parentheses, is text.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from drgn import Program
from drgn.commands import CommandNamespace, ParsedCommand, ShellRedirection, unquote_shell_word

from postpanic.analysis.commands.arguments import Arguments, parse_words
from postpanic.analysis.commands.catalog import find_command
from postpanic.analysis.commands.registry import Command
from postpanic.analysis.crash_commands import command_names
from postpanic.analysis.objects.paths import find_type_keyword
from postpanic.analysis.workspace import Workspace
from postpanic.errors import UsageError
from postpanic.findings.table import Answer

__all__ = ["JSON_FLAG", "CommandLine", "Show", "answer", "find_line_command", "run_native", "split_line", "words_of"]

JSON_FLAG = "--json"
DRGN_FLAG = "--drgn"
"""Asks drgn's command of the name for the Python that does the same."""

_JSON_WORD = re.compile(rf"(?:\A|\s){JSON_FLAG}(?=\s|\Z)")

Show = Callable[[Answer, bool], None]
"""Prints an answer to ``sys.stdout``; the second argument asks for JSON."""

_TOKEN = re.compile(
    r"""
    (?P<space>\s+)
  | (?P<comment>(?<!\S)\#.*)
  | (?P<arrow>->)
  | (?P<redirect>(?:(?<!\S)[012])?(?P<operator>>>|>|<))
  | (?P<pipe>\|)
  | (?P<text>\\. | "(?:\\.|[^"\\])*" | '[^']*' | .)
    """,
    re.VERBOSE | re.DOTALL,
)

_GLUED = re.compile(r"\A\s*(\*(?=[^\s*])|p(?=/))")
"""Commands that need no space behind them."""


@dataclass(frozen=True, slots=True)
class CommandLine:
    """One command line, split."""

    name: str
    source: str
    """The words behind the name, as they were typed."""
    words: tuple[str, ...]
    """The same words, unquoted; a word in single quotes keeps them (it is a regular expression)."""
    redirections: tuple[ShellRedirection, ...]
    pipeline: str | None


class _Word(NamedTuple):
    text: str
    start: int
    end: int


def split_line(line: str) -> CommandLine:
    """
    Split one command line.

    Raises
    ------
    UsageError
        If a redirection names no file, or a pipe no command.

    >>> split_line("p a->b | grep x > file").pipeline
    'grep x > file'
    >>> split_line("p (a >> 2) > file").source
    '(a >> 2)'
    """
    splitter = _Splitter(line)
    pipeline = splitter.split()
    words = splitter.words
    if not words:
        raise UsageError("no command")
    source = line[words[1].start : words[-1].end] if len(words) > 1 else ""
    return CommandLine(words[0].text, source, words_of(words[1:]), tuple(splitter.redirections), pipeline)


class _Splitter:
    """Split a line into words and redirections, up to the first pipe."""

    def __init__(self, line: str) -> None:
        self.words: list[_Word] = []
        self.redirections: list[ShellRedirection] = []
        self._line = line
        self._operator = ""
        self._current = ""
        self._start = 0

    def split(self) -> str | None:
        """Do it, and return what stands behind the first pipe."""
        position = depth = 0
        while match := _TOKEN.match(self._line, position):
            kind, text = match.lastgroup, match.group()
            if depth == 0 and kind in {"space", "comment", "redirect", "pipe"}:
                self._finish(position)
            if depth == 0 and kind == "redirect":
                self._check_file()
                self._operator = text
            elif depth == 0 and kind == "pipe":
                self._check_file()
                return self._check_pipeline(self._line[match.end() :].strip())
            elif depth or kind in {"arrow", "text"}:
                depth = max(0, depth + (text == "(") - (text == ")"))
                self._start = self._start if self._current else position
                self._current += text
            position = match.end()
        self._finish(position)
        self._check_file()
        return None

    def _finish(self, end: int) -> None:
        """End the current word."""
        if self._current and self._operator:
            path = unquote_shell_word(self._current)
            operator: Any = self._operator.lstrip("012")
            descriptor = self._operator.rstrip("<>") or ("0" if operator == "<" else "1")
            self.redirections.append(ShellRedirection(int(descriptor), operator, path))
            self._operator = ""
        elif self._current:
            self.words.append(_Word(self._current, self._start, end))
        self._current = ""

    def _check_file(self) -> None:
        if self._operator:
            raise UsageError(f"{self._operator} has no file", hint="command > file")

    def _check_pipeline(self, pipeline: str) -> str:
        if not pipeline:
            raise UsageError("nothing behind the pipe", hint="command | grep text")
        return pipeline


def words_of(words: list[_Word]) -> tuple[str, ...]:
    """Unquote words; a word in single quotes stays as it is."""
    return tuple(
        word.text if word.text.startswith("'") and word.text.endswith("'") else unquote_shell_word(word.text)
        for word in words
    )


def answer(workspace: Workspace, command: Command, words: tuple[str, ...], source: str = "") -> Answer:
    """
    Run a command on words.

    Raises
    ------
    UsageError
        If the words are not what the command takes.
    """
    if command.verbatim:
        arguments = Arguments(command.options, {}, words, source)
    else:
        arguments = parse_words(command.name, words, options=command.options, operands=command.operands, source=source)
    workspace.refresh()
    return command(workspace, arguments)


class _Native:
    """A native command as drgn's machinery for pipes and redirections takes it."""

    def __init__(self, workspace: Workspace, command: Command, line: CommandLine, show: Show) -> None:
        self._workspace = workspace
        self._command = command
        self._line = line
        self._show = show

    def description(self) -> str:
        return self._command.summary

    def format_usage(self) -> str:
        return self._command.name

    def format_help(self, *, indent: str = "") -> str:
        return f"{indent}{self._command.name}"

    def enabled(self, prog: Program) -> bool:  # noqa: ARG002
        return True

    def parse(self, source: str, /) -> ParsedCommand[None]:  # noqa: ARG002
        return ParsedCommand(None, self._line.redirections, self._line.pipeline)

    def run(self, prog: Program, name: str, args: None, /, **kwargs: object) -> Answer:  # noqa: ARG002
        words = tuple(word for word in self._line.words if word != JSON_FLAG)
        as_json = len(words) != len(self._line.words)
        source = _JSON_WORD.sub("", self._line.source) if as_json else self._line.source
        self._workspace.emit = lambda part: self._show(part, as_json)
        try:
            result = answer(self._workspace, self._command, words, source)
        finally:
            self._workspace.emit = None
        self._show(result, as_json)
        return result


def find_line_command(workspace: Workspace, line: str) -> tuple[CommandLine, Command | None]:
    """
    Split a line and find its command; None: it is not native.

    ``*task_struct`` is ``* task_struct``, ``p/x`` is ``p /x``, and a line that
    begins with the name of a structure or union is ``struct`` or ``union`` of it,
    unless drgn has a command of that name.

    Raises
    ------
    UsageError
        If the line cannot be split.
    """
    split = split_line(_GLUED.sub(r"\1 ", line))
    command = find_command(split.name)
    if command is not None:
        return split, command
    keyword = find_type_keyword(workspace.prog, split.name.partition(".")[0])
    command = find_command(keyword)
    if command is None or split.name in command_names(workspace.prog):
        return split, None
    source = f"{split.name} {split.source}".rstrip()
    return CommandLine(keyword, source, (split.name, *split.words), split.redirections, split.pipeline), command


def run_native(workspace: Workspace, line: str, show: Show, *, pager: str | None = None) -> Answer | None:
    """
    Run one command line if its command is native.

    Parameters
    ----------
    show : callable
        Prints the answer; ``sys.stdout`` is then what the line's redirections and pipes make of it.
    pager : str, optional
        Shell command that gets what goes nowhere else.

    Returns
    -------
    Answer or None
        None: there is no native command of that name, or drgn's is meant.

    Raises
    ------
    UsageError
        For what was typed.
    """
    split, command = find_line_command(workspace, line)
    if command is None or DRGN_FLAG in split.words:
        return None
    if pager is not None and split.pipeline is None and not any(entry.fd == 1 for entry in split.redirections):
        split = CommandLine(split.name, split.source, split.words, split.redirections, pager)
    namespace = CommandNamespace()
    namespace.register(split.name, _Native(workspace, command, split, show))
    # What a pipe starts writes to the same file behind our back.
    sys.stdout.flush()
    result: Answer | None = namespace.run(workspace.prog, split.name, globals={})
    sys.stdout.flush()
    # What a pipe ended early (head) has no result, and was answered all the same.
    return result if result is not None else Answer(split.name, ())
