"""
PID 1 of a guest with many disks: saves a small dump to every target of the plan, reads it back, tells what happened.

Runs on the Python of a capture image, with the saver's own modules and no others.
"""

import time
import traceback
from collections.abc import Callable
from pathlib import Path

from postpanic.dumps.digest import FileDigest
from postpanic.errors import PostpanicError
from postpanic.saver.blocks import BlockFinder, list_block_devices
from postpanic.saver.mounting import mount_basics
from postpanic.saver.plan import FilePlan, RawPlan, TargetPlan
from postpanic.saver.plan_json import read_plan
from postpanic.saver.preparation import Preparation
from postpanic.saver.targets.file import FileTarget
from postpanic.saver.targets.raw import RawTarget

STARTED = time.monotonic()
DUMP = "host-20260131-235959"
WAIT_S = 8.0
PAGES = 2000


def say(text: str) -> None:
    print(f"disks: {text}", flush=True)  # noqa: T201 - to the console


def since(started: float) -> str:
    return f"{time.monotonic() - started:.1f} s"


def save(plan: TargetPlan, poll: Callable[[], object]) -> None:
    finder = BlockFinder(poll, read_timeout_s=3.0)
    target: FileTarget | RawTarget
    if isinstance(plan, FilePlan):
        target = FileTarget(plan, finder=finder, wait_s=WAIT_S)
    else:
        assert isinstance(plan, RawPlan)
        target = RawTarget(plan, finder=finder, wait_s=WAIT_S)
    started = time.monotonic()
    try:
        target.open(DUMP)
        target.put("vmcore-dmesg.txt", b"panic\n" * 1000)
        sink = target.open_dump("vmcore")
        sink.reserve(1 << 16)
        room = target.room_bytes()
        for number in range(PAGES):
            sink.write_at((1 << 16) + 4096 * number, [number.to_bytes(4, "little") * 1024])
        sink.write_at(0, [b"KDUMP   "])
        digest = sink.finish()
        target.put("vmcore.manifest.json", b"{}")
        target.commit()
        deleted = target.rotate()
        check(target, digest)
        say(f"{plan.name}: saved to {target.place} in {since(started)}, room {room}, deleted {deleted}")
    except PostpanicError as exc:
        say(f"{plan.name}: {type(exc).__name__} after {since(started)}: {exc.message}")
    finally:
        target.close()
        target.close()


def check(target: FileTarget | RawTarget, digest: FileDigest) -> None:
    path = target.read_back()
    if path is None:
        return
    data = Path(path).read_bytes()
    if len(data) != digest.size_bytes or data[-4:] != (PAGES - 1).to_bytes(4, "little"):
        say(f"failed: {path} is not what was written")


def main() -> None:
    failures = mount_basics()
    if failures:
        say(f"failed: {failures}")
    plan = read_plan()
    say(f"before: {[device.name for device in list_block_devices()]}")
    preparation = Preparation(plan, say)
    started = time.monotonic()
    preparation.start()
    binder = preparation._binder
    missing = binder.wait(WAIT_S)
    say(f"prepared in {since(started)}, missing {missing}, failures {binder.failures}")
    for target in plan.targets:
        save(target, binder.bind)
    say(f"devices: {sorted(device.name for device in list_block_devices())}")
    for device in list_block_devices():
        say(f"at {device.sysfs}")
    say(f"mounts: {Path('/proc/mounts').read_text().count('postpanic')}")
    say(f"pending: {binder.pending}")
    say(f"failures: {binder.failures}")
    say(f"done after {since(STARTED)}")


try:
    main()
except BaseException:  # noqa: BLE001 - the console is all there is
    for line in traceback.format_exc().splitlines():
        say(f"failed: {line}")
finally:
    Path("/proc/sysrq-trigger").write_text("o")
    time.sleep(60)
