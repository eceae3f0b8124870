"""``vtop`` and ``pte``: virtual addresses through the page tables, entry by entry."""

from __future__ import annotations

from drgn import Object
from drgn.helpers.linux.mm import vma_find

from postpanic.analysis.cells import absent, cell, problem
from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.commands.memory.page_rows import PAGES, page_row
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.values import find_tasks, parse_vaddr
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.filesystems.paths import Paths, file_path
from postpanic.analysis.memory.entries import DecodedEntry, SwapEntry, decode_page_entry, find_swap_layout
from postpanic.analysis.memory.page_structs import page_structs
from postpanic.analysis.memory.spaces import is_kernel_vaddr, process_memory
from postpanic.analysis.workspace import Workspace
from postpanic.errors import AbsentError, UsageError
from postpanic.findings.absent import Absent, Reason
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape, Table
from postpanic.kernel.memory import KernelMemory
from postpanic.kernel.paging.tables import EntryKind, Walk
from postpanic.units import VirtAddr

__all__ = ["pte", "vtop"]

_TRANSLATIONS = Shape(
    "translation",
    (
        Column("vaddr", Kind.HEX, title="VIRTUAL", help="The address as it was given.", align="<", width=16),
        Column("paddr", Kind.HEX, help="Physical address of the byte.", hidden=True),
        Column("physical", title="PHYSICAL", help="The same as text; (not mapped) where there is none.", width=16),
    ),
)
_WALK = Shape(
    "walk",
    (
        Column("level", help="Level of the page tables: PGD P4D PUD PMD PTE; PAGE for what they lead to."),
        Column("entry_paddr", Kind.HEX, help="Physical address of the entry."),
        Column("entry", Kind.HEX, prefix=" => ", help="The entry as it stands."),
        Column("page", Kind.HEX, help="Physical address of the page (level PAGE)."),
        Column("size", prefix="  (", suffix=")", help="Size of the page where it is not the base size."),
    ),
    Layout.LINES,
    "{level:>6}: {entry_paddr}{entry}{page}{size}",
)
_ENTRIES = Shape(
    "entries",
    (
        Column("entry", Kind.HEX, title="PTE", help="The page table entry."),
        Column("paddr", Kind.HEX, title="PHYSICAL", help="Physical address that it holds."),
        Column("flags", title="FLAGS", help="Its bits, by the kernel's names.", prefix="(", suffix=")"),
    ),
)
_SWAP_ENTRIES = Shape(
    "swap_entries",
    (
        Column("entry", Kind.HEX, title="PTE", help="The page table entry."),
        Column("swap", title="SWAP", help="Swap device or file, or what else the entry stands for."),
        Column("offset", Kind.NUMBER, title="OFFSET", help="Page of the swap device.", align="<"),
        Column("type", Kind.NUMBER, title="TYPE", help="Number of the swap device.", hidden=True),
    ),
)
_VMAS = Shape(
    "vma",
    (
        Column("vma", Kind.ADDRESS, title="VMA", help="``struct vm_area_struct *``.", align="^"),
        Column("start", Kind.HEX, title="START", help="First byte."),
        Column("end", Kind.HEX, title="END", help="Behind the last byte."),
        Column("flags", Kind.HEX, title="FLAGS", help="``vm_flags``."),
        Column("file", title="FILE", help="File that is mapped."),
    ),
)
_FILES = Shape(
    "file",
    (
        Column("kind", help="FILE or SWAP."),
        Column("path", help="File or swap device that has the page."),
        Column("offset", Kind.HEX, help="Byte of the file, or page of the swap device."),
    ),
    Layout.LINES,
    "{kind}: {path}  OFFSET: {offset}",
)
_SIZES = {1 << 16: "64KB", 1 << 21: "2MB", 1 << 25: "32MB", 1 << 29: "512MB", 1 << 30: "1GB", 1 << 39: "512GB"}


