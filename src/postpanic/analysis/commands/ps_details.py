"""What ``ps`` shows of each task beyond its line: times, arguments, resource limits, counts of states."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence

from drgn import Object
from drgn.helpers.linux.mm import cmdline, environ
from drgn.helpers.linux.sched import cpu_rq
from drgn.helpers.linux.timekeeping import ktime_get_boottime_seconds

from postpanic.analysis.cells import absent, cell, decode, problem
from postpanic.analysis.commands.per_task import TASK_COLUMNS, TASK_LINE, task_cells
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.tasks import STATE_NAMES, TaskFacts
from postpanic.analysis.workspace import Workspace
from postpanic.errors import FactAbsentError
from postpanic.findings.absent import Absent, Reason
from postpanic.findings.table import Cell, Column, Kind, Layout, Problem, Shape, Table

__all__ = [
    "AGES",
    "ARGUMENTS",
    "LAST_RUN",
    "LIMITS",
    "STATES",
    "TIMES",
    "count_states",
    "format_age",
    "read_rq_clocks",
    "show_arguments",
    "show_last_run",
    "show_limits",
    "show_times",
]

_NS_PER_S = 1_000_000_000
_NS_PER_MS = 1_000_000

TIMES = Shape(
    "times",
    (
        *TASK_COLUMNS,
        Column("run_time", help="How long ago it began."),
        Column("run_time_s", Kind.NUMBER, help="The same in seconds.", hidden=True),
        Column("start_time_ns", Kind.NUMBER, help="When it began, monotonic: task_struct.start_time."),
        Column("utime_ns", Kind.NUMBER, help="CPU time in user mode: task_struct.utime."),
        Column("stime_ns", Kind.NUMBER, help="CPU time in the kernel: task_struct.stime."),
    ),
    Layout.LINES,
    TASK_LINE
    + "\n    RUN TIME: {run_time}\n  START TIME: {start_time_ns}\n       UTIME: {utime_ns}\n       STIME: {stime_ns}",
    gap=True,
)
_RUN_COLUMNS = (Column("state", help="State in two letters."), *TASK_COLUMNS)
LAST_RUN = Shape(
    "last_run",
    (
        Column("last_run_ns", Kind.NUMBER, help="When it last came to a CPU: sched_info.last_arrival."),
        *_RUN_COLUMNS,
    ),
    Layout.LINES,
    "[{last_run_ns:>11}] [{state:<2}]  " + TASK_LINE,
)
AGES = Shape(
    "last_run_ages",
    (
        Column("age", help="Time from then to the last clock of its CPU: days, hours:minutes:seconds."),
        Column("age_ns", Kind.NUMBER, help="The same in nanoseconds.", hidden=True),
        *_RUN_COLUMNS,
    ),
    Layout.LINES,
    "[{age}] [{state:<2}]  " + TASK_LINE,
)
_VARIABLES = Shape(
    "environment",
    (Column("label", hidden=True, help="ENV: in the first row."), Column("variable", help="NAME=value.")),
    Layout.LINES,
    "{label:<4} {variable}",
)
ARGUMENTS = Shape(
    "arguments",
    (
        *TASK_COLUMNS,
        Column("arguments", help="Words of its command line, with blanks between."),
        Column("environment", Kind.ROWS, help="Its environment when it began.", shape=_VARIABLES),
    ),
    Layout.LINES,
    TASK_LINE + "\nARG: {arguments}",
    gap=True,
)
_LIMIT = Shape(
    "limits",
    (
        Column("name", help="RLIMIT_ of setrlimit(2)."),
        Column("current", Kind.NUMBER, hidden=True, help="Soft limit; null: none."),
        Column("maximum", Kind.NUMBER, hidden=True, help="Hard limit; null: none."),
        Column("current_text", hidden=True, help="As text."),
        Column("maximum_text", hidden=True, help="As text."),
    ),
    Layout.LINES,
    "{name:>12}   {current_text:^11}   {maximum_text:^11}",
    title="      RLIMIT     CURRENT       MAXIMUM",
)
LIMITS = Shape(
    "resource_limits",
    (*TASK_COLUMNS, Column("limits", Kind.ROWS, help="Its resource limits.", shape=_LIMIT)),
    Layout.LINES,
    TASK_LINE,
    gap=True,
)
STATES = Shape(
    "states",
    (
        Column("state", help="State in two letters."),
        Column("count", Kind.NUMBER, help="How many tasks are in it."),
        Column("meaning", help="The state in words.", hidden=True),
    ),
    Layout.LINES,
    "  {state}: {count}",
)

# include/uapi/asm-generic/resource.h; the same on x86-64 and arm64.
_LIMIT_NAMES = (
    *("CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK", "AS", "LOCKS"),
    *("SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME"),
)
_INFINITY = (1 << 64) - 1


def format_seconds(seconds: int) -> str:
    """Spell a time as ``1 days, 01:35:32``, or without days."""
    days, rest = divmod(max(0, seconds), 86400)
    clock = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days} days, {clock}" if days else clock


def format_age(age_ns: int) -> str:
    """
    Spell a time as days, hours, minutes, seconds and milliseconds.

    >>> format_age(93_784_005_000_000)
    '1 02:03:04.005'
    """
    milliseconds = max(0, age_ns) // _NS_PER_MS
    days, rest = divmod(milliseconds, 86_400_000)
    return f"{days} {rest // 3_600_000:02}:{rest // 60_000 % 60:02}:{rest // 1000 % 60:02}.{rest % 1000:03}"


def show_times(workspace: Workspace, tasks: Iterable[TaskFacts]) -> Table:
    """Show since when tasks run and how much they have run, the oldest first."""
    now = cell(lambda: int(ktime_get_boottime_seconds(workspace.prog).value_()))

    def run_time(task: TaskFacts) -> Cell:
        if not isinstance(now, int):
            return now
        return cell(lambda: max(0, now - task.number("start_boottime") // _NS_PER_S))

    rows = []
    for task in tasks:
        seconds = run_time(task)
        rows.append(
            (
                *task_cells(task),
                format_seconds(seconds) if isinstance(seconds, int) else seconds,
                seconds,
                *(task.cell(name) for name in ("start_time", "utime", "stime")),
            )
        )
    started = TIMES.index["start_time_ns"]
    rows.sort(key=lambda row: cell_number(row[started]))
    return TIMES.table(rows)


def cell_number(value: Cell) -> int:
    """Return what a cell counts for where rows are sorted: what is not known comes last."""
    return value if isinstance(value, int) else 1 << 64


def read_rq_clocks(workspace: Workspace, cpus: Sequence[int], problems: list[Problem]) -> dict[int, int]:
    """Read the time of each CPU's run queue, ns (``rq->clock``)."""
    clocks: dict[int, int] = {}
    for cpu in cpus:
        try:
            clocks[cpu] = int(cpu_rq(workspace.prog, cpu).clock.value_())
        except UNREADABLE as exc:
            problems.append(problem(f"run queue of CPU {cpu}", exc))
    return clocks


