"""The whole way on a real host: ``postpanic arm``, ``postpanic crash-test``, the capture, the next look at the disk."""

from __future__ import annotations

import json
import re
from pathlib import Path

from postpanic.cli.app import main
from postpanic.process import find_program, run
from tests.vm.captures import find_dumps, read_files
from tests.vm.hosts import crash_host
from tests.vm.lab import Lab

COMMANDS = ("mkdir -p /var/crash", "postpanic arm", "postpanic crash-test --dry-run")
ENDED = r"^postpanic: rebooting"


def test_a_host_captures_its_own_crash(crash_lab: Lab, tmp_path: Path) -> None:
    with crash_host(
        crash_lab,
        "6.1",
        COMMANDS,
        directory=tmp_path,
        trigger="postpanic crash-test --yes-crash host",
        crashkernel="128M",
        packages=("python3-pyelftools",),
        command_timeout_s=240.0,
    ) as crashed:
        _, armed, dry = crashed.results
        assert armed.status == 0, armed.stdout + armed.stderr
        assert "ready: a crash will be captured" in armed.stdout
        assert dry.status == 0, dry.stdout + dry.stderr
        crashed.machine.wait_for(ENDED, timeout_s=90.0)
        crashed.machine.wait_exit(timeout_s=30.0)
        said = "\n".join(re.findall(r"^postpanic: (.*)$", crashed.console, re.MULTILINE))
        assert "self-test passed" in said
        (tmp_path / "said").write_text(f"{armed.stdout}\n{said}\n")
        disk = crashed.disks[0]
        # A boot would replay the journal.
        finished = run([find_program("e2fsck"), "-fy", disk], check=False)
        assert finished.returncode in {0, 1}
        (name,) = find_dumps(disk, "/var/crash")
        saved = read_files(disk, name, tmp_path / "saved")
    assert name.startswith("/var/crash/host-")
    assert "sysrq: Trigger a crash" in (saved / "vmcore-dmesg.txt").read_text()
    assert json.loads((saved / "vmcore.manifest.json").read_text())["self_test"]["passed"] is True
    assert main(["verify", str(saved / "vmcore")]) == 0
