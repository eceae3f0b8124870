"""What must hold for the tables that a kernel leaves in memory: read as written, and never broken by any bytes."""

from __future__ import annotations

import contextlib
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postpanic.errors import PostpanicError
from postpanic.kernel.kallsyms import SymbolTable, decode_module_symbols, read_kallsyms
from postpanic.kernel.ksymtab import read_exported_symbols
from postpanic.kernel.memory import open_kernel_memory
from postpanic.kernel.paging.aarch64 import Arm64PageTables
from postpanic.kernel.paging.tables import NOT_MAPPED, PageTables
from postpanic.kernel.paging.x86_64 import X86PageTables
from postpanic.kernel.printk import read_log
from postpanic.kernel.uts import read_utsname
from postpanic.kernel.vmcoreinfo import parse_vmcoreinfo
from postpanic.units import PhysAddr, VirtAddr
from tests.builders.kallsyms import LAYOUTS, KallsymsImage, build_kallsyms
from tests.builders.page_tables import PageTableBuilder
from tests.builders.printk_ring import Message, RingBuilder, RingImage, build_linear_log
from tests.unit.kernel.memories import PLACE, STEXT, DictDump, make_x86_kernel, open_x86_kernel

DETERMINISTIC = settings(derandomize=True, deadline=None, max_examples=60)
MANY = settings(DETERMINISTIC, max_examples=300)
LIMIT_S, LIMIT_BYTES = 5.0, 64 << 20

