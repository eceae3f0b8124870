"""
Find a handful of symbols without expanding the names of all.

Expanding a hundred thousand names takes most of the time and memory of reading
kallsyms. Here every compressed name is summed up instead: each character has a
64-bit weight, a token weighs as much as its characters, so the sum is that of the
name whichever tokens spell it. Names of the wanted weight, which nearly always
are the wanted names, are then expanded and compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from postpanic.errors import AbsentError, CorruptError, FactAbsentError
from postpanic.kernel.kallsyms.addresses import AddressEncoding, decode_addresses
from postpanic.kernel.kallsyms.locate import AddressPlace, KallsymsPlace, find_kallsyms
from postpanic.kernel.kallsyms.names import TOKEN_COUNT, TokenTable
from postpanic.kernel.kallsyms.read import read_count, read_names, read_tokens
from postpanic.kernel.kallsyms.records import find_name_starts
from postpanic.kernel.memory import KernelMemory
from postpanic.units import VirtAddr

__all__ = ["FoundSymbols", "find_symbols"]

_ANCHOR = b"_stext"
_LONG = 0x80
_BLOCK_SYMBOLS = 1 << 14
_CANDIDATE_LIMIT = 1 << 12
"""More names of one weight than this are not by chance."""
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
"""The multipliers of SplitMix64."""


@dataclass(frozen=True, slots=True)
class FoundSymbols:
    """Some symbols, and where the table of all of them lies."""

    vaddrs: dict[str, VirtAddr]
    """Runtime addresses; without the symbols that the kernel does not have."""
    tables: tuple[tuple[VirtAddr, int], ...]
    """Address and size in bytes of each part of kallsyms that a reader needs."""
    count: int
    """Symbols in the kernel."""

    def get(self, name: str) -> VirtAddr | None:
        """Give the address of a symbol, or None."""
        return self.vaddrs.get(name)


def find_symbols(memory: KernelMemory, names: Iterable[str]) -> FoundSymbols:
    """
    Find the runtime addresses of some symbols; of several of one name the lowest.

    Reads all names but none of the addresses that are not asked for.

    Raises
    ------
    FactAbsentError
        If the kernel has no kallsyms (``CONFIG_KALLSYMS``), or it cannot be found.
    CorruptError, TruncatedError
        If the tables contradict themselves.
    TranslationError, PageAbsentError
        If part of what is needed is not in the dump.
    """
    place = find_kallsyms(memory)
    count = read_count(memory, place)
    asked = {name.encode() for name in names}
    found = _find_indices(read_names(memory, place), count, read_tokens(memory, place), asked | {_ANCHOR})
    reader = _choose_addresses(memory, place, found.get(_ANCHOR, []))
    vaddrs = {name.decode(): min(map(reader.read, found[name])) for name in asked if name in found}
    start = min(place.names, place.num_syms)
    tables = (
        (VirtAddr(start), place.token_index + 2 * TOKEN_COUNT - start),
        (reader.entries, reader.entry_bytes * count),
        *(((reader.relative_base, 8),) if reader.relative_base is not None else ()),
    )
    return FoundSymbols(vaddrs, tables, count)


def _find_indices(names: bytes, count: int, tokens: TokenTable, wanted: set[bytes]) -> dict[bytes, list[int]]:
    """Find the numbers of the symbols that have the wanted names."""
    starts, end = find_name_starts(names, count)
    codes = np.frombuffer(names, dtype=np.uint8, count=end)
    table = tokens.data.tobytes()
    texts = [
        table[start : start + length]
        for start, length in zip(tokens.starts.tolist(), tokens.lengths.tolist(), strict=True)
    ]
    weights = _weigh_characters()
    of_token = np.array([_weigh(weights, text) for text in texts[:TOKEN_COUNT]], dtype=np.uint64)
    # The first character is the type's letter, which is no part of the name.
    of_letter = np.array([_weigh(weights, text[:1]) for text in texts[:TOKEN_COUNT]], dtype=np.uint64)
    sums = np.array([_weigh(weights, name) for name in wanted], dtype=np.uint64)
    found: dict[bytes, list[int]] = {}
    candidates = 0
    for first in range(0, count, _BLOCK_SYMBOLS):
        block = starts[first : first + _BLOCK_SYMBOLS]
        stop = int(starts[first + len(block)]) if first + len(block) < count else end
        hits = np.flatnonzero(np.isin(_weigh_names(codes[:stop], block, of_token, of_letter), sums))
        candidates += len(hits)
        if candidates > _CANDIDATE_LIMIT:
            raise CorruptError(f"more than {_CANDIDATE_LIMIT} symbols of kallsyms weigh as much as a few names")
        for hit in hits.tolist():
            begin = int(block[hit])
            after = int(block[hit + 1]) if hit + 1 < len(block) else stop
            skip = 2 if codes[begin] >= _LONG else 1
            name = b"".join(texts[code] for code in names[begin + skip : after])[1:]
            if name in wanted:
                found.setdefault(name, []).append(first + hit)
    return found


def _weigh(weights: NDArray[np.uint64], text: bytes) -> np.uint64:
    """Sum up the weights of a text's characters, modulo 2^64."""
    return np.uint64(weights[np.frombuffer(text, dtype=np.uint8)].sum(dtype=np.uint64))


