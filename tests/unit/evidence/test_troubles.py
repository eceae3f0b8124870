"""Devices, links and file systems that fail, in the log."""

from __future__ import annotations

import pytest

from postpanic.evidence.troubles import TroubleKind, find_troubles

LINES = [
    ("blk_update_request: I/O error, dev sda, sector 2048 op 0x0:(READ) flags 0x0 phys_seg 1", "IO", "sda"),
    ("critical medium error, dev nvme0n1, sector 88 op 0x0:(READ) flags 0x0", "MEDIUM", "nvme0n1"),
    ("Buffer I/O error on dev dm-3, logical block 17, async page read", "IO", "dm-3"),
    ("nvme nvme0: I/O tag 5 (1005) opcode 0x2 (I/O Cmd) QID 3 timeout, aborting req_op:READ", "TIMEOUT", "nvme0"),
    ("nvme nvme0: controller is down; will reset: CSTS=0xffffffff, PCI_STATUS=0x10", "OFFLINE", "nvme0"),
    ("sd 2:0:0:0: rejecting I/O to offline device", "OFFLINE", "2:0:0:0"),
    ("ata3.00: failed command: READ FPDMA QUEUED", "IO", "ata3.00"),
    ("ata3: hard resetting link", "LINK", "ata3"),
    ("EXT4-fs error (device vda1): ext4_lookup:1855: inode #12: comm ls: iget: bad extra_isize", "FILE_SYSTEM", "vda1"),
    ("XFS (dm-0): Metadata corruption detected at xfs_agf_verify+0x1a/0x2b0 [xfs]", "FILE_SYSTEM", "dm-0"),
    ("BTRFS error (device sdb): parent transid verify failed", "FILE_SYSTEM", "sdb"),
    ("NETDEV WATCHDOG: eth0 (virtio_net): transmit queue 0 timed out", "NETWORK", "eth0"),
    ('irq 16: nobody cared (try booting with the "irqpoll" option)', "INTERRUPT", "irq 16"),
    ("CPU3: Package temperature is above threshold, cpu clock is throttled", "THERMAL", "CPU3"),
    ("nfs: server storage not responding, still trying", "TIMEOUT", "storage"),
    ("cat[812]: segfault at 0 ip 0000000000401136 sp 00007ffe95c0b318 error 4 in cat[401000+1000]", "SEGFAULT",
     "cat[812]"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "kind", "device"), LINES, ids=[f"{kind}-{device}" for _, kind, device in LINES])
def test_a_line_gives_its_kind_and_device(line: str, kind: str, device: str) -> None:
    for text in (line, f"[   12.500000] {line}", f"<4>[   12.500000][  T812] {line}"):
        (trouble,) = find_troubles(text.encode() + b"\n")
        assert (trouble.kind, trouble.device, trouble.count) == (TroubleKind[kind], device, 1)
        assert trouble.line == line


def test_lines_that_say_the_same_are_counted_with_the_time_of_the_first_and_last() -> None:
    lines = [f"[{number:5}.000000] ata1: hard resetting link\n" for number in (3, 40, 500)]
    (trouble,) = find_troubles("".join(lines).encode())
    assert (trouble.count, trouble.first_s, trouble.last_s) == (3, 3.0, 500.0)


def test_a_log_of_a_boot_that_went_well_has_none() -> None:
    text = b"""\
[    0.000000] Linux version 6.12.1-test (builder@host)
[    0.915803] pps_core: LinuxPPS API ver. 1 registered
[    1.054000] EXT4-fs (vda1): mounted filesystem with ordered data mode
[    1.100000] ata1: SATA link up 6.0 Gbps (SStatus 133 SControl 300)
[    1.200000] e1000 0000:00:03.0 eth0: (PCI:33MHz:32-bit) 52:54:00:12:34:56
[    2.000000] clocksource: Switched to clocksource tsc
[    2.100000] XFS (dm-0): Ending clean mount
"""
    assert find_troubles(text) == []


def test_there_is_an_end_to_it() -> None:
    text = b"".join(b"ata%d: hard resetting link\n" % number for number in range(3000))
    assert len(find_troubles(text)) == 256
