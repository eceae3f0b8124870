"""
Build the slab allocator's structures as they lie in memory, and the BTF that describes them.

Members are where no kernel has them: only the BTF tells. Written from the
kernel's ``mm/slab.h``, ``include/linux/kernfs.h`` and ``include/linux/kobject.h``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from tests.builders.btf import INT, BtfBuilder

PAGE_BYTES = 64
SLAB_TYPE = 0xF5000000
CACHE_BYTES = 96
NODE_BYTES = 96


@dataclass
class Cache:
    """One ``struct kmem_cache``."""

    name: str
    size: int
    object_size: int
    objects: int
    order: int = 0
    red_left_pad: int = 0
    refcount: int = 1
    min_objects: int | None = None
    directory: int = 0

    def pack(self, vaddr: int, name_vaddr: int, following: int) -> bytes:
        """Pack it; *following* is the address of the next list entry."""
        least = self.objects if self.min_objects is None else self.min_objects
        return struct.pack(
            "<QIIIIiIQQQQQQ16x",
            0,
            self.size,
            self.object_size,
            self.order << 16 | self.objects,
            least,
            self.refcount,
            self.red_left_pad,
            name_vaddr,
            following,
            vaddr,
            name_vaddr,
            self.directory,
            0,
        )


LIST_OFFSET = 40


def build_slab_types(b: BtfBuilder, *, page_type: bool = True) -> dict[str, int]:
    """Add the types that finding slabs needs; gives the identifiers of the basic ones."""
    ids = {
        "int": b.int_("int", 4, 1),
        "unsigned int": b.int_("unsigned int", 4),
        "unsigned long": b.int_("unsigned long", 8),
        "char": b.int_("char", 1),
        "index": b.int_("__ARRAY_SIZE_TYPE__", 4),
    }
    ids["pointer"] = b.ptr(0)
    u32, u64, pointer = ids["unsigned int"], ids["unsigned long"], ids["pointer"]
    ids["list_head"] = b.struct("list_head", 16, [("next", pointer, 0), ("prev", pointer, 64)])
    ids["kobject"] = b.struct("kobject", 24, [("name", pointer, 0), ("sd", pointer, 64)])
    orders = b.struct("kmem_cache_order_objects", 4, [("x", u32, 0)])
    places = (("flags", u64, 0), ("size", u32, 8), ("object_size", u32, 12), ("oo", orders, 16), ("min", orders, 20))
    more = (("refcount", ids["int"], 24), ("red_left_pad", u32, 28), ("name", pointer, 32))
    rest = (("list", ids["list_head"], LIST_OFFSET), ("kobj", ids["kobject"], 56))
    b.struct("kmem_cache", CACHE_BYTES, [(name, kind, offset * 8) for name, kind, offset in (*places, *more, *rest)])
    b.struct("page", PAGE_BYTES, [("flags", u64, 0), ("_mapcount", ids["int"], 48 * 8)])
    b.struct(
        "slab",
        PAGE_BYTES,
        [("slab_cache", pointer, 8 * 8, 0), ("inuse", u32, 40 * 8, 16), ("objects", u32, 42 * 8, 15)],
    )
    ids["kset"] = b.struct("kset", 40, [("list", ids["list_head"], 0), ("kobj", ids["kobject"], 128)])
    _build_kernfs_types(b, ids)
    if page_type:
        b.enum("pagetype", [("PGTY_buddy", 0xF0), ("PGTY_slab", 0xF5)])
    else:
        b.enum("pageflags", [("PG_locked", 0), ("PG_slab", 9), ("PG_head", 16)])
    return ids


def _build_kernfs_types(b: BtfBuilder, ids: dict[str, int]) -> None:
    pointer, u64 = ids["pointer"], ids["unsigned long"]
    node = b.struct("rb_node", 24, [("parent", u64, 0), ("rb_right", pointer, 64), ("rb_left", pointer, 128)])
    root = b.struct("rb_root", 8, [("rb_node", pointer, 0)])
    directory = b.struct("kernfs_elem_dir", 16, [("subdirs", u64, 0), ("children", root, 64)])
    link = b.struct("kernfs_elem_symlink", 8, [("target_kn", pointer, 0)])
    either = b.union("", 16, [("dir", directory, 0), ("symlink", link, 0)])
    short = b.add(INT, "unsigned short", 2, [16])
    members = [("name", pointer, 0), ("rb", node, 64), ("", either, 256), ("flags", short, 384)]
    b.struct("kernfs_node", NODE_BYTES, members)


def build_kernfs_node(
    *, name: int = 0, left: int = 0, right: int = 0, children: int = 0, target: int = 0, kind: int = 1
) -> bytes:
    """Build a ``struct kernfs_node``; its tree hook is 8 bytes in."""
    first, second = (target, 0) if kind == 4 else (0, children)
    return struct.pack("<QQQQQQH46x", name, 0, right, left, first, second, kind | 0x30)


def build_struct_page(*, cache: int = 0, objects: int = 0, type_word: int = SLAB_TYPE, flags: int = 0) -> bytes:
    """Build a ``struct page``; with a cache a slab's first."""
    return struct.pack("<QQ24xIIII8x", flags, cache, objects << 16 | 3, 0, type_word, 1).ljust(PAGE_BYTES, b"\0")


@dataclass
class Heap:
    """Bytes at addresses, taken one after the other."""

    vaddr: int
    parts: dict[int, bytes] = field(default_factory=dict)

    def put(self, data: bytes, *, align: int = 16) -> int:
        self.vaddr += -self.vaddr % align
        place = self.vaddr
        self.parts[place] = data
        self.vaddr += len(data)
        return place

    def text(self, text: str) -> int:
        return self.put(text.encode() + b"\0", align=1)
