"""Each kind of report in its shortest form, as the kernel prints it."""

from __future__ import annotations

import pytest

from postpanic.evidence.oops import Kind, find_reports
from tests.unit.evidence.texts import stamped

KOBJECT = """\
------------[ cut here ]------------
kobject: '(null)' (0000000000000000): is not initialized, yet kobject_get() is being called.
WARNING: CPU: 0 PID: 10 at lib/kobject.c:625 kobject_get+0x4f/0x60 lib/kobject.c:625
Modules linked in:
CPU: 0 PID: 10 Comm: x Not tainted 6.1.0 #1
RIP: 0010:kobject_get+0x4f/0x60 lib/kobject.c:625
Call Trace:
 <TASK>
 kobject_add_internal+0x1/0x2
 widget_add+0x1/0x20
 do_syscall_64+0x1/0x2
 </TASK>
"""

DOUBLE_FREE = """\
==================================================================
BUG: KASAN: double-free in widget_free+0x1/0x20
Free of addr ffff888012345678 by task x/77

CPU: 0 PID: 77 Comm: x Not tainted 6.1.0 #1
Call Trace:
 <TASK>
 dump_stack_lvl+0x1/0x2
 print_report+0x1/0x2
 kasan_report_invalid_free+0x1/0x2
 ____kasan_slab_free+0x1/0x2
 kfree+0x1/0x2
 widget_free+0x1/0x20
 </TASK>
"""

DATA_RACE = """\
==================================================================
BUG: KCSAN: data-race in widget_read / widget_write

race at unknown origin, with read to 0xffff8880b588efb2 of 4 bytes by task 19789 on cpu 1:
 widget_read+0x1/0x20
 vfs_read+0x1/0x20

value changed: 0x0 -> 0x1

Reported by Kernel Concurrency Sanitizer on:
CPU: 1 PID: 19789 Comm: x Not tainted 6.1.0 #0
==================================================================
"""

BAD_PAGE = """\
BUG: Bad page state in process widgetd  pfn:12345
page:ffffea0000000 refcount:0 mapcount:0 mapping:0 index:0x0 pfn:0x1
flags: 0xfff00000000008(uptodate)
page dumped because: nonzero mapcount
Modules linked in:
CPU: 0 PID: 77 Comm: widgetd Not tainted 6.1.0 #1
Call Trace:
 <TASK>
 dump_stack_lvl+0x1/0x2
 bad_page+0x1/0x2
 free_pcp_prepare+0x1/0x2
 free_unref_page+0x1/0x2
 widget_release+0x1/0x20
 __fput+0x1/0x2
 </TASK>
"""

WORKQUEUE = """\
BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 36s!
Showing busy workqueues and worker pools:
workqueue events: flags=0x0
  pwq 0: cpus=0 node=0 flags=0x0 nice=0 active=1/256
    pending: widget_work
"""

USERCOPY = """\
usercopy: Kernel memory exposure attempt detected from SLUB object 'kmalloc-64' (offset 0, size 100)!
------------[ cut here ]------------
kernel BUG at mm/usercopy.c:102!
invalid opcode: 0000 [#1] PREEMPT SMP KASAN
CPU: 0 PID: 77 Comm: widgetd Not tainted 6.1.0 #1
RIP: 0010:usercopy_abort+0x1/0x2
Call Trace:
 <TASK>
 __check_heap_object+0x1/0x2
 __check_object_size+0x1/0x2
 widget_ioctl+0x1/0x20
 </TASK>
"""

IRQ_INVERSION = """\
========================================================
WARNING: possible irq lock inversion dependency detected
6.1.0 #1 Not tainted
--------------------------------------------------------
widgetd/1 just changed the state of lock:
ffff8880 (&a->lock){-.-.}-{2:2}, at: widget_irq+0x1/0x20
but this lock took another, HARDIRQ-unsafe lock in the past:
 (&b->lock){+.+.}-{2:2}


and interrupts could create inverse lock ordering between them.

stack backtrace:
CPU: 0 PID: 77 Comm: widgetd Not tainted 6.1.0 #1
Call Trace:
 dump_stack+0x1/0x2
 widget_irq+0x1/0x20
"""

LOCK_HELD = """\
================================================
WARNING: lock held when returning to user space!
6.1.0 #1 Not tainted
------------------------------------------------
widgetd/77 is leaving the kernel with locks still held!
1 lock held by widgetd/77:
 #0: ffff8880 (&a->lock){+.+.}-{3:3}, at: widget_open+0x1/0x20
"""

SPINLOCK = """\
BUG: spinlock bad magic on CPU#0, widgetd/77
 lock: 0xffff888, .magic: 00000000, .owner: <none>/-1, .owner_cpu: 0
CPU: 0 PID: 77 Comm: widgetd Not tainted 6.1.0 #1
Call Trace:
 dump_stack+0x1/0x2
 do_raw_spin_lock+0x1/0x2
 _raw_spin_lock+0x1/0x2
 widget_close+0x1/0x20
"""

