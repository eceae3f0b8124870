"""
Find the zones of a ramoops memory area by looking: anywhere in an image, with no geometry known.

A zone begins with a signature, and start and length of what it holds; noise that
has the signature seldom has a header that can be true. With parity, the last bytes
of a zone are the parity of its header: that gives away the end of the zone, and
how much parity there is.

Sources: the kernel's ``fs/pstore/ram_core.c`` (``struct persistent_ram_buffer``, ``persistent_ram_init_ecc``).
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from typing import Literal

import msgspec

from postpanic.errors import CorruptError
from postpanic.evidence.pstore.model import RecordType
from postpanic.evidence.pstore.ramoops_layout import (
    HEADER_BYTES,
    SIGNATURE,
    Bytes,
    Layout,
    RamoopsZone,
    buffer_size,
    is_tracing,
)
from postpanic.evidence.pstore.reed_solomon import reed_solomon

__all__ = ["find_layout"]

_MOST_ZONES = 4096
_MOST_ZONE_BYTES = 16 << 20
_MOST_SEARCHED_BYTES = 1 << 30
_VOTERS = 16
_VOTER_BYTES = 4 << 20
_LEAST_STRIDE = 256
_LEAST_PARITY_FOUND = 6
"""With less parity the end of a zone would be found by chance; it has to be given."""


class _Hit(msgspec.Struct, frozen=True):
    """A place where a zone may begin."""

    offset: int
    signature: int
    start: int
    size: int


def find_layout(data: Bytes, *, ecc: int | None = None) -> Layout:
    """
    Find the zones of a ramoops area anywhere in an image of memory.

    Parameters
    ----------
    ecc : int, optional
        Bytes of parity of a block, where it is known.

    Raises
    ------
    CorruptError
        If there is no signature with a header that can be true.
    """
    order, hits = _find_hits(data)
    if not hits:
        raise CorruptError("no ramoops zone: the signature DBGC with a possible header is nowhere")
    ecc = (16 if ecc == 1 else ecc) if ecc is not None else _find_parity(data, hits, order)
    places = _find_ends(data, hits, ecc, order)
    places = _fill_gaps(data, places)
    return Layout(_name_zones(data, places), ecc, order, is_found=True)


def _find_hits(data: Bytes) -> tuple[Literal["little", "big"], list[_Hit]]:
    little, big = _scan(data, "little", b"DBGC"), _scan(data, "big", b"CGBD")
    order: Literal["little", "big"] = "little" if len(little) >= len(big) else "big"
    hits = little if order == "little" else big
    if not hits:
        return order, []
    # The zones of ftrace have the version in their signature; they are near the others.
    first, last = hits[0].offset, min(len(data), hits[-1].offset + (16 << 20))
    pattern = rb"..[\x40-\x44\x4e\x4f]\x43" if order == "little" else rb"\x43[\x40-\x44\x4e\x4f].."
    tracing = _scan_pattern(data, order, re.compile(pattern, re.DOTALL), first, last)
    return order, sorted([*hits, *tracing], key=lambda hit: hit.offset)[:_MOST_ZONES]


def _scan(data: Bytes, order: Literal["little", "big"], signature: bytes) -> list[_Hit]:
    hits: list[_Hit] = []
    offset = data.find(signature)
    while offset >= 0 and len(hits) < _MOST_ZONES:
        hit = _read_hit(data, offset, order)
        if hit is not None:
            hits.append(hit)
        offset = data.find(signature, offset + 1)
    return hits


def _scan_pattern(
    data: Bytes, order: Literal["little", "big"], pattern: re.Pattern[bytes], first: int, last: int
) -> list[_Hit]:
    hits: list[_Hit] = []
    found = pattern.search(data, first, last)
    while found is not None and len(hits) < _MOST_ZONES:
        hit = _read_hit(data, found.start(), order)
        if hit is not None and is_tracing(data, hit.offset, order):
            hits.append(hit)
        found = pattern.search(data, found.start() + 1, last)
    return hits


def _read_hit(data: Bytes, offset: int, order: Literal["little", "big"]) -> _Hit | None:
    header = data[offset : offset + HEADER_BYTES]
    if len(header) < HEADER_BYTES:
        return None
    signature, start, size = struct.unpack("<III" if order == "little" else ">III", header)
    if start > size or size > min(len(data) - offset - HEADER_BYTES, _MOST_ZONE_BYTES):
        return None
    return _Hit(offset, signature, start, size)


def _find_parity(data: Bytes, hits: list[_Hit], order: Literal["little", "big"]) -> int:
    """Find how much parity there is: that amount with which most headers have theirs at the end of their zones."""
    votes: Counter[int] = Counter()
    for place, hit in enumerate(hits[:_VOTERS]):
        limit = hits[place + 1].offset if place + 1 < len(hits) else len(data)
        limit = min(limit, hit.offset + hit.size + _VOTER_BYTES)
        for ecc in (16, *range(_LEAST_PARITY_FOUND, 65)):
            if _find_header_parity(data, hit, ecc, limit, order) is not None:
                votes[ecc] += 1
                break
    return votes.most_common(1)[0][0] if votes else 0


def _find_header_parity(data: Bytes, hit: _Hit, ecc: int, limit: int, order: Literal["little", "big"]) -> int | None:
    """Find the end of a zone by the parity of its header, which ends the zone."""
    header = struct.pack("<III" if order == "little" else ">III", hit.signature, hit.start, hit.size)
    parity = reed_solomon(ecc).encode(header)
    first = hit.offset + HEADER_BYTES + hit.size
    place = data.find(parity, first, limit)
    while place >= 0:
        end = place + ecc
        if buffer_size(end - hit.offset, ecc) >= hit.size:
            return end
        place = data.find(parity, place + 1, limit)
    return None


def _find_ends(data: Bytes, hits: list[_Hit], ecc: int, order: Literal["little", "big"]) -> list[tuple[int, int, int]]:
    """Find where the zones end: places, sizes and signatures of those hits that are zones."""
    places: list[tuple[int, int, int]] = []
    busy_until = -1
    left = _MOST_SEARCHED_BYTES
    for index, hit in enumerate(hits):
        # What lies in the data of a zone is no zone.
        if hit.offset < busy_until:
            continue
        following = next(
            (later.offset for later in hits[index + 1 :] if later.offset >= hit.offset + HEADER_BYTES + hit.size),
            len(data),
        )
        end = following
        if ecc:
            limit = min(len(data), hit.offset + min(_MOST_ZONE_BYTES, left))
            found = _find_header_parity(data, hit, ecc, limit, order)
            left -= (limit if found is None else found) - hit.offset
            if found is None and buffer_size(following - hit.offset, ecc) < max(hit.size, 1):
                continue
            end = found if found is not None else following
        places.append((hit.offset, min(end - hit.offset, _MOST_ZONE_BYTES), hit.signature))
        busy_until = end if ecc else hit.offset + HEADER_BYTES + hit.size
    return places


def _fill_gaps(data: Bytes, places: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """
    Put dumps back in whose signature is damaged: their zones are all of one size, side by side.

    Such a zone is in a gap, or makes the one before it look longer than it is.
    """
    sizes = Counter(size for _, size, signature in places if signature == SIGNATURE)
    if not sizes:
        return places
    stride = min(size for size, count in sizes.items() if count == max(sizes.values()))
    filled: list[tuple[int, int, int]] = []
    reached = places[0][0] % stride
    for offset, size, signature in places:
        filled += _find_dumps(data, reached, offset, stride)
        used = HEADER_BYTES + int.from_bytes(data[offset + 8 : offset + HEADER_BYTES], "little")
        inner = _find_dumps(data, offset + stride, offset + size, stride) if used <= stride < size else []
        filled.append((offset, inner[0][0] - offset if inner else size, signature))
        filled += inner
        reached = offset + size
    return filled[:_MOST_ZONES]


def _find_dumps(data: Bytes, start: int, end: int, stride: int) -> list[tuple[int, int, int]]:
    return [(offset, stride, 0) for offset in range(start, end - stride + 1, stride) if _begins_as_dump(data, offset)]


def _begins_as_dump(data: Bytes, offset: int) -> bool:
    """Tell whether a zone's data begins with ``====``, of which one byte may be wrong."""
    begin = data[offset + HEADER_BYTES : offset + HEADER_BYTES + 4]
    return sum(a == b for a, b in zip(begin, _DUMP_BEGINS, strict=False)) >= 3


