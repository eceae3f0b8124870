"""What a kernel without types still tells, on a kernel made for the purpose."""

from __future__ import annotations

import dataclasses
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postpanic.analysis.symbols_only import SymbolsOnly
from postpanic.analysis.symbols_only.backtrace import choose_cpus, format_registers, parse_cpus, read_trace_lines
from postpanic.analysis.symbols_only.kernel import parse_address
from postpanic.analysis.symbols_only.names import read_all_lines, read_symbol_lines
from postpanic.analysis.symbols_only.words import (
    WordStyle,
    format_letters,
    format_words,
    read_letter_lines,
    read_word_lines,
)
from postpanic.errors import AbsentError, TranslationError, UsageError
from postpanic.kernel.kallsyms.symbols import make_table_of_names
from postpanic.kernel.memory import open_kernel_memory
from tests.unit.kernel.memories import PLACE, STEXT, make_x86_kernel

DATA = PLACE + 0x2000
STACK = PLACE + 0x9000
PER_CPU = PLACE + 0x20000
PER_CPU_STEP = 0x1000
CRASH_NOTES = 0x800
CURRENT = 0x10

SYMBOLS = {
    "current_task": CURRENT,
    "_stext": STEXT,
    "outer": STEXT + 0x100,
    "inner": STEXT + 0x200,
    "_etext": STEXT + 0x1000,
    "table": DATA,
    "nr_cpu_ids": DATA + 0x100,
    "__cpu_online_mask": DATA + 0x108,
    "__cpu_possible_mask": DATA + 0x110,
    "__per_cpu_offset": DATA + 0x118,
    "crash_notes": DATA + 0x200,
    "panic_cpu": DATA + 0x208,
    "orc_ip": PLACE + 0x3000,
    "__start_orc_unwind_ip": PLACE + 0x3000,
    "__stop_orc_unwind_ip": PLACE + 0x3018,
    "__start_orc_unwind": PLACE + 0x3018,
    "__stop_orc_unwind": PLACE + 0x303C,
    "_end": PLACE + 0x100000,
}

MODULE = 0xFFFFFFFFC0000123
"""Where modules are: outside the image, and not mapped here."""


def note(owner: bytes, kind: int, contents: bytes) -> bytes:
    padded = owner + b"\0" * (-len(owner) % 4)
    return struct.pack("<III", len(owner), len(contents), kind) + padded + contents + bytes(-len(contents) % 4)


def prstatus(*, pid: int, rip: int, rsp: int, cs: int = 0x10) -> bytes:
    """``struct elf_prstatus`` of x86-64: 112 bytes of header, 27 registers, ``pr_fpvalid``."""
    words = [0] * 27
    words[16], words[17], words[19] = rip, cs, rsp
    return note(b"CORE\0", 1, bytes(32) + struct.pack("<i", pid) + bytes(76) + struct.pack("<27Q", *words) + bytes(8))


def orc_tables() -> bytes:
    """Frames of 16 bytes in inner, the end of the stack in outer, nothing behind; flags as of 6.4."""
    rows = [
        # No other layout allows these three, which no test stops in.
        (STEXT, 0, 0xB05),
        (STEXT + 0x10, 0, 0xC05),
        (STEXT + 0x20, 16, 0x214),
        (SYMBOLS["outer"], 0, 0x100),
        (SYMBOLS["inner"], 16, 0x205),
        (SYMBOLS["_etext"], 0, 0),
    ]
    ip = SYMBOLS["__start_orc_unwind_ip"]
    ips = b"".join(struct.pack("<i", vaddr - (ip + 4 * index)) for index, (vaddr, _, _) in enumerate(rows))
    return ips + b"".join(struct.pack("<hhH", offset, 0, flags) for _, offset, flags in rows)