def show_last_run(
    tasks: Sequence[TaskFacts], problems: list[Problem], clocks: dict[int, int] | None, cpus: Sequence[int] | None
) -> list[Table]:
    """
    Show tasks by when they ran last, the latest first.

    Parameters
    ----------
    clocks : dict, optional
        Time of each CPU's run queue: show how long ago it was.
    cpus : sequence of int, optional
        Make a table for each of these CPUs.
    """
    timed: list[tuple[int, int, TaskFacts]] = []
    for task in tasks:
        try:
            timed.append((task.last_run_ns, task.cpu, task))
        except UNREADABLE as exc:
            problems.append(problem(f"task {task.vaddr:x}", exc))
    timed.sort(key=lambda entry: -entry[0])
    if cpus is None:
        return [_last_run(timed, clocks, "")]
    return [_last_run([entry for entry in timed if entry[1] == cpu], clocks, f"CPU: {cpu}") for cpu in cpus]


def _last_run(timed: Sequence[tuple[int, int, TaskFacts]], clocks: dict[int, int] | None, title: str) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for last_run, cpu, task in timed:
        rest = (task.state_cell, *task_cells(task))
        if clocks is None:
            rows.append((last_run, *rest))
        elif cpu in clocks:
            age = max(0, clocks[cpu] - last_run)
            rows.append((format_age(age), age, *rest))
        else:
            unknown = Absent(Reason.UNREADABLE, f"the run queue of CPU {cpu} cannot be read")
            rows.append((unknown, unknown, *rest))
    return (LAST_RUN if clocks is None else AGES).table(rows, title=title)


def show_arguments(tasks: Iterable[TaskFacts]) -> Table:
    """Show command lines and environments, which lie in the stacks of the processes."""
    return ARGUMENTS.table([_arguments(task) for task in tasks])


def _arguments(task: TaskFacts) -> tuple[Cell, ...]:
    cells = task_cells(task)
    try:
        if not task.mm:
            why = "kernel thread" if task.is_kernel_thread else "it has exited"
            return (*cells, Absent(Reason.NOT_APPLICABLE, f"no user stack: {why}"), _VARIABLES.table())
        words = [decode(word) for word in cmdline(task.task) or []]
        variables = [decode(word) for word in environ(task.task) or []]
    except UNREADABLE as exc:
        return (*cells, absent(exc), _VARIABLES.table())
    rows = [("" if number else "ENV:", variable) for number, variable in enumerate(variables)]
    return (*cells, " ".join(words), _VARIABLES.table(rows))


def show_limits(tasks: Iterable[TaskFacts]) -> Table:
    """Show the resource limits of tasks (``signal_struct.rlim``)."""
    return LIMITS.table([(*task_cells(task), _limits(task.task)) for task in tasks])


def _limits(task: Object) -> Cell:
    try:
        limits = task.signal.rlim.read_()
        pairs = [(int(entry.rlim_cur.value_()), int(entry.rlim_max.value_())) for entry in limits]
    except UNREADABLE as exc:
        return absent(exc)
    rows = []
    for number, pair in enumerate(pairs):
        name = _LIMIT_NAMES[number] if number < len(_LIMIT_NAMES) else str(number)
        values = [None if value == _INFINITY else value for value in pair]
        rows.append((name, *values, *("(unlimited)" if value is None else str(value) for value in values)))
    return _LIMIT.table(rows)


def count_states(tasks: Iterable[TaskFacts], problems: list[Problem]) -> Table:
    """Count the tasks in each state, in the order in which the states come up."""
    counts: collections.Counter[str] = collections.Counter()
    for task in tasks:
        try:
            counts[task.state] += 1
        except (*UNREADABLE, FactAbsentError) as exc:
            problems.append(problem(f"task {task.vaddr:x}", exc))
    return STATES.table([(state, count, STATE_NAMES.get(state, "")) for state, count in counts.items()])
