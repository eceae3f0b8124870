"""Taints of the kernel and of its modules, in letters and in words."""

from __future__ import annotations

from postpanic.findings.table import Cell, Column, Kind, Layout, Shape

__all__ = ["TAINTS", "decode_taints", "taint_letters"]

# Documentation/admin-guide/tainted-kernels.rst and kernel/panic.c: bit, letter, meaning.
_FLAGS = (
    ("P", "a proprietary module was loaded"),
    ("F", "a module was loaded by force"),
    ("S", "the kernel runs on a processor or system that is out of specification"),
    ("R", "a module was unloaded by force"),
    ("M", "a processor reported a machine check"),
    ("B", "a page was released that was bad or had unexpected flags"),
    ("U", "a user or a user's program asked for it"),
    ("D", "the kernel died before: an oops or a BUG"),
    ("A", "the ACPI table was overridden by a user"),
    ("W", "the kernel warned before"),
    ("C", "a driver of staging was loaded"),
    ("I", "the firmware has a bug that is worked around"),
    ("O", "a module from outside the kernel's tree was loaded"),
    ("E", "a module without a signature was loaded"),
    ("L", "a soft lockup occurred before"),
    ("K", "the kernel was patched live"),
    ("X", "auxiliary, for distributions"),
    ("T", "the kernel was built with randomized structures"),
    ("N", "a test of the kernel was run"),
    ("J", "user space changed a device by fwctl in a way that is for debugging"),
)

_MEANINGS = Shape(
    "meanings",
    (
        Column("bit", Kind.NUMBER, help="Number of the bit."),
        Column("letter", help="Its letter in logs."),
        Column("meaning", help="What it says."),
    ),
    Layout.LINES,
    "  {bit:>2} {letter}  {meaning}",
)
TAINTS = Shape(
    "taints",
    (
        Column("mask", Kind.HEX, help="tainted_mask."),
        Column("letters", help="A letter for each bit that is set."),
        Column("meanings", Kind.ROWS, help="What the bits say.", shape=_MEANINGS),
    ),
    Layout.LINES,
    "TAINTED_MASK: {mask}  {letters}",
)


def taint_letters(mask: int) -> str:
    """
    Give the letters of the bits that are set; ``?`` for a bit without a letter.

    >>> taint_letters(1 << 12 | 1 << 13)
    'OE'
    """
    bits = [bit for bit in range(64) if mask >> bit & 1]
    return "".join(_FLAGS[bit][0] if bit < len(_FLAGS) else "?" for bit in bits)


def decode_taints(mask: int) -> tuple[Cell, ...]:
    """Make the row of a mask of taints."""
    rows: list[tuple[Cell, ...]] = [
        (bit, *(_FLAGS[bit] if bit < len(_FLAGS) else ("?", "unknown"))) for bit in range(64) if mask >> bit & 1
    ]
    return (mask, taint_letters(mask), _MEANINGS.table(rows))
