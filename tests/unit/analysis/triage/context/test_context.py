"""Crashes that context explains, out of logs: hardware, NMIs, the boot, panic() itself, and what came before."""

from __future__ import annotations

import re

import pytest

from postpanic.analysis.triage import triage_log
from postpanic.analysis.triage.context.boot import decode_exit
from postpanic.findings.verdict import Cause, Confidence, Finding, Role, Verdict
from tests.unit.evidence.texts import HUNG, PAGE_FAULT, WARNING, stamped

HEAD = "CPU: 1 PID: {pid} Comm: {comm} {taint} 6.12.1-test #7\nHardware name: {hardware}, BIOS 1.2 03/04/2025\n"


def panic(message: str, *frames: str, comm: str = "init", pid: int = 1, hardware: str = "Example Board/X1") -> str:
    head = HEAD.format(pid=pid, comm=comm, hardware=hardware, taint="Not tainted")
    trace = "".join(f" {frame}\n" for frame in ("dump_stack_lvl+0x44/0x5c", "panic+0x118/0x2f4", *frames))
    return f"Kernel panic - not syncing: {message}\n{head}Call Trace:\n <TASK>\n{trace} </TASK>\n"


def judge(*texts: str) -> Verdict:
    return triage_log("".join(stamped(text, start_s=10.0 + 100 * number) for number, text in enumerate(texts)).encode())


def of(verdict: Verdict, detector: str) -> list[Finding]:
    return [finding for finding in verdict.findings if finding.detector == detector]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0x0, "exited with status 0"),
        (0x100, "exited with status 1"),
        (0x7F00, "nothing to execute"),
        (0x9, "SIGKILL"),
        (0x8B, "SIGSEGV"),
        (0x7E, "signal 126"),
    ],
)
def test_exit_codes_are_decoded_as_wait_has_them(code: int, words: str) -> None:
    assert words in decode_exit(code)


def test_init_that_crashed_is_told_from_init_that_ended() -> None:
    crashed = judge(
        "init[1]: segfault at 0 ip 00007f1d2c0a1740 sp 00007ffe95c0b318 error 4 in libc.so.6[7f1d2c000000+1b0000]\n",
        panic("Attempted to kill init! exitcode=0x0000000b", "do_exit.cold+0x15/0x15", "do_group_exit+0x2d/0x80"),
    )
    assert (crashed.cause, crashed.confidence, crashed.function) == (Cause.INIT_DIED, Confidence.PROVEN, "")
    assert "SIGSEGV" in crashed.sentence
    assert any("segfault at 0" in one.shows for one in crashed.findings[0].evidence)
    ended = judge(panic("Attempted to kill init! exitcode=0x00000100", "do_exit.cold+0x15/0x15"))
    assert "exited with status 1" in ended.sentence
    assert "by itself" in ended.sentence


NO_ROOT = """\
Kernel command line: BOOT_IMAGE=/vmlinuz root=UUID=1234 ro quiet
VFS: Cannot open root device "UUID=1234" or unknown-block(0,0): error -6
Please append a correct "root=" boot option; here are the available partitions:
fe00          335544 vda
 driver: virtio_blk
fe01          300000 vda1 00000000-01

List of all bdev filesystems:
 ext4
"""


def test_a_missing_root_says_what_was_asked_for_and_what_was_there() -> None:
    verdict = judge(NO_ROOT + panic("VFS: Unable to mount root fs on unknown-block(0,0)", "mount_root_generic+0x1/0x2",
                                    comm="swapper/0"))  # fmt: skip
    assert (verdict.kind, verdict.cause) == ("no-root-filesystem", Cause.NO_ROOT)
    assert "UUID=1234" in verdict.sentence
    assert "ENXIO" in verdict.sentence
    assert "vda, vda1" in verdict.sentence
    assert verdict.confidence is Confidence.PROVEN


def test_a_first_program_that_cannot_be_executed_is_named() -> None:
    verdict = judge(
        "Kernel command line: root=/dev/vda init=/sbin/mine\nRequested init /sbin/mine failed (error -2).\n"
        + panic("Requested init /sbin/mine failed (error -2).", "kernel_init+0x1/0x2", comm="swapper/0")
    )
    assert verdict.cause is Cause.NO_ROOT
    assert "/sbin/mine" in verdict.sentence
    assert "ENOENT" in verdict.sentence


NMI = "Uhhuh. NMI received for unknown reason {reason} on CPU 0.\n"


