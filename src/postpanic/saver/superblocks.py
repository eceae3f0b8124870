"""
Tell what is on a block device by its first bytes: file systems, swap areas, and what must not be overwritten.

Stands in for libblkid, which the capture image does not have. What is read is
bounded: a few KiB at fixed places, and one root directory of FAT.

Sources: the kernel's ``fs/ext4/ext4.h``, ``fs/xfs/libxfs/xfs_format.h``,
``include/uapi/linux/btrfs_tree.h``, ``include/linux/swap.h``; Microsoft's FAT
specification (fatgen103); LUKS1 and LUKS2 on-disk formats; LVM2's
``format_text/layout.h``; ``include/uapi/linux/raid/md_p.h``; UEFI 2.10,
chapter 5 (GPT).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass

__all__ = [
    "RAW_DUMP_KIND",
    "RAW_DUMP_SIGNATURE",
    "SWAP_SIGNATURE",
    "Superblock",
    "find_signature",
    "format_uuid",
    "read_at",
    "read_superblock",
]

SWAP_SIGNATURE = b"SWAPSPACE2"
"""In the last 10 bytes of a swap area's first page."""
RAW_DUMP_SIGNATURE = b"POSTPANIC1"
"""In the same place: dumps of ours are on the device (docs/formats/raw.md)."""
RAW_DUMP_KIND = "postpanic_dumps"

_PAGE_SIZES = (4096, 8192, 16384, 65536)
_SUSPENDED = (b"S1SUSPEND", b"S2SUSPEND", b"ULSUSPEND", b"LINHIB0001", b"SWAP-SPACE")
_HEAD_BYTES = 68 * 1024
_FAT_ROOT_LIMIT_BYTES = 64 * 1024

