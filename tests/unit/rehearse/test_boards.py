"""The boards there are, and what is no kernel for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from postpanic.capture.kexec.device_tree import DeviceTree, Node, encode_tree
from postpanic.errors import CorruptError, NotReadyError, UsageError
from postpanic.rehearse.boards import find_board, read_device_tree


def test_a_board_knows_its_kernels(tmp_path: Path) -> None:
    board = find_board("x86_64")
    assert board.command_line == "console=ttyS0 no_timer_check"
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(bytes(0x202) + b"HdrS")
    board.check_kernel(kernel)
    kernel.write_bytes(b"\x7fELF" + bytes(0x300))
    with pytest.raises(NotReadyError, match="is no bzImage of x86: at 0x202 is 00000000, not 48647253"):
        board.check_kernel(kernel)
    with pytest.raises(NotReadyError, match="no such file"):
        board.check_kernel(tmp_path / "none")


def test_a_board_of_arm64(tmp_path: Path) -> None:
    board = find_board("aarch64", Path("board.dtb"))
    assert board.command_line == "console=ttyAMA0"
    kernel = tmp_path / "Image"
    kernel.write_bytes(bytes(0x38) + b"ARM\x64")
    board.check_kernel(kernel)
    kernel.write_bytes(bytes(0x202) + b"HdrS")
    with pytest.raises(NotReadyError, match="is no Image of arm64: at 0x38 is 00000000, not 41524d64"):
        board.check_kernel(kernel)


def test_a_device_tree_is_read_without_its_room(tmp_path: Path) -> None:
    tree = DeviceTree(Node("", {"model": b"board\0"}, [Node("chosen")]))
    packed, path = encode_tree(tree), tmp_path / "board.dtb"
    total = len(packed) + (1 << 20)
    path.write_bytes(packed[:4] + total.to_bytes(4, "big") + packed[8:] + bytes(1 << 20))

    assert read_device_tree(path) == packed
    tree.root.properties["blob"] = bytes(1 << 20)
    path.write_bytes(encode_tree(tree))
    with pytest.raises(CorruptError, match=r"board\.dtb: a device tree of 1\d+ bytes: an emulated board takes 1048576"):
        read_device_tree(path)
    path.write_bytes(b"\x7fELF" * 20)
    with pytest.raises(CorruptError, match=r"board\.dtb: not a device tree: it begins with 7f454c46, not d00dfeed"):
        read_device_tree(path)
    with pytest.raises(NotReadyError, match="no such file"):
        read_device_tree(tmp_path / "none")


def test_what_there_is_not_is_said() -> None:
    with pytest.raises(NotReadyError, match="a machine of riscv64 cannot be rehearsed yet, only x86_64, aarch64"):
        find_board("riscv64")
    with pytest.raises(UsageError, match="is not described by a device tree"):
        find_board("x86_64", Path("board.dtb"))
