"""The row that crash shows of a page frame: its ``struct page`` in one line."""

from __future__ import annotations

from collections.abc import Iterator

from postpanic.analysis.memory.page_structs import PageBlock, PageStructs
from postpanic.findings.absent import Absent, Reason
from postpanic.findings.table import Cell, Column, Kind, Layout, Shape

__all__ = ["PAGES", "page_row", "page_rows"]

PAGES = Shape(
    "pages",
    (
        Column("page", Kind.ADDRESS, title="PAGE", help="Address of the ``struct page``."),
        Column("paddr", Kind.HEX, title="PHYSICAL", help="Physical address of the page."),
        Column("mapping", Kind.HEX, title="MAPPING", help="``page->mapping``, as it stands."),
        Column("index", Kind.HEX, title="INDEX", help="``page->index``."),
        Column("count", Kind.NUMBER, title="CNT", help="``page->_refcount``."),
        Column("flags", Kind.HEX, title="FLAGS", help="``page->flags``, node and zone numbers included."),
        Column("names", help="Names of the flags that are set, and of the page's type."),
        Column("type", help="Type of the page (``page_type``): buddy, slab, table, hugetlb …"),
    ),
    Layout.LINES,
    "{page} {paddr:>8} {mapping:>16} {index:>9} {count:>2} {flags} {names}",
    title="      PAGE       PHYSICAL      MAPPING       INDEX CNT FLAGS",
)


def page_rows(structs: PageStructs, block: PageBlock, page_size_bytes: int) -> Iterator[tuple[Cell, ...]]:
    """Make the rows of all page frames of a block whose structures are in the dump."""
    base = structs.vaddr_of(block.first_pfn) or 0
    columns = zip(
        block.present.tolist(),
        block.u64(structs.mapping_offset).tolist(),
        block.u64(structs.index_offset).tolist(),
        block.u32(structs.refcount_offset).view("<i4").tolist(),
        block.u64(structs.flags_offset).tolist(),
        block.u32(structs.mapcount_offset).tolist(),
        strict=True,
    )
    names: dict[tuple[int, str], str] = {}
    types: dict[int, str] = {}
    for number, (present, mapping, index, count, flags, mapcount) in enumerate(columns):
        if not present:
            continue
        kind = types.get(mapcount)
        if kind is None:
            kind = types[mapcount] = structs.type_name(mapcount)
        text = names.get((flags, kind))
        if text is None:
            text = names[flags, kind] = ",".join([*structs.flag_names(flags), *([kind] if kind else ())])
        paddr = (block.first_pfn + number) * page_size_bytes
        yield (base + number * structs.size_bytes, paddr, mapping, index, count, flags, text, kind)


def page_row(structs: PageStructs, pfn: int, page_size_bytes: int) -> tuple[Cell, ...]:
    """Make the row of one page frame; of one whose structure cannot be read, only its addresses."""
    for block in structs.blocks(pfn, pfn + 1):
        for row in page_rows(structs, block, page_size_bytes):
            return row
    missing = Absent(Reason.UNREADABLE, f"the struct page of frame {pfn:#x} is not in the dump")
    vaddr = structs.vaddr_of(pfn)
    if vaddr is None:
        missing = Absent(Reason.NOT_PRESENT, f"frame {pfn:#x} has no struct page")
    return (missing if vaddr is None else vaddr, pfn * page_size_bytes, *([missing] * 6))
