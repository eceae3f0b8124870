"""Who waits for whom, as a graph."""

from __future__ import annotations

from collections.abc import Iterator

from postpanic.analysis.cells import cell
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.locks.picture import LockPicture, read_locks
from postpanic.analysis.tasks import TaskFacts
from postpanic.analysis.triage import Scene
from postpanic.findings.page import Arrow, Graph, Node, Section
from postpanic.findings.table import Cell, Column, Kind, Shape
from postpanic.findings.verdict import Verdict

__all__ = ["describe_waits"]

_MOST_NODES = 40
LOCKS = Shape(
    "locks",
    (
        Column("lock", Kind.ADDRESS, title="LOCK"),
        Column("kind", title="KIND"),
        Column("holders", title="HELD BY"),
        Column("waiters", Kind.NUMBER, title="WAITERS"),
        Column("who", title="WHO WAITS"),
    ),
)


def describe_waits(scene: Scene, verdict: Verdict) -> Section:
    """Draw the locks that tasks wait for, and the chain of the verdict where it has one."""
    try:
        picture = read_locks(scene.dump, scene.problems)
    except UNREADABLE:
        picture = None
    chain = next((finding.chain for finding in verdict.findings if finding.chain), ())
    pictures = []
    if chain:
        names = list(dict.fromkeys(name for link in chain for name in (link.source, link.target)))[:_MOST_NODES]
        arrows = [Arrow(link.source, link.target, link.relation, link.is_certain) for link in chain]
        known = tuple(arrow for arrow in arrows if arrow.source in names and arrow.target in names)
        pictures.append(Graph("The chain of the verdict", tuple(Node(name, name) for name in names), known))
    if picture is not None and picture.locks:
        pictures.append(_graph(picture))
    rows = list(_rows(picture)) if picture is not None else []
    note = "" if rows or chain else "No task waits for a lock."
    return Section("waits", "Who waits for whom", note, tuple(pictures), (LOCKS.table(rows),) if rows else ())


def _label(task: TaskFacts | None, vaddr: int) -> str:
    if task is None:
        return f"task {vaddr:#x}"
    return f"{cell(lambda: task.comm)} ({cell(lambda: task.pid)})"


def _graph(picture: LockPicture) -> Graph:
    nodes: dict[str, Node] = {}
    arrows: list[Arrow] = []
    in_cycle = {task for cycle in picture.cycles for task in cycle.tasks}

    def task_node(vaddr: int) -> str:
        name = f"task {vaddr:#x}"
        nodes.setdefault(name, Node(name, _label(picture.tasks.get(vaddr), vaddr), "task", vaddr in in_cycle))
        return name

    for lock in picture.locks:
        if len(nodes) >= _MOST_NODES:
            break
        name = f"lock {lock.vaddr:#x}"
        nodes[name] = Node(name, f"{lock.kind}\n{lock.vaddr:#x}", "lock")
        shown = lock.waiters[: max(0, _MOST_NODES - len(nodes))]
        arrows += [Arrow(task_node(waiter.task), name, "waits for") for waiter in shown]
        arrows += [
            Arrow(name, task_node(holder.task), "held by", holder.certain) for holder in lock.holders if holder.task
        ]
    return Graph("Locks that somebody waits for", tuple(nodes.values()), tuple(arrows))


def _rows(picture: LockPicture) -> Iterator[tuple[Cell, ...]]:
    for lock in picture.locks:
        holders = [_label(picture.tasks.get(each.task), each.task) for each in lock.holders if each.task]
        waiters = [_label(picture.tasks.get(each.task), each.task) for each in lock.waiters]
        yield lock.vaddr, lock.kind, ", ".join(holders) or None, len(waiters), ", ".join(waiters[:12]) or None