words = st.integers(0, (1 << 64) - 1)
hostile = st.one_of(words, st.sampled_from([0, 1, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1, PLACE]))


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Let nothing but our own errors out, and neither time nor memory run away."""
    tracemalloc.start()
    started = time.process_time()
    try:
        with contextlib.suppress(PostpanicError):
            yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert time.process_time() - started < LIMIT_S
    assert peak < LIMIT_BYTES


def check_well_formed(table: SymbolTable) -> None:
    assert len(table.types) == len(table.name_offsets) == len(table.sizes) == len(table)
    assert bool((table.vaddrs[1:] >= table.vaddrs[:-1]).all())
    for symbol in table:
        assert "\0" not in symbol.name


@MANY
@given(
    st.one_of(
        st.binary(max_size=400), st.text(alphabet="=()\nSYMBOLNERprb0123456789abcdefx-", max_size=300).map(str.encode)
    )
)
def test_any_text_is_parsed_or_refused(text: bytes) -> None:
    info = parse_vmcoreinfo(text)
    assert isinstance(info.symbols, dict)
    for key in list(info.entries):
        name = key.partition("(")[2].rstrip(")")
        for get in (info.get_symbol, info.get_offset, info.get_size, info.get_length, info.get_number):
            with contextlib.suppress(PostpanicError):
                get(name)
    with contextlib.suppress(PostpanicError):
        assert info.page_size_bytes is None or isinstance(info.page_size_bytes, int)


def _make_x86(dump: DictDump, levels: int) -> PageTables:
    return X86PageTables(dump, PhysAddr(0x1000), level_count=levels)


def _make_arm(dump: DictDump, va_bits: int) -> PageTables:
    return Arm64PageTables(dump, PhysAddr(0x1000), page_shift=12, va_bits=va_bits)


# Entries that mostly lead to other tables among the few pages that exist.
entries = st.one_of(
    st.integers(0, 9).flatmap(lambda page: st.integers(0, 0x1FF).map(lambda low: page << 12 | low)), words
)


@DETERMINISTIC
@given(
    st.sampled_from([(_make_x86, 4), (_make_x86, 5), (_make_arm, 39), (_make_arm, 48), (_make_arm, 52)]),
    st.lists(st.tuples(st.integers(0, 4095), entries), max_size=60),
    st.lists(st.integers(0, 511), min_size=5, max_size=5),
)
def test_any_tables_translate_the_same_one_by_one_and_in_bulk(
    kind: tuple[Callable[[DictDump, int], PageTables], int], written: list[tuple[int, int]], slots: list[int]
) -> None:
    make, argument = kind
    dump = DictDump()
    dump.write(0x1000, bytes(0x8000))
    for slot, entry in written:
        dump.write(0x1000 + 8 * slot, struct.pack("<Q", entry))
    tables = make(dump, argument)
    vaddr = 0
    for level, slot in zip(reversed(tables.levels), slots, strict=False):
        vaddr |= (slot & ((1 << level.index_bits) - 1)) << level.shift
    if vaddr >> (tables.va_bits - 1):
        vaddr |= (1 << 64) - (1 << tables.va_bits)
    bulk = tables.translate_pages(VirtAddr(vaddr), 40).tolist()
    assert len(bulk) == 40
    if vaddr + 40 * 4096 > 1 << 64 or not tables.is_canonical(vaddr + 39 * 4096):
        return
    for number, paddr in enumerate(bulk):
        walk = tables.walk(VirtAddr(vaddr + 4096 * number))
        assert paddr == (NOT_MAPPED if walk.paddr is None else walk.paddr)
        assert bool(walk.reason) == (walk.paddr is None)


@DETERMINISTIC
@given(
    st.sampled_from(
        [("x86", 12, 48, ""), ("x86", 12, 57, ""), ("arm", 12, 52, "lpa2"), ("arm", 14, 48, ""), ("arm", 16, 52, "lpa")]
    ),
    st.dictionaries(st.integers(0, (1 << 36) - 1), st.integers(0, (1 << 36) - 1), max_size=30),
)
def test_whatever_is_mapped_translates(geometry: tuple[str, int, int, str], pages: dict[int, int]) -> None:
    kind, page_shift, va_bits, wide = geometry
    builder = PageTableBuilder(kind, page_shift=page_shift, va_bits=va_bits, tables_paddr=0x10000, wide=wide)
    top = (1 << 64) - (1 << va_bits - 1)
    limit = va_bits - 1 - page_shift
    mapped = {top + ((page & ((1 << limit) - 1)) << page_shift): frame << page_shift for page, frame in pages.items()}
    mapped = {vaddr: paddr & ((1 << 48) - 1) for vaddr, paddr in mapped.items()}
    for vaddr, paddr in mapped.items():
        builder.map(vaddr, paddr)
    dump = DictDump(page_size=1 << page_shift)
    for paddr, page in builder.pages().items():
        dump.write(paddr, page)
    tables: PageTables
    if kind == "x86":
        tables = X86PageTables(dump, PhysAddr(builder.root_paddr), level_count=builder.levels)
    else:
        tables = Arm64PageTables(dump, PhysAddr(builder.root_paddr), page_shift=page_shift, va_bits=va_bits)
    for vaddr, paddr in mapped.items():
        assert tables.translate(VirtAddr(vaddr + 5)) == paddr + 5
        assert tables.translate_pages(VirtAddr(vaddr), 1).tolist() == [paddr]


names = st.text(alphabet="abcdefghijklmnopqrstuvwxyz_.0123456789$", min_size=1, max_size=12)
long_names = st.integers(100, 500).map("n".__mul__)


@st.composite
def symbol_lists(draw: st.DrawFn, *, percpu: bool) -> list[tuple[str, str, int]]:
    gaps = draw(
        st.lists(
            st.tuples(st.one_of(names, long_names), st.sampled_from("tTdDbBrRwW"), st.integers(0, 1 << 16)),
            max_size=600,
        )
    )
    found = [("_stext", "T", STEXT)]
    vaddr = STEXT
    for name, letter, gap in gaps:
        vaddr += gap
        found.append((name, letter, vaddr))
    low = [("percpu_start", "A", 0), ("percpu_more", "A", 0x20000)] if percpu and draw(st.booleans()) else []
    return low + found


def _lines(image: KallsymsImage) -> list[tuple[str, str, int]]:
    return [
        ("SYMBOL", name, vaddr) for name, vaddr in image.symbols.items() if "markers" not in name and "seqs" not in name
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(DETERMINISTIC, max_examples=20)
@given(st.data())
def test_any_symbols_come_back_from_every_layout(layout: str, data: st.DataObject) -> None:
    percpu = LAYOUTS[layout].encoding in {"base-percpu", "absolute"}
    symbols = data.draw(symbol_lists(percpu=percpu))
    image = build_kallsyms(symbols, PLACE, LAYOUTS[layout])
    table = read_kallsyms(open_x86_kernel({PLACE: image.data}, _lines(image)))
    assert [(symbol.name, symbol.type, symbol.vaddr) for symbol in table] == symbols
    for symbol in list(table)[::50]:
        assert symbol in table.find_all(symbol.name)
        assert table.at(symbol.vaddr)[0].vaddr == symbol.vaddr


SYMBOLS = [("_stext", "T", STEXT)] + [(f"get_task_{number}", "t", STEXT + 16 * number) for number in range(1, 700)]
KALLSYMS = {name: build_kallsyms(SYMBOLS, PLACE, layout) for name, layout in LAYOUTS.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(DETERMINISTIC, max_examples=40)
@given(st.data())
def test_damaged_kallsyms_end_in_an_error_or_a_well_formed_table(layout: str, data: st.DataObject) -> None:
    image = KALLSYMS[layout]
    damaged = bytearray(image.data)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.sampled_from(sorted(image.symbols.values()))) - PLACE
        offset = min(len(damaged) - 8, place + data.draw(st.one_of(st.just(0), st.integers(0, 4000))))
        size = data.draw(st.sampled_from([1, 2, 4, 8]))
        damaged[offset : offset + size] = (data.draw(hostile) & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    memory = open_x86_kernel({PLACE: bytes(damaged)}, _lines(image))
    with bounded():
        check_well_formed(read_kallsyms(memory))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_kallsyms_cut_at_any_page_end_in_an_error_or_whole(layout: str) -> None:
    image = KALLSYMS[layout]
    for size in range(0, len(image.data), 512):
        dump, _ = make_x86_kernel({PLACE: image.data[:size]}, _lines(image))
        with bounded():
            check_well_formed(read_kallsyms(open_kernel_memory(dump)))


@settings(DETERMINISTIC, max_examples=8)
@given(st.data())
def test_damaged_kallsyms_are_searched_for_in_bounded_time(data: st.DataObject) -> None:
    image = build_kallsyms(
        [*SYMBOLS, *(("f", "t", STEXT + 65536 + n) for n in range(2500))], PLACE, LAYOUTS["5.10-x86"]
    )
    damaged = bytearray(image.data)
    place = data.draw(st.sampled_from(sorted(image.symbols.values()))) - PLACE
    offset = min(len(damaged) - 8, place + data.draw(st.integers(0, 600)))
    damaged[offset : offset + 4] = (data.draw(hostile) & 0xFFFFFFFF).to_bytes(4, "little")
    memory = open_x86_kernel({PLACE: bytes(damaged)})
    tracemalloc.start()
    with contextlib.suppress(PostpanicError):
        check_well_formed(read_kallsyms(memory))
    assert tracemalloc.get_traced_memory()[1] < 4 * LIMIT_BYTES
    tracemalloc.stop()


messages = st.builds(
    Message,
    st.binary(max_size=60),
    level=st.integers(0, 7),
    timestamp_ns=words,
    caller_id=st.integers(0, (1 << 32) - 1),
    facility=st.integers(0, 255),
    flags=st.integers(0, 31),
    subsystem=st.text(alphabet="abc", max_size=15),
    device=st.text(alphabet="+:0123abc", max_size=47),
)


@DETERMINISTIC
@given(st.lists(messages, max_size=80), st.integers(1, 6), st.integers(7, 12), st.booleans())
def test_any_log_comes_back(logged: list[Message], count_bits: int, size_bits: int, exact_fit_wraps: bool) -> None:
    builder = RingBuilder(PLACE, count_bits=count_bits, size_bits=size_bits, exact_fit_wraps=exact_fit_wraps)
    for message in logged:
        builder.log(message)
    image = builder.build()
    records = read_log(open_x86_kernel(image.parts, image.lines))
    assert [record.seq for record in records] == image.kept
    for record in records:
        message = logged[record.seq]
        assert (record.text, record.level, record.timestamp_ns, record.caller_id) == (
            message.text,
            message.level,
            message.timestamp_ns,
            message.caller_id,
        )
        assert (record.facility, record.flags, record.subsystem, record.device, record.damage) == (
            message.facility,
            message.flags,
            message.subsystem,
            message.device,
            "",
        )


def _logged() -> RingImage:
    builder = RingBuilder(PLACE, count_bits=4, size_bits=10)
    for number in range(40):
        builder.log(Message(b"message %d" % number, subsystem="pci", device="+pci:0"))
    return builder.build()


@MANY
@given(st.data())
def test_damaged_ring_ends_in_an_error_or_in_records(data: st.DataObject) -> None:
    image = _logged()
    for _ in range(data.draw(st.integers(1, 6))):
        vaddr = data.draw(st.sampled_from(sorted(image.parts)))
        part = bytearray(image.parts[vaddr])
        offset = data.draw(st.integers(0, len(part) - 1)) & ~3
        value = struct.pack("<Q", data.draw(hostile))
        part[offset : offset + 8] = value[: len(part) - offset]
        image.parts[vaddr] = bytes(part)
    memory = open_x86_kernel(image.parts, image.lines)
    with bounded():
        for record in read_log(memory):
            assert 0 <= record.level <= 7
            assert len(record.text) <= 1 << 16


@MANY
@given(st.data())
def test_damaged_older_log_ends_in_an_error_or_in_records(data: st.DataObject) -> None:
    parts, lines = build_linear_log([Message(b"message %d" % number, subsystem="pci") for number in range(50)], PLACE)
    for _ in range(data.draw(st.integers(1, 6))):
        vaddr = data.draw(st.sampled_from(sorted(parts)))
        part = bytearray(parts[vaddr])
        offset = data.draw(st.integers(0, len(part) - 1)) & ~1
        size = data.draw(st.sampled_from([2, 4]))
        value = (data.draw(hostile) & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        part[offset : offset + size] = value[: len(part) - offset]
        parts[vaddr] = bytes(part)
    memory = open_x86_kernel(parts, lines)
    with bounded():
        assert len(read_log(memory)) <= 1024


@MANY
@given(st.data())
def test_any_vmcoreinfo_values_end_in_errors_or_results(data: st.DataObject) -> None:
    image, kallsyms = _logged(), KALLSYMS["6.4"]
    parts = {**image.parts, PLACE + 0x40000: build_kallsyms(SYMBOLS, PLACE + 0x40000, LAYOUTS["6.4"]).data}
    lines = image.lines + [(kind, name, vaddr + 0x40000) for kind, name, vaddr in _lines(kallsyms)]
    dump, info = make_x86_kernel(parts, lines)
    for _ in range(data.draw(st.integers(1, 3))):
        index = data.draw(st.integers(0, len(info.lines) - 1))
        key = info.lines[index].partition("=")[0]
        value = data.draw(hostile)
        info.lines[index] = f"{key}={value:x}" if "SYMBOL" in key or key == "KERNELOFFSET" else f"{key}={value}"
    dump.description = type(dump.description)("test", ("test",), "x86_64", "little", 4096, 0, vmcoreinfo=info.text())
    with bounded():
        memory = open_kernel_memory(dump)
        for read in (read_log, read_kallsyms, read_utsname):
            with contextlib.suppress(PostpanicError):
                read(memory)


@MANY
@given(st.binary(max_size=240), st.binary(max_size=60), st.one_of(st.none(), st.binary(max_size=12)))
def test_any_module_symbols_end_in_an_error_or_a_well_formed_table(
    syms: bytes, strings: bytes, typetab: bytes | None
) -> None:
    with bounded():
        check_well_formed(decode_module_symbols(syms[: len(syms) // 24 * 24], strings, typetab))


@settings(DETERMINISTIC, max_examples=8)
@given(st.binary(min_size=12, max_size=4000))
def test_any_image_is_searched_for_exports_without_harm(noise: bytes) -> None:
    memory = open_x86_kernel({STEXT + 0x600000: noise * 20})
    with contextlib.suppress(PostpanicError):
        check_well_formed(read_exported_symbols(memory))
