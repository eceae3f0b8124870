"""
What a command takes, declared once, and the parser that holds the user to it.

The declaration also makes the help, the completion and the documents. The
words are crash's: options of one letter that may stand together (``-kl``),
options named by a number (``-32``), values in the next word (``-C 0,2``), options
and operands in any order, ``--`` before operands that begin with a dash. A
negative number that is no option is an operand.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from postpanic.errors import UsageError

__all__ = ["Arguments", "Operand", "Option", "parse_words"]

_NEGATIVE = re.compile(r"-\d+\Z|-0x[0-9a-fA-F]+\Z")


@dataclass(frozen=True, slots=True)
class Option:
    """
    One option of a command.

    Parameters
    ----------
    flag : str
        As it is typed: ``-k``, ``-32``, ``--json``.
    name : str
        Its name in Python, and in :class:`Arguments`.
    help : str
        One sentence without a full stop.
    value : str
        What its value is called (``CPUS``); empty: it takes none.
    attached : bool
        The value is optional, and joined by ``=`` (``-S=0,1``).
    refused : str
        Why postpanic does not have this option of crash's; empty: it does.
    """

    flag: str
    name: str
    help: str
    value: str = ""
    attached: bool = False
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Operand:
    """
    One operand of a command.

    Parameters
    ----------
    name : str
        Its name in Python; in help it is shown in capitals.
    help : str
        What may be typed, in one sentence without a full stop.
    many : bool
        Whether it takes all words that are left.
    required : bool
    """

    name: str
    help: str
    many: bool = False
    required: bool = False


class Arguments:
    """
    The words of one command line, sorted.

    Parameters
    ----------
    declared : iterable of Option
        All options that the command has; asking for another is a ``KeyError``.
    given : mapping
        Name of each option that was given, with its values in the order given;
        an option without a value counts with empty strings.
    operands : sequence of str
        The other words, in order.
    source : str
        The words as they were typed, quotes and all.
    """

    def __init__(
        self,
        declared: Iterable[Option],
        given: Mapping[str, Sequence[str]],
        operands: Sequence[str] = (),
        source: str = "",
    ) -> None:
        self._given: dict[str, tuple[str, ...]] = {option.name: () for option in declared}
        self._given.update({name: tuple(values) for name, values in given.items()})
        self.operands = tuple(operands)
        self.source = source

    def has(self, name: str) -> bool:
        """Tell whether the option was given."""
        return bool(self._given[name])

    def count(self, name: str) -> int:
        """Tell how many times the option was given (``-FF``: 2)."""
        return len(self._given[name])

    def get(self, name: str) -> str | None:
        """Return the value of the option, the last one if it was repeated; None if it was not given."""
        values = self._given[name]
        return values[-1] if values else None

    def all(self, name: str) -> tuple[str, ...]:
        """Return the values of an option that may be repeated."""
        return self._given[name]

    def names(self) -> tuple[str, ...]:
        """Name the options that were given."""
        return tuple(name for name, values in self._given.items() if values)


def parse_words(
    command: str,
    words: Sequence[str],
    *,
    options: Sequence[Option],
    operands: Sequence[Operand],
    source: str = "",
) -> Arguments:
    """
    Sort the words of a command line.

    Raises
    ------
    UsageError
        For an option that the command does not have or refuses, a value that
        is missing, an operand too many or too few.
    """
    by_flag = {option.flag: option for option in options}
    given: dict[str, list[str]] = {}
    rest: list[str] = []
    pending = list(reversed(words))
    while pending:
        word = pending.pop()
        if word == "--":
            rest += reversed(pending)
            break
        if not _is_option(word, by_flag):
            rest.append(word)
            continue
        for option, value in _split_option(command, word, by_flag):
            _check_refused(command, option)
            if option.value and not option.attached and value is None:
                if not pending:
                    raise UsageError(f"{command} {option.flag}: needs a value: {option.value}", hint=f"help {command}")
                value = pending.pop()
            given.setdefault(option.name, []).append(value or "")
    _check_operands(command, rest, operands)
    return Arguments(options, given, rest, source)


def _is_option(word: str, by_flag: Mapping[str, Option]) -> bool:
    if len(word) < 2 or not word.startswith("-"):
        return False
    return word in by_flag or not _NEGATIVE.match(word)


def _split_option(command: str, word: str, by_flag: Mapping[str, Option]) -> list[tuple[Option, str | None]]:
    """Find the options in one word; a value is one that is attached to it."""
    if word in by_flag:
        return [(by_flag[word], None)]
    flag, equals, value = word.partition("=")
    if equals and flag in by_flag:
        if not by_flag[flag].value:
            raise UsageError(f"{command} {flag}: takes no value, found {value!r}", hint=f"help {command}")
        return [(by_flag[flag], value)]
    found: list[tuple[Option, str | None]] = []
    for position in range(1, len(word)):
        option = by_flag.get(f"-{word[position]}")
        if option is None or word.startswith("--"):
            raise UsageError(f"{command}: no option {word}", hint=_near(command, word, by_flag))
        if option.value and not option.attached and position + 1 < len(word):
            return [*found, (option, word[position + 1 :])]
        found.append((option, None))
    return found


def _near(command: str, word: str, by_flag: Mapping[str, Option]) -> str:
    near = difflib.get_close_matches(word, by_flag, n=3, cutoff=0.5) if word.startswith("--") else []
    known = ", ".join(near) if near else " ".join(by_flag)
    return f"did you mean {known}?" if near else f"{command} has {known or 'no options'}; help {command} explains"


def _check_refused(command: str, option: Option) -> None:
    if option.refused:
        raise UsageError(f"{command} {option.flag}: {option.refused}")


def _check_operands(command: str, words: Sequence[str], operands: Sequence[Operand]) -> None:
    needed = [operand for operand in operands if operand.required]
    if len(words) < len(needed):
        raise UsageError(f"{command}: {needed[len(words)].name} is missing", hint=f"help {command}")
    if len(words) > len(operands) and not (operands and operands[-1].many):
        raise UsageError(
            f"{command}: {words[len(operands)]!r} is one word too many, at most {len(operands)} are taken",
            hint=f"help {command}",
        )
