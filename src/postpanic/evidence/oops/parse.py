"""
Make reports of any text.

:func:`find_reports` is the door: bytes in, reports out, in the order in which
they began. What the reader collected is put into one value: the kind is made
more exact by the place in the source and by the message of the panic, the
functions are ranked, and what speaks against the report is noted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations, islice, pairwise

import msgspec

from postpanic.evidence.oops.blame import rank
from postpanic.evidence.oops.builder import ReportBuilder
from postpanic.evidence.oops.damage import damage_of
from postpanic.evidence.oops.fields import DETAIL_NAMES, note
from postpanic.evidence.oops.frames import symbol_of
from postpanic.evidence.oops.kinds import NOTICES, Kind
from postpanic.evidence.oops.model import Access, Report, Section, Trace
from postpanic.evidence.oops.rules import Role
from postpanic.evidence.oops.segment import Boot, KernelOffset, Text, find_events
from postpanic.evidence.oops.signature import signature_of, title_of

__all__ = ["REPORTS_LIMIT", "Kernel", "find_reports", "finish_boot", "iterate_reports"]

REPORTS_LIMIT = 16384
"""Reports that are kept of one text; who needs more reads them one by one."""

_BOOT_LIMIT = 4096
"""Reports of one boot that are looked at together."""

_TOGETHER = 64
"""Reports of one boot that may have waited for each other."""

_PANICS: tuple[tuple[str, Kind], ...] = (
    ("stack-protector", Kind.STACK_PROTECTOR),
    ("Attempted to kill init", Kind.INIT_DIED),
    ("Unable to mount root", Kind.NO_ROOT),
    ("No working init", Kind.NO_ROOT),
    ("No init found", Kind.NO_ROOT),
    ("Requested init", Kind.NO_ROOT),
    ("achine check", Kind.MACHINE_CHECK),
    ("Not all CPUs entered", Kind.MACHINE_CHECK),
    ("softlockup: hung tasks", Kind.SOFT_LOCKUP),
    ("hung_task: blocked tasks", Kind.HUNG_TASK),
    ("LOCKUP", Kind.HARD_LOCKUP),
    ("ut of memory", Kind.OUT_OF_MEMORY),
    ("deadlocked on memory", Kind.OUT_OF_MEMORY),
    ("sysrq triggered", Kind.SYSRQ),
    ("corrupted stack end", Kind.STACK_OVERFLOW),
    ("kernel stack overflow", Kind.STACK_OVERFLOW),
    ("bad mode", Kind.BAD_MODE),
    ("SError", Kind.SERROR),
    ("RCU Stall", Kind.RCU_STALL),
    ("stack guard hit", Kind.STACK_OVERFLOW),
    ("orrupt kernel stack", Kind.STACK_OVERFLOW),
    ("MCA architectural violation", Kind.MACHINE_CHECK),
    ("Fatal hardware error", Kind.HARDWARE_ERROR),
    ("ncorrectable", Kind.HARDWARE_ERROR),
    ("EDAC", Kind.HARDWARE_ERROR),
    ("hardware is malfunctioning", Kind.HARDWARE_ERROR),
    ("NMI", Kind.NMI),
)
_SOURCES: tuple[tuple[str, Kind], ...] = (
    ("lib/refcount.c", Kind.REFCOUNT),
    ("include/linux/refcount.h", Kind.REFCOUNT),
    ("lib/list_debug.c", Kind.LIST_CORRUPTION),
    ("include/linux/list.h", Kind.LIST_CORRUPTION),
    ("lib/debugobjects.c", Kind.ODEBUG),
    ("mm/usercopy.c", Kind.USERCOPY),
    ("kernel/locking/lockdep.c", Kind.LOCKDEP),
)
_UBSAN_TRAP = re.compile(r"error: UBSAN: ([\w /-]{1,60}): [0-9a-f]")
"""With CONFIG_UBSAN_TRAP what is wrong stands in the instruction: ``report_ubsan_failure()``, ``lib/ubsan.c``."""
_HERALDS: tuple[tuple[str, Kind], ...] = (
    ("refcount_t: ", Kind.REFCOUNT),
    ("ODEBUG: ", Kind.ODEBUG),
    ("list_add corruption", Kind.LIST_CORRUPTION),
    ("list_del corruption", Kind.LIST_CORRUPTION),
    ("usercopy: ", Kind.USERCOPY),
)
_DIED: tuple[tuple[str, Kind], ...] = (
    ("achine check", Kind.MACHINE_CHECK),
    ("tack overflow", Kind.STACK_OVERFLOW),
    ("monitor event", Kind.KERNEL_BUG),
    ("BUG", Kind.KERNEL_BUG),
    ("llegal op", Kind.INVALID_OPCODE),
    ("llegal instruction", Kind.INVALID_OPCODE),
    ("eserved instruction", Kind.INVALID_OPCODE),
    ("ndefined instruction", Kind.INVALID_OPCODE),
    ("ivide", Kind.DIVIDE_ERROR),
    ("naligned", Kind.ALIGNMENT),
    ("isaligned", Kind.ALIGNMENT),
    ("ale access", Kind.ALIGNMENT),
    ("CFI", Kind.CFI),
)
"""Words of die() that are an exception of their own, on architectures that say all in one way."""
_CUT = "------------[ cut here ]------------"
_NAMED = re.compile(r" in ([A-Za-z_][\w.]{0,255})(?: / ([A-Za-z_][\w.]{0,255}))?")


def find_reports(text: Text, *, with_notices: bool = False) -> list[Report]:
    """
    Find the kernel's reports in a text.

    Parameters
    ----------
    text : bytes or mmap
        Any text, of any encoding, with one message in a line. See
        :func:`postpanic.evidence.sources.plain_text` for journals and JSON.
    with_notices : bool
        Also give what the kernel survives by design: processes killed for want of memory, corrected errors.

    Returns
    -------
    list of Report
        In the order in which they began. A report that came later in the same boot
        says in ``consequence_of`` which may have caused it. No more than :data:`REPORTS_LIMIT`.
    """
    return list(islice(iterate_reports(text, with_notices=with_notices), REPORTS_LIMIT))


def iterate_reports(text: Text, *, with_notices: bool = False) -> Iterator[Report]:
    """Yield the reports of a text, one boot after the other."""
    builders: list[ReportBuilder] = []
    place, kernel = 0, Kernel()
    for event in find_events(text):
        if isinstance(event, KernelOffset):
            kernel.offset = event
            continue
        if isinstance(event, ReportBuilder):
            builders.append(event)
            if len(builders) < _BOOT_LIMIT:
                continue
        for report in finish_boot(builders, place, kernel, with_notices=with_notices):
            yield report
            place += 1
        builders = []
        if isinstance(event, Boot):
            kernel = Kernel(event.release)
    yield from finish_boot(builders, place, kernel, with_notices=with_notices)


class Kernel:
    """What holds for all reports of a boot."""

    def __init__(self, release: str = "") -> None:
        self.release = release
        self.offset: KernelOffset | None = None

    def complete(self, builders: list[ReportBuilder]) -> None:
        """Tell each report what the others, and the lines between them, say of the kernel."""
        for name in ("release", "build_id"):
            known = (builder.facts[name] for builder in builders if builder.facts.get(name))
            value = next(known, self.release if name == "release" else "")
            for builder in builders:
                note(builder.facts, name, value)

    def place(self, report: Report) -> Report:
        """Tell where the kernel was put."""
        if self.offset is None:
            return report
        return msgspec.structs.replace(report, kaslr_offset=self.offset.offset, kaslr_base=self.offset.base)


def finish_boot(
    builders: list[ReportBuilder], place: int, kernel: Kernel, *, with_notices: bool, is_first: bool = True
) -> Iterator[Report]:
    """
    Make the reports of one boot.

    Parameters
    ----------
    builders : list of ReportBuilder
        Are put in order.
    place : int
        Of the first report of this boot among all.
    kernel : Kernel
        That was booted.
    with_notices : bool
    is_first : bool
        Whether the boot had no report before these.
    """
    _match_faults(builders)
    builders.sort(key=lambda builder: builder.first.offset)
    _lend_traces(builders)
    kernel.complete(builders)
    panic_at, panic_message = -1, ""
    for builder in builders:
        if builder.kind is Kind.PANIC or builder.is_panic:
            builder.is_panic = True
            panic_at = max(panic_at, builder.end)
            panic_message = builder.panic_message or builder.first.text.partition("not syncing: ")[2]
    for builder in builders:
        is_panic = builder.is_panic or panic_at >= builder.first.offset
        report = kernel.place(_make(builder, is_panic=is_panic, panic_message=panic_message if is_panic else ""))
        if with_notices or not report.is_notice:
            follows = not is_first and report.kind is not Kind.SYSRQ
            yield msgspec.structs.replace(report, consequence_of=place if follows else None)
            is_first = False


def _match_faults(builders: list[ReportBuilder]) -> None:
    """Give those that were told apart by their order alone what is theirs: CR2 holds the address that was announced."""
    if not any(builder.has_waited for builder in builders):
        return
    died = [builder for builder in builders[-_TOGETHER:] if "CR2" in builder.registers and "address" in builder.facts]
    for one, other in combinations(died, 2):
        if (
            one.facts["address"] != one.registers["CR2"] == other.facts["address"]
            and other.registers["CR2"] == one.facts["address"]
        ):
            one.swap_beginnings(other)


def _lend_traces(builders: list[ReportBuilder]) -> None:
    """Give a report that another one broke into the other's traces: one printk caller has one stack."""
    for builder, following in pairwise(builders):
        if builder.mixed and builder.first.caller and builder.first.caller == following.first.caller:
            builder.borrow(following)


