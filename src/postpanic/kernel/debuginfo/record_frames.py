"""
``.debug_frame`` for arm64 by frame records: a debugger then unwinds stacks as the kernel does.

The kernel has no unwind tables there: every function that calls another keeps a
record of two words in its frame, the caller's ``x29`` and the return address,
and ``x29`` points to it. Where in a function that is so, its code tells: from
the instruction that sets ``x29`` on, but for the epilogues. Elsewhere the caller
is in ``x30``. An exception's entry keeps its record inside the registers that it
saved (``struct pt_regs``).

A return address may carry an authentication code in the bits that an address of
the kernel has set, so those bits are set. What else a function has saved is not
told: it is undefined, not the same value.

Sources: ``arch/arm64/kernel/entry.S``; Arm "DWARF for the Arm 64-bit Architecture",
4.1 (numbers of registers) and "Procedure Call Standard for the Arm 64-bit
Architecture", 6.4.6 (frame pointer); Arm ARM C6.2 for the instructions; DWARF 5, 6.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from postpanic.kernel.debuginfo.leb128 import encode_sleb128, encode_uleb128

__all__ = ["FrameRule", "Stretches", "encode_record_frames", "find_stretches"]

_FP, _LR, _SP, _PC = 29, 30, 31, 32
_GENERAL = range(29)
_INSTRUCTION_BYTES = 4
_RECORD_BYTES = 16
_EPILOGUE_INSTRUCTIONS = 16
"""How far behind the restored record a function leaves, at the most."""

_SET_FP = (0xFFC0_03FF, 0x9100_03FD)
"""``ADD x29, sp, #imm``; only from there on x29 points to the record."""
_PUSH_RECORD = (0xFFC0_7FFF, 0xA980_7BFD)
_STORE_RECORD = (0xFFC0_7FFF, 0xA900_7BFD)
_MAKE_ROOM = (0xFFC0_03FF, 0xD100_03FF)
"""``STP x29, x30, [sp, #imm]!``, ``STP x29, x30, [sp, #imm]``, ``SUB sp, sp, #imm``."""
_LOAD_RECORD = ((0xFFC0_7FFF, 0xA8C0_7BFD), (0xFFC0_7FFF, 0xA940_7BFD))
_RETURNS = (0xD65F_03C0, 0xD65F_0BFF, 0xD65F_0FFF)
_BRANCHES = ((0xFC00_0000, 0x1400_0000), (0xFFFF_FC1F, 0xD61F_0000))
"""``B`` and ``BR``."""
_CALLS = ((0xFC00_0000, 0x9400_0000), (0xFFFF_FC1F, 0xD63F_0000))
"""``BL`` and ``BLR``."""

_UNDEFINED = 0x07
_SAME_VALUE = 0x08
_DEF_CFA = 0x0C
_EXPRESSION = 0x10
_VAL_EXPRESSION = 0x16
_OP_DEREF = 0x06
_OP_CONST1U = 0x08
_OP_CONST8U = 0x0E
_OP_DUP = 0x12
_OP_AND = 0x1A
_OP_OR = 0x21
_OP_SHL = 0x24
_OP_BRA = 0x28
_OP_SKIP = 0x2F
_OP_LIT1 = 0x31
_OP_BREG = 0x70
_DATA_ALIGN = -8
_KERNEL_BIT = 55
"""Tells the kernel's half from the user's, whatever the bits above it are used for."""

ENTRY = np.dtype(
    [("length", "<u4"), ("cie", "<u4"), ("start", "<u8"), ("size", "<u8"), ("augmentation", "u1"), ("pad", "u1", 7)]
)
"""A frame description entry without a program of its own: all is said by the common one."""


class FrameRule:
    """How the caller's frame is found; numbers of the common entries."""

    LEAF = 0
    """By ``x30``, and the stack pointer is the caller's."""
    RECORD = 1
    """By the record that ``x29`` points to."""
    EXCEPTION = 2
    """By the registers that an exception saved around the record."""
    ENTRY = 3
    """The same, of an exception in user mode: nothing of the kernel was interrupted."""
    END = 4
    """There is none."""


@dataclass(frozen=True, slots=True)
class Stretches:
    """
    Code by the rule that holds in it.

    Parameters
    ----------
    starts, ends : ndarray of uint64
        ``[start, end)`` of each.
    rules : ndarray of uint8
        Of :class:`FrameRule`.
    frame_bytes : ndarray of uint16
        How far above the record the caller's stack pointer is; 0: that is not known.
    """

    starts: NDArray[np.uint64]
    ends: NDArray[np.uint64]
    rules: NDArray[np.uint8]
    frame_bytes: NDArray[np.uint16]


