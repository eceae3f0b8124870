"""Red-black trees (``include/linux/rbtree.h``)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from drgn import Program

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.walks.branches import Element, Visits
from postpanic.findings.table import Problem

__all__ = ["walk_red_black"]

_DEPTH_LIMIT = 128
"""A balanced tree of all memory has fewer levels; a damaged one may be a list."""


def walk_red_black(prog: Program, root: int, problems: list[Problem], *, in_order: bool = False) -> Iterator[Element]:
    """
    Walk a red-black tree.

    Parameters
    ----------
    root : int
        Address of the ``struct rb_node`` at the top; 0: an empty tree.
    in_order : bool
        From the leftmost node to the rightmost; otherwise each node before its
        children, the left before the right.

    Yields
    ------
    Element
        Of each node; a branch that cannot be read ends in a problem.
    """
    node_type = prog.type("struct rb_node")
    right, left = (node_type.member(name).offset for name in ("rb_right", "rb_left"))
    size = node_type.size or 24
    visits = Visits(problems)
    # A node, its position, and whether its left side was walked.
    pending: list[tuple[int, str, int, bool]] = [(root, "root", 0, False)]
    children: dict[int, tuple[int, int]] = {}
    while pending:
        node, position, depth, is_open = pending.pop()
        if not node:
            continue
        if is_open:
            yield Element(node, position)
            pending.append((children.pop(node)[1], f"{position}/r", depth + 1, False))
            continue
        if depth > _DEPTH_LIMIT:
            visits.damaged(position, f"more than {_DEPTH_LIMIT} levels")
            continue
        if not visits.enter(node, position):
            continue
        try:
            data = prog.read(node, size)
        except UNREADABLE as exc:
            visits.fail(node, position, exc)
            continue
        below_left, below_right = struct.unpack_from("<Q", data, left)[0], struct.unpack_from("<Q", data, right)[0]
        if in_order:
            children[node] = (below_left, below_right)
            pending += [(node, position, depth, True), (below_left, f"{position}/l", depth + 1, False)]
            continue
        yield Element(node, position)
        pending += [
            (below_right, f"{position}/r", depth + 1, False),
            (below_left, f"{position}/l", depth + 1, False),
        ]
