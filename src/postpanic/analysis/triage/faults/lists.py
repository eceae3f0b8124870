"""
Lists that the kernel found corrupted: which entry does not fit, what it holds, and in which object it is.

The messages are those of ``lib/list_debug.c``, from 5.10 on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from postpanic.analysis.triage.faults.reports import find_line
from postpanic.analysis.triage.faults.runs import find_run
from postpanic.analysis.triage.faults.things import Thing, find_thing
from postpanic.analysis.triage.faults.uses import Culprit, find_culprit
from postpanic.analysis.triage.faults.values import BadKind, classify
from postpanic.analysis.triage.faults.wording import who
from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops.kinds import Kind
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Role, Subject

__all__ = ["find_list"]

_HEX = r"([0-9a-f]{8,16})"
_DOUBLE_ADD = re.compile(rf"list_add double add: new={_HEX}, prev={_HEX}, next={_HEX}")
_POISON = re.compile(rf"list_del corruption[,.] {_HEX}->(next|prev) is (LIST_POISON[12]|NULL)")
_MISMATCH = re.compile(
    rf"list_(add|del) corruption\. (prev->next|next->prev) should be (?:next |prev )?\(?{_HEX}\)?, "
    rf"but was (?:NULL|{_HEX})\.?(?: \((prev|next)={_HEX}\))?"
)


@dataclass(frozen=True, slots=True)
class _Story:
    """What was found, in words and values."""

    cause: Cause
    text: str
    confidence: Confidence
    vaddr: int
    """Of the entry that does not fit."""
    evidence: tuple[Evidence, ...]


@detector(
    "list",
    needs=(Need.REPORT,),
    about="a list that is corrupted: added or deleted twice, an entry that was freed or overwritten",
    depth=60,
    kinds=(Kind.LIST_CORRUPTION,),
)
def find_list(scene: Scene) -> Iterator[Finding]:
    """Say what is wrong with the list."""
    report, culprit = scene.first, find_culprit(scene)
    if report is None or culprit is None or report.kind is not Kind.LIST_CORRUPTION:
        return
    story = _double_add(scene, culprit) or _deleted(scene, culprit) or _mismatch(scene, culprit)
    if story is None:
        return
    thing = _thing(scene, story.vaddr)
    yield Finding(
        detector="list",
        role=Role.CAUSE,
        cause=story.cause,
        sentence=story.text,
        confidence=story.confidence,
        function=culprit.function,
        module=culprit.module,
        subject=Subject(
            "object", "struct list_head", thing.name if thing else "", story.vaddr, thing.text if thing else ""
        ),
        evidence=(Evidence("the kernel's report", "log", report.message), *story.evidence),
        refuted_by="another writer of the entry's memory",
        next_steps=(f"whereis {story.vaddr:x}", f"rd {story.vaddr:x} 8", f"list -H {story.vaddr:x}"),
        explains=("reported", "assertion"),
        time_s=report.time_s,
    )


def _thing(scene: Scene, vaddr: int) -> Thing | None:
    return find_thing(scene.dump, vaddr) if scene.workspace is not None else None


def _in(thing: Thing | None) -> str:
    return f", in {thing.text}" if thing is not None else ""


def _double_add(scene: Scene, culprit: Culprit) -> _Story | None:
    match = find_line(scene, _DOUBLE_ADD)
    if match is None:
        return None
    new, before, behind = (int(match[number], 16) for number in (1, 2, 3))
    thing = _thing(scene, new)
    where = "the first" if new == behind else "the last"
    head = before if new == behind else behind
    name = _thing(scene, head)
    of = f" of {name.text}" if name is not None and name.kind == "symbol" else f" {head:#x}"
    evidence = [Evidence("the entry is on the list already", f"rd {head:x} 2", f"{new:016x}", head)]
    if thing is not None and thing.is_free:
        return _Story(
            Cause.USE_AFTER_FREE,
            f"{who(culprit)} added the entry {new:#x} to a list that it is already on{_in(thing)}: it was freed, and "
            "given out again, without having been deleted from the list.",
            Confidence.POSSIBLE, new, tuple(evidence),
        )  # fmt: skip
    text = (
        f"{who(culprit)} added the entry {new:#x}{_in(thing)} to a list twice: it is already {where} entry of the "
        f"list{of}."
    )
    return _Story(Cause.LIST_CORRUPTION, text, _sure(scene), new, tuple(evidence))


def _sure(scene: Scene) -> Confidence:
    fault = scene.fault
    return Confidence.PROVEN if fault is not None and fault.is_from_stack else Confidence.LIKELY


def _deleted(scene: Scene, culprit: Culprit) -> _Story | None:
    match = find_line(scene, _POISON)
    if match is None:
        return None
    entry, poison = int(match[1], 16), match[3]
    thing = _thing(scene, entry)
    evidence = (Evidence(f"the entry's {match[2]} is {poison}", f"rd {entry:x} 2", "", entry),)
    if thing is not None and thing.is_free:
        text = f"{who(culprit)} deleted the entry {entry:#x} from its list{_in(thing)}, which had been freed."
        return _Story(Cause.USE_AFTER_FREE, text, Confidence.LIKELY, entry, evidence)
    if poison == "NULL":
        text = (
            f"{who(culprit)} deleted the entry {entry:#x}{_in(thing)} that is on no list: its {match[2]} is NULL, as "
            "if it had never been added or was cleared."
        )
        return _Story(Cause.LIST_CORRUPTION, text, Confidence.LIKELY, entry, evidence)
    text = (
        f"{who(culprit)} deleted the entry {entry:#x}{_in(thing)} from its list twice: its {match[2]} is {poison}, "
        "which the first deletion left there."
    )
    return _Story(Cause.LIST_CORRUPTION, text, _sure(scene), entry, evidence)


def _mismatch(scene: Scene, culprit: Culprit) -> _Story | None:
    match = find_line(scene, _MISMATCH)
    if match is None:
        return None
    expected, found = int(match[3], 16), int(match[4] or "0", 16)
    member = match[2].partition("->")[2]
    at = int(match[6], 16) if match[6] else 0
    side = "before" if match[2].startswith("prev") else "behind"
    doing = "added to" if match[1] == "add" else "deleted from"
    thing = _thing(scene, at) if at else None
    value = classify(found, scene.dump.memory.machine if scene.workspace is not None else "x86_64")
    slot = at + (8 if member == "prev" else 0)
    evidence = [Evidence(f"its {member} is {found:#x}", f"rd {at:x} 2", f"{found:016x}", at)] if at else []
    base = (
        f"{who(culprit)} {doing} a list that is corrupted: the entry {side} {expected:#x}, at {at:#x}{_in(thing)}, "
        f"does not point back but holds {value.text} in its {member}"
    )
    if thing is not None and thing.is_free:
        text = f"{base}; its object had been freed while it was still on the list."
        return _Story(Cause.USE_AFTER_FREE, text, Confidence.LIKELY, at, tuple(evidence))
    if value.kind is BadKind.FREED:
        return _Story(Cause.USE_AFTER_FREE, f"{base}; it had been freed.", Confidence.LIKELY, at, tuple(evidence))
    if value.kind is BadKind.KERNEL:
        other = _thing(scene, found)
        text = f"{base}{_in(other)}: it is on another list too, or was changed without the list's lock."
        return _Story(Cause.LIST_CORRUPTION, text, Confidence.LIKELY, at or expected, tuple(evidence))
    run = _run_in(scene, thing, slot)
    ran = f": {run} there says that it was freed and given to somebody else, or overwritten" if run else ": overwritten"
    return _Story(Cause.LIST_CORRUPTION, f"{base}{ran}.", Confidence.LIKELY, at or expected, tuple(evidence))


def _run_in(scene: Scene, thing: Thing | None, vaddr: int) -> str:
    if thing is None or thing.kind != "slab":
        return ""
    try:
        data = scene.prog.read(thing.start, thing.size_bytes)
    except Exception:  # noqa: BLE001 - a page that is not there
        return ""
    run = find_run(data, vaddr - thing.start)
    return f"{run.text} for {run.size_bytes} bytes" if run is not None else ""