def _make(builder: ReportBuilder, *, is_panic: bool, panic_message: str) -> Report:
    facts = builder.facts
    kind, variant = _exact_kind(builder)
    traces = builder.freeze_traces()
    locks = tuple(builder.locks)
    message = builder.first.text.strip()
    named = _named(kind, message, builder)
    blame = rank(kind, traces, locks, named)
    function = blame[0].function if blame else ""
    task = facts.get("sanitizer_task")
    access = _access(kind, variant, facts.get("access"))
    size = facts.get("size_bytes")
    report = Report(
        kind=kind,
        variant=variant,
        title=title_of(kind, variant, function, access, message),
        message=message,
        access=access,
        address=facts.get("address"),
        size_bytes=size,
        pid=facts.get("pid", task[1] if task else None),
        cpu=facts.get("cpu"),
        comm=facts.get("comm", task[0] if task else ""),
        release=facts.get("release", ""),
        build_id=facts.get("build_id", ""),
        taint=facts.get("taint", ""),
        hardware=facts.get("hardware", ""),
        workqueue=facts.get("workqueue", ""),
        source=facts.get("source", ""),
        condition=_condition(builder),
        modules=facts.get("modules", ()),
        registers=builder.registers,
        code=facts.get("code", ""),
        traces=traces,
        locks=locks,
        details=_details(builder),
        is_panic=is_panic,
        is_notice=kind in NOTICES and not builder.is_panic and not builder.has_died and builder.role is not Role.DIE,
        panic_message=builder.panic_message or panic_message,
        blame=blame,
        architecture=_architecture(builder),
        time_s=builder.first.time_s,
        offset=builder.first.offset,
        end=builder.end,
        lines=tuple(builder.lines),
    )
    return msgspec.structs.replace(report, damage=damage_of(report, builder), signature=signature_of(report))


