"""The tables of ``kmem -f``, ``-F``, ``-z``, ``-n`` and ``-V``."""

from __future__ import annotations

from postpanic.findings.table import Column, Kind, Layout, Shape

__all__ = [
    "AREAS",
    "BLOCKS",
    "COUNTERS",
    "FREE_PAGES",
    "FREE_ZONES",
    "LISTED_AREAS",
    "NODES",
    "NODE_ZONES",
    "SECTIONS",
    "VERIFIED",
    "ZONES",
    "ZONE_COUNTERS",
]

FREE_PAGES = Shape(
    "free_pages",
    (Column("page", Kind.ADDRESS, help="``struct page *`` of the first page of a free block."),),
    Layout.LINES,
    "{page}",
)
_AREA_COLUMNS = (
    Column("order", Kind.NUMBER, title="AREA", help="A block has ``1 << order`` pages.", width=4),
    Column("kib", Kind.NUMBER, title="SIZE", help="Size of a block, KiB.", suffix="k", width=7),
    Column("list", Kind.ADDRESS, title="FREE_AREA_STRUCT", help="``struct list_head`` of one migrate type."),
    Column("blocks", Kind.NUMBER, title="BLOCKS", help="Blocks in the list."),
    Column("pages", Kind.NUMBER, title="PAGES", help="Pages in the blocks.", width=6),
    Column("type", Kind.NUMBER, title="TYPE", help="``enum migratetype``.", hidden=True),
)
AREAS = Shape("free_areas", _AREA_COLUMNS)
LISTED_AREAS = Shape(
    "listed_free_areas",
    (*_AREA_COLUMNS, Column("heads", Kind.ROWS, shape=FREE_PAGES, help="The blocks.")),
    Layout.LINES,
    "AREA    SIZE  FREE_AREA_STRUCT\n{order:>3}  {kib:>7}  {list}",
)
_ZONE_HEADING = "ZONE  NAME        SIZE    FREE      MEM_MAP       START_PADDR  START_MAPNR"
FREE_ZONES = Shape(
    "free_zones",
    (
        Column("node", Kind.NUMBER, title="NODE", help="Memory node."),
        Column("zone", Kind.NUMBER, title="ZONE", help="Number of the zone in its node."),
        Column("name", title="NAME", help="Its name."),
        Column("size", Kind.NUMBER, title="SIZE", help="Pages that it spans."),
        Column("free", Kind.NUMBER, title="FREE", help="Pages that are free, as its counter says."),
        Column("mem_map", Kind.HEX, title="MEM_MAP", help="``struct page`` of its first frame."),
        Column("start_paddr", Kind.HEX, title="START_PADDR", help="Physical address of it."),
        Column("start_pfn", Kind.NUMBER, title="START_MAPNR", help="Its frame number."),
        Column("areas", Kind.ROWS, help="Its free blocks by order and migrate type."),
    ),
    Layout.LINES,
    _ZONE_HEADING + "\n{zone:>3}   {name:<9} {size:>7} {free:>7}  {mem_map:>16}  {start_paddr:>10}  {start_pfn:>8}",
    gap=True,
)
VERIFIED = Shape(
    "verified",
    (
        Column("counted", Kind.NUMBER, help="What the kernel's counter says."),
        Column("found", Kind.NUMBER, help="Pages in all lists of free blocks."),
        Column("verdict", help="Whether the two agree; pages that CPUs keep are in neither list."),
    ),
    Layout.LINES,
    "nr_free_pages: {counted}  ({verdict})",
)
_COUNTER_COLUMNS = (
    Column("name", help="Name of the counter."),
    Column("value", Kind.NUMBER, help="Its value; negative ones count as 0, as the kernel shows them."),
)
COUNTERS = Shape("counters", _COUNTER_COLUMNS, Layout.LINES, "{name:>30}: {value}")
ZONE_COUNTERS = Shape("zone_counters", _COUNTER_COLUMNS, Layout.LINES, "{name:>21}: {value}")
ZONES = Shape(
    "zones",
    (
        Column("node", Kind.NUMBER, title="NODE", help="Memory node."),
        Column("zone", Kind.NUMBER, title="ZONE", help="Number of the zone in its node."),
        Column("address", Kind.ADDRESS, title="ADDR", help="``struct zone *``."),
        Column("name", title="NAME", help="Its name."),
        Column("text", help="Sizes and watermarks as crash shows them."),
        Column("size", Kind.NUMBER, help="Pages that it spans."),
        Column("present", Kind.NUMBER, help="Pages that are there."),
        Column("min", Kind.NUMBER, help="Watermark: pages kept for those that must not wait."),
        Column("low", Kind.NUMBER, help="Watermark: kswapd begins."),
        Column("high", Kind.NUMBER, help="Watermark: kswapd ends."),
        Column("counters", Kind.ROWS, shape=ZONE_COUNTERS, help="Its counters (``vm_stat``)."),
    ),
    Layout.LINES,
    'NODE: {node}  ZONE: {zone}  ADDR: {address}  NAME: "{name}"\n  {text}',
    gap=True,
)
NODES = Shape(
    "nodes",
    (
        Column("node", Kind.NUMBER, title="NODE", help="Memory node.", width=4),
        Column("size", Kind.NUMBER, title="SIZE", help="Pages that it spans.", width=8),
        Column("pgdat", Kind.ADDRESS, title="PGLIST_DATA", help="``pg_data_t *``.", align="^"),
        Column("mem_map", Kind.HEX, title="MEM_MAP", help="``struct page`` of its first frame.", align="^"),
        Column("start_paddr", Kind.HEX, title="START_PADDR", help="Physical address of it."),
        Column("start_pfn", Kind.NUMBER, title="START_MAPNR", help="Its frame number."),
    ),
)
NODE_ZONES = Shape(
    "node_zones",
    (
        Column("zone", Kind.NUMBER, title="ZONE", help="Number of the zone in its node."),
        Column("name", title="NAME", help="Its name."),
        Column("size", Kind.NUMBER, title="SIZE", help="Pages that it spans.", width=8),
        Column("mem_map", Kind.HEX, title="MEM_MAP", help="``struct page`` of its first frame.", align=">"),
        Column("start_paddr", Kind.HEX, title="START_PADDR", help="Physical address of it."),
        Column("start_pfn", Kind.NUMBER, title="START_MAPNR", help="Its frame number."),
        Column("node", Kind.NUMBER, title="NODE", help="Memory node."),
        Column("address", Kind.ADDRESS, title="ADDRESS", help="``struct zone *``."),
    ),
)
SECTIONS = Shape(
    "sections",
    (
        Column("number", Kind.NUMBER, title="NR", help="Number of the section."),
        Column("section", Kind.ADDRESS, title="SECTION", help="``struct mem_section *``.", align="^"),
        Column("coded", Kind.ADDRESS, title="CODED_MEM_MAP", help="``section_mem_map`` without its flags.", align="^"),
        Column("mem_map", Kind.ADDRESS, title="MEM_MAP", help="``struct page`` of its first frame.", align="^"),
        Column("state", title="STATE", help="P present, M has a map, O online, E early, D of a device.", align="<"),
        Column("pfn", Kind.NUMBER, title="PFN", help="Its first frame.", align="<"),
    ),
)
BLOCKS = Shape(
    "blocks",
    (
        Column("block", Kind.ADDRESS, title="MEM_BLOCK", help="``struct memory_block *``.", align="^"),
        Column("name", title="NAME", help="Name of its device."),
        Column("start", Kind.HEX, title="START", help="Its first physical address."),
        Column("end", Kind.HEX, title="END", help="Its last physical address."),
        Column("node", Kind.NUMBER, title="NODE", help="Memory node."),
        Column("state", title="STATE", help="Whether it is in use."),
        Column("section", Kind.NUMBER, title="START_SECTION_NO", help="Its first section.", align="<"),
    ),
)
