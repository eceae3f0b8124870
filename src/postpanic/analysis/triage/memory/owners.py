"""
Which code took memory that is only known by its amount: objects of a slab cache, pages that nobody accounts for.

Five ways, each of which needs no debug option of the kernel:

* What stands in the objects: a pointer to a function, a table of operations or
  a variable of a module that is in most of them.
* Whose variable points to the slab cache, which modules make for themselves.
* Where lists of them begin: a list head in a module's variables that leads to
  an object, and whose object leads back to it.
* Who is taking more right now: a module's function that called an allocator
  that waits for memory, on the stack of a task.
* Which function of that module calls an allocator at all, by its code.

With ``slub_debug=U`` each object remembers the function itself.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import drgn
import numpy as np
from numpy.typing import NDArray

from postpanic.analysis.code.symbols import LoadedModule, SymbolIndex
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.memory.direct_map import direct_map_offset
from postpanic.analysis.memory.page_structs import member_offset, page_structs
from postpanic.analysis.memory.slabs.allocator import slab_allocator
from postpanic.analysis.memory.slabs.objects import read_free_objects, read_objects, slab_of_pfn
from postpanic.analysis.memory.slabs.pages import find_all_slabs
from postpanic.analysis.memory.slabs.values import Cache
from postpanic.analysis.tasks.scattered import read_scattered
from postpanic.analysis.triage.memory.callers import find_callers, symbols_of
from postpanic.analysis.triage.memory.takers import Owner, find_asker, find_taker
from postpanic.analysis.triage.scene import Scene
from postpanic.analysis.workspace import Workspace
from postpanic.findings.verdict import Evidence

__all__ = ["find_owner_of_cache", "find_owner_of_pages"]

_SLABS = 96
_OBJECTS_PER_SLAB = 6
_WORDS = 512
"""Of an object: 4 KiB."""
_WORD = (1 << 64) - 1
_MODULE_LIMIT_BYTES = 8 << 20
_USER_FLAG = 0x0001_0000
"""``SLAB_STORE_USER`` before 6.9."""
_SLAB_ALLOCATORS = (
    "kmalloc",
    "__kmalloc",
    "kmem_cache_alloc",
    "kvmalloc",
    "__kvmalloc",
    "kmemdup",
    "kstrdup",
    "krealloc",
)
_PAGE_ALLOCATORS = (
    "__get_free_pages", "get_zeroed_page", "__alloc_pages", "alloc_pages", "get_free_pages", "folio_alloc",
    "__folio_alloc", "kmalloc_large", "kmalloc_order", "__kmalloc", "alloc_large", "__page_frag",
)  # fmt: skip


def find_owner_of_cache(scene: Scene, cache: Cache) -> Owner:
    """Find who took the objects of a slab cache."""
    workspace = scene.dump
    objects = _sample(workspace, cache)
    if not objects:
        return Owner()
    recorded = _recorded(scene, cache, objects)
    if recorded is not None:
        return recorded
    votes: dict[str, list[Evidence]] = defaultdict(list)
    for module, evidence in _contents(workspace, cache, objects):
        votes[module].append(evidence)
    for module, evidence in (*_list_heads(scene, cache), *_cache_pointers(workspace, cache)):
        votes[module].append(evidence)
    return _settle(scene, votes, _SLAB_ALLOCATORS, cache)


def find_owner_of_pages(scene: Scene) -> Owner:
    """Find who took pages that nobody accounts for: lists of them begin in a module's variables."""
    votes: dict[str, list[Evidence]] = defaultdict(list)
    for module, evidence in _page_heads(scene):
        votes[module].append(evidence)
    return _settle(scene, votes, _PAGE_ALLOCATORS, None)


def _settle(scene: Scene, votes: dict[str, list[Evidence]], allocators: tuple[str, ...], cache: Cache | None) -> Owner:
    """Make one owner of what the ways say, with the task that is taking more right now."""
    taker = find_taker(scene, allocators)
    if taker is not None and taker.module:
        votes[taker.module] += taker.evidence
    if not votes:
        return taker or Owner()
    ordered = sorted(votes.items(), key=lambda vote: -len(vote[1]))
    module, evidence = ordered[0]
    if len(ordered) > 1 and len(ordered[1][1]) == len(evidence):
        # Two modules with as much against each: the one that is caught taking it counts.
        if taker is None or taker.module not in {ordered[0][0], ordered[1][0]}:
            return Owner(evidence=tuple(one for _, some in ordered[:2] for one in some))
        module, evidence = taker.module, votes[taker.module]
    function, found = "", tuple(evidence)
    if taker is not None and taker.module == module:
        function = taker.function
    else:
        callers = find_callers(scene, module, allocators, cache)
        if len(callers) == 1:
            function, one = callers[0]
            found = (*found, one)
    return Owner(function, module, found)


# What stands in the objects.


