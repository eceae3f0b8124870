"""Hangs told by the log alone: what the kernel's reports show of who waits for whom."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from postpanic.analysis.triage.hangs.sleeping import LOCKS, is_own, kind_of_wait
from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops import Report, Section
from postpanic.evidence.oops.kinds import Family, Kind
from postpanic.evidence.oops.model import Frame, Trace
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Link, Role, Subject, Victim

__all__ = ["find_hangs_in_log"]

_STUCK = frozenset({Kind.SOFT_LOCKUP, Kind.HARD_LOCKUP, Kind.RCU_STALL, Kind.CSD_LOCK})
_SPINS = (
    "native_queued_spin_lock",
    "queued_spin_lock",
    "__pv_queued_spin",
    "_raw_spin_lock",
    "_raw_read_lock",
    "_raw_wri",
)
_IDLE = ("default_idle", "do_idle", "cpuidle", "rcu_gp_kthread", "mwait")
_CALLS = ("smp_call_function", "on_each_cpu", "csd_lock_wait", "native_flush_tlb", "flush_tlb_")
_WANTED = {
    "io": "input or output to end",
    "work": "a work item to end",
    "task": "a kernel thread to stop",
    "rcu": "a grace period of RCU",
    "srcu": "a grace period of SRCU",
    "cpu": "another CPU",
    "sleep": "its time to pass",
    "server": "the answer of a file system's server",
}
_LOCK_WORDS = {"mutex": "mutex", "semaphore": "semaphore", "rw-semaphore": "rwsem"}
# kernel/hung_task.c debug_show_blocker(), 6.15 and newer
_BLOCKED_ON = re.compile(
    rb"INFO: task (?P<comm>[^\n:]{1,40}):(?P<pid>\d{1,7}) (?:<\w{1,8}> )?(?:is )?blocked on an? (?P<kind>[\w-]{1,16})"
    rb"(?:,? but the (?P<gone>owner|last holder) is not found|"
    rb" likely (?:owned|last held) by task (?P<holder>[^\n:]{1,40}):(?P<by>\d{1,7}))"
)
# kernel/workqueue.c show_pwq()
_IN_FLIGHT = re.compile(
    rb"in-flight: (?P<pid>\d{1,7})(?:\(RESCUER\))?:(?P<function>[\w.]{1,80})(?: \[(?P<module>\w{1,60})\])?"
)
_MOST = 64


@dataclass(slots=True)
class _Hung:
    """A task that the kernel reported as hanging."""

    comm: str
    pid: int
    kind: str
    service: str
    own: Frame | None
    report: Report
    holder: int | None = None
    holder_comm: str = ""
    lock: str = ""
    is_gone: bool = False
    waiters: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.comm} (PID {self.pid})"

    @property
    def place(self) -> str:
        return f" in {_plain(self.own)}()" if self.own is not None else ""

    @property
    def wanted(self) -> str:
        kind = self.lock or self.kind
        return _WANTED.get(kind) or (f"a {kind}" if kind else f"a wake-up ({self.service})")


@detector(
    "log-hang",
    needs=(Need.REPORT,),
    about="hangs by the text of the kernel's reports: owners that hung tasks name, stuck CPUs, lockdep's circles",
    depth=30,
    families=(Family.HANG, Family.LOCKING),
)
def find_hangs_in_log(scene: Scene) -> Iterator[Finding]:
    """Tell of hangs what their reports show; with the tasks of a dump at hand, only what these do not show."""
    first = scene.first
    if first is None:
        return
    if first.family is Family.LOCKING and first.kind in {Kind.DEADLOCK, Kind.LOCK_STATE}:
        yield _lockdep(first)
        return
    if scene.tasks:
        return
    if first.kind is Kind.HUNG_TASK:
        yield from _hung_tasks(scene)
    elif first.kind in _STUCK:
        yield from _stuck(scene, first)
    elif first.kind is Kind.WORKQUEUE_LOCKUP:
        yield from _stuck_work(scene, first)


def _plain(frame: Frame | None) -> str:
    return frame.function.partition(".")[0] if frame is not None else ""


def _module(frame: Frame | None) -> str:
    return (frame.module or "vmlinux") if frame is not None else ""


def _reliable(trace: Trace) -> list[Frame]:
    return [frame for frame in trace.frames if frame.is_reliable and frame.function and not frame.is_inline]


def _main(report: Report) -> list[Frame]:
    return next((_reliable(trace) for trace in report.traces if trace.section is Section.MAIN), [])


def _own(frames: Sequence[Frame]) -> Frame | None:
    return next((frame for frame in frames if is_own(_plain(frame))), None)


def _lockdep(report: Report) -> Finding:
    """Tell of lockdep's report: the kernel knows the order of locks, and proves that it can deadlock."""
    wanted = next((lock for lock in report.locks if lock.is_wanted), None)
    held = [lock for lock in report.locks if not lock.is_wanted]
    what = f" takes {wanted.name}" if wanted is not None and wanted.name else ""
    behind = f" with {held[0].name} held" if held and held[0].name else ""
    variant = report.variant or "locks in an order that can deadlock"
    who = f"{report.comm} (PID {report.pid})" if report.comm else "a task"
    links = [Link(who, "takes", f"{wanted.name} in {wanted.function}()")] if wanted is not None else []
    links += [Link(who, "holds", f"{lock.name} since {lock.function}()") for lock in held[:_MOST]]
    blamed = report.blame[0] if report.blame else None
    return Finding(
        detector="log-hang",
        role=Role.CAUSE,
        cause=Cause.DEADLOCK,
        sentence=f"Possible deadlock ({variant}): {who} in {report.function or 'unknown code'}(){what}{behind}.",
        confidence=Confidence.LIKELY,
        function=report.function,
        module=(blamed.module or _module_of(report)) if blamed is not None else "",
        subject=Subject("lock", "", wanted.name) if wanted is not None else None,
        evidence=(Evidence("lockdep's report", "log", report.message),),
        chain=tuple(links),
        refuted_by="locks of one class that are never the same lock",
        next_steps=("log",),
        explains=("reported",),
        time_s=report.time_s,
    )


