"""Code bytes of every machine become instructions, the one that trapped is marked, and its operand is judged."""

from __future__ import annotations

import pytest

from postpanic.analysis.code.instructions import Disassembler
from postpanic.analysis.decode.align import decode_before
from postpanic.analysis.decode.codebytes import CodeBytes, decode_code, decode_krnl_code, machine_of
from postpanic.analysis.decode.listing import Listing, list_code, render_listing
from postpanic.analysis.decode.operands import read_more_registers
from postpanic.analysis.decode.spots import Spot


def spot(function: str, offset: int, size: int = 0x100) -> Spot:
    return Spot(function, offset, size, "", "", None, is_exact=True, end=0)


def listing(
    machine: str, text: str, registers: dict[str, int] | None = None, fault_vaddr: int | None = None
) -> Listing:
    code = decode_code(text, machine)
    assert code is not None
    return list_code(code, spot("f", 0x40), registers=registers, fault_vaddr=fault_vaddr)


@pytest.mark.parametrize(
    ("machine", "text", "instruction"),
    [
        ("x86_64", "55 48 89 e5 <48> 8b 47 28 5d c3 90 90 90 90 90 90 90 90 90 90 90", "mov 0x28(%rdi),%rax"),
        ("i386", "55 89 e5 <8b> 40 08 5d c3 90 90 90 90 90 90 90 90 90 90 90 90", "mov 0x8(%eax),%eax"),
        ("aarch64", "a9bf7bfd 910003fd d503201f 52800020 (f9401400)", "ldr x0, [x0, #0x28]"),
        ("arm", "e92d4010 e1a04000 e3a00001 e5943004 (e5933008)", "ldr r3, [r3, #8]"),
        ("armt", "b510 4604 2001 6863 (689b)", "ldr r3, [r3, #8]"),
        ("riscv64", "1141 e406 e022 0800 (6508)", "c.ld a0, 8(a0)"),
        ("riscv64", "1141 e406 e022 0800 (3503 0085)", "ld a0, 8(a0)"),
        ("ppc64", "7c0802a6 f8010010 f821ffe1 60000000 <e9230028> 38210020 4e800020", "ld r9, 0x28(r3)"),
        ("mips", "27bdffe0 afbf001c 00802021 00000000 <8c820008> 8fbf001c", "lw $v0, 8($a0)"),
        ("mips64", "67bdffe0 ffbf0018 0080202d 00000000 <dc820008> dfbf0018", "ld $v0, 8($a0)"),
    ],
)
def test_each_machine(machine: str, text: str, instruction: str) -> None:
    traps = [one for one in listing(machine, text).instructions if one.is_trap]
    assert [" ".join(one.text.split()) for one in traps] == [instruction]
    assert traps[0].place == "f+0x40"


def test_krnl_code_of_s390() -> None:
    lines = (
        "Krnl GPRS: 0000000000000000 0000000000000001 0000000000000002 0000000000000003",
        "           0000000000000004 0000000000000005 0000000000000006 0000000000000007",
        "           0000000000000008 0000000000000009 000000000000000a 000000000000000b",
        "           000000000000000c 000000000000000d 000000000000000e 000000000000000f",
        "Krnl Code: 0000000000b2f296: b9040039\t\tlgr\t%r3,%r9",
        "           0000000000b2f29a: a7890000\t\tlghi\t%r8,0",
        "          #0000000000b2f29e: e31020280004\tlg\t%r1,40(%r2)",
        "          >0000000000b2f2a4: 07fe\t\tbcr\t15,%r14",
        "Call Trace:",
    )
    code = decode_krnl_code(lines)
    assert code is not None
    registers = read_more_registers(lines, "s390x")
    assert registers["r15"] == 15
    found = list_code(code, spot("f", 0x40), registers=registers, fault_vaddr=0x2A)
    assert [one.text.split()[0] for one in found.instructions if one.is_trap] == ["lg"]
    assert found.judgement.startswith("reads 0x28(%r2) = 0x2a")
    assert found.judgement.endswith("the address of the fault")


def test_registers_of_each_machine() -> None:
    arm64 = ("x29: ffff80000fee38a0", "[1.0] x28: 00000000000000aa x27: 00000000000000bb", "x9 : 0000000000000040")
    assert read_more_registers(arm64, "aarch64") == {"x29": 0xFFFF80000FEE38A0, "x28": 0xAA, "x27": 0xBB, "x9": 0x40}
    mips = ("$ 0   : 00000000 00000001 00000002 00000003", "$ 4   : 00000004 00000005", "Hi    : 00000000")
    assert read_more_registers(mips, "mips") == {"zero": 0, "at": 1, "v0": 2, "v1": 3, "a0": 4, "a1": 5}


