"""
Kernel images and what loaders tell them, from their specifications.

Documentation/arch/x86/boot.rst and zero-page.rst, Documentation/arch/arm64/booting.rst,
drivers/firmware/efi/libstub/zboot-header.S, Devicetree Specification 0.4 chapter 5.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

SETUP_SECTORS = 3


def build_bzimage(payload: bytes, *, is_64bit: bool = True, init_size: int = 0x3000, cmdline_size: int = 2047) -> bytes:
    image = bytearray((SETUP_SECTORS + 1) * 512)
    image[0x1F1] = SETUP_SECTORS
    image[0x1FE:0x200] = b"\x55\xaa"
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, 0x20F)
    struct.pack_into("<H", image, 0x236, int(is_64bit))
    struct.pack_into("<I", image, 0x238, cmdline_size)
    struct.pack_into("<I", image, 0x260, init_size)
    return bytes(image) + payload


def build_arm64_image(payload: bytes, *, image_size: int = 0x4000) -> bytes:
    header = struct.pack("<IIQQQQQQ", 0x91005A4D, 0x14000000, 0, image_size, 10, 0, 0, 0) + b"ARM\x64" + bytes(4)
    return header + payload


def build_zboot(packed: bytes, compression: bytes) -> bytes:
    header = bytearray(64)
    header[:2], header[4:8] = b"MZ", b"zimg"
    struct.pack_into("<II", header, 8, len(header), len(packed))
    header[24 : 24 + len(compression)] = compression
    return bytes(header) + packed


def build_boot_params(
    *,
    command_line_paddr: int,
    initrd: tuple[int, int],
    memory: Sequence[tuple[int, int]],
    boot_flag: bytes = b"\x55\xaa",
) -> bytes:
    page = bytearray(4096)
    page[0x1FE:0x200] = boot_flag
    page[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", page, 0x218, initrd[0] & 0xFFFFFFFF, initrd[1] & 0xFFFFFFFF)
    struct.pack_into("<II", page, 0xC0, initrd[0] >> 32, initrd[1] >> 32)
    struct.pack_into("<I", page, 0x228, command_line_paddr & 0xFFFFFFFF)
    struct.pack_into("<I", page, 0xC8, command_line_paddr >> 32)
    page[0x1E8] = len(memory)
    for number, (start, end) in enumerate(memory):
        struct.pack_into("<QQI", page, 0x2D0 + number * 20, start, end - start, 1)
    return bytes(page)


class DeviceTreeBuilder:
    """A flattened device tree, nodes opened and closed in order."""

    def __init__(self) -> None:
        self._structure = bytearray()
        self._strings = bytearray()

    def begin(self, name: str) -> DeviceTreeBuilder:
        self._structure += struct.pack(">I", 1) + name.encode() + b"\0"
        self._structure += bytes(-len(self._structure) % 4)
        return self

    def end(self) -> DeviceTreeBuilder:
        self._structure += struct.pack(">I", 2)
        return self

    def property(self, name: str, value: bytes) -> DeviceTreeBuilder:
        self._structure += struct.pack(">III", 3, len(value), len(self._strings)) + value
        self._structure += bytes(-len(self._structure) % 4)
        self._strings += name.encode() + b"\0"
        return self

    def build(self) -> bytes:
        structure = bytes(self._structure) + struct.pack(">I", 9)
        structure_at = 40 + 16
        strings_at = structure_at + len(structure)
        size = strings_at + len(self._strings)
        header = struct.pack(
            ">IIIIIIIIII", 0xD00DFEED, size, structure_at, strings_at, 40, 17, 16, 0, len(self._strings), len(structure)
        )
        return header + bytes(16) + structure + bytes(self._strings)
