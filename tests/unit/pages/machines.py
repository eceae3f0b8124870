"""Machines that are nothing but struct pages: a kernel whose page tables lead to them, in each memory model."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.memory import PageState, ranges_from_pairs
from postpanic.kernel.memory import KernelMemory, open_kernel_memory
from postpanic.pages.selection import SECTION_FRAMES, Selection
from postpanic.pages.verdict import FIRST_DROPPED, Verdict
from tests.builders.page_tables import PageTableBuilder
from tests.builders.struct_pages import StructPageArray, add_entries
from tests.builders.vmcoreinfo import VmcoreinfoBuilder, build_x86_64_vmcoreinfo
from tests.unit.kernel.memories import PAGE, PHYS_BASE, STEXT, SWAPPER, DictDump, image_paddr

MODELS = ("vmemmap", "extreme", "extreme by pointer", "sparsemem", "discontiguous", "flat", "flat by mem_map")

DIRECT = 0xFFFF888000000000
BEHIND = 0x10_0000_0000
"""Physical addresses from here on hold what the kernel has beside the frames under test; they are not RAM."""
TABLE = DIRECT + BEHIND
ROOTS = TABLE + 0x100000
ARRAYS = 0xFFFFEA0000000000
PHYSMEM_BITS = 37


class SparseDump(DictDump):
    """A dump of RAM that is mostly zeroes, with pages outside of it."""

    def __init__(self, runs: list[tuple[int, int]], vmcoreinfo: bytes) -> None:
        super().__init__(vmcoreinfo=vmcoreinfo)
        self.runs = runs

    @property
    def ram_ranges(self) -> NDArray[np.uint64]:
        return ranges_from_pairs([(start * PAGE, end * PAGE) for start, end in self.runs])

    def page_states(self, pfns: NDArray[np.uint64]) -> NDArray[np.uint8]:
        states = super().page_states(pfns)
        for start, end in self.runs:
            states[(states == PageState.ABSENT) & (pfns >= start) & (pfns < end)] = PageState.PRESENT
        return states

    def read_pages_into(self, pfns: NDArray[np.uint64], pages: NDArray[np.uint8]) -> NDArray[np.uint8]:
        states = self.page_states(pfns)
        pages[:] = 0
        for row in np.flatnonzero(states == PageState.PRESENT).tolist():
            contents = self.pages.get(int(pfns[row]))
            if contents is not None:
                pages[row] = np.frombuffer(contents, dtype=np.uint8)
        return states


@dataclass
class Machine:
    """
    A kernel with arrays of struct page.

    *runs* are the frames that are RAM; *section_bits* is the kernel's
    ``SECTION_SIZE_BITS``; *drop* names entries to leave out of VMCOREINFO;
    *section_flags* is or'ed to each ``section_mem_map``.
    """

    arrays: list[StructPageArray]
    runs: list[tuple[int, int]] = field(default_factory=list)
    model: str = "vmemmap"
    section_bits: int = 27
    drop: tuple[str, ...] = ()
    section_flags: int = 0b1111
    words: dict[int, int] = field(default_factory=dict)
    """Words to write over what was built, by their addresses in the direct map."""

    def __post_init__(self) -> None:
        if not self.runs:
            self.runs = [(array.first, array.first + array.count) for array in self.arrays]
        self._next = BEHIND + 0x1000000
        self._tables = PageTableBuilder("x86", tables_paddr=image_paddr(SWAPPER))
        self._memory: dict[int, bytes] = {}

    def build(self) -> tuple[SparseDump, KernelMemory]:
        info = build_x86_64_vmcoreinfo(stext=STEXT, swapper=SWAPPER, phys_base=PHYS_BASE)
        self._tables.map(STEXT, image_paddr(STEXT), leaf_level=1)
        add_entries(info, self.arrays[0].form)
        for index, array in enumerate(self.arrays):
            array_vaddr = self._array_vaddr(index)
            self._put(array_vaddr, bytes(array.data))
        self._describe(info)
        info.lines = [line for line in info.lines if line.partition("=")[0] not in self.drop]
        dump = SparseDump(self.runs, info.text())
        for paddr, contents in (*self._tables.pages().items(), *self._memory.items()):
            dump.write(paddr, contents)
        for vaddr, word in self.words.items():
            dump.write(vaddr - DIRECT, struct.pack("<Q", word))
        return dump, open_kernel_memory(dump)

    def _array_vaddr(self, index: int) -> int:
        """Where an array lies: in a vmemmap at its place in it, else each somewhere else."""
        array = self.arrays[index]
        if self.model == "vmemmap":
            return ARRAYS + array.first * array.form.size
        return ARRAYS + (index << 32) + array.first * array.form.size % PAGE

    def _put(self, vaddr: int, data: bytes) -> None:
        """Map and fill a range of kernel addresses, in frames that are not neighbours."""
        base = vaddr & ~(PAGE - 1)
        data = bytes(vaddr - base) + data
        for offset in range(0, len(data), PAGE):
            self._tables.map(base + offset, self._next)
            self._memory[self._next] = data[offset : offset + PAGE].ljust(PAGE, b"\0")
            self._next += 2 * PAGE

    def _put_direct(self, vaddr: int, data: bytes) -> None:
        """Fill a range of the direct map, of which the builder maps what it uses."""
        for offset in range(0, len(data), PAGE):
            self._tables.map((vaddr & ~(PAGE - 1)) + offset, (vaddr - DIRECT & ~(PAGE - 1)) + offset)
        self._memory[vaddr - DIRECT] = data

    def _describe(self, info: VmcoreinfoBuilder) -> None:
        if self.model in {"vmemmap", "extreme", "extreme by pointer", "sparsemem"}:
            self._describe_sections(info)
        elif self.model == "discontiguous":
            nodes = []
            for index, array in enumerate(self.arrays):
                nodes.append(ROOTS + index * PAGE)
                self._put_direct(nodes[-1], struct.pack("<QQQ", self._array_vaddr(index), array.first, array.count))
            self._put_direct(TABLE, struct.pack(f"<{len(nodes)}Q", *nodes) + bytes(8 * (8 - len(nodes))))
            info.symbol("node_data", TABLE).length("node_data", 8)
            self._describe_node(info)
        elif self.model == "flat":
            array = self.arrays[0]
            self._put_direct(TABLE, struct.pack("<QQQ", self._array_vaddr(0), array.first, array.count))
            info.symbol("contig_page_data", TABLE)
            self._describe_node(info)
        else:
            array = self.arrays[0]
            self._put_direct(TABLE, struct.pack("<Q", self._array_vaddr(0) - array.first * array.form.size))
            info.symbol("mem_map", TABLE)

    @staticmethod
    def _describe_node(info: VmcoreinfoBuilder) -> None:
        info.offset("pglist_data.node_mem_map", 0).offset("pglist_data.node_start_pfn", 8)
        info.offset("pglist_data.node_spanned_pages", 16)

    def _describe_sections(self, info: VmcoreinfoBuilder) -> None:
        frames = 1 << self.section_bits - 12
        maps: dict[int, int] = {}
        for index, array in enumerate(self.arrays):
            coded = self._array_vaddr(index) - array.first * array.form.size
            for number in range(array.first // frames, -(-(array.first + array.count) // frames)):
                maps[number] = coded | self.section_flags
        count = 1 << PHYSMEM_BITS - self.section_bits
        info.number("SECTION_SIZE_BITS", self.section_bits).number("MAX_PHYSMEM_BITS", PHYSMEM_BITS)
        info.size("mem_section", 16).offset("mem_section.section_mem_map", 0)
        words = b"".join(struct.pack("<QQ", maps.get(number, 0) & (1 << 64) - 1, 0) for number in range(count))
        if self.model == "sparsemem":
            self._put_direct(TABLE, words)
            info.symbol("mem_section", TABLE).length("mem_section", count)
            return
        roots = []
        for start in range(0, len(words), PAGE):
            root = words[start : start + PAGE]
            roots.append(ROOTS + start if root.strip(b"\0") else 0)
            if roots[-1]:
                self._put_direct(roots[-1], root)
        self._put_direct(TABLE, struct.pack(f"<{len(roots)}Q", *roots))
        info.length("mem_section", len(roots))
        if self.model == "extreme by pointer":
            self._put_direct(TABLE - PAGE, struct.pack("<Q", TABLE))
            info.symbol("mem_section", TABLE - PAGE)
        else:
            info.symbol("mem_section", TABLE)


def list_verdicts(selection: Selection) -> dict[int, bool]:
    """Give for each frame of RAM whether it is kept."""
    pfns = selection.ram.members(0, selection.ram.limit)
    return dict(zip(pfns.tolist(), selection.kept.contains(pfns).tolist(), strict=True))


def list_dropped(selection: Selection) -> set[int]:
    return {pfn for pfn, is_kept in list_verdicts(selection).items() if not is_kept}


def list_worth(selection: Selection, verdict: Verdict) -> list[int]:
    """List the kept frames of a worth."""
    assert verdict < FIRST_DROPPED
    assert selection.worth is not None
    found: list[int] = []
    for section in range(-(-selection.ram.limit // SECTION_FRAMES)):
        pfns = selection.kept.members(section * SECTION_FRAMES, (section + 1) * SECTION_FRAMES)
        found.extend(selection.worth.select(section, verdict, pfns).tolist())
    return found
