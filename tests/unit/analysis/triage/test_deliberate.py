"""Crashes that were asked for, and whether there was a reason to."""

from __future__ import annotations

import pytest

from postpanic.analysis.triage import triage_log
from postpanic.findings.verdict import Cause, Confidence, Verdict
from tests.unit.evidence.texts import HUNG, WARNING, stamped

SYSRQ = """\
sysrq: Trigger a crash
Kernel panic - not syncing: sysrq triggered crash
CPU: 1 PID: 440 Comm: bash Not tainted 6.12.1-test #7
Call Trace:
 <TASK>
 dump_stack_lvl+0x44/0x5c
 panic+0x118/0x2f4
 sysrq_handle_crash+0x16/0x20
 __handle_sysrq.cold+0x44/0x11c
 {way}
 vfs_write+0xc7/0x3f0
 </TASK>
"""
WRITTEN = SYSRQ.format(way="write_sysrq_trigger+0x24/0x40")


def judge(before: str = "", crash: str = WRITTEN, start_s: float = 600.0) -> Verdict:
    return triage_log((stamped(before, start_s=10.0) + stamped(crash, start_s=start_s)).encode())


def test_a_healthy_machine_was_crashed_and_nothing_is_wrong() -> None:
    verdict = judge()
    assert (verdict.kind, verdict.cause, verdict.confidence) == ("sysrq-crash", Cause.DELIBERATE, Confidence.PROVEN)
    assert verdict.function == ""
    assert "nothing wrong" in verdict.sentence
    assert "bash (PID 440)" in verdict.sentence
    looked_at = " ".join(one.what for one in verdict.findings[0].evidence)
    assert "no report of the kernel before it" in looked_at
    assert "no errors of disks" in looked_at


@pytest.mark.parametrize(
    ("way", "word"),
    [
        ("write_sysrq_trigger+0x24/0x40", "/proc/sysrq-trigger"),
        ("sysrq_filter+0x1/0x2", "keyboard"),
        ("serial8250_handle_irq+0x1/0x2", "serial"),
    ],
)
def test_the_way_it_was_asked_for_is_in_the_trace(way: str, word: str) -> None:
    verdict = judge(crash=SYSRQ.format(way=way))
    assert word in verdict.sentence
    # Whoever ran when a key was pressed did not ask for it.
    assert ("bash" in verdict.sentence) is (word == "/proc/sysrq-trigger")


def test_a_task_that_hung_before_is_what_it_was_a_reaction_to() -> None:
    verdict = judge(HUNG)
    assert verdict.kind == "sysrq-crash"
    asked = next(finding for finding in verdict.findings if finding.detector == "deliberate")
    assert "may have been a reaction" in asked.sentence
    assert asked.confidence is Confidence.LIKELY


@pytest.mark.parametrize(
    "before",
    [
        "blk_update_request: I/O error, dev sda, sector 2048 op 0x0:(READ) flags 0x0\n",
        "Out of memory: Killed process 7 (cat) total-vm:1kB, anon-rss:1kB\n",
        "NETDEV WATCHDOG: eth0 (virtio_net): transmit queue 0 timed out\n",
    ],
    ids=["disk", "memory", "network"],
)
def test_trouble_shortly_before_is_told(before: str) -> None:
    assert "may have been a reaction" in judge(before).sentence
    assert "may have been a reaction" not in judge(before, start_s=90000.0).sentence


def test_a_warning_is_no_reason_to_crash_a_machine() -> None:
    assert "nothing wrong" in judge(WARNING).sentence


LKDTM = """\
lkdtm: Performing direct entry EXCEPTION
BUG: kernel NULL pointer dereference, address: 0000000000000000
#PF: supervisor write access in kernel mode
#PF: error_code(0x0002) - not-present page
Oops: 0002 [#1] PREEMPT SMP NOPTI
CPU: 1 PID: 440 Comm: bash Not tainted 6.12.1-test #7
RIP: 0010:lkdtm_EXCEPTION+0xa/0x10 [lkdtm]
RSP: 0018:ffffd35b800d0f48 EFLAGS: 00000046
RAX: 0000000000000000 RBX: ffff8c483f700000 RCX: 0000000000000001
Call Trace:
 <TASK>
 lkdtm_do_action+0x1b/0x30 [lkdtm]
 direct_entry+0xdd/0x140 [lkdtm]
 full_proxy_write+0x56/0x80
 </TASK>
Kernel panic - not syncing: Fatal exception
"""


def test_a_module_that_is_there_to_crash_did_so_on_request() -> None:
    verdict = judge(crash=LKDTM)
    assert (verdict.kind, verdict.cause) == ("null-dereference", Cause.DELIBERATE)
    assert (verdict.function, verdict.module) == ("lkdtm_EXCEPTION", "lkdtm")
