"""Machine code as GNU's tools spell it, and what the instructions are."""

from __future__ import annotations

import pytest

from postpanic.analysis.code.instructions import Disassembler, Flow, Syntax
from postpanic.analysis.code.listing import spell_instruction
from postpanic.errors import UnsupportedError

START = 0xFFFFFFFF81000000


@pytest.mark.parametrize(
    ("code", "mnemonic", "operands"),
    [
        ("55", "push", "%rbp"),
        ("4889e5", "mov", "%rsp,%rbp"),
        ("0f1f440000", "nopl", "0x0(%rax,%rax,1)"),
        ("662e0f1f840000000000", "cs nopw", "0x0(%rax,%rax,1)"),
        ("6690", "xchg", "%ax,%ax"),
        ("90", "nop", ""),
        ("f30f1efa", "endbr64", ""),
        ("65488b1c2580fb0100", "mov", "%gs:0x1fb80,%rbx"),
        ("a830", "test", "$0x30,%al"),
        ("f6401910", "testb", "$0x10,0x19(%rax)"),
        ("488b4500", "mov", "0x0(%rbp),%rax"),
        ("48c74424 78ffffffff", "movq", "$0xffffffffffffffff,0x78(%rsp)"),
        ("4883c480", "add", "$0xffffffffffffff80,%rsp"),
        ("837b18ff", "cmpl", "$0xffffffff,0x18(%rbx)"),
        ("6aff", "push", "$0xffffffffffffffff"),
        ("0fb64708", "movzbl", "0x8(%rdi),%eax"),
        ("480fb707", "movzwq", "(%rdi),%rax"),
        ("4863ff", "movslq", "%edi,%rdi"),
        ("4898", "cltq", ""),
        ("4899", "cqto", ""),
        ("d1e0", "shl", "%eax"),
        ("c1e003", "shl", "$0x3,%eax"),
        ("d320", "shll", "%cl,(%rax)"),
        ("f3c3", "repz ret", ""),
        ("f348ab", "rep stos", "%rax,%es:(%rdi)"),
        ("f348a5", "rep movsq", "%ds:(%rsi),%es:(%rdi)"),
        ("f00fb117", "lock cmpxchg", "%edx,(%rdi)"),
        ("ffd0", "call", "*%rax"),
        ("ff6008", "jmp", "*0x8(%rax)"),
        ("8d44bf05", "lea", "0x5(%rdi,%rdi,4),%eax"),
        ("48b8efcdab8967452301", "movabs", "$0x123456789abcdef,%rax"),
        ("0f05", "syscall", ""),
        ("0f0b", "ud2", ""),
        ("cc", "int3", ""),
        ("0f01cb", "stac", ""),
    ],
)
def test_operands_are_in_att_syntax(code: str, mnemonic: str, operands: str) -> None:
    (one,) = Disassembler("x86_64").decode(bytes.fromhex(code), START)
    assert (one.mnemonic, one.operands) == (mnemonic, operands)


def test_intel_syntax() -> None:
    (one,) = Disassembler("x86_64", Syntax.INTEL).decode(bytes.fromhex("488b4508"), START)
    assert (one.mnemonic, one.operands) == ("mov", "rax, qword ptr [rbp + 8]")


@pytest.mark.parametrize(
    ("code", "flow", "target"),
    [
        ("e810000000", Flow.CALL, START + 0x15),
        ("ebfe", Flow.JUMP, START),
        ("7402", Flow.BRANCH, START + 4),
        ("ffe0", Flow.JUMP, None),
        ("ffd0", Flow.CALL, None),
        ("c3", Flow.RETURN, None),
        ("48cf", Flow.RETURN, None),
        ("0f0b", Flow.TRAP, None),
        ("55", Flow.NEXT, None),
    ],
)
def test_where_control_goes(code: str, flow: Flow, target: int | None) -> None:
    (one,) = Disassembler("x86_64").decode(bytes.fromhex(code), START)
    assert (one.flow, one.target) == (flow, target)


def test_branches_and_data_have_symbols() -> None:
    names = {START + 0x15: "target+5", START + 0x106: "value"}
    call, load = Disassembler("x86_64").decode(bytes.fromhex("e810000000" + "8b05fb000000"), START)
    assert load.reference == START + 0x106

    def name(vaddr: int) -> str:
        return names.get(vaddr, "")

    assert spell_instruction(call, name)[0] == "call   0xffffffff81000015 <target+5>"
    assert spell_instruction(load, name)[0] == "mov    0xfb(%rip),%eax        # 0xffffffff81000106 <value>"


def test_bytes_that_are_no_instruction_are_one_each() -> None:
    found = list(Disassembler("x86_64").decode(bytes.fromhex("06" + "55" + "90" * 20), START))
    assert [(one.vaddr - START, one.mnemonic) for one in found[:3]] == [(0, "(bad)"), (1, "push"), (2, "nop")]
    assert sum(len(one.data) for one in found) == 22


def test_beginning_of_an_instruction_is_left_out() -> None:
    assert [one.mnemonic for one in Disassembler("x86_64").decode(bytes.fromhex("5548b8"), START)] == ["push"]


@pytest.mark.parametrize(
    ("code", "mnemonic", "operands", "flow", "target"),
    [
        ("fd7bbfa9", "stp", "x29, x30, [sp, #-0x10]!", Flow.NEXT, None),
        ("04000094", "bl", f"{START + 16:#x}", Flow.CALL, START + 16),
        ("00000014", "b", f"{START:#x}", Flow.JUMP, START),
        ("40000054", "b.eq", f"{START + 8:#x}", Flow.BRANCH, START + 8),
        ("400000b4", "cbz", f"x0, {START + 8:#x}", Flow.BRANCH, START + 8),
        ("c0035fd6", "ret", "", Flow.RETURN, None),
        ("00003fd6", "blr", "x0", Flow.CALL, None),
        ("000020d4", "brk", "#0", Flow.TRAP, None),
    ],
)
def test_arm64(code: str, mnemonic: str, operands: str, flow: Flow, target: int | None) -> None:
    (one,) = Disassembler("aarch64").decode(bytes.fromhex(code), START)
    assert (one.mnemonic, one.operands, one.flow, one.target) == (mnemonic, operands, flow, target)


@pytest.mark.parametrize(
    ("code", "mnemonic", "operands"),
    [
        ("180b40b8", "ldtr", "w24, [x24]"),
        ("42084038", "ldtrb", "w2, [x2]"),
        ("de2b40f8", "ldtr", "x30, [x30, #2]"),
        ("63084478", "ldtrh", "w3, [x3, #0x40]"),
    ],
)
def test_arm64_unprivileged_access_through_the_register_that_it_loads(code: str, mnemonic: str, operands: str) -> None:
    (one,) = Disassembler("aarch64").decode(bytes.fromhex(code), START)
    assert (one.mnemonic, one.operands) == (mnemonic, operands)
    _, written = one.decoded.regs_access()
    name = operands.split(",", maxsplit=1)[0].replace("x30", "lr")
    assert [one.decoded.reg_name(register) for register in written] == [name]
    assert one.decoded.reg_name(one.decoded.operands[0].reg) == name


def test_arm64_data_reference() -> None:
    (one,) = Disassembler("aarch64").decode(bytes.fromhex("00000090"), START + 0x10)
    assert (one.mnemonic, one.reference) == ("adrp", START)


def test_other_machines_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="vax"):
        Disassembler("vax")
