"""Turn what goes wrong while a dump is read into missing cells and problems, so that it never ends a command."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from drgn import FaultError, Object, ObjectNotFoundError

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.crash_commands import describe_error
from postpanic.errors import PageAbsentError, TranslationError
from postpanic.findings.absent import Absent, Reason
from postpanic.findings.table import Cell, Problem

__all__ = ["LIMIT", "absent", "cell", "decode", "guarded", "problem"]

LIMIT = 10_000_000
"""No list of a kernel is longer; a walk that goes on is lost."""

T = TypeVar("T")


def absent(error: Exception) -> Absent:
    """Say why something could not be read: the reason by the exception's class, its one line as the detail."""
    return Absent(_reason(error), describe_error(error))


def problem(what: str, error: Exception) -> Problem:
    """Make a problem of an exception: *what* was being read, and why it ended."""
    return Problem(f"{what}: {describe_error(error)}", _reason(error))


def _reason(error: Exception) -> Reason:
    if isinstance(error, (FaultError, PageAbsentError)):
        text = str(error)
        return Reason.EXCLUDED if "exclud" in text or "left out" in text else Reason.UNREADABLE
    if isinstance(error, TranslationError):
        return Reason.UNREADABLE
    if isinstance(error, ObjectNotFoundError):
        return Reason.NOT_PRESENT
    if isinstance(error, (AttributeError, TypeError, LookupError)):
        return Reason.NO_TYPE
    return Reason.DAMAGED


def cell(compute: Callable[[], Cell]) -> Cell:
    """Compute a cell; what cannot be read becomes :class:`Absent`."""
    try:
        return compute()
    except UNREADABLE as exc:
        return absent(exc)


def decode(text: bytes) -> str:
    """Decode bytes of the kernel; what is not UTF-8 or not printable becomes an escape."""
    decoded = text.decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in decoded)


def guarded(
    items: Iterable[T],
    what: str,
    problems: list[Problem],
    *,
    key: Callable[[T], int] | None = None,
    limit: int = LIMIT,
) -> Iterator[T]:
    """
    Walk a structure of the kernel that may be damaged.

    The walk ends where memory cannot be read, where an element comes a second
    time, and after *limit* elements; a problem says so.

    Parameters
    ----------
    items : iterable
        Usually a helper of drgn (``list_for_each_entry``); reading may fail in it.
    what : str
        Names the walk in the problem: ``list of modules``.
    problems : list of Problem
        Gets at most one more.
    key : callable, optional
        Identity of an element; its address, where it is a drgn object.
    """
    seen: set[int] = set()
    iterator = iter(items)
    count = 0
    while True:
        try:
            item = next(iterator)
            identity = key(item) if key is not None else _address(item)
        except StopIteration:
            return
        except UNREADABLE as exc:
            problems.append(problem(f"{what} stops after {count}", exc))
            return
        if identity in seen:
            problems.append(
                Problem(f"{what} stops after {count}: it comes back to {identity:#x}, a loop", Reason.DAMAGED)
            )
            return
        if count >= limit:
            problems.append(Problem(f"{what} stops after {count}: no kernel has more", Reason.DAMAGED))
            return
        seen.add(identity)
        count += 1
        yield item


def _address(item: object) -> int:
    if not isinstance(item, Object):
        raise TypeError("only drgn objects have an address")
    address = item.value_() if item.address_ is None or _is_pointer(item) else item.address_
    return int(address)


def _is_pointer(item: Object) -> bool:
    from drgn import TypeKind

    type_ = item.type_
    while type_.kind is TypeKind.TYPEDEF:
        type_ = type_.type
    return type_.kind is TypeKind.POINTER
