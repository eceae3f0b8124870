"""
Maple trees (``include/linux/maple_tree.h``, ``lib/maple_tree.c``; since 6.1, 54a611b60590).

A pointer to a node carries the node's type in its bits 3 to 6. A node has
pivots, the last index of each slot; the last slot reaches to where the node ends.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from drgn import Program

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.walks.branches import Element, Visits
from postpanic.errors import FactAbsentError
from postpanic.findings.table import Problem

__all__ = ["MapleNode", "MapleTree"]

_LAST = (1 << 64) - 1
_NODE_MASK = 0xFF
_INTERNAL_LIMIT = 4096
_DENSE, _LEAF_64, _RANGE_64 = 0, 1, 2
_DEPTH_LIMIT = 32


@dataclass(frozen=True, slots=True)
class MapleNode:
    """A node, as ``tree -v`` shows it."""

    vaddr: int
    type: int
    depth: int
    first: int
    last: int
    parent: int
    slots: tuple[tuple[int, int, int], ...]
    """First index, last index and entry of each."""


@dataclass(frozen=True, slots=True)
class _Shape:
    pivots: int
    pivot_count: int
    slots: int
    slot_count: int


class MapleTree:
    """
    Reads a maple tree.

    Parameters
    ----------
    prog : Program
    root : int
        What ``maple_tree.ma_root`` holds, or the address of a node with its type.

    Raises
    ------
    FactAbsentError
        If the kernel has no maple trees.
    """

    def __init__(self, prog: Program, root: int, problems: list[Problem]) -> None:
        self._prog = prog
        self._root = root
        self._visits = Visits(problems)
        try:
            self._size = prog.type("struct maple_node").size or 256
            range_64 = _shape(prog, "struct maple_range_64")
            self._shapes = {_LEAF_64: range_64, _RANGE_64: range_64}
            arange = _shape(prog, "struct maple_arange_64")
            self._slot_count = self._size // 8 - 1
        except LookupError:
            raise FactAbsentError("the kernel has no maple trees") from None
        # Newer kernels put further types between: what has gaps is the last one (or next to last).
        self._arange = arange

    def walk(self) -> Iterator[Element | MapleNode]:
        """Yield each node before what it holds, and each entry that is no part of the tree itself."""
        if self._root and not self._is_node(self._root):
            yield Element(self._root, "root", 1, 0, 0)
            return
        count = 0
        pending: list[tuple[int, str, int, int, int]] = [(self._root, "root", 0, 0, _LAST)]
        while pending:
            entry, position, depth, first, last = pending.pop()
            if not entry:
                continue
            # Below the root a pointer to a node has no mark of its own: what is not in a leaf is one.
            if depth == -1:
                count += 1
                yield Element(entry, position, count, first, last)
                continue
            node = self._read(entry, position, depth, first, last)
            if node is None:
                continue
            yield node
            is_leaf = node.type in {_DENSE, _LEAF_64}
            pending += [
                (slot, f"{position}/{number}", -1 if is_leaf else depth + 1, low, high)
                for number, (low, high, slot) in reversed(tuple(enumerate(node.slots)))
                if slot and not (is_leaf and slot < _INTERNAL_LIMIT and slot & 3 == 2)
            ]

    def _is_node(self, entry: int) -> bool:
        return entry & 3 == 2 and entry > _INTERNAL_LIMIT

    def _read(self, entry: int, position: str, depth: int, first: int, last: int) -> MapleNode | None:
        vaddr, kind = entry & ~_NODE_MASK, entry >> 3 & 0xF
        if depth > _DEPTH_LIMIT:
            self._visits.damaged(position, f"more than {_DEPTH_LIMIT} levels")
            return None
        if not self._visits.enter(vaddr, position):
            return None
        try:
            data = self._prog.read(vaddr, self._size)
        except UNREADABLE as exc:
            self._visits.fail(vaddr, position, exc)
            return None
        parent = struct.unpack_from("<Q", data)[0]
        slots = tuple(self._slots(data, kind, first, last))
        if any(not low <= high <= last for low, high, _ in slots):
            self._visits.damaged(position, f"node {vaddr:x} has pivots that do not rise")
            return None
        return MapleNode(vaddr, kind, depth, first, last, parent, slots)

    def _slots(self, data: bytes, kind: int, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        if kind == _DENSE:
            for number in range(self._slot_count):
                if first + number > last:
                    return
                yield first + number, first + number, struct.unpack_from("<Q", data, 8 + 8 * number)[0]
            return
        shape = self._shapes.get(kind, self._arange)
        for number in range(shape.slot_count):
            high = last
            if number < shape.pivot_count:
                pivot = struct.unpack_from("<Q", data, shape.pivots + 8 * number)[0]
                # A pivot of 0 behind the first one is not used: the slot is the last.
                high = pivot if pivot or not number else last
            yield first, high, struct.unpack_from("<Q", data, shape.slots + 8 * number)[0]
            if high >= last:
                return
            first = high + 1


def _shape(prog: Program, name: str) -> _Shape:
    type_ = prog.type(name)
    pivot, slot = type_.member("pivot"), type_.member("slot")
    return _Shape(pivot.offset, pivot.type.length or 0, slot.offset, slot.type.length or 0)
