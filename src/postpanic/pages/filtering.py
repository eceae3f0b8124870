"""
Write a dump anew: fewer pages, another format, another compression, several files.

This is the whole way from a chosen set of pages to finished files; choosing
them is :mod:`postpanic.pages.classify`'s business, proving that the files are
good :mod:`postpanic.pages.selftest`'s.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.digest import FileDigest
from postpanic.dumps.kdump.codecs import Compression
from postpanic.dumps.memory import Dump
from postpanic.dumps.sink import Sink
from postpanic.dumps.writing import ByteSink, DumpWriter
from postpanic.errors import PostpanicError
from postpanic.kernel.memory import KernelMemory
from postpanic.pages.outline import make_outline
from postpanic.pages.pump import DEFAULT_BUFFER_BYTES, Erase, PumpOutcome, choose_batch_frames, pump_pages
from postpanic.pages.selection import Selection

__all__ = ["FilterResult", "GrowingDump", "OutputForm", "WritePlan", "divide_frames", "write_dump"]


class OutputForm(enum.Enum):
    """What is written."""

    KDUMP = "kdump-compressed v6"
    ELF = "ELF vmcore"


@dataclass(frozen=True)
class WritePlan:
    """
    How a dump is written.

    Attributes
    ----------
    compression : Compression, optional
        Of kdump's pages; None stores them as they are.
    compression_level : int, optional
        In the codec's own terms; None is the codec's best bargain.
    threads : int
        That read, compress and write.
    buffer_bytes : int
        Bound on the memory of pages in flight.
    by_worth : bool
        Write the most valuable pages first, else in the order of frame numbers.
    """

    form: OutputForm = OutputForm.KDUMP
    compression: Compression | None = Compression.ZSTD
    compression_level: int | None = None
    threads: int = 1
    buffer_bytes: int = DEFAULT_BUFFER_BYTES
    by_worth: bool = True

    @property
    def is_compressed(self) -> bool:
        """Whether pages are compressed at all."""
        return self.form is OutputForm.KDUMP and self.compression is not None

    def require_codec(self, page_size_bytes: int) -> None:
        """
        Find out whether pages can be compressed as planned, before anything is written.

        Raises
        ------
        UnsupportedError
            If the codec is not installed; says what is.
        UsageError
            If the codec has no such level.
        """
        if self.is_compressed:
            from postpanic.dumps.kdump.encoders import open_encoder

            open_encoder(self.compression, self.compression_level, page_size_bytes)


@dataclass
class FilterResult:
    """
    What came of it.

    Attributes
    ----------
    faults : list of str
        Why the files are not complete, one phrase each; empty when they are.
    error : PostpanicError, optional
        What ended the writing.
    """

    selection: Selection
    written_pages: int = 0
    zero_pages: int = 0
    lost: list[int] = field(default_factory=list)
    stopped: str = ""
    faults: list[str] = field(default_factory=list)
    error: PostpanicError | None = None
    digests: list[FileDigest | None] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every page that was chosen is in the files."""
        return not self.faults


def write_dump(
    dump: Dump,
    kernel: KernelMemory | None,
    selection: Selection,
    sinks: Sequence[Sink],
    plan: WritePlan,
    *,
    erase: Erase | None = None,
    eraseinfo: bytes = b"",
    progress: Callable[[int], None] | None = None,
    stop: Callable[[], str] | None = None,
) -> FilterResult:
    """
    Write the chosen pages of a dump to one file, or to the files of a split set.

    What goes wrong on the way ends up in the result: a file that is cut short
    is finished as far as can be, and says that it is incomplete.

    Parameters
    ----------
    sinks : sequence of Sink
        More than one makes a split set: each file gets about as many pages.
    progress : callable, optional
        Is told how many pages were written, batch by batch.
    stop : callable, optional
        Asked before each batch: a reason to stop, or an empty text.

    Raises
    ------
    PostpanicError
        If not even the headers can be written, or the source cannot be read at all.
    """
    result = FilterResult(selection)
    ranges = divide_frames(selection, len(sinks)) if len(sinks) > 1 else [None]
    for sink, pfn_range in zip(sinks, ranges, strict=True):
        file = GrowingDump(dump, kernel, selection, sink, plan, result=result, pfn_range=pfn_range)
        file.begin()
        outcome = file.pump(erase=erase, progress=progress, stop=stop)
        file.finish(eraseinfo)
        if outcome.stopped or outcome.failures:
            break
    return result