HARD_LOCKUP = """\
NMI watchdog: Watchdog detected hard LOCKUP on cpu 1
Modules linked in:
CPU: 1 PID: 77 Comm: widgetd Not tainted 6.1.0 #1
RIP: 0010:native_queued_spin_lock_slowpath+0x1/0x2
Call Trace:
 <TASK>
 _raw_spin_lock+0x1/0x2
 widget_poll+0x1/0x20
 do_syscall_64+0x1/0x2
"""

I386 = """\
BUG: unable to handle kernel NULL pointer dereference at 00000004
IP: widget_read+0x1/0x20
*pde = 00000000
Oops: 0000 [#1] SMP
Modules linked in:
CPU: 0 PID: 77 Comm: widgetd Not tainted 4.9.0 #1
task: f5a0 task.stack: f5b0
EIP: widget_read+0x1/0x20
EFLAGS: 00010246 CPU: 0
EAX: 00000000 EBX: f5a00000 ECX: 00000001 EDX: 00000000
ESI: 00000000 EDI: 00000000 EBP: f5b01f00 ESP: f5b01ef0
Call Trace:
 vfs_read+0x1/0x20
 SyS_read+0x1/0x20
"""

MIPS = """\
CPU 0 Unable to handle kernel paging request at virtual address 00000004, epc == 80123456, ra == 80123400
Oops[#1]:
CPU: 0 PID: 77 Comm: widgetd Not tainted 4.9.0 #1
$ 0   : 00000000 00000001 00000000 00000000
epc   : 80123456 widget_read+0x1/0x20
ra    : 80123400 vfs_read+0x1/0x20
Call Trace:
[<80123456>] widget_read+0x1/0x20
[<80123400>] vfs_read+0x1/0x20
"""

KFENCE = """\
==================================================================
BUG: KFENCE: use-after-free write in widget_set+0x1/0x20

Use-after-free write at 0xffff8c2aae240000 (in kfence-#31):
 widget_set+0x1/0x20
 bar+0x1/0x20

kfence-#31: 0xffff8c2aae240000-0xffff8c2aae24001f, size=32, cache=kmalloc-32

allocated by task 114 on cpu 1 at 3.2s:
 widget_alloc+0x1/0x20

freed by task 114 on cpu 1 at 3.2s:
 widget_free+0x1/0x20

CPU: 5 PID: 114 Comm: k Not tainted 6.1.0 #1
==================================================================
"""

INIT_DIED = """\
Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b
CPU: 0 PID: 1 Comm: init Not tainted 6.1.0 #1
Call Trace:
 dump_stack+0x1/0x2
 panic+0x1/0x2
 do_exit+0x1/0x20
---[ end Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b ]---
"""


UBSAN_TRAP = """\
Internal error: UBSAN: shift out of bounds: 00000000f2005514 [#1] SMP
Modules linked in:
CPU: 0 UID: 0 PID: 77 Comm: widgetd Not tainted 6.12.0 #1
pstate: 60400005 (nZCv daif +PAN -UAO -TCO -DIT -SSBS BTYPE=--)
pc : widget_set+0x1/0x20
lr : widget_ioctl+0x1/0x20
Call trace:
 widget_set+0x1/0x20
 widget_ioctl+0x1/0x20
"""


@pytest.mark.parametrize(
    ("text", "kind", "variant", "function"),
    [
        (KOBJECT, Kind.WARNING, "", "widget_add"),
        (DOUBLE_FREE, Kind.KASAN, "double-free", "widget_free"),
        (DATA_RACE, Kind.KCSAN, "data-race", "widget_read"),
        (BAD_PAGE, Kind.BAD_PAGE, "page state", "widget_release"),
        (WORKQUEUE, Kind.WORKQUEUE_LOCKUP, "", ""),
        (USERCOPY, Kind.USERCOPY, "", "widget_ioctl"),
        (IRQ_INVERSION, Kind.DEADLOCK, "irq inversion", "widget_irq"),
        (LOCK_HELD, Kind.LOCK_USAGE, "lock held", "widget_open"),
        (SPINLOCK, Kind.SPINLOCK, "bad magic", "widget_close"),
        (HARD_LOCKUP, Kind.HARD_LOCKUP, "", "widget_poll"),
        (I386, Kind.NULL_DEREFERENCE, "", "widget_read"),
        (MIPS, Kind.PAGING_REQUEST, "", "widget_read"),
        (KFENCE, Kind.KFENCE, "use-after-free write", "widget_set"),
        (INIT_DIED, Kind.INIT_DIED, "", "do_exit"),
        (UBSAN_TRAP, Kind.UBSAN, "shift-out-of-bounds", "widget_set"),
    ],
)
@pytest.mark.parametrize("caller", ["", "T77"])
def test_kind_variant_and_function(text: str, kind: Kind, variant: str, function: str, caller: str) -> None:
    (report,) = find_reports(stamped(text, caller).encode())
    assert (report.kind, report.variant, report.function) == (kind, variant, function)
    assert not report.damage


@pytest.mark.parametrize("caller", ["", "T77"])
def test_what_never_has_a_trace_is_whole_before_another_report(caller: str) -> None:
    first, second = find_reports(stamped(LOCK_HELD + SPINLOCK, caller).encode())
    assert (first.kind, first.damage) == (Kind.LOCK_USAGE, ())
    assert (second.kind, second.damage) == (Kind.SPINLOCK, ())
