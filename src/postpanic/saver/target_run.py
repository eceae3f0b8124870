"""
One target's way through a save: open, log first, then the dump, then the proof.

Runs in a thread of its own and shares nothing with other targets but the
memory that is read. Everything it asks of the target goes through a
:class:`~postpanic.saver.watched.Patience`, so that whoever waits for all
targets can tell one that is slow from one that is dead.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from postpanic.dumps.kdump.codecs import Compression
from postpanic.dumps.sink import LimitedSink, Sink
from postpanic.errors import NoSpaceError, OutputError, PostpanicError
from postpanic.pages.filtering import FilterResult, GrowingDump, WritePlan
from postpanic.saver.evidence import LOG_NAME, Evidence
from postpanic.saver.fan_out import Lane
from postpanic.saver.memory_image import MemoryImage
from postpanic.saver.plan import TargetPlan
from postpanic.saver.rendezvous import Rendezvous
from postpanic.saver.targets.base import Target
from postpanic.saver.watched import Patience, WatchedSink
from postpanic.units import format_size

__all__ = ["DUMP_NAME", "TRANSCRIPT_NAME", "Progress", "TargetRun", "TargetState"]

DUMP_NAME = "vmcore"
INCOMPLETE_SUFFIX = "-incomplete"
TRANSCRIPT_NAME = "saver.log"
_KEPT_FREE_BYTES = 2 << 20
"""For the log and the manifest, when the dump has taken all other room."""
_PAUSES_S = (1.0, 3.0, 10.0)


class TargetState(enum.Enum):
    """How far a target is; the later, the better, but for the last."""

    WAITING = "waiting"
    OPENING = "opening"
    LOG_SAVED = "log saved"
    WRITING = "writing"
    TESTING = "saved, being tested"
    LOG_ONLY = "log only"
    INCOMPLETE = "saved, incomplete"
    COMPLETE = "saved"
    FAILED = "failed"


_OVER = frozenset({TargetState.FAILED, TargetState.COMPLETE, TargetState.INCOMPLETE, TargetState.LOG_ONLY})


@dataclass
class Progress:
    """How many pages went through."""

    done: int = 0
    total: int = 0


@dataclass
class TargetRun:
    """
    The work for one target.

    Attributes
    ----------
    image : MemoryImage
        What is saved.
    rendezvous : Rendezvous
        Where targets that are ready meet, to be fed from one read.
    log_only : bool
        Leave the pages out.
    """

    plan: TargetPlan
    target: Target
    image: MemoryImage
    rendezvous: Rendezvous
    say: Callable[[str], None]
    transcript: Callable[[], str]
    log_only: bool = False
    state: TargetState = TargetState.WAITING
    error: PostpanicError | None = None
    has_log: bool = False
    place: str = ""
    deleted: list[str] = field(default_factory=list)
    result: FilterResult | None = None
    patience: Patience = field(default_factory=Patience)
    progress: Progress = field(default_factory=Progress)
    _is_abandoned: bool = False
    _stop_reason: str = ""
    _lane: Lane | None = None

    def start(self) -> threading.Thread:
        """Begin, in a thread that does not keep the process from ending."""
        thread = threading.Thread(target=self.run, name=f"target-{self.plan.kind}", daemon=True)
        thread.start()
        return thread

    def run(self) -> None:
        """Try as often as the plan says; never raises."""
        try:
            self._try_repeatedly()
        except BaseException as exc:  # noqa: BLE001 - the other targets go on
            self._fail(OutputError(explain(exc), where=self.plan.name))
        finally:
            self.rendezvous.withdraw(self)

    def abandon(self, reason: str) -> None:
        """Give it up: its thread is stuck in the target, and is left there."""
        self._is_abandoned = True
        if self.state is TargetState.TESTING:
            # What is whole and safe stays so.
            self.state = TargetState.COMPLETE
            return
        self._fail(OutputError(reason, where=self.plan.name))
        self.rendezvous.withdraw(self, self.error)

    def stop(self, reason: str) -> None:
        """Write no more pages, but end the dump; what has not begun to write goes on, until it is abandoned."""
        self._stop_reason = reason
        if self._lane is not None:
            self._lane.stop(reason)

    def leave_word(self) -> None:
        """Put what has happened since, elsewhere too, beside a dump that is done; never raises."""
        try:
            self.target.open(self.image.dump_name)
            self.target.put(TRANSCRIPT_NAME, self.transcript().encode())
        except PostpanicError as exc:
            self.say(f"{self.plan.name}: no last word: {exc.message}")
        except Exception as exc:  # noqa: BLE001 - the dump is safe, and more cannot be done
            self.say(f"{self.plan.name}: no last word: {type(exc).__name__}: {exc}")
        self.target.close()

    @property
    def share_done(self) -> float:
        """How much of the dump is written, 0 to 1."""
        if self.state in (TargetState.TESTING, TargetState.COMPLETE):
            return 1.0
        return self.progress.done / max(self.progress.total, 1) if self.state is TargetState.WRITING else 0.0

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in _OVER

    def _try_repeatedly(self) -> None:
        for attempt in range(max(self.plan.attempts, 1)):
            try:
                self._try_once()
            except PostpanicError as exc:
                self.error = exc
                with self.patience.waiting():
                    self.target.close()
                if self._reason_to_stop() or attempt + 1 >= self.plan.attempts:
                    break
                time.sleep(_PAUSES_S[min(attempt, len(_PAUSES_S) - 1)])
                self.say(f"{self.plan.name}: attempt {attempt + 2} of {self.plan.attempts}")
            else:
                return
        self._fail(self.error or OutputError("not tried", where=self.plan.name))

    def _try_once(self) -> None:
        self.state = TargetState.OPENING
        try:
            with self.patience.waiting():
                self.target.open(self.image.dump_name)
            self._put_evidence(self.image.evidence)
            if self.log_only:
                self.place = self.target.place
                self._finish(TargetState.LOG_ONLY)
                return
            self._save_dump()
        except BaseException as exc:
            if not self._is_abandoned:
                self.say(f"{self.plan.name}: {explain(exc)}")
                self._put_transcript()
            raise

    def _put_evidence(self, evidence: Evidence) -> None:
        for name, content in evidence.files.items():
            with self.patience.waiting():
                self.target.put(name, content)
        self.state = TargetState.LOG_SAVED
        if LOG_NAME in evidence.files and self.target.takes_small_files:
            self.has_log = True
            self.say(f"{self.plan.name}: log saved")

    def _save_dump(self) -> None:
        """Try the levels until one fits."""
        levels = self.plan.dump_levels or (31,)
        for level in levels:
            result = self._write(level)
            if not isinstance(result.error, NoSpaceError) or level == levels[-1]:
                break
            self.say(f"{self.plan.name}: level {level} does not fit: {result.error.message}")
        self.result = result
        if result.error is not None and not isinstance(result.error, NoSpaceError):
            raise result.error
        self._conclude(result, level)

    def _write(self, level: int) -> FilterResult:
        """Write the dump once, with the others as long as that goes, then alone."""
        self.state = TargetState.WRITING
        selection = self.image.select(level)
        with self.patience.waiting():
            sink = self.target.open_dump(DUMP_NAME)
        try:
            file = GrowingDump(
                self.image.dump, self.image.kernel, selection, self._guard(sink), self._write_plan(), result=None
            )
            self.progress.done, self.progress.total = 0, selection.kept.count
            file.begin()
            first_page = self._write_with_others(file, level)
            if first_page is not None:
                file.pump(first_page=first_page, progress=self._advance, stop=self._reason_to_stop)
            file.finish()
        finally:
            with self.patience.waiting():
                sink.close()
        return file.result

    def _write_with_others(self, file: GrowingDump, level: int) -> int | None:
        """Write what is read for all; tell the page to go on from by itself, or None."""
        lane = self._lane = self.rendezvous.join(self, self.plan, file, level)
        if lane is None:
            return 0
        lane.run(self._advance)
        self._lane = None
        file.add(lane.outcome)
        if lane.has_failed or lane.outcome.stopped or lane.resume_page is None:
            return None
        self.say(f"{self.plan.name}: slower than the others, goes on alone")
        return lane.resume_page

    def _guard(self, sink: Sink) -> Sink:
        """Watch the sink, and keep some room free for what comes last."""
        limit, reason = self.plan.limit_bytes, ""
        with self.patience.waiting():
            room = self.target.room_bytes()
        if room is not None:
            usable = max(room - _KEPT_FREE_BYTES, 0)
            if not limit or usable < limit:
                limit, reason = usable, f"no room is left: {format_size(room)} were free when the dump was begun"
        watched: Sink = WatchedSink(sink, self.patience)
        return LimitedSink(watched, limit, reason) if limit or reason else watched

    def _write_plan(self) -> WritePlan:
        return WritePlan(
            compression=Compression.ZSTD if self.plan.compression == "zstd" else None,
            compression_level=self.plan.compression_level,
            threads=self.image.threads,
            buffer_bytes=self.image.buffer_bytes,
        )

    def _conclude(self, result: FilterResult, level: int) -> None:
        """Name the dump, prove it, and tell."""
        self.place = self.target.place
        state = TargetState.COMPLETE if _is_whole(result) else TargetState.INCOMPLETE
        self._put_manifest(result)
        if state is TargetState.COMPLETE:
            with self.patience.waiting():
                self.target.commit()
            self.state = TargetState.TESTING
        lost = f", {len(result.lost)} pages could not be read" if result.lost else ""
        self.say(f"{self.plan.name}: {state.value}, level {level}{lost}: {self.place}")
        is_proven = self._prove(result)
        if result.complete and is_proven:
            with self.patience.waiting():
                self.deleted = self.target.rotate()
            for name in self.deleted:
                self.say(f"{self.plan.name}: deleted the old dump {name}")
        self._finish(state)

    def _prove(self, result: FilterResult) -> bool:
        """Test what was written, where that can be read; tell whether nothing speaks against it."""
        # What was stopped has no time for a test.
        is_testable = bool(result.written_pages) and not result.stopped
        test = self.image.test(self.target.read_back() if is_testable else None)
        if test is None:
            return True
        self._put_manifest(result, test=test)
        self.say(f"{self.plan.name}: self-test {test.summary}")
        return not test.failures

    def _finish(self, state: TargetState) -> None:
        self._put_transcript()
        with self.patience.waiting():
            self.target.close()
        if not self._is_abandoned:
            self.state = state

    def _put_manifest(self, result: FilterResult, *, test: object = None) -> None:
        parts = self.target.dump_files or (DUMP_NAME,)
        # Several objects are one stream, whose digest is that of all of them.
        name = parts[0] if len(parts) == 1 else parts[0].rpartition(".")[0]
        # What is cut keeps the name that says so; objects on a web server cannot be renamed.
        if not _is_whole(result) and self.plan.kind != "http":
            name += INCOMPLETE_SUFFIX
        notes = [f"{name} is in {len(parts)} parts: {parts[0]} to {parts[-1]}"] if len(parts) > 1 else []
        manifest = self.image.manifest(
            result, self._write_plan(), name, test, notes=notes, flattened=self.plan.kind == "http"
        )
        try:
            with self.patience.waiting():
                self.target.put(f"{name}.manifest.json", manifest)
        except NoSpaceError as exc:
            self.say(f"{self.plan.name}: no room for the manifest: {exc.message}")

    def _put_transcript(self) -> None:
        """Leave word of what happened, where that is possible."""
        try:
            with self.patience.waiting():
                self.target.put(TRANSCRIPT_NAME, self.transcript().encode())
        except PostpanicError:
            pass

    def _fail(self, error: PostpanicError) -> None:
        self.error = error
        self.state = TargetState.FAILED
        self.say(f"{self.plan.name}: given up: {error.message}")

    def _advance(self, pages: int) -> None:
        self.progress.done += pages

    def _reason_to_stop(self) -> str:
        return "given up" if self._is_abandoned else self._stop_reason


def _is_whole(result: FilterResult) -> bool:
    """Tell whether all is there that could be had: what the memory does not give, no other target gets either."""
    return result.error is None and not result.stopped


def explain(error: BaseException) -> str:
    """Put any error in one line."""
    if isinstance(error, PostpanicError):
        return error.message
    if isinstance(error, MemoryError):
        return "not enough memory"
    return f"internal error: {type(error).__name__}: {error}".split("\n", 1)[0]
