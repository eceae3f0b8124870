"""Kinds that are seldom seen, and other architectures' ways of saying them: by the kernel's format strings."""

from __future__ import annotations

import pytest

from postpanic.evidence.oops import Kind, find_reports
from tests.unit.evidence.texts import stamped

LINES = [
    # arch/x86
    ("BUG: kernel NULL pointer dereference, address: 0000000000000008", Kind.NULL_DEREFERENCE),
    ("BUG: unable to handle page fault for address: ffffc90000a3b000", Kind.PAGING_REQUEST),
    ("BUG: unable to handle kernel paging request at ffffc90000a3b000", Kind.PAGING_REQUEST),
    ("Oops: general protection fault, probably for non-canonical address 0xdffffc0000000000: 0000 [#1] SMP",
     Kind.GENERAL_PROTECTION),
    ("general protection fault: 0000 [#1] SMP", Kind.GENERAL_PROTECTION),
    ("stack segment: 0000 [#1] SMP", Kind.STACK_SEGMENT),
    ("Oops: divide error: 0000 [#1] SMP", Kind.DIVIDE_ERROR),
    ("invalid opcode: 0000 [#1] SMP", Kind.INVALID_OPCODE),
    ("Oops: int3: 0000 [#1] SMP", Kind.INT3),
    ("alignment check: 0000 [#1] SMP", Kind.TRAP),
    ("Oops: control protection: 0000 [#1] SMP", Kind.TRAP),
    ("Bad pagetable: 000f [#1] SMP", Kind.TRAP),
    ("Split lock detected: 0000 [#1] SMP", Kind.TRAP),
    ("traps: PANIC: double fault, error_code: 0x0", Kind.DOUBLE_FAULT),
    ("PANIC: early exception 0x0e IP 10:ffffffff81000000 error 0 cr2 0x10", Kind.TRAP),
    ("BUG: TASK stack guard page was hit at ffffc90000a3b000 (stack is ffffc90000a3c000..ffffc90000a3ffff)",
     Kind.STACK_OVERFLOW),
    # arch/arm64, arm
    ("Unable to handle kernel NULL pointer dereference at virtual address 0000000000000010", Kind.NULL_DEREFERENCE),
    ("Unable to handle kernel access to user memory outside uaccess routines at virtual address 0000ffff12345678",
     Kind.PAGING_REQUEST),
    ("Unable to handle kernel execution of user memory at virtual address 0000ffff12345678", Kind.PAGING_REQUEST),
    ("Internal error: synchronous external abort: 0000000096000410 [#1] SMP", Kind.INTERNAL_ERROR),
    ("Internal error: Oops - undefined instruction: 0 [#1] SMP ARM", Kind.INTERNAL_ERROR),
    ("Internal error: UBSAN: array index out of bounds: 00000000f2005512 [#1] SMP", Kind.UBSAN),
    ("Unhandled fault: external abort on non-linefetch (0x008) at 0xf0890000", Kind.UNHANDLED_FAULT),
    ("Unhandled fault at 0xffff800012345678", Kind.UNHANDLED_FAULT),
    ("SError Interrupt on CPU0, code 0x00000000be000000 -- SError", Kind.SERROR),
    ("Bad mode in Synchronous Abort handler detected on CPU0, code 0x8600000f -- IABT", Kind.BAD_MODE),
    ("Unhandled 64-bit el1h sync exception on CPU0, ESR 0x000000002000000 -- Unknown", Kind.BAD_MODE),
    ("Insufficient stack space to handle exception!", Kind.STACK_OVERFLOW),
    # arch/powerpc
    ("BUG: Kernel NULL pointer dereference on read at 0x00000010", Kind.NULL_DEREFERENCE),
    ("BUG: Unable to handle kernel data access on write at 0xc00800000000", Kind.PAGING_REQUEST),
    ("Oops: Kernel access of bad area, sig: 11 [#1]", Kind.OOPS),
    ("Oops: Machine check, sig: 7 [#1]", Kind.MACHINE_CHECK),
    ("Oops: Kernel stack overflow, sig: 11 [#1]", Kind.STACK_OVERFLOW),
    ("Oops: Unrecoverable exception, sig: 6 [#1]", Kind.OOPS),
    ("Kernel stack overflow in process widgetd[77], r1=c00000000b1a7a20", Kind.STACK_OVERFLOW),
    ("watchdog: CPU 3 Hard LOCKUP", Kind.HARD_LOCKUP),
    ("watchdog: CPU 3 self-detected hard LOCKUP @ widget_poll+0x10/0x20", Kind.HARD_LOCKUP),
    ("watchdog: CPU 2 detected hard LOCKUP on other CPUs 5", Kind.HARD_LOCKUP),
    # arch/s390
    ("Unable to handle kernel pointer dereference in virtual kernel address space", Kind.PAGING_REQUEST),
    ("Oops: 0004 ilc:2 [#1] SMP", Kind.OOPS),
    ("illegal operation: 0001 ilc:1 [#1] SMP", Kind.INVALID_OPCODE),
    ("monitor event: 0040 ilc:2 [#1] SMP", Kind.KERNEL_BUG),
    ("specification exception: 0006 ilc:3 [#1] SMP", Kind.TRAP),
    ("fixpoint divide exception: 0009 ilc:2 [#1] SMP", Kind.DIVIDE_ERROR),
    ("Kernel stack overflow.", Kind.STACK_OVERFLOW),
    # arch/mips, loongarch, riscv
    (("CPU 1 Unable to handle kernel paging request at virtual address 0000000000000008, era == 9000000002c4,"
     " ra == 9000000002c0"), Kind.PAGING_REQUEST),
    ("Reserved instruction in kernel code[#1]:", Kind.INVALID_OPCODE),
    ("Kernel bug detected[#1]:", Kind.KERNEL_BUG),
    ("Kernel ale access[#1]:", Kind.ALIGNMENT),
    ("Oops - illegal instruction [#1]", Kind.INVALID_OPCODE),
    ("Oops - load address misaligned [#1]", Kind.ALIGNMENT),
    ("Kernel BUG [#1]", Kind.KERNEL_BUG),
    # assertions
    ("kernel BUG at mm/slub.c:4312!", Kind.KERNEL_BUG),
    ("Kernel BUG at widget_attach+0x10/0x20 [verbose debug info unavailable]", Kind.KERNEL_BUG),
    ("CFI failure at widget_call+0x10/0x20 [widget] (target: other+0x0/0x10; expected type: 0x12345678)", Kind.CFI),
    ("WARNING: fs/widget.c:1058 at widget_attach+0x10/0x20, CPU#0: widgetd/77", Kind.WARNING),
    ("LustreError: 1234:0:(llite_lib.c:12:ll_put_super()) LBUG", Kind.BUG),
    ("PANIC at zfs_znode.c:123:zfs_znode_dmu_fini()", Kind.BUG),
    # hangs
    ("watchdog: BUG: soft lockup - CPU#3 stuck for 26s! [widgetd:77]", Kind.SOFT_LOCKUP),
    ("NMI watchdog: Watchdog detected hard LOCKUP on cpu 3", Kind.HARD_LOCKUP),
    ("watchdog: Watchdog detected hard LOCKUP on cpu 3", Kind.HARD_LOCKUP),
    ("INFO: rcu_tasks detected stalls on tasks:", Kind.RCU_STALL),
    ("rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 1-... } 12 jiffies s: 5 root: 0x2/.",
     Kind.RCU_STALL),
    ("INFO: task widgetd:77 blocked in I/O wait for more than 143 seconds.", Kind.HUNG_TASK),
    ("smp: csd: Detected non-responsive CSD lock (#1) on CPU#0, waiting 5000000000 ns for CPU#01 f+0x0/0x10(0x0).",
     Kind.CSD_LOCK),
    # locks
    ("WARNING: possible recursive locking detected", Kind.DEADLOCK),
    ("WARNING: HARDIRQ-safe -> HARDIRQ-unsafe lock order detected", Kind.DEADLOCK),
    ("WARNING: circular locking deadlock detected!", Kind.DEADLOCK),
    ("BUG: sleeping function called from invalid context at mm/slab.h:413", Kind.ATOMIC_SLEEP),
    ("BUG: scheduling while atomic: widgetd/77/0x00000002", Kind.ATOMIC_SLEEP),
    ("BUG: using __this_cpu_add() in preemptible [00000000] code: widgetd/77", Kind.PREEMPTION),
    ("BUG: rwlock cpu recursion on CPU#1, widgetd/77, ffff888012345678", Kind.SPINLOCK),
    # memory
    ("BUG kmalloc-64 (Tainted: G    B             ): Poison overwritten", Kind.SLAB),
    ("BUG: Bad rss-counter state mm:ffff888012345678 type:MM_FILEPAGES val:1", Kind.BAD_PAGE),
    # panics
    ("Kernel panic - not syncing: Fatal machine check", Kind.MACHINE_CHECK),
    ("Kernel panic - not syncing: Timeout: Not all CPUs entered broadcast exception handler", Kind.MACHINE_CHECK),
    ("Kernel panic - not syncing: Fatal hardware error!", Kind.HARDWARE_ERROR),
    ("Kernel panic - not syncing: UE row 0, channel-a= 1 EDAC MC0", Kind.HARDWARE_ERROR),
    ("Kernel panic - not syncing: NMI: Not continuing", Kind.NMI),
    ("Kernel panic - not syncing: Out of memory: compulsory panic_on_oom is enabled", Kind.OUT_OF_MEMORY),
    ("Kernel panic - not syncing: System is deadlocked on memory", Kind.OUT_OF_MEMORY),
    ("Kernel panic - not syncing: Hard LOCKUP", Kind.HARD_LOCKUP),
    ("Kernel panic - not syncing: softlockup: hung tasks", Kind.SOFT_LOCKUP),
    ("Kernel panic - not syncing: hung_task: blocked tasks", Kind.HUNG_TASK),
    ("Kernel panic - not syncing: RCU Stall", Kind.RCU_STALL),
    ("Kernel panic - not syncing: Asynchronous SError Interrupt", Kind.SERROR),
    ("Kernel panic - not syncing: stack-protector: Kernel stack is corrupted in: widget_attach+0x10/0x20",
     Kind.STACK_PROTECTOR),
    ("Kernel panic - not syncing: corrupted stack end detected inside scheduler", Kind.STACK_OVERFLOW),
    ("Kernel panic - not syncing: Corrupt kernel stack, can't continue.", Kind.STACK_OVERFLOW),
    ("Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)", Kind.NO_ROOT),
    ("Kernel panic - not syncing: Requested init /sbin/widget failed (error -2).", Kind.NO_ROOT),
    ("Kernel panic - not syncing: No working init found.", Kind.NO_ROOT),
    ("Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b", Kind.INIT_DIED),
    ("Kernel panic - not syncing: EXT4-fs (device sda1): panic forced after error", Kind.PANIC),
    ("Kernel panic - not syncing: sysrq triggered crash", Kind.SYSRQ),
]  # fmt: skip

