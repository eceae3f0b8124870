"""Who holds an object: the modules whose variables, or whose objects, have a pointer to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from postpanic.analysis.commands.memory.search import kernel_mappings, linear_runs
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.memory.direct_map import direct_vaddr
from postpanic.analysis.memory.owners import Owner, Target, find_owners
from postpanic.analysis.memory.places import open_places
from postpanic.analysis.memory.search import number_needle, search_mapped
from postpanic.analysis.triage.faults.things import Thing, find_thing
from postpanic.analysis.triage.scene import Scene
from postpanic.findings.table import Problem
from postpanic.units import VirtAddr

__all__ = ["Holder", "find_holders", "find_words", "module_functions", "modules_of"]

_MOST_OWNERS = 64
_MOST_INNER = 8
_MOST_WORDS = 512
_WORD = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Holder:
    """
    A pointer to an object.

    Attributes
    ----------
    vaddr : int
        Where it lies.
    module : str
        Whose it is: ``vmlinux`` for the kernel's own variables; empty: that is not known.
    variable : str
        The variable by which it is reached.
    through : int
        The object that holds it, which the variable leads to; 0: the variable itself does.
    is_start : bool
        Whether it points to the beginning of the object.
    """

    vaddr: int
    module: str
    variable: str
    through: int = 0
    is_start: bool = True


def find_words(scene: Scene, word: int) -> list[int]:
    """Find where a word stands in kernel memory, in the direct mapping; the first places only."""
    problems: list[Problem] = []
    try:
        mappings = kernel_mappings(scene.dump, problems)
        linear, _ = linear_runs(scene.dump, mappings)
        found = search_mapped(scene.dump.memory.physical, mappings, [number_needle(word, 8)], problems, linear)
    except UNREADABLE:
        return []
    return [match.address for match in found[:_MOST_WORDS] if _is_linear(scene, match.address)]


def _is_linear(scene: Scene, vaddr: int) -> bool:
    """Tell whether an address is of the direct mapping, by which objects are pointed to."""
    try:
        paddr = int(scene.dump.memory.translate(VirtAddr(vaddr)))
        return direct_vaddr(scene.dump, paddr) == vaddr
    except UNREADABLE:
        return False


def find_holders(scene: Scene, things: list[Thing], *, through: bool = True) -> list[list[Holder]]:
    """
    Find for each object the variables that lead to it.

    Pointers that lie on stacks say nothing of who holds an object, and are left out, as are those in free memory.

    Parameters
    ----------
    through : bool
        Whether those count that lead to it by way of one other object.
    """
    direct = _owners(scene, things)
    if not through:
        pairs = zip(things, direct, strict=True)
        return [[holder for owner in owners for holder in _named(scene, owner, thing)] for thing, owners in pairs]
    inner: list[Thing] = []
    for owners in direct:
        for owner in owners:
            thing = _slab_thing(scene, owner)
            if thing is not None and thing not in inner and thing not in things and len(inner) < _MOST_INNER:
                inner.append(thing)
    behind = dict(zip((thing.start for thing in inner), _owners(scene, inner), strict=True)) if inner else {}
    found: list[list[Holder]] = []
    for thing, owners in zip(things, direct, strict=True):
        holders = [holder for owner in owners for holder in _named(scene, owner, thing)]
        for owner in owners:
            middle = _slab_thing(scene, owner)
            if middle is None or middle.start not in behind:
                continue
            for outer in behind[middle.start]:
                holders += [
                    Holder(owner.vaddr, holder.module, holder.variable, middle.start, owner.value == thing.start)
                    for holder in _named(scene, outer, middle)
                ]
        found.append(holders)
    return found


def module_functions(scene: Scene, module: str) -> list[int]:
    """Give where the functions of a module begin."""
    try:
        ranges = scene.prog.module(module).address_ranges or ()
    except LookupError:
        return []
    return [vaddr for start, end in ranges for vaddr in scene.stacks.code.starts_between(start, end)]


def modules_of(holders: list[Holder], *, direct: bool = False) -> list[str]:
    """Name the modules that hold an object; the kernel's own variables do not count."""
    chosen = [holder for holder in holders if not direct or not holder.through]
    return list(dict.fromkeys(holder.module for holder in chosen if holder.module not in {"", "vmlinux"}))


def _owners(scene: Scene, things: list[Thing]) -> list[list[Owner]]:
    workspace = scene.dump
    problems: list[Problem] = []
    targets = [Target(thing.start, thing.start, thing.start + max(thing.size_bytes, 1), thing.text) for thing in things]
    found: list[list[Owner]] = [[] for _ in things]
    try:
        mappings = kernel_mappings(workspace, problems)
        linear, _ = linear_runs(workspace, mappings)
        owners = find_owners(
            workspace, open_places(workspace), targets, mappings, linear, problems, limit=_MOST_OWNERS * len(things)
        )
    except UNREADABLE:
        return found
    for owner in owners:
        if not owner.is_stale and not owner.is_own:
            found[owner.target].append(owner)
    return found


def _named(scene: Scene, owner: Owner, thing: Thing) -> Iterator[Holder]:
    place = owner.place
    try:
        module = str(scene.prog.module(owner.vaddr).name)
    except LookupError:
        module = ""
    if module in {"", "kernel"}:
        module = "vmlinux"
    # Not every kernel keeps the names of modules' variables.
    if place is not None and place.kind == "symbol":
        yield Holder(owner.vaddr, module, place.name, 0, owner.value == thing.start)
    elif module != "vmlinux":
        yield Holder(owner.vaddr, module, f"the variable {owner.vaddr:#x}", 0, owner.value == thing.start)


def _slab_thing(scene: Scene, owner: Owner) -> Thing | None:
    if owner.place is None or owner.place.kind != "slab":
        return None
    thing = find_thing(scene.dump, owner.vaddr)
    return thing if thing is not None and thing.is_free is False else None
