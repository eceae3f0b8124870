"""``kmem -v``: what is mapped by vmalloc."""

from __future__ import annotations

from drgn import Object
from drgn.helpers.linux.mm import find_vmap_area

from postpanic.analysis.cells import cell, problem
from postpanic.analysis.commands.arguments import Arguments
from postpanic.analysis.commands.values import parse_vaddr
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.memory.spaces import is_kernel_vaddr
from postpanic.analysis.memory.vmap import read_vmap_areas
from postpanic.analysis.workspace import Workspace
from postpanic.errors import FactAbsentError, PostpanicError
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape
from postpanic.units import VirtAddr

__all__ = ["AREAS", "area_row", "show_areas"]

AREAS = Shape(
    "vmap_areas",
    (
        Column("area", Kind.ADDRESS, title="VMAP_AREA", help="``struct vmap_area *``."),
        Column("vm", Kind.ADDRESS, title="VM_STRUCT", help="``struct vm_struct *``."),
        Column("start", Kind.ADDRESS, title="START", help="First byte."),
        Column("end", Kind.ADDRESS, title="END", help="Behind the last byte."),
        Column("size", Kind.NUMBER, title="SIZE", help="Bytes, the guard page included."),
        Column("caller", title="CALLER", help="Who allocated it (``vm_struct.caller``)."),
    ),
    Layout.LINES,
    "{area}  {vm}  {start} - {end} {size:>8}",
    title="   VMAP_AREA         VM_STRUCT                 ADDRESS RANGE                SIZE",
)


def area_row(area: Object) -> tuple[Cell, ...]:
    """Make the row of one ``struct vmap_area *``."""
    start, end = int(area.va_start.value_()), int(area.va_end.value_())
    return (
        int(area.value_()),
        cell(lambda: int(area.vm.value_())),
        start,
        end,
        end - start,
        cell(lambda: _caller(area)),
    )


def _caller(area: Object) -> str | None:
    if not area.vm:
        return None
    caller = int(area.vm.caller.value_())
    if not caller:
        return None
    try:
        return str(area.prog_.symbol(caller).name)
    except LookupError:
        return f"{caller:#x}"


def show_areas(workspace: Workspace, arguments: Arguments) -> Answer:
    """Answer ``kmem -v``."""
    problems: list[Problem] = []
    rows: list[tuple[Cell, ...]] = []
    for area in read_vmap_areas(workspace.prog, problems):
        try:
            # An area without vm_struct is one of vm_map_ram(), which crash leaves out, too.
            rows += [area_row(area)] if area.vm else []
        except UNREADABLE as exc:
            problems.append(problem(f"the vmalloc area at {int(area.value_()):#x}", exc))
    rows.sort(key=lambda row: row[2] if isinstance(row[2], int) else 0)
    if not arguments.operands:
        return Answer("kmem", (AREAS.table(rows),), tuple(problems))
    chosen = []
    for word in arguments.operands:
        vaddr = parse_vaddr(workspace, word)
        found = _find(workspace, rows, vaddr, is_virtual=is_kernel_vaddr(vaddr) and not arguments.has("physical"))
        if not found:
            raise FactAbsentError(f"{word} is in no area of vmalloc")
        chosen += found
    return Answer("kmem", (AREAS.table(chosen),), tuple(problems))


def _find(
    workspace: Workspace, rows: list[tuple[Cell, ...]], vaddr: int, *, is_virtual: bool
) -> list[tuple[Cell, ...]]:
    """Find the area of a virtual address, or the one that maps a physical page."""
    if is_virtual:
        area = find_vmap_area(workspace.prog, vaddr)
        return [area_row(area)] if area else []
    size = workspace.memory.page_size_bytes
    for row in rows:
        start, end = row[2], row[3]
        if not isinstance(start, int) or not isinstance(end, int):
            continue
        try:
            pages = workspace.memory.tables.translate_pages(VirtAddr(start), (end - start) // size)
        except PostpanicError:
            continue
        if vaddr // size in {int(paddr) // size for paddr in pages.tolist()}:
            return [row]
    return []
