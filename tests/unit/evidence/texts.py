"""Reports in the formats of several kernels and architectures, written for the tests."""

from __future__ import annotations

__all__ = [
    "ARM",
    "ARM64",
    "DEADLOCK",
    "HUNG",
    "KASAN",
    "PAGE_FAULT",
    "PPC64",
    "RCU",
    "RISCV",
    "S390",
    "WARNING",
    "stamped",
]

PAGE_FAULT = """\
BUG: kernel NULL pointer dereference, address: 0000000000000018
#PF: supervisor write access in kernel mode
#PF: error_code(0x0002) - not-present page
PGD 0 P4D 0
Oops: Oops: 0002 [#1] PREEMPT SMP NOPTI
CPU: 3 UID: 0 PID: 812 Comm: modprobe Tainted: G        W  OE      6.12.1-test #7 PREEMPT(voluntary)
Tainted: [W]=WARN, [O]=OOT_MODULE, [E]=UNSIGNED_MODULE
Hardware name: Example Board/X1, BIOS 1.2 03/04/2025
RIP: 0010:widget_attach+0x2b/0x90 [widget]
Code: 48 89 fb e8 00 00 00 00 48 8b 07 <c7> 40 18 01 00 00 00 5b c3
RSP: 0018:ffffc90000a3bd10 EFLAGS: 00010246
RAX: 0000000000000000 RBX: ffff888104a5c000 RCX: 0000000000000001
RDX: 0000000000000002 RSI: ffffffff82a01234 RDI: ffff888104a5c000
R13: ffff888101234000 R14: 0000000000000000 R15: ffffc90000a3be40
FS:  00007f1d2c0a1740(0000) GS:ffff88813bd80000(0000) knlGS:0000000000000000
CS:  0010 DS: 0000 ES: 0000 CR0: 0000000080050033
CR2: 0000000000000018 CR3: 0000000103f6a000 CR4: 0000000000750ef0
Call Trace:
 <TASK>
 ? __die_body.cold+0x19/0x27
 ? page_fault_oops+0x15a/0x2f0
 ? exc_page_fault+0x7e/0x180
 widget_probe+0x44/0x70 [widget]
 ? __pfx_widget_probe+0x10/0x10 [widget]
 really_probe+0xde/0x340
 driver_attach+0x1e/0x30
 do_one_initcall+0x5b/0x310
 __do_sys_finit_module+0x20a/0x350
 do_syscall_64+0x82/0x190
 entry_SYSCALL_64_after_hwframe+0x76/0x7e
RIP: 0033:0x7f1d2bd1aa29
Code: ff c3 66 2e 0f 1f 84 00 00 00 00 00 0f 1f 44 00 00 48 89 f8 <48> 3d 01 f0 ff ff
RSP: 002b:00007ffc3c6a0a58 EFLAGS: 00000246 ORIG_RAX: 0000000000000139
RAX: ffffffffffffffda RBX: 000055d7c0d5ed10 RCX: 00007f1d2bd1aa29
 </TASK>
Modules linked in: widget(OE+) e1000 [last unloaded: gadget]
CR2: 0000000000000018
---[ end trace 0000000000000000 ]---
RIP: 0010:widget_attach+0x2b/0x90 [widget]
Kernel panic - not syncing: Fatal exception
Kernel Offset: 0x1c000000 from 0xffffffff81000000 (relocation range: 0xffffffff80000000-0xffffffffbfffffff)
---[ end Kernel panic - not syncing: Fatal exception ]---
"""

KASAN = """\
==================================================================
BUG: KASAN: slab-use-after-free in memcpy+0x24/0x60
Read of size 16 at addr ffff88810a3c4e08 by task kworker/u8:2/77

CPU: 1 UID: 0 PID: 77 Comm: kworker/u8:2 Not tainted 6.9.0 #1
Hardware name: Example Board
Workqueue: widget_wq widget_flush
Call Trace:
 <TASK>
 dump_stack_lvl+0x68/0x90
 print_report+0xcf/0x630
 kasan_report+0xb9/0xf0
 memcpy+0x24/0x60
 widget_flush+0x1b0/0x240
 process_one_work+0x5a1/0xaf0
 worker_thread+0x3f6/0x650
 kthread+0x1b2/0x1f0
 ret_from_fork+0x34/0x60
 </TASK>

Allocated by task 70:
 kasan_save_stack+0x33/0x60
 widget_open+0x71/0x100

Freed by task 71:
 kasan_save_stack+0x33/0x60
 kfree+0xb7/0x140
 widget_close+0x55/0x90

The buggy address belongs to the object at ffff88810a3c4e00
 which belongs to the cache kmalloc-64 of size 64
==================================================================
"""

