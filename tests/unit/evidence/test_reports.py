"""What is read from reports of every kind and architecture."""

from __future__ import annotations

import pytest

from postpanic.evidence.oops import Access, Kind, Report, Section, find_reports
from postpanic.evidence.oops.places import part_of_place
from tests.unit.evidence import texts
from tests.unit.evidence.texts import stamped


def only(text: str) -> Report:
    (report,) = find_reports(text.encode())
    return report


@pytest.mark.parametrize("caller", ["", "T812", "C3"])
def test_page_fault_is_read_whole(caller: str) -> None:
    report = only("[    1.0] usb: noise\n" + stamped(texts.PAGE_FAULT, caller))
    assert (report.kind, report.access, report.address) == (Kind.NULL_DEREFERENCE, Access.WRITE, 0x18)
    assert (report.cpu, report.pid, report.comm) == (3, 812, "modprobe")
    assert (report.release, report.taint) == ("6.12.1-test", "GWOE")
    assert report.hardware == "Example Board/X1, BIOS 1.2 03/04/2025"
    assert report.modules == ("widget(OE+)", "e1000")
    assert report.registers["RBX"] == 0xFFFF888104A5C000
    assert report.registers["CR2"] == 0x18
    assert report.registers["RAX"] == 0, "the registers of the user are not the kernel's"
    assert report.code.endswith("<c7> 40 18 01 00 00 00 5b c3")
    assert report.is_panic
    assert report.panic_message == "Fatal exception"
    assert not report.damage
    assert report.architecture == "x86_64"
    assert [blame.function for blame in report.blame[:2]] == ["widget_attach", "widget_probe"]
    assert report.blame[0].module == "widget"
    (trace,) = report.traces
    assert [frame.function for frame in trace.frames if frame.is_reliable][:3] == [
        "widget_attach",
        "widget_probe",
        "really_probe",
    ]
    assert not next(frame for frame in trace.frames if frame.function == "page_fault_oops").is_reliable
    assert trace.frames[4].context == "TASK"


def test_kasan_tells_access_object_and_who_freed_it() -> None:
    report = only(texts.KASAN)
    assert (report.kind, report.variant) == (Kind.KASAN, "slab-use-after-free")
    assert (report.access, report.size_bytes, report.address) == (Access.READ, 16, 0xFFFF88810A3C4E08)
    assert report.details["cache"] == "kmalloc-64"
    assert report.function == "widget_flush", "memcpy only copies for others"
    assert report.workqueue == "widget_wq widget_flush"
    freed = next(trace for trace in report.traces if trace.section is Section.FREED)
    assert freed.frames[-1].function == "widget_close"
    assert report.title == "KASAN: slab-use-after-free read in widget_flush"


def test_warning_tells_its_place_and_condition() -> None:
    report = only(stamped(texts.WARNING))
    assert (report.kind, report.source) == (Kind.WARNING, "drivers/misc/widget.c:120")
    assert report.condition == "widget 3: 5 users left"
    assert report.function == "widget_release"
    assert not report.is_panic


def test_hung_task_blames_who_asked_to_wait() -> None:
    report = only(stamped(texts.HUNG, "T55"))
    assert (report.kind, report.comm, report.pid) == (Kind.HUNG_TASK, "mount.widget", 4411)
    assert report.function == "widget_fill_super"
    assert report.details["seconds"] == "122"


def test_stall_blames_the_callback_not_the_place_of_the_sample() -> None:
    report = only(stamped(texts.RCU))
    assert (report.kind, report.function) == (Kind.RCU_STALL, "widget_write")


def test_deadlock_blames_who_wants_the_lock() -> None:
    report = only(stamped(texts.DEADLOCK))
    assert (report.kind, report.variant, report.function) == (Kind.DEADLOCK, "circular", "widget_ioctl")
    assert [(lock.name, lock.function, lock.is_wanted) for lock in report.locks[:2]] == [
        ("&widget->lock", "widget_ioctl", True),
        ("registry_mutex", "registry_walk", False),
    ]


def test_registers_of_arm64_are_all_read() -> None:
    report = only(texts.ARM64)
    names = ("pstate", "sp", "x29", "x28", "x27", "x2", "x1", "x0")
    assert tuple(report.registers) == names
    assert (report.registers["x29"], report.registers["x1"]) == (0xFFFF80000B7ABAE0, 0xFFFF00010BADCAFE)


@pytest.mark.parametrize(
    ("text", "architecture", "kind", "access", "functions"),
    [
        (texts.ARM64, "aarch64", Kind.PAGING_REQUEST, Access.WRITE, ["widget_poke", "widget_init"]),
        (texts.ARM, "arm", Kind.NULL_DEREFERENCE, Access.WRITE, ["widget_store", "kernfs_fop_write"]),
        (texts.RISCV, "riscv64", Kind.PAGING_REQUEST, Access.READ, ["widget_show"]),
        (texts.PPC64, "ppc64", Kind.NULL_DEREFERENCE, Access.READ, ["widget_show"]),
        (texts.S390, "s390x", Kind.PAGING_REQUEST, None, ["widget_store", "kernfs_fop_write_iter"]),
    ],
)
def test_every_architecture_is_read(
    text: str, architecture: str, kind: Kind, access: Access | None, functions: list[str]
) -> None:
    for form in (text, stamped(text), stamped(text, "T77")):
        report = only(form)
        assert (report.architecture, report.kind, report.access) == (architecture, kind, access)
        assert [blame.function for blame in report.blame[: len(functions)]] == functions
        assert report.comm
        assert report.registers
        assert not report.damage


