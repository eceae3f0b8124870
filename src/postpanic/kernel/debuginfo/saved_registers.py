"""
Where functions of x86-64 keep the registers that they must preserve, by their code.

ORC tells of the stack and the frame pointer only. A function pushes each of the
other registers that it changes before it takes its frame, and its table has a
row behind each push: the instruction before the row names the register. In a
function with a frame pointer the rows do not count pushes, and its end tells: it
pops the registers right before the frame pointer. What is not pushed is not
changed (System V ABI, figure 3.4). Where pushes and pops do not agree, or a frame
is taken before the pushes, nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from postpanic.kernel.orc import OrcRegister, OrcTable, OrcType

__all__ = ["SAME", "SAVED", "UNKNOWN", "find_saved_registers"]

SAVED = (3, 12, 13, 14, 15)
"""DWARF's numbers of ``rbx`` and ``r12`` to ``r15``, which are the machine's, too; ``rbp`` is in the tables."""
SAME = 0
UNKNOWN = 63
_LARGEST_CODE_BYTES = 256 << 20
_MARGIN_BYTES = 8
_MOST_SLOTS = 64
_PUSH, _POP, _POP_RBP, _REX_B = 0x50, 0x58, 0x5D, 0x41
_FRAME_POINTER_WORD = 2
"""Below the return address."""
_MANY = 1 << 8
_MACHINE_REGISTERS = 16

Code = Callable[[int, int], NDArray[np.uint8]]
"""Gives code by address and size; zeroes where it is not known."""


def find_saved_registers(table: OrcTable, functions: NDArray[np.uint64], read: Code) -> NDArray[np.uint8]:
    """
    Find where each register of :data:`SAVED` is, for each row of a table.

    Parameters
    ----------
    functions : ndarray of uint64
        Where functions begin, rising.
    read : callable
        Reads code.

    Returns
    -------
    ndarray of uint8, shape (rows, 5)
        How many words below the frame's address it is; :data:`SAME` where the
        function has not changed it, :data:`UNKNOWN` where that is not certain.
    """
    found = np.full((len(table), len(SAVED)), UNKNOWN, dtype=np.uint8)
    if len(table) < 2 or not len(functions):
        return found
    # A module has a few of all functions.
    first = max(int(np.searchsorted(functions, table.vaddrs[0], side="right")) - 1, 0)
    functions = functions[first : int(np.searchsorted(functions, table.vaddrs[-1], side="right"))]
    if not len(functions):
        return found
    start = int(table.vaddrs[0]) - _MARGIN_BYTES
    size = int(table.vaddrs[-1]) - start
    if not 0 < size <= _LARGEST_CODE_BYTES:
        return found
    rows = _Rows(table, functions, read(start, size), start)
    slots, is_unknown = rows.find_slots()
    by_sp = rows.by_sp
    has_frame = by_sp & (rows.offset > 1) & (rows.function >= 0)
    saved = slots[rows.function]
    in_frame = (saved > 0) & (rows.offset[:, None] >= saved)
    # A function that never returns need not preserve anything.
    otherwise = np.where(rows.find_returning()[rows.function], SAME, UNKNOWN)[:, None]
    told = np.where(is_unknown[rows.function], UNKNOWN, np.where(in_frame, saved, otherwise))
    found[has_frame] = told[has_frame]
    found[by_sp & (rows.offset == 1)] = SAME
    by_bp = rows.by_bp & (rows.function >= 0)
    slots, is_unknown = rows.find_slots_below_frame_pointer()
    found[by_bp] = np.where(is_unknown[rows.function], UNKNOWN, slots[rows.function])[by_bp]
    return found


class _Rows:
    """The rows of a table, and the instruction before each."""

    def __init__(self, table: OrcTable, functions: NDArray[np.uint64], code: NDArray[np.uint8], start: int) -> None:
        self.by_sp = (table.type == OrcType.CALL) & (table.sp_register == OrcRegister.SP) & (table.sp_offset % 8 == 0)
        self.by_bp = (
            (table.type == OrcType.CALL)
            & (table.sp_register == OrcRegister.BP)
            & (table.sp_offset == _FRAME_POINTER_WORD * 8)
        )
        # In words; what no function pushes that much for is of no use.
        self.offset = np.where(self.by_sp & (table.sp_offset > 0), table.sp_offset // 8, 0).astype(np.int64)
        self.function = np.searchsorted(functions, table.vaddrs, side="right") - 1
        self._count = len(functions)
        self._code = code
        self._at = (table.vaddrs - np.uint64(start)).astype(np.int64)
        first = np.maximum(np.searchsorted(table.vaddrs, functions, side="right") - 1, 0)
        self._is_whole = self.by_sp[first] & (self.offset[first] == 1)
        """Whether a function begins as one that is called: not the part of another, nor assembly that is entered."""

    def find_slots(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """For each function and register, the word where it is pushed (0: it is not), and whether that is uncertain."""
        saved, is_unknown = self._settle(*self._moves())
        is_unknown |= ~self._is_whole[:, None]
        is_unknown |= self._takes_frame_early(saved.max(axis=1))[:, None]
        return saved, is_unknown

    def find_slots_below_frame_pointer(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Tell the same of functions with a frame pointer, by what they pop at their end."""
        ends = np.zeros(len(self.offset), dtype=np.bool_)
        ends[1:] = self.by_sp[1:] & self.by_bp[:-1] & (self.function[1:] == self.function[:-1])
        rows = np.flatnonzero(ends & (self.offset == 1) & (self._byte(1) == _POP_RBP) & (self.function >= 0))
        at = self._at[rows] - 2
        is_pop = np.ones(len(rows), dtype=np.bool_)
        found: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]] = []
        for slot in range(_FRAME_POINTER_WORD + 1, _FRAME_POINTER_WORD + 1 + len(SAVED)):
            last, prefix = self._code[np.maximum(at, 0)], self._code[np.maximum(at - 1, 0)] == _REX_B
            register = (last & 7).astype(np.int64) + 8 * prefix
            is_pop &= (last & 0xF8 == _POP) & np.isin(register, SAVED)
            found.append((self.function[rows[is_pop]], np.full(int(is_pop.sum()), slot), register[is_pop]))
            at = at - 1 - prefix
        functions, slots, registers = (np.concatenate(parts) for parts in zip(*found, strict=True))
        saved, is_unknown = self._settle(functions, slots, registers)
        has_end = np.zeros(self._count, dtype=np.bool_)
        has_end[self.function[rows]] = True
        return saved, is_unknown | ~has_end[:, None] | ~self._is_whole[:, None]

    def find_returning(self) -> NDArray[np.bool_]:
        """Tell which functions give their frame back."""
        rows = np.arange(len(self.offset))
        within = self.by_sp & (self.function >= 0)
        last = np.full(self._count, -1, dtype=np.int64)
        bare = within & (self.offset == 1)
        np.maximum.at(last, self.function[bare], rows[bare])
        first = np.full(self._count, len(rows), dtype=np.int64)
        deep = within & (self.offset > 1)
        np.minimum.at(first, self.function[deep], rows[deep])
        return last > first

    def _settle(
        self, functions: NDArray[np.int64], slots: NDArray[np.int64], registers: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Find the slot of each register of each function, and which are in dispute."""
        pairs = np.unique((functions * _MANY + slots) * _MACHINE_REGISTERS + registers)
        keys, register_of = pairs // _MACHINE_REGISTERS, pairs % _MACHINE_REGISTERS
        # Rising: those of one word are neighbours.
        is_disputed = np.zeros(len(keys), dtype=np.bool_)
        is_same = keys[1:] == keys[:-1]
        is_disputed[1:] |= is_same
        is_disputed[:-1] |= is_same
        owner, slot = keys // _MANY, keys % _MANY
        is_unknown = np.zeros((self._count, len(SAVED)), dtype=np.bool_)
        saved = np.zeros((self._count, len(SAVED)), dtype=np.int64)
        for column, register in enumerate(SAVED):
            mine = register_of == register
            is_unknown[owner[mine & is_disputed], column] = True
            # The first push of a register is the one that keeps the caller's value; later ones are arguments.
            order = np.flatnonzero(mine)[::-1]
            saved[owner[order], column] = slot[order]
        return saved, is_unknown

    def _moves(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Find function, slot and register of each push and pop."""
        follows = np.zeros(len(self.offset), dtype=np.bool_)
        follows[1:] = self.by_sp[1:] & self.by_sp[:-1] & (self.function[1:] == self.function[:-1])
        follows &= self.function >= 0
        step = np.diff(self.offset, prepend=0)
        last = self._byte(1)
        pushes = follows & (step == 1) & (last & 0xF8 == _PUSH)
        pops = follows & (step == -1) & (last & 0xF8 == _POP)
        # An instruction of one byte has no prefix.
        has_prefix = (self._byte(2) == _REX_B) & (np.diff(self._at, prepend=0) > 1)
        register = (last & 7).astype(np.int64) + 8 * has_prefix
        slot = np.where(pushes, self.offset, self.offset + 1)
        moves = np.flatnonzero((pushes | pops) & (slot < _MOST_SLOTS - 1))
        return self.function[moves], slot[moves], register[moves]

    def _takes_frame_early(self, deepest: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which functions make room on their stack on a way that does not come by all of their pushes."""
        short = (self._byte(4) == 0x48) & (self._byte(3) == 0x83) & (self._byte(2) == 0xEC)
        long = (self._byte(7) == 0x48) & (self._byte(6) == 0x81) & (self._byte(5) == 0xEC)
        before = np.concatenate(([0], self.offset[:-1]))
        rows = np.flatnonzero((short | long) & (self.offset > before) & (self.function >= 0))
        early = rows[before[rows] < deepest[self.function[rows]]]
        found = np.zeros(self._count, dtype=np.bool_)
        found[self.function[early]] = True
        return found

    def _byte(self, back: int) -> NDArray[np.uint8]:
        """Give the byte so many before each row."""
        found: NDArray[np.uint8] = self._code[np.maximum(self._at - back, 0)]
        return found
