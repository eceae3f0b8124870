"""``mach``: the machine, its memory map and its processors."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from drgn import Object, Program, TypeKind, sizeof
from drgn.helpers.linux.cpumask import for_each_online_cpu
from drgn.helpers.linux.percpu import per_cpu
from drgn.helpers.linux.pid import find_task

from postpanic.analysis.cells import absent, cell, problem
from postpanic.analysis.commands.arguments import Arguments, Option
from postpanic.analysis.commands.output_style import DECIMAL, HEXADECIMAL, choose_style
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.values import parse_cpus
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.devices.resources import read_resources
from postpanic.analysis.objects.braces import MEMBERS
from postpanic.analysis.objects.members import members_table
from postpanic.analysis.objects.style import Style
from postpanic.analysis.stacks.engine import open_stacks
from postpanic.analysis.workspace import Workspace
from postpanic.errors import FactAbsentError
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape, Table
from postpanic.kernel.paging.x86_64 import START_KERNEL_MAP, find_image_size_bytes
from postpanic.units import format_size

__all__ = ["mach"]

_WORD = (1 << 64) - 1
_BASES = 5
"""Columns of :data:`_MACHINE` from ``direct_map`` to ``modules``."""
_MACHINE = Shape(
    "machine",
    (
        Column("machine", title="MACHINE TYPE", help="As uname -m says it."),
        Column("memory", title="MEMORY SIZE", help="Of all ranges of System RAM."),
        Column("cpus", Kind.NUMBER, title="CPUS", help="Processors that are online."),
        Column("hypervisor", title="HYPERVISOR", help="What the kernel found itself to run on; none: not shown."),
        Column("speed", Kind.NUMBER, title="PROCESSOR SPEED", suffix=" Mhz", help="cpu_khz."),
        Column("hz", Kind.NUMBER, title="HZ", help="Ticks in a second, from the length of a tick."),
        Column("page_size", Kind.NUMBER, title="PAGE SIZE", help="Bytes."),
        Column("direct_map", Kind.ADDRESS, title="KERNEL VIRTUAL BASE", help="Start of the direct map."),
        Column("vmalloc", Kind.ADDRESS, title="KERNEL VMALLOC BASE", help="Start of vmalloc's area."),
        Column("vmemmap", Kind.ADDRESS, title="KERNEL VMEMMAP BASE", help="Start of the array of struct page."),
        Column("start_map", Kind.ADDRESS, title="KERNEL START MAP", help="Where the kernel image is mapped (x86-64)."),
        Column("modules", Kind.ADDRESS, title="KERNEL MODULES BASE", help="Start of the modules' area."),
        Column("stack_size", Kind.NUMBER, title="KERNEL STACK SIZE", help="THREAD_SIZE, bytes."),
    ),
    Layout.FIELDS,
)
_STACK = Shape(
    "cpu_stacks",
    (
        Column("cpu", Kind.NUMBER, title="CPU", help="Number."),
        Column("vaddr", Kind.ADDRESS, title="STACK", help="Lowest address."),
    ),
    Layout.LINES,
    "CPU {cpu}: {vaddr}",
    indent=17,
)
_STACKS = Shape(
    "stacks",
    (
        Column("kind", help="IRQ, DOUBLEFAULT, NMI, DEBUG, MCE, VC or VC2."),
        Column("size", Kind.NUMBER, help="Bytes."),
        Column("label", hidden=True, help="Heading in text."),
        Column("size_label", hidden=True, help="Heading in text."),
        Column("stacks", Kind.ROWS, shape=_STACK, help="Of each processor."),
    ),
    Layout.LINES,
    "{size_label:>23}: {size}\n{label:>23}:",
)
_MAP = Shape(
    "memory_map",
    (
        Column("start", Kind.ADDRESS, help="First address."),
        Column("end", Kind.ADDRESS, help="First address behind it."),
        Column("type", help="Its use: the firmware's word for it."),
    ),
    Layout.LINES,
    "{start} - {end}  {type}",
    title="      PHYSICAL ADDRESS RANGE         TYPE",
)
_PROCESSORS = Shape(
    "processors",
    (
        Column("cpu", Kind.NUMBER, prefix="CPU ", suffix=":", help="Number."),
        Column("structure", Kind.ROWS, shape=MEMBERS, help="Its cpuinfo structure."),
    ),
    Layout.LINES,
    "{cpu}",
    gap=True,
)


@command(
    "mach",
    summary="machine specific data",
    description="Show the machine: its memory, its processors, where parts of the kernel are mapped, its stacks.",
    options=(
        Option("-m", "memory_map", "show the map of physical memory that the firmware gave, else the kernel's own"),
        Option("-c", "processors", "show the cpuinfo structure of each processor"),
        HEXADECIMAL,
        DECIMAL,
        Option("-o", "opal", "the OPAL console log", refused="there is an OPAL log only on ppc64, not analysed here"),
    ),
    shapes=(_MACHINE, _STACKS, _MAP, _PROCESSORS),
    examples=(
        Example("mach", "the machine"),
        Example("mach -m", "its memory map"),
        Example("mach -cx", "its processors, in hexadecimal"),
    ),
)
def mach(workspace: Workspace, arguments: Arguments) -> Answer:
    """Show the machine."""
    problems: list[Problem] = []
    tables: list[Table] = []
    if arguments.has("memory_map"):
        tables.append(_memory_map(workspace, problems))
    if arguments.has("processors"):
        tables.append(_processors(workspace, choose_style(workspace, arguments)))
    if not tables:
        tables = [_MACHINE.table([_machine_row(workspace, problems)]), _STACKS.table(list(_stack_rows(workspace)))]
    return Answer("mach", tuple(tables), tuple(problems))


def _machine_row(workspace: Workspace, problems: list[Problem]) -> tuple[Cell, ...]:
    prog = workspace.prog
    is_x86 = workspace.memory.machine == "x86_64"
    is_arm64 = workspace.memory.machine == "aarch64"
    image = find_image_size_bytes(workspace.memory.vmcoreinfo) if is_x86 else 0
    return (
        workspace.memory.machine,
        cell(lambda: format_size(_memory_bytes(workspace, problems))),
        cell(lambda: len(list(for_each_online_cpu(prog)))),
        _hypervisor(prog),
        cell(lambda: round(int(prog["cpu_khz"].value_()) / 1000)) if is_x86 else None,
        cell(lambda: _ticks(prog)),
        workspace.memory.page_size_bytes,
        *(_arm64_bases(workspace) if is_arm64 else _x86_bases(prog, image) if is_x86 else (None,) * _BASES),
        cell(lambda: _stack_bytes(prog)),
    )


def _x86_bases(prog: Program, image_bytes: int) -> tuple[Cell, ...]:
    return (
        *(_number(prog, name) for name in ("page_offset_base", "vmalloc_base", "vmemmap_base")),
        int(START_KERNEL_MAP),
        int(START_KERNEL_MAP) + image_bytes,
    )


def _arm64_bases(workspace: Workspace) -> tuple[Cell, ...]:
    """
    Say where parts of the kernel are mapped, as VMCOREINFO has it (``arch_crash_save_vmcoreinfo()`` of arm64).

    The direct map begins with the kernel's half (``_PAGE_OFFSET(vabits_actual)``, since 5.4).
    """
    info = workspace.memory.vmcoreinfo
    t1sz = info.get_number("TCR_EL1_T1SZ")
    bits = 64 - t1sz if t1sz is not None else info.get_number("VA_BITS")

    def base(name: str) -> Cell:
        return cell(lambda: info.number(name) & _WORD)

    direct_map: Cell = _WORD + 1 - (1 << bits) if bits is not None else base("VA_BITS")
    return direct_map, base("VMALLOC_START"), base("VMEMMAP_START"), None, base("MODULES_VADDR")


def _number(prog: Program, name: str) -> Cell:
    return cell(lambda: int(prog[name].value_()))


def _memory_bytes(workspace: Workspace, problems: list[Problem]) -> int:
    resources = read_resources(workspace.prog["iomem_resource"], "iomem_resource", problems)
    return sum(entry.end + 1 - entry.start for entry in resources if entry.name == "System RAM" and not entry.depth)


def _hypervisor(prog: Program) -> Cell:
    """Name the hypervisor (``x86_hyper_type``, ``enum x86_hypervisor_type``); None: the kernel found none."""
    try:
        name = prog["x86_hyper_type"].format_(type_name=False)
    except UNREADABLE:
        return None
    return None if name.endswith("NATIVE") else name.removeprefix("X86_HYPER_").replace("_", " ")


def _ticks(prog: Program) -> int:
    """
    Compute ``HZ``.

    ``tick_nsec`` is the length of a tick; where it is no variable of its own, the
    clock of jiffies advances by one tick: ``mult >> shift`` nanoseconds.
    """
    try:
        tick_ns = int(prog["tick_nsec"].value_())
    except LookupError:
        clock = prog["clocksource_jiffies"]
        tick_ns = int(clock.mult.value_()) >> int(clock.shift.value_())
    return round(1_000_000_000 / tick_ns)


def _stack_bytes(prog: Program) -> int:
    """
    Find ``THREAD_SIZE``.

    Without a constant of that name, the pages of init's own stack tell
    (``CONFIG_VMAP_STACK``).
    """
    try:
        return int(prog["THREAD_SIZE"].value_())
    except LookupError:
        area = find_task(prog, 1).stack_vm_area
        return int(area.nr_pages.value_()) * int(prog["PAGE_SIZE"].value_())


def _stack_rows(workspace: Workspace) -> Iterator[tuple[Cell, ...]]:
    """Make rows of the stacks of interrupts and exceptions, of those that the machine has."""
    for kind, size, find in _stack_kinds(workspace):
        rows = []
        for cpu in parse_cpus(workspace, "all"):
            rows.append((cpu, _evaluate(find, cpu)))  # noqa: PERF401 - reads better than a nested call
        yield kind, size, f"{kind} STACKS", f"{kind} STACK SIZE", _STACK.table(rows)


def _evaluate(find: Callable[[int], int], cpu: int) -> Cell:
    return cell(lambda: find(cpu))


def _stack_kinds(workspace: Workspace) -> Iterator[tuple[str, int, Callable[[int], int]]]:
    prog = workspace.prog
    if workspace.memory.machine == "aarch64":
        yield from _arm64_stack_kinds(workspace)
        return
    try:
        size = sizeof(prog.type("struct irq_stack"))
        yield "IRQ", size, lambda cpu: _irq_stack(prog, cpu, size)
    except LookupError:
        pass
    try:
        stacks = prog.type("struct cea_exception_stacks")
    except LookupError:
        return
    for member in stacks.members or ():
        name = member.name or ""
        if name.endswith("_stack") and member.type.kind is TypeKind.ARRAY:
            yield (
                _EXCEPTIONS.get(name.removesuffix("_stack"), name.removesuffix("_stack")),
                sizeof(member.type),
                _exception_stack(prog, member.offset),
            )


def _arm64_stack_kinds(workspace: Workspace) -> Iterator[tuple[str, int, Callable[[int], int]]]:
    """Give the stacks of interrupts, and those that a CPU takes to when another has overflowed."""
    areas = open_stacks(workspace).areas
    for kind in dict.fromkeys(area.name for area in areas):
        found = {area.cpu: area for area in areas if area.name == kind}
        size = max(area.end - area.start for area in found.values())
        yield kind, size, lambda cpu, found=found: found[cpu].start  # type: ignore[misc]


_EXCEPTIONS = {"DF": "DOUBLEFAULT", "DB": "DEBUG"}
"""What crash calls them (``arch/x86/include/asm/cpu_entry_area.h`` has the rest)."""


def _irq_stack(prog: Program, cpu: int, size: int) -> int:
    """Find the lowest address of a CPU's stack for interrupts; the pointer is to its top, or to its uppermost word."""
    try:
        top = per_cpu(prog["hardirq_stack_ptr"], cpu)
    except KeyError:
        # From 6.2 to 6.14 it was in a structure with other hot variables.
        top = per_cpu(prog["pcpu_hot"], cpu).hardirq_stack_ptr
    value = int(top.value_())
    return value + (-value % 16) - size


