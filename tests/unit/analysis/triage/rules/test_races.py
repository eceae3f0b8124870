"""What KCSAN says of two accesses becomes a verdict that gives each side its own."""

from __future__ import annotations

from postpanic.findings.verdict import Cause, Confidence
from tests.unit.analysis.triage.rules.machine import judge

RACE = """\
==================================================================
BUG: KCSAN: data-race in harbour_dock [harbour] / harbour_leave [harbour]

write to 0xffff888004a1c0d8 of 4 bytes by task 318 on cpu 1:
 harbour_dock+0x41/0x90 [harbour]
 vfs_write+0xf5/0x440
 do_syscall_64+0x82/0x190
 entry_SYSCALL_64_after_hwframe+0x76/0x7e

read (marked) to 0xffff888004a1c0d8 of 4 bytes by interrupt on cpu 0:
 harbour_leave+0x12/0x40 [harbour]
 call_timer_fn+0x20/0x130

value changed: 0x00000001 -> 0x00000002

Reported by Kernel Concurrency Sanitizer on:
"""
SORTED = RACE.replace("harbour_dock [harbour] / harbour_leave", "harbour_berth [harbour] / harbour_dock").replace(
    " harbour_leave+0x12", " harbour_berth+0x12"
)
"""The header's names stand in the order of the alphabet, the accesses in another."""
ALONE = """\
==================================================================
BUG: KCSAN: data-race in harbour_dock [harbour]

race at unknown origin, with read to 0xffff888004a1c0d8 of 4 bytes by task 318 on cpu 1:
 harbour_dock+0x41/0x90 [harbour]
 vfs_write+0xf5/0x440
 do_syscall_64+0x82/0x190
 entry_SYSCALL_64_after_hwframe+0x76/0x7e

value changed: 0x00000001 -> 0x00000002

Reported by Kernel Concurrency Sanitizer on:
"""


def test_a_race_is_proven_only_where_both_sides_were_seen() -> None:
    both, alone = judge(RACE, "kcsan_report"), judge(ALONE, "kcsan_report")
    assert (both.cause, both.confidence) == (Cause.DATA_RACE, Confidence.PROVEN)
    assert "harbour_dock (write, task 318, CPU 1) and harbour_leave (read, interrupt" in both.sentence
    assert (alone.cause, alone.confidence) == (Cause.DATA_RACE, Confidence.LIKELY)
    assert "somebody else, who was not seen" in alone.sentence
    assert [(verdict.function, verdict.module) for verdict in (both, alone)] == [("harbour_dock", "harbour")] * 2


def test_each_side_of_a_race_has_its_own_access() -> None:
    verdict = judge(SORTED, "kcsan_report")
    assert "harbour_dock (write, task 318, CPU 1) and harbour_berth (read, interrupt, CPU 0)" in verdict.sentence
    assert verdict.confidence is Confidence.PROVEN


def test_a_race_whose_traces_are_missing_says_not_who_did_what() -> None:
    verdict = judge(RACE.replace(" harbour_leave+0x12/0x40 [harbour]\n", ""), "kcsan_report")
    assert "harbour_dock and harbour_leave (write, task 318, CPU 1; read, interrupt, CPU 0) access" in verdict.sentence
    assert verdict.confidence is Confidence.LIKELY


def test_a_race_in_a_damaged_report_is_only_possible() -> None:
    # What the kernel dropped may have been the frames of either side.
    text = RACE.replace("value changed", "** 7 printk messages dropped **\nvalue changed")
    verdict = judge(text, "kcsan_report")
    assert verdict.cause is Cause.DATA_RACE
    assert verdict.confidence is Confidence.POSSIBLE
