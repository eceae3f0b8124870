"""``args``: what the functions on a stack were called with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from drgn import Object, Type, TypeKind, sizeof

from postpanic.analysis.cells import decode
from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.commands.backtrace.contents import WordNames
from postpanic.analysis.commands.backtrace.rows import place_cells
from postpanic.analysis.commands.per_task import TASK_COLUMNS, TASK_LINE, task_cells
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.values import find_tasks, parse_number
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.stacks.arguments.flow import CodeFlow
from postpanic.analysis.stacks.arguments.parameters import Parameter, find_parameters
from postpanic.analysis.stacks.arguments.recover import Certainty, Recovered, Recovery
from postpanic.analysis.stacks.code_index import Place
from postpanic.analysis.stacks.engine import Stacks, open_stacks
from postpanic.analysis.stacks.frames import Trace, number_frames
from postpanic.analysis.tasks import TaskFacts, read_facts
from postpanic.analysis.workspace import Workspace
from postpanic.errors import UnsupportedError
from postpanic.findings.absent import Absent, Reason
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape

__all__ = ["args"]

_STRING_BYTES = 40
_BY_ADDRESS = Absent(Reason.NOT_APPLICABLE, "its address was passed")
_UNKNOWN = Absent(Reason.NOT_PRESENT, "neither the function nor its caller kept it")

_ARGUMENTS = Shape(
    "arguments",
    (
        Column("type", help="C type of the parameter; null: not known."),
        Column("name", help="Its name, or the register."),
        Column("declaration", help="Type and name as C has them."),
        Column("register", help="Where it is passed: registers, or slots of the caller's stack."),
        Column("value", Kind.HEX, help="The value; of a structure the first 8 bytes."),
        Column("shown", help="The value as its type has it."),
        Column(
            "certainty",
            help="proven: the code leaves no other way; likely: it may have changed since.",
            prefix="  (",
            suffix=")",
        ),
        Column("reason", help="Where it was found."),
        Column("why", help="The same, with -v.", prefix="\n    "),
    ),
    Layout.LINES,
    "{declaration} = {shown}{certainty}{why}",
    indent=6,
)
_FRAMES = Shape(
    "frames",
    (
        Column("number", Kind.NUMBER, help="Number of the frame, as bt has it; null: it was interrupted.", prefix="#"),
        Column("sp", Kind.ADDRESS, help="Where its return address is on the stack.", prefix=" [", suffix="]"),
        Column("function", help="Name of the function.", prefix=" "),
        Column("offset", Kind.NUMBER, help="Where in the function, bytes."),
        Column("pc", Kind.ADDRESS, help="Where it goes on, or was interrupted.", prefix=" at "),
        Column("module", help="Module of the function.", prefix=" [", suffix="]"),
        Column("mark", help="interrupted, or no parameters known.", prefix=" (", suffix=")"),
        Column("arguments", Kind.ROWS, help="What it was called with.", shape=_ARGUMENTS),
    ),
    Layout.LINES,
    "{number:>3}{sp}{function}{pc}{module}{mark}",
)
_TASKS = Shape(
    "tasks",
    (*TASK_COLUMNS, Column("frames", Kind.ROWS, help="The frames, innermost first.", shape=_FRAMES)),
    Layout.LINES,
    TASK_LINE,
    gap=True,
)


@dataclass(frozen=True, slots=True)
class _Request:
    workspace: Workspace
    stacks: Stacks
    flows: CodeFlow
    names: WordNames
    parameters: dict[int, tuple[Parameter, ...] | None]
    wanted: frozenset[int]
    verbose: bool


@command(
    "args",
    summary="arguments of the functions on a stack",
    description=(
        "Recover what each function on a stack was called with. Arguments are passed in registers, which are soon "
        "used for something else; but the function has often put them away, into a slot of the stack or a register "
        "that its callees must keep (and which they in turn saved on the stack), or its caller still has what it made "
        "them of. The code of both is followed on every way that leads to the frame.\n\n"
        "A value is proven if the code leaves no other possibility, and likely if it was read from memory that may "
        "have changed since the call, or if the call went through a pointer. What is a question mark was kept by "
        "nobody. Names and types come from the debug information, the kernel's own (BTF) if there is no other."
    ),
    options=(
        Option("-n", "frame", "only the frame of this number, as bt counts them; may be repeated", value="NUMBER"),
        Option("-v", "verbose", "say where each value was found"),
    ),
    operands=(Operand("task", "a PID, the address of a task_struct, a command name or a 'regex'", many=True),),
    shapes=(_TASKS,),
    examples=(
        Example("args", "of all frames of the task of the context"),
        Example("args -v -n 3", "of one frame, with the reasons"),
        Example("foreach UN args", "of all tasks that wait for a disk or a lock"),
    ),
    per_task=True,
)
def args(workspace: Workspace, arguments: Arguments) -> Answer:
    """Recover the arguments of the functions on stacks."""
    stacks = open_stacks(workspace)
    if stacks.walker is None and stacks.records is None:
        raise UnsupportedError(
            "args: only stacks of arm64, and of x86-64 where the kernel has unwind tables, can be followed"
        )
    problems: list[Problem] = []
    tasks = find_tasks(workspace, arguments.operands, problems)
    request = _Request(
        workspace,
        stacks,
        workspace.once("code flow", lambda: CodeFlow(workspace.memory, stacks.code)),
        workspace.once("names of words", lambda: WordNames(stacks)),
        workspace.once("parameters of functions", dict),
        frozenset(parse_number(text, "args -n") for text in arguments.all("frame")),
        arguments.has("verbose"),
    )
    rows = [_task_row(request, facts, problems) for facts in read_facts(workspace, tasks)]
    return Answer("args", (_TASKS.table(rows),), tuple(dict.fromkeys(problems)))


def _task_row(request: _Request, facts: TaskFacts, problems: list[Problem]) -> tuple[Cell, ...]:
    trace = request.stacks.trace(facts)
    cells = task_cells(facts)
    problems += [Problem(f"PID {cells[0]}: {problem.what}", problem.reason) for problem in trace.problems]
    if trace.absent is not None:
        return (*cells, trace.absent)
    return (*cells, _FRAMES.table(list(_frame_rows(request, trace))))


def _frame_rows(request: _Request, trace: Trace) -> Iterator[tuple[Cell, ...]]:
    stacks = request.stacks
    registers = trace.start.registers if trace.start is not None else trace.registers
    recovery = Recovery(stacks.words, stacks.code, request.flows, trace, registers)
    for index, (frame, number) in enumerate(number_frames(trace.frames)):
        if frame.place is None or (request.wanted and number not in request.wanted):
            continue
        function, offset, module = place_cells(frame.place)
        parameters = _find_parameters(request, frame.place)
        if parameters is None:
            rows = list(_unnamed_rows(request, recovery, index))
        else:
            rows = [_argument_row(request, recovery, index, parameter) for parameter in parameters]
        mark = "interrupted" if frame.interrupted else None
        yield (
            *(number, frame.slot, function, offset, frame.pc, module, mark),
            _ARGUMENTS.table(rows),
        )


def _find_parameters(request: _Request, place: Place) -> tuple[Parameter, ...] | None:
    """Find the parameters of a function; the same functions are on many stacks."""
    if place.start not in request.parameters:
        request.parameters[place.start] = find_parameters(request.workspace.prog, place, request.flows.machine)
    return request.parameters[place.start]


def _argument_row(request: _Request, recovery: Recovery, index: int, parameter: Parameter) -> tuple[Cell, ...]:
    type_name = parameter.type.type_name()
    glue = "" if type_name.endswith("*") else " "
    parts = [recovery.argument(index, register) for register in parameter.registers]
    first = parts[0] if parts else None
    known = [part for part in parts if part is not None]
    enough = first is not None and first.size_bytes >= (8 if parameter.by_address else min(parameter.size_bytes, 8))
    lead: tuple[Cell, ...] = (
        type_name,
        parameter.name or None,
        f"{type_name}{glue}{parameter.name}",
        ", ".join(parameter.registers),
    )
    if first is None or not enough or len(known) < len(parts):
        return (*lead, _UNKNOWN, "?", None, None, None)
    if parameter.by_address:
        return (*lead, _BY_ADDRESS, f"at {first.value:016x}", *_judgement(request, known))
    value = first.value & ((1 << 8 * min(parameter.size_bytes or 8, 8)) - 1)
    shown = _show(request, parameter.type, known)
    return (*lead, value, shown, *_judgement(request, known))


def _unnamed_rows(request: _Request, recovery: Recovery, index: int) -> Iterator[tuple[Cell, ...]]:
    """Show the registers that a function put away, of which nothing says what they are."""
    for register in request.flows.machine.arguments:
        found = recovery.kept(index, register)
        if found is not None and found.size_bytes == 8:
            shown = request.names.name(found.value)
            yield (None, register, register, register, found.value, shown, *_judgement(request, [found]))


def _judgement(request: _Request, parts: list[Recovered]) -> tuple[Cell, Cell, Cell]:
    certainty = min(part.certainty for part in parts)
    reason = "; ".join(dict.fromkeys(part.reason for part in parts))
    return Certainty(certainty).name.lower(), reason, reason if request.verbose else None


def _show(request: _Request, type_: Type, parts: list[Recovered]) -> str:
    """Spell a value as its type has it."""
    below = type_
    while below.kind is TypeKind.TYPEDEF:
        below = below.type
    value = parts[0].value
    if below.kind is TypeKind.POINTER:
        name = request.names.name(value)
        digits = f"{value:016x}"
        text = _string(request, below, value)
        return digits + (f" {name}" if name != digits else "") + text
    if below.kind in {TypeKind.INT, TypeKind.BOOL, TypeKind.ENUM}:
        try:
            size = sizeof(below)
            number = value & ((1 << 8 * size) - 1)
            made = Object.from_bytes_(request.workspace.prog, type_, number.to_bytes(size, "little"))
            return str(made.format_(type_name=False))
        except UNREADABLE:
            return str(value)
    return " ".join(f"{part.value:016x}" for part in parts)


def _string(request: _Request, pointer: Type, value: int) -> str:
    """Quote what a ``char *`` points to, where that is text of the kernel."""
    target = pointer.type
    while target.kind is TypeKind.TYPEDEF:
        target = target.type
    if target.kind is not TypeKind.INT or target.name != "char" or value < 1 << 63:
        return ""
    try:
        text = request.workspace.prog.read_c_string(value, max_size=_STRING_BYTES)
    except UNREADABLE:
        return ""
    if not text or not text.isascii() or not text.rstrip(b"\n").decode("ascii").isprintable():
        return ""
    shown = decode(text).replace("\\x0a", "\\n")
    return f' "{shown}"'
