"""How much memory a save takes, by what is free."""

from __future__ import annotations

from pathlib import Path

import pytest

from postpanic.saver.memory_image import choose_buffer_bytes, choose_select_bytes
from postpanic.units import MIB


def free(tmp_path: Path, mib: int) -> Path:
    path = tmp_path / "meminfo"
    path.write_text(f"MemTotal:  {mib << 11} kB\nMemFree:  1 kB\nMemAvailable:  {mib << 10} kB\n")
    return path


@pytest.mark.parametrize(("available", "buffers", "choosing"), [(4, 2, 1.5), (16, 3, 4), (64, 24, 16), (4096, 24, 64)])
def test_what_is_taken_follows_what_is_free(tmp_path: Path, available: int, buffers: float, choosing: float) -> None:
    meminfo = free(tmp_path, available)
    assert choose_buffer_bytes(1, meminfo) == buffers * MIB
    assert choose_select_bytes(meminfo) == choosing * MIB


def test_where_nobody_tells_something_usual_is_taken(tmp_path: Path) -> None:
    assert choose_buffer_bytes(1, tmp_path / "none") == 24 * MIB
    assert choose_select_bytes(tmp_path / "none") == 64 * MIB
