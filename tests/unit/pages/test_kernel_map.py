"""The worth of the kernel's pages, as its page tables tell it."""

from __future__ import annotations

import numpy as np
import pytest

from postpanic.dumps.memory import PageState
from postpanic.kernel.memory import KernelMemory, open_kernel_memory
from postpanic.pages.classify import select_pages
from postpanic.pages.kernel_map import KernelMap, find_kernel_map
from postpanic.pages.mem_map import MemMap
from postpanic.pages.selection import SECTION_FRAMES
from postpanic.pages.verdict import Verdict
from tests.builders.page_tables import PageTableBuilder
from tests.builders.vmcoreinfo import build_aarch64_vmcoreinfo, build_x86_64_vmcoreinfo
from tests.unit.kernel.memories import PHYS_BASE, STEXT, SWAPPER, DictDump, image_paddr
from tests.unit.pages.machines import SparseDump, list_worth

DIRECT, VMALLOC, VMEMMAP, MODULES = 0xFFFF888000000000, 0xFFFFC90000000000, 0xFFFFEA0000000000, 0xFFFFFFFFC0000000
RAM_FRAMES = 0x20000
STACK, MODULE, IO, MEMMAP = 0x5000, 0x5800, 0x400000, 0x6000
V = Verdict


def make(levels: int = 4) -> tuple[SparseDump, KernelMemory]:
    """Make a kernel that maps its image, memory directly, a stack, a module, a device and struct pages."""
    info = build_x86_64_vmcoreinfo(stext=STEXT, swapper=SWAPPER, phys_base=PHYS_BASE, levels=levels)
    info.symbol("mem_section", DIRECT + 0x3000)
    root = image_paddr(SWAPPER)
    tables = PageTableBuilder("x86", va_bits=48 if levels == 4 else 57, tables_paddr=root)
    for number in range(4):
        tables.map(STEXT + (number << 21), image_paddr(STEXT) + (number << 21), leaf_level=1)
    tables.map(DIRECT, 0, leaf_level=0)
    for number in range(1, 512):
        tables.map(DIRECT + number * 4096, number * 4096)
    for start in range(1 << 21, RAM_FRAMES << 12, 1 << 21):
        tables.map(DIRECT + start, start, leaf_level=1)
    for number in range(4):
        tables.map(VMALLOC + number * 4096, (STACK + 3 * number) << 12)
    tables.map(MODULES + 0x5000, MODULE << 12)
    tables.map(VMALLOC + 0x100000, IO << 12)
    tables.map(VMEMMAP, MEMMAP << 12, leaf_level=1)
    dump = SparseDump([(0, RAM_FRAMES)], info.text())
    for paddr, page in tables.pages().items():
        dump.write(paddr, page)
    return dump, open_kernel_memory(dump)


def frames(found: KernelMap, verdict: Verdict) -> list[int]:
    return [pfn for start, end in found.runs[verdict].tolist() for pfn in range(start, end)]


def mem_map() -> MemMap:
    return MemMap(
        "sparsemem",
        np.array([0]),
        np.array([RAM_FRAMES]),
        np.array([VMEMMAP], dtype=np.uint64),
        64,
    )


@pytest.mark.parametrize("levels", [4, 5])
def test_pages_are_told_by_where_they_are_mapped(levels: int) -> None:
    dump, kernel = make(levels)
    found = find_kernel_map(dump, kernel, mem_map(), RAM_FRAMES)
    first = image_paddr(STEXT) >> 12
    assert frames(found, V.IMAGE) == list(range(first, first + 4 * 512))
    assert frames(found, V.STACK) == sorted([STACK, STACK + 3, STACK + 6, STACK + 9, MODULE])
    assert frames(found, V.MEMMAP) == list(range(MEMMAP, MEMMAP + 512))
    assert frames(found, V.TABLE) == sorted(pfn for pfn in dump.pages if pfn < RAM_FRAMES)
    assert found.notes == ()


