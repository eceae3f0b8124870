"""
How large a dump of the running machine would be, by what its kernel says of its memory.

What a dump level leaves out is counted by ``/proc/meminfo``
(``Documentation/filesystems/proc.rst``): free pages, the page cache, memory of
processes. What of it turns out to be zeros is not known beforehand.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from postpanic.capture.status.model import Fact
from postpanic.capture.status.subject import Subject

__all__ = ["DumpSize", "estimate_dump"]

_LINE = re.compile(r"^(\w+(?:\(\w+\))?):\s+(\d+)(?: kB)?$", re.MULTILINE)
_CACHE, _PRIVATE_CACHE, _USER, _FREE = 2, 4, 8, 16
_COMPRESSION = 3
"""Kernel memory is compressed by zstd, lzo or zlib to a third of its size, or less."""


@dataclass(frozen=True)
class DumpSize:
    """
    An estimate.

    Attributes
    ----------
    kept_bytes : int
        Memory that the dump would hold: as large as this at most.
    packed_bytes : int
        Compressed, as large as this in all likelihood.
    evidence : tuple of Fact
    """

    kept_bytes: int
    packed_bytes: int
    evidence: tuple[Fact, ...]


def estimate_dump(subject: Subject, level: int) -> DumpSize | None:
    """Estimate the dump that a crash would leave now; None where the kernel's figures cannot be read."""
    reading = subject.read("proc/meminfo")
    values = {name: int(number) << 10 for name, number in _LINE.findall(reading.text or "")}
    if "MemTotal" not in values or "MemFree" not in values:
        return None
    ram = sum(entry.size_bytes for entry in subject.io_memory.system_ram) - (subject.crash_size_bytes or 0)
    total = max(values["MemTotal"], ram)
    huge = values.get("Hugetlb", 0)
    parts: list[tuple[str, int]] = []
    if level & _FREE:
        parts.append(("free", values["MemFree"]))
    if level & _PRIVATE_CACHE:
        cached = sum(values.get(name, 0) for name in ("Cached", "Buffers", "SwapCached"))
        parts.append(("page cache", cached))
    if level & _USER:
        parts.append(("of processes", values.get("AnonPages", 0) + huge))
    kept = max(total - sum(size for _, size in parts), values["MemTotal"] >> 6)
    dropped = ", ".join(f"{name} {size >> 20} MiB" for name, size in parts)
    says = f"{total >> 20} MiB of memory" + (f", of which a dump leaves out: {dropped}" if dropped else "")
    return DumpSize(kept, kept // _COMPRESSION, (Fact("/proc/meminfo", says),))
