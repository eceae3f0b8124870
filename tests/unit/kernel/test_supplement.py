from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from postpanic.errors import FileFaultError, MismatchError, NotADumpError, PostpanicError, UnsupportedError
from postpanic.kernel.btf import Btf, decode_btf
from postpanic.kernel.supplement import (
    generate_vmcoreinfo,
    read_vmcoreinfo_file,
    supplement_from_file,
    supplement_from_vmlinux,
    supplement_vmcoreinfo,
)
from postpanic.kernel.vmcoreinfo import parse_vmcoreinfo
from postpanic.kernel.vmlinux_file import read_vmlinux
from tests.builders.btf import BtfBuilder
from tests.builders.vmlinux import SHF_COMPRESSED, SHT_NOBITS, Section, build_id_section, build_vmlinux

LINKED = 0xFFFFFFFF81000000
BUILD_ID = bytes(range(20))
BANNER = b"Linux version 6.12.0-test (builder) #1 SMP\n\0"
SYMBOLS = [
    ("_stext", LINKED, 0),
    ("linux_banner", LINKED + 0x1000, len(BANNER)),
    ("mem_section", LINKED + 0x2000, 8),
    ("init_top_pgt", LINKED + 0x3000, 4096),
    ("prb", LINKED + 0x4000, 8),
    ("node_data", 0x100, 8),
]
BASE = f"OSRELEASE=6.12.0-test\nBUILD-ID={BUILD_ID.hex()}\nPAGESIZE=4096\nKERNELOFFSET=2000000\n"


def build_types(*, flags: Sequence[tuple[str, int]] = (), types: Sequence[tuple[str, int]] = ()) -> BtfBuilder:
    b = BtfBuilder()
    word = b.int_("unsigned long", 8)
    half = b.int_("unsigned int", 4)
    lists = b.struct("list_head", 16, [("next", word, 0), ("prev", word, 64)])
    either = b.union("", 8, [("compound_head", word, 0), ("lru_word", word, 0)])
    members = [("flags", word, 0), ("", either, 64), ("mapping", word, 192), ("private", word, 320)]
    b.struct("page", 64, [*members, ("_mapcount", half, 384), ("_refcount", half, 416)])
    area = b.struct("free_area", 104, [("free_list", b.array(lists, half, 6), 0), ("nr_free", word, 768)])
    b.struct("zone", 1664, [("free_area", b.array(area, half, 11), 512)])
    b.struct("mem_section", 16, [("section_mem_map", word, 0), ("usage", word, 64)])
    b.enum("pageflags", list(flags) or [("PG_lru", 5), ("PG_head", 6), ("PG_private", 14)])
    b.enum("pagetype", list(types) or [("PGTY_buddy", 0xF0), ("PGTY_slab", 0xF5)])
    return b


def types_of(builder: BtfBuilder) -> Btf:
    return decode_btf(builder.build())


def write_vmlinux(
    path: Path,
    *,
    btf: bytes | None = None,
    build_id: bytes = BUILD_ID,
    symbols: list[tuple[str, int, int]] | None = SYMBOLS,
    extra: Sequence[Section] = (),
) -> Path:
    sections = [Section(".rodata", BANNER, vaddr=LINKED + 0x1000), build_id_section(build_id), *extra]
    if btf is not None:
        sections.append(Section(".BTF", btf))
    path.write_bytes(build_vmlinux(sections, symbols))
    return path


def test_entries_are_those_of_the_types() -> None:
    info = supplement_vmcoreinfo(parse_vmcoreinfo(BASE.encode()), btf=types_of(build_types()))
    assert info.size("page") == 64
    assert info.offset("page._mapcount") == 48
    assert info.offset("page.compound_head") == 8
    assert info.length("zone.free_area") == 11
    assert info.length("free_area.free_list") == 6
    assert info.offset("mem_section.section_mem_map") == 0
    assert info.number("PG_head_mask") == 64
    assert info.number("PG_private") == 14
    assert info.number("PAGE_BUDDY_MAPCOUNT_VALUE") == -0x10000000
    assert info.number("PAGE_SLAB_MAPCOUNT_VALUE") == -0x0B000000
    assert info.get_number("PG_slab") is None
    assert info.get_offset("folio._folio_order") is None
    assert "entries added from the kernel's types" in info.source
    # The text says the same, for whoever reads that.
    assert parse_vmcoreinfo(info.text).entries == info.entries


