"""
``struct page`` of all page frames, in bulk: where each lies, and what it says.

A frame's structure is found through the memory model that VMCOREINFO describes,
and decoded with numpy. Sources: ``include/linux/mm_types.h``,
``include/linux/page-flags.h``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import drgn
import numpy as np
from drgn import Program, Type
from numpy.typing import NDArray

from postpanic.analysis.workspace import Workspace
from postpanic.errors import FactAbsentError, PostpanicError
from postpanic.kernel.memory import KernelMemory
from postpanic.pages.layout import PageType, find_page_layout
from postpanic.pages.mem_map import MemMap, find_mem_map

__all__ = ["PageBlock", "PageStructs", "member_offset", "page_structs"]

_BLOCK_FRAMES = 1 << 16
_ORDERS_LIMIT = 16
_TYPE_PREFIX = "PGTY_"
_TYPES_BEGIN = 0xF0
"""``PGTY_*`` are the top byte of ``page_type`` since 6.12 (4ffca5a96678); lower ones are map counts."""


@dataclass(frozen=True)
class PageBlock:
    """Some ``struct page`` that follow each other, as bytes: shape (n, sizeof(struct page))."""

    first_pfn: int
    rows: NDArray[np.uint8]
    present: NDArray[np.bool_]
    """Shape (n,): whether the structure is in the dump."""

    def u64(self, offset: int) -> NDArray[np.uint64]:
        """Give an 8-byte member of every structure."""
        return np.ascontiguousarray(self.rows[:, offset : offset + 8]).view("<u8").reshape(-1)

    def u32(self, offset: int) -> NDArray[np.uint32]:
        """Give a 4-byte member of every structure."""
        return np.ascontiguousarray(self.rows[:, offset : offset + 4]).view("<u4").reshape(-1)


def member_offset(type_: Type, *names: str) -> int | None:
    """Give the offset of the first of some members that a type has, in bytes; None if it has none of them."""
    for name in names:
        try:
            return int(drgn.offsetof(type_, name))
        except (LookupError, TypeError, ValueError, SyntaxError):
            continue
    return None


class PageStructs:
    """
    All ``struct page`` of a dump.

    Raises
    ------
    FactAbsentError
        If the type or the memory model is not known.
    """

    def __init__(self, prog: Program, memory: KernelMemory, frame_limit: int) -> None:
        try:
            self.type = prog.type("struct page")
        except LookupError as exc:
            raise FactAbsentError("no type struct page") from exc
        self._prog = prog
        self._memory = memory
        self.size_bytes = drgn.sizeof(self.type)
        self.frame_limit = frame_limit
        self.mem_map: MemMap = find_mem_map(memory, self.size_bytes, frame_limit)
        self.flags_offset = self._require("flags")
        self.refcount_offset = self._require("_refcount", "_count")
        self.mapcount_offset = self._require("_mapcount")
        self.mapping_offset = self._require("mapping")
        # 6.16 renamed it: folio.index stays (acc53a0b4c15).
        self.index_offset = self._require("index", "__folio_index")
        self.private_offset = self._require("private")
        self.head_offset = self._require("compound_head", "compound_info")

    def _require(self, *names: str) -> int:
        offset = member_offset(self.type, *names)
        if offset is None:
            raise FactAbsentError(f"struct page has no member {' or '.join(names)}")
        return offset

    @cached_property
    def flag_bits(self) -> tuple[tuple[str, int], ...]:
        """``enum pageflags``: names and bits in the order of the declaration, aliases included."""
        try:
            enumerators = self._prog.type("enum pageflags").enumerators or ()
        except LookupError:
            return ()
        return tuple((item.name, int(item.value)) for item in enumerators if item.name.startswith("PG_"))

    @cached_property
    def _first_names(self) -> dict[int, str]:
        """Name of each bit: the first that the enumeration has for it."""
        names: dict[int, str] = {}
        for name, bit in self.flag_bits:
            names.setdefault(bit, name.removeprefix("PG_"))
        return names

    @cached_property
    def _byte_types(self) -> dict[int, str]:
        try:
            enumerators = self._prog.type("enum pagetype").enumerators or ()
        except LookupError:
            return {}
        types = [(item.name, int(item.value)) for item in enumerators if item.name.startswith(_TYPE_PREFIX)]
        return {value: name.removeprefix(_TYPE_PREFIX) for name, value in types if value <= 0xFF}

    @cached_property
    def _masked_types(self) -> tuple[tuple[str, PageType], ...]:
        try:
            layout = find_page_layout(self._memory.vmcoreinfo)
        except PostpanicError:
            return ()
        named: Mapping[str, PageType | None] = {
            "buddy": layout.buddy,
            "offline": layout.offline,
            "slab": layout.slab,
            "unaccepted": layout.unaccepted,
            "hugetlb": layout.hugetlb,
        }
        found = [(name, type_) for name, type_ in named.items() if type_ is not None]
        return (*found, *(("table", type_) for type_ in layout.tables))

    def flag_names(self, flags: int) -> list[str]:
        """Name the bits of ``flags`` that are set, lowest first; the node and zone numbers above are none of them."""
        return [name for bit, name in sorted(self._first_names.items()) if flags >> bit & 1]

    def type_name(self, mapcount: int) -> str:
        """Name the type of a page by the 32 bits of ``_mapcount``, which it shares; empty for one without a type."""
        if self._byte_types:
            kind = mapcount >> 24
            return self._byte_types.get(kind, "") if _TYPES_BEGIN <= kind < 0xFF else ""
        if mapcount == 0xFFFF_FFFF:
            return ""
        for name, type_ in self._masked_types:
            if mapcount & type_.mask == type_.value:
                return name
        return ""

    @cached_property
    def _slab_mask(self) -> int:
        """Bit of ``flags`` that marks a slab; 0 where the page type does (46df8e73a4a3, 6.10)."""
        types = {name for name, _ in self._masked_types} | set(self._byte_types.values())
        bits = dict(self.flag_bits)
        return 0 if "slab" in types or "PG_slab" not in bits else 1 << bits["PG_slab"]

    def are_slabs(self, block: PageBlock) -> NDArray[np.bool_]:
        """Tell of each frame whether it is the first of a slab."""
        if self._slab_mask:
            tails = block.u64(self.head_offset) & np.uint64(1)
            is_slab = block.u64(self.flags_offset) & np.uint64(self._slab_mask) != 0
            return np.asarray(is_slab & (tails == 0) & block.present)
        mapcounts = block.u32(self.mapcount_offset)
        known, inverse = np.unique(mapcounts, return_inverse=True)
        is_slab = np.array([self.type_name(int(value)) == "slab" for value in known], dtype=np.bool_)
        return np.asarray(is_slab[inverse] & block.present)

    def is_slab(self, row: bytes) -> bool:
        """Tell of one structure whether it is the first of a slab."""
        if self._slab_mask:
            return bool(int.from_bytes(row[self.flags_offset : self.flags_offset + 8], "little") & self._slab_mask)
        mapcount = int.from_bytes(row[self.mapcount_offset : self.mapcount_offset + 4], "little")
        return self.type_name(mapcount) == "slab"

    def pfn_of(self, page_vaddr: int) -> int | None:
        """Give the frame whose ``struct page`` is at, or around, an address; None if there is none."""
        index = self.mem_map
        sizes = (index.ends - index.starts).astype(np.uint64) * np.uint64(self.size_bytes)
        wanted = np.uint64(page_vaddr)
        inside = np.flatnonzero((index.vaddrs <= wanted) & (wanted - index.vaddrs < sizes))
        if not len(inside):
            return None
        run = int(inside[0])
        return int(int(index.starts[run]) + (page_vaddr - int(index.vaddrs[run])) // self.size_bytes)

    def vaddr_of(self, pfn: int) -> int | None:
        """Give the address of a frame's ``struct page``; None if it has none."""
        for _, _, vaddr in self.mem_map.extents(pfn, pfn + 1):
            return int(vaddr)
        return None

    def read(self, pfn: int) -> bytes | None:
        """Read the structure of one frame; None if it has none or it is not in the dump."""
        vaddr = self.vaddr_of(pfn)
        if vaddr is None:
            return None
        try:
            return self._memory.read(vaddr, self.size_bytes)
        except PostpanicError:
            return None

    def blocks(self, start_pfn: int = 0, end_pfn: int | None = None) -> Iterator[PageBlock]:
        """Read the structures of all frames of a range, in rising order."""
        end = self.frame_limit if end_pfn is None else min(end_pfn, self.frame_limit)
        for first, last, vaddr in self.mem_map.extents(start_pfn, end):
            for start in range(first, last, _BLOCK_FRAMES):
                count = min(_BLOCK_FRAMES, last - start)
                at = vaddr + (start - first) * self.size_bytes
                data, present = self._memory.read_available(at, count * self.size_bytes)
                shape = (count, self.size_bytes)
                yield PageBlock(start, data.reshape(shape), np.asarray(present.reshape(shape).all(axis=1)))

    def free_block_of(self, pfn: int) -> tuple[int, int] | None:
        """
        Find the free block of the buddy allocator that a frame is in: its first frame and its order.

        The first page of a block has the type ``buddy``, and its order in ``private``;
        a block of order n begins at a multiple of ``1 << n`` (``mm/page_alloc.c``).
        """
        for order in range(_ORDERS_LIMIT):
            first = pfn >> order << order
            row = self.read(first)
            if row is None:
                return None
            mapcount = int.from_bytes(row[self.mapcount_offset : self.mapcount_offset + 4], "little")
            if self.type_name(mapcount) != "buddy":
                continue
            held = int.from_bytes(row[self.private_offset : self.private_offset + 8], "little")
            return (first, held) if held < _ORDERS_LIMIT and pfn < first + (1 << held) else None
        return None

    def head_of(self, pfn: int, row: bytes) -> int:
        """Give the head's frame of a compound page that *pfn* is in; the frame itself where it is none's tail."""
        info = int.from_bytes(row[self.head_offset : self.head_offset + 8], "little")
        if not info & 1:
            return pfn
        head = self.pfn_of(info - 1)
        if head is not None:
            return head
        # 7.1: the value may be a mask of the structure's address (compound_info).
        vaddr = self.vaddr_of(pfn)
        head = self.pfn_of(vaddr & (info - 1)) if vaddr is not None else None
        return pfn if head is None else head


def page_structs(workspace: Workspace) -> PageStructs:
    """
    Give the page structures of a session.

    Raises
    ------
    FactAbsentError
        If the kernel's memory model or the type is not known.
    """

    def make() -> PageStructs:
        dump = workspace.opened.dump
        ranges = dump.ram_ranges
        limit = -(-int(ranges[-1, 1]) // dump.page_size_bytes) if len(ranges) else 0
        return PageStructs(workspace.prog, workspace.memory, limit)

    return workspace.once("page structs", make)
