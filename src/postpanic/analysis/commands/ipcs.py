"""``ipcs``: System V shared memory, semaphores and message queues."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from drgn import Object, container_of
from drgn.helpers.linux.ipc import decode_sysv_shm_flags

from postpanic.analysis.cells import cell, problem
from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.values import find_tasks
from postpanic.analysis.containers import idr_entries
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.workspace import Workspace
from postpanic.errors import FactAbsentError, UsageError
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape, Table

__all__ = ["ipcs"]

_COMMON = (
    Column("key", Kind.HEX, title="KEY", help="Key.", format="08x"),
    Column("id", Kind.NUMBER, title="ID", help="Identifier.", align="<", width=10),
    Column("uid", Kind.NUMBER, title="UID", help="User ID of the owner.", align="<", width=5),
    Column("permissions", Kind.NUMBER, title="PERMS", help="Access bits.", format="o", align="<"),
)
_SHARED_COLUMNS = (
    Column("shmid_kernel", Kind.ADDRESS, title="SHMID_KERNEL", help="struct shmid_kernel *.", align="<"),
    *_COMMON,
    Column("size", Kind.NUMBER, title="BYTES", help="Size in bytes.", align="<", width=9),
    Column("attached", Kind.NUMBER, title="NATTCH", help="How often it is attached.", align="<"),
    Column("status", title="STATUS", help="dest (to be removed), locked."),
)
_SHARED = Shape("shared_memory", _SHARED_COLUMNS)
_PAGES = Shape(
    "pages",
    (
        Column("allocated", Kind.NUMBER, help="Pages that its size takes."),
        Column("resident", Kind.NUMBER, help="Pages of it that are in memory."),
        Column("swapped", Kind.NUMBER, help="Pages of it that are on swap."),
        Column("inode", Kind.ADDRESS, help="struct inode * of its file."),
    ),
    Layout.LINES,
    "PAGES ALLOCATED/RESIDENT/SWAPPED: {allocated}/{resident}/{swapped}\nINODE: {inode}",
)
_SHARED_PAGES = Shape(
    "shared_memory_pages",
    (*_SHARED_COLUMNS, Column("pages", Kind.ROWS, shape=_PAGES, help="Where its pages are.")),
)
_SEMAPHORES = Shape(
    "semaphores",
    (
        Column("sem_array", Kind.ADDRESS, title="SEM_ARRAY", help="struct sem_array *.", align="<"),
        *_COMMON,
        Column("count", Kind.NUMBER, title="NSEMS", help="How many semaphores it has.", align="<"),
    ),
)
_QUEUES = Shape(
    "message_queues",
    (
        Column("msg_queue", Kind.ADDRESS, title="MSG_QUEUE", help="struct msg_queue *.", align="<"),
        *_COMMON,
        Column("used", Kind.NUMBER, title="USED-BYTES", help="Bytes of all messages.", align="<"),
        Column("messages", Kind.NUMBER, title="MESSAGES", help="How many there are.", align="<"),
    ),
)

_Row = tuple[Cell, ...]


class _Kind(NamedTuple):
    """A kind of resource: its place in ``ipc_namespace.ids``, its type, and the member that is in the tree."""

    number: int
    type: str
    member: str


# ipc/util.h
_SEM = _Kind(0, "struct sem_array", "sem_perm")
_MSG = _Kind(1, "struct msg_queue", "q_perm")
_SHM = _Kind(2, "struct shmid_kernel", "shm_perm")


@command(
    "ipcs",
    summary="System V IPC facilities",
    description="Show System V shared memory, semaphores and message queues: of the initial namespace, or a task's.",
    operands=(Operand("resource", "identifier, or hexadecimal address of a shmid_kernel, sem_array or msg_queue"),),
    options=(
        Option("-s", "semaphores", "show semaphore arrays"),
        Option("-m", "shared_memory", "show shared memory segments"),
        Option("-M", "pages", "show shared memory segments, and where their pages are"),
        Option("-q", "message_queues", "show message queues"),
        Option("-n", "namespace", "show what this task sees", "TASK"),
    ),
    shapes=(_SHARED, _SHARED_PAGES, _SEMAPHORES, _QUEUES),
    examples=(
        Example("ipcs", "all of them"),
        Example("ipcs -M 32769", "one shared memory segment and its pages"),
        Example("ipcs -n 2618", "those in the namespace of PID 2618"),
    ),
)
def ipcs(workspace: Workspace, arguments: Arguments) -> Answer:
    """Show System V IPC facilities."""
    problems: list[Problem] = []
    wanted = _parse_resource(arguments.operands[0]) if arguments.operands else None
    chosen = set(arguments.names()) - {"namespace"} or {"shared_memory", "semaphores", "message_queues"}
    namespace = _namespace(workspace, arguments, problems)
    tables: list[Table] = []
    if chosen & {"shared_memory", "pages"}:
        shape = _SHARED_PAGES if "pages" in chosen else _SHARED
        tables.append(_table(shape, _SHM, namespace, _shared_row, problems))
    if "semaphores" in chosen:
        tables.append(_table(_SEMAPHORES, _SEM, namespace, _semaphore_row, problems))
    if "message_queues" in chosen:
        tables.append(_table(_QUEUES, _MSG, namespace, _queue_row, problems))
    if wanted is not None:
        tables = [_choose(table, wanted) for table in tables]
        tables = [table for table in tables if table.rows]
        if not tables:
            raise FactAbsentError(f"no IPC resource {arguments.operands[0]}", hint="ipcs lists them")
    return Answer("ipcs", tuple(tables), tuple(problems))


def _parse_resource(word: str) -> tuple[int | None, int | None]:
    """Return identifier and address that a word may mean."""
    try:
        return (int(word) if word.isdecimal() else None, int(word, 16))
    except ValueError:
        raise UsageError(f"ipcs: {word!r} is neither an identifier nor an address") from None


def _choose(table: Table, wanted: tuple[int | None, int | None]) -> Table:
    identifier, vaddr = wanted
    rows = [row for row in table.rows if (identifier is not None and row[2] == identifier) or row[0] == vaddr]
    return table.shape.table(rows)


def _namespace(workspace: Workspace, arguments: Arguments, problems: list[Problem]) -> Object:
    words = arguments.all("namespace")[-1:]
    if words:
        task = find_tasks(workspace, words, problems)[0]
        try:
            proxy = task.nsproxy.read_()
            if proxy:
                return proxy.ipc_ns.read_()
        except UNREADABLE as exc:
            problems.append(problem(f"namespaces of the task at {task.value_():#x}", exc))
    return workspace.prog["init_ipc_ns"].address_of_()


def _table(
    shape: Shape,
    kind: _Kind,
    namespace: Object,
    make_row: Callable[[Object], _Row],
    problems: list[Problem],
) -> Table:
    rows: list[_Row] = []
    what = shape.name.replace("_", " ")
    try:
        identifiers = namespace.ids[kind.number].ipcs_idr
        for _, permissions in idr_entries(identifiers, "struct kern_ipc_perm", what, problems):
            entry = container_of(permissions, kind.type, kind.member)
            row = make_row(entry)
            rows.append((*row, _pages(entry)) if shape is _SHARED_PAGES else row)
    except UNREADABLE as exc:
        problems.append(problem(what, exc))
    return shape.table(rows)


def _common_cells(permissions: Object) -> _Row:
    return (
        cell(lambda: int(permissions.key.value_()) & 0xFFFFFFFF),
        cell(lambda: int(permissions.id.value_())),
        cell(lambda: int(permissions.uid.val.value_())),
        cell(lambda: int(permissions.mode.value_()) & 0o777),
    )


def _shared_row(entry: Object) -> _Row:
    return (
        int(entry.value_()),
        *_common_cells(entry.shm_perm),
        cell(lambda: int(entry.shm_segsz.value_())),
        cell(lambda: int(entry.shm_nattch.value_())),
        cell(lambda: _status(entry)),
    )


def _status(entry: Object) -> str:
    names = decode_sysv_shm_flags(entry).lower().split("|")
    return " ".join(name.removeprefix("shm_") for name in names if name.removeprefix("shm_") in {"dest", "locked"})


def _pages(entry: Object) -> Cell:
    page_bytes = int(entry.prog_["PAGE_SIZE"].value_())
    return _PAGES.table(
        [
            (
                cell(lambda: -(-int(entry.shm_segsz.value_()) // page_bytes)),
                cell(lambda: int(entry.shm_file.f_mapping.nrpages.value_())),
                cell(lambda: _swapped(entry.shm_file.f_inode)),
                cell(lambda: int(entry.shm_file.f_inode.value_())),
            )
        ]
    )


def _swapped(inode: Object) -> int:
    """Count the pages on swap: of a segment in tmpfs; one of huge pages is never swapped out."""
    if inode.i_sb.s_type.name.string_() != b"tmpfs":
        return 0
    return int(container_of(inode, "struct shmem_inode_info", "vfs_inode").swapped.value_())


def _semaphore_row(entry: Object) -> _Row:
    return int(entry.value_()), *_common_cells(entry.sem_perm), cell(lambda: int(entry.sem_nsems.value_()))


def _queue_row(entry: Object) -> _Row:
    return (
        int(entry.value_()),
        *_common_cells(entry.q_perm),
        cell(lambda: int(entry.q_cbytes.value_())),
        cell(lambda: int(entry.q_qnum.value_())),
    )