def test_what_the_kernel_exported_stays() -> None:
    own = parse_vmcoreinfo((BASE + "SIZE(page)=80\nNUMBER(PG_lru)=4").encode())
    info = supplement_vmcoreinfo(own, btf=types_of(build_types()), symbols={"prb": 1})
    assert info.size("page") == 80
    assert info.number("PG_lru") == 4
    assert info.symbol("prb") == 1
    assert supplement_vmcoreinfo(info, btf=types_of(build_types())) is info


def test_page_types_of_6_11_are_cleared_bits() -> None:
    types = build_types(types=[("PG_buddy", 0x40000000), ("PG_slab", 0x02000000)])
    info = supplement_vmcoreinfo(parse_vmcoreinfo(b""), btf=types_of(types))
    assert info.number("PAGE_BUDDY_MAPCOUNT_VALUE") == ~0x40000000
    assert info.number("PAGE_SLAB_MAPCOUNT_VALUE") == ~0x02000000
    assert info.get_number("PG_slab") is None


def test_orders_of_6_3_are_in_the_folio() -> None:
    types = build_types()
    byte = types.int_("unsigned char", 1)
    types.struct("folio", 128, [("_folio_dtor", byte, 640), ("_folio_order", byte, 648)])
    types.enum("compound_dtor_id", [("NULL_COMPOUND_DTOR", 0), ("HUGETLB_PAGE_DTOR", 2)])
    info = supplement_vmcoreinfo(parse_vmcoreinfo(b""), btf=types_of(types))
    assert info.offset("folio._folio_order") == 81
    assert info.number("HUGETLB_PAGE_DTOR") == 2


def test_vmlinux_gives_types_and_shifted_symbols(tmp_path: Path) -> None:
    path = write_vmlinux(tmp_path / "vmlinux", btf=build_types().build())
    info = supplement_from_vmlinux(parse_vmcoreinfo(BASE.encode()), path)
    assert info.symbol("_stext") == LINKED + 0x2000000
    assert info.symbol("swapper_pg_dir") == info.symbol("init_top_pgt") == LINKED + 0x2003000
    assert info.size("page") == 64
    # Neither the place of a pointer to the table, nor what does not lie in the kernel's half.
    assert info.get_symbol("mem_section") is None
    assert info.get_symbol("node_data") is None


def test_vmlinux_of_another_kernel_is_refused(tmp_path: Path) -> None:
    path = write_vmlinux(tmp_path / "vmlinux", btf=build_types().build(), build_id=bytes(20))
    with pytest.raises(MismatchError, match=f"build ID {'00' * 20}, the dump's kernel has {BUILD_ID.hex()}"):
        supplement_from_vmlinux(parse_vmcoreinfo(BASE.encode()), path)
    other = parse_vmcoreinfo(b"OSRELEASE=6.12.1-test\n")
    with pytest.raises(MismatchError, match=r"6\.12\.0-test, the dump's is 6\.12\.1-test"):
        supplement_from_vmlinux(other, path)


def test_dwarf_alone_is_not_enough(tmp_path: Path) -> None:
    path = write_vmlinux(tmp_path / "vmlinux", extra=[Section(".debug_info", b"dwarf")])
    with pytest.raises(UnsupportedError, match=r"DWARF and no \.BTF"):
        supplement_from_vmlinux(parse_vmcoreinfo(BASE.encode()), path)
    path = write_vmlinux(tmp_path / "vmlinux", extra=[Section(".BTF", bytes(64), SHT_NOBITS)])
    with pytest.raises(UnsupportedError, match="neither types nor DWARF"):
        generate_vmcoreinfo(path)


