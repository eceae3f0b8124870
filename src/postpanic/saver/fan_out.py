"""
One read, many targets: what was read and encoded once goes to every target at its own speed.

Each target has a lane, a queue of batches and a thread that empties it. The
fastest target sets the pace. One that cannot keep up for a while leaves: it
writes what is in its queue, and goes on from there by reading the memory
itself, which stays where it is. So no target ever waits for a slower one, and
memory is bounded by the queues.

::

    pump ──write()──> lane ──> target          (keeps up: every page read once)
                 ├──> lane ──> target
                 └──x leave(): resumes at page N on its own
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from postpanic.dumps.writing import DumpWriter, EncodedBatch, Encoder
from postpanic.errors import OutputError, PostpanicError
from postpanic.pages.pump import PumpOutcome

__all__ = ["FanOut", "Lane"]

_QUEUE_BYTES = 3 << 20
"""Of each lane; what several lanes hold is one copy."""
_PATIENCE_S = 0.5
"""How long the others wait for one that does not keep up; a disk that is told to flush may take that long."""


class Lane:
    """
    The way to one target.

    Parameters
    ----------
    writer : DumpWriter
        Which has begun.
    """

    def __init__(self, writer: DumpWriter) -> None:
        self.writer = writer
        self.outcome = PumpOutcome()
        """What became of the pages that went through."""
        self.resume_page: int | None = None
        """Where it goes on by itself, in the order of writing; None if it got everything."""
        self._queue: deque[_Load] = deque()
        self._queued_bytes = 0
        self._is_closed = False
        self._changed = threading.Condition()

    @property
    def has_failed(self) -> bool:
        """Whether its target takes nothing any more."""
        return bool(self.outcome.failures)

    @property
    def takes_part(self) -> bool:
        """Whether it still gets what is read."""
        return self.resume_page is None and not self.has_failed and not self.outcome.stopped

    def run(self, progress: Callable[[int], None] | None = None) -> None:
        """
        Write what comes, until all has come, the lane has left, or writing fails.

        Parameters
        ----------
        progress : callable, optional
            Is told the number of pages of each batch when it has been written.
        """
        while (load := self._take()) is not None:
            try:
                self.writer.write(load.batch)
            except PostpanicError as exc:
                self.fail(exc)
                return
            self._count(load.batch)
            if progress is not None:
                progress(len(load.batch.pfns))

    def fail(self, error: PostpanicError) -> None:
        """Take no more: the target does not answer, or refuses."""
        with self._changed:
            self.outcome.failures.setdefault(0, error)
            self._queue.clear()
            self._queued_bytes = 0
            self._is_closed = True
            self._changed.notify_all()

    def close(self) -> None:
        """Say that nothing more will come."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def leave(self, page: int) -> None:
        """Write what is queued, and take nothing from this page on."""
        with self._changed:
            self.resume_page = page
            self._is_closed = True
            self._changed.notify_all()

    def stop(self, reason: str) -> None:
        """Write nothing more than what is being written."""
        with self._changed:
            is_cut = not self._is_closed
            while self._queue and not self._queue[-1].is_taken:
                self._queued_bytes -= self._queue.pop().size_bytes
                is_cut = True
            if is_cut:
                self.outcome.stopped = reason
            self._is_closed = True
            self._changed.notify_all()

    def put(self, load: _Load) -> None:
        """Queue a batch."""
        with self._changed:
            if self._is_closed:
                return
            self._queue.append(load)
            self._queued_bytes += load.size_bytes
            self._changed.notify_all()

    def has_room(self, size_bytes: int) -> bool:
        """Whether a batch of this size fits; one always does."""
        return not self._queue or self._queued_bytes + size_bytes <= _QUEUE_BYTES

    @property
    def is_idle(self) -> bool:
        """Whether it waits for more."""
        return not self._queue

    def _take(self) -> _Load | None:
        """Take the next batch out when it is written, not before: until then it counts."""
        with self._changed:
            if self._queue and self._queue[0].is_taken:
                done = self._queue.popleft()
                self._queued_bytes -= done.size_bytes
                self._changed.notify_all()
            while not self._queue and not self._is_closed:
                self._changed.wait()
            if not self._queue:
                return None
            self._queue[0] = self._queue[0]._replace(is_taken=True)
            return self._queue[0]

    def _count(self, batch: EncodedBatch) -> None:
        outcome = self.outcome
        outcome.written_pages += len(batch.pfns)
        outcome.zero_pages += int(batch.is_zero.sum())
        if batch.is_lost.any():
            outcome.lost.extend(batch.pfns[batch.is_lost].tolist())


class _Load(NamedTuple):
    batch: EncodedBatch
    size_bytes: int
    is_taken: bool = False


class FanOut:
    """
    A dump writer that hands everything on to lanes.

    Parameters
    ----------
    lanes : sequence of Lane
        All of whose writers encode pages in the same way.
    """

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self.lanes = tuple(lanes)
        self._page = 0
        self._starved_s = 0.0

    def begin(self) -> None:
        """Do nothing: the lanes' writers have begun."""

    def make_encoder(self) -> Encoder:
        """Make an encoder for one thread."""
        return self.lanes[0].writer.make_encoder()

    def write(self, batch: EncodedBatch) -> None:
        """
        Queue a batch in every lane that keeps up.

        Raises
        ------
        OutputError
            If no lane takes part any more.
        """
        data = b"".join(batch.data)
        own = replace(
            batch,
            pfns=batch.pfns.copy(),
            is_zero=batch.is_zero.copy(),
            is_lost=batch.is_lost.copy(),
            sizes=batch.sizes.copy(),
            flags=batch.flags.copy(),
            data=[memoryview(data)],
        )
        self._wait_for_room(len(data))
        load = _Load(own, len(data))
        for lane in self._active():
            lane.put(load)
        self._page += len(batch.pfns)

    def finish(self, *, complete: bool, eraseinfo: bytes = b"") -> None:  # noqa: ARG002 - as all writers
        """Let every lane know that this was all."""
        for lane in self.lanes:
            lane.close()

    def leave_all(self) -> None:
        """Make every lane go on by itself from here on."""
        for lane in self._active():
            lane.leave(self._page)

    def _active(self) -> list[Lane]:
        return [lane for lane in self.lanes if lane.takes_part]

    def _wait_for_room(self, size_bytes: int) -> None:
        """Wait until all lanes have room; those that let an idle one wait for too long leave."""
        has_waited = False
        while True:
            active = self._active()
            if not active:
                raise OutputError("no target takes more")
            full = [lane for lane in active if not lane.has_room(size_bytes)]
            if not full:
                # Many short waits in a row are as bad as a long one.
                self._starved_s = self._starved_s if has_waited else 0.0
                return
            if self._starved_s > _PATIENCE_S:
                for lane in full:
                    lane.leave(self._page)
                self._starved_s = 0.0
                return
            has_waited = True
            began = time.monotonic()
            _wait_for_change(full[0])
            waited_s = time.monotonic() - began
            is_starving = any(lane.is_idle for lane in active)
            self._starved_s = max(self._starved_s + (waited_s if is_starving else -waited_s), 0.0)


def _wait_for_change(lane: Lane) -> None:
    with lane._changed:  # noqa: SLF001 - of the same module
        lane._changed.wait(0.05)  # noqa: SLF001
