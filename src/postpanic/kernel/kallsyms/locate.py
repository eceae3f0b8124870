"""
Find the tables of kallsyms, by VMCOREINFO or by their shape.

``scripts/kallsyms.c`` writes them into ``.rodata`` one behind the other, each
aligned to 8 bytes (since 7.0 to 4)::

    up to 6.3    offsets relative_base num_syms names markers [seqs] token_table token_index
    from 6.4     num_syms names markers token_table token_index offsets [relative_base] seqs

(404bad70fcf7, "scripts/kallsyms: change the output order"; ``seqs`` since 6.2.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from postpanic.errors import FactAbsentError, PostpanicError
from postpanic.kernel.kallsyms.addresses import AddressEncoding
from postpanic.kernel.kallsyms.names import TOKEN_COUNT
from postpanic.kernel.kallsyms.records import (
    LARGEST_BLOCK_BYTES,
    SYMBOLS_PER_MARKER,
    find_markers,
    find_name_starts,
)
from postpanic.kernel.memory import KernelMemory
from postpanic.kernel.vmcoreinfo import Vmcoreinfo
from postpanic.units import MIB, VirtAddr

__all__ = ["AddressPlace", "KallsymsPlace", "find_kallsyms", "find_kallsyms_by_shape"]

_CHUNK_BYTES = 4 * MIB
_NAMES_WINDOWS_BYTES = (6 * MIB, 20 * MIB)
"""How far before the index to look for the names: enough for most kernels, then for all."""
_INDEX_BYTES = 2 * TOKEN_COUNT
_TOKEN_LIMIT_BYTES = 256
_PADDING_BYTES = 8

_BASE_ENCODINGS = (AddressEncoding.BASE_PERCPU, AddressEncoding.BASE)


@dataclass(frozen=True, slots=True)
class AddressPlace:
    """One place where the addresses may be."""

    entries: VirtAddr
    encodings: tuple[AddressEncoding, ...]
    relative_base: VirtAddr | None = None


@dataclass(frozen=True, slots=True)
class KallsymsPlace:
    """Where the tables are."""

    num_syms: VirtAddr
    names: VirtAddr
    token_table: VirtAddr
    token_index: VirtAddr
    addresses: tuple[AddressPlace, ...]
    """Candidates, the likeliest first."""


def find_kallsyms(memory: KernelMemory) -> KallsymsPlace:
    """
    Find the tables.

    Raises
    ------
    FactAbsentError
        If VMCOREINFO does not name them and the kernel image has nothing of their shape.
    """
    place = _by_vmcoreinfo(memory.vmcoreinfo)
    return place if place is not None else find_kallsyms_by_shape(memory)


def _by_vmcoreinfo(info: Vmcoreinfo) -> KallsymsPlace | None:
    num_syms = info.get_symbol("kallsyms_num_syms")
    names = info.get_symbol("kallsyms_names")
    token_table = info.get_symbol("kallsyms_token_table")
    token_index = info.get_symbol("kallsyms_token_index")
    if num_syms is None or names is None or token_table is None or token_index is None:
        return None
    offsets = info.get_symbol("kallsyms_offsets")
    addresses = info.get_symbol("kallsyms_addresses")
    relative_base = info.get_symbol("kallsyms_relative_base")
    if offsets is not None and relative_base is not None:
        place = AddressPlace(offsets, _BASE_ENCODINGS, relative_base)
    elif offsets is not None:
        place = AddressPlace(offsets, (AddressEncoding.PLACE,))
    elif addresses is not None:
        place = AddressPlace(addresses, (AddressEncoding.ABSOLUTE,))
    else:
        return None
    return KallsymsPlace(num_syms, names, token_table, token_index, (place,))


def find_kallsyms_by_shape(memory: KernelMemory) -> KallsymsPlace:
    """
    Find the tables by their shape in the kernel image.

    First the index of the token table, 256 rising 16-bit numbers behind 256
    strings that end where it says; before it the markers, rising by the size of
    256 names; before these the names, which must pass through the markers.

    Raises
    ------
    FactAbsentError
        If nothing in the image has this shape.
    """
    end = memory.layout.image_range[1]
    for position in _chunk_starts(memory):
        # Chunks overlap by what one table may span, so none is cut.
        data, _ = memory.read_available(position, min(_CHUNK_BYTES + _INDEX_BYTES, end - position))
        for offset in _find_token_indices(data):
            place = _follow(memory, VirtAddr(position + offset))
            if place is not None:
                return place
    raise FactAbsentError(
        "no kallsyms table in the kernel image",
        hint="the kernel was built without CONFIG_KALLSYMS, or its read-only data was left out of the dump",
    )


def _chunk_starts(memory: KernelMemory) -> list[int]:
    """
    Give the chunks of the image in the order in which to search them.

    Read-only data lies between text and data, so the search goes down from the
    lowest data that VMCOREINFO names, and only then through the rest.
    """
    start, end = memory.layout.image_range
    named = [vaddr for name, vaddr in memory.vmcoreinfo.symbols.items() if name != "_stext" and start < vaddr < end]
    starts = list(range(start, end, _CHUNK_BYTES))
    below = [position for position in starts if position < min(named, default=end)]
    return [*reversed(below), *starts[len(below) :]]


def _find_token_indices(data: NDArray[np.uint8]) -> list[int]:
    """Give the offsets where 256 rising 16-bit numbers start with 0, aligned to 4 bytes."""
    words = data[: len(data) // 4 * 4].view("<u2")
    if len(words) < TOKEN_COUNT:
        return []
    starts = np.nonzero((words[0::2] == 0) & (words[1::2] > 0))[0] * 2
    starts = starts[starts <= len(words) - TOKEN_COUNT]
    for step in range(1, TOKEN_COUNT - 1):
        if not len(starts):
            break
        rise = words[starts + step + 1].astype(np.int32) - words[starts + step]
        starts = starts[(rise > 0) & (rise <= _TOKEN_LIMIT_BYTES)]
    return [int(start) * 2 for start in starts]


def _follow(memory: KernelMemory, token_index: VirtAddr) -> KallsymsPlace | None:
    """Find the other tables from the index on; None when they are not there."""
    for window in _NAMES_WINDOWS_BYTES:
        place = _follow_within(memory, token_index, min(window, token_index))
        if place is not None:
            return place
    return None


def _follow_within(memory: KernelMemory, token_index: VirtAddr, window: int) -> KallsymsPlace | None:
    data, _ = memory.read_available(token_index - window, window + _INDEX_BYTES)
    index = data[window:].view("<u2")
    table = _find_token_table(data[:window], index)
    if table is None:
        return None
    # The view of 32-bit words needs every table at a multiple of 4 from the window's start.
    words = data[: table // 4 * 4].view("<u4")
    for markers, count in find_markers(words):
        found = _find_names(data, words, markers, count)
        if found is not None:
            names, symbol_count, num_syms_size = found
            base = token_index - window
            num_syms = VirtAddr(base + names - num_syms_size)
            places = tuple(_address_places(num_syms, VirtAddr(token_index + _INDEX_BYTES), symbol_count))
            return KallsymsPlace(num_syms, VirtAddr(base + names), VirtAddr(base + table), token_index, places)
    return None


def _find_token_table(before: NDArray[np.uint8], index: NDArray[np.uint16]) -> int | None:
    """Find the offset in *before*, the bytes up to the index, where the table's 256 strings start."""
    ends = index[1:].astype(np.int64) - 1
    highest = len(before) - int(index[-1]) - 1
    for start in range(highest, max(-1, highest - _TOKEN_LIMIT_BYTES - _PADDING_BYTES), -1):
        last = start + int(index[-1])
        tail = np.nonzero(before[last:])[0]
        padding = len(before) - last - (int(tail[-1]) + 1 if len(tail) else 0)
        if start % 4 == 0 and 0 < padding <= _PADDING_BYTES:
            nuls = np.nonzero(before[start:last] == 0)[0]
            if np.array_equal(nuls, ends):
                return start
    return None


