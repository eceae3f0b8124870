"""Hangs by the text of the kernel's reports."""

from __future__ import annotations

import pytest

from postpanic.analysis.triage import judge, scene_of_log
from postpanic.analysis.triage.hangs.from_log import find_hangs_in_log
from postpanic.findings.verdict import Cause, Confidence, Finding
from tests.unit.evidence.texts import DEADLOCK, HUNG, RCU

PANIC = "Kernel panic - not syncing: hung_task: blocked tasks\n"


def hung(comm: str, pid: int, *frames: str, owner: str = "") -> str:
    lines = [
        f"INFO: task {comm}:{pid} blocked for more than 120 seconds.",
        "      Tainted: G           O       6.16.0 #1",
        '"echo 0 > /proc/sys/kernel/hung_task_timeout_secs" disables this message.',
        f"task:{comm:<15} state:D stack:0     pid:{pid}   tgid:{pid}   ppid:1      task_flags:0x40 flags:0x00004000",
        "Call Trace:",
        " <TASK>",
        *(f" {frame}+0x10/0x100" + (" [widget]" if frame.startswith("widget") else "") for frame in frames),
        " </TASK>",
    ]
    if owner:
        lines.append(f"INFO: task {comm}:{pid} {owner}")
    return "\n".join([*lines, ""])


MUTEX = ("__schedule", "schedule", "schedule_preempt_disabled", "__mutex_lock.constprop.0")


def find(*texts: str) -> list[Finding]:
    return list(find_hangs_in_log(scene_of_log("\n".join(texts).encode())))


def test_owners_that_wait_for_each_other_are_a_deadlock() -> None:
    one = hung("one", 81, *MUTEX, "widget_open", owner="is blocked on a mutex likely owned by task two:90.")
    two = hung("two", 90, *MUTEX, "widget_close", owner="is blocked on a mutex likely owned by task one:81.")
    late = hung("late", 99, *MUTEX, "widget_read", owner="is blocked on a mutex likely owned by task one:81.")
    (finding,) = find(one, two, late, PANIC)
    assert (finding.cause, finding.confidence) == (Cause.DEADLOCK, Confidence.LIKELY)
    assert (finding.function, finding.module) == ("widget_open", "widget")
    assert [link.source for link in finding.chain] == ["one (PID 81)", "two (PID 90)"]
    assert [victim.comm for victim in finding.victims] == ["late"]


def test_an_owner_that_is_not_found_leaked_the_lock() -> None:
    text = hung("one", 81, *MUTEX, "widget_open", owner="is blocked on a mutex, but the owner is not found.")
    (finding,) = find(text, PANIC)
    assert (finding.cause, finding.function, finding.module) == (Cause.LEAKED_LOCK, "", "widget")
    assert "nobody will release it" in finding.sentence


def test_a_holder_that_waits_for_something_else_is_the_root() -> None:
    one = hung("one", 81, *MUTEX, "widget_open", owner="is blocked on a mutex likely owned by task two:90.")
    two = hung("two", 90, "__schedule", "schedule_timeout", "__wait_for_common", "widget_upload")
    (finding,) = find(one, two, PANIC)
    assert (finding.cause, finding.function) == (Cause.LOST_WAKEUP, "widget_upload")
    assert [victim.comm for victim in finding.victims] == ["one", "two"]


def test_without_owners_the_one_that_waits_for_no_lock_is_the_root() -> None:
    one = hung("one", 81, *MUTEX, "widget_open")
    two = hung("two", 90, "__schedule", "schedule", "io_schedule", "folio_wait_bit_common", "widget_flush")
    (finding,) = find(one, two, PANIC)
    assert (finding.cause, finding.function) == (Cause.LOST_IO, "widget_flush")
    assert finding.confidence is Confidence.POSSIBLE


def test_one_task_that_waits_for_a_lock_proves_nothing() -> None:
    (finding,) = find(HUNG, PANIC)
    assert (finding.cause, finding.confidence) == (Cause.UNKNOWN, Confidence.UNKNOWN)


def test_a_stall_is_the_loop_of_the_innermost_function_that_is_no_service() -> None:
    (finding,) = find(RCU)
    assert (finding.cause, finding.function) == (Cause.ENDLESS_LOOP, "widget_poll_all")


def test_lockdep_names_the_locks() -> None:
    (finding,) = find(DEADLOCK)
    assert (finding.cause, finding.function) == (Cause.DEADLOCK, "widget_ioctl")
    assert "&widget->lock" in finding.sentence
    assert "registry_mutex" in finding.sentence


def test_who_spins_is_not_who_is_at_fault() -> None:
    text = """\
watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [reader:404]
CPU: 1 PID: 404 Comm: reader Tainted: G           O       6.1.0 #1
RIP: 0010:native_queued_spin_lock_slowpath+0x64/0x2b0
Call Trace:
 <TASK>
 _raw_spin_lock+0x29/0x30
 widget_count+0x15/0x40 [widget]
 proc_reg_write+0x5a/0xa0
 </TASK>
Kernel panic - not syncing: softlockup: hung tasks
"""
    (finding,) = find(text)
    assert (finding.cause, finding.function, finding.module) == (Cause.LEAKED_LOCK, "", "widget")
    assert "widget_count()" in finding.sentence


def test_locks_that_all_wait_for_in_one_place_may_have_leaked_and_in_several_may_be_a_deadlock() -> None:
    same = find(hung("one", 81, *MUTEX, "widget_open"), hung("two", 90, *MUTEX, "widget_open"), PANIC)
    assert [(finding.cause, finding.function, finding.module) for finding in same] == [
        (Cause.LEAKED_LOCK, "", "widget")
    ]
    (finding,) = find(hung("one", 81, *MUTEX, "widget_open"), hung("two", 90, *MUTEX, "widget_close"), PANIC)
    assert (finding.cause, finding.confidence) == (Cause.DEADLOCK, Confidence.POSSIBLE)


def test_a_cpu_that_waits_for_another_is_not_the_one_that_loops() -> None:
    text = """\
watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [asker:404]
CPU: 1 PID: 404 Comm: asker Tainted: G           O       6.1.0 #1
RIP: 0010:smp_call_function_many_cond+0x124/0x500
Call Trace:
 <TASK>
 on_each_cpu_cond_mask+0x29/0x80
 widget_ask+0x15/0x40 [widget]
 proc_reg_write+0x5a/0xa0
 </TASK>
Kernel panic - not syncing: softlockup: hung tasks
"""
    (finding,) = find(text)
    assert (finding.cause, finding.function) == (Cause.ENDLESS_LOOP, "")
    assert "another CPU" in finding.sentence


def test_other_crashes_have_no_hang() -> None:
    verdict = judge(scene_of_log(b"BUG: kernel NULL pointer dereference, address: 0000000000000000\n"))
    assert not [finding for finding in verdict.findings if finding.detector == "log-hang"]


@pytest.mark.parametrize("size", [10, 100_000])
def test_endless_lines_take_no_time(size: int) -> None:
    find(HUNG, "INFO: task " + "a" * size, "in-flight: " + "1" * size, PANIC)