def _module_of(report: Report) -> str:
    """Find the module of the function that is blamed in the report's traces."""
    for trace in report.traces:
        for frame in trace.frames:
            if _plain(frame) == report.function:
                return frame.module or "vmlinux"
    return "vmlinux"


def _hung_tasks(scene: Scene) -> Iterator[Finding]:
    hung: dict[int, _Hung] = {}
    for report in scene.reports:
        if report.kind is Kind.HUNG_TASK and report.pid and len(hung) < _MOST:
            frames = _main(report)
            kind, service = kind_of_wait([_plain(frame) for frame in frames])
            hung.setdefault(report.pid, _Hung(report.comm, report.pid, kind, service, _own(frames), report))
    _read_owners(scene.text, hung)
    cycle = _find_cycle(hung)
    if cycle:
        yield _deadlock(cycle, hung)
        return
    root = _find_root(hung)
    if root is not None:
        yield _root(root, hung)


def _read_owners(text: bytes, hung: dict[int, _Hung]) -> None:
    for match in _BLOCKED_ON.finditer(text):
        task = hung.get(int(match["pid"]))
        if task is None:
            continue
        word = match["kind"].decode()
        task.lock = _LOCK_WORDS.get(word, word)
        task.is_gone = match["gone"] is not None
        if match["by"] is not None:
            task.holder, task.holder_comm = int(match["by"]), match["holder"].decode("utf-8", "replace")
            if task.holder in hung:
                hung[task.holder].waiters.append(task.pid)


def _find_cycle(hung: dict[int, _Hung]) -> list[_Hung]:
    for start in hung.values():
        path: list[_Hung] = []
        current: _Hung | None = start
        while current is not None and current not in path:
            path.append(current)
            current = hung.get(current.holder) if current.holder is not None else None
        if current is not None:
            return path[path.index(current) :]
    return []


