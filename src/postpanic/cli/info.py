"""``postpanic info``: what a dump file is and what is in it, without drgn or debug information."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from postpanic.cli.verb import Verb
from postpanic.units import format_size

if TYPE_CHECKING:
    from postpanic.cli.summary import DumpSummary

__all__ = ["command", "format_summary"]

LEVEL_BITS = ((1, "zero pages"), (2, "page cache"), (4, "private page cache"), (8, "user pages"), (16, "free pages"))
"""Bits of makedumpfile's ``-d``."""

KEY_WIDTH = 15


@click.command(cls=Verb, name="info")
@click.argument("dump", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="DUMP...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--vmcoreinfo", "show_vmcoreinfo", is_flag=True, help="Print the whole VMCOREINFO text as well.")
@click.option("--ranges", "show_ranges", is_flag=True, help="Print each range of RAM as well.")
def command(dump: tuple[Path, ...], as_json: bool, show_vmcoreinfo: bool, show_ranges: bool) -> int:
    """
    Say what a dump file is and what is in it.

    Shown are the format, the dump level and compression, whether the file is
    complete; how much RAM the machine had and how many pages the file holds;
    the kernel's release, build ID, KASLR offset and the time of the crash;
    the CPUs whose registers were saved; and whether the kernel's own symbols
    and types are in the dump, from which "postpanic open" works without debug
    information. Several files are the parts of one split dump.

        postpanic info dump.201901010000
        postpanic info --json dump.201901010000 | jq -r .kernel.build_id
        postpanic info --vmcoreinfo vmcore | grep KERNELOFFSET

    What cannot be found is named with the reason, and is no failure. The exit
    status is 2 if the file is not a dump or its headers are damaged.
    """
    from postpanic.cli.progress import Progress
    from postpanic.cli.summary import summarize_dump
    from postpanic.dumps.open import open_dump

    with Progress() as progress, open_dump(dump) as opened:
        progress("reading the dump")
        summary = summarize_dump(opened)
    if as_json:
        print(json.dumps(summary.to_json(), indent=2))
        return 0
    print(format_summary(summary))
    if show_ranges:
        print("\nRAM:")
        for start, end in summary.ram_ranges:
            print(f"  {start:#018x}-{end - 1:#018x}  {format_size(end - start)}")
    if show_vmcoreinfo and summary.kernel is not None:
        print(f"\n{summary.kernel.vmcoreinfo.text.decode('utf-8', 'backslashreplace').rstrip()}")
    return 0


def format_summary(summary: DumpSummary) -> str:
    """Lay the summary out as ``key: value`` lines, keys padded to one width."""
    rows = [*_file_rows(summary), *_memory_rows(summary), *_kernel_rows(summary), *_content_rows(summary)]
    return "\n".join(f"{key + ':':<{KEY_WIDTH}} {value}" for key, value in rows)


def _file_rows(summary: DumpSummary) -> list[tuple[str, str]]:
    description = summary.description
    rows = [("format", description.format)]
    rows += [("file", path) for path in description.paths]
    rows += [("size", format_size(description.file_size_bytes))]
    if description.dump_level is not None:
        rows.append(("dump level", describe_level(description.dump_level)))
    rows.append(("compression", ", ".join(description.compression) or "none"))
    rows.append(("complete", f"no: {description.incomplete}" if description.incomplete else "yes"))
    rows += [("warning", warning) for warning in description.warnings]
    return rows


def describe_level(level: int) -> str:
    """
    Say which pages makedumpfile left out at a dump level.

    >>> describe_level(17)
    '17 (left out: zero pages, free pages)'
    """
    names = [name for bit, name in LEVEL_BITS if level & bit]
    return f"{level} (left out: {', '.join(names)})" if names else f"{level} (nothing left out)"


def _memory_rows(summary: DumpSummary) -> list[tuple[str, str]]:
    description = summary.description
    machine = description.machine or "unknown machine"
    pages = ", ".join(f"{count} {state}" for state, count in summary.page_counts.items() if count)
    return [
        ("machine", f"{machine}, {description.byte_order}-endian, pages of {description.page_size_bytes} bytes"),
        ("RAM", f"{format_size(summary.ram_bytes)} in {len(summary.ram_ranges)} ranges"),
        ("pages", pages or "none"),
        (
            "CPUs",
            f"registers of {summary.cpu_count} in the notes" if summary.cpu_count else "no registers in the notes",
        ),
    ]


def _kernel_rows(summary: DumpSummary) -> list[tuple[str, str]]:
    kernel = summary.kernel
    if kernel is None:
        return [("kernel", f"(unavailable: {summary.kernel_reason})")]
    info = kernel.vmcoreinfo
    rows = [("kernel", info.osrelease or "(unavailable: VMCOREINFO has no OSRELEASE)")]
    if version := summary.utsname.get("version"):
        rows.append(("version", version))
    if node := summary.utsname.get("nodename"):
        rows.append(("node", node))
    rows.append(("build ID", info.build_id or "(unavailable: the kernel does not write it to VMCOREINFO)"))
    rows.append(
        ("KASLR offset", "(unavailable: no KERNELOFFSET)" if info.kerneloffset is None else hex(info.kerneloffset))
    )
    rows.append(("crash time", _crash_time(info.crash_time_s)))
    rows.append(("VMCOREINFO", f"{len(info.text)} bytes, {info.source}"))
    return rows


def _crash_time(crash_time_s: int | None) -> str:
    if crash_time_s is None:
        return "(unavailable: no CRASHTIME, the kernel did not crash through kexec)"
    try:
        return dt.datetime.fromtimestamp(crash_time_s, tz=dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return f"(unavailable: CRASHTIME is {crash_time_s})"


def _content_rows(summary: DumpSummary) -> list[tuple[str, str]]:
    return [
        (content.name, content.value if not content.reason else f"(unavailable: {content.reason})")
        for content in summary.contents
    ]
