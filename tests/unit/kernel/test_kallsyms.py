from __future__ import annotations

import struct

import numpy as np
import pytest

from postpanic.errors import AbsentError, CorruptError, FactAbsentError, PostpanicError
from postpanic.kernel.kallsyms import SymbolTable, decode_module_symbols, make_symbol_table, read_kallsyms
from postpanic.kernel.kallsyms.locate import find_kallsyms_by_shape
from tests.builders.kallsyms import LAYOUTS, KallsymsImage, Layout, build_kallsyms
from tests.unit.kernel.memories import PLACE, STEXT, open_x86_kernel

Entry = tuple[str, str, int]

IN_VMCOREINFO = ("num_syms", "names", "token_table", "token_index", "offsets", "relative_base", "addresses")


def make_entries(count: int = 2500, *, percpu: bool = True) -> list[Entry]:
    entries: list[Entry] = [("fixed_percpu_data", "A", 0), ("cpu_number", "A", 0x1A048)] if percpu else []
    entries += [("_text", "T", STEXT), ("_stext", "T", STEXT)]
    entries += [
        (f"do_init_{number}_set_task", "tTdDbB"[number % 6], STEXT + 64 + 48 * number) for number in range(count)
    ]
    entries.append(("r" * 300 + "_mangled", "t", STEXT + 64 + 48 * count))
    entries.append(("_end", "D", STEXT + 0x2000000))
    return entries


def _entries_for(layout: Layout) -> list[Entry]:
    return make_entries(percpu=layout.encoding in {"base-percpu", "absolute"})


def _lines(image: KallsymsImage) -> list[tuple[str, str, int]]:
    return [
        ("SYMBOL", name, vaddr)
        for name, vaddr in image.symbols.items()
        if name.removeprefix("kallsyms_") in IN_VMCOREINFO
    ]


def _assert_same(table: SymbolTable, entries: list[Entry]) -> None:
    assert [(symbol.name, symbol.type, symbol.vaddr) for symbol in table] == entries


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_decoded_where_vmcoreinfo_names_it(name: str) -> None:
    entries = _entries_for(LAYOUTS[name])
    image = build_kallsyms(entries, PLACE, LAYOUTS[name])
    _assert_same(read_kallsyms(open_x86_kernel({PLACE: image.data}, _lines(image))), entries)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_found_by_its_shape(name: str) -> None:
    entries = _entries_for(LAYOUTS[name])
    place = PLACE + 0x123450
    # Neither a run of rising numbers nor a string table alone is taken for the real thing.
    decoys = struct.pack("<600H", *range(600)) + bytes(64) + struct.pack("<64I", *range(0, 64 * 3000, 3000))
    image = build_kallsyms(entries, place, LAYOUTS[name])
    memory = open_x86_kernel({place - 0x20000: decoys, place: image.data, place + len(image.data) + 999: decoys})
    _assert_same(read_kallsyms(memory), entries)


def test_tables_that_straddle_two_chunks_of_the_search_are_found() -> None:
    entries = _entries_for(LAYOUTS["5.10-x86"])
    size = len(build_kallsyms(entries, PLACE, LAYOUTS["5.10-x86"]).data)
    boundary = STEXT + (4 << 20)
    for place in (boundary - size + 8, boundary - size + 400, boundary - 64):
        image = build_kallsyms(entries, place, LAYOUTS["5.10-x86"])
        _assert_same(read_kallsyms(open_x86_kernel({place: image.data})), entries)


def test_kernel_without_kallsyms_is_a_fact_that_is_absent() -> None:
    with pytest.raises(FactAbsentError, match="no kallsyms"):
        find_kallsyms_by_shape(open_x86_kernel({PLACE: bytes(range(256)) * 64}))


def test_table_whose_stext_is_elsewhere_is_corrupt() -> None:
    entries = [(name, letter, vaddr + (0x1000 if name == "_stext" else 0)) for name, letter, vaddr in make_entries(9)]
    entries.sort(key=lambda entry: entry[2])
    image = build_kallsyms(entries, PLACE, LAYOUTS["6.4"])
    with pytest.raises(CorruptError, match="_stext"):
        read_kallsyms(open_x86_kernel({PLACE: image.data}, _lines(image)))


@pytest.mark.parametrize("count", [0, 1 << 22 | 1, 0xFFFFFFFF])
def test_number_of_symbols_out_of_bounds_is_corrupt(count: int) -> None:
    image = build_kallsyms(make_entries(9), PLACE, LAYOUTS["6.4"])
    data = struct.pack("<I", count) + image.data[4:]
    with pytest.raises(CorruptError, match="kallsyms_num_syms"):
        read_kallsyms(open_x86_kernel({PLACE: data}, _lines(image)))


def test_more_symbols_than_names_is_an_error() -> None:
    image = build_kallsyms(make_entries(9), PLACE, LAYOUTS["6.4"])
    data = struct.pack("<I", 100000) + image.data[4:]
    with pytest.raises(PostpanicError, match="kallsyms names"):
        read_kallsyms(open_x86_kernel({PLACE: data}, _lines(image)))


