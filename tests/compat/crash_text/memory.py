"""crash's text about memory: ``kmem``, ``vtop``, ``rd``."""

from __future__ import annotations

import re
from typing import NamedTuple

from tests.compat.crash_text.lines import UnknownLineError, grab, parse_size, table_rows

__all__ = [
    "PageRow",
    "SlabCache",
    "Translation",
    "Usage",
    "VmapArea",
    "parse_counters",
    "parse_kmem_i",
    "parse_kmem_s",
    "parse_kmem_v",
    "parse_page_flags",
    "parse_per_cpu_offsets",
    "parse_slab_objects",
    "parse_vtop",
    "parse_words",
]

_SLABS = "CACHE OBJSIZE ALLOCATED TOTAL SLABS SSIZE NAME"


class Usage(NamedTuple):
    """A row of ``kmem -i``: pages, bytes as rounded by crash, percentage and of what."""

    pages: int
    size_bytes: int
    percent: int | None
    of: str


def parse_kmem_i(text: str) -> dict[str, Usage]:
    found = {}
    for line in table_rows("kmem -i", text.splitlines(), "PAGES TOTAL PERCENTAGE"):
        row = grab("kmem -i", r" *([A-Z ]+?) +(\d+) +([\d.]+ [KMGT]B|0) +(?:(\d+)% of (.*?)|----) *", line)
        size = 0 if row[3] == "0" else parse_size(row[3])
        found[row[1]] = Usage(int(row[2]), size, int(row[4]) if row[4] else None, row[5] or "")
    return found


class SlabCache(NamedTuple):
    """A row of ``kmem -s``."""

    cache: int
    object_size: int
    allocated: int
    total: int
    slabs: int
    slab_kib: int
    name: str


def parse_kmem_s(text: str) -> list[SlabCache]:
    found = []
    for line in table_rows("kmem -s", text.splitlines(), _SLABS):
        row = grab("kmem -s", r"([0-9a-f]{16}) +(\d+) +(\d+) +(\d+) +(\d+) +(\d+)k  (.*)", line)
        size, allocated, total, slabs, slab_kib = (int(row[index]) for index in range(2, 7))
        found.append(SlabCache(int(row[1], 16), size, allocated, total, slabs, slab_kib, row[7]))
    return found


def parse_slab_objects(text: str) -> tuple[SlabCache, dict[int, bool]]:
    """Read ``kmem -S NAME``: the cache, and whether each of its objects is allocated."""
    lines = text.splitlines()
    cache = parse_kmem_s("\n".join(lines[:2]))[0]
    objects: dict[int, bool] = {}
    known = (
        r"CPU \d+ (?:KMEM_CACHE_CPU|SLAB|PARTIAL):.*",
        r"  [0-9a-f]{16}",
        r"  SLAB +MEMORY +NODE +TOTAL +ALLOCATED +FREE",
        r"  [0-9a-f]{16}  [0-9a-f]{16} +\d+ +\d+ +\d+ +\d+",
        r"  FREE / \[ALLOCATED\]",
        r"KMEM_CACHE_NODE   NODE  SLABS  PARTIAL  PER-CPU",
        r"[0-9a-f]{16} +\d+ +\d+ +\d+ +\d+",
        r"NODE \d+ (?:PARTIAL|FULL):.*",
        r"  \(.*\)",
    )
    for line in lines[2:]:
        if row := re.fullmatch(r"  \[([0-9a-f]{16})\]", line):
            objects[int(row[1], 16)] = True
        elif row := re.fullmatch(r"   ([0-9a-f]{16})  (?:\(cpu \d+ cache\))?", line):
            objects[int(row[1], 16)] = False
        elif line.strip() and not any(re.fullmatch(pattern, line) for pattern in known):
            raise UnknownLineError("kmem -S", line)
    return cache, objects


class VmapArea(NamedTuple):
    """A row of ``kmem -v``."""

    vmap_area: int
    vm_struct: int
    start: int
    end: int
    size_bytes: int


def parse_kmem_v(text: str) -> list[VmapArea]:
    found = []
    for line in table_rows("kmem -v", text.splitlines(), "VMAP_AREA VM_STRUCT ADDRESS RANGE SIZE"):
        row = grab("kmem -v", r"([0-9a-f]{16})  ([0-9a-f]{16})  ([0-9a-f]{16}) - ([0-9a-f]{16}) +(\d+)", line)
        area, struct, start, end = (int(row[index], 16) for index in (1, 2, 3, 4))
        found.append(VmapArea(area, struct, start, end, int(row[5])))
    return found


