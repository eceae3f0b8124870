"""``kmem -f``, ``-F``, ``-z``, ``-n``, ``-V``: free blocks, zones, nodes, sections, and the kernel's counters."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from drgn import Object, Program
from drgn.helpers.linux.cpumask import for_each_online_cpu
from drgn.helpers.linux.mm import decode_memory_block_state, for_each_memory_block, memory_block_size_bytes
from drgn.helpers.linux.mmzone import (
    for_each_present_section,
    high_wmark_pages,
    low_wmark_pages,
    min_wmark_pages,
    section_decode_mem_map,
    section_mem_map_addr,
    section_nr_to_pfn,
)
from drgn.helpers.linux.percpu import per_cpu

from postpanic.analysis.cells import absent, cell, decode, guarded, problem
from postpanic.analysis.commands.arguments import Arguments
from postpanic.analysis.commands.memory.kmem.places import find_pfn
from postpanic.analysis.commands.memory.kmem.zone_shapes import (
    AREAS,
    BLOCKS,
    COUNTERS,
    FREE_PAGES,
    FREE_ZONES,
    LISTED_AREAS,
    NODE_ZONES,
    NODES,
    SECTIONS,
    VERIFIED,
    ZONE_COUNTERS,
    ZONES,
)
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.memory.fields import integer_cell
from postpanic.analysis.memory.page_structs import PageStructs, page_structs
from postpanic.analysis.memory.zones import (
    FreeArea,
    Zone,
    counter_names,
    enum_names,
    read_free_areas,
    read_nodes,
    read_zones,
)
from postpanic.analysis.workspace import Workspace
from postpanic.findings.absent import Absent, Reason
from postpanic.findings.table import Answer, Cell, Problem, Table

__all__ = ["show_counters", "show_free", "show_nodes", "show_zones"]

_SECTION_FLAGS = (
    ("SECTION_MARKED_PRESENT", "P", 0), ("SECTION_HAS_MEM_MAP", "M", 1), ("SECTION_IS_ONLINE", "O", 2),
    ("SECTION_IS_EARLY", "E", 3), ("SECTION_TAINT_ZONE_DEVICE", "D", 4),
)  # fmt: skip


def _zones(workspace: Workspace, problems: list[Problem]) -> list[Zone]:
    prog = workspace.prog
    return [zone for node in read_nodes(prog, problems) for zone in read_zones(node, problems)]


def _place_cells(workspace: Workspace, structs: PageStructs, start_pfn: int, size: int) -> tuple[Cell, ...]:
    """Give the cells of where a range of frames begins."""
    if not size:
        return (0, 0, 0)
    vaddr = structs.vaddr_of(start_pfn)
    mem_map: Cell = Absent(Reason.NOT_PRESENT, "no struct page") if vaddr is None else vaddr
    return (mem_map, start_pfn * workspace.memory.page_size_bytes, start_pfn)


def show_free(workspace: Workspace, arguments: Arguments) -> Answer:
    """Answer ``kmem -f`` and ``-F``, with an address: the free block that it is in."""
    problems: list[Problem] = []
    structs = page_structs(workspace)
    wanted = [find_pfn(workspace, word, physical=arguments.has("physical")) for word in arguments.operands]
    is_listing = arguments.has("free_pages")
    rows: list[tuple[Cell, ...]] = []
    counted = found = 0
    for zone in _zones(workspace, problems):
        free = _zone_counter(zone, "NR_FREE_PAGES")
        counted += free if isinstance(free, int) else 0
        areas: list[tuple[Cell, ...]] = []
        if zone.is_populated:
            for area in read_free_areas(workspace, zone, problems):
                found += len(area.pages) << area.order
                if wanted and not _holds(structs, area, wanted):
                    continue
                areas.append(_area_row(workspace, area, listed=is_listing))
        if wanted and not areas:
            continue
        shape = LISTED_AREAS if is_listing else AREAS
        table = shape.table(areas) if areas else None
        place = _place_cells(workspace, structs, zone.start_pfn, zone.spanned_pages)
        rows.append((zone.node, zone.index, zone.name, zone.spanned_pages, free, *place, table))
    tables: list[Table] = [FREE_ZONES.table(rows)]
    if not wanted:
        verdict = "verified" if counted == found else f"found {found}"
        tables.append(VERIFIED.table([(counted, found, verdict)]))
    return Answer("kmem", tuple(tables), tuple(problems))


def _counter(array: Object, index: int | Object) -> Cell:
    """Read an ``atomic_long_t`` of an array; a negative one counts as 0, as in the kernel."""
    return cell(lambda: max(0, int(array[index].counter.value_())))


def _zone_counter(zone: Zone, name: str) -> Cell:
    return cell(lambda: max(0, int(zone.zone.vm_stat[zone.zone.prog_[name]].counter.value_())))


def _holds(structs: PageStructs, area: FreeArea, wanted: list[int]) -> bool:
    for page in area.pages:
        first = structs.pfn_of(page)
        if first is not None and any(first <= pfn < first + (1 << area.order) for pfn in wanted):
            return True
    return False


def _area_row(workspace: Workspace, area: FreeArea, *, listed: bool) -> tuple[Cell, ...]:
    kib = (workspace.memory.page_size_bytes << area.order) // 1024
    blocks = len(area.pages)
    row = (area.order, kib, area.vaddr, blocks, blocks << area.order, area.migrate_type)
    return (*row, FREE_PAGES.table([(page,) for page in area.pages])) if listed else row


def show_zones(workspace: Workspace) -> Answer:
    """Answer ``kmem -z``."""
    problems: list[Problem] = []
    items = counter_names(workspace.prog, "enum zone_stat_item")
    rows = [_zone_row(zone, items) for zone in _zones(workspace, problems)]
    return Answer("kmem", (ZONES.table(rows),), tuple(problems))


def _zone_row(zone: Zone, items: list[tuple[str, int]]) -> tuple[Cell, ...]:
    head = (zone.node, zone.index, zone.vaddr, zone.name)
    if not zone.is_populated:
        return (*head, "[unpopulated]", zone.spanned_pages, zone.present_pages, None, None, None, None)
    marks = [_mark(zone, read) for read in (min_wmark_pages, low_wmark_pages, high_wmark_pages)]
    spelled = "/".join(mark.mark if isinstance(mark, Absent) else str(mark) for mark in marks)
    present = f"  PRESENT: {zone.present_pages}" if zone.present_pages != zone.spanned_pages else ""
    text = f"SIZE: {zone.spanned_pages}{present}  MIN/LOW/HIGH: {spelled}\n  VM_STAT:"
    counters = [(name, _counter(zone.zone.vm_stat, at)) for name, at in items]
    table = ZONE_COUNTERS.table(counters)
    return (*head, text, zone.spanned_pages, zone.present_pages, *marks, table)


def _mark(zone: Zone, read: Callable[[Object], int]) -> Cell:
    return cell(lambda: int(read(zone.zone)))


def show_nodes(workspace: Workspace) -> Answer:
    """Answer ``kmem -n``."""
    problems: list[Problem] = []
    prog = workspace.prog
    structs = page_structs(workspace)
    nodes: list[tuple[Cell, ...]] = []
    zones: list[tuple[Cell, ...]] = []
    for node in read_nodes(prog, problems):
        start = integer_cell(node, "node_start_pfn")
        size = integer_cell(node, "node_spanned_pages")
        place: tuple[Cell, ...] = (start, start, start)
        if isinstance(start, int) and isinstance(size, int):
            place = _place_cells(workspace, structs, start, size)
        nodes.append((integer_cell(node, "node_id"), size, int(node.value_()), *place))
        for zone in read_zones(node, problems):
            where = _place_cells(workspace, structs, zone.start_pfn, zone.spanned_pages)
            zones.append((zone.index, zone.name, zone.spanned_pages, *where, zone.node, zone.vaddr))
    tables = [NODES.table(nodes), NODE_ZONES.table(zones)]
    for shape, read in ((SECTIONS, _section_rows), (BLOCKS, _block_rows)):
        try:
            rows = read(workspace, problems)
        except UNREADABLE as exc:
            problems.append(problem(shape.name, exc))
            continue
        if rows:
            tables.append(shape.table(rows))
    return Answer("kmem", tuple(tables), tuple(problems))


def _section_rows(workspace: Workspace, problems: list[Problem]) -> list[tuple[Cell, ...]]:
    bits = _section_bits(workspace)
    rows: list[tuple[Cell, ...]] = []
    sections = _present_sections(workspace.prog)
    for number, section in guarded(sections, "memory sections", problems, key=lambda pair: pair[0]):
        rows.append(_section_row(workspace, number, section, bits))
    return rows


def _present_sections(prog: Program) -> Iterator[tuple[int, Object]]:
    """Give the sections that are there; where no symbol tells the last one, drgn 0.3 looks for one root too many."""
    if "__highest_present_section_nr" in prog:
        yield from for_each_present_section(prog)
        return
    each, table = int(prog["SECTIONS_PER_ROOT"].value_()), prog["mem_section"].read_()
    for number in range(int(prog["NR_SECTION_ROOTS"].value_())):
        root = table[number].read_()
        for place in range(each) if root else ():
            # SECTION_MARKED_PRESENT, its place ever since (29751f6991e8).
            if int(root[place].section_mem_map.value_()) & 1:
                yield number * each + place, (root + place).read_()


def _section_row(workspace: Workspace, number: int, section: Object, bits: list[tuple[str, int]]) -> tuple[Cell, ...]:
    word = int(section.section_mem_map.value_())
    return (
        number,
        int(section.value_()),
        cell(lambda: int(section_mem_map_addr(section).value_())),
        cell(lambda: int(section_decode_mem_map(section, number).value_())),
        "".join(letter for letter, bit in bits if word >> bit & 1),
        cell(lambda: int(section_nr_to_pfn(workspace.prog, number).value_())),
    )


def _section_bits(workspace: Workspace) -> list[tuple[str, int]]:
    """Give the bits of ``section_mem_map``: an enumeration since 6.2 (ed7802dd48f7), fixed before."""
    names = dict(enum_names(workspace.prog, "enum section_map_flags"))
    if not names:
        try:
            for name, _, _ in _SECTION_FLAGS:
                names[f"{name}_BIT"] = int(workspace.prog[f"{name}_BIT"].value_())
        except UNREADABLE:
            names = {}
    if names:
        return [(letter, names[f"{name}_BIT"]) for name, letter, _ in _SECTION_FLAGS if f"{name}_BIT" in names]
    return [(letter, bit) for _, letter, bit in _SECTION_FLAGS]


def _block_rows(workspace: Workspace, problems: list[Problem]) -> list[tuple[Cell, ...]]:
    prog = workspace.prog
    size = int(memory_block_size_bytes(prog).value_())
    blocks = guarded(for_each_memory_block(prog), "memory blocks", problems)
    return [_block_row(workspace, block, size) for block in blocks]


def _block_row(workspace: Workspace, block: Object, size_bytes: int) -> tuple[Cell, ...]:
    section = integer_cell(block, "start_section_nr")
    start: Cell = section
    end: Cell = section
    if isinstance(section, int):
        start = int(section_nr_to_pfn(workspace.prog, section).value_()) * workspace.memory.page_size_bytes
        end = start + size_bytes - 1
    state = cell(lambda: decode_memory_block_state(block).removeprefix("MEM_"))
    return (
        int(block.value_()),
        cell(lambda: _block_name(block)),
        start,
        end,
        integer_cell(block, "nid"),
        state,
        section,
    )


def _block_name(block: Object) -> str:
    name = block.dev.kobj.name.read_()
    return decode(name.string_()) if name else f"memory{int(block.dev.id.value_())}"


def show_counters(workspace: Workspace) -> Answer:
    """Answer ``kmem -V``."""
    problems: list[Problem] = []
    prog = workspace.prog
    tables: list[Table] = []
    for title, variables, enum in (
        ("VM_ZONE_STAT", ("vm_zone_stat",), "enum zone_stat_item"),
        ("VM_NODE_STAT", ("vm_node_stat",), "enum node_stat_item"),
        ("VM_NUMA_STAT", ("vm_numa_event", "vm_numa_stat"), "enum numa_stat_item"),
    ):
        variable = next((name for name in variables if _has(workspace, name)), None)
        if variable is None:
            continue
        array = prog[variable]
        rows = [(name, _counter(array, at)) for name, at in counter_names(prog, enum)]
        tables.append(COUNTERS.table(rows, title=f"  {title}:"))
    events = _event_rows(workspace, problems)
    if events:
        tables.append(COUNTERS.table(events, title="  VM_EVENT_STATES:"))
    return Answer("kmem", tuple(tables), tuple(problems))


def _has(workspace: Workspace, name: str) -> bool:
    try:
        workspace.prog[name]
    except LookupError:
        return False
    return True


def _event_rows(workspace: Workspace, problems: list[Problem]) -> list[tuple[Cell, ...]]:
    """Add the events of all CPUs that are online; those of others were added to one of them."""
    prog = workspace.prog
    names = [pair for pair in enum_names(prog, "enum vm_event_item") if pair[0] != "NR_VM_EVENT_ITEMS"]
    if not names or not _has(workspace, "vm_event_states"):
        return []
    sums = [0] * (max(at for _, at in names) + 1)
    for cpu in for_each_online_cpu(prog):
        try:
            values = per_cpu(prog["vm_event_states"], cpu).event.value_()
        except UNREADABLE as exc:
            problems.append(problem(f"events of CPU {cpu}", exc))
            return [(name, absent(exc)) for name, _ in names]
        sums = [total + value for total, value in zip(sums, values, strict=False)]
    return [(name, sums[at] if at < len(sums) else None) for name, at in names]
