"""What checkers of the kernel say, as verdicts: the rule, the culprit, how sure it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from postpanic.analysis.triage import triage_log
from postpanic.evidence.oops.kinds import Kind
from postpanic.findings.verdict import Cause, Confidence, Verdict

CORPUS = Path(__file__).resolve().parents[6] / "shared/corpus/oops"
CPU = "CPU: 1 PID: 318 Comm: tender Tainted: G           O       6.12.7 #1\nHardware name: QEMU\n"
TRACE = """\
Call Trace:
 <TASK>
 dump_stack_lvl+0x5d/0x80
 {inner}+0x23c/0x260
 harbour_dock+0x41/0x90 [harbour]
 vfs_write+0xf5/0x440
 do_syscall_64+0x82/0x190
 entry_SYSCALL_64_after_hwframe+0x76/0x7e
 </TASK>
"""
IMBALANCE = """\
=====================================
WARNING: bad unlock balance detected!
6.12.7 #1 Tainted: G           O
-------------------------------------
kworker/1:2/318 is trying to release lock (berth_lock) at:
[<ffffffffc08d2041>] harbour_dock+0x41/0x90 [harbour]
but there are no more locks to release!

other info that might help us debug this:
1 lock held by tender/318:
 #0: ffff888003a5c420 (sb_writers#4){.+.+}-{0:0}, at: vfs_write+0xf5/0x440

stack backtrace:
"""
FREED = """\
=========================
WARNING: held lock freed!
6.12.7 #1 Tainted: G           O
-------------------------
tender/318 is freeing memory ffff888004a1c000-ffff888004a1c1ff, with a lock still held there!
ffff888004a1c0d8 (&berth->lock){+.+.}-{3:3}, at: harbour_dock+0x41/0x90 [harbour]
1 lock held by tender/318:
 #0: ffff888004a1c0d8 (&berth->lock){+.+.}-{3:3}, at: harbour_dock+0x41/0x90 [harbour]

stack backtrace:
"""
RETURNED = """\
================================================
WARNING: lock held when returning to user space!
6.12.7 #1 Tainted: G           O
------------------------------------------------
tender/318 is leaving the kernel with locks still held!
1 lock held by tender/318:
 #0: ffffffffc08d4100 (berth_lock){+.+.}-{3:3}, at: harbour_dock+0x41/0x90 [harbour]
"""
CONTEXT = """\
=============================
[ BUG: Invalid wait context ]
6.12.7 #1 Tainted: G           O
-----------------------------
tender/318 is trying to lock:
ffffffffc08d4100 (berth_lock){+.+.}-{3:3}, at: harbour_dock+0x41/0x90 [harbour]
other info that might help us debug this:
context-{4:4}
1 lock held by tender/318:
 #0: ffffffffc08d4180 (quay_lock){....}-{2:2}, at: harbour_dock+0x20/0x90 [harbour]
stack backtrace:
"""
RCU = """\
=============================
WARNING: suspicious RCU usage
6.12.7 #1 Tainted: G           O
-----------------------------
drivers/misc/harbour.c:77 suspicious rcu_dereference_check() usage!

other info that might help us debug this:

rcu_scheduler_active = 2, debug_locks = 1
no locks held by tender/318.

