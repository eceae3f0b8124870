"""The table of what crash has and how it is answered is current, and nothing in it is absent."""

from __future__ import annotations

from scripts.generate_prompt_table import TARGET, How, Survey, render


def test_everything_of_crashs_is_native_or_drgns_or_refused_with_a_reason() -> None:
    rows = list(Survey().rows())
    assert [row for row in rows if row.how is How.ABSENT] == []
    assert [row for row in rows if not row.note and row.how is not How.DRGN] == []
    assert len(rows) > 400


def test_table_is_current() -> None:
    """Run scripts/generate_prompt_table.py after a command has changed."""
    assert TARGET.read_text() == render(Survey())
