"""What all parsers of crash's text share: strict matching, and the blocks of commands that go over tasks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

__all__ = ["Header", "TaskBlock", "UnknownLineError", "grab", "parse_size", "read_header", "split_tasks", "table_rows"]

_HEADER = re.compile(r'PID: (-?\d+) +TASK: ([0-9a-f]{16}) +CPU: (\d+) +COMMAND: "(.*)"$')
_UNITS = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}


class UnknownLineError(AssertionError):
    """crash printed what the parser does not know."""

    def __init__(self, command: str, line: str) -> None:
        super().__init__(f"{command}: {line!r}")


class Header(NamedTuple):
    """The line above what is said of a task."""

    pid: int
    task: int
    cpu: int
    comm: str


class TaskBlock(NamedTuple):
    """A task, and the lines of a command about it."""

    header: Header
    lines: list[str]


def grab(command: str, pattern: str, line: str) -> re.Match[str]:
    """Match a whole line."""
    found = re.fullmatch(pattern, line)
    if found is None:
        raise UnknownLineError(command, line)
    return found


def read_header(line: str) -> Header | None:
    """Read a task's header; None: it is another line."""
    found = _HEADER.match(line)
    return Header(int(found[1]), int(found[2], 16), int(found[3]), found[4]) if found else None


def split_tasks(command: str, text: str) -> list[TaskBlock]:
    """Split what a command says of tasks; empty lines are left out."""
    blocks: list[TaskBlock] = []
    for line in text.splitlines():
        header = read_header(line)
        if header is not None:
            blocks.append(TaskBlock(header, []))
        elif line.strip():
            if not blocks:
                raise UnknownLineError(command, line)
            blocks[-1].lines.append(line)
    return blocks


def table_rows(command: str, lines: Iterable[str], heading: str) -> Iterator[str]:
    """Yield the lines below a heading whose words are *heading*'s; empty lines are left out."""
    rows = (line for line in lines if line.strip())
    first = next(rows, "")
    if first.split() != heading.split():
        raise UnknownLineError(command, first)
    yield from rows


def parse_size(text: str) -> int:
    """Turn ``144 KB`` into bytes; crash rounds to one decimal."""
    number, unit = text.split()
    return round(float(number) * _UNITS[unit])
