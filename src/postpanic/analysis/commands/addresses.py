"""``ptob``, ``btop`` and ``ptov``: page frame numbers, physical addresses, per-CPU offsets and kernel addresses."""

from __future__ import annotations

from drgn import Object
from drgn.helpers.linux.percpu import per_cpu_ptr

from postpanic.analysis.cells import cell
from postpanic.analysis.commands.arguments import Arguments, Operand
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.values import parse_cpus, parse_vaddr
from postpanic.analysis.memory.direct_map import direct_vaddr
from postpanic.analysis.tasks import read_facts
from postpanic.analysis.workspace import Workspace
from postpanic.errors import UsageError
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Shape, Table

__all__ = ["btop", "ptob", "ptov"]

_COLUMNS = (
    Column("given", Kind.HEX, help="The number as it was given."),
    Column("result", Kind.HEX, help="What it is in the other unit."),
)
_PAIRS = Shape("pairs", _COLUMNS, Layout.LINES, "{given}: {result}")
_VIRTUALS = Shape(
    "addresses",
    (
        Column("vaddr", Kind.HEX, title="VIRTUAL", help="Address in the direct mapping.", align="<", width=16),
        Column("paddr", Kind.HEX, title="PHYSICAL", help="The physical address.", align="<", width=16),
    ),
)
_PER_CPU = Shape(
    "per_cpu",
    (
        Column("cpu", Kind.NUMBER, title="CPU", prefix="[", suffix="]", help="Number of the CPU."),
        Column("vaddr", Kind.ADDRESS, title="VIRTUAL", help="Where the CPU has it."),
    ),
    Layout.LINES,
    "  {cpu}  {vaddr}",
)


@command(
    "btop",
    summary="bytes to page",
    description="Turn physical addresses into page frame numbers.",
    operands=(Operand("address", "physical address, hexadecimal", many=True, required=True),),
    shapes=(_PAIRS,),
    examples=(Example("btop 512a000", "the page frame that holds this byte"),),
)
def btop(workspace: Workspace, arguments: Arguments) -> Answer:
    """Turn physical addresses into page frame numbers."""
    size_bytes = workspace.memory.page_size_bytes
    values = [parse_vaddr(workspace, word) for word in arguments.operands]
    return Answer("btop", (_PAIRS.table([(value, value // size_bytes) for value in values]),))


@command(
    "ptob",
    summary="page to bytes",
    description="Turn page frame numbers into physical addresses.",
    operands=(Operand("pfn", "page frame number, hexadecimal", many=True, required=True),),
    shapes=(_PAIRS,),
    examples=(Example("ptob 512a", "the physical address of this page frame"),),
)
def ptob(workspace: Workspace, arguments: Arguments) -> Answer:
    """Turn page frame numbers into physical addresses."""
    size_bytes = workspace.memory.page_size_bytes
    values = [parse_vaddr(workspace, word) for word in arguments.operands]
    return Answer("ptob", (_PAIRS.table([(value, value * size_bytes) for value in values]),))


@command(
    "ptov",
    summary="physical to virtual, per-CPU offset to virtual",
    description=(
        "Turn physical addresses into addresses of the direct mapping, or a per-CPU offset into the address that each "
        "CPU has it at: ``OFFSET:CPUS``, where CPUS is ``0``, ``0,2-3``, ``a`` or ``all``, or empty for the CPU of the "
        "current task."
    ),
    operands=(Operand("address", "physical address, or per-CPU offset with CPUs", many=True, required=True),),
    shapes=(_VIRTUALS, _PER_CPU),
    examples=(
        Example("ptov 56e000", "a physical address"),
        Example("ptov b0c0:a", "a per-CPU offset, on all CPUs"),
        Example("ptov runqueues:0", "a per-CPU symbol works, too"),
    ),
)
def ptov(workspace: Workspace, arguments: Arguments) -> Answer:
    """Turn physical addresses and per-CPU offsets into virtual addresses."""
    return Answer("ptov", tuple(_to_virtual(workspace, word) for word in arguments.operands))


def _to_virtual(workspace: Workspace, word: str) -> Table:
    number, colon, cpus = word.partition(":")
    value = parse_vaddr(workspace, number)
    if not colon:
        if value >> 56:
            raise UsageError(f"ptov: {word} is not a physical address")
        return _VIRTUALS.table([(cell(lambda: direct_vaddr(workspace, value)), value)])
    numbers = parse_cpus(workspace, cpus) if cpus else [read_facts(workspace, [workspace.task])[0].number("cpu")]
    rows = [(cpu, _per_cpu_address(workspace, value, cpu)) for cpu in numbers]
    return _PER_CPU.table(rows, title=f"PER-CPU OFFSET: {value:x}\n  CPU    VIRTUAL")


def _per_cpu_address(workspace: Workspace, offset: int, cpu: int) -> Cell:
    pointer = Object(workspace.prog, "void *", offset)
    return cell(lambda: int(per_cpu_ptr(pointer, cpu).value_()))
