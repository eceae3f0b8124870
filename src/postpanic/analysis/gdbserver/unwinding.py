"""
A file for gdb that has nothing but unwind tables, made of those of the kernel and its modules.

gdb looks for the frame of an address in the tables of every file that it has
loaded, whatever addresses the file's sections have.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.gdbserver.libraries import Library
from postpanic.analysis.stacks.engine import Stacks, open_stacks
from postpanic.analysis.stacks.orc_rows import OrcRows
from postpanic.analysis.workspace import Workspace
from postpanic.errors import FileFaultError
from postpanic.kernel.debuginfo.elf import ElfSection, SectionFlag, elf_file
from postpanic.kernel.debuginfo.orc_frames import AddressRule, encode_orc_frames
from postpanic.kernel.debuginfo.saved_registers import find_saved_registers
from postpanic.kernel.orc import OrcTable

__all__ = ["FILE_NAME", "write_unwind_file"]

FILE_NAME = "unwind-tables"
_TEXT_VADDR = 0x00FF_0000_0000_0000
"""Of a section that is there because gdb wants one; no machine has such an address."""
_PAGE_BYTES = 4096
_RULES = (
    # What called through a null pointer left its return address at the stack pointer.
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


def write_unwind_file(workspace: Workspace, directory: Path) -> Library | None:
    """
    Write the unwind tables of a kernel on x86-64 into a directory.

    Returns
    -------
    Library or None
        None: the kernel has none, or they are not in the dump; gdb has to do with what else it finds.
    """
    stacks = open_stacks(workspace)
    walker = stacks.walker
    if walker is None:
        return None
    tables = [walker.rows.kernel, *_module_tables(workspace, walker.rows)]
    functions = np.array(stacks.code.starts_between(0, (1 << 64) - 1), dtype=np.uint64)

    def read(vaddr: int, size_bytes: int) -> NDArray[np.uint8]:
        return workspace.memory.read_available(vaddr, size_bytes)[0]

    saved = [find_saved_registers(table, functions, read) for table in tables]
    sections = [
        ElfSection(".text", b"\x90", vaddr=_TEXT_VADDR, flags=SectionFlag.ALLOC | SectionFlag.EXECINSTR),
        ElfSection(".debug_frame", encode_orc_frames(tables, _RULES, _system_calls(stacks), saved), alignment=8),
    ]
    path = directory / FILE_NAME
    with path.open("wb") as file:
        for part in elf_file("x86_64", sections):
            file.write(part.data if isinstance(part, np.ndarray) else part)
    # gdb adds the address to the section's own, so the tables' addresses stay as they are.
    return Library(path, (0,))


def _system_calls(stacks: Stacks) -> list[tuple[int, int]]:
    """Find the code that system calls enter by, as far as the kernel has it."""
    found = []
    for name in _SYSTEM_CALL_ENTRIES:
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
