"""Reports as an answer: tables of typed cells, for text, JSON and HTML."""

from __future__ import annotations

from collections.abc import Sequence

from postpanic.evidence.oops.model import Frame, Report
from postpanic.evidence.oops.signature import bucket_of
from postpanic.findings.absent import Absent, Reason
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape, Table

__all__ = ["SHAPES", "answer_of"]

FRAMES = Shape(
    "frames",
    (
        Column("context", title="STACK", help="IRQ, NMI, TASK or an exception stack"),
        Column("mark", help="? where the frame was only found on the stack"),
        Column("function", title="FUNCTION"),
        Column("offset", Kind.HEX, prefix="+0x", help="bytes into the function"),
        Column("size", Kind.HEX, prefix="/0x", help="length of the function, bytes"),
        Column("module", prefix=" [", suffix="]"),
        Column("address", Kind.ADDRESS, hidden=True),
        Column("is_inline", Kind.BOOL, hidden=True),
        Column("location", prefix=" ", help="file:line, where the log was symbolised"),
        Column("module_build_id", hidden=True),
    ),
    layout=Layout.LINES,
    line="  {mark:<1} {function}{offset}{size}{module}{location}",
    indent=2,
)
TRACES = Shape(
    "traces",
    (
        Column("section", title="SECTION", help="main, allocated, freed, lock, cpu, task …"),
        Column("cpu", Kind.NUMBER, prefix=" cpu "),
        Column("title", prefix=" (", suffix=")", help="the line that announced it"),
        Column("frames", Kind.ROWS, shape=FRAMES),
    ),
    layout=Layout.LINES,
    line="{section}{cpu}{title}",
    title="Traces:",
    indent=2,
)
BLAME = Shape(
    "blame",
    (
        Column("rank", Kind.NUMBER, title="RANK"),
        Column("function", title="FUNCTION"),
        Column("module", title="MODULE"),
        Column("reason", title="REASON"),
    ),
    title="Functions to blame, the best guess first:",
    indent=2,
)
LOCKS = Shape(
    "locks",
    (
        Column("name", title="LOCK"),
        Column("function", title="TAKEN IN"),
        Column("is_wanted", Kind.BOOL, title="WANTED", help="asked for, not held"),
    ),
    title="Locks:",
    indent=2,
)
REGISTERS = Shape(
    "registers",
    (Column("name", title="REGISTER"), Column("value", Kind.ADDRESS, title="VALUE")),
    title="Registers:",
    indent=2,
)
DETAILS = Shape("details", (Column("name", title="NAME"), Column("value", title="VALUE")), title="Details:", indent=2)
REPORTS = Shape(
    "reports",
    (
        Column("number", Kind.NUMBER, title="REPORT"),
        Column("title", title="TITLE"),
        Column("kind", title="KIND"),
        Column("family", title="FAMILY", hidden=True),
        Column("variant", title="VARIANT"),
        Column("message", title="MESSAGE"),
        Column("time_s", Kind.REAL, title="TIME", format=".6f", suffix=" s"),
        Column("access", title="ACCESS"),
        Column("address", Kind.ADDRESS, title="ADDRESS"),
        Column("size_bytes", Kind.NUMBER, title="SIZE", suffix=" bytes"),
        Column("comm", title="COMMAND"),
        Column("pid", Kind.NUMBER, title="PID"),
        Column("cpu", Kind.NUMBER, title="CPU"),
        Column("release", title="RELEASE"),
        Column("build_id", title="BUILD ID", help="of the kernel"),
        Column("kaslr_offset", Kind.HEX, title="KERNEL OFFSET", prefix="0x", help="how far the text was moved, bytes"),
        Column("kaslr_base", Kind.ADDRESS, title="MOVED FROM", hidden=True),
        Column("architecture", title="ARCHITECTURE"),
        Column("taint", title="TAINT"),
        Column("hardware", title="HARDWARE"),
        Column("workqueue", title="WORKQUEUE"),
        Column("source", title="SOURCE", help="file:line of a BUG or a WARNING"),
        Column("condition", title="CONDITION"),
        Column("is_panic", Kind.BOOL, title="PANIC", help="whether the kernel panicked after it"),
        Column("is_notice", Kind.BOOL, title="NOTICE", help="whether the kernel survives it by design", hidden=True),
        Column("panic_message", title="PANIC MESSAGE"),
        Column("consequence_of", Kind.NUMBER, title="MAY FOLLOW FROM", help="number of the first report of the boot"),
        Column("damage", title="DAMAGE", help="why it cannot be trusted whole"),
        Column("signature", title="SIGNATURE"),
        Column("bucket", title="BUCKET"),
        Column("code", title="CODE"),
        Column("modules", title="MODULES"),
        Column("blame", Kind.ROWS, shape=BLAME),
        Column("traces", Kind.ROWS, shape=TRACES),
        Column("locks", Kind.ROWS, shape=LOCKS),
        Column("registers", Kind.ROWS, shape=REGISTERS),
        Column("details", Kind.ROWS, shape=DETAILS),
        Column("offset", Kind.NUMBER, hidden=True, help="place of its first line in the text, bytes"),
        Column("end", Kind.NUMBER, hidden=True, help="place of its last line in the text, bytes"),
    ),
    layout=Layout.FIELDS,
)
SHAPES = (REPORTS,)
"""Of all tables of the answer."""


