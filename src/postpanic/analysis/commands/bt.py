"""``bt``: the stacks of tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from drgn import Object
from drgn.helpers.linux.panic import panic_task
from drgn.helpers.linux.pid import for_each_task_in_group
from drgn.helpers.linux.sched import cpu_curr

from postpanic.analysis.cells import guarded
from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.commands.backtrace.contents import ContentReader, WordNames
from postpanic.analysis.commands.backtrace.rows import SourceLines, TraceTables, entry_registers, task_row
from postpanic.analysis.commands.backtrace.searches import (
    check_overflow,
    cpu_stack_rows,
    exceptions_table,
    find_end_of_stack,
    text_rows,
)
from postpanic.analysis.commands.backtrace.shapes import MESSAGES, OVERFLOWS, STACKS, TEXTS, tasks_shape
from postpanic.analysis.commands.per_task import answers_each, task_cells
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.values import find_symbol_vaddr, find_tasks, parse_cpus, parse_vaddr
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.crash_commands import describe_error
from postpanic.analysis.stacks.engine import Stacks, open_stacks
from postpanic.analysis.stacks.frames import Area, Frame, Trace
from postpanic.analysis.stacks.walk import MAX_FRAMES
from postpanic.analysis.tasks import TaskFacts, possible_cpus, read_facts, read_tasks
from postpanic.analysis.workspace import Workspace
from postpanic.errors import AbsentError, FactAbsentError, UsageError
from postpanic.findings.absent import Reason
from postpanic.findings.table import Answer, Cell, Problem, Shape

__all__ = ["bt"]

_OLD = "bt_old"
"""Setting: ``-O`` makes ``-o`` the default, and back."""
_IDLE = "idle"

_OPTIONS = (
    Option("-a", "all_cpus", "the task that was running on each CPU"),
    Option("-A", "vector_registers", "", refused="shows vector registers of s390x, which is not read here"),
    Option("-c", "cpus", "the tasks that were running on these CPUs: 3, 1,8,9 or 1-23", value="CPUS"),
    Option("-p", "panic", "the task that panicked"),
    Option("-g", "group", "all threads of the task's process, the leader first"),
    Option("-n", "skip", "only the headers of idle tasks; the value is idle", value="idle"),
    Option("-f", "contents", "what lies on the stack in each frame"),
    Option("-F", "symbolic", "the same, words as symbols or [slab cache]; twice: with the object's address"),
    Option("-l", "lines", "source file and line of each frame, where the debug information has them"),
    Option("-s", "offsets", "offset in the function behind its name"),
    Option("-x", "hex", "offsets in hexadecimal"),
    Option("-d", "decimal", "offsets in decimal"),
    Option("-r", "raw", "the whole stack, as words; with -F as symbols"),
    Option("-t", "texts", "all addresses of code on the stack, from the innermost frame on"),
    Option("-T", "all_texts", "the same, from the very end of the stack on: what earlier calls left, too"),
    Option("-e", "exceptions", "search the stack for entry frames: registers saved by interrupts and system calls"),
    Option("-E", "cpu_exceptions", "search the interrupt and exception stacks of all CPUs (or of -c) for them"),
    Option("-v", "overflows", "check the stacks of all tasks for signs of an overflow"),
    Option("-o", "old", "list every return address on the stack as a frame, what earlier calls left too"),
    Option("-O", "old_default", "make -o the default; once more: no longer"),
    Option("-R", "reference", "only stacks that refer to this symbol or address of code", value="REF"),
    Option("-I", "ip", "begin at this address of code", value="IP"),
    Option("-S", "sp", "begin at this stack pointer", value="SP"),
)


@dataclass(slots=True)
class _Request:
    """What the options ask for, looked up once for all tasks."""

    stacks: Stacks
    arguments: Arguments
    shape: Shape
    tables: TraceTables
    contents: ContentReader
    old: bool
    hexadecimal: bool
    reference: tuple[str, int | None] | None
    pc: int | None
    sp: int | None
    panic: int
    lines: SourceLines | None


@command(
    "bt",
    summary="backtrace",
    description=(
        "Show the kernel stack of the task of the context, of other tasks, or of what ran on CPUs. Stacks are followed "
        "by the kernel's own unwind tables. For a CPU that died the trace begins where it was when the dump was "
        "taken, with what led there: the registers of an exception are shown between the frames, with the "
        "instruction that was interrupted; so are the registers of user code at the end of the stack of a process.\n\n"
        "Where the unwinder is lost (a call through a bad pointer, code without unwind tables, an overwritten stack), "
        "the trace goes on from the next return address on the stack from which it leads to the stack's end; a "
        "problem says so, and the frame is marked (not certain). crash lists return addresses there that earlier "
        "calls left behind, without saying so; -o, -t and -T list them here.\n\n"
        "In brackets stands where the return address of the frame is. Inlined functions are shown where the debug "
        "information knows them."
    ),
    options=_OPTIONS,
    operands=(Operand("task", "a PID, the address of a task_struct, a command name or a 'regex'", many=True),),
    shapes=(tasks_shape(), STACKS, OVERFLOWS, MESSAGES),
    examples=(
        Example("bt", "the stack of the task of the context: first the one that panicked"),
        Example("bt -a", "what ran on each CPU"),
        Example("bt 1 sshd", "the stacks of process 1, and of every task called sshd"),
        Example("bt -sx -c 0,1", "with offsets, of two CPUs"),
        Example("bt -FF 1", "what lies on the stack: symbols, and the slab caches of objects"),
        Example("foreach UN bt", "the stacks of all tasks that wait for a disk or a lock"),
        Example("foreach bt -R mutex_lock", "the stacks that refer to mutex_lock"),
    ),
    per_task=True,
)
def bt(workspace: Workspace, arguments: Arguments) -> Answer:
    """Show stacks."""
    if arguments.has("old_default"):
        return _toggle_old(workspace)
    stacks = open_stacks(workspace)
    problems: list[Problem] = []
    if arguments.has("cpu_exceptions"):
        cpus = _asked_cpus(workspace, arguments) or list(possible_cpus(workspace))
        return Answer("bt", (cpu_stack_rows(stacks, cpus, hexadecimal=workspace.radix == 16),))
    if arguments.has("overflows"):
        return _check_all(workspace, stacks)
    request = _read_request(workspace, arguments)
    tasks = _choose_tasks(workspace, stacks, arguments, problems)
    rows = [row for facts in read_facts(workspace, tasks) for row in _rows(request, facts, problems)]
    problems += [*stacks.problems, *_lines_problem(request)]
    return Answer("bt", (request.shape.table(rows),), tuple(dict.fromkeys(problems)))


@answers_each("bt")
def _answer_each(workspace: Workspace, arguments: Arguments, tasks: Sequence[Object]) -> Iterator[Answer]:
    """Answer for many tasks: what all of them need is looked up once."""
    alone = [name for name in ("all_cpus", "cpus", "panic", "cpu_exceptions", "overflows") if arguments.has(name)]
    if alone or arguments.operands:
        raise UsageError("foreach bt: the tasks are chosen by foreach", hint="bt itself takes -a -c -p -E -v")
    request = _read_request(workspace, arguments)
    for facts in read_facts(workspace, tasks):
        problems: list[Problem] = []
        rows = list(_rows(request, facts, problems))
        yield Answer("bt", (request.shape.table(rows),), tuple(problems))


def _toggle_old(workspace: Workspace) -> Answer:
    old = workspace.settings[_OLD] = not workspace.settings.get(_OLD, False)
    return Answer("bt", (MESSAGES.table([(f"use {'old' if old else 'new'} bt method by default",)]),))


def _read_request(workspace: Workspace, arguments: Arguments) -> _Request:
    _check_options(arguments)
    stacks = open_stacks(workspace)
    hexadecimal = arguments.has("hex") or (workspace.radix == 16 and not arguments.has("decimal"))
    offsets = ("#x" if hexadecimal else "d") if arguments.has("offsets") else ""
    names = _word_names(workspace, stacks, arguments.count("symbolic"))
    contents = ContentReader(stacks, names)
    lines = workspace.once("source lines", lambda: SourceLines(workspace.prog))
    tables = TraceTables(
        offsets=offsets,
        lines=lines,
        show_lines=arguments.has("lines"),
        contents=contents if arguments.has("contents") or (names and not arguments.has("raw")) else None,
        hexadecimal=hexadecimal,
    )
    ip, sp = arguments.get("ip"), arguments.get("sp")
    return _Request(
        stacks=stacks,
        arguments=arguments,
        shape=tasks_shape(offsets, start=arguments.has("texts")),
        tables=tables,
        contents=contents,
        old=arguments.has("old") != bool(workspace.settings.get(_OLD, False)),
        hexadecimal=hexadecimal,
        reference=_read_reference(workspace, arguments.get("reference")),
        pc=parse_vaddr(workspace, ip) if ip is not None else None,
        sp=parse_vaddr(workspace, sp) if sp is not None else None,
        panic=_panic_vaddr(workspace),
        lines=lines if arguments.has("lines") else None,
    )


def _word_names(workspace: Workspace, stacks: Stacks, level: int) -> WordNames | None:
    if not level:
        return None
    if level > 1:
        return workspace.once("long names of words", lambda: WordNames(stacks, verbose=True))
    return workspace.once("names of words", lambda: WordNames(stacks))


def _check_options(arguments: Arguments) -> None:
    skip = arguments.get("skip")
    if skip is not None and skip != _IDLE:
        raise UsageError(f"bt -n: {skip!r} is not known, only idle tasks can be left out", hint="bt -n idle")


def _read_reference(workspace: Workspace, word: str | None) -> tuple[str, int | None] | None:
    if word is None:
        return None
    try:
        return word, find_symbol_vaddr(workspace.prog, word)
    except FactAbsentError:
        return word, parse_vaddr(workspace, word)


def _panic_vaddr(workspace: Workspace) -> int:
    try:
        return int(panic_task(workspace.prog))
    except UNREADABLE:
        return 0


def _asked_cpus(workspace: Workspace, arguments: Arguments) -> list[int] | None:
    text = arguments.get("cpus")
    return parse_cpus(workspace, text) if text is not None else None


def _choose_tasks(
    workspace: Workspace, stacks: Stacks, arguments: Arguments, problems: list[Problem]
) -> Sequence[Object]:
    cpus = _asked_cpus(workspace, arguments)
    if arguments.has("all_cpus") or cpus is not None:
        if workspace.is_live:
            raise UsageError("bt -a and -c: the tasks of the CPUs run on", hint="these are for dumps")
        if cpus is None:
            cpus = sorted(stacks.running.values())
        return [task for cpu in cpus if (task := _task_of_cpu(workspace, cpu, problems)) is not None]
    if arguments.has("panic"):
        try:
            return [panic_task(workspace.prog).read_()]
        except UNREADABLE as exc:
            raise AbsentError(f"no task panicked: {describe_error(exc)}", hint="bt -a shows what ran") from exc
    tasks = find_tasks(workspace, arguments.operands, problems)
    if not arguments.has("group"):
        return tasks
    return [thread for task in tasks for thread in _threads(task, problems)]


def _task_of_cpu(workspace: Workspace, cpu: int, problems: list[Problem]) -> Object | None:
    try:
        return cpu_curr(workspace.prog, cpu).read_()
    except UNREADABLE as exc:
        problems.append(Problem(f"task of CPU {cpu}: {describe_error(exc)}", Reason.UNREADABLE))
        return None


def _threads(task: Object, problems: list[Problem]) -> Iterator[Object]:
    leader = task.group_leader.read_()
    yield leader
    for thread in guarded(for_each_task_in_group(leader), "threads of the process", problems):
        yield thread.read_()


def _rows(request: _Request, facts: TaskFacts, problems: list[Problem]) -> Iterator[tuple[Cell, ...]]:
    """Make the row of one task; none, where it does not refer to what is looked for."""
    arguments = request.arguments
    if arguments.has("exceptions") or arguments.has("raw"):
        area = request.stacks.find_task_area(facts)
        if area is not None:
            yield _searched_row(request, facts, area)
        return
    trace = _trace(request, facts)
    if request.reference is not None and not _refers(request, facts, trace):
        return
    found = [f"PID {task_cells(facts)[0]}: {problem.what}" for problem in trace.problems]
    problems += [Problem(what, problem.reason) for what, problem in zip(found, trace.problems, strict=True) if what]
    text = "; ".join(problem.what for problem in trace.problems)
    if arguments.has("texts") or arguments.has("all_texts"):
        yield _texts_row(request, facts, trace, text)
        return
    if arguments.has("skip") and _is_idle(request, facts):
        yield task_row(facts, text)
        return
    start = trace.start
    at = request.tables.registers(start) if start is not None else None
    yield task_row(facts, text, at=at, frames=trace.absent or request.tables.frames(trace))


def _trace(request: _Request, facts: TaskFacts) -> Trace:
    trace = request.stacks.trace(facts, pc=request.pc, sp=request.sp)
    return _old_trace(request, trace) if request.old else trace


def _is_idle(request: _Request, facts: TaskFacts) -> bool:
    return facts.vaddr != request.panic and task_cells(facts)[0] == 0


def _refers(request: _Request, facts: TaskFacts, trace: Trace) -> bool:
    if request.reference is None:
        return True
    name, vaddr = request.reference
    if any(frame.pc == vaddr or (frame.place and frame.place.function == name) for frame in trace.frames):
        return True
    if not (request.arguments.has("texts") or request.arguments.has("all_texts")):
        return False
    return any(row[1] == vaddr or row[2] == name for row in _texts(request, facts, trace))


def _searched_row(request: _Request, facts: TaskFacts, area: Area) -> tuple[Cell, ...]:
    if request.arguments.has("raw"):
        return task_row(facts, "", raw=request.contents.raw_table(area.start, area.end))
    return task_row(facts, "", exceptions=exceptions_table(request.stacks, area, hexadecimal=request.hexadecimal))


def _texts_row(request: _Request, facts: TaskFacts, trace: Trace, problem: str) -> tuple[Cell, ...]:
    start = None
    if trace.frames and not request.arguments.has("all_texts"):
        first = trace.frames[0]
        function = first.place.function if first.place is not None else "(unknown)"
        start = f"{function} at {first.pc:x}"
    table = TEXTS.table(list(_texts(request, facts, trace)))
    return task_row(facts, problem, start=start, text_addresses=table, user=entry_registers(trace))


def _texts(request: _Request, facts: TaskFacts, trace: Trace) -> Iterator[tuple[Cell, ...]]:
    """List the addresses of code on the stacks that the trace goes over."""
    stacks = request.stacks
    area = stacks.find_task_area(facts)
    if request.arguments.has("all_texts"):
        if area is not None:
            yield from text_rows(stacks, find_end_of_stack(stacks, area) + 8, area.end)
        return
    seen: set[Area] = set()
    for frame in trace.frames:
        if frame.area is not None and frame.area not in seen:
            seen.add(frame.area)
            yield from text_rows(stacks, frame.slot, frame.area.end)


def _old_trace(request: _Request, trace: Trace) -> Trace:
    """List every return address from the innermost frame on, and keep the registers that unwinding found."""
    walker = request.stacks.walker
    if walker is None or not trace.frames:
        return trace
    known = {frame.slot: frame for frame in trace.frames}
    old = Trace(start=trace.start, complete=trace.complete, problems=trace.problems, absent=trace.absent)
    seen: set[Area] = set()
    for frame in trace.frames:
        area = frame.area
        if area is None or area in seen:
            continue
        seen.add(area)
        if frame.interrupted:
            old.frames.append(frame)
        for start in walker.candidates(frame.slot, area.end)[:MAX_FRAMES]:
            place = request.stacks.code.find_caller(start.pc)
            unwound = known.get(start.sp - 8)
            is_known = unwound is not None and not unwound.interrupted
            saved = unwound.saved if unwound is not None and is_known else None
            old.frames.append(Frame(start.pc, start.sp, 0, place, reliable=is_known, area=area, saved=saved))
    return old


def _lines_problem(request: _Request) -> list[Problem]:
    lines = request.lines
    if lines is None or lines.known or not lines.asked:
        return []
    return [Problem("no source lines: the debug information has none", Reason.NO_TYPE)]


def _check_all(workspace: Workspace, stacks: Stacks) -> Answer:
    problems: list[Problem] = []
    rows: list[tuple[Cell, ...]] = []
    for facts in read_facts(workspace, read_tasks(workspace, problems)):
        try:
            found = check_overflow(stacks, facts)
        except UNREADABLE as exc:
            problems.append(Problem(f"PID {task_cells(facts)[0]}: {describe_error(exc)}", Reason.UNREADABLE))
            continue
        if found is not None:
            rows.append((*task_cells(facts), found))
    if rows:
        return Answer("bt", (OVERFLOWS.table(rows),), tuple(problems))
    return Answer("bt", (MESSAGES.table([("No stack overflows detected",)]),), tuple(problems))
