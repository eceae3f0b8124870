"""
Error codes of exceptions, bit by bit, for each machine.

References
----------
x86: Intel SDM volume 3, 4.7 and 6.13, arch/x86/include/asm/trap_pf.h; arm64: Arm ARM D24.2.40 ``ESR_EL1``,
arch/arm64/include/asm/esr.h, arch/arm64/mm/fault.c ``fault_info``; arm: arch/arm/mm/fault.h, fsr-3level.c;
powerpc: Power ISA book III, arch/powerpc/include/asm/reg.h ``DSISR``; riscv: privileged specification, ``scause``;
s390: Principles of Operation, chapter 6, arch/s390/kernel/pgm_check.S.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

__all__ = ["ErrorCode", "find_error_codes"]


class ErrorCode(NamedTuple):
    """A code as printed, and its meaning."""

    name: str
    value: int
    meaning: str


_OOPS = re.compile(r"Oops: (?:Oops: )?([0-9a-f]{4,16})(?: \[#\d{1,6}\]| ilc:)")
_PF = re.compile(r"#PF: error_code\(0x([0-9a-f]{1,16})\)")
_DIE = re.compile(
    r"(general protection fault|stack segment|segment not present|invalid TSS|alignment check|control protection)"
    r"[^\[]{0,80}?: ([0-9a-f]{4}) \[#\d{1,6}\]"
)
_ESR = re.compile(r"(?:ESR = |ESR: |Internal error: .{0,60}: |FSC = )(?:0x)?([0-9a-f]{8,16})\b")
_FSR = re.compile(r"Internal error: .{0,60}?: ([0-9a-f]{1,3}) \[#|Unhandled fault: .{0,60}\((0x[0-9a-f]{1,3})\)")
_DSISR = re.compile(r"DSISR: ([0-9a-f]{8,16})\b")
_CAUSE = re.compile(r"\bcause: ([0-9a-f]{8,16})\b")
_S390 = re.compile(r"(?:Oops: |program check.{0,30}: )([0-9a-f]{4}) ilc:")
_EXIT = re.compile(r"exitcode=0x([0-9a-f]{8})")

_PF_BITS: tuple[tuple[int, str, str], ...] = (
    (0x01, "protection violation", "page not present"),
    (0x02, "write", "read"),
    (0x04, "in user mode", "in kernel mode"),
    (0x08, "reserved bit set in a page table", ""),
    (0x10, "instruction fetch", ""),
    (0x20, "protection key", ""),
    (0x40, "shadow stack", ""),
    (0x8000, "SGX", ""),
    (0x80000000, "RMP violation (SEV-SNP)", ""),
)
_EXCEPTION_CLASSES = {
    0x00: "unknown reason",
    0x01: "trapped WFI or WFE",
    0x07: "SVE, SIMD or floating point",
    0x0D: "branch target (BTI)",
    0x0E: "illegal execution state",
    0x15: "SVC",
    0x18: "trapped system register",
    0x1C: "pointer authentication (FPAC)",
    0x20: "instruction abort from EL0",
    0x21: "instruction abort in the kernel",
    0x22: "PC alignment",
    0x24: "data abort from EL0",
    0x25: "data abort in the kernel",
    0x26: "SP alignment",
    0x27: "memory operation (MOPS)",
    0x2C: "floating point",
    0x2D: "guarded control stack",
    0x2F: "SError",
    0x30: "breakpoint from EL0",
    0x31: "breakpoint",
    0x32: "single step from EL0",
    0x33: "single step",
    0x34: "watchpoint from EL0",
    0x35: "watchpoint",
    0x3C: "BRK",
}
_FAULTS = {
    0b000000: "address size fault",
    0b000100: "translation fault",
    0b001000: "access flag fault",
    0b001100: "permission fault",
}
_FAULT_CODES = {
    0b010000: "synchronous external abort",
    0b010001: "synchronous tag check fault",
    0b011000: "synchronous parity or ECC error",
    0b100001: "alignment fault",
    0b110000: "TLB conflict abort",
    0b110001: "unsupported atomic hardware update",
    0b110100: "implementation defined (lockdown)",
    0b110101: "unsupported exclusive or atomic access",
}
_ARM_FAULTS = {
    0x01: "alignment",
    0x04: "instruction cache maintenance",
    0x05: "section translation",
    0x07: "page translation",
    0x03: "section access flag",
    0x06: "page access flag",
    0x09: "section domain",
    0x0B: "page domain",
    0x0D: "section permission",
    0x0F: "page permission",
    0x08: "external abort",
    0x16: "asynchronous external abort",
    0x00: "none",
    0x02: "debug event",
    0x0C: "external abort on a table walk",
    0x0E: "external abort on a table walk",
    0x10: "TLB conflict",
    0x14: "lockdown",
    0x1A: "coprocessor",
    0x18: "asynchronous parity error",
}
_DSISR_WRITE = 0x02000000
_DSISR_BITS: tuple[tuple[int, str], ...] = (
    (0x80000000, "direct-store"),
    (0x40000000, "no page table entry"),
    (0x10000000, "no execution allowed or guarded"),
    (0x08000000, "protection violation"),
    (0x04000000, "caching-inhibited load or store conditional"),
    (_DSISR_WRITE, "write"),
    (0x00400000, "address watch matched"),
    (0x00200000, "virtual page class key protection"),
    (0x00080000, "unsupported radix tree configuration"),
    (0x00040000, "reference or change bit could not be set"),
    (0x00008000, "uncorrectable memory error"),
    (0x00004000, "uncorrectable memory error in a table walk"),
)
_SCAUSES = {
    0: "instruction address misaligned",
    1: "instruction access fault",
    2: "illegal instruction",
    3: "breakpoint",
    4: "load address misaligned",
    5: "load access fault",
    6: "store address misaligned",
    7: "store access fault",
    8: "system call from user mode",
    9: "system call from supervisor mode",
    12: "instruction page fault",
    13: "load page fault",
    15: "store page fault",
    18: "software check",
    19: "hardware error",
}
_S390_CODES = {
    0x01: "operation",
    0x02: "privileged operation",
    0x03: "execute",
    0x04: "protection",
    0x05: "addressing",
    0x06: "specification",
    0x07: "data",
    0x08: "fixed-point overflow",
    0x09: "fixed-point divide",
    0x0A: "decimal overflow",
    0x10: "segment translation",
    0x11: "page translation",
    0x12: "translation specification",
    0x13: "special operation",
    0x18: "transaction constraint",
    0x1B: "vector processing",
    0x1C: "space switch event",
    0x1F: "HFP square root",
    0x38: "ASCE type",
    0x39: "region first translation",
    0x3A: "region second translation",
    0x3B: "region third translation",
    0x3D: "secure storage access",
    0x3E: "non-secure storage access",
    0x3F: "secure storage violation",
    0x40: "monitor event",
}
_BRK = {
    0x800: "BUG or WARN",
    0x801: "kgdb, compiled in",
    0x400: "kgdb",
    0x100: "uprobes or kprobes",
    0x001: "fault injected",
}


def find_error_codes(lines: Sequence[str], machine: str) -> list[ErrorCode]:
    """
    Find the error codes in the lines of a report, and spell them out.

    >>> find_error_codes(["Oops: 0002 [#1] PREEMPT SMP"], "x86_64")[0].meaning
    'write in kernel mode, page not present'
    """
    found = dict.fromkeys(code for line in lines if ":" in line or "=" in line for code in _of_line(line, machine))
    return list(found)


def _of_line(line: str, machine: str) -> Iterator[ErrorCode]:
    if (match := _EXIT.search(line)) is not None:
        yield ErrorCode("exit code of init", int(match[1], 16), _exit_code(int(match[1], 16)))
    if machine in {"x86_64", "i386"}:
        yield from _of_x86(line)
    elif (found := _PRINTED.get(_FAMILIES.get(machine, machine))) is not None:
        name, pattern, spell = found
        if (match := pattern.search(line)) is not None:
            value = int(match[1] or match[2], 16)
            yield ErrorCode(name, value, spell(value))


def _of_x86(line: str) -> Iterator[ErrorCode]:
    if (match := _DIE.search(line)) is not None:
        value = int(match[2], 16)
        yield ErrorCode("error code", value, _spell_selector(value) if value else "no segment is concerned")
    elif match := _PF.search(line) or _OOPS.search(line):
        value = int(match[1], 16)
        yield ErrorCode("error code", value, spell_page_fault(value))


def spell_page_fault(value: int) -> str:
    """
    Spell the error code of a page fault on x86.

    >>> spell_page_fault(0x11)
    'instruction fetch in kernel mode, protection violation'
    """
    what = "instruction fetch" if value & 0x10 else "write" if value & 2 else "read"
    mode = "in user mode" if value & 4 else "in kernel mode"
    page = "protection violation" if value & 1 else "page not present"
    others = [name for bit, name, _ in _PF_BITS if bit & value and bit not in {1, 2, 4, 0x10}]
    return ", ".join([f"{what} {mode}", page, *others])


def _spell_selector(value: int) -> str:
    table = "IDT" if value & 2 else "LDT" if value & 4 else "GDT"
    source = ", by an event from outside" if value & 1 else ""
    return f"entry {value >> 3} of the {table}{source}"


def spell_esr(value: int) -> str:
    """
    Spell the exception syndrome of arm64.

    >>> spell_esr(0x96000004)
    'data abort in the kernel: read, translation fault, level 0'
    """
    exception_class = value >> 26 & 0x3F
    syndrome = value & 0x1FFFFFF
    name = _EXCEPTION_CLASSES.get(exception_class, f"class {exception_class:#x}")
    if exception_class in {0x20, 0x21, 0x24, 0x25}:
        access = "" if exception_class in {0x20, 0x21} else "write, " if syndrome & 0x40 else "read, "
        return f"{name}: {access}{_spell_fault_status(syndrome & 0x3F)}"
    if exception_class == 0x3C:
        comment = syndrome & 0xFFFF
        what = (
            "KASAN"
            if comment & 0xFF00 == 0x900
            else "UBSAN"
            if comment & 0xFF00 == 0x5500
            else "CFI"
            if comment & 0xF000 == 0x8000
            else ""
        )
        return f"{name} #{comment:#x}: {what or _BRK.get(comment, 'of the kernel')}"
    return name


def _spell_fault_status(status: int) -> str:
    if status in _FAULT_CODES:
        return _FAULT_CODES[status]
    if status & 0b111100 in _FAULTS:
        return f"{_FAULTS[status & 0b111100]}, level {status & 3}"
    if status & 0b111100 == 0b010100:
        return f"synchronous external abort on a table walk, level {status & 3}"
    if status & 0b111100 == 0b011100:
        return f"synchronous parity or ECC error on a table walk, level {status & 3}"
    return f"fault status {status:#x}"


def _spell_fsr(value: int) -> str:
    access = "write" if value & 0x800 else "read or fetch"
    if value & 0x200:
        return f"{access}: {_spell_fault_status(value & 0x3F)} (LPAE)"
    status = value & 0xF | (value & 0x400) >> 6
    return f"{access}: {_ARM_FAULTS.get(status, f'fault status {status:#x}')} fault"


def _exit_code(value: int) -> str:
    signal = value & 0x7F
    return f"killed by signal {signal}" if signal else f"ended by itself with status {value >> 8 & 0xFF}"


def _spell_dsisr(value: int) -> str:
    names = [name for bit, name in _DSISR_BITS if value & bit]
    return ", ".join(names if value & _DSISR_WRITE else ["read", *names])


def _spell_scause(value: int) -> str:
    return _SCAUSES.get(value, "not a cause that is known")


def _spell_program_interruption(value: int) -> str:
    return _S390_CODES.get(value & 0x7F, "not a code that is known")


_FAMILIES = {"armt": "arm", "riscv32": "riscv64", "ppc": "ppc64"}
_PRINTED: dict[str, tuple[str, re.Pattern[str], Callable[[int], str]]] = {
    "aarch64": ("ESR", _ESR, spell_esr),
    "arm": ("FSR", _FSR, _spell_fsr),
    "ppc64": ("DSISR", _DSISR, _spell_dsisr),
    "riscv64": ("scause", _CAUSE, _spell_scause),
    "s390x": ("program interruption", _S390, _spell_program_interruption),
}
"""By machine: the code's name, how it is printed, and what spells it."""
