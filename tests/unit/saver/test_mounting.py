"""Options of fstab, and what mount(2) says to an ordinary user."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from postpanic.errors import OutputError
from postpanic.saver.deadlines import DeadlineError, call_with_deadline
from postpanic.saver.mounting import MountFlag, mount, parse_mount_options, sync_file_system, unmount


@pytest.mark.parametrize(
    ("options", "flags", "data"),
    [
        ("", 0, ""),
        ("defaults", 0, ""),
        ("rw,relatime,errors=remount-ro", MountFlag.RELATIME, "errors=remount-ro"),
        ("ro,noatime,ro,rw", MountFlag.NOATIME, ""),
        ("noatime,atime,nosuid,nodev,noexec", MountFlag.NOSUID | MountFlag.NODEV | MountFlag.NOEXEC, ""),
        ("noauto,nofail,_netdev,user,x-systemd.automount,x-systemd.requires=a,comment=b", 0, ""),
        ("subvol=@crash,compress=zstd:1, discard=async", 0, "subvol=@crash,compress=zstd:1,discard=async"),
        ('umask=0077,context="system_u:object_r:a:s0:c1,c2",codepage=437', 0, "umask=0077,codepage=437"),
        ("usrquota,,grpquota,", 0, "usrquota,grpquota"),
        ("vers=4.2,soft,timeo=50,addr=192.0.2.1", 0, "vers=4.2,soft,timeo=50,addr=192.0.2.1"),
    ],
)
def test_options_are_divided(options: str, flags: int, data: str) -> None:
    assert parse_mount_options(options) == (flags, data)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may mount")
def test_who_may_not_mount_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"^spare: cannot mount tmpfs as tmpfs: not permitted \(EPERM\)"):
        mount("tmpfs", tmp_path, "tmpfs", where="spare")


def test_what_is_not_mounted_cannot_be_unmounted(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot unmount"):
        unmount(tmp_path)


def test_one_file_system_can_be_synced(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    sync_file_system(fd)
    os.close(fd)
    with pytest.raises(OSError, match=r"[Bb]ad file"):
        sync_file_system(fd)


def test_a_call_that_hangs_is_left_behind() -> None:
    started = time.monotonic()
    with pytest.raises(DeadlineError, match=r"^disk: mounting takes longer than 0\.1 s, left behind"):
        call_with_deadline(lambda: time.sleep(30), 0.1, doing="mounting", where="disk")
    assert time.monotonic() - started < 15
    assert call_with_deadline(lambda: 7, 5, doing="counting") == 7
    with pytest.raises(ValueError, match="invalid literal"):
        call_with_deadline(lambda: int("x"), 5, doing="counting")