def test_an_nmi_to_a_virtual_machine_was_sent_on_purpose() -> None:
    text = NMI.format(reason="31") + panic(
        "NMI: Not continuing", "nmi_panic.cold+0xc/0xc", "unknown_nmi_error.cold+0x3b/0x49", comm="swapper/0", pid=0,
        hardware="QEMU Standard PC (i440FX + PIIX, 1996)",
    )  # fmt: skip
    verdict = judge(text)
    assert (verdict.kind, verdict.cause, verdict.function) == ("nmi", Cause.DELIBERATE, "")
    assert any(who.startswith("swapper/0") for who in verdict.not_to_blame)


@pytest.mark.parametrize(("reason", "word"), [("a1", "SERR"), ("61", "IOCHK")])
def test_an_nmi_whose_reason_is_known_is_the_hardwares(reason: str, word: str) -> None:
    verdict = judge(NMI.format(reason=reason) + panic("NMI: Not continuing", "nmi_panic+0x1/0x2"))
    assert verdict.cause is Cause.HARDWARE
    assert word in verdict.sentence


def test_on_bare_metal_nobody_knows_who_sent_an_nmi() -> None:
    verdict = judge(NMI.format(reason="31") + panic("NMI: Not continuing", "nmi_panic+0x1/0x2"))
    assert verdict.confidence in {Confidence.POSSIBLE, Confidence.UNKNOWN}


MACHINE_CHECK = """\
mce: [Hardware Error]: CPU 2: Machine Check Exception: 5 Bank 7: be00000000800400
mce: [Hardware Error]: RIP !INEXACT! 33:<00007f1d2c0a1740>
mce: [Hardware Error]: TSC 539b07bde3 ADDR 1234567000 MISC 90010000086
mce: [Hardware Error]: PROCESSOR 0:50654 TIME 1700000000 SOCKET 0 APIC 4 microcode 2000043
mce: [Hardware Error]: Machine check: Processor context corrupt
"""


def test_a_machine_check_is_the_hardwares_and_not_the_tasks() -> None:
    verdict = judge(MACHINE_CHECK + panic("Fatal machine check", "mce_panic+0x1/0x2", comm="database", pid=812))
    assert (verdict.kind, verdict.cause, verdict.function) == ("machine-check", Cause.HARDWARE, "")
    assert verdict.confidence.rank <= Confidence.POSSIBLE.rank
    assert any(who.startswith("database") for who in verdict.not_to_blame)


def test_cpus_that_do_not_answer_a_machine_check_are_the_hardwares() -> None:
    verdict = judge(panic("Timeout: Not all CPUs entered broadcast exception handler", "mce_timed_out+0x1/0x2"))
    assert verdict.cause is Cause.HARDWARE


def test_panic_by_a_module_names_the_function_that_called_it() -> None:
    verdict = judge(panic("widget lost its mind", "widget_give_up+0x12/0x40 [widget]", "widget_ioctl+0x1/0x2 [widget]"))
    assert (verdict.kind, verdict.function, verdict.module) == ("panic", "widget_give_up", "widget")
    assert "widget lost its mind" in verdict.sentence
    assert verdict.confidence is Confidence.LIKELY


def test_a_panic_on_a_report_that_is_lost_blames_nobody() -> None:
    verdict = judge(panic("panic_on_warn set ...", "__warn.cold+0x1/0x2", "report_bug+0x1/0x2"))
    assert (verdict.cause, verdict.function) == (Cause.UNKNOWN, "")
    assert any("the report that the kernel panicked because of" in missing.what for missing in verdict.missing)


FILE_SYSTEM = """\
EXT4-fs error (device vda1): ext4_lookup:1855: inode #12: comm ls: iget: bad extra_isize 2 (inode size 256)
"""


@pytest.mark.parametrize("broken", [True, False])
def test_a_file_system_that_panics_on_errors(broken: bool) -> None:
    io = "blk_update_request: I/O error, dev vda, sector 2048 op 0x0:(READ) flags 0x0\n" if broken else ""
    verdict = judge(io + FILE_SYSTEM + panic("EXT4-fs (device vda1): panic forced after error",
                                             "ext4_handle_error+0x1/0x2 [ext4]", comm="ls", pid=812))  # fmt: skip
    assert (verdict.cause, verdict.function) == (Cause.FILE_SYSTEM_DAMAGE, "")
    assert "vda1" in verdict.sentence
    assert ("I/O errors" in verdict.sentence) is broken
    assert any(who.startswith("ext4_lookup()") for who in verdict.not_to_blame)


def test_a_device_that_stopped_answering_before_tasks_hung_is_a_candidate() -> None:
    lost = "".join(f"nvme nvme0: I/O tag {number} (1005) QID 3 timeout, aborting\n" for number in range(4))
    verdict = judge(lost, HUNG + panic("hung_task: blocked tasks", "watchdog.cold+0xc/0x43", comm="khungtaskd", pid=29))
    (found,) = of(verdict, "failed-device")
    assert (found.cause, found.role) == (Cause.LOST_IO, Role.CAUSE)
    assert found.subject is not None
    assert found.subject.name == "nvme0"


