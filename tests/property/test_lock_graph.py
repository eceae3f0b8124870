"""Components of a wait-for graph against their definition: all tasks that can reach each other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from postpanic.analysis.locks.graph import Edge, find_components, find_cycles

TASKS = st.integers(0, 9)
EDGES = st.lists(st.tuples(TASKS, TASKS, st.booleans()), max_size=30)


def _reachable(edges: set[tuple[int, int]], start: int) -> set[int]:
    found: set[int] = set()
    front = [start]
    while front:
        task = front.pop()
        for waiter, holder in edges:
            if waiter == task and holder not in found:
                found.add(holder)
                front.append(holder)
    return found


@given(EDGES)
def test_components_are_what_can_reach_each_other(given_edges: list[tuple[int, int, bool]]) -> None:
    edges = {(waiter, holder) for waiter, holder, _ in given_edges}
    nodes = {task for edge in edges for task in edge}
    successors = {task: [holder for waiter, holder in edges if waiter == task] for task in nodes}
    reach = {task: _reachable(edges, task) for task in nodes}
    expected = {frozenset({task} | {other for other in reach[task] if task in reach[other]}) for task in nodes}
    components = find_components(successors)
    assert {frozenset(component) for component in components} == expected
    assert sum(map(len, components)) == len(nodes)


@given(EDGES)
def test_cycles_are_closed_and_there_is_one_in_each_group(given_edges: list[tuple[int, int, bool]]) -> None:
    edges = [Edge(waiter, holder, lock, certain) for lock, (waiter, holder, certain) in enumerate(given_edges)]
    pairs = {(edge.waiter, edge.holder) for edge in edges}
    in_cycles = {task for task in range(10) if task in _reachable(pairs, task)}
    cycles = find_cycles(edges)
    assert {task for cycle in cycles for task in cycle.tasks} == in_cycles
    for cycle in cycles:
        assert set(cycle.edges) <= set(edges)
        followers = [*cycle.edges[1:], cycle.edges[0]]
        assert all(edge.holder == following.waiter for edge, following in zip(cycle.edges, followers, strict=True))
        assert {edge.waiter for edge in cycle.edges} <= cycle.tasks