NOTICES = [
    ("mce: [Hardware Error]: CPU 0: Machine Check Exception: 5 Bank 0: b200000000070005", Kind.MACHINE_CHECK),
    ("MCE: CPU3: machine check (Warning) Host UE Load/Store DAR: 00007fff12345678 [Recovered]", Kind.MACHINE_CHECK),
    ("{1}[Hardware Error]: Hardware error from APEI Generic Hardware Error Source: 0", Kind.HARDWARE_ERROR),
    (
        "pcieport 0000:00:1c.0: PCIe Bus Error: severity=Uncorrected (Fatal), type=Transaction Layer",
        Kind.HARDWARE_ERROR,
    ),
    ("EEH: Frozen PHB#4-PE#10000 detected", Kind.HARDWARE_ERROR),
    ("EDAC MC0: 1 UE memory read error on CPU_SrcID#0_Ha#0_Chan#0_DIMM#0", Kind.HARDWARE_ERROR),
    ("Out of memory: Killed process 77 (widgetd) total-vm:1kB, anon-rss:1kB", Kind.OUT_OF_MEMORY),
    ("widgetd: page allocation failure: order:4, mode:0xcc0(GFP_KERNEL), nodemask=(null)", Kind.ALLOCATION_FAILURE),
    ("Uhhuh. NMI received for unknown reason 3d on CPU 0.", Kind.NMI),
]

