"""The saver's disks in a real kernel: only what is wanted gets a driver, each file system takes a dump."""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from postpanic.capture.initramfs.image import ImageRequest, build_image
from postpanic.rehearse.kernels import Kernel
from postpanic.rehearse.machine import Machine, MachineConfig
from postpanic.saver.plan import BlockPlan, DevicePlan, FilePlan, RawPlan, RetentionPlan, SavePlan, TargetPlan
from postpanic.saver.recovery import find_raw_dumps, recover_raw_dump, release_raw_dump
from tests.vm.lab import Lab, hold_machine

pytestmark = pytest.mark.vm

MIB = 1 << 20
PROGRAM = Path(__file__).parent / "scenarios/save_to_disks.py"
# As the image's own /init begins; what finds its modules comes before any other import.
START = b"#!/usr/bin/python3.11 -BOOPSsXutf8\nimport postpanic_start\n"
DUMP = "host-20260131-235959"
MODULES = ("virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "ahci", "nvme", "ext4", "xfs", "btrfs", "vfat")
EXT4 = "11111111-2222-3333-4444-555555555501"
XFS = "11111111-2222-3333-4444-555555555502"
BTRFS = "11111111-2222-3333-4444-555555555503"
SWAP = "11111111-2222-3333-4444-555555555504"
FULL = "11111111-2222-3333-4444-555555555505"
READ_ONLY = "11111111-2222-3333-4444-555555555506"
HUNG_DISK = "file=null-co://,format=raw,if=none,file.latency-ns=3600000000000"
# Else QEMU itself looks into the first sector.
GEOMETRY = "cyls=1000,heads=16,secs=63"


@dataclass
class Disks:
    """Images, and the words of QEMU that attach them."""

    directory: Path
    words: list[str] = field(default_factory=list)

    def make(self, name: str, size_mib: int, *command: str) -> Path:
        path = self.directory / f"{name}.img"
        with path.open("wb") as stream:
            stream.truncate(size_mib * MIB)
        if command:
            subprocess.run([f"/usr/sbin/{command[0]}", *command[1:], path], check=True, capture_output=True)
        return path

    def attach(self, name: str, device: str, *, options: str = "cache=unsafe") -> None:
        path = self.directory / f"{name}.img"
        self.words += [
            "-drive",
            f"file={path},format=raw,if=none,id={name},{options}",
            "-device",
            f"{device},drive={name}",
        ]

    def attach_hung(self, name: str, device: str) -> None:
        """Attach a disk that answers in an hour."""
        self.words += ["-drive", f"id={name},{HUNG_DISK}", "-device", f"{device},drive={name}"]


def make_disks(directory: Path, *, has_nvme_module: bool) -> Disks:
    disks = Disks(directory)
    disks.make("ext4", 64, "mke2fs", "-q", "-F", "-t", "ext4", "-U", EXT4, "-L", "crash")
    disks.make("xfs", 320, "mkfs.xfs", "-q", "-f", "-m", f"uuid={XFS}")
    disks.make("btrfs", 128, "mkfs.btrfs", "-q", "-f", "-U", BTRFS)
    disks.make("vfat", 64, "mkfs.vfat", "-F", "32", "-n", "CRASH", "-i", "C0FFEE01")
    disks.make("swap", 64, "mkswap", "-q", "-U", SWAP)
    disks.make("full", 4, "mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-U", FULL)
    disks.make("readonly", 16, "mke2fs", "-q", "-F", "-t", "ext4", "-U", READ_ONLY)
    disks.make("nvme", 64, "mke2fs", "-q", "-F", "-t", "ext4", "-L", "on-nvme")
    disks.make("scsi", 64, "mke2fs", "-q", "-F", "-t", "ext4", "-L", "on-scsi")
    disks.make("sata", 64, "mke2fs", "-q", "-F", "-t", "ext4", "-L", "on-sata")
    raw = disks.make("raw", 64)
    raw.write_bytes(bytes(64 << 10) + random.Random(1).randbytes(64 * MIB - (64 << 10)))
    for number, name in enumerate(("ext4", "xfs", "btrfs", "vfat", "swap", "full", "raw")):
        disks.attach(name, f"virtio-blk-pci,serial=SERIAL-{name},addr=0x{number + 4:x}")
    disks.attach("readonly", "virtio-blk-pci,addr=0xb", options="readonly=on")
    disks.attach("nvme", "nvme,serial=NVME-0001,addr=0xc")
    # A host of SCSI, one of its two disks hangs.
    disks.words += ["-device", "virtio-scsi-pci,id=scsi0,addr=0xd"]
    disks.attach_hung("hungscsi", f"scsi-hd,bus=scsi0.0,channel=0,scsi-id=1,lun=0,{GEOMETRY}")
    disks.attach("scsi", "scsi-hd,bus=scsi0.0,channel=0,scsi-id=2,lun=0,serial=SCSI-0001")
    disks.words += ["-device", "ahci,id=ahci0,addr=0xe"]
    disks.attach("sata", "ide-hd,bus=ahci0.1,serial=SATA-0001")
    # One that nobody wants, and one that is wanted.
    disks.attach_hung("hungvirtio", f"virtio-blk-pci,addr=0x10,{GEOMETRY}")
    disks.attach_hung("hungwanted", f"virtio-blk-pci,addr=0x3,{GEOMETRY}")
    if has_nvme_module:
        # A driver that is built in has taken all disks before the first line of ours.
        disks.attach_hung("hungnvme", "nvme,serial=HUNG,addr=0x11")
    return disks


def make_plan(bus: str = "pci0000:00") -> SavePlan:
    places = [f"{bus}/0000:00:{number:02x}.0" for number in (3, 4, 5, 6, 7, 8, 9, 0xA, 0xB, 0xC, 0xE)]
    scsi = f"{bus}/0000:00:0d.0/virtio*/host*/target*:0:2/*:0:2:0"
    targets: list[TargetPlan] = [
        FilePlan(name="ext4", device=BlockPlan(uuid=EXT4), options="defaults,ro,noatime,errors=remount-ro"),
        FilePlan(name="ext4 again", device=BlockPlan(label="crash"), retention=RetentionPlan(keep_count=1)),
        FilePlan(name="xfs", device=BlockPlan(uuid=XFS), filesystem="xfs", path="/"),
        FilePlan(
            name="btrfs", device=BlockPlan(uuid=BTRFS), filesystem="btrfs", options="compress=zstd:1,x-systemd.a=b"
        ),
        FilePlan(
            name="vfat", device=BlockPlan(label="CRASH", uuid="C0FF-EE01"), filesystem="vfat", options="umask=0077"
        ),
        FilePlan(name="serial", device=BlockPlan(serial="SERIAL-ext4"), path="/serial"),
        FilePlan(name="place", device=BlockPlan(sysfs_path=f"{bus}/0000:00:04.0"), path="/place"),
        FilePlan(name="name", device=BlockPlan(name="nvme0n1"), path="/name"),
        FilePlan(name="nvme", device=BlockPlan(serial="NVME-0001"), path="/crash"),
        FilePlan(name="nvme place", device=BlockPlan(sysfs_path=f"{bus}/0000:00:0c.0"), path="/place"),
        FilePlan(name="scsi", device=BlockPlan(serial="SCSI-0001", label="on-scsi")),
        FilePlan(name="sata", device=BlockPlan(serial="SATA-0001", label="on-sata")),
        RawPlan(name="swap", device=BlockPlan(uuid=SWAP), swap=True),
        RawPlan(name="raw", device=BlockPlan(serial="SERIAL-raw")),
        RawPlan(name="raw on ext4", device=BlockPlan(uuid=EXT4)),
        FilePlan(name="full", device=BlockPlan(uuid=FULL)),
        FilePlan(name="read-only", device=BlockPlan(uuid=READ_ONLY)),
        FilePlan(name="wrong kind", device=BlockPlan(uuid=XFS), filesystem="ext4"),
        FilePlan(name="unknown kind", device=BlockPlan(uuid=EXT4), filesystem="f2fs"),
        FilePlan(name="wrong option", device=BlockPlan(uuid=EXT4), options="nonsense=1"),
        FilePlan(name="missing", device=BlockPlan(uuid="dead-beef")),
    ]
    devices = DevicePlan(sysfs_paths=(*places, scsi))
    return SavePlan(node="host", devices=devices, targets=tuple(targets))


@dataclass(frozen=True)
class Guest:
    """What a guest has said, and its disks."""

    lines: dict[str, str]
    text: str
    directory: Path


@pytest.fixture(scope="module", params=["6.1-generic", pytest.param("6.12", marks=pytest.mark.matrix)])
def guest(
    request: pytest.FixtureRequest,
    crash_lab: Lab,
    fetch_kernel: Callable[[str], Kernel],
    tmp_path_factory: pytest.TempPathFactory,
) -> Guest:
    directory = tmp_path_factory.mktemp("disks")
    kernel = fetch_kernel(request.param)
    disks = make_disks(directory, has_nvme_module=request.param == "6.1-generic")
    image = build_image(
        ImageRequest(
            plan=make_plan(),
            modules_dir=kernel.modules_dir,
            modules=dict.fromkeys(MODULES, ""),
            files={"/check": START + PROGRAM.read_bytes()},
            compression="gzip",
        )
    )
    initrd = directory / "initrd"
    initrd.write_bytes(image.data)
    config = MachineConfig(
        kernel=kernel.image,
        initrd=initrd,
        command_line="console=ttyS0 no_timer_check rdinit=/check PYTHONHASHSEED=0 panic=-1",
        memory_mib=512,
        cpus=1,
        # The firmware looks at no disk but the one it boots from, which is none.
        extra=("-boot", "strict=on", *disks.words),
    )
    with hold_machine(crash_lab.cache_dir), Machine(config, directory, watch=crash_lab.watch) as machine:
        machine.wait_for(r"^disks: done", timeout_s=150, failure=r"^disks: failed.*|Kernel panic.*")
        text = machine.read_console()
    found = re.findall(r"^disks: ([^:]+): (.*)$", text, re.MULTILINE)
    return Guest(dict(found), text, directory)


SAVED = {
    "ext4": f"/var/crash/{DUMP} on vd",
    "ext4 again": f"/var/crash/{DUMP}-1 on vd",
    "xfs": f"/{DUMP} on vd",
    "btrfs": f"/var/crash/{DUMP} on vd",
    "vfat": f"/var/crash/{DUMP} on vd",
    "serial": f"/serial/{DUMP} on vd",
    "place": f"/place/{DUMP} on vd",
    "name": f"/name/{DUMP} on nvme",
    "nvme": f"/crash/{DUMP} on nvme",
    "nvme place": f"/place/{DUMP} on nvme",
    "scsi": f"/var/crash/{DUMP} on sd",
    "sata": f"/var/crash/{DUMP} on sd",
    "swap": f"{DUMP} on /dev/vd",
    "raw": f"{DUMP} on /dev/vd",
}
FAILED = {
    "raw on ext4": r"OutputError after .*: ext4 is on /dev/vd\w, a device with nothing on it is wanted: not ",
    "full": r"NoSpaceError after .*: cannot write: no space left on device",
    "read-only": r"OutputError after .*: cannot mount /dev/vd\w as ext4: the device is read-only \(E(ROFS|ACCES)\)",
    "wrong kind": r"OutputError after .*: cannot mount /dev/vd\w as ext4: no such file system on it.* \(EINVAL\)",
    "unknown kind": r"OutputError after .*: cannot mount /dev/vd\w as f2fs: .* its module is missing \(ENODEV\)",
    "wrong option": r"OutputError after .*: cannot mount .* \(EINVAL\), with the options nonsense=1",
    "missing": r"OutputError after .*: no block device with UUID=dead-beef within 8 s; there are .*; reading vd\w",
}


@pytest.mark.parametrize("name", SAVED)
def test_a_dump_gets_there(guest: Guest, name: str) -> None:
    assert guest.lines[name].startswith(f"saved to {SAVED[name]}"), guest.lines[name]


@pytest.mark.parametrize("name", FAILED)
def test_what_cannot_be_done_is_told_in_plain_words(guest: Guest, name: str) -> None:
    assert re.match(FAILED[name], guest.lines[name]), guest.lines[name]


def test_old_dumps_go_when_the_new_one_is_safe(guest: Guest) -> None:
    assert guest.lines["ext4 again"].endswith(f"deleted ['{DUMP}']")


def test_disks_that_hang_have_no_driver(guest: Guest) -> None:
    """Of those that are there only the wanted ones are block devices; a wanted one that hangs holds nobody up."""
    found = re.search(r"^disks: devices: (.*)$", guest.text, re.MULTILINE)
    assert found
    assert len(re.findall(r"'vd\w'", found[1])) == 9
    assert len(re.findall(r"'sd\w'", found[1])) == 2
    assert len(re.findall(r"'nvme\dn1'", found[1])) == 1
    assert re.search(r"^disks: prepared in .*, missing \[\], failures \[\]$", guest.text, re.MULTILINE)
    assert re.search(r"^disks: pending: \['virtio\d'\]$", guest.text, re.MULTILINE)
    assert re.search(r"^disks: mounts: 0$", guest.text, re.MULTILINE)


def test_what_is_on_the_disks_is_what_was_claimed(guest: Guest, tmp_path: Path) -> None:
    """The host looks for itself, without mounting: ext4 by debugfs, btrfs by its own tools."""
    check = ["/usr/sbin/e2fsck", "-fn", str(guest.directory / "ext4.img")]
    assert subprocess.run(check, capture_output=True, check=False).returncode == 0
    vmcore = tmp_path / "vmcore"
    for name, place in (("ext4", f"/var/crash/{DUMP}-1/vmcore"), ("nvme", f"/crash/{DUMP}/vmcore")):
        command = ["/usr/sbin/debugfs", "-R", f"dump {place} {vmcore}", str(guest.directory / f"{name}.img")]
        subprocess.run(command, capture_output=True, check=True)
        check_content(vmcore)
    command = ["/usr/bin/btrfs", "restore", str(guest.directory / "btrfs.img"), str(tmp_path)]
    subprocess.run(command, capture_output=True, check=True)
    check_content(tmp_path / "var/crash" / DUMP / "vmcore")


@pytest.mark.parametrize("name", ["swap", "raw"])
def test_dumps_come_off_raw_devices_on_the_next_boot(guest: Guest, tmp_path: Path, name: str) -> None:
    device = guest.directory / f"{name}.img"
    (dump,) = find_raw_dumps([device])
    assert dump.is_complete
    recovered = recover_raw_dump(dump, tmp_path)
    assert recovered.damaged == ()
    check_content(recovered.directory / "vmcore")
    assert (recovered.directory / "vmcore-dmesg.txt").read_bytes() == b"panic\n" * 1000
    release_raw_dump(dump)
    known = subprocess.run(["/usr/sbin/blkid", "-p", device], capture_output=True, text=True, check=False).stdout
    assert (f'UUID="{SWAP}"' in known and 'TYPE="swap"' in known) if name == "swap" else known == ""


def check_content(vmcore: Path) -> None:
    data = vmcore.read_bytes()
    assert len(data) == (1 << 16) + 4096 * 2000
    assert data[:8] == b"KDUMP   "
    assert not any(data[8 : 1 << 16])
    assert data[-4:] == (1999).to_bytes(4, "little")
