"""
``.debug_frame`` from ORC: a debugger then unwinds stacks as the kernel does.

gdb does not read ORC. Each of its entries is a rule for the caller's stack
pointer, one for the frame pointer and a type, which DWARF can say as well
(DWARF 5, 6.4): a canonical frame address by a register and an offset, a saved
register, and for the types that lead over a ``struct pt_regs`` the place of each
register in it, in a signal frame, so that the interrupted address is taken
as it is. What ORC does not tell is undefined, not the same value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from postpanic.kernel.debuginfo.leb128 import encode_sleb128
from postpanic.kernel.debuginfo.saved_registers import SAME, SAVED, UNKNOWN
from postpanic.kernel.orc import OrcRegister, OrcTable, OrcType

__all__ = ["AddressRule", "encode_orc_frames"]

_ROWS_PER_ENTRY = 16
"""A debugger runs the program of an entry from its beginning."""
_ADDRESS_LIMIT = (1 << 64) - 1

_ADVANCE_4 = 0x04
_OFFSET_EXTENDED_SF = 0x11
_UNDEFINED = 0x07
_SAME_VALUE = 0x08
_DEF_CFA_SF = 0x12
_DEF_CFA_EXPRESSION = 0x0F
_EXPRESSION = 0x10
_OP_DEREF = 0x06
_OP_CONSTS = 0x11
_OP_PLUS = 0x22
_OP_BREG = 0x70
_OFFSET = 0x80
_DATA_ALIGN = -8

_RETURN_ADDRESS = 16
_DWARF = {
    "rax": 0, "rdx": 1, "rcx": 2, "rbx": 3, "rsi": 4, "rdi": 5, "rbp": 6, "rsp": 7,
    "r8": 8, "r9": 9, "r10": 10, "r11": 11, "r12": 12, "r13": 13, "r14": 14, "r15": 15,
    "rip": _RETURN_ADDRESS, "rflags": 49, "cs": 51, "ss": 52,
}  # fmt: skip
"""System V ABI for x86-64, figure 3.36."""
_PT_REGS = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
    *("", "rip", "cs", "rflags", "rsp", "ss"),
)
"""``struct pt_regs`` (``arch/x86/include/asm/ptrace.h``); ``orig_rax`` has no number."""
_IRET = ("rip", "cs", "rflags", "rsp", "ss")
"""What the processor pushes."""
_BY = {
    OrcRegister.DX: _DWARF["rdx"],
    OrcRegister.DI: _DWARF["rdi"],
    OrcRegister.BP: _DWARF["rbp"],
    OrcRegister.SP: _DWARF["rsp"],
    OrcRegister.R10: _DWARF["r10"],
    OrcRegister.R13: _DWARF["r13"],
    OrcRegister.AX: _DWARF["rax"],
}
_GENERAL = tuple(number for name, number in _DWARF.items() if number < _RETURN_ADDRESS and name not in {"rbp", "rsp"})


@dataclass(frozen=True, slots=True)
class AddressRule:
    """
    A range of addresses that no table covers.

    Parameters
    ----------
    start, end : int
        ``[start, end)``.
    ends : bool
        True: the stack ends there; False: the return address is at the stack pointer.
    """

    start: int
    end: int
    ends: bool


def encode_orc_frames(
    tables: Sequence[OrcTable],
    rules: Sequence[AddressRule] = (),
    system_calls: Sequence[tuple[int, int]] = (),
    saved: Sequence[NDArray[np.uint8]] = (),
) -> bytes:
    """
    Encode unwind tables of x86-64 as a ``.debug_frame`` section, at the addresses that they are of.

    Stretches of which a table says that nothing is known are left out.

    Parameters
    ----------
    rules : sequence of AddressRule
        What holds where no table does.
    system_calls : sequence of (start, end)
        Code that is entered by a system call. Its frames are no signal frames,
        whose functions gdb does not name: nothing of the kernel was interrupted.
    saved : sequence of ndarray
        For each table what :func:`find_saved_registers` found.
    """
    common = [_common(kind) for kind in _KINDS]
    offsets = np.cumsum([0, *(len(entry) for entry in common)])
    cie_of = {kind: int(offsets[number]) for number, kind in enumerate(_KINDS)}
    parts = list(common)
    for rule in rules:
        kind = OrcType.END_OF_STACK if rule.ends else OrcType.CALL
        parts.append(_plain_entry(cie_of[kind], rule.start, rule.end))
    for table, registers in zip_longest(tables, saved):
        parts.append(_encode_table(table, cie_of, system_calls, registers))
    return b"".join(parts)


_SYSTEM_CALL = 5
"""A type beside those of :class:`OrcType`: registers that a system call saved."""
_KINDS = (OrcType.END_OF_STACK, OrcType.CALL, OrcType.REGS, OrcType.REGS_PARTIAL, _SYSTEM_CALL)
_HEADER_BYTES = 25
"""Length, common entry, first address, size, and the length of no augmentation."""


def _common(kind: int) -> bytes:
    """Make the common entry of a type: what holds in every frame of it."""
    is_signal = kind in (OrcType.REGS, OrcType.REGS_PARTIAL)
    program = bytearray(bytes((_DEF_CFA_SF, _DWARF["rsp"])) + encode_sleb128(8 // _DATA_ALIGN))
    program += b"".join(bytes((_UNDEFINED, number)) for number in _GENERAL)
    program += bytes((_SAME_VALUE, _DWARF["rbp"]))
    if kind == OrcType.END_OF_STACK:
        program += bytes((_UNDEFINED, _RETURN_ADDRESS))
    elif kind == OrcType.CALL:
        program += _saved(_RETURN_ADDRESS, -8)
    else:
        for place, name in enumerate(_IRET if kind == OrcType.REGS_PARTIAL else _PT_REGS):
            program += _saved(_DWARF[name], 8 * place) if name else b""
    augmentation = b"zS\0" if is_signal else b"z\0"
    head = b"\xff\xff\xff\xff\x01" + augmentation + b"\x01" + encode_sleb128(_DATA_ALIGN) + bytes((_RETURN_ADDRESS, 0))
    body = head + bytes(program)
    body += bytes(-(len(body) + 4) % 8)
    return len(body).to_bytes(4, "little") + body


def _plain_entry(cie: int, start: int, end: int) -> bytes:
    body = cie.to_bytes(4, "little") + start.to_bytes(8, "little") + (end - start).to_bytes(8, "little") + b"\0"
    body += bytes(-(len(body) + 4) % 8)
    return len(body).to_bytes(4, "little") + body


def _encode_table(
    table: OrcTable, cie_of: dict[int, int], system_calls: Sequence[tuple[int, int]], saved: NDArray[np.uint8] | None
) -> bytes:
    """
    Encode one table.

    Entries of one size: a header and the rules of some rows, those behind the last one no-operations.
    """
    if len(table) < 2:
        return b""
    starts = table.vaddrs
    ends = np.append(starts[1:], starts[-1])
    kinds = table.type.copy()
    for start, end in system_calls:
        within = (starts >= np.uint64(start)) & (starts < np.uint64(end))
        kinds[within & (kinds == OrcType.REGS)] = _SYSTEM_CALL
    known = np.isin(kinds, [int(kind) for kind in _KINDS]) & (ends > starts)
    known &= (kinds == OrcType.END_OF_STACK) | np.isin(
        table.sp_register, [int(register) for register in (*_BY, OrcRegister.BP_INDIRECT, OrcRegister.SP_INDIRECT)]
    )
    rows = np.flatnonzero(known)
    if not len(rows):
        return b""
    rules, width = _rules(table, kinds, rows, saved)
    number, place = _cut(rows, kinds[rows])
    count = int(number[-1]) + 1
    size = -(-(_HEADER_BYTES + _ROWS_PER_ENTRY * width) // 8) * 8
    entries = np.zeros((count, size), dtype=np.uint8)
    first = np.flatnonzero(np.diff(number, prepend=-1))
    last = np.append(first[1:], len(rows)) - 1
    begin = starts[rows[first]]
    _put(entries, 0, np.full(count, size - 4, dtype="<u4"))
    cies = np.zeros(max(_KINDS) + 1, dtype="<u4")
    cies[[int(kind) for kind in cie_of]] = list(cie_of.values())
    _put(entries, 4, cies[kinds[rows[first]]])
    _put(entries, 8, begin)
    _put(entries, 16, ends[rows[last]] - begin)
    advance = (starts[rows] - starts[rows[first]][number]).astype(np.int64)
    advance = np.where(place > 0, np.diff(advance, prepend=0), 0)
    # Distances within an entry fit: objtool's tables are of one object file, 2 GiB at most.
    rules[:, 1:5] = advance.astype("<u4").view(np.uint8).reshape(-1, 4)
    body = entries[:, _HEADER_BYTES : _HEADER_BYTES + _ROWS_PER_ENTRY * width].reshape(count, _ROWS_PER_ENTRY, width)
    body[number, place] = rules
    entries[:, _HEADER_BYTES : _HEADER_BYTES + _ROWS_PER_ENTRY * width] = body.reshape(count, -1)
    return entries.tobytes()


def _put(entries: NDArray[np.uint8], at: int, values: NDArray[np.uint32] | NDArray[np.uint64]) -> None:
    size = values.dtype.itemsize
    entries[:, at : at + size] = np.ascontiguousarray(values).view(np.uint8).reshape(-1, size)


def _cut(rows: NDArray[np.int64], kinds: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut rows into entries: of one type, without gaps, of a few rows each; gives each row's entry and place."""
    new = np.ones(len(rows), dtype=np.bool_)
    new[1:] = (np.diff(rows) != 1) | (kinds[1:] != kinds[:-1])
    run_start = np.maximum.accumulate(np.where(new, np.arange(len(rows)), 0))
    within = np.arange(len(rows)) - run_start
    number = np.cumsum(within % _ROWS_PER_ENTRY == 0) - 1
    return number.astype(np.int64), (within % _ROWS_PER_ENTRY).astype(np.int64)


