from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postpanic.capture.kexec.boot_data import (
    BootData,
    decode_boot_params,
    decode_device_tree,
    find_core_header_word,
    is_boot_params,
    is_device_tree,
)
from postpanic.errors import CorruptError, PostpanicError
from tests.builders.boot_images import DeviceTreeBuilder, build_boot_params

LINE = "console=ttyAMA0 nr_cpus=1"


def build_tree() -> bytes:
    tree = DeviceTreeBuilder().begin("").property("#address-cells", struct.pack(">I", 2))
    tree.property("#size-cells", struct.pack(">I", 2)).property("model", b"virt\0")
    tree.begin("cpus").property("bootargs", b"no\0").end()
    tree.begin("chosen").property("bootargs", LINE.encode() + b"\0")
    tree.property("linux,initrd-start", struct.pack(">Q", 0x1_4000_0000))
    tree.property("linux,initrd-end", struct.pack(">Q", 0x1_4000_1000))
    tree.property("linux,elfcorehdr", struct.pack(">QQ", 0x1_5000_0000, 0x1000))
    tree.property(
        "linux,usable-memory-range", struct.pack(">QQQQ", 0x1_4000_0000, 0x1000_0000, 0x8000_0000, 0x100_0000)
    )
    return tree.end().end().build()


def test_device_tree() -> None:
    raw = build_tree()
    assert is_device_tree(raw)
    assert decode_device_tree(raw) == BootData(
        "device tree",
        LINE,
        (0x1_4000_0000, 0x1000),
        0x1_5000_0000,
        ((0x1_4000_0000, 0x1_5000_0000), (0x8000_0000, 0x8100_0000)),
    )


def test_short_initrd_addresses_and_nothing_chosen() -> None:
    tree = DeviceTreeBuilder().begin("").begin("chosen").property("linux,initrd-start", struct.pack(">I", 0x1000))
    tree.property("linux,initrd-end", struct.pack(">I", 0x3000))
    assert decode_device_tree(tree.end().end().build()).initrd == (0x1000, 0x2000)
    assert decode_device_tree(DeviceTreeBuilder().begin("").end().build()) == BootData("device tree", "", None, 0, ())


def test_boot_params_above_4_gib() -> None:
    memory = {0x1_2345_0000: b"quiet elfcorehdr=0x1f000000 x\0rest"}
    page = build_boot_params(
        command_line_paddr=0x1_2345_0000,
        initrd=(0x1_0000_0000, 0x5000),
        memory=[(0, 0x9FC00), (0x1000_0000, 0x2000_0000)],
    )
    assert is_boot_params(page)
    found = decode_boot_params(page, lambda paddr, size: memory[paddr][:size])
    assert found.command_line == "quiet elfcorehdr=0x1f000000 x"
    assert found.core_header == 0x1F000000
    assert found.initrd == (0x1_0000_0000, 0x5000)
    assert found.memory == ((0, 0x9FC00), (0x1000_0000, 0x2000_0000))


@pytest.mark.parametrize(
    ("line", "paddr"),
    [("elfcorehdr=786164K", 786164 << 10), ("a elfcorehdr=64K@0x1000 b", 0x1000), ("elfcorehdr=x", 0), ("", 0)],
)
def test_core_header_word(line: str, paddr: int) -> None:
    assert find_core_header_word(line) == paddr


@given(st.integers(0, 400), st.binary(min_size=1, max_size=8))
def test_damaged_tree_is_one_error(at: int, noise: bytes) -> None:
    raw = build_tree()
    damaged = raw[:at] + noise + raw[at + len(noise) :]
    with contextlib.suppress(PostpanicError):
        decode_device_tree(damaged)


@pytest.mark.parametrize("size", [0, 39, 60, 100, 200])
def test_cut_tree(size: int) -> None:
    with pytest.raises(CorruptError):
        decode_device_tree(build_tree()[:size])
