"""``kmem ADDRESS``: what is at an address, shown as the option for it would show it."""

from __future__ import annotations

from collections.abc import Iterator

from drgn.helpers.linux.mm import find_vmap_area

from postpanic.analysis.cells import problem
from postpanic.analysis.commands.arguments import Arguments
from postpanic.analysis.commands.memory.kmem import vmalloc
from postpanic.analysis.commands.memory.kmem.places import find_paddr
from postpanic.analysis.commands.memory.kmem.slabs import object_tables
from postpanic.analysis.commands.memory.page_rows import PAGES, page_row
from postpanic.analysis.commands.memory.whereis import PLACES, place_cells
from postpanic.analysis.commands.values import parse_vaddr
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.memory.direct_map import direct_vaddr
from postpanic.analysis.memory.page_structs import page_structs
from postpanic.analysis.memory.places import open_places
from postpanic.analysis.memory.spaces import AddressKind, is_kernel_vaddr
from postpanic.analysis.tasks import TaskFacts
from postpanic.analysis.workspace import Workspace
from postpanic.errors import FactAbsentError
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape, Table

__all__ = ["TASKS", "show_addresses"]

TASKS = Shape(
    "tasks",
    (
        Column("pid", Kind.NUMBER, title="PID", help="Thread ID."),
        Column("comm", title="COMMAND", help="Name of the task."),
        Column("task", Kind.ADDRESS, title="TASK", help="``struct task_struct *``."),
        Column("cpu", Kind.NUMBER, title="CPU", help="CPU that it ran on last."),
        Column("state", title="STATE", help="Its state."),
        Column("what", title="FOUND", help="Whether the address is in its task_struct or on its stack."),
    ),
    Layout.FIELDS,
)


_SHOWN = frozenset({"symbol", "per-CPU", "free"})
"""Kinds of places that no option of kmem shows."""


def show_addresses(workspace: Workspace, arguments: Arguments) -> Answer:
    """Identify addresses: a kernel address, a ``struct page``, or a physical address."""
    problems: list[Problem] = []
    tables: list[Table] = []
    for word in arguments.operands:
        address = parse_vaddr(workspace, word)
        physical = arguments.has("physical") or not is_kernel_vaddr(address)
        found = list(_identify(workspace, address, physical=physical, problems=problems))
        if not found:
            raise FactAbsentError(f"{word}: nothing is known of this address", hint="whereis -p for physical ones")
        tables += found
    return Answer("kmem", tuple(tables), tuple(problems))


def _identify(workspace: Workspace, address: int, *, physical: bool, problems: list[Problem]) -> Iterator[Table]:
    vaddr = address
    if physical:
        try:
            vaddr = direct_vaddr(workspace, address)
        except UNREADABLE as exc:
            problems.append(problem(f"the direct mapping of {address:#x}", exc))
    places = open_places(workspace)
    symbols = [place for place in places.find(vaddr, AddressKind.KERNEL, []) if place.kind in _SHOWN]
    if symbols:
        yield PLACES.table([place_cells(place) for place in symbols])
    try:
        yield from object_tables(workspace, vaddr, problems)
    except UNREADABLE as exc:
        problems.append(problem(f"the slab of {vaddr:#x}", exc))
    yield from _tasks(workspace, vaddr)
    try:
        area = find_vmap_area(workspace.prog, vaddr)
        if area:
            yield vmalloc.AREAS.table([vmalloc.area_row(area)])
    except UNREADABLE as exc:
        problems.append(problem(f"the vmalloc area of {vaddr:#x}", exc))
    try:
        size = workspace.memory.page_size_bytes
        pfn = find_paddr(workspace, address, physical=physical) // size
        structs = page_structs(workspace)
        if structs.vaddr_of(pfn) is not None:
            yield PAGES.table([page_row(structs, pfn, size)])
    except UNREADABLE as exc:
        problems.append(problem(f"the page of {address:#x}", exc))


def _tasks(workspace: Workspace, vaddr: int) -> Iterator[Table]:
    places = open_places(workspace)
    found = places.task_of_stack(vaddr)
    if found is not None:
        yield TASKS.table([_task_row(found[2], "on its stack")])
    task = places.task_at(vaddr)
    if task is not None:
        yield TASKS.table([_task_row(task, "in its task_struct")])


def _task_row(facts: TaskFacts, what: str) -> tuple[Cell, ...]:
    return (facts.pid, facts.comm, facts.vaddr, facts.cpu, facts.state_cell, what)
