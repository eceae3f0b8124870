"""Other names for command lines: crash's own, and those that the user makes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["BUILT_IN", "Alias", "Aliases"]

BUILT_IN = {
    "man": "help",
    "?": "help",
    "quit": "q",
    "sf": "set scroll off",
    "sn": "set scroll on",
    "hex": "set radix 16",
    "dec": "set radix 10",
    "g": "gdb",
    "px": "p -x",
    "pd": "p -d",
    "for": "foreach",
    "size": "*",
    "dmesg": "log",
    "lsmod": "mod",
    "last": "ps -l",
}
"""The aliases that crash has, in its order."""

_DEPTH_LIMIT = 8
_FIRST_WORD = re.compile(r"\s*([^\s|<>]+)")


@dataclass(frozen=True, slots=True)
class Alias:
    """One alias."""

    name: str
    text: str
    origin: str
    """``builtin`` or ``runtime``."""


class Aliases:
    """
    The aliases of one session.

    >>> Aliases().expand("px jiffies")
    'p -x jiffies'
    """

    def __init__(self) -> None:
        self._aliases = {name: Alias(name, text, "builtin") for name, text in BUILT_IN.items()}

    def __iter__(self) -> Iterator[Alias]:
        return iter(self._aliases.values())

    def __contains__(self, name: object) -> bool:
        return name in self._aliases

    def find(self, name: str) -> Alias | None:
        """Return the alias of a name, if there is one."""
        return self._aliases.get(name)

    def define(self, name: str, text: str) -> Alias:
        """Make an alias; one of the same name is replaced."""
        self._aliases[name] = Alias(name, text, "runtime")
        return self._aliases[name]

    def remove(self, name: str) -> bool:
        """Remove an alias; tell whether there was one."""
        return self._aliases.pop(name, None) is not None

    def expand(self, line: str) -> str:
        """Replace an alias at the beginning of a line by what it stands for, and an alias in that, but none twice."""
        used: set[str] = set()
        while len(used) < _DEPTH_LIMIT:
            match = _FIRST_WORD.match(line)
            alias = self._aliases.get(match[1]) if match else None
            if match is None or alias is None or alias.name in used:
                break
            used.add(alias.name)
            line = alias.text + line[match.end() :]
        return line
