"""Error codes, taint letters and addresses, spelled out."""

from __future__ import annotations

import pytest

from postpanic.analysis.decode.addresses import describe_address, describe_value, is_noncanonical
from postpanic.analysis.decode.errorcodes import find_error_codes
from postpanic.analysis.decode.taint import spell_taint


@pytest.mark.parametrize(
    ("machine", "line", "name", "value", "meaning"),
    [
        ("x86_64", "Oops: 0002 [#1] PREEMPT SMP", "error code", 2, "write in kernel mode, page not present"),
        ("x86_64", "Oops: Oops: 0003 [#1] SMP", "error code", 3, "write in kernel mode, protection violation"),
        (
            "x86_64",
            "#PF: error_code(0x0011) - x",
            "error code",
            0x11,
            "instruction fetch in kernel mode, protection violation",
        ),
        (
            "x86_64",
            "#PF: error_code(0x80000003) - x",
            "error code",
            0x80000003,
            "write in kernel mode, protection violation, RMP violation (SEV-SNP)",
        ),
        ("i386", "Oops: 0000 [#1]", "error code", 0, "read in kernel mode, page not present"),
        ("x86_64", "general protection fault: 0000 [#1] SMP", "error code", 0, "no segment is concerned"),
        ("x86_64", "general protection fault: 0018 [#1] SMP", "error code", 0x18, "entry 3 of the GDT"),
        (
            "x86_64",
            "Oops: general protection fault, probably for non-canonical address 0xdead: 0000 [#1]",
            "error code",
            0,
            "no segment is concerned",
        ),
        (
            "aarch64",
            "  ESR = 0x0000000096000004",
            "ESR",
            0x96000004,
            "data abort in the kernel: read, translation fault, level 0",
        ),
        (
            "aarch64",
            "Internal error: Oops: 0000000096000045 [#1] SMP",
            "ESR",
            0x96000045,
            "data abort in the kernel: write, translation fault, level 1",
        ),
        (
            "aarch64",
            "  ESR = 0x8600000f",
            "ESR",
            0x8600000F,
            "instruction abort in the kernel: permission fault, level 3",
        ),
        ("aarch64", "Internal error: Oops - BUG: 00000000f2000800 [#1]", "ESR", 0xF2000800, "BRK #0x800: BUG or WARN"),
        (
            "aarch64",
            "  ESR = 0x96000210",
            "ESR",
            0x96000210,
            "data abort in the kernel: read, synchronous external abort",
        ),
        ("arm", "Internal error: Oops: 805 [#1] ARM", "FSR", 0x805, "write: section translation fault"),
        ("arm", "Internal error: Oops: 17 [#1] PREEMPT SMP ARM", "FSR", 0x17, "read or fetch: page translation fault"),
        ("arm", "Internal error: Oops: a07 [#1] SMP ARM", "FSR", 0xA07, "write: translation fault, level 3 (LPAE)"),
        (
            "ppc64",
            "CFAR: c0000000000080ac DAR: 0000000000000000 DSISR: 42000000 IRQMASK: 0",
            "DSISR",
            0x42000000,
            "no page table entry, write",
        ),
        ("ppc64", "DAR: 0000000000000000 DSISR: 40000000 IRQMASK: 0", "DSISR", 0x40000000, "read, no page table entry"),
        (
            "riscv64",
            "status: 0000000200000120 badaddr: 0000000000000000 cause: 000000000000000d",
            "scause",
            13,
            "load page fault",
        ),
        ("s390x", "Oops: 0004 ilc:2 [#1] SMP", "program interruption", 4, "protection"),
        (
            "x86_64",
            "Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b",
            "exit code of init",
            11,
            "killed by signal 11",
        ),
    ],
)
def test_error_codes(machine: str, line: str, name: str, value: int, meaning: str) -> None:
    assert find_error_codes([line, line], machine) == [(name, value, meaning)]


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "arm", "ppc64", "riscv64", "s390x", "mips", ""])
def test_lines_without_a_code(machine: str) -> None:
    assert find_error_codes(["Call Trace:", "Oops: ", "ESR = 0x", "cause: ", "Modules linked in: x"], machine) == []


