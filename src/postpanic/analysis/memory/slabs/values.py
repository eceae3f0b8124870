"""What is read of the slab allocator: caches, slabs, and what CPUs and memory nodes keep."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Cache", "CpuSlabs", "NodeSlabs", "Sheaf", "SlabHead"]


@dataclass(frozen=True, slots=True)
class Cache:
    """One ``struct kmem_cache``; sizes in bytes."""

    vaddr: int
    name: str
    size_bytes: int
    """Distance of one object to the next."""
    object_bytes: int
    order: int
    """A slab has ``1 << order`` pages, or fewer where memory was short."""
    objects_per_slab: int
    free_offset: int
    """Where a free object keeps the pointer to the next."""
    red_left_pad: int
    random: int | None
    """XORed into the pointers of free objects with CONFIG_SLAB_FREELIST_HARDENED; None without."""
    refcount: int
    cpu_slab: int
    """Per-CPU pointer; 0: none."""
    cpu_sheaves: int
    nodes: tuple[tuple[int, int, int], ...]
    """Number of the node, its ``kmem_cache_node``, its barn (0: none)."""


@dataclass(frozen=True, slots=True)
class SlabHead:
    """What the first ``struct page`` of a slab says."""

    vaddr: int
    cache: int
    objects: int
    inuse: int
    frozen: bool
    freelist: int
    next: int
    """Next slab of a CPU's partial list."""

    @property
    def free(self) -> int:
        """How many objects are not in use."""
        return max(0, self.objects - self.inuse)


@dataclass(frozen=True, slots=True)
class Sheaf:
    """Objects that are free, and kept to be given out again: ``struct slab_sheaf``."""

    vaddr: int
    objects: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CpuSlabs:
    """What one CPU keeps of a cache."""

    cpu: int
    vaddr: int
    """Of ``struct kmem_cache_cpu`` or ``struct slub_percpu_sheaves``; 0: none."""
    slab: SlabHead | None
    freelist: tuple[int, ...]
    """Objects of the slab that are free, as this CPU sees them."""
    partial: tuple[SlabHead, ...]
    sheaves: tuple[Sheaf, ...]

    @property
    def free(self) -> int:
        """
        Objects that can be had from here.

        A slab that a CPU works on counts as full when it is taken, and its objects
        move to the CPU's list; what other CPUs free later is in the slab's own.
        """
        slabs = self.partial if self.slab is None else (self.slab, *self.partial)
        return len(self.freelist) + sum(slab.free for slab in slabs) + sum(len(one.objects) for one in self.sheaves)


@dataclass(frozen=True, slots=True)
class NodeSlabs:
    """What one memory node keeps of a cache."""

    node: int
    vaddr: int
    slab_count: int | None
    """None where the kernel does not count (CONFIG_SLUB_DEBUG off)."""
    object_count: int | None
    partial_count: int
    """What the kernel's counter says."""
    partial: tuple[SlabHead, ...]
    sheaves: tuple[Sheaf, ...]

    @property
    def free(self) -> int:
        """Objects that can be had from here."""
        return sum(slab.free for slab in self.partial) + sum(len(sheaf.objects) for sheaf in self.sheaves)
