"""ORC tables are read in every layout, and stacks are followed by them."""

from __future__ import annotations

import struct

import pytest

from postpanic.errors import CorruptError, FactAbsentError
from postpanic.kernel.kallsyms import SymbolTable
from postpanic.kernel.kallsyms.symbols import make_table_of_names
from postpanic.kernel.orc import MAX_FRAMES, OrcLayout, OrcRegister, OrcTable, OrcType, decode_orc, read_orc, unwind
from tests.unit.kernel.memories import PLACE, STEXT, open_x86_kernel

BASE = PLACE + 0x1000
STACK = PLACE + 0x8000
FUNCTIONS = {"outer": STEXT + 0x100, "middle": STEXT + 0x200, "inner": STEXT + 0x300, "after": STEXT + 0x400}

# What each layout writes for: a call frame at sp + 8, one at bp + 16 with bp saved, the end of the stack,
# nothing known, a full register frame at sp, an interrupt frame at sp.
FLAGS = {
    OrcLayout.V1: (0x005, 0x014, 0x400, 0x000, 0x105, 0x205),
    OrcLayout.V2: (0x005, 0x014, 0x800, 0x000, 0x505, 0x605),
    OrcLayout.V3: (0x205, 0x214, 0x100, 0x000, 0xB05, 0xC05),
    OrcLayout.V4: (0x203, 0x284, 0x100, 0x000, 0xB03, 0xC03),
}
SP, BP, END, UNKNOWN, REGS, IRET = range(6)

Row = tuple[int, int, int, int]
"""Address, index into the flags of a layout, offsets of the stack pointer and of the frame pointer."""


def tables(layout: OrcLayout, rows: list[Row]) -> tuple[bytes, bytes]:
    ips = b"".join(struct.pack("<i", vaddr - (BASE + 4 * index)) for index, (vaddr, *_) in enumerate(rows))
    entries = b"".join(struct.pack("<hhH", sp, bp, FLAGS[layout][flags]) for _, flags, sp, bp in rows)
    return ips, entries


def every_kind(layout: OrcLayout) -> OrcTable:
    rows = [(STEXT + 0x10 * index, index, 8 * index, -8 * index) for index in range(6)]
    return decode_orc(BASE, *tables(layout, rows))


@pytest.mark.parametrize("layout", list(OrcLayout))
def test_layout_is_told_by_the_entries_alone(layout: OrcLayout) -> None:
    assert every_kind(layout).layout is layout


@pytest.mark.parametrize("layout", list(OrcLayout))
def test_entries_mean_the_same_in_every_layout(layout: OrcLayout) -> None:
    table = every_kind(layout)
    entries = [table.find(STEXT + 0x10 * index + 5) for index in range(6)]
    assert [entry.type for entry in entries] == [
        OrcType.CALL,
        OrcType.CALL,
        OrcType.END_OF_STACK,
        OrcType.UNDEFINED,
        OrcType.REGS,
        OrcType.REGS_PARTIAL,
    ]
    assert [entry.sp_register for entry in entries[:2]] == [OrcRegister.SP, OrcRegister.BP]
    assert entries[1].bp_register == OrcRegister.PREV_SP
    assert (entries[1].sp_offset, entries[1].bp_offset) == (8, -8)
    assert [entry.signal for entry in entries] == [False, False, False, False, True, True]


def test_address_below_the_first_entry_has_none() -> None:
    with pytest.raises(FactAbsentError, match="no unwind entry covers"):
        every_kind(OrcLayout.V3).find(STEXT - 1)


def test_unsorted_table_is_sorted_and_the_real_entry_of_two_counts() -> None:
    rows = [(STEXT + 32, SP, 16, 0), (STEXT, SP, 8, 0), (STEXT + 32, UNKNOWN, 0, 0), (STEXT + 16, REGS, 0, 0)]
    table = decode_orc(BASE, *tables(OrcLayout.V3, rows))
    assert table.find(STEXT + 40).sp_offset == 16
    assert table.find(STEXT + 17).type == OrcType.REGS


@pytest.mark.parametrize(
    ("ips", "entries", "words"),
    [
        (b"\0" * 3, b"\0" * 6, "3 bytes of addresses"),
        (b"\0" * 8, b"\0" * 6, "8 bytes of addresses for 6 bytes"),
        (b"\0" * 4, struct.pack("<hhH", 0, 0, 0xFFFF), "no known layout"),
        (b"\0" * 4, struct.pack("<hhH", 0, 0, 0), "more than one layout"),
    ],
)
def test_impossible_tables_are_refused(ips: bytes, entries: bytes, words: str) -> None:
    with pytest.raises(CorruptError, match=words):
        decode_orc(BASE, ips, entries)


def symbols(**more: int) -> SymbolTable:
    return make_table_of_names([*FUNCTIONS.items(), *more.items()], "T")


def stack_rows() -> list[Row]:
    return [
        (FUNCTIONS["outer"], END, 0, 0),
        (FUNCTIONS["outer"] + 1, SP, 24, 0),
        (FUNCTIONS["middle"], BP, 16, -16),
        (FUNCTIONS["inner"], SP, 16, 0),
        (FUNCTIONS["after"], REGS, 0, 0),
        (FUNCTIONS["after"] + 0x10, IRET, 0, 0),
    ]


