"""States of tasks as crash names them."""

from __future__ import annotations

import pytest

from postpanic.analysis.tasks.states import STATE_NAMES, state_code, state_words


@pytest.mark.parametrize(
    ("state", "exit_state", "code", "words"),
    [
        (0, 0, "RU", "TASK_RUNNING"),
        (0x1, 0, "IN", "TASK_INTERRUPTIBLE"),
        (0x2001, 0, "IN", "TASK_INTERRUPTIBLE"),
        (0x2, 0, "UN", "TASK_UNINTERRUPTIBLE"),
        (0x102, 0, "UN", "TASK_UNINTERRUPTIBLE|TASK_WAKEKILL"),
        (0x402, 0, "ID", "TASK_UNINTERRUPTIBLE|TASK_NOLOAD"),
        (0x104, 0, "ST", "TASK_STOPPED|TASK_WAKEKILL"),
        (0x108, 0, "TR", "TASK_TRACED|TASK_WAKEKILL"),
        (0x80, 0x20, "ZO", "EXIT_ZOMBIE|TASK_DEAD"),
        (0x80, 0x10, "DE", "EXIT_DEAD|TASK_DEAD"),
        (0x80, 0, "DE", "TASK_DEAD"),
        (0x40, 0, "PA", "TASK_PARKED"),
        (0x200, 0, "WA", "TASK_WAKING"),
        (0x800, 0, "NE", "TASK_NEW"),
        (0x1000, 0, "UN", "TASK_RTLOCK_WAIT"),
        (0x8000, 0, "UN", "TASK_FROZEN"),
        (0x4000_0000, 0, "??", "(unknown: 0x40000000)"),
    ],
)
def test_state(state: int, exit_state: int, code: str, words: str) -> None:
    assert state_code(state, exit_state) == code
    assert state_words(state, exit_state) == words
    assert code in STATE_NAMES or code == "??"
