"""Unwind tables as DWARF, read back by somebody else's reader."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import pytest
from elftools.dwarf.callframe import FDE, CallFrameInfo
from elftools.dwarf.structs import DWARFStructs

from postpanic.kernel.debuginfo.orc_frames import AddressRule, encode_orc_frames
from postpanic.kernel.orc import OrcLayout, OrcRegister, OrcTable, OrcType

BASE = 0xFFFF_FFFF_8100_0000
RBP, RSP, RA = 6, 7, 16
DWARF = {"rax": 0, "rdx": 1, "rdi": 5, "rbp": 6, "rsp": 7, "r10": 10, "r13": 13}
BY = {
    OrcRegister.SP: "rsp",
    OrcRegister.BP: "rbp",
    OrcRegister.R10: "r10",
    OrcRegister.R13: "r13",
    OrcRegister.DX: "rdx",
    OrcRegister.DI: "rdi",
    OrcRegister.AX: "rax",
}
Row = tuple[int, OrcType, OrcRegister, int, OrcRegister, int]


def table(*rows: Row) -> OrcTable:
    """Make a table of (offset, type, sp register, sp offset, bp register, bp offset)."""
    vaddrs, kinds, sp_registers, sp_offsets, bp_registers, bp_offsets = zip(*rows, strict=True)
    return OrcTable(
        OrcLayout.V3,
        np.array(vaddrs, dtype=np.uint64) + np.uint64(BASE),
        np.array(kinds, dtype=np.uint8),
        np.array(sp_registers, dtype=np.uint8),
        np.array(sp_offsets, dtype=np.int16),
        np.array(bp_registers, dtype=np.uint8),
        np.array(bp_offsets, dtype=np.int16),
        np.zeros(len(rows), dtype=np.bool_),
    )


def call(at: int, offset: int, register: OrcRegister = OrcRegister.SP, bp: int | None = None) -> Row:
    saved = (OrcRegister.UNDEFINED, 0) if bp is None else (OrcRegister.PREV_SP, bp)
    return (at, OrcType.CALL, register, offset, *saved)


def nothing(at: int) -> Row:
    return at, OrcType.UNDEFINED, OrcRegister.UNDEFINED, 0, OrcRegister.UNDEFINED, 0


class Frames:
    """The section as pyelftools reads it."""

    def __init__(self, section: bytes) -> None:
        info = CallFrameInfo(
            io.BytesIO(section), len(section), 0, DWARFStructs(little_endian=True, dwarf_format=32, address_size=8)
        )
        self.entries = [entry for entry in info.get_entries() if isinstance(entry, FDE)]

    def find(self, vaddr: int) -> tuple[FDE, dict[Any, Any]] | None:
        for entry in self.entries:
            first = entry["initial_location"]
            if first <= vaddr < first + entry["address_range"]:
                rows = [row for row in entry.get_decoded().table if row["pc"] <= vaddr]
                return entry, rows[-1]
        return None

    def row(self, vaddr: int) -> dict[Any, Any]:
        found = self.find(vaddr)
        assert found is not None
        return found[1]

    def is_signal(self, vaddr: int) -> bool:
        found = self.find(vaddr)
        assert found is not None
        assert found[0].cie is not None
        return b"S" in found[0].cie["augmentation"]


def cfa_of(row: dict[Any, Any]) -> tuple[int, int]:
    """Give register and offset of a frame's address; pyelftools leaves the offset divided by the alignment."""
    return row["cfa"].reg, row["cfa"].offset * -8


def test_a_function_with_a_frame() -> None:
    frames = Frames(encode_orc_frames([table(call(0, 8), call(1, 16, bp=-16), call(9, 8), nothing(10), nothing(16))]))
    for offset, cfa, saved in ((0, 8, None), (1, 16, -16), (8, 16, -16), (9, 8, None)):
        row = frames.row(BASE + offset)
        assert cfa_of(row) == (RSP, cfa)
        assert row[RA].arg == -8
        assert (row[RBP].type, row[RBP].arg) == (("SAME_VALUE", None) if saved is None else ("OFFSET", saved))
        # What the tables do not tell is not known, and not the same as before.
        assert row[3].type == row[12].type == "UNDEFINED"
    assert frames.find(BASE + 10) is None
    assert frames.find(BASE - 1) is None


@pytest.mark.parametrize(("register", "name"), BY.items())
def test_a_frame_by_each_register(register: OrcRegister, name: str) -> None:
    frames = Frames(encode_orc_frames([table(call(0, 24, register), nothing(8), nothing(9))]))
    assert cfa_of(frames.row(BASE)) == (DWARF[name], 24)


def test_a_frame_by_what_is_in_memory() -> None:
    rows = (call(0, 16, OrcRegister.SP_INDIRECT), call(4, -8, OrcRegister.BP_INDIRECT), nothing(8), nothing(9))
    frames = Frames(encode_orc_frames([table(*rows)]))
    # DW_OP_breg7 0, deref, consts 16, plus; DW_OP_breg6 -8, deref.
    assert bytes(frames.row(BASE)["cfa"].expr) == bytes((0x77, 0, 0x06, 0x11, 16, 0x22))
    assert bytes(frames.row(BASE + 4)["cfa"].expr) == bytes((0x76, 0x78, 0x06))


