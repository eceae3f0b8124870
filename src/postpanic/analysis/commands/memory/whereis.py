"""``whereis``: everything that is known of an address."""

from __future__ import annotations

from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.values import parse_vaddr
from postpanic.analysis.memory.place import Place
from postpanic.analysis.memory.places import open_places
from postpanic.analysis.memory.spaces import AddressKind, is_kernel_vaddr
from postpanic.analysis.workspace import Workspace
from postpanic.errors import UsageError
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape, Table

__all__ = ["PLACES", "place_cells", "whereis"]

PLACES = Shape(
    "places",
    (
        Column("kind", help="symbol, module, task, stack, slab, before, behind, per-CPU, vmalloc, page, free, vma …"),
        Column("text", help="What it is, in one line."),
        Column("name", help="Its own name: of the symbol, the slab cache, the task."),
        Column("start", Kind.HEX, help="Where it begins."),
        Column("size_bytes", Kind.NUMBER, help="Its size."),
        Column("offset", Kind.NUMBER, help="Of the address in it."),
        Column("state", help="in use, free, not in the dump; of a stack, the frame."),
    ),
    Layout.LINES,
    "{kind:>12}: {text}",
)


def place_cells(place: Place) -> tuple[Cell, ...]:
    """Make the row of one place."""
    return (
        place.kind, place.text, place.name or None, place.start, place.size_bytes, place.offset, place.state or None,
    )  # fmt: skip


@command(
    "whereis",
    summary="what an address is in",
    description=(
        "Tell everything that is known of an address: symbol and module, the task and the frame whose stack it is on, "
        "the slab object with its cache, its state and the objects beside it, per-CPU area, vmalloc area with who "
        "allocated it, vm_area_struct, and what its page is used for. An address below the kernel's half is one of the "
        "current task, or with -p a physical one."
    ),
    options=(
        Option("-p", "physical", "the addresses are physical addresses"),
        Option("-u", "user", "the addresses are user addresses of the current task"),
        Option("-k", "kernel", "the addresses are kernel addresses"),
    ),
    operands=(Operand("address", "address or symbol", many=True, required=True),),
    shapes=(PLACES,),
    examples=(
        Example("whereis init_task", "a symbol"),
        Example("whereis -p 1000000", "a physical address"),
    ),
)
def whereis(workspace: Workspace, arguments: Arguments) -> Answer:
    """Tell what addresses are in."""
    chosen = [kind for kind in AddressKind if arguments.has(kind.value)]
    if len(chosen) > 1:
        raise UsageError("whereis: only one of -p, -u and -k")
    problems: list[Problem] = []
    tables: list[Table] = []
    places = open_places(workspace)
    for word in arguments.operands:
        address = parse_vaddr(workspace, word)
        default = AddressKind.KERNEL if is_kernel_vaddr(address) else AddressKind.USER
        kind = chosen[0] if chosen else default
        rows = []
        for place in places.find(address, kind, problems):
            rows.append(place_cells(place))
            if place.kind == "slab" and place.start is not None:
                rows += [place_cells(one) for one in places.neighbours(address)]
        tables.append(PLACES.table(rows, title=f"{address:016x} ({kind.value})"))
    return Answer("whereis", tuple(tables), tuple(problems))