MCE = """\
mce: [Hardware Error]: CPU 3: Machine Check Exception: 5 Bank 4: be00000000800400
mce: [Hardware Error]: RIP !INEXACT! 10:<ffffffff8148d1b4> {intel_idle+0x64/0x130}
mce: [Hardware Error]: TSC 1d2b3c4d5e6f ADDR 3fff81234567 MISC 7fff
mce: [Hardware Error]: PROCESSOR 0:406f1 TIME 1700000000 SOCKET 0 APIC 6 microcode b000040
Kernel panic - not syncing: Fatal machine check
"""


def test_machine_check_tells_bank_status_and_address() -> None:
    report = only(stamped(MCE))
    assert (report.kind, report.is_panic, report.is_notice) == (Kind.MACHINE_CHECK, True, False)
    assert (report.details["mce_bank"], report.details["mce_status"]) == ("4", "be00000000800400")
    assert report.details["mce_address"] == "3fff81234567"
    assert report.details["mce_processor"] == "0:406f1"


def test_undefined_behaviour_tells_what_and_where() -> None:
    report = only(
        "UBSAN: shift-out-of-bounds in drivers/misc/widget.c:12:5\nshift exponent -1 is negative\n"
        "CPU: 0 PID: 9 Comm: cat Not tainted 6.1.0 #1\nCall Trace:\n <TASK>\n dump_stack_lvl+0x1/0x2\n"
        " __ubsan_handle_shift_out_of_bounds+0x1/0x2\n widget_shift+0x1/0x20\n widget_write+0x1/0x20\n </TASK>\n"
    )
    assert (report.kind, report.variant) == (Kind.UBSAN, "shift-out-of-bounds")
    assert report.source == "drivers/misc/widget.c:12"
    assert report.details["problem"] == "shift exponent -1 is negative"
    assert report.function == "widget_shift"


def test_sleeping_in_atomic_context_tells_who() -> None:
    report = only(
        "BUG: sleeping function called from invalid context at mm/slab.h:421\n"
        "in_atomic(): 1, irqs_disabled(): 0, non_block: 0, pid: 77, name: widgetd\n"
        "Call Trace:\n dump_stack_lvl+0x1/0x2\n __might_resched+0x1/0x2\n"
        " kmalloc_trace+0x1/0x20\n widget_add+0x1/0x20\n"
    )
    assert (report.kind, report.pid, report.comm) == (Kind.ATOMIC_SLEEP, 77, "widgetd")
    assert report.function == "widget_add"


POWERPC_OLD = """\
Unable to handle kernel paging request for data at address 0x00000008
Faulting instruction address: 0xc0000000007d1234
Oops: Kernel access of bad area, sig: 11 [#1]
SMP NR_CPUS=1024 NUMA pSeries
Modules linked in: ext4
CPU: 5 PID: 901 Comm: sh Not tainted 3.10.0 #1
NIP: c0000000007d1234 LR: c0000000007d1200 CTR: c0000000007d11f0
REGS: c00000000b1a7a20 TRAP: 0300   Not tainted  (3.10.0)
GPR00: c0000000007d1200 c00000000b1a7a20 c000000002a4bf00 0000000000000000
NIP [c0000000007d1234] .widget_show+0x44/0x80
LR [c0000000007d1200] .widget_show+0x10/0x80
Call Trace:
[c00000000b1a7a90] [c0000000006a2040] .sysfs_kf_seq_show+0xd0/0x1a0
Instruction dump:
7fa3eb78 38a00000 38800800 3fe2ffb0 3bff4e00 488818d9 60000000 3d220005
39291df8 78631f48 7d29182a 7fe9fa14 <e87f0b20> 4bff81e9 60000000 60000000
---[ end trace ecc3a76 ]---
"""

