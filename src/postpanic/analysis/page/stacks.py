"""Backtraces of all tasks, grouped by sameness; tasks by state; what each CPU did."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from postpanic.analysis.cells import cell
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.stacks.frames import Trace
from postpanic.analysis.tasks import TaskFacts
from postpanic.analysis.triage import Scene
from postpanic.findings.page import Bar, Bars, Section
from postpanic.findings.table import Cell, Column, Kind, Shape

__all__ = ["describe_cpus", "describe_states", "group_backtraces"]

_MOST_TASKS = 20_000
_MOST_FRAMES = 40
_SHOWN_TASKS = 12
GROUPS = Shape(
    "backtraces",
    (
        Column("tasks", Kind.NUMBER, title="TASKS"),
        Column("who", title="WHO"),
        Column("state", title="STATE"),
        Column("functions", title="FUNCTIONS, THE INNERMOST FIRST"),
    ),
)
CPUS = Shape(
    "cpus",
    (
        Column("cpu", Kind.NUMBER, title="CPU"),
        Column("pid", Kind.NUMBER, title="PID"),
        Column("comm", title="COMM"),
        Column("functions", title="WHERE IT WAS, THE INNERMOST FIRST"),
        Column("mark", title="PANIC", help="whether the kernel panicked there"),
    ),
)
_STATES = {
    "RU": "running, or ready to run",
    "IN": "asleep, can be woken by a signal",
    "UN": "asleep, cannot be woken (D)",
    "ID": "asleep, idle kernel thread",
    "ZO": "zombie",
    "ST": "stopped",
    "TR": "traced",
    "DE": "dead",
    "NE": "new",
    "WA": "being woken",
    "PA": "parked",
}


def group_backtraces(scene: Scene) -> Section:
    """Group the tasks that sleep at the same place: stacks that hundreds share are read once."""
    groups: defaultdict[tuple[str, tuple[str, ...]], list[TaskFacts]] = defaultdict(list)
    for task in _some(scene.tasks):
        try:
            key = (task.state, _functions(scene.trace(task)))
        except UNREADABLE:
            continue
        groups[key].append(task)
    blocked_first = sorted(groups.items(), key=lambda item: (item[0][0] != "UN", item[0][0] == "ID", len(item[1])))
    rows = [_group_row(state, functions, tasks) for (state, functions), tasks in blocked_first]
    return Section(
        "backtraces",
        "Backtraces, grouped",
        f"{sum(map(len, groups.values()))} tasks in {len(rows)} groups: who cannot be woken first, then the rare ones.",
        tables=(GROUPS.table(rows),),
        is_open=False,
    )


def _some(tasks: Sequence[TaskFacts]) -> Sequence[TaskFacts]:
    return tasks[:_MOST_TASKS]


def _functions(trace: Trace) -> tuple[str, ...]:
    if trace.absent is not None:
        return (f"({trace.absent.detail})",)
    return tuple(
        frame.place.function if frame.place is not None and frame.place.function else f"{frame.pc:#x}"
        for frame in trace.frames[:_MOST_FRAMES]
    )


def _group_row(state: str, functions: tuple[str, ...], tasks: Sequence[TaskFacts]) -> tuple[Cell, ...]:
    names = [f"{task.comm} ({task.pid})" for task in tasks[:_SHOWN_TASKS]]
    names += [f"and {len(tasks) - _SHOWN_TASKS} more"] if len(tasks) > _SHOWN_TASKS else []
    return len(tasks), ", ".join(names), state, " < ".join(functions)


def describe_states(scene: Scene) -> Section:
    """Count the tasks by state, with a picture."""
    counts: Counter[str] = Counter()
    for task in scene.tasks:
        try:
            counts[task.state] += 1
        except UNREADABLE:
            counts["?"] += 1
    bars = [
        Bar(f"{state} {_STATES.get(state, '')}".strip(), number, str(number), is_marked=state == "UN")
        for state, number in counts.most_common()
    ]
    pictures = (Bars("Tasks by state", tuple(bars), "tasks"),) if bars else ()
    return Section("task-states", "Task states", pictures=pictures)


def describe_cpus(scene: Scene) -> Section:
    """Say what ran on each CPU, and where it was."""
    return Section("cpus", "CPUs", tables=(CPUS.table(sorted(_cpu_rows(scene), key=lambda row: str(row[0]).zfill(6))),))


def _cpu_rows(scene: Scene) -> Iterator[tuple[Cell, ...]]:
    for vaddr, cpu in scene.stacks.running.items():
        task = scene.tasks_by_vaddr.get(vaddr)
        yield (cpu, *(_running(scene, task) if task is not None else (None, None, None, None)))


def _running(scene: Scene, task: TaskFacts) -> tuple[Cell, ...]:
    try:
        functions = " < ".join(_functions(scene.trace(task)))
    except UNREADABLE:
        functions = ""
    panicked = scene.panic_task is not None and scene.panic_task.vaddr == task.vaddr
    mark = "yes" if panicked else None
    return cell(lambda: task.pid), cell(lambda: task.comm), functions or None, mark
