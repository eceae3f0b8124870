"""Check finished files: against the digests of their manifest, and by what they say of themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.digest import FileDigest, digest_file
from postpanic.dumps.memory import Dump, PageState
from postpanic.errors import FileFaultError
from postpanic.pages.manifest import Manifest, OutputFile
from postpanic.units import MIB, format_size

__all__ = [
    "ExpectedFile",
    "FileCheck",
    "StructureCheck",
    "check_file",
    "check_structure",
    "count_present",
    "match_files",
]

Advance = Callable[[int], None]

_FRAMES_TOGETHER = 1 << 20
_READ_BYTES = 4 * MIB
_SPARE_CHUNKS = 1 << 12
"""A file that is longer than the manifest says is hashed all the same, within reason."""


@dataclass(frozen=True, slots=True)
class ExpectedFile:
    """A file of a dump, and what its manifest says of it."""

    path: Path
    record: OutputFile | None
    """None where there is no manifest, or it does not know the file."""


@dataclass(frozen=True, slots=True)
class FileCheck:
    """What came of comparing a file with its digest."""

    path: Path
    size_bytes: int
    hashed: bool = False
    """Whether there was a digest to compare with."""
    chunk_size_bytes: int = 0
    bad_chunks: tuple[int, ...] = ()
    """Numbers of the chunks that are not as they were written, those that are gone included."""
    size_fault: str = ""
    digest_faults: tuple[str, ...] = ()

    @property
    def faults(self) -> tuple[str, ...]:
        """What is wrong, one phrase each."""
        return (self.size_fault, *self.digest_faults) if self.size_fault else self.digest_faults


@dataclass(frozen=True, slots=True)
class StructureCheck:
    """What a dump says of itself, and whether its pages can be had."""

    page_counts: dict[PageState, int]
    pages_read: int
    """Pages that were decompressed."""
    lost_ranges: tuple[tuple[int, int], ...]
    """Frames that should be there and are not, ``[start, end)``, without those that the manifest knows to be lost."""
    faults: tuple[str, ...]


def match_files(paths: tuple[Path, ...], manifest: Manifest | None) -> tuple[tuple[ExpectedFile, ...], tuple[str, ...]]:
    """
    Find out which files belong to a dump, and what the manifest says of each.

    Of a split set all parts that the manifest names are looked for beside the
    first. A dump of one file may have another name by now.

    Returns
    -------
    files : tuple of ExpectedFile
    faults : tuple of str
        What is missing, one phrase each.
    """
    if manifest is None:
        return tuple(ExpectedFile(path, None) for path in paths), ()
    records = {record.name: record for record in manifest.output.files}
    if len(paths) == len(records) == 1:
        return (ExpectedFile(paths[0], next(iter(records.values()))),), ()
    files = [ExpectedFile(path, records.pop(path.name, None)) for path in paths]
    faults = [f"{file.path} is not named in the manifest" for file in files if file.record is None]
    for record in records.values():
        path = paths[0].with_name(record.name)
        if path.exists():
            files.append(ExpectedFile(path, record))
        else:
            faults.append(f"{path} is missing, a part of the set")
    return tuple(files), tuple(faults)


def check_file(file: ExpectedFile, advance: Advance | None = None) -> FileCheck:
    """
    Compare a file with what its manifest says of it.

    Parameters
    ----------
    advance : callable, optional
        Is told, from any thread, how many bytes have been hashed since the last time.

    Raises
    ------
    FileFaultError
        If the file cannot be read.
    """
    try:
        size = file.path.stat().st_size
    except OSError as exc:
        raise FileFaultError((exc.strerror or str(exc)).lower(), where=str(file.path)) from None
    if file.record is None:
        return FileCheck(file.path, size)
    digest = file.record.digest
    size_fault = "" if size == digest.size_bytes else f"{size:,} bytes, the manifest says {digest.size_bytes:,}"
    if not digest.sha256:
        return FileCheck(file.path, size, size_fault=size_fault)
    faults: list[str] = []
    if _combine(digest) != digest.sha256:
        faults.append("the manifest contradicts itself: its digest of all is not that of its chunks")
    bad: tuple[int, ...] = ()
    if -(-size // digest.chunk_size_bytes) <= len(digest.sha256_chunks) + _SPARE_CHUNKS:
        found = digest_file(file.path, chunk_size_bytes=digest.chunk_size_bytes, progress=advance).sha256_chunks
        bad = tuple(_find_bad(digest.sha256_chunks, found))
    if bad:
        faults.append(_describe_bad(bad, digest))
    return FileCheck(
        file.path,
        size,
        hashed=True,
        chunk_size_bytes=digest.chunk_size_bytes,
        bad_chunks=bad,
        size_fault=size_fault,
        digest_faults=tuple(faults),
    )


def check_structure(
    dump: Dump, manifest: Manifest | None, *, deep: bool = False, advance: Advance | None = None
) -> StructureCheck:
    """
    Look at everything that a dump says of itself.

    Parameters
    ----------
    deep : bool
        Read and decompress every page.
    advance : callable, optional
        Is told how many pages have been read since the last time.
    """
    counts = np.zeros(len(PageState), dtype=np.int64)
    lost = _LostFrames(manifest)
    pages_read = 0
    room = np.empty((max(_READ_BYTES // dump.page_size_bytes, 1), dump.page_size_bytes), dtype=np.uint8)
    for pfns in _chunks_of_ram(dump):
        states = dump.page_states(pfns)
        if deep:
            present = np.flatnonzero(states == PageState.PRESENT)
            for start in range(0, len(present), len(room)):
                part = present[start : start + len(room)]
                states[part] = dump.read_pages_into(pfns[part], room[: len(part)])
                pages_read += len(part)
                if advance is not None:
                    advance(len(part))
        counts += np.bincount(states, minlength=len(PageState))
        lost.add(pfns[states == PageState.LOST])
    page_counts = {state: int(counts[state]) for state in PageState}
    faults = _find_faults(dump, manifest, page_counts, lost)
    return StructureCheck(page_counts, pages_read, tuple(lost.ranges), tuple(faults))


def count_present(dump: Dump) -> int:
    """Count the pages whose contents are in a dump, as far as it says."""
    return sum(int((dump.page_states(pfns) == PageState.PRESENT).sum()) for pfns in _chunks_of_ram(dump))


class _LostFrames:
    """Frames that are lost, as ranges; a bounded number of them."""

    def __init__(self, manifest: Manifest | None) -> None:
        self.ranges: list[tuple[int, int]] = []
        self.count = 0
        known = manifest.pages.lost_ranges if manifest is not None else ()
        self._known = np.array(known, dtype=np.uint64).reshape(-1, 2)

    def add(self, pfns: NDArray[np.uint64]) -> None:
        """Add frames, all above those before."""
        if len(self._known):
            behind = np.searchsorted(self._known[:, 0], pfns, side="right")
            is_known = (behind > 0) & (pfns < self._known[np.maximum(behind, 1) - 1, 1])
            pfns = pfns[~is_known]
        if not len(pfns):
            return
        self.count += len(pfns)
        breaks = np.flatnonzero(np.diff(pfns) != 1) + 1
        for run in np.split(pfns, breaks[:_SPARE_CHUNKS]):
            start, end = int(run[0]), int(run[-1]) + 1
            if self.ranges and self.ranges[-1][1] == start:
                self.ranges[-1] = (self.ranges[-1][0], end)
            elif len(self.ranges) < _SPARE_CHUNKS:
                self.ranges.append((start, end))


def _find_faults(
    dump: Dump, manifest: Manifest | None, counts: dict[PageState, int], lost: _LostFrames
) -> Iterator[str]:
    description = dump.description
    if description.incomplete:
        yield description.incomplete
    if lost.count:
        yield f"{lost.count:,} pages cannot be read, the first is frame {lost.ranges[0][0]:#x}"
    if manifest is None:
        return
    yield from manifest.incomplete
    saved = manifest.pages.written - manifest.pages.lost
    # In an ELF file pages of zeroes are holes, like those that were excluded.
    if description.is_paged and manifest.complete and not lost.count and counts[PageState.PRESENT] != saved:
        yield f"the file has {counts[PageState.PRESENT]:,} pages, the manifest says {saved:,}"


def _chunks_of_ram(dump: Dump) -> Iterator[NDArray[np.uint64]]:
    """Give the numbers of all frames of RAM, a few at a time."""
    size = dump.page_size_bytes
    for start, end in dump.ram_ranges.tolist():
        first, stop = start // size, -(-end // size)
        for chunk in range(first, stop, _FRAMES_TOGETHER):
            yield np.arange(chunk, min(chunk + _FRAMES_TOGETHER, stop), dtype=np.uint64)


def _combine(digest: FileDigest) -> str:
    return hashlib.sha256(b"".join(map(bytes.fromhex, digest.sha256_chunks))).hexdigest()


def _find_bad(expected: tuple[str, ...], found: tuple[str, ...]) -> Iterator[int]:
    for number in range(max(len(expected), len(found))):
        if number >= len(expected) or number >= len(found) or expected[number] != found[number]:
            yield number


def _describe_bad(bad: tuple[int, ...], digest: FileDigest) -> str:
    start = bad[0] * digest.chunk_size_bytes
    count = max(len(digest.sha256_chunks), bad[-1] + 1)
    first = f"block {bad[0]}, {format_size(digest.chunk_size_bytes)} from {start:#x} on"
    if len(bad) == 1:
        return f"{first}, is not as it was written"
    return f"{len(bad)} of {count} blocks are not as they were written: {_spell_numbers(bad)}; the first is {first}"


def _spell_numbers(numbers: tuple[int, ...], most: int = 16) -> str:
    """
    Spell rising numbers, runs of them as ranges.

    >>> _spell_numbers((1, 2, 3, 7))
    '1-3, 7'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] + 1 == number:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = ", ".join(f"{low}-{high}" if high > low else f"{low}" for low, high in runs[:most])
    return shown + (f" and {len(runs) - most} more" if len(runs) > most else "")
