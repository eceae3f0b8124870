"""
The facts that crash prints when it starts, computed one by one.

Each fact is a value or the reason why it cannot be had: a page that the filter
left out, or a type that nothing describes, costs one line of the banner and
never the session. The keys, their order and the spelling of the values are
crash's (``display_sys_stats()`` and ``show_context()``), because people and
programs read them; the command line only aligns them.
"""

from __future__ import annotations

import datetime as dt
import functools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from drgn import ObjectNotFoundError, Program
from drgn.helpers.common.format import double_quote_ascii_string
from drgn.helpers.linux.cpumask import num_online_cpus, num_present_cpus
from drgn.helpers.linux.mmzone import for_each_online_pgdat
from drgn.helpers.linux.panic import tainted
from drgn.helpers.linux.pid import for_each_task
from drgn.helpers.linux.sched import (
    loadavg,
    task_cpu,
    task_on_cpu,
    task_state_to_char,
    task_thread_info,
)
from drgn.helpers.linux.timekeeping import ktime_get_boottime_seconds, ktime_get_real_seconds

from postpanic.analysis.context import UNREADABLE, ContextTask, find_context_task
from postpanic.analysis.crash_commands import describe_error
from postpanic.analysis.debug_files import DebugKind
from postpanic.kernel.printk import read_log
from postpanic.kernel.uts import read_utsname
from postpanic.units import GIB, KIB, MIB

if TYPE_CHECKING:
    from postpanic.analysis.program import OpenedProgram

__all__ = ["BannerLine", "find_panic_line", "format_date", "read_banner"]


@dataclass(frozen=True, slots=True)
class BannerLine:
    """One line of the banner: a value, or the reason why there is none."""

    key: str
    value: str = ""
    reason: str = ""
    """Why the value cannot be had; empty when it can."""


def read_banner(opened: OpenedProgram) -> tuple[BannerLine, ...]:
    """
    Compute the banner of an opened dump, in crash's order.

    Nothing is raised: what cannot be computed becomes a line with a reason.
    """
    prog = opened.prog
    uts = functools.cache(lambda: read_utsname(opened.memory))
    facts: list[tuple[str, Callable[[], str]]] = [
        ("KERNEL", lambda: _kernel(opened)),
        ("DEBUG INFO", lambda: _debug_info(opened)),
        ("DUMPFILE" if len(opened.dump.description.paths) == 1 else "DUMPFILES", lambda: _dump_files(opened)),
        ("CPUS", lambda: _cpus(prog)),
        ("DATE", lambda: format_date(ktime_get_real_seconds(prog).value_())),
        ("UPTIME", lambda: _duration(ktime_get_boottime_seconds(prog).value_())),
        ("LOAD AVERAGE", lambda: ", ".join(f"{load:.2f}" for load in loadavg(prog))),
        ("TASKS", lambda: str(sum(1 for _ in for_each_task(prog, idle=True)))),
        ("NODENAME", lambda: uts().nodename),
        ("RELEASE", lambda: uts().release),
        ("VERSION", lambda: uts().version),
        ("MACHINE", lambda: _machine(prog, uts().machine)),
        ("MEMORY", lambda: _memory(prog)),
        ("PANIC", lambda: _panic(opened)),
    ]
    lines = [_line(key, compute) for key, compute in facts]
    return tuple(line for line in (*lines, *_task_lines(prog)) if line.value or line.reason)


def _line(key: str, compute: Callable[[], str]) -> BannerLine:
    try:
        return BannerLine(key, compute())
    except UNREADABLE as exc:
        return BannerLine(key, reason=describe_error(exc))


def _task_lines(prog: Program) -> list[BannerLine]:
    try:
        context = find_context_task(prog)
    except LookupError as exc:
        return [BannerLine(key, reason=str(exc)) for key in ("PID", "COMMAND", "TASK", "CPU", "STATE")]
    task = context.task
    return [
        _line("PID", lambda: str(task.pid.value_())),
        _line("COMMAND", lambda: double_quote_ascii_string(task.comm.string_())),
        _line("TASK", lambda: f"{task.value_():x}  [THREAD_INFO: {task_thread_info(task).value_():x}]"),
        _line("CPU", lambda: str(task_cpu(task))),
        _line("STATE", lambda: _state(context)),
    ]


def _kernel(opened: OpenedProgram) -> str:
    source = opened.sources[0]
    kernel = str(source.file)
    if source.kind is DebugKind.SYNTHESIZED:
        build_id = opened.memory.vmcoreinfo.build_id
        kernel = f"synthesized from the dump (build ID {build_id})" if build_id else "synthesized from the dump"
    try:
        return f"{kernel}  [TAINTED]" if tainted(opened.prog) else kernel
    except UNREADABLE:
        return kernel


def _debug_info(opened: OpenedProgram) -> str:
    """Count where the modules' debug information is from; empty when all of it is from one place."""
    by_kind: dict[DebugKind, list[str]] = {}
    for source in opened.sources:
        by_kind.setdefault(source.kind, []).append(source.module)
    parts = [f"{kind.value}: {_enumerate(by_kind[kind])}" for kind in DebugKind if kind in by_kind]
    if len(parts) <= 1:
        parts = []
    parts += [f"{source.module}: {source.reason}" for source in opened.sources[:1] if source.reason]
    return "; ".join(parts)


def _enumerate(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 3} more"


def _dump_files(opened: OpenedProgram) -> str:
    description = opened.dump.description
    marks = "  [PARTIAL DUMP]" if description.dump_level else ""
    marks += "  [INCOMPLETE]" if description.incomplete else ""
    return "\n".join(f"{path}{marks}" for path in description.paths)


def _cpus(prog: Program) -> str:
    present, online = num_present_cpus(prog), num_online_cpus(prog)
    return str(present) if online >= present else f"{present} [OFFLINE: {present - online}]"


