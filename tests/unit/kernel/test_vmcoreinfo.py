from __future__ import annotations

import pytest

from postpanic.errors import CorruptError, FactAbsentError
from postpanic.kernel.memory import open_kernel_memory
from postpanic.kernel.vmcoreinfo import find_vmcoreinfo, parse_vmcoreinfo, scan_vmcoreinfo
from tests.builders.vmcoreinfo import VmcoreinfoBuilder, build_note_page, build_x86_64_vmcoreinfo
from tests.unit.kernel.memories import PHYS_BASE, STEXT, SWAPPER, DictDump, make_x86_kernel

TEXT = (
    VmcoreinfoBuilder()
    .line("OSRELEASE", "6.1.0-56-cloud-amd64")
    .line("BUILD-ID", "3b43fad5")
    .line("PAGESIZE", 4096)
    .symbol("prb", 0xFFFFFFFF8D8622C0)
    .offset("page.flags", 0)
    .size("page", 64)
    .length("mem_section", 2048)
    .number("phys_base", -687865856)
    .hex_number("kimage_voffset", 0xFFFFFFFFC7C00000)
    .line("KERNELOFFSET", "ae00000")
    .text()
)


def test_each_kind_of_entry_is_read_in_its_own_base() -> None:
    info = parse_vmcoreinfo(TEXT)
    assert info.osrelease == "6.1.0-56-cloud-amd64"
    assert info.build_id == "3b43fad5"
    assert info.page_size_bytes == 4096
    assert info.kerneloffset == 0xAE00000
    assert info.symbol("prb") == 0xFFFFFFFF8D8622C0
    assert info.offset("page.flags") == 0
    assert info.size("page") == 64
    assert info.length("mem_section") == 2048
    assert info.number("phys_base") == -687865856
    assert info.number("kimage_voffset") == 0xFFFFFFFFC7C00000


def test_an_absent_entry_is_none_or_an_error_that_names_it() -> None:
    info = parse_vmcoreinfo(TEXT)
    assert info.get_symbol("log_buf") is None
    assert info.crash_time_s is None
    with pytest.raises(FactAbsentError, match=r"OFFSET\(page\.lru\)"):
        info.offset("page.lru")


@pytest.mark.parametrize("value", ["", "0x", "12 34", "ffffffff8d8622c00", "-1", "zz", "1" * 5000])
def test_a_symbol_that_is_no_address_is_corrupt(value: str) -> None:
    info = parse_vmcoreinfo(f"SYMBOL(prb)={value}\n".encode())
    with pytest.raises(CorruptError, match=r"SYMBOL\(prb\)"):
        info.get_symbol("prb")


@pytest.mark.parametrize("value", ["", "1e3", "99999999999999999999", "--1", "0xg", "9" * 5000])
def test_a_number_that_is_none_is_corrupt(value: str) -> None:
    info = parse_vmcoreinfo(f"NUMBER(PG_lru)={value}\n".encode())
    with pytest.raises(CorruptError, match=r"NUMBER\(PG_lru\)"):
        info.get_number("PG_lru")


def test_text_ends_at_its_nul_and_the_later_of_two_lines_counts() -> None:
    info = parse_vmcoreinfo(b"A=1\nA=2\nno equals sign\nB=x=y\n\0A=3\n")
    assert info.entries == {"A": "2", "B": "x=y"}


def test_text_beyond_the_largest_page_is_not_read() -> None:
    assert parse_vmcoreinfo(b"A=1\n" + b"x" * (1 << 20) + b"\nB=2\n").get("B") is None


def _text(release: str = "6.1.0-test", **more: object) -> bytes:
    info = build_x86_64_vmcoreinfo(stext=STEXT, swapper=SWAPPER, phys_base=PHYS_BASE, release=release)
    for key, value in more.items():
        info.line(key, value)
    return info.text()


@pytest.mark.parametrize("wrap", [lambda text: text, build_note_page], ids=["page", "note"])
def test_text_is_found_in_memory_as_a_page_and_as_a_note(wrap: type[bytes]) -> None:
    dump = DictDump()
    dump.write(0x7000, b"OSRELEASE= but not at the start of text that a kernel wrote")
    dump.write(0x9008, _text())
    dump.write(0x23000, wrap(_text()))
    found = find_vmcoreinfo(dump)
    assert found.text == _text()
    assert found.source == f"found in memory at {0x23000 + (24 if wrap is build_note_page else 0):#x}"


def test_text_that_goes_on_in_the_next_page_is_read_whole() -> None:
    long = _text() + b"".join(b"NUMBER(filler_%d)=%d\n" % (index, index) for index in range(400))
    dump = DictDump()
    dump.write(0x5000, long)
    assert len(long) > 8192
    assert find_vmcoreinfo(dump).number("filler_399") == 399


def test_the_text_with_a_crash_time_is_preferred_to_a_more_frequent_one() -> None:
    dump = DictDump()
    for paddr in (0x5000, 0x6000, 0x8000):
        dump.write(paddr, _text("old"))
    dump.write(0x7000, _text(CRASHTIME=1795229505))
    assert find_vmcoreinfo(dump).crash_time_s == 1795229505
    assert len(list(scan_vmcoreinfo(dump))) == 4


def test_no_text_in_memory_is_a_fact_that_is_absent() -> None:
    dump = DictDump()
    dump.write(0x5000, b"x" * 4096)
    with pytest.raises(FactAbsentError, match="no VMCOREINFO"):
        find_vmcoreinfo(dump)


def test_a_leftover_of_another_kernel_is_not_taken_for_the_running_one() -> None:
    dump, info = make_x86_kernel(has_note=False)
    other = build_x86_64_vmcoreinfo(stext=STEXT + 0x600000, swapper=SWAPPER + 0x800000, phys_base=PHYS_BASE)
    dump.write(0x1000, other.text())
    dump.write(0x2000, other.text())
    dump.write(0x900000, info.text())
    assert open_kernel_memory(dump).vmcoreinfo.text == info.text()
    dump.write(0x900000, bytes(4096))
    with pytest.raises(FactAbsentError, match="2 found that describe another kernel"):
        open_kernel_memory(dump)
