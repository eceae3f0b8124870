"""
Where the members are that the slab allocator is read by, newest layout first.

Sources: ``mm/slab.h``, ``mm/slub.c``. ``struct slab`` is told from ``struct page`` since
5.17 (d122019bf061), per-CPU sheaves exist since 6.18 (2d517aa09bbc), per-CPU slabs
were removed in 7.0 (32c894c7274b), ``per_node`` came in 7.1 (5ba6bc27b1f9).
"""

from __future__ import annotations

from dataclasses import dataclass

import drgn
from drgn import Program, Type

from postpanic.analysis.memory.page_structs import member_offset
from postpanic.errors import FactAbsentError, UnsupportedError

__all__ = ["BitField", "CacheLayout", "CpuLayout", "NodeLayout", "SheafLayout", "SlabLayout", "SlubLayout"]


@dataclass(frozen=True, slots=True)
class BitField:
    """A bit-field in a little-endian structure."""

    offset: int
    shift: int
    mask: int

    def read(self, data: bytes) -> int:
        """Take it out of the bytes of the structure."""
        return int.from_bytes(data[self.offset : self.offset + 4], "little") >> self.shift & self.mask


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """``struct kmem_cache``: offsets; None for a member that this kernel does not have."""

    name: int
    list: int
    flags: int
    size: int
    object_size: int
    offset: int
    oo: int
    refcount: int
    red_left_pad: int | None
    random: int | None
    cpu_slab: int | None
    cpu_sheaves: int | None
    node: int
    """Of the array of nodes."""
    node_stride: int
    node_in_entry: int
    barn_in_entry: int | None
    head_bytes: int
    """What is read of a cache before its nodes."""


@dataclass(frozen=True, slots=True)
class NodeLayout:
    """``struct kmem_cache_node``."""

    partial: int
    nr_partial: int
    nr_slabs: int | None
    """None without CONFIG_SLUB_DEBUG, as is the next."""
    total_objects: int | None
    barn: int | None
    size_bytes: int


@dataclass(frozen=True, slots=True)
class CpuLayout:
    """``struct kmem_cache_cpu``."""

    freelist: int
    slab: int
    partial: int | None
    size_bytes: int


@dataclass(frozen=True, slots=True)
class SheafLayout:
    """``struct slub_percpu_sheaves``, ``struct slab_sheaf`` and ``struct node_barn``."""

    main: int
    spare: int
    rcu_free: int | None
    size: int
    objects: int
    barn_list: int
    sheaves_full: int


@dataclass(frozen=True, slots=True)
class SlabLayout:
    """``struct slab``, or the part of ``struct page`` that it grew out of."""

    cache: int
    list: int
    next: int | None
    freelist: int
    inuse: BitField
    objects: BitField
    frozen: BitField | None
    size_bytes: int


@dataclass(frozen=True)
class SlubLayout:
    """All of them; made by :meth:`from_program`."""

    cache: CacheLayout
    node: NodeLayout
    slab: SlabLayout
    cpu: CpuLayout | None
    sheaf: SheafLayout | None

    @classmethod
    def from_program(cls, prog: Program) -> SlubLayout:
        """
        Find all layouts.

        Raises
        ------
        UnsupportedError
            If the kernel's slab allocator is not SLUB.
        FactAbsentError
            If a type or member is not known.
        """
        cache = _type(prog, "struct kmem_cache")
        if member_offset(cache, "oo") is None:
            raise UnsupportedError("the kernel's slab allocator is not SLUB, slabs are not decoded")
        node = _type(prog, "struct kmem_cache_node")
        cpu = _find_type(prog, "struct kmem_cache_cpu")
        sheaf = _find_type(prog, "struct slab_sheaf")
        return cls(
            _cache_layout(cache),
            NodeLayout(
                _need(node, "partial"),
                _need(node, "nr_partial"),
                member_offset(node, "nr_slabs"),
                member_offset(node, "total_objects"),
                member_offset(node, "barn"),
                drgn.sizeof(node),
            ),
            _slab_layout(_find_type(prog, "struct slab"), _type(prog, "struct page")),
            None
            if cpu is None
            else CpuLayout(
                _need(cpu, "freelist"), _need(cpu, "slab", "page"), member_offset(cpu, "partial"), drgn.sizeof(cpu)
            ),
            None if sheaf is None else _sheaf_layout(prog, sheaf),
        )


def _find_type(prog: Program, name: str) -> Type | None:
    try:
        return prog.type(name)
    except LookupError:
        return None


def _type(prog: Program, name: str) -> Type:
    found = _find_type(prog, name)
    if found is None:
        raise FactAbsentError(f"no type {name}")
    return found


def _need(type_: Type, *names: str) -> int:
    offset = member_offset(type_, *names)
    if offset is None:
        raise FactAbsentError(f"{type_.type_name()} has no member {' or '.join(names)}")
    return offset


def _cache_layout(cache: Type) -> CacheLayout:
    node = member_offset(cache, "per_node")
    stride, node_in_entry, barn_in_entry = 8, 0, None
    if node is None:
        node = _need(cache, "node")
    else:
        entry = cache.member("per_node").type.type
        stride, node_in_entry = drgn.sizeof(entry), _need(entry, "node")
        barn_in_entry = member_offset(entry, "barn")
    return CacheLayout(
        _need(cache, "name"),
        _need(cache, "list"),
        _need(cache, "flags"),
        _need(cache, "size"),
        _need(cache, "object_size"),
        _need(cache, "offset"),
        _need(cache, "oo"),
        _need(cache, "refcount"),
        member_offset(cache, "red_left_pad"),
        member_offset(cache, "random"),
        member_offset(cache, "cpu_slab"),
        member_offset(cache, "cpu_sheaves"),
        node,
        stride,
        node_in_entry,
        barn_in_entry,
        node,
    )


def _slab_layout(slab: Type | None, page: Type) -> SlabLayout:
    type_ = slab if slab is not None and member_offset(slab, "slab_cache") is not None else page
    inuse, objects = _bits(type_, "inuse"), _bits(type_, "objects")
    if inuse is None or objects is None:
        raise FactAbsentError(f"{type_.type_name()} has no bit-fields inuse and objects")
    return SlabLayout(
        _need(type_, "slab_cache"),
        _need(type_, "slab_list", "lru"),
        member_offset(type_, "next"),
        _need(type_, "freelist"),
        inuse,
        objects,
        _bits(type_, "frozen"),
        drgn.sizeof(page),
    )


def _bits(type_: Type, name: str) -> BitField | None:
    try:
        member = type_.member(name)
    except LookupError:
        return None
    width = member.bit_field_size or 8 * drgn.sizeof(member.type)
    word = member.bit_offset // 32 * 32
    return BitField(word // 8, member.bit_offset - word, (1 << width) - 1)


def _sheaf_layout(prog: Program, sheaf: Type) -> SheafLayout:
    per_cpu, barn = _type(prog, "struct slub_percpu_sheaves"), _type(prog, "struct node_barn")
    return SheafLayout(
        _need(per_cpu, "main"),
        _need(per_cpu, "spare"),
        member_offset(per_cpu, "rcu_free"),
        _need(sheaf, "size"),
        _need(sheaf, "objects"),
        _need(sheaf, "barn_list"),
        _need(barn, "sheaves_full"),
    )