def _find_names(
    data: NDArray[np.uint8], words: NDArray[np.uint32], markers: int, marker_count: int
) -> tuple[int, int, int] | None:
    """
    Find the names before the markers.

    Returns
    -------
    tuple
        Offset of the names, number of symbols, and how many bytes before the
        names that number is: 8 where tables are aligned to 8 bytes, else 4.
    """
    last_marker = int(words[markers + marker_count - 1])
    highest = markers * 4 - last_marker
    lowest = max(8, highest - LARGEST_BLOCK_BYTES - _PADDING_BYTES)
    if highest < lowest:
        return None
    expected = words[markers : markers + marker_count].astype(np.int64)
    first = lowest // 4
    counts = words[first - 2 : highest // 4]
    fits = (counts > (marker_count - 1) * SYMBOLS_PER_MARKER) & (counts <= marker_count * SYMBOLS_PER_MARKER)
    for position in (np.nonzero(fits)[0] + first - 2).tolist():
        for size in (8, 4):
            names = position * 4 + size
            count = int(words[position])
            try:
                starts, _ = find_name_starts(data[names : markers * 4].tobytes(), count)
            except PostpanicError:
                continue
            if np.array_equal(starts[::SYMBOLS_PER_MARKER], expected):
                return names, count, size
    return None


def _address_places(num_syms: VirtAddr, after_index: VirtAddr, count: int) -> Iterator[AddressPlace]:
    """Yield where the addresses may be: before the other tables or behind them."""
    aligned = -(-count * 4 // 8) * 8
    yield AddressPlace(VirtAddr(num_syms - 8 - aligned), _BASE_ENCODINGS, VirtAddr(num_syms - 8))
    yield AddressPlace(after_index, _BASE_ENCODINGS, VirtAddr(after_index + aligned))
    yield AddressPlace(after_index, (AddressEncoding.PLACE,))
    yield AddressPlace(VirtAddr(num_syms - count * 8), (AddressEncoding.ABSOLUTE,))
