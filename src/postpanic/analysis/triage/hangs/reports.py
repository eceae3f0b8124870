"""What the kernel's own reports say of hangs: who was noticed, and whether the crash is about one at all."""

from __future__ import annotations

from collections.abc import Iterator

from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops import Report
from postpanic.evidence.oops.kinds import Family, Kind

__all__ = ["HANGS", "STUCK", "hang_reports", "is_hang", "may_hide_hang", "reported_pids", "stuck_report"]

HANGS = frozenset(
    {
        *(Kind.SOFT_LOCKUP, Kind.HARD_LOCKUP, Kind.RCU_STALL, Kind.HUNG_TASK, Kind.WORKQUEUE_LOCKUP, Kind.CSD_LOCK),
        *(Kind.DEADLOCK, Kind.SPINLOCK),
    }
)
STUCK = (Kind.SOFT_LOCKUP, Kind.HARD_LOCKUP, Kind.RCU_STALL, Kind.CSD_LOCK, Kind.SPINLOCK, Kind.WORKQUEUE_LOCKUP)
"""Reports about CPUs that do not come back."""
_ASKED = frozenset({Family.DELIBERATE})
_MAY_BE_HUNG = frozenset({Family.DELIBERATE, Family.HANG, Family.LOCKING})


def hang_reports(scene: Scene) -> Iterator[Report]:
    """Walk the reports about hangs, in the log's order."""
    return (report for report in scene.reports if report.kind in HANGS)


def is_hang(scene: Scene) -> bool:
    """
    Tell whether the crash is about a hang.

    The kernel panicked for one, or somebody crashed it by hand behind a report of
    one. A fault that came first is the cause of what hung behind it.
    """
    first = scene.first
    if first is None:
        return any(True for _ in hang_reports(scene))
    if first.kind in HANGS:
        return True
    return first.family in _ASKED and any(True for _ in hang_reports(scene))


def reported_pids(scene: Scene) -> set[int]:
    """Give the PIDs of the tasks that the kernel reported as hanging."""
    return {report.pid for report in hang_reports(scene) if report.pid}


def may_hide_hang(scene: Scene) -> bool:
    """
    Tell whether a hang may be why the machine was crashed, though no report says so.

    Nobody knows why it crashed, or somebody asked for it: by sysrq, by an NMI.
    """
    first = scene.first
    return first is None or first.family in _MAY_BE_HUNG or first.kind is Kind.NMI


def stuck_report(scene: Scene) -> Report | None:
    """Give the first report of a CPU that does not come back; None: there is none, or something broke before it."""
    first = scene.first
    if first is None or not (first.kind in HANGS or first.family is Family.LOCKING or first.kind is Kind.WARNING):
        return None
    return next((report for report in scene.suspects if report.kind in STUCK), None)