def _victims(hung: dict[int, _Hung], guilty: Sequence[_Hung]) -> tuple[Victim, ...]:
    return tuple(
        Victim(task.comm, task.pid, f"waits{task.place} for {task.wanted}")
        for task in hung.values()
        if task not in guilty
    )


def _deadlock(cycle: Sequence[_Hung], hung: dict[int, _Hung]) -> Finding:
    links = tuple(
        Link(
            task.name,
            f"waits{task.place} for",
            f"{task.wanted}, owned by {task.holder_comm} (PID {task.holder})",
            is_certain=False,
        )
        for task in cycle
    )
    text = "; ".join(f"{link.source} {link.relation} {link.target}" for link in links)
    culprit = min(cycle, key=lambda task: _module(task.own) in {"", "vmlinux"})
    return Finding(
        detector="log-hang",
        role=Role.CAUSE,
        cause=Cause.DEADLOCK,
        sentence=f"Deadlock: {text}.",
        confidence=Confidence.LIKELY,
        function=_plain(culprit.own),
        module=_module(culprit.own),
        subject=Subject("lock", culprit.lock),
        evidence=tuple(Evidence(f"{task.name} was reported", "log", task.report.message) for task in cycle),
        chain=links,
        victims=_victims(hung, cycle),
        refuted_by="an owner that changed between two reports",
        explains=("reported",),
    )


def _find_root(hung: dict[int, _Hung]) -> _Hung | None:
    """
    Choose the task that the others may wait for.

    By what the kernel says of owners; else the one that waits for no lock while the
    others do; else the first that was reported.
    """
    for task in hung.values():
        if task.holder is None and task.waiters:
            return task
    gone = next((task for task in hung.values() if task.is_gone), None)
    if gone is not None:
        return gone
    named = next((task for task in hung.values() if task.holder is not None), None)
    if named is not None:
        return named
    no_lock = [task for task in hung.values() if task.kind not in LOCKS and task.own is not None]
    return next(iter(no_lock), None) or next(iter(hung.values()), None)


_CAUSES = {"io": Cause.LOST_IO, "completion": Cause.LOST_WAKEUP, "": Cause.LOST_WAKEUP, "work": Cause.LOST_WAKEUP}


def _root(root: _Hung, hung: dict[int, _Hung]) -> Finding:
    others = [task for task in hung.values() if task is not root]
    cause, text = Cause.UNKNOWN, f"{root.name} waits{root.place} for {root.wanted}"
    function, module = _plain(root.own), _module(root.own)
    places = {_plain(task.own) for task in hung.values() if _module(task.own) == module}
    if others and all(task.kind in LOCKS and task.holder is None and not task.is_gone for task in hung.values()):
        # Nothing but locks is waited for: one of them is not given back, or they are taken in different orders.
        cause = Cause.DEADLOCK if len(places) > 1 else Cause.LEAKED_LOCK
        function = function if len(places) > 1 else ""
        text += ", as do all that hang: nothing but locks is waited for"
    elif root.is_gone:
        cause, text = Cause.LEAKED_LOCK, f"{text}, whose owner is not found: nobody will release it"
        function = ""
    elif root.holder is not None:
        cause = Cause.BLOCKED_HOLDER
        text += f", which {root.holder_comm} (PID {root.holder}) likely holds and does not give back"
        function = ""
    elif root.kind in _CAUSES:
        cause = _CAUSES[root.kind]
        text += ", which does not come"
    elif root.kind == "sleep":
        cause = Cause.BLOCKED_HOLDER if others else Cause.UNKNOWN
    behind = f"; {len(others)} more tasks hang" if others else ""
    return Finding(
        detector="log-hang",
        role=Role.CAUSE,
        cause=cause,
        sentence=f"{text}{behind}.",
        confidence=Confidence.POSSIBLE if cause is not Cause.UNKNOWN else Confidence.UNKNOWN,
        function=function,
        module=module,
        subject=Subject("lock", root.lock or root.kind) if root.kind in LOCKS else Subject("task", "", root.comm),
        evidence=(Evidence(f"{root.name} was reported", "log", root.report.message),),
        chain=(Link(root.name, f"waits{root.place} for", root.wanted, is_certain=False),),
        victims=_victims(hung, [root] if cause is Cause.BLOCKED_HOLDER and root.holder is None else []),
        refuted_by="a dump, which shows who holds what",
        explains=("reported",),
        time_s=root.report.time_s,
    )


