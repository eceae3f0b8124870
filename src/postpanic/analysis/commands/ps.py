"""``ps``: tasks, chosen and shown in many ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from drgn import Object, Program
from drgn.helpers.linux.mmzone import for_each_online_pgdat

from postpanic.analysis.cells import cell, problem
from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.commands.per_task import answers_all
from postpanic.analysis.commands.ps_details import (
    AGES,
    ARGUMENTS,
    LAST_RUN,
    LIMITS,
    STATES,
    TIMES,
    count_states,
    read_rq_clocks,
    show_arguments,
    show_last_run,
    show_limits,
    show_times,
)
from postpanic.analysis.commands.ps_family import CHILDREN, PARENTS, THREADS, show_children, show_parents, show_threads
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.task_choice import TaskChoice, active_tasks, choose_tasks, keep_leaders, narrow
from postpanic.analysis.commands.values import parse_cpus
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.tasks import MemoryUse, TaskFacts, possible_cpus, read_all_facts, read_facts, read_memory_use
from postpanic.analysis.workspace import Workspace
from postpanic.errors import UsageError
from postpanic.findings.absent import Absent, Reason
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape, Table

__all__ = ["ps"]

_POLICIES = {"NORMAL": 0, "FIFO": 1, "RR": 2, "BATCH": 3, "ISO": 4, "IDLE": 5, "DEADLINE": 6, "EXT": 7}
"""``SCHED_*`` of ``include/uapi/linux/sched.h``."""

_REST = (
    Column("state", title="ST", help="State in two letters: RU IN UN ZO ST TR DE SW WA PA ID NE."),
    Column("mem_percent", Kind.REAL, title="%MEM", format=".1f", help="Share of physical memory that is resident."),
    Column("vsz_kib", Kind.NUMBER, title="VSZ", help="Size of its mappings, KiB: mm_struct.total_vm."),
    Column("rss_kib", Kind.NUMBER, title="RSS", help="What is resident of it, KiB: mm_struct.rss_stat of all CPUs."),
    Column("command", title="COMM", help="Name; in brackets for kernel threads."),
    Column("comm", hidden=True, help="task_struct.comm."),
    Column("kernel", Kind.BOOL, hidden=True, help="Whether it is a kernel thread (PF_KTHREAD)."),
)
_FIRST = (
    Column("active", title="", help="'>' for the task that is on its CPU."),
    Column("pid", Kind.NUMBER, title="PID", help="Thread ID."),
    Column("ppid", Kind.NUMBER, title="PPID", help="PID of task_struct.parent."),
    Column("cpu", Kind.NUMBER, title="CPU", help="CPU that it runs on or ran on last."),
)
_LINE = "{active:<1}{pid:>8}{ppid:>8}{cpu:>4}  {%s}  {state:<2}{mem_percent:>6}{vsz_kib:>9}{rss_kib:>9}  {command}"
_TITLE = "      PID    PPID  CPU      %s      ST  %%MEM      VSZ      RSS  COMM"
_PS = Shape(
    "ps",
    (*_FIRST, Column("task", Kind.ADDRESS, title="TASK", help="Address of the task_struct."), *_REST),
    Layout.LINES,
    _LINE % "task",
    title=_TITLE % " TASK  ",
)
_PS_STACKS = Shape(
    "ps_stacks",
    (
        *_FIRST,
        Column("kstackp", Kind.ADDRESS, title="KSTACKP", help="Saved kernel stack pointer (thread.sp)."),
        *_REST,
        Column("task", Kind.ADDRESS, hidden=True, help="Address of the task_struct."),
    ),
    Layout.LINES,
    _LINE % "kstackp:<16",
    title=_TITLE % "KSTACKP",
)

_OPTIONS = (
    Option("-k", "kernel", "only kernel threads"),
    Option("-u", "user", "only user tasks"),
    Option("-G", "leaders", "only the first thread of each process"),
    Option("-y", "policies", "only tasks of these scheduling policies: numbers or names, with commas", "POLICY"),
    Option("-A", "active", "only the task that is on each CPU"),
    Option("-s", "stacks", "the kernel stack pointer in place of the task"),
    Option("-p", "parents", "the line of parents of each task"),
    Option("-c", "children", "the children of each task"),
    Option("-t", "times", "when it began, how long it has run in user mode and in the kernel"),
    Option("-l", "last_run", "when it last came to a CPU, the latest first"),
    Option("-m", "ages", "like -l, as the time that has passed since"),
    Option("-C", "cpus", "with -l or -m: a block for each of these CPUs", "CPUS"),
    Option("-a", "arguments", "command line and environment"),
    Option("-g", "threads", "thread groups"),
    Option("-r", "limits", "resource limits"),
    Option("-S", "states", "how many tasks are in each state"),
    Option("-H", "headless", "without the heading"),
)
_VIEWS = ("parents", "children", "times", "last_run", "ages", "arguments", "threads", "limits", "states")


@command(
    "ps",
    summary="list tasks",
    description=(
        "List all tasks, or those that are named, idle tasks first and then by PID. A '>' marks the task that is on "
        "its CPU. Memory adds up what all CPUs have counted: RSS is exact where the kernel's own sum is late."
    ),
    options=_OPTIONS,
    operands=(
        Operand("task", r"a PID, a task_struct address, a name (\name if it is all digits), or 'regex'", many=True),
    ),
    shapes=(_PS, _PS_STACKS, PARENTS, CHILDREN, THREADS, TIMES, LAST_RUN, AGES, ARGUMENTS, LIMITS, STATES),
    examples=(
        Example("ps", "all tasks"),
        Example("ps -A", "what the CPUs do"),
        Example("ps -u -y FIFO,RR", "real-time tasks of user processes"),
        Example("ps -m -C all 'kwork.*'", "since when each worker has not run, CPU by CPU"),
        Example("ps -p bash", "who started it"),
    ),
)
def ps(workspace: Workspace, arguments: Arguments) -> Answer:
    """List tasks."""
    problems: list[Problem] = []
    choice = _parse_choice(arguments)
    choice.names = list(arguments.operands)
    return _show(workspace, arguments, choose_tasks(workspace, choice, problems), problems)


@answers_all("ps")
def _ps_of(workspace: Workspace, arguments: Arguments, tasks: Sequence[Object]) -> Answer:
    problems: list[Problem] = []
    chosen = narrow(workspace, _parse_choice(arguments), read_facts(workspace, tasks), problems)
    return _show(workspace, arguments, chosen, problems)


def _parse_choice(arguments: Arguments) -> TaskChoice:
    views = [name for name in _VIEWS if arguments.has(name)]
    if len(views) > 1:
        raise UsageError(f"ps: {len(views)} ways to show tasks at once, one is possible", hint="help ps")
    if arguments.has("cpus") and not (arguments.has("last_run") or arguments.has("ages")):
        raise UsageError("ps -C: only with -l or -m")
    if arguments.has("kernel") and arguments.has("user"):
        raise UsageError("ps: -k and -u leave no task")
    choice = TaskChoice()
    choice.kinds |= {name for name in ("kernel", "user", "active") if arguments.has(name)}
    if (text := arguments.get("policies")) is not None:
        choice.policies = frozenset(_parse_policy(word.strip()) for word in text.split(","))
    return choice


def _parse_policy(word: str) -> int:
    if word.isdecimal():
        return int(word)
    try:
        return _POLICIES[word.upper().removeprefix("SCHED_")]
    except KeyError:
        raise UsageError(f"ps -y: {word!r} is no scheduling policy", hint=", ".join(_POLICIES)) from None


def _show(workspace: Workspace, arguments: Arguments, tasks: list[TaskFacts], problems: list[Problem]) -> Answer:
    if arguments.has("leaders"):
        tasks = keep_leaders(workspace, tasks)
    views: dict[str, Callable[[], list[Table]]] = {
        "parents": lambda: show_parents(workspace, tasks, problems),
        "children": lambda: [show_children(read_all_facts(workspace, problems), tasks)],
        "times": lambda: [show_times(workspace, tasks)],
        "last_run": lambda: _show_last_run(workspace, arguments, tasks, problems),
        "ages": lambda: _show_last_run(workspace, arguments, tasks, problems),
        "arguments": lambda: [show_arguments(tasks)],
        "threads": lambda: [show_threads(workspace, tasks, problems)],
        "limits": lambda: [show_limits(tasks)],
        "states": lambda: [count_states(tasks, problems)],
    }
    view = next((name for name in _VIEWS if arguments.has(name)), None)
    tables = views[view]() if view else [_list(workspace, arguments, tasks, problems)]
    return Answer("ps", tuple(tables), tuple(problems))


def _show_last_run(
    workspace: Workspace, arguments: Arguments, tasks: list[TaskFacts], problems: list[Problem]
) -> list[Table]:
    text = arguments.get("cpus")
    cpus = parse_cpus(workspace, text) if text is not None else None
    clocks = read_rq_clocks(workspace, possible_cpus(workspace), problems) if arguments.has("ages") else None
    return show_last_run(tasks, problems, clocks, cpus)


def _list(workspace: Workspace, arguments: Arguments, tasks: list[TaskFacts], problems: list[Problem]) -> Table:
    active = set(active_tasks(workspace, problems).values())
    lister = _Lister(workspace, active, _read_use(workspace, tasks, problems), problems)
    title = "" if arguments.has("headless") else None
    if arguments.has("stacks"):
        return _PS_STACKS.table([lister.row(task, with_stack=True) for task in tasks], title=title)
    return _PS.table([lister.row(task, with_stack=False) for task in tasks], title=title)


def _read_use(workspace: Workspace, tasks: list[TaskFacts], problems: list[Problem]) -> dict[int, MemoryUse] | None:
    try:
        # Threads that are not chosen have their part of the numbers too.
        everyone = {task.vaddr: task for task in [*read_all_facts(workspace, problems), *tasks]}
        return workspace.once("memory use", lambda: read_memory_use(workspace, everyone.values()))
    except UNREADABLE as exc:
        problems.append(problem("memory use of tasks", exc))
        return None


def _present_pages(prog: Program) -> int:
    """Count the pages of all nodes, reserved ones included, as crash does."""
    return sum(int(node.node_present_pages.value_()) for node in for_each_online_pgdat(prog))


class _Lister:
    """Makes the rows of the plain list."""

    def __init__(
        self, workspace: Workspace, active: set[int], use: dict[int, MemoryUse] | None, problems: list[Problem]
    ) -> None:
        self._active = active
        self._use = use
        self._kib_per_page = workspace.memory.page_size_bytes // 1024
        self._total_pages = cell(lambda: _present_pages(workspace.prog))
        self._pids = {task.vaddr: task for task in read_all_facts(workspace, problems)}
        self._prog = workspace.prog

    def row(self, task: TaskFacts, *, with_stack: bool) -> tuple[Cell, ...]:
        comm = cell(lambda: task.comm)
        kernel = cell(lambda: task.is_kernel_thread)
        is_active = task.vaddr in self._active
        place: Cell = task.vaddr
        if with_stack:
            place = Absent(Reason.NOT_APPLICABLE, "the task is on its CPU") if is_active else task.cell("sp")
        cells = (
            ">" if is_active else "",
            cell(lambda: task.pid),
            cell(lambda: self._ppid(task)),
            cell(lambda: task.cpu),
            place,
            cell(lambda: task.state),
            *self._memory(task),
            f"[{comm}]" if isinstance(comm, str) and kernel is True else comm,
            comm,
            kernel,
        )
        return (*cells, task.vaddr) if with_stack else cells

    def _mm(self, task: TaskFacts) -> int | None:
        try:
            return task.mm
        except UNREADABLE:
            return None

    def _ppid(self, task: TaskFacts) -> int:
        parent = task.number("parent")
        if parent in self._pids:
            return self._pids[parent].pid
        return int(Object(self._prog, "struct task_struct *", parent).pid.value_())

    def _memory(self, task: TaskFacts) -> tuple[Cell, Cell, Cell]:
        mm = self._mm(task)
        if mm == 0:
            return (0.0, 0, 0)
        if mm is None or self._use is None or mm not in self._use:
            missing = Absent(Reason.UNREADABLE, "its mm_struct cannot be read")
            return (missing, missing, missing)
        use = self._use[mm]
        share: Cell = self._total_pages
        if isinstance(share, int):
            share = use.rss * 100 / share if share else 0.0
        return (share, use.total_vm * self._kib_per_page, use.rss * self._kib_per_page)
