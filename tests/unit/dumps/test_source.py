from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from postpanic.dumps.source import FileSource, MappedSource

SIZE = 5 * (1 << 20) + 123


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "file"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


@pytest.mark.parametrize("kind", [FileSource, MappedSource])
def test_reads_are_the_files_bytes(kind: type[FileSource], file: Path) -> None:
    contents = file.read_bytes()
    places = random.Random(2)
    source = kind(file)
    for _ in range(200):
        offset, size = places.randrange(SIZE + 5000), places.choice([1, 4096, 1 << 16, (1 << 16) + 77, 3 << 20])
        buffer = bytearray(size)
        got = source.read_into(offset, memoryview(buffer))
        assert buffer[:got] == contents[offset : offset + size]
        assert source.read(offset, size) == contents[offset : offset + size]
        assert source.find_data(offset) == min(offset, SIZE)
    assert source.read_into(-5, memoryview(bytearray(1 << 17))) == 0
    source.close()


def test_holes_are_zeroes(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    contents = bytearray(SIZE)
    with path.open("wb") as stream:
        os.truncate(path, SIZE)
        for start in (0, 1 << 20, (3 << 20) + 5000):
            contents[start : start + 70000] = random.Random(start).randbytes(70000)
            stream.seek(start)
            stream.write(contents[start : start + 70000])
    if path.stat().st_blocks * 512 >= SIZE:
        pytest.skip("this file system has no holes")
    source = FileSource(path)
    places = random.Random(3)
    for _ in range(100):
        offset, size = places.randrange(SIZE), places.choice([4096, 1 << 16, 1 << 20, SIZE])
        buffer = bytearray(b"x" * size)
        got = source.read_into(offset, memoryview(buffer))
        assert got == min(size, SIZE - offset)
        assert buffer[:got] == contents[offset : offset + got]
        assert not buffer[got:].strip(b"x")
    source.close()


def test_long_reads_are_mapped_and_short_ones_are_not(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = os.preadv

    def watch(fd: int, buffers: list[memoryview], offset: int) -> int:
        asked.append(sum(len(buffer) for buffer in buffers))
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", watch)
    source = MappedSource(file)
    assert source.read_into(100, memoryview(bytearray(1 << 20))) == 1 << 20
    assert not any(asked)
    assert source.read_into(100, memoryview(bytearray(1000))) == 1000
    assert asked[-1] == 1000
    source.close()


def test_what_cannot_be_mapped_is_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise OSError(19, "no such device")

    monkeypatch.setattr("postpanic.dumps.source.mmap.mmap", refuse)
    source = MappedSource(file)
    buffer = bytearray(1 << 20)
    assert source.read_into(7, memoryview(buffer)) == 1 << 20
    assert buffer == file.read_bytes()[7 : 7 + (1 << 20)]
    source.close()