_DUMP_BEGINS = b"===="


def _name_zones(data: Bytes, places: list[tuple[int, int, int]]) -> tuple[RamoopsZone, ...]:
    """Say what each zone is for: dmesg, console, ftrace, pmsg in this order; only ftrace says so itself."""
    zones: list[RamoopsZone] = []
    tracing = [place for place, _, signature in places if signature not in (0, SIGNATURE)]
    first_trace = tracing[0] if tracing else None
    later: list[RecordType] = []
    numbers: Counter[RecordType] = Counter()
    size_of_dumps = places[0][1]
    for offset, size, signature in places:
        if signature not in (0, SIGNATURE):
            kind = RecordType.FTRACE
        elif not later and _may_be_dump(data, offset, size, size_of_dumps, first_trace):
            kind = RecordType.DMESG
        else:
            kind = _name_later(data, offset, later, first_trace)
            later.append(kind)
        zones.append(RamoopsZone(kind, numbers[kind], offset, size))
        numbers[kind] += 1
    return tuple(zones)


def _may_be_dump(data: Bytes, offset: int, size: int, size_of_dumps: int, first_trace: int | None) -> bool:
    if _begins_as_dump(data, offset):
        return True
    is_empty = data[offset + 8 : offset + HEADER_BYTES] == bytes(4)
    return is_empty and size == size_of_dumps and (first_trace is None or offset < first_trace)


_LOG_LINE = re.compile(rb"(?:^|\n)(?:<\d{1,3}>)?\[ {0,10}\d{1,10}\.\d{6}\]")


def _name_later(data: Bytes, offset: int, later: list[RecordType], first_trace: int | None) -> RecordType:
    if RecordType.CONSOLE in later:
        return RecordType.PMSG
    if first_trace is not None:
        return RecordType.CONSOLE if offset < first_trace else RecordType.PMSG
    sample = data[offset + HEADER_BYTES : offset + HEADER_BYTES + 16384]
    return RecordType.CONSOLE if _LOG_LINE.search(sample) else RecordType.PMSG