def make_kernel(
    notes: list[bytes], *, saved: list[bytes] | None = None, panic_cpu: int = 1, online: int = 0b11
) -> SymbolsOnly:
    """Make a kernel of two CPUs; *saved*: what lies in their own note buffers."""
    parts = {
        STEXT + 0x110 - 5: b"\xe8\0\0\0\0",
        DATA: struct.pack("<4Q", SYMBOLS["inner"] + 5, 7, 0xFFFF888000000000, DATA),
        SYMBOLS["nr_cpu_ids"]: struct.pack("<I", 2),
        SYMBOLS["__cpu_online_mask"]: struct.pack("<Q", online),
        SYMBOLS["__cpu_possible_mask"]: struct.pack("<Q", 0b11),
        SYMBOLS["__per_cpu_offset"]: struct.pack("<2Q", PER_CPU, PER_CPU + PER_CPU_STEP),
        SYMBOLS["crash_notes"]: struct.pack("<Q", CRASH_NOTES),
        SYMBOLS["panic_cpu"]: struct.pack("<i", panic_cpu),
        SYMBOLS["__start_orc_unwind_ip"]: orc_tables(),
        STACK: struct.pack("<4Q", 0, STEXT + 0x110, 0, STEXT + 0x110),
    }
    for cpu in range(2):
        parts[PER_CPU + cpu * PER_CPU_STEP + CURRENT] = struct.pack("<Q", 0xFFFF888000001000 + cpu)
    for cpu, contents in enumerate(saved or ()):
        parts[PER_CPU + cpu * PER_CPU_STEP + CRASH_NOTES] = contents
    dump, _ = make_x86_kernel(parts)
    description = dataclasses.replace(dump.description, notes=b"".join(notes))
    return SymbolsOnly(open_kernel_memory(dump), description, make_table_of_names(SYMBOLS.items(), "T"))


FIRST = prstatus(pid=10, rip=SYMBOLS["inner"] + 4, rsp=STACK)
SECOND = prstatus(pid=11, rip=SYMBOLS["inner"] + 8, rsp=STACK)


def test_note_belongs_to_the_cpu_whose_buffer_holds_it() -> None:
    kernel = make_kernel([FIRST, SECOND], saved=[SECOND, FIRST])
    assert [(cpu.cpu, cpu.pid) for cpu in kernel.cpus] == [(0, 11), (1, 10)]
    assert {cpu.source for cpu in kernel.cpus} == {"the CPU's own note in memory"}


def test_one_note_of_two_cpus_is_found_in_its_buffer() -> None:
    kernel = make_kernel([SECOND], saved=[b"", SECOND])
    assert [cpu.cpu for cpu in kernel.cpus] == [1]


def test_notes_that_nobody_saved_are_in_the_order_of_the_online_cpus() -> None:
    kernel = make_kernel([FIRST], online=0b10)
    assert [(cpu.cpu, cpu.pid) for cpu in kernel.cpus] == [(1, None)]
    assert kernel.cpus[0].source == "the order of the notes and of the online CPUs"


def test_notes_of_more_cpus_than_are_online_are_counted() -> None:
    kernel = make_kernel([FIRST, SECOND], online=0b10)
    assert [cpu.cpu for cpu in kernel.cpus] == [0, 1]
    assert kernel.cpus[0].source == "the order of the notes alone"


def test_equal_notes_are_not_told_apart_by_their_buffers() -> None:
    kernel = make_kernel([FIRST, FIRST], saved=[FIRST, FIRST])
    assert [cpu.cpu for cpu in kernel.cpus] == [0, 1]
    assert "order" in kernel.cpus[0].source


@pytest.mark.parametrize("size", [0, 4, 100, 112, 200])
def test_note_that_is_too_short_for_registers_is_left_out(size: int) -> None:
    assert make_kernel([note(b"CORE\0", 1, bytes(size)), SECOND]).cpus[0].registers["rip"] == SYMBOLS["inner"] + 8


def test_cpu_that_panicked_comes_first() -> None:
    kernel = make_kernel([FIRST, SECOND])
    assert [cpu.cpu for cpu in choose_cpus(kernel, every=False, numbers=None)] == [1]
    assert [cpu.cpu for cpu in choose_cpus(kernel, every=True, numbers=None)] == [1, 0]
    assert [cpu.cpu for cpu in choose_cpus(kernel, every=False, numbers=[0])] == [0]


def test_without_a_panic_the_first_cpu_is_shown() -> None:
    kernel = make_kernel([FIRST, SECOND], panic_cpu=-1)
    assert kernel.panic_cpu is None
    assert [cpu.cpu for cpu in choose_cpus(kernel, every=False, numbers=None)] == [0]


