"""crash's text about the system: ``mount``, ``swap``, ``net``."""

from __future__ import annotations

from typing import NamedTuple

from tests.compat.crash_text.lines import grab, table_rows

__all__ = ["Mount", "SwapArea", "parse_mount", "parse_swap"]


class Mount(NamedTuple):
    """A row of ``mount``."""

    mount: int
    super_block: int
    type: str
    device: str
    directory: str


def parse_mount(text: str) -> list[Mount]:
    found = []
    for line in table_rows("mount", text.splitlines(), "MOUNT SUPERBLK TYPE DEVNAME DIRNAME"):
        row = grab("mount", r"([0-9a-f]{16}) ([0-9a-f]{16}) (\S+) +(\S+) +(\S.*?) *", line)
        found.append(Mount(int(row[1], 16), int(row[2], 16), row[3], row[4], row[5]))
    return found


class SwapArea(NamedTuple):
    """A row of ``swap``; sizes in KiB."""

    info: int
    type: str
    size_kib: int
    used_kib: int
    percent: int
    priority: int
    path: str


def parse_swap(text: str) -> list[SwapArea]:
    found = []
    heading = "SWAP_INFO_STRUCT TYPE SIZE USED PCT PRI FILENAME"
    for line in table_rows("swap", text.splitlines(), heading):
        row = grab("swap", r"([0-9a-f]{16}) +(\w+) +(\d+)k +(\d+)k +(\d+)% +(-?\d+)  (.*?) *", line)
        size, used, percent, priority = (int(row[index]) for index in (3, 4, 5, 6))
        found.append(SwapArea(int(row[1], 16), row[2], size, used, percent, priority, row[7]))
    return found
