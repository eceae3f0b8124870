"""Chains of tasks that wait, and what stands at their end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.tasks import TaskFacts
from postpanic.analysis.triage.hangs.deadlocks import victims_of
from postpanic.analysis.triage.hangs.leaks import open_picture
from postpanic.analysis.triage.hangs.naming import function_of
from postpanic.analysis.triage.hangs.picture import Picture
from postpanic.analysis.triage.hangs.reports import hang_reports, is_hang, reported_pids
from postpanic.analysis.triage.hangs.roots import Chain, Root, RootKind, find_chains
from postpanic.analysis.triage.hangs.steps import lock_evidence, stack_evidence, step_link
from postpanic.analysis.triage.hangs.stories import Story, tell
from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops.kinds import Family, Kind
from postpanic.findings.verdict import Confidence, Evidence, Finding, Role, Victim

__all__ = ["find_blocked_chains"]

_MOST_STEPS = 12
_MOST_FINDINGS = 12
_LONG_NS = 10_000_000_000
"""What waits less is not worth a word where no hang was reported."""
_EXPLAINS = ("reported", "deliberate", "blocked-tasks", "stuck-work", "log-hang")


@detector(
    "blocked-chain",
    needs=(Need.TASKS, Need.TYPES),
    about="the root of what tasks wait for: a leaked lock, a holder that sleeps or loops, an answer that never comes",
    depth=70,
)
def find_blocked_chains(scene: Scene) -> Iterator[Finding]:
    """Group the tasks that wait by the root that they wait for, and tell what each root is."""
    picture = open_picture(scene)
    groups: dict[tuple[str, int], list[Chain]] = {}
    for chain in find_chains(picture):
        if chain.root.kind is not RootKind.CYCLE:
            groups.setdefault(chain.root.key, []).append(chain)
    about_hang = is_hang(scene) and _is_about_tasks(scene)
    ordered = sorted(groups.values(), key=lambda group: _weight(picture, group), reverse=True)
    strongest: Confidence | None = None
    for group in ordered[:_MOST_FINDINGS]:
        counts = about_hang and _is_noticed(picture, group)
        if not counts and not _is_worth_a_word(picture, group):
            continue
        finding = _finding(picture, group, is_cause=counts, is_first=strongest is None)
        if counts and strongest is None:
            strongest = finding.confidence
        yield finding


def _is_about_tasks(scene: Scene) -> bool:
    """Tell whether tasks that sleep may be what the crash is about: not where a CPU was stuck first."""
    first = scene.first
    return first is None or first.kind not in {Kind.SOFT_LOCKUP, Kind.HARD_LOCKUP, Kind.RCU_STALL, Kind.SPINLOCK}


def _threshold_ns(scene: Scene) -> int:
    """Give the shortest wait that the kernel complained about."""
    found = []
    for report in hang_reports(scene):
        words = report.details.get("seconds", "")
        if report.kind is Kind.HUNG_TASK and words.isdigit():
            found.append(int(words) * 1_000_000_000)
    return min(found, default=_LONG_NS)


def _is_noticed(picture: Picture, group: Sequence[Chain]) -> bool:
    """Tell whether the kernel reported one of the tasks, or they wait for as long as those that it did."""
    reported = reported_pids(picture.scene)
    limit = _threshold_ns(picture.scene)
    # Who crashes a machine by hand may do so long after the report.
    was_asked = picture.scene.first is not None and picture.scene.first.family is Family.DELIBERATE
    for facts in _tasks(group):
        try:
            if (facts.pid in reported and not was_asked) or (picture.waited_ns(facts) or 0) >= limit:
                return True
        except UNREADABLE:
            continue
    return False


def _tasks(group: Sequence[Chain]) -> list[TaskFacts]:
    return [chain.steps[0][0].facts for chain in group if chain.steps]


def _is_worth_a_word(picture: Picture, group: Sequence[Chain]) -> bool:
    """Tell whether a hang that nobody reported is mentioned: others wait behind it, and for long."""
    has_lock = any(len(chain.steps) > 1 for chain in group) or group[0].root.kind is RootKind.GONE
    return has_lock and any((picture.waited_ns(facts) or 0) >= _LONG_NS for facts in _tasks(group))


def _weight(picture: Picture, group: Sequence[Chain]) -> tuple[bool, int, int]:
    """Tell how much a root explains: whether a task behind it was reported, how many wait, how far it reaches."""
    longest = max((len(chain.steps) for chain in group), default=0)
    return any(_is_reported(picture, chain) for chain in group), len(group), longest


def _finding(picture: Picture, group: Sequence[Chain], *, is_cause: bool, is_first: bool) -> Finding:
    chain = max(group, key=lambda one: (_is_reported(picture, one), len(one.steps)))
    root = chain.root
    story: Story = tell(picture, chain)
    confidence = story.confidence
    if not is_first and confidence is Confidence.LIKELY:
        confidence = Confidence.POSSIBLE
    if not is_cause:
        confidence = Confidence.POSSIBLE
    return Finding(
        detector="blocked-chain",
        role=Role.CAUSE if is_cause else Role.BACKGROUND,
        cause=story.cause,
        sentence=story.sentence,
        confidence=confidence,
        function=story.function,
        module=story.module,
        subject=story.subject,
        evidence=(*story.evidence, *_evidence(picture, chain)),
        chain=tuple(step_link(picture, sleep, holder) for sleep, holder in chain.steps[:_MOST_STEPS]),
        victims=_victims(picture, group, root),
        refuted_by=story.refuted_by,
        missing=story.missing,
        next_steps=(*story.next_steps, "locks", "foreach UN bt"),
        explains=_EXPLAINS if is_cause else (),
    )


def _is_reported(picture: Picture, chain: Chain) -> bool:
    reported = reported_pids(picture.scene)
    return bool(chain.steps) and chain.steps[0][0].facts.pid in reported


def _evidence(picture: Picture, chain: Chain) -> Iterator[Evidence]:
    for sleep, _ in chain.steps[:_MOST_STEPS]:
        yield stack_evidence(picture, sleep)
        thing = picture.thing_of(sleep.facts.vaddr)
        shown = lock_evidence(picture, thing) if thing is not None else None
        if shown is not None:
            yield shown


def _victims(picture: Picture, group: Sequence[Chain], root: Root) -> tuple[Victim, ...]:
    """Give those that wait for the root; where it is a thing and no task, all that wait for it."""
    ends = {chain.steps[-1][0].facts.vaddr: chain.steps[-1][0].facts for chain in group if chain.steps}
    if root.kind in {RootKind.GONE, RootKind.UNHELD, RootKind.IO, RootKind.RCU, RootKind.NO_WORKER}:
        own = [
            picture.names.victim(facts, f"waits in {function_of(picture.sleeping[task].own) or 'the kernel'}")
            for task, facts in ends.items()
            if task in picture.sleeping
        ]
        return (*own, *victims_of(picture, list(ends.values())))
    return victims_of(picture, [root.facts])