@pytest.mark.parametrize("name", ["names", "token_table", "token_index", "offsets", "relative_base"])
def test_table_that_vmcoreinfo_puts_nowhere_is_an_error(name: str) -> None:
    image = build_kallsyms(make_entries(9), PLACE, LAYOUTS["6.4"])
    for vaddr in (0, 0x1000, (1 << 64) - 8, PLACE + 0x10000000):
        lines = [(kind, key, vaddr if key == f"kallsyms_{name}" else value) for kind, key, value in _lines(image)]
        with pytest.raises((CorruptError, AbsentError)):
            read_kallsyms(open_x86_kernel({PLACE: image.data}, lines))


def _table(*entries: Entry) -> SymbolTable:
    names = b"".join(name.encode() + b"\0" for name, _, _ in entries)
    lengths = [len(name) + 1 for name, _, _ in entries]
    return make_symbol_table(
        np.array([vaddr for _, _, vaddr in entries], dtype=np.uint64),
        np.array([ord(letter) for _, letter, _ in entries], dtype=np.uint8),
        names,
        np.cumsum([0, *lengths[:-1]]).astype(np.int64),
    )


def test_symbols_are_sorted_and_their_sizes_reach_to_the_next_address() -> None:
    table = _table(("c", "T", 0x3000), ("a", "T", 0x1000), ("b", "t", 0x1000), ("p", "A", 0x10), ("far", "D", 1 << 60))
    assert [(symbol.name, symbol.size_bytes) for symbol in table] == [
        ("p", 0xFF0),
        ("a", 0x2000),
        ("b", 0x2000),
        ("c", 0),
        ("far", 0),
    ]


def test_address_is_found_in_the_first_symbol_at_or_below_it() -> None:
    table = _table(("a", "T", 0x1000), ("alias", "t", 0x1000), ("b", "T", 0x2000))
    for vaddr, name, offset in ((0x1000, "a", 0), (0x1FFF, "a", 0xFFF), (0x2000, "b", 0), (0x2010, "b", 0x10)):
        symbol, distance = table.at(vaddr)
        assert (symbol.name, distance) == (name, offset)
    for vaddr in (0xFFF, -1, 1 << 64, 1 << 40):
        with pytest.raises(FactAbsentError):
            table.at(vaddr)


@pytest.mark.parametrize("lookups", [1, 100])
def test_name_is_found_whole_and_as_often_as_it_occurs(lookups: int) -> None:
    table = _table(("init", "t", 0x3000), ("pci_init", "t", 0x2000), ("init", "t", 0x1000), ("init_task", "D", 0x4000))
    for _ in range(lookups):
        assert [symbol.vaddr for symbol in table.find_all("init")] == [0x1000, 0x3000]
        assert table.find("init").vaddr == 0x1000
        assert table.get("init_task") == 0x4000
        assert table.get("task") is None
        assert table.find_all("") == table.find_all("i\0") == []
        assert "pci_init" in table
        with pytest.raises(FactAbsentError, match="'nit'"):
            table.find("nit")


def test_merge_adds_only_names_that_are_not_known() -> None:
    merged = _table(("a", "T", 0x1000), ("b", "T", 0x3000)).merge(_table(("c", "D", 0x2000), ("b", "D", 0x4000)))
    assert [(symbol.name, symbol.vaddr) for symbol in merged] == [("a", 0x1000), ("c", 0x2000), ("b", 0x3000)]


STRINGS = b"\0ext4_init\0ext4_fs_type\0$x\0printk\0"


def _sym(name: bytes, value: int, *, info: int = 0x12, shndx: int = 1) -> bytes:
    return struct.pack("<IBBHQQ", STRINGS.index(b"\0" + name + b"\0") + 1, info, 0, shndx, value, 0)


def test_module_symbols_are_decoded_with_their_letters() -> None:
    syms = bytes(24) + _sym(b"ext4_fs_type", 0x2000) + _sym(b"ext4_init", 0x1000)
    table = decode_module_symbols(syms, STRINGS, b"adt")
    assert [(symbol.name, symbol.type, symbol.vaddr) for symbol in table] == [
        ("ext4_init", "t", 0x1000),
        ("ext4_fs_type", "d", 0x2000),
    ]


def test_module_letters_are_in_st_info_before_there_was_a_typetab() -> None:
    table = decode_module_symbols(_sym(b"ext4_init", 0x1000, info=ord("t")), STRINGS, None)
    assert table.find("ext4_init").type == "t"


def test_module_symbols_without_place_or_name_are_left_out() -> None:
    outside = struct.pack("<IBBHQQ", 1 << 31, 0x12, 0, 1, 0x3000, 0)
    syms = _sym(b"printk", 0, shndx=0) + _sym(b"$x", 0x1000) + outside + _sym(b"ext4_init", 0x1000)
    assert [symbol.name for symbol in decode_module_symbols(syms, STRINGS, b"tttt")] == ["ext4_init"]


def test_module_tables_that_contradict_each_other_are_corrupt() -> None:
    with pytest.raises(CorruptError, match="multiple of 24"):
        decode_module_symbols(bytes(23), STRINGS, b"t")
    with pytest.raises(CorruptError, match="type letters"):
        decode_module_symbols(bytes(48), STRINGS, b"t")
    assert len(decode_module_symbols(bytes(48), b"", b"tt")) == 0
