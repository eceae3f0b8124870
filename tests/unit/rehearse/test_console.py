"""Lines of programs that the kernel has broken are put together, whatever has arrived yet."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postpanic.rehearse.console import join_lines

FIRST = "[    1.981571] tsc: Refined TSC clocksource calibration: 2596.114 MHz\n"
SECOND = "[    1.982170][    T9] clocksource: tsc: mask: 0xffffffffffffffff\n"


@pytest.mark.parametrize(
    ("printed", "joined"),
    [
        (f"captured: rw 0 0{FIRST}{SECOND}\nnext\n", f"{FIRST}{SECOND}captured: rw 0 0\nnext\n"),
        (f"sa{FIRST}ved, {SECOND}level 31\n", f"{FIRST}{SECOND}saved, level 31\n"),
        (f"sav{FIRST}[ok] ed\n", f"{FIRST}sav[ok] ed\n"),
        (f"{FIRST}whole\n{SECOND}", f"{FIRST}whole\n{SECOND}"),
        ("[  OK  ] Started\nat [12.5] of 3\n", "[  OK  ] Started\nat [12.5] of 3\n"),
        # What a kernel that is gone has cut is not gone on with.
        (
            f"going do{FIRST}[    0.000000] Linux version 6.1\npostpanic: saver started\n",
            f"{FIRST}going do\n[    0.000000] Linux version 6.1\npostpanic: saver started\n",
        ),
        ("going do[    0.000000] Linux version\nmore\n", "going do\n[    0.000000] Linux version\nmore\n"),
        # Nothing of what is still to come is missing.
        (f"sav{FIRST}ed, le", f"{FIRST}saved, le"),
        ("", ""),
        ("\n\n", "\n\n"),
    ],
)
def test_lines_are_in_one_piece(printed: str, joined: str) -> None:
    assert join_lines(printed) == joined


MESSAGES = st.integers(1, 99_999_999).map(lambda time: f"[{time / 1e6:12.6f}] message {time}\n")
LINES = st.text("ab [].:", max_size=12).map(lambda text: f"{text}\n")


@given(st.data(), st.lists(LINES, max_size=5), st.lists(MESSAGES, max_size=5))
def test_wherever_the_kernel_writes(data: st.DataObject, lines: list[str], messages: list[str]) -> None:
    told = "".join(lines)
    places = sorted(data.draw(st.integers(0, len(told))) for _ in messages)
    printed = told
    for place, message in reversed([*zip(places, messages, strict=True)]):
        printed = printed[:place] + message + printed[place:]
    joined = join_lines(printed)
    assert [line for line in joined.splitlines(keepends=True) if "message" in line] == messages
    assert "".join(line for line in joined.splitlines(keepends=True) if "message" not in line) == told


@given(
    st.lists(st.one_of(LINES, MESSAGES, MESSAGES.map(lambda text: f"broken{text}")), max_size=8), st.integers(0, 400)
)
def test_whole_lines_stay_when_more_comes(parts: list[str], end: int) -> None:
    printed = "".join(parts)
    before = join_lines(printed[:end])
    assert join_lines(printed).startswith(before[: before.rfind("\n") + 1])
