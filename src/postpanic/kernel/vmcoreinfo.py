"""
VMCOREINFO: the text in which a kernel describes itself to dump readers.

The kernel fills one page with ``KEY=value`` lines (``kernel/vmcore_info.c``,
before 6.9 ``kernel/crash_core.c``) and hands it over as an ELF note. A
hypervisor's dump or raw RAM has no such note, but it has the page: the live
copy, its note form, and in an armed machine the crash-time copy that lies in
crash kernel memory. :func:`find_vmcoreinfo` looks for them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.memory import PageState, PhysicalMemory
from postpanic.errors import CorruptError, FactAbsentError
from postpanic.units import GIB, KIB, MIB, PhysAddr, VirtAddr, format_size

__all__ = [
    "Vmcoreinfo",
    "find_vmcoreinfo",
    "parse_vmcoreinfo",
    "scan_vmcoreinfo",
]

_TEXT_LIMIT_BYTES = 64 * KIB
"""The kernel's buffer is one page (``VMCOREINFO_BYTES``), at most 64 KiB."""

_MAGIC = b"OSRELEASE="
_NOTE_NAME = b"VMCOREINFO\0"
_NOTE_NAME_OFFSET = 12
_NOTE_TEXT_OFFSET = 24

_SCAN_CHUNK_BYTES = 8 * MIB
_SCAN_LIMIT_BYTES = 256 * GIB
_CANDIDATE_LIMIT = 64

_HEX = re.compile(r"(?:0[xX])?[0-9a-fA-F]{1,16}\Z")
_NUMBER = re.compile(r"-?[0-9]{1,20}\Z|0[xX][0-9a-fA-F]{1,16}\Z")

# Every kernel since 2.6.24 writes these (kernel/vmcore_info.c, crash_save_vmcoreinfo_init()).
_REQUIRED_KEYS = ("OSRELEASE", "PAGESIZE", "SYMBOL(init_uts_ns)", "SYMBOL(_stext)")


@dataclass(frozen=True, slots=True)
class Vmcoreinfo:
    """
    The ``KEY=value`` lines of one VMCOREINFO text.

    ``symbol()``, ``offset()``, ``size()``, ``length()`` and ``number()`` raise
    when the kernel did not write the entry; their ``get_`` twins return None.
    All raise :class:`~postpanic.errors.CorruptError` for a value that is no
    number.
    """

    text: bytes
    entries: dict[str, str]
    source: str = "note"
    """Where the text was found, as one phrase."""

    def get(self, key: str) -> str | None:
        """Give the value of a line as it stands, or None."""
        return self.entries.get(key)

    @property
    def osrelease(self) -> str:
        """The kernel's release, as ``uname -r`` prints it; empty when the line is missing."""
        return self.entries.get("OSRELEASE", "")

    @property
    def build_id(self) -> str | None:
        """Build ID of vmlinux in hex digits; None for kernels before 5.9, which do not write it."""
        return self.entries.get("BUILD-ID")

    @property
    def page_size_bytes(self) -> int | None:
        """``PAGE_SIZE`` of the kernel."""
        return self._decimal("PAGESIZE")

    @property
    def kerneloffset(self) -> int | None:
        """Runtime minus link-time address of the kernel image (KASLR); None when the line is missing."""
        return self._hex("KERNELOFFSET")

    @property
    def crash_time_s(self) -> int | None:
        """Seconds since 1970 at the crash; None in a kernel that did not crash through kexec."""
        return self._decimal("CRASHTIME")

    def get_symbol(self, name: str) -> VirtAddr | None:
        """Give the runtime address of a ``SYMBOL()`` entry, or None."""
        value = self._hex(f"SYMBOL({name})")
        return None if value is None else VirtAddr(value)

    def get_offset(self, member: str) -> int | None:
        """Give an ``OFFSET()`` entry, such as ``page.flags``, in bytes, or None."""
        return self._decimal(f"OFFSET({member})")

    def get_size(self, type_name: str) -> int | None:
        """Give a ``SIZE()`` entry in bytes, or None."""
        return self._decimal(f"SIZE({type_name})")

    def get_length(self, name: str) -> int | None:
        """Give a ``LENGTH()`` entry, in elements, or None."""
        return self._decimal(f"LENGTH({name})")

    def get_number(self, name: str) -> int | None:
        """Give a ``NUMBER()`` entry, signed decimal or ``0x`` hexadecimal, or None."""
        return self._decimal(f"NUMBER({name})")

    def symbol(self, name: str) -> VirtAddr:
        """
        Give the runtime address of a ``SYMBOL()`` entry.

        Raises
        ------
        FactAbsentError
            If the kernel did not write the entry.
        CorruptError
            If its value is no address.
        """
        return VirtAddr(_required(self.get_symbol(name), f"SYMBOL({name})"))

    def offset(self, member: str) -> int:
        """Give an ``OFFSET()`` entry in bytes; raises as :meth:`symbol` does."""
        return _required(self.get_offset(member), f"OFFSET({member})")

    def size(self, type_name: str) -> int:
        """Give a ``SIZE()`` entry in bytes; raises as :meth:`symbol` does."""
        return _required(self.get_size(type_name), f"SIZE({type_name})")

    def length(self, name: str) -> int:
        """Give a ``LENGTH()`` entry in elements; raises as :meth:`symbol` does."""
        return _required(self.get_length(name), f"LENGTH({name})")

    def number(self, name: str) -> int:
        """Give a ``NUMBER()`` entry; raises as :meth:`symbol` does."""
        return _required(self.get_number(name), f"NUMBER({name})")

    @property
    def symbols(self) -> dict[str, VirtAddr]:
        """All ``SYMBOL()`` entries that are addresses: name to runtime address."""
        return {
            key[7:-1]: VirtAddr(int(value, 16))
            for key, value in self.entries.items()
            if key.startswith("SYMBOL(") and key.endswith(")") and _HEX.match(value)
        }

    def _hex(self, key: str) -> int | None:
        value = self.entries.get(key)
        if value is None:
            return None
        if not _HEX.match(value):
            raise _bad_value(key, value, "up to 16 hexadecimal digits")
        return int(value, 16)

    def _decimal(self, key: str) -> int | None:
        value = self.entries.get(key)
        if value is None:
            return None
        if not _NUMBER.match(value):
            raise _bad_value(key, value, "a decimal or 0x number of 64 bits")
        number = int(value, 16 if value[:2] in {"0x", "0X"} else 10)
        if not -(1 << 63) <= number < 1 << 64:
            raise _bad_value(key, value, "a decimal or 0x number of 64 bits")
        return number


