"""
Tell whether files make one split set, and what is missing from it.

``makedumpfile --split`` writes the full bitmaps into every file and the pages
of one range of frames; the range is all that tells the files apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from postpanic.dumps.kdump.layout import KdumpHeader
from postpanic.dumps.source import ByteSource
from postpanic.errors import MismatchError

__all__ = ["check_parts", "describe_missing_parts"]


def check_parts(sources: Sequence[ByteSource], headers: Sequence[KdumpHeader]) -> None:
    """
    Check that several files belong together.

    Raises
    ------
    MismatchError
        If a file is not of a split set, is of another one, or holds frames
        that another file holds.
    """
    if len(headers) == 1:
        return
    for source, header in zip(sources, headers, strict=True):
        if not header.is_split:
            raise MismatchError(
                "a whole dump, not part of a split set", where=source.name, hint="open it without the other files"
            )
        differing = _differences(headers[0], header)
        if differing:
            raise MismatchError(
                f"not of the same split set as {sources[0].name}: other {', '.join(differing)}", where=source.name
            )
    order = sorted(range(len(headers)), key=lambda index: (headers[index].start_pfn, headers[index].end_pfn))
    for before, after in pairwise(order):
        if headers[after].start_pfn < headers[before].end_pfn and headers[after].end_pfn > headers[after].start_pfn:
            raise MismatchError(
                f"holds frames from {headers[after].start_pfn:#x} on, as {sources[before].name} does",
                where=sources[after].name,
                hint="give each part once",
            )


def describe_missing_parts(headers: Sequence[KdumpHeader]) -> list[str]:
    """Name the ranges of frames that no file of the set holds; *headers* are sorted by range."""
    if not headers[0].is_split:
        return []
    gaps: list[str] = []
    reached = 0
    for header in headers:
        if header.start_pfn > reached:
            gaps.append(f"{reached:#x}-{header.start_pfn - 1:#x}")
        reached = max(reached, header.end_pfn)
    if reached < headers[0].max_mapnr:
        gaps.append(f"{reached:#x}-{headers[0].max_mapnr - 1:#x}")
    if not gaps:
        return []
    return [f"parts of the split set were not given: frames {', '.join(gaps)}"]


def _differences(first: KdumpHeader, other: KdumpHeader) -> list[str]:
    """Names of what two parts of one set must have in common and do not."""
    compared: dict[str, Callable[[KdumpHeader], object]] = {
        "architecture": lambda header: (header.byte_order, header.word_bytes),
        "page size": lambda header: header.block_size,
        "number of frames": lambda header: (header.max_mapnr, header.bitmap_blocks),
        "format version": lambda header: header.version,
        "dump level": lambda header: header.dump_level,
        "kernel": lambda header: header.utsname,
        "time": lambda header: header.timestamp_s,
    }
    return [name for name, key in compared.items() if key(first) != key(other)]
