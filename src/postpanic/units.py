"""Addresses and sizes: the types that keep them apart, and their spelling."""

from __future__ import annotations

from typing import NewType

__all__ = ["GIB", "KIB", "MIB", "Pfn", "PhysAddr", "VirtAddr", "format_size", "parse_size"]

Pfn = NewType("Pfn", int)
"""A page frame number: physical address divided by the page size."""

PhysAddr = NewType("PhysAddr", int)
"""A physical address, in bytes."""

VirtAddr = NewType("VirtAddr", int)
"""A virtual address, in bytes, unsigned 64 bits."""

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

_SUFFIXES = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": 1 << 40, "P": 1 << 50, "E": 1 << 60}


def format_size(size_bytes: int) -> str:
    """
    Spell a size for people, in binary units.

    >>> format_size(846 * MIB)
    '846.0 MiB'
    >>> format_size(512)
    '512 bytes'
    """
    if size_bytes < KIB:
        return f"{size_bytes} bytes"
    value = float(size_bytes)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if value < 1024 or unit == "TiB":
            break
    return f"{value:.1f} {unit}"


def parse_size(text: str) -> int:
    """
    Read a size as the kernel does: a number, and K, M, G, T, P or E of 1024.

    Follows ``memparse()`` of the kernel's ``lib/cmdline.c``: decimal, ``0x``
    hexadecimal and leading-zero octal numbers.

    Raises
    ------
    ValueError
        If *text* is not such a size; the message says what is.

    >>> parse_size("256M")
    268435456
    """
    word = text.strip()
    suffix = word[-1:].upper() if word[-1:].upper() in _SUFFIXES else ""
    # The E of a hexadecimal number is a digit, as it is for the kernel.
    if word.lower().startswith("0x") and suffix == "E":
        suffix = ""
    digits = word[: len(word) - len(suffix)]
    base = 16 if digits.lower().startswith("0x") else 8 if digits[:1] == "0" and len(digits) > 1 else 10
    try:
        number = int(digits, base)
    except ValueError:
        raise ValueError(f"{text!r} is not a size: a number and K, M, G or T, as in 256M") from None
    if number < 0:
        raise ValueError(f"a size cannot be negative: {text!r}")
    return number * _SUFFIXES[suffix]
