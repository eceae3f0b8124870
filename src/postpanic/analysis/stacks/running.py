"""Which tasks were running when the dump was taken."""

from __future__ import annotations

from drgn import Object, Program
from drgn.helpers.linux.cpumask import for_each_possible_cpu
from drgn.helpers.linux.sched import cpu_curr

from postpanic.analysis.context import UNREADABLE

__all__ = ["read_running_tasks"]


def read_running_tasks(prog: Program) -> dict[int, int]:
    """
    Read which tasks were running: address of ``struct task_struct`` to CPU.

    A CPU that was stopped by a panic may count as offline (``stop_this_cpu()``), so all possible ones are asked.
    """
    running: dict[int, int] = {}
    try:
        for cpu in for_each_possible_cpu(prog):
            try:
                task = cpu_curr(prog, cpu)
                if task and _was_on_cpu(task):
                    running.setdefault(int(task), cpu)
            except UNREADABLE:
                continue
    except UNREADABLE:
        pass
    return running


def _was_on_cpu(task: Object) -> bool:
    try:
        return bool(task.on_cpu)
    except AttributeError:
        return True
