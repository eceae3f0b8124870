"""``postpanic crash-test`` on a real host: what it refuses, what it shows, and that it really crashes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from postpanic.capture.initramfs.archive import ImageTree
from postpanic.process import find_program
from postpanic.rehearse.kernels import Kernel
from tests.vm.hosts import HOST_DIR, crash_host
from tests.vm.lab import Lab

PROBE = "PYTHONPATH=/opt/host/src python3 /root/kexec_probe.py"
INIT = b"""#!/bin/busybox sh
/bin/busybox mkdir -p /proc
/bin/busybox mount -t proc proc /proc
echo "captured: $(/bin/busybox stat -c %s /proc/vmcore) bytes"
echo "captured: $(/bin/busybox grep ' / ' /proc/mounts)"
/bin/busybox cat /proc/cmdline
/bin/busybox grep -E '^Mem' /proc/meminfo
echo captured: done
/bin/busybox poweroff -f
"""


def build_capture_image() -> bytes:
    image = ImageTree()
    image.add_program("bin/busybox", find_program("busybox"))
    image.add_device("dev/console", 5, 1)
    image.add_bytes("init", INIT, 0o755)
    return image.encode()


@pytest.mark.parametrize("method", ["file", pytest.param("legacy", marks=pytest.mark.matrix)])
def test_what_was_verified_is_what_starts(
    method: str, crash_lab: Lab, fetch_kernel: Callable[[str], Kernel], tmp_path: Path
) -> None:
    kernel = fetch_kernel("6.1")
    commands = [
        "postpanic crash-test --yes-crash host",
        f"{PROBE} load {method} /boot/vmlinuz-{kernel.release} /capture.img",
        "postpanic crash-test",
        "postpanic crash-test --yes-crash other",
        "postpanic crash-test --kind softlockup --dry-run",
        "postpanic crash-test --dry-run",
        "postpanic crash-test --dry-run --json",
    ]
    files: dict[str, bytes | str | Path] = {
        "/root/kexec_probe.py": HOST_DIR / "kexec_probe.py",
        "/capture.img": build_capture_image(),
    }
    with crash_host(
        crash_lab,
        "6.1",
        commands,
        directory=tmp_path,
        files=files,
        trigger="postpanic crash-test --yes-crash host",
        crashkernel="128M",
    ) as crashed:
        nothing, loaded, nobody, other, lockup, dry, as_json = crashed.results
        assert nothing.status == 4
        assert "no capture kernel is loaded" in nothing.stderr
        assert "BAD  loaded" in nothing.stdout
        assert json.loads(loaded.stdout)["method"] == method
        assert (nobody.status, other.status) == (64, 64)
        assert "--yes-crash host" in nobody.stderr
        assert lockup.status == 4
        assert "lkdtm" in lockup.stderr
        assert dry.status == 0, dry.stdout + dry.stderr
        assert f"host ({kernel.release}) will crash" in dry.stdout
        assert json.loads(as_json.stdout)["outcome"] == "good"
        size = int(crashed.machine.wait_for(r"^captured: (\d+) bytes", timeout_s=60.0)[1])
        # What the core header promised: all memory but the reservation, and the text of the kernel once more.
        assert 895 << 20 < size < 960 << 20
        crashed.machine.wait_for(r"^captured: done", timeout_s=20.0)
        console = crashed.console
        assert "crashing host now" in console
        assert "sysrq: Trigger a crash" in console
        # A tmpfs has a size=, of half the memory: an image would have to fit in there.
        assert "captured: rootfs / rootfs rw 0 0\n" in console
        crashed.machine.wait_exit(timeout_s=20.0)
