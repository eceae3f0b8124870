"""crash's text about symbols, types and code: ``sym``, ``mod``, ``struct -o``, ``dis``, ``log``."""

from __future__ import annotations

import re
from typing import NamedTuple

from tests.compat.crash_text.lines import UnknownLineError, grab, table_rows

__all__ = [
    "Instruction",
    "KernelModule",
    "Member",
    "Symbol",
    "parse_dis",
    "parse_log",
    "parse_mod",
    "parse_offsets",
    "parse_sym",
]


_MODULES = "MODULE NAME BASE SIZE OBJECT FILE"


class KernelModule(NamedTuple):
    """A row of ``mod``; the base is the text's where the kernel keeps text and data apart."""

    module: int
    name: str
    base: int
    size_bytes: int


def parse_mod(text: str) -> list[KernelModule]:
    found = []
    # Since 6.4 a module's text has a place of its own, and crash says so.
    for line in table_rows("mod", text.replace("TEXT_BASE", "BASE", 1).splitlines(), _MODULES):
        row = grab(
            "mod", r"([0-9a-f]{16})  (\w+) +([0-9a-f]{16}) +(\d+)  (?:\(not loaded\)  \[CONFIG_KALLSYMS\])", line
        )
        found.append(KernelModule(int(row[1], 16), row[2], int(row[3], 16), int(row[4])))
    return found


class Symbol(NamedTuple):
    """A symbol of ``sym -l``; ``module`` is empty for the kernel's own."""

    vaddr: int
    kind: str
    name: str
    module: str


def parse_sym(text: str) -> list[Symbol]:
    """Read ``sym -l``, ``sym -q`` and ``sym NAME``; where a module begins and ends crash writes between them."""
    found = []
    module = ""
    for line in text.splitlines():
        if row := re.fullmatch(r"[0-9a-f]+ (?:MODULE|MODULE TEXT|MODULE \w+(?: \w+)*) START: (\w+)", line):
            module = row[1]
        elif re.fullmatch(r"[0-9a-f]+ (?:MODULE|MODULE TEXT|MODULE \w+(?: \w+)*) END: (\w+)", line):
            module = ""
        else:
            row = grab("sym", r"([0-9a-f]+) \((.)\) (\S+)(?:\+\d+)?(?: \[(\w+)\])?(?: \S+: \d+)?", line)
            found.append(Symbol(int(row[1], 16), row[2], row[3], row[4] or module))
    return found


class Member(NamedTuple):
    """A member of ``struct -o``: its byte offset (None: crash gives none), depth of nesting, and declaration."""

    offset: int | None
    depth: int
    declaration: str


def parse_offsets(text: str) -> tuple[int, list[Member]]:
    """Read ``struct -o TYPE``: the size in bytes, and the members in order."""
    lines = text.splitlines()
    grab("struct -o", r"(?:struct|union) \w+ \{", lines[0])
    members: list[Member] = []
    depth = 1
    for line in lines[1:]:
        if size := re.fullmatch(r"SIZE: (\d+)", line):
            assert depth == 0, line
            return int(size[1]), members
        row = grab("struct -o", r" *(?:\[(\d+)\])? *(\S.*)", line)
        if row[2].startswith("}"):
            depth -= 1
        members.append(Member(int(row[1]) if row[1] else None, depth, row[2]))
        if row[2].endswith("{"):
            depth += 1
    raise UnknownLineError("struct -o", text[-80:])


class Instruction(NamedTuple):
    """A line of ``dis``: the place as crash spells it, the mnemonic and the operands."""

    vaddr: int
    place: str
    mnemonic: str
    operands: str


def parse_dis(text: str) -> list[Instruction]:
    found = []
    for line in text.splitlines():
        row = grab("dis", r"0x([0-9a-f]+) <(\S+?)>:\t(\S+(?: (?=\w+\s))?)\s*(.*?)", line)
        found.append(Instruction(int(row[1], 16), row[2], row[3].strip(), row[4]))
    return found


class Message(NamedTuple):
    """A line of ``log``: its time in microseconds (None without), level (None without) and text."""

    time_us: int | None
    level: int | None
    text: str


def parse_log(text: str) -> list[Message]:
    """Read ``log`` and ``log -m``; a message of several lines is several."""
    found = []
    for line in text.splitlines():
        row = re.fullmatch(r"\[ *(\d+)\.(\d{6})\] (?:<(\d+)>)?(.*)", line)
        if row is None:
            # A further line of a message is indented to its text.
            found.append(Message(None, None, line.strip()))
        else:
            level = int(row[3]) if row[3] else None
            found.append(Message(int(row[1]) * 1_000_000 + int(row[2]), level, row[4]))
    return found
