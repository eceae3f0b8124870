"""
Decode function traces: the binary entries in a memory image, and the lines of a mounted pstore.

Sources: the kernel's ``include/linux/pstore.h`` (``struct pstore_ftrace_record``, the
processor in the low eight bits of the time stamp since 4.10), ``fs/pstore/internal.h``
of 4.9 (a number of its own before), ``fs/pstore/inode.c`` (``pstore_ftrace_seq_show``).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

import msgspec

from postpanic.evidence.pstore.model import Record

__all__ = ["Call", "decode_calls"]

_MOST_CALLS = 1 << 20
_LINE = re.compile(
    rb"CPU:(\d{1,6})(?: ts:(\d{1,20}))? {1,4}([0-9a-f]{1,16}) {1,4}([0-9a-f]{1,16}) {1,4}"
    rb"(\S{1,512}(?: \[[^]\n]{1,64}\])?) <- (\S{1,512}(?: \[[^]\n]{1,64}\])?)"
)
_KERNEL_HALF = 0xFFFF
_CPU_BITS = 8


class Call(msgspec.Struct, frozen=True):
    """
    One call of a function.

    Parameters
    ----------
    cpu : int
    stamp : int, optional
        A number that grows with each call on any processor; no time. Kernels before 4.10 have none.
    ip, parent_ip : int
        Address in the function, and from where it was called.
    function, parent : str
        Their names, where the kernel that read the record has printed them.
    """

    cpu: int
    stamp: int | None
    ip: int
    parent_ip: int
    function: str = ""
    parent: str = ""


def decode_calls(records: Record | list[Record]) -> list[Call]:
    """
    Decode the calls of one record, or of one record for each processor, oldest first.

    A mounted pstore gives text, an image binary entries.
    """
    calls: list[Call] = []
    for record in [records] if isinstance(records, Record) else records:
        calls += _decode_lines(record.data) if record.data.startswith(b"CPU:") else _decode_entries(record)
    if all(call.stamp is not None for call in calls):
        calls.sort(key=lambda call: call.stamp or 0)
    return calls[-_MOST_CALLS:]


def _decode_lines(text: bytes) -> Iterator[Call]:
    for found in _LINE.finditer(text):
        yield Call(
            int(found[1]),
            int(found[2]) if found[2] is not None else None,
            int(found[3], 16),
            int(found[4], 16),
            found[5].decode(errors="backslashreplace"),
            found[6].decode(errors="backslashreplace"),
        )


def _decode_entries(record: Record) -> Iterator[Call]:
    """Decode entries; the ring may have cut the oldest, so they are counted from the end."""
    data = record.data
    has_stamps = _has_stamps(record.release)
    for order in ("<", ">"):
        if _share_of_kernel_addresses(data, order) > 0.5:
            form = struct.Struct(order + ("QQQ" if has_stamps else "QQI4x"))
            break
    else:
        form = struct.Struct("<IIQ" if has_stamps else "<III")
    for place in range(len(data) % form.size, len(data), form.size):
        ip, parent_ip, last = form.unpack_from(data, place)
        if not ip:
            continue
        if has_stamps:
            yield Call(last & ((1 << _CPU_BITS) - 1), last >> _CPU_BITS, ip, parent_ip)
        else:
            yield Call(last, None, ip, parent_ip)


def _has_stamps(release: str) -> bool:
    numbers = [int(word) for word in release.split(".")[:2] if word.isdigit()]
    return len(numbers) < 2 or tuple(numbers) >= (4, 10)


def _share_of_kernel_addresses(data: bytes, order: str) -> float:
    """Tell how many of the entries have the address of a 64-bit kernel first."""
    size = 24
    first = len(data) % size
    count = min((len(data) - first) // size, 256)
    if not count:
        return 0.0
    addresses = (struct.unpack_from(order + "Q", data, first + place * size)[0] for place in range(count))
    kernel = sum(1 for address in addresses if address >> 48 == _KERNEL_HALF or address >> 60 == 0xC)
    return kernel / count
