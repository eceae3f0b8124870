"""``vm``: the memory of a process, area by area and page by page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from drgn import Object

from postpanic.analysis.cells import cell, problem
from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.commands.files import shared_paths
from postpanic.analysis.commands.output_style import DECIMAL, HEXADECIMAL, choose_style
from postpanic.analysis.commands.per_task import TASK_COLUMNS, TASK_LINE, task_rows
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.values import find_tasks, parse_vaddr
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.memory.entries import find_swap_layout
from postpanic.analysis.objects.braces import MEMBERS
from postpanic.analysis.objects.members import members_table
from postpanic.analysis.objects.style import Style
from postpanic.analysis.processes.areas import AreaReader, flag_names, read_areas
from postpanic.analysis.processes.user_pages import PagePlace, SwapDevices, UserPage, process_tables, walk_pages
from postpanic.analysis.tasks import read_all_facts, read_memory_use
from postpanic.analysis.workspace import Workspace
from postpanic.errors import UsageError
from postpanic.findings.absent import Reason
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape, Table
from postpanic.kernel.memory import KernelMemory
from postpanic.kernel.paging.tables import PageTables

__all__ = ["vm"]

_MAX_PAGES = 1 << 20
"""Of one area that are listed: 4 GiB of them."""

_PAGES = Shape(
    "pages",
    (
        Column("vaddr", Kind.HEX, help="Virtual address of the page."),
        Column("paddr", Kind.HEX, help="Physical address, where it is in memory."),
        Column("swap", prefix="SWAP: ", help="Swap device or file that holds it."),
        Column("swap_offset", Kind.NUMBER, prefix="  OFFSET: ", help="Where on the swap device, in pages."),
        Column("file", prefix="FILE: ", help="File that it would be read from."),
        Column("file_offset", Kind.HEX, prefix="  OFFSET: ", help="Where in the file, in bytes."),
        Column("state", prefix="(", suffix=")", help="What it is otherwise: not mapped, or why that is not known."),
    ),
    Layout.LINES,
    "{vaddr:<16}  {paddr:>12}{swap}{swap_offset}{file}{file_offset}{state}",
    title="VIRTUAL           PHYSICAL",
)
_AREAS = Shape(
    "areas",
    (
        Column("vma", Kind.ADDRESS, title="VMA", help="struct vm_area_struct *.", align="^"),
        Column("start", Kind.HEX, title="START", help="First address.", width=12),
        Column("end", Kind.HEX, title="END", help="First address behind it.", width=12),
        Column("flags", Kind.HEX, title="FLAGS", help="vm_flags; vm -f names them."),
        Column("file", title="FILE", help="As in /proc/PID/maps: path of the file, [heap], [stack] or another name."),
        Column("pages", Kind.ROWS, shape=_PAGES, help="Its pages (-p)."),
    ),
)
_MEMORY_COLUMNS = (
    Column("mm", Kind.ADDRESS, title="MM", help="struct mm_struct *; 0 for a kernel thread."),
    Column("pgd", Kind.ADDRESS, title="PGD", help="mm->pgd."),
    Column("rss", Kind.NUMBER, title="RSS", suffix="k", help="Resident set size, KiB."),
    Column("total_vm", Kind.NUMBER, title="TOTAL_VM", suffix="k", help="Size of all areas, KiB."),
)
_TASKS = Shape(
    "tasks",
    (*TASK_COLUMNS, *_MEMORY_COLUMNS, Column("areas", Kind.ROWS, shape=_AREAS, help="Its memory areas.")),
    Layout.LINES,
    f"{TASK_LINE}\n"
    "       MM               PGD            RSS    TOTAL_VM\n"
    "{mm}  {pgd}  {rss:>7}  {total_vm:>8}",
    gap=True,
)
_TASK_AREA = Shape(
    "task_area",
    (*TASK_COLUMNS, Column("areas", Kind.ROWS, shape=_AREAS, help="The area of -P.")),
    Layout.LINES,
    TASK_LINE,
    gap=True,
)
_TASK_STRUCTURES = Shape(
    "task_structures",
    (*TASK_COLUMNS, Column("structures", Kind.ROWS, shape=MEMBERS, help="The structures of -m or -v.")),
    Layout.LINES,
    TASK_LINE,
    gap=True,
)
_FLAGS = Shape(
    "flags",
    (
        Column("value", Kind.HEX, help="The flags."),
        Column("names", help="Their names, joined by |, without VM_."),
    ),
    Layout.LINES,
    "{value}: ({names})",
)


@command(
    "vm",
    summary="virtual memory",
    description=(
        "Show the memory areas of tasks; with -p where each page of them is. An area without a file is named as in "
        "/proc/PID/maps, where crash names none.\n\n"
        "The page tables are those in the dump: a page may be mapped that the dump does not hold."
    ),
    operands=(Operand("task", "PID, task_struct address, command name or 'regex'", many=True),),
    options=(
        Option("-p", "pages", "show where each page is: physical address, swap device and offset, or file and offset"),
        Option("-P", "area", "show where each page of one area is", "VMA"),
        Option("-M", "mm", "take this mm_struct for that of a task that has given up its own", "MM"),
        Option("-R", "reference", "show only what has this number (address, flags) or part of a file name", "REF"),
        Option("-m", "mm_struct", "show the mm_struct"),
        Option("-v", "vma_structs", "show all vm_area_structs"),
        HEXADECIMAL,
        DECIMAL,
        Option("-f", "flags", "name the bits of a vm_flags value", "FLAGS"),
    ),
    shapes=(_TASKS, _TASK_AREA, _TASK_STRUCTURES, _FLAGS),
    examples=(
        Example("vm 386", "the memory areas of PID 386"),
        Example("vm -p 386", "and where each of their pages is"),
        Example("vm -R 40121000", "the area and the page of an address"),
        Example("foreach vm -R libc", "all tasks that map a file"),
        Example("vm -f 3875", "names of flags"),
    ),
    per_task=True,
)
def vm(workspace: Workspace, arguments: Arguments) -> Answer:
    """Show the memory of processes."""
    flags = arguments.get("flags")
    if flags is not None:
        value = _parse_hexadecimal(flags)
        return Answer("vm", (_FLAGS.table([(value, "|".join(flag_names(workspace.prog, value)))]),))
    problems: list[Problem] = []
    request = _Request.parse(workspace, arguments)
    tasks = find_tasks(workspace, arguments.operands, problems)
    rows = [row for task in tasks if (row := _task_row(workspace, task, request, problems)) is not None]
    return Answer("vm", (request.shape.table(rows),), tuple(problems))


def _parse_hexadecimal(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        raise UsageError(f"vm -f: {text!r} is not a hexadecimal number") from None


@dataclass(frozen=True, slots=True)
class _Request:
    """What is asked of each task."""

    shape: Shape
    style: Style
    structures: str = ""
    pages: bool = False
    area: int | None = None
    mm: int | None = None
    text: str | None = None
    number: int | None = None

    @classmethod
    def parse(cls, workspace: Workspace, arguments: Arguments) -> _Request:
        """
        Read the options.

        Raises
        ------
        UsageError
            If two of them exclude each other.
        """
        chosen = [name for name in ("pages", "area", "reference", "mm_struct", "vma_structs") if arguments.has(name)]
        if len(chosen) > 1:
            raise UsageError("vm: only one of -p, -P, -R, -m and -v can be given")
        structures = chosen[0] if chosen and chosen[0] in {"mm_struct", "vma_structs"} else ""
        area, mm, text = (arguments.get(name) for name in ("area", "mm", "reference"))
        return cls(
            _TASK_STRUCTURES if structures else _TASK_AREA if area else _TASKS,
            choose_style(workspace, arguments),
            structures,
            arguments.has("pages"),
            parse_vaddr(workspace, area) if area else None,
            parse_vaddr(workspace, mm) if mm else None,
            text,
            _number_or_none(text),
        )


def _number_or_none(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return int(text, 16)
    except ValueError:
        return None


def _task_row(
    workspace: Workspace, task: Object, request: _Request, problems: list[Problem]
) -> tuple[Cell, ...] | None:
    """Make the row of one task; None where nothing of it is what is looked for."""
    head = task_rows(workspace, [task])[0]
    try:
        mm = task.mm.read_()
        if not mm and request.mm is not None:
            mm = Object(workspace.prog, "struct mm_struct *", request.mm)
    except UNREADABLE as exc:
        problems.append(problem(f"memory of the task at {task.value_():#x}", exc))
        return None
    if request.structures:
        return (*head, _structures(mm, request, problems)) if mm else (*head, None)
    reader = _Reader(workspace, mm, problems)
    if request.area is not None:
        row = reader.row(Object(workspace.prog, "struct vm_area_struct *", request.area), with_pages=True)
        return (*head, _AREAS.table([row]))
    if not mm:
        return (*head, 0, 0, 0, 0, None) if request.text is None else None
    if request.text is None and not request.pages:
        return (*head, *_memory_cells(workspace, mm), _areas_table(workspace, mm, reader))
    rows = list(reader.find(request.text, request.number) if request.text else reader.rows(with_pages=True))
    if request.text is not None and not rows:
        return None
    return (*head, *_memory_cells(workspace, mm), _AREAS.table(rows))


def _areas_table(workspace: Workspace, mm: Object, reader: _Reader) -> Table:
    """Make the table of all areas; the threads of a process, which come one after the other, share it."""
    last: dict[int, Table] = workspace.once("areas of the last process", dict)
    vaddr = int(mm.value_())
    if vaddr not in last:
        table = _AREAS.table(list(reader.rows(with_pages=False)))
        last.clear()
        last[vaddr] = table
    return last[vaddr]


def _memory_cells(workspace: Workspace, mm: Object) -> tuple[Cell, ...]:
    page_kib = workspace.memory.page_size_bytes >> 10
    return (
        int(mm.value_()),
        cell(lambda: int(mm.pgd.value_())),
        cell(lambda: _resident_pages(workspace, int(mm.value_())) * page_kib),
        cell(lambda: int(mm.total_vm.value_()) * page_kib),
    )


def _resident_pages(workspace: Workspace, mm: int) -> int:
    # Before 6.2 each thread has a part of the numbers, so all tasks are asked, once.
    use = workspace.once("memory use", lambda: read_memory_use(workspace, read_all_facts(workspace, [])))
    return use[mm].rss


def _structures(mm: Object, request: _Request, problems: list[Problem]) -> Table:
    if request.structures == "mm_struct":
        return members_table([mm[0]], request.style)
    return members_table((area[0] for area in read_areas(mm, problems)), request.style)


class _Reader:
    """Reads the areas of one process."""

    def __init__(self, workspace: Workspace, mm: Object, problems: list[Problem]) -> None:
        self._workspace = workspace
        self._mm = mm
        self._problems = problems
        self._areas = AreaReader(mm, shared_paths(workspace))
        self._tables: PageTables | None = None
        self._swap = workspace.once("swap devices", lambda: _swap_devices(workspace))

    def rows(self, *, with_pages: bool) -> Iterator[tuple[Cell, ...]]:
        """Make a row for each area."""
        for area in read_areas(self._mm, self._problems):
            yield self.row(area, with_pages=with_pages)

    def row(self, area: Object, *, with_pages: bool) -> tuple[Cell, ...]:
        """Make the row of one area."""
        cells = self._cells(area)
        return (*cells, self._pages_table(area, cells[-1]) if with_pages else None)

    def find(self, text: str | None, number: int | None) -> Iterator[tuple[Cell, ...]]:
        """Make rows of the areas and pages that have a number or a part of a file's name."""
        for area in read_areas(self._mm, self._problems):
            cells = self._cells(area)
            vma, start, end, flags, file = cells
            if number in {vma, flags, start, end} or (text and isinstance(file, str) and text in file):
                yield (*cells, None)
                continue
            if number is None or not isinstance(start, int) or not isinstance(end, int):
                continue
            table = self._pages_table(area, file, number)
            if table is not None and table.rows:
                yield (*cells, table)

    def _cells(self, area: Object) -> tuple[Cell, ...]:
        found = self._areas.read(area)
        return int(area.value_()), found.start, found.end, found.flags, found.name

    def _pages_table(self, area: Object, file: Cell, number: int | None = None) -> Table | None:
        """Make the table of an area's pages; with a number, of the one that has it as an address."""
        memory = self._workspace.memory
        try:
            if self._tables is None:
                self._tables = process_tables(memory, self._mm or area.vm_mm.read_())
            file_start = int(area.vm_pgoff.value_()) * memory.page_size_bytes
            start = int(area.vm_start.value_())
            end = int(area.vm_end.value_())
            if not start < end <= _user_limit(memory, self._tables):
                what = f"area {area.value_():#x}: {start:#x} to {end:#x} is not a range of user addresses"
                self._problems.append(Problem(what, Reason.DAMAGED))
                return None
            count = (end - start) // memory.page_size_bytes
            if count > _MAX_PAGES:
                what = f"area {area.value_():#x}: the first {_MAX_PAGES} of its {count} pages"
                self._problems.append(Problem(what, Reason.NOT_APPLICABLE))
            wanted = None if number is None else number & ~(memory.page_size_bytes - 1)
            name = file if area.vm_file else None
            rows = [
                self._page_cells(page, name, file_start + page.vaddr - start)
                for page in walk_pages(memory, self._tables, area, _MAX_PAGES, find_swap_layout(self._workspace))
                if wanted is None or wanted in {page.vaddr, page.paddr}
            ]
        except UNREADABLE as exc:
            self._problems.append(problem(f"pages of the area at {area.value_():#x}", exc))
            return None
        return _PAGES.table(rows)

    def _page_cells(self, page: UserPage, file: Cell, file_offset: int) -> tuple[Cell, ...]:
        match page.place:
            case PagePlace.MEMORY:
                return (page.vaddr, page.paddr, None, None, None, None, None)
            case PagePlace.FILE:
                return (page.vaddr, None, None, None, file, file_offset, None)
            case PagePlace.SWAP:
                device = self._swap.name(page.device or 0) if self._swap is not None else None
                if device is not None:
                    return (page.vaddr, None, device, page.offset, None, None, None)
                state = f"neither mapped nor swapped out: entry of type {page.device}, {page.offset:#x}"
                return (page.vaddr, None, None, None, None, None, state)
            case PagePlace.SPECIAL:
                return (page.vaddr, None, None, None, None, None, f"neither mapped nor empty: {page.detail}")
            case PagePlace.UNKNOWN:
                return (page.vaddr, None, None, None, None, None, f"unknown: {page.detail}")
            case _:
                return (page.vaddr, None, None, None, None, None, "not mapped")


def _user_limit(memory: KernelMemory, tables: PageTables) -> int:
    """Return the first address behind those of processes: the upper half is the kernel's on x86-64."""
    return 1 << (tables.va_bits - 1 if memory.machine == "x86_64" else tables.va_bits)


def _swap_devices(workspace: Workspace) -> SwapDevices | None:
    try:
        return SwapDevices(shared_paths(workspace), workspace.prog["swap_info"])
    except UNREADABLE:
        return None
