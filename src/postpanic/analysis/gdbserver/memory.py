"""Memory as a thread sees it: the kernel's, and the user memory of its process; what is written goes to the overlay."""

from __future__ import annotations

from drgn import Object

from postpanic.analysis.memory.spaces import AddressKind, is_kernel_vaddr, open_space, process_memory
from postpanic.analysis.workspace import Workspace
from postpanic.errors import AbsentError, PageAbsentError
from postpanic.units import PhysAddr, VirtAddr

__all__ = ["EXCLUDED", "MEMORY_MAP", "NOT_MAPPED", "TargetMemory", "error_number"]

NOT_MAPPED = 14
"""``EFAULT``."""
EXCLUDED = 61
"""``ENODATA``: mapped, and not in the dump."""
_ADDRESS_LIMIT = 1 << 64
_KERNEL_HALF = 1 << 63
_MAX_KEPT_PAGES = 1024

MEMORY_MAP = (
    b'<?xml version="1.0"?>\n<memory-map>\n'
    b'<memory type="ram" start="0x0" length="0x8000000000000000"/>\n'
    b'<memory type="ram" start="0x8000000000000000" length="0x8000000000000000"/>\n'
    b"</memory-map>\n"
)
"""
The document of ``qXfer:memory-map:read``: both halves of the address space.

Without a map gdb takes everything for memory, with one that leaves something
out it does not even ask for that: what is mapped is for the page tables to say.
"""


def error_number(error: AbsentError) -> int:
    """Give the number that an error reply has."""
    return EXCLUDED if isinstance(error, PageAbsentError) else NOT_MAPPED


class TargetMemory:
    """
    Memory of a dump by virtual address.

    Parameters
    ----------
    workspace : Workspace
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._page_bytes = workspace.memory.page_size_bytes
        self._pages: dict[int, bytes] = {}
        """Pages of the kernel: gdb asks for single words, again and again."""
        workspace.opened.overlay.listen(lambda _: self._pages.clear())

    def read(self, task: Object | None, vaddr: int, size_bytes: int) -> bytes:
        """
        Read as much of a range as there is from its beginning on.

        Parameters
        ----------
        task : Object, optional
            ``struct task_struct *`` whose user memory is meant.

        Raises
        ------
        AbsentError
            If not even the first byte is there.
        """
        if not size_bytes:
            return b""
        start = vaddr % self._page_bytes
        if vaddr - start in self._pages and start + size_bytes <= self._page_bytes:
            return self._pages[vaddr - start][start : start + size_bytes]
        half_end = _ADDRESS_LIMIT if is_kernel_vaddr(vaddr) else _KERNEL_HALF
        size_bytes = min(size_bytes, half_end - vaddr)
        kind = AddressKind.KERNEL if is_kernel_vaddr(vaddr) else AddressKind.USER
        space = open_space(self._workspace, kind, task)
        is_short = start + size_bytes <= self._page_bytes
        try:
            if not is_short or kind is not AddressKind.KERNEL:
                return space.read(vaddr, size_bytes)
            page = self._keep(vaddr - start, space.read(vaddr - start, self._page_bytes))
            return page[start : start + size_bytes]
        except AbsentError:
            # Of a page that is not whole a part may be there.
            pass
        data, present = space.read_available(vaddr, size_bytes)
        if not present[0]:
            space.read(vaddr, 1)
        length = int(present.argmin()) if not present.all() else size_bytes
        return data[:length].tobytes()

    def _keep(self, vaddr: int, page: bytes) -> bytes:
        if len(self._pages) >= _MAX_KEPT_PAGES:
            self._pages.clear()
        self._pages[vaddr] = page
        return page

    def write(self, task: Object | None, vaddr: int, data: bytes) -> None:
        """
        Write into the overlay of the dump; the file stays as it is.

        Raises
        ------
        AbsentError
            If a byte of the range is not mapped, or in a page that the dump does not hold.
        """
        if not data:
            return
        if is_kernel_vaddr(vaddr):
            self._workspace.write_virtual(vaddr, data)
            return
        memory = process_memory(self._workspace, self._workspace.task if task is None else task)
        size = memory.page_size_bytes
        parts: list[tuple[PhysAddr, bytes]] = []
        done = 0
        while done < len(data):
            step = size - (vaddr + done) % size
            parts.append((memory.translate(VirtAddr(vaddr + done)), data[done : done + step]))
            done += step
        for paddr, part in parts:
            memory.physical.read(paddr, len(part))
        for paddr, part in parts:
            self._workspace.opened.overlay.write(paddr, part)
