"""The boards there are, and what is no kernel for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from postpanic.errors import NotReadyError, UsageError
from postpanic.rehearse.boards import find_board


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


def test_what_there_is_not_is_said() -> None:
    with pytest.raises(NotReadyError, match="a machine of riscv64 cannot be rehearsed yet, only x86_64, aarch64"):
        find_board("riscv64")
    with pytest.raises(UsageError, match="is not described by a device tree"):
        find_board("x86_64", Path("board.dtb"))
