"""What checkers of the kernel say, as verdicts: the rule, the culprit, how sure it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from postpanic.analysis.triage import triage_log
from postpanic.evidence.oops.kinds import Kind
from postpanic.findings.verdict import Cause, Confidence
from tests.unit.analysis.triage.rules.machine import CPU, TRACE, judge

CORPUS = Path(__file__).resolve().parents[6] / "shared/corpus/oops"
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
OLD_IMBALANCE = """\
=====================================
[ BUG: bad unlock balance detected! ]
4.12.7 #1 Tainted: G           O
-------------------------------------
tender/318 is trying to release lock (&(&berth->lock)->rlock) at:
[<ffffffffc08d2041>] harbour_dock+0x41/0x90 [harbour]
but there are no more locks to release!

stack backtrace:
"""
OLD_FREED = """\
=========================
WARNING: held lock freed!
4.12.7 #1 Tainted: G           O
-------------------------
tender/318 is freeing memory ffff888004a1c000-ffff888004a1c1ff, with a lock still held there!
 (&(&berth->lock)->rlock){+.+.}, at: [<ffffffffc08d2041>] harbour_dock+0x41/0x90 [harbour]
2 locks held by tender/318:
 #0:  (sb_writers#4){.+.+}, at: [<ffffffff812d2041>] vfs_write+0x41/0x90
 #1:  (&(&berth->lock)->rlock){+.+.}, at: [<ffffffffc08d2041>] harbour_dock+0x41/0x90 [harbour]

