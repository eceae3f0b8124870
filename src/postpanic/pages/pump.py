"""
The page pump: read in large blocks, test for zero, encode on threads, write in order.

Each worker carries a batch the whole way with buffers of its own, so that
reading, compressing and writing overlap without a queue, and memory is bounded
by the workers. What takes time (reading, numpy, the codecs, hashing, writing)
runs outside the interpreter's lock. Batches are written in the order in which
they were handed out, so that the same input gives the same file whatever the
number of threads.

::

    batches ─┬─> read ─> zero? ─> encode ─┐ turn 0, 2, 4 …
             └─> read ─> zero? ─> encode ─┤ turn 1, 3, 5 …   ──> writers
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.memory import Dump, PageState
from postpanic.dumps.writing import DumpWriter, Encoder, PageBatch
from postpanic.errors import PostpanicError
from postpanic.units import MIB

__all__ = ["DEFAULT_BUFFER_BYTES", "MAX_THREADS", "PumpOutcome", "choose_batch_frames", "pump_pages"]

DEFAULT_BUFFER_BYTES = 24 * MIB
"""Of all batches in flight, what the codecs make of them included: fits the smallest usual capture kernel."""

MAX_THREADS = 64
_LARGEST_BATCH_BYTES = 8 * MIB
_SMALLEST_BATCH_FRAMES = 16
_BUFFERS_OF_BATCH = 7
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
    room = min(int(buffer_bytes / (threads * _BUFFERS_OF_BATCH)), _LARGEST_BATCH_BYTES)
    return max(room // page_size_bytes, _SMALLEST_BATCH_FRAMES)


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
    pump = _Pump(dump, batches, writers, batch_frames, erase, progress, stop)
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


class _Pump:
    """What the workers share."""

    def __init__(
        self,
        dump: Dump,
        batches: Iterator[NDArray[np.uint64]],
        writers: Sequence[DumpWriter],
        batch_frames: int,
        erase: Erase | None,
        progress: Callable[[int], None] | None,
        stop: Callable[[], str] | None,
    ) -> None:
        self.outcome = PumpOutcome()
        self.error: BaseException | None = None
        self._dump = dump
        self._batches = batches
        self._writers = writers
        self._batch_frames = batch_frames
        self._erase = erase
        self._progress = progress
        self._stop = stop
        self._handing_out = threading.Lock()
        self._handed_out = 0
        self._turn = threading.Condition()
        self._turns_done = 0

    def work(self) -> None:
        """Carry batches until there are no more; what goes wrong is kept for the caller."""
        try:
            pages = np.empty((self._batch_frames, self._dump.page_size_bytes), dtype=np.uint8)
            encoders = [writer.make_encoder() for writer in self._writers]
            while (handed := self._take()) is not None:
                number, pfns = handed
                self._carry(number, pfns, pages[: len(pfns)], encoders)
        except BaseException as exc:  # noqa: BLE001 - a worker has nobody to raise to
            with self._turn:
                self.error = self.error or exc
                self._turn.notify_all()

    def _take(self) -> tuple[int, NDArray[np.uint64]] | None:
        """Take the next batch and its number; None when there is no more to do."""
        with self._handing_out:
            if self.error is not None or self.outcome.stopped or len(self.outcome.failures) == len(self._writers):
                return None
            if self._stop is not None and (reason := self._stop()):
                self.outcome.stopped = reason
                return None
            pfns = next(self._batches, None)
            if pfns is None:
                return None
            self._handed_out += 1
            return self._handed_out - 1, pfns

    def _carry(
        self, number: int, pfns: NDArray[np.uint64], pages: NDArray[np.uint8], encoders: Sequence[Encoder]
    ) -> None:
        states = self._dump.read_pages_into(pfns, pages)
        is_lost = states != PageState.PRESENT
        if self._erase is not None:
            self._erase(pfns, pages)
        words = pages.view(np.uint64)
        is_zero = (np.bitwise_or.reduce(words, axis=1) == 0) & ~is_lost
        batch = PageBatch(pfns, pages, is_zero, is_lost)
        failures = self.outcome.failures
        encoded = [None if index in failures else encode(batch) for index, encode in enumerate(encoders)]
        with self._turn:
            while self._turns_done != number and self.error is None:
                self._turn.wait()
            if self.error is not None:
                return
        # No other worker passes until the turn is given on, so writing needs no lock.
        for index, (writer, part) in enumerate(zip(self._writers, encoded, strict=True)):
            if part is None or index in failures:
                continue
            try:
                writer.write(part)
            except PostpanicError as exc:
                failures[index] = exc
        if len(failures) < len(self._writers):
            self._count(pfns, is_zero, is_lost)
        with self._turn:
            self._turns_done += 1
            self._turn.notify_all()

    def _count(self, pfns: NDArray[np.uint64], is_zero: NDArray[np.bool_], is_lost: NDArray[np.bool_]) -> None:
        self.outcome.written_pages += len(pfns)
        self.outcome.zero_pages += int(np.count_nonzero(is_zero))
        if is_lost.any():
            self.outcome.lost.extend(pfns[is_lost].tolist())
        if self._progress is not None:
            self._progress(len(pfns))
