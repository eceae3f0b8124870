"""
Search memory for numbers and text: every page that is there once, whatever maps it.

Virtual memory is searched through what page tables map. Each physical page is
read once, straight from the dump and in large blocks, and what is found is given
all the addresses that it has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from postpanic.analysis.memory.mappings import Mappings
from postpanic.dumps.memory import PageState, PhysicalMemory
from postpanic.findings.absent import Reason
from postpanic.findings.table import Problem

__all__ = [
    "Match",
    "Needle",
    "number_needle",
    "range_needle",
    "search_bytes",
    "search_mapped",
    "search_physical",
    "text_needle",
]

_BATCH_PAGES = 2048
MATCHES_LIMIT = 1_000_000
"""More matches than that are no answer to anything."""


@dataclass(frozen=True)
class Needle:
    """
    What is looked for.

    Attributes
    ----------
    size_bytes : int
        1, 2, 4 or 8 for a number, which is looked for at multiples of it; of a text, its length.
    value, mask : int
        A number matches when it agrees with the value in all bits that the mask does not have.
    text : bytes
        Empty: it is a number.
    name : str
        What the user called it, where that was not a number.
    end : int
        Above 0: all numbers from the value up to, not including, this one match; the mask counts for nothing.
    """

    size_bytes: int
    value: int = 0
    mask: int = 0
    text: bytes = b""
    name: str = ""
    end: int = 0


@dataclass(frozen=True, slots=True)
class Match:
    """Where something was found: its address, and the needle's number."""

    address: int
    needle: int
    value: int
    """The number that is there."""


def number_needle(value: int, size_bytes: int, mask: int = 0, name: str = "") -> Needle:
    """Look for a number of 2, 4 or 8 bytes."""
    return Needle(size_bytes, value & ((1 << 8 * size_bytes) - 1), mask & ((1 << 8 * size_bytes) - 1), name=name)


def range_needle(start: int, end: int) -> Needle:
    """Look for 8-byte numbers that are in ``[start, end)``: pointers into something."""
    return Needle(8, start, end=end)


def text_needle(text: bytes) -> Needle:
    """Look for a text, at any address."""
    return Needle(len(text), text=text)


