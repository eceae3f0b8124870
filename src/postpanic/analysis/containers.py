"""
What is in a tree of the kernel, as drgn objects.

The walks (:mod:`postpanic.analysis.walks`) visit each node once: a tree that was
damaged into a circle ends, and what is wrong with it is said.
"""

from __future__ import annotations

from collections.abc import Iterator

from drgn import Object, offsetof

from postpanic.analysis.cells import problem
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.walks.branches import Element
from postpanic.analysis.walks.maple import MapleTree
from postpanic.analysis.walks.red_black import walk_red_black
from postpanic.analysis.walks.xarray import detect_xarray, walk_xarray
from postpanic.findings.table import Problem

__all__ = ["idr_entries", "maple_entries", "red_black_entries", "xarray_entries"]


class _Named(list[Problem]):
    """Passes problems on, with the name of the tree before them."""

    def __init__(self, what: str, problems: list[Problem]) -> None:
        super().__init__()
        self._what = what
        self._problems = problems

    def append(self, problem: Problem, /) -> None:
        """Pass one on."""
        self._problems.append(Problem(f"{self._what}: {problem.what}", problem.reason))


def maple_entries(tree: Object, type_name: str, what: str, problems: list[Problem]) -> Iterator[tuple[int, Object]]:
    """
    Walk a ``struct maple_tree`` of pointers; *what* names it in problems.

    Yields
    ------
    tuple of int and Object
        First index of each entry, and the entry as a pointer to *type_name*.
    """
    prog = tree.prog_
    pointer = prog.type(f"{type_name} *")
    try:
        root = int(tree.ma_root.value_())
    except UNREADABLE as exc:
        problems.append(problem(what, exc))
        return
    for found in MapleTree(prog, root, _Named(what, problems)).walk():
        if isinstance(found, Element):
            yield found.first or 0, Object(prog, pointer, found.vaddr)


def xarray_entries(tree: Object, type_name: str, what: str, problems: list[Problem]) -> Iterator[tuple[int, Object]]:
    """
    Walk a ``struct xarray`` or ``struct radix_tree_root`` of pointers.

    Values and marks are left out; *what* names the tree in problems.

    Yields
    ------
    tuple of int and Object
        Index of each entry, and the entry as a pointer to *type_name*.
    """
    prog = tree.prog_
    pointer = prog.type(f"{type_name} *")
    layout = detect_xarray(prog)
    address = tree.address_
    if address is None:
        raise TypeError("only a tree in memory can be walked")
    try:
        head = int.from_bytes(prog.read(address + layout.head, 8), "little")
    except UNREADABLE as exc:
        problems.append(problem(what, exc))
        return
    for found in walk_xarray(prog, head, layout, _Named(what, problems)):
        if not found.vaddr & 3:
            yield found.index or 0, Object(prog, pointer, found.vaddr)


def idr_entries(idr: Object, type_name: str, what: str, problems: list[Problem]) -> Iterator[tuple[int, Object]]:
    """Walk a ``struct idr``, as :func:`xarray_entries` does; the indexes are identifiers."""
    try:
        base = int(idr.idr_base.value_())
    except UNREADABLE as exc:
        problems.append(problem(what, exc))
        return
    for index, entry in xarray_entries(idr.idr_rt, type_name, what, problems):
        yield base + index, entry


def red_black_entries(
    root: Object, type_name: str, member: str, what: str, problems: list[Problem]
) -> Iterator[Object]:
    """Walk the objects in a ``struct rb_root``, in order: pointers to *type_name*, whose node is *member*."""
    prog = root.prog_
    pointer = prog.type(f"{type_name} *")
    offset = offsetof(prog.type(type_name), member)
    try:
        first = int(root.rb_node.value_())
    except UNREADABLE as exc:
        problems.append(problem(what, exc))
        return
    for found in walk_red_black(prog, first, _Named(what, problems), in_order=True):
        yield Object(prog, pointer, found.vaddr - offset)