def test_a_link_that_was_reset_a_day_before_is_only_background() -> None:
    text = stamped("ata3: hard resetting link\n", start_s=10.0) + stamped(HUNG, start_s=90000.0)
    verdict = triage_log(text.encode())
    assert of(verdict, "failed-device") == []
    (found,) = of(verdict, "troubles")
    assert found.role is Role.BACKGROUND


def test_an_earlier_warning_of_the_same_module_may_be_the_first_sign() -> None:
    own = re.sub(r"(widget_release\+0x[0-9a-f]+/0x[0-9a-f]+)", r"\1 [widget]", WARNING)
    verdict = judge(own, PAGE_FAULT)
    assert verdict.kind == "null-dereference"
    (found,) = of(verdict, "earlier-reports")
    assert (found.role, found.module) == (Role.BACKGROUND, "widget")
    assert "100 s earlier" in found.sentence
    (found,) = of(judge(WARNING, PAGE_FAULT), "earlier-reports")
    assert (found.module, found.confidence) == ("vmlinux", Confidence.POSSIBLE)


def test_a_mark_speaks_of_reports_that_the_log_has_lost() -> None:
    lost = PAGE_FAULT.replace("Tainted: G        W  OE ", "Tainted: G      D W  OE ").replace("[#1]", "[#2]")
    lost = lost.replace("Tainted: [W]=WARN,", "Tainted: [D]=DIE, [W]=WARN,")
    verdict = judge(lost)
    (found,) = of(verdict, "taint")
    assert "an oops" in found.sentence
    assert any(missing.what == "the first report" for missing in verdict.missing)


def test_foreign_modules_in_the_trace_are_named_from_the_list_of_modules() -> None:
    text = "\n".join(line for line in PAGE_FAULT.splitlines() if "Modules linked in" not in line) + "\n"
    verdict = judge(text.replace("Call Trace:", "Modules linked in: widget(OE) loop\nCall Trace:"))
    (found,) = of(verdict, "foreign-modules")
    assert found.module == "widget"
    assert "unsigned" in found.sentence


IRQ = """\
BUG: kernel NULL pointer dereference, address: 0000000000000000
#PF: supervisor read access in kernel mode
#PF: error_code(0x0000) - not-present page
Oops: 0000 [#1] PREEMPT SMP NOPTI
CPU: 1 PID: 0 Comm: swapper/1 Not tainted 6.12.1-test #7
RIP: 0010:widget_interrupt+0x2/0x50 [widget]
RSP: 0018:ffffd35b800d0f48 EFLAGS: 00000046
RAX: 0000000000000000 RBX: ffff8c483f700000 RCX: 0000000000000001
Call Trace:
 <IRQ>
 __handle_irq_event_percpu+0x46/0x190
 handle_edge_irq+0x87/0x220
 common_interrupt+0x7d/0xa0
 </IRQ>
 <TASK>
 asm_common_interrupt+0x22/0x40
RIP: 0010:native_safe_halt+0xb/0x10
 default_idle_call+0x38/0xf0
 </TASK>
Kernel panic - not syncing: Fatal exception in interrupt
"""


def test_who_ran_when_an_interrupt_came_is_acquitted() -> None:
    verdict = judge(IRQ)
    (found,) = of(verdict, "context")
    assert "an interrupt" in found.sentence
    assert any(who.startswith("swapper/1") for who in verdict.not_to_blame)
    busy = judge(IRQ.replace("PID: 0 Comm: swapper/1", "PID: 812 Comm: database"))
    assert any(who.startswith("database (PID 812)") for who in busy.not_to_blame)


def test_who_calls_into_the_kernel_is_not_acquitted() -> None:
    verdict = judge(PAGE_FAULT)
    (found,) = of(verdict, "context")
    assert "interrupt" not in found.sentence
    assert found.not_to_blame == ()


def test_a_watchdog_of_a_module_that_panics_only_noticed() -> None:
    verdict = judge(panic("widget: heartbeat of the worker lost, timed out", "widget_guard+0x12/0x40 [widget]",
                          "call_timer_fn+0x1/0x2", comm="swapper/1", pid=0))  # fmt: skip
    assert verdict.cause is Cause.UNKNOWN
    assert any(who.startswith("widget_guard()") for who in verdict.not_to_blame)


def test_an_error_that_was_asked_of_a_file_system_is_no_damage() -> None:
    error = "EXT4-fs error (device vdb): trigger_test_error:126: comm sh: 1\n"
    verdict = judge(error + panic("EXT4-fs (device vdb): panic forced after error", "ext4_handle_error+0x1/0x2"))
    assert verdict.cause is Cause.DELIBERATE
