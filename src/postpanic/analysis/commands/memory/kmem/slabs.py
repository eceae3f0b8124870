"""``kmem -s``, ``-S``, ``-r``: slab caches, their slabs, and the objects in these."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from drgn import Object

from postpanic.analysis.cells import problem
from postpanic.analysis.commands.arguments import Arguments
from postpanic.analysis.commands.values import parse_cpus, parse_vaddr
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.memory.direct_map import direct_vaddr
from postpanic.analysis.memory.page_structs import page_structs
from postpanic.analysis.memory.slabs.allocator import slab_allocator
from postpanic.analysis.memory.slabs.objects import (
    ObjectInfo,
    Slab,
    SlabObject,
    find_object,
    find_slab,
    read_free_objects,
    read_objects,
)
from postpanic.analysis.memory.slabs.pages import find_all_slabs
from postpanic.analysis.memory.slabs.usage import CacheUsage, read_caches, read_usage
from postpanic.analysis.memory.slabs.values import Cache, CpuSlabs, SlabHead
from postpanic.analysis.memory.spaces import is_kernel_vaddr
from postpanic.analysis.memory.zones import find_node
from postpanic.analysis.workspace import Workspace
from postpanic.errors import FactAbsentError, PostpanicError, UsageError
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape, Table

__all__ = ["CACHES", "DETAILS", "NAMES", "object_tables", "show_caches"]

_CACHE_COLUMNS = (
    Column("cache", Kind.ADDRESS, title="CACHE", help="``struct kmem_cache *``."),
    Column("object_bytes", Kind.NUMBER, title="OBJSIZE", help="Bytes of an object (``object_size``)."),
    Column("allocated", Kind.NUMBER, title="ALLOCATED", help="Objects in use."),
    Column("total", Kind.NUMBER, title="TOTAL", help="Objects that all slabs have room for."),
    Column("slabs", Kind.NUMBER, title="SLABS", help="Slabs."),
    Column("slab_kib", Kind.NUMBER, title="SSIZE", help="Size of a slab, KiB.", suffix="k"),
    Column("name", title="NAME", help="Name of the cache."),
)
_CACHE_LINE = "{cache} {object_bytes:>8}  {allocated:>9} {total:>9} {slabs:>6}  {slab_kib:>5}  {name}"
_HEADING = "CACHE             OBJSIZE  ALLOCATED     TOTAL  SLABS  SSIZE  NAME"
CACHES = Shape("caches", _CACHE_COLUMNS, Layout.LINES, _CACHE_LINE, title=_HEADING)
NAMES = Shape(
    "cache_names",
    (
        Column("cache", Kind.ADDRESS, help="``struct kmem_cache *``."),
        Column("name", help="Name of the cache."),
    ),
    Layout.LINES,
    "{cache} {name}",
)
_OBJECTS = Shape(
    "objects",
    (
        Column("object", Kind.ADDRESS, help="Address of the object."),
        Column("allocated", Kind.BOOL, help="Whether it is in use."),
        Column("keeper", prefix="  (", suffix=")", help="Who keeps a free object that is not in its slab's list."),
        Column("shown", help="The address, in brackets if it is in use."),
    ),
    Layout.LINES,
    "  {shown}{keeper}",
)
_SLABS = Shape(
    "slabs",
    (
        Column("slab", Kind.ADDRESS, title="SLAB", help="``struct slab *``, the first ``struct page``."),
        Column("memory", Kind.ADDRESS, title="MEMORY", help="First byte of the slab."),
        Column("node", Kind.NUMBER, title="NODE", help="Memory node."),
        Column("total", Kind.NUMBER, title="TOTAL", help="Objects."),
        Column("allocated", Kind.NUMBER, title="ALLOCATED", help="Objects in use."),
        Column("free", Kind.NUMBER, title="FREE", help="Objects that are free."),
        Column("objects", Kind.ROWS, shape=_OBJECTS, help="The objects by their addresses."),
    ),
    Layout.LINES,
    "  SLAB              MEMORY            NODE  TOTAL  ALLOCATED  FREE\n"
    "  {slab}  {memory}  {node:>4}  {total:>5}  {allocated:>9}  {free:>4}\n  FREE / [ALLOCATED]",
)
_PLACES = Shape(
    "slab_places",
    (
        Column("place", help="CPU or node, and which of its lists."),
        Column("cpu", Kind.NUMBER, help="Number of the CPU."),
        Column("node", Kind.NUMBER, help="Number of the memory node."),
        Column("text", help="What is said of the list."),
        Column("slabs", Kind.ROWS, shape=_SLABS, help="The slabs of the list."),
    ),
    Layout.LINES,
    "{text}",
)
DETAILS = Shape(
    "cache_details",
    (*_CACHE_COLUMNS, Column("places", Kind.ROWS, shape=_PLACES, help="Where its slabs are.")),
    Layout.LINES,
    f"{_HEADING}\n{_CACHE_LINE}",
    gap=True,
)


def show_caches(workspace: Workspace, arguments: Arguments) -> Answer:
    """Answer ``kmem -s``, ``-S`` and ``-r``."""
    problems: list[Problem] = []
    caches = read_caches(workspace, problems)
    words = arguments.operands
    if words == ("list",):
        return Answer("kmem", (NAMES.table([(cache.vaddr, cache.name) for cache in caches]),), tuple(problems))
    ignored = {name for value in arguments.all("ignore") for name in value.split(",")}
    chosen, tables = _choose(workspace, arguments, caches, problems)
    chosen = [cache for cache in chosen if cache.name not in ignored]
    if arguments.has("slab_objects"):
        cpus = arguments.get("slab_objects")
        numbers = set(parse_cpus(workspace, cpus)) if cpus else None
        details = _Details(workspace, numbers)
        rows = [details.row(cache, problems) for cache in chosen]
        tables += [DETAILS.table(rows)] if rows else []
    elif arguments.has("accumulated"):
        tables.append(CACHES.table(_accumulate(workspace, chosen, problems)))
    elif chosen or not tables:
        tables.append(CACHES.table([_cache_row(workspace, cache, problems) for cache in chosen]))
    return Answer("kmem", tuple(tables), tuple(problems))


def _choose(
    workspace: Workspace, arguments: Arguments, caches: Sequence[Cache], problems: list[Problem]
) -> tuple[list[Cache], list[Table]]:
    """Choose caches by the words; of an address, show the slab that it is in."""
    if not arguments.operands:
        return list(caches), []
    chosen: list[Cache] = []
    tables: list[Table] = []
    for word in arguments.operands:
        named = [cache for cache in caches if cache.name == word]
        if named:
            chosen += named
            continue
        try:
            vaddr = parse_vaddr(workspace, word)
        except PostpanicError:
            raise UsageError(f"no slab cache {word}", hint="kmem -s list names them") from None
        by_address = [cache for cache in caches if cache.vaddr == vaddr]
        if by_address and not arguments.has("slab_objects"):
            chosen += by_address
            continue
        found = object_tables(workspace, vaddr, problems, whole=arguments.has("slab_objects"))
        if not found:
            raise FactAbsentError(f"{word} is neither a slab cache nor in one")
        tables += found
    return chosen, tables


def _cells(usage: CacheUsage, page_size_bytes: int) -> tuple[Cell, ...]:
    cache = usage.cache
    slab_kib = (page_size_bytes << cache.order) // 1024
    return (cache.vaddr, cache.object_bytes, usage.allocated, usage.total, usage.slabs, slab_kib, cache.name)


def _cache_row(workspace: Workspace, cache: Cache, problems: list[Problem]) -> tuple[Cell, ...]:
    return _cells(read_usage(workspace, cache, problems), workspace.memory.page_size_bytes)


def _accumulate(workspace: Workspace, caches: Iterable[Cache], problems: list[Problem]) -> list[tuple[Cell, ...]]:
    """Add the caches of memory cgroups to their root caches (up to 5.8; 9855609bde03 made them one)."""
    prog = workspace.prog
    if not prog.type("struct kmem_cache").has_member("memcg_params"):
        raise FactAbsentError("kmem -r: this kernel has no slab caches of memory cgroups, kmem -s shows all there is")
    sums: dict[int, list[int]] = {}
    rows: dict[int, tuple[Cell, ...]] = {}
    for cache in caches:
        usage = read_usage(workspace, cache, problems)
        try:
            root = int(Object(prog, "struct kmem_cache *", cache.vaddr).memcg_params.root_cache.value_())
        except UNREADABLE as exc:
            problems.append(problem(f"{cache.name}: its root cache", exc))
            root = 0
        key = root or cache.vaddr
        total = sums.setdefault(key, [0, 0, 0])
        for place, number in enumerate((usage.allocated, usage.total, usage.slabs)):
            total[place] += number
        if not root:
            rows[key] = _cells(usage, workspace.memory.page_size_bytes)
    return [(*row[:2], *sums[key], *row[5:]) for key, row in rows.items()]


def _object_rows(objects: Sequence[SlabObject]) -> list[tuple[Cell, ...]]:
    return [
        (one.vaddr, one.allocated, one.keeper, f"[{one.vaddr:016x}]" if one.allocated else f" {one.vaddr:016x}")
        for one in objects
    ]


def object_tables(workspace: Workspace, vaddr: int, problems: list[Problem], *, whole: bool = False) -> list[Table]:
    """Show the cache, the slab and the object that an address is in; *whole*: all objects of the slab."""
    if not is_kernel_vaddr(vaddr):
        return []
    slab = find_slab(workspace, vaddr)
    if slab is None:
        return []
    allocator = slab_allocator(workspace)
    info: ObjectInfo | None = find_object(workspace, vaddr, problems)
    kept = read_free_objects(allocator, slab.cache, [])
    objects = read_objects(allocator, slab, kept, problems)
    shown = objects if whole else [info.object] if info is not None else []
    table = _SLABS.table([_slab_row(workspace, slab, objects, shown)])
    usage = read_usage(workspace, slab.cache, problems)
    places = _PLACES.table([(None, None, None, None, table)])
    # The row of the place has no text of its own: the slab stands right below its cache.
    bare = Shape(_PLACES.name, _PLACES.columns, Layout.LINES, "")
    return [DETAILS.table([(*_cells(usage, workspace.memory.page_size_bytes), Table(bare, places.rows))])]


def _slab_row(
    workspace: Workspace, slab: Slab, objects: Sequence[SlabObject], shown: Sequence[SlabObject]
) -> tuple[Cell, ...]:
    allocated = sum(one.allocated for one in objects)
    total = len(objects)
    node = find_node(workspace, slab.pfn)
    return (
        slab.head.vaddr, slab.vaddr, node, total, allocated, total - allocated, _OBJECTS.table(_object_rows(shown)),
    )  # fmt: skip


@dataclass
class _Details:
    """Makes the rows of ``kmem -S``."""

    workspace: Workspace
    cpus: set[int] | None
    """Whose slabs are shown; None: of all, and those of the nodes."""

    def row(self, cache: Cache, problems: list[Problem]) -> tuple[Cell, ...]:
        """Make the row of one cache, with everything below it."""
        usage = read_usage(self.workspace, cache, problems)
        allocator = slab_allocator(self.workspace)
        kept = read_free_objects(allocator, cache, [])
        places: list[tuple[Cell, ...]] = []
        listed: set[int] = set()
        for cpu in usage.cpus:
            if self.cpus is not None and cpu.cpu not in self.cpus:
                continue
            places += self._cpu_places(cache, cpu, kept, problems)
        for one in usage.cpus:
            listed |= {slab.vaddr for slab in (*one.partial, *([one.slab] if one.slab is not None else ()))}
        for node in usage.nodes:
            per_cpu = sum(slab is not None for slab in (cpu.slab for cpu in usage.cpus))
            text = (
                "KMEM_CACHE_NODE   NODE  SLABS  PARTIAL  PER-CPU\n"
                f"{node.vaddr:016x} {node.node:>5}  {node.slab_count or 0:>5}  {node.partial_count:>7}  {per_cpu:>7}"
            )
            places.append(("node", None, node.node, text, None))
            listed |= {slab.vaddr for slab in node.partial}
            partial = self._table(cache, node.partial, kept, problems)
            places.append(self._place(f"NODE {node.node} PARTIAL:", partial, node=node.node))
        full = self._full(cache, listed)
        places.append(self._place("FULL:", self._table(cache, full, kept, problems)))
        return (*_cells(usage, self.workspace.memory.page_size_bytes), _PLACES.table(places))

    def _cpu_places(
        self, cache: Cache, cpu: CpuSlabs, kept: dict[int, str], problems: list[Problem]
    ) -> list[tuple[Cell, ...]]:
        number = cpu.cpu
        places: list[tuple[Cell, ...]] = []
        kind = "KMEM_CACHE_CPU" if cache.cpu_slab else "PERCPU_SHEAVES"
        places.append(("cpu", number, None, f"CPU {number} {kind}:\n  {cpu.vaddr:016x}", None))
        if cache.cpu_slab:
            slabs = [cpu.slab] if cpu.slab is not None else []
            table = self._table(cache, slabs, kept, problems)
            places.append(self._place(f"CPU {number} SLAB:", table, cpu=number))
            table = self._table(cache, cpu.partial, kept, problems)
            places.append(self._place(f"CPU {number} PARTIAL:", table, cpu=number))
        for sheaf in cpu.sheaves:
            text = f"CPU {number} SHEAF: {sheaf.vaddr:016x}  {len(sheaf.objects)} free objects"
            places.append(("cpu sheaf", number, None, text, None))
        return places

    @staticmethod
    def _place(title: str, table: Table, *, cpu: int | None = None, node: int | None = None) -> tuple[Cell, ...]:
        place = title.rstrip(":").lower().replace(f" {cpu if cpu is not None else node} ", " ")
        return (place, cpu, node, title if table.rows else f"{title}\n  (empty)", table)

    def _table(self, cache: Cache, heads: Iterable[SlabHead], kept: dict[int, str], problems: list[Problem]) -> Table:
        allocator = slab_allocator(self.workspace)
        rows = []
        for head in heads:
            slab = self._slab(cache, head)
            if slab is None:
                continue
            objects = read_objects(allocator, slab, kept, problems)
            rows.append(_slab_row(self.workspace, slab, objects, objects))
        return _SLABS.table(rows)

    def _slab(self, cache: Cache, head: SlabHead) -> Slab | None:
        pfn = page_structs(self.workspace).pfn_of(head.vaddr)
        if pfn is None:
            return None
        vaddr = direct_vaddr(self.workspace, pfn * self.workspace.memory.page_size_bytes)
        return Slab(cache, head, pfn, vaddr)

    def _full(self, cache: Cache, listed: set[int]) -> list[SlabHead]:
        """Find the slabs that are on no list, by their struct page: those without a free object."""
        structs, allocator = page_structs(self.workspace), slab_allocator(self.workspace)
        found = find_all_slabs(self.workspace, structs, allocator).get(cache.vaddr)
        if found is None:
            return []
        pages = [structs.vaddr_of(int(pfn)) for pfn in found.pfns.tolist()]
        return [allocator.head(page) for page in pages if page is not None and page not in listed]
