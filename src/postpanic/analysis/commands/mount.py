"""``mount``: the file systems that are mounted, who uses them, what is not written back."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from drgn import Object
from drgn.helpers.linux.list import list_for_each_entry

from postpanic.analysis.cells import cell, decode, guarded, problem
from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.commands.files import shared_paths
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.values import find_tasks, parse_vaddr, read_tasks
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.filesystems.mounts import mount_namespace, mount_type, read_mounts
from postpanic.analysis.filesystems.open_files import read_open_files
from postpanic.analysis.filesystems.paths import file_inode, inode_type
from postpanic.analysis.workspace import Workspace
from postpanic.errors import FactAbsentError
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape, Table

__all__ = ["mount"]

_OPEN_FILES = Shape(
    "open_files",
    (
        Column("dentry", Kind.ADDRESS, title="DENTRY", help="struct dentry *.", align="^"),
        Column("inode", Kind.ADDRESS, title="INODE", help="struct inode *.", align="^"),
        Column("type", title="TYPE", help="Type of the inode."),
        Column("path", title="PATH", help="From the root of the file system."),
    ),
    title="OPEN FILES:",
)
_NO_OPEN_FILES = Shape("none", (), Layout.LINES, title="No open files")
_DIRTY = Shape(
    "dirty_inodes",
    (Column("inode", Kind.ADDRESS, help="struct inode *."),),
    title="DIRTY INODES:",
    heading=False,
)
_MOUNTS = Shape(
    "mounts",
    (
        Column("mount", Kind.ADDRESS, title="MOUNT", help="struct mount *.", align="^"),
        Column("superblock", Kind.ADDRESS, title="SUPERBLK", help="struct super_block *.", align="^"),
        Column("type", title="TYPE", help="File system, with its subtype.", width=6),
        Column("device", title="DEVNAME", help="What was given as the device.", width=9),
        Column("directory", title="DIRNAME", help="Where it is mounted, from the root of the namespace."),
        Column("open_files", Kind.ROWS, shape=_OPEN_FILES, help="Open files (-f)."),
        Column("dirty_inodes", Kind.ROWS, shape=_DIRTY, help="Inodes that are to be written back (-i)."),
    ),
)


@command(
    "mount",
    summary="mounted filesystem data",
    description=(
        "Show the mounted file systems: of the initial namespace, or of that of a task (-n). Operands choose among "
        "them; -f and -i work with every kernel, where crash's need one before 3.13 and 2.6.32.\n\n"
        "Open files (-f) are those that a task has as a file descriptor."
    ),
    operands=(
        Operand("filter", "address of a mount, vfsmount, super_block, dentry or inode, or a device or directory"),
    ),
    options=(
        Option("-n", "namespace", "show the mounts that this task sees", "TASK"),
        Option("-f", "open_files", "show the open files of each file system"),
        Option("-i", "dirty_inodes", "show the inodes of each file system that are to be written back"),
    ),
    shapes=(_MOUNTS,),
    examples=(
        Example("mount", "all mounted file systems"),
        Example("mount -n 462", "those that PID 462 sees"),
        Example("mount -f /tmp", "who has what open below /tmp"),
        Example("mount ffff8801f4245e40", "the file system of an inode, dentry or super block"),
    ),
)
def mount(workspace: Workspace, arguments: Arguments) -> Answer:
    """Show the mounted file systems."""
    problems: list[Problem] = []
    words = arguments.all("namespace")[-1:]
    task = find_tasks(workspace, words, problems)[0] if words else workspace.prog["init_task"].address_of_()
    mounts: list[Object] = []
    try:
        mounts += read_mounts(mount_namespace(task), problems)
    except UNREADABLE as exc:
        problems.append(problem(f"mounts that the task at {task.value_():#x} sees", exc))
    rows = [(entry, _row(workspace, entry)) for entry in mounts]
    if arguments.operands:
        rows = _choose(workspace, arguments.operands[0], rows)
    open_files = _gather_open_files(workspace, problems) if arguments.has("open_files") else None
    table = []
    for entry, row in rows:
        superblock = row[1] if isinstance(row[1], int) else 0
        opened = None if open_files is None else _open_files_table(open_files.get(superblock, []))
        dirty = _dirty_inodes(entry, problems) if arguments.has("dirty_inodes") else None
        table.append((*row, opened, dirty))
    return Answer("mount", (_MOUNTS.table(table),), tuple(problems))


def _row(workspace: Workspace, entry: Object) -> tuple[Cell, ...]:
    return (
        int(entry.value_()),
        cell(lambda: int(entry.mnt.mnt_sb.value_())),
        cell(lambda: mount_type(entry)),
        cell(lambda: decode(entry.mnt_devname.string_()) if entry.mnt_devname else "none"),
        cell(lambda: shared_paths(workspace).of_mount(entry)),
    )


_Rows = list[tuple[Object, tuple[Cell, ...]]]


def _choose(workspace: Workspace, word: str, rows: _Rows) -> _Rows:
    """
    Keep the mounts that a word names.

    Raises
    ------
    FactAbsentError
        If it names none.
    """
    found = [(entry, row) for entry, row in rows if word in row[3:5]]
    if not found and "/" not in word:
        try:
            vaddr = parse_vaddr(workspace, word)
        except FactAbsentError:
            vaddr = 0
        found = [(entry, row) for entry, row in rows if vaddr and _is_of(entry, row, vaddr)]
        found = found or _choose_by_superblock(workspace, vaddr, rows)
    if not found:
        raise FactAbsentError(
            f"no mount {word}", hint="an address of a mount, super_block, dentry or inode, or a device or directory"
        )
    return found


def _is_of(entry: Object, row: tuple[Cell, ...], vaddr: int) -> bool:
    return vaddr in {entry.value_(), entry.mnt.address_, row[1]}


def _choose_by_superblock(workspace: Workspace, vaddr: int, rows: _Rows) -> _Rows:
    """Keep the mounts of the file system that a dentry or inode belongs to, whichever is at the address."""
    prog = workspace.prog
    readers: tuple[Callable[[], int], ...] = (
        lambda: int(Object(prog, "struct dentry *", vaddr).d_sb.value_()),
        lambda: int(Object(prog, "struct inode *", vaddr).i_sb.value_()),
    )
    for read in readers:
        superblock = cell(read)
        found = [(entry, row) for entry, row in rows if isinstance(superblock, int) and superblock == row[1]]
        if found:
            return found
    return []


def _gather_open_files(workspace: Workspace, problems: list[Problem]) -> dict[int, list[tuple[Cell, ...]]]:
    """Find what tasks have open, each dentry once, by the super block."""
    found: dict[int, dict[int, tuple[Cell, ...]]] = {}
    seen: set[int] = set()
    for task in read_tasks(workspace, problems):
        try:
            files = int(task.files.value_())
        except UNREADABLE as exc:
            problems.append(problem(f"open files of the task at {task.value_():#x}", exc))
            continue
        # Threads share their table.
        if files == 0 or files in seen:
            continue
        seen.add(files)
        for entry in read_open_files(task, problems):
            try:
                path = entry.file.f_path
                dentry = path.dentry.read_()
                superblock = int(dentry.d_sb.value_())
            except UNREADABLE as exc:
                problems.append(problem(f"the file at {entry.file.value_():#x}", exc))
                continue
            found.setdefault(superblock, {}).setdefault(
                int(dentry.value_()), _open_file_row(workspace, entry.file, dentry)
            )
    return {superblock: list(rows.values()) for superblock, rows in found.items()}


def _open_files_table(rows: list[tuple[Cell, ...]]) -> Table:
    return _OPEN_FILES.table(rows) if rows else _NO_OPEN_FILES.table()


def _open_file_row(workspace: Workspace, file: Object, dentry: Object) -> tuple[Cell, ...]:
    return (
        int(dentry.value_()),
        cell(lambda: int(file_inode(file).value_())),
        cell(lambda: inode_type(int(file_inode(file).i_mode.value_()))),
        cell(lambda: shared_paths(workspace).within(dentry)),
    )


_LISTS = ("b_dirty", "b_io", "b_more_io", "b_dirty_time")
"""Of ``struct bdi_writeback``: the inodes that wait for being written back, by what is done with them."""


def _dirty_inodes(entry: Object, problems: list[Problem]) -> Table:
    """Find the inodes of a mount's file system that are to be written back (``fs/fs-writeback.c``)."""
    rows: list[tuple[Cell, ...]] = []
    try:
        superblock = entry.mnt.mnt_sb.read_()
        dirty = _inodes_to_write(superblock, problems)
        rows += [(int(inode.value_()),) for inode in dirty if inode.i_sb == superblock]
    except UNREADABLE as exc:
        problems.append(problem(f"dirty inodes of the mount at {entry.value_():#x}", exc))
    return _DIRTY.table(rows, title=None if rows else "No dirty inodes")


def _inodes_to_write(superblock: Object, problems: list[Problem]) -> Iterator[Object]:
    device = superblock.s_bdi.read_()
    if not device:
        return
    # One for each memory control group that writes to the device.
    groups = list_for_each_entry("struct bdi_writeback", device.wb_list.address_of_(), "bdi_node")
    for group in guarded(groups, "writers of the device", problems):
        for name in _LISTS:
            head = group.member_(name).address_of_()
            inodes = list_for_each_entry("struct inode", head, "i_io_list")
            yield from guarded(inodes, f"{name} of {device.value_():#x}", problems)
