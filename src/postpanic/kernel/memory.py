"""
Kernel virtual memory: physical memory seen through the kernel's page tables.

Everything needed to find the page tables comes from VMCOREINFO; no symbol table
and no debug information is asked. The kernel image itself is mapped in one
piece on x86-64, so it stays readable when page tables are damaged.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from postpanic.dumps.memory import Dump, DumpDescription, PageState, PhysicalMemory, VirtualSegment, page_absent_error
from postpanic.errors import (
    CorruptError,
    FactAbsentError,
    PageAbsentError,
    PostpanicError,
    TranslationError,
    UnsupportedError,
)
from postpanic.kernel.paging import aarch64, x86_64
from postpanic.kernel.paging.tables import NOT_MAPPED, PageTables, Walk
from postpanic.kernel.vmcoreinfo import Vmcoreinfo, find_vmcoreinfo, parse_vmcoreinfo
from postpanic.units import GIB, MIB, PhysAddr, VirtAddr, format_size

__all__ = ["KernelLayout", "KernelMemory", "open_kernel_memory"]

_WORD = (1 << 64) - 1
_READ_LIMIT_BYTES = GIB
_C_STRING_LIMIT_BYTES = 4096
_CACHED_TRANSLATIONS = 4096

_IMAGE_SEARCH_BYTES = 192 * MIB
"""Kernel images are smaller: the largest allyesconfig builds reach some 150 MiB."""
_IMAGE_ALIGN_BYTES = 2 * MIB


@dataclass(frozen=True, slots=True)
class KernelLayout:
    """How the kernel's address space is laid out, as far as VMCOREINFO tells."""

    machine: str
    """``x86_64`` or ``aarch64``."""
    page_size_bytes: int
    va_bits: int
    level_names: tuple[str, ...]
    image_voffset: int
    """Virtual minus physical address of the kernel image, modulo 2^64."""
    image_range: tuple[VirtAddr, VirtAddr]
    """Where to look for what lies in the kernel image, ``[start, end)``: an upper bound, not all of it is mapped."""
    vmcoreinfo_source: str


