"""The command ``kmem``: which of its answers is wanted."""

from __future__ import annotations

from collections.abc import Callable

from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.commands.memory.kmem import frames, identify, slabs, sums, vmalloc, zone_shapes, zones
from postpanic.analysis.commands.memory.page_rows import PAGES
from postpanic.analysis.commands.memory.whereis import PLACES
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.workspace import Workspace
from postpanic.errors import UsageError
from postpanic.findings.table import Answer

__all__ = ["kmem"]

_NO_PAGE_HASH = "kernels since 2.6 have no page_hash_table; files -c shows the cached pages of files"
_OPTIONS = (
    Option("-i", "info", "sums of memory; =shared counts shared pages, too", value="WHAT", attached=True),
    Option("-f", "free", "free blocks by order and migrate type, counted against nr_free_pages"),
    Option("-F", "free_pages", "as -f, with the first page of every free block"),
    Option("-s", "slabs", "slab caches, with the objects that they have in use"),
    Option("-S", "slab_objects", "slab caches with all slabs and objects, of these CPUs", value="CPUS", attached=True),
    Option("-r", "accumulated", "slab caches, those of memory cgroups added to their root caches"),
    Option("-I", "ignore", "with -s, -S and -r: leave these caches out", value="CACHE[,CACHE]"),
    Option("-n", "nodes", "memory nodes, their zones, the sections of memory and the memory blocks"),
    Option("-z", "zones", "zones with their watermarks and counters"),
    Option("-v", "vmalloc", "areas that are mapped by vmalloc"),
    Option("-V", "counters", "counters of zones, nodes and events"),
    Option("-o", "offsets", "what is added to per-CPU symbols on each CPU"),
    Option("-h", "huge", "pools of huge pages"),
    Option("-p", "pages", "a line for each page frame"),
    Option("-m", "members", "as -p, with these members of struct page", value="MEMBER[,MEMBER]"),
    Option("-g", "flags", "page flags, or those that are set in a value"),
    Option("-P", "physical", "the address is a physical address"),
    Option("-c", "page_hash", "verify the page hash table", refused=_NO_PAGE_HASH),
    Option("-C", "page_hash_pages", "as -c, with the pages", refused=_NO_PAGE_HASH),
)  # fmt: skip
_ANSWERS: tuple[tuple[tuple[str, ...], Callable[[Workspace, Arguments], Answer]], ...] = (
    (("slabs", "slab_objects", "accumulated"), slabs.show_caches),
    (("info",), sums.show_sums),
    (("free", "free_pages"), zones.show_free),
    (("nodes",), lambda workspace, _: zones.show_nodes(workspace)),
    (("zones",), lambda workspace, _: zones.show_zones(workspace)),
    (("vmalloc",), vmalloc.show_areas),
    (("counters",), lambda workspace, _: zones.show_counters(workspace)),
    (("offsets",), lambda workspace, _: sums.show_offsets(workspace)),
    (("huge",), lambda workspace, _: sums.show_huge_pages(workspace)),
    (("pages",), frames.show_pages),
    (("members",), frames.show_members),
    (("flags",), frames.show_flags),
)


@command(
    "kmem",
    summary="kernel memory",
    description=(
        "Show what kernel memory is used for. Without an option, an address is identified: the symbol, the slab object "
        "with its cache and state, the free block, the task or stack, the vmalloc area, and the page.\n\n"
        "Slabs are counted by the allocator's lists; where these are damaged or were left out of the dump, by struct "
        "page. kmem -S shows the slabs without a free object, too, which are on no list."
    ),
    options=_OPTIONS,
    operands=(Operand("address", "address, page flags with -g, or name of a slab cache", many=True),),
    shapes=(
        sums.SUMS, slabs.CACHES, slabs.NAMES, slabs.DETAILS, zone_shapes.FREE_ZONES, zone_shapes.VERIFIED,
        zone_shapes.NODES, zone_shapes.NODE_ZONES, zone_shapes.SECTIONS, zone_shapes.BLOCKS, zone_shapes.ZONES,
        zone_shapes.COUNTERS, sums.OFFSETS, sums.HSTATES,
        vmalloc.AREAS, PAGES, frames.MEMBERS, frames.FLAGS, identify.TASKS, PLACES,
    ),
    examples=(
        Example("kmem -i", "what memory is used for"),
        Example("kmem -s", "slab caches"),
        Example("kmem -S task_struct", "all objects of one cache"),
        Example("kmem init_task", "what is at an address"),
    ),
)  # fmt: skip
def kmem(workspace: Workspace, arguments: Arguments) -> Answer:
    """Show what kernel memory is used for."""
    chosen = [(names, answer) for names, answer in _ANSWERS if any(arguments.has(name) for name in names)]
    if len(chosen) > 1:
        flags = [option.flag for option in _OPTIONS if arguments.has(option.name)]
        raise UsageError(f"kmem: {' and '.join(flags)} are two questions")
    if chosen:
        return chosen[0][1](workspace, arguments)
    if not arguments.operands:
        raise UsageError("kmem: what is to be shown?", hint="help kmem; kmem -i shows the sums")
    return identify.show_addresses(workspace, arguments)