def test_cpu_without_registers_is_absent() -> None:
    with pytest.raises(AbsentError, match="CPU 5 left no registers, only 0, 1 did"):
        choose_cpus(make_kernel([FIRST, SECOND]), every=False, numbers=[5])
    with pytest.raises(AbsentError, match="no registers of any CPU"):
        choose_cpus(make_kernel([]), every=True, numbers=None)


def trace(kernel: SymbolsOnly, *, offsets: bool = False) -> list[str]:
    return list(read_trace_lines(kernel, choose_cpus(kernel, every=False, numbers=None)[0], offsets=offsets))


def test_stack_is_unwound_to_its_end() -> None:
    assert trace(make_kernel([FIRST, SECOND])) == [
        "PID: (unavailable)  TASK: ffff888000001001  CPU: 1  COMMAND: (unavailable)",
        f" #0 [{STACK:016x}] inner at {STEXT + 0x208:x}",
        f" #1 [{STACK + 16:016x}] outer at {STEXT + 0x110:x}",
    ]
    assert trace(make_kernel([FIRST, SECOND]), offsets=True)[1].endswith("inner+0x8 at " + f"{STEXT + 0x208:x}")


def test_stack_is_picked_up_above_what_is_not_in_the_image() -> None:
    lines = trace(make_kernel([FIRST, prstatus(pid=11, rip=MODULE, rsp=STACK)]))
    assert lines[1] == f" #0 [{STACK:016x}] (unknown) at {MODULE:x}"
    assert lines[2].startswith(f"    (16 bytes of stack passed over: {MODULE:#x} is not in the kernel image")
    assert lines[3:] == [f" #1 [{STACK + 16:016x}] outer at {STEXT + 0x110:x}"]


def test_stack_that_leads_nowhere_says_why() -> None:
    lines = trace(make_kernel([FIRST, prstatus(pid=11, rip=MODULE, rsp=0x1000)]))
    assert lines[2].startswith(f"    (ends here: {MODULE:#x} is not in the kernel image")
    assert len(lines) == 3


def test_kernel_without_unwind_tables_shows_registers_and_says_so() -> None:
    kernel = make_kernel([FIRST, SECOND])
    kernel.symbols = make_table_of_names([(name, vaddr) for name, vaddr in SYMBOLS.items() if "orc" not in name], "T")
    lines = trace(kernel)
    assert lines[1].startswith(f"    RIP: {STEXT + 0x208:016x}  RSP: {STACK:016x}")
    assert lines[-1] == "    (not unwound: no symbol '__start_orc_unwind_ip')"


def test_cpu_in_user_mode_has_registers_and_no_frames() -> None:
    lines = trace(make_kernel([FIRST, prstatus(pid=11, rip=0x401000, rsp=0x7FFE0000, cs=0x33)]))
    assert lines[1] == "    RIP: 0000000000401000  RSP: 000000007ffe0000  RFLAGS: 00000000"
    assert lines[-1] == "    (the CPU ran in user mode)"
    assert not any("#0" in line for line in lines)


def test_registers_of_arm64_are_all_shown() -> None:
    lines = list(format_registers({**{f"x{number}": number for number in range(31)}, "sp": 1, "pc": 2, "pstate": 3}))
    assert sum(line.count(":") for line in lines) == 34


@pytest.mark.parametrize("text", ["", "a", "1,", "-1", "1-", "1-2-3", "99999999999", "0x1"])
def test_list_of_cpus_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no list of CPUs"):
        parse_cpus(text)


def test_lists_of_cpus_are_read() -> None:
    assert parse_cpus("3") == [3]
    assert parse_cpus("0,4-6,2") == [0, 4, 5, 6, 2]
    assert parse_cpus("3-1") == []


@pytest.mark.parametrize(
    ("word", "vaddr"),
    [
        ("inner", STEXT + 0x200),
        ("inner+8", STEXT + 0x208),
        ("inner+0x10", STEXT + 0x210),
        ("inner-10", STEXT + 0x1F0),
        (f"{DATA:x}", DATA),
        (f"0x{DATA:X}", DATA),
        ("abc", 0xABC),
    ],
)
def test_addresses_are_read_as_typed(word: str, vaddr: int) -> None:
    assert make_kernel([]).find_address(word) == vaddr


