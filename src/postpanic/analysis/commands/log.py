"""``log``: what the kernel said."""

from __future__ import annotations

import datetime as dt
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from drgn import Object, cast, sizeof
from drgn.helpers.linux.percpu import per_cpu_ptr

from postpanic.analysis.cells import decode, guarded, problem
from postpanic.analysis.commands.arguments import Arguments, Option
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.rustfilt import demangle
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.tasks import possible_cpus
from postpanic.analysis.workspace import Workspace
from postpanic.errors import PostpanicError, UsageError
from postpanic.findings.absent import Reason
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape
from postpanic.kernel.log_text import FACILITIES, LEVELS, escape_text, name_of, parse_levels
from postpanic.kernel.printk import LogRecord, caller_name, read_log

__all__ = ["demangle_records", "log"]

_NS_PER_S = 1_000_000_000
_MAX_MESSAGE_BYTES = 1 << 20
_RUST = re.compile(rb"\b_R[A-Za-z0-9_]{4,}")
"""Symbols of Rust: RFC 2603, Rust symbol name mangling (v0)."""

_DICTIONARY = Shape(
    "dictionary",
    (Column("key", help="SUBSYSTEM or DEVICE."), Column("value", help="As in /dev/kmsg.")),
    Layout.LINES,
    "{key}={value}",
    indent=15,
)
_COLUMNS = (
    Column("sequence", Kind.NUMBER, help="Number of the record; a record of several lines has as many rows."),
    Column("timestamp_ns", Kind.NUMBER, help="Time since boot."),
    Column("time", help="The time as it is shown: seconds, or a date."),
    Column("level", Kind.HEX, help="0 (emergency) to 7 (debug)."),
    Column("level_name", help="The level as dmesg names it."),
    Column("facility", help="The facility as dmesg names it."),
    Column("caller", help="Thread (T) or CPU (C) that printed it, where the kernel records that."),
    Column("text", help="One line of the message."),
    Column("dictionary", Kind.ROWS, help="The device that it is about.", shape=_DICTIONARY),
)
_AUDIT = Shape(
    "audit",
    (
        Column("queue", hidden=True, help="The queue of kernel/audit.c."),
        Column("type", Kind.NUMBER, help="nlmsghdr.nlmsg_type, AUDIT_ of include/uapi/linux/audit.h."),
        Column("text", help="The message."),
    ),
    Layout.LINES,
    "type={type} {text}",
)
_LINES = Shape("safe_lines", (Column("line", help="A line that is not in the log yet."),), Layout.LINES, "  {line}")
_SAFE = Shape(
    "safe_buffers",
    (
        Column("buffer", help="nmi_print_seq or safe_print_seq."),
        Column("cpu", Kind.NUMBER, help="Whose buffer."),
        Column("address", Kind.ADDRESS, help="struct printk_safe_seq_buf."),
        Column("length", Kind.NUMBER, help="Bytes in it."),
        Column("message_lost", Kind.NUMBER, help="Messages that did not fit."),
        Column("lines", Kind.ROWS, help="What is in it.", shape=_LINES),
    ),
    Layout.LINES,
    "PRINTK_SAFE_SEQ_BUF: {buffer}\nCPU: {cpu}  ADDR: {address} LEN: {length}  MESSAGE_LOST: {message_lost}",
)


def _shape(*, time: bool, level: bool, caller: bool) -> Shape:
    parts = ["[{time}] "] if time else []
    parts += ["[{caller:>6}] "] if caller else []
    parts += ["<{level}>"] if level else []
    return Shape("log", _COLUMNS, Layout.LINES, "".join([*parts, "{text}"]))


