"""
What an instruction does to memory, and with which registers: the address it computed, from the registers of the report.

References
----------
Intel SDM volume 1, 3.7.5 (base + index * scale + displacement); Arm ARM C1.3.3 (addressing modes); Power ISA 1.10.3;
RISC-V unprivileged specification 2.6.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from postpanic.analysis.code.instructions import Instruction

__all__ = ["MemoryAccess", "find_accesses", "read_more_registers"]

_WORD = (1 << 64) - 1
_OP_REG, _OP_MEM = 1, 3
_CS_AC_READ, _CS_AC_WRITE = 1, 2
_X86 = frozenset({"x86_64", "i386"})
_PARTS_OF_X86 = re.compile(r"r(\d{1,2})[dwb]?$")
_OLD_NAMES = {"ax", "bx", "cx", "dx", "si", "di", "bp", "sp", "ip"}
_ARM_NAMES = {"sb": "r9", "sl": "r10", "r11": "fp", "r12": "ip", "r13": "sp", "r14": "lr"}
_ARM64_NAMES = {"fp": "x29", "x30": "lr", "wsp": "sp"}
_GPRS_S390 = re.compile(r"(?:Krnl GPRS:)?[ \t]{0,24}((?:[0-9a-f]{16} {1,4}){3}[0-9a-f]{16})[ \t]{0,16}$")
_GPRS_MIPS = re.compile(r"\$ ?(\d{1,2}) {0,4}: ((?:(?:[0-9a-f]{16}|[0-9a-f]{8}) {0,3}){1,4})")
_GPRS_ARM = re.compile(r"\b(x\d{1,2}|r\d{1,2}|sp|lr|fp|ip) {0,2}: ([0-9a-f]{16}|[0-9a-f]{8})\b")
_MIPS_NAMES = (
    *("zero", "at", "v0", "v1", "a0", "a1", "a2", "a3", "t0", "t1", "t2", "t3", "t4", "t5", "t6", "t7"),
    *("s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "t8", "t9", "k0", "k1", "gp", "sp", "fp", "ra"),
)
_RISCV_OPERAND = re.compile(r"(-?(?:0x[0-9a-f]{1,8}|\d{1,8}))?\((\w{2,5})\)$")
_STORES = re.compile(r"(?:st|sd|sw|sh|sb|c\.s|fs|amo|sc|swp|cas|ldadd|ldclr|ldset|xchg)")


class MemoryAccess(NamedTuple):
    """
    Memory that an instruction reads or writes.

    Parameters
    ----------
    text : str
        The operand.
    registers : tuple
        Names and values that its address was made of; None: the report has no value.
    vaddr : int, optional
        None where a register is not known.
    size_bytes : int
        0: not known.
    """

    text: str
    registers: tuple[tuple[str, int | None], ...]
    vaddr: int | None
    size_bytes: int
    is_read: bool
    is_write: bool


def find_accesses(instruction: Instruction, machine: str, registers: Mapping[str, int]) -> list[MemoryAccess]:
    """
    Tell what memory an instruction accesses.

    Parameters
    ----------
    registers : mapping
        As the report names them.
    """
    if instruction.decoded is None:
        return []
    known = {name.lower(): value for name, value in registers.items()}
    if machine in _X86:
        return list(_of_x86(instruction, machine, known))
    return list(_of_others(instruction, machine, known))


# ---- x86


def _of_x86(instruction: Instruction, machine: str, known: Mapping[str, int]) -> Iterator[MemoryAccess]:
    decoded = instruction.decoded
    name = instruction.mnemonic.rpartition(" ")[2]
    if name.startswith(("lea", "nop", "prefetch", "ud", "cltq")):
        return
    bits = 64 if machine == "x86_64" else 32
    for operand in decoded.operands:
        if operand.type == _OP_MEM:
            yield _x86_memory(instruction, operand, known, bits)
    pointer = "rsp" if bits == 64 else "esp"
    if name.startswith(("push", "call")):
        yield _stack(known, pointer, -bits // 8, is_write=True)
    elif name.startswith(("pop", "ret", "lret", "leave")):
        yield _stack(known, "rbp" if name == "leave" else pointer, 0, is_write=False)


def _x86_memory(instruction: Instruction, operand: Any, known: Mapping[str, int], bits: int) -> MemoryAccess:  # noqa: ANN401 - capstone has no types
    decoded, memory = instruction.decoded, operand.mem
    used: list[tuple[str, int | None]] = []
    total: int | None = memory.disp
    for register, factor in ((memory.base, 1), (memory.index, memory.scale)):
        if not register:
            continue
        name = decoded.reg_name(register)
        # Where the code lay when it ran is not known: of rip nothing can be reckoned.
        value = None if name in {"rip", "eip"} else _x86_register(name, known)
        if name not in {"rip", "eip"}:
            used.append((name, value))
        total = None if total is None or value is None else total + value * factor
    segment = decoded.reg_name(memory.segment) if memory.segment else ""
    if segment in {"gs", "fs"}:
        base = known.get(segment)
        used.append((f"{segment} base", base))
        total = None if total is None or base is None else total + base
    return MemoryAccess(
        _x86_text(decoded, memory, segment),
        tuple(used),
        None if total is None else total & ((1 << bits) - 1),
        operand.size,
        bool(operand.access & _CS_AC_READ),
        bool(operand.access & _CS_AC_WRITE),
    )


def _x86_text(decoded: Any, memory: Any, segment: str) -> str:  # noqa: ANN401 - capstone has no types
    number = f"-{-memory.disp:#x}" if memory.disp < 0 else f"{memory.disp:#x}" if memory.disp else ""
    base = f"%{decoded.reg_name(memory.base)}" if memory.base else ""
    index = f",%{decoded.reg_name(memory.index)},{memory.scale}" if memory.index else ""
    inner = f"({base}{index})" if base or index else ""
    return f"{f'%{segment}:' if segment else ''}{number or ('' if inner else '0x0')}{inner}"


def _x86_register(name: str, known: Mapping[str, int]) -> int | None:
    """Give the value of a register, or of the part of it that is named."""
    if (match := _PARTS_OF_X86.match(name)) is not None:
        number = int(match[1])
        value = known.get(f"r{number:02d}", known.get(f"r{number}"))
    else:
        stem = name.lstrip("re") if name.lstrip("re") in _OLD_NAMES else name
        value = known.get(f"r{stem}", known.get(f"e{stem}"))
    if value is not None and (name[:1] == "e" or name.endswith("d")):
        value &= 0xFFFFFFFF
    return value


def _stack(known: Mapping[str, int], name: str, offset: int, *, is_write: bool) -> MemoryAccess:
    value = known.get(name)
    text = f"{offset:#x}(%{name})" if offset else f"(%{name})"
    vaddr = None if value is None else (value + offset) & _WORD
    return MemoryAccess(
        text, ((name, value),), vaddr, abs(offset) or (8 if name[0] == "r" else 4), not is_write, is_write
    )


# ---- everybody else


def _of_others(instruction: Instruction, machine: str, known: Mapping[str, int]) -> Iterator[MemoryAccess]:
    decoded = instruction.decoded
    name = instruction.mnemonic
    is_write = _STORES.match(name) is not None
    operands = [operand for operand in decoded.operands if operand.type == _OP_MEM]
    if not operands and machine in {"arm", "armt"} and name.startswith(("ldm", "stm")):
        register = decoded.reg_name(decoded.operands[0].reg)
        value = _register(register, machine, known)
        yield MemoryAccess(f"[{register}]", ((register, value),), value, 0, not is_write, is_write)
    if not operands and machine in {"riscv64", "riscv32"}:
        yield from _riscv_compressed(instruction, machine, known, is_write=is_write)
    for operand in operands:
        memory = operand.mem
        used: list[tuple[str, int | None]] = []
        total: int | None = memory.disp if not _is_post_indexed(instruction, machine) else 0
        for register in (memory.base, getattr(memory, "index", 0)):
            if register:
                spelt = decoded.reg_name(register)
                spelt = f"r{spelt}" if machine == "s390x" and spelt.isdigit() else spelt
                value = _register(spelt, machine, known)
                used.append((spelt, value))
                if register == getattr(memory, "index", 0) and register != memory.base:
                    value = _shifted(operand, value)
                total = None if total is None or value is None else total + value
        bits = 32 if machine in {"arm", "armt", "mips", "micromips", "riscv32", "ppc"} else 64
        text = (
            instruction.operands[instruction.operands.find("[") :]
            if "[" in instruction.operands
            else instruction.operands.rpartition(", ")[2]
        )
        vaddr = None if total is None else total & ((1 << bits) - 1)
        yield MemoryAccess(text, tuple(used), vaddr, 0, not is_write, is_write)
    if not operands and machine in {"ppc64", "ppc"} and name.rstrip("u").endswith("x") and decoded.operands:
        yield from _ppc_indexed(decoded, machine, known, is_write=is_write)


def _is_post_indexed(instruction: Instruction, machine: str) -> bool:
    """Tell whether the displacement is added afterwards (arm's ``[x0], #8``)."""
    return machine in {"arm", "armt", "aarch64"} and re.search(r"\], ", instruction.operands) is not None


def _shifted(operand: Any, value: int | None) -> int | None:  # noqa: ANN401 - capstone has no types
    if value is None:
        return None
    extension = getattr(operand, "ext", 0)
    if extension in {3, 7}:  # uxtw, sxtw
        value &= 0xFFFFFFFF
        value = value - (1 << 32) if extension == 7 and value >> 31 else value
    shift = getattr(operand, "shift", None)
    amount = shift.value if shift is not None and shift.type else 0
    return -(value << amount) if getattr(operand, "subtracted", False) else value << amount


def _register(name: str, machine: str, known: Mapping[str, int]) -> int | None:
    if machine == "aarch64":
        name = _ARM64_NAMES.get(name, name)
        if name in {"xzr", "wzr"}:
            return 0
        return (
            known.get(f"x{name[1:]}") if name[0] == "w" else known.get(name, known.get("x30" if name == "lr" else ""))
        )
    if machine in {"arm", "armt"}:
        return known.get(_ARM_NAMES.get(name, name))
    if machine in {"ppc64", "ppc"}:
        number = name.lstrip("r")
        return 0 if name in {"0", "zero"} else known.get(f"gpr{int(number):02d}") if number.isdigit() else None
    if machine == "s390x":
        return known.get(name)
    if name in {"zero", "$zero"}:
        return 0
    plain = name.lstrip("$")
    return known.get(plain, known.get("s0" if plain == "fp" else "fp" if plain in {"s0", "s8"} else ""))


def _riscv_compressed(
    instruction: Instruction, machine: str, known: Mapping[str, int], *, is_write: bool
) -> Iterator[MemoryAccess]:
    """Read the operand from the text: capstone has no memory operands for instructions of 16 bits."""
    match = _RISCV_OPERAND.search(instruction.operands)
    if match is not None:
        value = _register(match[2], machine, known)
        vaddr = None if value is None else (value + int(match[1] or "0", 0)) & _WORD
        yield MemoryAccess(match[0], ((match[2], value),), vaddr, 0, not is_write, is_write)


def _ppc_indexed(decoded: Any, machine: str, known: Mapping[str, int], *, is_write: bool) -> Iterator[MemoryAccess]:  # noqa: ANN401 - capstone has no types
    """Tell what ``ldx rt, ra, rb`` accesses: ra + rb, where ra 0 is zero."""
    names = [decoded.reg_name(operand.reg) for operand in decoded.operands if operand.type == _OP_REG]
    if len(names) < 2:
        return
    pair = names[-2:] if len(names) > 2 else [names[-1]]
    values = [(name, 0 if name in {"0", "zero"} else _register(name, machine, known)) for name in pair]
    total = None if any(value is None for _, value in values) else sum(value or 0 for _, value in values) & _WORD
    yield MemoryAccess(f"({' + '.join(pair)})", tuple(values), total, 0, not is_write, is_write)


def read_more_registers(lines: Sequence[str], machine: str) -> dict[str, int]:
    """
    Read registers that stand in lines of their machine's own.

    Of arm64 and arm (``x19: … x18: …``), and those in rows without their names (``Krnl GPRS:`` of s390, ``$ 0   :``
    of mips).
    """
    found: dict[str, int] = {}
    if machine in {"aarch64", "arm", "armt"}:
        for line in lines:
            for name, digits in _GPRS_ARM.findall(line):
                found.setdefault(name, int(digits, 16))
    if machine == "s390x":
        start = next((number for number, line in enumerate(lines) if "Krnl GPRS:" in line), None)
        for row, line in enumerate(lines[start : start + 4] if start is not None else ()):
            if (match := _GPRS_S390.search(line)) is not None:
                found |= {f"r{row * 4 + place}": int(word, 16) for place, word in enumerate(match[1].split())}
    elif machine.startswith("mi"):
        for line in lines:
            if (match := _GPRS_MIPS.search(line)) is not None:
                for place, word in enumerate(match[2].split(), int(match[1])):
                    if place < len(_MIPS_NAMES):
                        found.setdefault(_MIPS_NAMES[place], int(word, 16))
    return found