def _weigh_characters() -> NDArray[np.uint64]:
    """Give each byte a weight that no few others add up to."""
    mixed = (np.arange(256, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in zip((30, 27), _MIX, strict=True):
        mixed = (mixed ^ mixed >> np.uint64(shift)) * factor
    return mixed ^ mixed >> np.uint64(31)


def _weigh_names(
    codes: NDArray[np.uint8], starts: NDArray[np.int64], of_token: NDArray[np.uint64], of_letter: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """Sum up the names whose records start at *starts* and fill *codes* from the first of them on."""
    base = int(starts[0])
    weights = of_token[codes[base:]]
    places = starts - base
    is_long = codes[starts] >= _LONG
    # The bytes of the length are no tokens.
    weights[places] = 0
    weights[places[is_long] + 1] = 0
    letters = codes.take(starts + 1 + is_long, mode="clip")
    return np.asarray(np.add.reduceat(weights, places) - of_letter[letters])


class _AddressReader:
    """Reads single addresses in the encoding that was found to be the one."""

    def __init__(self, memory: KernelMemory, place: AddressPlace, encoding: AddressEncoding) -> None:
        self.entries = place.entries
        self.relative_base = place.relative_base
        self.entry_bytes = 8 if encoding is AddressEncoding.ABSOLUTE else 4
        self._memory = memory
        self._encoding = encoding
        self._base = None if place.relative_base is None else memory.read_u64(place.relative_base)

    def read(self, index: int) -> VirtAddr:
        vaddr = self.entries + index * self.entry_bytes
        entry = self._memory.read_array(vaddr, np.uint64 if self.entry_bytes == 8 else np.int32, 1)
        anchor = vaddr if self._base is None else self._base
        return VirtAddr(int(decode_addresses(self._encoding, entry, anchor)[0]))


def _choose_addresses(memory: KernelMemory, place: KallsymsPlace, anchors: list[int]) -> _AddressReader:
    """Find the encoding that puts _stext where VMCOREINFO has it."""
    stext = memory.vmcoreinfo.symbol("_stext")
    if not anchors:
        raise FactAbsentError("kallsyms has no _stext")
    missing: AbsentError | None = None
    for candidate in place.addresses:
        for encoding in candidate.encodings:
            try:
                reader = _AddressReader(memory, candidate, encoding)
                if any(reader.read(index) == stext for index in anchors):
                    return reader
            except AbsentError as error:
                missing = error
    if missing is not None:
        raise missing
    raise CorruptError("no encoding of kallsyms addresses puts _stext where VMCOREINFO has it")
