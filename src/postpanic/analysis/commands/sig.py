"""``sig``: how tasks handle signals, and which are pending."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import drgn
from drgn import Object, Program
from drgn.helpers.linux.signal import sigaction_flags, signal_numbers, sigpending_for_each

from postpanic.analysis.cells import absent, cell, guarded, problem
from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.commands.per_task import TASK_COLUMNS, TASK_LINE, task_cells
from postpanic.analysis.commands.ps_family import read_threads
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.values import find_tasks
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.tasks import TaskFacts, read_facts
from postpanic.analysis.workspace import Workspace
from postpanic.errors import UsageError
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape, Table

__all__ = ["sig", "signal_name"]

_COUNT = 64
_FIRST_REALTIME = 32
"""``SIGRTMIN`` of the kernel (``include/uapi/asm-generic/signal.h``)."""

_ACTIONS = Shape(
    "actions",
    (
        Column("signal", Kind.NUMBER, help="Number of the signal."),
        Column("number", hidden=True, help="The number in brackets."),
        Column("name", hidden=True, help="Its name."),
        Column("sigaction", Kind.ADDRESS, help="Address of the struct k_sigaction."),
        Column("handler", help="SIG_DFL, SIG_IGN, or the handler's address in user space."),
        Column("mask", Kind.HEX, format="016x", help="Signals that are blocked while it runs."),
        Column("flags", Kind.HEX, help="sa_flags."),
        Column("flag_names", help="The same in words.", prefix="(", suffix=")"),
    ),
    Layout.LINES,
    "{number:>4} {sigaction}    {handler:>7} {mask} {flags} {flag_names}",
    title=" SIG    SIGACTION        HANDLER       MASK       FLAGS",
)
_INFO = Shape(
    "sigqueue",
    (
        Column("signal", Kind.NUMBER, help="Number of the signal."),
        Column("name", hidden=True, help="Its name."),
        Column("siginfo", Kind.ADDRESS, help="Address of its kernel_siginfo."),
    ),
    Layout.LINES,
    "             {signal:>3}  {siginfo}",
    title="  SIGQUEUE:  SIG  SIGINFO",
)
_PENDING = Shape(
    "pending",
    (
        Column("queue", help="PRIVATE_PENDING or SHARED_PENDING."),
        Column("signals", Kind.HEX, format="016x", help="Signals that are pending, as bits."),
        Column("names", hidden=True, help="The same in words."),
        Column("sigqueue", Kind.ROWS, help="What is queued.", shape=_INFO),
    ),
    Layout.LINES,
    "{queue}\n    SIGNAL: {signals}",
)
_BLOCKED_COLUMNS = (
    Column("sigpending", Kind.BOOL, help="Whether a signal is pending that is not blocked."),
    Column("blocked", Kind.HEX, format="016x", help="Signals that are blocked, as bits."),
    Column("blocked_names", hidden=True, help="The same in words."),
)
_STATE = Shape(
    "state",
    (*_BLOCKED_COLUMNS, Column("pending", Kind.ROWS, help="Its own queue, and that of its process.", shape=_PENDING)),
    Layout.LINES,
    "SIGPENDING: {sigpending}\n   BLOCKED: {blocked}",
)
_THREADS = Shape(
    "threads",
    (
        *TASK_COLUMNS,
        *_BLOCKED_COLUMNS,
        Column("pending", Kind.ROWS, help="Its own queue.", shape=_PENDING),
    ),
    Layout.LINES,
    TASK_LINE + "\nSIGPENDING: {sigpending}\n   BLOCKED: {blocked}",
    indent=2,
    gap=True,
)
_HEAD = (
    *TASK_COLUMNS,
    Column("signal_struct", Kind.ADDRESS, help="Address of the signal_struct."),
    Column("threads", Kind.NUMBER, help="Threads of the process."),
    Column("actions", Kind.ROWS, help="What happens at each signal.", shape=_ACTIONS),
)
_HEAD_LINE = TASK_LINE + "\nSIGNAL_STRUCT: {signal_struct}  NR_THREADS: {threads}"
_SIGNALS = Shape(
    "signals",
    (*_HEAD, Column("state", Kind.ROWS, help="What is pending and blocked.", shape=_STATE)),
    Layout.LINES,
    _HEAD_LINE,
    gap=True,
)
_GROUP = Shape(
    "group_signals",
    (
        *_HEAD,
        Column("shared", Kind.ROWS, help="The queue of the process.", shape=_PENDING),
        Column("members", Kind.ROWS, help="Each thread.", shape=_THREADS),
    ),
    Layout.LINES,
    _HEAD_LINE,
    gap=True,
)
_NUMBERS = Shape(
    "numbers",
    (
        Column("signal", Kind.NUMBER, help="Number of the signal."),
        Column("number", hidden=True, help="The number in brackets."),
        Column("names", help="Its names."),
    ),
    Layout.LINES,
    "{number:>4} {names}",
)
_SET = Shape("set", (Column("names", help="Names of the signals in the set."),), Layout.LINES, "{names}")


@command(
    "sig",
    summary="how tasks handle signals, and which are pending",
    description="Show the task of the context, or those that are named.",
    options=(
        Option("-l", "numbers", "list the signals"),
        Option("-s", "sigset", "spell a set of signals, 64 bits in hexadecimal", "SIGSET"),
        Option("-g", "group", "all threads of the process"),
    ),
    operands=(Operand("task", "a PID, a task_struct address or a name", many=True),),
    shapes=(_SIGNALS, _GROUP, _NUMBERS, _SET),
    examples=(
        Example("sig 1", "what init does with signals"),
        Example("sig -g 8970", "all threads of a process"),
        Example("sig -s 800A000000000201", "the names in a set"),
    ),
    per_task=True,
)
def sig(workspace: Workspace, arguments: Arguments) -> Answer:
    """Show signals."""
    problems: list[Problem] = []
    prog = workspace.prog
    if arguments.has("numbers"):
        rows = [(number, f"[{number}]", "/".join(_names(prog, number))) for number in range(1, _COUNT + 1)]
        return Answer("sig", (_NUMBERS.table(rows),))
    if (text := arguments.get("sigset")) is not None:
        return Answer("sig", (_SET.table([(_set_names(prog, _parse_set(text)),)]),))
    tasks = read_facts(workspace, find_tasks(workspace, arguments.operands, problems))
    reader = _Reader(workspace, problems)
    if arguments.has("group"):
        leaders = {task.number("group_leader"): task for task in tasks}
        pointers = [Object(prog, "struct task_struct *", vaddr) for vaddr in leaders]
        table = _GROUP.table([reader.group(leader) for leader in read_facts(workspace, pointers)])
    else:
        table = _SIGNALS.table([reader.task(task) for task in tasks])
    return Answer("sig", (table,), tuple(problems))


def _parse_set(text: str) -> int:
    try:
        value = int(text, 16)
    except ValueError:
        raise UsageError(f"sig -s: {text!r} is not hexadecimal") from None
    if value >> 64:
        raise UsageError(f"sig -s: {text} is wider than 64 bits")
    return value


def _names(prog: Program, number: int) -> Sequence[str]:
    """Name a signal; real-time ones are counted from the nearer end."""
    if number < _FIRST_REALTIME:
        return list(signal_numbers(prog).get(number, [str(number)]))
    first, last = number - _FIRST_REALTIME, _COUNT - number
    if first <= (_COUNT - _FIRST_REALTIME) // 2:
        return [f"SIGRTMIN+{first}" if first else "SIGRTMIN"]
    return [f"SIGRTMAX-{last}" if last else "SIGRTMAX"]


def signal_name(prog: Program, number: int) -> str:
    """Give the name of a signal: ``SIGKILL``, ``SIGRTMIN+2``."""
    return _names(prog, number)[0]


def _set_names(prog: Program, mask: int) -> str:
    return " ".join(signal_name(prog, bit + 1) for bit in range(_COUNT) if mask >> bit & 1)


class _Reader:
    """Makes the rows of tasks."""

    def __init__(self, workspace: Workspace, problems: list[Problem]) -> None:
        self._workspace = workspace
        self._prog = workspace.prog
        self._problems = problems
        # Of two names of a flag (SA_ONSTACK, SA_STACK) the first is the preferred one.
        preferred: dict[int, str] = {}
        for name, bit in sigaction_flags(workspace.prog).items():
            preferred.setdefault(bit, name)
        # crash's order: SA_RESTORER, which the C library sets, before what the program chose.
        self._flags = sorted(preferred.items(), key=lambda entry: (entry[1] != "SA_RESTORER", entry[0]))

    def task(self, facts: TaskFacts) -> tuple[Cell, ...]:
        try:
            queues = [self._queue("PRIVATE_PENDING", facts.task.pending), self._shared(facts)]
            state: Cell = _STATE.table([(*self._blocked(facts), _PENDING.table(queues))])
        except UNREADABLE as exc:
            state = absent(exc)
        return (*self._head(facts), state)

    def group(self, leader: TaskFacts) -> tuple[Cell, ...]:
        try:
            shared: Cell = _PENDING.table([self._shared(leader)])
        except UNREADABLE as exc:
            shared = absent(exc)
        rows: list[tuple[Cell, ...]] = []
        for thread in read_threads(self._workspace, leader, self._problems):
            try:
                own = _PENDING.table([self._queue("PRIVATE_PENDING", thread.task.pending)])
                rows.append((*task_cells(thread), *self._blocked(thread), own))
            except UNREADABLE as exc:
                self._problems.append(problem(f"signals of task {thread.vaddr:x}", exc))
        return (*self._head(leader), shared, _THREADS.table(rows))

    def _head(self, facts: TaskFacts) -> tuple[Cell, ...]:
        try:
            actions: Cell = _ACTIONS.table(list(self._actions(facts)))
        except UNREADABLE as exc:
            actions = absent(exc)
        threads = cell(lambda: int(facts.task.signal.nr_threads.value_()))
        return (*task_cells(facts), facts.cell("signal"), threads, actions)

    def _actions(self, facts: TaskFacts) -> Iterator[tuple[Cell, ...]]:
        type_ = self._prog.type("struct sighand_struct")
        action = self._prog.type("struct k_sigaction")
        size = drgn.sizeof(action)
        start = facts.number("sighand") + drgn.offsetof(type_, "action")
        data = self._workspace.memory.read(start, size * _COUNT)
        places = [drgn.offsetof(action, f"sa.{name}") for name in ("sa_handler", "sa_flags", "sa_mask")]
        for number in range(1, _COUNT + 1):
            at = size * (number - 1)
            handler, flags, mask = (struct.unpack_from("<Q", data, at + place)[0] for place in places)
            yield (
                number,
                f"[{number}]",
                signal_name(self._prog, number),
                start + at,
                {0: "SIG_DFL", 1: "SIG_IGN"}.get(handler, f"{handler:x}"),
                mask,
                flags,
                "|".join(name for bit, name in self._flags if flags & bit),
            )

    def _blocked(self, facts: TaskFacts) -> tuple[Cell, Cell, Cell]:
        blocked = _sigset(facts.task.blocked)
        waiting = _sigset(facts.task.pending.signal) | _sigset(facts.task.signal.shared_pending.signal)
        return (bool(waiting & ~blocked), blocked, _set_names(self._prog, blocked))

    def _shared(self, facts: TaskFacts) -> tuple[Cell, ...]:
        return self._queue("SHARED_PENDING", facts.task.signal.shared_pending)

    def _queue(self, name: str, pending: Object) -> tuple[Cell, ...]:
        mask = _sigset(pending.signal)
        rows: list[tuple[Cell, ...]] = []
        for entry in guarded(sigpending_for_each(pending.address_of_()), f"{name} queue", self._problems):
            try:
                number = int(entry.info.si_signo.value_())
                rows.append((number, signal_name(self._prog, number), int(entry.info.address_of_().value_())))
            except UNREADABLE as exc:
                self._problems.append(problem(f"sigqueue {entry.value_():#x}", exc))
        queue: Table = _INFO.table(rows, title=None if rows else "  SIGQUEUE: (empty)")
        return (name, mask, _set_names(self._prog, mask), queue)


def _sigset(signals: Object) -> int:
    """Read a ``sigset_t``: one word of 64 bits on the machines that are known, two of 32 elsewhere."""
    words = list(signals.sig.read_())
    bits = 64 // len(words)
    return sum(int(word.value_()) << bits * place for place, word in enumerate(words))
