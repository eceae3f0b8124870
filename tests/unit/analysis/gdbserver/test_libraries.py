"""What gdb is told of the files that it loads."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from postpanic.analysis.gdbserver.libraries import (
    Library,
    encode_libraries,
    find_first_segment,
    find_unmoved_sections,
    read_allocated_sections,
)
from postpanic.errors import CorruptError

NAMES = b"\0.text\0.data\0.debug_info\0.shstrtab\0"
LOADED = 0xFFFF_FFFF_8100_0000


def make_elf(segments: tuple[tuple[int, int], ...] = ((4, 0), (1, LOADED), (1, 0))) -> bytes:
    """Return an ELF file (System V gABI, chapter 4) of two sections that take memory, and segments (type, address)."""
    body = b"".join(struct.pack("<IIQQQQQQ", kind, 5, 0, vaddr, vaddr, 0, 0, 1) for kind, vaddr in segments)
    names_at = 64 + len(body)
    sections = (
        (b"", 0, 0, 0),
        (b".text", 6, LOADED, 100),
        (b".debug_info", 0, 0, 7),
        (b".data", 3, 0, 200),
        (b".shstrtab", 0, 0, len(NAMES)),
    )
    table = b"".join(
        struct.pack(
            "<IIQQQQIIQQ", NAMES.index(name + b"\0") if name else 0, 1, flags, vaddr, names_at, size, 0, 0, 1, 0
        )
        for name, flags, vaddr, size in sections
    )
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        *(b"\x7fELF\x02\x01\x01".ljust(16, b"\0"), 2, 62, 1, 0, 64, names_at + len(NAMES), 0),
        *(64, 56, len(segments), 64, len(sections), 4),
    )
    return header + body + NAMES + table


def test_sections_and_segments(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(make_elf())
    assert read_allocated_sections(path) == [(".text", LOADED, 100), (".data", 0, 200)]
    assert find_unmoved_sections(path) == [(".data", 0, 200)]
    assert find_first_segment(path) == LOADED
    path.write_bytes(make_elf(()))
    assert find_first_segment(path) is None


def test_a_file_that_is_cut_anywhere_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    whole = make_elf()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptError):
            read_allocated_sections(path)


@pytest.mark.parametrize("place", range(0, 64, 2))
def test_a_header_that_lies_is_an_error_or_a_shorter_answer(tmp_path: Path, place: int) -> None:
    path = tmp_path / "vmlinux"
    whole = bytearray(make_elf())
    whole[place : place + 2] = b"\xff\xff"
    path.write_bytes(whole)
    for read in (read_allocated_sections, find_first_segment):
        with suppress(CorruptError):
            read(path)


def test_the_list() -> None:
    document = ET.fromstring(encode_libraries([Library(Path('/a&"b.ko'), (0xFFFF_FFFF_C000_0000, 16))]))  # noqa: S314
    (library,) = document
    assert library.get("name") == '/a&"b.ko'
    assert [section.get("address") for section in library] == ["0xffffffffc0000000", "0x10"]