def parse_counters(text: str) -> dict[str, dict[str, int]]:
    """Read ``kmem -V``: sections of named counters."""
    found: dict[str, dict[str, int]] = {}
    for line in text.splitlines():
        if row := re.fullmatch(r" +(\w+(?: \(CPU \d+\))?):", line):
            section = found.setdefault(row[1], {})
        elif line.strip():
            row = grab("kmem -V", r" *(\S+): (-?\d+)", line)
            section[row[1]] = int(row[2])
    return found


def parse_page_flags(text: str) -> dict[str, int]:
    """Read ``kmem -g``: bit numbers by name."""
    rows = [grab("kmem -g", r"(PG_\w+) +(\d+) +([0-9a-f]+)", line) for line in text.splitlines()[1:]]
    assert all(1 << int(row[2]) == int(row[3], 16) for row in rows)
    return {row[1]: int(row[2]) for row in rows}


def parse_per_cpu_offsets(text: str) -> dict[int, int]:
    """Read ``kmem -o``."""
    rows = [grab("kmem -o", r"  CPU (\d+): ([0-9a-f]+)", line) for line in text.splitlines()[1:]]
    return {int(row[1]): int(row[2], 16) for row in rows}


class PageRow(NamedTuple):
    """A page as ``vtop`` and ``kmem -p`` show it."""

    page: int
    paddr: int
    mapping: int
    page_index: int
    references: int
    flags: int
    names: tuple[str, ...]


class Translation(NamedTuple):
    """
    What ``vtop`` says of an address.

    Attributes
    ----------
    levels : list of (str, int, int)
        Name, physical address of the entry, entry.
    """

    vaddr: int
    paddr: int | None
    levels: list[tuple[str, int, int]]
    page_paddr: int | None
    page_size: str
    flags: tuple[str, ...]
    vma: int | None
    page: PageRow | None


_IGNORED = ("PGD DIRECTORY:", "PAGE DIRECTORY:", "VMA START END FLAGS FILE", "PAGE PHYSICAL MAPPING INDEX CNT FLAGS")


def parse_vtop(text: str) -> Translation:
    lines = [line for line in text.splitlines() if line.strip()]
    heads = table_rows("vtop", lines[:2], "VIRTUAL PHYSICAL")
    head = grab("vtop", r"([0-9a-f]+) +(?:([0-9a-f]+)|\(.*\)) *", next(heads))
    found = Translation(int(head[1], 16), int(head[2], 16) if head[2] else None, [], None, "", (), None, None)
    for line in lines[2:]:
        found = _add_vtop_line(found, line)
    return found


def _add_vtop_line(found: Translation, line: str) -> Translation:
    words = " ".join(line.split())
    if row := re.fullmatch(r" +([A-Z0-9]{3}): ([0-9a-f]+) => ([0-9a-f]+)", line):
        found.levels.append((row[1], int(row[2], 16), int(row[3], 16)))
    elif row := re.fullmatch(r"PAGE: ([0-9a-f]+)(?: \((\w+)\))?", words):
        return found._replace(page_paddr=int(row[1], 16), page_size=row[2] or "")
    elif row := re.fullmatch(r"([0-9a-f]+) ([0-9a-f]+) \(([A-Z|_0-9]+)\)", words):
        return found._replace(flags=tuple(row[3].split("|")))
    elif row := re.fullmatch(r"([0-9a-f]{16}) ([0-9a-f]+) ([0-9a-f]+) ([0-9a-f]+)(?: (/.*))?", words):
        return found._replace(vma=int(row[1], 16))
    elif row := re.fullmatch(
        r"([0-9a-f]{16}) ([0-9a-f]+) ([0-9a-f]+) (\d+|[0-9a-f]+) (-?\d+) ([0-9a-f]+) ?(\S*)", words
    ):
        page, paddr, mapping, index = (int(row[position], 16) for position in (1, 2, 3, 4))
        names = tuple(name for name in row[7].split(",") if name)
        return found._replace(page=PageRow(page, paddr, mapping, index, int(row[5]), int(row[6], 16), names))
    elif not words.startswith(_IGNORED[:2]) and words not in (*_IGNORED[2:], "PTE PHYSICAL FLAGS"):
        raise UnknownLineError("vtop", line)
    return found


def parse_words(text: str) -> list[tuple[int, list[str]]]:
    """Read ``rd``: the address and the words of each line, as crash spells them."""
    found = []
    for line in text.splitlines():
        row = grab("rd", r"([0-9a-f]{16}):  ((?: *\S+)+?)(?:   +\S.*|  | *)", line)
        found.append((int(row[1], 16), row[2].split()))
    return found
