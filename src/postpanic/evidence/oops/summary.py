"""
Know the registers that x86 prints once more when an oops is over.

``oops_end()`` (arch/x86/kernel/dumpstack.c) ends with those of the boot's first
oops, for whom the oops itself has scrolled away. By then another CPU may have
begun to print its own: without printk callers these lines are in the midst of
a report that they are not of.
"""

from __future__ import annotations

from collections import Counter
from itertools import takewhile

__all__ = ["Summary"]

_REGISTERS = (
    "Code:",
    "RSP:",
    "RAX:",
    "RDX:",
    "RBP:",
    "R10:",
    "R13:",
    "FS:",
    "CS:",
    "CR2:",
    "PKRU:",
    "EAX:",
    "ESI:",
    "DS:",
)
_LINES_LIMIT = 24


class Summary:
    """
    The registers of a boot's first oops, and how often they are still to come.

    Examples
    --------
    >>> summary = Summary()
    >>> summary.expect(["RIP: 0010:first+0x5/0x20", "RSP: 0018:ffffc90000003f18 EFLAGS: 00000202", "Call Trace:"])
    >>> [summary.takes(line) for line in ("RIP: 0010:other+0x5/0x10", "RIP: 0010:first+0x5/0x20")]
    [False, True]
    >>> [summary.takes(" RSP: 0018:ffffc90000003f18 EFLAGS: 00000202") for _ in range(2)]
    [True, False]
    """

    __slots__ = ("_lines", "_pending", "_rest")

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._pending = 0
        self._rest: Counter[str] = Counter()

    def expect(self, lines: list[str]) -> None:
        """Take note that an oops of these lines is over."""
        if not self._lines:
            self._lines = _find_registers(lines)
        self._pending += 1

    def takes(self, text: str) -> bool:
        """
        Tell whether a line is of the summary, which it is once for each oops.

        Where two CPUs stumbled over the same instruction one of two equal lines is
        taken, the other is left: it does not matter which.
        """
        if not self._lines:
            return False
        text = text.strip()
        if self._pending and text == self._lines[0]:
            self._pending -= 1
            self._rest = Counter(self._lines[1:])
            return True
        if self._rest[text] <= 0:
            return False
        self._rest[text] -= 1
        return True


def _find_registers(lines: list[str]) -> list[str]:
    """Return the lines of the registers where an oops happened, those of the kernel's own mode."""
    texts = [line.strip() for line in lines]
    start = next((place for place, text in enumerate(texts) if text.startswith(("RIP: 0010:", "EIP: "))), len(texts))
    following = takewhile(lambda text: text.startswith(_REGISTERS), texts[start + 1 : start + _LINES_LIMIT])
    return [*texts[start : start + 1], *following]
