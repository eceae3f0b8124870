"""``ptob`` and ``btop``: page frame numbers and byte addresses."""

from __future__ import annotations

from postpanic.analysis.commands.arguments import Arguments, Operand
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.values import parse_vaddr
from postpanic.analysis.workspace import Workspace
from postpanic.findings.table import Answer, Column, Kind, Layout, Shape

__all__ = ["btop", "ptob"]

_COLUMNS = (
    Column("given", Kind.HEX, help="The number as it was given."),
    Column("result", Kind.HEX, help="What it is in the other unit."),
)
_PAIRS = Shape("pairs", _COLUMNS, Layout.LINES, "{given}: {result}")


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
