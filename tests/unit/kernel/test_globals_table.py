"""The table of globals offers what the kernel most like the dump's says first."""

from __future__ import annotations

import pytest

from postpanic.kernel.debuginfo.globals import load_globals_table, parse_globals_table

TEXT = """\
3 1 4 2
int
struct list_head
struct tracepoint
__tracepoint_\t2
a b c d
7.3 6.1
0 1 -1 0
1 1 0 -1
"""


def test_order_of_the_kernels_decides_without_a_dump() -> None:
    table = parse_globals_table(TEXT)
    assert table.candidates("a") == ("int", "struct list_head")
    assert table.candidates("b") == ("struct list_head",)
    assert table.candidates("nothing") == ()


def test_kernel_with_the_same_variables_is_asked_first() -> None:
    table = parse_globals_table(TEXT).ranked_for({b"a", b"b", b"c"})
    assert table.series == ("6.1", "7.3")
    assert table.candidates("a")[0] == "struct list_head"


def test_twin_is_believed_alone() -> None:
    table = parse_globals_table(TEXT).ranked_for({b"a", b"b", b"c"})
    assert table.has_twin
    assert table.candidates("a") == ("struct list_head",)
    assert table.witnesses[b"a"] > 2


def test_names_that_macros_make_are_typed_by_their_prefix() -> None:
    assert parse_globals_table(TEXT).candidates("__tracepoint_new") == ("struct tracepoint",)


def test_names_are_left_out_for_a_module() -> None:
    table = parse_globals_table(TEXT).only_prefixes()
    assert table.offers == {}
    assert table.candidates("__tracepoint_new") == ("struct tracepoint",)


@pytest.mark.parametrize("text", [TEXT.replace("3 1 4 2", "3 1 4 3"), TEXT.replace("a b c d", "a b c")])
def test_damaged_table_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="announced"):
        parse_globals_table(text)


def test_table_of_the_package_is_whole() -> None:
    table = load_globals_table()
    assert len(table.names) > 20_000
    assert len(set(table.series)) >= 4
    assert int(table.types.max()) < len(table.spellings)
    assert bool((table.types >= 0).any(axis=0).all())
    assert table.candidates("slab_caches") == ("struct list_head",)
    # Of kernels without NUMA, of which none took part.
    assert table.candidates("contig_page_data") == ("struct pglist_data",)
    assert list(table.names) == sorted(table.names)
