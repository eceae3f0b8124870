"""``p``: the value of a C expression."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from drgn import Object, TypeKind
from drgn.helpers.linux.mm import access_process_vm

from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.commands.output_style import DECIMAL, HEXADECIMAL, choose_style
from postpanic.analysis.commands.per_cpu_words import find_cpus
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.values import parse_cpus
from postpanic.analysis.expressions import evaluate
from postpanic.analysis.expressions.per_cpu import find_per_cpu_vaddr, is_per_cpu
from postpanic.analysis.objects.braces import MEMBERS, ValueWriter
from postpanic.analysis.objects.contents import object_contents
from postpanic.analysis.objects.declarations import declare
from postpanic.analysis.objects.style import LETTERS, is_character, strip
from postpanic.analysis.workspace import Workspace
from postpanic.errors import UsageError
from postpanic.findings.absent import Absent
from postpanic.findings.table import Answer, Column, Kind, Layout, Problem, Shape, Table

__all__ = ["print_value"]

_HISTORY = "values that p showed"
_SYMBOL = re.compile(r"[A-Za-z_$][\w$]*\Z")
_PER_CPU = re.compile(r"([A-Za-z_$][\w$.]*):(a|all|[\d,-]*)\Z")
_FLAGS = re.compile(r"-([xdu]+)(?=\s|\Z)")
_LAST_FLAGS = re.compile(r"\s-([xdu]+)\Z")
_FORMAT = re.compile(r"/(\d*)([a-zA-Z]*)(?=\s|\Z)")

_COPIES = Shape(
    "per_cpu",
    (
        Column("cpu", Kind.NUMBER, help="CPU."),
        Column("address", Kind.ADDRESS, help="Of its copy."),
        Column("type", help="Declaration of the symbol."),
    ),
    Layout.LINES,
    "  [{cpu}]: {address}",
)


@dataclass(slots=True)
class _Line:
    """What was typed: options taken off, the rest is the expression."""

    text: str
    flags: dict[str, list[str]] = field(default_factory=dict)
    letter: str = ""


_NAMES = {"x": "hexadecimal", "d": "decimal", "u": "user"}


@command(
    "p",
    summary="print the value of an expression",
    description=(
        "Evaluate a C expression with the kernel's symbols and types: casts, members, indexes, pointers, arithmetic, "
        "comparisons, ?:, sizeof, offsetof, enumerators; of gdb, value@count, {type}address and $1, $ for values that "
        "were shown. A per-CPU symbol shows where its copies are; symbol:CPUS shows them. Put an expression with > or "
        "| in parentheses.\n\n"
        "Where no type of a symbol is known, &symbol is its address and (type)symbol reads it. p/x and other formats "
        "are gdb's: x d u t o c z a s f."
    ),
    options=(
        HEXADECIMAL,
        DECIMAL,
        Option("-u", "user", "what the expression refers to lies in the current task's own memory"),
    ),
    operands=(Operand("expression", "C expression, or a per-CPU symbol with :CPUS", many=True, required=True),),
    shapes=(MEMBERS, _COPIES),
    examples=(
        Example("p jiffies", "a variable"),
        Example("p ((struct task_struct *)ffff8801314d2080)->comm", "what a cast leads to"),
        Example("p/x init_task.flags", "in hexadecimal"),
        Example("p runqueues:0-1", "copies of a per-CPU variable"),
        Example("p *init_task.sched_class->next@2", "two structures, one behind the other"),
        Example("px sizeof(struct page)", "a number"),
    ),
    verbatim=True,
)
def print_value(workspace: Workspace, arguments: Arguments) -> Answer:
    """Evaluate an expression, and show its value."""
    line = _parse_line(arguments.source)
    chosen = Arguments(print_value.options, line.flags)
    style = choose_style(workspace, chosen, letter=line.letter)
    writer = ValueWriter(workspace.prog, style)
    problems: list[Problem] = []
    history: list[Object] = workspace.once(_HISTORY, list)
    copies = _PER_CPU.match(line.text)
    if copies is not None:
        for cpu in find_cpus(workspace, copies[2]):
            lead = f"per_cpu({copies[1]}, {cpu}) = "
            value = evaluate(workspace.prog, f"{copies[1]}:{cpu}", history=history)
            _write(workspace, writer, value, lead, chosen, history, problems)
        return Answer("p", (MEMBERS.table(writer.table_rows()),), tuple(problems))
    if _SYMBOL.match(line.text) and (table := _per_cpu_table(workspace, line.text)) is not None:
        return Answer("p", (table,))
    value = evaluate(workspace.prog, line.text, history=history)
    named = _SYMBOL.match(line.text) and not line.letter and not line.text.startswith("$")
    _write(workspace, writer, value, f"{line.text} = " if named else "", chosen, history, problems)
    return Answer("p", (MEMBERS.table(writer.table_rows()),), tuple(problems))


def _parse_line(source: str) -> _Line:
    line = _Line(source.strip())
    while True:
        if match := _FLAGS.match(line.text):
            for letter in match[1]:
                line.flags.setdefault(_NAMES[letter], []).append("")
        elif match := _FORMAT.match(line.text):
            if match[1] or len(match[2]) > 1 or match[2] not in LETTERS:
                known = " ".join(sorted(LETTERS))
                raise UsageError(f"no format {match[0]}", hint=f"one of {known}; value@count shows several")
            line.letter = match[2]
        else:
            break
        line.text = line.text[match.end() :].lstrip()
    while match := _LAST_FLAGS.search(line.text):
        for letter in match[1]:
            line.flags.setdefault(_NAMES[letter], []).append("")
        line.text = line.text[: match.start()].rstrip()
    if not line.text:
        raise UsageError("p: expression is missing", hint="help p")
    return line


def _per_cpu_table(workspace: Workspace, name: str) -> Table | None:
    """Show the type of a per-CPU symbol and where each CPU has its copy; None if it is none."""
    prog = workspace.prog
    try:
        vaddr = prog.symbol(name).address
    except LookupError:
        return None
    if not is_per_cpu(prog, vaddr):
        return None
    try:
        declaration = f"{declare(prog[name].type_, name)};"
    except LookupError:
        declaration = f"(no type) {name};"
    rows = [(cpu, find_per_cpu_vaddr(prog, vaddr, cpu), declaration) for cpu in parse_cpus(workspace, "a")]
    return _COPIES.table(rows, title=f"PER-CPU DATA TYPE:\n  {declaration}\nPER-CPU ADDRESSES:")


def _write(
    workspace: Workspace,
    writer: ValueWriter,
    value: Object,
    lead: str,
    arguments: Arguments,
    history: list[Object],
    problems: list[Problem],
) -> None:
    """Write one value, and remember it as the next of the history."""
    bare = strip(value.type_)
    lead = f"{lead}${len(history) + 1} = "
    if value.bit_field_size_ is not None:
        value = value.read_()
        contents = object_contents(workspace.prog, Object(workspace.prog, value.type_, int(value.value_())))
    else:
        read = None
        if arguments.has("user"):
            task = workspace.task
            read = lambda vaddr, size: access_process_vm(task, vaddr, size)  # noqa: E731
        contents = object_contents(workspace.prog, value, read)
    if contents.is_lost:
        why: Absent = contents.gaps[0][2]
        problems.append(Problem(f"{declare(value.type_)} {value.address_:x}: {why.detail}", why.reason))
        return
    if bare.kind is TypeKind.POINTER and not writer.speller.style.letter and not is_character(bare.type):
        lead = f"{lead}({declare(value.type_)}) "
    writer.write(value.type_, contents, vaddr=value.address_, lead=lead, name=_name_of(lead))
    if arguments.has("user") and value.address_ is not None and contents.data:
        # Later expressions read the kernel's memory: of a process, the value is kept.
        value = Object.from_bytes_(workspace.prog, value.type_, contents.data)
    history.append(value)


def _name_of(lead: str) -> str:
    return lead.partition(" = ")[0] if not lead.startswith("$") else ""
