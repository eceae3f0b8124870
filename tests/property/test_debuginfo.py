"""What must hold for types, unwind tables and what is written of them, whatever the bytes."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given, settings
from hypothesis import strategies as st

from postpanic.errors import FileFaultError, PostpanicError
from postpanic.kernel.btf import TypeResolver, decode_btf, format_c_type
from postpanic.kernel.debuginfo.module_file import ModuleFacts, synthesize_module
from postpanic.kernel.debuginfo.module_layout import ModuleLayout
from postpanic.kernel.debuginfo.modules import ModuleReader, ModuleSection, read_module_btfs
from postpanic.kernel.debuginfo.selection import declarable_types
from postpanic.kernel.debuginfo.state import decode_cache_state
from postpanic.kernel.debuginfo.vmlinux import VmlinuxFacts, link_symbols, synthesize_vmlinux
from postpanic.kernel.kallsyms import SymbolTable, make_symbol_table
from postpanic.kernel.orc import OrcLayout, decode_orc, unwind
from postpanic.kernel.prologue import decode_frame_layout
from tests.builders.btf import BtfBuilder, build_example
from tests.unit.kernel.memories import PLACE, STEXT, open_x86_kernel

DETERMINISTIC = settings(derandomize=True, deadline=None, max_examples=60)
MANY = settings(DETERMINISTIC, max_examples=400)

EXAMPLE, _ = build_example()
WHOLE = EXAMPLE.build()
words = st.integers(0, (1 << 32) - 1)
names = st.sampled_from(["", "alpha", "beta", "task_struct", "int"])


def symbol_table(entries: list[tuple[str, str, int]]) -> SymbolTable:
    blobs = [name.encode() + b"\0" for name, _, _ in entries]
    lengths = np.array([len(blob) for blob in blobs], dtype=np.int64)
    return make_symbol_table(
        np.array([vaddr for _, _, vaddr in entries], dtype=np.uint64),
        np.array([ord(letter) for _, letter, _ in entries], dtype=np.uint8),
        b"".join(blobs),
        np.cumsum(lengths) - lengths,
    )


@MANY
@given(st.integers(0, len(WHOLE) - 1))
def test_btf_cut_anywhere_is_refused(size: int) -> None:
    with pytest.raises(FileFaultError, match="BTF"):
        decode_btf(WHOLE[:size])


@MANY
@given(st.integers(24, len(WHOLE) - 1), st.binary(min_size=1, max_size=8))
def test_changed_btf_is_refused_or_can_be_used_in_every_way(at: int, garbage: bytes) -> None:
    data = (WHOLE[:at] + garbage + WHOLE[at + len(garbage) :])[: len(WHOLE)]
    try:
        btf = decode_btf(data)
    except FileFaultError:
        return
    resolver = TypeResolver(btf)
    for type_id in range(btf.end_id):
        assert btf.size_of(type_id) >= 0
        resolver.detect_c_type(format_c_type(btf, type_id))
    parts, _ = synthesize_vmlinux(VmlinuxFacts("x86_64", link_symbols(symbol_table([]), 0), btf, b""))
    assert sum(map(len, parts)) > 1000


@DETERMINISTIC
@given(st.data())
def test_any_graph_of_types_is_written_so_that_others_read_it(data: st.DataObject) -> None:
    builder = BtfBuilder()
    number = builder.int_("int", 4, 1)
    count = data.draw(st.integers(1, 12))
    targets = st.integers(0, number + count)
    makers: list[Callable[[], int]] = [
        lambda: builder.ptr(data.draw(targets)),
        lambda: builder.struct(
            data.draw(names),
            data.draw(st.integers(0, 1 << 20)),
            data.draw(st.lists(st.tuples(names, targets, st.integers(0, 1 << 20)), max_size=4)),
        ),
        lambda: builder.union(
            data.draw(names), 8, data.draw(st.lists(st.tuples(names, targets, st.integers(0, 63)), max_size=3))
        ),
        lambda: builder.enum(data.draw(names), data.draw(st.lists(st.tuples(names, words), max_size=3))),
        lambda: builder.proto(data.draw(targets), data.draw(st.lists(st.tuples(names, targets), max_size=3))),
        lambda: builder.fwd(data.draw(names), is_union=data.draw(st.booleans())),
        lambda: builder.const(number),
        lambda: builder.array(number, number, data.draw(words)),
    ]
    for _ in range(count):
        data.draw(st.sampled_from(makers))()
    btf = decode_btf(builder.build())
    symbols = link_symbols(symbol_table([("_text", "T", STEXT), ("f", "t", STEXT), ("_end", "T", STEXT + 64)]), 0)
    parts, report = synthesize_vmlinux(VmlinuxFacts("x86_64", symbols, btf, b""))
    dwarf = ELFFile(io.BytesIO(b"".join(bytes(part) for part in parts))).get_dwarf_info()
    units = [unit.get_top_DIE() for unit in dwarf.iter_CUs()]
    tops = [die for unit in units for die in unit.iter_children()]
    assert sum(die.tag not in ("DW_TAG_subprogram", "DW_TAG_variable") for die in tops) == report.types
    entries = [die for unit in dwarf.iter_CUs() for die in unit.iter_DIEs() if not die.is_null()]
    offsets = {die.offset for die in entries}
    for die in entries:
        for attribute in die.attributes.values():
            if attribute.form == "DW_FORM_ref_addr":
                assert attribute.value in offsets


@MANY
@given(st.text("structunionenumintcharvoid *()[]{},.0123456789_ \t", max_size=60))
def test_any_text_is_a_type_or_none(text: str) -> None:
    resolver = TypeResolver(decode_btf(WHOLE))
    type_id = resolver.detect_c_type(text)
    if type_id is not None:
        whole = resolver.constructed()
        again = format_c_type(whole, type_id)
        assert resolver.detect_c_type(again) == type_id or "<anonymous>" in again


@MANY
@given(st.binary(max_size=200), st.integers(0, 40))
def test_any_unwind_table_is_refused_or_searched(entries: bytes, count: int) -> None:
    try:
        table = decode_orc(PLACE, entries[: 4 * count], entries[4 * count : 10 * count])
    except FileFaultError:
        return
    assert len(table) == count
    frames = unwind(open_x86_kernel(), table, None, pc=PLACE, sp=PLACE + 0x1000, fp=PLACE)
    assert 1 <= len(frames) <= 256


@DETERMINISTIC
@given(st.lists(st.integers(0, 1 << 16), min_size=1, max_size=12), st.lists(st.integers(0, 255), max_size=200))
def test_any_stack_ends(flags: list[int], words_on_it: list[int]) -> None:
    # Code and stack addresses, which lead on and back; then zeroes.
    stack = b"".join(
        (STEXT + 2 * word if word % 2 else PLACE + 0x4000 + 8 * word).to_bytes(8, "little") for word in words_on_it
    )
    rows = [(STEXT + 16 * index, (value & 0xF00 or 0x200) | 0x15) for index, value in enumerate(flags)]
    ips = b"".join(
        (vaddr - PLACE - 4 * index).to_bytes(4, "little", signed=True) for index, (vaddr, _) in enumerate(rows)
    )
    entries = b"".join(b"\x10\0\xf0\xff" + (value & 0xFFFF).to_bytes(2, "little") for _, value in rows)
    try:
        table = decode_orc(PLACE, ips, entries)
    except FileFaultError:
        return
    assert table.layout in OrcLayout
    memory = open_x86_kernel({PLACE + 0x4000: stack or b"\0"})
    assert len(unwind(memory, table, None, pc=STEXT + 4, sp=PLACE + 0x4000, fp=PLACE + 0x4100)) <= 256


@MANY
@given(st.binary(max_size=300))
def test_any_code_has_a_frame_that_makes_sense_or_none(code: bytes) -> None:
    layout = decode_frame_layout(b"\x53\x48\x83\xec\x10" + code + b"\x48\x83\xc4\x10\x5b\xc3")
    if layout is not None:
        assert layout.rows[0].offset == 0
        assert all(row.cfa_offset >= 8 for row in layout.rows)


@MANY
@given(st.binary(max_size=2000))
def test_any_list_of_modules_ends(garbage: bytes) -> None:
    names_of_numbers = [name for name in ModuleLayout.__dataclass_fields__ if name != "ranges"]
    numbers = {name: 8 * (index % 20) for index, name in enumerate(names_of_numbers)}
    layout = ModuleLayout.from_json({**numbers, "size": 200, "list": 0, "name_size": 8, "ranges": [[0, 8]]})
    pointers = b"".join((PLACE + 64 * (byte % 16)).to_bytes(8, "little") for byte in garbage)
    memory = open_x86_kernel({PLACE: pointers or b"\0"})
    reader = ModuleReader(memory, layout, PLACE + 8)
    with contextlib.suppress(PostpanicError):
        for module in reader.read_list():
            assert isinstance(reader.read_sections(module), list)
            reader.read_symbols(module)


def module_types() -> bytes:
    """Give the types that describe a list of module BTF."""
    b = BtfBuilder()
    pointer = b.ptr(0)
    number = b.int_("unsigned int", 4)
    head = b.struct("list_head", 16, [("next", pointer, 0), ("prev", pointer, 64)])
    b.struct("btf_module", 32, [("list", head, 0), ("module", pointer, 128), ("btf", pointer, 192)])
    b.struct("btf", 16, [("data", pointer, 0), ("data_size", number, 64)])
    return b.build()


@MANY
@given(st.binary(max_size=600))
def test_any_list_of_module_types_ends(garbage: bytes) -> None:
    pointers = b"".join((PLACE + 8 * (byte % 64)).to_bytes(8, "little") for byte in garbage)
    memory = open_x86_kernel({PLACE: pointers or b"\0"})
    with contextlib.suppress(PostpanicError):
        assert isinstance(read_module_btfs(memory, decode_btf(module_types()), PLACE), dict)


@DETERMINISTIC
@given(
    st.lists(st.tuples(st.sampled_from(["f", "g", "init", "d.1"]), st.sampled_from("tTdDbr"), st.integers(0, 0x3000))),
    st.lists(st.tuples(st.sampled_from([".text", ".data", ".init.text", ".bss"]), st.integers(0, 0x2000))),
)
def test_any_module_is_written_so_that_its_addresses_can_be_put_back(
    symbols: list[tuple[str, str, int]], starts: list[tuple[str, int]]
) -> None:
    base = decode_btf(WHOLE)
    b = BtfBuilder(EXAMPLE)
    b.func("f", b.proto(1, []))
    split = decode_btf(b.build(), base=base)
    ordered = sorted((start, name) for name, start in starts)
    sections = [
        ModuleSection(name, STEXT + start, STEXT + end)
        for (start, name), end in zip(ordered, [start for start, _ in ordered[1:]] + [0x2800], strict=False)
    ]
    table = symbol_table([(name, letter, STEXT + vaddr) for name, letter, vaddr in symbols])
    facts = ModuleFacts("x86_64", "test", b"\1" * 20, tuple(sections), table, split, declarable_types(base, [split]))
    parts, report = synthesize_module(facts)
    # The classes of pyelftools are untyped.
    elf: Any = ELFFile(io.BytesIO(b"".join(bytes(part) for part in parts)))
    table_of = elf.get_section_by_name(".symtab")
    for relocations in (elf.get_section_by_name(name) for name in (".rela.debug_info", ".rela.debug_aranges")):
        for relocation in relocations.iter_relocations():
            symbol = table_of.get_symbol(relocation["r_info_sym"])
            section = elf.get_section(symbol["st_shndx"])
            assert symbol["st_info"]["type"] == "STT_SECTION"
            assert 0 <= relocation["r_addend"] < section["sh_size"]
    assert report.functions <= len(symbols)


@MANY
@given(
    st.one_of(
        st.binary(max_size=80),
        st.recursive(
            st.none() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["counts", "notes", "module_layout", "modules_head"]), inner, max_size=4
                )
            ),
        ).map(lambda value: json.dumps(value).encode()),
    )
)
def test_any_cached_facts_are_used_or_not(data: bytes) -> None:
    decode_cache_state(data)