stack backtrace:
"""
STILL_HELD = """\
=====================================
WARNING: tender/318 still has locks held!
6.12.7 #1 Tainted: G           O
-------------------------------------
1 lock held by tender/318:
 #0: ffff888003a5c420 ((wq_completion)berth events#2){+.+.}-{0:0}, at: harbour_dock+0xf5/0x440 [harbour]

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
LOCAL_CONTEXT = """\
=============================
[ BUG: Invalid wait context ]
6.12.7 #1 Tainted: G           O
-----------------------------
tender/318 is trying to lock:
ffffffffc08d4100 ((local_lock).lock){+.+.}-{3:3}, at: harbour_dock+0x41/0x90 [harbour]
other info that might help us debug this:
context-{5:5}
1 lock held by tender/318:
 #0: ffff888003a5c420 (&rq->__lock){-.-.}-{2:2}, at: raw_spin_rq_lock_nested+0x20/0x90
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
UNDEFINED = """\
------------[ cut here ]------------
UBSAN: {name} in drivers/misc/harbour.c:81:17
{said}
"""
NO_FUNCTION = (
    "CFI failure at harbour_dock+0x41/0x90 [harbour] (target: 0xffffc90000123456; expected type: 0x5e2f1a77)\n"
    "WARNING: CPU: 1 PID: 318 at harbour_dock+0x41/0x90 [harbour]\n"
)
CFI = (
    "CFI failure at harbour_dock+0x41/0x90 [harbour] (target: quay_free+0x0/0x30 [quay]; expected type: 0x5e2f1a77)\n"
    "WARNING: CPU: 1 PID: 318 at harbour_dock+0x41/0x90 [harbour]\n"
)
UNNAMED = (
    "INFO: trying to register non-static key.\nThe code is fine but needs lockdep annotation, or maybe\n"
    "you didn't initialize this object before use?\nturning off the locking correctness validator.\n"
)
MOVED = (
    "------------[ cut here ]------------\n"
    'Looking for class "&berth->lock" with key __key.1, but found a different class "quay" with the same key\n'
    "WARNING: kernel/locking/lockdep.c:941 at look_up_lock_class+0x1a/0x20, CPU#1: tender/318\n"
    "Modules linked in: harbour(O)\n"
)
"""The place stands first since 6.19."""
DEPTH = (
    "BUG: MAX_LOCK_DEPTH too low!\nturning off the locking correctness validator.\ndepth: 48  max: 48!\n"
    "48 locks held by tender/318:\n"
    " #0: ffff888003a5c420 (sb_writers#4){.+.+}-{0:0}, at: vfs_write+0xf5/0x440\n"
)
TRAP = (
    "Internal error: UBSAN: {what}: 00000000f2005514 [#1] PREEMPT SMP\nModules linked in: harbour(O)\n"
    "CPU: 1 PID: 318 Comm: tender Not tainted 6.12.7 #1\npc : harbour_dock+0x41/0x90 [harbour]\n"
    "lr : vfs_write+0xf5/0x440\n"
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


RCU_SLEEP = "Illegal context switch in RCU{flavour} read-side critical section!"


def warn_of_locks(check: str, function: str) -> str:
    return WARN.format(said=f"DEBUG_LOCKS_WARN_ON({check})", place="kernel/locking/lockdep.c:4363", function=function)


CASES = [
    (
        IMBALANCE,
        "print_unlock_imbalance_bug",
        Cause.LOCK_MISUSE,
        "releases berth_lock, which kworker/1:2 does not hold",
    ),
    (FREED, "debug_check_no_locks_freed", Cause.LOCK_MISUSE, "tender frees memory with &berth->lock in it"),
    (RETURNED, "lockdep_sys_exit", Cause.LEAKED_LOCK, "took berth_lock and returned to the process"),
    (OLD_IMBALANCE, "print_unlock_imbalance_bug", Cause.LOCK_MISUSE, "releases &(&berth->lock)->rlock, which tender"),
    (OLD_FREED, "debug_check_no_locks_freed", Cause.LOCK_MISUSE, "frees memory with &(&berth->lock)->rlock in it"),
    (
        STILL_HELD,
        "debug_check_no_locks_held",
        Cause.LEAKED_LOCK,
        "tender goes to sleep or ends while it holds (wq_completion)berth events#2, which harbour_dock [harbour] took",
    ),
    (LOCAL_CONTEXT, "__lock_acquire", Cause.SLEEP_IN_ATOMIC, "takes (local_lock).lock, which can sleep"),
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
        warn_of_locks("!irqs_disabled()", "lockdep_hardirqs_on_prepare"),
        "lockdep_hardirqs_on",
        Cause.LOCK_MISUSE,
        "Interrupts are not as the code of harbour_dock [harbour] has them (!irqs_disabled())",
    ),
    (
        warn_of_locks("in_hardirq()", "__lock_acquire"),
        "lock_acquire",
        Cause.LOCK_MISUSE,
        "has them (in_hardirq())",
    ),
    (
        warn_of_locks("__owner_task(owner) != current", "__mutex_unlock_slowpath"),
        "__mutex_unlock_slowpath",
        Cause.LOCK_MISUSE,
        "a lock whose owner is not the one that it must be (__owner_task(owner) != current)",
    ),
    (
        warn_of_locks("ww_ctx->contending_lock", "__ww_mutex_lock"),
        "__ww_mutex_lock",
        Cause.LOCK_MISUSE,
        "with a context (struct ww_acquire_ctx) that does not fit it (ww_ctx->contending_lock)",
    ),
    (
        warn_of_locks("subclass >= MAX_LOCKDEP_SUBCLASSES", "__lock_acquire"),
        "lock_acquire",
        Cause.LOCK_MISUSE,
        "takes a lock at a level of nesting that lockdep does not have",
    ),
    (
        "BUG: looking up invalid subclass: 8\nturning off the locking correctness validator.\n",
        "look_up_lock_class",
        Cause.LOCK_MISUSE,
        "a level of nesting that lockdep does not have.",
    ),
    (DEPTH, "__lock_acquire", Cause.LOCK_MISUSE, "more locks at once than lockdep can follow (48), and harbour_dock"),
    (MOVED, "register_lock_class", Cause.LOCK_MISUSE, "takes a lock by another name than lockdep knows it by"),
    (
        RCU.replace("suspicious rcu_dereference_check() usage!", RCU_SLEEP.format(flavour="-sched")),
        "__might_resched",
        Cause.SLEEP_IN_ATOMIC,
        "sleeps between rcu_read_lock_sched() and rcu_read_unlock_sched()",
    ),
    (
        RCU.replace("suspicious rcu_dereference_check() usage!", RCU_SLEEP.format(flavour="-bh")),
        "__might_resched",
        Cause.SLEEP_IN_ATOMIC,
        "sleeps between rcu_read_lock_bh() and rcu_read_unlock_bh()",
    ),
    (
        RCU.replace("suspicious rcu_dereference_check() usage!", RCU_SLEEP.format(flavour="")),
        "__might_resched",
        Cause.SLEEP_IN_ATOMIC,
        "sleeps between rcu_read_lock() and rcu_read_unlock()",
    ),
    (
        RCU.replace(
            "suspicious rcu_dereference_check() usage!", "RCU-list traversed without holding the required lock!!"
        ),
        "lockdep_rcu_suspicious",
        Cause.LOCK_MISUSE,
        "goes through a list at drivers/misc/harbour.c:77 without the lock, or the srcu_read_lock()",
    ),
    (
        RCU.replace("suspicious rcu_dereference_check() usage!", "rcu_read_lock() used illegally while idle!"),
        "lockdep_rcu_suspicious",
        Cause.LOCK_MISUSE,
        "uses rcu_read_lock() on a CPU that is idle to RCU",
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
        SPINLOCK.format(what="cpu recursion", magic="dead4ead", owner="pilot/77"),
        "do_raw_spin_lock",
        Cause.DEADLOCK,
        "takes a spinlock that another task took on this CPU and has not released",
    ),
    (
        SPINLOCK.format(what="wrong CPU", magic="dead4ead", owner="tender/318"),
        "do_raw_spin_unlock",
        Cause.LOCK_MISUSE,
        "releases a spinlock on another CPU than it took it on",
    ),
    (
        "BUG: rwlock wrong owner on CPU#1, tender/318, 00000000859f2a8d\n",
        "do_raw_write_unlock",
        Cause.LOCK_MISUSE,
        "releases a rwlock that it does not hold (wrong owner)",
    ),
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
        WARN.format(
            said="ODEBUG: active_state active (active state 1) object: ffff888004a1c0d8 object type: rcu_head "
            "hint: 0x0",
            place="lib/debugobjects.c:615",
            function="debug_print_object",
        ),
        "debug_object_active_state",
        Cause.ASSERTION,
        "uses a rcu_head that is not in the state that it must be in",
    ),
    (
        UNDEFINED.format(name="shift-out-of-bounds", said="left shift of negative value -1"),
        "__ubsan_handle_shift_out_of_bounds",
        Cause.ARITHMETIC,
        "shifts -1 to the left (drivers/misc/harbour.c:81)",
    ),
    (
        UNDEFINED.format(
            name="shift-out-of-bounds", said="left shift of 1 by 31 places cannot be represented in type 'int'"
        ),
        "__ubsan_handle_shift_out_of_bounds",
        Cause.ARITHMETIC,
        "shifts 1 to the left by 31 (drivers/misc/harbour.c:81), which does not fit into int",
    ),
    (
        UNDEFINED.format(name="negation-overflow", said="negation of -2147483648 cannot be represented in type 'int':"),
        "__ubsan_handle_negate_overflow",
        Cause.ARITHMETIC,
        "negates -2147483648 (drivers/misc/harbour.c:81), which does not fit into int",
    ),
    (
        UNDEFINED.format(name="division-overflow", said="division of -1 by -1 cannot be represented in type 'int'"),
        "__ubsan_handle_divrem_overflow",
        Cause.ARITHMETIC,
        "divides the smallest number by -1 (drivers/misc/harbour.c:81)",
    ),
    (
        UNDEFINED.format(
            name="object-size-mismatch",
            said="load of address 00000000d5e9fb5e with insufficient space\nfor an object of type 'struct berth'",
        ),
        "__ubsan_handle_type_mismatch_v1",
        Cause.OUT_OF_BOUNDS,
        "uses memory as struct berth (drivers/misc/harbour.c:81) that is too small for it",
    ),
    (
        UNDEFINED.format(
            name="misaligned-access",
            said="member access within misaligned address 00000000d5e9fb5e for type 'struct berth'",
        ),
        "__ubsan_handle_type_mismatch_v1",
        Cause.WILD_POINTER,
        "uses an address as a pointer to struct berth",
    ),
    (
        UNDEFINED.format(
            name="misaligned-access",
            said="member access within misaligned address ffff888004a1c0d9 for type 'struct berth'",
        ),
        "__ubsan_handle_type_mismatch_v1",
        Cause.WILD_POINTER,
        "uses 0xffff888004a1c0d9 as a pointer to struct berth",
    ),
    (TRAP.format(what="shift out of bounds"), "ubsan_handler", Cause.ARITHMETIC, "shifts a number otherwise than C"),
    (TRAP.format(what="array index out of bounds"), "ubsan_handler", Cause.OUT_OF_BOUNDS, "an array that ends before"),
    (
        TRAP.format(what="integer subtraction overflow"),
        "ubsan_handler",
        Cause.ARITHMETIC,
        "does not fit into its type (subtraction)",
    ),
    (TRAP.format(what="loading invalid value"), "ubsan_handler", Cause.UNINITIALIZED, "a value that its type does not"),
    (NO_FUNCTION, "__warn", Cause.BAD_FUNCTION_POINTER, "calls 0xffffc90000123456, which is no function"),
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


def test_a_lock_that_went_to_user_space_names_its_module_without_a_trace() -> None:
    lines = [f"[   41.{number:06}] {line}" for number, line in enumerate(RETURNED.splitlines())]
    verdict = triage_log("\n".join(lines).encode())
    assert (verdict.cause, verdict.function, verdict.module) == (Cause.LEAKED_LOCK, "harbour_dock", "harbour")
    assert {finding.module for finding in verdict.findings if finding.function} == {"harbour"}


def test_a_lock_that_is_not_named_is_no_subject() -> None:
    verdict = judge(
        IMBALANCE.replace("release lock (berth_lock) at:", "release lock (", 1), "print_unlock_imbalance_bug"
    )
    assert verdict.subject is None
    verdict = judge(RETURNED.replace("(berth_lock){+.+.}-{3:3}, at:", "at:"), "lockdep_sys_exit")
    assert verdict.cause is Cause.LEAKED_LOCK
    assert "took a lock and returned" in verdict.sentence
    assert verdict.subject is None


def test_a_check_that_no_rule_knows_is_no_corruption() -> None:
    verdict = judge(warn_of_locks("!name", "lockdep_init_map_type"), "lockdep_init_map_type")
    assert verdict.cause is Cause.UNKNOWN


def test_a_task_with_too_many_locks_is_only_possibly_at_fault() -> None:
    assert judge(DEPTH, "__lock_acquire").confidence is Confidence.POSSIBLE


def test_a_shift_is_out_of_no_memory() -> None:
    verdict = judge(
        UNDEFINED.format(name="shift-out-of-bounds", said="what is new"), "__ubsan_handle_shift_out_of_bounds"
    )
    assert verdict.cause is Cause.ARITHMETIC


MIXED = " entry_SYSCALL_64_after_hwframe+0x76/0x7e\n quay_fill+0x10/0x20 [quay]\n"


def test_a_report_that_is_mixed_with_another_names_nobody() -> None:
    lines = f"{PREEMPTIBLE}{CPU}{TRACE.format(inner='dump_stack')}".replace(
        " entry_SYSCALL_64_after_hwframe+0x76/0x7e\n", MIXED
    )
    verdict = triage_log("".join(f"[   41.000000] {line}\n" for line in lines.splitlines()).encode())
    assert (verdict.cause, verdict.function, verdict.module) == (Cause.LOCK_MISUSE, "", "")
    assert verdict.confidence is Confidence.POSSIBLE
    assert verdict.sentence.startswith("A function that is not known uses smp_processor_id()")


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