class KernelMemory:
    """
    The kernel's virtual memory in a dump.

    Made by :func:`open_kernel_memory`. All values are little-endian, as the
    machines that are supported are.
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        vmcoreinfo: Vmcoreinfo,
        tables: PageTables,
        layout: KernelLayout,
        direct: VirtualSegment | None,
    ) -> None:
        self.physical = memory
        self.vmcoreinfo = vmcoreinfo
        self.tables = tables
        self.layout = layout
        self._direct = direct
        self._page_shift = tables.page_shift
        self._translations: OrderedDict[int, int] = OrderedDict()

    @property
    def machine(self) -> str:
        """``uname -m`` of the kernel: ``x86_64`` or ``aarch64``."""
        return self.layout.machine

    @property
    def page_size_bytes(self) -> int:
        """The kernel's ``PAGE_SIZE``."""
        return 1 << self._page_shift

    @property
    def kaslr_offset(self) -> int:
        """Runtime minus link-time address of the kernel image; 0 where VMCOREINFO has no ``KERNELOFFSET``."""
        return self.vmcoreinfo.kerneloffset or 0

    def forget(self) -> None:
        """Forget translations and tables: memory has changed."""
        self._translations.clear()
        self.tables.forget()

    def walk(self, vaddr: VirtAddr) -> Walk:
        """Follow an address down the kernel's page tables; never raises for what is missing."""
        return self.tables.walk(vaddr)

    def translate(self, vaddr: VirtAddr) -> PhysAddr:
        """
        Translate one kernel address.

        Raises
        ------
        TranslationError
            If it is not mapped; says why.
        """
        page = vaddr >> self._page_shift
        inside = vaddr & (self.page_size_bytes - 1)
        base = self._translations.get(page)
        if base is None:
            base = self._translate_page(VirtAddr(vaddr - inside))
            self._translations[page] = base
            if len(self._translations) > _CACHED_TRANSLATIONS:
                self._translations.popitem(last=False)
        return PhysAddr(base + inside)

    def read(self, vaddr: VirtAddr | int, size_bytes: int) -> bytes:
        """
        Read bytes at a kernel address, across pages.

        Raises
        ------
        TranslationError
            If part of the range is not mapped.
        PageAbsentError
            If part of the range is mapped to memory that the dump does not hold.
        """
        vaddr = self._check_range(vaddr, size_bytes)
        if size_bytes <= self.page_size_bytes - (vaddr & (self.page_size_bytes - 1)):
            paddr = self.translate(vaddr)
            try:
                return self.physical.read(paddr, size_bytes)
            except PageAbsentError as error:
                raise _at_vaddr(error, vaddr + error.paddr - paddr) from None
        return self._read_all(vaddr, size_bytes).tobytes()

    def read_u8(self, vaddr: VirtAddr | int) -> int:
        """Read a ``u8``; raises as :meth:`read` does."""
        return self.read(vaddr, 1)[0]

    def read_u16(self, vaddr: VirtAddr | int) -> int:
        """Read a ``u16``; raises as :meth:`read` does."""
        return int.from_bytes(self.read(vaddr, 2), "little")

    def read_u32(self, vaddr: VirtAddr | int) -> int:
        """Read a ``u32``; raises as :meth:`read` does."""
        return int.from_bytes(self.read(vaddr, 4), "little")

    def read_u64(self, vaddr: VirtAddr | int) -> int:
        """Read a ``u64``, ``unsigned long`` or pointer; raises as :meth:`read` does."""
        return int.from_bytes(self.read(vaddr, 8), "little")

    def read_c_string(self, vaddr: VirtAddr | int, limit_bytes: int = _C_STRING_LIMIT_BYTES) -> bytes:
        """
        Read a NUL-terminated string, without its NUL.

        Raises
        ------
        CorruptError
            If there is no NUL within *limit_bytes*.
        TranslationError, PageAbsentError
            As for :meth:`read`.
        """
        parts: list[bytes] = []
        done = 0
        while done < limit_bytes:
            start = vaddr + done
            size = min(limit_bytes - done, self.page_size_bytes - (start & (self.page_size_bytes - 1)))
            head, nul, _ = self.read(start, size).partition(b"\0")
            parts.append(head)
            if nul:
                return b"".join(parts)
            done += size
        raise CorruptError(f"the string at {vaddr:#x} has no end within {limit_bytes} bytes")

    def read_array(self, vaddr: VirtAddr | int, dtype: DTypeLike, count: int) -> NDArray[Any]:
        """
        Read *count* elements of a numpy type in bulk.

        Raises
        ------
        TranslationError, PageAbsentError
            As for :meth:`read`.
        """
        item = np.dtype(dtype).newbyteorder("<")
        vaddr = self._check_range(vaddr, item.itemsize * count)
        return self._read_all(vaddr, item.itemsize * count).view(item)

    def read_available(self, vaddr: VirtAddr | int, size_bytes: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """
        Read what there is of a range, in bulk.

        Returns
        -------
        data : ndarray of uint8, shape (size_bytes,)
            Contents; zeroes where the dump has none.
        present : ndarray of bool, shape (size_bytes,)
            False for each byte that is not mapped or not in the dump.
        """
        vaddr = self._check_range(vaddr, size_bytes)
        data, states, _, skip, unit = self._read_units(vaddr, size_bytes)
        present = np.repeat(states == PageState.PRESENT, unit)
        return data.reshape(-1)[skip : skip + size_bytes], present[skip : skip + size_bytes]

    def _translate_page(self, vaddr: VirtAddr) -> int:
        direct = self._direct
        if direct is not None and 0 <= vaddr - direct.vaddr < direct.size_bytes:
            return (vaddr - direct.vaddr + direct.paddr) & _WORD
        return self.tables.translate(vaddr)

    def _read_all(self, vaddr: VirtAddr, size_bytes: int) -> NDArray[np.uint8]:
        data, states, paddrs, skip, unit = self._read_units(vaddr, size_bytes)
        bad = np.nonzero(states != PageState.PRESENT)[0]
        if len(bad):
            first = int(bad[0])
            at = max(vaddr, vaddr - skip + first * unit)
            if int(paddrs[first]) == NOT_MAPPED:
                reason = self.walk(VirtAddr(at)).reason or "its address is out of range"
                raise TranslationError(f"virtual address {at:#x} is not mapped: {reason}", vaddr=at)
            raise _at_vaddr(page_absent_error(int(paddrs[first]), int(states[first])), at)
        return data.reshape(-1)[skip : skip + size_bytes]

    def _read_units(
        self, vaddr: VirtAddr, size_bytes: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint64], int, int]:
        """
        Read the pages that a range touches, in units of the smaller of the two page sizes.

        Returns their contents, states and physical addresses, the bytes to skip
        at the front, and the unit's size.
        """
        frame = self.physical.page_size_bytes
        unit = min(frame, self.page_size_bytes)
        skip = vaddr & (unit - 1)
        count = -(-(skip + size_bytes) // unit)
        paddrs = self._translate_units(VirtAddr(vaddr - skip), count, unit)
        mapped = paddrs != np.uint64(NOT_MAPPED)
        pages, page_states = self.physical.read_pages(paddrs[mapped] // np.uint64(frame))
        if frame != unit:
            inside = (paddrs[mapped] % np.uint64(frame)) // np.uint64(unit)
            pages = pages.reshape(len(pages), frame // unit, unit)[np.arange(len(pages)), inside]
        if mapped.all():
            return pages, page_states, paddrs, skip, unit
        data = np.zeros((count, unit), dtype=np.uint8)
        data[mapped] = pages
        states = np.full(count, PageState.ABSENT, dtype=np.uint8)
        states[mapped] = page_states
        return data, states, paddrs, skip, unit

    def _translate_units(self, vaddr: VirtAddr, count: int, unit: int) -> NDArray[np.uint64]:
        direct = self._direct
        if direct is not None and direct.vaddr <= vaddr and vaddr + count * unit <= direct.vaddr + direct.size_bytes:
            start = (vaddr - direct.vaddr + direct.paddr) & _WORD
            return np.uint64(start) + np.arange(count, dtype=np.uint64) * np.uint64(unit)
        per_page = self.page_size_bytes // unit
        lead = (vaddr & (self.page_size_bytes - 1)) // unit
        pages = self.tables.translate_pages(vaddr, -(-(lead + count) // per_page))
        if per_page == 1:
            return pages
        steps = np.arange(per_page, dtype=np.uint64) * np.uint64(unit)
        units = np.where(pages[:, None] == np.uint64(NOT_MAPPED), np.uint64(NOT_MAPPED), pages[:, None] + steps)
        return units.reshape(-1)[lead : lead + count]

    def _check_range(self, vaddr: int, size_bytes: int) -> VirtAddr:
        if not 0 <= size_bytes <= _READ_LIMIT_BYTES:
            raise CorruptError(
                f"{size_bytes} bytes asked for at {vaddr:#x}, at most {format_size(_READ_LIMIT_BYTES)} are read at once"
            )
        if not 0 <= vaddr <= _WORD or vaddr + size_bytes > _WORD + 1:
            raise TranslationError(f"{vaddr:#x} and {size_bytes} bytes is beyond 64 bits", vaddr=vaddr)
        return VirtAddr(vaddr)


def open_kernel_memory(dump: Dump, vmcoreinfo: Vmcoreinfo | None = None) -> KernelMemory:
    """
    Find the kernel in a dump and give its virtual memory.

    VMCOREINFO is taken from the dump's note, else looked for in memory; there, a
    text counts only when the page tables it names map the kernel's text where the
    text says it is.

    Parameters
    ----------
    vmcoreinfo : Vmcoreinfo, optional
        To be believed instead.

    Raises
    ------
    FactAbsentError
        If there is no VMCOREINFO, or it lacks what translation needs.
    UnsupportedError
        If the machine is neither x86-64 nor arm64.
    CorruptError
        If VMCOREINFO holds values that no such machine has.
    """
    description = dump.description
    if vmcoreinfo is not None:
        return _make_kernel_memory(dump, description, vmcoreinfo)
    if description.vmcoreinfo:
        vmcoreinfo = parse_vmcoreinfo(description.vmcoreinfo, source=f"note of the {description.format} file")
    else:
        vmcoreinfo = find_vmcoreinfo(dump, accepts=lambda info: _describes_memory(dump, description, info))
    return _make_kernel_memory(dump, description, vmcoreinfo)


def _make_kernel_memory(memory: PhysicalMemory, description: DumpDescription, vmcoreinfo: Vmcoreinfo) -> KernelMemory:
    machine = description.machine or _detect_machine(vmcoreinfo)
    make = _MACHINES.get(machine)
    if make is None:
        raise UnsupportedError(f"kernels of machine {machine!r} cannot be read, only x86_64 and aarch64")
    return make(memory, description, vmcoreinfo)


def _detect_machine(vmcoreinfo: Vmcoreinfo) -> str:
    """Tell the machine by the numbers that only its kernels export (``arch/*/kernel/vmcore_info*.c``)."""
    if vmcoreinfo.get("NUMBER(kimage_voffset)") is not None:
        return "aarch64"
    if vmcoreinfo.get("NUMBER(phys_base)") is not None or vmcoreinfo.get_symbol("init_top_pgt") is not None:
        return "x86_64"
    raise FactAbsentError("neither the dump's header nor VMCOREINFO tells the machine")


def _describes_memory(memory: PhysicalMemory, description: DumpDescription, vmcoreinfo: Vmcoreinfo) -> bool:
    """Tell whether the page tables that a VMCOREINFO names map the kernel's text where it says the text is."""
    try:
        kernel = _make_kernel_memory(memory, description, vmcoreinfo)
        stext = vmcoreinfo.symbol("_stext")
        return kernel.tables.translate(stext) == (stext - kernel.layout.image_voffset) & _WORD
    except PostpanicError:
        return False


def _make_x86_64(memory: PhysicalMemory, description: DumpDescription, vmcoreinfo: Vmcoreinfo) -> KernelMemory:
    phys_base = _find_phys_base(description, vmcoreinfo)
    size = x86_64.find_image_size_bytes(vmcoreinfo)
    tables = x86_64.X86PageTables(
        memory,
        x86_64.find_root_paddr(vmcoreinfo, phys_base),
        level_count=5 if vmcoreinfo.get_number("pgtable_l5_enabled") else 4,
        encryption_mask=vmcoreinfo.get_number("sme_mask") or 0,
    )
    direct = VirtualSegment(x86_64.START_KERNEL_MAP, PhysAddr(phys_base & _WORD), size)
    start = _search_start(vmcoreinfo)
    end = min(start + _IMAGE_SEARCH_BYTES, direct.vaddr + size)
    layout = KernelLayout(
        "x86_64",
        1 << tables.page_shift,
        tables.va_bits,
        tuple(level.name for level in tables.levels),
        (direct.vaddr - phys_base) & _WORD,
        (start, VirtAddr(max(start, end))),
        vmcoreinfo.source,
    )
    return KernelMemory(memory, vmcoreinfo, tables, layout, direct)


def _find_phys_base(description: DumpDescription, vmcoreinfo: Vmcoreinfo) -> int:
    """Find ``phys_base``: VMCOREINFO has it since 4.10 (401721ecd1dc), a kdump header before that, else a segment."""
    number = vmcoreinfo.get_number("phys_base")
    if number is not None:
        return number
    for segment in description.segments:
        if segment.vaddr >= x86_64.START_KERNEL_MAP:
            return segment.paddr - (segment.vaddr - x86_64.START_KERNEL_MAP)
    if description.phys_base is not None:
        return description.phys_base
    raise FactAbsentError("neither VMCOREINFO nor the dump's header has phys_base")


def _make_aarch64(memory: PhysicalMemory, _description: DumpDescription, vmcoreinfo: Vmcoreinfo) -> KernelMemory:
    page_size = vmcoreinfo.page_size_bytes or memory.page_size_bytes
    page_shift = page_size.bit_length() - 1
    if page_size <= 0 or page_size != 1 << page_shift:
        raise CorruptError(f"VMCOREINFO entry PAGESIZE is {page_size}, must be a power of two")
    tables = aarch64.Arm64PageTables(
        memory,
        aarch64.find_root_paddr(vmcoreinfo),
        page_shift=page_shift,
        va_bits=aarch64.find_va_bits(vmcoreinfo, page_shift),
    )
    start = _search_start(vmcoreinfo)
    layout = KernelLayout(
        "aarch64",
        page_size,
        tables.va_bits,
        tuple(level.name for level in tables.levels),
        vmcoreinfo.number("kimage_voffset") & _WORD,
        (start, VirtAddr(min(start + _IMAGE_SEARCH_BYTES, _WORD))),
        vmcoreinfo.source,
    )
    return KernelMemory(memory, vmcoreinfo, tables, layout, None)


def _search_start(vmcoreinfo: Vmcoreinfo) -> VirtAddr:
    return VirtAddr(vmcoreinfo.symbol("_stext") & ~(_IMAGE_ALIGN_BYTES - 1))


_MACHINES: dict[str, Callable[[PhysicalMemory, DumpDescription, Vmcoreinfo], KernelMemory]] = {
    "x86_64": _make_x86_64,
    "aarch64": _make_aarch64,
}


def _at_vaddr(error: PageAbsentError, vaddr: int) -> PageAbsentError:
    return PageAbsentError(f"virtual address {vaddr:#x}: {error.message}", paddr=error.paddr, where=error.where)
