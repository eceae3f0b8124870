"""Requests that disks did not answer."""

from __future__ import annotations

from dataclasses import dataclass

from drgn import Object

from postpanic.analysis.cells import problem
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.crash_commands import describe_error
from postpanic.analysis.devices.disks import Request, read_disk_name, read_disks, read_requests, uptime_s
from postpanic.analysis.triage.hangs.picture import Picture

__all__ = ["Pending", "are_requests_known", "oldest_requests"]


@dataclass(frozen=True, slots=True)
class Pending:
    """
    The oldest request of a disk that has not come back.

    Attributes
    ----------
    function, module : str
        What the driver takes requests with.
    """

    device: str
    vaddr: int
    request: int
    operation: str
    sector: int
    size_bytes: int
    age_s: float
    count: int
    function: str
    module: str


def oldest_requests(picture: Picture) -> list[Pending]:
    """Give the oldest request of each disk that has any under way, the oldest of all first."""
    return _read(picture)[0]


def are_requests_known(picture: Picture) -> bool:
    """Tell whether the disks could be read: if not, no request that was found means nothing."""
    return _read(picture)[1]


def _read(picture: Picture) -> tuple[list[Pending], bool]:
    return picture.workspace.once("hangs: requests", lambda: _find(picture))


def _find(picture: Picture) -> tuple[list[Pending], bool]:
    problems = picture.scene.problems
    found: list[Pending] = []
    is_known = True
    try:
        now = uptime_s(picture.scene.prog)
        for disk in read_disks(picture.scene.prog, problems):
            requests = _requests(picture, disk)
            timed = [request for request in requests if request.start_s is not None]
            if not timed or now is None:
                continue
            oldest = min(timed, key=lambda one: one.start_s or 0.0)
            function, module = _driver(picture, disk)
            found.append(
                Pending(
                    read_disk_name(disk),
                    int(disk.value_()),
                    oldest.vaddr,
                    oldest.operation.lower(),
                    oldest.sector,
                    oldest.size_bytes,
                    max(0.0, now - (oldest.start_s or 0.0)),
                    len(requests),
                    function,
                    module,
                )
            )
    except UNREADABLE as exc:
        is_known = False
        problems.append(problem("requests of the disks", exc))
        picture.scene.miss("which requests the disks have under way", describe_error(exc))
    return sorted(found, key=lambda one: -one.age_s), is_known


def _requests(picture: Picture, disk: Object) -> list[Request]:
    try:
        return list(read_requests(disk, picture.scene.problems))
    except UNREADABLE as exc:
        picture.scene.problems.append(problem("requests of a disk", exc))
        return []


def _driver(picture: Picture, disk: Object) -> tuple[str, str]:
    """Name what the driver of a disk takes requests with: ``blk_mq_ops.queue_rq``."""
    try:
        vaddr = int(disk.queue.mq_ops.queue_rq.value_())
    except UNREADABLE:
        return "", ""
    place = picture.scene.stacks.code.find(vaddr) if vaddr else None
    if place is None:
        return "", ""
    return place.function.partition(".")[0], place.module or "vmlinux"
