"""One thing that an address is in, and the words for a page frame."""

from __future__ import annotations

from dataclasses import dataclass

from postpanic.analysis.memory.page_structs import PageStructs
from postpanic.analysis.memory.spaces import is_kernel_vaddr

__all__ = ["Place", "describe_frame"]


@dataclass(frozen=True, slots=True)
class Place:
    """
    One thing that an address is in.

    Attributes
    ----------
    kind : str
        ``symbol``, ``module``, ``task``, ``stack``, ``slab``, ``page``, ``struct page``, ``vmalloc``,
        ``per-CPU``, ``vma``, ``physical``.
    name : str
        Its own name: of the symbol, the cache, the task …
    text : str
        One line that says it all.
    start : int or None
        Where it begins.
    size_bytes : int or None
    offset : int or None
        Of the address in it.
    state : str
        ``in use``, ``free`` …
    """

    kind: str
    name: str
    text: str
    start: int | None = None
    size_bytes: int | None = None
    offset: int | None = None
    state: str = ""


def describe_frame(structs: PageStructs, pfn: int) -> str:
    """Say in a few words what a page frame is used for, by its ``struct page``."""
    row = structs.read(pfn)
    if row is None:
        return "no struct page, or not in the dump"
    head = structs.head_of(pfn, row)
    text = ""
    if head != pfn:
        text = f"page {pfn - head} of the compound page at {structs.vaddr_of(head) or 0:x}, "
        row = structs.read(head) or row

    def word(offset: int, size: int) -> int:
        return int.from_bytes(row[offset : offset + size], "little")

    flags = word(structs.flags_offset, 8)
    kind = structs.type_name(word(structs.mapcount_offset, 4))
    count = int.from_bytes(row[structs.refcount_offset : structs.refcount_offset + 4], "little", signed=True)
    mapping = word(structs.mapping_offset, 8)
    names = ",".join(structs.flag_names(flags))
    parts = [part for part in (kind, names) if part]
    if not kind and mapping & 3 == 1:
        parts.append("anonymous")
    elif not kind and is_kernel_vaddr(mapping) and "lru" in names:
        parts.append(f"of mapping {mapping:x}")
    return text + f"count {count}" + (f", {' '.join(parts)}" if parts else "")
