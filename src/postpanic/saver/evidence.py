"""
What is saved first, before any page: the kernel log, VMCOREINFO, the registers of the CPUs.

Together it is some hundred KB, the part of a dump that answers most questions.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from postpanic.dumps.memory import Dump
from postpanic.errors import PostpanicError
from postpanic.kernel.log_text import LogStyle, format_record
from postpanic.kernel.memory import KernelMemory

__all__ = ["LOG_NAME", "NOTES_NAME", "VMCOREINFO_NAME", "Evidence", "collect_evidence", "name_dump"]

LOG_NAME = "vmcore-dmesg.txt"
VMCOREINFO_NAME = "vmcoreinfo.txt"
NOTES_NAME = "vmcore-notes.bin"


@dataclass(frozen=True)
class Evidence:
    """Small files by name, and what could not be had."""

    files: dict[str, bytes]
    faults: tuple[str, ...] = ()
    crash_time_s: int | None = None


def collect_evidence(dump: Dump, kernel: KernelMemory | None) -> Evidence:
    """Read what is saved first; what is damaged is left out and named."""
    description = dump.description
    files: dict[str, bytes] = {}
    faults: list[str] = []
    crash_time_s = None
    if kernel is not None:
        from postpanic.kernel.printk.read import read_log

        crash_time_s = kernel.vmcoreinfo.crash_time_s
        try:
            style = LogStyle()
            lines = [format_record(record, style) for record in read_log(kernel)]
            files[LOG_NAME] = "".join(f"{line}\n" for line in lines).encode()
        except PostpanicError as exc:
            faults.append(f"no kernel log: {exc.message}")
    else:
        faults.append("no kernel log: no kernel is found in the memory")
    if description.vmcoreinfo:
        files[VMCOREINFO_NAME] = description.vmcoreinfo
    if description.notes:
        files[NOTES_NAME] = description.notes
    return Evidence(files, tuple(faults), crash_time_s)


def name_dump(node: str, crash_time_s: int | None) -> str:
    """
    Name the directory of a dump: the machine, and when it crashed (UTC).

    >>> name_dump("web7", 1769904000)
    'web7-20260201-000000'
    """
    safe = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in node).lstrip(".-") or "host"
    moment = time.gmtime(crash_time_s or time.time())
    return f"{safe}-{time.strftime('%Y%m%d-%H%M%S', moment)}"