@pytest.mark.parametrize("word", ["nosuch", "inner+", "+8", "inner+xyz", "nosuch+8", "-", "0x", "1" * 17])
def test_word_that_is_no_address_is_absent(word: str) -> None:
    with pytest.raises(AbsentError, match="could not find symbol"):
        make_kernel([]).find_address(word)


@given(st.text())
@settings(derandomize=True, deadline=None)
def test_any_word_is_an_address_or_not(word: str) -> None:
    number = parse_address(word)
    assert number is None or 0 <= number < 1 << 64


def test_symbols_stand_for_addresses_in_the_image_only() -> None:
    lines = list(read_word_lines(make_kernel([]), DATA, 4, WordStyle(letters=False), symbolic=True))
    assert lines == [
        f"{DATA:16x}:  inner+5          0000000000000007",
        f"{DATA + 16:16x}:  ffff888000000000 table+0         ",
    ]


def test_words_of_every_size_line_up() -> None:
    data = bytes(range(0x30, 0x44))
    assert list(format_words(0x10, data, WordStyle(1))) == [
        "              10:  30 31 32 33 34 35 36 37 38 39 3a 3b 3c 3d 3e 3f   0123456789:;<=>?",
        "              20:  40 41 42 43                                       @ABC",
    ]
    assert list(format_words(0x10, data, WordStyle(4))) == [
        "              10:  33323130 37363534 3b3a3938 3f3e3d3c   0123456789:;<=>?",
        "              20:  43424140                              @ABC",
    ]
    assert list(format_words(0x10, b"\xff\xff\x01\x00", WordStyle(2, "d"))) == ["              10:      -1      1"]
    assert list(format_words(0x10, b"\xff\xff\x01\x00", WordStyle(2, "u"))) == ["              10:  65535     1"]


@given(st.binary(max_size=200), st.sampled_from([1, 2, 4, 8]))
@settings(derandomize=True, deadline=None)
def test_bytes_come_back_from_their_lines(data: bytes, unit: int) -> None:
    data = data[: len(data) // unit * unit]
    lines = list(format_words(0, data, WordStyle(unit, letters=False)))
    words = [word for line in lines for word in line.partition(": ")[2].split()]
    assert b"".join(int(word, 16).to_bytes(unit, "little") for word in words) == data


@pytest.mark.parametrize("count", [0, -1, 1 << 60])
def test_count_that_cannot_be_shown_is_refused(count: int) -> None:
    with pytest.raises(UsageError, match="count"):
        next(read_word_lines(make_kernel([]), DATA, count, WordStyle()))


def test_what_is_not_mapped_is_absent() -> None:
    with pytest.raises(TranslationError):
        next(read_word_lines(make_kernel([]), 0, 1, WordStyle()))
    with pytest.raises(TranslationError):
        next(read_letter_lines(make_kernel([]), 0, None))


def test_text_ends_at_the_first_byte_that_is_none() -> None:
    assert list(format_letters(0x10, b"one\t1\ntwo\0three")) == [
        "              10:  one1",
        "              16:  two",
    ]
    assert list(format_letters(0, b"\0")) == []
    assert [len(line) for line in format_letters(0, b"x" * 130)] == [79, 79, 29]


def test_symbols_are_found_by_name_and_by_address() -> None:
    kernel = make_kernel([])
    assert read_symbol_lines(kernel, "inner") == [f"{STEXT + 0x200:x} inner"]
    assert read_symbol_lines(kernel, f"{STEXT + 0x2FF:x}") == [f"{STEXT + 0x200:x} inner"]
    assert read_symbol_lines(kernel, "inner", before=True, after=True) == [
        f"{STEXT + 0x100:x} outer",
        f"{STEXT + 0x200:x} inner",
        f"{STEXT + 0x1000:x} _etext",
    ]
    assert read_symbol_lines(kernel, "inne") == [
        "symbol not found: inne",
        "possible alternatives:",
        f"  {STEXT + 0x200:x} inner",
    ]
    assert read_symbol_lines(kernel, "ffff888000000000")[-1] == "  (none found)"
    assert len(list(read_all_lines(kernel))) == len(SYMBOLS)


def test_first_and_last_symbol_have_no_neighbour_beyond() -> None:
    kernel = make_kernel([])
    assert len(read_symbol_lines(kernel, "current_task", before=True)) == 1
    assert len(read_symbol_lines(kernel, "_end", after=True)) == 1
