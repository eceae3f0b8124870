"""
Symbols of a kernel whose kallsyms has functions only.

Without ``CONFIG_KALLSYMS_ALL`` (Debian's arm64 kernels, for one) kallsyms lacks
data. Two other sources remain: what VMCOREINFO names, and the tables of symbols
that are exported to modules.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from postpanic.errors import FactAbsentError, PostpanicError
from postpanic.kernel.kallsyms import SymbolTable, make_symbol_table, read_kallsyms
from postpanic.kernel.kallsyms.symbols import make_table_of_names
from postpanic.kernel.memory import KernelMemory
from postpanic.units import MIB

__all__ = ["has_data_symbols", "make_vmcoreinfo_symbols", "read_exported_symbols", "read_symbols"]

_CHUNK_BYTES = 8 * MIB
_REACH_BYTES = 4 * MIB
"""How far behind an entry its strings may be: the tables and the strings are neighbours."""

_WORDS_PER_ENTRY = 3
_SHORTEST_RUN = 32
"""Entries in a row that are no accident; the smallest kernels export hundreds."""
_PERCPU_LIMIT = 16 * MIB
_NAME_LIMIT_BYTES = 512
"""``KSYM_NAME_LEN``."""
_RUNS_LIMIT = 16

_IDENTIFIER = re.compile(rb"[A-Za-z_][A-Za-z0-9_.$]*")

_ZEROED_DATA = np.frombuffer(b"Bb", dtype=np.uint8)
"""
nm's letters of data that begins as zeroes: every kernel has such, and ``scripts/kallsyms.c`` leaves it out without
``CONFIG_KALLSYMS_ALL``. Other letters of data may stand for marks of the linker beside the text (``_etext``).
"""
_NAME_STARTS = np.zeros(256, dtype=bool)
_NAME_STARTS[list(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_")] = True


def read_symbols(memory: KernelMemory) -> SymbolTable:
    """
    Read kallsyms and, where it lacks data, add what other sources have.

    Raises
    ------
    FactAbsentError, CorruptError, TruncatedError, TranslationError, PageAbsentError
        As :func:`.read_kallsyms` does.
    """
    table = read_kallsyms(memory)
    if has_data_symbols(table):
        return table
    table = table.merge(make_vmcoreinfo_symbols(memory))
    try:
        return table.merge(read_exported_symbols(memory))
    except FactAbsentError:
        return table


def has_data_symbols(table: SymbolTable) -> bool:
    """Tell whether kallsyms has data and not functions alone (``CONFIG_KALLSYMS_ALL``)."""
    return bool(np.isin(table.types, _ZEROED_DATA).any())


def make_vmcoreinfo_symbols(memory: KernelMemory) -> SymbolTable:
    """
    Make a table of the ``SYMBOL()`` entries that are in the kernel image, all of type ``D``.

    Those outside are no addresses of symbols but values of pointers
    (``mem_section`` of SPARSEMEM_EXTREME).
    """
    start, end = memory.layout.image_range
    return make_table_of_names(
        (name, vaddr) for name, vaddr in memory.vmcoreinfo.symbols.items() if start <= vaddr < end
    )


def read_exported_symbols(memory: KernelMemory) -> SymbolTable:
    """
    Find the tables of exported symbols by their shape, and read them.

    ``__ksymtab`` and ``__ksymtab_gpl`` are arrays of three 32-bit numbers, each
    the distance from itself to: the symbol, its name, its name space
    (``struct kernel_symbol`` with ``HAVE_ARCH_PREL32_RELOCATIONS``, 7290d5809571;
    8651ec01daed for the name space). All symbols are given the type ``D``: the
    functions among them are in kallsyms, whose entry counts when tables are merged.

    Raises
    ------
    FactAbsentError
        If nothing in the kernel image has this shape.
    """
    candidates = np.concatenate(list(_scan(memory)))
    runs = (run for run in _long_runs(candidates) if _has_names(memory, run))
    entries = next(runs, None)
    if entries is None:
        raise FactAbsentError(
            "no table of exported symbols in the kernel image",
            hint="the kernel was built without modules, or its read-only data was left out of the dump",
        )
    distances = memory.read_array(int(entries[0]), np.int32, len(entries) * _WORDS_PER_ENTRY).astype(np.int64)
    vaddrs = entries + distances[0::_WORDS_PER_ENTRY].view(np.uint64)
    names = entries + np.uint64(4) + distances[1::_WORDS_PER_ENTRY].view(np.uint64)
    low, high = int(names.min()), int(names.max()) + _NAME_LIMIT_BYTES
    strings, _ = memory.read_available(low, min(high - low, 2 * _REACH_BYTES))
    offsets = (names - np.uint64(low)).astype(np.int64)
    return make_symbol_table(vaddrs, np.full(len(vaddrs), ord("D"), dtype=np.uint8), strings.tobytes() + b"\0", offsets)


def _scan(memory: KernelMemory) -> Iterator[NDArray[np.uint64]]:
    """Yield the addresses of all that looks like an entry, for each piece of the kernel image."""
    start, end = memory.layout.image_range
    position: int = start
    yield np.empty(0, dtype=np.uint64)
    while position < end:
        size = min(_CHUNK_BYTES + _REACH_BYTES, end - position)
        data, _ = memory.read_available(position, size)
        yield _find_entries(data, position, min(_CHUNK_BYTES, size), (start, end))
        position += _CHUNK_BYTES


def _find_entries(data: NDArray[np.uint8], vaddr: int, owned_bytes: int, image: tuple[int, int]) -> NDArray[np.uint64]:
    """Give the addresses of what looks like an entry in the first *owned_bytes* of a piece of the image."""
    words = data[: len(data) // 4 * 4].view("<i4")
    last = max(0, min(owned_bytes // 4, len(words) - _WORDS_PER_ENTRY))
    names, spaces = words[1 : last + 1], words[2 : last + 2]
    near = (names > 0) & (names < _REACH_BYTES) & (spaces >= 0) & (spaces < _REACH_BYTES)
    starts = np.nonzero(near)[0]
    name_offsets = starts * 4 + 4 + names[starts]
    space_offsets = starts * 4 + 8 + spaces[starts]
    inside = (name_offsets < len(data)) & (space_offsets < len(data))
    starts, name_offsets, space_offsets = starts[inside], name_offsets[inside], space_offsets[inside]
    # The linker lets a string be the tail of another one, so nothing is said about what comes before.
    space = data[space_offsets]
    # Exports in assembler code have no name space, the others mostly an empty one.
    is_space = (space == 0) | _NAME_STARTS[space] | (words[starts + 2] == 0)
    starts = starts[_NAME_STARTS[data[name_offsets]] & is_space]
    entries = np.uint64(vaddr) + starts.astype(np.uint64) * np.uint64(4)
    # A symbol is in the image or, of per-CPU data on x86-64 before 6.15, an offset near 0.
    symbols = entries + words[starts].astype(np.int64).view(np.uint64)
    kept: NDArray[np.uint64] = entries[
        ((symbols >= np.uint64(image[0])) & (symbols < np.uint64(image[1]))) | (symbols < np.uint64(_PERCPU_LIMIT))
    ]
    return kept


def _long_runs(entries: NDArray[np.uint64]) -> list[NDArray[np.uint64]]:
    """
    Give the runs of entries that follow each other without a gap, the longest first.

    ``__ksymtab`` and ``__ksymtab_gpl`` are neighbours, so the kernel's own make one
    run; modules have tables of their own, and pages of them may have taken the
    place of the image's initialisation code.
    """
    runs: list[NDArray[np.uint64]] = []
    for phase in range(_WORDS_PER_ENTRY):
        mine = entries[entries // np.uint64(4) % np.uint64(_WORDS_PER_ENTRY) == phase]
        edges = np.flatnonzero(mine[1:] - mine[:-1] != np.uint64(4 * _WORDS_PER_ENTRY)) + 1
        bounds = np.concatenate(([0], edges, [len(mine)]))
        long = np.flatnonzero(np.diff(bounds) >= _SHORTEST_RUN).tolist()
        runs.extend(mine[bounds[index] : bounds[index + 1]] for index in long)
    return sorted(runs, key=len, reverse=True)[:_RUNS_LIMIT]


def _has_names(memory: KernelMemory, run: NDArray[np.uint64]) -> bool:
    """Tell whether some entries of a run, taken from all of it, have names that are identifiers and all different."""
    names = set()
    sample = run[:: max(1, len(run) // _SHORTEST_RUN)].tolist()
    for entry in sample:
        try:
            distance = int(memory.read_array(entry + 4, np.int32, 1)[0])
            names.add(memory.read_c_string(entry + 4 + distance, _NAME_LIMIT_BYTES))
        except PostpanicError:
            return False
    return len(names) == len(sample) and all(_IDENTIFIER.fullmatch(name) for name in names)
