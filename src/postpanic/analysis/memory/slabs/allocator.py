"""
Read the caches of the slab allocator, and how much of each is in use.

Counting follows the kernel: a node knows how many slabs and objects there are;
what is free is on the lists of partial slabs, in the slabs and freelists of each
CPU, and in sheaves. Where these lists are damaged, the slabs are counted by
their ``struct page`` instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from drgn import Object, Program
from drgn.helpers.linux.nodemask import for_each_online_node
from drgn.helpers.linux.percpu import per_cpu_ptr

from postpanic.analysis.cells import decode, guarded, problem
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.memory.slabs.layout import SlubLayout
from postpanic.analysis.memory.slabs.values import Cache, CpuSlabs, NodeSlabs, Sheaf, SlabHead
from postpanic.analysis.tasks.lists import possible_cpus
from postpanic.analysis.workspace import Workspace
from postpanic.errors import CorruptError, FactAbsentError
from postpanic.findings.table import Problem
from postpanic.kernel.memory import KernelMemory

__all__ = ["SlabAllocator", "slab_allocator"]

_NAME_LIMIT_BYTES = 256
_OBJECTS_MASK = 0xFFFF
_ORDER_SHIFT = 16
_LARGEST_ORDER = 16
_SLABS_LIMIT = 1 << 24
_SHEAF_LIMIT = 1 << 12
_WORD = (1 << 64) - 1


class SlabAllocator:
    """
    The slab allocator of one dump; made by :func:`slab_allocator`.

    Raises
    ------
    UnsupportedError
        If it is not SLUB.
    FactAbsentError
        If a type is not known.
    """

    def __init__(self, prog: Program, memory: KernelMemory, cpus: tuple[int, ...]) -> None:
        self._prog = prog
        self._memory = memory
        self._cpus = cpus
        self.layout = SlubLayout.from_program(prog)
        self._swaps: bool | None = None
        self._unlisted: dict[int, Cache | None] = {}
        self._offsets = _read_per_cpu_offsets(prog, cpus)

    @cached_property
    def _nodes(self) -> tuple[int, ...]:
        try:
            return tuple(for_each_online_node(self._prog)) or (0,)
        except UNREADABLE:
            return (0,)

    def caches(self, problems: list[Problem]) -> tuple[Cache, ...]:
        """Read all caches, in the order of the list ``slab_caches``."""
        found, bad = self._caches
        problems += [problem for problem in bad if problem not in problems]
        return found

    @cached_property
    def _caches(self) -> tuple[tuple[Cache, ...], list[Problem]]:
        problems: list[Problem] = []
        try:
            head = int(self._prog["slab_caches"].address_of_().value_())
        except UNREADABLE as exc:
            raise FactAbsentError("no symbol slab_caches") from exc
        entries = list(guarded(self._follow(head), "the list slab_caches", problems, key=int, limit=1 << 16))
        if problems:
            # A list that breaks off may be whole when seen from its other end.
            seen = set(entries)
            back = list(guarded(self._follow(head, 8), "the list slab_caches, backwards", [], key=int, limit=1 << 16))
            entries += [entry for entry in reversed(back) if entry not in seen]
        caches = []
        for entry in entries:
            vaddr = entry - self.layout.cache.list
            try:
                caches.append(self.read_cache(vaddr))
            except UNREADABLE as exc:
                problems.append(problem(f"slab cache {vaddr:#x}", exc))
        return tuple(caches), problems

    @cached_property
    def by_vaddr(self) -> dict[int, Cache]:
        """The caches by their address."""
        return {cache.vaddr: cache for cache in self._caches[0]}

    def find_cache(self, vaddr: int) -> Cache | None:
        """Find a cache by its address, one that is on no list included; None if there is none."""
        if vaddr not in self.by_vaddr and vaddr not in self._unlisted:
            try:
                self._unlisted[vaddr] = self.read_cache(vaddr)
            except UNREADABLE:
                self._unlisted[vaddr] = None
        return self.by_vaddr.get(vaddr) or self._unlisted.get(vaddr)

    def _follow(self, head: int, link: int = 0) -> Iterator[int]:
        """Follow a ``struct list_head``, by its first pointer or, *link* 8, by the second."""
        at = self._memory.read_u64(head + link)
        while at != head:
            yield at
            at = self._memory.read_u64(at + link)

    def read_cache(self, vaddr: int) -> Cache:
        """
        Read one cache.

        Raises
        ------
        CorruptError
            If its sizes are no cache's.
        TranslationError, PageAbsentError
            If it cannot be read.
        """
        layout = self.layout.cache
        data = self._memory.read(vaddr, layout.head_bytes)

        def word(offset: int | None, size: int = 4) -> int:
            return 0 if offset is None else int.from_bytes(data[offset : offset + size], "little")

        try:
            name = decode(self._memory.read_c_string(word(layout.name, 8), _NAME_LIMIT_BYTES))
        except UNREADABLE:
            # A module that is gone took the name of its cache with it.
            name = f"(unnamed {vaddr:x})"
        order, objects = word(layout.oo) >> _ORDER_SHIFT, word(layout.oo) & _OBJECTS_MASK
        size, object_size = word(layout.size), word(layout.object_size)
        if not 0 < object_size <= size or order > _LARGEST_ORDER or not objects:
            raise CorruptError(f"objects of {object_size} in {size} bytes, slabs of order {order}: no cache has them")
        return Cache(
            vaddr,
            name,
            size,
            object_size,
            order,
            objects,
            word(layout.offset),
            word(layout.red_left_pad),
            None if layout.random is None else word(layout.random, 8),
            word(layout.refcount),
            word(layout.cpu_slab, 8),
            word(layout.cpu_sheaves, 8),
            self._read_nodes(vaddr),
        )

    def _read_nodes(self, vaddr: int) -> tuple[tuple[int, int, int], ...]:
        layout = self.layout.cache
        nodes = []
        for number in self._nodes:
            entry = vaddr + layout.node + number * layout.node_stride
            node = self._memory.read_u64(entry + layout.node_in_entry)
            barn = 0
            if layout.barn_in_entry is not None:
                barn = self._memory.read_u64(entry + layout.barn_in_entry)
            elif self.layout.node.barn is not None and node:
                barn = self._memory.read_u64(node + self.layout.node.barn)
            if node:
                nodes.append((number, node, barn))
        return tuple(nodes)

    def head(self, vaddr: int) -> SlabHead:
        """Read the first ``struct page`` of a slab."""
        layout = self.layout.slab
        data = self._memory.read(vaddr, layout.size_bytes)

        def word(offset: int) -> int:
            return int.from_bytes(data[offset : offset + 8], "little")

        return SlabHead(
            vaddr,
            word(layout.cache),
            layout.objects.read(data),
            layout.inuse.read(data),
            bool(layout.frozen.read(data)) if layout.frozen is not None else False,
            word(layout.freelist),
            0 if layout.next is None else word(layout.next),
        )

    def cpu(self, cache: Cache, number: int, problems: list[Problem]) -> CpuSlabs:
        """Read what one CPU keeps of a cache."""
        what = f"{cache.name}: CPU {number}"
        slab: SlabHead | None = None
        freelist: tuple[int, ...] = ()
        partial: tuple[SlabHead, ...] = ()
        at = 0
        layout = self.layout.cpu
        if layout is not None and cache.cpu_slab:
            at = self._per_cpu(cache.cpu_slab, number)
            data = self._memory.read(at, layout.size_bytes)

            def word(offset: int) -> int:
                return int.from_bytes(data[offset : offset + 8], "little")

            if word(layout.slab):
                slab = self.head(word(layout.slab))
                freelist = self.freelist(cache, word(layout.freelist), f"{what} freelist", problems, slab.objects)
            if layout.partial is not None:
                chain = self._follow_partial(word(layout.partial))
                partial = tuple(
                    guarded(chain, f"{what} partial slabs", problems, key=lambda one: one.vaddr, limit=_SLABS_LIMIT)
                )
        sheaves: tuple[Sheaf, ...] = ()
        if cache.cpu_sheaves and self.layout.sheaf is not None:
            at = at or self._per_cpu(cache.cpu_sheaves, number)
            sheaves = self._cpu_sheaves(self._per_cpu(cache.cpu_sheaves, number))
        return CpuSlabs(number, at, slab, freelist, partial, sheaves)

    def cpus(self, cache: Cache, problems: list[Problem]) -> list[CpuSlabs]:
        """Read what all CPUs keep of a cache."""
        found = []
        for number in self._cpus:
            try:
                found.append(self.cpu(cache, number, problems))
            except UNREADABLE as exc:
                problems.append(problem(f"{cache.name}: CPU {number}", exc))
        return found

    def node(self, cache: Cache, entry: tuple[int, int, int], problems: list[Problem]) -> NodeSlabs:
        """Read what one memory node keeps of a cache."""
        number, vaddr, barn = entry
        layout = self.layout.node
        data = self._memory.read(vaddr, layout.size_bytes)

        def word(offset: int | None) -> int | None:
            return None if offset is None else int.from_bytes(data[offset : offset + 8], "little")

        what = f"{cache.name}: partial slabs of node {number}"
        heads = (self.head(at - self.layout.slab.list) for at in self._follow(vaddr + layout.partial))
        partial = tuple(guarded(heads, what, problems, key=lambda one: one.vaddr, limit=_SLABS_LIMIT))
        sheaves: tuple[Sheaf, ...] = ()
        if barn and self.layout.sheaf is not None:
            head = barn + self.layout.sheaf.sheaves_full
            entries = guarded(self._follow(head), f"{cache.name}: full sheaves of node {number}", problems, key=int)
            sheaves = tuple(self._sheaf(at - self.layout.sheaf.barn_list) for at in entries)
        return NodeSlabs(
            number, vaddr, word(layout.nr_slabs), word(layout.total_objects), word(layout.nr_partial) or 0, partial,
            sheaves,
        )  # fmt: skip

    def freelist(
        self, cache: Cache, first: int, what: str, problems: list[Problem], limit: int = _OBJECTS_MASK
    ) -> tuple[int, ...]:
        """Follow the pointers of free objects from the first on; a damaged one ends it, and is a problem."""
        return tuple(guarded(self._follow_free(cache, first), what, problems, key=int, limit=limit + 1))

    def _follow_free(self, cache: Cache, at: int) -> Iterator[int]:
        while at:
            yield at
            at = self._next_free(cache, at)

    def _next_free(self, cache: Cache, vaddr: int) -> int:
        """
        Read the pointer to the next free object.

        With CONFIG_SLAB_FREELIST_HARDENED it is XORed with a secret and with its
        own address, bytes swapped since 5.7 (1ad53d9fa3f6), which stable kernels
        took over. Which of the two it is shows where the result can be read.
        """
        at = vaddr + cache.free_offset
        stored = self._memory.read_u64(at)
        if cache.random is None:
            return stored
        swapped = int.from_bytes(at.to_bytes(8, "little"), "big")
        new, old = stored ^ cache.random ^ swapped, stored ^ cache.random ^ at
        if self._swaps is None and new:
            self._swaps = self._is_object(new, cache) or not self._is_object(old, cache)
        return old if self._swaps is False else new

    def _is_object(self, vaddr: int, cache: Cache) -> bool:
        try:
            self._memory.read(vaddr, cache.object_bytes)
        except UNREADABLE:
            return False
        return True

    def _follow_partial(self, at: int) -> Iterator[SlabHead]:
        while at:
            slab = self.head(at)
            yield slab
            at = slab.next

    def _cpu_sheaves(self, vaddr: int) -> tuple[Sheaf, ...]:
        layout = self.layout.sheaf
        assert layout is not None  # noqa: S101 - the caller asked
        pointers = [self._memory.read_u64(vaddr + offset) for offset in (layout.main, layout.spare)]
        return tuple(self._sheaf(pointer) for pointer in pointers if pointer)

    def _sheaf(self, vaddr: int) -> Sheaf:
        layout = self.layout.sheaf
        assert layout is not None  # noqa: S101 - the caller asked
        size = self._memory.read_u32(vaddr + layout.size)
        if size > _SHEAF_LIMIT:
            raise CorruptError(f"a sheaf of {size} objects at {vaddr:#x}, at most {_SHEAF_LIMIT}")
        objects = self._memory.read_array(vaddr + layout.objects, "<u8", size) if size else ()
        return Sheaf(vaddr, tuple(int(one) for one in objects))

    def _per_cpu(self, pointer: int, cpu: int) -> int:
        if cpu not in self._offsets:
            raise FactAbsentError(f"the per-CPU offset of CPU {cpu} is not known")
        return (pointer + self._offsets[cpu]) & _WORD


def _read_per_cpu_offsets(prog: Program, cpus: tuple[int, ...]) -> dict[int, int]:
    zero = Object(prog, "void *", 0)
    offsets = {}
    for cpu in cpus:
        try:
            offsets[cpu] = int(per_cpu_ptr(zero, cpu).value_())
        except UNREADABLE:
            continue
    return offsets


def slab_allocator(workspace: Workspace) -> SlabAllocator:
    """
    Give the slab allocator of a session.

    Raises
    ------
    UnsupportedError, FactAbsentError
        If it cannot be read at all.
    """
    return workspace.once(
        "slab allocator",
        lambda: SlabAllocator(workspace.prog, workspace.memory, possible_cpus(workspace)),
    )
