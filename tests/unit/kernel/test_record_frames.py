"""Frames of arm64 from code, as DWARF that somebody else's reader reads back."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from elftools.dwarf.callframe import FDE, CallFrameInfo
from elftools.dwarf.structs import DWARFStructs

from postpanic.kernel.debuginfo.record_frames import FrameRule, Stretches, encode_record_frames, find_stretches

BASE = 0xFFFF_8000_0800_0000
MASK = 0xFFFF_0000_0000_0000
X29, X30, SP, PC = 29, 30, 31, 32

# As "aarch64-linux-gnu-objdump -d" shows them.
PACIASP, AUTIASP = 0xD503233F, 0xD50323BF
PUSH_48, PUSH_16 = 0xA9BD7BFD, 0xA9BF7BFD  # stp x29, x30, [sp, #-48]! and #-16
ROOM_96, STORE_32, FP_32 = 0xD10183FF, 0xA9027BFD, 0x910083FD  # sub sp, sp, #96; stp x29, x30, [sp, #32]; add x29, sp
FP = 0x910003FD  # mov x29, sp
POP_48, LOAD_32 = 0xA8C37BFD, 0xA9427BFD  # ldp x29, x30, [sp], #48; ldp x29, x30, [sp, #32]
CALL, CALL_X1, RET, JUMP, NOP, CBZ = 0x94000010, 0xD63F0020, 0xD65F03C0, 0x14000020, 0xD503201F, 0xB4000060
UNPACK_96 = 0x910183FF  # add sp, sp, #96


def stretches(*functions: list[int]) -> Stretches:
    begins = np.cumsum([0, *map(len, functions)])[:-1]
    code = np.array([word for function in functions for word in function], dtype=np.uint32)
    return find_stretches(code, BASE, begins.astype(np.uint64) * np.uint64(4) + np.uint64(BASE))


def rules(found: Stretches) -> list[tuple[int, int, int]]:
    """Give where each stretch begins, in instructions, its rule, and the size of its frame."""
    starts = (found.starts - np.uint64(BASE)).astype(int) // 4
    assert found.ends[:-1].tolist() == found.starts[1:].tolist()
    return list(zip(starts.tolist(), found.rules.tolist(), found.frame_bytes.tolist(), strict=True))


def test_a_record_is_there_from_where_x29_is_set_to_the_epilogue() -> None:
    found = stretches([PACIASP, PUSH_48, FP, NOP, CALL, NOP, POP_48, AUTIASP, RET], [NOP, RET])

    assert rules(found) == [
        (0, FrameRule.LEAF, 0),
        (3, FrameRule.RECORD, 48),
        (7, FrameRule.LEAF, 0),
        # Behind the return; a function begins there and has none.
        (9, FrameRule.LEAF, 0),
    ]


def test_an_epilogue_in_the_middle_does_not_end_the_record() -> None:
    found = stretches([PUSH_48, FP, CBZ, POP_48, RET, NOP, CALL_X1, NOP, POP_48, NOP, NOP, NOP, NOP, JUMP, NOP])

    assert rules(found) == [
        (0, FrameRule.LEAF, 0),
        (2, FrameRule.RECORD, 48),
        (4, FrameRule.LEAF, 0),
        (5, FrameRule.RECORD, 48),
        (9, FrameRule.LEAF, 0),
        (14, FrameRule.RECORD, 48),
    ]


def test_what_calls_has_a_record_however_far_away_its_epilogue_ends() -> None:
    found = stretches([PUSH_48, FP, POP_48, *[NOP] * 30, CALL, NOP, RET])

    assert rules(found) == [
        (0, FrameRule.LEAF, 0),
        (2, FrameRule.RECORD, 48),
        (3, FrameRule.LEAF, 0),
        (33, FrameRule.RECORD, 48),
    ]


def test_a_call_before_the_record_makes_none() -> None:
    """As the hook of a tracer."""
    assert rules(stretches([CALL, PUSH_16, FP, NOP])) == [(0, FrameRule.LEAF, 0), (3, FrameRule.RECORD, 16)]


def test_a_record_in_the_middle_of_a_frame() -> None:
    found = stretches([ROOM_96, STORE_32, FP_32, CALL, LOAD_32, UNPACK_96, RET])

    assert rules(found) == [(0, FrameRule.LEAF, 0), (3, FrameRule.RECORD, 64), (5, FrameRule.LEAF, 0)]
    # Where the instructions before do not tell, nothing is said of the frame's size.
    assert rules(stretches([NOP, NOP, FP, NOP])) == [(0, FrameRule.LEAF, 0), (3, FrameRule.RECORD, 0)]


def test_code_that_is_not_known_has_a_record() -> None:
    assert rules(stretches([NOP], [0, 0, 0], [NOP])) == [
        (0, FrameRule.LEAF, 0),
        (1, FrameRule.RECORD, 0),
        (4, FrameRule.LEAF, 0),
    ]


def test_no_functions_no_stretches() -> None:
    assert rules(find_stretches(np.zeros(4, dtype=np.uint32), BASE, np.zeros(0, dtype=np.uint64))) == []
    assert encode_record_frames([], code_mask=MASK, registers_offset=0) == b""


def read(found: Stretches) -> list[tuple[int, int, bytes, int, dict[Any, Any]]]:
    """Read the section: where each entry begins and ends, its augmentation, its return column, its row."""
    section = encode_record_frames([found], code_mask=MASK, registers_offset=0x130)
    info = CallFrameInfo(
        io.BytesIO(section), len(section), 0, DWARFStructs(little_endian=True, dwarf_format=32, address_size=8)
    )
    entries = []
    for entry in info.get_entries():
        if isinstance(entry, FDE):
            assert entry.cie is not None
            start, size = entry["initial_location"], entry["address_range"]
            cie, row = entry.cie, entry.cie.get_decoded().table[-1]
            entries.append(
                (start - BASE, start - BASE + size, cie["augmentation"], cie["return_address_register"], row)
            )
    return entries


def test_entries() -> None:
    found = stretches([PUSH_48, FP, NOP, POP_48, RET], [NOP], [NOP, NOP], [NOP])
    found.rules[-3:] = (FrameRule.EXCEPTION, FrameRule.ENTRY, FrameRule.END)
    leaf, record, epilogue, exception, entry, end = read(found)

    assert (leaf[:4], record[:4]) == ((0, 8, b"z", X30), (8, 16, b"z", X30))
    assert (leaf[4]["cfa"].reg, leaf[4]["cfa"].offset) == (SP, 0)
    assert (record[4]["cfa"].reg, record[4]["cfa"].offset) == (X29, 48)
    assert record[4][X29].type == "EXPRESSION"
    assert record[4][X29].arg == [0x70 + X29, 0]
    for row, begin in ((leaf[4], [0x70 + X30, 0]), (record[4], [0x70 + X29, 8, 0x06])):
        assert row[X30].type == "VAL_EXPRESSION"
        assert row[X30].arg[: len(begin)] == begin
        assert bytes(row[X30].arg[-10:]) == b"\x0e" + MASK.to_bytes(8, "little") + b"\x21"
        assert row[0].type == "UNDEFINED"
    assert SP not in record[4]
    assert epilogue[:2] == (16, 20)
    assert [each[2:4] for each in (exception, entry, end)] == [(b"zS", PC), (b"z", PC), (b"z", X30)]
    # x0 is the first word of struct pt_regs, pc the 33rd; -0x130 and -0x30 as signed LEB128.
    assert exception[4][0].arg == [0x70 + X29, 0xD0, 0x7D]
    assert exception[4][PC].arg == [0x70 + X29, 0x50]
    assert end[4][X30].type == "UNDEFINED"
