"""How frames are counted."""

from __future__ import annotations

from postpanic.analysis.stacks.frames import Area, Frame, number_frames

TASK = Area("task", 0x1000, 0x5000)
IRQ = Area("IRQ", 0x8000, 0xC000, 0)


def frame(area: Area, *, interrupted: bool = False) -> Frame:
    return Frame(1, area.start + 8, 0, None, interrupted=interrupted, area=area)


def numbers(*frames: Frame) -> list[int | None]:
    return [number for _, number in number_frames(frames)]


def test_what_was_interrupted_on_the_same_stack_is_not_counted() -> None:
    assert numbers(frame(TASK), frame(TASK, interrupted=True), frame(TASK)) == [0, None, 1]


def test_what_was_interrupted_on_another_stack_is_counted() -> None:
    assert numbers(frame(IRQ), frame(TASK, interrupted=True), frame(TASK)) == [0, 1, 2]
    # An interrupt goes to its own stack only in the function that the entry calls.
    assert numbers(frame(IRQ), frame(TASK), frame(TASK, interrupted=True), frame(TASK)) == [0, 1, 2, 3]


def test_the_first_frame_is_always_counted() -> None:
    assert numbers(frame(TASK, interrupted=True)) == [0]


def test_a_frame_is_where_its_return_address_is() -> None:
    assert frame(TASK).slot == TASK.start
    assert frame(TASK, interrupted=True).slot == TASK.start + 8


def test_stacks_are_called_as_crash_calls_them() -> None:
    assert IRQ.title == "IRQ stack"
    assert Area("NMI", 0, 1, 0).title == "NMI exception stack"