def answer_of(reports: Sequence[Report], command: str = "decode") -> Answer:
    """
    Make the answer of a command from reports.

    Parameters
    ----------
    command : str
        Its name.
    """
    rows = [_row(number, report) for number, report in enumerate(reports)]
    problems = tuple(
        Problem(f"report {number} ({report.title}): {reason}", Reason.DAMAGED)
        for number, report in enumerate(reports)
        for reason in report.damage
    )
    return Answer(command, (REPORTS.table(rows),), problems)


def _row(number: int, report: Report) -> tuple[Cell, ...]:
    cells: dict[str, Cell] = {
        "number": number,
        "kind": report.kind.value,
        "family": report.family.value,
        "access": report.access.value if report.access is not None else None,
        "address": _fits(report.address),
        "kaslr_offset": _fits(report.kaslr_offset),
        "kaslr_base": _fits(report.kaslr_base),
        "damage": "; ".join(report.damage) or None,
        "modules": " ".join(report.modules) or None,
        "bucket": bucket_of(report),
        "blame": _unless_empty(
            BLAME.table([(rank, b.function, b.module, b.reason) for rank, b in enumerate(report.blame, 1)])
        ),
        "traces": _unless_empty(_traces(report)),
        "locks": _unless_empty(LOCKS.table([(lock.name, lock.function, lock.is_wanted) for lock in report.locks])),
        "registers": _unless_empty(REGISTERS.table([(name, _fits(value)) for name, value in report.registers.items()])),
        "details": _unless_empty(DETAILS.table(list(report.details.items()))),
    }
    return tuple(
        cells[column.name] if column.name in cells else _plain(getattr(report, column.name))
        for column in REPORTS.columns
    )


def _unless_empty(table: Table) -> Cell:
    return table if table.rows else None


def _plain(value: Cell) -> Cell:
    return None if value == "" else value


def _fits(value: int | None) -> Cell:
    if value is not None and value >= 1 << 64:
        return Absent(Reason.DAMAGED, f"{value:#x} has more than 64 bits")
    return value


def _traces(report: Report) -> Table:
    return TRACES.table(
        [
            (
                trace.section.value,
                trace.cpu,
                trace.title or None,
                FRAMES.table([_frame(frame) for frame in trace.frames]),
            )
            for trace in report.traces
        ]
    )


def _frame(frame: Frame) -> tuple[Cell, ...]:
    return (
        frame.context or None,
        "" if frame.is_reliable else "?",
        frame.function or (f"{frame.address:#x}" if frame.address is not None else "?"),
        frame.offset,
        frame.size,
        frame.module or None,
        _fits(frame.address),
        frame.is_inline,
        frame.location or None,
        frame.module_build_id or None,
    )
