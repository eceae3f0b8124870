"""What goes wrong in the capture kernel: each fault ends on the ladder's next rung, with a reboot at the end."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from postpanic.capture.initramfs import contents
from postpanic.cli.app import main
from postpanic.dumps.open import open_dump
from postpanic.pages.selftest import check_dump
from postpanic.rehearse.machine import Disk
from postpanic.saver.plan import BlockPlan, DevicePlan, FilePlan, HookPlan, RawPlan
from postpanic.saver.recovery import find_raw_dumps, recover_raw_dump
from tests.vm.captures import OUTPUT, Request, captured, find_dumps, make_disk, plan_for, read_files
from tests.vm.lab import Lab

QUICK = DevicePlan(bind_all=True, wait_s=2.0)
KILL_ONCE = b"""#!/usr/bin/python3.11 -SsB
import os
try:
    os.close(os.open("/run/killed", os.O_CREAT | os.O_EXCL))
except FileExistsError:
    raise SystemExit
os.kill(os.getppid(), 9)
"""


def file_on(name: str, label: str, **words: object) -> FilePlan:
    return FilePlan(name=label, device=BlockPlan(name=name), path="/crash", attempts=1, **words)  # type: ignore[arg-type]


def test_every_target_that_fails_says_why_and_the_swap_area_gets_the_dump(crash_lab: Lab, tmp_path: Path) -> None:
    read_only = Disk(make_disk(tmp_path / "read-only.img", 64), read_only=True)
    full = make_disk(tmp_path / "full.img", 40)
    no_swap = make_disk(tmp_path / "no-swap.img", 64)
    swap = make_disk(tmp_path / "swap-area.img", 128, "-L", "crash-swap", kind="swap")
    swap_before = swap.read_bytes()[:4096]
    plan = plan_for(
        FilePlan(
            name="wrong uuid", device=BlockPlan(uuid="6f0cb1c4-6a39-4d8e-9d29-000000000000"), path="/crash", attempts=2
        ),
        file_on("vdz", "missing"),
        file_on("vde", "read-only"),
        file_on("vdf", "full"),
        RawPlan(name="not swap", device=BlockPlan(name="vdg"), swap=True, attempts=1),  # type: ignore[arg-type]
        devices=QUICK,
        fallbacks=(
            RawPlan(name="swap", device=BlockPlan(label="crash-swap"), swap=True, attempts=1),
            OUTPUT,
        ),
    )
    disks = (read_only, Disk(full), Disk(no_swap), Disk(swap))
    with captured(crash_lab, Request(plan, disks=disks), tmp_path) as capture:
        said = "\n".join(capture.said)
        assert "6f0cb1c4-6a39-4d8e-9d29-000000000000" in said
        assert "wrong uuid: attempt 2 of 2" in said
        for name, reason in (("missing", "vdz"), ("read-only", "read-only"), ("not swap", "swap")):
            lines = [line for line in capture.said if line.startswith(f"{name}: given up")]
            assert lines, f"{name} failed in silence"
            assert reason in lines[0]
        assert "full: saved, incomplete, level 31" in said
        assert "trying the fallback swap" in said
        assert not find_dumps(capture.disks.output), "the second fallback was not needed"
        judge_cut_dump(full, tmp_path)
    judge_swap(swap, swap_before, tmp_path)


def judge_cut_dump(disk: Path, tmp_path: Path) -> None:
    """Open a dump that was cut by a full disk: it has the log and the kernel, and says that it is cut."""
    (name,) = find_dumps(disk)
    saved = read_files(disk, name, tmp_path / "full")
    assert "Trigger a crash" in (saved / "vmcore-dmesg.txt").read_text()
    assert "saver started" in (saved / "saver.log").read_text()
    manifest = json.loads((saved / "vmcore-incomplete.manifest.json").read_text())
    assert manifest["complete"] is False
    with open_dump(saved / "vmcore-incomplete") as dump:
        assert dump.description.incomplete
        outcomes = {result.name: result.outcome.name for result in check_dump(dump).results}
    assert {outcomes[name] for name in ("VMCOREINFO", "kallsyms", "kernel text", "printk buffer")} == {"OK"}


def judge_swap(disk: Path, before: bytes, tmp_path: Path) -> None:
    (dump,) = find_raw_dumps([disk])
    assert dump.is_complete
    copy = recover_raw_dump(dump, tmp_path / "recovered")
    assert not copy.damaged
    assert main(["verify", str(copy.directory / "vmcore")]) == 0
    assert main(["recover", "--device", str(disk), str(tmp_path / "again")]) == 0
    assert disk.read_bytes()[:4096] == before, "the swap area is what it was"


@pytest.mark.matrix
def test_a_disk_that_hangs_costs_neither_the_other_dump_nor_the_reboot(crash_lab: Lab, tmp_path: Path) -> None:
    path = make_disk(tmp_path / "hanging.img", 256)
    words = (
        *(
            "-drive",
            f"file={path},format=raw,if=none,id=slow,cache=unsafe,throttling.iops-total=1,throttling.bps-total=65536",
        ),
        *("-device", "virtio-blk-pci,drive=slow"),
    )
    plan = plan_for(file_on("vde", "hanging", timeout_s=40.0), OUTPUT, devices=QUICK)
    with captured(crash_lab, Request(plan, words=words), tmp_path) as capture:
        said = capture.said
        good = next(number for number, line in enumerate(said) if line.startswith("file on vdc: saved, level 31"))
        bad = next(number for number, line in enumerate(said) if line.startswith("hanging: given up"))
        assert good < bad, "the good disk has not waited"
        (name,) = find_dumps(capture.disks.output)
        assert main(["verify", str(read_files(capture.disks.output, name, tmp_path / "saved") / "vmcore")]) == 0


def test_a_saver_that_is_killed_is_followed_by_another(crash_lab: Lab, tmp_path: Path) -> None:
    plan = plan_for(OUTPUT, before=(HookPlan(command=("/bin/kill-once",), timeout_s=30.0),))
    request = Request(plan, scenario="module-spin", files={"/bin/kill-once": KILL_ONCE})
    with captured(crash_lab, request, tmp_path) as capture:
        said = "\n".join(capture.said)
        assert "was killed by signal 9" in said
        assert "trying again: with as little memory as possible" in said
        (name,) = find_dumps(capture.disks.output)
        saved = read_files(capture.disks.output, name, tmp_path / "saved")
        assert "softlockup: hung tasks" in (saved / "vmcore-dmesg.txt").read_text()
        assert main(["verify", str(saved / "vmcore")]) == 0


@pytest.mark.matrix
def test_a_saver_that_makes_a_mistake_still_saves_the_log(
    crash_lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "broken" / "postpanic"
    shutil.copytree(contents._OURS, package)
    module = package / "saver/memory_image.py"
    source = module.read_text()
    broken = source.replace(
        "        with self._lock:\n            if level",
        "        1 / 0\n        with self._lock:\n            if level",
    )
    assert broken != source
    module.write_text(broken)
    monkeypatch.setattr(contents, "_OURS", package)
    with captured(crash_lab, Request(plan_for(replace(OUTPUT, attempts=1))), tmp_path) as capture:
        said = "\n".join(capture.said)
        assert "internal error: ZeroDivisionError" in said
        (name,) = find_dumps(capture.disks.output)
        saved = read_files(capture.disks.output, name, tmp_path / "saved")
        assert "Trigger a crash" in (saved / "vmcore-dmesg.txt").read_text()
        assert "ZeroDivisionError" in (saved / "saver.log").read_text()


def test_too_little_memory_ends_in_a_reboot_and_not_in_a_hang(crash_lab: Lab, tmp_path: Path) -> None:
    eat = b"""#!/usr/bin/python3.11 -SsB
free = next(int(line.split()[1]) for line in open("/proc/meminfo") if line.startswith("MemAvailable"))
with open("/run/ballast", "wb") as stream:
    for _ in range(max((free >> 10) - 12, 0)):
        stream.write(b"x" * (1 << 20))
"""
    plan = plan_for(OUTPUT, before=(HookPlan(command=("/bin/eat",), timeout_s=60.0),))
    with captured(crash_lab, Request(plan, files={"/bin/eat": eat}), tmp_path) as capture:
        (name,) = find_dumps(capture.disks.output)
        saved = read_files(capture.disks.output, name, tmp_path / "saved")
        assert "Trigger a crash" in (saved / "vmcore-dmesg.txt").read_text()