def _sample(workspace: Workspace, cache: Cache) -> list[int]:
    """Choose some objects in use, evenly spread over the slabs of a cache."""
    allocator = slab_allocator(workspace)
    found = find_all_slabs(workspace, page_structs(workspace), allocator).get(cache.vaddr)
    if found is None or not len(found.pfns):
        return []
    base = direct_map_offset(workspace)
    kept = read_free_objects(allocator, cache, [])
    chosen: list[int] = []
    for pfn in found.pfns[np.linspace(0, len(found.pfns) - 1, num=min(_SLABS, len(found.pfns))).astype(np.int64)]:
        try:
            slab = slab_of_pfn(workspace, cache, int(pfn), base)
            if slab is None:
                continue
            used = [one.vaddr for one in read_objects(allocator, slab, kept, []) if one.allocated]
        except UNREADABLE:
            continue
        step = max(1, len(used) // _OBJECTS_PER_SLAB)
        chosen += used[::step][:_OBJECTS_PER_SLAB]
    return chosen


def _read_words(workspace: Workspace, vaddrs: Sequence[int], size_bytes: int) -> tuple[list[int], NDArray[np.uint64]]:
    size = min(size_bytes, 8 * _WORDS) // 8 * 8
    data = read_scattered(workspace.memory, vaddrs, size) if size else []
    present = [(vaddr, one) for vaddr, one in zip(vaddrs, data, strict=False) if one is not None]
    if not present:
        return [], np.empty((0, 0), dtype=np.uint64)
    words = np.frombuffer(b"".join(one for _, one in present), dtype="<u8").reshape(len(present), -1)
    return [vaddr for vaddr, _ in present], words


def _contents(workspace: Workspace, cache: Cache, objects: Sequence[int]) -> Iterator[tuple[str, Evidence]]:
    """Find what of a module is named in most of the objects: its function, its operations, its variable."""
    vaddrs, words = _read_words(workspace, objects, cache.object_bytes)
    if not len(vaddrs):
        return
    symbols = symbols_of(workspace)
    seen: set[str] = set()
    for column in range(words.shape[1]):
        values, counts = np.unique(words[:, column], return_counts=True)
        top = int(np.argmax(counts))
        value, count = int(values[top]), int(counts[top])
        if count * 2 < len(vaddrs) or value >> 47 != (1 << 17) - 1:
            continue
        module = symbols.in_module(value)
        if not module or module in seen:
            continue
        seen.add(module)
        name = _name(symbols, value)
        example = next(vaddr for vaddr, row in zip(vaddrs, words, strict=True) if int(row[column]) == value)
        share = count / len(vaddrs)
        what = (
            f"{share:.0%} of {len(vaddrs)} objects looked at have a pointer to {name} of module {module} "
            f"at offset {column * 8}"
        )
        yield module, Evidence(what, f"rd {example + column * 8:x}", f"{value:x}", example + column * 8)


def _name(symbols: SymbolIndex, vaddr: int) -> str:
    place = symbols.at(vaddr)
    if place is None:
        return f"{vaddr:x}"
    symbol = symbols.symbols[place]
    offset = vaddr - symbol.vaddr
    return f"{symbol.name}+{offset}" if offset else symbol.name


# Where lists of them begin.


def _module_words(workspace: Workspace) -> Iterator[tuple[LoadedModule, int, NDArray[np.uint64]]]:
    """Read the variables of all modules."""
    for module in symbols_of(workspace).modules:
        for start, end, what in module.ranges:
            if what not in {"", "DATA", "RO_AFTER_INIT"} or end - start > _MODULE_LIMIT_BYTES:
                continue
            try:
                data, present = workspace.memory.read_available(start, (end - start) // 8 * 8)
            except UNREADABLE:
                continue
            data[~present] = 0
            yield module, start, np.ascontiguousarray(data).view("<u8")


def _list_heads(scene: Scene, cache: Cache) -> Iterator[tuple[str, Evidence]]:
    """Find list heads in modules' variables whose first entry is in an object of the cache, and leads back to them."""
    workspace = scene.dump
    allocator = slab_allocator(workspace)
    found = find_all_slabs(workspace, page_structs(workspace), allocator).get(cache.vaddr)
    if found is None:
        return
    base = direct_map_offset(workspace)
    pfns = np.sort(found.pfns).astype(np.uint64)
    shift = np.uint64(workspace.memory.page_size_bytes.bit_length() - 1)
    for module, start, words in _module_words(workspace):
        offsets = words - np.uint64(base)
        places = np.searchsorted(pfns, offsets >> shift, side="right") - 1
        is_inside = (places >= 0) & (words >= np.uint64(base))
        near = (offsets >> shift) - pfns[np.maximum(places, 0)]
        is_inside &= near < np.uint64(1 << cache.order)
        for position in np.flatnonzero(is_inside)[:256]:
            head, entry = start + int(position) * 8, int(words[position])
            if _leads_back(workspace, entry, head):
                name = _name(symbols_of(workspace), head)
                what = f"a list that begins in {name} of module {module.name} leads through objects of {cache.name}"
                yield module.name, Evidence(what, f"rd {head:x}", f"{entry:x}", head)
                break


def _cache_pointers(workspace: Workspace, cache: Cache) -> Iterator[tuple[str, Evidence]]:
    """Find the modules that keep a pointer to a slab cache of their own in a variable: they made it, or one like it."""
    for module, start, words in _module_words(workspace):
        for position in np.flatnonzero(words == np.uint64(cache.vaddr))[:1]:
            vaddr = start + int(position) * 8
            name = _name(symbols_of(workspace), vaddr)
            what = f"{name} of module {module.name} points to the slab cache {cache.name}"
            yield module.name, Evidence(what, f"rd {vaddr:x}", f"{cache.vaddr:x}", vaddr)


def _leads_back(workspace: Workspace, entry: int, head: int) -> bool:
    """
    Tell whether a list that begins at *head* has *entry* first, and goes on in objects like it.

    The second word of a ``struct list_head`` or ``hlist_node`` leads back to where
    the entry was found.
    """
    try:
        return workspace.memory.read_u64(entry + 8) == head
    except UNREADABLE:
        return False


def _page_heads(scene: Scene) -> Iterator[tuple[str, Evidence]]:
    """Find list heads in modules' variables to which ``page.lru`` of pages in use leads."""
    workspace = scene.dump
    structs = page_structs(workspace)
    lru = member_offset(structs.type, "lru")
    symbols = symbols_of(workspace)
    ranges = [
        (start, end, module.name)
        for module in symbols.modules
        for start, end, what in module.ranges
        if what in {"", "DATA", "RO_AFTER_INIT"}
    ]
    if lru is None or not ranges:
        return
    low, high = np.uint64(min(one[0] for one in ranges)), np.uint64(max(one[1] for one in ranges))
    heads: Counter[int] = Counter()
    for block in structs.blocks():
        for offset in (lru, lru + 8):
            values = block.u64(offset)
            for value in values[(values >= low) & (values < high) & block.present][:4096]:
                heads[int(value)] += 1
    for head, _ in heads.most_common(64):
        module = symbols.in_module(head)
        first = _read(workspace, head)
        pfn = structs.pfn_of(first) if first else None
        if module and pfn is not None:
            what = f"a list of pages begins in {_name(symbols, head)} of module {module}"
            yield module, Evidence(what, f"rd {head:x}", f"{first:x}", head)
            return
    yield from _pointers_to_pages(scene)


def _read(workspace: Workspace, vaddr: int) -> int:
    try:
        return workspace.memory.read_u64(vaddr)
    except UNREADABLE:
        return 0


def _pointers_to_pages(scene: Scene) -> Iterator[tuple[str, Evidence]]:
    """Count the pointers to ``struct page`` in each module's variables: a table of pages is full of them."""
    workspace = scene.dump
    structs = page_structs(workspace)
    low = int(structs.mem_map.vaddrs.min()) if len(structs.mem_map.vaddrs) else 0
    span = (structs.frame_limit + 1) * structs.size_bytes
    best: tuple[int, str, int] | None = None
    for module, start, words in _module_words(workspace):
        hits = np.flatnonzero((words >= np.uint64(low)) & (words - np.uint64(low) < np.uint64(span)))
        if len(hits) > 8 and (best is None or len(hits) > best[0]):
            best = (len(hits), module.name, start + int(hits[0]) * 8)
    if best is not None:
        count, module_name, vaddr = best
        what = f"{count} pointers to pages stand in the variables of module {module_name}"
        yield module_name, Evidence(what, f"rd {vaddr:x} 4", f"{vaddr:x}", vaddr)


# What slub_debug records.


def _recorded(scene: Scene, cache: Cache, objects: Sequence[int]) -> Owner | None:
    """
    Read ``struct track`` of objects, which is behind them with ``slub_debug=U``.

    ``get_info_end()`` and ``get_track()`` of mm/slub.c: behind what is in use, and behind the free
    pointer where that is outside; the track of the allocation first. Its ``addr`` is the caller.
    """
    workspace = scene.dump
    allocator = slab_allocator(workspace)
    flags = workspace.memory.read_u32(cache.vaddr + allocator.layout.cache.flags)
    try:
        flag = 1 << int(scene.prog.constant("_SLAB_STORE_USER").value_())
    except LookupError:
        flag = _USER_FLAG
    if not flags & flag:
        return None
    try:
        kind = scene.prog.type("struct track")
        inuse = int(drgn.offsetof(scene.prog.type("struct kmem_cache"), "inuse"))
        end = workspace.memory.read_u32(cache.vaddr + inuse)
        offset = end + 8 if cache.free_offset >= end else end
        caller = offset + int(drgn.offsetof(kind, "addr"))
    except (LookupError, TypeError):
        return None
    votes: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], int] = {}
    for vaddr in objects:
        function, module = find_asker(scene, _read(workspace, vaddr + caller))
        if function:
            key = (function, module or "vmlinux")
            votes[key] += 1
            examples.setdefault(key, vaddr)
    if not votes:
        return None
    (function, module), count = votes.most_common(1)[0]
    if count * 2 < len(objects):
        return None
    example = examples[function, module]
    what = f"{count} of {len(objects)} objects looked at remember that {function} took them"
    evidence = Evidence(what, f"rd -s {example + caller:x}", function, example)
    return Owner(function, module, (evidence,))
