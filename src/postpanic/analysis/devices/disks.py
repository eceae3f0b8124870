"""Disks, and the requests that are under way on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from drgn import Object, Program, container_of
from drgn.helpers.linux.block import (
    bdev_partno,
    blk_rq_bytes,
    blk_rq_pos,
    disk_name,
    req_op,
    request_queue_busy_iter,
    rq_data_dir,
)
from drgn.helpers.linux.device import class_for_each_device
from drgn.helpers.linux.timekeeping import ktime_get_seconds

from postpanic.analysis.cells import decode, guarded
from postpanic.analysis.context import UNREADABLE
from postpanic.findings.table import Problem

__all__ = ["Request", "read_disk_name", "read_disks", "read_requests", "uptime_s"]


@dataclass(frozen=True, slots=True)
class Request:
    """A request that is under way."""

    vaddr: int
    """``struct request *``."""
    operation: str
    """``READ``, ``WRITE``, ``FLUSH`` …"""
    is_write: bool
    sector: int
    size_bytes: int
    start_s: float | None
    """When it was begun, seconds since the boot."""


def read_disks(prog: Program, problems: list[Problem]) -> Iterator[Object]:
    """
    Walk the ``struct gendisk *`` of all disks.

    Raises
    ------
    LookupError
        If the kernel's class of block devices is not known.
    """
    for device in guarded(class_for_each_device(prog["block_class"].address_of_()), "list of disks", problems):
        try:
            entry = container_of(device, "struct block_device", "bd_device")
        except LookupError:
            # Before 5.11 (0d02129e76ed) a partition was a structure of its own.
            partition = container_of(device, "struct hd_struct", "__dev")
            if not partition.partno.value_():
                yield container_of(partition, "struct gendisk", "part0")
            continue
        if not bdev_partno(entry).value_():
            yield entry.bd_disk.read_()


def read_disk_name(disk: Object) -> str:
    """Name a disk."""
    return decode(disk_name(disk))


def read_requests(disk: Object, problems: list[Problem]) -> Iterator[Request]:
    """Walk the requests that were submitted to a ``struct gendisk *`` and have not come back."""
    queue = disk.queue.read_()
    what = f"requests of the disk at {disk.value_():#x}"
    for request in guarded(request_queue_busy_iter(queue), what, problems):
        operation = req_op(request)
        name = operation.format_(type_name=False, symbolize=False)
        yield Request(
            int(request.value_()),
            name.removeprefix("REQ_OP_"),
            bool(rq_data_dir(request)),
            int(blk_rq_pos(request).value_()),
            int(blk_rq_bytes(request).value_()),
            _start(request),
        )


def _start(request: Object) -> float | None:
    try:
        start_ns = int(request.start_time_ns.value_()) or int(request.io_start_time_ns.value_())
    except UNREADABLE:
        return None
    return start_ns / 1e9 if start_ns else None


def uptime_s(prog: Program) -> int | None:
    """Return the monotonic clock at the crash, seconds; None where the kernel does not tell."""
    try:
        return int(ktime_get_seconds(prog).value_())
    except UNREADABLE:
        return None
