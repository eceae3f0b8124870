"""One record of the kernel log."""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["LogRecord", "RecordState", "caller_name"]

_CALLER_IS_CPU = 0x80000000


class RecordState(enum.Enum):
    """How far the kernel got with a record."""

    FINALIZED = "finalized"
    """Complete. All records of the older log count as such."""
    COMMITTED = "committed"
    """Text is there, but the writer could still have appended to it."""
    RESERVED = "reserved"
    """A writer was at it when the kernel stopped: the text may be half-written or old."""


@dataclass(frozen=True, slots=True)
class LogRecord:
    """
    One record of the kernel log.

    ``text`` is as the kernel stored it: no prefix, no final newline, possibly
    several lines, in no certain encoding.
    """

    seq: int
    """Sequence number since boot; in the log before 5.10 counted from the oldest record kept."""
    timestamp_ns: int
    """``local_clock()`` nanoseconds since boot."""
    level: int
    """0 (emergency) to 7 (debug)."""
    facility: int
    """As of syslog; 0 is the kernel."""
    flags: int
    """``LOG_NEWLINE`` 2, ``LOG_CONT`` 8 (``enum printk_info_flags``)."""
    caller_id: int
    """Thread number, or CPU number with bit 31 set (:func:`caller_name`); 0 also where the kernel does not keep it."""
    text: bytes
    subsystem: str = ""
    """Of the device the message is about: ``pci``, ``usb`` …"""
    device: str = ""
    """As in the SUBSYSTEM/DEVICE dictionary: ``+pci:0000:00:03.0``, ``b12:1``, ``c127:3``, ``n8``."""
    state: RecordState = RecordState.FINALIZED
    damage: str = ""
    """What is wrong with the record, as one phrase; empty for a sound one."""

    @property
    def is_finalized(self) -> bool:
        """Tell whether the kernel was done with the record."""
        return self.state is RecordState.FINALIZED


def caller_name(caller_id: int) -> str:
    """
    Spell a caller as printk does: ``T`` and a thread, or ``C`` and a CPU.

    ``print_caller()`` of ``kernel/printk/printk.c``.

    >>> caller_name(1), caller_name(0x80000003)
    ('T1', 'C3')
    """
    return f"C{caller_id & ~_CALLER_IS_CPU}" if caller_id & _CALLER_IS_CPU else f"T{caller_id}"
