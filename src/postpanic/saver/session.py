"""
One save, from the dead kernel's memory to every target: what a child of PID 1 does, or ``postpanic save``.

::

    open memory, read log ─> targets, each in its thread: open, put the log, then
                             meet ─> one read ─> lanes ─> files ─> manifest ─> self-test
    none complete? ─> the fallbacks, one after the other
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from postpanic.dumps.memory import Dump
from postpanic.pages.pump import pump_pages
from postpanic.saver.console import Console, ProgressLine
from postpanic.saver.memory_image import MemoryImage, choose_buffer_bytes
from postpanic.saver.plan import SavePlan, TargetPlan
from postpanic.saver.rendezvous import Rendezvous
from postpanic.saver.target_run import TargetRun, TargetState
from postpanic.saver.targets.base import Target
from postpanic.saver.time_limit import RoundLimit, TimeLimit

__all__ = ["Outcome", "SaveOptions", "TargetOutcome", "save"]

_POLL_S = 0.25
_LAST_WORD_S = 20.0
_LOCAL = frozenset({"file", "raw"})
_FAR_FACTOR = 3.0
"""Targets beyond a network look after their time themselves, and retry: only one that has lost itself is given up."""


@dataclass(frozen=True)
class SaveOptions:
    """
    How much to dare.

    Attributes
    ----------
    log_only : bool
        Leave the pages out.
    lean : bool
        As little memory as possible: no self-test, small buffers, pages in the order of their numbers.
    skip : frozenset of int
        Targets that need nothing any more, by number; fallbacks come after targets.
    until : float, optional
        When all must be over, by ``time.monotonic()``.
    """

    log_only: bool = False
    lean: bool = False
    skip: frozenset[int] = frozenset()
    until: float | None = None


@dataclass(frozen=True)
class TargetOutcome:
    """What came of one target."""

    number: int
    name: str
    state: TargetState
    has_log: bool
    place: str = ""
    error: str = ""


@dataclass
class Outcome:
    """What came of all."""

    targets: list[TargetOutcome] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether a whole dump is somewhere."""
        return any(target.state is TargetState.COMPLETE for target in self.targets)

    @property
    def has_log(self) -> bool:
        """Whether at least the kernel log is somewhere."""
        return any(target.has_log for target in self.targets)


def save(
    plan: SavePlan,
    dump: Dump,
    console: Console,
    make_target: Callable[[TargetPlan], Target],
    *,
    options: SaveOptions = SaveOptions(),
    report: Callable[[TargetOutcome], None] = lambda _: None,
    alive: Callable[[], None] = lambda: None,
) -> Outcome:
    """
    Save a dump to all targets at once, then to fallbacks as long as no target has it whole.

    Parameters
    ----------
    report : callable
        Is told whenever a target's state has changed.
    alive : callable
        Is called a few times a second.
    """
    count = len(plan.targets)
    buffer_bytes = 1 if options.lean else plan.buffer_bytes or choose_buffer_bytes(count)
    image = MemoryImage(
        dump,
        console.say,
        node=plan.node,
        threads=plan.threads,
        buffer_bytes=buffer_bytes,
        self_test=plan.self_test and not options.lean,
        lean=options.lean,
    )
    session = _Session(image, console, make_target, options, report, alive)
    outcome = Outcome()
    plans = [*plan.targets, *plan.fallbacks]
    numbers = [number for number in range(len(plans)) if number not in options.skip]
    last = max(numbers, default=0)
    first = [number for number in numbers if number < count]
    outcome.targets += session.save_to(plans, first, is_last=last < count)
    for number in numbers[len(first) :]:
        if outcome.is_complete:
            break
        if not session.limit.left_s:
            console.say(f"no time is left for the fallback {plans[number].name}")
            continue
        console.say(f"no target has the whole dump: trying the fallback {plans[number].name}")
        outcome.targets += session.save_to(plans, [number], is_last=number == last)
    if not all(target.state is TargetState.COMPLETE for target in outcome.targets):
        session.leave_word()
    return outcome


