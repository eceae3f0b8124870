"""
How many elements a global array has, where other kernels have told its element type.

The room up to the next symbol does not prove it: behind an object there is
padding, or data that no symbol names (string and compound literals). A length
of other kernels does not prove it either: tables grow. A length counts when
the room, the kernels and the contents agree; otherwise the array stays without
one, for a wrong length is worse.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection
from dataclasses import dataclass

__all__ = ["ArrayOffer", "ElementKind", "decide_length"]

_PAGE_BYTES = 4096
_SLACK_BYTES = 64
"""The compiler aligns objects to at most 64 bytes (a cache line) unless told otherwise."""
_MAX_CONTENTS_BYTES = 1 << 16
_ENOUGH_WITNESSES = 3
"""So many kernel series with one length are believed without a look at the contents."""


class ElementKind(enum.Enum):
    """What the contents of an array can say about its end."""

    CHARACTER = "character"
    """Initialised by a string literal, it ends behind the terminator."""
    POINTER = "pointer"
    """Often ended by one NULL."""
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class ArrayOffer:
    """
    What other kernels say of an array.

    ``lengths`` are those that kernels have for the same element type;
    ``witnesses`` counts the kernel series that have the variable.
    """

    element_bytes: int
    kind: ElementKind
    lengths: Collection[int]
    witnesses: int


def decide_length(offer: ArrayOffer, vaddr: int, room: int, read: Callable[[int, int], bytes | None]) -> int:
    """
    Decide the length of an array, 0 where it is not sure.

    Parameters
    ----------
    vaddr, room : int
        Where the array is, and how many bytes there are up to the next symbol.
    read : callable
        Gives the bytes at an address, or None where they cannot be had.
    """
    end = vaddr + room
    alignment = end & -end
    slack = alignment if alignment >= _PAGE_BYTES else min(alignment, _SLACK_BYTES)
    longest = room // offer.element_bytes
    shortest = max((room - slack) // offer.element_bytes + 1, 1)
    possible = [length for length in offer.lengths if shortest <= length <= longest]
    if len(possible) == 1 and shortest == longest:
        return possible[0]
    contents = read(vaddr, room) if room <= _MAX_CONTENTS_BYTES else None
    literal = _literal_length(contents) if offer.kind is ElementKind.CHARACTER and contents is not None else 0
    if len(offer.lengths) > 1:
        # Text that changes from kernel to kernel: a string literal, not a buffer.
        return literal if shortest <= literal <= longest else 0
    (length,) = offer.lengths
    if possible:
        return length if literal == length or _is_confirmed(offer, length, contents) else 0
    # The room is that of no array at all: there is something else behind this one.
    is_followed = 0 < length < longest and shortest > longest
    return length if is_followed and offer.witnesses >= _ENOUGH_WITNESSES else 0


def _is_confirmed(offer: ArrayOffer, length: int, contents: bytes | None) -> bool:
    """Whether a length that all kernels have, among several that the room allows, holds in this one."""
    if offer.witnesses >= _ENOUGH_WITNESSES:
        return True
    several = offer.witnesses > 1
    if contents is None:
        return several
    end = length * offer.element_bytes
    if any(contents[end:]):
        return False
    last_is_zero = not any(contents[end - offer.element_bytes : end])
    next_fits = len(contents) - end >= offer.element_bytes
    if offer.kind is ElementKind.POINTER:
        # One NULL ends a list: a second one is padding, and behind none the padding may be one.
        before = contents[max(end - 2 * offer.element_bytes, 0) : end - offer.element_bytes]
        doubtful = (last_is_zero and not any(before)) or (not last_is_zero and next_fits)
        return not doubtful or (several and not any(contents))
    return several or not (last_is_zero or next_fits)


def _literal_length(contents: bytes) -> int:
    """Length of the array that one string literal initialises, 0 if the contents are no such thing."""
    text = contents.rstrip(b"\0")
    return len(text) + 1 if text and b"\0" not in text and len(text) < len(contents) else 0
