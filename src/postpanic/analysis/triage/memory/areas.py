"""
Who asked for the pages of vmalloc: each area remembers the function that did.

``struct vm_struct.caller`` is the return address of ``vmalloc()`` and its like
(``mm/vmalloc.c``); stacks of tasks are such areas, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from drgn import Object

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.memory.vmap import read_vmap_areas
from postpanic.analysis.stacks.engine import open_stacks
from postpanic.analysis.workspace import Workspace
from postpanic.evidence.oops.functions import plain_name
from postpanic.findings.table import Problem

__all__ = ["AreaUse", "Caller", "read_area_use"]

_VM_ALLOC, _VM_PUT_PAGES = 0x2, 0x200
"""``include/linux/vmalloc.h``: pages of its own (``VM_ALLOC``), or that were handed over (``VM_MAP_PUT_PAGES``)."""
_STACK_CALLERS = ("dup_task_struct", "copy_process", "alloc_thread_stack", "kernel_clone", "fork_idle")
_MOST_SHOWN = 8


@dataclass(slots=True)
class Caller:
    """A function that asked for areas."""

    function: str
    module: str
    """Empty: the kernel itself."""
    vaddr: int
    """The return address in it."""
    areas: int = 0
    pages: int = 0
    examples: list[tuple[int, int]] = field(default_factory=list)
    """Address and pages of some areas."""

    @property
    def is_stacks(self) -> bool:
        """Whether the areas are stacks of tasks."""
        return self.function.startswith(_STACK_CALLERS)


@dataclass(slots=True)
class AreaUse:
    """All areas with pages of their own."""

    callers: list[Caller]
    """Who has the most pages first."""
    pages: int
    stack_pages: int
    heads: list[Object] = field(default_factory=list)
    """``struct vm_struct *`` of all of them."""


def read_area_use(workspace: Workspace, problems: list[Problem]) -> AreaUse:
    """Sum up the areas of vmalloc by the function that asked for them."""
    code = open_stacks(workspace).code
    by_caller: dict[int, Caller] = {}
    merged: dict[tuple[str, str], Caller] = {}
    heads: list[Object] = []
    for area in read_vmap_areas(workspace.prog, problems):
        try:
            vm = area.vm.read_()
            if not vm:
                continue
            flags, pages = int(vm.flags.value_()), int(vm.nr_pages.value_())
            if not pages or not flags & (_VM_ALLOC | _VM_PUT_PAGES):
                continue
            vaddr, start = int(vm.caller.value_()), int(vm.addr.value_())
        except UNREADABLE:
            continue
        caller = by_caller.get(vaddr)
        if caller is None:
            place = code.find_caller(vaddr) if vaddr else None
            name = plain_name(place.function) if place is not None else ""
            module = place.module if place is not None else ""
            caller = merged.setdefault((name, module), Caller(name, module, vaddr))
            by_caller[vaddr] = caller
        caller.areas += 1
        caller.pages += pages
        if len(caller.examples) < _MOST_SHOWN:
            caller.examples.append((start, pages))
        heads.append(vm)
    callers = sorted(merged.values(), key=lambda each: -each.pages)
    stacks = sum(each.pages for each in callers if each.is_stacks)
    return AreaUse(callers, sum(each.pages for each in callers), stacks, heads)
