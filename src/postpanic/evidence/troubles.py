"""
What a log says of devices, drivers and file systems that fail: the lines around a crash that are no reports.

Each kind of trouble has a needle, which is cheap to look for, and a pattern that
gives the device. Lines that say the same of the same device are counted.

References
----------
block/blk-core.c ``blk_status_to_errno`` and its messages; fs/buffer.c ``buffer_io_error``; drivers/nvme/host/pci.c
``nvme_timeout``; drivers/ata/libata-eh.c; drivers/scsi; fs/ext4/super.c ``__ext4_error``; fs/xfs/xfs_error.c;
fs/btrfs/messages.c; net/sched/sch_generic.c ``dev_watchdog``; kernel/irq/spurious.c ``__report_bad_irq``;
arch/x86/kernel/cpu/mce/therm_throt.c; drivers/thermal; kernel/time/clocksource.c.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from postpanic.evidence.lines import LINE_LIMIT, clean_text, split_line

__all__ = ["Trouble", "TroubleKind", "find_troubles"]


class TroubleKind(StrEnum):
    """What kind of trouble."""

    IO = "I/O errors"
    MEDIUM = "medium errors"
    TIMEOUT = "commands that timed out"
    LINK = "link resets"
    OFFLINE = "devices that went away"
    FILE_SYSTEM = "file-system errors"
    NETWORK = "transmit queues that hang"
    INTERRUPT = "interrupts that nobody handles"
    THERMAL = "temperature"
    CLOCK = "unstable clocks"
    FIRMWARE = "firmware errors"
    SEGFAULT = "programs that crashed"


@dataclass(slots=True)
class Trouble:
    """
    Lines that say the same.

    Attributes
    ----------
    kind : TroubleKind
    device : str
        Empty: the line names none.
    count : int
    first_s, last_s : float, optional
    line : str
        The first of them.
    """

    kind: TroubleKind
    device: str
    count: int
    first_s: float | None
    last_s: float | None
    line: str


_LIMIT = 256
_LINES_LIMIT = 20_000
_D = r"(?P<d>[\w.:/-]{1,64})"
_RULES: tuple[tuple[str, str, TroubleKind], ...] = (
    ("I/O error", rf"critical medium error, dev {_D}", TroubleKind.MEDIUM),
    ("medium error", rf"critical medium error, dev {_D}", TroubleKind.MEDIUM),
    ("I/O error", rf"I/O error, dev {_D}", TroubleKind.IO),
    ("target error", rf"critical target error, dev {_D}", TroubleKind.IO),
    ("I/O error", rf"Buffer I/O error on dev(?:ice)? {_D}", TroubleKind.IO),
    ("lost async page write", rf"on dev(?:ice)? {_D},.{{0,80}}lost async page write", TroubleKind.IO),
    ("timeout", rf"^nvme {_D}: I/O (?:tag )?\d{{1,6}}.{{0,80}}timeout", TroubleKind.TIMEOUT),
    ("timing out", rf"^(?:nvme|sd|scsi|mmc\w*) {_D}: .{{0,80}}timing out", TroubleKind.TIMEOUT),
    ("timed out", rf"^(?:nvme|sd|scsi|mmc|mpt|megaraid)\w{{0,16}} {_D}: .{{0,80}}timed out", TroubleKind.TIMEOUT),
    ("timed out", r"^(?P<d>ata[\d.]{1,8}): .{0,80}timed out", TroubleKind.TIMEOUT),
    ("attempting task abort", rf"^(?:sd|scsi) {_D}: .{{0,20}}attempting task abort", TroubleKind.TIMEOUT),
    ("failed command", r"^(?P<d>ata[\d.]{1,8}): failed command", TroubleKind.IO),
    ("resetting link", r"^(?P<d>ata[\d.]{1,8}): (?:hard|soft) resetting link", TroubleKind.LINK),
    ("link down", r"^(?P<d>ata[\d.]{1,8}): SATA link down", TroubleKind.LINK),
    ("resetting controller", rf"^nvme {_D}: .{{0,80}}resetting controller", TroubleKind.LINK),
    ("controller is down", rf"^nvme {_D}: controller is down", TroubleKind.OFFLINE),
    ("Link is Down", rf"^\S{{1,32}} (?:[\w.:]{{1,32}} )?{_D}: .{{0,40}}Link is Down", TroubleKind.LINK),
    ("offline device", rf"^(?:sd|scsi) {_D}: .{{0,20}}rejecting I/O to offline device", TroubleKind.OFFLINE),
    ("Device offlined", rf"^(?:sd|scsi) {_D}: .{{0,20}}Device offlined", TroubleKind.OFFLINE),
    ("USB disconnect", rf"^usb {_D}: USB disconnect", TroubleKind.OFFLINE),
    ("EXT4-fs error", rf"EXT4-fs error \(device {_D}\)", TroubleKind.FILE_SYSTEM),
    ("EXT", rf"EXT[23]-fs error \(device {_D}\)", TroubleKind.FILE_SYSTEM),
    ("Remounting filesystem read-only", rf"\({_D}\): Remounting filesystem read-only", TroubleKind.FILE_SYSTEM),
    ("XFS (", rf"XFS \({_D}\): .{{0,120}}(?:orruption|shut ?down|I/O error|metadata)", TroubleKind.FILE_SYSTEM),
    ("BTRFS ", rf"BTRFS (?:error|critical|: error) \(device {_D}\)", TroubleKind.FILE_SYSTEM),
    ("F2FS-fs", rf"F2FS-fs \({_D}\): .{{0,80}}(?:nconsisten|orrupt|I/O error)", TroubleKind.FILE_SYSTEM),
    ("FAT-fs", rf"FAT-fs \({_D}\): error", TroubleKind.FILE_SYSTEM),
    ("JBD2", rf"JBD2: .{{0,80}}(?:I/O error|rror -\d{{1,4}}).{{0,80}}on {_D}", TroubleKind.FILE_SYSTEM),
    ("Aborting journal", rf"Aborting journal on device {_D}", TroubleKind.FILE_SYSTEM),
    ("not responding", rf"^nfs: server {_D} not responding", TroubleKind.TIMEOUT),
    ("NETDEV WATCHDOG", rf"NETDEV WATCHDOG: (?:CPU: \d{{1,6}}: )?{_D} ?\(", TroubleKind.NETWORK),
    ("nobody cared", r"^(?P<d>irq \d{1,6}): nobody cared", TroubleKind.INTERRUPT),
    ("emperature", r"(?P<d>CPU\d{1,6}): (?:Core|Package) temperature.{0,40}above threshold", TroubleKind.THERMAL),
    ("ritical temperature", r"(?P<d>\w[\w -]{0,40}): critical temperature reached", TroubleKind.THERMAL),
    ("unstable", r"clocksource: .{0,80}[mM]arking clocksource '(?P<d>[\w-]{1,32})'.{0,20}unstable", TroubleKind.CLOCK),
    ("Firmware Bug", r"\[Firmware Bug\]: (?P<d>[\w-]{1,32})", TroubleKind.FIRMWARE),
    ("segfault at", r"^(?P<d>.{1,32}\[\d{1,10}\]): segfault at", TroubleKind.SEGFAULT),
    ("traps: ", r"^traps: (?P<d>.{1,32}\[\d{1,10}\]) (?:general protection|trap )", TroubleKind.SEGFAULT),
)
_COMPILED = tuple((needle, re.compile(pattern), kind) for needle, pattern, kind in _RULES)
_ANY = re.compile("|".join(sorted({re.escape(needle) for needle, _, _ in _RULES})).encode())


def find_troubles(text: bytes) -> list[Trouble]:
    """
    Find the troubles of a plain log, in the order in which they began; at most 256.

    >>> found = find_troubles(b"[    1.000000] blk_update_request: I/O error, dev sda, sector 8")
    >>> found[0].kind.name, found[0].device
    ('IO', 'sda')
    """
    found: dict[tuple[TroubleKind, str], Trouble] = {}
    position = lines = 0
    while (match := _ANY.search(text, position)) is not None and lines < _LINES_LIMIT:
        lines += 1
        start = text.rfind(b"\n", max(position, match.start() - LINE_LIMIT), match.start()) + 1
        start = max(start, position)
        end = text.find(b"\n", match.end(), match.end() + LINE_LIMIT)
        end = end if end >= 0 else min(len(text), match.end() + LINE_LIMIT)
        for line in split_line(clean_text(text[start:end])[:4096], start):
            _note(found, line.text.strip(), line.time_s)
        position = end + 1
    return list(found.values())


def _note(found: dict[tuple[TroubleKind, str], Trouble], text: str, time_s: float | None) -> None:
    for needle, pattern, kind in _COMPILED:
        if needle not in text or (match := pattern.search(text)) is None:
            continue
        key = (kind, match["d"])
        trouble = found.get(key)
        if trouble is None:
            if len(found) < _LIMIT:
                found[key] = Trouble(kind, match["d"], 1, time_s, time_s, text[:300])
        else:
            trouble.count += 1
            trouble.last_s = time_s if time_s is not None else trouble.last_s
        return
