"""
Address spaces: the kernel's, a process's, and physical memory, read alike.

Sources: ``arch/x86/mm`` and ``arch/arm64/mm``: the kernel's addresses are the upper
half, ``mm_struct.pgd`` is the root of a process's tables; with page table
isolation it is still the one that maps user pages (``arch/x86/mm/pti.c``).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from drgn import Object
from numpy.typing import NDArray

from postpanic.analysis.cells import absent
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.workspace import Workspace
from postpanic.dumps.memory import PageState
from postpanic.errors import AbsentError, PostpanicError
from postpanic.findings.absent import Absent, Reason
from postpanic.kernel.memory import KernelMemory
from postpanic.units import PhysAddr, VirtAddr

__all__ = ["AddressKind", "Space", "is_kernel_vaddr", "open_space", "process_memory"]

_KERNEL_HALF = 1 << 63
_ADDRESS_LIMIT = 1 << 64


class AddressKind(StrEnum):
    """What a number is the address of."""

    KERNEL = "kernel"
    USER = "user"
    PHYSICAL = "physical"


def is_kernel_vaddr(vaddr: int) -> bool:
    """Tell whether an address is in the kernel's half."""
    return vaddr >= _KERNEL_HALF


def process_memory(workspace: Workspace, task: Object) -> KernelMemory:
    """
    Give the memory of a process: the page tables of a task's ``mm``.

    Raises
    ------
    AbsentError
        If the task is a kernel thread, or its ``mm`` cannot be read.
    """
    try:
        pid = int(task.pid.value_())
        mm = task.mm.read_()
        root = int(mm.pgd.value_()) if mm else 0
    except UNREADABLE as exc:
        raise AbsentError(f"the page tables of the task cannot be found: {absent(exc).detail}") from exc
    if not root:
        raise AbsentError(f"task {pid} has no user memory: a kernel thread, or exiting")
    return workspace.once(f"process memory {root:#x}", lambda: _with_root(workspace.memory, root))


def _with_root(memory: KernelMemory, root_vaddr: int) -> KernelMemory:
    root = memory.translate(VirtAddr(root_vaddr))
    return KernelMemory(memory.physical, memory.vmcoreinfo, memory.tables.with_root(root), memory.layout, None)


@dataclass(frozen=True)
class Space:
    """
    One address space; made by :func:`open_space`.

    Attributes
    ----------
    tables : KernelMemory or None
        What translates its addresses; None for physical memory.
    """

    kind: AddressKind
    workspace: Workspace
    tables: KernelMemory | None

    def read(self, address: int, size_bytes: int) -> bytes:
        """
        Read a range.

        Raises
        ------
        TranslationError, PageAbsentError
            If a byte of it is not mapped or not in the dump.
        """
        if self.workspace.opened.zero_excluded:
            data, present = self.read_available(address, size_bytes)
            if present.all():
                return data.tobytes()
        if self.tables is None:
            return self.workspace.memory.physical.read(PhysAddr(address), size_bytes)
        return self.tables.read(address, size_bytes)

    def read_available(self, address: int, size_bytes: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Read what there is of a range: the bytes, zero where there are none, and for each whether it is there."""
        size_bytes = max(0, min(size_bytes, _ADDRESS_LIMIT - address))
        if self.tables is None:
            data, present = self._read_physical(address, size_bytes)
        else:
            data, present = self.tables.read_available(address, size_bytes)
        if self.workspace.opened.zero_excluded and not present.all():
            present = self._with_zeroes(address, present)
        return data, present

    def translate(self, address: int) -> int:
        """
        Give the physical address.

        Raises
        ------
        TranslationError
            If it is not mapped.
        """
        return address if self.tables is None else int(self.tables.translate(VirtAddr(address)))

    def why_absent(self, address: int) -> Absent:
        """Say why a byte cannot be read."""
        try:
            self.read(address, 1)
        except UNREADABLE as exc:
            return absent(exc)
        return Absent(Reason.UNREADABLE, f"{address:#x} cannot be read")

    def _read_physical(self, paddr: int, size_bytes: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        memory = self.workspace.memory.physical
        size = memory.page_size_bytes
        first, last = paddr // size, (paddr + max(size_bytes, 1) - 1) // size
        pages, states = memory.read_pages(np.arange(first, last + 1, dtype=np.uint64))
        inside = slice(paddr - first * size, paddr - first * size + size_bytes)
        return pages.reshape(-1)[inside], np.repeat(states == PageState.PRESENT, size)[inside]

    def _with_zeroes(self, address: int, present: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Count as there what is RAM and was left out: it reads as zero."""
        size = self.workspace.memory.page_size_bytes
        present = present.copy()
        start = address
        while start < address + len(present):
            end = min(start - start % size + size, address + len(present))
            if not present[start - address] and self._is_excluded(start):
                present[start - address : end - address] = True
            start = end
        return present

    def _is_excluded(self, address: int) -> bool:
        try:
            pfn = self.translate(address) // self.workspace.memory.physical.page_size_bytes
        except PostpanicError:
            return False
        state = self.workspace.memory.physical.page_states(np.array([pfn], dtype=np.uint64))[0]
        return int(state) in {PageState.EXCLUDED, PageState.HOLE}


def open_space(workspace: Workspace, kind: AddressKind, task: Object | None = None) -> Space:
    """
    Open an address space.

    Parameters
    ----------
    task : Object, optional
        ``struct task_struct *`` whose user memory is meant; None: that of the context.

    Raises
    ------
    AbsentError
        If the task has no user memory.
    """
    match kind:
        case AddressKind.PHYSICAL:
            return Space(kind, workspace, None)
        case AddressKind.KERNEL:
            return Space(kind, workspace, workspace.memory)
        case AddressKind.USER:
            return Space(kind, workspace, process_memory(workspace, workspace.task if task is None else task))
