"""Tell whether a report is whole and can be trusted, and if not, why."""

from __future__ import annotations

import re
from itertools import pairwise

from postpanic.evidence.oops.builder import ReportBuilder
from postpanic.evidence.oops.functions import Part, part_of, plain_name
from postpanic.evidence.oops.kinds import Kind
from postpanic.evidence.oops.model import Report, Section, Trace

__all__ = ["BROKEN_INTO", "damage_of"]

BROKEN_INTO = "another report began before its trace"

_TRACELESS = frozenset(
    {
        Kind.BAD_PAGE,
        Kind.NETDEVICE_REFERENCE,
        Kind.OUT_OF_MEMORY,
        Kind.MACHINE_CHECK,
        Kind.HARDWARE_ERROR,
        Kind.NMI,
        Kind.BUG,
        Kind.FILE_SYSTEM,
        Kind.NO_ROOT,
        Kind.INIT_DIED,
        Kind.SYSRQ,
        Kind.STACK_PROTECTOR,
        Kind.BAD_MODE,
        Kind.SERROR,
        Kind.CSD_LOCK,
        Kind.WORKQUEUE_LOCKUP,
        Kind.RUST_PANIC,
        Kind.LOCKDEP,
        Kind.ALLOCATION_FAILURE,
    }
)
"""Kinds that say enough without a trace."""

_TELLING = frozenset({Section.MAIN, Section.CPU, Section.TASK, Section.PANIC, Section.OTHER_ACCESS})
_SAY_NOTHING = frozenset({Part.REPORTING, Part.EXCEPTION, Part.TRACING})
_SAID_ELSEWHERE = frozenset({Kind.PREEMPTION, Kind.KASAN, Kind.KFENCE, Kind.KMSAN})
"""Kinds whose first line names the function."""
_PID_LIMIT = 4 << 20
"""PID_MAX_LIMIT of include/linux/threads.h."""
_STALLS = frozenset({Kind.RCU_STALL, Kind.SOFT_LOCKUP, Kind.HARD_LOCKUP})


def damage_of(report: Report, builder: ReportBuilder) -> tuple[str, ...]:
    """Return why a report is not whole, one short line for each reason."""
    reasons = [reason for reason in builder.mixed if reason != BROKEN_INTO or not _is_short(report)]
    if _needs_trace(report):
        frames = [frame for trace in report.traces if trace.section in _TELLING for frame in trace.frames]
        told = [frame for frame in frames if frame.is_reliable and frame.function and not frame.is_pc]
        if not report.blame:
            reasons.append("no function can be named")
        elif not told:
            reasons.append("no trace")
        elif report.kind not in _SAID_ELSEWHERE and all(part_of(frame.function) in _SAY_NOTHING for frame in told):
            reasons.append("the trace shows only how it was reported")
        if report.kind in _STALLS and report.traces and not any(_was_running(trace) for trace in report.traces):
            reasons.append("no CPU that runs is shown")
    if report.kind is Kind.KMSAN and "cpu_line_pid" not in builder.facts:
        reasons.append("it ends before the line of the CPU")
    if any(frame.function.startswith("should_fail") for trace in _main(report) for frame in trace.frames):
        reasons.append("the trace of a forced failure is mixed in")
    if report.pid is not None and report.pid > _PID_LIMIT:
        reasons.append("what it says of the task cannot be")
    if any(_goes_on_below_its_end(trace) for trace in _main(report)):
        reasons.append("the traces of two tasks are mixed")
    if builder.dropped:
        reasons.append(f"the kernel dropped messages {builder.dropped} times")
    if builder.other_tasks:
        reasons.append("lines of another task are mixed in")
    return tuple(dict.fromkeys(reasons))


_ENDS = re.compile(
    r"entry_SYSCALL_64_after_hwframe|entry_SYSENTER_compat_after_hwframe|ret_from_fork_asm|ret_from_kernel_thread"
    r"|ret_fast_syscall|el0t?_(?:64_|32_)?sync|secondary_startup_64|system_call(?:_vectored)?_common"
)
"""Where the stack of a task ends."""


def _goes_on_below_its_end(trace: Trace) -> bool:
    """Tell whether a stack has frames below its last: they are another's."""
    told = [frame for frame in trace.frames if frame.is_reliable and frame.function and not frame.is_pc]
    return any(
        _ENDS.fullmatch(frame.function) and not _ENDS.fullmatch(below.function) for frame, below in pairwise(told)
    )


def _is_short(report: Report) -> bool:
    """Tell whether there never is a trace: ``lockdep_sys_exit()`` shows the locks alone."""
    return report.kind is Kind.LOCK_USAGE and report.variant == "lock held"


def _needs_trace(report: Report) -> bool:
    if report.kind is Kind.LOCK_USAGE:
        return not _is_short(report)
    return report.kind not in _TRACELESS or report.variant in {"page state", "page map"}


def _main(report: Report) -> list[Trace]:
    return [trace for trace in report.traces if trace.section is Section.MAIN]


def _was_running(trace: Trace) -> bool:
    """Tell whether a trace is of a CPU that was interrupted, not of a task that was switched out."""
    first = next((frame for frame in trace.frames if frame.is_reliable and frame.function), None)
    return first is not None and plain_name(first.function) not in {"__schedule", "schedule", "context_switch"}
