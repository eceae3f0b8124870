"""
What a loader tells the kernel it loads: command line, initramfs, memory.

x86: ``struct boot_params``, the "zero page" (``arch/x86/include/uapi/asm/bootparam.h``,
``Documentation/arch/x86/zero-page.rst``). arm64: a flattened device tree
(Devicetree Specification 0.4, chapter 5) with ``/chosen``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from postpanic.capture.kexec.device_tree import FDT_MAGIC, Node, decode_tree

__all__ = ["BootData", "decode_boot_params", "decode_device_tree", "is_boot_params", "is_device_tree"]

BOOT_PARAMS_BYTES = 4096
COMMAND_LINE_MAX_BYTES = 4096

_E820_ENTRY = struct.Struct("<QQI")
_E820_MAX = 128
_E820_RAM = 1


@dataclass(frozen=True)
class BootData:
    """
    What the capture kernel will be told.

    Attributes
    ----------
    kind : str
        ``boot parameters`` or ``device tree``.
    command_line : str
        With what the loader has added.
    initrd : (int, int) or None
        Physical address and size in bytes.
    core_header : int
        Physical address; 0 where it is not told.
    memory : tuple of (int, int)
        ``[start, end)`` of what it may use.
    """

    kind: str
    command_line: str
    initrd: tuple[int, int] | None
    core_header: int
    memory: tuple[tuple[int, int], ...]


def is_boot_params(page: bytes) -> bool:
    """Tell whether a page is a ``struct boot_params``; the kexec program fills what is before the magic with 1s."""
    return page[0x202:0x206] == b"HdrS"


def decode_boot_params(page: bytes, read: Callable[[int, int], bytes]) -> BootData:
    """
    Decode a ``struct boot_params``.

    Parameters
    ----------
    page : bytes
        Its 4096 bytes.
    read : callable
        Reads physical memory: address, size in bytes.
    """

    def u32(at: int) -> int:
        return int.from_bytes(page[at : at + 4], "little")

    image = u32(0x218) | u32(0xC0) << 32
    image_bytes = u32(0x21C) | u32(0xC4) << 32
    line_paddr = u32(0x228) | u32(0xC8) << 32
    raw = read(line_paddr, COMMAND_LINE_MAX_BYTES) if line_paddr else b""
    line = raw.split(b"\0", 1)[0].decode(errors="surrogateescape")
    memory = []
    for number in range(min(page[0x1E8], _E820_MAX)):
        start, size, kind = _E820_ENTRY.unpack_from(page, 0x2D0 + number * _E820_ENTRY.size)
        if kind == _E820_RAM:
            memory.append((start, start + size))
    initrd = (image, image_bytes) if image_bytes else None
    return BootData("boot parameters", line, initrd, find_core_header_word(line), tuple(memory))


def find_core_header_word(line: str) -> int:
    """Find the address in ``elfcorehdr=[size@]address`` as ``memparse()`` reads it; 0 without one."""
    from postpanic.units import parse_size

    for word in line.split():
        if word.startswith("elfcorehdr="):
            try:
                return parse_size(word.partition("=")[2].rpartition("@")[2])
            except ValueError:
                return 0
    return 0


def is_device_tree(page: bytes) -> bool:
    """Tell whether a page is the beginning of a flattened device tree."""
    return page[:4] == FDT_MAGIC


def decode_device_tree(raw: bytes) -> BootData:
    """
    Decode the ``/chosen`` node of a flattened device tree.

    Raises
    ------
    CorruptError
        If the tree makes no sense.
    """
    tree = decode_tree(raw)
    chosen = tree.chosen or Node("chosen")
    start, end = chosen.number("linux,initrd-start", 0), chosen.number("linux,initrd-end", 0)
    header = tree.decode_ranges(chosen.properties.get("linux,elfcorehdr", b""))
    usable = tree.decode_ranges(chosen.properties.get("linux,usable-memory-range", b""))
    line = chosen.properties.get("bootargs", b"").split(b"\0", 1)[0].decode(errors="surrogateescape")
    return BootData(
        "device tree",
        line,
        (start, end - start) if end > start else None,
        header[0][0] if header else find_core_header_word(line),
        tuple((base, base + size) for base, size in usable),
    )
