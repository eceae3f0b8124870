"""Who waits for whom: components and cycles."""

from __future__ import annotations

from postpanic.analysis.locks.graph import Edge, find_components, find_cycles


def test_two_tasks_that_wait_for_each_other() -> None:
    edges = [Edge(1, 2, 100), Edge(2, 1, 200), Edge(3, 1, 200)]
    (cycle,) = find_cycles(edges)
    assert cycle.tasks == {1, 2}
    assert cycle.certain
    assert [(edge.waiter, edge.holder) for edge in cycle.edges] == [(1, 2), (2, 1)]


def test_a_task_that_waits_for_itself() -> None:
    (cycle,) = find_cycles([Edge(1, 1, 100)])
    assert cycle.edges == (Edge(1, 1, 100),)


def test_no_cycle() -> None:
    assert find_cycles([Edge(1, 2, 100), Edge(2, 3, 200), Edge(1, 3, 300)]) == []
    assert find_cycles([]) == []


def test_a_likely_holder_makes_a_likely_cycle_and_comes_last() -> None:
    edges = [Edge(1, 2, 100), Edge(2, 1, 200, certain=False), Edge(5, 6, 300), Edge(6, 7, 400), Edge(7, 5, 500)]
    cycles = find_cycles(edges)
    assert [(cycle.certain, set(cycle.tasks)) for cycle in cycles] == [(True, {5, 6, 7}), (False, {1, 2})]


def test_the_shortest_cycle_of_a_group_is_shown() -> None:
    edges = [Edge(1, 2, 1), Edge(2, 3, 2), Edge(3, 4, 3), Edge(4, 1, 4), Edge(3, 2, 5)]
    (cycle,) = find_cycles(edges)
    assert cycle.tasks == {1, 2, 3, 4}
    assert {edge.lock for edge in cycle.edges} == {2, 5}


def test_a_chain_longer_than_pythons_stack() -> None:
    length = 50_000
    edges = [Edge(task, (task + 1) % length, task) for task in range(length)]
    assert [len(component) for component in find_components({edge.waiter: [edge.holder] for edge in edges})] == [length]
