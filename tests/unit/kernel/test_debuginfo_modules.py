"""Modules are read by every layout that kernels had, told by their BTF alone."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import pytest

from postpanic.errors import CorruptError, FactAbsentError
from postpanic.kernel.btf import decode_btf
from postpanic.kernel.debuginfo.module_layout import ModuleLayout
from postpanic.kernel.debuginfo.modules import ModuleReader, ModuleSection, read_module_btfs
from tests.builders.btf import BtfBuilder
from tests.unit.kernel.memories import PLACE, open_x86_kernel

HEAD = PLACE + 0x10
MODULE = PLACE + 0x1000
CODE = PLACE + 0x100000
BUILD_ID = bytes(range(1, 21))
NOTE = struct.pack("<III", 4, 20, 3) + b"GNU\0" + BUILD_ID


@dataclass
class Kernel:
    """A kernel's types and memory with one module, ``demo``, in it."""

    btf: bytes
    parts: dict[int, bytes] = field(default_factory=dict)


def put(data: bytearray, at: int, value: int, size: int = 8) -> None:
    data[at : at + size] = value.to_bytes(size, "little")


def build(generation: str) -> Kernel:
    """
    Build a kernel as it was in 5.10, 6.4 or 6.14.

    5.10: one core layout, addresses behind the attribute, notes in an array.
    6.4: an array of memory ranges. 6.14: addresses in the attribute, notes in a group.
    """
    b = BtfBuilder()
    char, u32, u64 = b.int_("char", 1), b.int_("unsigned int", 4), b.int_("unsigned long", 8)
    pointer = b.ptr(0)
    index = b.int_("__ARRAY_SIZE_TYPE__", 4)
    name = b.array(char, index, 56)
    head = b.struct("list_head", 16, [("next", pointer, 0), ("prev", pointer, 64)])
    attribute = b.struct("attribute", 16, [("name", pointer, 0), ("mode", u32, 64)])
    bin_attribute = b.struct(
        "bin_attribute", 40, [("attr", attribute, 0), ("size", u64, 128), ("private", pointer, 192)]
    )
    group = b.struct("attribute_group", 40, [("name", pointer, 0), ("bin_attrs", pointer, 256)])
    b.struct("module_sect_attrs", 48, [("grp", group, 0)])
    if generation == "6.14":
        b.struct("module_notes_attrs", 48, [("grp", group, 0)])
    else:
        b.struct("module_sect_attr", 48, [("battr", bin_attribute, 0), ("address", u64, 320)])
        attributes = b.array(bin_attribute, index, 0)
        b.struct("module_notes_attrs", 16, [("dir", pointer, 0), ("notes", u32, 64), ("attrs", attributes, 128)])
    b.struct(
        "mod_kallsyms",
        32,
        [("symtab", pointer, 0), ("num_symtab", u32, 64), ("strtab", pointer, 128), ("typetab", pointer, 192)],
    )
    members = [("state", u32, 0), ("list", head, 64), ("name", name, 192)]
    if generation == "5.10":
        layout = b.struct("module_layout", 16, [("base", pointer, 0), ("size", u32, 64)])
        members.append(("core_layout", layout, 1024))
    else:
        memory = b.struct("module_memory", 16, [("base", pointer, 0), ("size", u32, 64)])
        members.append(("mem", b.array(memory, index, 2), 1024))
    members += [("kallsyms", pointer, 1536), ("sect_attrs", pointer, 1600), ("notes_attrs", pointer, 1664)]
    members += [("percpu", pointer, 1728), ("percpu_size", u32, 1792)]
    b.struct("module", 256, members)
    kernel = Kernel(b.build())
    _fill(kernel, generation)
    return kernel


def _fill(kernel: Kernel, generation: str) -> None:
    module = bytearray(256)
    put(module, 8, HEAD)
    module[24:28] = b"demo"
    put(module, 128, CODE)
    put(module, 136, 0x1000 if generation != "5.10" else 0x3000, 4)
    if generation != "5.10":
        put(module, 144, CODE + 0x2000)
        put(module, 152, 0x1000, 4)
    kallsyms, sections, notes, names = (PLACE + offset for offset in (0x2000, 0x3000, 0x4000, 0x5000))
    put(module, 192, kallsyms)
    put(module, 200, sections)
    put(module, 208, notes)
    put(module, 216, PLACE + 0x200000)
    put(module, 224, 0x40, 4)
    found = [
        (".text", CODE),
        (".data", CODE + 0x2000),
        (".init.text", PLACE + 0x300000),
        (".data..percpu", PLACE + 0x200000),
    ]
    array, entries = bytearray(), bytearray()
    for number, (name, vaddr) in enumerate(found):
        entry = bytearray(48)
        kernel.parts[names + 0x20 * number] = name.encode() + b"\0"
        put(entry, 0, names + 0x20 * number)
        put(entry, 24 if generation == "6.14" else 40, vaddr)
        array += (sections + 0x100 + 48 * number).to_bytes(8, "little")
        entries += entry
    kernel.parts |= {sections + 32: (PLACE + 0x6000).to_bytes(8, "little"), PLACE + 0x6000: bytes(array) + bytes(8)}
    kernel.parts[sections + 0x100] = bytes(entries)
    note = bytearray(40)
    put(note, 16, len(NOTE))
    put(note, 24, PLACE + 0x7000)
    kernel.parts[PLACE + 0x7000] = NOTE
    if generation == "6.14":
        kernel.parts |= {notes + 32: (PLACE + 0x8000).to_bytes(8, "little"), notes + 0x100: bytes(note)}
        kernel.parts[PLACE + 0x8000] = (notes + 0x100).to_bytes(8, "little") + bytes(8)
    else:
        kernel.parts |= {notes + 8: (1).to_bytes(4, "little"), notes + 16: bytes(note)}
    symbols = [(1, CODE + 0x10, b"T"), (8, CODE + 0x2008, b"d")]
    syms = bytes(24) + b"".join(struct.pack("<IBBHQQ", at, 2, 0, 1, vaddr, 8) for at, vaddr, _ in symbols)
    kernel.parts[kallsyms] = struct.pack("<QIIQQ", PLACE + 0x9000, 3, 0, PLACE + 0xA000, PLACE + 0xB000)
    kernel.parts |= {PLACE + 0x9000: syms, PLACE + 0xA000: b"\0do_it\0\0state\0", PLACE + 0xB000: b"?Td"}
    kernel.parts |= {HEAD: (MODULE + 8).to_bytes(8, "little"), MODULE: bytes(module)}


