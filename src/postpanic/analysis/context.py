"""The task that commands work on until the user chooses another."""

from __future__ import annotations

from dataclasses import dataclass

from drgn import FaultError, Object, Program
from drgn.helpers.linux.sched import cpu_curr

from postpanic.analysis.crash_commands import describe_error
from postpanic.errors import PostpanicError

__all__ = ["UNREADABLE", "ContextTask", "find_context_task"]

UNREADABLE = (FaultError, LookupError, ValueError, TypeError, AttributeError, OverflowError, PostpanicError)
"""What reading a structure that is damaged, unknown or not in the dump can raise."""


@dataclass(frozen=True, slots=True)
class ContextTask:
    """
    The task that commands work on until the user chooses another.

    ``panicked`` is False when no CPU panicked (a hypervisor dumped a guest that
    ran): the task is then the one that ran on CPU 0.
    """

    task: Object
    panicked: bool


def find_context_task(prog: Program) -> ContextTask:
    """
    Find the task that panicked; without one, the task that ran on CPU 0.

    The panicking CPU is ``panic_cpu`` (``kernel/panic.c``), else the
    ``crashing_cpu`` of the architecture; both are -1 in a kernel that ran on.

    Raises
    ------
    LookupError
        If not even the run queue of CPU 0 can be read.
    """
    try:
        return ContextTask(prog.crashed_thread().object, panicked=True)
    except UNREADABLE:
        try:
            return ContextTask(cpu_curr(prog, 0).read_(), panicked=False)
        except UNREADABLE as exc:
            raise LookupError(f"neither the panic task nor that of CPU 0: {describe_error(exc)}") from exc