def find_stretches(code: NDArray[np.uint32], vaddr: int, functions: NDArray[np.uint64]) -> Stretches:
    """
    Find where in code there is a frame record, and where there is none.

    Parameters
    ----------
    code : ndarray of uint32
        Instructions; zeroes where they are not known.
    vaddr : int
        Address of the first.
    functions : ndarray of uint64
        Where functions begin, rising; those outside of the code are left out.

    Returns
    -------
    Stretches
        Rising and without gaps from the first function on; each function begins one.
    """
    end = vaddr + _INSTRUCTION_BYTES * len(code)
    functions = functions[(functions >= np.uint64(vaddr)) & (functions < np.uint64(end))]
    begins = np.unique((functions - np.uint64(vaddr)).astype(np.int64) // _INSTRUCTION_BYTES)
    if not len(begins):
        nowhere = np.zeros(0, dtype=np.uint64)
        return Stretches(nowhere, nowhere, np.zeros(0, dtype=np.uint8), np.zeros(0, dtype=np.uint16))
    made = np.flatnonzero(_is(code, _SET_FP)) + 1
    loaded, left = _find_epilogues(code)
    events = (
        (FrameRule.RECORD, _find_calls(code, begins, made)),
        (FrameRule.RECORD, made),
        (FrameRule.LEAF, loaded),
        (FrameRule.RECORD, left),
        # A function that begins where another one left has no record yet.
        (FrameRule.LEAF, begins),
        # What is called is known to come back; of code that is gone nothing else is.
        (FrameRule.RECORD, begins[code[begins] == 0]),
    )
    places = np.concatenate([at for _, at in events])
    rules = np.repeat(np.array([rule for rule, _ in events], dtype=np.uint8), [len(at) for _, at in events])
    order = np.argsort(places, kind="stable")
    places, rules = places[order], rules[order]
    last = np.append(places[1:] != places[:-1], True) & (places >= begins[0]) & (places < len(code))
    places, rules = places[last], rules[last]
    changes = np.append(True, rules[1:] != rules[:-1]) | np.isin(places, begins)
    places, rules = places[changes], rules[changes]
    starts = places.astype(np.uint64) * np.uint64(_INSTRUCTION_BYTES) + np.uint64(vaddr)
    # Of the function that a stretch belongs to, the record that was made last.
    function = np.searchsorted(begins, places, side="right") - 1
    of_function = np.zeros(len(begins), dtype=np.uint16)
    of_function[np.maximum(np.searchsorted(begins, made, side="right") - 1, 0)] = _measure_frames(code, made - 1)
    frame_bytes = np.where(rules == FrameRule.RECORD, of_function[function], 0).astype(np.uint16)
    return Stretches(starts, np.append(starts[1:], np.uint64(end)), rules, frame_bytes)


def _is(code: NDArray[np.uint32], *patterns: tuple[int, int]) -> NDArray[np.bool_]:
    found = np.zeros(len(code), dtype=np.bool_)
    for mask, value in patterns:
        found |= (code & np.uint32(mask)) == np.uint32(value)
    return found


def _measure_frames(code: NDArray[np.uint32], setters: NDArray[np.int64]) -> NDArray[np.uint16]:
    """Tell by the instructions before ``x29`` is set how far above the record the frame ends; 0: they do not tell."""
    before, first = code[np.maximum(setters - 1, 0)], code[np.maximum(setters - 2, 0)]
    offset = code[setters] >> np.uint32(10) & np.uint32(0xFFF)
    pushed = np.uint32(128) - (before >> np.uint32(15) & np.uint32(0x7F))
    stored = before >> np.uint32(15) & np.uint32(0x7F)
    room = first >> np.uint32(10) & np.uint32(0xFFF)
    by_push = _is(before, _PUSH_RECORD) & (offset == 0) & (pushed <= 64)
    by_room = _is(before, _STORE_RECORD) & _is(first, _MAKE_ROOM) & (stored * np.uint32(8) == offset) & (room > offset)
    found = np.where(by_push, pushed * np.uint32(8), np.where(by_room, room - offset, np.uint32(0)))
    return found.astype(np.uint16)


def _find_epilogues(code: NDArray[np.uint32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find behind which instructions the record is given back, and behind which the function has left then."""
    loads = np.flatnonzero(_is(code, *_LOAD_RECORD))
    exits = np.flatnonzero(np.isin(code, np.array(_RETURNS, dtype=np.uint32)) | _is(code, *_BRANCHES))
    if not len(exits):
        return loads + 1, exits
    following = exits[np.minimum(np.searchsorted(exits, loads, side="right"), len(exits) - 1)]
    is_near = (following > loads) & (following <= loads + _EPILOGUE_INSTRUCTIONS)
    return loads + 1, following[is_near] + 1


def _find_calls(code: NDArray[np.uint32], begins: NDArray[np.int64], made: NDArray[np.int64]) -> NDArray[np.int64]:
    """Find the calls of functions that have made their record further up: what calls keeps its own caller there."""
    calls = np.flatnonzero(_is(code, *_CALLS))
    function = begins[np.maximum(np.searchsorted(begins, calls, side="right") - 1, 0)]
    before = np.searchsorted(made, calls, side="right") - 1
    found: NDArray[np.int64] = (
        calls[(before >= 0) & (made[np.maximum(before, 0)] > function)] if len(made) else calls[:0]
    )
    return found


def encode_record_frames(stretches: Sequence[Stretches], *, code_mask: int, registers_offset: int) -> bytes:
    """
    Encode a ``.debug_frame`` section, at the addresses that the stretches are of.

    Parameters
    ----------
    code_mask : int
        The bits of an address of the kernel that an authentication code may be in.
    registers_offset : int
        Bytes from ``struct pt_regs`` to the record in it.
    """
    kinds = [each.rules.astype(np.uint32) << np.uint32(16) | each.frame_bytes for each in stretches]
    distinct = np.unique(np.concatenate(kinds)) if kinds else np.zeros(0, dtype=np.uint32)
    common = [_common(int(kind) >> 16, int(kind) & 0xFFFF, code_mask, registers_offset) for kind in distinct]
    offsets = np.cumsum([0, *map(len, common)])[:-1].astype("<u4")
    parts = list(common)
    for each, kind in zip(stretches, kinds, strict=True):
        entries = np.zeros(len(each.starts), dtype=ENTRY)
        entries["length"] = ENTRY.itemsize - 4
        entries["cie"] = offsets[np.searchsorted(distinct, kind)]
        entries["start"] = each.starts
        entries["size"] = each.ends - each.starts
        parts.append(entries.tobytes())
    return b"".join(parts)


def _common(rule: int, frame_bytes: int, code_mask: int, registers_offset: int) -> bytes:
    """Make the common entry of a rule: all that holds in its stretches."""
    is_signal = rule == FrameRule.EXCEPTION
    return_column = _PC if rule in (FrameRule.EXCEPTION, FrameRule.ENTRY) else _LR
    head = b"\xff\xff\xff\xff\x01" + (b"zS\0" if is_signal else b"z\0") + b"\x01" + encode_sleb128(_DATA_ALIGN)
    body = head + bytes((return_column, 0)) + _program(rule, frame_bytes, code_mask, registers_offset)
    body += bytes(-(len(body) + 4) % 8)
    return len(body).to_bytes(4, "little") + body


def _program(rule: int, frame_bytes: int, code_mask: int, registers_offset: int) -> bytes:
    program = bytearray()
    if rule == FrameRule.LEAF:
        program += bytes((_DEF_CFA, _SP, 0))
        program += b"".join(bytes((_UNDEFINED, number)) for number in _GENERAL)
        program += bytes((_SAME_VALUE, _FP))
        program += _value(_LR, bytes((_OP_BREG + _LR, 0)) + _strip(code_mask))
    elif rule == FrameRule.RECORD:
        # The frame's address is the caller's stack pointer, where that is known.
        program += bytes((_DEF_CFA, _FP)) + encode_uleb128(frame_bytes or _RECORD_BYTES)
        program += b"".join(bytes((_UNDEFINED, number)) for number in (*_GENERAL, *(() if frame_bytes else (_SP,))))
        program += _at_record(_FP, 0)
        program += _value(_LR, bytes((_OP_BREG + _FP, 8, _OP_DEREF)) + _strip(code_mask))
    elif rule in (FrameRule.EXCEPTION, FrameRule.ENTRY):
        # struct user_pt_regs: x0 to x30, sp, pc, pstate, and the record behind them.
        program += bytes((_DEF_CFA, _FP, _RECORD_BYTES))
        for number in (*_GENERAL, _FP, _LR, _SP, _PC):
            program += _at_record(number, 8 * number - registers_offset)
    else:
        # Below a frame with a record the stack pointer may not be known.
        program += bytes((_DEF_CFA, _FP, 0, _UNDEFINED, _LR))
    return bytes(program)


def _strip(code_mask: int) -> bytes:
    """Set the bits of an authentication code in the address on the stack, if it is one of the kernel."""
    setting = bytes((_OP_CONST8U,)) + code_mask.to_bytes(8, "little") + bytes((_OP_OR,))
    skip = bytes((_OP_SKIP,)) + len(setting).to_bytes(2, "little")
    test = bytes((_OP_DUP, _OP_LIT1, _OP_CONST1U, _KERNEL_BIT, _OP_SHL, _OP_AND))
    return test + bytes((_OP_BRA,)) + len(skip).to_bytes(2, "little") + skip + setting


def _value(register: int, how: bytes) -> bytes:
    return bytes((_VAL_EXPRESSION, register)) + encode_uleb128(len(how)) + how


def _at_record(register: int, offset: int) -> bytes:
    """Say that a register is at an offset from the record."""
    how = bytes((_OP_BREG + _FP,)) + encode_sleb128(offset)
    return bytes((_EXPRESSION, register)) + encode_uleb128(len(how)) + how
