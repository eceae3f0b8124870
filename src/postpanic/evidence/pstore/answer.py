"""Crashes out of persistent storage as an answer: tables of typed cells, for text, JSON and HTML."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence

from postpanic.errors import PostpanicError
from postpanic.evidence.hardware import (
    HardwareError,
    decode_cper,
    decode_mce_record,
    error_of_check,
    errors_of,
    find_hardware_errors,
    hardware_answer,
)
from postpanic.evidence.oops.answer import REPORTS, answer_of
from postpanic.evidence.oops.model import Report
from postpanic.evidence.pstore.ftrace import Call, decode_calls
from postpanic.evidence.pstore.model import Crash, Record, RecordType
from postpanic.evidence.pstore.overlap import first_stamp, last_stamp
from postpanic.evidence.pstore.sources import Source
from postpanic.findings.absent import Absent, Reason
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape, Table
from postpanic.units import format_size

__all__ = ["SHAPES", "pstore_answer"]

_MOST_CALLS = 4096
_LAST_CALLS = 12
_LAST_MESSAGES = 3
_MESSAGES_BYTES = 1024
_SHOWN_OTHERWISE = (RecordType.DMESG, RecordType.FTRACE, RecordType.MCE, RecordType.CPER)

SOURCES = Shape(
    "sources",
    (
        Column("path"),
        Column("format", help="pstore, efivars, efi-store, ramoops, mtdoops, pstore_blk, erst"),
        Column("records", Kind.NUMBER),
        Column("layout", prefix="\n  ", help="of the zones of a memory image"),
    ),
    layout=Layout.LINES,
    line="{path}: {format}, {records} records{layout}",
)
RECORDS = Shape(
    "records",
    (
        Column("name", title="RECORD"),
        Column("type", title="TYPE"),
        Column("source", title="READ FROM"),
        Column("time_s", Kind.REAL, title="TIME", format=".6f"),
        Column("reason", title="REASON"),
        Column("count", Kind.NUMBER, title="COUNT", help="of the dumps since the boot"),
        Column("part", Kind.NUMBER, title="PART", help="1 has the newest text"),
        Column("sequence", Kind.NUMBER, title="SEQUENCE"),
        Column("compression", title="COMPRESSION"),
        Column("stored_bytes", Kind.NUMBER, title="STORED"),
        Column("text_bytes", Kind.NUMBER, title="TEXT"),
        Column("is_checked", Kind.BOOL, title="PARITY"),
        Column("corrected_bytes", Kind.NUMBER, title="CORRECTED"),
        Column("bad_blocks", Kind.NUMBER, title="BAD BLOCKS"),
        Column("notes", title="NOTES"),
        Column("text", hidden=True, help="of records that are neither the log nor binary"),
    ),
)
SUMMARIES = Shape(
    "summaries",
    (
        Column("number", Kind.NUMBER, title="REPORT"),
        Column("title", title="TITLE"),
        Column("is_panic", Kind.BOOL, title="PANIC"),
        Column("comm", title="COMMAND"),
        Column("function", title="BLAMED"),
        Column("signature", title="SIGNATURE"),
    ),
    title="Reports:",
    indent=2,
)
CALLS = Shape(
    "calls",
    (
        Column("cpu", Kind.NUMBER, title="CPU"),
        Column("stamp", Kind.NUMBER, title="STAMP"),
        Column("ip", Kind.ADDRESS, title="ADDRESS"),
        Column("parent_ip", Kind.ADDRESS, title="CALLED FROM"),
        Column("function", title="FUNCTION"),
        Column("parent", title="CALLER"),
    ),
    title="Last calls:",
    indent=2,
)
CRASHES = Shape(
    "crashes",
    (
        Column("number", Kind.NUMBER, title="CRASH"),
        Column("title", title="TITLE"),
        Column("reasons", title="REASON", help="why the kernel wrote it: Oops, Panic …"),
        Column("time", title="TIME"),
        Column("time_s", Kind.REAL, format=".6f", hidden=True),
        Column("backend", title="BACKEND"),
        Column("contents", title="RECORDS"),
        Column("log", title="LOG"),
        Column("quality", title="QUALITY"),
        Column("problems", title="PROBLEMS"),
        Column("messages", title="PROGRAMS", help="the last lines of what programs wrote to /dev/pmsg0"),
        Column("archived", title="ARCHIVED"),
        Column("summaries", Kind.ROWS, shape=SUMMARIES),
        Column("last_calls", Kind.ROWS, shape=CALLS),
        Column("reports", Kind.ROWS, shape=REPORTS, hidden=True),
        Column("records", Kind.ROWS, shape=RECORDS, hidden=True),
        Column("calls", Kind.ROWS, shape=CALLS, hidden=True),
        Column("text", hidden=True, help="the joined log"),
    ),
    layout=Layout.FIELDS,
)
SHAPES = (SOURCES, CRASHES)
"""Of the tables that are always there; :mod:`postpanic.evidence.hardware` has those of its errors."""


def pstore_answer(
    sources: Sequence[Source],
    crashes: Sequence[tuple[Crash, Sequence[Report]]],
    *,
    archived: Mapping[int, str] | None = None,
    problems: Sequence[str] = (),
    full: bool = False,
) -> Answer:
    """
    Make the answer of ``postpanic pstore``.

    Parameters
    ----------
    crashes : sequence of tuple of Crash and sequence of Report
        Each with what was found in its log.
    archived : mapping, optional
        Where crashes are now, by their place in *crashes*.
    problems : sequence of str
        What else went wrong.
    full : bool
        Whether every report and every hardware error is a table of its own, too.
    """
    rows = [
        _row(number, crash, reports, (archived or {}).get(number)) for number, (crash, reports) in enumerate(crashes)
    ]
    tables = [
        SOURCES.table(
            [(str(source.path), source.format.value, len(source.records), source.layout or None) for source in sources]
        ),
        CRASHES.table(rows),
    ]
    errors = [error for crash, _ in crashes for error in _hardware_errors(crash)]
    if errors:
        parts, each = hardware_answer(errors, "pstore").tables
        tables += [parts, each] if full else [parts]
    if full:
        tables += [table for _, reports in crashes if reports for table in answer_of(reports, "pstore").tables]
    noted = [
        Problem(f"crash {number}: {problem}", Reason.DAMAGED)
        for number, (crash, _) in enumerate(crashes)
        for problem in crash.problems
    ]
    return Answer("pstore", tuple(tables), (*(Problem(text, Reason.UNREADABLE) for text in problems), *noted))


def _row(number: int, crash: Crash, reports: Sequence[Report], place: str | None) -> tuple[Cell, ...]:
    calls = decode_calls([record for record in crash.records if record.type is RecordType.FTRACE])
    cells: dict[str, Cell] = {
        "number": number,
        "title": _title(crash, reports),
        "reasons": ", ".join(crash.reasons) or None,
        "time": _spell_time(crash.time_s),
        "time_s": crash.time_s,
        "backend": crash.backend,
        "contents": _contents(crash.records),
        "log": _describe_log(crash.text),
        "quality": str(crash.quality),
        "problems": "\n".join(crash.problems) or None,
        "messages": _last_messages(crash.records),
        "archived": place,
        "summaries": _unless_empty(SUMMARIES.table([_summary(*report) for report in enumerate(reports)])),
        "last_calls": _unless_empty(CALLS.table([_call(call) for call in calls[-_LAST_CALLS:]])),
        "reports": answer_of(reports, "pstore").table if reports else None,
        "records": RECORDS.table([_record(record) for record in crash.records]),
        "calls": _unless_empty(CALLS.table([_call(call) for call in calls[-_MOST_CALLS:]])),
        "text": crash.text.decode(errors="backslashreplace"),
    }
    return tuple(cells[column.name] for column in CRASHES.columns)


def _unless_empty(table: Table) -> Cell:
    return table if table.rows else None


def _title(crash: Crash, reports: Sequence[Report]) -> str:
    if reports:
        # The first event in time is the cause, and not what was loudest.
        return reports[0].title
    kinds = {record.type for record in crash.records}
    if crash.reasons and crash.text:
        return f"{crash.reasons[-1]} without a report in its log"
    if RecordType.MCE in kinds or RecordType.CPER in kinds:
        return "record of a hardware error"
    if not crash.text:
        return f"no log: {', '.join(sorted(kinds))}"
    return "console of a boot, without a report" if kinds <= {RecordType.CONSOLE} else "log without a report"


def _spell_time(time_s: float | None) -> str | None:
    if time_s is None:
        return None
    try:
        return dt.datetime.fromtimestamp(time_s, tz=dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return None


def _contents(records: Sequence[Record]) -> str:
    """Say in one line what a crash was made of."""
    dumps: dict[str, list[int]] = {}
    others: dict[str, int] = {}
    for record in records:
        if record.type is RecordType.DMESG and record.part is not None:
            dumps.setdefault(f"{record.reason}#{record.count}", []).append(record.part)
        else:
            name = record.type.value if record.type is not RecordType.UNKNOWN else record.name
            others[name] = others.get(name, 0) + 1
    parts = [f"{title} {_spell_parts(numbers)}" for title, numbers in dumps.items()]
    return ", ".join([*parts, *(name if count == 1 else f"{count} x {name}" for name, count in others.items())])


def _spell_parts(numbers: Sequence[int]) -> str:
    """
    Spell the parts of a dump.

    >>> _spell_parts([3, 2, 1]), _spell_parts([1]), _spell_parts([5, 3, 1])
    ('parts 1-3', 'part 1', 'parts 1, 3, 5')
    """
    ordered = sorted(set(numbers))
    if len(ordered) == 1:
        return f"part {ordered[0]}"
    if ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"parts {ordered[0]}-{ordered[-1]}"
    return f"parts {', '.join(map(str, ordered))}"


def _last_messages(records: Sequence[Record]) -> str | None:
    """Give the last lines that programs have written; nothing where they are no text."""
    written = b"".join(record.data for record in records if record.type is RecordType.PMSG)
    text = written[-_MESSAGES_BYTES:].decode(errors="replace")
    printable = sum(character.isprintable() or character in "\n\t\r" for character in text)
    lines = [line.strip() for line in text.splitlines() if line.strip()][-_LAST_MESSAGES:]
    return "\n".join(lines) if lines and printable > 0.9 * len(text) else None


def _describe_log(text: bytes) -> str | None:
    if not text:
        return None
    first, last = first_stamp(text), last_stamp(text)
    span = f", {first:.6f} to {last:.6f}" if first is not None and last is not None else ""
    lines = text.count(b"\n") + (not text.endswith(b"\n"))
    return f"{lines} lines, {format_size(len(text))}{span}"


def _summary(number: int, report: Report) -> tuple[Cell, ...]:
    return (number, report.title, report.is_panic, report.comm or None, report.function or None, report.signature)


def _call(call: Call) -> tuple[Cell, ...]:
    return (call.cpu, call.stamp, call.ip, call.parent_ip, call.function or None, call.parent or None)


def _record(record: Record) -> tuple[Cell, ...]:
    cells: dict[str, Cell] = {
        "type": record.type.value,
        "reason": record.reason or None,
        "compression": record.compression or None,
        "stored_bytes": len(record.raw),
        "text_bytes": len(record.data),
        "is_checked": record.quality.is_checked,
        "corrected_bytes": record.quality.corrected_bytes,
        "bad_blocks": record.quality.bad_blocks,
        "notes": "\n".join(record.quality.notes) or None,
        "sequence": _fits(record.sequence),
        "text": record.data.decode(errors="backslashreplace") if record.type not in _SHOWN_OTHERWISE else None,
    }
    return tuple(
        cells[column.name] if column.name in cells else getattr(record, column.name) for column in RECORDS.columns
    )


def _fits(value: int | None) -> Cell:
    # The numbers of ERST have more bits than a reader of JSON keeps.
    if value is not None and value >= 1 << 53:
        return Absent(Reason.NOT_APPLICABLE, f"{value}")
    return value


def _hardware_errors(crash: Crash) -> Iterable[HardwareError]:
    for record in crash.records:
        try:
            if record.type is RecordType.MCE:
                yield error_of_check(decode_mce_record(record.data, where=record.name))
            elif record.type is RecordType.CPER:
                yield from errors_of(decode_cper(record.data, where=record.name))
        except PostpanicError:
            # It is kept as it is; the crash shows that there is such a record.
            continue
    yield from find_hardware_errors(crash.text)
