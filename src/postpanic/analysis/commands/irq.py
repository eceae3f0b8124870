"""``irq``: interrupts, who handles them, where they go and how often they came."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from drgn import Object
from drgn.helpers.linux.irq import (
    gate_desc_func,
    irq_desc_affinity_mask,
    irq_desc_chip_name,
    irq_desc_kstat_cpu,
    irq_get_nr_irqs,
)

from postpanic.analysis.cells import absent, cell, decode, guarded, problem
from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.values import parse_cpus, parse_number
from postpanic.analysis.containers import maple_entries, xarray_entries
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.workspace import Workspace
from postpanic.errors import UnsupportedError, UsageError
from postpanic.findings.absent import Absent, Reason
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape, Table

__all__ = ["irq"]

_IRQS = Shape(
    "irqs",
    (
        Column("irq", Kind.NUMBER, title="IRQ", help="Number."),
        Column("desc", Kind.ADDRESS, title="IRQ_DESC/_DATA", help="struct irq_desc *.", align="^"),
        Column("action", Kind.ADDRESS, title="IRQACTION", help="struct irqaction *.", align="^"),
        Column("name", title="NAME", prefix='"', suffix='"', help="irqaction->name."),
        Column("handler", help="Symbol of irqaction->handler.", hidden=True),
    ),
)
_VECTORS = Shape(
    "vectors",
    (
        Column("vector", Kind.NUMBER, prefix="[", suffix="]", help="Number of the gate."),
        Column("handler", help="What it leads to: symbol and offset."),
        Column("address", Kind.ADDRESS, help="Address of the handler.", hidden=True),
    ),
    Layout.LINES,
    "{vector:>5} {handler}",
)
_SOFTIRQS = Shape(
    "softirqs",
    (
        Column("vector", Kind.NUMBER, title="SOFTIRQ_VEC", prefix="[", suffix="]", help="Number.", align="^"),
        Column("action", Kind.ADDRESS, title="ACTION", help="Address of the function.", align="<"),
        Column("name", prefix="<", suffix=">", help="Its name."),
    ),
)
_AFFINITY = Shape(
    "affinity",
    (
        Column("irq", Kind.NUMBER, title="IRQ", help="Number."),
        Column("name", title="NAME", help="Names of its actions, joined by a comma.", width=20),
        Column("cpus", title="AFFINITY", help="CPUs that may be asked to handle it."),
    ),
)
_PER_CPU = Shape(
    "per_cpu",
    (
        Column("cpu", Kind.NUMBER, title="CPU", help="Number."),
        Column("count", Kind.NUMBER, title="COUNT", help="How often the interrupt came there."),
    ),
)
_STATISTICS = Shape(
    "statistics",
    (
        Column("irq", Kind.NUMBER, suffix=":", help="Number."),
        Column("counts", help="How often it came, by CPU."),
        Column("chip", help="Name of the interrupt chip and of the flow handler."),
        Column("name", help="Names of its actions, joined by a comma."),
        Column("per_cpu", Kind.ROWS, shape=_PER_CPU, hidden=True, help="The same counts as numbers."),
    ),
    Layout.LINES,
    "{irq:>4} {counts}  {chip:<26}  {name}",
)

_VECTOR_COUNT = 256


@command(
    "irq",
    summary="interrupts",
    description=(
        "Show the interrupts of the machine, with what handles them: all of them, those that are named, or those in "
        "use (-u). With -d the interrupt descriptor table of x86-64, with -b the soft interrupts."
    ),
    operands=(Operand("irq", "number of an interrupt", many=True),),
    options=(
        Option("-u", "in_use", "only interrupts that have a descriptor"),
        Option("-d", "vectors", "show the interrupt descriptor table (x86-64)"),
        Option("-b", "softirqs", "show the soft interrupts"),
        Option("-a", "affinity", "show which CPUs may be asked to handle each interrupt in use"),
        Option("-s", "statistics", "show how often each interrupt came, by CPU"),
        Option("-c", "cpus", "with -s: only these CPUs (1,3,5-7, a or all)", "CPUS"),
    ),
    shapes=(_IRQS, _VECTORS, _SOFTIRQS, _AFFINITY, _STATISTICS),
    examples=(
        Example("irq 18", "one interrupt"),
        Example("irq -u", "all that are in use"),
        Example("irq -s -c 0,2", "how often they came on two CPUs"),
    ),
)
def irq(workspace: Workspace, arguments: Arguments) -> Answer:
    """Show interrupts."""
    problems: list[Problem] = []
    if arguments.has("cpus") and not arguments.has("statistics"):
        raise UsageError("irq: -c is only taken with -s", hint="help irq")
    shows: tuple[tuple[str, Callable[[Workspace, list[Problem]], Table]], ...] = (
        ("vectors", _vectors),
        ("softirqs", _softirqs),
        ("affinity", _affinity),
    )
    for name, show in shows:
        if arguments.has(name):
            return Answer("irq", (show(workspace, problems),), tuple(problems))
    if arguments.has("statistics"):
        cpus = parse_cpus(workspace, arguments.get("cpus") or "all")
        return Answer("irq", (_statistics(workspace, cpus, problems),), tuple(problems))
    numbers = [parse_number(word, "irq") for word in arguments.operands]
    return Answer("irq", (_irqs(workspace, numbers, arguments, problems),), tuple(problems))


def _descriptors(workspace: Workspace, problems: list[Problem]) -> Iterator[tuple[int, Object]]:
    prog = workspace.prog
    try:
        if "sparse_irqs" in prog:
            # A maple tree since 6.5 (721255b9826b).
            yield from maple_entries(prog["sparse_irqs"], "struct irq_desc", "interrupt descriptors", problems)
        else:
            yield from xarray_entries(prog["irq_desc_tree"], "struct irq_desc", "interrupt descriptors", problems)
    except UNREADABLE as exc:
        problems.append(problem("interrupt descriptors", exc))


def _irqs(workspace: Workspace, numbers: list[int], arguments: Arguments, problems: list[Problem]) -> Table:
    """
    Make the table of interrupts.

    Raises
    ------
    UsageError
        If one of the numbers is beyond those of the machine.
    """
    found = dict(_descriptors(workspace, problems))
    limit = _limit(workspace, found)
    for number in numbers:
        if not 0 <= number < limit:
            raise UsageError(f"irq: there is no interrupt {number}, they are 0 to {limit - 1}")
    chosen = numbers or (sorted(found) if arguments.has("in_use") else range(limit))
    rows: list[tuple[Cell, ...]] = []
    for number in chosen:
        desc = found.get(number)
        if desc is None:
            rows.append((number, _UNUSED, _UNUSED, None, None))
        else:
            rows += _irq_rows(workspace, number, desc, problems)
    return _IRQS.table(rows)


_UNUSED = Absent(Reason.NOT_PRESENT, "unused")


def _limit(workspace: Workspace, found: dict[int, Object]) -> int:
    try:
        return max(int(irq_get_nr_irqs(workspace.prog)), max(found, default=-1) + 1)
    except UNREADABLE:
        return max(found, default=-1) + 1


def _irq_rows(workspace: Workspace, number: int, desc: Object, problems: list[Problem]) -> list[tuple[Cell, ...]]:
    vaddr = int(desc.value_())
    rows: list[tuple[Cell, ...]] = []
    try:
        for action in _actions(desc, problems):
            name = cell(lambda action=action: _action_name(action))  # type: ignore[misc]
            handler = cell(lambda action=action: _symbol(workspace, action.handler))  # type: ignore[misc]
            rows.append((None if rows else number, None if rows else vaddr, int(action.value_()), name, handler))
    except UNREADABLE as exc:
        rows.append((number, vaddr, absent(exc), None, None))
    return rows or [(number, vaddr, _UNUSED, None, None)]


def _actions(desc: Object, problems: list[Problem]) -> Iterator[Object]:
    def walk() -> Iterator[Object]:
        action = desc.action.read_()
        while action:
            yield action
            action = action.next.read_()

    return guarded(walk(), f"actions of the irq_desc at {desc.value_():#x}", problems)


def _action_name(action: Object) -> str:
    name = action.name.read_()
    return decode(name.string_()) if name else ""


def _action_names(desc: Object) -> str:
    return ",".join(name for action in _actions(desc, []) if (name := _action_name(action)))


def _symbol(workspace: Workspace, pointer: Object) -> str:
    vaddr = int(pointer.value_())
    try:
        symbol = workspace.prog.symbol(vaddr)
    except LookupError:
        return f"{vaddr:#x}"
    offset = vaddr - symbol.address
    return f"{symbol.name}+{offset}" if offset else str(symbol.name)


def _vectors(workspace: Workspace, problems: list[Problem]) -> Table:
    """
    Make the table of the interrupt descriptor table.

    Raises
    ------
    UnsupportedError
        If the machine has none.
    """
    if workspace.memory.machine != "x86_64":
        raise UnsupportedError(f"irq -d: a {workspace.memory.machine} machine has no interrupt descriptor table")
    rows: list[tuple[Cell, ...]] = []
    try:
        table = _vector_table(workspace)
        for number in range(_VECTOR_COUNT):
            function = gate_desc_func(table[number])
            address = int(function.value_())
            rows.append((number, _symbol(workspace, function) if address else "(unused)", address))
    except UNREADABLE as exc:
        problems.append(problem("interrupt descriptor table", exc))
    return _VECTORS.table(rows)


def _vector_table(workspace: Workspace) -> Object:
    prog = workspace.prog
    try:
        return prog["idt_table"]
    except KeyError:
        return Object(prog, prog.pointer_type(prog.type("struct gate_struct")), prog.symbol("idt_table").address)


def _softirqs(workspace: Workspace, problems: list[Problem]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    try:
        table = workspace.prog["softirq_vec"]
        # Where its size is not known neither is its length.
        for number in range(table.type_.length or int(workspace.prog["NR_SOFTIRQS"])):
            action = table[number].action.read_()
            if action:
                rows.append((number, int(action.value_()), _symbol(workspace, action)))
    except UNREADABLE as exc:
        problems.append(problem("soft interrupts", exc))
    return _SOFTIRQS.table(rows)


def _affinity(workspace: Workspace, problems: list[Problem]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for number, desc in _descriptors(workspace, problems):
        try:
            if not desc.action:
                continue
        except UNREADABLE as exc:
            problems.append(problem(f"interrupt {number}", exc))
            continue
        rows.append((number, *_affinity_cells(desc)))
    return _AFFINITY.table(rows)


def _affinity_cells(desc: Object) -> tuple[Cell, Cell]:
    return cell(lambda: _action_names(desc)), cell(lambda: _cpu_list(irq_desc_affinity_mask(desc)))


def _cpu_list(mask: Object) -> str:
    from drgn.helpers.linux.cpumask import cpumask_to_cpulist

    return str(cpumask_to_cpulist(mask))


def _statistics(workspace: Workspace, cpus: list[int], problems: list[Problem]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for number, desc in _descriptors(workspace, problems):
        try:
            if not desc.action:
                continue
            counts = [(cpu, int(irq_desc_kstat_cpu(desc, cpu))) for cpu in cpus]
        except UNREADABLE as exc:
            rows.append((number, absent(exc), None, None, None))
            continue
        text = " ".join(f"{count:>10}" for _, count in counts)
        rows.append((number, text, *_chip_cells(desc), _PER_CPU.table(counts)))
    heading = "     " + " ".join(f"{f'CPU{cpu}':>10}" for cpu in cpus)
    return _STATISTICS.table(rows, title=heading)


def _chip_cells(desc: Object) -> tuple[Cell, Cell]:
    return cell(lambda: _chip_name(desc)), cell(lambda: _action_names(desc))


def _chip_name(desc: Object) -> str:
    name = irq_desc_chip_name(desc)
    chip = decode(name) if name else ""
    flow = desc.name.read_()
    return f"{chip}-{decode(flow.string_())}" if flow else chip