def test_every_letter_of_the_kernel_is_known() -> None:
    # kernel/panic.c taint_flags, v6.17: one letter for each flag, and G where it is not P.
    letters = "GPFSRMBUDAWCIOELKXTNJ"
    spelt = spell_taint(" ".join(letters))
    assert [letter for letter, _, _ in spelt] == list(letters)
    assert all("not a letter" not in meaning for _, _, meaning in spelt)
    assert "not a letter" in spell_taint("Z")[0][2]


@pytest.mark.parametrize(
    ("vaddr", "machine", "meaning"),
    [
        (0, "x86_64", "NULL"),
        (0x28, "aarch64", "NULL + 0x28"),
        (
            0xDEAD000000000108,
            "x86_64",
            "0xdead000000000100 + 0x8: LIST_POISON1: list_head.next after list_del(); non-canonical",
        ),
        (0xDEAD000000000122, "x86_64", "LIST_POISON2: list_head.prev after list_del(); non-canonical"),
        (0x100, "arm", "LIST_POISON1: list_head.next after list_del(); user space"),
        (
            0x6B6B6B6B6B6B6B6B,
            "x86_64",
            "0x6b over and over: POISON_FREE: a slab object after it was freed; non-canonical",
        ),
        (0x6B6B6B6B, "i386", "0x6b over and over: POISON_FREE: a slab object after it was freed; user space"),
        (0xFFFFFFFFFFFFFFEA, "x86_64", "error number -22 (EINVAL: Invalid argument)"),
        (0xFFFFFFF4, "i386", "error number -12 (ENOMEM: Cannot allocate memory); kernel"),
        (0xDFFFFC0000000005, "x86_64", "KASAN's shadow of 0x28-0x2f (NULL + 0x28); non-canonical"),
        (0x6F6C6C6548, "x86_64", "text: 'Hello'; user space"),
        (0xFFFF888012345678, "x86_64", "memory (direct map)"),
        (0xFFFFC90000123000, "x86_64", "vmalloc: modules' data, stacks, mapped devices"),
        (0xFFFFFFFF81000000, "x86_64", "kernel text or data"),
        (0xFFFFFFFFC0123000, "x86_64", "modules"),
        (0x00007F0000001000, "x86_64", "user space"),
        (0xFFFF000012345678, "aarch64", "memory (linear map, 48 bits)"),
        (0xC008000000123000, "ppc64", "vmalloc and modules"),
    ],
)
def test_addresses(vaddr: int, machine: str, meaning: str) -> None:
    assert describe_address(vaddr, machine) == meaning


def test_values() -> None:
    assert describe_value(0xDEAD4EAD, "x86_64") == "SPINLOCK_MAGIC"
    assert describe_value(0x4141414141414141, "x86_64") == "text: 'AAAAAAAA'"
    assert not any(describe_value(value, "x86_64") for value in (0, 1, 0x1000, 0xFFFF888000000000, 0x41DF85E5760829FE))


@pytest.mark.parametrize("machine", ["x86_64", "i386", "aarch64", "arm", "ppc64", "riscv64", "s390x", "mips", ""])
def test_every_value_can_be_described(machine: str) -> None:
    for bits in range(65):
        for value in {
            max((1 << bits) - 1, 0),
            (1 << bits) & ((1 << 64) - 1),
            (1 << 64) - (1 << bits) & ((1 << 64) - 1),
        }:
            assert isinstance(describe_address(value, machine), str)
            assert isinstance(describe_value(value, machine), str)


def test_noncanonical() -> None:
    assert is_noncanonical(0x1BD5A9D5A0000003, "x86_64")
    assert not is_noncanonical(0xFF11000000000000, "x86_64"), "five levels of page tables"
    assert not is_noncanonical(0xF0FF888000000000, "aarch64"), "the top byte may be a tag"
