"""Tables as text: grids align themselves, lines follow their pattern, missing cells say why."""

from __future__ import annotations

from postpanic.findings.absent import Absent, Reason
from postpanic.findings.table import Answer, Column, Kind, Layout, Problem, Shape, Table
from postpanic.report.text import render_problems, render_table, render_text

FRAMES = Shape(
    "frames",
    (
        Column("number", Kind.NUMBER),
        Column("sp", Kind.ADDRESS),
        Column("function"),
        Column("pc", Kind.HEX),
        Column("module", prefix=" [", suffix="]"),
    ),
    Layout.LINES,
    "{number:>2} [{sp}] {function} at {pc}{module}",
    indent=1,
)
PS = Shape(
    "ps",
    (
        Column("pid", Kind.NUMBER, "PID", width=5),
        Column("task", Kind.ADDRESS, "TASK"),
        Column("load", Kind.REAL, "LOAD", format=".1f"),
        Column("comm", title="COMM"),
        Column("secret", hidden=True),
        Column("frames", Kind.ROWS, shape=FRAMES),
    ),
)


def lines(table: Table) -> list[str]:
    return list(render_table(table))


def test_grid_is_as_wide_as_its_widest_cell() -> None:
    table = PS.table([(1, 0xFFFF888000000000, 0.25, "init", "x", None), (123456, 0x10, 12.0, "a", "y", None)])
    assert lines(table) == [
        "   PID  TASK              LOAD  COMM".replace("TASK            ", "            TASK"),
        "     1  ffff888000000000   0.2  init",
        "123456  0000000000000010  12.0  a",
    ]


def test_missing_cell_is_marked_with_its_reason() -> None:
    absent = Absent(Reason.EXCLUDED, "page at 0x1000")
    text = lines(PS.table([(1, absent, None, "init", "", None)]))[1]
    assert text.split() == ["1", "(excluded)", "init"]


def test_empty_cell_has_neither_prefix_nor_suffix() -> None:
    table = FRAMES.table([(0, 0xFF, "panic", 0x10, "ext4"), (1, 0xFF, "main", 0x20, None), (2, 0xFF, "main", 0x20, "")])
    assert lines(table) == [
        " 0 [00000000000000ff] panic at 10 [ext4]",
        " 1 [00000000000000ff] main at 20",
        " 2 [00000000000000ff] main at 20",
    ]


def test_nested_table_stands_below_its_row_and_is_indented() -> None:
    frames = FRAMES.table([(0, 1, "f", 2, None)])
    text = lines(PS.table([(1, 2, 0.0, "a", "", frames), (2, 3, 0.0, "b", "", Absent(Reason.UNREADABLE, "0x99"))]))
    assert text[2] == "  0 [0000000000000001] f at 2"
    assert text[4] == "  (unreadable) 0x99"


def test_braces_of_a_line_are_doubled() -> None:
    shape = Shape("s", (Column("a"),), Layout.LINES, "{{{a}}} = {a:>4}|")
    assert lines(shape.table([("x",)])) == ["{x} =    x|"]


def test_value_of_several_lines_in_a_block_of_fields_is_indented() -> None:
    shape = Shape("s", (Column("a", title="A"), Column("long", title="LONG")), Layout.FIELDS)
    table = shape.table([("x\ny", None), ("z", Absent(Reason.NO_TYPE, "struct foo"))])
    assert lines(table) == ["   A: x", "      y", "", "   A: z", "LONG: (unavailable: struct foo)"]


def test_empty_line_separates_tables_and_rows_with_a_gap() -> None:
    shape = Shape("s", (Column("a"),), Layout.LINES, "{a}", gap=True, title="T")
    answer = Answer("c", (shape.table([("1",), ("2",)]), shape.table([("3",)], title="U")))
    assert list(render_text(answer)) == ["T", "1", "", "2", "", "U", "3"]


def test_problems_are_lines_of_their_own() -> None:
    answer = Answer("ps", (), (Problem("the list of tasks stops after 3: a loop", Reason.DAMAGED),))
    assert list(render_problems(answer)) == ["ps: the list of tasks stops after 3: a loop"]
