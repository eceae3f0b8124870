"""
Save within an image that is not ours: a distribution's, whose PID 1 has put the disks together.

What makes volumes of disks (LVM, LUKS, multipath, iSCSI) is the distribution's;
it starts this when the volumes are there, and it does not get the machine back.
"""

from __future__ import annotations

from postpanic.saver import init

__all__ = ["main"]


def main() -> None:
    """Save, then do with the machine what the plan says. Does not return."""
    init.main(reboots=True)
