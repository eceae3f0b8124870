"""
BPF instructions as text, as the verifier prints them.

Encoding: RFC 9669 and ``include/uapi/linux/bpf.h`` (``struct bpf_insn``: opcode,
two registers of 4 bits, 16-bit offset, 32-bit immediate); spelling:
``kernel/bpf/disasm.c``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

__all__ = ["INSTRUCTION_BYTES", "Instruction", "decode_instructions"]

INSTRUCTION_BYTES = 8
_LAYOUT = struct.Struct("<BBhi")

_LD, _LDX, _ST, _STX, _ALU, _JMP, _JMP32, _ALU64 = range(8)
_SIZES = {0x00: "u32", 0x08: "u16", 0x10: "u8", 0x18: "u64"}
_ALU_OPERATORS = {
    0x00: "+=",
    0x10: "-=",
    0x20: "*=",
    0x30: "/=",
    0x40: "|=",
    0x50: "&=",
    0x60: "<<=",
    0x70: ">>=",
    0x90: "%=",
    0xA0: "^=",
    0xB0: "=",
    0xC0: "s>>=",
}
_SIGNED_OPERATORS = {0x30: "s/=", 0x90: "s%="}
_CONDITIONS = {
    0x10: "==",
    0x20: ">",
    0x30: ">=",
    0x40: "&",
    0x50: "!=",
    0x60: "s>",
    0x70: "s>=",
    0xA0: "<",
    0xB0: "<=",
    0xC0: "s<",
    0xD0: "s<=",
}
_ATOMIC = {0x00: ("+=", "add"), 0x40: ("|=", "or"), 0x50: ("&=", "and"), 0xA0: ("^=", "xor")}
_NEG, _MOV, _END = 0x80, 0xB0, 0xD0
_CALL, _EXIT, _JA, _JCOND = 0x80, 0x90, 0x00, 0xE0
_REGISTER = 0x08
"""``BPF_X``: the second operand is a register."""
_IMM64 = 0x18
_PSEUDO_CALL, _PSEUDO_KFUNC_CALL = 1, 2
_FETCH, _XCHG, _CMPXCHG, _LOAD_ACQUIRE, _STORE_RELEASE = 0x01, 0xE1, 0xF1, 0x100, 0x110


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction."""

    index: int
    """Its number; one that loads 64 bits counts twice."""
    text: str
    encoded: bytes
    """8 bytes, 16 of one that loads 64 bits."""


@dataclass(frozen=True, slots=True)
class _Fields:
    code: int
    dst: int
    src: int
    offset: int
    immediate: int
    immediate64: int

    @property
    def size(self) -> str:
        return _SIZES[self.code & 0x18]

    @property
    def place(self) -> str:
        """Where a store goes, or what an atomic operation works on."""
        return f"({self.size} *)(r{self.dst} {self.offset:+d})"


