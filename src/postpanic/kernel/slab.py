"""
Objects of the slab allocator (SLUB): its caches, their slabs, and where each slot of a slab lies.

Slabs are found by their ``struct page``, not by the allocator's lists: a slab
without a free object is on no list. A slot counts whether it is in use or
not, since a freed object keeps what it held.

Sources: the kernel's ``mm/slab.h``, ``mm/slub.c`` and ``mm/slab_common.c``;
``struct slab`` is told from ``struct page`` since 5.17 (d122019bf061, "mm: Split slab
into its own type"). Layouts are those of the kernel's own BTF.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from postpanic.errors import AbsentError, CorruptError, FactAbsentError, PostpanicError, UnsupportedError
from postpanic.kernel.btf import Btf, Kind, StructLayout
from postpanic.kernel.kallsyms import SymbolTable
from postpanic.kernel.kernfs import read_links
from postpanic.kernel.memory import KernelMemory

__all__ = ["PageBlock", "SlabCache", "SlabPages", "Slabs", "find_slabs", "read_slab_caches"]

_CACHE_LIMIT = 1 << 16
_NAME_LIMIT_BYTES = 256
_LARGEST_CACHE_BYTES = 1 << 16
_OBJECTS_MASK = 0xFFFF
"""Low half of ``kmem_cache_order_objects.x``; the order is above it (``OO_SHIFT`` of ``mm/slub.c``)."""
_ORDER_SHIFT = 16
_LARGEST_ORDER = 16
_LARGEST_OBJECT_BYTES = 1 << 26
_TYPE_BITS = 0x00FF_FFFF


class PageBlock(Protocol):
    """A run of ``struct page``, as the classification of pages reads them."""

    @property
    def first_pfn(self) -> int:
        """Frame that the first row describes."""

    @property
    def rows(self) -> NDArray[np.uint8]:
        """Shape (n, sizeof(struct page)); zeroes where a row cannot be read."""


@dataclass(frozen=True, slots=True)
class SlabCache:
    """What is needed of one ``struct kmem_cache``; sizes in bytes."""

    vaddr: int
    name: str
    size_bytes: int
    """Distance of one slot to the next (``size``)."""
    object_bytes: int
    """Of that what the object has (``object_size``)."""
    red_left_pad: int
    """Before each object, with ``slub_debug=Z`` only."""
    order: int
    """A slab of the preferred kind has ``1 << order`` pages."""
    objects_per_slab: int
    min_objects_per_slab: int
    """Of a slab made when memory was short."""
    user_count: int
    """How many caches were merged into this one, itself included (``refcount``)."""
    directory: int = 0
    """``kobj.sd``: its directory in sysfs."""
    aliases: tuple[str, ...] = ()
    """Names of caches that were merged into this one, as far as sysfs has them."""

    @property
    def names(self) -> tuple[str, ...]:
        """All names it goes by."""
        return (self.name, *self.aliases)

    @property
    def is_shared(self) -> bool:
        """Whether objects of other types may lie among its own (the allocator's own caches have -1)."""
        return 1 < self.user_count < 1 << 31


def read_slab_caches(kernel: KernelMemory, symbols: SymbolTable, btf: Btf) -> tuple[SlabCache, ...]:
    """
    Read all caches of the list ``slab_caches``.

    Raises
    ------
    UnsupportedError
        If the kernel's slab allocator is not SLUB.
    FactAbsentError
        If the list or a member of ``struct kmem_cache`` is not known.
    CorruptError
        If the list does not lead back to its head, or nothing in it makes sense.
    AbsentError
        If the head of the list is not in the dump.
    """
    layout = btf.find_struct("kmem_cache")
    if not layout.has("red_left_pad") and not layout.has("oo"):
        raise UnsupportedError(
            "the kernel's slab allocator is not SLUB", hint="objects of SLAB and SLOB kernels cannot be found"
        )
    reader = _CacheReader(kernel, layout)
    head = symbols.find("slab_caches").vaddr
    caches: list[SlabCache] = []
    seen = {int(head)}
    at = kernel.read_u64(head)
    while at not in seen:
        if len(seen) > _CACHE_LIMIT:
            raise CorruptError(f"more than {_CACHE_LIMIT} slab caches in the list slab_caches")
        seen.add(at)
        vaddr = at - reader.list_offset
        try:
            at = kernel.read_u64(at)
            cache = reader.read(vaddr)
        except AbsentError as error:
            raise CorruptError(f"the list slab_caches breaks off after {len(caches)} caches: {error}") from error
        if cache is not None:
            caches.append(cache)
    if at != head:
        raise CorruptError(f"the list slab_caches leads back to {at:#x}, not to its head at {int(head):#x}")
    if not caches:
        raise CorruptError(f"no slab cache in the list slab_caches at {int(head):#x} makes sense")
    return _name_aliases(kernel, symbols, btf, caches)


class _CacheReader:
    """Reads ``struct kmem_cache``, of which only the beginning matters."""

    def __init__(self, kernel: KernelMemory, layout: StructLayout) -> None:
        self._kernel = kernel
        self.list_offset = layout.offset_of("list")
        self._offsets = {
            name: layout.offset_of(name) for name in ("size", "object_size", "oo", "min", "refcount", "name")
        }
        # Absent with CONFIG_SLUB_TINY, where there is no red zone (mm/slab.h).
        for name in ("red_left_pad", "kobj.sd"):
            if layout.has(name):
                self._offsets[name] = layout.offset_of(name)
        self._bytes = max(self._offsets.values()) + 8
        if self._bytes > _LARGEST_CACHE_BYTES:
            raise CorruptError(f"struct kmem_cache reaches to byte {self._bytes}, at most {_LARGEST_CACHE_BYTES}")

    def read(self, vaddr: int) -> SlabCache | None:
        """Read one cache; None for one whose sizes no cache has."""
        data = self._kernel.read(vaddr, self._bytes)

        def word(name: str, size: int = 4) -> int:
            at = self._offsets.get(name)
            return 0 if at is None else int.from_bytes(data[at : at + size], "little")

        try:
            name = self._kernel.read_c_string(word("name", 8), _NAME_LIMIT_BYTES).decode("utf-8", "backslashreplace")
        except PostpanicError:
            # A module that is gone took the name of its cache with it.
            name = ""
        cache = SlabCache(
            vaddr,
            name,
            word("size"),
            word("object_size"),
            word("red_left_pad"),
            word("oo") >> _ORDER_SHIFT,
            word("oo") & _OBJECTS_MASK,
            word("min") & _OBJECTS_MASK,
            word("refcount"),
            word("kobj.sd", 8),
        )
        sane = (
            0 < cache.object_bytes <= cache.size_bytes <= _LARGEST_OBJECT_BYTES
            and cache.red_left_pad < cache.size_bytes
            and cache.objects_per_slab > 0
            and cache.order <= _LARGEST_ORDER
        )
        return cache if sane else None


def _name_aliases(
    kernel: KernelMemory, symbols: SymbolTable, btf: Btf, caches: Sequence[SlabCache]
) -> tuple[SlabCache, ...]:
    """
    Add the names of merged caches: links in ``/sys/kernel/slab`` to the cache they became.

    ``sysfs_slab_alias()`` of ``mm/slub.c`` makes them; without sysfs there are none.
    """
    kset = symbols.get("slab_kset")
    links: dict[int, list[str]] = {}
    if kset is not None:
        try:
            directory = kernel.read_u64(kernel.read_u64(kset) + btf.find_struct("kset").offset_of("kobj.sd"))
            for name, target in read_links(kernel, btf, directory):
                links.setdefault(target, []).append(name)
        except PostpanicError:
            links = {}
    named = []
    for cache in caches:
        # A cache that can be merged has a directory of its own making (":0000064"), and its name is a link, too.
        others = sorted(name for name in links.get(cache.directory, ()) if name != cache.name)
        named.append(replace(cache, aliases=tuple(others)))
    return tuple(named)


@dataclass(frozen=True, slots=True)
class SlabPages:
    """
    How ``struct page`` tells a slab, its cache, and its number of objects.

    Made by :meth:`from_btf`.
    """

    page_size_bytes: int
    cache_offset: int
    objects_offset: int
    """Of the 32-bit word that holds the bit-field ``objects``."""
    objects_shift: int
    objects_bits: int
    type_offset: int
    """Of ``page_type`` (which shares its place with ``_mapcount``), for kernels since 6.10."""
    type_value: int | None
    flags_offset: int
    flag_bit: int | None
    """``PG_slab`` of kernels to 6.9."""

    @classmethod
    def from_btf(cls, kernel: KernelMemory, btf: Btf) -> SlabPages:
        """
        Find the layout by presence: ``struct slab`` since 5.17, page type since 6.10 (46df8e73a4a3).

        Raises
        ------
        FactAbsentError
            If neither a page type nor a flag of slabs is known.
        CorruptError
            If a member lies beyond ``struct page``.
        """
        page = btf.find_struct("page")
        slab = btf.find_struct("slab") if btf.detect("slab", Kind.STRUCT) is not None else page
        if not slab.has("slab_cache"):
            slab = page
        objects = slab.find("objects")
        word = objects.offset_bits // 32 * 32
        if not 0 < objects.size_bits <= 32 - (objects.offset_bits - word):
            raise FactAbsentError("struct slab of this kernel has no bit-field objects in one word", where=btf.where)
        info = kernel.vmcoreinfo
        type_value = info.get_number("PAGE_SLAB_MAPCOUNT_VALUE")
        if type_value is None and "PGTY_slab" in btf.enumerators:
            type_value = btf.enumerators["PGTY_slab"] << 24
        flag_bit = info.get_number("PG_slab")
        if flag_bit is None and type_value is None:
            flag_bit = btf.enumerators.get("PG_slab")
        if type_value is None and (flag_bit is None or not 0 <= flag_bit < 64):
            raise FactAbsentError("neither VMCOREINFO nor BTF tells how struct page marks a slab")
        found = cls(
            kernel.page_size_bytes,
            slab.offset_of("slab_cache"),
            word // 8,
            objects.offset_bits - word,
            objects.size_bits,
            page.offset_of("_mapcount"),
            None if type_value is None else type_value & 0xFFFF_FFFF,
            page.offset_of("flags"),
            flag_bit,
        )
        # Every member is in the row of struct page, whatever its BTF says.
        ends = (found.cache_offset + 8, found.objects_offset + 4, found.type_offset + 4, found.flags_offset + 8)
        if max(ends) > page.size_bytes:
            raise CorruptError(f"struct slab reaches to byte {max(ends)}, struct page has {page.size_bytes}")
        return found

    def are_slabs(self, rows: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Tell for each ``struct page``, shape (n, sizeof(struct page)), whether it is a slab's first."""
        if self.type_value is not None:
            types = _u32(rows, self.type_offset)
            if self.type_value & _TYPE_BITS == 0:
                # Since 6.12 the type is the top byte; typed pages may use the rest (4ffca5a96678).
                return np.asarray(types >> np.uint32(24) == self.type_value >> 24)
            # 6.10 and 6.11: a bit that is clear; what the low bits of 6.11 say is the type's own (8db00ad56461).
            cleared = np.uint32(~self.type_value & 0xFFFF_FFFF)
            return np.asarray((types >> np.uint32(31) == 1) & (types & cleared == 0))
        flags = _u64(rows, self.flags_offset)
        return np.asarray(flags >> np.uint64(self.flag_bit or 0) & np.uint64(1), dtype=np.bool_)

    def caches(self, rows: NDArray[np.uint8]) -> NDArray[np.uint64]:
        """Give ``slab_cache`` of each row."""
        return _u64(rows, self.cache_offset)

    def objects(self, rows: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Give the number of objects of each row."""
        words = _u32(rows, self.objects_offset) >> np.uint32(self.objects_shift)
        return (words & np.uint32((1 << self.objects_bits) - 1)).astype(np.int64)


def _u32(rows: NDArray[np.uint8], offset: int) -> NDArray[np.uint32]:
    """Give a 32-bit member of every row."""
    return np.ascontiguousarray(rows[:, offset : offset + 4]).view("<u4").reshape(-1)


def _u64(rows: NDArray[np.uint8], offset: int) -> NDArray[np.uint64]:
    """Give a 64-bit member of every row."""
    return np.ascontiguousarray(rows[:, offset : offset + 8]).view("<u8").reshape(-1)


@dataclass(frozen=True, slots=True)
class Slabs:
    """
    The slabs of one cache.

    Attributes
    ----------
    pfns : ndarray of uint64
        First frame of each, rising.
    objects : ndarray of int64
        Slots of each.
    is_guarded : ndarray of bool
        One object of KFENCE's in a page of its own, at either end of it.
    odd : int
        Slabs whose number of objects cannot be: they count as full ones.
    """

    cache: SlabCache
    pfns: NDArray[np.uint64]
    objects: NDArray[np.int64]
    is_guarded: NDArray[np.bool_]
    odd: int = 0

    @property
    def slot_count(self) -> int:
        """Slots, free ones included."""
        return int(self.objects.sum())

    def slots(self, page_size_bytes: int) -> NDArray[np.uint64]:
        """Give the physical address of the object in every slot, but for those of KFENCE."""
        plain = ~self.is_guarded
        objects = self.objects[plain]
        bases = self.pfns[plain] * np.uint64(page_size_bytes) + np.uint64(self.cache.red_left_pad)
        firsts = np.cumsum(objects) - objects
        number = np.arange(int(objects.sum()), dtype=np.int64) - np.repeat(firsts, objects)
        slots: NDArray[np.uint64] = np.repeat(bases, objects) + number.astype(np.uint64) * np.uint64(
            self.cache.size_bytes
        )
        return slots

    def guarded_pages(self, page_size_bytes: int) -> NDArray[np.uint64]:
        """Give the physical address of each page that holds one object of KFENCE."""
        return np.asarray(self.pfns[self.is_guarded] * np.uint64(page_size_bytes))


def find_slabs(layout: SlabPages, caches: Sequence[SlabCache], blocks: Iterable[PageBlock]) -> dict[int, Slabs]:
    """
    Find the slabs of some caches, in one pass over ``struct page``.

    Parameters
    ----------
    blocks : iterable of PageBlock
        All of ``struct page``, in rising order of frames.

    Returns
    -------
    dict
        By the cache's address; a cache without slabs has an empty entry.
    """
    wanted = np.array(sorted(cache.vaddr for cache in caches), dtype=np.uint64)
    found: list[tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int64]]] = []
    for block in blocks:
        candidates = np.flatnonzero(layout.are_slabs(block.rows))
        if not len(candidates):
            continue
        owners = layout.caches(block.rows[candidates])
        ours = np.isin(owners, wanted)
        rows = candidates[ours]
        if len(rows):
            pfns = (rows + block.first_pfn).astype(np.uint64)
            found.append((pfns, owners[ours], layout.objects(block.rows[rows])))
    nothing = (np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.int64))
    pfns, owners, objects = (np.concatenate(column) for column in zip(nothing, *found, strict=True))
    return {cache.vaddr: _slabs_of(layout, cache, pfns, owners, objects) for cache in caches}


def _slabs_of(
    layout: SlabPages,
    cache: SlabCache,
    pfns: NDArray[np.uint64],
    owners: NDArray[np.uint64],
    objects: NDArray[np.int64],
) -> Slabs:
    mine = owners == np.uint64(cache.vaddr)
    pfns, objects = pfns[mine], objects[mine]
    most = max(cache.objects_per_slab, cache.min_objects_per_slab)
    bad = (objects < 1) | (objects > most)
    objects = np.where(bad, cache.objects_per_slab, objects)
    # kfence_guarded_alloc() of mm/kfence/core.c puts one object into a page that is a slab of its own; so is a slab
    # made when memory was short, if no second object fits into a page.
    guarded = (objects == 1) & (cache.objects_per_slab > 1) & (cache.size_bytes <= layout.page_size_bytes)
    return Slabs(cache, pfns, objects, guarded, int(bad.sum()))
