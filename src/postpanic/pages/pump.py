"""
The page pump: read in large blocks, test for zero, encode on threads, write in order.

Workers read and encode batches; what is ready is written by whichever worker
finds the next batch in the row, so that there is always one that writes and
none that waits for its turn. Batches are written in the order in which they
were handed out, so that the file does not depend on the number of threads
(as far as the codec allows: ISA-L's does not always make the same bytes).
Memory is bounded by the carriers, the buffers in which batches travel. What
takes time (reading, numpy, the codecs, hashing, writing) runs outside the
interpreter's lock.

::

    batches ─┬─> read ─> zero? ─> encode ─┐
             └─> read ─> zero? ─> encode ─┴─> in order ──> writers
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.memory import Dump, PageState
from postpanic.dumps.writing import DumpWriter, EncodedBatch, Encoder, PageBatch
from postpanic.errors import PostpanicError
from postpanic.units import MIB

__all__ = ["DEFAULT_BUFFER_BYTES", "MAX_THREADS", "PumpOutcome", "choose_batch_frames", "pump_pages"]

DEFAULT_BUFFER_BYTES = 24 * MIB
"""Of all batches in flight, what the codecs make of them included: fits the smallest usual capture kernel."""

MAX_THREADS = 64
"""More would only wait for each other."""

_LARGEST_BATCH_BYTES = 2 * MIB
"""Larger ones gain nothing, and leave the processor's cache."""
_SMALLEST_BATCH_FRAMES = 16
_BUFFERS_OF_BATCH = 4.5
"""A batch, its encoded form, and what codecs and the allocator keep beside them, as measured."""

Erase = Callable[[NDArray[np.uint64], NDArray[np.uint8]], object]
"""Blots out secrets in pages, in place: frame numbers, and contents of shape (n, page size)."""


@dataclass
class PumpOutcome:
    """
    What became of the pages.

    Attributes
    ----------
    written_pages : int
        Pages that went through, zero and lost ones included.
    lost : list of int
        Frames that could not be read, in the order in which they were met.
    stopped : str
        Why the pump was stopped before its end, as one phrase; empty if it was not.
    failures : dict
        Number of the writer, and what made it fail; the others went on.
    """

    written_pages: int = 0
    zero_pages: int = 0
    lost: list[int] = field(default_factory=list)
    stopped: str = ""
    failures: dict[int, PostpanicError] = field(default_factory=dict)


