"""What the commands of one session share: the dump, the current task, settings, and what was computed before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from drgn import Object, Program, ProgramFlags

from postpanic.analysis.aliases import Aliases
from postpanic.analysis.context import find_context_task
from postpanic.analysis.program import OpenedProgram
from postpanic.errors import AbsentError
from postpanic.findings.table import Answer
from postpanic.kernel.memory import KernelMemory
from postpanic.units import PhysAddr, VirtAddr

__all__ = ["Workspace"]

T = TypeVar("T")

# drgn's crash commands keep the task of the context here, so that both see the same one.
_TASK = "crash_context"
_RADIX = "crash_radix"


class Workspace:
    """
    One opened dump, as its commands see it.

    Parameters
    ----------
    opened : OpenedProgram
        The dump; the workspace does not close it.
    """

    def __init__(self, opened: OpenedProgram) -> None:
        self.opened = opened
        self.settings: dict[str, Any] = {}
        """Values of ``set``, by the variable's name."""
        self.progress: Callable[[str], None] = lambda _: None
        """Told what a command is about, one phrase before each long step; shown after a second, on a terminal."""
        self.aliases = Aliases()
        """Other names for command lines, those of crash and of the user."""
        self.emit: Callable[[Answer], None] | None = None
        """Shows an answer while the command goes on (``repeat``); None where answers are values."""
        self._kept: dict[str, Any] = {}
        opened.overlay.listen(lambda _: self.forget())

    @property
    def prog(self) -> Program:
        """The program of drgn."""
        return self.opened.prog

    @property
    def memory(self) -> KernelMemory:
        """Kernel virtual memory, read through our own page tables."""
        return self.opened.memory

    @property
    def task(self) -> Object:
        """
        The task that commands work on: ``struct task_struct *``.

        Raises
        ------
        AbsentError
            If none was chosen, and neither the panic task nor one on CPU 0 can be found.
        """
        task: Object | None = self.prog.config.get(_TASK)
        if task is None:
            try:
                task = find_context_task(self.prog).task
            except LookupError as exc:
                raise AbsentError(f"no task to work on: {exc}", hint="set PID chooses one") from exc
            self.prog.config[_TASK] = task
        return task

    @task.setter
    def task(self, task: Object) -> None:
        self.prog.config[_TASK] = task
        self.prog.config.pop("crash_context_origin", None)

    @property
    def radix(self) -> int:
        """Base of the numbers that a command shows when no option says otherwise: 10 or 16."""
        return int(self.prog.config.get(_RADIX, 10))

    @radix.setter
    def radix(self, radix: int) -> None:
        self.prog.config[_RADIX] = radix

    @property
    def is_live(self) -> bool:
        """Whether the kernel runs on while it is read: nothing may be kept, and lists may change underfoot."""
        return ProgramFlags.IS_LIVE in self.prog.flags

    def once(self, key: str, make: Callable[[], T]) -> T:
        """Return what *make* returned the first time; of a running kernel it is kept until :meth:`refresh`."""
        if key not in self._kept:
            self._kept[key] = make()
        kept: T = self._kept[key]
        return kept

    def write_virtual(self, vaddr: int, data: bytes) -> None:
        """
        Write bytes at a kernel address into the overlay of the dump; the file stays as it is.

        Everything that was kept is forgotten; drgn objects that were read before keep their values.

        Raises
        ------
        TranslationError
            If a byte of the range is not mapped; nothing is written then.
        PageAbsentError
            If the dump does not hold a page that is written in part.
        """
        size = self.memory.page_size_bytes
        parts: list[tuple[PhysAddr, bytes]] = []
        done = 0
        while done < len(data):
            step = size - (vaddr + done) % size
            parts.append((self.memory.translate(VirtAddr(vaddr + done)), data[done : done + step]))
            done += step
        for paddr, part in parts:
            # A part that cannot be written must be found before the first is.
            if len(part) < size:
                self.memory.physical.read(paddr, len(part))
        for paddr, part in parts:
            self.opened.overlay.write(paddr, part)

    def refresh(self) -> None:
        """See a running kernel as it is now: nothing that was read before is kept. Of a dump, everything is."""
        if self.is_live:
            self.opened.overlay.forget()

    def forget(self) -> None:
        """Forget what was computed: the memory under it has changed."""
        self._kept.clear()