QUIET = [
    "traps: widgetd[77] general protection fault ip:55d1 sp:7ffc error:0 in widgetd[55d1+1000]",
    "INFO: NMI handler (perf_event_nmi_handler) took too long to run: 1.2 msecs",
    "INFO: lockdep is turned off.",
    "rcu: INFO: Stall ended before state dump start",
    "WARNING: Underflow in clocksource 'tsc' observed, time update ignored.",
    "WARNING: CPU does not support IBPB.",
    "EDAC MC0: 1 CE memory read error on CPU_SrcID#0_Ha#0_Chan#0_DIMM#0",
    "XFS (sda1): WARNING: Reset corrupted AGFL on AG 0.",
    "EXT4-fs warning (device sda1): ext4_clear_journal_err:4683: Filesystem error recorded",
    "kernel BUG at last: the film",
    "systemd[1]: Machine check of all units done",
    "audit: type=1400 [#1] a rule",
    "Hardware name: BUG Labs",
]


@pytest.mark.parametrize(("line", "kind"), LINES)
@pytest.mark.parametrize("caller", ["", "C3"])
def test_first_line_tells_the_kind(line: str, kind: Kind, caller: str) -> None:
    (report,) = find_reports(stamped(line + "\n", caller).encode())
    assert report.kind is kind
    assert not report.is_notice