def _rules(
    table: OrcTable, kinds: NDArray[np.uint8], rows: NDArray[np.int64], saved: NDArray[np.uint8] | None
) -> tuple[NDArray[np.uint8], int]:
    """Give the rules of each row, of one width, with room for how far it is from the row before."""
    columns = np.stack(
        [
            part[rows].astype(np.int64)
            for part in (kinds, table.sp_register, table.sp_offset, table.bp_register, table.bp_offset)
        ],
        axis=1,
    )
    # Each is of 16 bits at most, the numbers of types and registers of 4.
    halves = columns & 0xFFFF
    packed = halves[:, 2] | halves[:, 4] << 16 | halves[:, 0] << 32 | halves[:, 1] << 36 | halves[:, 3] << 40
    if saved is not None:
        _, distinct_frames = np.unique(packed, return_inverse=True)
        own = saved[rows].astype(np.int64)
        packed = distinct_frames.reshape(-1)
        for column in range(own.shape[1]):
            packed = packed << 6 | own[:, column]
    _, chosen, which = np.unique(packed, return_index=True, return_inverse=True)
    programs = [_program(*columns[row].tolist()) for row in chosen.tolist()]
    if saved is not None:
        kept = saved[rows[chosen]].tolist()
        programs = [
            program + (_registers(words) if columns[row, 0] == OrcType.CALL else b"")
            for program, words, row in zip(programs, kept, chosen.tolist(), strict=True)
        ]
    width = 5 + max(map(len, programs))
    distinct = np.zeros((len(programs), width), dtype=np.uint8)
    distinct[:, 0] = _ADVANCE_4
    for number, program in enumerate(programs):
        distinct[number, 5 : 5 + len(program)] = np.frombuffer(program, dtype=np.uint8)
    return distinct[which.reshape(-1)], width


