"""Finding a block device again."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import threading
import time
import uuid
from pathlib import Path

import pytest

from postpanic.errors import OutputError
from postpanic.saver.blocks import BlockFinder, list_block_devices
from postpanic.saver.plan import BlockPlan
from tests.unit.saver.sysfs import Sysfs

MIB = 1 << 20
EXT4 = "11111111-2222-3333-4444-555555555555"
SWAP = "66666666-7777-8888-9999-aaaaaaaaaaaa"


@pytest.fixture
def machine(tmp_path: Path) -> Sysfs:
    """Two disks of virtio, the first with two partitions, one of NVMe, and what nobody wants."""
    sysfs = Sysfs(tmp_path)
    make_ext4(sysfs.add_disk("pci0000:00/0000:00:04.0/virtio0/block/vda", size_bytes=16 * MIB, serial="disk one"))
    first = "pci0000:00/0000:00:05.0/virtio1/block/vdb"
    sysfs.add_disk(first, size_bytes=8 * MIB, queue__logical_block_size="512")
    root = sysfs.add_disk(f"{first}/vdb1", size_bytes=4 * MIB, number="254:17", partition="1", uevent="PARTNAME=root")
    make_ext4(root, label="root", ident=str(uuid.UUID(int=1)))
    swap = sysfs.add_disk(f"{first}/vdb2", size_bytes=4 * MIB, number="254:18", partition="2", uevent="PARTNAME=swap")
    make_image(swap, 4 * MIB)
    subprocess.run(["/usr/sbin/mkswap", "-q", "-U", SWAP, swap], check=True)
    make_image(sysfs.dev / "vdb", 8 * MIB)
    nvme = sysfs.add_disk(
        "virtual/nvme-subsystem/nvme-subsys0/nvme0n1", number="259:0", device__serial="NVME 0001  ", wwid="eui.0025"
    )
    make_image(nvme, MIB)
    controller = sysfs.sys / "devices/pci0000:00/0000:00:06.0/nvme/nvme0"
    controller.mkdir(parents=True)
    (sysfs.sys / "devices/virtual/nvme-subsystem/nvme-subsys0/nvme0").symlink_to(controller)
    sysfs.add_disk("pci0000:00/0000:00:06.0/nvme/nvme0/nvme0c0n1", number="259:1", hidden="1")
    sysfs.add_disk("virtual/block/loop0", size_bytes=0, number="7:0")
    sysfs.add_disk("pci0000:00/0000:00:01.1/ata1/host0/target0:0:0/0:0:0:0/block/sr0", number="11:0")
    return sysfs


def make_image(path: Path, size_bytes: int) -> Path:
    with path.open("wb") as stream:
        stream.truncate(size_bytes)
    return path


def make_ext4(path: Path, *, label: str = "crash", ident: str = EXT4) -> None:
    make_image(path, 4 * MIB)
    subprocess.run(["/usr/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-L", label, "-U", ident, path], check=True)


def finder(machine: Sysfs, *, read_timeout_s: float = 10.0) -> BlockFinder:
    return BlockFinder(sysfs=machine.sys, dev=machine.dev, read_timeout_s=read_timeout_s)


def test_only_what_has_a_medium_is_a_device(machine: Sysfs) -> None:
    devices = list_block_devices(machine.sys, machine.dev)
    assert [device.name for device in devices] == ["nvme0n1", "vda", "vdb", "vdb1", "vdb2"]
    (partition,) = [device for device in devices if device.name == "vdb2"]
    assert (partition.disk, partition.partition, partition.size_bytes) == ("vdb", 2, 4 * MIB)


@pytest.mark.parametrize(
    ("plan", "name"),
    [
        (BlockPlan(uuid=EXT4), "vda"),
        (BlockPlan(uuid=EXT4.upper(), label="crash"), "vda"),
        (BlockPlan(label="root"), "vdb1"),
        (BlockPlan(uuid=SWAP), "vdb2"),
        (BlockPlan(part_label="swap"), "vdb2"),
        (BlockPlan(serial="disk one"), "vda"),
        (BlockPlan(serial="disk_one"), "vda"),
        (BlockPlan(serial="NVME 0001"), "nvme0n1"),
        (BlockPlan(serial="eui.0025"), "nvme0n1"),
        (BlockPlan(sysfs_path="pci0000:00/0000:00:05.0", partition=2), "vdb2"),
        (BlockPlan(sysfs_path="pci0000:00/0000:00:05.0"), "vdb"),
        (BlockPlan(sysfs_path="/sys/devices/pci0000:00/0000:00:04.0/virtio*/block"), "vda"),
        (BlockPlan(sysfs_path="pci0000:00/0000:00:06.0/nvme"), "nvme0n1"),
        (BlockPlan(name="vdb1"), "vdb1"),
        (BlockPlan(name="/dev/vdb1"), "vdb1"),
        (BlockPlan(sysfs_path="pci0000:00/0000:00:05.0", partition=1, uuid=str(uuid.UUID(int=1))), "vdb1"),
    ],
)
def test_all_ways_lead_to_one_device(machine: Sysfs, plan: BlockPlan, name: str) -> None:
    device = finder(machine).find(plan)
    assert (device.name, device.path) == (name, machine.dev / name)


@pytest.mark.parametrize(
    "plan",
    [
        BlockPlan(uuid=EXT4, label="root"),
        BlockPlan(uuid=EXT4, sysfs_path="pci0000:00/0000:00:05.0"),
        BlockPlan(serial="disk one", partition=1),
        BlockPlan(sysfs_path="pci0000:00/0000:00:0"),
        BlockPlan(name="vdc"),
        BlockPlan(sysfs_path="pci0000:00/0000:00:05.0", uuid=SWAP),
    ],
)
def test_all_that_is_given_must_fit(machine: Sysfs, plan: BlockPlan) -> None:
    with pytest.raises(OutputError, match="no block device with"):
        finder(machine).find(plan)


def test_the_error_says_what_is_wanted_and_what_there_is(machine: Sysfs) -> None:
    with pytest.raises(OutputError) as caught:
        finder(machine).find(BlockPlan(uuid="dead-beef", part_label="x"), where="file /var/crash")
    text = str(caught.value)
    assert text.startswith("file /var/crash: no block device with UUID=dead-beef PARTLABEL=x; there are nvme0n1, vda")
    with pytest.raises(OutputError, match=rf"vda \(ext4 {EXT4}\), vdb, vdb1 \(ext4"):
        finder(machine).find(BlockPlan(uuid="dead-beef"))
    with pytest.raises(OutputError, match="nothing is said of the block device"):
        finder(machine).find(BlockPlan(partition=2))


def test_two_that_fit_are_one_too_many(machine: Sysfs) -> None:
    make_ext4(machine.dev / "vdb2")
    with pytest.raises(OutputError, match=r"more than one block device has UUID=.*: vda, vdb2"):
        finder(machine).find(BlockPlan(uuid=EXT4))
    assert [device.name for device in finder(machine).find_all(BlockPlan(uuid=EXT4))] == ["vda", "vdb2"]
    # A path of a multipath device: who holds it is wanted, not itself.
    (machine.sys / "class/block/vdb2/holders/dm-0").mkdir()
    assert finder(machine).find(BlockPlan(uuid=EXT4)).name == "vda"


def test_a_device_that_comes_late_is_waited_for(machine: Sysfs) -> None:
    polled: list[float] = []

    def poll() -> None:
        polled.append(time.monotonic())
        if len(polled) == 3:
            make_ext4(machine.add_disk("pci0000:00/0000:00:07.0/virtio3/block/vdd"), ident=str(uuid.UUID(int=9)))

    found = BlockFinder(poll, sysfs=machine.sys, dev=machine.dev).find(BlockPlan(uuid=str(uuid.UUID(int=9))), wait_s=20)
    assert found.name == "vdd"
    assert len(polled) == 3
    with pytest.raises(OutputError, match=r"within 0\.3 s"):
        finder(machine).find(BlockPlan(name="vdz"), wait_s=0.3)


def test_a_device_that_hangs_costs_its_time_once(machine: Sysfs) -> None:
    hanging = machine.add_disk("pci0000:00/0000:00:03.0/virtio9/block/vaa")
    # Opening a FIFO that nobody writes to hangs as a dead disk does.
    os.mkfifo(hanging)
    finds = finder(machine, read_timeout_s=0.3)
    started = time.monotonic()
    assert finds.find(BlockPlan(uuid=EXT4)).name == "vda"
    assert finds.find(BlockPlan(label="root")).name == "vdb1"
    assert 0.3 <= time.monotonic() - started < 15
    with pytest.raises(OutputError, match=r"; reading vaa takes longer than 0\.3 s$"):
        finds.find(BlockPlan(uuid="dead-beef"))
    # What can be told without reading is.
    assert finder(machine).find(BlockPlan(sysfs_path="pci0000:00/0000:00:04.0", uuid=EXT4)).name == "vda"
    release = threading.Thread(target=lambda: hanging.open("wb").close())
    release.start()
    release.join(10)


def make_gpt(guids: list[uuid.UUID], block_bytes: int) -> bytes:
    """Make a GPT without checksums: header in block 1, entries from block 2 on."""
    header = struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, 1, 99, 40, 90, b"", 2, 128, 128, 0)
    entries = [struct.pack("<16s16sQQQ", b"t" * 16, guid.bytes_le, 40, 50, 0).ljust(128, b"\0") for guid in guids]
    return bytes(block_bytes) + header.ljust(block_bytes, b"\0") + b"".join(entries)


@pytest.mark.parametrize("block_bytes", [512, 4096])
def test_a_partition_is_known_by_its_guid(machine: Sysfs, block_bytes: int) -> None:
    machine.write("class/block/vdb/queue/logical_block_size", str(block_bytes))
    noise = random.Random(1)
    guids = [uuid.UUID(bytes=noise.randbytes(16)) for _ in range(2)]
    with (machine.dev / "vdb").open("r+b") as stream:
        stream.write(make_gpt(guids, block_bytes))
    for guid, name in zip(guids, ("vdb1", "vdb2"), strict=True):
        assert finder(machine).find(BlockPlan(part_uuid=str(guid).upper())).name == name


def test_a_partition_is_known_by_the_signature_of_its_disk(machine: Sysfs) -> None:
    with (machine.dev / "vdb").open("r+b") as stream:
        stream.seek(440)
        stream.write(struct.pack("<I", 0x00C0FFEE).ljust(70, b"\0") + b"\x55\xaa")
    assert finder(machine).find(BlockPlan(part_uuid="00c0ffee-02")).name == "vdb2"


def test_what_the_kernel_says_of_a_partition_counts(machine: Sysfs) -> None:
    machine.write("class/block/vdb2/uevent", "PARTN=2\nPARTUUID=00c0ffee-0a")
    assert finder(machine).find(BlockPlan(part_uuid="00c0ffee-0a")).name == "vdb2"
