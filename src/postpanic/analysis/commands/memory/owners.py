"""``owners``: who refers to an address."""

from __future__ import annotations

from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.commands.memory.search import kernel_mappings, linear_runs
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.values import parse_number, parse_vaddr
from postpanic.analysis.memory.owners import Owner, Target, find_owners, find_target
from postpanic.analysis.memory.places import open_places
from postpanic.analysis.memory.search import search_mapped, text_needle
from postpanic.analysis.memory.spaces import is_kernel_vaddr
from postpanic.analysis.workspace import Workspace
from postpanic.errors import FactAbsentError, UsageError
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape

__all__ = ["owners"]

_TARGETS = Shape(
    "targets",
    (
        Column("address", Kind.ADDRESS, help="What was asked for, or where the text is."),
        Column("start", Kind.ADDRESS, help="Pointers from here on count."),
        Column("end", Kind.ADDRESS, help="Pointers below this count."),
        Column("text", help="What it is."),
    ),
    Layout.LINES,
    "TO {address}: {text}",
)
_OWNERS = Shape(
    "owners",
    (
        Column("address", Kind.ADDRESS, title="POINTER AT", help="Where the pointer lies."),
        Column("value", Kind.ADDRESS, title="POINTS TO", help="The pointer."),
        Column("offset", Kind.NUMBER, title="OFFSET", help="Of what it points to, in the object."),
        Column("kind", title="IN", help="What it lies in: symbol, per-CPU, stack, slab, vmalloc, page."),
        Column("text", title="WHAT", help="The same in one line."),
        Column("state", title="", help="``stale``: in an object that is free; ``itself``: in what it points to."),
    ),
)
_LIMIT = 1000
_TEXTS_LIMIT = 16


@command(
    "owners",
    summary="who refers to an address",
    description=(
        "Search kernel memory for pointers to an address, and say what each of them lies in: a variable, a per-CPU "
        "area, the stack of a task and its frame, a slab object. Of an address in a slab object or a variable, "
        "pointers into all of it count, unless -e is given. A word that is no address is a text: shown is what points "
        "to the places that have it."
    ),
    options=(
        Option("-e", "exact", "count pointers to this very address only"),
        Option("-c", "text", "the word is a text, though it looks like an address"),
        Option("-l", "limit", "look at no more than this many pointers; 1000 without it", value="COUNT"),
    ),
    operands=(Operand("address", "kernel address, symbol, or text", required=True),),
    shapes=(_TARGETS, _OWNERS),
    examples=(
        Example("owners init_task", "who points to the first task"),
        Example("owners -c panic-maker", "who points to something with this text"),
    ),
)
def owners(workspace: Workspace, arguments: Arguments) -> Answer:
    """Tell who refers to an address."""
    problems: list[Problem] = []
    limit = parse_number(arguments.get("limit") or str(_LIMIT), "owners -l")
    if limit < 1:
        raise UsageError("owners -l: must be positive")
    targets = _read_targets(workspace, arguments, problems)
    mappings = kernel_mappings(workspace, problems)
    direct, _ = linear_runs(workspace, mappings)
    places = open_places(workspace)
    found = find_owners(workspace, places, targets, mappings, direct, problems, limit=limit)
    tables = []
    for number, target in enumerate(targets):
        tables.append(_TARGETS.table([(target.address, target.start, target.end, target.text)]))
        tables.append(_OWNERS.table([_row(owner, target) for owner in found if owner.target == number]))
    return Answer("owners", tuple(tables), tuple(problems))


def _row(owner: Owner, target: Target) -> tuple[Cell, ...]:
    place = owner.place
    state = "stale" if owner.is_stale else "itself" if owner.is_own else None
    kind, text = (place.kind, place.text) if place is not None else ("unknown", "nothing that is known")
    return (owner.vaddr, owner.value, owner.value - target.start, kind, text, state)


def _read_targets(workspace: Workspace, arguments: Arguments, problems: list[Problem]) -> list[Target]:
    word = arguments.operands[0]
    places = open_places(workspace)
    exact = arguments.has("exact")
    if not arguments.has("text"):
        try:
            vaddr = parse_vaddr(workspace, word)
        except (FactAbsentError, UsageError):
            vaddr = None
        if vaddr is not None:
            if not is_kernel_vaddr(vaddr):
                raise UsageError(f"owners: {word} is not a kernel address", hint="-c takes it for a text")
            return [find_target(places, vaddr, exact=exact)]
    mappings = kernel_mappings(workspace, problems)
    direct, _ = linear_runs(workspace, mappings)
    needle = text_needle(word.encode("utf-8", "surrogateescape"))
    found = search_mapped(workspace.memory.physical, mappings, [needle], problems, direct)
    if not found:
        raise FactAbsentError(f"owners: neither a symbol nor a text in kernel memory: {word!r}")
    targets: dict[int, Target] = {}
    for match in found:
        target = find_target(places, match.address, exact=exact)
        targets.setdefault(target.start, target)
        if len(targets) >= _TEXTS_LIMIT:
            break
    return list(targets.values())