def _required(value: int | None, key: str) -> int:
    if value is None:
        raise FactAbsentError(f"VMCOREINFO has no {key}")
    return value


def _bad_value(key: str, value: str, allowed: str) -> CorruptError:
    return CorruptError(f"VMCOREINFO entry {key} is {value[:40]!r}, must be {allowed}")


def parse_vmcoreinfo(text: bytes, *, source: str = "note") -> Vmcoreinfo:
    r"""
    Parse the text of a VMCOREINFO note.

    The text ends at the first NUL. Lines without ``=`` are left out; where a
    key occurs twice the later line counts, as the kernel only ever appends.
    Anything beyond 64 KiB, the largest page there is, is not looked at.

    >>> parse_vmcoreinfo(b"OSRELEASE=6.1.0\nSYMBOL(prb)=ffffffff82c5a520\n").osrelease
    '6.1.0'
    """
    text = bytes(text[:_TEXT_LIMIT_BYTES]).split(b"\0", 1)[0]
    entries: dict[str, str] = {}
    for line in text.decode("utf-8", "replace").split("\n"):
        key, separator, value = line.partition("=")
        if separator:
            entries[key] = value.strip()
    return Vmcoreinfo(text, entries, source)


def find_vmcoreinfo(
    memory: PhysicalMemory,
    *,
    accepts: Callable[[Vmcoreinfo], bool] | None = None,
    limit_bytes: int = _SCAN_LIMIT_BYTES,
) -> Vmcoreinfo:
    """
    Look for the VMCOREINFO text in physical memory.

    Memory may hold several: the running kernel's page, the note made of it, the
    copy in crash kernel memory, and leftovers of an earlier kernel in pages that
    were never overwritten.

    Parameters
    ----------
    memory : PhysicalMemory
        Where to look; its RAM is read once, in chunks of a few MiB.
    accepts : callable, optional
        Tells whether a text describes the kernel in this memory (page tables
        agree, say). The first accepted one ends the search. Without it all of
        memory is read, and of the texts found the one with a crash time is
        chosen, else the one that occurs most often.
    limit_bytes : int
        How much RAM to read at most.

    Raises
    ------
    FactAbsentError
        If no text is found, or none is accepted.
    """
    rejected = 0
    found: list[Vmcoreinfo] = []
    for candidate in scan_vmcoreinfo(memory, limit_bytes=limit_bytes):
        if accepts is None:
            found.append(candidate)
        elif accepts(candidate):
            return candidate
        else:
            rejected += 1
    if found:
        counts = {text: sum(info.text == text for info in found) for text in {info.text for info in found}}
        return max(found, key=lambda info: (info.crash_time_s is not None, counts[info.text]))
    why = f"; {rejected} found that describe another kernel" if rejected else ""
    raise FactAbsentError(
        f"no VMCOREINFO in the first {format_size(limit_bytes)} of memory{why}",
        hint="it may have been left out of the dump, or the memory is not that of a Linux kernel",
    )


