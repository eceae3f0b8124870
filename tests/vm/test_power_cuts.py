"""The power fails while a dump is being saved: what was claimed to be safe is safe, and there is always a dump."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

from postpanic.cli.app import main
from postpanic.process import find_program, run
from postpanic.rehearse.machine import Disk, MachineError, scale_timeout
from postpanic.saver.plan import RetentionPlan
from tests.vm.captures import OUTPUT, Capture, Request, capturing, find_dumps, make_disk, plan_for, read_files
from tests.vm.lab import Crash, Lab
from tests.vm.recipes import Recipe

MOMENTS = 20
INTERVAL_S = 0.25
ENDED_TIMEOUT_S = 90.0


def test_what_is_claimed_to_be_safe_is_safe_at_any_moment(crash_lab: Lab, tmp_path: Path) -> None:
    old = make_old_dump(crash_lab.crash(Recipe("6.1")), tmp_path)
    disk = make_disk(tmp_path / "journaled.img", 256, content=old)
    target = replace(
        OUTPUT, name="disk", device=replace(OUTPUT.device, name="vde"), retention=RetentionPlan(keep_count=1)
    )
    with capturing(crash_lab, Request(plan_for(target), disks=[Disk(disk)]), tmp_path) as capture:
        cuts = take_images(capture, disk, tmp_path)
    assert len(cuts) >= MOMENTS // 2
    claimed = [judge_cut(image, said, tmp_path / f"cut-{number}") for number, (image, said) in enumerate(cuts)]
    assert {"nothing", "log", "dump", "rotated"} & set(claimed) >= {"log"}
    assert claimed[-1] in {"dump", "rotated"}


def make_old_dump(crash: Crash, tmp_path: Path) -> Path:
    """Make a tree with a dump of an earlier crash of the same machine."""
    root = tmp_path / "old"
    place = root / "crash/guest-20200101-000000"
    place.mkdir(parents=True)
    assert main(["filter", "-d", "31", str(crash.raw), str(place / "vmcore")]) == 0
    (place / "vmcore-dmesg.txt").write_text("an old log\n")
    return root


def take_images(capture: Capture, disk: Path, tmp_path: Path) -> list[tuple[Path, str]]:
    """Copy the disk again and again, the machine standing still, with what had been said by then."""
    capture.machine.wait_for(r"^postpanic: saver started", timeout_s=60.0)
    cuts: list[tuple[Path, str]] = []
    numbers = itertools.count()
    deadline, interval_s = time.monotonic() + scale_timeout(ENDED_TIMEOUT_S), INTERVAL_S
    while time.monotonic() < deadline:
        has_ended = not hold_still(capture)
        said = capture.console
        image = tmp_path / f"cut-{next(numbers)}.img"
        run([find_program("cp"), "--sparse=always", disk, image])
        cuts.append((image, said))
        if has_ended or "postpanic: rebooting" in said:
            break
        if len(cuts) == 4 * MOMENTS:
            for image, _ in cuts[1::2]:
                image.unlink()
            cuts, interval_s = cuts[::2], 2 * interval_s
        capture.machine.resume()
        time.sleep(interval_s)
    # All that saw something new, and no more of the rest than is needed.
    return (
        cuts if len(cuts) <= MOMENTS else [cuts[index * (len(cuts) - 1) // (MOMENTS - 1)] for index in range(MOMENTS)]
    )


def hold_still(capture: Capture) -> bool:
    """Stop the machine; False: it has rebooted, which here ends it, and its disk changes no more."""
    try:
        capture.machine.pause()
    except MachineError:
        deadline = time.monotonic() + 10.0
        while capture.machine.is_running:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        return False
    return True


def judge_cut(image: Path, said: str, target: Path) -> str:
    """Mend the file system as a boot would, and hold it against what was claimed."""
    finished = run([find_program("e2fsck"), "-fy", image], check=False)
    assert finished.returncode in {0, 1}, finished.stdout.decode(errors="replace")
    names = find_dumps(image)
    copies = {name.rsplit("/", 1)[-1]: read_files(image, name, target) for name in names}
    whole = [name for name, copy in copies.items() if (copy / "vmcore").exists()]
    assert whole, "there is always a whole dump: the old one, or the new one"
    for name in whole:
        assert main(["verify", str(copies[name] / "vmcore")]) == 0, f"{name} has its final name and is not whole"
    new = [copy for name, copy in copies.items() if name != "guest-20200101-000000"]
    claim = "nothing"
    if "disk: log saved" in said:
        assert "Trigger a crash" in (new[0] / "vmcore-dmesg.txt").read_text()
        claim = "log"
    if "disk: saved, level 31" in said:
        assert json.loads((new[0] / "vmcore.manifest.json").read_text())["complete"] is True
        assert (new[0] / "vmcore").exists()
        claim = "dump"
    if "deleted the old dump" in said:
        claim = "rotated"
    shutil.rmtree(target)
    image.unlink()
    return claim