@command(
    "vtop",
    summary="virtual to physical",
    description=(
        "Translate virtual addresses, and show every entry of the page tables on the way, the bits of the last one, "
        "and the page. Of a user address the vm_area_struct is shown too, and where the page is that is not in "
        "memory: on a swap device, or in a file.\n\n"
        "Each line of the walk has the physical address of the entry, and the entry. Kernel addresses go through "
        "swapper_pg_dir, those of the user through the tables of the current task."
    ),
    options=(
        Option("-c", "task", "translate by the page tables of this task", value="PID|TASK"),
        Option("-u", "user", "the addresses are user addresses"),
        Option("-k", "kernel", "the addresses are kernel addresses"),
    ),
    operands=(Operand("address", "virtual address, or kernel symbol", many=True, required=True),),
    shapes=(_TRANSLATIONS, _WALK, _ENTRIES, _SWAP_ENTRIES, _VMAS, _FILES, PAGES),
    examples=(
        Example("vtop init_task", "a kernel address"),
        Example("vtop -c 1 400000", "an address of process 1"),
    ),
    per_task=True,
)
def vtop(workspace: Workspace, arguments: Arguments) -> Answer:
    """Translate virtual addresses."""
    if arguments.has("user") and arguments.has("kernel"):
        raise UsageError("vtop: -u and -k contradict each other")
    problems: list[Problem] = []
    chosen = arguments.get("task")
    task = find_tasks(workspace, [chosen], problems)[0] if chosen is not None else None
    tables: list[Table] = []
    for word in arguments.operands:
        vaddr = parse_vaddr(workspace, word)
        is_kernel = arguments.has("kernel") or (not arguments.has("user") and is_kernel_vaddr(vaddr))
        tables += _translate(workspace, vaddr, is_kernel=is_kernel, task=task, problems=problems)
    return Answer("vtop", tuple(tables), tuple(problems))


