"""What is worth knowing of tasks that sleep and of work that does not end, whether or not the crash is about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.triage.hangs.cpus import read_cpus
from postpanic.analysis.triage.hangs.leaks import open_picture
from postpanic.analysis.triage.hangs.naming import function_of, module_of, seconds
from postpanic.analysis.triage.hangs.picture import Picture
from postpanic.analysis.triage.hangs.sleeping import find_own
from postpanic.analysis.triage.hangs.steps import describe_thing, place_of, stack_evidence
from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.scene import Scene
from postpanic.analysis.workqueues import Worker, Workqueues
from postpanic.evidence.oops.kinds import Kind
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Role, Subject

__all__ = ["count_blocked_tasks", "find_stuck_work"]

_LONG_NS = 10_000_000_000
_SHOWN = 6
_EXPLAINS = ("reported", "log-hang", "blocked-tasks")


@detector(
    "blocked-tasks",
    needs=(Need.TASKS, Need.TYPES),
    about="tasks that have been in uninterruptible sleep for long, by what they wait for",
    depth=5,
)
def count_blocked_tasks(scene: Scene) -> Iterator[Finding]:
    """Count the tasks in uninterruptible sleep by what they wait for; nothing, where none has waited for long."""
    picture = open_picture(scene)
    counts: Counter[str] = Counter()
    longest = 0
    for task, sleep in picture.sleeping.items():
        if picture.state(sleep.facts) != "UN":
            continue
        thing = picture.thing_of(task)
        waited = picture.waited_ns(sleep.facts) or 0
        longest = max(longest, waited)
        if thing is not None and waited >= _LONG_NS:
            counts[describe_thing(picture, thing, sleep)] += 1
    if not counts:
        return
    shown = ", ".join(f"{count} for {what}" for what, count in counts.most_common(_SHOWN))
    total = sum(counts.values())
    yield Finding(
        detector="blocked-tasks",
        role=Role.BACKGROUND,
        cause=Cause.UNKNOWN,
        sentence=f"{total} task{'s wait' if total != 1 else ' waits'} in uninterruptible sleep for more than "
        f"{_LONG_NS // 1_000_000_000} s, the longest for {seconds(longest)}: {shown}.",
        confidence=Confidence.LIKELY,
        evidence=(Evidence("the tasks in uninterruptible sleep", "ps -S", "UN"),),
        next_steps=("foreach UN bt", "locks"),
    )


@detector(
    "stuck-work",
    needs=(Need.TASKS, Need.TYPES),
    about="work items that run or sleep for long, and others that wait behind them",
    depth=60,
)
def find_stuck_work(scene: Scene) -> Iterator[Finding]:
    """Find workers that do not come to the end of an item."""
    is_cause = scene.first is not None and scene.first.kind is Kind.WORKQUEUE_LOCKUP
    picture = open_picture(scene)
    queues = picture.queues
    if queues is None:
        return
    found = []
    for worker in queues.workers:
        facts = picture.tasks.get(worker.task)
        if not worker.current_work or facts is None:
            continue
        try:
            waited = picture.waited_ns(facts) or 0
        except UNREADABLE:
            continue
        if waited >= _LONG_NS or (is_cause and _runs(picture, worker.task)):
            found.append((waited, worker))
    found.sort(key=lambda each: -each[0])
    for waited, worker in found[: 1 if is_cause else 3]:
        yield _finding(picture, queues, worker, waited, is_cause=is_cause)


def _runs(picture: Picture, task: int) -> bool:
    return picture.is_running(task)


def _finding(picture: Picture, queues: Workqueues, worker: Worker, waited: int, *, is_cause: bool) -> Finding:
    facts = picture.tasks[worker.task]
    queue = queues.queue_of(worker.current_pwq)
    item = picture.names.symbol(worker.current_function) or f"{worker.current_function:x}"
    pool = next((pool for pool in queues.pools if pool.vaddr == worker.pool), None)
    behind = len(pool.pending) if pool is not None else 0
    sleep = picture.look_at(worker.task)
    if sleep is not None:
        own, how = sleep.own, f"sleeps{place_of(sleep)}"
        evidence = stack_evidence(picture, sleep)
    else:
        cpu = next((cpu for cpu in read_cpus(picture) if cpu.facts.vaddr == worker.task), None)
        own = find_own(cpu.frames)[1] if cpu is not None else None
        how = f"runs in {function_of(own)}()" if own is not None else "runs"
        evidence = Evidence(f"the worker {how}", f"bt {picture.names.pid(facts)}", function_of(own), facts.vaddr)
    name = queue.name if queue is not None else "?"
    waits = f", and {behind} items wait behind it" if behind else ""
    return Finding(
        detector="stuck-work",
        role=Role.CAUSE if is_cause else Role.BACKGROUND,
        cause=Cause.BLOCKED_HOLDER if sleep is not None else Cause.ENDLESS_LOOP,
        sentence=f"Work item {item}() of workqueue {name} does not end: its worker {picture.names.task(facts)} {how} "
        f"since {seconds(waited)}{waits}.",
        confidence=Confidence.LIKELY if is_cause else Confidence.POSSIBLE,
        function=function_of(own) or item.partition("+")[0],
        module=module_of(own) or "vmlinux",
        subject=Subject("object", "struct work_struct", item, worker.current_work, f"of workqueue {name}"),
        evidence=(Evidence("the worker and its item", "wq", item, worker.current_work), evidence),
        refuted_by="work that is only much, and ends",
        next_steps=("wq", f"bt {picture.names.pid(facts)}"),
        explains=_EXPLAINS if is_cause else (),
    )
