"""Lists and trees, whole and damaged."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from postpanic.analysis.walks.branches import Element
from postpanic.analysis.walks.linked_list import ListWalk
from postpanic.analysis.walks.maple import MapleNode, MapleTree
from postpanic.analysis.walks.red_black import walk_red_black
from postpanic.analysis.walks.xarray import detect_xarray, walk_xarray
from postpanic.errors import FactAbsentError
from postpanic.findings.absent import Reason
from postpanic.findings.table import Problem
from tests.unit.analysis.walks.programs import BASE, make_program

A, B, C, D = (BASE + place for place in (0x100, 0x200, 0x300, 0x400))
ELSEWHERE = BASE + 0x8000


def words(links: Mapping[int, int]) -> dict[int, int]:
    return {address - BASE: value for address, value in links.items()}


def walk(
    links: Mapping[int, int], first: int, *ends: int, closing: int = -1
) -> tuple[list[int], list[Problem], ListWalk]:
    problems: list[Problem] = []
    found = ListWalk(make_program(words(links)), first, 0, frozenset(ends), problems, closing=closing)
    return list(found), problems, found


def test_list_ends_at_null() -> None:
    assert walk({A: B, B: C, C: 0}, A)[:2] == ([A, B, C], [])


def test_list_ends_at_its_head() -> None:
    assert walk({A: B, B: C, C: A}, B, A)[:2] == ([B, C], [])


def test_ring_without_a_head_ends_where_it_began() -> None:
    assert walk({A: B, B: C, C: A}, A, closing=1)[:2] == ([A, B, C], [])
    assert walk({A: B, B: C, C: B}, A, closing=1)[:2] == ([A, B, C], [])


def test_loop_is_found_and_measured() -> None:
    found, problems, walked = walk({A: B, B: C, C: D, D: B}, A, 0x1234)
    assert found == [A, B, C, D]
    assert [problem.reason for problem in problems] == [Reason.DAMAGED]
    assert walked.loop is not None
    assert (walked.loop.start, walked.loop.length, walked.loop.last) == (B, 3, D)


def test_headed_list_that_comes_back_to_its_first_element_loops() -> None:
    found, problems, _ = walk({A: B, B: C, C: B}, B, A)
    assert found == [B, C]
    assert "loops" in problems[0].what


def test_list_that_cannot_be_read_says_where_it_stops() -> None:
    found, problems, _ = walk({A: B, B: ELSEWHERE}, A)
    assert found == [A, B, ELSEWHERE]
    assert f"after 3, at {ELSEWHERE:x}" in problems[0].what


def tree(
    nodes: Mapping[int, tuple[int, int]], *, in_order: bool = False
) -> tuple[list[tuple[int, str]], list[Problem]]:
    links: dict[int, int] = {}
    for address, (left, right) in nodes.items():
        links |= {address: 0, address + 8: right, address + 16: left}
    problems: list[Problem] = []
    found = walk_red_black(make_program(words(links)), next(iter(nodes)), problems, in_order=in_order)
    return [(element.vaddr, element.position) for element in found], problems


def test_red_black_tree_from_the_top() -> None:
    found, problems = tree({B: (A, D), A: (0, 0), D: (C, 0), C: (0, 0)})
    assert found == [(B, "root"), (A, "root/l"), (D, "root/r"), (C, "root/r/l")]
    assert problems == []


def test_red_black_tree_in_order() -> None:
    found, _ = tree({B: (A, D), A: (0, 0), D: (C, 0), C: (0, 0)}, in_order=True)
    assert [vaddr for vaddr, _ in found] == [A, B, C, D]


@pytest.mark.parametrize("in_order", [False, True])
def test_red_black_tree_with_a_loop_ends(in_order: bool) -> None:
    found, problems = tree({B: (A, D), A: (0, B), D: (ELSEWHERE, 0)}, in_order=in_order)
    assert {vaddr for vaddr, _ in found} == {A, B, D}
    assert len(problems) == 2
    assert any("twice" in problem.what and "root/l/r" in problem.what for problem in problems)
    assert any(f"{ELSEWHERE:x}" in problem.what for problem in problems)


def test_red_black_tree_that_is_a_list_is_cut() -> None:
    chain = [BASE + 0x18 * number for number in range(1, 300)]
    _, problems = tree({node: (below, 0) for node, below in zip(chain, [*chain[1:], 0], strict=True)})
    assert "more than 128 levels" in problems[0].what


def xa_node(address: int, shift: int, slots: Mapping[int, int]) -> dict[int, int]:
    place = address - BASE
    return {place: shift, **{place + 40 + 8 * number: slot for number, slot in slots.items()}}


def xarray(memory: Mapping[int, int], head: int) -> tuple[list[Element], list[Problem]]:
    prog = make_program(memory)
    problems: list[Problem] = []
    return list(walk_xarray(prog, head, detect_xarray(prog), problems)), problems


def test_xarray_has_indexes_and_positions() -> None:
    top, leaf = BASE + 0x1000, BASE + 0x2000
    memory = xa_node(top, 6, {0: leaf | 2, 3: A}) | xa_node(leaf, 0, {5: B, 6: 7 << 1 | 1, 7: 0x402, 63: C})
    found, problems = xarray(memory, top | 2)
    assert [(one.vaddr, one.index, one.position) for one in found] == [
        (B, 5, "root/0/5"),
        (15, 6, "root/0/6"),
        (C, 63, "root/0/63"),
        (A, 192, "root/3"),
    ]
    assert problems == []


def test_xarray_of_one_entry() -> None:
    assert xarray({0: 0}, A)[0] == [Element(A, "root", 0)]
    assert xarray({0: 0}, 0)[0] == []


def test_xarray_with_a_node_in_it_twice_ends() -> None:
    top, leaf = BASE + 0x1000, BASE + 0x2000
    found, problems = xarray(
        xa_node(top, 6, {0: leaf | 2, 1: leaf | 2, 2: top | 2}) | xa_node(leaf, 0, {1: A}), top | 2
    )
    assert [one.vaddr for one in found] == [A]
    assert ["twice" in problem.what for problem in problems] == [True, True]


def test_xarray_whose_shift_does_not_fall_ends() -> None:
    top, leaf = BASE + 0x1000, BASE + 0x2000
    found, problems = xarray(xa_node(top, 6, {0: leaf | 2}) | xa_node(leaf, 6, {1: A}), top | 2)
    assert found == []
    assert "shift 6" in problems[0].what


def maple_node(address: int, pivots: list[int], slots: list[int], *, slot_at: int = 128) -> dict[int, int]:
    place = address - BASE
    return {
        place: 0,
        **{place + 8 + 8 * number: pivot for number, pivot in enumerate(pivots)},
        **{place + slot_at + 8 * number: slot for number, slot in enumerate(slots)},
    }


def test_maple_tree_has_ranges_and_positions() -> None:
    top, first, second = BASE + 0x1000, BASE + 0x2000, BASE + 0x3000
    leaf = 1 << 3 | 2 | 4
    memory = maple_node(top, [99], [first | leaf, second | leaf], slot_at=80)
    memory |= maple_node(first, [9, 19, 99], [0, A, 0]) | maple_node(second, [149], [B, 0])
    problems: list[Problem] = []
    walked = list(MapleTree(make_program(memory), top | 3 << 3 | 2, problems).walk())
    assert problems == []
    assert [
        (one.vaddr, one.position, one.index, one.first, one.last) for one in walked if isinstance(one, Element)
    ] == [
        (A, "root/0/1", 1, 10, 19),
        (B, "root/1/0", 2, 100, 149),
    ]
    assert [(one.vaddr, one.depth, one.first, one.last) for one in walked if isinstance(one, MapleNode)] == [
        (top, 0, 0, (1 << 64) - 1),
        (first, 1, 0, 99),
        (second, 1, 100, (1 << 64) - 1),
    ]


def test_maple_tree_with_pivots_that_fall_ends() -> None:
    top = BASE + 0x1000
    problems: list[Problem] = []
    memory = maple_node(top, [9, 5], [A, B, C])
    assert list(MapleTree(make_program(memory), top | 1 << 3 | 2, problems).walk()) == []
    assert "do not rise" in problems[0].what


def test_kernel_without_maple_trees_says_so() -> None:
    from drgn import Architecture, Platform, Program

    with pytest.raises(FactAbsentError, match="no maple trees"):
        MapleTree(Program(Platform(Architecture.X86_64)), 0, [])