@dataclass
class _Session:
    """What the rounds share: the targets first, then each fallback."""

    image: MemoryImage
    console: Console
    make_target: Callable[[TargetPlan], Target]
    options: SaveOptions
    report: Callable[[TargetOutcome], None]
    alive: Callable[[], None]
    limit: TimeLimit = field(init=False)
    _done: list[TargetRun] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.limit = TimeLimit(self.options.until)

    def save_to(self, plans: Sequence[TargetPlan], numbers: Sequence[int], *, is_last: bool) -> list[TargetOutcome]:
        """Save to some targets at once; returns when nothing more will come of any."""
        if not numbers:
            return []
        rendezvous = Rendezvous(len(numbers))
        runs = {number: self._make_run(plans[number], rendezvous) for number in numbers}
        threads = [run.start() for run in runs.values()]
        watch = _Watch(runs, self, self.image, self.limit.begin_round(is_last=is_last))
        feeder = _Feeder(self.image, rendezvous, self.console.say) if len(runs) > 1 else None
        while not all(run.is_over for run in runs.values()):
            watch.look()
            self.alive()
            time.sleep(_POLL_S)
        rendezvous.close()
        watch.look()
        for thread, run in zip(threads, runs.values(), strict=True):
            if run.state is not TargetState.FAILED:
                thread.join(1.0)
        if feeder is not None:
            feeder.join(1.0)
        self._done += [run for run in runs.values() if run.state is not TargetState.FAILED]
        return [_describe(number, run) for number, run in runs.items()]

    def leave_word(self) -> None:
        """Tell those that have something what became of the others."""
        threads = [threading.Thread(target=run.leave_word, daemon=True) for run in self._done]
        for thread in threads:
            thread.start()
        end = time.monotonic() + min(_LAST_WORD_S, self.limit.last_word_s)
        while any(thread.is_alive() for thread in threads) and time.monotonic() < end:
            self.alive()
            time.sleep(_POLL_S / 5)

    def _make_run(self, plan: TargetPlan, rendezvous: Rendezvous) -> TargetRun:
        return TargetRun(
            plan,
            self.make_target(plan),
            self.image,
            rendezvous,
            self.console.say,
            self.console.transcript,
            log_only=self.options.log_only,
        )


class _Watch:
    """Looks after the targets: tells how far they are, gives up those that do not answer, keeps the time."""

    def __init__(
        self, runs: dict[int, TargetRun], session: _Session, image: MemoryImage, round_limit: RoundLimit
    ) -> None:
        self._stop_reason = ""
        self._stopped_at = 0.0
        self._round = round_limit
        self._runs = runs
        self._session = session
        self._image = image
        self._reported: dict[int, TargetOutcome] = {}
        self._lines: dict[int, ProgressLine] = {}

    def look(self) -> None:
        """Look once."""
        self._keep_time(time.monotonic())
        for number, run in self._runs.items():
            limit = run.plan.timeout_s * (1.0 if run.plan.kind in _LOCAL else _FAR_FACTOR)
            if not run.is_over and run.patience.waited_s() > limit:
                run.abandon(f"no answer for {limit:.0f} s")
            outcome = _describe(number, run)
            if outcome != self._reported.get(number):
                self._reported[number] = outcome
                self._session.report(outcome)
        self._show_progress()

    def _keep_time(self, now: float) -> None:
        """Stop what takes too long, then give up what does not stop."""
        runs = self._runs.values()
        if not self._stop_reason:
            self._stop_reason = self._round.reason_to_stop(now, max(run.share_done for run in runs))
            self._stopped_at = now
        if not self._stop_reason:
            return
        for run in runs:
            run.stop(self._stop_reason)
            if not run.is_over and now > self._stopped_at + self._round.grace_s:
                run.abandon(self._stop_reason)

    def _show_progress(self) -> None:
        """Tell how far the target is that is furthest and not done yet."""
        writing = [
            (run.progress.done, number)
            for number, run in self._runs.items()
            if run.state is TargetState.WRITING and run.progress.done < run.progress.total
        ]
        if not writing:
            return
        number = max(writing)[1]
        run = self._runs[number]
        if number not in self._lines:
            name = f"{run.plan.name}: " if len(self._runs) > 1 else ""
            show = self._session.console.show
            page_size = self._image.dump.page_size_bytes
            self._lines[number] = ProgressLine(lambda text: show(f"{name}{text}"), run.progress.total, page_size)
        self._lines[number].set(run.progress.done)


class _Feeder:
    """The one read: from the memory through one encoder to all lanes, in a thread of its own."""

    def __init__(self, image: MemoryImage, rendezvous: Rendezvous, say: Callable[[str], None]) -> None:
        self._image = image
        self._rendezvous = rendezvous
        self._say = say
        self._thread = threading.Thread(target=self._run, name="feeder", daemon=True)
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait for its end."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        gathered = self._rendezvous.gather()
        if gathered is None:
            return
        file, fan = gathered
        try:
            outcome = pump_pages(
                self._image.dump,
                file.result.selection.batches(file.batch_frames),
                [fan],
                batch_frames=file.batch_frames,
                threads=self._image.threads,
            )
        except BaseException as exc:  # noqa: BLE001 - each target goes on by itself
            self._say(f"reading for all targets at once ended: {type(exc).__name__}: {exc}")
            fan.leave_all()
            return
        if outcome.failures:
            # Nobody takes part any more: they have failed, were stopped, or go on by themselves.
            return
        fan.finish(complete=True)


def _describe(number: int, run: TargetRun) -> TargetOutcome:
    """Tell how far a target is."""
    place = run.place if run.is_over and run.state is not TargetState.FAILED else ""
    error = run.error.message if run.error is not None and run.state is TargetState.FAILED else ""
    return TargetOutcome(number, run.plan.name, run.state, run.has_log, place, error)
