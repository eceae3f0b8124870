"""
Call frame information for the functions that the kernel's unwind tables leave out.

objtool gives no ORC to functions marked ``STACK_FRAME_NON_STANDARD``, and one of
these is in every kdump: ``__crash_kexec()``, whose inlined ``crash_setup_regs()``
records the registers of the panicking CPU. Without a rule for it the unwinder
falls back to the frame pointer, which is still the caller's, and loses the caller.
The code itself tells the rule: what it pushes and how it moves the stack pointer.

References
----------
``include/linux/objtool.h`` and ``kernel/crash_core.c`` (before 6.8
``kernel/kexec_core.c``) of the kernel; System V ABI, AMD64 supplement, figure
3.36 (DWARF register numbers); DWARF 4, section 6.4.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

from capstone import CS_AC_WRITE, CS_ARCH_X86, CS_GRP_JUMP, CS_GRP_RET, CS_MODE_64, Cs, CsInsn
from capstone.x86 import X86_INS_JMP, X86_OP_IMM, X86_OP_REG, X86_REG_RBP, X86_REG_RSP

__all__ = ["FrameRow", "FunctionFrame", "analyse_frame", "debug_frame"]

MAX_FUNCTION_BYTES = 16 << 10
MAX_STACK_BYTES = 64 << 10
_WORD_BYTES = 8
_ADDRESS_MASK = (1 << 64) - 1
_RSP, _RBP, _RETURN_ADDRESS = 7, 6, 16
_LEGACY_REGISTERS = ("rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp")
_DWARF_REGISTERS = {name: number for number, name in enumerate(_LEGACY_REGISTERS)} | {
    f"r{number}": number for number in range(8, 16)
}


@dataclass(frozen=True, slots=True)
class FrameRow:
    """
    How to find the caller's frame from one address on.

    ``register`` (DWARF number) plus ``offset_bytes`` is the canonical frame
    address; ``saved`` gives callee-saved registers and where they are, in bytes
    below it.
    """

    vaddr: int
    register: int = _RSP
    offset_bytes: int = _WORD_BYTES
    saved: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class FunctionFrame:
    """The rows of one function, ascending."""

    vaddr: int
    size_bytes: int
    rows: tuple[FrameRow, ...]


class _UntrackedError(Exception):
    """The code does something to the stack that cannot be followed."""


def analyse_frame(code: bytes, vaddr: int) -> FunctionFrame | None:
    """
    Follow the stack pointer through a function of x86-64.

    Every path is followed from the entry; where two paths meet they must agree.

    Parameters
    ----------
    code : bytes
        The function, whole.
    vaddr : int
        Its address.

    Returns
    -------
    FunctionFrame or None
        None where the code does something that cannot be followed: then
        nothing is claimed.
    """
    if not code or len(code) > MAX_FUNCTION_BYTES:
        return None
    disassembler = Cs(CS_ARCH_X86, CS_MODE_64)
    disassembler.detail = True
    instructions = {instruction.address: instruction for instruction in disassembler.disasm(code, vaddr)}
    states: dict[int, FrameRow] = {}
    pending = [FrameRow(vaddr)]
    try:
        while pending:
            state = pending.pop()
            known = states.get(state.vaddr)
            if known is not None:
                if known != state:
                    return None
                continue
            instruction = instructions.get(state.vaddr)
            if instruction is None:
                return None
            states[state.vaddr] = state
            pending += _successors(instruction, state, vaddr, vaddr + len(code))
    except _UntrackedError:
        return None
    rows: list[FrameRow] = []
    for address in sorted(states):
        if not rows or replace(states[address], vaddr=rows[-1].vaddr) != rows[-1]:
            rows.append(states[address])
    return FunctionFrame(vaddr, len(code), tuple(rows))


def _successors(instruction: CsInsn, state: FrameRow, start: int, end: int) -> list[FrameRow]:
    """States of the instructions that may come next, inside the function."""
    if instruction.group(CS_GRP_RET) or instruction.mnemonic in {"ud2", "hlt"}:
        return []
    after = replace(_step(instruction, state), vaddr=instruction.address + instruction.size)
    following = [after] if after.vaddr < end else []
    if not instruction.group(CS_GRP_JUMP):
        return following
    target = instruction.operands[0]
    if target.type != X86_OP_IMM:
        raise _UntrackedError
    goal = target.imm & _ADDRESS_MASK
    branch = [replace(after, vaddr=goal)] if start <= goal < end else []
    return branch if instruction.id == X86_INS_JMP else branch + following


def _step(instruction: CsInsn, state: FrameRow) -> FrameRow:
    """State behind one instruction."""
    name = instruction.mnemonic
    operands = instruction.operands
    if name in {"push", "pushfq"}:
        saved = state.saved
        register = _DWARF_REGISTERS.get(instruction.reg_name(operands[0].reg)) if _is_register(operands) else None
        depth = state.offset_bytes + _WORD_BYTES
        if register is not None and state.register == _RSP and register not in dict(saved):
            saved = (*saved, (register, depth))
        return replace(_moved(state, _WORD_BYTES), saved=saved)
    if name in {"pop", "popfq"}:
        return _popped(instruction, state)
    if name in {"sub", "add"} and _is_register(operands) and operands[0].reg == X86_REG_RSP:
        if operands[1].type != X86_OP_IMM:
            raise _UntrackedError
        return _moved(state, operands[1].imm if name == "sub" else -operands[1].imm)
    if name == "mov" and _is_register(operands) and operands[0].reg == X86_REG_RBP:
        if operands[1].type == X86_OP_REG and operands[1].reg == X86_REG_RSP and state.register == _RSP:
            return replace(state, register=_RBP)
        if state.register == _RBP:
            raise _UntrackedError
        return state
    if name == "leave":
        return FrameRow(0, _RSP, _WORD_BYTES)
    if state.register == _RSP and name != "call" and _writes_stack_pointer(instruction):
        raise _UntrackedError
    return state


def _popped(instruction: CsInsn, state: FrameRow) -> FrameRow:
    register = None
    if _is_register(instruction.operands):
        register = _DWARF_REGISTERS.get(instruction.reg_name(instruction.operands[0].reg))
    if register == _RBP and state.register == _RBP:
        # The frame pointer is popped last: only the return address is above.
        return FrameRow(0, _RSP, _WORD_BYTES)
    if state.register == _RSP and (register, state.offset_bytes) in state.saved:
        state = replace(state, saved=tuple(item for item in state.saved if item[0] != register))
    return _moved(state, -_WORD_BYTES)


def _moved(state: FrameRow, bytes_down: int) -> FrameRow:
    """State after the stack pointer went down; a frame pointer makes that unimportant."""
    if state.register != _RSP:
        return state
    offset = state.offset_bytes + bytes_down
    if not _WORD_BYTES <= offset <= MAX_STACK_BYTES:
        raise _UntrackedError
    return replace(state, offset_bytes=offset)


def _is_register(operands: Sequence[object]) -> bool:
    return bool(operands) and getattr(operands[0], "type", None) == X86_OP_REG


def _writes_stack_pointer(instruction: CsInsn) -> bool:
    _, written = instruction.regs_access()
    explicit = any(
        operand.type == X86_OP_REG and operand.reg == X86_REG_RSP and operand.access & CS_AC_WRITE
        for operand in instruction.operands
    )
    return explicit or X86_REG_RSP in written


def debug_frame(functions: Sequence[FunctionFrame]) -> bytes:
    """
    Encode ``.debug_frame`` of x86-64: one common entry, and one entry per function.

    Factors: code 1, data -8; the return address is in column 16, just below the
    canonical frame address.
    """
    initial = bytes((0x0C, _RSP, _WORD_BYTES, 0x80 | _RETURN_ADDRESS, 1))
    common = struct.pack("<IB", 0xFFFFFFFF, 1) + b"\0" + bytes((1, 0x78, _RETURN_ADDRESS)) + initial
    section = bytearray(_entry(common))
    for function in functions:
        program = b"".join(_row_program(function, index) for index in range(len(function.rows)))
        section += _entry(struct.pack("<IQQ", 0, function.vaddr, function.size_bytes) + program)
    return bytes(section)


def _entry(contents: bytes) -> bytes:
    # DW_CFA_nop pads to the size of an address.
    contents += bytes(-(len(contents) + 4) % _WORD_BYTES)
    return struct.pack("<I", len(contents)) + contents


def _row_program(function: FunctionFrame, index: int) -> bytes:
    """Instructions that lead from the row before to this one."""
    row = function.rows[index]
    before = function.rows[index - 1] if index else FrameRow(function.vaddr)
    program = bytearray()
    if row.vaddr != before.vaddr:
        program += b"\x04" + struct.pack("<I", row.vaddr - before.vaddr)
    if (row.register, row.offset_bytes) != (before.register, before.offset_bytes):
        program += bytes((0x0C, row.register)) + _uleb128(row.offset_bytes)
    for register, _ in set(before.saved) - set(row.saved):
        # DW_CFA_same_value: the register has its caller's value again.
        program += bytes((0x08, register))
    for register, depth in sorted(set(row.saved) - set(before.saved)):
        program += bytes((0x80 | register,)) + _uleb128(depth // _WORD_BYTES)
    return bytes(program)


def _uleb128(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
