"""
Give a dump to drgn.

drgn opens ELF vmcores and, through libkdumpfile, kdump files. It does not open
QEMU's kdump files, split sets or damaged files, it reads flattened ones slowly,
its searches of kdump files end at the first page that is not there, and it fills
pages that an ELF dump leaves out with zeroes. So it opens whole ELF files by
itself, and all others are served to it: a core file in memory that has the notes (registers of each CPU, VMCOREINFO)
and no contents, one physical memory segment per range of RAM, and on x86-64 one
of the kernel's half of the address space, read through our page tables. Elsewhere,
and for user space, drgn walks the tables itself.

What is written into the overlay of the dump is seen by the program at once:
what is kept of memory here is dropped, and in a file that drgn opened by itself
a written page becomes a memory segment over it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import drgn

from postpanic.dumps.memory import Dump
from postpanic.dumps.overlay import Overlay
from postpanic.errors import PageAbsentError, TranslationError, UnsupportedError
from postpanic.kernel.memory import KernelMemory
from postpanic.units import PhysAddr, VirtAddr

__all__ = ["build_core_header", "create_program"]

_ELF_MACHINES = {
    "x86_64": 62,
    "aarch64": 183,
    "i686": 3,
    "i386": 3,
    "armv7l": 40,
    "arm": 40,
    "ppc64": 21,
    "ppc64le": 21,
    "s390x": 22,
    "riscv64": 243,
    "loongarch64": 258,
}
"""``uname -m`` to ``e_machine`` (System V ABI, ``EM_*`` of ``elf.h``)."""

_ET_CORE = 4
_PT_NOTE = 4
_EHDR_SIZE = 64
_PHDR_SIZE = 56
_NT_VMCOREINFO = 0
_VMCOREINFO_OWNER = b"VMCOREINFO\0"
_KERNEL_HALF = 1 << 63
"""Where the kernel's half of the address space begins, and its size."""
_MAX_KEPT_PAGES = 4096
_MAX_MEMFD_NAME = 200
"""memfd_create(2) takes 249 bytes."""


def _encode_note(owner: bytes, type_: int, contents: bytes, order: str) -> bytes:
    def pad(data: bytes) -> bytes:
        return data + bytes(-len(data) % 4)

    return struct.pack(f"{order}III", len(owner), len(contents), type_) + pad(owner) + pad(contents)


def build_core_header(machine: str, byte_order: str, notes: bytes, vmcoreinfo: bytes) -> bytes:
    """
    Build an ELF64 core file of notes alone.

    Parameters
    ----------
    machine : str
        ``uname -m`` spelling.
    byte_order : str
        ``little`` or ``big``.
    notes : bytes
        ``Elf64_Nhdr`` records of the dump.
    vmcoreinfo : bytes
        Text to add as a VMCOREINFO note where *notes* have none.

    Raises
    ------
    UnsupportedError
        If the machine is not one that drgn has a name for.

    Notes
    -----
    Layout: System V ABI, chapter 4 (``Elf64_Ehdr``, ``Elf64_Phdr``); the note
    is ``vmcoreinfo_note`` of the kernel's ``kernel/vmcore_info.c``.
    """
    if machine not in _ELF_MACHINES:
        known = ", ".join(sorted(_ELF_MACHINES))
        raise UnsupportedError(f"machine {machine or 'unknown'!r} cannot be analysed (known: {known})")
    order = "<" if byte_order == "little" else ">"
    if vmcoreinfo and _VMCOREINFO_OWNER not in notes:
        notes += _encode_note(_VMCOREINFO_OWNER, _NT_VMCOREINFO, vmcoreinfo, order)
    ident = b"\x7fELF" + bytes([2, 1 if order == "<" else 2, 1]) + bytes(9)
    header = ident + struct.pack(
        f"{order}HHIQQQIHHHHHH",
        _ET_CORE, _ELF_MACHINES[machine], 1, 0, _EHDR_SIZE, 0, 0, _EHDR_SIZE, _PHDR_SIZE, 1, 0, 0, 0,
    )  # fmt: skip
    offset = _EHDR_SIZE + _PHDR_SIZE
    return header + struct.pack(f"{order}IIQQQQQQ", _PT_NOTE, 0, offset, 0, 0, len(notes), len(notes), 4) + notes


def _segment_reader(dump: Overlay, base_paddr: int, *, zero_excluded: bool) -> Callable[[int, int, int, bool], bytes]:
    page_size_bytes = dump.page_size_bytes

    def read_checked(paddr: int, size_bytes: int) -> bytes:
        try:
            return dump.read(PhysAddr(paddr), size_bytes)
        except PageAbsentError as exc:
            if zero_excluded:
                return read_or_zeroes(paddr, size_bytes)
            # drgn puts the address behind the reason by itself.
            reason = exc.message.removeprefix(f"physical address {exc.paddr:#x} is ")
            raise drgn.FaultError(f"physical page is {reason}", exc.paddr) from None

    def read_or_zeroes(paddr: int, size_bytes: int) -> bytes:
        parts = []
        while size_bytes:
            step = min(size_bytes, page_size_bytes - paddr % page_size_bytes)
            try:
                parts.append(dump.read(PhysAddr(paddr), step))
            except PageAbsentError:
                parts.append(bytes(step))
            paddr += step
            size_bytes -= step
        return b"".join(parts)

    # drgn reads strings byte by byte, so the last page is kept at hand.
    offset_mask = page_size_bytes - 1
    last_paddr, last_page = -1, b""

    def forget(_: frozenset[int]) -> None:
        nonlocal last_paddr
        last_paddr = -1

    dump.listen(forget)

    def read_segment(address: int, count: int, offset: int, physical: bool) -> bytes:  # noqa: ARG001
        nonlocal last_paddr, last_page
        paddr = base_paddr + offset
        start = paddr & offset_mask
        if start + count > page_size_bytes:
            return read_checked(paddr, count)
        if paddr - start != last_paddr:
            try:
                last_page = dump.read(PhysAddr(paddr - start), page_size_bytes)
            except PageAbsentError:
                # A part of the page may be there.
                return read_checked(paddr, count)
            last_paddr = paddr - start
        return last_page[start : start + count]

    return read_segment