def test_text_is_written_and_read_back(tmp_path: Path) -> None:
    vmlinux = write_vmlinux(tmp_path / "vmlinux", btf=build_types().build())
    text = generate_vmcoreinfo(vmlinux)
    assert text.startswith(f"OSRELEASE=6.12.0-test\nBUILD-ID={BUILD_ID.hex()}\nPAGESIZE=4096\n".encode())
    (tmp_path / "info").write_bytes(text)
    own = parse_vmcoreinfo(BASE.encode())
    by_text = supplement_from_file(own, tmp_path / "info")
    assert by_text.entries == supplement_from_vmlinux(own, vmlinux).entries


def test_text_of_a_running_kernel_is_moved_by_both_offsets(tmp_path: Path) -> None:
    text = "OSRELEASE=6.12.0-test\nKERNELOFFSET=1000000\nSYMBOL(prb)=ffffffff82004000\nSIZE(page)=64\nCRASHTIME=1\n"
    (tmp_path / "info").write_text(text)
    info = supplement_from_file(parse_vmcoreinfo(BASE.encode()), tmp_path / "info")
    assert info.symbol("prb") == LINKED + 0x2004000
    assert info.crash_time_s is None


@pytest.mark.parametrize("content", [b"", b"hello", b"OSRELEASE=6.1\n\0", b"\x7fELF"])
def test_text_that_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "info").write_bytes(content)
    with pytest.raises(NotADumpError, match="no line OSRELEASE"):
        read_vmcoreinfo_file(tmp_path / "info")


def test_text_that_is_too_large_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "info").write_bytes(b"OSRELEASE=6.1\n" * 8000)
    with pytest.raises(FileFaultError, match="at most 65536"):
        read_vmcoreinfo_file(tmp_path / "info")
    with pytest.raises(FileFaultError, match="cannot open"):
        read_vmcoreinfo_file(tmp_path / "absent")
    (tmp_path / "info").write_bytes(b"OSRELEASE=5.4\n")
    with pytest.raises(MismatchError):
        supplement_from_file(parse_vmcoreinfo(BASE.encode()), tmp_path / "info")


def test_files_that_are_no_vmlinux(tmp_path: Path) -> None:
    good = build_vmlinux([build_id_section(BUILD_ID)], SYMBOLS)
    section_table = struct.unpack_from("<Q", good, 40)[0]
    cases = {
        "not an ELF file": b"MZ" + bytes(100),
        "bytes of ELF header": good[:40],
        "64-bit little-endian": build_vmlinux([], [], bits=32),
        "type 1": build_vmlinux([], [], kind=1),
        "headers are cut": good[: section_table + 70],
        "no symbol table": build_vmlinux([], None),
        "at 0x0, must be": good[:40] + bytes(8) + good[48:],
        "names are in section": good[:62] + b"\xff\xff" + good[64:],
        "compressed": build_vmlinux([Section(".BTF", bytes(64), flags=SHF_COMPRESSED)], SYMBOLS),
    }
    for words, content in cases.items():
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(FileFaultError, match=words):
            read_vmlinux(tmp_path / "file")


def test_vmlinux_cut_anywhere_is_an_error_or_read(tmp_path: Path) -> None:
    good = write_vmlinux(tmp_path / "vmlinux", btf=build_types().build()).read_bytes()
    for size in range(0, len(good), 7):
        (tmp_path / "cut").write_bytes(good[:size])
        with pytest.raises(PostpanicError):
            read_vmlinux(tmp_path / "cut")
    for at in range(0, len(good), 5):
        (tmp_path / "cut").write_bytes(good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :])
        try:
            read_vmlinux(tmp_path / "cut")
        except PostpanicError:
            continue
