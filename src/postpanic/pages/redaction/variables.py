"""The kernel's global variables: their types, and where in physical memory they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from postpanic.errors import AbsentError, CorruptError, PostpanicError
from postpanic.kernel.btf import Btf, Kind, TypeResolver
from postpanic.kernel.kallsyms import Symbol, SymbolTable
from postpanic.kernel.memory import KernelMemory
from postpanic.pages.redaction.erasure import ByteRanges, merge_ranges, no_ranges
from postpanic.units import VirtAddr

if TYPE_CHECKING:
    from postpanic.kernel.debuginfo.symbols import Symbols

__all__ = ["KernelVariables", "PlacedVariable", "TypedVariable"]

_MAX_CPUS = 8192
"""``NR_CPUS`` of x86 with ``CONFIG_MAXSMP``."""
_WORD = (1 << 64) - 1
_DEEPEST_TYPE = 64
_MOST_ELEMENTS = 1 << 20


@dataclass(frozen=True, slots=True)
class TypedVariable:
    """A variable, and how many objects of a type it holds."""

    symbol: Symbol
    type_id: int
    size_bytes: int
    """``sizeof`` the whole variable; 0 where its type does not tell (an array without a length)."""
    element_id: int
    """Type of an element, for an array (of arrays); else the variable's own."""
    element_bytes: int

    @property
    def count(self) -> int:
        """Objects in it: 1, or an array's length, at most as many as there is room for."""
        room = self.symbol.size_bytes
        size = min(self.size_bytes or room, room or self.size_bytes)
        count = max(size // self.element_bytes, 1) if self.element_bytes else 0
        if count > _MOST_ELEMENTS:
            raise CorruptError(f"the variable {self.symbol.name} is an array of {count}, at most {_MOST_ELEMENTS}")
        return count


@dataclass
class PlacedVariable:
    """Where bytes of a variable are, in every copy of it."""

    ranges: list[ByteRanges] = field(default_factory=list)
    copies: int = 0
    missing: int = 0
    """Bytes that no page table maps."""


@dataclass(frozen=True, slots=True)
class _TypedRows:
    """Symbols at link-time addresses, and of those that are typed: identifier of the type, and ``sizeof``."""

    linked: Symbols
    resolver: TypeResolver
    rows: dict[int, tuple[int, int]]


class KernelVariables:
    """
    Global variables of vmlinux; those of modules are not among them.

    Types come from the kernel's BTF (per-CPU variables) and from the table of
    globals, checked against the BTF.
    """

    def __init__(self, kernel: KernelMemory, symbols: SymbolTable, btf: Btf) -> None:
        self.kernel = kernel
        self.symbols = symbols
        self.btf = btf
        self._bounds: dict[str, tuple[int, int]] = {}

    @cached_property
    def _types(self) -> _TypedRows:
        """Rows of the symbols whose types are known; imported only now, as nothing else here needs it."""
        from postpanic.kernel.debuginfo.globals import load_globals_table
        from postpanic.kernel.debuginfo.variables import type_variables
        from postpanic.kernel.debuginfo.vmlinux import link_symbols

        linked = link_symbols(self.symbols, self.kernel.kaslr_offset)
        table = load_globals_table().ranked_for(linked.row_of)
        resolver = TypeResolver(self.btf)
        found = type_variables(self.btf, linked, table, resolver, self._read_linked)
        rows = {
            row: (type_id, size) for row, type_id, size in zip(found.rows, found.type_ids, found.sizes, strict=True)
        }
        return _TypedRows(linked, resolver, rows)

    def detect_typed(self, name: str) -> TypedVariable | None:
        """Find a variable whose name is its own and whose type is known, else None."""
        row = self._types.linked.row_of.get(name.encode("utf-8", "surrogateescape"))
        return None if row is None or row not in self._types.rows else self._make(row)

    def of_types(self, type_ids: set[int]) -> list[TypedVariable]:
        """Find all variables that are objects of one of these types, or arrays of them."""
        known = self._types.rows
        mine = {type_id for type_id in {used for used, _ in known.values()} if self._element(type_id) in type_ids}
        return [self._make(row) for row, (type_id, _) in known.items() if type_id in mine]

    def _make(self, row: int) -> TypedVariable:
        linked, resolver = self._types.linked, self._types.resolver
        type_id, size = self._types.rows[row]
        symbol = Symbol(
            linked.names[row].decode("utf-8", "backslashreplace"),
            VirtAddr(self._runtime(int(linked.vaddrs[row]))),
            chr(linked.letters[row]),
            int(linked.sizes[row]),
        )
        element = self._element(type_id)
        return TypedVariable(symbol, type_id, size, element, resolver.size_of(element))

    def _read_linked(self, linked_vaddr: int, size: int) -> bytes | None:
        """Read a variable at its link-time address; contents help to tell the length of an array."""
        vaddr = self._runtime(linked_vaddr)
        try:
            return None if self.is_freed(vaddr) else self.kernel.read(vaddr, size)
        except PostpanicError:
            return None

    def _runtime(self, linked_vaddr: int) -> int:
        return linked_vaddr + self.kernel.kaslr_offset if linked_vaddr >= 1 << 63 else linked_vaddr

    def _element(self, type_id: int) -> int:
        """Go below qualifiers and arrays."""
        for _ in range(_DEEPEST_TYPE):
            if type_id < self.btf.end_id:
                type_id = self.btf.skip_modifiers(type_id)
            element, _ = self._types.resolver.array_parts(type_id)
            if not element:
                break
            type_id = element
        return type_id

    def is_function(self, symbol: Symbol) -> bool:
        """Tell whether a symbol lies in the kernel's text; letters do not tell since 7.0."""
        return self._lies_in(symbol.vaddr, "_stext", "_etext") or self._lies_in(
            symbol.vaddr, "_sinittext", "_einittext"
        )

    def is_per_cpu(self, vaddr: int) -> bool:
        """Tell whether an address is that of a per-CPU variable, of which every CPU has its own."""
        return self._lies_in(vaddr, "__per_cpu_start", "__per_cpu_end")

    def is_freed(self, vaddr: int) -> bool:
        """Tell whether the kernel gave the memory away after it had started (``free_initmem()``)."""
        return self._lies_in(vaddr, "__init_begin", "__init_end") and not self.is_per_cpu(vaddr)

    def _lies_in(self, vaddr: int, first: str, last: str) -> bool:
        bounds = self._bounds.get(first)
        if bounds is None:
            start, end = self.symbols.get(first), self.symbols.get(last)
            bounds = self._bounds[first] = (start, end) if start is not None and end is not None else (0, 0)
        return bounds[0] <= vaddr < bounds[1]

    @cached_property
    def per_cpu_offsets(self) -> list[int]:
        """
        What is added to a per-CPU variable's address for each possible CPU.

        Raises
        ------
        AbsentError
            If the dump does not tell: then no copy can be found.
        """
        count = min(self.kernel.read_u32(self.symbols.find("nr_cpu_ids").vaddr), _MAX_CPUS)
        mask = self.kernel.read(self.symbols.find("__cpu_possible_mask").vaddr, -(-count // 64) * 8)
        offsets = self.kernel.read_array(self.symbols.find("__per_cpu_offset").vaddr, np.uint64, count).tolist()
        bits = int.from_bytes(mask, "little")
        return list(dict.fromkeys(offset for cpu, offset in enumerate(offsets) if bits >> cpu & 1))

    def place(self, vaddr: int, pieces: list[tuple[int, int]]) -> PlacedVariable:
        """
        Find where pieces of a variable are in physical memory.

        Parameters
        ----------
        pieces : list of tuple
            Offset from *vaddr* and size of each, in bytes.

        Raises
        ------
        AbsentError
            If it is a per-CPU variable, and where the CPUs' areas are is not to be had.
        """
        result = PlacedVariable()
        for copy in self.copies(vaddr):
            result.copies += 1
            for offset, size in pieces:
                ranges, missing = self.to_physical((copy + offset) & _WORD, size)
                result.ranges.append(ranges)
                result.missing += missing
        return result

    def copies(self, vaddr: int) -> list[int]:
        """
        Give the address of a variable, of a per-CPU one that of each possible CPU's.

        Raises
        ------
        AbsentError
            If it is a per-CPU variable, and where the CPUs' areas are is not to be had.
        """
        return [(vaddr + shift) & _WORD for shift in self.per_cpu_offsets] if self.is_per_cpu(vaddr) else [vaddr]

    def to_physical(self, vaddr: int, size: int) -> tuple[ByteRanges, int]:
        """Translate a range page by page, as what vmalloc made is scattered; also the bytes that are not mapped."""
        page = self.kernel.page_size_bytes
        starts: list[int] = []
        ends: list[int] = []
        missing = 0
        at, end = vaddr, min(vaddr + size, 1 << 64)
        while at < end:
            part = min(end - at, page - at % page)
            try:
                paddr = int(self.kernel.translate(VirtAddr(at)))
                starts.append(paddr)
                ends.append(paddr + part)
            except AbsentError:
                missing += part
            at += part
        if not starts:
            return no_ranges(), missing
        return merge_ranges([(np.array(starts, dtype=np.uint64), np.array(ends, dtype=np.uint64))]), missing

    def detect_target(self, type_id: int) -> tuple[int, bool] | None:
        """Give the size of what a pointer leads to (0: not known), and whether it is text; None for other types."""
        if type_id >= self.btf.end_id:
            return None
        type_id = self.btf.skip_modifiers(type_id)
        if self.btf.kind_of(type_id) != Kind.PTR:
            return None
        target = self.btf.skip_modifiers(self.btf.target_of(type_id))
        return self.btf.size_of(target), self.btf.kind_of(target) == Kind.INT and self.btf.name_of(target) == "char"

    def detect_struct(self, type_id: int) -> int | None:
        """Give a type's identifier if it is a structure or union, else None."""
        if type_id >= self.btf.end_id:
            return None
        type_id = self.btf.skip_modifiers(type_id)
        return type_id if self.btf.kind_of(type_id) in (Kind.STRUCT, Kind.UNION) else None
