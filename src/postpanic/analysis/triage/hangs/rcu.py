"""Who keeps a grace period of RCU from ending: CPUs that have not come to rest, and tasks inside read sections."""

from __future__ import annotations

from collections.abc import Iterator

from drgn import Object, Program
from drgn.helpers.linux.list import list_for_each

from postpanic.analysis.cells import guarded, problem
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.triage.scene import Scene

__all__ = ["find_rcu_blockers"]

_LONGEST = 100_000


def find_rcu_blockers(scene: Scene) -> list[tuple[int, str, bool]]:
    """
    Find the tasks that the present grace period waits for.

    ``rcu_node.qsmask`` has the CPUs that owe a quiescent state, and
    ``rcu_node.blkd_tasks`` from ``gp_tasks`` on the tasks that were preempted in
    read sections (``kernel/rcu/tree.h``).

    Returns
    -------
    list of tuple
        ``struct task_struct``, how it blocks, and whether RCU itself records it.
    """
    found: list[tuple[int, str, bool]] = []
    try:
        running = {cpu: task for task, cpu in scene.stacks.running.items()}
        for node in _leaves(scene.prog):
            found += _tasks_of(node, scene)
            mask, low = int(node.qsmask.value_()), int(node.grplo.value_())
            for cpu in range(low, int(node.grphi.value_()) + 1):
                if mask >> (cpu - low) & 1 and cpu in running:
                    found.append((running[cpu], f"runs on CPU {cpu}, which does not come to rest", False))
    except UNREADABLE as exc:
        scene.problems.append(problem("RCU", exc))
    return found


def _leaves(prog: Program) -> Iterator[Object]:
    """Walk the ``struct rcu_node`` of the lowest level."""
    state = Object(prog, "struct rcu_state", address=prog.symbol("rcu_state").address)
    nodes = list(range(state.node.type_.length or 0))
    levels = max((int(state.node[index].level.value_()) for index in nodes), default=0)
    for index in nodes:
        if int(state.node[index].level.value_()) == levels:
            yield state.node[index]


def _tasks_of(node: Object, scene: Scene) -> Iterator[tuple[int, str, bool]]:
    """Walk the tasks that block the present grace period: from ``gp_tasks`` to the end of the list."""
    try:
        first = int(node.gp_tasks.value_())
    except UNREADABLE:
        return
    if not first:
        return
    offset = _offset_in_task(scene.prog)
    is_behind = False
    entries = guarded(
        list_for_each(node.blkd_tasks.address_of_()), "tasks that block RCU", scene.problems, limit=_LONGEST
    )
    for entry in entries:
        is_behind = is_behind or int(entry.value_()) == first
        if is_behind:
            yield int(entry.value_()) - offset, "was preempted or sleeps inside an RCU read section", True


def _offset_in_task(prog: Program) -> int:
    import drgn

    return int(drgn.offsetof(prog.type("struct task_struct"), "rcu_node_entry"))
