"""What a task has open: its table of file descriptors, its root and its working directory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from drgn import Object, sizeof
from drgn.helpers.linux.mm import compound_nr

from postpanic.analysis.cells import problem
from postpanic.analysis.containers import xarray_entries
from postpanic.analysis.context import UNREADABLE
from postpanic.findings.absent import Reason
from postpanic.findings.table import Problem

__all__ = ["OpenFile", "cached_pages", "read_open_files", "task_directories"]

_MAX_DESCRIPTORS = 1 << 26
"""``NR_OPEN`` can be raised to this (``sysctl_nr_open_max``)."""


@dataclass(frozen=True, slots=True)
class OpenFile:
    """One file descriptor of a task."""

    fd: int
    file: Object
    """``struct file *``."""


def read_open_files(task: Object, problems: list[Problem]) -> Iterator[OpenFile]:
    """
    Walk the open file descriptors of a task, in their order.

    The table is read as a whole. What cannot be read ends the walk, and is said
    in *problems*.
    """
    prog = task.prog_
    what = f"file descriptors of PID {task.pid.value_()}"
    try:
        files = task.files.read_()
        if not files:
            return
        table = files.fdt.read_()
        count = int(table.max_fds.value_())
        if not 0 <= count <= _MAX_DESCRIPTORS:
            problems.append(Problem(f"{what}: max_fds is {count}, no task has more than {_MAX_DESCRIPTORS}", _DAMAGED))
            return
        word_bytes = sizeof(table.open_fds.type_.type)
        is_open = np.unpackbits(
            np.frombuffer(prog.read(table.open_fds.value_(), -(-count // (8 * word_bytes)) * word_bytes), np.uint8),
            bitorder="little",
        )[:count]
        pointers = np.frombuffer(prog.read(table.fd.value_(), 8 * count), "<u8")
    except UNREADABLE as exc:
        problems.append(problem(what, exc))
        return
    file_type = prog.type("struct file *")
    # A bit without a file is a descriptor that is just being opened or closed.
    for fd in np.flatnonzero(is_open & (pointers != 0)).tolist():
        yield OpenFile(fd, Object(prog, file_type, int(pointers[fd])))


_DAMAGED = Reason.DAMAGED


def task_directories(task: Object) -> tuple[Object, Object] | None:
    """Return the ``struct path`` of a task's root and of its working directory; None for one that has left both."""
    fs = task.fs.read_()
    return (fs.root, fs.pwd) if fs else None


def cached_pages(mapping: Object, problems: list[Problem]) -> Iterator[tuple[int, Object]]:
    """
    Walk the pages of a ``struct address_space *`` that are in the page cache.

    Yields the index of each in the file, in pages, and its ``struct page *``; each
    page of a large folio by itself.
    """
    try:
        tree = mapping.i_pages
    except AttributeError:
        # b93b016313b3 (4.17) renamed it.
        tree = mapping.page_tree
    what = f"pages of the address_space at {mapping.value_():#x}"
    for index, page in xarray_entries(tree, "struct page", what, problems):
        try:
            count = int(compound_nr(page).value_())
        except UNREADABLE:
            count = 1
        for number in range(min(count, 1 << 18)):
            yield index + number, page + number
