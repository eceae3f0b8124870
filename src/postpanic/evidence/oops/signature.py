"""
Titles and signatures: the same for the same crash, whatever text it was read from.

Neither holds an address, an offset, a number of a CPU or a task, nor what the
compiler put behind a function's name.
"""

from __future__ import annotations

import hashlib
import re

from postpanic.evidence.oops.frames import base_name
from postpanic.evidence.oops.functions import part_of, plain_name
from postpanic.evidence.oops.kinds import Kind
from postpanic.evidence.oops.model import Access, Frame, Report, Section

__all__ = ["bucket_of", "signature_of", "title_of"]

_NUMBERS = re.compile(r"\b(?:0x)?[0-9a-f]{0,32}\d[0-9a-f]{0,32}\b|\(ptrval\)|\d{1,20}")
_UNWINDER = re.compile(r" at +(?:[0-9a-f]{1,16}|\(ptrval\)) in .{1,80}?:\d{1,10} ")
_PHRASES: dict[Kind, str] = {
    Kind.NULL_DEREFERENCE: "NULL pointer dereference",
    Kind.PAGING_REQUEST: "unable to handle page fault",
    Kind.GENERAL_PROTECTION: "general protection fault",
    Kind.KERNEL_BUG: "kernel BUG",
    Kind.WARNING: "WARNING",
    Kind.DEADLOCK: "possible deadlock",
    Kind.RCU_STALL: "RCU stall",
    Kind.HUNG_TASK: "hung task",
    Kind.RCU_USAGE: "suspicious RCU usage",
}
_BAD_ACCESS = frozenset(
    {
        Kind.KASAN,
        Kind.KFENCE,
        Kind.KMSAN,
        Kind.NULL_DEREFERENCE,
        Kind.PAGING_REQUEST,
        Kind.GENERAL_PROTECTION,
        Kind.STACK_SEGMENT,
        Kind.UNHANDLED_FAULT,
        Kind.INTERNAL_ERROR,
        Kind.LIST_CORRUPTION,
    }
)
_STALLS = frozenset({Kind.RCU_STALL, Kind.SOFT_LOCKUP, Kind.HARD_LOCKUP})


def title_of(kind: Kind, variant: str, function: str, access: Access | None, message: str) -> str:
    """
    Make one line of what happened and where.

    >>> title_of(Kind.KASAN, "slab-use-after-free", "foo_release", Access.READ, "")
    'KASAN: slab-use-after-free read in foo_release'
    """
    if kind is Kind.PANIC:
        return "panic: " + _NUMBERS.sub("N", message.partition("not syncing: ")[2] or message)[:150]
    if kind is Kind.BUG and not function:
        return " ".join(_NUMBERS.sub("N", _UNWINDER.sub(" ", message)).split())[:160]
    if kind in {Kind.KASAN, Kind.KFENCE, Kind.KMSAN, Kind.KCSAN, Kind.UBSAN}:
        phrase = f"{kind.value.upper()}: {variant}"
        if access is not None and kind is Kind.KASAN:
            phrase += f" {access.value}"
    else:
        phrase = _PHRASES.get(kind, kind.value.replace("-", " "))
        if variant and kind not in {Kind.RCU_STALL, Kind.HUNG_TASK}:
            phrase += f" ({_NUMBERS.sub('N', variant)[:60]})"
    return f"{phrase} in {function}" if function else phrase


def bucket_of(report: Report) -> str:
    """
    Return the family and the function by which reports of one fault come together.

    The sanitizer, the trap and the list check that a stray pointer meets first is chance.
    """
    family = report.kind.value
    if report.kind in _BAD_ACCESS:
        family = "bad-access"
        if report.kind is Kind.KASAN and report.access is None:
            family += " (unknown)"
    elif report.kind in _STALLS:
        return f"stall in {_as_spelled(report)}" if report.function else f"stall: {report.title}"
    elif report.kind is Kind.PANIC:
        return report.title
    elif report.kind is Kind.LOCK_USAGE:
        family += f" ({report.variant}, {'WARNING' if 'WARNING' in report.message else 'BUG'})"
    if report.kind is Kind.LOCKDEP and report.variant == "table full":
        return f"{family}: {report.title.partition(' in ')[0]}"
    if not report.function:
        return f"{family}: {report.title}"
    return f"{family} in {report.function}"


def _as_spelled(report: Report) -> str:
    """
    Return the blamed function with its prefix as a system call.

    A stall in a system call says little but where it came from: those of other
    kernels and architectures are not held to be the same.
    """
    frames = (frame for trace in report.traces for frame in trace.frames if frame.is_reliable)
    spelled = (base_name(frame.function) for frame in frames if plain_name(frame.function) == report.function)
    return next(spelled, report.function)


def signature_of(report: Report) -> str:
    """
    Return the signature: 16 hexadecimal digits of the bucket and the next functions of the trace.

    Frames are used without offsets, suffixes and system-call prefixes; what
    reports or serves others is left out, as it differs by configuration.
    """
    names: list[str] = []
    for trace in report.traces:
        if trace.section in {Section.MAIN, Section.CPU} and len(names) < 3:
            for frame in trace.frames:
                if frame.is_reliable and frame.function and not frame.is_inline and _works(frame):
                    name = plain_name(frame.function)
                    if name not in names:
                        names.append(name)
                if len(names) == 3:
                    break
    text = "|".join((bucket_of(report), *names)) if report.function else report.title
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _works(frame: Frame) -> bool:
    return part_of(frame.function, module=frame.module) is None