def test_a_machine_without_disassembler_shows_its_numbers() -> None:
    found = listing("loongarch64", "0040a58c 02bffc04 <28c00000> 4c000020")
    assert found.problem == "code of loongarch64 cannot be disassembled"
    assert [one.data.hex() for one in found.instructions if one.is_trap] == ["0000c028"]


@pytest.mark.parametrize(
    ("machine", "text", "registers", "fault", "judgement"),
    [
        (
            "x86_64",
            "<48> 8b 47 28 90 90 90 90 90 90 90 90 90 90 90 90",
            {"RDI": 0},
            0x28,
            "reads 0x28(%rdi) = 0x28 (NULL + 0x28), rdi = 0x0: the address of the fault",
        ),
        (
            "x86_64",
            "<48> 89 04 d1 90 90 90 90 90 90 90 90 90 90 90 90",
            {"RCX": 0xDEAD000000000100, "RDX": 1},
            None,
            "writes to (%rcx,%rdx,8) = 0xdead000000000108 (0xdead000000000100 + 0x8: LIST_POISON1: ",
        ),
        (
            "x86_64",
            "<65> 48 8b 04 25 28 00 00 00 90 90 90 90 90 90 90",
            {"GS": 0xFFFF888000001000},
            0xFFFF888000001028,
            "reads %gs:0x28 = 0xffff888000001028 (memory (direct map)), gs base = 0xffff888000001000: ",
        ),
        (
            "x86_64",
            # rep movsb: two operands in memory, the one that faulted is told.
            "<f3> a4 90 90 90 90 90 90 90 90 90 90 90 90 90 90",
            {"RSI": 0xFFFF888000001000, "RDI": 0x10},
            0x10,
            "writes to (%rdi) = 0x10 (NULL + 0x10), rdi = 0x10: the address of the fault",
        ),
        (
            "x86_64",
            "<48> 8b 47 28 90 90 90 90 90 90 90 90 90 90 90 90",
            {"RDI": 0x1000},
            0x2000,
            "reads 0x28(%rdi) = 0x1028 (NULL + 0x1028), rdi = 0x1000: not the address of the fault, 0x2000",
        ),
        (
            "x86_64",
            "<44> 8b 41 08 90 90 90 90 90 90 90 90 90 90 90 90",
            {"RCX": 0x6B6B6B6B6B6B6B6B},
            None,
            "reads 0x8(%rcx) = 0x6b6b6b6b6b6b6b73 (0x6b over and over + 0x8: POISON_FREE: ",
        ),
        (
            "i386",
            "<8b> 40 08 90 90 90 90 90 90 90 90 90 90 90 90 90",
            {"EAX": 0},
            8,
            "reads 0x8(%eax) = 0x8 (NULL + 0x8), eax = 0x0: the address of the fault",
        ),
        (
            "aarch64",
            "(f9401400)",
            {"x0": 0},
            0x28,
            "reads [x0, #0x28] = 0x28 (NULL + 0x28), x0 = 0x0: the address of the fault",
        ),
        (
            "aarch64",
            "(f8696ada)",
            {"x22": 0x1000, "x9": 0x10},
            0x1010,
            "reads [x22, x9] = 0x1010 (NULL + 0x1010), x22 = 0x1000, x9 = 0x10: the address of the fault",
        ),
        (
            "aarch64",
            # str x0, [x1], #8: the displacement is added afterwards.
            "(f8008420)",
            {"x0": 1, "x1": 0x20},
            0x20,
            "writes to [x1], #8 = 0x20 (NULL + 0x20), x1 = 0x20: the address of the fault",
        ),
        (
            "aarch64",
            "(b8605841)",
            {"x0": 0xFFFFFFFF00000002, "x2": 0x100000},
            0x100008,
            "reads [x2, w0, uxtw #2] = 0x100008 (user space), x2 = 0x100000, w0 = 0xffffffff00000002: the address of",
        ),
        (
            "arm",
            "(e7923101)",
            {"r1": 4, "r2": 0xC0001000},
            0xC0001010,
            "reads [r2, r1, lsl #2] = 0xc0001010 (kernel), r2 = 0xc0001000, r1 = 0x4: the address of the fault",
        ),
        (
            "riscv64",
            "(6508)",
            {"a0": 0},
            8,
            "reads 8(a0) = 0x8 (NULL + 0x8), a0 = 0x0: the address of the fault",
        ),
        (
            "ppc64",
            "<7d23282a>",
            {"GPR03": 0, "GPR05": 0x30},
            0x30,
            "reads (r3 + r5) = 0x30 (NULL + 0x30), r3 = 0x0, r5 = 0x30: the address of the fault",
        ),
        (
            "aarch64",
            # ldr x26, [x22, x9]: the kernel prints the address without its top byte.
            "(f8696ada)",
            {"x22": 0x6161616161616161, "x9": 0x40},
            0x616161616161A1,
            "reads [x22, x9] = 0x61616161616161a1 (non-canonical), x22 = 0x6161616161616161, x9 = 0x40: the address of",
        ),
        (
            "arm",
            "(a8ac410a)",
            {"ip": 0x1044},
            0x1044,
            "writes to [ip] = 0x1044 (NULL + 0x1044), ip = 0x1044: the address of the fault",
        ),
        (
            "x86_64",
            # mov %gs:0x10(%rip),%eax: where the code lay is not known.
            "<65> 8b 05 10 00 00 00 90 90 90 90 90 90 90 90 90",
            {"GS": 0},
            0x10,
            "",
        ),
        ("x86_64", "<0f> 0b 90 90 90 90 90 90 90 90 90 90 90 90 90 90", {"RAX": 0}, None, "ud2"),
        ("aarch64", "(d4210000)", {"x0": 0}, None, "brk"),
        ("aarch64", "(00000000)", {"x0": 0}, 0xFFFF00000E682500, "what lies at 0xffff00000e682500 could not be"),
    ],
)
def test_the_operand_that_was_bad(
    machine: str, text: str, registers: dict[str, int], fault: int | None, judgement: str
) -> None:
    found = listing(machine, text, registers, fault).judgement
    assert found.startswith(judgement)
    assert bool(found) is bool(judgement)


