"""
The reservation of this boot: what was asked for, what came of it, what its kernel can read.

Sources: ``reserve_crashkernel_generic()``, ``kernel/crash_reserve.c``;
``arch/x86/include/asm/crash_reserve.h`` and ``crash_low_size_default()`` of
``arch/x86/kernel/setup.c``; ``crash_get_memory_size()``, ``kernel/kexec_core.c``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from postpanic.capture.crashkernel.parse import ParsedRequest, ParserFeatures, parse_command_line
from postpanic.capture.host import Host, MemoryRange
from postpanic.units import MIB, format_size

__all__ = [
    "HostMemory",
    "Reservation",
    "explain_request",
    "has_cma",
    "read_features",
    "read_memory",
    "read_reservation",
]

_CMA_NEEDS = "if the kernel is built with CONFIG_CMA and its machine has it"
_LOW_DEFAULT_BYTES = {"x86_64": 256 * MIB}
_OTHER_LOW_DEFAULT_BYTES = 128 * MIB
_CMA_SINCE = (6, 17)
_GENERIC = "CONFIG_ARCH_HAS_GENERIC_CRASHKERNEL_RESERVATION"
_KNOW_HIGH = frozenset({"x86_64", "aarch64", "riscv64", "loongarch64"})


@dataclass(frozen=True)
class HostMemory:
    """
    How much memory the kernel counts when it reads ranges.

    Attributes
    ----------
    total_bytes : int
        0: not known.
    evidence : str
        Where that is from.
    """

    total_bytes: int
    evidence: str


@dataclass(frozen=True)
class Reservation:
    """
    What is reserved now.

    Attributes
    ----------
    command_line : str
        Of the running kernel.
    memory : HostMemory
    request : ParsedRequest
        What the command line asks for.
    reserved_bytes : int or None
        What the kernel says it holds; None where it cannot hold any.
    places : tuple of MemoryRange
        Where; empty where only root may know.
    cma_places : str
        As the kernel lists the memory that it lends until the crash.
    is_loaded : bool
        Whether a capture kernel is in it.
    """

    command_line: str
    memory: HostMemory
    request: ParsedRequest
    reserved_bytes: int | None
    places: tuple[MemoryRange, ...]
    cma_places: str
    is_loaded: bool

    @property
    def difference(self) -> str:
        """Say how what is reserved differs from what was asked for; empty: not at all."""
        asked, found = self.request.size_bytes, self.reserved_bytes
        if found is None:
            return "this kernel cannot hold a capture kernel"
        if asked and not found:
            return f"{format_size(asked)} asked for, nothing reserved: no free place of that size, or given back since"
        if found and not asked:
            return f"{format_size(found)} reserved, which nothing on the command line asks for"
        if found < asked:
            return f"{format_size(asked)} asked for, {format_size(found)} left: it was shrunk"
        return ""


def read_features(host: Host) -> ParserFeatures:
    """
    Tell what the running kernel's parser knows.

    The kernel's configuration tells of ``,high`` and ``auto``; of ``,cma`` only
    the release does, or that the kernel lists such memory in sysfs.
    """
    config = host.read_kernel_config() or {}
    high = config[_GENERIC] == "y" if _GENERIC in config else host.machine in _KNOW_HIGH
    version = tuple(map(int, re.findall(r"\d+", host.release)[:2]))
    cma = version >= _CMA_SINCE or _read_cma(host) is not None
    auto = config.get("CONFIG_CRASH_AUTO_STR", "").strip('"')
    return ParserFeatures(high=high, cma=cma, auto="" if auto == "n" else auto)


def has_cma(host: Host) -> bool:
    """Tell whether the running kernel is known to lend memory until the crash: its parser, its build, its machine."""
    if _read_cma(host):
        return True
    config = host.read_kernel_config() or {}
    # x86 came first; others followed with later releases, which cannot be seen from here.
    return host.machine == "x86_64" and read_features(host).cma and config.get("CONFIG_CMA", "n") == "y"


def read_memory(host: Host) -> HostMemory:
    """Tell how much memory the machine was booted with."""
    found = host.read_io_memory()
    # What drivers add comes after the reservation: "System RAM (kmem)".
    booted = sum(entry.size_bytes for entry in found.system_ram if entry.name == "System RAM")
    if booted:
        return HostMemory(booted, "System RAM in /proc/iomem")
    block = host.read_text("sys/devices/system/memory/block_size_bytes")
    if block and host.root.samefile("/"):
        count = len(list(host.path("sys/devices/system/memory").glob("memory[0-9]*")))
        if count:
            return HostMemory(count * int(block, 16), "memory blocks in sysfs, a little too much")
    found_line = re.search(r"^MemTotal:\s+(\d+) kB", host.read_text("proc/meminfo") or "", re.MULTILINE)
    if found_line:
        return HostMemory(int(found_line[1]) << 10, "MemTotal, less than the kernel counts; root is shown all")
    return HostMemory(0, "")


def read_reservation(host: Host) -> Reservation:
    """Tell what is reserved now, and what was asked for."""
    line = host.read_command_line()
    memory = read_memory(host)
    return Reservation(
        line,
        memory,
        parse_command_line(line, memory.total_bytes or 1 << 62, read_features(host)),
        host.read_crash_size_bytes(),
        host.read_io_memory().crash_kernel,
        _read_cma(host) or "",
        bool(host.read_crash_loaded()),
    )


def low_default_bytes(machine: str) -> int:
    """Tell how much the kernel reserves below 4 GiB by itself when the rest is above (swiotlb left at its size)."""
    return _LOW_DEFAULT_BYTES.get(machine, _OTHER_LOW_DEFAULT_BYTES)


def explain_request(request: ParsedRequest, machine: str) -> list[str]:
    """Say in sentences what the kernel does with a request."""
    if request.problem:
        return [f"nothing is reserved: {request.problem}", *request.remarks]
    size = format_size(request.size_bytes)
    low = format_size(request.low_bytes if request.low_bytes is not None else low_default_bytes(machine))
    if request.base:
        lines = [f"{size} at {request.base:#x}, or nothing where that is in use"]
    elif request.is_high:
        lines = [f"{size} above 4 GiB and {low} below; where there is no such room above, newer kernels take it below"]
    elif request.ranges:
        lines = [f"{size}, by the range {_spell_chosen(request)}"]
    else:
        lines = [f"{size}"]
    if not request.base and not request.is_high and machine in _KNOW_HIGH:
        lines[0] += f", below 4 GiB if there is room, else above and {low} more below"
    if request.cma_bytes:
        lines.append(
            f"{format_size(request.cma_bytes)} more at the crash, which processes use until then, {_CMA_NEEDS}"
        )
    return [*lines, *request.remarks]


def _spell_chosen(request: ParsedRequest) -> str:
    chosen = next(entry for entry in request.ranges if entry.size_bytes == request.size_bytes)
    end = format_size(chosen.end_bytes) if chosen.end_bytes is not None else "any"
    return f"from {format_size(chosen.start_bytes)} to {end} of memory"


def _read_cma(host: Host) -> str | None:
    found = host.read_text("sys/kernel/kexec/crash_cma_ranges")
    return found if found is not None else host.read_text("sys/kernel/kexec_crash_cma_ranges")