def _exact_kind(builder: ReportBuilder) -> tuple[Kind, str]:
    kind, variant = builder.kind, builder.variant
    if kind is Kind.PANIC:
        return next((exact for words, exact in _PANICS if words in builder.first.text), kind), variant
    if kind in {Kind.KERNEL_BUG, Kind.WARNING}:
        source = builder.facts.get("source", "")
        for path, exact in _SOURCES:
            if path in source and not (exact is Kind.LOCKDEP and kind is Kind.KERNEL_BUG):
                return exact, variant
        recent = builder.preamble[-3:]
        for words, exact in _HERALDS:
            if any(text.lstrip().startswith(words) for text in recent):
                return exact, variant
    if kind is Kind.INTERNAL_ERROR and (trap := _UBSAN_TRAP.search(builder.first.text)):
        return Kind.UBSAN, trap[1].replace(" ", "-")
    if kind in {Kind.OOPS, Kind.TRAP}:
        exact_kinds = (exact for words, exact in _DIED if words in builder.first.text)
        return next(exact_kinds, kind), variant
    if kind is Kind.PAGING_REQUEST and _is_null(builder):
        return Kind.NULL_DEREFERENCE, variant
    return kind, variant


def _is_null(builder: ReportBuilder) -> bool:
    return "NULL pointer" in builder.first.text


