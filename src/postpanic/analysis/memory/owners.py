"""
Who refers to an address: pointers to it, or into the object that it is in, anywhere in kernel memory.

A pointer on a stack, in a slab object, in a variable or in a per-CPU area is a
reason why something is still there, or a way by which it was reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from postpanic.analysis.memory.mappings import Mappings
from postpanic.analysis.memory.place import Place
from postpanic.analysis.memory.places import Places
from postpanic.analysis.memory.search import Match, Needle, range_needle, search_mapped
from postpanic.analysis.workspace import Workspace
from postpanic.errors import PostpanicError
from postpanic.findings.absent import Reason
from postpanic.findings.table import Problem
from postpanic.units import VirtAddr

__all__ = ["Owner", "Target", "find_owners", "find_target"]

_ORDER = {"symbol": 0, "module": 0, "per-CPU": 1, "stack": 2, "slab": 3, "vmalloc": 4, "page": 5}


@dataclass(frozen=True, slots=True)
class Target:
    """What is referred to: ``[start, end)``, and the one line that describes it."""

    address: int
    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Owner:
    """
    One pointer.

    Attributes
    ----------
    vaddr : int
        Where it lies: the address by which the kernel uses the place.
    value : int
        The pointer.
    place : Place or None
        What it lies in.
    is_stale : bool
        It lies in an object that is free, so nobody uses it any more.
    is_own : bool
        It lies in what it points to: list heads that are empty do.
    """

    vaddr: int
    value: int
    target: int
    place: Place | None
    is_stale: bool
    is_own: bool


def find_target(places: Places, vaddr: int, *, exact: bool = False) -> Target:
    """Find the object that an address is in; where it is in none, or *exact*, the address itself is the target."""
    place = places.short(vaddr)
    text = place.text if place is not None else "nothing that is known"
    has_bounds = place is not None and place.kind in {"slab", "symbol"} and place.start is not None
    if exact or not has_bounds or place is None or place.start is None or not place.size_bytes:
        return Target(vaddr, vaddr, vaddr + 1, text)
    return Target(vaddr, place.start, place.start + place.size_bytes, text)


def find_owners(
    workspace: Workspace,
    places: Places,
    targets: Sequence[Target],
    mappings: Mappings,
    linear: object,
    problems: list[Problem],
    *,
    limit: int,
) -> list[Owner]:
    """
    Search all kernel memory for pointers to the targets.

    Parameters
    ----------
    mappings
        What the kernel's page tables map; *linear* marks the runs of the direct mapping.
    limit : int
        How many pointers are looked at closer.
    """
    needles: list[Needle] = [range_needle(target.start, target.end) for target in targets]
    flags = np.asarray(linear, dtype=np.bool_)
    found = search_mapped(workspace.memory.physical, mappings, needles, problems, flags)
    chosen = _choose_addresses(workspace, found, places)
    if len(chosen) > limit:
        text = f"{len(chosen)} pointers, the first {limit} are looked at"
        problems.append(Problem(text, Reason.NOT_APPLICABLE))
        chosen = chosen[:limit]
    owners = [_owner(places, match, targets[match.needle]) for match in chosen]
    owners.sort(key=lambda owner: (owner.target, owner.is_stale, owner.is_own, _rank(owner), owner.vaddr))
    return owners


def _rank(owner: Owner) -> int:
    return _ORDER.get(owner.place.kind, 9) if owner.place is not None else 9


def _choose_addresses(workspace: Workspace, found: Sequence[Match], places: Places) -> list[Match]:
    """Of all addresses of one place, choose that by which the kernel uses it: a symbol, a stack, else the lowest."""
    by_place: dict[tuple[int, int], Match] = {}
    for match in found:
        try:
            paddr = int(workspace.memory.translate(VirtAddr(match.address)))
        except PostpanicError:
            continue
        key = (paddr, match.needle)
        known = by_place.get(key)
        if known is None or places.is_named(match.address) > places.is_named(known.address):
            by_place[key] = match
    return sorted(by_place.values(), key=lambda match: (match.needle, match.address))


def _owner(places: Places, match: Match, target: Target) -> Owner:
    place = places.short(match.address)
    is_stale = place is not None and place.kind == "slab" and place.state.startswith("free")
    is_own = target.start <= match.address < target.end
    return Owner(match.address, match.value, match.needle, place, is_stale, is_own)
