"""
How fast text evidence is read, on one core.

Text without reports must go by at 20 MB/s, and 1,000 oopses be read in a
second. The texts are made here: logs as a busy machine writes them, one with
words that look like trouble, and reports of the usual length.

Usage::

    python benchmarks/evidence.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

from postpanic.evidence.oops import find_reports
from postpanic.evidence.sources import plain_text

MEGABYTE = 1_000_000
QUIET_BAR_MB_S = 20.0
OOPSES_BAR_S = 1000.0

QUIET = (
    b"[12345.678901] usb 1-1: new high-speed USB device number 5 using xhci_hcd\n"
    b"Jan 12 10:00:00 host systemd[1]: Started Session 12 of user root.\n"
    b"[12345.778901][ T1234] EXT4-fs (sda1): mounted filesystem with ordered data mode, error policy lock\n"
    b'[12345.878901] audit: type=1400 audit(1515564630.515:5): avc:  denied  { read } for  pid=3348 comm="x"\n'
)
TROUBLED = (
    b"[12345.678901] DEBUG: BUG nothing, WARNING: all is well, INFO: see Oops for kernel panic and corruption\n"
    b"Jan 12 10:00:00 host kernel: app: WARNING: at nothing, INFO: task done, Unhandled exception, out of memory\n"
    b"[12345.778901][ T1234] EXT4-fs warning: WARNING: CPU and lockup, BUG; refcount_t allocation failure, SError\n"
    b"[12345.878901] nvme: Hardware Error? NMI: none, INFO: rcu is fine, Kernel panic not yet, BUG:none, Oops!\n"
)
LOOKALIKE = b"[12345.678901] app says: Busy inodes, CSD lock, NMI received, HARDWARE ERROR, Machine Check\n"
JOURNAL = (
    b'{"_TRANSPORT":"kernel","PRIORITY":"6","_SOURCE_MONOTONIC_TIMESTAMP":"12345678901",'
    b'"MESSAGE":"usb 1-1: new high-speed USB device number 5 using xhci_hcd","_BOOT_ID":"0123456789abcdef"}\n'
)


def oops(frames: int = 22) -> bytes:
    """Make a page fault of a usual length: about 60 lines."""
    lines = [
        "BUG: kernel NULL pointer dereference, address: 0000000000000018",
        "#PF: supervisor write access in kernel mode",
        "#PF: error_code(0x0002) - not-present page",
        "PGD 0 P4D 0",
        "Oops: 0002 [#1] PREEMPT SMP NOPTI",
        "CPU: 3 PID: 812 Comm: modprobe Tainted: G        W  OE      6.12.1 #7",
        "Hardware name: Example Board/X1, BIOS 1.2 03/04/2025",
        "RIP: 0010:widget_attach+0x2b/0x90 [widget]",
        "Code: " + "48 89 fb e8 " * 10 + "<c7> 40 18 " + "01 00 5b c3 " * 5,
        "RSP: 0018:ffffc90000a3bd10 EFLAGS: 00010246",
        *(
            f"R{a:02}: ffff888104a5c000 R{a + 1:02}: ffffffff82a01234 R{a + 2:02}: 0000000000000001"
            for a in (8, 11, 13)
        ),
        "RAX: 0000000000000000 RBX: ffff888104a5c000 RCX: 0000000000000001",
        "FS:  00007f1d2c0a1740(0000) GS:ffff88813bd80000(0000) knlGS:0000000000000000",
        "CS:  0010 DS: 0000 ES: 0000 CR0: 0000000080050033",
        "CR2: 0000000000000018 CR3: 0000000103f6a000 CR4: 0000000000750ef0",
        "Call Trace:",
        " <TASK>",
        *(f" {'? ' if n % 3 == 0 else ''}widget_function_{n}+0x{n:x}4/0x290 [widget]" for n in range(frames)),
        " do_syscall_64+0x82/0x190",
        " entry_SYSCALL_64_after_hwframe+0x76/0x7e",
        "RIP: 0033:0x7f1d2bd1aa29",
        "Code: ff c3 66 2e 0f 1f 84 00 00 00 00 00 0f 1f 44 00 00 48 89 f8 <48> 3d 01 f0 ff ff",
        *("RAX: ffffffffffffffda RBX: 000055d7c0d5ed10 RCX: 00007f1d2bd1aa29" for _ in range(6)),
        " </TASK>",
        "Modules linked in: widget(OE+) e1000 ext4 jbd2 mbcache",
        "CR2: 0000000000000018",
        "---[ end trace 0000000000000000 ]---",
    ]
    return b"".join(b"[%12.6f] %s\n" % (100 + n / 1000, line.encode()) for n, line in enumerate(lines))


def seconds(work: Callable[[], object]) -> float:
    """Return the processor time of the best of three runs."""
    best = float("inf")
    for _ in range(3):
        started = time.process_time()
        work()
        best = min(best, time.process_time() - started)
    return best


def rate_mb_s(unit: bytes, size: int = 20 * MEGABYTE) -> float:
    """Return how fast a text made of one piece goes by, MB/s."""
    text = unit * (size // len(unit))
    return len(text) / seconds(lambda: find_reports(plain_text(text))) / MEGABYTE


def oopses_s(count: int = 500) -> float:
    """Return how many oopses are read in a second."""
    text = oops() * count
    found = len(find_reports(text))
    if found != count:
        raise SystemExit(f"{found} of {count} oopses were found")
    return count / seconds(lambda: find_reports(text))


def main() -> None:
    """Run the benchmark."""
    rows = [
        ("log without reports", f"{rate_mb_s(QUIET):.0f} MB/s", f"{QUIET_BAR_MB_S:.0f} MB/s"),
        ("log full of alarming words", f"{rate_mb_s(TROUBLED):.0f} MB/s", f"{QUIET_BAR_MB_S:.0f} MB/s"),
        ("each line like a report", f"{rate_mb_s(LOOKALIKE, 4 * MEGABYTE):.1f} MB/s", "linear"),
        ("journal as JSON", f"{rate_mb_s(JOURNAL):.0f} MB/s", f"{QUIET_BAR_MB_S:.0f} MB/s"),
        ("one line of zeros", f"{rate_mb_s(bytes(1 << 20)):.0f} MB/s", f"{QUIET_BAR_MB_S:.0f} MB/s"),
        ("oopses", f"{oopses_s():.0f}/s", f"{OOPSES_BAR_S:.0f}/s"),
    ]
    print(f"{'':28}{'measured':>14}{'asked for':>14}")
    for name, measured, bar in rows:
        print(f"{name:28}{measured:>14}{bar:>14}")


if __name__ == "__main__":
    main()