def _exception_stack(prog: Program, offset: int) -> Callable[[int], int]:
    return lambda cpu: int(per_cpu(prog["cea_exception_stacks"], cpu).value_()) + offset


_E820 = {1: "RAM", 2: "RESERVED", 3: "ACPI", 4: "NVS", 5: "UNUSABLE", 7: "PMEM", 12: "PRAM", 128: "RESERVED_KERN"}
_E820[0xEFFFFFFF] = "SOFT_RESERVED"
_MAX_E820 = 4096


def _memory_map(workspace: Workspace, problems: list[Problem]) -> Table:
    """Make the table of the firmware's map (``struct e820_table``), or of the ranges that the kernel knows."""
    try:
        table = workspace.prog["e820_table"].read_()
        count = min(int(table.nr_entries.value_()), _MAX_E820)
        return _MAP.table([_e820_row(table.entries[number]) for number in range(count)])
    except LookupError:
        rows: list[tuple[Cell, ...]] = []
        try:
            root = workspace.prog["iomem_resource"]
            resources = read_resources(root, "iomem_resource", problems)
            rows += [(entry.start, entry.end + 1, entry.name) for entry in resources if not entry.depth]
        except UNREADABLE as exc:
            problems.append(problem("memory map", exc))
        return _MAP.table(rows)
    except UNREADABLE as exc:
        problems.append(problem("memory map", exc))
        return _MAP.table()


def _e820_row(entry: Object) -> tuple[Cell, ...]:
    try:
        start, kind = int(entry.addr.value_()), int(entry.type.value_())
        return start, start + int(entry.size.value_()), f"E820_{_E820.get(kind, kind)}"
    except UNREADABLE as exc:
        return absent(exc), absent(exc), None


def _processors(workspace: Workspace, style: Style) -> Table:
    """
    Make the table of processors.

    Raises
    ------
    FactAbsentError
        If the kernel's structure of a processor is not known.
    """
    prog = workspace.prog
    variable = next((name for name in ("cpu_info", "cpu_data") if name in prog), None)
    if variable is None:
        raise FactAbsentError("mach -c: neither cpu_info nor cpu_data is known")
    rows: list[tuple[Cell, ...]] = []
    for cpu in parse_cpus(workspace, "all"):
        try:
            rows.append((cpu, members_table([per_cpu(prog[variable], cpu)], style)))
        except UNREADABLE as exc:
            rows.append((cpu, absent(exc)))
    return _PROCESSORS.table(rows)