def create_program(dump: Overlay, memory: KernelMemory, *, zero_excluded: bool = False) -> drgn.Program:
    """
    Make a program whose memory and notes are those of *dump*.

    Parameters
    ----------
    dump : Overlay
        The dump; the program sees what is written into it later.
    memory : KernelMemory
        Kernel virtual memory of the dump: its machine, its VMCOREINFO (from the
        note or found in memory) and its page tables are used.
    zero_excluded : bool
        Read pages that the dump does not hold as zeroes, as crash does with
        ``--zero_excluded``; otherwise reading one is a ``drgn.FaultError``.

    Raises
    ------
    UnsupportedError
        If the machine is not one that drgn knows.
    """
    if not zero_excluded and (prog := _open_plainly(dump)) is not None:
        _show_writes(prog, dump)
        return prog
    return _serve(dump, memory, zero_excluded=zero_excluded)


def _open_plainly(dump: Dump) -> drgn.Program | None:
    """Let drgn open a file that it reads as it should; None where it would not."""
    description = dump.description
    is_odd = description.incomplete or description.has_holes or description.is_stream or not description.vmcoreinfo
    if is_odd or description.is_paged or len(description.paths) > 1:
        return None
    prog = drgn.Program()
    try:
        prog.set_core_dump(description.paths[0])
    except (ValueError, OSError, LookupError, drgn.FaultError):
        return None
    return prog


def _show_writes(prog: drgn.Program, dump: Overlay) -> None:
    """Lay each page that is written over the file that drgn reads, at all addresses that the file itself gives it."""
    size_bytes = dump.page_size_bytes
    shown: set[int] = set()

    def read_page(address: int, count: int, offset: int, physical: bool, *, base: int) -> bytes:  # noqa: ARG001
        return dump.read(PhysAddr(base + offset), count)

    def show(pfns: frozenset[int]) -> None:
        for pfn in sorted(pfns - shown):
            start = pfn * size_bytes
            prog.add_memory_segment(start, size_bytes, partial(read_page, base=start), physical=True)
            for segment in dump.description.segments:
                first = max(start, segment.paddr)
                last = min(start + size_bytes, segment.paddr + segment.size_bytes)
                if first < last:
                    vaddr = segment.vaddr + first - segment.paddr
                    prog.add_memory_segment(vaddr, last - first, partial(read_page, base=first), physical=False)
        shown.update(pfns)

    dump.listen(show)


def _serve(dump: Overlay, memory: KernelMemory, *, zero_excluded: bool) -> drgn.Program:
    """Make a program of the notes, and of memory that our reader serves."""
    description = dump.description
    core = build_core_header(memory.machine, description.byte_order, description.notes, memory.vmcoreinfo.text)
    prog = drgn.Program()
    # The program owns the descriptor from here on and closes it at its end; the name is all that it can say of it.
    fd = os.memfd_create(Path(description.paths[0]).name[:_MAX_MEMFD_NAME], os.MFD_CLOEXEC)
    with os.fdopen(fd, "wb", closefd=False) as file:
        file.write(core)
    prog.set_core_dump(fd)
    for start, end in dump.ram_ranges.tolist():
        prog.add_memory_segment(
            start, end - start, _segment_reader(dump, start, zero_excluded=zero_excluded), physical=True
        )
    if not zero_excluded and memory.machine == "x86_64":
        prog.add_memory_segment(_KERNEL_HALF, _KERNEL_HALF, _virtual_reader(dump, memory), physical=False)
    return prog


def _virtual_reader(dump: Overlay, memory: KernelMemory) -> Callable[[int, int, int, bool], bytes]:
    """
    Read the kernel's half of the address space through our own page tables.

    drgn reads strings byte by byte and walks the tables for each byte; here a
    page is translated once.
    """
    page_size_bytes = memory.page_size_bytes
    mask = page_size_bytes - 1
    pages: dict[int, bytes] = {}
    dump.listen(lambda _: pages.clear())

    def read_virtual(address: int, count: int, offset: int, physical: bool) -> bytes:  # noqa: ARG001
        start = address & mask
        try:
            if start + count > page_size_bytes:
                return bytes(memory.read(VirtAddr(address), count))
            page = pages.get(address - start)
            if page is None:
                if len(pages) >= _MAX_KEPT_PAGES:
                    pages.clear()
                page = pages[address - start] = bytes(memory.read(VirtAddr(address - start), page_size_bytes))
        except TranslationError as exc:
            raise drgn.FaultError("address is not mapped", max(address, exc.vaddr)) from None
        except PageAbsentError as exc:
            raise drgn.FaultError(f"page is {exc.message.rpartition(' is ')[2]}", address) from None
        return page[start : start + count]

    return read_virtual