@command(
    "log",
    summary="the kernel's log",
    description=(
        "Show the log in the order in which it was written. It is found without types and symbols, so it is there when "
        "little else is. Each line of a message has its time; a record that is damaged says so.\n\n"
        "Dates (-T) are reckoned from the time at which the dump was made, back by the log's own clock."
    ),
    options=(
        Option("-T", "dates", "dates in place of seconds since boot"),
        Option("-t", "plain", "without times"),
        Option("-d", "dictionary", "the devices that messages are about, below them"),
        Option("-m", "level", "the level in front of each message"),
        Option("-c", "caller", "the thread or CPU that printed it"),
        Option("-l", "levels", "only these levels: err,warn; err+ is err and worse", "LEVELS"),
        Option("-a", "audit", "audit messages that the audit daemon has not read"),
        Option("-s", "safe", "messages of NMIs that are not in the log yet (kernels before 5.15)"),
        Option("-R", "rust", "symbols of Rust as in their source"),
    ),
    shapes=(_shape(time=True, level=False, caller=False), _AUDIT, _SAFE),
    examples=(
        Example("log | tail", "its end"),
        Example("log -l warn+", "warnings and worse"),
        Example("log -Tc", "with dates and callers"),
    ),
)
def log(workspace: Workspace, arguments: Arguments) -> Answer:
    """Show the kernel's log."""
    problems: list[Problem] = []
    if arguments.has("audit"):
        return Answer("log", (_AUDIT.table(list(_read_audit(workspace, problems))),), tuple(problems))
    if arguments.has("safe"):
        return Answer("log", (_SAFE.table(list(_read_safe(workspace, problems))),), tuple(problems))
    if arguments.has("dates") and arguments.has("plain"):
        raise UsageError("log: -T and -t exclude each other")
    records = read_log(workspace.memory)
    levels = parse_levels(text) if (text := arguments.get("levels")) is not None else None
    spell = _speller(workspace, records, problems) if arguments.has("dates") else _seconds
    shape = _shape(time=not arguments.has("plain"), level=arguments.has("level"), caller=arguments.has("caller"))
    damaged = [record for record in records if record.damage]
    if damaged:
        what = f"{len(damaged)} damaged records, the first is {damaged[0].seq}: {damaged[0].damage}"
        problems.append(Problem(what, Reason.DAMAGED))
    if arguments.has("rust"):
        records = demangle_records(records, problems)
    rows = [
        row
        for record in records
        if levels is None or record.level in levels
        for row in _record_rows(record, spell, with_dictionary=arguments.has("dictionary"))
    ]
    return Answer("log", (shape.table(rows),), tuple(problems))


def _record_rows(
    record: LogRecord, spell: Callable[[int], str], *, with_dictionary: bool
) -> Iterator[tuple[Cell, ...]]:
    text = f"(unavailable: {record.damage})" if record.damage and not record.text else escape_text(record.text)
    pairs = [("SUBSYSTEM", record.subsystem), ("DEVICE", record.device)]
    dictionary = _DICTIONARY.table([pair for pair in pairs if pair[1]]) if with_dictionary else None
    head = (
        record.seq,
        record.timestamp_ns,
        spell(record.timestamp_ns),
        record.level,
        name_of(LEVELS, record.level),
        name_of(FACILITIES, record.facility),
        caller_name(record.caller_id),
    )
    lines = text.split("\n")
    for number, line in enumerate(lines):
        yield (*head, line, dictionary if number + 1 == len(lines) else None)


def demangle_records(records: list[LogRecord], problems: list[Problem]) -> list[LogRecord]:
    """Spell the symbols of Rust in messages; where that cannot be done, they stay."""
    symbols = sorted({match.group() for record in records for match in _RUST.finditer(record.text)})
    if not symbols:
        return records
    try:
        names = dict(zip(symbols, demangle([symbol.decode() for symbol in symbols]), strict=True))
    except (PostpanicError, ValueError) as exc:
        problems.append(problem("symbols of Rust", exc))
        return records
    return [
        replace(entry, text=_RUST.sub(lambda found: names[found.group()].encode(), entry.text)) for entry in records
    ]


def _seconds(timestamp_ns: int) -> str:
    return f"{timestamp_ns // _NS_PER_S:5}.{timestamp_ns % _NS_PER_S // 1000:06}"