def format_date(timestamp_s: int) -> str:
    """Spell a time in seconds since 1970 as crash does, in the local time zone."""
    moment = dt.datetime.fromtimestamp(timestamp_s).astimezone()
    return moment.strftime("%a %b %e %T %Z %Y")


def _duration(seconds: int) -> str:
    days, rest = divmod(seconds, 86400)
    clock = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days} days, {clock}" if days else clock


def _machine(prog: Program, machine: str) -> str:
    try:
        # x86 only; other architectures do not keep the frequency in one place.
        return f"{machine}  ({prog['cpu_khz'].value_() // 1000} Mhz)"
    except UNREADABLE:
        return f"{machine}  (unknown Mhz)"


def _memory(prog: Program) -> str:
    """
    Add up the pages of all nodes, reserved ones included, and round as crash does.

    Within 64 MiB of the next GiB it is that GiB: firmware keeps a little.
    """
    pages = sum(node.node_present_pages.value_() for node in for_each_online_pgdat(prog))
    size_bytes = pages * prog["PAGE_SIZE"].value_()
    next_gib = -(-size_bytes // GIB) * GIB
    if next_gib - size_bytes <= 64 * MIB:
        size_bytes = next_gib
    for unit, name in ((GIB, "GB"), (MIB, "MB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f}".removesuffix(".0") + f" {name}"
    return f"{size_bytes // KIB} KB"


_STATE_NAMES = {
    "R": "TASK_RUNNING",
    "S": "TASK_INTERRUPTIBLE",
    "D": "TASK_UNINTERRUPTIBLE",
    "T": "TASK_STOPPED",
    "t": "TASK_TRACING_STOPPED",
    "X": "EXIT_DEAD",
    "Z": "EXIT_ZOMBIE",
    "P": "TASK_PARKED",
    "I": "TASK_IDLE",
}


def _state(context: ContextTask) -> str:
    letter = task_state_to_char(context.task)
    state = _STATE_NAMES.get(letter, f"(unknown: {letter})")
    if context.panicked:
        return f"{state} (PANIC)"
    return f"{state} (ACTIVE)" if task_on_cpu(context.task) else state


def _panic(opened: OpenedProgram) -> str:
    if _detect_panic(opened.prog) is False:
        # A log may well tell of an oops that the kernel survived.
        return "(none: no CPU had panicked)"
    # Neither symbols nor types are needed for the log, so this line is there when little else is.
    text = b"\n".join(record.text for record in read_log(opened.memory)).decode("utf-8", "backslashreplace")
    line = find_panic_line(text.split("\n"))
    if line is None:
        raise LookupError("the kernel log has no line that tells the cause")
    return f'"{line}"'


def _detect_panic(prog: Program) -> bool | None:
    """Tell whether a CPU panicked; None if that cannot be told."""
    try:
        prog.crashed_thread()
    except ObjectNotFoundError:
        return None
    except LookupError:
        return False
    except UNREADABLE:
        return None
    return True


# The first line of each kind of fatal report: arch/*/mm/fault.c, arch/*/kernel/traps.c,
# lib/bug.c, kernel/watchdog.c, kernel/watchdog_perf.c. Reports that a kernel survives by
# default (WARNING, stalls, hung tasks) count too: with panic_on_* set, they are the cause.
_REPORT = re.compile(
    r"BUG: |kernel BUG at |Unable to handle kernel |Internal error: |general protection fault|"
    r"Oops(?: - [\w ]+)?: |"
    r"divide error: |stack segment: |double fault: |PANIC: double fault|traps: PANIC|"
    r"watchdog: BUG: |Watchdog detected hard LOCKUP|NMI watchdog: |rcu: INFO: .*detected stall|"
    r"INFO: task .* blocked for more than |INFO: rcu_.*detected stall|WARNING: |UBSAN: |"
    r"Kernel stack overflow|corrupted stack end|Unrecoverable |Bad mode in |SError Interrupt",
)
_PANIC = re.compile(r"Kernel panic - not syncing: ")
# Panics that only carry out what an earlier report made necessary.
_FOLLOWER = re.compile(
    r"Fatal exception|Oops - |panic_on_warn set|(?:UBSAN|KASAN|KFENCE|KCSAN|BUG|kernel): panic_on_warn set|"
    r"softlockup: hung tasks|hung_task: blocked tasks|RCU Stall|Hard LOCKUP|Watchdog detected hard LOCKUP"
)
_REPORT_LINES = 20
"""A line this near behind the first line of a report belongs to it: ``Oops:``, ``Internal error:`` and the like."""


def find_panic_line(lines: Iterable[str]) -> str | None:
    """
    Find the line of a kernel log that names the cause of its death.

    That is the ``Kernel panic`` line, unless it only carries out an earlier
    report (``Fatal exception``, ``panic_on_warn set`` …): then it is the first
    line of the last report before it. A kernel that died in an oops before it
    could panic has no ``Kernel panic`` line; the last report counts.

    Returns
    -------
    str or None
        The line without surrounding blanks; None if the log tells no cause.

    >>> find_panic_line(["BUG: kernel NULL pointer dereference, address: 0", "Oops: 0002 [#1] SMP",
    ...                  "Kernel panic - not syncing: Fatal exception"])
    'BUG: kernel NULL pointer dereference, address: 0'
    """
    report: str | None = None
    report_index = -_REPORT_LINES - 1
    panic: str | None = None
    for index, line in enumerate(lines):
        if _PANIC.match(line):
            if not _FOLLOWER.search(line):
                return line.strip()
            panic = line.strip()
            break
        if _REPORT.match(line) and index - report_index > _REPORT_LINES:
            report, report_index = line.strip(), index
    return report or panic
