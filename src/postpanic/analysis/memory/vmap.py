"""
The areas of vmalloc.

Since 6.9 (d093602919ad, "mm: vmalloc: remove global vmap_area_root rb-tree") they are
in the lists of several nodes: one that is damaged costs no other.
"""

from __future__ import annotations

from collections.abc import Iterator

from drgn import Object, Program
from drgn.helpers.linux.list import list_for_each_entry
from drgn.helpers.linux.mm import for_each_vmap_area

from postpanic.analysis.cells import guarded
from postpanic.analysis.context import UNREADABLE
from postpanic.findings.table import Problem

__all__ = ["read_vmap_areas"]

_NODES_LIMIT = 1024


def read_vmap_areas(prog: Program, problems: list[Problem]) -> Iterator[Object]:
    """Read all areas (``struct vmap_area *``), those of vm_map_ram() included, in no order that is worth anything."""
    try:
        nodes, count = prog["vmap_nodes"].read_(), int(prog["nr_vmap_nodes"].value_())
    except UNREADABLE:
        yield from guarded(for_each_vmap_area(prog), "the list of vmalloc areas", problems)
        return
    for number in range(min(count, _NODES_LIMIT)):
        head = nodes[number].busy.head.address_of_()
        areas = list_for_each_entry("struct vmap_area", head, "list")
        yield from guarded(areas, f"vmalloc areas of node {number}", problems)
