"""Physical memory held in a dictionary, and kernels made of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.memory import DumpDescription, PageState, page_absent_error, ranges_from_pairs
from postpanic.kernel.memory import KernelMemory, open_kernel_memory
from postpanic.units import PhysAddr
from tests.builders.page_tables import PageTableBuilder
from tests.builders.vmcoreinfo import VmcoreinfoBuilder, build_x86_64_vmcoreinfo

PAGE = 4096
PHYS_BASE = 0x1000000
STEXT = 0xFFFFFFFF82000000
START_KERNEL_MAP = 0xFFFFFFFF80000000
SWAPPER = STEXT + 0x1000000
PLACE = STEXT + 0x400000
"""Where tests put what they want to read, in the middle of the kernel image."""


class DictDump:
    """A dump whose pages are those that were written to; pages in ``states`` are in RAM but have no contents."""

    def __init__(self, *, machine: str = "x86_64", vmcoreinfo: bytes = b"", page_size: int = PAGE) -> None:
        self.page_size_bytes = page_size
        self.pages: dict[int, bytearray] = {}
        self.states: dict[int, PageState] = {}
        self.description = DumpDescription("test", ("test",), machine, "little", page_size, 0, vmcoreinfo=vmcoreinfo)

    def write(self, paddr: int, data: bytes) -> None:
        while data:
            inside = paddr % self.page_size_bytes
            page = self.pages.setdefault(paddr // self.page_size_bytes, bytearray(self.page_size_bytes))
            part = data[: self.page_size_bytes - inside]
            page[inside : inside + len(part)] = part
            data = data[len(part) :]
            paddr += len(part)

    @property
    def ram_ranges(self) -> NDArray[np.uint64]:
        size = self.page_size_bytes
        return ranges_from_pairs([(pfn * size, pfn * size + size) for pfn in (*self.pages, *self.states)])

    def page_states(self, pfns: NDArray[np.uint64]) -> NDArray[np.uint8]:
        states = np.full(len(pfns), PageState.ABSENT, dtype=np.uint8)
        states[np.isin(pfns, np.array(list(self.pages), dtype=np.uint64))] = PageState.PRESENT
        for pfn, state in self.states.items():
            states[pfns == pfn] = state
        return states

    def read_pages(self, pfns: NDArray[np.uint64]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        pages = np.empty((len(pfns), self.page_size_bytes), dtype=np.uint8)
        return pages, self.read_pages_into(pfns, pages)

    def read_pages_into(self, pfns: NDArray[np.uint64], pages: NDArray[np.uint8]) -> NDArray[np.uint8]:
        states = self.page_states(pfns)
        pages[:] = 0
        for row in np.flatnonzero(states == PageState.PRESENT).tolist():
            pages[row] = np.frombuffer(self.pages[int(pfns[row])], dtype=np.uint8)
        return states

    def read(self, paddr: PhysAddr, size_bytes: int) -> bytes:
        parts = []
        while size_bytes:
            pfn, inside = divmod(paddr, self.page_size_bytes)
            if self._state(pfn) != PageState.PRESENT:
                raise page_absent_error(paddr, self._state(pfn))
            part = bytes(self.pages[pfn][inside : inside + size_bytes])
            parts.append(part)
            paddr = PhysAddr(paddr + len(part))
            size_bytes -= len(part)
        return b"".join(parts)

    def forget(self) -> None:
        pass

    def close(self) -> None:
        self.pages.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _state(self, pfn: int) -> PageState:
        return self.states.get(pfn, PageState.PRESENT if pfn in self.pages else PageState.ABSENT)


def image_paddr(vaddr: int) -> int:
    """Give the physical address of a kernel image address of the x86-64 test kernel."""
    return vaddr - START_KERNEL_MAP + PHYS_BASE


def make_x86_kernel(
    parts: Mapping[int, bytes] | None = None,
    lines: list[tuple[str, str, int]] | None = None,
    *,
    levels: int = 4,
    has_note: bool = True,
) -> tuple[DictDump, VmcoreinfoBuilder]:
    """Make an x86-64 kernel: its text and PLACE mapped by 2 MiB pages, *parts* written at image addresses."""
    info = build_x86_64_vmcoreinfo(stext=STEXT, swapper=SWAPPER, phys_base=PHYS_BASE, levels=levels)
    for kind, name, value in lines or []:
        info.line(f"{kind}({name})", f"{value:x}" if kind == "SYMBOL" else value)
    dump = DictDump(vmcoreinfo=info.text() if has_note else b"", machine="x86_64" if has_note else "")
    tables = PageTableBuilder("x86", va_bits=48 if levels == 4 else 57, tables_paddr=image_paddr(SWAPPER))
    for vaddr in (STEXT, PLACE):
        tables.map(vaddr, image_paddr(vaddr), leaf_level=1)
    for paddr, page in tables.pages().items():
        dump.write(paddr, page)
    dump.write(image_paddr(STEXT), b"\xf3\x0f\x1e\xfa" * 4)
    for vaddr, data in (parts or {}).items():
        dump.write(image_paddr(vaddr), data)
    return dump, info


def open_x86_kernel(
    parts: Mapping[int, bytes] | None = None, lines: list[tuple[str, str, int]] | None = None
) -> KernelMemory:
    return open_kernel_memory(make_x86_kernel(parts, lines)[0])
