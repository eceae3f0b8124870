"""
Hardware watchdogs that run now: the capture kernel must have their drivers, or nobody feeds them there.

A watchdog runs on across the crash, and resets the machine in the middle of the
dump. One that is made of software dies with its kernel.

Source: ``Documentation/ABI/testing/sysfs-class-watchdog``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from postpanic.capture.resolve.sysfs import read_value

__all__ = ["Watchdog", "find_watchdogs"]

_MOST = 16


@dataclass(frozen=True)
class Watchdog:
    """
    A watchdog that runs.

    Attributes
    ----------
    name : str
        ``watchdog0``.
    identity : str
        What its driver calls it.
    place : Path
        The device, below ``/sys/devices``.
    """

    name: str
    identity: str
    place: Path


def find_watchdogs(sysfs: Path) -> list[Watchdog]:
    """List the watchdogs of hardware that run."""
    try:
        entries = sorted((sysfs / "class/watchdog").iterdir())[:_MOST]
    except OSError:
        return []
    return [
        Watchdog(entry.name, read_value(entry / "identity"), (entry / "device").resolve())
        for entry in entries
        if read_value(entry / "state") == "active" and (entry / "device").exists()
    ]
