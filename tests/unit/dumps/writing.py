"""Write dumps out of Python values, through our writers, as the page pump would."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.digest import FileDigest
from postpanic.dumps.frames import FrameSet
from postpanic.dumps.memory import PageState, VirtualSegment
from postpanic.dumps.open import open_dump
from postpanic.dumps.sink import FileSink, Sink
from postpanic.dumps.writing import DumpOutline, DumpWriter, PageBatch
from postpanic.errors import NoSpaceError
from tests.builders.elfcore import build_note, build_vmcoreinfo_note
from tests.unit.dumps.pages import contents_of, states_of

VMCOREINFO = b"OSRELEASE=6.1.0-test\nPAGESIZE=%d\nNUMBER(phys_base)=16777216\n"
UTSNAME = {"sysname": "Linux", "nodename": "host", "release": "6.1.0-test", "version": "#1", "machine": "x86_64"}
TIME_S = 1_700_000_000
Writer = TypeVar("Writer", bound=DumpWriter)
RAM = (*range(2, 20), *range(298, 310))


def make_set(frames: Iterable[int], limit: int) -> FrameSet:
    flags = np.zeros(limit, dtype=bool)
    flags[sorted(frames)] = True
    return FrameSet(np.packbits(flags, bitorder="little"), limit)


def make_outline(
    kept: Collection[int],
    ram: Collection[int] = (),
    *,
    page_size: int = 4096,
    pfn_range: tuple[int, int] | None = None,
    segments: tuple[VirtualSegment, ...] = (),
) -> DumpOutline:
    """Describe a dump of some frames; its RAM has all of them."""
    limit = max([*kept, *ram]) + 1
    text = VMCOREINFO % page_size
    return DumpOutline(
        machine="x86_64",
        page_size_bytes=page_size,
        ram=make_set({*kept, *ram}, limit),
        kept=make_set(kept, limit),
        dump_level=31,
        vmcoreinfo=text.rstrip(b"\0"),
        notes=build_note(b"CORE", 1, bytes(336)) + build_vmcoreinfo_note(text),
        utsname=UTSNAME,
        timestamp_s=TIME_S,
        cpu_count=2,
        phys_base=0x1000000,
        segments=segments,
        pfn_range=pfn_range,
    )


def make_batch(
    frames: Sequence[int], pages: Mapping[int, bytes], page_size: int, lost: Collection[int] = ()
) -> PageBatch:
    contents = np.zeros((len(frames), page_size), dtype=np.uint8)
    is_lost = np.array([pfn in lost for pfn in frames], dtype=np.bool_)
    for row, pfn in enumerate(frames):
        if pfn not in lost:
            contents[row] = np.frombuffer(pages[pfn], dtype=np.uint8)
    is_zero: NDArray[np.bool_] = ~contents.any(axis=1) & ~is_lost
    return PageBatch(np.array(frames, dtype=np.uint64), contents, is_zero, is_lost)


def pump(
    writer: DumpWriter,
    pages: Mapping[int, bytes],
    *,
    batches: Iterable[Sequence[int]] | None = None,
    lost: Collection[int] = (),
    page_size: int = 4096,
) -> bool:
    """Write pages, in batches of rising frames; whether there was room for all."""
    frames = sorted(pages)
    chosen = [frames[start : start + 7] for start in range(0, len(frames), 7)] if batches is None else batches
    encode = writer.make_encoder()
    try:
        writer.begin()
        for batch in chosen:
            if len(batch):
                made = make_batch(batch, pages, page_size, lost)
                encoded = encode(made)
                assert int(encoded.sizes.sum()) == sum(len(part) for part in encoded.data)
                writer.write(encoded)
                # The pump reads the next pages to the same place.
                made.pages[:] = 0xEE
    except NoSpaceError:
        return False
    return True


def write_dump(
    path: Path,
    make_writer: Callable[[Sink], Writer],
    pages: Mapping[int, bytes],
    *,
    page_size: int = 4096,
    batches: Iterable[Sequence[int]] | None = None,
    lost: Collection[int] = (),
    complete: bool = True,
    eraseinfo: bytes = b"",
) -> Writer:
    """Write a whole dump to a file."""
    sink = FileSink(path, overwrite=True, synced=False)
    writer = make_writer(sink)
    assert pump(writer, pages, batches=batches, lost=lost, page_size=page_size)
    writer.finish(complete=complete, eraseinfo=eraseinfo)
    sink.finish()
    return writer


def check_dump(
    path: Path,
    pages: Mapping[int, bytes],
    ram: Collection[int],
    *,
    left_out: PageState,
    lost: Collection[int] = (),
    lost_state: PageState = PageState.LOST,
) -> None:
    """Check that a file has the contents of pages but the lost ones, and tells of all other frames what they are."""
    states = dict.fromkeys(ram, left_out) | dict.fromkeys(pages, PageState.PRESENT) | dict.fromkeys(lost, lost_state)
    with open_dump(path) as dump:
        for pfn, page in pages.items():
            if pfn not in lost:
                assert contents_of(dump, pfn) == page
        every = range(max(ram) + 5)
        assert states_of(dump, every) == [states.get(pfn, PageState.ABSENT) for pfn in every]


class CrampedSink:
    """A disk with little room: bytes are written until it is full, and those that are there can be replaced."""

    def __init__(self, path: Path, room_bytes: int) -> None:
        self._sink: Sink = FileSink(path, overwrite=True, synced=False)
        self.name = self._sink.name
        self._taken: set[int] = set()
        self._room_blocks = room_bytes // self.BLOCK

    BLOCK = 64
    is_stream = False

    def write_at(self, offset: int, parts: Sequence[memoryview | bytes]) -> None:
        data = b"".join(bytes(part) for part in parts)
        for block in range(offset // self.BLOCK, -(-(offset + len(data)) // self.BLOCK)):
            if block not in self._taken:
                if len(self._taken) >= self._room_blocks:
                    fits = max(block * self.BLOCK - offset, 0)
                    self._sink.write_at(offset, [data[:fits]])
                    raise NoSpaceError("no space left on device", where=self.name)
                self._taken.add(block)
        self._sink.write_at(offset, [data])

    def write_rows(self, table_offset: int, numbers: NDArray[np.int64], rows: NDArray[np.uint8]) -> None:
        for number, row in zip(numbers.tolist(), rows, strict=True):
            self.write_at(table_offset + number * rows.shape[1], [row.tobytes()])

    def reserve(self, size_bytes: int) -> None:
        self._sink.reserve(size_bytes)

    def extend(self, size_bytes: int) -> None:
        self._sink.extend(size_bytes)

    def flush(self) -> None:
        self._sink.flush()

    def finish(self) -> FileDigest:
        return self._sink.finish()

    def close(self) -> None:
        self._sink.close()
