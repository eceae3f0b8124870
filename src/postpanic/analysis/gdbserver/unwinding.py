"""
A file for gdb that has nothing but unwind tables: made of those of the kernel and its modules, or of their code.

gdb looks for the frame of an address in the tables of every file that it has
loaded, whatever addresses the file's sections have.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.gdbserver.libraries import Library
from postpanic.analysis.stacks.arm64 import FrameRecords
from postpanic.analysis.stacks.engine import Stacks, open_stacks
from postpanic.analysis.stacks.orc_rows import OrcRows
from postpanic.analysis.workspace import Workspace
from postpanic.errors import FileFaultError
from postpanic.kernel.debuginfo.elf import ElfSection, SectionFlag, elf_file
from postpanic.kernel.debuginfo.orc_frames import AddressRule, encode_orc_frames
from postpanic.kernel.debuginfo.record_frames import FrameRule, Stretches, encode_record_frames, find_stretches
from postpanic.kernel.debuginfo.saved_registers import find_saved_registers
from postpanic.kernel.orc import OrcTable

__all__ = ["FILE_NAME", "write_unwind_file"]

FILE_NAME = "unwind-tables"
_TEXT_VADDR = 0x00FF_0000_0000_0000
"""Of a section that is there because gdb wants one; no machine has such an address."""
_PAGE_BYTES = 4096
_RULES = (
    # What called through a null pointer left its return address at the stack pointer, or in the link register.
    AddressRule(0, _PAGE_BYTES, ends=False),
    # User code: how it got there is for its own unwind tables to say, which are not the kernel's.
    AddressRule(_PAGE_BYTES, _TEXT_VADDR, ends=True),
)
_SYSTEM_CALL_ENTRIES = (
    "entry_SYSCALL_64",
    "entry_SYSCALL_64_after_hwframe",
    "entry_SYSENTER_compat",
    "entry_SYSENTER_compat_after_hwframe",
    "entry_SYSCALL_compat",
    "entry_SYSCALL_compat_after_hwframe",
    "entry_INT80_compat",
    "ret_from_fork",
    "ret_from_fork_asm",
)
"""``arch/x86/entry/entry_64.S`` and ``entry_64_compat.S``; a new task begins as if it came back from one."""
_KINDS = ("sync", "irq", "fiq", "error")
_ARM64_ENTRIES = (
    ([f"{vector}_{kind}" for vector in ("el1t_64", "el1h_64", "el1") for kind in _KINDS], FrameRule.EXCEPTION),
    ([f"{vector}_{kind}" for vector in ("el0t_64", "el0t_32", "el0") for kind in _KINDS], FrameRule.ENTRY),
    (["ret_from_fork", "__primary_switched", "__secondary_switched"], FrameRule.END),
)
"""``arch/arm64/kernel/entry.S`` and ``head.S``, the names of 5.10 too: what has no caller that called it."""
_LARGEST_GAP_BYTES = 1 << 20
_LARGEST_CODE_BYTES = 256 << 20


def write_unwind_file(workspace: Workspace, directory: Path) -> Library | None:
    """
    Write unwind tables of a kernel into a directory.

    Returns
    -------
    Library or None
        None: the kernel has none, or they are not in the dump; gdb has to do with what else it finds.
    """
    stacks = open_stacks(workspace)
    if stacks.records is not None:
        machine, frames = "aarch64", _encode_records(workspace, stacks, stacks.records)
    elif stacks.walker is not None:
        machine, frames = "x86_64", _encode_orc(workspace, stacks, stacks.walker.rows)
    else:
        return None
    sections = [
        ElfSection(".text", b"\x90", vaddr=_TEXT_VADDR, flags=SectionFlag.ALLOC | SectionFlag.EXECINSTR),
        ElfSection(".debug_frame", frames, alignment=8),
    ]
    path = directory / FILE_NAME
    with path.open("wb") as file:
        for part in elf_file(machine, sections):
            file.write(part.data if isinstance(part, np.ndarray) else part)
    # gdb adds the address to the section's own, so the tables' addresses stay as they are.
    return Library(path, (0,))


def _read_functions(stacks: Stacks) -> NDArray[np.uint64]:
    return np.array(stacks.code.starts_between(0, (1 << 64) - 1), dtype=np.uint64)


def _encode_orc(workspace: Workspace, stacks: Stacks, rows: OrcRows) -> bytes:
    tables = [rows.kernel, *_module_tables(workspace, rows)]
    functions = _read_functions(stacks)

    def read(vaddr: int, size_bytes: int) -> NDArray[np.uint8]:
        return workspace.memory.read_available(vaddr, size_bytes)[0]

    saved = [find_saved_registers(table, functions, read) for table in tables]
    return encode_orc_frames(tables, _RULES, _find_ranges(stacks, _SYSTEM_CALL_ENTRIES), saved)


def _encode_records(workspace: Workspace, stacks: Stacks, records: FrameRecords) -> bytes:
    """Encode what code of arm64 tells, and what its entries are: exceptions, and the first frames of tasks."""
    functions = _read_functions(stacks)
    entries = [(each, rule) for names, rule in _ARM64_ENTRIES for each in _find_ranges(stacks, names)]
    stretches = [_outside_of_the_kernel()]
    for start, end in _find_clusters(stacks, functions):
        code, _ = workspace.memory.read_available(start, (end - start) & ~3)
        found = find_stretches(code.view("<u4"), start, functions)
        for (first, last), rule in entries:
            found.rules[(found.starts >= np.uint64(first)) & (found.starts < np.uint64(last))] = rule
        stretches.append(found)
    return encode_record_frames(stretches, code_mask=records.code_mask, registers_offset=records.record_offset)


def _outside_of_the_kernel() -> Stretches:
    """Say the same as :data:`_RULES` does."""
    return Stretches(
        np.array([rule.start for rule in _RULES], dtype=np.uint64),
        np.array([rule.end for rule in _RULES], dtype=np.uint64),
        np.array([FrameRule.END if rule.ends else FrameRule.LEAF for rule in _RULES], dtype=np.uint8),
        np.zeros(len(_RULES), dtype=np.uint16),
    )


def _find_clusters(stacks: Stacks, functions: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Find the stretches of memory that have functions: of the kernel, and of each module."""
    cuts = np.flatnonzero(np.diff(functions) > np.uint64(_LARGEST_GAP_BYTES)) + 1
    for cluster in np.split(functions, cuts):
        if len(cluster):
            start, last = int(cluster[0]), int(cluster[-1])
            place = stacks.code.find(last)
            size = place.size_bytes if place is not None else 0
            yield start & ~3, min(last + size, start + _LARGEST_CODE_BYTES)


def _find_ranges(stacks: Stacks, names: Iterable[str]) -> list[tuple[int, int]]:
    """Find ``[start, end)`` of functions, as far as the kernel has them."""
    found = []
    for name in names:
        vaddr = stacks.code.vaddr(name)
        place = stacks.code.find(vaddr) if vaddr is not None else None
        if place is not None:
            found.append((place.start, place.start + place.size_bytes))
    return found


def _module_tables(workspace: Workspace, rows: OrcRows) -> list[OrcTable]:
    found = []
    try:
        for module in workspace.prog.modules():
            table = rows.find_module(module)
            if table is not None and table is not rows.kernel and len(table):
                found.append(table)
    except (*UNREADABLE, FileFaultError):
        pass
    return found
