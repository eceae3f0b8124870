"""
PID 1 of the machine that is rehearsed: it loads the capture kernel as ``postpanic arm`` does, and crashes.

It runs twice. The first boot is the host on its bad day; the second, after the
capture has rebooted the machine, brings out what lies on the targets. Every
line that it says begins with ``rehearsal:``; that is all the outside sees.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import tarfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import cast

from postpanic.capture.crashing import KINDS, trigger_crash
from postpanic.capture.host import Host
from postpanic.capture.kexec.load import LoadMethod, LoadRequest, load
from postpanic.capture.kexec.verify import Expected, verify
from postpanic.errors import PostpanicError
from postpanic.rehearse.hanging import hang_a_task
from postpanic.rehearse.job import (
    COLLECT_WORD,
    HUNG_TASK,
    IMAGE_PATH,
    JOB_PATH,
    KERNEL_PATH,
    NMI,
    OUT_OF_MEMORY,
    PREFIX,
    SHELL_WORD,
    STRIKE_LINE,
    GuestJob,
    decode_job,
)
from postpanic.saver.blocks import BlockFinder
from postpanic.saver.modules import load_modules
from postpanic.saver.mounting import mount, mount_basics, unmount
from postpanic.saver.plan import FilePlan, SavePlan
from postpanic.saver.plan_json import read_plan

__all__ = ["main"]

_POWER_OFF = 0x4321FEDC
_DEVICE_WAIT_S = 8.0
_FILLER = ".rehearsal-filler"
_NMI_WAIT_S = 20.0
_STRIKE_WAIT_S = 60.0
_AREA_BYTES = 16 << 20


def main() -> None:
    """Be PID 1. Does not return."""
    try:
        mount_basics()
        job, plan = decode_job(JOB_PATH.read_bytes()), read_plan()
        for result in load_modules(job.modules):
            if not result.is_loaded:
                _say(f"module {result.path}: {result.error}")
        words = Path("/proc/cmdline").read_text().split()
        if COLLECT_WORD in words:
            _collect(job, plan)
            _say("collected")
        elif SHELL_WORD in words:
            _show_around(plan)
        else:
            _crash(job, plan)
    except PostpanicError as exc:
        _say(f"failed: {exc.message}")
    except BaseException as exc:  # noqa: BLE001 - there is nobody left to handle it
        _say(f"failed: internal error: {type(exc).__name__}: {exc}")
    os.sync()
    ctypes.CDLL(None).reboot(_POWER_OFF)
    time.sleep(10)


def _say(text: str) -> None:
    for line in text.splitlines():
        os.write(1, f"{PREFIX}{line}\n".encode(errors="replace"))


def _crash(job: GuestJob, plan: SavePlan) -> None:
    host = Host(Path("/"), job.machine, os.uname().release)
    _say(f"kernel {host.release}")
    _say(f"reserved {host.read_number('sys/kernel/kexec_crash_size') or 0}")
    for number, free_bytes in job.free_bytes.items():
        target = (*plan.targets, *plan.fallbacks)[int(number)]
        if isinstance(target, FilePlan):
            _leave_free(target, free_bytes)
    kernel, image = Path(KERNEL_PATH), Path(IMAGE_PATH)
    outcome = load(host, LoadRequest(kernel, image, job.command_line, cast("LoadMethod", job.method)))
    _say(f"loaded {outcome.method}")
    verification = verify(host, Expected(kernel, image, job.command_line), handed=outcome.handed)
    for check in verification.checks:
        _say(f"{check.name}: {check.evidence}")
    _say("; ".join([f"verified {verification.outcome}", *verification.reasons]))
    for name, value in job.settings.items():
        try:
            host.path(f"proc/sys/{name.replace('.', '/')}").write_text(f"{value}\n")
        except OSError as exc:
            _say(f"setting {name}: {exc.strerror}")
    with suppress(PostpanicError):
        mount("debugfs", Path("/sys/kernel/debug"), "debugfs")
    os.sync()
    _say(f"crash {job.crash}")
    time.sleep(0.2)
    if job.crash == NMI:
        # The outside sends it, on reading the line above.
        time.sleep(_NMI_WAIT_S)
        raise PostpanicError(f"still alive {_NMI_WAIT_S:g} s after the crash")
    if job.crash == OUT_OF_MEMORY:
        _take_all_memory()
    if job.needs_strike:
        _stay_in_kernel()
    if job.crash == HUNG_TASK and not host.path(KINDS[HUNG_TASK].trigger).exists():
        hang_a_task(host.machine)
    trigger_crash(host, KINDS[job.crash])


def _take_all_memory() -> None:
    taken = []
    while True:
        area = mmap.mmap(-1, _AREA_BYTES)
        for offset in range(0, _AREA_BYTES, mmap.PAGESIZE):
            area[offset] = 1
        taken.append(area)


def _stay_in_kernel() -> None:
    """Keep the first processor in the kernel, on our behalf, for a debugger to meet it there."""
    os.sched_setaffinity(0, {0})
    end = time.monotonic() + _STRIKE_WAIT_S
    with mmap.mmap(-1, _AREA_BYTES) as area, Path("/dev/zero").open("rb", buffering=0) as zeros:
        # Once for the pages: what is done from then on holds no lock.
        zeros.readinto(area)
        _say(STRIKE_LINE)
        while time.monotonic() < end:
            zeros.readinto(area)
    raise PostpanicError(f"still alive {_STRIKE_WAIT_S:g} s after the crash")


def _show_around(plan: SavePlan) -> None:
    """Mount the targets, and leave the rest to whoever sits at the console."""
    import code

    with ExitStack() as stack:
        for number, target in enumerate((*plan.targets, *plan.fallbacks)):
            if isinstance(target, FilePlan):
                try:
                    point = stack.enter_context(_mounted(target, "", Path(f"/mnt/{number}")))
                    _say(f"{target.name} is at {point}")
                except PostpanicError as exc:
                    _say(f"target {number}: {exc.message}")
        _say("a Python prompt; what ends it (Ctrl-D) switches the machine off")
        with suppress(SystemExit):
            code.interact(banner="", exitmsg="", local={"__name__": "__console__", "Path": Path})


@contextmanager
def _mounted(plan: FilePlan, options: str, point: Path = Path("/mnt/rehearsal")) -> Iterator[Path]:
    device = BlockFinder().find(plan.device, wait_s=_DEVICE_WAIT_S, where=plan.name)
    point.mkdir(parents=True, exist_ok=True)
    mount(str(device.path), point, plan.filesystem, options)
    try:
        yield point
    finally:
        unmount(point)


def _leave_free(plan: FilePlan, free_bytes: int) -> None:
    """Fill a file system until it has so much room as its original."""
    with _mounted(plan, "") as point:
        found = os.statvfs(point)
        surplus = found.f_bavail * found.f_frsize - free_bytes
        if surplus > 0:
            fd = os.open(point / _FILLER, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                os.posix_fallocate(fd, 0, surplus)
            finally:
                os.close(fd)


def _collect(job: GuestJob, plan: SavePlan) -> None:
    with Path(job.out_device).open("wb") as out, tarfile.open(fileobj=out, mode="w|") as archive:
        for number, target in enumerate((*plan.targets, *plan.fallbacks)):
            if isinstance(target, FilePlan):
                try:
                    _add_target(archive, number, target)
                except PostpanicError as exc:
                    _say(f"target {number}: {exc.message}")


def _add_target(archive: tarfile.TarFile, number: int, target: FilePlan) -> None:
    with _mounted(target, "ro") as point:
        directory = point / target.path.lstrip("/")
        for path in sorted(directory.rglob("*")):
            if path.is_file() and not path.is_symlink():
                archive.add(path, f"{number}/{path.relative_to(directory)}", recursive=False)