class GrowingDump:
    """
    One dump file that is being written.

    Parameters
    ----------
    sink : Sink
        Empty so far; :meth:`finish` ends it.
    result : FilterResult, optional
        Where what happens is added; several files of a split set share one.
    pfn_range : tuple of int, optional
        Of a part of a split set.
    """

    def __init__(
        self,
        dump: Dump,
        kernel: KernelMemory | None,
        selection: Selection,
        sink: Sink,
        plan: WritePlan,
        *,
        result: FilterResult | None = None,
        pfn_range: tuple[int, int] | None = None,
    ) -> None:
        self.result = result or FilterResult(selection)
        self.writer = _make_writer(dump, kernel, selection, sink, plan, pfn_range)
        self._dump = dump
        self._plan = plan
        self._sink = sink
        self._pfn_range = pfn_range

    @property
    def batch_frames(self) -> int:
        """How many pages go through at a time."""
        return choose_batch_frames(self._plan.buffer_bytes, self._dump.page_size_bytes, self._plan.threads)

    def begin(self) -> None:
        """Write everything that comes before the pages."""
        self.writer.begin()

    def pump(
        self,
        *,
        first_page: int = 0,
        erase: Erase | None = None,
        progress: Callable[[int], None] | None = None,
        stop: Callable[[], str] | None = None,
    ) -> PumpOutcome:
        """
        Carry the pages from the dump into the file, from a number in the order of writing on.

        What comes of it is added to the result.
        """
        batches = self.result.selection.batches(
            self.batch_frames, by_worth=self._plan.by_worth, pfn_range=self._pfn_range
        )
        outcome = pump_pages(
            self._dump,
            _skip_pages(batches, first_page),
            [self.writer],
            batch_frames=self.batch_frames,
            threads=self._plan.threads,
            erase=erase,
            progress=progress,
            stop=stop,
        )
        self.add(outcome)
        return outcome

    def add(self, outcome: PumpOutcome) -> None:
        """Add to the result what became of pages."""
        _add_outcome(self.result, outcome)

    def finish(self, eraseinfo: bytes = b"") -> None:
        """End the file; one that has no room for its last bytes is incomplete too."""
        _finish(self.result, self.writer, self._sink, eraseinfo)


def _skip_pages(batches: Iterator[NDArray[np.uint64]], count: int) -> Iterator[NDArray[np.uint64]]:
    for pfns in batches:
        if count < len(pfns):
            yield pfns[count:]
        count = max(count - len(pfns), 0)


def divide_frames(selection: Selection, parts: int) -> list[tuple[int, int] | None]:
    """Divide all frames into ranges with about as many kept frames each."""
    kept = selection.kept
    edges = [0]
    for part in range(1, parts):
        edges.append(max(kept.find_nth(kept.count * part // parts), edges[-1]))
    edges.append(kept.limit)
    return [(edges[part], edges[part + 1]) for part in range(parts)]


def _make_writer(
    dump: Dump,
    kernel: KernelMemory | None,
    selection: Selection,
    sink: ByteSink,
    plan: WritePlan,
    pfn_range: tuple[int, int] | None,
) -> DumpWriter:
    outline = make_outline(dump, kernel, selection, pfn_range=pfn_range)
    if plan.form is OutputForm.ELF:
        from postpanic.dumps.elfcore.writer import ElfWriter

        return ElfWriter(sink, outline)
    from postpanic.dumps.kdump.writer import KdumpWriter

    return KdumpWriter(sink, outline, plan.compression, plan.compression_level)


def _add_outcome(result: FilterResult, outcome: PumpOutcome) -> None:
    result.written_pages += outcome.written_pages
    result.zero_pages += outcome.zero_pages
    result.lost.extend(outcome.lost)
    result.stopped = outcome.stopped
    if outcome.lost:
        pages = "page" if len(outcome.lost) == 1 else "pages"
        result.faults.append(f"{len(outcome.lost)} {pages} could not be read")
    if outcome.stopped:
        result.faults.append(outcome.stopped)
    if outcome.failures:
        result.error = next(iter(outcome.failures.values()))
        result.faults.append(result.error.message)


def _finish(result: FilterResult, writer: DumpWriter, sink: Sink, eraseinfo: bytes) -> None:
    """End a file; one that has no room for its last bytes is incomplete too."""
    try:
        writer.finish(complete=result.complete, eraseinfo=eraseinfo)
        result.digests.append(sink.finish())
    except PostpanicError as exc:
        if result.error is None:
            result.error = exc
            result.faults.append(exc.message)
        result.digests.append(None)
