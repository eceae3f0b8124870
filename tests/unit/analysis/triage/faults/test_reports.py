"""What detectors of faults make of a log alone: lists, slub_debug, sanitizers, reference counts, stacks."""

from __future__ import annotations

import pytest

from postpanic.analysis.stacks.code_index import Place
from postpanic.analysis.stacks.frames import Frame
from postpanic.analysis.triage import judge, scene_of_log
from postpanic.analysis.triage.faults.stacks import find_cycle
from postpanic.findings.verdict import Cause, Confidence, Role, Verdict

_TRACE = """\
CPU: 0 PID: 407 Comm: ticketer Tainted: G           OE      6.1.0-56-cloud-amd64 #1
RIP: 0010:__list_add_valid.cold+0x23/0x5b
Code: fe ff 0f 0b 48 89 d1 48 c7 c7 c0 b3 34 91 48 89 c2 e8 f4 9b fe ff <0f> 0b 48 89 f2
RSP: 0018:ffffcec880abbd88 EFLAGS: 00000282
Call Trace:
 <TASK>
 turnstile_admit+0x29/0x60 [turnstile]
 proc_reg_write+0x56/0xa0
 vfs_write+0xc7/0x3f0
 </TASK>
---[ end trace 0000000000000000 ]---
Kernel panic - not syncing: Fatal exception
"""
_CUT = "------------[ cut here ]------------\n"


def _judge(*texts: str) -> Verdict:
    return judge(scene_of_log("".join(texts).encode()))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "list_add double add: new=ffff8c955ff6f308, prev=ffff8c955ff6f308, next=ffffffffc07b2000.",
            ("twice", "0xffff8c955ff6f308", "the last entry"),
        ),
        (
            "list_del corruption, ffff8c955ff6f308->next is LIST_POISON1 (dead000000000100)",
            ("twice", "LIST_POISON1", "0xffff8c955ff6f308"),
        ),
        (
            (
                "list_del corruption. prev->next should be ffff8c954d294980, but was 6b6b6b6b6b6b6b6b. "
                "(prev=ffff8c954d2941c0)"
            ),
            ("freed", "0xffff8c954d2941c0", "the entry before"),
        ),
        (
            (
                "list_add corruption. next->prev should be prev (ffff8c954d294980), but was ffff8c954d294000. "
                "(next=ffff8c954d2941c0)."
            ),
            ("the entry behind", "0xffff8c954d2941c0", "another list"),
        ),
        ("list_del corruption, ffff8c955ff6f308->prev is NULL", ("on no list", "prev is NULL")),
    ],
)
def test_a_list_says_which_entry_does_not_fit(line: str, words: tuple[str, ...]) -> None:
    text = f"{line}\n{_CUT}kernel BUG at lib/list_debug.c:33!\ninvalid opcode: 0000 [#1] PREEMPT SMP NOPTI\n"
    verdict = _judge(text, _TRACE)
    assert (verdict.function, verdict.module) == ("turnstile_admit", "turnstile")
    assert verdict.findings[0].detector == "list"
    assert verdict.cause in {Cause.LIST_CORRUPTION, Cause.USE_AFTER_FREE}
    assert all(word in verdict.sentence for word in words), verdict.sentence
    assert verdict.confidence is not Confidence.PROVEN


_SLUB = """\
=============================================================================
BUG kmalloc-64 (Tainted: G    B      OE     ): {what}
-----------------------------------------------------------------------------

0xffff8920076e9360-0xffff8920076e9367 @offset=4960. First byte 0x0 instead of 0x6b
Allocated in parcel_make+0x23/0x60 [parcel] age=1203 cpu=0 pid=409
Freed in parcel_drop+0x15/0x40 [parcel] age=1002 cpu=1 pid=410
Slab 0xfffffac84004d500 objects=21 used=3 fp=0xffff8920076e9340 flags=0xfffffc0000200
Object 0xffff8920076e9340 @offset=4928 fp=0x0000000000000000
CPU: 0 PID: 412 Comm: scanner Tainted: G    B      OE      6.1.0-56-cloud-amd64 #1
Call Trace:
 <TASK>
 dump_stack_lvl+0x44/0x5c
 check_bytes_and_report.cold+0x5f/0x8e
 check_object+0x1a5/0x270
 kmalloc_trace+0x2a/0xa0
 innocent_make+0x20/0x60 [innocent]
 </TASK>
Kernel panic - not syncing: panic_on_taint set ...
"""


@pytest.mark.parametrize(
    ("what", "cause", "function"),
    [
        ("Poison overwritten", Cause.USE_AFTER_FREE, "parcel_drop"),
        ("Right Redzone overwritten", Cause.OUT_OF_BOUNDS, "parcel_make"),
    ],
)
def test_the_allocators_report_names_who_held_the_object(what: str, cause: Cause, function: str) -> None:
    verdict = _judge(_SLUB.format(what=what))
    finding = next(each for each in verdict.findings if each.detector == "slab-report")
    assert (finding.cause, finding.function, finding.module) == (cause, function, "parcel")
    assert "parcel_make" in finding.sentence
    assert "PID 410" in finding.sentence


