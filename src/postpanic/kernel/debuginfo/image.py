"""The sections of a kernel image, told by the symbols that the linker script defines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from postpanic.kernel.debuginfo.symbols import Section
from postpanic.kernel.kallsyms import SymbolTable

__all__ = ["NAMED_CONTENTS", "NEVER_CONTENTS", "TEMPLATE", "image_sections", "link_vaddrs"]

_HIGH_HALF = np.uint64(1 << 63)

_BOUNDARIES: tuple[tuple[tuple[str, ...], str, str], ...] = (
    # Symbols of which the first that exists counts; the section that begins there; its flags.
    (("_text", "_stext"), ".text", "x"),
    (("_etext",), ".rodata", ""),
    (("__start_notes",), ".notes", ""),
    (("__stop_notes",), ".rodata.after_notes", ""),
    (("__start_BTF",), ".BTF", ""),
    (("__stop_BTF",), ".BTF_ids", ""),
    (("_sdata",), ".data", "w"),
    (("__start_orc_header",), ".orc_header", ""),
    (("__start_orc_unwind_ip",), ".orc_unwind_ip", ""),
    (("__start_orc_unwind",), ".orc_unwind", ""),
    (("__stop_orc_unwind",), ".orc_lookup", "w"),
    (("__init_begin",), ".init.data", "w"),
    (("_sinittext",), ".init.text", "wx"),
    (("__per_cpu_start",), ".data..percpu", "w"),
    (("__per_cpu_end",), ".init.after_percpu", "w"),
    (("__init_end",), ".data_nosave", "w"),
    (("__bss_start",), ".bss", "w"),
    (("__bss_stop",), ".brk", "w"),
    (("_end",), "", ""),
    (("__init_scratch_begin",), ".init.scratch", "w"),
    (("__init_scratch_end",), "", ""),
)
"""From ``include/asm-generic/vmlinux.lds.h`` and ``arch/*/kernel/vmlinux.lds.S``."""

NAMED_CONTENTS = (".notes", ".orc_header", ".orc_unwind_ip", ".orc_unwind")
"""Sections whose contents debuggers read from the file."""

NEVER_CONTENTS = (".bss", ".brk", ".init.scratch")
"""Sections that no vmlinux has contents for."""

TEMPLATE = ".data..percpu"
"""
What each CPU's area began as. The kernel frees it after boot, so that only its
place is known; crash takes its symbols for data only if the section has contents.
"""


def link_vaddrs(table: SymbolTable, kaslr_offset: int) -> NDArray[np.uint64]:
    """
    Addresses at which the kernel was linked.

    What is not in the upper half of the address space does not move: the per-CPU
    offsets of x86-64 before 6.15 and other absolute values.
    """
    vaddrs = table.vaddrs.copy()
    vaddrs[vaddrs >= _HIGH_HALF] -= np.uint64(kaslr_offset)
    return vaddrs


def image_sections(find: Callable[[str], int | None]) -> list[Section]:
    """
    Cut the image into sections that touch each other, ascending.

    Parameters
    ----------
    find : callable
        Gives the link-time address of a symbol, or None.
    """
    starts: dict[int, tuple[str, str]] = {}
    per_cpu: Section | None = None
    for symbols, name, flags in _BOUNDARIES:
        vaddr = next((at for symbol in symbols if (at := find(symbol)) is not None), None)
        if vaddr is None:
            continue
        if vaddr < int(_HIGH_HALF):
            if name == ".data..percpu":
                per_cpu = Section(name, vaddr, find("__per_cpu_end") or vaddr, writable=True)
            continue
        # Of two that begin at one address the first is empty, but what has contents stays.
        if starts.get(vaddr, ("", ""))[0] not in NAMED_CONTENTS:
            starts[vaddr] = (name, flags)
    result = [per_cpu] if per_cpu is not None and per_cpu.end > per_cpu.start else []
    ordered = sorted(starts.items())
    for (start, (name, flags)), (end, _) in pairwise(ordered):
        if name:
            result.append(Section(_unique(name, result), start, end, "x" in flags, "w" in flags))
    return result


def _unique(name: str, sections: Sequence[Section]) -> str:
    taken = {section.name for section in sections}
    return name if name not in taken else f"{name}.{len(taken)}"