@pytest.fixture(name="reader", params=["5.10", "6.4", "6.14"])
def _reader(request: pytest.FixtureRequest) -> ModuleReader:
    kernel = build(request.param)
    return ModuleReader(open_x86_kernel(kernel.parts), ModuleLayout.from_btf(decode_btf(kernel.btf)), HEAD)


def test_module_is_listed_with_its_build_id(reader: ModuleReader) -> None:
    modules = reader.read_list()
    assert [(module.name, module.vaddr, module.build_id) for module in modules] == [("demo", MODULE, BUILD_ID)]


def test_sections_end_where_the_next_begins_and_freed_ones_are_left_out(reader: ModuleReader) -> None:
    module = reader.read_list()[0]
    end = CODE + 0x1000 if len(reader.layout.ranges) > 1 else CODE + 0x2000
    assert reader.read_sections(module) == [
        ModuleSection(".text", CODE, end),
        ModuleSection(".data", CODE + 0x2000, CODE + 0x3000),
        ModuleSection(".data..percpu", PLACE + 0x200000, PLACE + 0x200040),
    ]


def test_symbols_are_read_with_the_last_name_whole(reader: ModuleReader) -> None:
    symbols = reader.read_symbols(reader.read_list()[0])
    assert [(symbol.name, symbol.vaddr, symbol.type) for symbol in symbols] == [
        ("do_it", CODE + 0x10, "T"),
        ("state", CODE + 0x2008, "d"),
    ]


def test_list_that_leads_to_itself_is_refused() -> None:
    kernel = build("6.4")
    module = bytearray(kernel.parts[MODULE])
    put(module, 8, MODULE + 8)
    kernel.parts[MODULE] = bytes(module)
    layout = ModuleLayout.from_btf(decode_btf(kernel.btf))
    with pytest.raises(CorruptError, match="does not end"):
        ModuleReader(open_x86_kernel(kernel.parts), layout, HEAD).read_list()


def test_count_of_symbols_beyond_reason_is_refused() -> None:
    kernel = build("6.4")
    kernel.parts[PLACE + 0x2000] = struct.pack("<QIIQQ", PLACE + 0x9000, 0xFFFFFFFF, 0, PLACE + 0xA000, PLACE + 0xB000)
    reader = ModuleReader(open_x86_kernel(kernel.parts), ModuleLayout.from_btf(decode_btf(kernel.btf)), HEAD)
    with pytest.raises(CorruptError, match="4294967295 symbols"):
        reader.read_symbols(reader.read_list()[0])


def test_kernel_without_modules_has_no_layout() -> None:
    with pytest.raises(FactAbsentError, match="module"):
        ModuleLayout.from_btf(decode_btf(BtfBuilder().build()))


def test_types_of_modules_are_found_by_the_address_of_the_module() -> None:
    b = BtfBuilder()
    pointer, u32 = b.ptr(0), b.int_("unsigned int", 4)
    head = b.struct("list_head", 16, [("next", pointer, 0), ("prev", pointer, 64)])
    b.struct("btf_module", 32, [("list", head, 0), ("module", pointer, 128), ("btf", pointer, 192)])
    b.struct("btf", 16, [("data", pointer, 0), ("data_size", u32, 64)])
    entry, other = PLACE + 0x100, PLACE + 0x200
    parts = {
        HEAD: struct.pack("<Q", entry),
        entry: struct.pack("<4Q", other, HEAD, MODULE, PLACE + 0x300),
        other: struct.pack("<4Q", HEAD, entry, MODULE + 8, 0x10),
        PLACE + 0x300: struct.pack("<QI", PLACE + 0x400, 5),
        PLACE + 0x400: b"types",
    }
    btf = decode_btf(b.build())
    # The second one's data cannot be read: the first is still found.
    assert read_module_btfs(open_x86_kernel(parts), btf, HEAD) == {MODULE: b"types"}
    parts[other] = struct.pack("<4Q", entry, entry, MODULE + 8, 0x10)
    with pytest.raises(CorruptError, match="does not end"):
        read_module_btfs(open_x86_kernel(parts), btf, HEAD)
