"""A dump as gdb's server shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from drgn import Object

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.gdbserver.libraries import Library, encode_libraries, find_first_segment, read_libraries
from postpanic.analysis.gdbserver.memory import MEMORY_MAP, TargetMemory
from postpanic.analysis.gdbserver.targets import find_target
from postpanic.analysis.gdbserver.threads import Thread, Threads, encode_threads
from postpanic.analysis.workspace import Workspace
from postpanic.errors import FileFaultError

__all__ = ["DumpView", "Monitor"]

Monitor = Callable[[str, Object | None], Iterable[str]]
"""Runs a line of ``monitor`` on a task, ``struct task_struct *``, and gives what it prints, piece by piece."""


class DumpView:
    """
    A dump; what :class:`~postpanic.analysis.gdbserver.session.View` asks for.

    Parameters
    ----------
    workspace : Workspace
    monitor : callable
        Runs the lines of gdb's ``monitor``.
    unwind_tables : Library, optional
        The file of unwind tables, which gdb is to load with the modules.
    names_kernel : bool
        Whether gdb is told of the kernel's file; False where it has it already.

    Raises
    ------
    UnsupportedError
        If gdb cannot be told of the machine.
    """

    def __init__(
        self,
        workspace: Workspace,
        monitor: Monitor,
        unwind_tables: Library | None = None,
        *,
        names_kernel: bool = True,
    ) -> None:
        self.target = find_target(workspace.memory.machine)
        self._workspace = workspace
        self._monitor = monitor
        self._unwind_tables = unwind_tables
        self._tasks = Threads(workspace)
        self._memory = TargetMemory(workspace)
        self._documents: dict[str, Callable[[Thread | None], bytes | None]] = {
            "threads": lambda _: encode_threads(self.threads),
            "memory-map": lambda _: MEMORY_MAP,
            "libraries": lambda _: self._libraries,
            "auxv": self._auxiliary_vector,
        }
        if names_kernel and self.kernel_file is not None:
            self._documents["exec-file"] = lambda _: self._name_kernel_file()
        self.document_names = tuple(self._documents)

    @property
    def kernel_file(self) -> Path | None:
        """The file with the kernel's debug information."""
        sources = self._workspace.opened.sources
        return sources[0].file if sources else None

    def prepare(self) -> None:
        """Read what the first packets ask for, before anybody waits for it."""
        self.threads  # noqa: B018 - read and kept
        self._libraries  # noqa: B018

    @property
    def threads(self) -> Sequence[Thread]:
        """All tasks, the one that panicked first."""
        return self._tasks.all

    @cached_property
    def text_vaddr(self) -> int | None:
        """Where the first segment of the kernel's file is in memory."""
        try:
            first = find_first_segment(self.kernel_file) if self.kernel_file is not None else None
        except (OSError, FileFaultError):
            return None
        return first + self._workspace.memory.kaslr_offset if first is not None else None

    def find_thread(self, number: int) -> Thread | None:
        """Find a thread by its ID."""
        return self._tasks.find(number)

    def registers(self, thread: Thread) -> Mapping[str, int]:
        """Return the registers of a task, as far as they are known."""
        return self._tasks.registers(thread)

    def read_ahead(self) -> bool:
        """Read a little of what will be asked for; False: there is no more."""
        return self._tasks.read_ahead()

    def read(self, thread: Thread | None, vaddr: int, size_bytes: int) -> bytes:
        """Read memory as a task sees it; raises as :meth:`TargetMemory.read` does."""
        return self._memory.read(self._tasks.task(thread), vaddr, size_bytes)

    def write(self, thread: Thread | None, vaddr: int, data: bytes) -> None:
        """Write into the overlay; raises as :meth:`TargetMemory.write` does."""
        self._memory.write(self._tasks.task(thread), vaddr, data)

    def document(self, name: str, thread: Thread | None) -> bytes | None:
        """Make a document of ``qXfer``; None where there is none."""
        make = self._documents.get(name)
        return make(thread) if make is not None else None

    def monitor(self, line: str, thread: Thread | None) -> Iterable[str]:
        """Run a line of ``monitor`` on a thread's task."""
        return self._monitor(line, self._tasks.task(thread))

    @cached_property
    def _libraries(self) -> bytes:
        found = read_libraries(self._workspace)
        # The unwind tables last: real debug information has better ones of its functions.
        return encode_libraries([*found, *([self._unwind_tables] if self._unwind_tables is not None else [])])

    def _name_kernel_file(self) -> bytes | None:
        file = self.kernel_file
        return str(file.absolute()).encode("utf-8", "surrogateescape") if file is not None else None

    def _auxiliary_vector(self, thread: Thread | None) -> bytes | None:
        """``mm_struct.saved_auxv`` of a thread's process: what the kernel gave it when it was started."""
        task = self._tasks.task(thread)
        try:
            mm = task.mm.read_() if task is not None else None
            if not mm:
                return None
            vector = mm.saved_auxv
            data: bytes = self._workspace.prog.read(int(vector.address_of_()), len(vector) * 8)
        except UNREADABLE:
            return None
        pairs = range(0, len(data) - 15, 16)
        end = next((at + 16 for at in pairs if not any(data[at : at + 8])), len(data))
        return data[:end]
