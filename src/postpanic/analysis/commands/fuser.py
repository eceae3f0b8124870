"""``fuser``: which tasks use a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from drgn import Object

from postpanic.analysis.cells import problem
from postpanic.analysis.commands.arguments import Arguments, Operand
from postpanic.analysis.commands.files import shared_paths
from postpanic.analysis.commands.per_task import task_rows
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.values import parse_vaddr, read_tasks
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.filesystems.open_files import read_open_files, task_directories
from postpanic.analysis.filesystems.paths import file_inode
from postpanic.analysis.processes.areas import read_areas
from postpanic.analysis.workspace import Workspace
from postpanic.findings.table import Answer, Column, Kind, Problem, Shape

__all__ = ["fuser"]

_USERS = Shape(
    "users",
    (
        Column("pid", Kind.NUMBER, title="PID", help="Process ID.", width=5),
        Column("task", Kind.ADDRESS, title="TASK", help="struct task_struct *.", align="^"),
        Column("comm", title="COMM", help="Command name.", prefix='"', suffix='"', width=18),
        Column("usage", title="USAGE", help="What it uses the file as: root, cwd, fd, mmap; several with a space."),
    ),
)


@command(
    "fuser",
    summary="file users",
    description=(
        "Show the tasks that use a file or directory: as root or working directory, as an open file, or mapped into "
        "their memory. A path is compared with what files and vm show, where (deleted) may be left out.\n\n"
        "Files that lockd holds for a client of NFS are not looked for."
    ),
    operands=(Operand("file", "full path, or hexadecimal address of an inode", required=True),),
    shapes=(_USERS,),
    examples=(
        Example("fuser /usr/lib/libc.so.6", "who maps a library"),
        Example("fuser ffff8801f4245e40", "who uses an inode"),
    ),
)
def fuser(workspace: Workspace, arguments: Arguments) -> Answer:
    """Show the tasks that use a file."""
    problems: list[Problem] = []
    search = _Search(workspace, arguments.operands[0], problems)
    users = [(task, usage) for task in read_tasks(workspace, problems) if (usage := search.usage(task))]
    heads = task_rows(workspace, [task for task, _ in users])
    rows = [(pid, vaddr, comm, " ".join(usage)) for (pid, vaddr, _, comm), (_, usage) in zip(heads, users, strict=True)]
    return Answer("fuser", (_USERS.table(rows),), tuple(problems))


class _Search:
    """Looks for one file; what tasks share is looked through once."""

    def __init__(self, workspace: Workspace, word: str, problems: list[Problem]) -> None:
        self._paths = shared_paths(workspace)
        self._problems = problems
        self._names = {word, f"{word} (deleted)"}
        self._inode = None if word.startswith("/") else parse_vaddr(workspace, word)
        self._known: dict[tuple[str, int], tuple[str, ...]] = {}

    def usage(self, task: Object) -> tuple[str, ...]:
        """Say what a task uses the file as; empty: it does not."""
        found: tuple[str, ...] = ()
        parts: tuple[tuple[str, Callable[[Object], Iterator[str]]], ...] = (
            ("fs", self._directories),
            ("files", self._descriptors),
            ("mm", self._maps),
        )
        for member, look in parts:
            try:
                key = (member, int(task.member_(member).value_()))
                if not key[1]:
                    continue
                if key not in self._known:
                    self._known[key] = tuple(dict.fromkeys(look(task)))
            except UNREADABLE as exc:
                self._problems.append(problem(f"{member} of the task at {task.value_():#x}", exc))
                continue
            found += self._known[key]
        return found

    def _directories(self, task: Object) -> Iterator[str]:
        places = task_directories(task)
        if places is not None:
            for name, path in zip(("root", "cwd"), places, strict=True):
                if self._is_path(path):
                    yield name

    def _descriptors(self, task: Object) -> Iterator[str]:
        for entry in read_open_files(task, self._problems):
            if self._is_file(entry.file):
                yield "fd"

    def _maps(self, task: Object) -> Iterator[str]:
        for area in read_areas(task.mm.read_(), self._problems):
            file = area.vm_file.read_()
            if file and self._is_file(file):
                yield "mmap"

    def _is_file(self, file: Object) -> bool:
        try:
            if self._inode is not None:
                return bool(file_inode(file).value_() == self._inode)
            return self._paths.of_file(file) in self._names
        except UNREADABLE as exc:
            self._problems.append(problem(f"the file at {file.value_():#x}", exc))
            return False

    def _is_path(self, path: Object) -> bool:
        if self._inode is not None:
            return bool(path.dentry.d_inode.value_() == self._inode)
        return self._paths.of_path(path) in self._names