def test_calls_are_followed_by_sp_and_by_bp() -> None:
    frame = STACK + 0x40
    words = {
        STACK + 8: FUNCTIONS["middle"] + 5,
        frame: 0,
        frame + 8: FUNCTIONS["outer"] + 9,
        frame + 16 + 16: FUNCTIONS["outer"] + 1,
    }
    memory = open_x86_kernel({vaddr: struct.pack("<Q", word) for vaddr, word in words.items()})
    table = decode_orc(BASE, *tables(OrcLayout.V3, stack_rows()))
    frames = unwind(memory, table, symbols(), pc=FUNCTIONS["inner"] + 4, sp=STACK, fp=frame)
    assert [item.symbol for item in frames] == ["inner+0x4", "middle+0x5", "outer+0x9", "outer+0x1"]
    assert [item.sp for item in frames] == [STACK, STACK + 16, frame + 16, frame + 40]
    assert frames[-1].stopped == ""


def test_interrupt_is_followed_to_the_interrupted_instruction() -> None:
    registers = [0] * 21
    registers[16], registers[19], registers[4] = FUNCTIONS["inner"], STACK + 0x400, 7
    memory = open_x86_kernel(
        {STACK: struct.pack("<21Q", *registers), STACK + 0x408: struct.pack("<Q", FUNCTIONS["outer"] + 1)}
    )
    table = decode_orc(BASE, *tables(OrcLayout.V3, stack_rows()))
    frames = unwind(memory, table, symbols(), pc=FUNCTIONS["after"] + 1, sp=STACK)
    assert [item.symbol for item in frames] == ["after+0x1", "inner+0x0", "outer+0x1"]


def test_user_mode_ends_the_trace() -> None:
    iret = struct.pack("<5Q", 0x401000, 0x33, 0, 0x7FFF0000, 0x2B)
    memory = open_x86_kernel({STACK: iret})
    table = decode_orc(BASE, *tables(OrcLayout.V3, stack_rows()))
    frames = unwind(memory, table, symbols(), pc=FUNCTIONS["after"] + 0x12, sp=STACK)
    assert [item.symbol for item in frames] == ["after+0x12"]
    assert frames[0].stopped == ""


def test_trace_says_why_it_cannot_go_on() -> None:
    table = decode_orc(BASE, *tables(OrcLayout.V3, [*stack_rows(), (STEXT + 0x500, UNKNOWN, 0, 0)]))
    memory = open_x86_kernel()
    unmapped = unwind(memory, table, None, pc=FUNCTIONS["inner"], sp=0x1000)
    assert "not mapped" in unmapped[-1].stopped or unmapped[-1].stopped
    unknown = unwind(memory, table, None, pc=STEXT + 0x501, sp=STACK)
    assert "no unwind information" in unknown[-1].stopped
    below = unwind(memory, table, None, pc=0x10, sp=STACK)
    assert "no unwind entry" in below[-1].stopped


def test_stack_that_leads_to_itself_ends() -> None:
    loop = {STACK + 8: struct.pack("<Q", FUNCTIONS["after"] + 2)}
    registers = [0] * 21
    registers[16], registers[19] = FUNCTIONS["after"], STACK
    memory = open_x86_kernel({**loop, STACK: struct.pack("<21Q", *registers)})
    table = decode_orc(BASE, *tables(OrcLayout.V3, stack_rows()))
    frames = unwind(memory, table, None, pc=FUNCTIONS["after"], sp=STACK)
    assert len(frames) == MAX_FRAMES
    assert "more than" in frames[-1].stopped


def test_function_without_entries_is_left_by_its_own_code() -> None:
    start = STEXT + 0x600
    # push %rbx; sub $0x20,%rsp; 16 bytes of body; add $0x20,%rsp; pop %rbx; ret
    code = bytes.fromhex("53 4883ec20") + b"\x90" * 16 + bytes.fromhex("4883c420 5b c3")
    stack = {STACK + 0x28: struct.pack("<Q", FUNCTIONS["outer"] + 1)}
    memory = open_x86_kernel({**stack, start: code})
    rows = [*stack_rows(), (start, UNKNOWN, 0, 0)]
    table = decode_orc(BASE, *tables(OrcLayout.V3, rows))
    names = symbols(special=start, end=start + len(code))
    frames = unwind(memory, table, names, pc=start + 8, sp=STACK)
    assert [item.symbol for item in frames] == ["special+0x8", "outer+0x1"]


def test_tables_are_read_between_the_linker_scripts_symbols() -> None:
    ips, entries = tables(OrcLayout.V1, [(STEXT + 0x10 * index, index, 0, 0) for index in range(6)])
    second = BASE + len(ips)
    names = symbols(
        __start_orc_unwind_ip=BASE,
        __stop_orc_unwind_ip=second,
        __start_orc_unwind=second,
        __stop_orc_unwind=second + len(entries),
    )
    table = read_orc(open_x86_kernel({BASE: ips + entries}), names)
    assert len(table) == 6
    assert table.layout is OrcLayout.V1
    with pytest.raises(FactAbsentError, match="no symbol"):
        read_orc(open_x86_kernel(), symbols())
