"""
Memory nodes and zones, and the free blocks of the buddy allocator.

Sources: ``include/linux/mmzone.h``, ``mm/page_alloc.c``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import drgn
from drgn import Object, Program
from drgn.helpers.linux.mmzone import for_each_online_pgdat

from postpanic.analysis.cells import decode, guarded, problem
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.memory.page_structs import PageStructs, member_offset, page_structs
from postpanic.analysis.workspace import Workspace
from postpanic.findings.table import Problem

__all__ = [
    "FreeArea",
    "Zone",
    "counter_names",
    "enum_names",
    "find_node",
    "read_free_areas",
    "read_nodes",
    "read_zones",
]

_MAX_ZONES = 16
_FREE_LIMIT = 1 << 28


@dataclass(frozen=True)
class Zone:
    """One ``struct zone``."""

    node: int
    index: int
    name: str
    zone: Object
    """``struct zone *``."""
    start_pfn: int
    spanned_pages: int
    present_pages: int

    @property
    def vaddr(self) -> int:
        """Its address."""
        return int(self.zone.value_())

    @property
    def is_populated(self) -> bool:
        """Whether it has memory."""
        return self.present_pages > 0


@dataclass(frozen=True)
class FreeArea:
    """The free blocks of one order and one migrate type in a zone."""

    order: int
    migrate_type: int
    vaddr: int
    """Of the ``struct list_head``."""
    pages: tuple[int, ...]
    """Address of the first ``struct page`` of each block."""


def enum_names(prog: Program, name: str) -> list[tuple[str, int]]:
    """Give the enumerators of an enumeration, in order; none if it is not known."""
    try:
        enumerators = prog.type(name).enumerators or ()
    except LookupError:
        return []
    return [(item.name, int(item.value)) for item in enumerators]


def counter_names(prog: Program, name: str) -> list[tuple[str, int]]:
    """Give the counters of an enumeration: without its end, and without names that only mark where others begin."""
    marks = ("NR_VM_", "NR_LRU_BASE", "NR_ZONE_LRU_BASE")
    return [pair for pair in enum_names(prog, name) if not pair[0].startswith(marks)]


def read_nodes(prog: Program, problems: list[Problem]) -> list[Object]:
    """Read the online memory nodes: ``pg_data_t *``."""
    return list(guarded(for_each_online_pgdat(prog), "memory nodes", problems))


def read_zones(node: Object, problems: list[Problem]) -> list[Zone]:
    """Read the zones of a node, those without memory included."""
    zones = []
    try:
        number = int(node.node_id.value_())
        count = min(len(node.node_zones), _MAX_ZONES)
    except UNREADABLE as exc:
        problems.append(problem("a memory node", exc))
        return []
    for index in range(count):
        zone = node.node_zones[index].address_of_()
        try:
            zones.append(
                Zone(
                    number,
                    index,
                    decode(zone.name.string_()),
                    zone,
                    int(zone.zone_start_pfn.value_()),
                    int(zone.spanned_pages.value_()),
                    int(zone.present_pages.value_()),
                )
            )
        except UNREADABLE as exc:
            problems.append(problem(f"zone {index} of node {number}", exc))
    return zones


def find_node(workspace: Workspace, pfn: int) -> int:
    """Find the memory node of a page frame; 0 where no node claims it."""

    def make() -> list[tuple[int, int, int]]:
        spans = []
        for node in read_nodes(workspace.prog, []):
            try:
                start = int(node.node_start_pfn.value_())
                spans.append((start, start + int(node.node_spanned_pages.value_()), int(node.node_id.value_())))
            except UNREADABLE:
                continue
        return spans

    # Nodes may lie within each other: the smallest one that has the frame.
    spans = workspace.once("spans of memory nodes", make)
    found = sorted((end - start, number) for start, end, number in spans if start <= pfn < end)
    return found[0][1] if found else 0


def read_free_areas(workspace: Workspace, zone: Zone, problems: list[Problem]) -> Iterator[FreeArea]:
    """Read the lists of free blocks of a zone, by order and migrate type."""
    prog, memory = workspace.prog, workspace.memory
    structs = page_structs(workspace)
    link = _link_offset(structs)
    base = int(zone.zone.free_area.address_)
    area_type = prog.type("struct free_area")
    area_size = drgn.sizeof(area_type)
    types = len(zone.zone.free_area[0].free_list)
    list_size = drgn.sizeof(prog.type("struct list_head"))
    lists = member_offset(area_type, "free_list") or 0
    for order in range(len(zone.zone.free_area)):
        for kind in range(types):
            head = base + order * area_size + lists + kind * list_size
            what = f"free blocks of order {order}, type {kind} in zone {zone.name} of node {zone.node}"
            entries = guarded(_follow(memory.read_u64, head), what, problems, key=int, limit=_FREE_LIMIT)
            yield FreeArea(order, kind, head, tuple(entry - link for entry in entries))


def _follow(read: Callable[[int], int], head: int) -> Iterator[int]:
    at = read(head)
    while at != head:
        yield at
        at = read(at)


def _link_offset(structs: PageStructs) -> int:
    """Find what links free pages: ``buddy_list`` since 5.19 (bf75f200569d), else ``lru``."""
    offset = member_offset(structs.type, "buddy_list", "lru")
    return 0 if offset is None else offset
