"""
XArrays, and the radix trees that they replaced.

``include/linux/xarray.h``: the two low bits of an entry are 10 for what the tree
itself needs: node pointers above 4096, and sibling, zero and retry entries below.
Radix trees until 4.19 (f8d5d0cc145c, "xarray: Add definition of struct
xarray") mark pointers to nodes by the bit 0 alone.
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

__all__ = ["XarrayLayout", "detect_xarray", "walk_xarray"]

_INTERNAL_LIMIT = 4096
_MOST_SHIFT = 63
_LAYOUTS = (
    ("struct xarray", "xa_head", "struct xa_node", 2),
    ("struct radix_tree_root", "rnode", "struct radix_tree_node", 1),
)


@dataclass(frozen=True, slots=True)
class XarrayLayout:
    """Where a root and its nodes keep what."""

    head: int
    """Of the first entry in the root, bytes."""
    size: int
    shift: int
    slots: int
    slot_count: int
    node_mark: int
    """Low bits of an entry that points to a node: 2, or 1 in old radix trees."""


def detect_xarray(prog: Program) -> XarrayLayout:
    """
    Find out how XArrays or radix trees are laid out.

    Raises
    ------
    FactAbsentError
        If the kernel's types tell neither.
    """
    names = (
        ("struct xarray", "xa_head", "struct xa_node", 2),
        ("struct radix_tree_root", "rnode", "struct radix_tree_node", 1),
    )
    for root_name, head_name, node_name, mark in names:
        try:
            root, node = prog.type(root_name), prog.type(node_name)
            slots = node.member("slots")
            return XarrayLayout(
                root.member(head_name).offset,
                node.size or 0,
                node.member("shift").offset,
                slots.offset,
                slots.type.length or 0,
                mark,
            )
        except LookupError:
            continue
    raise FactAbsentError("neither struct xarray nor struct radix_tree_root is known as it should be")


def walk_xarray(prog: Program, entry: int, layout: XarrayLayout, problems: list[Problem]) -> Iterator[Element]:
    """
    Walk an XArray or radix tree.

    Parameters
    ----------
    entry : int
        What the root holds (``xa_head``), or the address of a node.

    Yields
    ------
    Element
        Of each entry that is no part of the tree itself, value entries included.
    """
    visits = Visits(problems)
    pending: list[tuple[int, str, int, int]] = [(entry, "root", 0, _MOST_SHIFT + 1)]
    while pending:
        entry, position, index, above = pending.pop()
        if not entry:
            continue
        if not _is_node(entry, layout):
            if not _is_internal(entry, layout):
                yield Element(entry, position, index)
            continue
        node = entry & ~3
        if not visits.enter(node, position):
            continue
        try:
            data = prog.read(node, layout.size)
        except UNREADABLE as exc:
            visits.fail(node, position, exc)
            continue
        shift = data[layout.shift]
        if shift >= above or shift > _MOST_SHIFT:
            visits.damaged(position, f"node {node:x} has shift {shift}, must be below that of the node above")
            continue
        slots = struct.unpack_from(f"<{layout.slot_count}Q", data, layout.slots)
        pending += [
            (slot, f"{position}/{number}", index + (number << shift), shift)
            for number, slot in reversed(tuple(enumerate(slots)))
            if slot
        ]


def _is_node(entry: int, layout: XarrayLayout) -> bool:
    return entry & 3 == layout.node_mark and entry > _INTERNAL_LIMIT


def _is_internal(entry: int, layout: XarrayLayout) -> bool:
    return layout.node_mark == 2 and entry & 3 == 2
