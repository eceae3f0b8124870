"""Code that slept where it must not: with a spinlock held, which the code of its callers tells."""

from __future__ import annotations

from collections.abc import Iterator

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.stacks.frames import Trace
from postpanic.analysis.tasks import TaskFacts
from postpanic.analysis.triage.hangs.leaks import HeldLock, held_locks, open_picture
from postpanic.analysis.triage.hangs.naming import function_of, module_of
from postpanic.analysis.triage.hangs.picture import Picture
from postpanic.analysis.triage.hangs.sleeping import find_own
from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops.kinds import Kind
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Link, Role

__all__ = ["find_atomic_sleep"]

_SPINNING = frozenset({"spinlock", "rwlock"})
_SCHEDULERS = ("__schedule", "schedule", "__might_sleep", "__might_resched", "___might_sleep")


@detector(
    "atomic-sleep",
    needs=(Need.REPORT, Need.MEMORY, Need.TASKS),
    about="who slept with a spinlock held, and which function holds it",
    depth=60,
    kinds=(Kind.ATOMIC_SLEEP,),
)
def find_atomic_sleep(scene: Scene) -> Iterator[Finding]:
    """Find the lock that was held, and whose code took it."""
    report = scene.first
    if report is None or report.kind is not Kind.ATOMIC_SLEEP:
        return
    facts = scene.find_task(report.pid, report.comm) or scene.panic_task
    if facts is None:
        return
    picture = open_picture(scene)
    trace = scene.trace(facts)
    # The panic that followed the report is not what slept.
    names = [function_of(frame) for frame in trace.frames]
    start = next((place for place, name in enumerate(names) if name.startswith(_SCHEDULERS)), 0)
    try:
        held = next((each for each in held_locks(picture, trace, start) if each.kind in _SPINNING), None)
    except UNREADABLE as exc:
        scene.miss("which lock was held", str(exc))
        return
    if held is not None:
        yield _tell(picture, facts, trace, start, held)


def _tell(picture: Picture, facts: TaskFacts, trace: Trace, start: int, held: HeldLock) -> Finding:
    report = picture.scene.first
    assert report is not None  # noqa: S101 - the caller looked
    place, own = find_own(trace.frames, start)
    asked = function_of(trace.frames[place - 1]) if start < place <= len(trace.frames) else ""
    holder, module = function_of(held.frame), module_of(held.frame)
    who = picture.names.task(facts)
    lock = picture.names.thing(held.kind, held.vaddr)
    sleeper = f"{function_of(own)}() [{module_of(own)}]" if own is not None else "the code"
    is_same = own is held.frame or own is None
    since = "" if is_same else f", taken by {holder}() [{module}], which had called it"
    asking = f" (in {asked}())" if asked else ""
    is_known = own is not None and own.place is not None and (is_same or trace.frames.index(held.frame) > place)
    return Finding(
        detector="atomic-sleep",
        role=Role.CAUSE,
        cause=Cause.SLEEP_IN_ATOMIC,
        sentence=f"{sleeper} sleeps{asking} in atomic context: {who} holds {lock}{since}.",
        confidence=Confidence.LIKELY if is_known else Confidence.POSSIBLE,
        function=function_of(own) or holder,
        module=module_of(own) or module,
        subject=picture.names.subject("lock", held.kind, held.vaddr),
        evidence=(
            Evidence("the kernel's report", "log", report.message),
            Evidence(f"{sleeper} asked to sleep", f"bt {picture.names.pid(facts)}", function_of(own) or holder),
            Evidence(f"the code of {holder}() took {lock} before", f"dis -r {held.frame.pc:x}", holder),
        ),
        chain=(
            *((Link(f"{function_of(own)}()", "was called by", f"{holder}()"),) if not is_same else ()),
            Link(f"{holder}()", "holds", lock, is_certain=False),
        ),
        refuted_by="a way through the function that releases the lock before",
        next_steps=(f"dis -r {held.frame.pc:x}",),
        explains=("reported", "called-panic"),
        time_s=report.time_s,
    )