def _program(kind: int, sp_register: int, sp_offset: int, bp_register: int, bp_offset: int) -> bytes:
    """Say how the frame and the frame pointer are found."""
    if kind == OrcType.END_OF_STACK:
        return b""
    register = OrcRegister(sp_register)
    if register is OrcRegister.SP_INDIRECT:
        # The saved pointer is at the top; the offset counts from it (87ccc826bf1c).
        how = (
            bytes((_OP_BREG | _DWARF["rsp"], 0, _OP_DEREF, _OP_CONSTS)) + encode_sleb128(sp_offset) + bytes((_OP_PLUS,))
        )
        out = bytes((_DEF_CFA_EXPRESSION, len(how))) + how
    elif register is OrcRegister.BP_INDIRECT:
        how = bytes((_OP_BREG | _DWARF["rbp"],)) + encode_sleb128(sp_offset) + bytes((_OP_DEREF,))
        out = bytes((_DEF_CFA_EXPRESSION, len(how))) + how
    elif sp_offset % 8:
        how = bytes((_OP_BREG | _BY[register],)) + encode_sleb128(sp_offset)
        out = bytes((_DEF_CFA_EXPRESSION, len(how))) + how
    else:
        out = bytes((_DEF_CFA_SF, _BY[register])) + encode_sleb128(sp_offset // _DATA_ALIGN)
    if kind in (OrcType.REGS, _SYSTEM_CALL):
        return out
    frame_pointer = _DWARF["rbp"]
    if bp_register == OrcRegister.PREV_SP and kind == OrcType.CALL and bp_offset % 8 == 0:
        return out + _saved(frame_pointer, bp_offset)
    if bp_register == OrcRegister.BP:
        how = bytes((_OP_BREG | frame_pointer,)) + encode_sleb128(bp_offset)
        return out + bytes((_EXPRESSION, frame_pointer, len(how))) + how
    return out + bytes((_SAME_VALUE, frame_pointer))


def _registers(words: Sequence[int]) -> bytes:
    """Say where registers are that are so many words below the frame."""
    out = bytearray()
    for register, word in zip(SAVED, words, strict=True):
        if word == SAME:
            out += bytes((_SAME_VALUE, register))
        elif word != UNKNOWN:
            out += bytes((_OFFSET | register, word))
        else:
            out += bytes((_UNDEFINED, register))
    return bytes(out)


def _saved(register: int, offset: int) -> bytes:
    """Say that a register is at an offset from the frame's address."""
    return bytes((_OFFSET_EXTENDED_SF, register)) + encode_sleb128(offset // _DATA_ALIGN)
