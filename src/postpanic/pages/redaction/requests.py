"""What the user asked to have erased, parsed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from postpanic.errors import UsageError
from postpanic.units import parse_size

__all__ = ["MemberRequest", "SymbolRequest", "name_nearest", "parse_member_request", "parse_symbol_request"]

_WORD = r"[A-Za-z_]\w*"
_MEMBER = re.compile(rf"(?:(?:struct|union)\s+)?({_WORD})\.({_WORD}(?:\.{_WORD})*)(?:@(\S+))?")
_SYMBOL = re.compile(rf"({_WORD}(?:\.\d+)*)((?:\.{_WORD})*)(->)?(?::(\w+))?")
_LONGEST = 512
_NEAREST = 3
_MOST_COMPARED = 4000


@dataclass(frozen=True, slots=True)
class MemberRequest:
    """``struct.member[@cache]``: a member in all objects of a type."""

    text: str
    struct: str
    member: str
    """``a.b`` for a member of a member."""
    cache: str = ""
    """Slab cache that was named; empty: the one that is known to hold such objects."""

    @property
    def expression(self) -> str:
        """Without the name of a cache."""
        return f"{self.struct}.{self.member}"


@dataclass(frozen=True, slots=True)
class SymbolRequest:
    """``symbol[.member][->][:SIZE]``: a global variable, or what it points at."""

    text: str
    symbol: str
    member: str = ""
    size_bytes: int = 0
    """0: as many as the variable has."""
    follows: bool = False
    """Whether what the variable points at is meant, not the pointer."""

    @property
    def expression(self) -> str:
        """Without the size."""
        name = f"{self.symbol}.{self.member}" if self.member else self.symbol
        return f"{name}->" if self.follows else name


def parse_member_request(text: str) -> MemberRequest:
    """
    Parse ``struct.member[@cache]``.

    Raises
    ------
    UsageError
        If it is none.
    """
    _refuse_pointers(text)
    found = _MEMBER.fullmatch(text.strip()) if len(text) <= _LONGEST else None
    if found is None:
        raise UsageError(
            f"{text[:80]!r} cannot be erased, it must be STRUCT.MEMBER or STRUCT.MEMBER@CACHE",
            hint="as in task_struct.comm or key.payload@key_jar; variables go with --erase-symbol",
        )
    return MemberRequest(text, found[1], found[2], found[3] or "")


def parse_symbol_request(text: str) -> SymbolRequest:
    """
    Parse ``symbol[.member][->][:SIZE]``.

    Raises
    ------
    UsageError
        If it is none.
    """
    found = _SYMBOL.fullmatch(text.strip()) if len(text) <= _LONGEST else None
    if found is None:
        raise UsageError(
            f"{text[:80]!r} cannot be erased, it must be SYMBOL[.MEMBER][->][:SIZE]",
            hint="as in init_task.comm, log_buf:4K, or saved_command_line-> for what a pointer leads to",
        )
    size = 0
    if found[4] is not None:
        try:
            size = parse_size(found[4])
        except ValueError as error:
            raise UsageError(f"the size in {text!r}: {error}") from None
        if size <= 0:
            raise UsageError(f"the size in {text!r} is {size}, must be at least 1")
    return SymbolRequest(text, found[1], found[2].lstrip("."), size, found[3] is not None)


def _refuse_pointers(text: str) -> None:
    """
    Refuse to follow pointers.

    One in a freed object leads to memory that is somebody else's by now.
    """
    if "->" in text or "*" in text:
        raise UsageError(
            f"{text[:80]!r}: pointers in objects are not followed",
            hint="name what they lead to: the type and its slab cache (STRUCT.MEMBER@CACHE), or a variable",
        )


def name_nearest(wanted: str, names: Iterable[str]) -> str:
    """Make a hint of the names that are most like one; empty where none is."""
    head = wanted[:1].lower()
    stems = [name for name in dict.fromkeys(names) if name[:1].lower() == head or wanted in name or name in wanted]
    stems.sort(key=lambda name: abs(len(name) - len(wanted)))
    near = get_close_matches(wanted, stems[:_MOST_COMPARED], n=_NEAREST, cutoff=0.6)
    return f"did you mean {', '.join(near)}?" if near else ""
