"""``postpanic dmesg``: the kernel log of a dump, without drgn or debug information."""

from __future__ import annotations

import sys
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from postpanic.cli.log_format import LogStyle, format_json, format_record, parse_facilities, parse_levels
from postpanic.cli.verb import Verb
from postpanic.errors import UsageError

if TYPE_CHECKING:
    from postpanic.kernel.memory import KernelMemory
    from postpanic.kernel.printk import LogRecord

__all__ = ["command"]

NS_PER_S = 1_000_000_000
LINES_PER_WRITE = 512


@click.command(cls=Verb, name="dmesg")
@click.argument("dump", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="DUMP...")
@click.option("-T", "--ctime", "as_date", is_flag=True, help="Print times as local dates.")
@click.option("-t", "--notime", is_flag=True, help="Print no times.")
@click.option("-x", "--decode", is_flag=True, help="Print facility and level in words.")
@click.option("-r", "--raw", is_flag=True, help="Print the priority as <N>.")
@click.option("--caller", is_flag=True, help="Print the thread (T) or CPU (C) that logged each line.")
@click.option(
    "-l", "--level", "level_list", metavar="LEVELS", help="Print these levels only: err,warn; err+ is err and worse."
)
@click.option("-f", "--facility", "facility_list", metavar="FACILITIES", help="Print these facilities only.")
@click.option(
    "--since", "since_s", type=float, metavar="SECONDS", help="Print from this time on; negative: before the last line."
)
@click.option(
    "--until", "until_s", type=float, metavar="SECONDS", help="Print up to this time; negative: before the last line."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per record and line.")
def command(
    dump: tuple[Path, ...],
    as_date: bool,
    notime: bool,
    decode: bool,
    raw: bool,
    caller: bool,
    level_list: str | None,
    facility_list: str | None,
    since_s: float | None,
    until_s: float | None,
    as_json: bool,
) -> int:
    r"""
    Print the kernel log of a dump.

    The log is found through VMCOREINFO alone; neither debug information nor
    symbols are needed. The options are those of dmesg(1). A record of several
    lines gets its prefix on each. Control characters, and bytes that are not
    UTF-8, are printed as \xNN.

        postpanic dmesg dump.201901010000 | tail
        postpanic dmesg -T -x -l warn+ dump.201901010000
        postpanic dmesg --since -30 dump.201901010000
        postpanic dmesg --json dump.201901010000 | jq -r 'select(.level == "err").text'

    Levels: emerg, alert, crit, err, warn, notice, info, debug. Facilities:
    kern, user, daemon and the others of syslog(3). Times of --since and
    --until are in seconds as the log has them.

    Dates (-T) are reckoned back from the time of the crash, which the kernel
    notes together with its last words; they are right to a second or so. In a
    dump without that time (CRASHTIME), seconds since boot are printed, and a
    warning.

    With --json each record is an object with seq, timestamp (seconds since
    boot), level, facility, caller, text and dict (SUBSYSTEM and DEVICE, where
    the message is about a device).
    """
    if raw and (decode or as_date):
        raise UsageError("--raw excludes --decode and --ctime")
    choice = _Choice(
        parse_levels(level_list) if level_list is not None else None,
        parse_facilities(facility_list) if facility_list is not None else None,
        since_s,
        until_s,
    )
    from postpanic.dumps.open import open_dump
    from postpanic.kernel.memory import open_kernel_memory
    from postpanic.kernel.printk import read_log

    with open_dump(dump) as opened:
        memory = open_kernel_memory(opened)
        records = read_log(memory)
        boot_time_s = _find_boot_time(memory, records) if as_date else None
    style = LogStyle(time=not notime, decode=decode, raw=raw, caller=caller, boot_time_s=boot_time_s)
    chosen = choice.choose(records)
    _print_lines(format_json(record) if as_json else format_record(record, style) for record in chosen)
    _warn(records, as_date=as_date and boot_time_s is None, caller=caller)
    return 0


@dataclass(frozen=True)
class _Choice:
    """Which records are printed; None for all."""

    levels: Container[int] | None
    facilities: Container[int] | None
    since_s: float | None
    until_s: float | None

    def choose(self, records: Sequence[LogRecord]) -> Iterator[LogRecord]:
        """Give those records."""
        last_s = records[-1].timestamp_ns / NS_PER_S if records else 0.0
        start_s, end_s = _from_last(self.since_s, last_s), _from_last(self.until_s, last_s)
        for record in records:
            if (
                (self.levels is None or record.level in self.levels)
                and (self.facilities is None or record.facility in self.facilities)
                and (start_s is None or record.timestamp_ns >= start_s * NS_PER_S)
                and (end_s is None or record.timestamp_ns <= end_s * NS_PER_S)
            ):
                yield record


def _from_last(time_s: float | None, last_s: float) -> float | None:
    """Count a negative time back from the last record."""
    return last_s + time_s if time_s is not None and time_s < 0 else time_s


def _find_boot_time(memory: KernelMemory, records: list[LogRecord]) -> float | None:
    """
    Reckon the wall-clock time at time 0 of the log, or None.

    ``CRASHTIME`` is ``ktime_get_real_seconds()`` when the crash path saved its
    notes, right after its last message (``crash_save_vmcoreinfo()``,
    ``kernel/vmcore_info.c``).
    """
    crash_time_s = memory.vmcoreinfo.crash_time_s
    if crash_time_s is None or not records:
        return None
    return crash_time_s - records[-1].timestamp_ns / NS_PER_S


def _print_lines(lines: Iterator[str]) -> None:
    """Write in blocks: logs have tens of thousands of lines."""
    block: list[str] = []
    for line in lines:
        block.append(line)
        if len(block) >= LINES_PER_WRITE:
            sys.stdout.write("\n".join(block) + "\n")
            block.clear()
    if block:
        sys.stdout.write("\n".join(block) + "\n")
    sys.stdout.flush()


def _warn(records: list[LogRecord], *, as_date: bool, caller: bool) -> None:
    damaged = [record for record in records if record.damage]
    if damaged:
        first = damaged[0]
        print(f"warning: {len(damaged)} damaged records, the first is {first.seq}: {first.damage}", file=sys.stderr)
    if as_date:
        print("warning: the dump has no time of the crash, so times are seconds since boot", file=sys.stderr)
    if caller and not any(record.caller_id for record in records):
        print("warning: this kernel did not record callers (CONFIG_PRINTK_CALLER)", file=sys.stderr)