def scan_vmcoreinfo(memory: PhysicalMemory, *, limit_bytes: int = _SCAN_LIMIT_BYTES) -> Iterator[Vmcoreinfo]:
    """
    Yield every plausible VMCOREINFO text in physical memory, by rising address.

    A text is plausible when it starts at a page boundary, or behind the header of
    a note that does, and has the lines that every kernel writes.
    """
    page_size = memory.page_size_bytes
    seen = 0
    for pfns in _scan_chunks(memory, limit_bytes):
        pages, _ = memory.read_pages(pfns)
        for index, text_offset in _text_starts(pages):
            paddr = PhysAddr(int(pfns[index]) * page_size + text_offset)
            info = parse_vmcoreinfo(_read_text(memory, paddr), source=f"found in memory at {paddr:#x}")
            if _is_plausible(info):
                yield info
                seen += 1
                if seen >= _CANDIDATE_LIMIT:
                    return


def _scan_chunks(memory: PhysicalMemory, limit_bytes: int) -> Iterator[NDArray[np.uint64]]:
    """Give the frame numbers of all RAM that is present, in arrays of a few MiB of memory."""
    page_size = memory.page_size_bytes
    per_chunk = max(1, _SCAN_CHUNK_BYTES // page_size)
    remaining = limit_bytes // page_size
    for start, end in memory.ram_ranges.tolist():
        first, stop = -(-start // page_size), end // page_size
        while first < stop and remaining > 0:
            count = min(per_chunk, stop - first, remaining)
            pfns = np.arange(first, first + count, dtype=np.uint64)
            first += count
            remaining -= count
            present = pfns[memory.page_states(pfns) == PageState.PRESENT]
            if len(present):
                yield present


def _text_starts(pages: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Find the pages that begin as the text or as its note does: index and offset of the text."""
    if pages.shape[1] < _NOTE_TEXT_OFFSET + len(_MAGIC):
        return []
    # One word decides for nearly every page; the whole prefix is compared for the rest.
    starts = []
    for offset in (0, _NOTE_TEXT_OFFSET):
        maybe = np.nonzero(pages[:, offset] == _MAGIC[0])[0]
        for index in maybe[(pages[maybe, offset : offset + len(_MAGIC)] == list(_MAGIC)).all(axis=1)].tolist():
            name = pages[index, _NOTE_NAME_OFFSET : _NOTE_NAME_OFFSET + len(_NOTE_NAME)].tobytes()
            if offset == 0 or name == _NOTE_NAME:
                starts.append((index, offset))
    return starts


def _read_text(memory: PhysicalMemory, paddr: PhysAddr) -> bytes:
    """Read on from the start of a text to its NUL or the first page that is not there."""
    page_size = memory.page_size_bytes
    parts: list[bytes] = []
    size = 0
    while size < _TEXT_LIMIT_BYTES:
        pages, states = memory.read_pages(np.array([(paddr + size) // page_size], dtype=np.uint64))
        if states[0] != PageState.PRESENT:
            break
        part = pages[0, (paddr + size) % page_size :].tobytes()
        parts.append(part)
        size += len(part)
        if b"\0" in part:
            break
    return b"".join(parts)


def _is_plausible(info: Vmcoreinfo) -> bool:
    """Tell whether the lines that every kernel writes are there and are numbers."""
    if any(key not in info.entries for key in _REQUIRED_KEYS):
        return False
    try:
        page_size = info.page_size_bytes or 0
        return (
            KIB <= page_size <= _TEXT_LIMIT_BYTES
            and page_size & (page_size - 1) == 0
            and bool(info.get_symbol("init_uts_ns"))
            and bool(info.get_symbol("_stext"))
        )
    except CorruptError:
        return False
