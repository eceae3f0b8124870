"""
Where the zones of a ramoops memory area lie, by the parameters of its module.

Sources: the kernel's ``fs/pstore/ram.c`` (``ramoops_probe``, ``ramoops_init_przs``:
zones of dmesg, console, ftrace, pmsg in this order, ftrace last since 6.2), ``fs/pstore/ram_core.c``.
"""

from __future__ import annotations

from mmap import mmap
from typing import Literal, TypeAlias

import msgspec

from postpanic.errors import UsageError
from postpanic.evidence.pstore.model import RecordType

__all__ = [
    "BLOCK_BYTES",
    "HEADER_BYTES",
    "SIGNATURE",
    "Bytes",
    "Layout",
    "RamoopsZone",
    "buffer_size",
    "fit_layout",
    "is_tracing",
    "make_layout",
]

Bytes: TypeAlias = "bytes | mmap"

SIGNATURE = 0x43474244
HEADER_BYTES = 12
BLOCK_BYTES = 128
"""Data that one block of parity covers; no kernel sets another."""

_MOST_ZONES = 4096
_MAJORS = range(3, 10)
_MOST_CPUS = 512


class RamoopsZone(msgspec.Struct, frozen=True):
    """A zone: its type, its number among those of the type, its place in the image and its size in bytes."""

    type: RecordType
    number: int
    offset: int
    size: int


class Layout(msgspec.Struct, frozen=True):
    """
    Geometry of a ramoops memory area.

    Parameters
    ----------
    zones : tuple of RamoopsZone
    ecc : int
        Bytes of parity for a block of 128 bytes; 0: none.
    byte_order : str
    is_found : bool
        Whether it was found by looking, and not given.
    """

    zones: tuple[RamoopsZone, ...]
    ecc: int = 0
    byte_order: Literal["little", "big"] = "little"
    is_found: bool = False


def buffer_size(zone_size: int, ecc: int) -> int:
    """
    Give the bytes of data that a zone of this size has room for; not above 0: the zone is too small.

    >>> buffer_size(4096, 0), buffer_size(4096, 16)
    (4084, 3604)
    """
    room = zone_size - HEADER_BYTES
    if not ecc:
        return room
    blocks = -(-(room - ecc) // (BLOCK_BYTES + ecc))
    return room - (blocks + 1) * ecc


def make_layout(
    *,
    mem_size: int,
    record_size: int = 4096,
    console_size: int = 4096,
    ftrace_size: int = 4096,
    pmsg_size: int = 4096,
    ecc: int = 0,
    ftrace_zones: int = 1,
    pmsg_first: bool = True,
    byte_order: Literal["little", "big"] = "little",
) -> Layout:
    """
    Lay the zones out as ramoops does it with these module parameters.

    Parameters
    ----------
    mem_size, record_size, console_size, ftrace_size, pmsg_size : int
        Bytes; all but the first are rounded down to a power of two.
    ecc : int
        Bytes of parity of a block; 1 means 16, as for the module.
    ftrace_zones : int
        One for each processor that the kernel could have (``nr_cpu_ids``).
    pmsg_first : bool
        Whether ftrace is last, as in newer kernels.

    Raises
    ------
    UsageError
        If the zones do not fit.
    """
    record_size, console_size, ftrace_size, pmsg_size = (
        1 << (size.bit_length() - 1) if size > 0 else 0 for size in (record_size, console_size, ftrace_size, pmsg_size)
    )
    ecc = 16 if ecc == 1 else ecc
    for_dumps = mem_size - console_size - ftrace_size - pmsg_size
    if for_dumps < 0:
        needed = console_size + ftrace_size + pmsg_size
        raise UsageError(f"mem_size is {mem_size}, and console, ftrace and pmsg alone take {needed} bytes")
    parts: list[tuple[RecordType, int, int]] = []
    if record_size:
        parts.append((RecordType.DMESG, for_dumps, for_dumps // record_size))
    parts += [(RecordType.CONSOLE, console_size, 1)] if console_size else []
    last = [(RecordType.PMSG, pmsg_size, 1)] if pmsg_size else []
    tracing = [(RecordType.FTRACE, ftrace_size, max(ftrace_zones, 1))] if ftrace_size else []
    parts += last + tracing if pmsg_first else tracing + last
    zones: list[RamoopsZone] = []
    offset = 0
    for kind, size, count in parts:
        for number in range(min(count, _MOST_ZONES)):
            zones.append(RamoopsZone(kind, number, offset, size // count))
            offset += size // count
    for zone in zones:
        if buffer_size(zone.size, ecc) <= 0:
            raise UsageError(f"a {zone.type} zone of {zone.size} bytes has no room for data and {ecc} bytes of parity")
    return Layout(tuple(zones), ecc, byte_order)


def fit_layout(data: Bytes, **parameters: int) -> Layout:
    """
    Lay the zones out by module parameters, and by the image what they do not tell.

    That is the order of the last two, how many processors there could be, and the byte order.

    Parameters
    ----------
    **parameters : int
        As :func:`make_layout` has them; ``mem_size`` is the size of the image if it is not given.

    Raises
    ------
    UsageError
        If the zones do not fit.
    """
    parameters.setdefault("mem_size", len(data))
    order: Literal["little", "big"] = "big" if data[:4] == b"CGBD" else "little"
    given = parameters.pop("ftrace_zones", 0)
    best, best_count = None, 0
    for pmsg_first in (True, False):
        layout = make_layout(**parameters, ftrace_zones=max(given, 1), pmsg_first=pmsg_first, byte_order=order)
        tracing = [zone for zone in layout.zones if zone.type is RecordType.FTRACE]
        count = 0
        if tracing and given:
            count = given if all(is_tracing(data, zone.offset, order) for zone in tracing) else 0
        elif tracing:
            count = _count_tracing(data, tracing[0], layout.ecc, order)
        if best is None or count > best_count:
            if count > 1 and not given:
                layout = make_layout(**parameters, ftrace_zones=count, pmsg_first=pmsg_first, byte_order=order)
            best, best_count = layout, count
    assert best is not None  # noqa: S101 - there are two to choose from
    return best


def _count_tracing(data: Bytes, area: RamoopsZone, ecc: int, order: Literal["little", "big"]) -> int:
    """Find of how many zones the ftrace area is: the most that all have their signature."""
    counts = [count for count in range(1, _MOST_CPUS + 1) if buffer_size(area.size // count, ecc) > 0]
    return max(
        (
            count
            for count in counts
            if all(is_tracing(data, area.offset + place * (area.size // count), order) for place in range(count))
        ),
        default=0,
    )


def is_tracing(data: Bytes, offset: int, order: Literal["little", "big"]) -> bool:
    """Tell whether a zone of ftrace may begin here: its signature is XORed with the kernel's version."""
    signature = int.from_bytes(data[offset : offset + 4], order)
    return (signature ^ SIGNATURE) >> 16 in _MAJORS