def _speller(workspace: Workspace, records: Sequence[LogRecord], problems: list[Problem]) -> Callable[[int], str]:
    """
    Return what spells the log's times as dates.

    ``CRASHTIME`` of VMCOREINFO is the wall-clock time right after the last
    message (``crash_save_vmcoreinfo()``, ``kernel/vmcore_info.c``).
    """
    crash_time_s = workspace.memory.vmcoreinfo.crash_time_s
    if crash_time_s is None or not records:
        problems.append(
            Problem("the dump has no time of the crash, so times are seconds since boot", Reason.NOT_PRESENT)
        )
        return _seconds
    boot_time_s = crash_time_s - records[-1].timestamp_ns / _NS_PER_S

    def spell(timestamp_ns: int) -> str:
        try:
            moment = dt.datetime.fromtimestamp(boot_time_s + timestamp_ns / _NS_PER_S).astimezone()
        except (ValueError, OverflowError, OSError):
            return _seconds(timestamp_ns)
        return moment.strftime("%a %b %e %T %Z %Y")

    return spell


def _read_audit(workspace: Workspace, problems: list[Problem]) -> Iterator[tuple[Cell, ...]]:
    """Read the queues of ``kernel/audit.c``: buffers with a ``struct nlmsghdr`` and a text each."""
    prog = workspace.prog
    for name in ("audit_hold_queue", "audit_retry_queue", "audit_queue", "audit_skb_queue", "audit_skb_hold_queue"):
        try:
            head = Object(prog, "struct sk_buff_head", address=prog.symbol(name).address)
            buffers = guarded(_buffers(head), f"queue {name}", problems)
        except LookupError:
            continue
        for buffer in buffers:
            try:
                header = Object(prog, "struct nlmsghdr", address=buffer.data.value_()).read_()
                length = min(int(header.nlmsg_len.value_()), _MAX_MESSAGE_BYTES) - int(sizeof(header))
                start = int(buffer.data.value_()) + int(sizeof(header))
                text = decode(bytes(prog.read(start, max(0, length))).split(b"\0", 1)[0])
                yield (name, int(header.nlmsg_type.value_()), text)
            except UNREADABLE as exc:
                problems.append(problem(f"message in {name}", exc))


def _buffers(head: Object) -> Iterator[Object]:
    end = head.address_
    buffer = head.next.read_()
    while buffer.value_() != end:
        yield buffer
        buffer = buffer.next.read_()


def _read_safe(workspace: Workspace, problems: list[Problem]) -> Iterator[tuple[Cell, ...]]:
    """Read ``struct printk_safe_seq_buf`` of each CPU (``kernel/printk/printk_safe.c`` until 93d102f094be, 5.15)."""
    prog = workspace.prog
    found = False
    for name in ("nmi_print_seq", "safe_print_seq"):
        try:
            variable = Object(prog, "struct printk_safe_seq_buf", address=prog.symbol(name).address)
        except LookupError:
            continue
        found = True
        for cpu in possible_cpus(workspace):
            try:
                yield _safe_row(name, cpu, per_cpu_ptr(variable.address_of_(), cpu))
            except UNREADABLE as exc:
                problems.append(problem(f"{name} of CPU {cpu}", exc))
    if not found:
        problems.append(
            Problem("this kernel has no such buffers: since 5.15 NMIs print as all others", Reason.NOT_PRESENT)
        )


def _safe_row(name: str, cpu: int, buffer: Object) -> tuple[Cell, ...]:
    length = struct.unpack("<i", struct.pack("<I", int(buffer.len.counter.value_()) & 0xFFFFFFFF))[0]
    lost = int(buffer.message_lost.counter.value_())
    start = int(cast("unsigned long", buffer.buffer.address_of_()).value_())
    size = max(0, min(length, int(sizeof(buffer.buffer))))
    text = bytes(buffer.prog_.read(start, size))
    lines: list[tuple[Cell, ...]] = [(decode(line),) for line in text.rstrip(b"\n").split(b"\n") if line]
    return (name, cpu, int(buffer.value_()), length, lost, _LINES.table(lines or [("(empty)",)]))
