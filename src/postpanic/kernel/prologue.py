"""
The stack frame of an x86-64 function, read off its prologue and epilogue.

A few functions have no ORC entries because they do to the stack what objtool
does not follow (``STACK_FRAME_NON_STANDARD``). One of them is at the top of
every stack of a panic: ``__crash_kexec()``. Where such a function takes its frame
with ``sub $N,%rsp`` and gives it back with ``add $N,%rsp``, pops and a return, the
two confirm each other and say where the caller is.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FrameLayout", "FrameRow", "decode_frame_layout"]

_PROLOGUE_BYTES = 64
_LARGEST_FRAME_BYTES = 16 * 1024
_SUB = (b"\x48\x81\xec", b"\x48\x83\xec")
_ADD = (b"\x48\x81\xc4", b"\x48\x83\xc4")
_IMMEDIATE_BYTES = (4, 1)
_REX_B = 0x41
_PUSH = 0x50
_POP = 0x58
_RETURNS = (b"\xc3", b"\xcc", b"\xe9")
"""``ret``, ``int3`` (a return that was patched out) and the jump to the return thunk."""
_DWARF_REGISTERS = (0, 2, 1, 3, 7, 6, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15)
"""DWARF's number of each register, by the machine's number (System V ABI, figure 3.36)."""


@dataclass(frozen=True, slots=True)
class FrameRow:
    """From this offset in the function on, the caller's stack pointer is ``rsp + cfa_offset``."""

    offset: int
    cfa_offset: int
    saved: tuple[tuple[int, int], ...]
    """DWARF number of each saved register, and where it is: bytes below the caller's stack pointer."""


@dataclass(frozen=True, slots=True)
class FrameLayout:
    """Rows by rising offset; the first is the function's entry."""

    rows: tuple[FrameRow, ...]

    def at(self, offset: int) -> FrameRow:
        """Give the row in effect at an offset in the function."""
        return [row for row in self.rows if row.offset <= max(offset, 0)][-1]


def decode_frame_layout(code: bytes) -> FrameLayout | None:
    """
    Find how a function's frame is laid out, or None where that is not certain.

    Parameters
    ----------
    code : bytes
        The whole function.
    """
    for at in range(min(len(code), _PROLOGUE_BYTES)):
        for opcode, add, width in zip(_SUB, _ADD, _IMMEDIATE_BYTES, strict=True):
            if not code.startswith(opcode, at):
                continue
            immediate = code[at + 3 : at + 3 + width]
            size = int.from_bytes(immediate, "little")
            epilogues = _epilogues(code, add + immediate, at)
            pops = {pops for _, _, pops in epilogues}
            if not 0 < size <= _LARGEST_FRAME_BYTES or size % 8 or len(pops) != 1:
                continue
            pushes = _find_pushes(code[:at], pops.pop()[::-1])
            if pushes is not None:
                return _rows(pushes, at + 3 + width, size, epilogues)
    return None


def _epilogues(code: bytes, add: bytes, start: int) -> list[tuple[int, int, tuple[int, ...]]]:
    """Find each place where the frame is given back: behind the add, behind the return, registers popped."""
    found: list[tuple[int, int, tuple[int, ...]]] = []
    at = code.find(add, start)
    while at >= 0:
        begin = position = at + len(add)
        pops: list[int] = []
        while position < len(code):
            rex = code[position] == _REX_B
            opcode = code[position + rex : position + rex + 1]
            if not opcode or not _POP <= opcode[0] < _POP + 8:
                break
            pops.append(opcode[0] - _POP + 8 * rex)
            position += 1 + rex
        if code.startswith(_RETURNS, position):
            length = 5 if code[position] == _RETURNS[2][0] else 1
            found.append((begin, position + length, tuple(pops)))
        at = code.find(add, at + 1)
    return found


def _find_pushes(prologue: bytes, registers: tuple[int, ...]) -> list[tuple[int, int]] | None:
    """Find the pushes of these registers in order: offset behind each, and the register."""
    found: list[tuple[int, int]] = []
    at = 0
    for register in registers:
        opcode = bytes((_REX_B, _PUSH + register - 8)) if register >= 8 else bytes((_PUSH + register,))
        position = prologue.find(opcode, at)
        if position < 0:
            return None
        at = position + len(opcode)
        found.append((at, register))
    return found


def _rows(
    pushes: list[tuple[int, int]], body: int, size: int, epilogues: list[tuple[int, int, tuple[int, ...]]]
) -> FrameLayout:
    cfa_offset = 8
    saved: list[tuple[int, int]] = []
    rows = [FrameRow(0, cfa_offset, ())]
    for offset, register in pushes:
        cfa_offset += 8
        saved.append((_DWARF_REGISTERS[register], cfa_offset))
        rows.append(FrameRow(offset, cfa_offset, tuple(saved)))
    whole = FrameRow(body, cfa_offset + size, tuple(saved))
    rows.append(whole)
    for begin, end, pops in epilogues:
        left = list(saved)
        offset = begin
        rows.append(FrameRow(offset, cfa_offset, tuple(left)))
        for count, register in enumerate(pops, 1):
            offset += 2 if register >= 8 else 1
            left.pop()
            rows.append(FrameRow(offset, cfa_offset - 8 * count, tuple(left)))
        rows.append(FrameRow(end, whole.cfa_offset, whole.saved))
    return FrameLayout(tuple(sorted(rows, key=lambda row: row.offset)))
