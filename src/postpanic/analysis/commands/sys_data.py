"""``sys``: what is known of the whole system."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator

from drgn import Program

from postpanic.analysis.banner import read_banner
from postpanic.analysis.cells import absent, decode, problem
from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.taints import TAINTS, decode_taints
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.workspace import Workspace
from postpanic.errors import CorruptError, FactAbsentError, UsageError
from postpanic.findings.absent import Absent, Reason
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape

__all__ = ["sys_command"]

_KEYS = (
    *("KERNEL", "DEBUG INFO", "DUMPFILE", "CPUS", "DATE", "UPTIME", "LOAD AVERAGE", "TASKS", "NODENAME"),
    *("RELEASE", "VERSION", "MACHINE", "MEMORY", "PANIC"),
)
_SYSTEM = Shape(
    "system",
    tuple(Column(key.lower().replace(" ", "_"), title=f"{key:>12}", help="As crash shows it.") for key in _KEYS),
    Layout.FIELDS,
)
_CALLS = Shape(
    "system_calls",
    (
        Column("number", Kind.NUMBER, title="NUM", help="Number of the system call."),
        Column("number_text", hidden=True, help="The same in the radix of the prompt."),
        Column("function", title="SYSTEM CALL", help="The function in sys_call_table."),
        Column("address", Kind.ADDRESS, hidden=True, help="Its address."),
        Column("place", title="FILE AND LINE NUMBER", help="Where it is in the source; needs real debug information."),
    ),
    Layout.LINES,
    "{number_text:>3}  {function:<26} {place}",
    title="NUM  SYSTEM CALL                FILE AND LINE NUMBER",
)
_DMI = Shape(
    "dmi",
    (Column("field", help="DMI_ and a name of enum dmi_field."), Column("value", help="What the firmware says.")),
    Layout.LINES,
    "{field:>25}: {value}",
)
_CONFIG = Shape("config", (Column("line", help="A line of the kernel's configuration."),), Layout.LINES, "{line}")
_MAX_CALLS = 4096
_MAX_CONFIG_BYTES = 16 << 20


@command(
    "sys",
    summary="the system: its summary, system calls, taints, firmware, configuration",
    description=(
        "Without options, the summary that is shown when a dump is opened. A summary line that cannot be had says why."
    ),
    options=(
        Option("-c", "calls", "the system call table; with a name the entries that contain it, with a number that one"),
        Option("-t", "taints", "which taints the kernel has, and what they mean"),
        Option("-i", "dmi", "what the firmware says of the machine (DMI)"),
        Option("-panic", "panic", "", refused="nothing is written into a running kernel; echo c > /proc/sysrq-trigger"),
    ),
    operands=(Operand("what", "config: the kernel's configuration (CONFIG_IKCONFIG); with -c a name or number"),),
    shapes=(_SYSTEM, _CALLS, TAINTS, _DMI, _CONFIG),
    examples=(
        Example("sys", "the summary"),
        Example("sys -c open", "system calls whose function contains open"),
        Example("sys -t", "taints in letters and words"),
        Example("sys config | grep PREEMPT", "one option of the configuration"),
    ),
)
def sys_command(workspace: Workspace, arguments: Arguments) -> Answer:
    """Show what is known of the whole system."""
    what = arguments.operands[0] if arguments.operands else None
    problems: list[Problem] = []
    if arguments.has("calls"):
        table = _CALLS.table(list(_read_calls(workspace, what, problems)))
    elif what == "config":
        table = _CONFIG.table([(line,) for line in _read_config(workspace)])
    elif what is not None:
        raise UsageError(f"sys: {what!r} is not possible", hint="sys config, or sys -c NAME")
    elif arguments.has("taints"):
        table = TAINTS.table([decode_taints(_read_taints(workspace))])
    elif arguments.has("dmi"):
        table = _DMI.table(list(_read_dmi(workspace, problems)))
    else:
        table = _SYSTEM.table([_summarize(workspace)])
    return Answer("sys", (table,), tuple(problems))


def _summarize(workspace: Workspace) -> tuple[Cell, ...]:
    lines = {line.key.replace("DUMPFILES", "DUMPFILE"): line for line in read_banner(workspace.opened)}
    cells: list[Cell] = []
    for key in _KEYS:
        line = lines.get(key)
        if line is None:
            cells.append(None)
        else:
            cells.append(line.value or Absent(Reason.UNREADABLE, line.reason))
    return tuple(cells)


def _find_symbol(prog: Program, name: str) -> tuple[int, int]:
    """Return address and size of a symbol; the size may be 0."""
    try:
        symbol = prog.symbol(name)
    except LookupError:
        raise FactAbsentError(f"this kernel has no {name}") from None
    return int(symbol.address), int(symbol.size)


def _read_calls(workspace: Workspace, what: str | None, problems: list[Problem]) -> Iterator[tuple[Cell, ...]]:
    prog = workspace.prog
    number = int(what, 0) if what is not None and re.fullmatch(r"\d+|0x[0-9a-fA-F]+", what) else None
    for index, address in enumerate(_call_table(workspace, problems)):
        if number is not None and index != number:
            continue
        name = _function_name(prog, address)
        if what is not None and number is None and what not in str(name):
            continue
        shown = f"{index:x}" if workspace.radix == 16 else str(index)
        yield (index, shown, name, address, _place(prog, address))


def _call_table(workspace: Workspace, problems: list[Problem]) -> list[int]:
    """Read ``sys_call_table`` as far as its pointers are those of functions."""
    start, size = _find_symbol(workspace.prog, "sys_call_table")
    count = min(size // 8 or _MAX_CALLS, _MAX_CALLS)
    addresses: list[int] = []
    for index in range(count):
        try:
            address = workspace.memory.read_u64(start + 8 * index)
        except UNREADABLE as exc:
            problems.append(problem(f"sys_call_table stops after {index}", exc))
            break
        # Symbols of a kernel have no sizes of their own: the table ends where something else begins.
        if index and not isinstance(_function_name(workspace.prog, address), str):
            break
        addresses.append(address)
    return addresses


def _function_name(prog: Program, address: int) -> Cell:
    try:
        symbol = prog.symbol(address)
    except LookupError:
        return Absent(Reason.NOT_PRESENT, f"no function at {address:#x}")
    offset = address - int(symbol.address)
    if offset:
        return Absent(Reason.NOT_PRESENT, f"no function begins at {address:#x}")
    return str(symbol.name)


def _place(prog: Program, address: int) -> Cell:
    try:
        source = prog.source_location(address)[-1]
    except LookupError:
        return None
    # Synthesized debug information has functions without lines.
    return f"{source.filename}: {source.line}" if source.filename else None


def _read_taints(workspace: Workspace) -> int:
    address, _ = _find_symbol(workspace.prog, "tainted_mask")
    return workspace.memory.read_u64(address)


def _read_dmi(workspace: Workspace, problems: list[Problem]) -> Iterator[tuple[Cell, ...]]:
    """Read ``dmi_ident`` (``drivers/firmware/dmi_scan.c``): a string for each of ``enum dmi_field``."""
    start, _ = _find_symbol(workspace.prog, "dmi_ident")
    try:
        fields = workspace.prog.type("enum dmi_field").enumerators or ()
    except LookupError as exc:
        problems.append(problem("names of DMI fields", exc))
        return
    for field in fields:
        if field.name in {"DMI_NONE", "DMI_STRING_MAX", "DMI_OEM_STRING"}:
            continue
        try:
            pointer = workspace.memory.read_u64(start + 8 * int(field.value))
            if pointer:
                yield (field.name, decode(workspace.memory.read_c_string(pointer)))
        except UNREADABLE as exc:
            yield (field.name, absent(exc))


def _read_config(workspace: Workspace) -> Iterator[str]:
    """Read what ``CONFIG_IKCONFIG`` put into the kernel (``kernel/configs.c``): gzip between two symbols."""
    prog = workspace.prog
    try:
        start, _ = _find_symbol(prog, "kernel_config_data")
        end, _ = _find_symbol(prog, "kernel_config_data_end")
    except FactAbsentError:
        raise FactAbsentError(
            "the kernel does not carry its configuration (CONFIG_IKCONFIG)",
            hint="Debian has it in /boot/config-RELEASE",
        ) from None
    if not 0 < end - start < _MAX_CONFIG_BYTES:
        raise CorruptError(f"the kernel's configuration would be {end - start} bytes")
    packed = workspace.memory.read(start, end - start)
    try:
        text = zlib.decompressobj(wbits=31).decompress(packed, _MAX_CONFIG_BYTES)
    except zlib.error as exc:
        raise CorruptError(f"the kernel's configuration cannot be unpacked: {exc}") from exc
    yield from (decode(line) for line in text.rstrip(b"\n").split(b"\n"))