def _named(kind: Kind, message: str, builder: ReportBuilder) -> tuple[str, ...]:
    """Functions that the message itself names, the offending first."""
    if kind is Kind.KCSAN and (match := _NAMED.search(message)):
        return tuple(name for name in match.groups() if name)
    if kind in {Kind.KASAN, Kind.KFENCE, Kind.KMSAN, Kind.WARNING, Kind.STACK_PROTECTOR, Kind.UBSAN, Kind.BUG}:
        symbol = symbol_of(message)
        return (symbol.function,) if symbol is not None else _named_plainly(kind, message)
    if kind is Kind.LOCK_USAGE and builder.variant in {"held lock freed", "locks held", "lock held"} and builder.locks:
        return (builder.locks[0].function,)
    if kind is Kind.SLAB and (symbol := symbol_of(message)) is not None:
        return (symbol.function,)
    return ()


def _named_plainly(kind: Kind, message: str) -> tuple[str, ...]:
    if kind in {Kind.KASAN, Kind.KFENCE, Kind.KMSAN} or "stack-protector" in message:
        match = re.search(r" in:? ([A-Za-z_][\w.]{0,255})(?:$| )", message)
        if match is not None:
            return (match[1],)
    return ()


def _access(kind: Kind, variant: str, access: Access | None) -> Access | None:
    if access is None and kind is Kind.KFENCE:
        return Access.WRITE if variant.endswith("write") else Access.READ if variant.endswith("read") else None
    return access


def _condition(builder: ReportBuilder) -> str:
    """Return what a WARNING or a BUG says beside its place: it stands between the cut and the first line."""
    texts: list[str] = []
    for text in reversed(builder.preamble):
        if _CUT in text:
            return " ".join(reversed(texts))[:400]
        texts.append(text.strip())
    return ""


def _details(builder: ReportBuilder) -> dict[str, str]:
    names = ("cache", "object_size", "seconds", "die", "kasan", "problem", "task_line", "code_problem", "die_count")
    found = {name: str(builder.facts[name]) for name in (*names, *DETAIL_NAMES) if name in builder.facts}
    if "kasan_address" in builder.facts:
        found["kasan_address"] = f"{builder.facts['kasan_address']:#x}"
    return found


_ARCHITECTURES: tuple[tuple[str, str], ...] = (
    ("RAX", "x86_64"),
    ("EAX", "x86"),
    ("x29", "aarch64"),
    ("GPR00", "ppc64"),
    ("s11", "riscv64"),
    ("status", "riscv64"),
    ("fp", "arm"),
)


def _architecture(builder: ReportBuilder) -> str:
    for name, architecture in _ARCHITECTURES:
        if name in builder.registers:
            return architecture
    text = "\n".join(builder.lines[:200])
    if "Krnl PSW" in text:
        return "s390x"
    if "entry_SYSCALL_64" in text or "x64_sys" in text:
        return "x86_64"
    if "el0_svc" in text or "el0t_64" in text:
        return "aarch64"
    if "\n$ 0 " in text:
        return "mips"
    if ", era == " in text:
        return "loongarch64"
    if (counter := text.find("NIP [")) >= 0:
        return "ppc64" if text[counter + 21 : counter + 22] == "]" else "ppc"
    if ") from [<" in text or "ret_fast_syscall" in text:
        return "arm"
    return ""


def main_trace(report: Report) -> Trace | None:
    """Return the trace that tells where it happened, None if there is none."""
    return next((trace for trace in report.traces if trace.section is Section.MAIN), None)
