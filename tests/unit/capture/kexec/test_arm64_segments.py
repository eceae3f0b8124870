from __future__ import annotations

import struct
from collections.abc import Sequence

import capstone
import pytest
from hypothesis import given
from hypothesis import strategies as st

from postpanic.capture.host import MemoryRange
from postpanic.capture.kexec.arm64_segments import Arrangement, arrange, encode_entry
from postpanic.capture.kexec.boot_data import decode_device_tree
from postpanic.capture.kexec.device_tree import DeviceTree, Node, decode_tree
from postpanic.capture.kexec.images import decode_image
from postpanic.capture.kexec.refusals import LoadRefusedError
from tests.builders.boot_images import build_arm64_image, build_bzimage

MIB = 1 << 20
START = 0x7_7000_0000
PLACE = MemoryRange(START, START + 64 * MIB, "Crash kernel")
LOW = MemoryRange(0x5000_0000, 0x5000_0000 + 8 * MIB, "Crash kernel")
LINE = "console=ttyAMA0 nr_cpus=1"
HEADER = b"\x7fELF header" * 100


def make_tree() -> DeviceTree:
    chosen = {
        "bootargs": b"quiet root=/dev/vda\0",
        "linux,initrd-start": struct.pack(">I", 0x4800_0000),
        "linux,initrd-end": struct.pack(">I", 0x4900_0000),
        "kaslr-seed": bytes(8),
        "linux,uefi-system-table": b"firmware",
    }
    cells = {name: struct.pack(">I", 2) for name in ("#address-cells", "#size-cells")}
    root = Node("", cells, [Node("chosen", chosen), Node("cpus")])
    return DeviceTree(root, [(0x4000_0000, 0x1000), (0x4800_0000, 0x100_0000)])


def make(
    *, initrd: bytes | None = b"070701" * 5000, image_size: int = 9 * MIB, reserved: Sequence[MemoryRange] = (PLACE,)
) -> Arrangement:
    image = decode_image(build_arm64_image(b"kernel" * 5000, image_size=image_size))
    return arrange(image, initrd, LINE, make_tree(), reserved, HEADER)


def content_of(found: Arrangement, name: str) -> bytes:
    return next(piece.content for piece in found.pieces if piece.name == name)


@given(st.integers(1, 70 * MIB), st.integers(0, 30 * MIB))
def test_all_that_fits_has_its_own_place(image_size: int, initrd_size: int) -> None:
    if image_size + initrd_size > 60 * MIB:
        with pytest.raises(LoadRefusedError, match="do not fit"):
            make(initrd=bytes(initrd_size), image_size=max(image_size, 64 * MIB))
        return
    found = make(initrd=bytes(initrd_size) or None, image_size=image_size)
    reached = PLACE.start
    for piece in found.pieces:
        assert piece.paddr >= reached
        assert piece.paddr % (64 << 10) == 0
        assert piece.size_bytes % (64 << 10) == 0
        assert len(piece.content) <= piece.size_bytes
        reached = piece.paddr + piece.size_bytes
    assert reached <= PLACE.end
    places = {piece.name: piece for piece in found.pieces}
    assert places["kernel"].paddr % (2 * MIB) == 0
    assert places["kernel"].size_bytes >= image_size
    tree = places["device tree"]
    assert tree.paddr // (2 * MIB) == (tree.paddr + len(tree.content) - 1) // (2 * MIB)
    assert found.entry == places["entry"].paddr


def test_capture_kernel_is_told_what_it_needs() -> None:
    found = make()
    places = {piece.name: piece.paddr for piece in found.pieces}
    raw = content_of(found, "device tree")
    told = decode_device_tree(raw)
    assert told.command_line == LINE
    assert told.initrd == (places["initramfs"], 30_000)
    assert told.core_header == places["core header"]
    assert told.memory == ((PLACE.start, PLACE.end),)
    tree = decode_tree(raw)
    assert tree.reservations == [
        (0x4000_0000, 0x1000),
        (places["initramfs"], 30_000),
        (places["core header"], len(HEADER)),
    ]
    assert tree.chosen is not None
    seed = tree.chosen.properties["kaslr-seed"]
    assert len(seed) == 8
    assert seed != bytes(8)
    assert tree.chosen.properties["linux,uefi-system-table"] == b"firmware"
    assert seed != decode_tree(content_of(make(), "device tree")).chosen.properties["kaslr-seed"]  # type: ignore[union-attr]


def test_without_an_initramfs_the_hosts_is_not_told_either() -> None:
    raw = content_of(make(initrd=None), "device tree")
    assert decode_device_tree(raw).initrd is None
    assert b"linux,initrd" not in raw


def test_low_memory_is_told_of_and_left_alone() -> None:
    found = make(reserved=(LOW, PLACE))
    assert all(PLACE.start <= piece.paddr < PLACE.end for piece in found.pieces)
    # The first range is the one that it is loaded into.
    assert decode_device_tree(content_of(found, "device tree")).memory == (
        (PLACE.start, PLACE.end),
        (LOW.start, LOW.end),
    )


def test_entry_jumps_to_the_kernel_with_the_tree_in_x0() -> None:
    code = encode_entry(0x7_7000_0000, 0x7_7300_0000)
    listing = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM).disasm(code, 0x1000)
    assert [f"{one.mnemonic} {one.op_str}" for one in listing][:6] == [
        "ldr x4, #0x1018",
        "ldr x0, #0x1020",
        "mov x1, xzr",
        "mov x2, xzr",
        "mov x3, xzr",
        "br x4",
    ]
    assert code[0x18:] == struct.pack("<QQ", 0x7_7000_0000, 0x7_7300_0000)


def test_other_kernels_are_refused() -> None:
    bzimage = decode_image(build_bzimage(bytes(100)))
    with pytest.raises(LoadRefusedError, match="arm64 needs an Image"):
        arrange(bzimage, None, LINE, make_tree(), (PLACE,), HEADER)
    raw = bytearray(build_arm64_image(bytes(100)))
    raw[24] |= 1
    with pytest.raises(LoadRefusedError, match="other byte order"):
        arrange(decode_image(bytes(raw)), None, LINE, make_tree(), (PLACE,), HEADER)
    with pytest.raises(LoadRefusedError, match="no memory is reserved"):
        make(reserved=())
