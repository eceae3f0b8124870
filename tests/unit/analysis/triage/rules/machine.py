"""What a checker's report of one machine ends with."""

from __future__ import annotations

from postpanic.analysis.triage import triage_log
from postpanic.findings.verdict import Verdict

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


def judge(head: str, inner: str = "dump_stack") -> Verdict:
    text = f"{head}{CPU}{TRACE.format(inner=inner)}"
    lines = [f"[   41.{number:06}] {line}" for number, line in enumerate(text.splitlines())]
    return triage_log("\n".join(lines).encode())