_KASAN = """\
==================================================================
BUG: KASAN: slab-use-after-free in parcel_zone+0x1a/0x40 [parcel]
Read of size 4 at addr ffff888105a1b2c0 by task scanner/412

CPU: 0 PID: 412 Comm: scanner Not tainted 6.6.0 #1
Call Trace:
 <TASK>
 dump_stack_lvl+0x44/0x5c
 print_report+0x171/0x486
 kasan_report+0xad/0x130
 parcel_zone+0x1a/0x40 [parcel]
 parcel_scan+0x30/0x60 [parcel]
 </TASK>

Allocated by task 409:
 kasan_save_stack+0x1e/0x40
 __kasan_kmalloc+0x81/0xa0
 parcel_make+0x23/0x60 [parcel]

Freed by task 410:
 kasan_save_stack+0x1e/0x40
 __kmem_cache_free+0xab/0x200
 parcel_drop+0x15/0x40 [parcel]

The buggy address belongs to the object at ffff888105a1b2c0
 which belongs to the cache kmalloc-64 of size 64
==================================================================
Kernel panic - not syncing: kasan.fault=panic set ...
"""


def test_a_sanitizer_proves_who_used_and_who_freed() -> None:
    verdict = _judge(_KASAN)
    assert (verdict.cause, verdict.confidence) == (Cause.USE_AFTER_FREE, Confidence.PROVEN)
    assert (verdict.function, verdict.module) == ("parcel_zone", "parcel")
    assert "freed by parcel_drop [parcel]" in verdict.sentence
    assert "allocated by parcel_make [parcel]" in verdict.sentence
    assert [each.detector for each in verdict.findings if each.role is Role.CAUSE] == ["sanitizer"]


_REFERENCE = f"""\
{_CUT}refcount_t: underflow; use-after-free.
WARNING: CPU: 1 PID: 405 at lib/refcount.c:28 refcount_warn_saturate+0xba/0x110
CPU: 1 PID: 405 Comm: landlord Tainted: G           OE      6.1.0-56-cloud-amd64 #1
RIP: 0010:refcount_warn_saturate+0xba/0x110
Call Trace:
 <TASK>
 lease_cancel+0x15/0x1e [lease]
 proc_reg_write+0x56/0xa0
 </TASK>
Kernel panic - not syncing: kernel: panic_on_warn set ...
"""


def test_a_reference_that_was_dropped_once_too_often() -> None:
    verdict = _judge(_REFERENCE)
    assert (verdict.cause, verdict.function, verdict.module) == (Cause.REFERENCE_COUNT, "lease_cancel", "lease")
    assert "once too often" in verdict.sentence


def _frames(*names: str, size: int = 32) -> list[Frame]:
    return [Frame(0x1000, 0x8000 + size * at, 0, Place(name, 4, "m")) for at, name in enumerate(names)]


def test_two_functions_that_call_each_other_are_one_cycle() -> None:
    cycle = find_cycle(_frames("fault", *["sum", "divide"] * 40, "write", "ksys_write"))
    assert cycle is not None
    assert (set(cycle.names), cycle.rounds, cycle.bytes) == ({"sum", "divide"}, 40, 80 * 32)


def test_a_few_calls_of_the_same_function_are_no_recursion() -> None:
    assert find_cycle(_frames("a", "b", "a", "b", "c", "d")) is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "usercopy: Kernel memory exposure attempt detected from SLUB object 'kmalloc-64' (offset 0, size 128)!",
            ("128 bytes", "kmalloc-64", "to a process"),
        ),
        ("detected buffer overflow in memcpy", ("memcpy", "beyond the end")),
    ],
)
def test_a_check_of_bounds_says_what_was_too_long(line: str, words: tuple[str, ...]) -> None:
    bug = f"{line}\n{_CUT}kernel BUG at mm/usercopy.c:102!\ninvalid opcode: 0000 [#1] PREEMPT SMP NOPTI\n"
    verdict = _judge(bug, _TRACE.replace("__list_add_valid.cold", "usercopy_abort"))
    assert (verdict.cause, verdict.function) == (Cause.OUT_OF_BOUNDS, "turnstile_admit")
    assert all(word in verdict.sentence for word in words), verdict.sentence


def test_a_log_alone_names_the_register_and_the_offset() -> None:
    text = """\
BUG: kernel NULL pointer dereference, address: 0000000000000028
#PF: supervisor write access in kernel mode
#PF: error_code(0x0002) - not-present page
Oops: 0002 [#1] PREEMPT SMP NOPTI
CPU: 0 PID: 402 Comm: bookkeeper Not tainted 6.1.0-56-cloud-amd64 #1
RIP: 0010:ledger_post+0x9/0x20 [ledger]
Code: 00 00 0f 1f 44 00 00 48 8b 47 20 <48> 01 70 28 c3 cc cc cc cc 66 90
RSP: 0018:ffffcf57c0be3940 EFLAGS: 00000246
RAX: 0000000000000000 RBX: ffff892d04a1b000 RCX: ffff892d04a1b080
RDX: ffff892d17b3a600 RSI: 00000000000000c8 RDI: ffff892d3fd3e600
Call Trace:
 <TASK>
 ledger_run_batch+0x25/0x50 [ledger]
 </TASK>
"""
    verdict = _judge(text)
    assert (verdict.cause, verdict.function, verdict.module) == (Cause.NULL_POINTER, "ledger_post", "ledger")
    assert verdict.confidence is Confidence.LIKELY
    assert "register rax, offset 0x28" in verdict.sentence
    assert "wrote" in verdict.sentence
