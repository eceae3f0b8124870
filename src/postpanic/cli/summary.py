"""Collect what ``postpanic info`` shows: from the file's headers, and from the kernel's own memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from postpanic.dumps.memory import Dump, DumpDescription, PageState
from postpanic.dumps.notes import count_cpus
from postpanic.errors import FactAbsentError, PostpanicError
from postpanic.kernel.btf.find import search_kernel_btf
from postpanic.kernel.kallsyms import SymbolTable
from postpanic.kernel.ksymtab import has_data_symbols, read_symbols
from postpanic.kernel.memory import KernelMemory, open_kernel_memory
from postpanic.kernel.uts import read_utsname
from postpanic.units import format_size

__all__ = ["Content", "DumpSummary", "summarize_dump"]

CHUNK_PAGES = 1 << 20

# What the kernel image ends and begins each table with; include/asm-generic/vmlinux.lds.h.
_BTF = "__start_BTF"
_TABLES = (("types (BTF)", _BTF, "__stop_BTF"), ("unwind (ORC)", "__start_orc_unwind", "__stop_orc_unwind"))


@dataclass(frozen=True, slots=True)
class Content:
    """Something that analysis without debug information needs: what there is, or why not."""

    name: str
    value: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class DumpSummary:
    """A dump file, its memory, its kernel."""

    description: DumpDescription
    ram_ranges: tuple[tuple[int, int], ...]
    page_counts: dict[str, int]
    """Frames of RAM by :class:`PageState`, in words; the file's own page size."""
    cpu_count: int
    """CPUs whose registers are in the notes (``NT_PRSTATUS``)."""
    utsname: dict[str, str]
    """What ``uname`` printed on the machine, as far as the file or the kernel's memory tells."""
    kernel: KernelMemory | None
    kernel_reason: str
    """Why there is no kernel, if there is none."""
    contents: tuple[Content, ...]

    @property
    def ram_bytes(self) -> int:
        """Size of all RAM that the dump describes."""
        return sum(end - start for start, end in self.ram_ranges)

    def to_json(self) -> dict[str, Any]:
        """Give everything as values that JSON has; addresses are numbers."""
        description = asdict(self.description)
        # Bytes: the text is below, the notes are counted.
        del description["vmcoreinfo"], description["notes"], description["utsname"]
        return {
            "dump": description | {"complete": not self.description.incomplete},
            "memory": {"ram_bytes": self.ram_bytes, "ram_ranges": self.ram_ranges, "pages": self.page_counts},
            "cpus_with_registers": self.cpu_count,
            "kernel": self._kernel_json(),
            "contents": [asdict(content) for content in self.contents],
        }

    def _kernel_json(self) -> dict[str, Any]:
        if self.kernel is None:
            return {"unavailable": self.kernel_reason}
        info = self.kernel.vmcoreinfo
        return {
            "release": info.osrelease,
            "machine": self.kernel.machine,
            "build_id": info.build_id,
            "kaslr_offset": info.kerneloffset,
            "crash_time_s": info.crash_time_s,
            "utsname": self.utsname,
            "vmcoreinfo_source": info.source,
            "vmcoreinfo": info.entries,
        }


def summarize_dump(dump: Dump) -> DumpSummary:
    """
    Look at an open dump.

    Only what the file is without cannot be had is an error; a kernel that
    cannot be found, or tables that are not in the dump, are parts of the answer.
    """
    description = dump.description
    kernel: KernelMemory | None = None
    reason = ""
    contents: tuple[Content, ...] = ()
    try:
        kernel = open_kernel_memory(dump)
        contents = tuple(_read_contents(kernel))
    except PostpanicError as exc:
        reason = str(exc)
    ranges = tuple((int(start), int(end)) for start, end in dump.ram_ranges.tolist())
    return DumpSummary(
        description=description,
        ram_ranges=ranges,
        page_counts=_count_pages(dump),
        cpu_count=count_cpus(description.notes, byte_order=description.byte_order),
        utsname=(_utsname(kernel) if kernel is not None else {})
        | {key: text for key, text in description.utsname.items() if text},
        kernel=kernel,
        kernel_reason=reason,
        contents=contents,
    )


def _count_pages(dump: Dump) -> dict[str, int]:
    counts = np.zeros(len(PageState), dtype=np.int64)
    for pfns in _frame_chunks(dump):
        counts += np.bincount(dump.page_states(pfns), minlength=len(PageState))
    return {state.name.lower(): int(counts[state]) for state in PageState}


def _frame_chunks(dump: Dump) -> Iterator[np.ndarray[Any, np.dtype[np.uint64]]]:
    page_size = dump.page_size_bytes
    for start, end in dump.ram_ranges.tolist():
        first, last = start // page_size, -(-end // page_size)
        for chunk in range(first, last, CHUNK_PAGES):
            yield np.arange(chunk, min(chunk + CHUNK_PAGES, last), dtype=np.uint64)


def _utsname(kernel: KernelMemory) -> dict[str, str]:
    try:
        return asdict(read_utsname(kernel))
    except PostpanicError:
        return {}


def _read_contents(kernel: KernelMemory) -> Iterator[Content]:
    try:
        symbols = read_symbols(kernel)
    except PostpanicError as exc:
        yield Content("symbols", "", str(exc))
        for name, _, _ in _TABLES:
            yield Content(name, "", "no symbols to find them by")
        return
    has_data = has_data_symbols(symbols)
    yield Content("symbols", f"{len(symbols)} in kallsyms{'' if has_data else ', exports and VMCOREINFO'}")
    for name, start, stop in _TABLES:
        try:
            if start == _BTF and not has_data:
                yield Content(name, format_size(len(search_kernel_btf(kernel)[1])))
                continue
            yield Content(name, _describe_table(kernel, symbols, start, stop))
        except PostpanicError as exc:
            yield Content(name, "", str(exc))


def _describe_table(kernel: KernelMemory, symbols: SymbolTable, start: str, stop: str) -> str:
    begin, end = symbols.get(start), symbols.get(stop)
    if begin is None or end is None or end <= begin:
        raise FactAbsentError(f"kallsyms has no {start}")
    size = end - begin
    _, present = kernel.read_available(begin, size)
    missing = size - int(present.sum())
    if missing:
        raise FactAbsentError(f"{format_size(missing)} of {format_size(size)} are not in the dump")
    return format_size(size)
