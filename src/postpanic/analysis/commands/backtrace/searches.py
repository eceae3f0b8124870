"""What else is on stacks: addresses of code, entry frames, and the marks at their ends."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from drgn import sizeof
from numpy.typing import NDArray

from postpanic.analysis.commands.backtrace.rows import place_cells, registers_table
from postpanic.analysis.commands.backtrace.shapes import EXCEPTIONS, FINDINGS, STACKS
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.stacks import x86_64
from postpanic.analysis.stacks.arm64 import FrameRecords
from postpanic.analysis.stacks.engine import Stacks
from postpanic.analysis.stacks.frames import Area, Saved
from postpanic.analysis.tasks import TaskFacts
from postpanic.findings.table import Cell, Table

__all__ = ["check_overflow", "cpu_stack_rows", "exceptions_table", "find_end_of_stack", "text_rows"]

STACK_END_MAGIC = 0x57AC6E9D
"""``include/uapi/linux/magic.h``."""


def text_rows(stacks: Stacks, start: int, end: int) -> Iterator[tuple[Cell, ...]]:
    """List the addresses of code on a part of a stack."""
    start, end = (start + 7) & ~7, end & ~7
    if start >= end:
        return
    words, present = stacks.words.read_range(start, end)
    code, walker = stacks.code, stacks.walker
    if stacks.records is not None:
        # Return addresses are signed.
        words = stacks.records.strip_all(words)
    for place in (code.text_mask(words) & present).nonzero()[0].tolist():
        pc = int(words[place])
        found = code.find(pc)
        if found is None or not found.function:
            continue
        function, offset, module = place_cells(found)
        is_call = walker.is_return_address(pc) if walker is not None else None
        yield (start + 8 * place, pc, function, offset, module, is_call)


def exceptions_table(stacks: Stacks, area: Area, *, hexadecimal: bool = False) -> Table:
    """List what may be entry frames on a stack."""
    words, present = stacks.words.read_range(area.start & ~7, area.end & ~7)
    words[~present] = 0
    if stacks.records is not None:
        return _arm64_exceptions(stacks.records, area, words, hexadecimal=hexadecimal)
    rows: list[tuple[Cell, ...]] = []
    for place in x86_64.find_entry_frames(words, stacks.code.text_mask(words)):
        values = words[place : place + len(x86_64.REGISTER_NAMES)].tobytes()
        registers = x86_64.decode_registers(values)
        user = x86_64.is_user_mode(registers)
        vaddr = area.start + 8 * place
        saved = Saved(vaddr, registers, user, None if user else stacks.code.find(registers["rip"]))
        rows.append(("USER" if user else "KERNEL", vaddr, registers_table(saved, hexadecimal=hexadecimal)))
    return EXCEPTIONS.table(rows)


def _arm64_exceptions(records: FrameRecords, area: Area, words: NDArray[np.uint64], *, hexadecimal: bool) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for place in records.find_entry_frames(words):
        saved = records.read_registers(area.start + 8 * place)
        mode = "USER" if saved.user else "KERNEL"
        rows.append((mode, saved.vaddr, registers_table(saved, hexadecimal=hexadecimal)))
    return EXCEPTIONS.table(rows)


def cpu_stack_rows(stacks: Stacks, cpus: list[int], *, hexadecimal: bool = False) -> Table:
    """Search the stacks of CPUs for entry frames: first those of interrupts."""
    areas = [area for area in stacks.areas if area.cpu in cpus]
    areas.sort(key=lambda area: (area.name != "IRQ", area.cpu))
    rows: list[tuple[Cell, ...]] = []
    for area in areas:
        found = exceptions_table(stacks, area, hexadecimal=hexadecimal)
        nothing = None if found.rows else "(none found)"
        rows.append((area.cpu, area.name, area.title.upper(), nothing, found))
    return STACKS.table(rows)


def find_end_of_stack(stacks: Stacks, area: Area) -> int:
    """
    Find the last word that a stack may use, where ``STACK_END_MAGIC`` is.

    ``end_of_stack()`` of ``include/linux/sched/task_stack.h``: behind the ``struct thread_info``
    where that is on the stack (without ``CONFIG_THREAD_INFO_IN_TASK``).
    """
    try:
        in_task = any(member.name == "thread_info" for member in stacks.prog.type("struct task_struct").members or ())
        return area.start if in_task else area.start + sizeof(stacks.prog.type("struct thread_info"))
    except UNREADABLE:
        return area.start


def check_overflow(stacks: Stacks, facts: TaskFacts) -> Table | None:
    """
    Look for signs that a task's stack overflowed.

    Raises
    ------
    AbsentError, FaultError
        If the end of the stack cannot be read.
    """
    area = stacks.find_task_area(facts)
    if area is None:
        return None
    rows: list[tuple[Cell, ...]] = []
    end = find_end_of_stack(stacks, area)
    if end != area.start:
        rows += _check_thread_info(stacks, facts, area)
    # The magic is an unsigned long.
    mark = stacks.words.read(end)
    if mark != STACK_END_MAGIC:
        rows.append((f"{end:x}: {mark:x} != STACK_END_MAGIC",))
    sp = stacks.read_stack_pointer(facts)
    if sp is not None and area.start - stacks.thread_size <= sp <= end:
        rows.append((f"stack pointer {sp:x} is at or below the end of the stack {end:x}",))
    return FINDINGS.table(rows) if rows else None


def _check_thread_info(stacks: Stacks, facts: TaskFacts, area: Area) -> Iterator[tuple[Cell, ...]]:
    try:
        info = stacks.prog.type("struct thread_info")
        offsets = {member.name: member.offset for member in info.members or ()}
    except UNREADABLE:
        return
    if "task" in offsets:
        task = stacks.words.read(area.start + offsets["task"])
        if task != facts.vaddr:
            yield (f"thread_info.task: {task:x} != {facts.vaddr:x}",)
    if "cpu" in offsets:
        cpu = stacks.words.memory.read_u32(area.start + offsets["cpu"])
        if cpu >= max((other.cpu for other in stacks.areas), default=1 << 16) + 1:
            yield (f"thread_info.cpu: {cpu} is no CPU",)
