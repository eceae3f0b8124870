from __future__ import annotations

import numpy as np
import pytest

from postpanic.dumps.memory import PageState, VirtualSegment
from postpanic.errors import CorruptError, FactAbsentError, PageAbsentError, TranslationError, UnsupportedError
from postpanic.kernel.memory import KernelMemory, open_kernel_memory
from postpanic.units import PhysAddr, VirtAddr
from tests.builders.page_tables import PageTableBuilder
from tests.builders.vmcoreinfo import build_aarch64_vmcoreinfo
from tests.unit.kernel.memories import (
    PHYS_BASE,
    PLACE,
    STEXT,
    SWAPPER,
    DictDump,
    image_paddr,
    make_x86_kernel,
    open_x86_kernel,
)

VMALLOC = 0xFFFFC90000000000


def _with_vmalloc(frames: list[int | None]) -> tuple[DictDump, KernelMemory]:
    """Make a kernel that maps pages at VMALLOC to the frames; each page is filled with its number."""
    dump, _ = make_x86_kernel()
    tables = PageTableBuilder("x86", tables_paddr=image_paddr(SWAPPER))
    tables.map(STEXT, image_paddr(STEXT), leaf_level=1)
    for number, frame in enumerate(frames):
        if frame is not None:
            tables.map(VMALLOC + 4096 * number, 4096 * frame)
            dump.write(4096 * frame, bytes([number + 1]) * 4096)
    for paddr, page in tables.pages().items():
        dump.write(paddr, page)
    return dump, open_kernel_memory(dump)


