"""Which kernel the lines of a log are of, and where it lay: read from the lines themselves."""

from __future__ import annotations

import re

import msgspec

from postpanic.evidence.oops.fields import Facts, read_cpu_line
from postpanic.evidence.sources import Text

__all__ = ["LogContext", "find_context"]

_BANNER = re.compile(r"Linux version ([\w.+~-]{1,128}) \(")
_OFFSET = re.compile(r"Kernel Offset: (?:0x([0-9a-f]{1,16}) from 0x[0-9a-f]{8,16}|(disabled))")
_PC = re.compile(r"(?:^|[^\w])(RIP:|EIP:|PC is at|pc :|epc :|NIP \[|NIP:|era :|Krnl PSW :)")
_ARCHITECTURES = {
    "RIP": "x86_64",
    "EIP": "x86",
    "PC is at": "arm",
    "pc": "aarch64",
    "epc": "riscv64",
    "NIP [": "ppc64",
    "NIP": "ppc64",
    "era": "loongarch64",
    "Krnl PSW": "s390x",
}
_MARKS = (
    *("IP: ", "PC is at", "pc : ", "NIP", "era : ", "Krnl PSW"),
    *("Linux version ", "ainted", "Kernel Offset: "),
)
_LONGEST_LINE = 4096
_MOST_LINES = 10000


class LogContext(msgspec.Struct, frozen=True):
    """
    The kernel that wrote a line.

    Parameters
    ----------
    release, build_id : str
        Empty: not known.
    slide : int, optional
        How far its text was moved, bytes.
    architecture : str
        As registers show it.
    pc : str
        The line with the last program counter: what a ``Code:`` line behind it is of.
    """

    release: str = ""
    build_id: str = ""
    slide: int | None = None
    architecture: str = ""
    pc: str = ""

    def follow(self, line: str) -> LogContext:
        """
        Return what is known after one more line; another kernel's first line begins anew.

        >>> LogContext().follow("CPU: 0 PID: 1 Comm: x Not tainted 6.1.0-56 #1 Debian").release
        '6.1.0-56'
        """
        if not any(mark in line for mark in _MARKS):
            return self
        line = line[:_LONGEST_LINE]
        if (match := _PC.search(line)) is not None:
            return msgspec.structs.replace(self, architecture=_ARCHITECTURES[match[1].strip(" :")], pc=line)
        if (match := _BANNER.search(line)) is not None:
            return self if match[1] == self.release and not self.build_id else LogContext(match[1])
        if (match := _OFFSET.search(line)) is not None:
            return msgspec.structs.replace(self, slide=0 if match[2] else int(match[1], 16))
        facts: Facts = {}
        if not read_cpu_line(line, facts) or not (release := facts.get("release")):
            return self
        build_id = facts.get("build_id", "")
        if (release, build_id) == (self.release, self.build_id):
            return self
        is_same = release == self.release and not (build_id and self.build_id)
        return LogContext(release, build_id or (self.build_id if is_same else ""), self.slide if is_same else None)


def find_context(text: Text) -> LogContext:
    """Read the first kernel of a whole text: its release and build ID, and where it lay."""
    context = LogContext()
    position = count = 0
    for mark in (b"Linux version ", b"ainted", b"Kernel Offset: "):
        position = count = 0
        while (position := text.find(mark, position)) >= 0 and count < _MOST_LINES:
            start = text.rfind(b"\n", max(0, position - _LONGEST_LINE), position) + 1
            end = text.find(b"\n", position)
            line = bytes(
                text[start or max(0, position - _LONGEST_LINE) : end if end >= 0 else len(text)][:_LONGEST_LINE]
            )
            found = context.follow(line.decode("utf-8", "backslashreplace"))
            if context.release and found.release != context.release:
                break
            context = found
            position += len(mark)
            count += 1
            if context.build_id or (mark != b"ainted" and context != LogContext()):
                break
    return context
