"""The facts that an engineer wants on the first page, in that order; each says why it is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from postpanic.analysis.banner import read_banner
from postpanic.analysis.cells import absent
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.decode.addresses import describe_address
from postpanic.analysis.decode.errorcodes import find_error_codes
from postpanic.analysis.decode.taint import spell_taint
from postpanic.analysis.page.evidence import run_line
from postpanic.analysis.triage import Scene
from postpanic.evidence.oops import Report, Section
from postpanic.findings.absent import Absent, Reason
from postpanic.findings.page import Fact

__all__ = ["read_facts"]

_Reported: TypeAlias = tuple[str, str, Callable[[], str]]
"""Name, command that shows it, and how it is computed."""
_SHOWN_FRAMES = 8
_DMI = ("DMI_SYS_VENDOR", "DMI_PRODUCT_NAME", "DMI_BIOS_VERSION", "DMI_BIOS_DATE")

_NOT_HERE = Absent(Reason.NOT_APPLICABLE)
_NO_REPORT = Absent(Reason.NOT_PRESENT, "the log holds no report")
_ONLY_LOG = Absent(Reason.NOT_PRESENT, "there is only a log")
_BANNER = (
    ("Release", "RELEASE"),
    ("Version", "VERSION"),
    ("Host", "NODENAME"),
    ("Machine", "MACHINE"),
    ("CPUs", "CPUS"),
    ("Memory", "MEMORY"),
    ("Date", "DATE"),
    ("Uptime", "UPTIME"),
    ("Load average", "LOAD AVERAGE"),
    ("Tasks", "TASKS"),
    ("Task that panicked", "COMMAND"),
    ("Its PID", "PID"),
    ("Its CPU", "CPU"),
    ("Debug information", "DEBUG INFO"),
    ("Dump", "DUMPFILE"),
)


def read_facts(scene: Scene) -> tuple[Fact, ...]:
    """Read all facts; nothing is raised: what cannot be read says why."""
    return (*_of_report(scene, scene.first), *_of_machine(scene))


def _of_report(scene: Scene, report: Report | None) -> Iterator[Fact]:
    if report is None:
        yield Fact("First event", _NO_REPORT, "log")
        return
    for name, command, compute in _reported(scene, report):
        try:
            value: str | Absent = compute() or _NOT_HERE
        except UNREADABLE as exc:
            value = absent(exc)
        yield Fact(name, value, command)


def _reported(scene: Scene, report: Report) -> tuple[_Reported, ...]:
    return (
        ("First event", "log", lambda: report.title),
        ("Its place among the reports", "log", lambda: _order(scene, report)),
        ("Message", "log", lambda: report.message),
        ("Panic", "sys", lambda: scene.final.panic_message if scene.final is not None else ""),
        ("Task", "bt", lambda: _task(report)),
        ("Workqueue", "log", lambda: report.workqueue),
        ("Context", "bt", lambda: _context(report)),
        ("Error code", "log", lambda: _error_codes(report)),
        ("Address", "log", lambda: _address(report)),
        ("Instruction", "bt", lambda: _instruction(scene)),
        ("Source", "log", lambda: report.source),
        ("Condition", "log", lambda: report.condition),
        ("Trace", "bt", lambda: _trace(report)),
        ("Blamed by the report", "log", lambda: _blame(report)),
        ("Locks", "log", lambda: _locks(report)),
        ("Details", "log", lambda: _details(report)),
        ("Taint", "mod -t", lambda: _taint(report)),
        ("Modules", "mod", lambda: _modules(report)),
        ("Hardware errors", "log", lambda: _hardware_errors(scene)),
        ("State of the report", "log", lambda: _damage(report)),
        ("Signature", "", lambda: report.signature),
    )


def _of_machine(scene: Scene) -> Iterator[Fact]:
    if scene.workspace is None:
        yield Fact("Machine", _ONLY_LOG)
        return
    banner = {line.key: line for line in read_banner(scene.workspace.opened)}
    for name, key in _BANNER:
        line = banner.get(key)
        if line is not None:
            yield Fact(name, line.value or Absent(Reason.UNREADABLE, line.reason), "sys")
    yield Fact("Hardware", _hardware(scene), "sys -i")
    yield Fact("Kernel build ID", scene.workspace.memory.vmcoreinfo.build_id or _NOT_HERE)
    yield Fact("KASLR offset", f"{scene.workspace.memory.kaslr_offset:#x}")


def _hardware(scene: Scene) -> str | Absent:
    try:
        rows = run_line(scene.dump, "sys -i").table.records()
    except UNREADABLE as exc:
        return absent(exc)
    known = {str(row["field"]): str(row["value"]) for row in rows}
    words = [known.get(name, "") for name in _DMI]
    return " ".join(word for word in words if word) or Absent(Reason.NOT_PRESENT, "no DMI table")


def _order(scene: Scene, report: Report) -> str:
    real = [each for each in scene.reports if not each.is_notice]
    place = real.index(report) + 1 if report in real else 1
    return f"#{place} of {len(real)}" + (", and the kernel panicked after it" if report.is_panic else "")


def _context(report: Report) -> str:
    frames = next((trace.frames for trace in report.traces if trace.section is Section.MAIN), ())
    contexts = list(dict.fromkeys(frame.context for frame in frames if frame.context))
    words = [f"CPU {report.cpu}"] if report.cpu is not None else []
    words += [f"stacks: {', '.join(contexts)}"] if contexts else []
    return "; ".join(words)


def _task(report: Report) -> str:
    return f"{report.comm} (PID {report.pid})" if report.comm else ""


def _address(report: Report) -> str:
    if report.address is None:
        return ""
    kind = describe_address(report.address, report.architecture)
    access = f"{report.access.value} of " if report.access is not None else ""
    return f"{access}{report.address:#x}" + (f": {kind}" if kind else "")


def _error_codes(report: Report) -> str:
    codes = find_error_codes(report.lines, report.architecture)
    return "; ".join(f"{code.name} {code.value:#x}: {code.meaning}" for code in codes)


def _instruction(scene: Scene) -> str:
    fault = scene.fault
    if fault is None or fault.pc is None:
        return ""
    place = fault.place
    return f"{place.function}+{place.offset:#x}" + (f" [{place.module}]" if place.module else "") if place else ""


def _trace(report: Report) -> str:
    frames = next((trace.frames for trace in report.traces if trace.section is Section.MAIN), ())
    names = [frame.function for frame in frames if frame.is_reliable and frame.function]
    return " < ".join(names[:_SHOWN_FRAMES]) + (" …" if len(names) > _SHOWN_FRAMES else "")


def _blame(report: Report) -> str:
    return "; ".join(f"{each.function}: {each.reason}" for each in report.blame[:3])


def _locks(report: Report) -> str:
    return "; ".join(f"{lock.name} in {lock.function}" for lock in report.locks)


def _details(report: Report) -> str:
    return "; ".join(f"{name}: {value}" for name, value in report.details.items())


def _taint(report: Report) -> str:
    return "; ".join(f"{letter} ({meaning})" for letter, _, meaning in spell_taint(report.taint))


def _modules(report: Report) -> str:
    frames = [frame for trace in report.traces for frame in trace.frames]
    in_trace = list(dict.fromkeys(frame.module for frame in frames if frame.module))
    words = [f"{len(report.modules)} loaded"] if report.modules else []
    words += [f"in the traces: {', '.join(in_trace)}"] if in_trace else []
    return "; ".join(words)


def _damage(report: Report) -> str:
    return "; ".join(report.damage) or "the report is whole"


def _hardware_errors(scene: Scene) -> str:
    return f"{len(scene.hardware_errors)} in the log" if scene.hardware_errors else "none in the log"