# What only its kind matters of: kind, offset, signature.
_SIGNATURES: tuple[tuple[str, int, bytes], ...] = (
    ("ntfs", 3, b"NTFS    "),
    ("exfat", 3, b"EXFAT   "),
    ("BitLocker", 3, b"-FVE-FS-"),
    ("squashfs", 0, b"hsqs"),
    ("erofs", 1024, b"\xe2\xe1\xf5\xe0"),
    ("f2fs", 1024, b"\x10\x20\xf5\xf2"),
    ("bcachefs or bcache", 4096 + 24, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"),
    ("bcachefs", 4096 + 24, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"),
    ("iso9660", 32769, b"CD001"),
    ("dm-integrity", 0, b"integrt\0"),
    ("GPT partition table", 512, b"EFI PART"),
    ("GPT partition table", 4096, b"EFI PART"),
    ("reiserfs", 65536 + 52, b"ReIsEr"),
    ("jfs", 32768, b"JFS1"),
    ("oracleasm", 32, b"ORCLDISK"),
)
_MD_MAGIC = struct.pack("<I", 0xA92B4EFC)
_BOOT_SIGNATURE = b"\x55\xaa"

# Features beyond which it is ext4: what ext3 knows of incompatible and of read-only compatible ones.
_EXT3_INCOMPATIBLE = 0x2 | 0x4 | 0x10
_EXT3_READ_ONLY = 0x1 | 0x2 | 0x4
_EXT_HAS_JOURNAL = 0x4
_EXT_JOURNAL_DEVICE = 0x8


@dataclass(frozen=True)
class Superblock:
    """
    What is on a block device.

    Attributes
    ----------
    kind : str
        As blkid calls it: ``ext4``, ``xfs``, ``btrfs``, ``vfat``, ``swap``, ``crypto_LUKS``, ``LVM2_member`` …;
        empty where nothing is known.
    uuid, label : str
        As blkid prints them; empty where there are none.
    page_bytes : int
        Of a swap area, or of dumps of ours in its place: of the machine that made it.
    """

    kind: str = ""
    uuid: str = ""
    label: str = ""
    page_bytes: int = 0


def read_superblock(fd: int, size_bytes: int) -> Superblock:
    """
    Tell what is on a device.

    Parameters
    ----------
    fd : int
        Open for reading.
    size_bytes : int
        Of the device.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    head = read_at(fd, 0, min(_HEAD_BYTES, size_bytes))
    for decode in _DECODERS:
        found = decode(head)
        if found is not None:
            return found
    if size_bytes >= 65536 + 4096:
        found = _decode_btrfs(read_at(fd, 65536, 4096))
        if found is not None:
            return found
    found = _read_fat(head, lambda offset, size: read_at(fd, offset, size))
    if found is not None:
        return found
    for kind, offset, signature in _SIGNATURES:
        if head[offset : offset + len(signature)] == signature:
            return Superblock(kind)
    return _read_at_end(fd, size_bytes) or _decode_partition_table(head) or Superblock()


def find_signature(head: bytes, signature: bytes) -> int:
    """
    Find a signature where swap areas have theirs.

    Parameters
    ----------
    head : bytes
        The first 64 KiB.
    signature : bytes
        10 bytes.

    Returns
    -------
    int
        The size of the page that has it at its end, in bytes; 0 if there is none.
    """
    for page_bytes in _PAGE_SIZES:
        if head[page_bytes - len(signature) : page_bytes] == signature:
            return page_bytes
    return 0


def format_uuid(data: bytes) -> str:
    """Spell 16 bytes as RFC 4122 does; nothing for 16 zeroes."""
    if len(data) != 16 or not any(data):
        return ""
    digits = data.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def read_at(fd: int, offset: int, size_bytes: int) -> bytes:
    """Read what is there of a range; less at the end of the device."""
    parts: list[bytes] = []
    while size_bytes > 0:
        part = os.pread(fd, size_bytes, offset)
        if not part:
            break
        parts.append(part)
        offset += len(part)
        size_bytes -= len(part)
    return b"".join(parts)


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode(errors="replace").strip()


def _decode_luks(head: bytes) -> Superblock | None:
    """LUKS1: version, …, uuid at 168. LUKS2: version, header size, sequence number, label at 24, …, uuid at 168."""
    if head[:6] != b"LUKS\xba\xbe" or len(head) < 512:
        return None
    (version,) = struct.unpack_from(">H", head, 6)
    return Superblock("crypto_LUKS", _text(head[168:208]), _text(head[24:72]) if version == 2 else "")


def _decode_lvm(head: bytes) -> Superblock | None:
    """``struct label_header`` in one of the first four sectors; the PV's UUID begins ``struct pv_header``."""
    for sector in range(0, 2048, 512):
        label = head[sector : sector + 512]
        if label[:8] != b"LABELONE" or label[24:32] != b"LVM2 001":
            continue
        (offset,) = struct.unpack_from("<I", label, 20)
        text = _text(label[offset : offset + 32])
        ends = (6, 10, 14, 18, 22, 26, 32)
        return Superblock("LVM2_member", "-".join(text[a:b] for a, b in zip((0, *ends), ends, strict=False)))
    return None


def _decode_xfs(head: bytes) -> Superblock | None:
    """``struct xfs_dsb``: sb_uuid at 32, sb_fname (12 bytes) at 108."""
    if head[:4] != b"XFSB" or len(head) < 120:
        return None
    return Superblock("xfs", format_uuid(head[32:48]), _text(head[108:120]))


def _decode_btrfs(block: bytes) -> Superblock | None:
    """``struct btrfs_super_block``, at 64 KiB: fsid at 32, magic at 64, label (256 bytes) at 299."""
    if block[64:72] != b"_BHRfS_M":
        return None
    return Superblock("btrfs", format_uuid(block[32:48]), _text(block[299:555]))


def _decode_ext(head: bytes) -> Superblock | None:
    """``struct ext4_super_block``, at 1024: s_magic 56, features 92 … 103, s_uuid 104, s_volume_name (16 bytes) 120."""
    block = head[1024:2048]
    if len(block) < 1024 or block[56:58] != b"\x53\xef":
        return None
    compatible, incompatible, read_only = struct.unpack_from("<III", block, 92)
    if incompatible & _EXT_JOURNAL_DEVICE:
        kind = "jbd"
    elif incompatible & ~_EXT3_INCOMPATIBLE or read_only & ~_EXT3_READ_ONLY:
        kind = "ext4"
    else:
        kind = "ext3" if compatible & _EXT_HAS_JOURNAL else "ext2"
    return Superblock(kind, format_uuid(block[104:120]), _text(block[120:136]))


def _decode_swap(head: bytes) -> Superblock | None:
    """``union swap_header``: signature in the last 10 bytes of the first page, sws_uuid at 1036, sws_volume 1052."""
    for kind, signature in (("swap", SWAP_SIGNATURE), (RAW_DUMP_KIND, RAW_DUMP_SIGNATURE)):
        page_bytes = find_signature(head, signature)
        if page_bytes and (kind == "swap" or head[1024:1028] == b"\x01\0\0\0"):
            return Superblock(kind, format_uuid(head[1036:1052]), _text(head[1052:1068]), page_bytes)
        if page_bytes:
            # No swap area below it, so there is no UUID either.
            return Superblock(kind, page_bytes=page_bytes)
    for size in _PAGE_SIZES:
        if head[size - 10 : size].startswith(_SUSPENDED):
            # A machine's memory, or a format of Linux 2.1: neither is ours to overwrite.
            return Superblock("swsuspend")
    return None


def _decode_md(head: bytes) -> Superblock | None:
    """``struct mdp_superblock_1``, versions 1.1 and 1.2: set_uuid at 16, set_name (32 bytes) at 32."""
    for offset in (0, 4096):
        block = head[offset : offset + 256]
        if block[:4] == _MD_MAGIC and block[4:8] == b"\x01\0\0\0":
            return Superblock("linux_raid_member", format_uuid(block[16:32]), _text(block[32:64]))
    return None


_DECODERS: tuple[Callable[[bytes], Superblock | None], ...] = (
    _decode_luks,
    _decode_lvm,
    _decode_md,
    _decode_xfs,
    _decode_ext,
    _decode_swap,
)


def _read_fat(head: bytes, read: Callable[[int, int], bytes]) -> Superblock | None:
    """
    FAT12, FAT16 and FAT32: the boot sector, and the label in the root directory.

    fatgen103: BPB_BytsPerSec 11, SecPerClus 13, RsvdSecCnt 14, NumFATs 16, RootEntCnt 17, FATSz16 22, FATSz32 36,
    RootClus 44; BS_VolID and BS_VolLab 39 and 43, of FAT32 67 and 71.
    """
    if len(head) < 512 or head[510:512] != _BOOT_SIGNATURE:
        return None
    if head[54:62] in (b"FAT12   ", b"FAT16   ", b"FAT     "):
        is_fat32 = False
    elif head[82:90] == b"FAT32   ":
        is_fat32 = True
    else:
        return None
    sector_bytes, cluster_sectors, reserved, tables, root_entries = struct.unpack_from("<HBHBH", head, 11)
    serial = struct.unpack_from("<I", head, 67 if is_fat32 else 39)[0]
    uuid = f"{serial >> 16:04X}-{serial & 0xFFFF:04X}"
    boot_label = head[71:82] if is_fat32 else head[43:54]
    if is_fat32:
        table_sectors, root_cluster = struct.unpack_from("<I", head, 36)[0], struct.unpack_from("<I", head, 44)[0]
        root = (reserved + tables * table_sectors + max(root_cluster - 2, 0) * cluster_sectors) * sector_bytes
        size = cluster_sectors * sector_bytes
    else:
        table_sectors = struct.unpack_from("<H", head, 22)[0]
        root, size = (reserved + tables * table_sectors) * sector_bytes, root_entries * 32
    entries = read(root, min(size, _FAT_ROOT_LIMIT_BYTES))
    label = _find_volume_label(entries) or boot_label
    text = label.decode("ascii", errors="replace").rstrip(" \0")
    return Superblock("vfat", uuid if serial else "", "" if text == "NO NAME" else text)


def _find_volume_label(entries: bytes) -> bytes:
    """Find the entry of a root directory that is the volume's label: attribute 8, and no long name (15)."""
    for offset in range(0, len(entries) - 31, 32):
        name, attributes = entries[offset : offset + 11], entries[offset + 11]
        if name[0] == 0:
            break
        if name[0] != 0xE5 and attributes & 0x3F != 0x0F and attributes & 0x18 == 0x08:
            return name
    return b""


def _read_at_end(fd: int, size_bytes: int) -> Superblock | None:
    """Find what is at the end of a device: md 0.90 (64 KiB aligned) and 1.0 (8 KiB before the end, 4 KiB aligned)."""
    if size_bytes < 128 * 1024:
        return None
    old = (size_bytes & ~0xFFFF) - 0x10000
    if read_at(fd, old, 8) == _MD_MAGIC + b"\0\0\0\0":
        return Superblock("linux_raid_member")
    block = read_at(fd, ((size_bytes // 512 - 16) & ~7) * 512, 256)
    if block[:8] == _MD_MAGIC + b"\x01\0\0\0":
        return Superblock("linux_raid_member", format_uuid(block[16:32]), _text(block[32:64]))
    return None


def _decode_partition_table(head: bytes) -> Superblock | None:
    """Tell an MBR with partitions: 0x55aa, four entries of 16 bytes at 446, of which one has a type and a size."""
    if len(head) < 512 or head[510:512] != _BOOT_SIGNATURE:
        return None
    entries = [head[446 + 16 * number : 462 + 16 * number] for number in range(4)]
    if all(entry[0] in (0, 0x80) for entry in entries) and any(entry[4] and any(entry[12:16]) for entry in entries):
        return Superblock("DOS partition table")
    return None
