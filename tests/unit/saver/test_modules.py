"""Loading modules: what is told of those that cannot be loaded; the rest is for a real kernel."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import pytest

from postpanic.saver.modules import _read_module, load_modules


def test_one_that_fails_is_noted_and_the_others_are_tried(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/bad.ko").write_bytes(b"no module at all")
    (tmp_path / "lib/bad.ko.xz").write_bytes(b"no xz either")
    called: list[int] = []
    results = load_modules(
        ["/lib/bad.ko size=4", "lib/missing.ko", "/lib/bad.ko.xz"], root=tmp_path, after_each=lambda: called.append(1)
    )
    assert [result.path for result in results] == ["/lib/bad.ko", "lib/missing.ko", "/lib/bad.ko.xz"]
    assert not any(result.is_loaded for result in results)
    assert results[1].error == "no such file or directory"
    assert all(result.error for result in results)
    assert len(called) == 3


def test_compressed_ones_are_unpacked_where_the_kernel_cannot(tmp_path: Path) -> None:
    content = b"\x7fELF" + bytes(100000)
    (tmp_path / "a.ko").write_bytes(content)
    (tmp_path / "a.ko.xz").write_bytes(lzma.compress(content))
    (tmp_path / "a.ko.gz").write_bytes(gzip.compress(content))
    for name in ("a.ko", "a.ko.xz", "a.ko.gz"):
        assert _read_module(tmp_path / name) == content
    (tmp_path / "b.ko.gz").write_bytes(b"no gzip data")
    with pytest.raises(ValueError, match="no gzip data"):
        _read_module(tmp_path / "b.ko.gz")
