"""Tasks that wait for each other in a circle, or one for itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from postpanic.analysis.locks.graph import Cycle, Edge
from postpanic.analysis.tasks import TaskFacts
from postpanic.analysis.triage.hangs.leaks import open_picture
from postpanic.analysis.triage.hangs.naming import function_of, module_of
from postpanic.analysis.triage.hangs.picture import Picture, Thing
from postpanic.analysis.triage.hangs.reports import is_hang, may_hide_hang
from postpanic.analysis.triage.hangs.sleeping import LOCKS, Sleep
from postpanic.analysis.triage.hangs.steps import (
    describe_holder,
    describe_thing,
    lock_evidence,
    place_of,
    stack_evidence,
    step_link,
    thing_subject,
)
from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.scene import Scene
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Role, Victim

__all__ = ["find_deadlocks", "victims_of"]

_MOST_VICTIMS = 64
_EXPLAINS = ("reported", "deliberate", "nmi", "log-hang", "blocked-chain", "stuck-work", "blocked-tasks")


@detector(
    "deadlock",
    needs=(Need.TASKS, Need.TYPES),
    about="tasks that wait for each other's locks, or for their own",
    depth=90,
)
def find_deadlocks(scene: Scene) -> Iterator[Finding]:
    """Find the cycles of the wait-for graph."""
    picture = open_picture(scene)
    for cycle in picture.cycles:
        sleeps = [picture.sleeping.get(edge.waiter) for edge in cycle.edges]
        known = [sleep for sleep in sleeps if sleep is not None]
        if len(known) == len(cycle.edges):
            yield _finding(picture, cycle, known)


def _finding(picture: Picture, cycle: Cycle, sleeps: Sequence[Sleep]) -> Finding:
    things = [thing for sleep in sleeps if (thing := picture.thing_of(sleep.facts.vaddr)) is not None]
    culprit = _choose(picture, sleeps)
    evidence: list[Evidence] = [Evidence("the cycle", "locks -c", "DEADLOCK")] if _all_locks(things) else []
    for sleep, thing in zip(sleeps, things, strict=False):
        evidence.append(stack_evidence(picture, sleep))
        shown = lock_evidence(picture, thing)
        evidence += [shown] if shown is not None else []
    certain = cycle.certain and _is_for_good(sleeps)
    # The owner may be a new task with the task_struct of one that leaked the lock.
    is_seen = all(thing.is_seen or thing.kind not in LOCKS for thing in things)
    hides = certain and may_hide_hang(picture.scene)
    role = Role.CAUSE if hides or is_hang(picture.scene) else Role.BACKGROUND
    return Finding(
        detector="deadlock",
        role=role,
        cause=Cause.DEADLOCK,
        sentence=_sentence(picture, cycle.edges, sleeps, things),
        confidence=Confidence.PROVEN
        if certain and is_seen
        else Confidence.LIKELY
        if is_hang(picture.scene)
        else Confidence.POSSIBLE,
        function=function_of(culprit.own),
        module=module_of(culprit.own),
        subject=thing_subject(picture, things[0]),
        evidence=tuple(evidence),
        chain=tuple(
            step_link(picture, sleep, next(one for one in picture.holders_of(edge.waiter) if one.task == edge.holder))
            for edge, sleep in zip(cycle.edges, sleeps, strict=True)
        ),
        victims=victims_of(picture, [sleep.facts for sleep in sleeps]),
        refuted_by="a holder that had given its lock back: then it would not be recorded as its owner",
        next_steps=("locks", *(f"bt {picture.names.pid(sleep.facts)}" for sleep in sleeps[:4])),
        explains=_EXPLAINS if role is Role.CAUSE else (),
    )


def _all_locks(things: Sequence[Thing]) -> bool:
    return all(thing.kind in {"mutex", "rwsem"} for thing in things)


def _is_for_good(sleeps: Sequence[Sleep]) -> bool:
    """Tell whether none of the waits ends by itself: by a time that runs out, or a signal."""
    return not any("timeout" in sleep.function or "interruptible" in sleep.function for sleep in sleeps)


def _choose(picture: Picture, sleeps: Sequence[Sleep]) -> Sleep:
    """
    Choose whose code is named: one that flushes work before one that takes a lock, a module's before the kernel's.

    Of several, the one that fewest tasks are in: where many take the locks in one order, the odd one out is wrong.
    """
    places = Counter(function_of(sleep.own) for sleep in picture.sleeping.values())
    return min(
        sleeps,
        key=lambda sleep: (
            not function_of(sleep.own),
            sleep.kind not in {"work", "task", "rcu"},
            module_of(sleep.own) in {"", "vmlinux"},
            places[function_of(sleep.own)],
        ),
    )


def _sentence(picture: Picture, edges: Sequence[Edge], sleeps: Sequence[Sleep], things: Sequence[Thing]) -> str:
    names = picture.names
    if len(edges) == 1:
        what = describe_thing(picture, things[0], sleeps[0])
        verb = (
            "which it holds itself" if things[0].kind not in {"work", "task"} else "which cannot end before it returns"
        )
        others = [task for task in things[0].waiters if task != sleeps[0].facts.vaddr and task in picture.tasks]
        if things[0].kind == "rwsem" and others:
            # A reader that comes again waits behind the writer that came between.
            verb += f", behind {names.task(picture.tasks[others[0]])}"
        return f"Deadlock: {names.task(sleeps[0].facts)} waits{place_of(sleeps[0])} for {what}, {verb}."
    parts = []
    for edge, sleep, thing in zip(edges, sleeps, things, strict=False):
        what = describe_thing(picture, thing, sleep)
        holder = names.task(picture.tasks[edge.holder])
        verb = "held by" if thing.kind not in {"work", "task", "rcu", "cpu"} else "which needs"
        parts.append(f"{names.task(sleep.facts)} waits{place_of(sleep)} for {what}, {verb} {holder}")
    return "Deadlock: " + "; ".join(parts) + "."


def victims_of(picture: Picture, roots: Sequence[TaskFacts]) -> tuple[Victim, ...]:
    """Give all tasks that wait for some tasks, directly or through others, and why."""
    guilty = {facts.vaddr for facts in roots}
    reached = set(guilty)
    found: list[Victim] = []
    grew = True
    while grew and len(found) < _MOST_VICTIMS:
        grew = False
        for task, sleep in picture.sleeping.items():
            if task in reached:
                continue
            holder = next((one for one in picture.holders_of(task) if one.task in reached), None)
            if holder is None:
                continue
            reached.add(task)
            grew = True
            thing = picture.thing_of(task)
            what = describe_thing(picture, thing, sleep) if thing is not None else ""
            why = f"waits for {what}{describe_holder(picture, thing, holder)}"
            found.append(picture.names.victim(sleep.facts, why))
    return tuple(found[:_MOST_VICTIMS])
