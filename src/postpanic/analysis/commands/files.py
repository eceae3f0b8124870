"""``files``: what tasks have open, and what of a file is in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from drgn import Object
from drgn.helpers.linux.mm import decode_page_flags, page_flags, page_to_pfn, page_to_phys
from drgn.helpers.linux.nodemask import for_each_online_node

from postpanic.analysis.cells import absent, cell, problem
from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.commands.per_task import TASK_COLUMNS, TASK_LINE, task_rows
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.values import find_tasks, parse_vaddr
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.filesystems.mounts import superblock_mount
from postpanic.analysis.filesystems.open_files import OpenFile, cached_pages, read_open_files, task_directories
from postpanic.analysis.filesystems.paths import Paths, file_inode, inode_type
from postpanic.analysis.workspace import Workspace
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape, Table

__all__ = ["files", "shared_paths"]

_TYPE = Column("type", title="TYPE", help="Type of the inode: REG DIR CHR BLK FIFO SOCK LNK, UNKN for what has none.")
_PATH = Column("path", title="PATH", help="Path as /proc/PID/fd shows it; (deleted) behind what was unlinked.")
_FD = Column("fd", Kind.NUMBER, title="FD", help="File descriptor.", width=3)
_INODE = Column("inode", Kind.ADDRESS, title="INODE", help="struct inode *.", align="^")
_DESCRIPTORS = Shape(
    "descriptors",
    (
        _FD,
        Column("file", Kind.ADDRESS, title="FILE", help="struct file *.", align="^"),
        Column("dentry", Kind.ADDRESS, title="DENTRY", help="struct dentry *.", align="^"),
        _INODE,
        _TYPE,
        _PATH,
    ),
)
_CACHED = Shape(
    "cached",
    (
        _FD,
        _INODE,
        Column("mapping", Kind.ADDRESS, title="I_MAPPING", help="inode->i_mapping.", align="^"),
        Column("pages", Kind.NUMBER, title="NRPAGES", help="Pages of the inode in the page cache."),
        _TYPE,
        _PATH,
    ),
)
_DIRECTORIES = (
    Column("root", title="ROOT", help="Root directory of the task."),
    Column("cwd", title="CWD", help="Its current working directory."),
)
_TASK_FILES_LINE = f"{TASK_LINE}\nROOT: {{root}}    CWD: {{cwd}}"
_TASKS = Shape(
    "tasks",
    (*TASK_COLUMNS, *_DIRECTORIES, Column("files", Kind.ROWS, shape=_DESCRIPTORS, help="Its open files.")),
    Layout.LINES,
    _TASK_FILES_LINE,
    gap=True,
)
_TASKS_CACHED = Shape(
    "tasks_cached",
    (*TASK_COLUMNS, *_DIRECTORIES, Column("files", Kind.ROWS, shape=_CACHED, help="Its open files.")),
    Layout.LINES,
    _TASK_FILES_LINE,
    gap=True,
)
_DENTRY = Shape(
    "dentry",
    (
        Column("dentry", Kind.ADDRESS, title="DENTRY", help="struct dentry *.", align="^"),
        _INODE,
        Column("superblock", Kind.ADDRESS, title="SUPERBLK", help="struct super_block *.", align="^"),
        _TYPE,
        _PATH,
    ),
)
_INODE_PAGES = Shape(
    "inode",
    (_INODE, Column("pages", Kind.NUMBER, title="NRPAGES", help="i_mapping->nrpages.", width=8)),
)
_PAGES = Shape(
    "pages",
    (
        Column("page", Kind.ADDRESS, title="PAGE", help="struct page *.", align="^"),
        Column("paddr", Kind.HEX, title="PHYSICAL", help="Physical address."),
        Column("mapping", Kind.ADDRESS, title="MAPPING", help="struct address_space * of the inode.", align="^"),
        Column("index", Kind.NUMBER, title="INDEX", help="Its place in the file, in pages."),
        Column("count", Kind.NUMBER, title="CNT", help="References to the page."),
        Column("flags", Kind.HEX, title="FLAGS", help="page->flags."),
        Column("names", help="The flags by their names."),
    ),
)
_NODES = Shape(
    "nodes",
    (
        Column("node", Kind.NUMBER, title="NODE", help="NUMA node."),
        Column("pages", Kind.NUMBER, title="PAGES", help="Pages of the inode on it."),
    ),
)


def shared_paths(workspace: Workspace) -> Paths:
    """Return the reader of paths that the commands of a session share."""
    return workspace.once("paths", lambda: Paths(workspace.prog))


@command(
    "files",
    summary="open files",
    description=(
        "Show the root directory, the working directory and the open files of tasks; without operands those of "
        "the current task. Pipes, sockets and other files without a directory are named as in /proc/PID/fd, where "
        "crash shows the name of the protocol.\n\n"
        "The pages of large folios are counted and listed one by one."
    ),
    operands=(Operand("task", "PID, task_struct address, command name or 'regex'", many=True),),
    options=(
        Option("-d", "dentry", "show the inode, super block, type and path of a dentry", "DENTRY"),
        Option("-p", "pages", "list the pages of an inode that are in the page cache", "INODE"),
        Option("-n", "nodes", "count the pages of an inode on each NUMA node", "INODE"),
        Option("-c", "cached", "show how many pages of each open file are in the page cache"),
        Option(
            "-R",
            "reference",
            "show only what refers to this file descriptor, part of a path, or address of a file, dentry, inode "
            "or address_space",
            "REFERENCE",
        ),
    ),
    shapes=(_TASKS, _TASKS_CACHED, _DENTRY, _INODE_PAGES, _PAGES, _NODES),
    examples=(
        Example("files 462", "the open files of PID 462"),
        Example("foreach files -R pts/4", "all tasks that have /dev/pts/4 open"),
        Example("files -c 1954", "open files with the number of pages that are cached"),
        Example("files -d f745fd60", "what a dentry is"),
        Example("files -p f59b90fc", "the cached pages of an inode"),
    ),
    per_task=True,
)
def files(workspace: Workspace, arguments: Arguments) -> Answer:
    """Show what tasks have open."""
    problems: list[Problem] = []
    for name, show in (("dentry", _show_dentry), ("pages", _show_pages), ("nodes", _show_nodes)):
        word = arguments.get(name)
        if word is not None:
            tables = show(workspace, parse_vaddr(workspace, word), problems)
            return Answer("files", tables, tuple(problems))
    shape = _TASKS_CACHED if arguments.has("cached") else _TASKS
    reference = _Reference.parse(arguments.get("reference"))
    rows = []
    for task in find_tasks(workspace, arguments.operands, problems):
        row = _task_row(workspace, task, shape, reference, problems)
        if row is not None:
            rows.append(row)
    return Answer("files", (shape.table(rows),), tuple(problems))


@dataclass(frozen=True, slots=True)
class _Reference:
    """What ``-R`` looks for."""

    text: str
    number: int | None
    fd: int | None

    @classmethod
    def parse(cls, word: str | None) -> _Reference | None:
        """Take a decimal number for a descriptor, a hexadecimal one for an address, all else for part of a path."""
        if word is None:
            return None
        try:
            number: int | None = int(word, 16)
        except ValueError:
            number = None
        return cls(word, number, int(word) if word.isdecimal() else None)

    def is_in_path(self, path: Cell) -> bool:
        """Tell whether a path has the text; ``/`` is only the root itself."""
        if not isinstance(path, str):
            return False
        return path == "/" if self.text == "/" else self.text in path

    def matches(self, fd: int, addresses: tuple[Cell, ...], path: Cell) -> bool:
        """Tell whether an open file is what is looked for."""
        if self.fd == fd or self.is_in_path(path):
            return True
        return self.number is not None and self.number in addresses


def _task_row(
    workspace: Workspace, task: Object, shape: Shape, reference: _Reference | None, problems: list[Problem]
) -> tuple[Cell, ...] | None:
    """Make the row of one task; None where nothing of it is what is looked for."""
    paths = shared_paths(workspace)
    root, cwd = _directories(paths, task)
    make = _cached_row if shape is _TASKS_CACHED else _descriptor_row
    rows = []
    for entry in read_open_files(task, problems):
        row, addresses = make(paths, entry)
        if reference is None or reference.matches(entry.fd, addresses, row[-1]):
            rows.append(row)
    if reference is not None and not rows and not (reference.is_in_path(root) or reference.is_in_path(cwd)):
        return None
    inner = _CACHED if shape is _TASKS_CACHED else _DESCRIPTORS
    table = inner.table(rows) if rows else _NO_FILES.table()
    return (*task_rows(workspace, [task])[0], root, cwd, None if reference is not None and not rows else table)


_NO_FILES = Shape("none", (), Layout.LINES, title="No open files")


def _directories(paths: Paths, task: Object) -> tuple[Cell, Cell]:
    try:
        found = task_directories(task)
    except UNREADABLE as exc:
        return absent(exc), absent(exc)
    if found is None:
        return None, None
    root, cwd = found
    return cell(lambda: paths.of_path(root)), cell(lambda: paths.of_path(cwd))


def _descriptor_row(paths: Paths, entry: OpenFile) -> tuple[tuple[Cell, ...], tuple[Cell, ...]]:
    file = entry.file
    dentry = cell(lambda: int(file.f_path.dentry.value_()))
    inode = cell(lambda: int(file_inode(file).value_()))
    kind = cell(lambda: inode_type(int(file_inode(file).i_mode.value_())))
    path = cell(lambda: paths.of_file(file))
    address = int(file.value_())
    return (entry.fd, address, dentry, inode, kind, path), (address, dentry, inode)


def _cached_row(paths: Paths, entry: OpenFile) -> tuple[tuple[Cell, ...], tuple[Cell, ...]]:
    file = entry.file
    dentry = cell(lambda: int(file.f_path.dentry.value_()))
    inode = cell(lambda: int(file_inode(file).value_()))
    mapping = cell(lambda: int(file_inode(file).i_mapping.value_()))
    pages = cell(lambda: int(file_inode(file).i_mapping.nrpages.value_()))
    kind = cell(lambda: inode_type(int(file_inode(file).i_mode.value_())))
    path = cell(lambda: paths.of_file(file))
    return (entry.fd, inode, mapping, pages, kind, path), (int(file.value_()), dentry, inode, mapping)


def _show_dentry(workspace: Workspace, vaddr: int, problems: list[Problem]) -> tuple[Table, ...]:
    dentry = Object(workspace.prog, "struct dentry *", vaddr)
    row = (
        vaddr,
        cell(lambda: int(dentry.d_inode.value_())),
        cell(lambda: int(dentry.d_sb.value_())),
        cell(lambda: inode_type(int(dentry.d_inode.i_mode.value_())) if dentry.d_inode else "N/A"),
        cell(lambda: _dentry_path(workspace, dentry)),
    )
    del problems
    return (_DENTRY.table([row]),)


def _dentry_path(workspace: Workspace, dentry: Object) -> str:
    """Spell the path of a dentry by one of the mounts of its file system."""
    paths = shared_paths(workspace)
    mount = superblock_mount(workspace.prog, dentry.d_sb.read_())
    return paths.within(dentry) if mount is None else paths.of(mount, dentry)


def _mapping_of(workspace: Workspace, vaddr: int) -> Object:
    return Object(workspace.prog, "struct inode *", vaddr).i_mapping.read_()


def _show_pages(workspace: Workspace, vaddr: int, problems: list[Problem]) -> tuple[Table, ...]:
    heading = _INODE_PAGES.table([(vaddr, cell(lambda: int(_mapping_of(workspace, vaddr).nrpages.value_())))])
    rows = []
    try:
        mapping = _mapping_of(workspace, vaddr)
        rows = [_page_row(mapping, index, page) for index, page in cached_pages(mapping, problems)]
    except UNREADABLE as exc:
        problems.append(problem(f"page cache of the inode at {vaddr:#x}", exc))
    return (heading, _PAGES.table(rows)) if rows else (heading,)


def _page_row(mapping: Object, index: int, page: Object) -> tuple[Cell, ...]:
    return (
        int(page.value_()),
        cell(lambda: int(page_to_phys(page).value_())),
        int(mapping.value_()),
        index,
        cell(lambda: int(page.member_("_refcount").counter.value_())),
        cell(lambda: int(page_flags(page).value_())),
        cell(lambda: decode_page_flags(page).replace("PG_", "").replace("|", ",")),
    )


def _show_nodes(workspace: Workspace, vaddr: int, problems: list[Problem]) -> tuple[Table, ...]:
    heading = _INODE_PAGES.table([(vaddr, cell(lambda: int(_mapping_of(workspace, vaddr).nrpages.value_())))])
    counts: Counter[int] = Counter()
    try:
        find_node = _node_finder(workspace)
        for _, page in cached_pages(_mapping_of(workspace, vaddr), problems):
            counts[find_node(page)] += 1
    except UNREADABLE as exc:
        problems.append(problem(f"page cache of the inode at {vaddr:#x}", exc))
    return heading, _NODES.table(sorted(counts.items()))


def _node_finder(workspace: Workspace) -> Callable[[Object], int]:
    """
    Return what tells the NUMA node of a page: the bits of ``page->flags`` that say so.

    ``NODES_PGSHIFT`` (``include/linux/mmzone.h``) is no symbol: the nodes' own
    ranges of page frames say the same (``pglist_data.node_start_pfn``).
    """
    ranges = []
    for node in for_each_online_node(workspace.prog):
        try:
            data = workspace.prog["node_data"][node]
        except KeyError:
            data = workspace.prog["contig_page_data"].address_of_()
        start = int(data.node_start_pfn.value_())
        ranges.append((start, start + int(data.node_spanned_pages.value_()), int(node)))

    def find(page: Object) -> int:
        pfn = int(page_to_pfn(page).value_())
        return next((node for start, end, node in ranges if start <= pfn < end), -1)

    return find