def _translate(
    workspace: Workspace, vaddr: int, *, is_kernel: bool, task: Object | None, problems: list[Problem]
) -> list[Table]:
    if is_kernel and (task is None or workspace.memory.machine != "x86_64"):
        # arm64 has one set of tables for the kernel, whatever the task.
        memory = workspace.memory
    else:
        try:
            memory = process_memory(workspace, workspace.task if task is None else task)
        except AbsentError:
            if not is_kernel:
                raise
            memory = workspace.memory
    walk = memory.walk(VirtAddr(vaddr))
    tables = [_TRANSLATIONS.table([(vaddr, *_physical_cells(walk))]), _WALK.table(_walk_rows(memory, walk))]
    decoded = _decode_last(workspace, memory, walk)
    if decoded is not None:
        tables.append(_entry_table(workspace, decoded))
    if not is_kernel:
        tables += _user_tables(workspace, workspace.task if task is None else task, vaddr, walk, decoded, problems)
    if walk.paddr is not None:
        try:
            size = workspace.memory.page_size_bytes
            tables.append(PAGES.table([page_row(page_structs(workspace), walk.paddr // size, size)]))
        except UNREADABLE as exc:
            problems.append(problem("struct page", exc))
    return tables


def _physical_cells(walk: Walk) -> tuple[Cell, str]:
    if walk.paddr is not None:
        return int(walk.paddr), f"{walk.paddr:x}"
    return Absent(Reason.UNREADABLE, f"not mapped: {walk.reason}"), "(not mapped)"


def _walk_rows(memory: KernelMemory, walk: Walk) -> list[tuple[Cell, ...]]:
    rows: list[tuple[Cell, ...]] = [(step.level, int(step.entry_paddr), step.entry, None, None) for step in walk.steps]
    if walk.steps and walk.steps[-1].kind is EntryKind.LEAF:
        last = walk.steps[-1]
        base_size = memory.page_size_bytes
        size = None if last.size_bytes == base_size else _SIZES.get(last.size_bytes, f"{last.size_bytes:#x} bytes")
        rows.append(("PAGE", None, None, int(last.paddr), size))
    return rows


def _decode_last(workspace: Workspace, memory: KernelMemory, walk: Walk) -> DecodedEntry | None:
    """Decode the entry at which the walk ended, unless it is empty or leads to a table that cannot be read."""
    if not walk.steps:
        return None
    last = walk.steps[-1]
    if last.kind is EntryKind.TABLE or not last.entry:
        return None
    names = [level.name for level in memory.tables.levels]
    return decode_page_entry(memory, last.entry, names.index(last.level), layout=find_swap_layout(workspace))


def _entry_table(workspace: Workspace, decoded: DecodedEntry) -> Table:
    if decoded.swap is not None:
        name, offset = _swap_cells(workspace, decoded.swap)
        return _SWAP_ENTRIES.table([(decoded.entry, name, offset, decoded.swap.type)])
    if decoded.paddr is None and not decoded.flags:
        return _ENTRIES.table([(decoded.entry, Absent(Reason.NOT_APPLICABLE), "no page present")])
    paddr: Cell = Absent(Reason.NOT_APPLICABLE) if decoded.paddr is None else decoded.paddr
    return _ENTRIES.table([(decoded.entry, paddr, "|".join(decoded.flags))])


def _swap_cells(workspace: Workspace, swap: SwapEntry) -> tuple[Cell, Cell]:
    """Name the device of a swap entry, and the page of it."""
    try:
        prog = workspace.prog
        count = int(prog["nr_swapfiles"].value_())
        info = prog["swap_info"][swap.type].read_() if swap.type < count else None
        if not info:
            return f"no swap device, the kernel's own entry of type {swap.type}", swap.offset
        return Paths(prog).of_path(file_path(info.swap_file)), swap.offset
    except UNREADABLE as exc:
        return absent(exc), swap.offset


def _user_tables(
    workspace: Workspace,
    task: Object,
    vaddr: int,
    walk: Walk,
    decoded: DecodedEntry | None,
    problems: list[Problem],
) -> list[Table]:
    try:
        vma = vma_find(task.mm, vaddr)
    except UNREADABLE as exc:
        problems.append(problem(f"the vm_area_struct of {vaddr:#x}", exc))
        return []
    if not vma:
        return []
    file = cell(lambda: Paths(workspace.prog).of_path(file_path(vma.vm_file.read_())) if vma.vm_file else None)
    row = (
        int(vma.value_()),
        cell(lambda: int(vma.vm_start.value_())),
        cell(lambda: int(vma.vm_end.value_())),
        cell(lambda: int(vma.vm_flags.value_())),
        file,
    )
    tables = [_VMAS.table([row])]
    if walk.paddr is not None:
        return tables
    if decoded is not None and decoded.swap is not None:
        name, offset = _swap_cells(workspace, decoded.swap)
        tables.append(_FILES.table([("SWAP", name, offset)]))
    elif file is not None:
        page_size = workspace.memory.page_size_bytes
        at = cell(
            lambda: (
                (vaddr // page_size * page_size - int(vma.vm_start.value_())) + int(vma.vm_pgoff.value_()) * page_size
            )
        )
        tables.append(_FILES.table([("FILE", file, at)]))
    return tables


@command(
    "pte",
    summary="translate a page table entry",
    description=(
        "Decode the contents of a page table entry: the physical address and the bits, or the swap device and the page "
        "of it. The entry is taken for one of the last level, that of base pages."
    ),
    operands=(Operand("contents", "page table entry, hexadecimal", many=True, required=True),),
    shapes=(_ENTRIES, _SWAP_ENTRIES),
    examples=(Example("pte d8e067", "an entry of a user page"),),
)
def pte(workspace: Workspace, arguments: Arguments) -> Answer:
    """Decode page table entries."""
    values = [parse_vaddr(workspace, word) for word in arguments.operands]
    layout = find_swap_layout(workspace)
    decoded = [decode_page_entry(workspace.memory, value, layout=layout) for value in values]
    tables = [_entry_table(workspace, one) for one in decoded]
    return Answer("pte", tuple(tables))
