"""Which line of a log names the cause of a kernel's death."""

from __future__ import annotations

import pytest

from postpanic.analysis.banner import find_panic_line

NULL_DEREFERENCE = (
    "BUG: kernel NULL pointer dereference, address: 0000000000000008",
    "#PF: supervisor read access in kernel mode",
    "#PF: error_code(0x0000) - not-present page",
    "PGD 0 P4D 0",
    "Oops: 0000 [#1] PREEMPT SMP NOPTI",
    "CPU: 1 PID: 99 Comm: insmod Tainted: G           OE",
)
FATAL = "Kernel panic - not syncing: Fatal exception"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["sysrq: Trigger a crash", "Kernel panic - not syncing: sysrq triggered crash", "CPU: 0"],
         "Kernel panic - not syncing: sysrq triggered crash"),
        ([*NULL_DEREFERENCE, "---[ end trace ]---", FATAL], NULL_DEREFERENCE[0]),
        (NULL_DEREFERENCE, NULL_DEREFERENCE[0]),
        ([*NULL_DEREFERENCE, "random: crng done", "Kernel panic - not syncing: Out of memory: compulsory panic_on_oom"],
         "Kernel panic - not syncing: Out of memory: compulsory panic_on_oom"),
        (["kernel BUG at mm/slub.c:305!", "invalid opcode: 0000 [#1] SMP", FATAL],
         "kernel BUG at mm/slub.c:305!"),
        (["Oops: general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP"],
         "Oops: general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP"),
        (["general protection fault, probably for non-canonical address 0x6b6b: 0000 [#1] SMP"],
         "general protection fault, probably for non-canonical address 0x6b6b: 0000 [#1] SMP"),
        (["Unable to handle kernel paging request at virtual address dfff8000", "Mem abort info:",
          "Internal error: Oops: 0000000096000004 [#1] SMP", "Kernel panic - not syncing: Oops: Fatal exception"],
         "Unable to handle kernel paging request at virtual address dfff8000"),
        (["WARNING: CPU: 0 PID: 1 at kernel/x.c:1 f+0x1/0x2", "",
          "Kernel panic - not syncing: kernel: panic_on_warn set ..."],
         "WARNING: CPU: 0 PID: 1 at kernel/x.c:1 f+0x1/0x2"),
        (["watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [x:1]", "",
          "Kernel panic - not syncing: softlockup: hung tasks"],
         "watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [x:1]"),
        (["INFO: task sh:12 blocked for more than 120 seconds.", "",
          "Kernel panic - not syncing: hung_task: blocked tasks"],
         "INFO: task sh:12 blocked for more than 120 seconds."),
        (["Kernel panic - not syncing: Fatal exception in interrupt"],
         "Kernel panic - not syncing: Fatal exception in interrupt"),
        (["Oops: 0002 [#1] SMP"], "Oops: 0002 [#1] SMP"),
        (["usb 1-1: BUG: in a device's name is none of ours", "EXT4-fs (sda1): mounted"], None),
        ([], None),
    ],
)  # fmt: skip
def test_cause_is_the_report_and_not_what_follows_from_it(lines: list[str], expected: str | None) -> None:
    assert find_panic_line(lines) == expected


def test_later_report_counts_when_the_first_was_survived() -> None:
    survived = ["WARNING: CPU: 0 PID: 1 at drivers/x.c:1 f+0x1/0x2", *["noise"] * 40]
    assert find_panic_line([*survived, *NULL_DEREFERENCE]) == NULL_DEREFERENCE[0]
