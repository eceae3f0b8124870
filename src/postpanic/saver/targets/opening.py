"""Make a target of its plan; what a kind of target needs is only imported when there is one."""

from __future__ import annotations

from postpanic.saver.blocks import BlockFinder
from postpanic.saver.plan import FilePlan, HttpPlan, NfsPlan, RawPlan, SshPlan, TargetPlan
from postpanic.saver.targets.base import Target

__all__ = ["make_target"]

WAIT_S = 30.0


def make_target(plan: TargetPlan, finder: BlockFinder | None = None, *, wait_s: float = WAIT_S) -> Target:
    """
    Make the target; nothing is touched before its ``open()``.

    Parameters
    ----------
    finder : BlockFinder, optional
        Finds block devices, and binds those that turn up.
    wait_s : float
        For a block device to turn up.
    """
    match plan:
        case FilePlan():
            from postpanic.saver.targets.file import FileTarget

            return FileTarget(plan, finder=finder, wait_s=wait_s)
        case RawPlan():
            from postpanic.saver.targets.raw import RawTarget

            return RawTarget(plan, finder=finder, wait_s=wait_s)
        case NfsPlan():
            from postpanic.saver.targets.nfs import NfsTarget

            return NfsTarget(plan)
        case SshPlan():
            from postpanic.saver.targets.ssh import SshTarget

            return SshTarget(plan)
        case HttpPlan():
            from postpanic.saver.targets.http import HttpTarget

            return HttpTarget(plan)
