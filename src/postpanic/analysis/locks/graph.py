"""The graph of who waits for whom, and its cycles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Cycle", "Edge", "find_components", "find_cycles"]


@dataclass(frozen=True, slots=True)
class Edge:
    """
    One task waits for another.

    Parameters
    ----------
    waiter, holder : int
        ``struct task_struct``.
    lock : int
        What stands between them.
    certain : bool
        Whether the kernel itself records the holder; False for a likely one.
    """

    waiter: int
    holder: int
    lock: int
    certain: bool = True


@dataclass(frozen=True, slots=True)
class Cycle:
    """
    Tasks that wait for each other: a deadlock, if every edge is certain.

    Parameters
    ----------
    edges : tuple of Edge
        One after the other: the holder of each is the waiter of the next, the last leads back to the first.
    tasks : frozenset of int
        All tasks that can reach each other; more than those of *edges* where cycles share tasks.
    """

    edges: tuple[Edge, ...]
    tasks: frozenset[int]

    @property
    def certain(self) -> bool:
        """Whether the kernel records every holder in it."""
        return all(edge.certain for edge in self.edges)


def find_components(successors: Mapping[int, Sequence[int]]) -> list[list[int]]:
    """
    Find the strongly connected components of a directed graph.

    Tarjan's algorithm (Depth-First Search and Linear Graph Algorithms, 1972)
    without recursion: chains of waiters may be longer than Python's stack.
    Components come in reverse topological order.

    >>> sorted(map(sorted, find_components({1: [2], 2: [1, 3], 3: []})))
    [[1, 2], [3]]
    """
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    on_stack: set[int] = set()
    stack: list[int] = []
    components: list[list[int]] = []
    for root in successors:
        if root in index:
            continue
        work = [(root, iter(successors.get(root, ())))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, pending = work[-1]
            for successor in pending:
                if successor not in index:
                    index[successor] = low[successor] = len(index)
                    stack.append(successor)
                    on_stack.add(successor)
                    work.append((successor, iter(successors.get(successor, ()))))
                    break
                if successor in on_stack:
                    low[node] = min(low[node], index[successor])
            else:
                work.pop()
                if work:
                    parent = work[-1][0]
                    low[parent] = min(low[parent], low[node])
                if low[node] == index[node]:
                    component = []
                    while True:
                        member = stack.pop()
                        on_stack.discard(member)
                        component.append(member)
                        if member == node:
                            break
                    components.append(component)
    return components


def find_cycles(edges: Iterable[Edge]) -> list[Cycle]:
    """
    Find the groups of tasks that wait for each other, and a shortest cycle in each.

    A task that waits for itself is a cycle of one edge.
    """
    outgoing: dict[int, list[Edge]] = {}
    for edge in edges:
        outgoing.setdefault(edge.waiter, []).append(edge)
    successors = {task: [edge.holder for edge in found] for task, found in outgoing.items()}
    cycles = []
    for component in find_components(successors):
        members = frozenset(component)
        inner = {task: [edge for edge in outgoing.get(task, ()) if edge.holder in members] for task in component}
        shortest = min((path for task in sorted(component) if (path := _shortest(task, inner))), key=len, default=None)
        if shortest:
            cycles.append(Cycle(tuple(shortest), members))
    return sorted(cycles, key=lambda cycle: (not cycle.certain, len(cycle.edges), min(cycle.tasks)))


def _shortest(start: int, outgoing: Mapping[int, Sequence[Edge]]) -> list[Edge]:
    """Find a shortest way from a task back to itself, breadth first; certain edges before likely ones."""
    came: dict[int, Edge] = {}
    front = [start]
    while front:
        following = []
        for task in front:
            for edge in sorted(outgoing.get(task, ()), key=lambda edge: not edge.certain):
                if edge.holder == start:
                    path = [edge]
                    while path[0].waiter != start:
                        path.insert(0, came[path[0].waiter])
                    return path
                if edge.holder not in came:
                    came[edge.holder] = edge
                    following.append(edge.holder)
        front = following
    return []