@pytest.mark.parametrize("levels", [4, 5])
def test_kernel_image_is_read_through_page_tables_and_without_them(levels: int) -> None:
    dump, _ = make_x86_kernel({PLACE: b"contents"}, levels=levels)
    memory = open_kernel_memory(dump)
    assert memory.read(PLACE, 8) == b"contents"
    assert memory.tables.translate(VirtAddr(PLACE)) == image_paddr(PLACE)
    assert len(memory.layout.level_names) == levels
    assert memory.machine == "x86_64"
    assert memory.kaslr_offset == STEXT - 0xFFFFFFFF81000000
    for paddr in range(image_paddr(SWAPPER), image_paddr(SWAPPER) + 0x8000, 4096):
        dump.pages.pop(paddr // 4096, None)
    assert open_kernel_memory(dump).read(PLACE, 8) == b"contents"


def test_numbers_and_strings_are_read_little_endian() -> None:
    memory = open_x86_kernel({PLACE: bytes(range(1, 9)) + b"name\0rest"})
    assert memory.read_u8(PLACE) == 0x01
    assert memory.read_u16(PLACE) == 0x0201
    assert memory.read_u32(PLACE) == 0x04030201
    assert memory.read_u64(PLACE) == 0x0807060504030201
    assert memory.read_array(PLACE, np.uint16, 2).tolist() == [0x0201, 0x0403]
    assert memory.read_array(PLACE, ">u2", 2).tolist() == [0x0201, 0x0403]
    assert memory.read_c_string(PLACE + 8) == b"name"


def test_string_may_cross_a_page_but_must_end() -> None:
    memory = open_x86_kernel({PLACE + 4090: b"x" * 100 + b"\0", PLACE + 0x3000: b"y" * 8192})
    assert memory.read_c_string(PLACE + 4090) == b"x" * 100
    with pytest.raises(CorruptError, match="no end within 4096 bytes"):
        memory.read_c_string(PLACE + 0x3000)


def test_scattered_pages_are_read_as_one_range() -> None:
    _, memory = _with_vmalloc([9, 3, 7, 4])
    assert memory.read(VMALLOC + 4095, 4098) == b"\1" + b"\2" * 4096 + b"\3"
    assert memory.read_array(VMALLOC, np.uint8, 4 * 4096).reshape(4, 4096)[:, 0].tolist() == [1, 2, 3, 4]


def test_page_that_is_not_mapped_is_a_translation_error_with_its_address() -> None:
    _, memory = _with_vmalloc([9, None, 7])
    for vaddr, size in ((VMALLOC + 4096, 8), (VMALLOC, 3 * 4096), (VMALLOC + 4090, 20)):
        with pytest.raises(TranslationError, match=f"{VMALLOC + 4096:#x} is not mapped") as caught:
            memory.read(vaddr, size)
        assert caught.value.vaddr == VMALLOC + 4096


@pytest.mark.parametrize(
    ("state", "why"), [(PageState.EXCLUDED, "by its filter"), (PageState.LOST, "although the dump should hold it")]
)
def test_excluded_page_is_not_zero_but_an_error_that_says_why(state: PageState, why: str) -> None:
    dump, memory = _with_vmalloc([9, 3, 7])
    dump.states[3] = state
    for vaddr, size in ((VMALLOC + 4096 + 16, 8), (VMALLOC, 3 * 4096)):
        with pytest.raises(PageAbsentError, match=why) as caught:
            memory.read(vaddr, size)
        assert f"{vaddr if size == 8 else VMALLOC + 4096:#x}" in str(caught.value)
        assert caught.value.paddr // 4096 == 3


def test_what_is_available_is_given_with_a_mask_of_it() -> None:
    dump, memory = _with_vmalloc([9, None, 7, 4])
    dump.states[7] = PageState.EXCLUDED
    data, present = memory.read_available(VMALLOC + 4000, 3 * 4096)
    assert data.shape == present.shape == (3 * 4096,)
    assert present.nonzero()[0].tolist() == [*range(96), *range(96 + 2 * 4096, 3 * 4096)]
    assert set(data[~present].tolist()) == {0}
    assert set(data[:96].tolist()) == {1}
    assert set(data[96 + 2 * 4096 :].tolist()) == {4}


@pytest.mark.parametrize("size", [-1, (1 << 30) + 1, 1 << 62])
def test_size_that_no_reader_means_is_refused(size: int) -> None:
    with pytest.raises(CorruptError, match="asked for"):
        open_x86_kernel().read(PLACE, size)


@pytest.mark.parametrize("vaddr", [-8, 1 << 64, (1 << 64) - 4])
def test_range_beyond_64_bits_is_not_mapped(vaddr: int) -> None:
    memory = open_x86_kernel()
    with pytest.raises(TranslationError):
        memory.read(vaddr, 8)
    with pytest.raises(TranslationError):
        memory.read_available(vaddr, 8)


def test_phys_base_is_taken_from_a_segment_where_vmcoreinfo_lacks_it() -> None:
    dump, info = make_x86_kernel({PLACE: b"contents"})
    info.lines = [line for line in info.lines if "phys_base" not in line]
    segment = VirtualSegment(VirtAddr(STEXT), PhysAddr(image_paddr(STEXT)), 1 << 24)
    for more in ({"segments": (segment,)}, {"phys_base": PHYS_BASE}):
        dump.description = type(dump.description)(
            "test", ("test",), "x86_64", "little", 4096, 0, vmcoreinfo=info.text(), **more
        )
        assert open_kernel_memory(dump).read(PLACE, 8) == b"contents"
    dump.description = type(dump.description)("test", ("test",), "x86_64", "little", 4096, 0, vmcoreinfo=info.text())
    with pytest.raises(FactAbsentError, match="phys_base"):
        open_kernel_memory(dump)


def test_machine_that_is_not_supported_is_named() -> None:
    _, info = make_x86_kernel()
    with pytest.raises(UnsupportedError, match="s390x"):
        open_kernel_memory(DictDump(machine="s390x", vmcoreinfo=info.text()))


@pytest.mark.parametrize(
    ("page_shift", "built", "t1sz", "wide"),
    [
        (12, 39, 25, ""),
        (12, 48, 16, ""),
        (12, 52, 12, "lpa2"),
        (12, 52, 16, ""),
        (14, 52, 17, ""),
        (14, 47, 17, ""),
        (16, 48, 16, "lpa"),
        (16, 52, 12, "lpa"),
        (16, 52, 16, "lpa"),
        (12, 48, None, ""),
    ],
)
def test_arm_kernel_is_read_whatever_its_granule(page_shift: int, built: int, t1sz: int | None, wide: str) -> None:
    stext, voffset = 0xFFFF800080010000, 0xFFFF800040000000
    actual = 64 - t1sz if t1sz is not None else built
    if actual < 48:
        stext |= (1 << 64) - (1 << actual)
    swapper = stext + 0x1000000
    # With 64 KiB pages the root keeps the size that it was built for.
    va_bits = built if page_shift == 16 else actual
    info = build_aarch64_vmcoreinfo(
        stext=stext, swapper=swapper, kimage_voffset=voffset, page_size=1 << page_shift, va_bits=built, t1sz=t1sz
    )
    dump = DictDump(machine="", vmcoreinfo=info.text(), page_size=4096)
    root = (swapper - voffset) & (1 << 64) - 1
    tables = PageTableBuilder("arm", page_shift=page_shift, va_bits=va_bits, tables_paddr=root, wide=wide)
    page = 1 << page_shift
    for number in range(3):
        paddr = (stext - voffset & (1 << 64) - 1) + number * page
        tables.map(stext + number * page, paddr)
        dump.write(paddr, bytes([number + 1]) * page)
    for paddr, contents in tables.pages().items():
        dump.write(paddr, contents)
    memory = open_kernel_memory(dump)
    assert memory.machine == "aarch64"
    assert memory.page_size_bytes == page
    assert memory.read(stext + page - 1, page + 2) == b"\1" + b"\2" * page + b"\3"
    assert memory.read(stext + 5000, 2) == (b"\1\1" if page > 5002 else b"\2\2")
    with pytest.raises(TranslationError):
        memory.read(stext + 3 * page, 1)


@pytest.mark.parametrize("page_size", [0, -4096, 3000, 8192, 1 << 40])
def test_arm_page_size_that_does_not_exist_is_corrupt(page_size: int) -> None:
    info = build_aarch64_vmcoreinfo(
        stext=0xFFFF800080010000,
        swapper=0xFFFF800081000000,
        kimage_voffset=0xFFFF800040000000,
        page_size=page_size,
        va_bits=48,
        t1sz=16,
    )
    dump = DictDump(machine="aarch64", vmcoreinfo=info.text(), page_size=4096)
    if page_size:
        with pytest.raises(CorruptError):
            open_kernel_memory(dump)
    else:
        assert open_kernel_memory(dump).page_size_bytes == 4096