X86_OLD = """\
BUG: unable to handle kernel NULL pointer dereference at 0000000000000008
IP: [<ffffffffa0123456>] widget_read+0x16/0x90 [widget]
PGD 1234 PUD 5678 PMD 0
Oops: 0002 [#1] SMP
last sysfs file: /sys/devices/x
CPU 1
Modules linked in: widget(U) ext4
Pid: 2222, comm: cat Tainted: P           ---------------    2.6.32-71.el6.x86_64 #1 HP
RIP: 0010:[<ffffffffa0123456>]  [<ffffffffa0123456>] widget_read+0x16/0x90 [widget]
RSP: 0018:ffff88005062fb48  EFLAGS: 00010206
RAX: 0000000000000000 RBX: ffff88005062fb48 RCX: 0000000000000000
Process cat (pid: 2222, threadinfo ffff880, task ffff88)
Stack:
 ffff88005062fb48 ffffffff81172345
Call Trace:
 [<ffffffff81172345>] vfs_read+0xb5/0x1a0
 [<ffffffff8100b0f2>] system_call_fastpath+0x16/0x1b
Code: 48 89 fb <c7> 40 18
RIP  [<ffffffffa0123456>] widget_read+0x16/0x90 [widget]
 RSP <ffff88005062fb48>
CR2: 0000000000000008
"""


def test_instruction_dump_of_powerpc_is_code() -> None:
    report = only(stamped(POWERPC_OLD))
    assert (report.architecture, report.function) == ("ppc64", "widget_show")
    assert report.code.startswith("7fa3eb78 38a00000")
    assert "<e87f0b20>" in report.code


def test_oops_of_an_old_kernel_is_read() -> None:
    report = only(X86_OLD)
    assert (report.kind, report.access, report.address) == (Kind.NULL_DEREFERENCE, Access.WRITE, 8)
    assert (report.release, report.taint, report.comm, report.pid) == ("2.6.32-71.el6.x86_64", "P", "cat", 2222)
    assert [blame.function for blame in report.blame] == ["widget_read", "vfs_read"]


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("mm/kasan/report.c", "REPORTING"),
        ("/build/linux-6.12/kernel/locking/rwsem.c", "LOCKING"),
        ("./include/linux/spinlock.h", "LOCKING"),
        ("arch/arm64/lib/memset.S", "LIBRARY"),
        ("mm/kfence/kfence_test.c", None),
        ("lib/iov_iter.c", None),
        ("crypto/af_alg.c", None),
        ("drivers/net/tun.c", None),
        ("net/../mm/slub.c", None),
        ("", None),
    ],
)
def test_file_tells_the_part_of_its_functions(path: str, part: str | None) -> None:
    found = part_of_place(path)
    assert (found.name if found else None) == part


def test_place_that_a_log_names_decides_where_the_name_does_not() -> None:
    text = texts.PAGE_FAULT.replace("widget_attach+0x2b/0x90 [widget]", "clear_all_of_it+0x2b/0x90 {}")
    plain, symbolised = (find_reports(text.replace("{}", place).encode())[0] for place in ("", "lib/string.c:12"))
    assert (plain.function, symbolised.function) == ("clear_all_of_it", "widget_probe")


def test_function_that_calls_itself_filled_the_stack() -> None:
    frames = "\n".join(["[    9.100000]  walk_tree+0x15/0x70 [widget]"] * 12)
    text = f"""[    9.000000] BUG: TASK stack guard page was hit at 0000000034226565
[    9.000000] stack guard page: 0000 [#1] PREEMPT SMP NOPTI
[    9.000000] CPU: 1 PID: 448 Comm: sender Not tainted 6.1.0 #1
[    9.000000] RIP: 0010:walk_tree+0x0/0x70 [widget]
[    9.000000] Call Trace:
[    9.000000]  <TASK>
{frames}
[    9.200000]  widget_ioctl+0x15/0x70 [widget]
[    9.200000]  __x64_sys_ioctl+0x10/0x70
[    9.200000]  do_syscall_64+0x10/0x70
[    9.200000]  </TASK>
"""
    (report,) = find_reports(text.encode())
    assert report.kind is Kind.STACK_OVERFLOW
    assert report.blame[0].function == "walk_tree"
    assert report.blame[0].reason == "calls itself 12 times"
    assert report.blame[0].module == "widget"


def test_crash_that_was_asked_for_is_no_consequence() -> None:
    text = b"""[    9.000000] BUG: Bad page state in process widget  pfn:12345
[    9.000001] CPU: 0 PID: 7 Comm: widget Not tainted 6.12.1 #1
[    9.000002] Call Trace:
[    9.000003]  <TASK>
[    9.000004]  widget_free+0x15/0x70
[    9.000005]  </TASK>
[    9.100000] sysrq: Trigger a crash
[    9.100001] Kernel panic - not syncing: sysrq triggered crash
[    9.100002] CPU: 0 PID: 9 Comm: sh Tainted: G    B 6.12.1 #1
[    9.100003] Call Trace:
[    9.100004]  <TASK>
[    9.100005]  panic+0x15/0x70
[    9.100006]  sysrq_handle_crash+0x15/0x70
[    9.100007]  </TASK>
"""
    (alone,) = find_reports(text[text.index(b"[    9.100000]") :])
    assert alone.kind is Kind.SYSRQ
    assert alone.is_panic
    before, asked = find_reports(text)
    assert (before.kind, asked.kind) == (Kind.BAD_PAGE, Kind.SYSRQ)
    assert asked.comm == "sh"
    assert asked.consequence_of is None
    assert asked.message == "sysrq: Trigger a crash"