def choose_batch_frames(buffer_bytes: int, page_size_bytes: int, threads: int) -> int:
    """Choose how many pages a batch has, for a bound on the memory of all of them."""
    room = min(int(buffer_bytes / (_count_carriers(threads) * _BUFFERS_OF_BATCH)), _LARGEST_BATCH_BYTES)
    return max(room // page_size_bytes, _SMALLEST_BATCH_FRAMES)


def _count_carriers(threads: int) -> int:
    """One for each thread, and one that waits to be written."""
    return threads + 1 if threads > 1 else 1


def pump_pages(
    dump: Dump,
    batches: Iterator[NDArray[np.uint64]],
    writers: Sequence[DumpWriter],
    *,
    batch_frames: int,
    threads: int = 1,
    erase: Erase | None = None,
    progress: Callable[[int], None] | None = None,
    stop: Callable[[], str] | None = None,
) -> PumpOutcome:
    """
    Carry pages from a dump to writers.

    A page that cannot be read is noted and goes on as lost; a writer that fails
    is left out from then on; the pump ends when all have failed.

    Parameters
    ----------
    batches : iterator of ndarray of uint64
        Frame numbers, at most *batch_frames* at a time.
    writers : sequence of DumpWriter
        Which have begun; finishing them is left to the caller.
    threads : int
        Workers; with 1 everything happens in the calling thread.
    erase : callable, optional
        Is given every page that was read before anyone else sees it.
    progress : callable, optional
        Is told the number of pages of each batch when it has been written.
    stop : callable, optional
        Asked before each batch: a reason to stop, or nothing.

    Raises
    ------
    PostpanicError
        Whatever reading raises beside lost pages, such as a codec that is not installed.
    """
    pump = _Pump(dump, batches, writers, erase, progress, stop)
    pump.carriers.extend(
        _Carrier(np.empty((batch_frames, dump.page_size_bytes), dtype=np.uint8), [w.make_encoder() for w in writers])
        for _ in range(_count_carriers(threads))
    )
    if threads <= 1:
        pump.work()
    else:
        workers = [threading.Thread(target=pump.work, name=f"pump-{number}", daemon=True) for number in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    if pump.error is not None:
        raise pump.error
    return pump.outcome


class _Carrier(NamedTuple):
    """What a batch travels in: room for its pages, and encoders with buffers of their own for each writer."""

    pages: NDArray[np.uint8]
    encoders: list[Encoder]


class _Load(NamedTuple):
    """A batch that is ready to be written."""

    carrier: _Carrier
    batch: PageBatch
    encoded: list[EncodedBatch | None]


class _Pump:
    """What the workers share; one lock guards all of it but the writing."""

    def __init__(
        self,
        dump: Dump,
        batches: Iterator[NDArray[np.uint64]],
        writers: Sequence[DumpWriter],
        erase: Erase | None,
        progress: Callable[[int], None] | None,
        stop: Callable[[], str] | None,
    ) -> None:
        self.outcome = PumpOutcome()
        self.error: BaseException | None = None
        self.carriers: list[_Carrier] = []
        self._dump = dump
        self._batches = batches
        self._writers = writers
        self._erase = erase
        self._progress = progress
        self._stop = stop
        self._changed = threading.Condition()
        self._batches_out = self._pages_out = 0
        self._ready: dict[int, _Load] = {}
        self._next = 0
        self._is_writing = False

    def work(self) -> None:
        """Carry batches until there are no more; what goes wrong is kept for the caller."""
        try:
            while (handed := self._take()) is not None:
                number, index, pfns, carrier = handed
                self._put(number, self._load(index, pfns, carrier))
        except BaseException as exc:  # noqa: BLE001 - a worker has nobody to raise to
            with self._changed:
                self.error = self.error or exc
                self._changed.notify_all()

    def _take(self) -> tuple[int, int, NDArray[np.uint64], _Carrier] | None:
        """Take the next batch: its number, that of its first page, and a carrier; None when there is no more to do."""
        with self._changed:
            while not self.carriers and self.error is None:
                self._changed.wait()
            if self.error is not None or self.outcome.stopped or len(self.outcome.failures) == len(self._writers):
                return None
            if self._stop is not None and (reason := self._stop()):
                self.outcome.stopped = reason
                return None
            pfns = next(self._batches, None)
            if pfns is None:
                return None
            number, index = self._batches_out, self._pages_out
            self._batches_out += 1
            self._pages_out += len(pfns)
            return number, index, pfns, self.carriers.pop()

    def _load(self, index: int, pfns: NDArray[np.uint64], carrier: _Carrier) -> _Load:
        """Read a batch and encode it for every writer that still works."""
        pages = carrier.pages[: len(pfns)]
        is_lost = self._dump.read_pages_into(pfns, pages) != PageState.PRESENT
        if self._erase is not None:
            self._erase(pfns, pages)
        is_zero = (np.bitwise_or.reduce(pages.view(np.uint64), axis=1) == 0) & ~is_lost
        batch = PageBatch(pfns, pages, is_zero, is_lost, index, self._reread)
        failures = self.outcome.failures
        encoded = [None if index in failures else encode(batch) for index, encode in enumerate(carrier.encoders)]
        return _Load(carrier, batch, encoded)

    def _reread(self, pfns: NDArray[np.uint64]) -> NDArray[np.uint8]:
        """Read pages that went through already, as they went through."""
        frames, places = np.unique(pfns, return_inverse=True)
        pages = np.empty((len(frames), self._dump.page_size_bytes), dtype=np.uint8)
        self._dump.read_pages_into(frames, pages)
        if self._erase is not None:
            self._erase(frames, pages)
        return pages[places]

    def _put(self, number: int, load: _Load) -> None:
        """Hand a load in, and write what is next in the row unless somebody does already."""
        with self._changed:
            self._ready[number] = load
            if self._is_writing:
                return
            self._is_writing = True
        while True:
            with self._changed:
                if self._next not in self._ready or self.error is not None:
                    self._is_writing = False
                    return
                load = self._ready.pop(self._next)
            self._write(load)
            with self._changed:
                self._next += 1
                self.carriers.append(load.carrier)
                self._changed.notify()

    def _write(self, load: _Load) -> None:
        failures = self.outcome.failures
        for index, (writer, part) in enumerate(zip(self._writers, load.encoded, strict=True)):
            if part is None or index in failures:
                continue
            try:
                writer.write(part)
            except PostpanicError as exc:
                failures[index] = exc
        if len(failures) == len(self._writers):
            return
        batch = load.batch
        self.outcome.written_pages += len(batch.pfns)
        self.outcome.zero_pages += int(np.count_nonzero(batch.is_zero))
        if batch.is_lost.any():
            self.outcome.lost.extend(batch.pfns[batch.is_lost].tolist())
        if self._progress is not None:
            self._progress(len(batch.pfns))
