"""``runq``: what waits for each CPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from drgn import Object
from drgn.helpers.linux.cpumask import for_each_online_cpu
from drgn.helpers.linux.sched import (
    cfs_rq_for_each_entity,
    cpu_rq,
    rq_for_each_fair_task,
    rq_for_each_rt_task,
    sched_entity_to_task,
    task_group_name,
)

from postpanic.analysis.cells import absent, cell, decode, guarded, problem
from postpanic.analysis.commands.arguments import Arguments, Option
from postpanic.analysis.commands.ps_details import format_age
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.values import parse_cpus
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.tasks import TaskFacts, read_facts
from postpanic.analysis.workspace import Workspace
from postpanic.errors import UsageError
from postpanic.findings.absent import Absent, Reason
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape, Table

__all__ = ["runq"]

_TASK = (
    Column("pid", Kind.NUMBER, help="Thread ID."),
    Column("task", Kind.ADDRESS, help="Address of the task_struct."),
    Column("comm", help="Name of the task."),
)
_TASK_TEXT = 'PID: {pid:<5}  TASK: {task}  COMMAND: "{comm}"'
_CPU = Column("cpu", Kind.NUMBER, help="The CPU.")
_QUEUED = Shape(
    "queued",
    (Column("prio", Kind.NUMBER, help="task_struct.prio."), *_TASK),
    Layout.LINES,
    "     [{prio:>3}] " + _TASK_TEXT,
)
_QUEUES = Shape(
    "queues",
    (
        Column("queue", help="RT PRIO_ARRAY or CFS RB_ROOT."),
        Column("address", Kind.ADDRESS, help="Where it is."),
        Column("tasks", Kind.ROWS, help="Tasks that wait in it; the current one is not among them.", shape=_QUEUED),
    ),
    Layout.LINES,
    "  {queue}: {address}",
)
_RUNQ = Shape(
    "run_queues",
    (
        _CPU,
        Column("runqueue", Kind.ADDRESS, help="Address of the struct rq."),
        *_TASK,
        Column("queues", Kind.ROWS, help="The queues of its classes.", shape=_QUEUES),
    ),
    Layout.LINES,
    "CPU {cpu} RUNQUEUE: {runqueue}\n  CURRENT: " + _TASK_TEXT,
    gap=True,
)
_CLOCKS = Shape(
    "clocks",
    (
        _CPU,
        Column("clock_ns", Kind.NUMBER, help="rq.clock."),
        Column("last_run_ns", Kind.NUMBER, help="When the current task came to the CPU."),
        *_TASK,
    ),
    Layout.LINES,
    " CPU {cpu}: {clock_ns}\n        {last_run_ns}  " + _TASK_TEXT,
)
_LAGS = Shape(
    "lags",
    (
        _CPU,
        Column("lag_s", Kind.REAL, help="How far its clock is behind that of the CPU that is furthest, seconds."),
        Column("lag_ns", Kind.NUMBER, hidden=True, help="The same in nanoseconds."),
    ),
    Layout.LINES,
    "  CPU {cpu}: {lag_s} secs",
)
_AGES = Shape(
    "running_for",
    (
        _CPU,
        Column("age", help="How long the current task has been on the CPU."),
        Column("age_ns", Kind.NUMBER, hidden=True, help="The same in nanoseconds."),
        *_TASK,
    ),
    Layout.LINES,
    " CPU {cpu}: [{age}]  " + _TASK_TEXT,
)
_ENTITIES = Shape(
    "entities",
    (
        Column("depth", Kind.NUMBER, hidden=True, help="0 for what is in the root group."),
        Column("text", hidden=True, help="The row as it is shown."),
        Column("group", Kind.ADDRESS, hidden=True, help="Address of the task_group; empty for a task."),
        Column("group_name", hidden=True, help="Its control group."),
        Column("throttled", Kind.BOOL, hidden=True, help="Whether its bandwidth is used up."),
        Column("prio", Kind.NUMBER, hidden=True, help="task_struct.prio."),
        Column("pid", Kind.NUMBER, hidden=True, help="Thread ID."),
        Column("task", Kind.ADDRESS, hidden=True, help="Address of the task_struct."),
        Column("comm", hidden=True, help="Name of the task."),
        Column("current", Kind.BOOL, hidden=True, help="Whether it is on the CPU."),
    ),
    Layout.LINES,
    "{text}",
)
_ROOTS = Shape(
    "roots",
    (
        Column("queue", help="RT_RQ or CFS_RQ."),
        Column("address", Kind.ADDRESS, help="Address of the cfs_rq or rt_rq."),
        Column("root", Kind.ADDRESS, help="root_task_group."),
        Column("entities", Kind.ROWS, help="What is in it, groups before their members.", shape=_ENTITIES),
    ),
    Layout.LINES,
    "  ROOT_TASK_GROUP: {root}  {queue}: {address}",
)
_GROUPS = Shape(
    "task_groups",
    (_CPU, *_TASK, Column("roots", Kind.ROWS, help="The root group of each class.", shape=_ROOTS)),
    Layout.LINES,
    "CPU {cpu}\n  CURRENT: " + _TASK_TEXT,
    gap=True,
)
_NO_TASKS = "     [no tasks queued]"
_NS_PER_S = 1_000_000_000


@command(
    "runq",
    summary="what waits for each CPU",
    description=(
        "Show the run queue of each CPU: the task that is on it, and those that wait, of the real-time and the fair "
        "class. 'set offline hide' leaves out CPUs that are off."
    ),
    options=(
        Option("-t", "clocks", "the clock of each queue, and when its task came to the CPU"),
        Option("-T", "lags", "how far each clock is behind the furthest"),
        Option("-m", "ages", "how long each task has been on its CPU"),
        Option("-g", "groups", "by groups of tasks"),
        Option("-c", "cpus", "only these CPUs", "CPUS"),
    ),
    shapes=(_RUNQ, _CLOCKS, _LAGS, _AGES, _GROUPS),
    examples=(
        Example("runq", "all CPUs"),
        Example("runq -m -c 0-3", "for how long what is on four CPUs has run"),
        Example("runq -T", "has a CPU stopped taking ticks?"),
    ),
)
def runq(workspace: Workspace, arguments: Arguments) -> Answer:
    """Show run queues."""
    problems: list[Problem] = []
    views = [name for name in ("clocks", "lags", "ages", "groups") if arguments.has(name)]
    if len(views) > 1:
        raise UsageError("runq: -t, -T, -m and -g exclude each other")
    queues = dict(_read_queues(workspace, shown_cpus(workspace, arguments.get("cpus")), problems))
    viewer = _Viewer(workspace, queues, problems)
    view = views[0] if views else ""
    table = {
        "": viewer.run_queues,
        "clocks": viewer.clocks,
        "lags": viewer.lags,
        "ages": viewer.ages,
        "groups": viewer.groups,
    }[view]()
    return Answer("runq", (table,), tuple(problems))


def shown_cpus(workspace: Workspace, text: str | None) -> list[int]:
    """Return the CPUs that a command is for: those that are named, else all that are not hidden."""
    cpus = parse_cpus(workspace, text if text is not None else "all")
    if text is None and workspace.settings.get("offline") == "hide":
        online = set(for_each_online_cpu(workspace.prog))
        return [cpu for cpu in cpus if cpu in online]
    return cpus


def _read_queues(workspace: Workspace, cpus: Sequence[int], problems: list[Problem]) -> Iterator[tuple[int, Object]]:
    for cpu in cpus:
        try:
            queue = cpu_rq(workspace.prog, cpu)
            queue.clock.value_()
            yield cpu, queue
        except UNREADABLE as exc:
            problems.append(problem(f"run queue of CPU {cpu}", exc))


class _Viewer:
    """Makes the tables."""

    def __init__(self, workspace: Workspace, queues: dict[int, Object], problems: list[Problem]) -> None:
        self._workspace = workspace
        self._queues = queues
        self._problems = problems

    def _current(self, queue: Object) -> TaskFacts | None:
        try:
            return read_facts(self._workspace, [queue.curr.read_()])[0]
        except UNREADABLE as exc:
            self._problems.append(problem(f"current task of {queue.value_():#x}", exc))
            return None

    def _cells(self, facts: TaskFacts | None) -> tuple[Cell, Cell, Cell]:
        if facts is None:
            missing = Absent(Reason.UNREADABLE)
            return (missing, missing, missing)
        return (cell(lambda: facts.pid), facts.vaddr, cell(lambda: facts.comm))

    def run_queues(self) -> Table:
        rows: list[tuple[Cell, ...]] = []
        for cpu, queue in self._queues.items():
            current = self._current(queue)
            parts: list[tuple[Cell, ...]] = []
            for name, tasks, address in (
                ("RT PRIO_ARRAY", rq_for_each_rt_task, lambda queue=queue: queue.rt.active.address_of_()),
                ("CFS RB_ROOT", rq_for_each_fair_task, lambda queue=queue: queue.cfs.tasks_timeline.address_of_()),
            ):
                found = self._tasks(tasks(queue), f"{name} of CPU {cpu}", current)
                place = cell(lambda address=address: int(address().value_()))  # type: ignore[misc]
                parts.append((name, place, _QUEUED.table(found, title="" if found else _NO_TASKS)))
            rows.append((cpu, int(queue.value_()), *self._cells(current), _QUEUES.table(parts)))
        return _RUNQ.table(rows)

    def _tasks(self, tasks: Iterable[Object], what: str, current: TaskFacts | None) -> list[tuple[Cell, ...]]:
        found = [task for task in guarded(tasks, what, self._problems)]  # noqa: C416 - the walk may stop
        return [
            (facts.cell("prio"), *self._cells(facts))
            for facts in read_facts(self._workspace, found)
            if current is None or facts.vaddr != current.vaddr
        ]

    def clocks(self) -> Table:
        rows = []
        for cpu, queue in self._queues.items():
            current = self._current(queue)
            last_run = cell(lambda current=current: current.last_run_ns) if current else None  # type: ignore[misc]
            rows.append((cpu, int(queue.clock.value_()), last_run, *self._cells(current)))
        return _CLOCKS.table(rows)

    def lags(self) -> Table:
        clocks = {cpu: int(queue.clock.value_()) for cpu, queue in self._queues.items()}
        latest = max(clocks.values(), default=0)
        # The least late first, as crash has them.
        ordered = sorted(clocks.items(), key=lambda entry: (latest - entry[1], entry[0]))
        return _LAGS.table([(cpu, (latest - clock) / _NS_PER_S, latest - clock) for cpu, clock in ordered])

    def ages(self) -> Table:
        rows: list[tuple[Cell, ...]] = []
        for cpu, queue in self._queues.items():
            current = self._current(queue)
            try:
                age = max(0, int(queue.clock.value_()) - current.last_run_ns) if current else 0
                cells: tuple[Cell, Cell] = (format_age(age), age)
            except UNREADABLE as exc:
                cells = (absent(exc), absent(exc))
            rows.append((cpu, *cells, *self._cells(current)))
        return _AGES.table(rows)

    def groups(self) -> Table:
        root = cell(lambda: int(self._workspace.prog.symbol("root_task_group").address))
        rows: list[tuple[Cell, ...]] = []
        for cpu, queue in self._queues.items():
            current = self._current(queue)
            roots: list[tuple[Cell, ...]] = []
            real_time = [
                self._entity(facts, 0, is_current=current is not None and facts.vaddr == current.vaddr)
                for facts in read_facts(
                    self._workspace, list(guarded(rq_for_each_rt_task(queue), f"RT of CPU {cpu}", self._problems))
                )
            ]
            if real_time:
                roots.append(("RT_RQ", int(queue.rt.address_of_().value_()), root, _ENTITIES.table(real_time)))
            fair = list(self._fair(queue, cpu))
            place = int(queue.cfs.address_of_().value_())
            roots.append(("CFS_RQ", place, root, _ENTITIES.table(fair, title="" if fair else _NO_TASKS)))
            rows.append((cpu, *self._cells(current), _ROOTS.table(roots)))
        return _GROUPS.table(rows)

    def _fair(self, queue: Object, cpu: int) -> Iterator[tuple[Cell, ...]]:
        entities = cfs_rq_for_each_entity(queue.cfs.address_of_())
        walk = guarded(entities, f"CFS of CPU {cpu}", self._problems, key=lambda entry: int(entry[0].value_()))
        for entity, depth, is_current, is_task in walk:
            try:
                if is_task:
                    facts = read_facts(self._workspace, [sched_entity_to_task(entity)])[0]
                    yield self._entity(facts, depth, is_current=is_current)
                else:
                    yield self._group(entity, depth)
            except UNREADABLE as exc:
                self._problems.append(problem(f"entity {entity.value_():#x}", exc))

    def _entity(self, facts: TaskFacts, depth: int, *, is_current: bool) -> tuple[Cell, ...]:
        prio, (pid, task, comm) = facts.cell("prio"), self._cells(facts)
        mark = " [CURRENT]" if is_current else ""
        text = f'{"   " * depth}     [{prio:>3}] PID: {pid!s:<5}  TASK: {task:x}  COMMAND: "{comm}"{mark}'
        return (depth, text, None, None, None, prio, pid, task, comm, is_current)

    def _group(self, entity: Object, depth: int) -> tuple[Cell, ...]:
        queue = entity.my_q
        group = int(queue.tg.value_())
        name = cell(lambda: decode(task_group_name(queue.tg)))
        throttled = cell(lambda: bool(queue.throttled))
        text = f"{'   ' * depth}     TASK_GROUP: {group:x}  CFS_RQ: {queue.value_():x}"
        text += f"  <{name}>" if isinstance(name, str) and name else ""
        text += " (THROTTLED)" if throttled is True else ""
        return (depth, text, group, name, throttled, None, None, None, None, None)
