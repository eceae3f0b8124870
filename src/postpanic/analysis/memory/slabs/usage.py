"""How much of each slab cache is in use."""

from __future__ import annotations

from dataclasses import dataclass

from postpanic.analysis.cells import problem
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.memory.page_structs import page_structs
from postpanic.analysis.memory.slabs.allocator import SlabAllocator, slab_allocator
from postpanic.analysis.memory.slabs.pages import find_all_slabs
from postpanic.analysis.memory.slabs.values import Cache, CpuSlabs, NodeSlabs
from postpanic.analysis.workspace import Workspace
from postpanic.findings.table import Problem

__all__ = ["CacheUsage", "read_caches", "read_usage"]


@dataclass(frozen=True, slots=True)
class CacheUsage:
    """
    One cache, and its objects counted.

    Attributes
    ----------
    allocated : int
        Objects in use.
    total : int
        Objects that all slabs have room for.
    slabs : int
    """

    cache: Cache
    allocated: int
    total: int
    slabs: int
    cpus: tuple[CpuSlabs, ...]
    nodes: tuple[NodeSlabs, ...]


def read_caches(workspace: Workspace, problems: list[Problem]) -> list[Cache]:
    """
    Read all caches, in the order of the kernel's list.

    Where that list is damaged, caches that slabs name are added to it.
    """
    allocator = slab_allocator(workspace)
    bad: list[Problem] = []
    caches = list(allocator.caches(bad))
    problems += bad
    if not bad:
        return caches
    try:
        slabs = find_all_slabs(workspace, page_structs(workspace), allocator)
    except UNREADABLE as exc:
        problems.append(problem("slabs by struct page", exc))
        return caches
    known = {cache.vaddr for cache in caches}
    found = [allocator.find_cache(vaddr) for vaddr in slabs if vaddr not in known]
    return caches + [cache for cache in found if cache is not None]


def read_usage(workspace: Workspace, cache: Cache, problems: list[Problem]) -> CacheUsage:
    """
    Count one cache.

    Where its lists are damaged or the kernel does not count, the slabs are
    counted by ``struct page``, one pass over all of them for all caches.
    """
    allocator = slab_allocator(workspace)
    bad: list[Problem] = []
    cpus = tuple(allocator.cpus(cache, bad))
    nodes = []
    for entry in cache.nodes:
        try:
            nodes.append(allocator.node(cache, entry, bad))
        except UNREADABLE as exc:
            bad.append(problem(f"{cache.name}: node {entry[0]}", exc))
    problems += bad
    total = sum(node.object_count or 0 for node in nodes)
    slabs = sum(node.slab_count or 0 for node in nodes)
    free = sum(cpu.free for cpu in cpus) + sum(node.free for node in nodes)
    is_counted = all(node.object_count is not None for node in nodes)
    if bad or not is_counted or free > total:
        recount = _count_by_pages(workspace, allocator, cache, cpus, nodes, problems)
        if recount is not None:
            return recount
    return CacheUsage(cache, max(0, total - free), total, slabs, cpus, tuple(nodes))


def _count_by_pages(
    workspace: Workspace,
    allocator: SlabAllocator,
    cache: Cache,
    cpus: tuple[CpuSlabs, ...],
    nodes: list[NodeSlabs],
    problems: list[Problem],
) -> CacheUsage | None:
    """Count by struct page; a slab that a CPU works on has all of its objects in use, so its freelist is taken off."""
    try:
        found = find_all_slabs(workspace, page_structs(workspace), allocator).get(cache.vaddr)
    except UNREADABLE as exc:
        problems.append(problem(f"{cache.name}: its slabs cannot be counted by struct page", exc))
        return None
    if found is None:
        return CacheUsage(cache, 0, 0, 0, cpus, tuple(nodes))
    held = sum(len(cpu.freelist) + sum(len(sheaf.objects) for sheaf in cpu.sheaves) for cpu in cpus)
    held += sum(len(sheaf.objects) for node in nodes for sheaf in node.sheaves)
    total = int(found.objects.sum())
    return CacheUsage(cache, max(0, int(found.inuse.sum()) - held), total, len(found.pfns), cpus, tuple(nodes))
