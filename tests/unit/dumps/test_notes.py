from __future__ import annotations

import struct

import pytest

from postpanic.dumps.notes import decode_notes, detect_user_core, detect_vmcoreinfo
from tests.builders.elfcore import build_note, build_vmcoreinfo_note


@pytest.mark.parametrize("byte_order", ["little", "big"])
def test_notes_of_either_byte_order(byte_order: str) -> None:
    raw = build_note(b"CORE", 1, b"abcde", byte_order=byte_order) + build_note(b"", 7, b"", byte_order=byte_order)
    notes = [(note.name, note.type, note.desc) for note in decode_notes(raw, byte_order=byte_order)]
    assert notes == [(b"CORE", 1, b"abcde"), (b"", 7, b"")]


def test_note_that_does_not_fit_ends_the_walk() -> None:
    good = build_note(b"CORE", 1, b"1234")
    for broken in (struct.pack("<III", 5, 0xFFFFFFFF, 1), struct.pack("<III", 0xFFFFFFFF, 4, 1), b"\1\0\0"):
        assert len(list(decode_notes(good + broken + b"x" * 8, byte_order="little"))) == 1


def test_wrong_byte_order_finds_nothing() -> None:
    assert detect_vmcoreinfo(build_vmcoreinfo_note(b"A=1\n"), byte_order="big") == b""


def test_process_core_is_told_by_notes_that_only_processes_have() -> None:
    prstatus = build_note(b"CORE", 1, bytes(336))
    assert detect_user_core(prstatus + build_note(b"CORE", 6, bytes(32)), byte_order="little")
    assert not detect_user_core(prstatus, byte_order="little")
    kernel = prstatus + build_note(b"CORE", 3, bytes(136)) + build_vmcoreinfo_note(b"A=1\n")
    assert not detect_user_core(kernel, byte_order="little")
