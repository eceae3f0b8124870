"""An empty qcow2 image over another one, by the specification's own layout."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from postpanic.errors import NotReadyError
from postpanic.rehearse.overlays import make_overlay, measure_image


@pytest.mark.parametrize("size", [1 << 20, 513 << 20, 3 << 40])
def test_header_tables_and_backing_file(tmp_path: Path, size: int) -> None:
    backing = tmp_path / "a disk, with a comma.img"
    with backing.open("wb") as stream:
        stream.truncate(size)
    data = make_overlay(backing, tmp_path / "over.qcow2").read_bytes()
    assert struct.unpack_from(">4sI", data) == (b"QFI\xfb", 3)
    name_at, name_size, bits, virtual = struct.unpack_from(">QIIQ", data, 8)
    assert (bits, virtual) == (16, size)
    described = json.loads(data[name_at : name_at + name_size].decode().removeprefix("json:"))
    assert described == {"driver": "raw", "file": {"driver": "file", "filename": str(backing)}}
    entries, l1_at, refcounts_at, clusters = struct.unpack_from(">IQQI", data, 36)
    assert entries == -(-size // (512 << 20))
    assert (l1_at, refcounts_at, clusters) == (3 << 16, 1 << 16, 1)
    assert not any(data[l1_at:])
    (block_at,) = struct.unpack_from(">Q", data, refcounts_at)
    counts = struct.unpack_from(f">{len(data) >> 16}H", data, block_at)
    assert set(counts) == {1}
    assert len(data) >= l1_at + entries * 8


def test_qemu_reads_it(tmp_path: Path) -> None:
    program = shutil.which("qemu-img")
    if program is None:
        pytest.skip("qemu-img is not installed")
    backing = tmp_path / "disk.img"
    backing.write_bytes(b"x" * (1 << 20))
    overlay = make_overlay(backing, tmp_path / "over.qcow2")
    assert subprocess.run([program, "check", str(overlay)], check=False).returncode == 0
    assert (
        subprocess.run(
            [program, "compare", "-f", "raw", "-F", "qcow2", str(backing), str(overlay)], check=False
        ).returncode
        == 0
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "has 0 bytes"), (b"x" * 513, "has 513 bytes"), (b"QFI\xfb" + bytes(508), "is a qcow2 image")],
)
def test_what_is_no_raw_image_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(content)
    with pytest.raises(NotReadyError, match=reason):
        measure_image(path)
    with pytest.raises(NotReadyError, match="no such file"):
        measure_image(tmp_path / "none")