stack backtrace:
"""
WARN = "------------[ cut here ]------------\n{said}\nWARNING: CPU: 1 PID: 318 at {place} {function}+0x9c/0x100\n"
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
UNDEFINED = """\
------------[ cut here ]------------
UBSAN: {name} in drivers/misc/harbour.c:81:17
{said}
"""
CFI = (
    "CFI failure at harbour_dock+0x41/0x90 [harbour] (target: quay_free+0x0/0x30 [quay]; expected type: 0x5e2f1a77)\n"
    "WARNING: CPU: 1 PID: 318 at harbour_dock+0x41/0x90 [harbour]\n"
)
UNNAMED = (
    "INFO: trying to register non-static key.\nThe code is fine but needs lockdep annotation, or maybe\n"
    "you didn't initialize this object before use?\nturning off the locking correctness validator.\n"
)
PREEMPTIBLE = (
    "BUG: using smp_processor_id() in preemptible [00000000] code: tender/318\n"
    "caller is harbour_dock+0x41/0x90 [harbour]\n"
)
SPINLOCK = (
    "BUG: spinlock {what} on CPU#1, tender/318\n"
    " lock: 0xffff888004a1c0d8, .magic: {magic}, .owner: {owner}, .owner_cpu: 1\n"
)
RUST = "rust_kernel: panicked at drivers/misc/harbour.rs:60:5:\n{said}\n------------[ cut here ]------------\n"
RUST += "kernel BUG at rust/helpers/bug.c:7!\nOops: invalid opcode: 0000 [#1] PREEMPT SMP NOPTI\n"


def judge(head: str, inner: str = "dump_stack") -> Verdict:
    text = f"{head}{CPU}{TRACE.format(inner=inner)}"
    lines = [f"[   41.{number:06}] {line}" for number, line in enumerate(text.splitlines())]
    return triage_log("\n".join(lines).encode())


CASES = [
    (
        IMBALANCE,
        "print_unlock_imbalance_bug",
        Cause.LOCK_MISUSE,
        "releases berth_lock, which kworker/1:2 does not hold",
    ),
    (FREED, "debug_check_no_locks_freed", Cause.LOCK_MISUSE, "tender frees memory with &berth->lock in it"),
    (RETURNED, "lockdep_sys_exit", Cause.LEAKED_LOCK, "took berth_lock and returned to the process"),
    (CONTEXT, "__lock_acquire", Cause.SLEEP_IN_ATOMIC, "takes berth_lock, which can sleep, where nobody may"),
    (
        UNNAMED,
        "register_lock_class",
        Cause.UNINITIALIZED,
        "takes a lock that lockdep cannot name",
    ),
    (
        "BUG: MAX_LOCKDEP_CHAINS too low!\nturning off the locking correctness validator.\n",
        "__lock_acquire",
        Cause.OVERLOAD,
        "Lockdep's table of lockdep chains is full",
    ),
    (
        WARN.format(
            said="DEBUG_LOCKS_WARN_ON(lock->magic != lock)", place="kernel/locking/mutex.c:587", function="__mutex_lock"
        ),
        "__mutex_lock",
        Cause.MEMORY_CORRUPTION,
        "a lock whose state cannot be (lock->magic != lock)",
    ),
    (
        RCU,
        "lockdep_rcu_suspicious",
        Cause.LOCK_MISUSE,
        "uses rcu_dereference_check() at drivers/misc/harbour.c:77 without",
    ),
    (
        PREEMPTIBLE,
        "check_preemption_disabled",
        Cause.LOCK_MISUSE,
        "uses smp_processor_id() where it may be moved",
    ),
    (
        SPINLOCK.format(what="bad magic", magic="00000000", owner="<none>/0"),
        "do_raw_spin_lock",
        Cause.UNINITIALIZED,
        "takes a spinlock that is none",
    ),
    (
        SPINLOCK.format(what="recursion", magic="dead4ead", owner="tender/318"),
        "do_raw_spin_lock",
        Cause.DEADLOCK,
        "takes a spinlock that it holds already",
    ),
    (
        "BUG: rwlock wrong owner on CPU#1, tender/318, 00000000859f2a8d\n",
        "do_raw_write_unlock",
        Cause.LOCK_MISUSE,
        "releases a rwlock that it does not hold (wrong owner)",
    ),
    (RACE, "kcsan_report", Cause.DATA_RACE, "harbour_dock (write, task 318, CPU 1) and harbour_leave (read, interrupt"),
    (ALONE, "kcsan_report", Cause.DATA_RACE, "somebody else, who was not seen"),
    (
        WARN.format(
            said="ODEBUG: free active (active state 0) object: ffff888004a1c0d8 object type: timer_list "
            "hint: harbour_tick+0x0/0x40 [harbour]",
            place="lib/debugobjects.c:615",
            function="debug_print_object",
        ),
        "debug_check_no_obj_freed",
        Cause.USE_AFTER_FREE,
        "frees memory with a timer_list (harbour_tick) in it that is active",
    ),
    (
        WARN.format(
            said="ODEBUG: assert_init not available (active state 0) object: ffff888004a1c0d8 object type: timer_list "
            "hint: 0x0",
            place="lib/debugobjects.c:615",
            function="debug_print_object",
        ),
        "debug_object_assert_init",
        Cause.UNINITIALIZED,
        "uses a timer_list",
    ),
    (
        WARN.format(
            said="ODEBUG: activate active (active state 1) object: ffff888004a1c0d8 object type: rcu_head hint: 0x0",
            place="lib/debugobjects.c:615",
            function="debug_print_object",
        ),
        "debug_object_activate",
        Cause.DOUBLE_FREE,
        "gives an object to call_rcu() that it has been given already",
    ),
    (
        UNDEFINED.format(name="shift-out-of-bounds", said="shift exponent 70 is too large for 32-bit type 'int'"),
        "__ubsan_handle_shift_out_of_bounds",
        Cause.ARITHMETIC,
        "shifts by 70 (drivers/misc/harbour.c:81)",
    ),
    (
        UNDEFINED.format(name="signed-integer-overflow", said="2147483647 + 1 cannot be represented in type 'int'"),
        "handle_overflow",
        Cause.ARITHMETIC,
        "computes 2147483647 + 1 (drivers/misc/harbour.c:81), which does not fit into int",
    ),
    (
        UNDEFINED.format(name="invalid-load", said="load of value 107 is not a valid value for type '_Bool'"),
        "__ubsan_handle_load_invalid_value",
        Cause.UNINITIALIZED,
        "reads 107 as a _Bool",
    ),
    (CFI, "__warn", Cause.BAD_FUNCTION_POINTER, "calls quay_free() through a pointer to functions of another type"),
    (
        RUST.format(said="index out of bounds: the len is 4 but the index is 9"),
        "rust_helper_BUG",
        Cause.OUT_OF_BOUNDS,
        "uses the index 9 in what has 4 elements (drivers/misc/harbour.rs:60)",
    ),
    (
        RUST.format(said="called `Option::unwrap()` on a `None` value"),
        "rust_helper_BUG",
        Cause.ASSERTION,
        "Code of Rust gave up (drivers/misc/harbour.rs:60)",
    ),
]


@pytest.mark.parametrize(("head", "inner", "cause", "said"), CASES, ids=[said[:40] for *_, said in CASES])
def test_a_checkers_line_is_a_verdict(head: str, inner: str, cause: Cause, said: str) -> None:
    verdict = judge(head, inner)
    assert (verdict.cause, verdict.function, verdict.module) == (cause, "harbour_dock", "harbour")
    assert said in verdict.sentence
    assert "{" not in verdict.sentence


def test_a_race_is_proven_only_where_both_sides_were_seen() -> None:
    assert judge(RACE, "kcsan_report").confidence is Confidence.PROVEN
    assert judge(ALONE, "kcsan_report").confidence is Confidence.LIKELY


def test_a_line_without_its_report_is_nothing() -> None:
    verdict = triage_log(b"[    1.000000] harbour: shift exponent 70 is too large for 32-bit type 'int'\n")
    assert verdict.cause is Cause.UNKNOWN


def test_what_stands_before_anothers_warning_is_not_its_doing() -> None:
    warning = WARN.format(said="harbour is full", place="drivers/misc/harbour.c:77", function="harbour_dock")
    verdict = judge(f"lock held when returning to user space\n{warning}", "__warn")
    assert verdict.cause is Cause.ASSERTION


CHECKERS = {Kind.LOCK_USAGE, Kind.LOCKDEP, Kind.SPINLOCK, Kind.RCU_USAGE, Kind.PREEMPTION, Kind.KCSAN, Kind.ODEBUG}
CHECKERS |= {Kind.UBSAN, Kind.USERCOPY, Kind.KASAN, Kind.KFENCE, Kind.KMSAN, Kind.CFI, Kind.RUST_PANIC}


def test_real_reports_of_checkers_are_explained() -> None:
    if not CORPUS.is_dir():
        pytest.skip("the corpus of reports is not here")
    judged = 0
    for path in sorted(CORPUS.glob("*.txt")):
        head, _, body = path.read_text(errors="replace").partition("\n\n")
        title = re.match(r"TITLE: (?P<what>.+) in (?P<function>[\w.]+)(?: / [\w.]+)?$", head.split("\n", 1)[0])
        if title is None or title["function"] == "corrupted":
            continue
        verdict = triage_log(body.encode())
        if verdict.kind not in {kind.value for kind in CHECKERS}:
            continue
        judged += 1
        assert verdict.cause is not Cause.UNKNOWN, (path.name, verdict.sentence)
        assert verdict.function == title["function"], path.name
    assert judged > 80