def decode_instructions(
    code: bytes,
    *,
    name_call: Callable[[int], str] = lambda immediate: f"{immediate}",
    name_constant: Callable[[int], str] = hex,
) -> Iterator[Instruction]:
    """
    Decode instructions.

    Parameters
    ----------
    code : bytes
        ``struct bpf_insn`` records; an incomplete one at the end is left out.
    name_call : callable
        Names the function that a call leads to, by the call's immediate.
    name_constant : callable
        Spells a constant of 64 bits; the address of a map is one.
    """
    position = 0
    while position + INSTRUCTION_BYTES <= len(code):
        opcode, registers, offset, immediate = _LAYOUT.unpack_from(code, position)
        size = INSTRUCTION_BYTES
        immediate64 = immediate & 0xFFFFFFFF
        if opcode == _IMM64 and position + 2 * INSTRUCTION_BYTES <= len(code):
            size = 2 * INSTRUCTION_BYTES
            immediate64 |= (_LAYOUT.unpack_from(code, position + INSTRUCTION_BYTES)[3] & 0xFFFFFFFF) << 32
        fields = _Fields(opcode, registers & 15, registers >> 4, offset, immediate, immediate64)
        text = _SPELLERS[opcode & 7](fields, name_call, name_constant) or f"BUG_{opcode:02x}"
        yield Instruction(position // INSTRUCTION_BYTES, f"({opcode:02x}) {text}", code[position : position + size])
        position += size


_Name = Callable[[int], str]


def _spell_arithmetic(fields: _Fields, name_call: _Name, name_constant: _Name) -> str:  # noqa: ARG001
    operation = fields.code & 0xF0
    register = "w" if fields.code & 7 == _ALU else "r"
    target = f"{register}{fields.dst}"
    if operation == _END:
        if register == "r":
            return f"r{fields.dst} = bswap{fields.immediate} r{fields.dst}"
        order = "be" if fields.code & _REGISTER else "le"
        return f"r{fields.dst} = {order}{fields.immediate} r{fields.dst}"
    if operation == _NEG:
        return f"{target} = -{target}"
    operator = (fields.offset == 1 and _SIGNED_OPERATORS.get(operation)) or _ALU_OPERATORS.get(operation)
    if operator is None:
        return ""
    if not fields.code & _REGISTER:
        return f"{target} {operator} {fields.immediate}"
    if operation == _MOV and register == "r" and fields.offset == 1:
        return f"{target} = addr_space_cast(r{fields.src}, {fields.immediate >> 16}, {fields.immediate & 0xFFFF})"
    cast = f"(s{fields.offset})" if operation == _MOV and fields.offset in {8, 16, 32} else ""
    return f"{target} {operator} {cast}{register}{fields.src}"


def _spell_store(fields: _Fields, name_call: _Name, name_constant: _Name) -> str:  # noqa: ARG001
    mode = fields.code & 0xE0
    if mode == 0x60:
        return f"*{fields.place} = {fields.immediate}"
    return "nospec" if mode == 0xC0 else ""


def _spell_store_register(fields: _Fields, name_call: _Name, name_constant: _Name) -> str:  # noqa: ARG001
    mode = fields.code & 0xE0
    if mode == 0x60:
        return f"*{fields.place} = r{fields.src}"
    return _spell_atomic(fields) if mode == 0xC0 else ""


def _spell_atomic(fields: _Fields) -> str:
    kind = fields.immediate
    width = "64" if fields.size == "u64" else ""
    if kind == _CMPXCHG:
        return f"r0 = atomic{width}_cmpxchg({fields.place}, r0, r{fields.src})"
    if kind == _XCHG:
        return f"r{fields.src} = atomic{width}_xchg({fields.place}, r{fields.src})"
    if kind == _LOAD_ACQUIRE:
        return f"r{fields.dst} = load_acquire(({fields.size} *)(r{fields.src} {fields.offset:+d}))"
    if kind == _STORE_RELEASE:
        return f"store_release({fields.place}, r{fields.src})"
    names = _ATOMIC.get(kind & ~_FETCH)
    if names is None:
        return ""
    if kind & _FETCH:
        return f"r{fields.src} = atomic{width}_fetch_{names[1]}({fields.place}, r{fields.src})"
    return f"lock *{fields.place} {names[0]} r{fields.src}"


def _spell_load_register(fields: _Fields, name_call: _Name, name_constant: _Name) -> str:  # noqa: ARG001
    mode = fields.code & 0xE0
    size = {0x60: fields.size, 0x80: f"s{fields.size[1:]}"}.get(mode)
    return f"r{fields.dst} = *({size} *)(r{fields.src} {fields.offset:+d})" if size else ""


def _spell_load(fields: _Fields, name_call: _Name, name_constant: _Name) -> str:  # noqa: ARG001
    mode = fields.code & 0xE0
    if mode == 0x20:
        return f"r0 = *({fields.size} *)skb[{fields.immediate}]"
    if mode == 0x40:
        return f"r0 = *({fields.size} *)skb[r{fields.src} + {fields.immediate}]"
    return f"r{fields.dst} = {name_constant(fields.immediate64)}" if fields.code == _IMM64 else ""


def _spell_jump(fields: _Fields, name_call: _Name, name_constant: _Name) -> str:  # noqa: ARG001
    operation = fields.code & 0xF0
    is_short = fields.code & 7 == _JMP32
    if operation == _CALL:
        if fields.src == _PSEUDO_CALL:
            return f"call pc{fields.immediate:+d}"
        prefix = "kernel-function " if fields.src == _PSEUDO_KFUNC_CALL else ""
        return f"call {prefix}{name_call(fields.immediate)}"
    if operation == _EXIT:
        return "exit"
    if operation == _JA:
        return f"goto pc{fields.immediate if is_short else fields.offset:+d}"
    if operation == _JCOND:
        return f"may_goto pc{fields.offset:+d}"
    condition = _CONDITIONS.get(operation)
    if condition is None:
        return ""
    register = "w" if is_short else "r"
    other = f"{register}{fields.src}" if fields.code & _REGISTER else f"{fields.immediate & 0xFFFFFFFF:#x}"
    return f"if {register}{fields.dst} {condition} {other} goto pc{fields.offset:+d}"


_SPELLERS: dict[int, Callable[[_Fields, _Name, _Name], str]] = {
    _LD: _spell_load,
    _LDX: _spell_load_register,
    _ST: _spell_store,
    _STX: _spell_store_register,
    _ALU: _spell_arithmetic,
    _JMP: _spell_jump,
    _JMP32: _spell_jump,
    _ALU64: _spell_arithmetic,
}