WARNING = """\
------------[ cut here ]------------
widget 3: 5 users left
WARNING: CPU: 0 PID: 41 at drivers/misc/widget.c:120 widget_release+0x5c/0x80
Modules linked in:
CPU: 0 PID: 41 Comm: rmmod Not tainted 5.15.0 #1
RIP: 0010:widget_release+0x5c/0x80
Call Trace:
 <TASK>
 widget_exit+0x10/0x20
 __x64_sys_delete_module+0x1a0/0x2b0
 do_syscall_64+0x3b/0x90
 entry_SYSCALL_64_after_hwframe+0x61/0xcb
 </TASK>
---[ end trace 5d2c3e1f0a9b8c7d ]---
"""

HUNG = """\
INFO: task mount.widget:4411 blocked for more than 122 seconds.
      Not tainted 6.1.0 #1
"echo 0 > /proc/sys/kernel/hung_task_timeout_secs" disables this message.
task:mount.widget    state:D stack:    0 pid: 4411 ppid:  4400 flags:0x00004002
Call Trace:
 <TASK>
 __schedule+0x351/0xa20
 schedule+0x5d/0xe0
 rwsem_down_write_slowpath+0x21e/0x6d0
 down_write+0x5b/0x60
 widget_fill_super+0x77/0x1c0
 get_tree_bdev+0x18c/0x260
 </TASK>
"""

RCU = """\
rcu: INFO: rcu_preempt self-detected stall on CPU
rcu: \t1-....: (26000 ticks this GP) idle=3d4c/1/0x4000000000000000 softirq=712/712 fqs=6500
\t(t=26001 jiffies g=1101 q=512 ncpus=2)
CPU: 1 PID: 199 Comm: widgetd Not tainted 6.1.0 #1
RIP: 0010:delay_tsc+0x2c/0x60
Call Trace:
 <TASK>
 widget_poll_all+0x30/0x90
 widget_write+0x11/0x40
 vfs_write+0xc9/0x3b0
 ksys_write+0x68/0xe0
 do_syscall_64+0x3b/0x90
 </TASK>
"""

DEADLOCK = """\
======================================================
WARNING: possible circular locking dependency detected
6.1.0 #1 Not tainted
------------------------------------------------------
widgetd/77 is trying to acquire lock:
ffff888103f01c58 (&widget->lock){+.+.}-{3:3}, at: widget_ioctl+0x41/0x200

but task is already holding lock:
ffffffff82e3c1a8 (registry_mutex){+.+.}-{3:3}, at: registry_walk+0x22/0x90

which lock already depends on the new lock.

the existing dependency chain (in reverse order) is:

-> #1 (registry_mutex){+.+.}-{3:3}:
       __mutex_lock+0x9a/0xd60
       registry_add+0x1f/0x60

-> #0 (&widget->lock){+.+.}-{3:3}:
       __lock_acquire+0x1315/0x2440
       widget_ioctl+0x41/0x200

stack backtrace:
CPU: 0 PID: 77 Comm: widgetd Not tainted 6.1.0 #1
Call Trace:
 <TASK>
 dump_stack_lvl+0x5b/0x77
 check_noncircular+0xf2/0x110
 __mutex_lock+0x9a/0xd60
 widget_ioctl+0x41/0x200
 registry_walk+0x50/0x90
 </TASK>
"""

ARM64 = """\
Unable to handle kernel paging request at virtual address ffff00010badcafe
Mem abort info:
  ESR = 0x0000000096000047
  EC = 0x25: DABT (current EL), IL = 32 bits
  CM = 0, WnR = 1, TnD = 0, TagAccess = 0
Internal error: Oops: 0000000096000047 [#1] SMP
Modules linked in: widget(O)
CPU: 2 PID: 300 Comm: insmod Tainted: G           O       6.1.0 #1
Hardware name: linux,dummy-virt (DT)
pstate: 60000005 (nZCv daif -PAN -UAO -TCO -DIT -SSBS BTYPE=--)
pc : widget_poke+0x18/0x30 [widget]
lr : widget_init+0x24/0x1000 [widget]
sp : ffff80000b7abae0
x29: ffff80000b7abae0 x28: 0000000000000013 x27: 0000000000000000
x2 : 0000000000000000 x1 : ffff00010badcafe x0 : 0000000000000001
Call trace:
 widget_poke+0x18/0x30 [widget]
 widget_init+0x24/0x1000 [widget]
 do_one_initcall+0x50/0x1d0
 el0_svc+0x2c/0x84
Code: d2800000 f2a00021 aa0103e2 d503201f (b9000041)
---[ end trace 0000000000000000 ]---
"""

