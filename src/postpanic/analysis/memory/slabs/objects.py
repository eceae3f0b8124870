"""The objects of a slab: which are in use, which are free, and where a free one is kept."""

from __future__ import annotations

from dataclasses import dataclass

from postpanic.analysis.cells import problem
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.memory.page_structs import PageStructs, page_structs
from postpanic.analysis.memory.slabs.allocator import SlabAllocator, slab_allocator
from postpanic.analysis.memory.slabs.values import Cache, SlabHead
from postpanic.analysis.memory.spaces import is_kernel_vaddr
from postpanic.analysis.workspace import Workspace
from postpanic.errors import PostpanicError
from postpanic.findings.table import Problem
from postpanic.units import VirtAddr

__all__ = [
    "ObjectInfo",
    "Slab",
    "SlabObject",
    "find_object",
    "find_slab",
    "read_free_objects",
    "read_objects",
    "slab_of_pfn",
]


@dataclass(frozen=True, slots=True)
class Slab:
    """A slab: its cache, its first page, and where its memory begins."""

    cache: Cache
    head: SlabHead
    pfn: int
    vaddr: int
    """First byte, in the direct mapping."""

    @property
    def first_object(self) -> int:
        """Address of the first object."""
        return self.vaddr + self.cache.red_left_pad

    def object_at(self, vaddr: int) -> int:
        """Give the number of the object that an address is in; it may be out of range for what is behind the last."""
        return (vaddr - self.vaddr) // self.cache.size_bytes


@dataclass(frozen=True, slots=True)
class SlabObject:
    """One object of a slab."""

    vaddr: int
    allocated: bool
    keeper: str = ""
    """Where a free object is kept, unless in the slab's own list: ``cpu 0 cache``."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """The object that an address is in."""

    slab: Slab
    index: int
    object: SlabObject
    offset: int
    """Of the address in the object."""


def find_slab(workspace: Workspace, vaddr: int) -> Slab | None:
    """
    Find the slab that a kernel address is in.

    None for an address that is in none, or whose page is not known.
    """
    if not is_kernel_vaddr(vaddr):
        return None
    memory = workspace.memory
    structs = page_structs(workspace)
    try:
        paddr = int(memory.translate(VirtAddr(vaddr)))
    except PostpanicError:
        return None
    pfn = paddr // memory.page_size_bytes
    found = _slab_page(structs, pfn)
    if found is None:
        return None
    head_pfn, _ = found
    # Only the direct mapping shows slabs; an alias of the image or of vmalloc is not how an object is pointed to.
    vaddr_of_head = vaddr - paddr + head_pfn * memory.page_size_bytes
    allocator = slab_allocator(workspace)
    page = structs.vaddr_of(head_pfn)
    if page is None:
        return None
    head = allocator.head(page)
    cache = allocator.find_cache(head.cache)
    if cache is None:
        return None
    return Slab(cache, head, head_pfn, vaddr_of_head)


def _slab_page(structs: PageStructs, pfn: int) -> tuple[int, bytes] | None:
    row = structs.read(pfn)
    if row is None:
        return None
    head_pfn = structs.head_of(pfn, row)
    if head_pfn != pfn:
        row = structs.read(head_pfn)
    return (head_pfn, row) if row is not None and structs.is_slab(row) else None


def slab_of_pfn(workspace: Workspace, cache: Cache, pfn: int, direct_base: int) -> Slab | None:
    """Make the slab whose first frame is *pfn*."""
    structs = page_structs(workspace)
    page = structs.vaddr_of(pfn)
    if page is None:
        return None
    head = slab_allocator(workspace).head(page)
    return Slab(cache, head, pfn, direct_base + pfn * workspace.memory.page_size_bytes)


def read_free_objects(allocator: SlabAllocator, cache: Cache, problems: list[Problem]) -> dict[int, str]:
    """Read which objects of a cache are free but not in the list of their slab: who keeps each."""
    kept: dict[int, str] = {}
    for cpu in allocator.cpus(cache, problems):
        kept.update(dict.fromkeys(cpu.freelist, f"cpu {cpu.cpu} cache"))
        for sheaf in cpu.sheaves:
            kept.update(dict.fromkeys(sheaf.objects, f"cpu {cpu.cpu} sheaf"))
    for entry in cache.nodes:
        try:
            node = allocator.node(cache, entry, problems)
        except UNREADABLE as exc:
            problems.append(problem(f"{cache.name}: node {entry[0]}", exc))
            continue
        for sheaf in node.sheaves:
            kept.update(dict.fromkeys(sheaf.objects, f"node {node.node} sheaf"))
    return kept


def read_objects(
    allocator: SlabAllocator, slab: Slab, kept: dict[int, str], problems: list[Problem]
) -> list[SlabObject]:
    """
    Read the objects of a slab in the order of their addresses.

    Parameters
    ----------
    kept : dict
        As :func:`read_free_objects` gives it.
    """
    what = f"{slab.cache.name}: free objects of the slab at {slab.vaddr:#x}"
    free = set(allocator.freelist(slab.cache, slab.head.freelist, what, problems, slab.head.objects))
    objects = []
    for number in range(slab.head.objects):
        vaddr = slab.first_object + number * slab.cache.size_bytes
        keeper = kept.get(vaddr, "")
        objects.append(SlabObject(vaddr, not keeper and vaddr not in free, keeper))
    return objects


def find_object(workspace: Workspace, vaddr: int, problems: list[Problem]) -> ObjectInfo | None:
    """Find the object that an address is in, and whether it is in use; None for an address in no object."""
    slab = find_slab(workspace, vaddr)
    if slab is None:
        return None
    index = slab.object_at(vaddr)
    if not 0 <= index < slab.head.objects:
        return None
    allocator = slab_allocator(workspace)
    kept = workspace.once(
        f"free objects of {slab.cache.vaddr:#x}", lambda: read_free_objects(allocator, slab.cache, problems)
    )
    objects = read_objects(allocator, slab, kept, problems)
    found = objects[index]
    return ObjectInfo(slab, index, found, vaddr - found.vaddr)
