"""
What an instruction does to registers, as far as values can be followed through it.

Registers are named by their widest form (``rax`` for ``al``, ``x3`` for ``w3``).
Sources: Intel SDM volume 2; System V ABI for AMD64, 3.2.1 (which registers a call
keeps); Arm ARM C6; AAPCS64, 6.1.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from postpanic.analysis.code.instructions import Flow, Instruction

__all__ = [
    "ARGUMENTS",
    "CALLEE_SAVED",
    "CALLER_SAVED",
    "Act",
    "Effect",
    "Memory",
    "find_effects",
    "read_register",
    "spell_register",
    "stack_pointer",
    "x86_memory",
]

_REG, _IMM, _MEM = 1, 2, 3
"""Kinds of operands; capstone numbers them alike for x86 and arm64."""
_WRITE = 2
_WORD, _LOW_WORD = (1 << 64) - 1, (1 << 32) - 1

ARGUMENTS = {
    "x86_64": ("rdi", "rsi", "rdx", "rcx", "r8", "r9"),
    "aarch64": tuple(f"x{number}" for number in range(8)),
}
"""Registers of the first arguments, in order."""
CALLEE_SAVED = {
    "x86_64": frozenset({"rbx", "rbp", "r12", "r13", "r14", "r15"}),
    "aarch64": frozenset({*(f"x{number}" for number in range(19, 29)), "x29"}),
}
CALLER_SAVED = {
    "x86_64": frozenset({"rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11"}),
    "aarch64": frozenset({*(f"x{number}" for number in range(19)), "x30"}),
}
_RESULT = {"x86_64": "rax", "aarch64": "x0"}
_KEEPS_ALL = ("__x86_indirect_", "__fentry__", "__x86_return_", "ftrace_")

_FETCHES = ("swp", "ldadd", "ldset", "ldclr", "ldeor", "ldsm", "ldum")

_X86_NAMES = {
    **{
        part: f"r{name}"
        for name in ("ax", "bx", "cx", "dx")
        for part in (f"e{name}", name, f"{name[0]}l", f"{name[0]}h")
    },
    **{part: f"r{name}" for name in ("si", "di", "bp", "sp", "ip") for part in (f"e{name}", name, f"{name}l")},
    **{f"r{number}{size}": f"r{number}" for number in range(8, 16) for size in "dwb"},
}


class Act(StrEnum):
    """How a register got its value."""

    COPY = "copy"
    LOAD = "load"
    ADDRESS = "address"
    """Base, index and displacement added, without an access."""
    CONSTANT = "constant"
    RESULT = "result"
    """Of a call."""
    CHANGE = "change"
    """In some other way."""
    STORE = "store"
    """No register: memory was written."""


@dataclass(frozen=True, slots=True)
class Memory:
    """A memory operand, or the same sum without an access."""

    base: str = ""
    index: str = ""
    scale: int = 1
    disp: int = 0
    segment: str = ""
    size_bytes: int = 8


@dataclass(frozen=True, slots=True)
class Effect:
    """
    One thing that an instruction does.

    Attributes
    ----------
    act : Act
    register : str
        That gets the value; of a store, the one whose value is written, empty: none.
    source : str
        Of a copy.
    memory : Memory, optional
    constant : int
    target : int, optional
        Of a call.
    bits : int
        How much of the value is meant; the rest becomes zero.
    """

    act: Act
    register: str = ""
    source: str = ""
    memory: Memory | None = None
    constant: int = 0
    target: int | None = None
    bits: int = 64


def stack_pointer(machine: str) -> str:
    """Name the stack pointer."""
    return "rsp" if machine == "x86_64" else "sp"


def spell_register(register: str) -> str:
    """
    Write a register as listings do.

    >>> spell_register("rax"), spell_register("x3")
    ('%rax', 'x3')
    """
    return f"%{register}" if register.startswith("r") else register


def read_register(decoded: Any, operand: Any) -> tuple[str, int]:  # noqa: ANN401 - capstone has no types
    """
    Read a register operand of a decoded instruction.

    Returns
    -------
    tuple
        The register by its widest name, and how many bytes of it are meant.
    """
    name: str = decoded.reg_name(operand.reg) or ""
    if hasattr(operand, "size"):
        return _X86_NAMES.get(name, name), operand.size
    return _arm_name(decoded, operand.reg), 4 if name.startswith("w") else 8


def find_effects(instruction: Instruction, machine: str, callee: str = "") -> list[Effect]:
    """
    Tell what an instruction does to registers and memory.

    Parameters
    ----------
    machine : str
        ``x86_64`` or ``aarch64``; nothing is known of others.
    callee : str
        Name of the function that a call goes to.
    """
    if instruction.decoded is None:
        return []
    if instruction.flow is Flow.CALL:
        return list(_of_call(instruction, machine, callee))
    if machine == "x86_64":
        return list(_of_x86(instruction))
    return list(_of_arm64(instruction)) if machine == "aarch64" else []


def _of_call(instruction: Instruction, machine: str, callee: str) -> Iterator[Effect]:
    if callee.startswith(_KEEPS_ALL) and not callee.startswith("__x86_indirect_"):
        return
    result = _RESULT.get(machine, "")
    yield Effect(Act.RESULT, result, target=instruction.target)
    for register in CALLER_SAVED.get(machine, frozenset()) - {result}:
        yield Effect(Act.CHANGE, register)


# ---- x86-64


def _x86_name(decoded: Any, number: int) -> str:  # noqa: ANN401 - capstone has no types
    name: str = decoded.reg_name(number) or ""
    return _X86_NAMES.get(name, name)


def x86_memory(decoded: Any, operand: Any) -> Memory:  # noqa: ANN401 - capstone has no types
    """Read a memory operand of a decoded instruction."""
    memory = operand.mem
    segment = decoded.reg_name(memory.segment) if memory.segment else ""
    base = _x86_name(decoded, memory.base) if memory.base else ""
    disp = int(memory.disp)
    if base == "rip":
        base, disp = "", (decoded.address + decoded.size + disp) & _WORD
    return Memory(
        base,
        _x86_name(decoded, memory.index) if memory.index else "",
        memory.scale,
        disp,
        segment if segment in {"gs", "fs"} else "",
        operand.size,
    )


def _of_x86(instruction: Instruction) -> Iterator[Effect]:
    decoded = instruction.decoded
    name = decoded.mnemonic.rpartition(" ")[2]
    operands = list(decoded.operands)
    if name.startswith("nop") or name in {"cmp", "test", "endbr64"}:
        return
    if name in {"push", "pop"} and operands:
        yield from _x86_stack(decoded, name, operands[0])
        return
    if name in {"mov", "movabs", "movzx", "movsx", "movsxd"} and len(operands) == 2:
        yield from _x86_move(decoded, operands)
        return
    known = _x86_arithmetic(decoded, name, operands)
    if known is not None:
        yield known
        return
    if name == "xchg" and len(operands) == 2 and all(operand.type == _REG for operand in operands):
        first, second = (_x86_name(decoded, operand.reg) for operand in operands)
        yield Effect(Act.COPY, first, second)
        yield Effect(Act.COPY, second, first)
        return
    _, written = decoded.regs_access()
    for register in {_x86_name(decoded, number) for number in written} - {"rflags", "eflags", "rip"}:
        yield Effect(Act.CHANGE, register)
    for operand in operands:
        if operand.type == _MEM and operand.access & _WRITE:
            yield Effect(Act.STORE, "", memory=x86_memory(decoded, operand))


def _x86_stack(decoded: Any, name: str, operand: Any) -> Iterator[Effect]:  # noqa: ANN401 - capstone has no types
    register = _x86_name(decoded, operand.reg) if operand.type == _REG else ""
    if name == "push":
        yield Effect(Act.STORE, register, memory=Memory("rsp", disp=-8))
        yield Effect(Act.ADDRESS, "rsp", memory=Memory("rsp", disp=-8))
        return
    if register:
        yield Effect(Act.LOAD, register, memory=Memory("rsp"))
    if register != "rsp":
        yield Effect(Act.ADDRESS, "rsp", memory=Memory("rsp", disp=8))


def _x86_move(decoded: Any, operands: list[Any]) -> Iterator[Effect]:  # noqa: ANN401 - capstone has no types
    target, source = operands
    if target.type == _MEM:
        register = _x86_name(decoded, source.reg) if source.type == _REG else ""
        constant = int(source.imm) & _WORD if source.type == _IMM else 0
        yield Effect(Act.STORE, register, memory=x86_memory(decoded, target), constant=constant)
        return
    register = _x86_name(decoded, target.reg)
    if target.size < 4:
        # The rest of the register stays as it was.
        yield Effect(Act.CHANGE, register)
    elif source.type == _MEM:
        yield Effect(Act.LOAD, register, memory=x86_memory(decoded, source), bits=source.size * 8)
    elif source.type == _REG:
        yield Effect(Act.COPY, register, _x86_name(decoded, source.reg), bits=min(target.size, source.size) * 8)
    else:
        yield Effect(Act.CONSTANT, register, constant=int(source.imm) & ((1 << target.size * 8) - 1))


def _x86_arithmetic(decoded: Any, name: str, operands: list[Any]) -> Effect | None:  # noqa: ANN401 - capstone has no types
    if not operands or operands[0].type != _REG:
        return None
    register = _x86_name(decoded, operands[0].reg)
    source = operands[1] if len(operands) > 1 else None
    if name == "lea" and source is not None:
        return Effect(Act.ADDRESS, register, memory=x86_memory(decoded, source))
    if name in {"xor", "sub"} and source is not None and source.type == _REG and source.reg == operands[0].reg:
        return Effect(Act.CONSTANT, register)
    if operands[0].size != 8:
        return None
    if name in {"add", "sub"} and source is not None and source.type == _IMM:
        step = int(source.imm) if name == "add" else -int(source.imm)
        return Effect(Act.ADDRESS, register, memory=Memory(register, disp=step))
    if name == "add" and source is not None and source.type == _REG:
        return Effect(Act.ADDRESS, register, memory=Memory(register, _x86_name(decoded, source.reg)))
    if name in {"inc", "dec"}:
        return Effect(Act.ADDRESS, register, memory=Memory(register, disp=1 if name == "inc" else -1))
    return None


# ---- arm64


_ARM_ALIASES = {"fp": "x29", "lr": "x30", "wsp": "sp", "wzr": "xzr"}


def _arm_name(decoded: Any, number: int) -> str:  # noqa: ANN401 - capstone has no types
    name: str = decoded.reg_name(number) or ""
    if name in _ARM_ALIASES:
        return _ARM_ALIASES[name]
    return f"x{name[1:]}" if name[:1] == "w" else name


def _arm_memory(decoded: Any, operand: Any, disp: int = 0) -> Memory:  # noqa: ANN401 - capstone has no types
    memory = operand.mem
    shift = operand.shift.value if operand.shift.type else 0
    # Behind the bracket (``[x0], #8``) it is added after the access.
    own = 0 if "], " in decoded.op_str else int(memory.disp)
    return Memory(
        _arm_name(decoded, memory.base) if memory.base else "",
        _arm_name(decoded, memory.index) if memory.index else "",
        1 << shift,
        own + disp,
    )


def _of_arm64(instruction: Instruction) -> Iterator[Effect]:
    decoded = instruction.decoded
    name, operands = decoded.mnemonic, list(decoded.operands)
    if name.startswith(("ldr", "ldur", "ldp", "ldar")):
        yield from _arm_loads(decoded, name, operands)
    elif name.startswith(("str", "stur", "stp", "stlr")) and operands:
        yield from _arm_stores(decoded, operands)
    else:
        known = _arm_arithmetic(decoded, name, operands)
        if known is not None:
            yield known
            return
        _, written = decoded.regs_access()
        changed = {_arm_name(decoded, number) for number in written}
        # Capstone 5 does not tell what atomic instructions (LSE) write.
        place = 0 if name.startswith("cas") else 1 if name.startswith(_FETCHES) else None
        if place is not None and len(operands) > place and operands[place].type == _REG:
            changed.add(_arm_name(decoded, operands[place].reg))
        for register in sorted(changed - {"nzcv", "xzr"}):
            yield Effect(Act.CHANGE, register)


def _arm_loads(decoded: Any, name: str, operands: list[Any]) -> Iterator[Effect]:  # noqa: ANN401 - capstone has no types
    place = next((operand for operand in operands if operand.type == _MEM), None)
    targets = [operand for operand in operands if operand.type == _REG]
    for number, target in enumerate(targets[:2]):
        register = _arm_name(decoded, target.reg)
        if place is None or name not in {"ldr", "ldur", "ldp", "ldar", "ldrb", "ldrh"}:
            yield Effect(Act.CHANGE, register)
            continue
        is_word = (decoded.reg_name(target.reg) or "").startswith("w")
        bits = {"ldrb": 8, "ldrh": 16}.get(name, 32 if is_word else 64)
        yield Effect(Act.LOAD, register, memory=_arm_memory(decoded, place, number * (4 if is_word else 8)), bits=bits)
    yield from _arm_writeback(decoded, operands)


def _arm_stores(decoded: Any, operands: list[Any]) -> Iterator[Effect]:  # noqa: ANN401 - capstone has no types
    place = next((operand for operand in operands if operand.type == _MEM), None)
    sources = [operand for operand in operands if operand.type == _REG]
    for number, source in enumerate(sources[:2]):
        if place is not None:
            register, size = read_register(decoded, source)
            memory = _arm_memory(decoded, place, number * size)
            yield Effect(Act.STORE, "" if register == "xzr" else register, memory=memory)
    yield from _arm_writeback(decoded, operands)


def _arm_writeback(decoded: Any, operands: list[Any]) -> Iterator[Effect]:  # noqa: ANN401 - capstone has no types
    place = next((operand for operand in operands if operand.type == _MEM), None)
    if not decoded.writeback or place is None:
        return
    base = _arm_name(decoded, place.mem.base)
    last = operands[-1]
    step = int(last.imm) if last.type == _IMM else int(place.mem.disp)
    yield Effect(Act.ADDRESS, base, memory=Memory(base, disp=step))


def _arm_arithmetic(decoded: Any, name: str, operands: list[Any]) -> Effect | None:  # noqa: ANN401 - capstone has no types
    if len(operands) < 2 or operands[0].type != _REG:
        return None
    register, source = _arm_name(decoded, operands[0].reg), operands[1]
    is_word = (decoded.reg_name(operands[0].reg) or "").startswith("w")
    if name in {"mov", "movz"} and source.type == _IMM:
        shift = source.shift.value if source.shift.type else 0
        return Effect(Act.CONSTANT, register, constant=int(source.imm) << shift & (_LOW_WORD if is_word else _WORD))
    if name == "mov" and source.type == _REG:
        from_name = _arm_name(decoded, source.reg)
        if from_name == "xzr":
            return Effect(Act.CONSTANT, register)
        return Effect(Act.COPY, register, from_name, bits=32 if is_word else 64)
    if name in {"adrp", "adr"}:
        return Effect(Act.CONSTANT, register, constant=int(source.imm) & _WORD)
    if name in {"add", "sub"} and len(operands) == 3 and source.type == _REG and operands[2].type == _IMM:
        shift = operands[2].shift.value if operands[2].shift.type else 0
        step = int(operands[2].imm) << shift
        return Effect(
            Act.ADDRESS, register, memory=Memory(_arm_name(decoded, source.reg), disp=step if name == "add" else -step)
        )
    return None