@pytest.mark.parametrize(("line", "kind"), NOTICES)
def test_what_the_kernel_survives_is_a_notice(line: str, kind: Kind) -> None:
    assert find_reports(stamped(line + "\n").encode()) == []
    (report,) = find_reports(stamped(line + "\n").encode(), with_notices=True)
    assert (report.kind, report.is_notice) == (kind, True)


@pytest.mark.parametrize("line", QUIET)
def test_what_only_sounds_like_it_is_no_report(line: str) -> None:
    assert find_reports(stamped(line + "\n").encode(), with_notices=True) == []


def test_task_is_told_apart_from_the_count_behind_it() -> None:
    (report,) = find_reports(b"BUG: scheduling while atomic: kworker/0:1/77/0x00000002\n")
    assert (report.comm, report.pid) == ("kworker/0:1", 77)


S390 = """\
kernel BUG at fs/widget.c:77!
monitor event: 0040 ilc:2 [#1] SMP
Modules linked in: widget
CPU: 1 PID: 77 Comm: widgetd Not tainted 6.1.0 #1
Hardware name: IBM 3931 A01 704 (KVM/Linux)
Krnl PSW : 0704c00180000000 000003ff80123456 (widget_attach+0x44/0x80 [widget])
           R:0 T:1 IO:1 EX:1 Key:0 M:1 W:0 P:0 AS:3 CC:0 PM:0 RI:0 EA:3
Krnl GPRS: 0000000000000001 0000000000000002 0000000000000003 0000000000000004
           0000000000000005 0000000000000006 0000000000000007 0000000000000008
Call Trace:
 [<000003ff80123456>] widget_attach+0x44/0x80 [widget]
([<000003ff80123400>] widget_probe+0x10/0x20 [widget])
 [<0000000000123456>] really_probe+0x10/0x20
 [<0000000000aaaaaa>] __do_syscall+0x10/0x20
 [<0000000000bbbbbb>] system_call+0x10/0x20
Last Breaking-Event-Address:
 [<000003ff80123440>] widget_attach+0x20/0x80 [widget]
Kernel panic - not syncing: Fatal exception: panic_on_oops
"""
LOONGARCH = """\
CPU 1 Unable to handle kernel paging request at virtual address 0000000000000008, era == 90000000002c4, ra == 90000
Oops[#1]:
CPU: 1 UID: 0 PID: 77 Comm: widgetd Not tainted 6.12.0 #1
pc ffff800002101234 ra ffff800002101200 tp 9000000104a5c000 sp 9000000104a5fd10
   ra: ffff800002101200 widget_probe+0x20/0x40 [widget]
  ERA: ffff800002101234 widget_attach+0x14/0x80 [widget]
Call Trace:
[<ffff800002101234>] widget_attach+0x14/0x80 [widget]
[<ffff800002101200>] widget_probe+0x20/0x40 [widget]
[<90000000012c4a00>] do_syscall+0x8c/0xc0
[<9000000000221234>] handle_syscall+0xc4/0x160
---[ end trace 0000000000000000 ]---
"""
RISCV_BUG = """\
------------[ cut here ]------------
kernel BUG at fs/widget.c:77!
Kernel BUG [#1]
Modules linked in: widget
CPU: 1 PID: 77 Comm: widgetd Not tainted 6.6.0 #1
epc : widget_attach+0x14/0x80 [widget]
 ra : widget_probe+0x20/0x40 [widget]
epc : ffffffff02101234 ra : ffffffff02101200 sp : ff20000000a3bd10
status: 0000000200000120 badaddr: 0000000000000000 cause: 0000000000000003
[<ffffffff02101234>] widget_attach+0x14/0x80 [widget]
[<ffffffff02101200>] widget_probe+0x20/0x40 [widget]
[<ffffffff80a01234>] do_trap_ecall_u+0xd8/0x1d0
[<ffffffff80a0c234>] ret_from_exception+0x0/0x64
---[ end trace 0000000000000000 ]---
"""
PPC_BUG = """\
------------[ cut here ]------------
kernel BUG at fs/widget.c:77!
Oops: Exception in kernel mode, sig: 5 [#1]
LE PAGE_SIZE=64K MMU=Radix SMP NR_CPUS=2048 NUMA pSeries
Modules linked in: widget
CPU: 1 PID: 77 Comm: widgetd Not tainted 6.6.0 #1
NIP:  c0080000007d1234 LR: c0080000007d1200 CTR: 0000000000000000
NIP [c0080000007d1234] widget_attach+0x44/0x80 [widget]
LR [c0080000007d1200] widget_probe+0x10/0x80 [widget]
Call Trace:
[c00000000b1a7a20] [c0080000007d1200] widget_probe+0x10/0x80 [widget]
[c00000000b1a7a90] [c0000000000331d0] system_call_exception+0x150/0x320
[c00000000b1a7e10] [c00000000000d65c] system_call_vectored_common+0x15c/0x2ec
---[ end trace 0000000000000000 ]---
"""
ARM_BUG = """\
------------[ cut here ]------------
kernel BUG at fs/widget.c:77!
Internal error: Oops - BUG: 0 [#1] PREEMPT SMP ARM
Modules linked in: widget
CPU: 1 PID: 77 Comm: widgetd Not tainted 6.6.0 #1
Hardware name: Example Board
PC is at widget_attach+0x14/0x80 [widget]
LR is at widget_probe+0x20/0x40 [widget]
Process widgetd (pid: 77, stack limit = 0x12345678)
 widget_attach [widget] from widget_probe+0x20/0x40 [widget]
 widget_probe [widget] from ret_fast_syscall+0x0/0x54
---[ end trace 0000000000000000 ]---
"""


@pytest.mark.parametrize(
    ("text", "kind", "architecture"),
    [
        (S390, Kind.KERNEL_BUG, "s390x"),
        (LOONGARCH, Kind.PAGING_REQUEST, "loongarch64"),
        (RISCV_BUG, Kind.KERNEL_BUG, "riscv64"),
        (PPC_BUG, Kind.KERNEL_BUG, "ppc64"),
        (ARM_BUG, Kind.KERNEL_BUG, "arm"),
    ],
)
@pytest.mark.parametrize("caller", ["", "T77"])
def test_other_architectures_name_the_function(text: str, kind: Kind, architecture: str, caller: str) -> None:
    (report,) = find_reports(stamped(text, caller).encode())
    assert (report.kind, report.function, report.comm, report.pid) == (kind, "widget_attach", "widgetd", 77)
    assert report.damage == ()
    assert report.architecture == architecture
