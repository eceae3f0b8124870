"""Which devices are matched with drivers: on a sysfs of files, where each one written to is looked at afterwards."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from postpanic.saver.devices import DeviceBinder
from postpanic.saver.plan import DevicePlan
from tests.unit.saver.sysfs import Sysfs

DISK = "pci0000:00/0000:00:04.0"
OTHER = "pci0000:00/0000:00:05.0"


@pytest.fixture
def machine(tmp_path: Path) -> Sysfs:
    """Two devices of PCI, a bus for them, one of SCSI, and one that is never held back."""
    sysfs = Sysfs(tmp_path)
    for bus in ("pci", "virtio", "scsi", "mdio_bus"):
        sysfs.write(f"bus/{bus}/drivers_autoprobe", "1")
        sysfs.write(f"bus/{bus}/drivers_probe", "")
        (sysfs.sys / "bus" / bus / "drivers").mkdir()
    sysfs.write("module/scsi_mod/parameters/scan", "async")
    for place in (DISK, OTHER):
        add_device(sysfs, place, "pci")
    return sysfs


def add_device(sysfs: Sysfs, place: str, bus: str) -> Path:
    directory = sysfs.sys / "devices" / place
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "subsystem").symlink_to(os.path.relpath(sysfs.sys / "bus" / bus, directory))
    return directory


def read(sysfs: Sysfs, path: str) -> str:
    return (sysfs.sys / path).read_text().strip()


def make_binder(sysfs: Sysfs, *paths: str, timeout_s: float = 5.0) -> DeviceBinder:
    return DeviceBinder(DevicePlan(sysfs_paths=paths, wait_s=0.2), sysfs=sysfs.sys, timeout_s=timeout_s)


def test_no_bus_matches_by_itself_any_more(machine: Sysfs) -> None:
    make_binder(machine, DISK).hold_back()
    assert {bus: read(machine, f"bus/{bus}/drivers_autoprobe") for bus in ("pci", "virtio", "mdio_bus")} == {
        "pci": "0",
        "virtio": "0",
        "mdio_bus": "1",
    }
    assert read(machine, "module/scsi_mod/parameters/scan") == "async"


def test_where_all_are_wanted_nothing_is_touched(machine: Sysfs) -> None:
    binder = DeviceBinder(DevicePlan(bind_all=True), sysfs=machine.sys)
    binder.hold_back()
    assert binder.bind() == 0
    assert read(machine, "bus/pci/drivers_autoprobe") == "1"
    assert read(machine, "bus/pci/drivers_probe") == ""
    assert binder.wait() == []


def test_only_what_is_named_is_matched_and_what_is_below(machine: Sysfs) -> None:
    binder = make_binder(machine, DISK)
    binder.bind()
    assert read(machine, "bus/pci/drivers_probe") == "0000:00:04.0"
    assert read(machine, "bus/virtio/drivers_probe") == ""
    add_device(machine, f"{DISK}/virtio0", "virtio")
    add_device(machine, f"{OTHER}/virtio1", "virtio")
    binder.bind()
    assert read(machine, "bus/virtio/drivers_probe") == "virtio0"


def test_a_device_is_tried_again_when_there_is_a_driver_more(machine: Sysfs) -> None:
    binder = make_binder(machine, DISK)
    binder.bind()
    (machine.sys / "bus/pci/drivers_probe").write_text("")
    binder.bind()
    assert read(machine, "bus/pci/drivers_probe") == ""
    (machine.sys / "bus/pci/drivers/virtio-pci").mkdir()
    binder.bind()
    assert read(machine, "bus/pci/drivers_probe") == "0000:00:04.0"


def test_one_that_has_a_driver_is_left_alone(machine: Sysfs) -> None:
    (machine.sys / "devices" / DISK / "driver").mkdir()
    make_binder(machine, DISK).bind()
    assert read(machine, "bus/pci/drivers_probe") == ""


def test_what_is_needed_comes_first(machine: Sysfs) -> None:
    clock = add_device(machine, "platform/clock", "virtio")
    link = machine.sys / "devices" / DISK / "supplier:virtio:clock"
    link.mkdir()
    (link / "supplier").symlink_to(clock)
    make_binder(machine, DISK).bind()
    assert read(machine, "bus/virtio/drivers_probe") == "clock"


def test_a_scsi_host_looks_at_the_one_address(machine: Sysfs) -> None:
    binder = make_binder(machine, f"{DISK}/virtio*/host*/target*:0:2/*:0:2:7")
    binder.hold_back()
    assert read(machine, "module/scsi_mod/parameters/scan") == "manual"
    add_device(machine, f"{DISK}/virtio0", "virtio")
    add_device(machine, f"{DISK}/virtio0/host3", "scsi")
    machine.write(f"devices/{DISK}/virtio0/host3/scsi_host/host3/scan", "")
    binder.bind()
    assert read(machine, f"devices/{DISK}/virtio0/host3/scsi_host/host3/scan") == "0 2 7"
    for target in ("target3:0:1/3:0:1:7", "target3:0:2/3:0:2:7"):
        add_device(machine, f"{DISK}/virtio0/host3/{target}", "scsi")
    binder.bind()
    assert read(machine, "bus/scsi/drivers_probe") == "3:0:2:7"


def test_a_driver_that_hangs_is_named_and_left_behind(machine: Sysfs) -> None:
    probe = machine.sys / "bus/pci/drivers_probe"
    probe.unlink()
    # Nobody reads: opening it for writing hangs as a probe does.
    os.mkfifo(probe)
    binder = make_binder(machine, DISK, OTHER, timeout_s=0.2)
    started = time.monotonic()
    binder.bind()
    binder.bind()
    assert time.monotonic() - started < 15
    assert binder.pending == ["0000:00:04.0", "0000:00:05.0"]
    assert binder.failures == [
        f"the driver's probe of 0000:00:{number}.0 takes longer than 0.2 s, left behind" for number in ("04", "05")
    ]
    # Lets them go.
    fd = os.open(probe, os.O_RDWR)
    while binder.pending:
        binder.bind()
    os.close(fd)
    assert len(binder.failures) == 2


def test_what_is_not_there_is_named(machine: Sysfs) -> None:
    assert make_binder(machine, DISK, "pci0000:00/0000:00:1f.0", "../../etc").wait() == [
        *("pci0000:00/0000:00:1f.0", "../../etc")
    ]