def _stuck(scene: Scene, report: Report) -> Iterator[Finding]:
    traces = [trace for trace in report.traces if trace.section in {Section.MAIN, Section.CPU, Section.TASK}]
    work = [(trace, frames) for trace in traces if (frames := _behind_sample(_reliable(trace)))]
    spinning = [(trace, frames) for trace, frames in work if any(_plain(one).startswith(_SPINS) for one in frames[:3])]
    looping = [
        (trace, frames)
        for trace, frames in work
        if (trace, frames) not in spinning and _own(frames) and not _idles(frames)
    ]
    chosen = looping[0] if looping else spinning[0] if spinning else None
    if chosen is None:
        return
    own = _own(chosen[1])
    if own is None:
        return
    cpu = chosen[0].cpu if chosen[0].cpu is not None else report.cpu
    who = f"CPU {cpu}" if cpu is not None else "a CPU"
    who += f" ({report.comm})" if report.comm and cpu == report.cpu else ""
    repeated = sum(
        1 for each in scene.reports if each.kind is report.kind and _own(_behind_sample(_main(each))) is not None
    )
    if looping and any(_plain(frame).startswith(_CALLS) for frame in chosen[1][:4]):
        cause, what = Cause.ENDLESS_LOOP, f"waits in {_plain(own)}() for another CPU, which does not answer"
        own = None
    elif not looping:
        cause, what = Cause.LEAKED_LOCK, f"spins in {_plain(own)}() on a lock that nobody is seen to give back"
    else:
        cause, what = Cause.ENDLESS_LOOP, f"runs in {_plain(own)}() and does not come out of it"
    waits = f"; {len(spinning)} others spin on a lock" if looping and spinning else ""
    yield Finding(
        detector="log-hang",
        role=Role.CAUSE,
        cause=cause,
        sentence=f"{who} {what}{waits}.",
        confidence=Confidence.LIKELY if looping and own is not None and repeated > 1 else Confidence.POSSIBLE,
        function=_plain(own) if looping else "",
        module=_module(own),
        subject=Subject("task", "", report.comm) if report.comm else None,
        evidence=(Evidence("the kernel's report", "log", report.message),),
        refuted_by="work that is only much, and ends",
        explains=("reported",),
        time_s=report.time_s,
    )


def _behind_sample(frames: Sequence[Frame]) -> list[Frame]:
    """Leave out what took the sample: the frames before the instruction pointer of what was interrupted."""
    places = [index for index, frame in enumerate(frames) if frame.is_pc]
    return list(frames[places[0] :] if places else frames)


def _idles(frames: Sequence[Frame]) -> bool:
    return any(
        _plain(frame).startswith(("default_idle", "do_idle", "cpuidle", "rcu_gp_kthread", "mwait")) for frame in frames
    )


def _stuck_work(scene: Scene, report: Report) -> Iterator[Finding]:
    match = _IN_FLIGHT.search(scene.text)
    if match is None:
        return
    function = match["function"].decode().partition(".")[0]
    yield Finding(
        detector="log-hang",
        role=Role.CAUSE,
        cause=Cause.ENDLESS_LOOP,
        sentence=f"Work item {function}() does not end (worker PID {int(match['pid'])}), and others wait behind it.",
        confidence=Confidence.POSSIBLE,
        function=function,
        module=(match["module"] or b"").decode() or _module_of(report),
        evidence=(Evidence("the workqueue watchdog's report", "log", match[0].decode("utf-8", "replace")),),
        refuted_by="a worker that waits for something else",
        explains=("reported",),
        time_s=report.time_s,
    )
