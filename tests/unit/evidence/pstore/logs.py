"""A kernel log to store, of a boot that ended in an oops and a panic."""

from __future__ import annotations

BOOT = b"".join(
    b"<6>[%5d.%06d] device%d: link %d is up at %d Mbps\n" % (n // 10, n * 977 % 1000000, n % 7, n, 10 * n)
    for n in range(300)
)
OOPS = b"""\
<1>[   31.100001] BUG: kernel NULL pointer dereference, address: 0000000000000010
<1>[   31.100002] #PF: supervisor read access in kernel mode
<1>[   31.100003] #PF: error_code(0x0000) - not-present page
<6>[   31.100004] PGD 0 P4D 0
<4>[   31.100005] Oops: 0000 [#1] PREEMPT SMP PTI
<4>[   31.100006] CPU: 1 PID: 412 Comm: insmod Not tainted 6.1.0-56-amd64 #1  Debian 6.1.1-1
<4>[   31.100007] RIP: 0010:driver_probe+0x24/0x90 [driver]
<4>[   31.100008] Code: 48 8b 07 c3 <48> 8b 40 10 c3
<4>[   31.100009] Call Trace:
<4>[   31.100010]  <TASK>
<4>[   31.100011]  really_probe+0xde/0x380
<4>[   31.100012]  driver_register+0x5f/0x120
<4>[   31.100013]  do_one_initcall+0x5d/0x220
<4>[   31.100014]  </TASK>
<4>[   31.100015] ---[ end trace 0000000000000000 ]---
"""
PANIC = b"""\
<0>[   31.200001] Kernel panic - not syncing: Fatal exception
<0>[   31.200002] Kernel Offset: 0x1e000000 from 0xffffffff81000000
"""
LOG = BOOT + OOPS + PANIC


def tail(log: bytes, size: int) -> bytes:
    """Give the last whole lines of a log that fit, as kmsg_dump_get_buffer() gives them."""
    cut = log[-size:]
    return cut if len(cut) == len(log) else cut[cut.index(b"\n") + 1 :]


def parts(log: bytes, size: int, most: int = 99) -> list[bytes]:
    """Give the log in parts of whole lines, newest first."""
    found: list[bytes] = []
    while log and len(found) < most:
        piece = tail(log, size)
        found.append(piece)
        log = log[: len(log) - len(piece)]
    return found
