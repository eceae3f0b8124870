"""The line that crash puts above what it shows of a task."""

from __future__ import annotations

from drgn import Object
from drgn.helpers.linux.sched import task_cpu

from postpanic.analysis.commands.cells import cell, decode
from postpanic.findings.table import Cell, Column, Kind

__all__ = ["TASK_COLUMNS", "TASK_LINE", "task_cells"]

TASK_COLUMNS = (
    Column("pid", Kind.NUMBER, title="PID", help="Process ID, of a thread its own."),
    Column("task", Kind.ADDRESS, title="TASK", help="``struct task_struct *``."),
    Column("cpu", Kind.NUMBER, title="CPU", help="The processor it runs on or ran on last."),
    Column("comm", title="COMMAND", help="Command name, ``comm``."),
)
"""The first columns of a table that has a row for each task."""

TASK_LINE = 'PID: {pid:<7}  TASK: {task}  CPU: {cpu:<3}  COMMAND: "{comm}"'


def task_cells(task: Object) -> tuple[Cell, ...]:
    """Fill :data:`TASK_COLUMNS` for a ``struct task_struct *``."""
    return (
        cell(lambda: int(task.pid.value_())),
        int(task.value_()),
        cell(lambda: int(task_cpu(task))),
        cell(lambda: decode(task.comm.string_())),
    )
