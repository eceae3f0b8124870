"""
What a value that should have been a pointer is instead.

Sources: ``include/linux/poison.h`` (``LIST_POISON1``, ``POISON_INUSE``, ``POISON_FREE``, ``POISON_END``,
``SLUB_RED_*``, ``PAGE_POISON``), ``POISON_POINTER_DELTA`` (0xdead000000000000 on x86-64 and
arm64), ``include/linux/err.h`` (``MAX_ERRNO``), ``init_on_free`` and ``init_stack`` (0xfe, 0xaa).
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["BadKind", "BadValue", "classify", "spell_text"]

_WORD = (1 << 64) - 1
_PAGE = 4096
_LARGEST_ERRNO = 4095
_REACH = 0x1000
_LIST_POISON = {
    0xDEAD000000000100: "LIST_POISON1",
    0xDEAD000000000122: "LIST_POISON2",
    0xDEAD000000000200: "LIST_POISON2",
}
_DELTA = 0xDEAD << 48
_USER_BITS = {"x86_64": 47, "aarch64": 48}
"""Of addresses that a process gets unless it asks for more (``Documentation/arch/arm64/memory.rst``)."""
_PATTERNS = {
    0x6B: ("the pattern of freed slab objects (POISON_FREE, 0x6b)", "freed"),
    0xA5: ("the last byte of poisoned slab objects (POISON_END, 0xa5)", "freed"),
    0x5A: ("the pattern of slab objects that were never written (POISON_INUSE, 0x5a)", "unset"),
    0xBB: ("the red zone of a free slab object (SLUB_RED_INACTIVE, 0xbb)", "red zone"),
    0xCC: ("the red zone of a slab object in use (SLUB_RED_ACTIVE, 0xcc)", "red zone"),
    0xAA: ("the pattern of freed pages (PAGE_POISON, 0xaa)", "freed"),
    0xFE: ("the pattern of variables that were never set (0xfe)", "unset"),
}


class BadKind(StrEnum):
    """What it is."""

    NULL = "null"
    SMALL = "small number"
    ERROR = "error number"
    LIST_POISON = "list poison"
    FREED = "freed"
    UNSET = "unset"
    RED_ZONE = "red zone"
    TEXT = "text"
    NON_CANONICAL = "non-canonical"
    USER = "user"
    KERNEL = "kernel"
    """It may be an address of the kernel."""
    REPEATED = "repeated byte"


@dataclass(frozen=True, slots=True)
class BadValue:
    """
    A value, and what it looks like.

    Attributes
    ----------
    kind : BadKind
    text : str
        In words.
    """

    value: int
    kind: BadKind
    text: str

    @property
    def is_bad(self) -> bool:
        """Whether it can be no pointer of the kernel."""
        return self.kind is not BadKind.KERNEL


def spell_text(data: bytes) -> str:
    """
    Give the text that bytes are, empty where they are none.

    >>> spell_text(b"etc/pass")
    'etc/pass'
    """
    stripped = data.rstrip(b"\0")
    if len(stripped) < 4 or any(not 0x20 <= byte < 0x7F and byte not in b"\t\n" for byte in stripped):
        return ""
    if len(set(stripped)) == 1 and not chr(stripped[0]).isalnum():
        return ""
    return stripped.decode("ascii")


def classify(value: int, machine: str = "x86_64") -> BadValue:
    """
    Say what a value of 64 bits looks like.

    Parameters
    ----------
    machine : str
        It decides what can be an address of user space.

    >>> classify(0).kind.value, classify(_WORD - 11).text
    ('null', 'the error number -12 (-ENOMEM)')
    """
    value &= _WORD
    if value == 0:
        return BadValue(value, BadKind.NULL, "NULL")
    if value >= _WORD + 1 - _LARGEST_ERRNO:
        number = _WORD + 1 - value
        name = errno.errorcode.get(number, "")
        return BadValue(value, BadKind.ERROR, f"the error number -{number}{f' (-{name})' if name else ''}")
    if value < _PAGE:
        return BadValue(value, BadKind.SMALL, f"the number {value:#x}")
    for poison, name in _LIST_POISON.items():
        if value == poison:
            return BadValue(value, BadKind.LIST_POISON, f"{name}: the entry was deleted from its list before")
    if value >> 48 == _DELTA >> 48 and value & 0xFFFFFFFFFFFF < _REACH:
        return BadValue(value, BadKind.LIST_POISON, f"a poisoned pointer ({value:#x})")
    pattern = _pattern(value)
    if pattern is not None:
        return pattern
    text = spell_text(value.to_bytes(8, "little"))
    if text and value >> 63 == 0 and len(text) >= 5:
        return BadValue(value, BadKind.TEXT, f'the text "{text}"')
    top = value >> 47
    # Five levels of page tables have 57 bits: what sets the upper eight may be an address there.
    is_of_user = value >> _USER_BITS.get(machine, 47) == 0
    if not is_of_user and 0 < top < 0x1FFFF and value >> 56 != 0xFF:
        form = " (non-canonical)" if machine == "x86_64" else ""
        return BadValue(value, BadKind.NON_CANONICAL, f"{value:#x}, which can be no address{form}")
    if is_of_user:
        return BadValue(value, BadKind.USER, f"{value:#x}, an address of user space, not of the kernel")
    return BadValue(value, BadKind.KERNEL, f"{value:#x}")


def _pattern(value: int) -> BadValue | None:
    data = value.to_bytes(8, "little")
    for byte, (text, group) in _PATTERNS.items():
        # A member's offset may have been added to it.
        if data[2:] == bytes([byte]) * 6 or data == bytes([byte]) * 7 + b"\xa5":
            kind = {"freed": BadKind.FREED, "unset": BadKind.UNSET}.get(group, BadKind.RED_ZONE)
            return BadValue(value, kind, f"{value:#x}, {text}")
    if len(set(data)) == 1 and data[0] not in {0, 0xFF}:
        shown = f' ("{chr(data[0])}" as text)' if chr(data[0]).isalnum() else ""
        return BadValue(value, BadKind.REPEATED, f"{value:#x}, eight times the byte {data[0]:#x}{shown}")
    return None
