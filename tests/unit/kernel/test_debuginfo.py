"""What is written as DWARF and ELF is what BTF and the symbols say, in the eyes of pyelftools and drgn."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import drgn
import numpy as np
import pytest
from elftools.dwarf.die import DIE
from elftools.elf.elffile import ELFFile

from postpanic.errors import UnsupportedError
from postpanic.kernel.btf import Btf, decode_btf
from postpanic.kernel.debuginfo.dwarf import sleb128
from postpanic.kernel.debuginfo.elf import build_id_note
from postpanic.kernel.debuginfo.sections import TypingReport
from postpanic.kernel.debuginfo.symbols import Section, Symbols, split_names
from postpanic.kernel.debuginfo.vmlinux import VmlinuxFacts, link_symbols, synthesize_vmlinux
from postpanic.kernel.kallsyms import SymbolTable, make_symbol_table
from tests.builders.btf import BtfBuilder, build_example

TEXT = 0xFFFFFFFF81000000
DATA = 0xFFFFFFFF82000000
KASLR = 0x1E000000
BUILD_ID = bytes(range(20))
MARKERS = [
    ("_text", "T", TEXT),
    ("_etext", "T", TEXT + 0x10000),
    ("_sdata", "D", DATA),
    ("__bss_start", "B", DATA + 0x10000),
    ("__bss_stop", "B", DATA + 0x20000),
    ("_end", "B", DATA + 0x20000),
    ("__per_cpu_start", "A", 0),
    ("__per_cpu_end", "A", 0x1000),
]

Names = list[tuple[str, str, int]]


def table(symbols: Names) -> SymbolTable:
    names = [name.encode() + b"\0" for name, _, _ in symbols]
    lengths = np.array([len(name) for name in names], dtype=np.int64)
    vaddrs = [vaddr + KASLR if vaddr >> 63 else vaddr for _, _, vaddr in symbols]
    return make_symbol_table(
        np.array(vaddrs, dtype=np.uint64),
        np.array([ord(letter) for _, letter, _ in symbols], dtype=np.uint8),
        b"".join(names),
        np.cumsum(lengths) - lengths,
    )


def write(
    btf: Btf | None, symbols: Names, *, machine: str = "x86_64", signed_char: bool = True
) -> tuple[bytes, TypingReport]:
    linked = link_symbols(table([*MARKERS, *symbols]), KASLR)
    parts, report = synthesize_vmlinux(VmlinuxFacts(machine, linked, btf, BUILD_ID, signed_char=signed_char))
    return b"".join(bytes(part) for part in parts), report


def entries(data: bytes) -> list[DIE]:
    return [die for unit in ELFFile(io.BytesIO(data)).get_dwarf_info().iter_CUs() for die in unit.iter_DIEs()]


def named(data: bytes, tag: str) -> dict[str, DIE]:
    return {
        die.attributes["DW_AT_name"].value.decode(): die
        for die in entries(data)
        if die.tag == f"DW_TAG_{tag}" and "DW_AT_name" in die.attributes
    }


def section(data: bytes, name: str) -> Any:  # noqa: ANN401 - the classes of pyelftools are untyped
    """Give a section; pyelftools does not say which class it is of."""
    return ELFFile(io.BytesIO(data)).get_section_by_name(name)


def attribute(die: DIE, name: str) -> int:
    value: int = die.attributes[f"DW_AT_{name}"].value
    return value


@pytest.fixture(name="example", scope="module")
def _example() -> tuple[Btf, dict[str, int]]:
    builder, ids = build_example()
    return decode_btf(builder.build()), ids


@pytest.fixture(name="prog", scope="module")
def _prog(example: tuple[Btf, dict[str, int]], tmp_path_factory: pytest.TempPathFactory) -> drgn.Program:
    path = tmp_path_factory.mktemp("debuginfo") / "vmlinux"
    symbols = [("printk", "T", TEXT + 0x100), ("schedule", "T", TEXT + 0x200), ("counter", "A", 0x40)]
    path.write_bytes(write(example[0], symbols)[0])
    return load(path)


def load(path: Path) -> drgn.Program:
    prog = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    module = prog.extra_module("test", create=True)
    module.address_ranges = [(TEXT, DATA + 0x20000)]
    module.try_file(path, force=True)
    return prog


def test_structures_have_their_members_where_btf_has_them(prog: drgn.Program) -> None:
    packed = prog.type("struct packed")
    assert packed.size == 24
    members = [(member.name, member.bit_offset, member.bit_field_size) for member in packed.members or ()]
    assert members == [("flag", 0, 1), ("count", 1, 31), (None, 64, None), ("name", 128, None)]
    assert packed.member("word").bit_offset == 64
    assert packed.member("name").type.type_name() == "const char *"


def test_types_are_spelled_as_btf_spells_them(prog: drgn.Program) -> None:
    assert prog.type("struct list_head").member("next").type.type_name() == "struct list_head *"
    assert prog.type("u32").type.type_name() == "unsigned int"
    assert prog.type("struct flexible").member("items").type.type_name() == "int []"


def test_enumerators_keep_sign_and_width(prog: drgn.Program) -> None:
    def values(name: str) -> dict[str, int]:
        return {item.name: item.value for item in prog.type(f"enum {name}").enumerators or ()}

    assert values("color") == {"RED": 0, "GREEN": 7, "BLUE": 0x80000001}
    assert values("outcome") == {"MINUS": -5, "PLUS": 5}
    assert values("big") == {"HUGE": 1 << 40, "ALL": (1 << 64) - 1}
    assert values("bigsigned") == {"LOW": -(1 << 40)}
    underlying = prog.type("enum color").type
    assert underlying is not None
    assert underlying.type_name() == "unsigned int"


def test_functions_have_addresses_and_prototypes(prog: drgn.Program) -> None:
    assert prog["printk"].type_.type_name() == "int (const char *format, ...)"
    assert prog["schedule"].type_.type_name() == "void (void)"
    assert prog["printk"].address_ == TEXT + 0x100


@pytest.mark.parametrize(("signed", "encoding"), [(True, 0x06), (False, 0x08)])
def test_char_has_the_sign_it_is_said_to_have(example: tuple[Btf, dict[str, int]], signed: bool, encoding: int) -> None:
    data, _ = write(example[0], [], signed_char=signed)
    assert attribute(named(data, "base_type")["char"], "encoding") == encoding


def test_forward_declarations_are_declarations(example: tuple[Btf, dict[str, int]]) -> None:
    data, _ = write(example[0], [])
    assert named(data, "structure_type")["opaque"].attributes["DW_AT_declaration"].value
    assert named(data, "union_type")["opaque_union"].attributes["DW_AT_declaration"].value


def test_per_cpu_variable_stays_where_it_is_and_others_move_back(example: tuple[Btf, dict[str, int]]) -> None:
    data, report = write(example[0], [("counter", "A", 0x40), ("printk", "T", TEXT + 0x100)])
    location = named(data, "variable")["counter"].attributes["DW_AT_location"].value
    assert bytes(location) == b"\x03" + (0x40).to_bytes(8, "little")
    assert attribute(named(data, "subprogram")["printk"], "low_pc") == TEXT + 0x100
    assert (report.variables.from_btf, report.prototypes) == (1, 1)


def test_old_bit_fields_by_integer_width_become_bit_fields() -> None:
    b = BtfBuilder()
    narrow = b.int_("unsigned int", 4, bits=3, offset=2)
    b.struct("old", 4, [("field", narrow, 8)])
    data, _ = write(decode_btf(b.build()), [])
    member = named(data, "member")["field"]
    assert (attribute(member, "bit_size"), attribute(member, "data_bit_offset")) == (3, 10)


def test_enumeration_of_an_old_kernel_is_signed_when_a_value_is_negative() -> None:
    b = BtfBuilder()
    b.int_("int", 4, 1)
    b.enum("errors", [("FAILED", -1), ("DONE", 0)])
    data, _ = write(decode_btf(b.build()), [])
    assert attribute(named(data, "enumerator")["FAILED"], "const_value") == -1


def _functions(*names: str) -> Btf:
    b = BtfBuilder()
    proto = b.proto(b.int_("int", 4, 1), [])
    for name in names:
        b.func(name, proto)
    return decode_btf(b.build())


def test_pieces_of_a_function_are_its_copies() -> None:
    data, _ = write(
        _functions("work"),
        [("work", "t", TEXT + 0x100), ("next", "t", TEXT + 0x200), ("work.cold", "t", TEXT + 0x300)],
    )
    functions = [die for die in entries(data) if die.tag == "DW_TAG_subprogram"]
    pieces = [die for die in functions if "DW_AT_abstract_origin" in die.attributes]
    assert [attribute(die, "low_pc") for die in pieces] == [TEXT + 0x300]
    assert attribute(pieces[0], "abstract_origin") == named(data, "subprogram")["work"].offset


def test_only_copy_of_a_function_gets_the_prototype_and_the_plain_name() -> None:
    data, _ = write(_functions("work"), [("work.isra.0", "t", TEXT + 0x100)])
    assert attribute(named(data, "subprogram")["work"], "prototyped")


def test_name_that_several_functions_have_gets_no_prototype() -> None:
    data, report = write(_functions("init"), [("init", "t", TEXT + 0x100), ("init", "t", TEXT + 0x200)])
    functions = [die for die in entries(data) if die.tag == "DW_TAG_subprogram"]
    assert [attribute(die, "low_pc") for die in functions] == [
        TEXT + 0x100,
        TEXT + 0x200,
    ]
    assert not any("DW_AT_prototyped" in die.attributes for die in functions)
    assert report.ambiguous_functions == 1


def test_function_is_named_as_btf_names_it_where_symbols_share_an_address() -> None:
    data, _ = write(
        _functions("real"),
        [("__start_of_it", "T", TEXT + 0x100), ("real", "t", TEXT + 0x100), ("alias", "T", TEXT + 0x100)],
    )
    assert set(named(data, "subprogram")) == {"real"}


def test_padding_before_a_function_is_no_function() -> None:
    data, _ = write(_functions("work"), [("__pfx_work", "t", TEXT + 0xF0), ("work", "t", TEXT + 0x100)])
    assert "__pfx_work" not in named(data, "subprogram")
    names = [symbol.name for symbol in section(data, ".symtab").iter_symbols()]
    assert "__pfx_work" in names


def test_label_inside_an_assembler_function_is_counted_to_it() -> None:
    data, _ = write(
        _functions(*(f"f{index}" for index in range(8))),
        [
            *((f"f{index}", "T", TEXT + 0x1000 + 0x10 * index) for index in range(8)),
            ("entry", "T", TEXT + 0x2000),
            ("entry_after", "T", TEXT + 0x2029),
            ("other", "T", TEXT + 0x2040),
        ],
    )
    functions = named(data, "subprogram")
    assert "entry_after" not in functions
    assert attribute(functions["entry"], "high_pc") == 0x40
    assert attribute(functions["other"], "low_pc") == TEXT + 0x2040
    symbols = {symbol.name: symbol for symbol in section(data, ".symtab").iter_symbols()}
    assert (symbols["entry"]["st_size"], symbols["entry_after"]["st_size"]) == (0x40, 0)
    assert symbols["entry_after"]["st_info"]["type"] == "STT_NOTYPE"


def test_symbol_table_has_locals_first_and_sizes_within_sections() -> None:
    data, _ = write(
        None,
        [
            ("f", "t", TEXT + 0x100),
            ("g", "T", TEXT + 0x180),
            ("v", "d", DATA + 8),
            ("u", "d", DATA + 0x48),
            ("w", "W", TEXT + 0x200),
        ],
    )
    elf = ELFFile(io.BytesIO(data))
    symtab = section(data, ".symtab")
    symbols = list(symtab.iter_symbols())
    bindings = [symbol["st_info"]["bind"] for symbol in symbols]
    assert bindings.index("STB_GLOBAL") >= symtab["sh_info"]
    assert set(bindings[: symtab["sh_info"]]) == {"STB_LOCAL"}
    by_name = {symbol.name: symbol for symbol in symbols}
    assert by_name["f"]["st_size"] == 0x80
    assert by_name["w"]["st_size"] == 0x10000 - 0x200
    assert by_name["w"]["st_info"]["bind"] == "STB_WEAK"
    assert by_name["f"]["st_info"]["type"] == "STT_FUNC"
    assert by_name["v"]["st_info"]["type"] == "STT_OBJECT"
    assert elf.get_section(by_name["v"]["st_shndx"]).name == ".data"
    assert by_name["v"]["st_size"] == 0x40


def test_kernel_without_btf_still_has_functions_and_symbols(tmp_path: Path) -> None:
    data, report = write(None, [("schedule", "T", TEXT + 0x200)])
    path = tmp_path / "vmlinux"
    path.write_bytes(data)
    prog = load(path)
    assert prog["schedule"].address_ == TEXT + 0x200
    assert (report.types, report.functions > 0) == (0, True)


def test_file_covers_the_image_and_not_the_per_cpu_offsets() -> None:
    data, _ = write(None, [])
    elf = ELFFile(io.BytesIO(data))
    loads = [segment for segment in elf.iter_segments() if segment["p_type"] == "PT_LOAD"]
    assert min(segment["p_vaddr"] for segment in loads) == TEXT
    assert max(segment["p_vaddr"] + segment["p_memsz"] for segment in loads) == DATA + 0x20000
    assert section(data, ".data..percpu")["sh_addr"] == 0


def test_build_id_is_in_a_note() -> None:
    notes = section(write(None, [])[0], ".note.gnu.build-id").iter_notes()
    assert [note["n_desc"] for note in notes] == [BUILD_ID.hex()]
    assert build_id_note(b"\x01").endswith(b"GNU\0\x01\0\0\0")


def test_machine_without_a_number_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="vax"):
        write(None, [], machine="vax")


def test_arm64_file_says_so() -> None:
    assert ELFFile(io.BytesIO(write(None, [], machine="aarch64")[0]))["e_machine"] == "EM_AARCH64"


@pytest.mark.parametrize("value", [0, 1, -1, 63, 64, -64, -65, (1 << 31) - 1, -(1 << 31)])
def test_padded_leb128_is_read_back(value: int) -> None:
    encoded = sleb128(np.array([value], dtype=np.int64), 5)[0].tolist()
    result = sum((byte & 0x7F) << 7 * index for index, byte in enumerate(encoded))
    assert (result if result < 1 << 34 else result - (1 << 35)) == value
    assert [byte >> 7 for byte in encoded] == [1, 1, 1, 1, 0]


def test_names_behind_a_type_letter_are_split_as_those_without() -> None:
    plain = b"alpha\0beta\0"
    lettered = b"Talpha\0tbeta\0"
    assert split_names(plain, np.array([0, 6])) == [b"alpha", b"beta"]
    assert split_names(lettered, np.array([1, 8])) == [b"alpha", b"beta"]
    assert split_names(plain, np.array([2, 6, 0])) == [b"pha", b"beta", b"alpha"]


def test_symbol_at_the_end_of_a_section_belongs_to_it() -> None:
    names = table([("a", "T", TEXT), ("e", "T", TEXT + 16), ("x", "A", 5)])
    placed = Symbols.from_table(names, names.vaddrs - np.array([0, KASLR, KASLR], dtype=np.uint64)).in_sections(
        [Section("one", TEXT, TEXT + 16, executable=True)]
    )
    assert dict(zip(placed.names, placed.section_index.tolist(), strict=True)) == {b"x": -1, b"a": 0, b"e": 0}
    assert dict(zip(placed.names, placed.sizes.tolist(), strict=True)) == {b"x": 0, b"a": 16, b"e": 0}
