"""
The core header that goes with our own ``kexec_load(2)``: what of the running machine's memory the dump will have.

Sources: ``/proc/iomem`` (System RAM, ``Crash kernel``), ``/sys/kernel/vmcoreinfo``,
``/sys/devices/system/cpu/cpuN/crash_notes`` and ``crash_notes_size``
(``Documentation/ABI/testing/sysfs-devices-system-cpu``), and for virtual
addresses ``/proc/kcore``. ``crash_prepare_elf64_headers()``, ``kernel/crash_core.c``,
makes the same of what the kernel knows itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from postpanic.capture.host import Host
from postpanic.capture.kexec.core_header import (
    Range,
    compare_coverage,
    decode_core_header,
    encode_core_header,
    subtract,
)
from postpanic.capture.kexec.refusals import LoadRefusedError
from postpanic.dumps.kcore import KCORE_PATH, open_kcore
from postpanic.dumps.memory import VirtualSegment
from postpanic.errors import PostpanicError
from postpanic.units import PhysAddr, VirtAddr

__all__ = ["make_core_header", "read_crash_notes"]

_PAGE_BYTES = 4096
_UNKNOWN_VADDR = (1 << 64) - 1
_NOTES_LIMIT_BYTES = 1 << 16


def make_core_header(host: Host) -> bytes:
    """
    Make a core header of the host, and hold it against the host as any other is.

    Raises
    ------
    LoadRefusedError
        If the host does not tell enough of itself, or the header is not good.
    """
    memory = host.read_io_memory()
    if memory.is_hidden or not memory.system_ram:
        raise LoadRefusedError("the kernel hides addresses in /proc/iomem", hint="run it as root")
    if not memory.crash_kernel:
        raise LoadRefusedError("/proc/iomem has no crash kernel", hint="run it as root")
    reserved = [(entry.start, entry.end) for entry in memory.for_capture]
    ram = subtract([(entry.start, entry.end) for entry in memory.system_ram], reserved)
    # The capture kernel maps whole pages of it, of whatever size its own are: what begins in one does not count.
    spans = [(-(-start // _PAGE_BYTES) * _PAGE_BYTES, end & -_PAGE_BYTES) for start, end in ram]
    notes = _list_notes(host)
    mapped = _read_mapping(host)
    loads = [_map(span, mapped) for span in spans if span[0] < span[1]]
    raw = encode_core_header(host.machine, notes, loads, _find_text(mapped, loads))
    fault = compare_coverage(decode_core_header(raw), memory)
    if fault:
        raise LoadRefusedError(f"a core header cannot be made that has all of the memory: {fault}")
    return raw


def read_crash_notes(host: Host) -> dict[int, Range]:
    """
    Read where each processor saves its registers, and how many bytes that are; 0 where it is not told.

    Returns
    -------
    dict
        By the number of the processor, in order.
    """
    found = {}
    for path in host.path("sys/devices/system/cpu").glob("cpu[0-9]*/crash_notes"):
        try:
            number = int(path.parent.name.removeprefix("cpu"))
            paddr = int(path.read_text(), 16)
        except (OSError, ValueError):
            continue
        size = host.read_number(f"sys/devices/system/cpu/cpu{number}/crash_notes_size")
        found[number] = paddr, size or 0
    return dict(sorted(found.items()))


def _list_notes(host: Host) -> list[Range]:
    notes = list(read_crash_notes(host).values())
    place = host.read_vmcoreinfo_place()
    if not notes or not all(paddr and 0 < size <= _NOTES_LIMIT_BYTES for paddr, size in notes):
        raise LoadRefusedError(
            "the kernel does not tell where processors save their registers",
            where="/sys/devices/system/cpu/cpu0/crash_notes",
            hint="run it as root",
        )
    if place is None:
        raise LoadRefusedError("the kernel does not tell where its VMCOREINFO is", where="/sys/kernel/vmcoreinfo")
    return [*notes, place]


def _read_mapping(host: Host) -> tuple[VirtualSegment, ...]:
    """Read which virtual addresses memory has; without them a header is as good, but for debuggers of user space."""
    try:
        with open_kcore(host.path(str(KCORE_PATH)), lockdown_path=host.path("sys/kernel/security/lockdown")) as kcore:
            return kcore.description.segments
    except PostpanicError:
        return ()


def _map(span: Range, mapped: Sequence[VirtualSegment]) -> VirtualSegment:
    start, end = span
    for one in sorted(mapped, key=lambda one: -one.size_bytes):
        if one.paddr <= start < one.paddr + one.size_bytes:
            return VirtualSegment(VirtAddr(one.vaddr + start - one.paddr), PhysAddr(start), end - start)
    return VirtualSegment(VirtAddr(_UNKNOWN_VADDR), PhysAddr(start), end - start)


def _find_text(mapped: Sequence[VirtualSegment], loads: Sequence[VirtualSegment]) -> list[VirtualSegment]:
    """Find where the kernel itself is mapped: within the memory, at another distance."""
    return [
        one
        for one in mapped
        if any(
            load.paddr <= one.paddr
            and one.paddr + one.size_bytes <= load.paddr + load.size_bytes
            and load.vaddr != _UNKNOWN_VADDR
            and one.vaddr - one.paddr != load.vaddr - load.paddr
            for load in loads
        )
    ][:1]
