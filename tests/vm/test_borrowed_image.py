"""A crash is saved onto a logical volume, by the saver in an image of initramfs-tools."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from postpanic.cli.app import main
from postpanic.process import find_program, run
from postpanic.rehearse.disks import make_empty_disk
from postpanic.rehearse.kernels import Kernel
from tests.vm.hosts import ROOT_UUID, crash_host
from tests.vm.lab import Lab

PACKAGES = (
    *("initramfs-tools", "busybox", "klibc-utils", "udev", "lvm2", "cpio", "python3-pyelftools"),
    # Essential ones that mkinitramfs and ldd take for granted.
    *("bash", "diffutils", "dpkg", "findutils", "gzip", "libc-bin", "mawk"),
)
LVM = "--config 'activation { udev_sync=0 udev_rules=0 } devices { use_devicesfile=0 }'"
CONFIG = '[capture]\nimage = "initramfs-tools"\n[after]\nsuccess = "poweroff"\nfailure = "poweroff"\n'
DISK_BYTES = 1 << 30
DATA_OFFSET = 1 << 20
"""Of the first extent of a physical volume, by default: lvm.conf(5), data_alignment."""
COMMANDS = (
    "modprobe dm_mod && mkdir -p /run/lvm /var/crash",
    f"pvcreate {LVM} /dev/vdc && vgcreate {LVM} vg /dev/vdc && lvcreate {LVM} -y -Wn -Zn -l 100%FREE -n crash vg",
    "mke2fs -q -t ext4 /dev/vg/crash && mount /dev/vg/crash /var/crash",
    "postpanic arm",
    "cp /root/c.toml /etc/postpanic.toml; postpanic arm --json",
)


@pytest.mark.matrix
def test_a_logical_volume_is_saved_to(crash_lab: Lab, fetch_kernel: Callable[[str], Kernel], tmp_path: Path) -> None:
    fetch_kernel("6.1")
    disk = tmp_path / "volume.img"
    make_empty_disk(disk, DISK_BYTES)
    with crash_host(
        crash_lab,
        "6.1",
        COMMANDS,
        directory=tmp_path / "host",
        crashkernel="384M",
        memory_mib=1536,
        options=f"root=UUID={ROOT_UUID}",
        disks=(disk,),
        packages=PACKAGES,
        files={"/root/c.toml": CONFIG},
        command_timeout_s=240.0,
    ) as crashed:
        for result in crashed.results[:3]:
            assert result.status == 0, result.stderr
        refused, armed = crashed.results[3:]
        assert refused.status == 4
        assert "vg-crash is a logical volume (LVM)" in refused.stderr
        assert 'image = "dracut" or "initramfs-tools"' in refused.stderr
        assert armed.status == 0, armed.stderr
        found = json.loads(armed.stdout)
        assert found["targets"][0].endswith(", on LVM")
        assert found["verification"]["outcome"] == "good"
        crashed.machine.wait_for(r"^postpanic: saved: ", timeout_s=240.0, failure="postpanic: the saver did not start")
        crashed.machine.wait_exit(timeout_s=60.0)
    volume = f"{disk}?offset={DATA_OFFSET}"
    listed = run([find_program("debugfs"), "-R", "ls -p /", volume]).stdout.decode()
    (name,) = [line.split("/")[5] for line in listed.splitlines() if line.split("/")[5:6] and "-20" in line]
    run([find_program("debugfs"), "-R", f"rdump /{name} {tmp_path}", volume])
    assert main(["verify", str(tmp_path / name / "vmcore")]) == 0
    assert "sysrq: Trigger a crash" in (tmp_path / name / "vmcore-dmesg.txt").read_text()
