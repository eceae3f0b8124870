"""What is on a block device: judged by the programs that made it, and by blkid."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import uuid
import zlib
from pathlib import Path

import pytest

from postpanic.saver.superblocks import Superblock, read_superblock

MIB = 1 << 20
MAKERS: dict[str, tuple[int, list[str]]] = {
    "ext2": (16, ["mke2fs", "-q", "-F", "-t", "ext2", "-L", "spare room"]),
    "ext3": (16, ["mke2fs", "-q", "-F", "-t", "ext3", "-L", "sixteen-letters!"]),
    "ext4": (16, ["mke2fs", "-q", "-F", "-t", "ext4"]),
    "ext4-64K": (64, ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "65536"]),
    "xfs": (320, ["mkfs.xfs", "-q", "-f", "-L", "twelveletter"]),
    "btrfs": (128, ["mkfs.btrfs", "-q", "-f", "-L", "crash"]),
    "fat12": (4, ["mkfs.vfat", "-F", "12", "-n", "TWELVE"]),
    "fat16": (16, ["mkfs.vfat", "-F", "16"]),
    "fat32": (64, ["mkfs.vfat", "-F", "32", "-n", "THIRTY TWO"]),
    "fat32-4K": (512, ["mkfs.vfat", "-F", "32", "-S", "4096", "-n", "BIG"]),
    "swap": (16, ["mkswap", "-q", "-L", "swap"]),
    "swap-64K": (16, ["mkswap", "-q", "-p", "65536"]),
}


def probe(path: Path) -> Superblock:
    fd = os.open(path, os.O_RDONLY)
    try:
        return read_superblock(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)


def blkid(path: Path) -> dict[str, str]:
    words = ["/usr/sbin/blkid", "-p", "-o", "full", "-s", "TYPE", "-s", "UUID", "-s", "LABEL", str(path)]
    text = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    found = {}
    for part in text.partition(": ")[2].split('" '):
        key, _, value = part.strip().partition('="')
        found[key] = value.rstrip('"')
    return found


def make_image(path: Path, size_bytes: int) -> Path:
    with path.open("wb") as stream:
        stream.truncate(size_bytes)
    return path


@pytest.mark.parametrize("name", MAKERS)
def test_kind_uuid_and_label_are_those_of_blkid(tmp_path: Path, name: str) -> None:
    size, command = MAKERS[name]
    image = make_image(tmp_path / "image", size * MIB)
    subprocess.run([f"/usr/sbin/{command[0]}", *command[1:], image], check=True, capture_output=True)
    judged = blkid(image)
    assert judged["TYPE"]
    found = probe(image)
    assert (found.kind, found.uuid, found.label) == (judged["TYPE"], judged["UUID"], judged.get("LABEL", ""))
    assert found.page_bytes == (0 if found.kind != "swap" else 65536 if "64K" in name else 4096)


def test_a_label_that_was_changed_is_the_one_of_the_root_directory(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", 64 * MIB)
    subprocess.run(["/usr/sbin/mkfs.vfat", "-F", "32", "-n", "BEFORE", image], check=True, capture_output=True)
    data = image.read_bytes()
    place = data.rindex(b"BEFORE     ")
    assert place > data.index(b"BEFORE     ")
    image.write_bytes(data[:place] + b"AFTER      " + data[place + 11 :])
    assert blkid(image)["LABEL"] == "AFTER"
    assert probe(image).label == "AFTER"


def make_lvm() -> bytes:
    """Make a physical volume's label, in sector 1: label_header and pv_header of LVM2's layout.h."""
    body = struct.pack("<I8s", 32, b"LVM2 001") + b"abcdefghijklmnopqrstuvwxyz012345" + struct.pack("<Q", 64 * MIB)
    body = body.ljust(512 - 20, b"\0")
    checksum = zlib.crc32(body, 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
    return bytes(512) + b"LABELONE" + struct.pack("<QI", 1, checksum) + body


def make_luks(ident: uuid.UUID) -> bytes:
    """Make the binary header of LUKS2."""
    form = ">6sHQQ48s32s64s40s"
    return struct.pack(form, b"LUKS\xba\xbe", 2, 16384, 1, b"vault", b"sha256", b"", str(ident).encode())


def make_md(ident: uuid.UUID) -> bytes:
    """Make md's superblock, version 1.2, with its checksum."""
    block = bytearray(1024)
    struct.pack_into("<III I16s32s", block, 0, 0xA92B4EFC, 1, 0, 0, ident.bytes, b"host:0")
    struct.pack_into("<Q", block, 144, 8)
    total = sum(struct.unpack("<64I", block[:256]))
    struct.pack_into("<I", block, 216, (total & 0xFFFFFFFF) + (total >> 32) & 0xFFFFFFFF)
    return bytes(4096) + bytes(block)


def test_a_physical_volume_is_known(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", 64 * MIB)
    with image.open("r+b") as stream:
        stream.write(make_lvm())
    judged = blkid(image)
    assert judged["TYPE"] == "LVM2_member"
    assert probe(image) == Superblock("LVM2_member", judged["UUID"])


def test_an_encrypted_volume_is_known(tmp_path: Path) -> None:
    ident = uuid.uuid4()
    image = make_image(tmp_path / "image", 16 * MIB)
    with image.open("r+b") as stream:
        stream.write(make_luks(ident))
    assert blkid(image) == {"TYPE": "crypto_LUKS", "UUID": str(ident), "LABEL": "vault"}
    assert probe(image) == Superblock("crypto_LUKS", str(ident), "vault")


def test_a_member_of_an_array_is_known(tmp_path: Path) -> None:
    ident = uuid.uuid4()
    image = make_image(tmp_path / "image", 16 * MIB)
    with image.open("r+b") as stream:
        stream.write(make_md(ident))
    assert probe(image) == Superblock("linux_raid_member", str(ident), "host:0")


def test_a_partition_table_is_something(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", 16 * MIB)
    with image.open("r+b") as stream:
        stream.seek(446)
        stream.write(struct.pack("<B3sB3sII", 0x80, b"", 0x83, b"", 2048, 4096).ljust(64, b"\0") + b"\x55\xaa")
    assert probe(image).kind == "DOS partition table"
    with image.open("r+b") as stream:
        stream.seek(512)
        stream.write(b"EFI PART")
    assert probe(image).kind == "GPT partition table"


@pytest.mark.parametrize("size", [0, 1, 511, 512, 1500, 4096, 70000, 300000])
def test_noise_of_any_size_is_nothing(tmp_path: Path, size: int) -> None:
    image = tmp_path / "image"
    image.write_bytes(random.Random(size).randbytes(size))
    assert probe(image) == Superblock()


@pytest.mark.parametrize("name", ["ext4", "fat16", "fat32", "swap", "btrfs"])
def test_what_is_cut_or_damaged_is_no_trap(tmp_path: Path, name: str) -> None:
    size, command = MAKERS[name]
    image = make_image(tmp_path / "image", size * MIB)
    subprocess.run([f"/usr/sbin/{command[0]}", *command[1:], image], check=True, capture_output=True)
    noise = random.Random(1)
    head = image.read_bytes()[:70000]
    for _ in range(200):
        cut = bytearray(head[: noise.choice((512, 1024, 1100, 2048, 4096, 65536, len(head)))])
        for _ in range(noise.randrange(20)):
            cut[noise.randrange(min(len(cut), 2048))] = noise.randrange(256)
        (tmp_path / "cut").write_bytes(cut)
        probe(tmp_path / "cut")
