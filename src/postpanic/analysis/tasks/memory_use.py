"""
How much memory the address spaces of tasks use.

``rss_stat`` of ``struct mm_struct`` is an array of ``struct percpu_counter`` since
6.2 (f1a7941243c1). Before that it is an array of atomic numbers, and each task has
a part that is not yet added to it (``SPLIT_RSS_COUNTING``).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import drgn
from drgn import Program, Type, TypeKind

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.tasks.facts import Field, TaskFacts, find_field
from postpanic.analysis.tasks.lists import possible_cpus
from postpanic.analysis.tasks.scattered import read_scattered
from postpanic.analysis.workspace import Workspace

__all__ = ["MemoryUse", "read_memory_use"]

# include/linux/mm_types_task.h: MM_FILEPAGES, MM_ANONPAGES, MM_SWAPENTS, MM_SHMEMPAGES.
_KINDS = ("MM_FILEPAGES", "MM_ANONPAGES", "MM_SWAPENTS", "MM_SHMEMPAGES")
_MASK = (1 << 64) - 1


@dataclass(slots=True)
class MemoryUse:
    """Pages that an address space uses."""

    total_vm: int
    """Pages of all mappings."""
    pages: dict[str, int] = field(default_factory=dict)
    """By ``MM_*``."""

    @property
    def rss(self) -> int:
        """Resident pages: of files, anonymous ones, and shared memory; never below 0."""
        return max(0, sum(count for kind, count in self.pages.items() if kind != "MM_SWAPENTS"))


@dataclass(frozen=True, slots=True)
class _Layout:
    size_bytes: int
    total_vm: Field
    counts: dict[str, int]
    """Offset of each kind's number in ``struct mm_struct``."""
    per_cpu: dict[str, int]
    """Offset of each kind's pointer to its part per CPU; empty before 6.2."""
    per_task: dict[str, int]
    """Offset of each kind's part in ``struct task_struct``; empty since 6.2."""


def _find_layout(prog: Program) -> _Layout:
    mm = prog.type("struct mm_struct")
    total_vm = find_field(mm, "total_vm")
    if total_vm is None:
        raise LookupError("struct mm_struct has no total_vm")
    start = drgn.offsetof(mm, "rss_stat")
    type_ = mm.member("rss_stat").type
    numbers = _kind_numbers(prog)
    if type_.kind is TypeKind.ARRAY:
        counter, step = type_.type, drgn.sizeof(type_.type)
        counts = {kind: start + number * step + drgn.offsetof(counter, "count") for kind, number in numbers.items()}
        per_cpu = {kind: start + number * step + drgn.offsetof(counter, "counters") for kind, number in numbers.items()}
        per_task: dict[str, int] = {}
    else:
        counts = {kind: start + drgn.offsetof(type_, "count") + 8 * number for kind, number in numbers.items()}
        per_cpu = {}
        per_task = _split_offsets(prog.type("struct task_struct"), numbers)
    ends = [total_vm.offset, *counts.values(), *per_cpu.values()]
    return _Layout(max(ends) + 8, total_vm, counts, per_cpu, per_task)


def _kind_numbers(prog: Program) -> dict[str, int]:
    try:
        return {kind: int(prog.constant(kind).value_()) for kind in _KINDS}
    except LookupError:
        return {kind: number for number, kind in enumerate(_KINDS)}


def _split_offsets(task: Type, numbers: dict[str, int]) -> dict[str, int]:
    try:
        start = drgn.offsetof(task, "rss_stat.count")
    except LookupError:
        return {}
    return {kind: start + 4 * number for kind, number in numbers.items()}


def read_memory_use(workspace: Workspace, tasks: Iterable[TaskFacts]) -> dict[int, MemoryUse]:
    """
    Add up what the address spaces of tasks use, by the address of the ``struct mm_struct``.

    An address space that cannot be read is not in the result.

    Raises
    ------
    LookupError
        If the kernel's types do not tell where the numbers are.
    """
    layout = workspace.once("layout of rss_stat", lambda: _find_layout(workspace.prog))
    by_mm: dict[int, list[TaskFacts]] = {}
    for task in tasks:
        try:
            if mm := task.mm:
                by_mm.setdefault(mm, []).append(task)
        except UNREADABLE:
            continue
    mms = list(by_mm)
    found: dict[int, MemoryUse] = {}
    pointers: dict[tuple[int, str], int] = {}
    for mm, data in zip(mms, read_scattered(workspace.memory, mms, layout.size_bytes), strict=True):
        if data is None:
            continue
        pages = {kind: struct.unpack_from("<q", data, offset)[0] for kind, offset in layout.counts.items()}
        found[mm] = MemoryUse(layout.total_vm.number(data), pages)
        for kind, offset in layout.per_cpu.items():
            pointers[mm, kind] = struct.unpack_from("<Q", data, offset)[0]
    if pointers:
        _add_per_cpu(workspace, found, pointers)
    if layout.per_task:
        _add_per_task(workspace, found, by_mm, layout.per_task)
    return found


def _add_per_cpu(workspace: Workspace, found: dict[int, MemoryUse], pointers: dict[tuple[int, str], int]) -> None:
    keys = [key for key, pointer in pointers.items() if pointer]
    for base in _per_cpu_offsets(workspace):
        vaddrs = [(pointers[key] + base) & _MASK for key in keys]
        for (mm, kind), data in zip(keys, read_scattered(workspace.memory, vaddrs, 4), strict=True):
            if data is not None:
                found[mm].pages[kind] += struct.unpack("<i", data)[0]


def _per_cpu_offsets(workspace: Workspace) -> Sequence[int]:
    offsets = workspace.prog["__per_cpu_offset"]
    return [int(offsets[cpu].value_()) for cpu in possible_cpus(workspace)]


def _add_per_task(
    workspace: Workspace, found: dict[int, MemoryUse], by_mm: dict[int, list[TaskFacts]], offsets: dict[str, int]
) -> None:
    start = min(offsets.values())
    size = max(offsets.values()) + 4 - start
    owners = [(mm, task.vaddr + start) for mm, tasks in by_mm.items() if mm in found for task in tasks]
    contents = read_scattered(workspace.memory, [vaddr for _, vaddr in owners], size)
    for (mm, _), data in zip(owners, contents, strict=True):
        if data is not None:
            for kind, offset in offsets.items():
                found[mm].pages[kind] += struct.unpack_from("<i", data, offset - start)[0]
