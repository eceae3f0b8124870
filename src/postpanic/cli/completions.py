"""
What can stand at the cursor: commands, options, symbols, types, members, files.

This module knows the language of the prompt and nothing of the terminal; the
prompt hands it the text before the cursor.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from postpanic.analysis.aliases import BUILT_IN
from postpanic.analysis.commands.catalog import find_command, load_commands
from postpanic.analysis.commands.language import JSON_FLAG
from postpanic.analysis.crash_commands import command_names, command_options
from postpanic.analysis.names import member_names, symbol_names, type_names
from postpanic.cli.session import END_WORDS

if TYPE_CHECKING:
    from postpanic.analysis.program import OpenedProgram

__all__ = ["Completions", "SortedNames", "Suggestions"]

SUGGESTION_LIMIT = 400
TYPE_PREFIX_CHARACTERS = 3

_WORD = re.compile(r"[^\s|<>;]*\Z")
_VALUES = {
    "set": ("radix", "scroll", "on", "off", "less", "more"),
    "foreach": ("active", "gleader", "kernel", "user"),
}
_NO_SYMBOLS = frozenset({"bt", "foreach", "help", "man", "mod", "set", "log", "dmesg", "ps", "task", "files", "vm"})


@dataclass(frozen=True, slots=True)
class Suggestions:
    """Texts that may replace the last *replaced* characters before the cursor."""

    replaced: int
    texts: tuple[str, ...]


class SortedNames:
    """
    Many names, found by their beginning.

    >>> SortedNames(["schedule", "printk", "schedule_timeout"]).starting_with("sched")
    ['schedule', 'schedule_timeout']
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = sorted(set(names))

    def starting_with(self, prefix: str, limit: int = SUGGESTION_LIMIT) -> list[str]:
        """List the first *limit* names that begin with *prefix*."""
        start = bisect.bisect_left(self._names, prefix)
        # No name has a character behind U+10FFFF.
        end = bisect.bisect_right(self._names, prefix + "\U0010ffff", lo=start, hi=min(len(self._names), start + limit))
        return self._names[start:end]


class Completions:
    """
    Completion for one opened dump.

    Lists are made when they are first needed: the symbols of a kernel with all
    its modules take a few tenths of a second, once.
    """

    def __init__(self, opened: OpenedProgram) -> None:
        self._opened = opened
        self._cache: dict[str, SortedNames] = {}

    def suggest(self, text: str) -> Suggestions:
        """Say what can stand at the end of *text*, the line up to the cursor."""
        command_text = text.rpartition(";")[2]
        words = command_text.split()
        match = _WORD.search(text)
        word = match.group() if match else ""
        before = command_text[: len(command_text) - len(word)]
        if command_text.lstrip().startswith("!") or re.search(r"[|<>]", before):
            return _files(word)
        if not before.strip():
            return self._command(word)
        return self._argument(words[0], word)

    def _command(self, word: str) -> Suggestions:
        # A type's name is a command, too: it shows the type, or an object at an address.
        if "." in word:
            return self._members(word)
        texts = self._commands().starting_with(word)
        if len(word) >= TYPE_PREFIX_CHARACTERS:
            texts += self._types().starting_with(word)
        return Suggestions(len(word), tuple(texts))

    def _argument(self, command: str, word: str) -> Suggestions:
        if word.startswith("-"):
            options = self._named(f"options of {command}", lambda: self._options(command))
            return self._found(word, options)
        if command in {"help", "man", "?"}:
            return self._found(word, self._commands())
        if command == "mod":
            return self._found(word, self._named("modules", lambda: [source.module for source in self._opened.sources]))
        if "." in word:
            return self._members(word)
        texts = [value for value in _VALUES.get(command, ()) if value.startswith(word)]
        if command == "foreach":
            texts += self._commands().starting_with(word)
        elif word and command not in _NO_SYMBOLS:
            texts += self._types().starting_with(word)
            texts += self._named("symbols", lambda: symbol_names(self._opened.prog)).starting_with(word)
        return Suggestions(len(word), tuple(texts))

    def _members(self, word: str) -> Suggestions:
        path, _, last = word.rpartition(".")
        # struct.member,member: a comma begins another member of the same structure.
        last = last.rpartition(",")[2]
        names = SortedNames(member_names(self._opened.prog, path.partition(",")[0]))
        return Suggestions(len(last), tuple(names.starting_with(last)))

    def _options(self, name: str) -> Sequence[str]:
        native = find_command(name)
        if native is None:
            return command_options(self._opened.prog, name)
        return [*(option.flag for option in native.options if not option.refused), JSON_FLAG]

    def _commands(self) -> SortedNames:
        return self._named(
            "commands", lambda: [*load_commands(), *command_names(self._opened.prog), *BUILT_IN, *END_WORDS]
        )

    def _types(self) -> SortedNames:
        return self._named("types", lambda: type_names(self._opened.prog))

    def _named(self, key: str, make: Callable[[], Sequence[str]]) -> SortedNames:
        if key not in self._cache:
            self._cache[key] = SortedNames(make())
        return self._cache[key]

    def _found(self, word: str, names: SortedNames) -> Suggestions:
        return Suggestions(len(word), tuple(names.starting_with(word)))


def _files(word: str) -> Suggestions:
    directory_text, slash, start = word.rpartition("/")
    directory = Path(directory_text + slash or ".").expanduser()
    try:
        entries = sorted(
            entry.name + ("/" if entry.is_dir() else "")
            for entry in directory.iterdir()
            if entry.name.startswith(start)
        )
    except OSError:
        entries = []
    shown = [entry for entry in entries if start or not entry.startswith(".")]
    return Suggestions(len(start), tuple(shown[:SUGGESTION_LIMIT]))
