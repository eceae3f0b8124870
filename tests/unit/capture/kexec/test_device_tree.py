from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postpanic.capture.kexec.device_tree import DeviceTree, Node, decode_tree, encode_tree, read_unfolded_tree
from postpanic.errors import CorruptError, FactAbsentError, PostpanicError
from tests.builders.boot_images import DeviceTreeBuilder

NAMES = st.text("abcdefgh,-#@0123456789", min_size=1, max_size=12)
NODES = st.recursive(
    st.builds(Node, NAMES, st.dictionaries(NAMES, st.binary(max_size=20), max_size=4)),
    lambda children: st.builds(
        Node, NAMES, st.dictionaries(NAMES, st.binary(max_size=20), max_size=4), st.lists(children, max_size=3)
    ),
    max_leaves=12,
)


def build_tree() -> bytes:
    tree = DeviceTreeBuilder().begin("").property("#address-cells", struct.pack(">I", 2))
    tree.property("#size-cells", struct.pack(">I", 1)).property("compatible", b"linux,dummy-virt\0")
    tree.begin("memory@40000000").property("reg", struct.pack(">QI", 0x40000000, 0x20000000)).end()
    return tree.begin("chosen").property("bootargs", b"quiet\0").end().end().build()


def test_builders_tree() -> None:
    tree = decode_tree(build_tree())
    assert tree.root.name == ""
    assert [child.name for child in tree.root.children] == ["memory@40000000", "chosen"]
    assert tree.chosen is tree.root.children[1]
    assert tree.chosen.properties == {"bootargs": b"quiet\0"}
    assert tree.cells == (2, 1)
    memory = tree.root.find_child("memory@40000000")
    assert memory is not None
    assert tree.decode_ranges(memory.properties["reg"]) == [(0x40000000, 0x20000000)]


@given(NODES, st.lists(st.tuples(st.integers(1, 1 << 63), st.integers(1, 1 << 40)), max_size=4), st.integers(0, 255))
def test_what_is_written_is_read(root: Node, reserved: list[tuple[int, int]], cpu: int) -> None:
    tree = DeviceTree(root, reserved, cpu)
    raw = encode_tree(tree)
    assert decode_tree(raw) == tree
    assert len(raw) % 8 == 0
    assert raw[4:8] == struct.pack(">I", len(raw))


@given(st.integers(0, 300), st.binary(min_size=1, max_size=8))
def test_damaged_tree_is_one_error(at: int, noise: bytes) -> None:
    raw = build_tree()
    with contextlib.suppress(PostpanicError):
        decode_tree(raw[:at] + noise + raw[at + len(noise) :])


def test_deep_tree_is_one_error() -> None:
    builder = DeviceTreeBuilder()
    for _ in range(5000):
        builder.begin("a")
    with pytest.raises(CorruptError, match="deeper than 64"):
        decode_tree(builder.build())


def test_chosen_is_made_and_addresses_must_fit() -> None:
    tree = DeviceTree(Node("", {"#address-cells": struct.pack(">I", 1)}))
    assert tree.make_chosen() is tree.make_chosen()
    assert tree.encode_range(0x1000, 0x20) == struct.pack(">II", 0x1000, 0x20)
    with pytest.raises(CorruptError, match="do not fit into 1 and 1 cells"):
        tree.encode_range(1 << 32, 0x20)
    tree.root.properties["#address-cells"] = b"\xff" * 4
    assert len(tree.encode_range(1, 1)) == 20


def test_unfolded_tree(tmp_path: Path) -> None:
    (tmp_path / "chosen").mkdir()
    (tmp_path / "name").write_bytes(b"\0")
    (tmp_path / "compatible").write_bytes(b"board\0")
    (tmp_path / "chosen/bootargs").write_bytes(b"quiet\0")
    (tmp_path / "chosen/name").write_bytes(b"chosen\0")
    assert read_unfolded_tree(tmp_path) == DeviceTree(
        Node("", {"compatible": b"board\0"}, [Node("chosen", {"bootargs": b"quiet\0"})])
    )
    with pytest.raises(FactAbsentError, match="no device tree"):
        read_unfolded_tree(tmp_path / "nothing")