ARM = """\
Unable to handle kernel NULL pointer dereference at virtual address 00000004
pgd = c0004000
[00000004] *pgd=00000000
Internal error: Oops: 805 [#1] SMP ARM
Modules linked in:
CPU: 0 PID: 77 Comm: sh Not tainted 4.19.0 #1
Hardware name: Generic DT based system
PC is at widget_store+0x14/0x28
LR is at kernfs_fop_write+0x110/0x1f0
pc : [<c06a1b2c>]    lr : [<c0301e20>]    psr: 60000013
sp : ee0c1ee8  ip : 00000000  fp : ee0c1efc
r10: 00000000  r9 : ee0c0000  r8 : 00000000
r3 : 00000000  r2 : 00000001  r1 : ee1f2000  r0 : 00000004
Process sh (pid: 77, stack limit = 0xee0c0210)
[<c06a1b2c>] (widget_store) from [<c0301e20>] (kernfs_fop_write+0x110/0x1f0)
[<c0301e20>] (kernfs_fop_write) from [<c0281a90>] (__vfs_write+0x28/0x150)
Code: e3a03000 e5801004 e12fff1e e1a0c00d (e5832004)
"""

RISCV = """\
Unable to handle kernel access to user memory without uaccess routines at virtual address 0000000000000010
Oops [#1]
Modules linked in:
CPU: 1 PID: 65 Comm: cat Not tainted 6.6.0 #1
epc : widget_show+0x12/0x30
 ra : dev_attr_show+0x1e/0x40
epc : ffffffff80561a3a ra : ffffffff804d8f2e sp : ffffffc8006b3c80
 gp : ffffffff81510f80 tp : ffffffd8012a0000 t0 : ffffffff80561a28
 s11: 0000000000000000 t3 : 0000000000000000 t4 : 0000000000000000
status: 0000000200000120 badaddr: 0000000000000010 cause: 000000000000000d
[<ffffffff80561a3a>] widget_show+0x12/0x30
[<ffffffff8022c1ae>] sysfs_kf_seq_show+0x82/0xd0
---[ end trace 0000000000000000 ]---
"""

PPC64 = """\
BUG: Kernel NULL pointer dereference on read at 0x00000008
Faulting instruction address: 0xc0000000007d1234
Oops: Kernel access of bad area, sig: 11 [#1]
LE PAGE_SIZE=64K MMU=Radix SMP NR_CPUS=2048 NUMA pSeries
Modules linked in:
CPU: 5 PID: 901 Comm: sh Not tainted 6.1.0 #1
NIP:  c0000000007d1234 LR: c0000000007d1200 CTR: c0000000007d11f0
GPR00: c0000000007d1200 c00000000b1a7a20 c000000002a4bf00 0000000000000000
NIP [c0000000007d1234] widget_show+0x44/0x80
LR [c0000000007d1200] widget_show+0x10/0x80
Call Trace:
[c00000000b1a7a20] [c0000000007d1200] widget_show+0x10/0x80 (unreliable)
[c00000000b1a7a90] [c0000000006a2040] sysfs_kf_seq_show+0xd0/0x1a0
[c00000000b1a7b20] [c0000000006a0d3c] kernfs_seq_show+0x44/0x60
"""

S390 = """\
Unable to handle kernel pointer dereference in virtual kernel address space
Failing address: 0000000000000000 TEID: 0000000000000483
Fault in home space mode while using kernel ASCE.
Oops: 0004 ilc:3 [#1] SMP
Modules linked in:
CPU: 0 PID: 1200 Comm: bash Not tainted 6.1.0 #1
Hardware name: IBM 8561 T01 701 (KVM/Linux)
Krnl PSW : 0704c00180000000 000000000012f8c4 (widget_store+0x14/0x30)
Krnl GPRS: 0000000000000000 0000000000000001 0000000000000000 00000000e1a2b300
Call Trace:
 [<000000000012f8c4>] widget_store+0x14/0x30
([<000000000012f8b0>] widget_store+0x0/0x30)
 [<00000000004a1b2e>] kernfs_fop_write_iter+0x13e/0x1e0
Last Breaking-Event-Address:
 [<00000000004a1b28>] kernfs_fop_write_iter+0x138/0x1e0
"""


def stamped(text: str, caller: str = "", start_s: float = 12.5) -> str:
    """Put the kernel's time, and a caller where asked, before every line."""
    middle = f"[{caller:>6}]" if caller else ""
    lines = text.splitlines()
    return "".join(f"[{start_s + number / 1000:12.6f}]{middle} {line}\n" for number, line in enumerate(lines))