def test_an_unknown_register_is_no_zero() -> None:
    found = listing("x86_64", "<48> 8b 47 28 90 90 90 90 90 90 90 90 90 90 90 90", {"RSI": 1}, 0x28)
    assert [access.vaddr for access in found.accesses] == [None]
    assert not found.judgement


def test_the_function_begins_within_the_bytes() -> None:
    # The end of another function, its padding, and the beginning of ours: a chance start would swallow it.
    code = decode_code("74 24 08 c3 66 90 53 48 89 fb <48> 8b 07 5b c3 90 90 90 90 90 90 90 90 90 90", "x86_64")
    assert code is not None
    found = list_code(code, spot("f", 4))
    places = [(one.place, one.data.hex()) for one in found.instructions]
    assert ("f+0x0", "53") in places
    assert ("f+0x1", "4889fb") in places
    assert [place for place, _ in places[:1]] == [""], "what is before it has no place in it"


def test_targets_are_named() -> None:
    found = listing("x86_64", "75 f0 <48> 8b 07 74 10 e8 00 00 00 01 90 90 90 90 90 90 90 90 90 90 90")
    texts = [" ".join(one.text.split()) for one in found.instructions]
    assert texts[0] == "jne f+0x30"
    assert "je f+0x55" in texts
    assert any(text.startswith("call f+0x1000") for text in texts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("48 8b <07> 90", CodeBytes("x86_64", b"\x48\x8b\x07\x90", 2)),
        ("48 8b 07 90", CodeBytes("x86_64", b"\x48\x8b\x07\x90", None)),
        ("?? 48 <07> 90 ?? 91", CodeBytes("x86_64", b"\x48\x07\x90", 1)),
        ("Bad RIP value.", None),
        ("Unable to access opcode bytes at 0xffffffffffffffd6.", None),
        ("", None),
    ],
)
def test_numbers(text: str, expected: CodeBytes | None) -> None:
    assert decode_code(text, "x86_64") == expected


@pytest.mark.parametrize(
    ("architecture", "code", "release", "machine"),
    [
        ("x86", "", "", "i386"),
        ("arm", "e5933008", "", "arm"),
        ("arm", "4604 (689b)", "", "armt"),
        ("", "48 <8b>", "", "x86_64"),
        ("", "48 <8b>", "6.1.0-44-686", "i386"),
        ("", "b9400000", "6.1.0-arm64", "aarch64"),
        ("", "b9400000", "6.1.0-44-powerpc64le", "ppc64"),
        ("", "b9400000", "", "aarch64"),
        ("", "", "", ""),
    ],
)
def test_machine_of(architecture: str, code: str, release: str, machine: str) -> None:
    assert machine_of(architecture, code, release) == machine


@pytest.mark.parametrize("machine", ["x86_64", "i386"])
def test_bytes_that_no_start_fits(machine: str) -> None:
    # Every instruction before would end behind the known one.
    data = bytes.fromhex("48b8") + bytes(4)
    found = decode_before(Disassembler(machine), data + b"\x90" * 20, len(data), 0x1000)
    assert all(instruction.end <= 0x1000 + len(data) for instruction in found)


def test_lines_of_a_listing() -> None:
    text = "55 <48> 8b 07 90 90 90 90 90 90 90 90 90 90 90 90 90 90 90"
    lines = render_listing(listing("x86_64", text))
    assert lines[0] == "   f+0x3f  55        push    %rbp"
    assert lines[1] == "=> f+0x40  48 8b 07  mov     (%rdi),%rax"