def test_only_what_else_is_merely_the_kernels_is_told_anew() -> None:
    found = KernelMap(
        {V.IMAGE: np.array([[2, 9]]), V.STACK: np.array([[0, 4], [SECTION_FRAMES - 2, SECTION_FRAMES + 3]])}
    )
    verdicts = np.full(SECTION_FRAMES, V.KERNEL, dtype=np.uint8)
    verdicts[4:9] = [V.UNKNOWN, V.USER_KEPT, V.SLAB, V.FREE, V.TABLE]
    found.apply(0, verdicts)
    expected = [V.STACK, V.STACK, V.IMAGE, V.IMAGE, V.IMAGE, V.USER_KEPT, V.SLAB, V.FREE, V.TABLE, V.KERNEL]
    assert verdicts[:10].tolist() == expected
    assert verdicts[-3:].tolist() == [V.KERNEL, V.STACK, V.STACK]
    verdicts = np.full(SECTION_FRAMES, V.KERNEL, dtype=np.uint8)
    found.apply(1, verdicts)
    assert verdicts[:4].tolist() == [V.STACK, V.STACK, V.STACK, V.KERNEL]


def test_worth_is_known_even_where_no_struct_page_is() -> None:
    dump, kernel = make()
    selection = select_pages(dump, kernel, 31)
    assert selection.kept.count == RAM_FRAMES
    stacks = {STACK, STACK + 3, STACK + 6, STACK + 9, MODULE}
    assert set(list_worth(selection, V.STACK)) == stacks | set(range(MEMMAP, MEMMAP + 512))
    assert len(list_worth(selection, V.IMAGE)) == 4 * 512


def test_tables_that_cannot_be_read_tell_less_and_raise_nothing() -> None:
    dump, kernel = make()
    table = kernel.walk(VMALLOC).steps[-1].entry_paddr >> 12  # type: ignore[arg-type]
    dump.states[table] = PageState.LOST
    found = find_kernel_map(dump, kernel, mem_map(), RAM_FRAMES)
    assert frames(found, V.STACK) == [MODULE]
    dump.states[image_paddr(SWAPPER) >> 12] = PageState.EXCLUDED
    del kernel.tables._tables
    kernel.tables._tables = type(kernel._translations)()  # type: ignore[assignment]
    found = find_kernel_map(dump, kernel, mem_map(), RAM_FRAMES)
    assert frames(found, V.IMAGE) == []
    assert "the kernel's page tables tell nothing" in found.notes[0]


def test_tables_that_lead_back_to_themselves_end() -> None:
    dump, kernel = make()
    root = image_paddr(SWAPPER)
    dump.write(root, (root | 3).to_bytes(8, "little") * 512)
    found = find_kernel_map(dump, kernel, mem_map(), RAM_FRAMES)
    assert root >> 12 in frames(found, V.TABLE)


def test_tables_full_of_garbage_end() -> None:
    dump, kernel = make()
    random = np.random.default_rng(3)
    for pfn in range(0x8000, 0x8100):
        words = (random.integers(0x8000, 0x8100, 512).astype(np.uint64) << np.uint64(12)) | np.uint64(3)
        dump.write(pfn << 12, words.tobytes())
    dump.write(image_paddr(SWAPPER) + 8 * 400, (0x8000 << 12 | 3).to_bytes(8, "little"))
    find_kernel_map(dump, kernel, mem_map(), RAM_FRAMES)


@pytest.mark.parametrize(("page_shift", "va_bits"), [(12, 48), (12, 39), (16, 48)])
def test_arm_kernel(page_shift: int, va_bits: int) -> None:
    page = 1 << page_shift
    top = (1 << 64) - (1 << va_bits - 1)
    stext, offset = top + 0x80000000, top + 0x40000000
    swapper = stext + 0x1000000
    info = build_aarch64_vmcoreinfo(
        stext=stext, swapper=swapper, kimage_voffset=offset, page_size=page, va_bits=va_bits, t1sz=64 - va_bits
    )
    direct = (1 << 64) - (1 << va_bits)
    info.symbol("mem_section", direct + 0x10 * page)
    dump = DictDump(machine="aarch64", vmcoreinfo=info.text(), page_size=page)
    tables = PageTableBuilder("arm", page_shift=page_shift, va_bits=va_bits, tables_paddr=swapper - offset)
    for number in range(3):
        tables.map(stext + number * page, stext - offset + number * page)
    for number in range(64):
        tables.map(direct + number * page, number * page)
    tables.map(top + 0x1000000, 0x2345 * page)
    for paddr, contents in tables.pages().items():
        dump.write(paddr, contents)
    kernel = open_kernel_memory(dump)
    found = find_kernel_map(dump, kernel, None, 1 << 24)
    first = (stext - offset) // page
    assert frames(found, V.IMAGE) == [first, first + 1, first + 2]
    assert frames(found, V.STACK) == [0x2345]
    assert frames(found, V.TABLE) == sorted(dump.pages)
