"""Disks that stand in have the identifiers of the real ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from postpanic.errors import NotReadyError
from postpanic.process import find_program, run
from postpanic.rehearse.stand_ins import CONTROLLERS, choose_controller, make_stand_in, spell_disks
from postpanic.saver.plan import BlockPlan, FilePlan, RawPlan
from postpanic.saver.superblocks import read_superblock

UUID = "6b1f7e2e-28c8-4f0b-b15b-9f0a7f6d5a10"


@pytest.mark.parametrize(("filesystem", "kind"), [("ext2", "ext2"), ("ext4", "ext4")])
def test_file_system_has_the_identifiers(tmp_path: Path, filesystem: str, kind: str) -> None:
    plan = FilePlan(device=BlockPlan(uuid=UUID, label="dumps"), filesystem=filesystem)
    disk = make_stand_in(plan, 100 << 20, tmp_path / "target0.img")
    with disk.path.open("rb") as stream:
        found = read_superblock(stream.fileno(), disk.path.stat().st_size)
    assert (found.kind, found.uuid, found.label) == (kind, UUID, "dumps")
    assert disk.path.stat().st_size == 100 << 20
    assert disk.path.stat().st_blocks * 512 < 20 << 20, "it is sparse"


def test_partition_has_the_identifiers(tmp_path: Path) -> None:
    part_uuid = "0fc63daf-8483-4772-8e79-3d69d8477de4"
    device = BlockPlan(part_uuid=part_uuid, part_label="crash", partition=3)
    disk = make_stand_in(FilePlan(device=device), 80 << 20, tmp_path / "target0.img")
    table = json.loads(run([find_program("sfdisk"), "--json", disk.path]).stdout)["partitiontable"]
    (partition,) = table["partitions"]
    assert table["label"] == "gpt"
    assert partition["node"].endswith("3")
    assert partition["uuid"].lower() == part_uuid
    assert partition["name"] == "crash"
    assert partition["size"] * 512 == 80 << 20
    listed = run([find_program("dumpe2fs"), "-h", f"{disk.path}?offset={partition['start'] * 512}"]).stdout
    assert b"Filesystem magic number:  0xEF53" in listed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["target0.img"]


def test_swap_area_has_the_identifiers(tmp_path: Path) -> None:
    disk = make_stand_in(RawPlan(device=BlockPlan(uuid=UUID), swap=True), 64 << 20, tmp_path / "target0.img")
    with disk.path.open("rb") as stream:
        found = read_superblock(stream.fileno(), disk.path.stat().st_size)
    assert (found.kind, found.uuid) == ("swap", UUID)


def test_file_system_without_a_stand_in_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotReadyError, match="zfs cannot be made"):
        make_stand_in(FilePlan(filesystem="zfs"), 64 << 20, tmp_path / "target0.img")


def test_controller_is_that_of_the_image() -> None:
    chosen = choose_controller(["ext4", "scsi_mod", "sd_mod", "megaraid-sas"])
    assert chosen is CONTROLLERS["megaraid_sas"]
    assert choose_controller(["ext4", "hpsa"]) is None


def test_disks_have_names_of_their_own(tmp_path: Path) -> None:
    disks = [
        make_stand_in(RawPlan(device=BlockPlan(serial=serial)), 1 << 20, tmp_path / f"target{number}.img")
        for number, serial in enumerate(["", "S3 R1AL"])
    ]
    words = spell_disks(CONTROLLERS["ahci"], disks, 1)
    devices = [word for word in words if word.startswith("ide-hd")]
    assert devices == [
        "ide-hd,bus=hba.0,drive=disk1,serial=rehearsal-target0",
        "ide-hd,bus=hba.1,drive=disk2,serial=S3R1AL",
    ]