def test_registers_that_an_exception_saved() -> None:
    regs = (0, OrcType.REGS, OrcRegister.SP, 16, OrcRegister.UNDEFINED, 0)
    frames = Frames(encode_orc_frames([table(regs, nothing(8), nothing(9))]))
    row = frames.row(BASE)
    assert cfa_of(row) == (RSP, 16)
    offsets = {number: rule.arg for number, rule in row.items() if isinstance(number, int)}
    # r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi, a word for the system call, rip cs rflags rsp ss
    order = [15, 14, 13, 12, 6, 3, 11, 10, 9, 8, 0, 2, 1, 4, 5, None, RA, 51, 49, RSP, 52]
    assert offsets == {number: 8 * place for place, number in enumerate(order) if number is not None}
    assert frames.is_signal(BASE)


def test_what_only_the_processor_saved() -> None:
    partial = (0, OrcType.REGS_PARTIAL, OrcRegister.SP, 8, OrcRegister.UNDEFINED, 0)
    frames = Frames(encode_orc_frames([table(partial, nothing(8), nothing(9))]))
    row = frames.row(BASE)
    assert cfa_of(row) == (RSP, 8)
    assert (row[RA].arg, row[RSP].arg, row[52].arg) == (0, 24, 32)
    assert row[RBP].type == "SAME_VALUE"
    assert row[0].type == "UNDEFINED"
    assert frames.is_signal(BASE)


def test_a_system_call_is_no_signal() -> None:
    regs = (OrcType.REGS, OrcRegister.SP, 0, OrcRegister.UNDEFINED, 0)
    section = encode_orc_frames([table((0, *regs), (8, *regs), nothing(16), nothing(17))], (), [(BASE, BASE + 8)])
    frames = Frames(section)
    assert not frames.is_signal(BASE + 7)
    assert frames.is_signal(BASE + 8)
    assert frames.row(BASE)[RA].arg == frames.row(BASE + 8)[RA].arg == 128


def test_the_end_of_a_stack_and_rules_of_our_own() -> None:
    end = (0, OrcType.END_OF_STACK, OrcRegister.UNDEFINED, 0, OrcRegister.UNDEFINED, 0)
    rules = [AddressRule(0, 4096, ends=False), AddressRule(4096, 1 << 47, ends=True)]
    frames = Frames(encode_orc_frames([table(end, nothing(8), nothing(9))], rules))
    assert frames.row(BASE)[RA].type == "UNDEFINED"
    assert frames.row(0)[RA].arg == -8
    assert cfa_of(frames.row(0)) == (RSP, 8)
    assert frames.row(0x401000)[RA].type == "UNDEFINED"


def test_every_address_of_a_large_table() -> None:
    """Entries are cut wherever it suits: each address has the rule of its row."""
    random.seed(1)
    rows: list[Row] = []
    at = 0
    for _ in range(400):
        kind = random.choice([OrcType.CALL] * 8 + [OrcType.REGS, OrcType.UNDEFINED, OrcType.END_OF_STACK])
        saved = random.choice([(OrcRegister.UNDEFINED, 0), (OrcRegister.PREV_SP, -16), (OrcRegister.BP, 24)])
        has_frame = kind in (OrcType.CALL, OrcType.REGS)
        register = random.choice([OrcRegister.SP, OrcRegister.BP]) if has_frame else OrcRegister.UNDEFINED
        rows.append((at, kind, register, random.choice([8, 16, 400, 32000, -8]) if has_frame else 0, *saved))
        at += random.choice([1, 5, 300, 70000])
    orc = table(*rows)
    frames = Frames(encode_orc_frames([orc]))
    for number, (offset, kind, register, cfa, bp, bp_offset) in enumerate(rows[:-1]):
        for vaddr in (BASE + offset, BASE + rows[number + 1][0] - 1):
            found = frames.find(vaddr)
            if kind is OrcType.UNDEFINED:
                assert found is None
                continue
            assert found is not None
            row = found[1]
            if kind is OrcType.END_OF_STACK:
                assert row[RA].type == "UNDEFINED"
                continue
            assert cfa_of(row) == (DWARF[BY[register]], cfa)
            if kind is OrcType.CALL:
                expected = {
                    OrcRegister.UNDEFINED: "SAME_VALUE",
                    OrcRegister.PREV_SP: "OFFSET",
                    OrcRegister.BP: "EXPRESSION",
                }[bp]
                assert row[RBP].type == expected
                if bp is OrcRegister.PREV_SP:
                    assert row[RBP].arg == bp_offset


def test_tables_that_say_nothing() -> None:
    assert Frames(encode_orc_frames([])).entries == []
    assert Frames(encode_orc_frames([table(nothing(0)), table(nothing(0), nothing(8))])).entries == []
