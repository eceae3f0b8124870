"""The banner of a kernel without types, and the warning before it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from postpanic.analysis.banner import BannerLine, find_panic_line, format_date
from postpanic.analysis.crash_commands import describe_error
from postpanic.analysis.symbols_only.kernel import SymbolsOnly
from postpanic.errors import FactAbsentError, PostpanicError
from postpanic.kernel.log_text import escape_text
from postpanic.kernel.printk import read_log
from postpanic.kernel.uts import read_utsname
from postpanic.units import format_size

if TYPE_CHECKING:
    from postpanic.analysis.program import OpenedProgram

__all__ = ["read_symbols_only_banner", "warn_symbols_only"]

NO_TYPES = "the kernel carries no types"
_NOTES = ("no types: ", "no modules: ")
"""How the notes begin that the one warning stands for."""


def warn_symbols_only(opened: OpenedProgram) -> list[str]:
    """
    Give the warnings of a dump without types: one that says what that means, then the others.

    The first names what works; everything else at the prompt answers that it needs types.
    """
    reasons = [note.removeprefix(_NOTES[0]) for note in opened.warnings if note.startswith(_NOTES[0])]
    others = [note for note in opened.warnings if not note.startswith(_NOTES)]
    why = f" ({reasons[0]})" if reasons else ""
    first = (
        f"{NO_TYPES}{why}: structures, tasks, modules and most commands are not to be had; "
        "log (dmesg), sym, bt, rd, sys and help work; "
        "a vmlinux with debug information gives the rest: postpanic open VMLINUX DUMP, or --debuginfod"
    )
    return [first, *others]


def read_symbols_only_banner(opened: OpenedProgram, kernel: SymbolsOnly) -> tuple[BannerLine, ...]:
    """
    Compute the banner's facts that need no types; the others are lines with that reason.

    Nothing is raised.
    """
    uts = functools.cache(lambda: read_utsname(opened.memory))
    description = opened.dump.description
    marks = "  [PARTIAL DUMP]" if description.dump_level else ""
    marks += "  [INCOMPLETE]" if description.incomplete else ""
    files = "\n".join(f"{path}{marks}" for path in description.paths)
    facts: list[tuple[str, Callable[[], str]]] = [
        ("KERNEL", lambda: _kernel(opened)),
        ("DUMPFILE" if len(description.paths) == 1 else "DUMPFILES", lambda: files),
        ("CPUS", lambda: f"{len(kernel.cpus)}  (those that left registers)"),
        ("DATE", lambda: _date(opened)),
        ("UPTIME", _without_types),
        ("LOAD AVERAGE", _without_types),
        ("TASKS", _without_types),
        ("NODENAME", lambda: uts().nodename),
        ("RELEASE", lambda: uts().release),
        ("VERSION", lambda: uts().version),
        ("MACHINE", lambda: uts().machine),
        ("MEMORY", lambda: _memory(opened)),
        ("PANIC", lambda: _panic(kernel)),
        ("PID", lambda: _pid(kernel)),
        ("COMMAND", _without_types),
        ("TASK", lambda: _task(kernel)),
        ("CPU", lambda: str(_panic_cpu(kernel))),
        ("STATE", _without_types),
    ]
    return tuple(_line(key, compute) for key, compute in facts)


def _line(key: str, compute: Callable[[], str]) -> BannerLine:
    try:
        return BannerLine(key, compute())
    except (PostpanicError, ValueError, OverflowError, OSError) as exc:
        return BannerLine(key, reason=describe_error(exc))


def _without_types() -> str:
    raise FactAbsentError(NO_TYPES)


def _kernel(opened: OpenedProgram) -> str:
    build_id = opened.memory.vmcoreinfo.build_id
    known = f" (build ID {build_id})" if build_id else ""
    return f"symbols of the dump's kernel{known}, no types"


def _date(opened: OpenedProgram) -> str:
    time_s = opened.memory.vmcoreinfo.crash_time_s
    if time_s is None:
        raise FactAbsentError("VMCOREINFO has no CRASHTIME: the kernel did not crash through kexec")
    return format_date(time_s)


def _memory(opened: OpenedProgram) -> str:
    size = sum(end - start for start, end in opened.dump.ram_ranges.tolist())
    return f"{format_size(size)}  (RAM that the dump describes)"


def _panic(kernel: SymbolsOnly) -> str:
    if kernel.panic_cpu is None and {"panic_cpu", "crashing_cpu"} & {
        name for name in ("panic_cpu", "crashing_cpu") if name in kernel.symbols
    }:
        return "(none: no CPU had panicked)"
    lines = [line for record in read_log(kernel.memory) for line in escape_text(record.text).split("\n")]
    found = find_panic_line(lines)
    if found is None:
        raise FactAbsentError("the kernel log has no line that tells the cause")
    return f'"{found}"'


def _panic_cpu(kernel: SymbolsOnly) -> int:
    if kernel.panic_cpu is None:
        raise FactAbsentError("no CPU had panicked")
    return kernel.panic_cpu


def _pid(kernel: SymbolsOnly) -> str:
    number = _panic_cpu(kernel)
    for cpu in kernel.cpus:
        if cpu.cpu == number and cpu.pid is not None:
            return str(cpu.pid)
    raise FactAbsentError(NO_TYPES)


def _task(kernel: SymbolsOnly) -> str:
    task = kernel.detect_current_task(_panic_cpu(kernel))
    if not task:
        raise FactAbsentError(NO_TYPES)
    return f"{task:x}"