def search_bytes(data: NDArray[np.uint8], needles: Sequence[Needle]) -> list[tuple[int, int, int]]:
    """
    Search a piece of memory that begins at a multiple of 8.

    Returns
    -------
    list of (offset, number of the needle, value)
    """
    found: list[tuple[int, int, int]] = _search_ranges(data, needles)
    for number, needle in enumerate(needles):
        if needle.text:
            found += [(start, number, 0) for start in _find_text(data.tobytes(), needle.text)]
            continue
        size = needle.size_bytes
        words = data[: len(data) // size * size].view(f"<u{size}")
        if needle.end:
            continue
        keep = ~needle.mask & ((1 << 8 * size) - 1)
        wanted = words.dtype.type(needle.value & keep)
        hits = np.flatnonzero(words & words.dtype.type(keep) == wanted if needle.mask else words == wanted)
        found += [(hit * size, number, int(words[hit])) for hit in hits.tolist()]
    return found


def _search_ranges(data: NDArray[np.uint8], needles: Sequence[Needle]) -> list[tuple[int, int, int]]:
    """Search for numbers in ranges: one look at memory for all of them, as few numbers are near any."""
    ranges = [(number, needle) for number, needle in enumerate(needles) if needle.end]
    if not ranges:
        return []
    words = data[: len(data) // 8 * 8].view("<u8")
    low, high = min(needle.value for _, needle in ranges), max(needle.end for _, needle in ranges)
    # One comparison for both ends: what is below the range wraps around.
    places = np.flatnonzero(words - np.uint64(low) < np.uint64(high - low))
    near = words[places]
    found: list[tuple[int, int, int]] = []
    for number, needle in ranges:
        hits = near - np.uint64(needle.value) < np.uint64(needle.end - needle.value)
        chosen = zip(places[hits].tolist(), near[hits].tolist(), strict=True)
        found += [(place * 8, number, value) for place, value in chosen]
    return found


def _find_text(data: bytes, text: bytes) -> Iterator[int]:
    at = data.find(text)
    while at >= 0:
        yield at
        at = data.find(text, at + 1)


def search_physical(
    memory: PhysicalMemory,
    pfns: NDArray[np.uint64],
    needles: Sequence[Needle],
    problems: list[Problem],
) -> list[Match]:
    """
    Search pages of physical memory; a text may go on from one page into the next.

    Parameters
    ----------
    pfns : ndarray of uint64
        Frames to be searched, rising; those that the dump does not hold are left out.
    """
    size = memory.page_size_bytes
    matches: list[Match] = []
    overlap = max((needle.size_bytes for needle in needles if needle.text), default=1) - 1
    tail = b""
    expected = -1
    for frames, pages in _read_present(memory, pfns):
        for first, last in _runs(frames):
            base = int(frames[first]) * size
            data = pages[first:last].reshape(-1)
            if overlap:
                if base != expected:
                    tail = b""
                matches += _across(tail, data, base, needles, overlap)
                tail = data[-overlap:].tobytes()
                expected = int(frames[last - 1] + np.uint64(1)) * size
            matches += [Match(base + offset, number, value) for offset, number, value in search_bytes(data, needles)]
        if len(matches) > MATCHES_LIMIT:
            text = f"the search stops after {len(matches)} matches, at physical address {int(frames[-1]) * size:#x}"
            problems.append(Problem(text, Reason.NOT_APPLICABLE))
            break
    return matches


def _across(
    tail: bytes, data: NDArray[np.uint8], base: int, needles: Sequence[Needle], overlap: int
) -> Iterator[Match]:
    """Find texts that begin in the page before and end in this one."""
    if not tail:
        return
    joined = tail + data[:overlap].tobytes()
    for number, needle in enumerate(needles):
        if not needle.text:
            continue
        for begin in _find_text(joined, needle.text):
            if begin < len(tail) < begin + needle.size_bytes:
                yield Match(base - len(tail) + begin, number, 0)


def _runs(frames: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Divide frames into runs of neighbours."""
    breaks = np.flatnonzero(np.diff(frames) != 1) + 1
    yield from zip([0, *breaks.tolist()], [*breaks.tolist(), len(frames)], strict=True)


def _read_present(
    memory: PhysicalMemory, pfns: NDArray[np.uint64]
) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.uint8]]]:
    """Read frames in batches, the next one while the last one is searched."""
    states = memory.page_states(pfns)
    present = pfns[states == PageState.PRESENT]
    batches = [present[start : start + _BATCH_PAGES] for start in range(0, len(present), _BATCH_PAGES)]
    with ThreadPoolExecutor(1, thread_name_prefix="search") as pool:
        coming = pool.submit(memory.read_pages, batches[0]) if batches else None
        for number, frames in enumerate(batches):
            assert coming is not None  # noqa: S101 - there is a batch
            pages, found = coming.result()
            coming = pool.submit(memory.read_pages, batches[number + 1]) if number + 1 < len(batches) else None
            whole = found == PageState.PRESENT
            if whole.all():
                yield frames, pages
            elif whole.any():
                yield frames[whole], pages[whole]


def search_mapped(
    memory: PhysicalMemory,
    mappings: Mappings,
    needles: Sequence[Needle],
    problems: list[Problem],
    linear: NDArray[np.bool_],
) -> list[Match]:
    """
    Search virtual memory: what is found has its virtual addresses, by rising address.

    Parameters
    ----------
    linear : ndarray of bool
        Which runs belong to the direct mapping: in these, what is contiguous in
        physical memory is so in virtual memory, too.
    """
    size = memory.page_size_bytes
    pfns = _mapped_frames(mappings, size)
    limit = max((int(end) for _, end in memory.ram_ranges.tolist()), default=0)
    pfns = pfns[pfns < np.uint64(-(-limit // size))]
    found = search_physical(memory, pfns, needles, problems)
    direct, others = mappings.select(linear), mappings.select(~linear)
    matches = list(_place(found, direct, needles))
    matches += _place(found, others, needles)
    if any(needle.text for needle in needles):
        matches += _search_seams(memory, others, needles)
    unique = {(match.address, match.needle): match for match in matches}
    return [unique[key] for key in sorted(unique)]


def _mapped_frames(mappings: Mappings, page_size_bytes: int) -> NDArray[np.uint64]:
    """List all frames that any run maps, rising, each once."""
    if not len(mappings.paddrs):
        return np.empty(0, dtype=np.uint64)
    starts = mappings.paddrs // np.uint64(page_size_bytes)
    ends = -(-(mappings.paddrs + mappings.sizes).astype(object) // page_size_bytes)
    pairs = sorted(zip(starts.tolist(), [int(end) for end in ends], strict=True))
    merged: list[list[int]] = []
    for start, end in pairs:
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return np.concatenate([np.arange(start, end, dtype=np.uint64) for start, end in merged])


def _place(found: Sequence[Match], mappings: Mappings, needles: Sequence[Needle]) -> Iterator[Match]:
    """Give what was found in physical memory every virtual address that the runs map it at."""
    if not found or not len(mappings.paddrs):
        return
    order = np.argsort(mappings.paddrs, kind="stable")
    starts, sizes, vaddrs = mappings.paddrs[order], mappings.sizes[order], mappings.vaddrs[order]
    # How far back a run that still covers an address may begin.
    reach = np.maximum.accumulate(starts + sizes)
    for match in found:
        paddr = np.uint64(match.address)
        index = int(np.searchsorted(starts, paddr, side="right")) - 1
        while index >= 0 and reach[index] > paddr:
            inside = int(paddr) - int(starts[index])
            if inside + needles[match.needle].size_bytes <= int(sizes[index]):
                yield Match(int(vaddrs[index]) + inside, match.needle, match.value)
            index -= 1


def _search_seams(memory: PhysicalMemory, mappings: Mappings, needles: Sequence[Needle]) -> Iterator[Match]:
    """Find texts across two runs that are neighbours in virtual memory only."""
    if len(mappings.vaddrs) < 2:
        return
    touching = np.flatnonzero(mappings.vaddrs[1:] == mappings.vaddrs[:-1] + mappings.sizes[:-1])
    if not len(touching):
        return
    size = np.uint64(memory.page_size_bytes)
    overlap = max(needle.size_bytes for needle in needles) - 1
    overlap = min(overlap, int(size))
    if not overlap:
        return
    last = (mappings.paddrs[touching] + mappings.sizes[touching] - np.uint64(1)) // size
    following = mappings.paddrs[touching + 1] // size
    for start in range(0, len(touching), _BATCH_PAGES):
        part = slice(start, start + _BATCH_PAGES)
        before, before_states = memory.read_pages(last[part])
        behind, behind_states = memory.read_pages(following[part])
        whole = (before_states == PageState.PRESENT) & (behind_states == PageState.PRESENT)
        for row in np.flatnonzero(whole).tolist():
            seam = int(mappings.vaddrs[touching[start + row] + 1])
            tail = before[row, int(size) - overlap :].tobytes()
            yield from _across(tail, behind[row, :overlap], seam, needles, overlap)
