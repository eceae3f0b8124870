from __future__ import annotations

import errno
import hashlib
import os
import random
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from postpanic.dumps.digest import ChunkHashes, FileDigest, digest_file
from postpanic.dumps.sink import FileSink, LimitedSink, NullSink
from postpanic.dumps.write_calls import as_output_error, write_views
from postpanic.errors import FileFaultError, NoSpaceError, OutputError, OutputGoneError


def expected_digest(raw: bytes, chunk: int) -> FileDigest:
    parts = [hashlib.sha256(raw[at : at + chunk]) for at in range(0, len(raw), chunk)]
    whole = hashlib.sha256(b"".join(part.digest() for part in parts)).hexdigest()
    return FileDigest(len(raw), chunk, tuple(part.hexdigest() for part in parts), whole)


@contextmanager
def file_size_limited(limit_bytes: int) -> Iterator[None]:
    """Let the kernel itself refuse to make files longer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_is_written_in_any_order_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "out"
    sink = FileSink(path, overwrite=False)
    sink.write_at(10, [b"abc", memoryview(b"defg")[1:3], b""])
    sink.write_at(0, [np.arange(4, dtype=np.uint16).data])
    sink.write_at(11, [b"X"])
    assert sink.read_at(9, 6) == b"\0aXcef"
    assert sink.read_at(13, 4) == b"ef\0\0"
    sink.extend(20)
    sink.extend(5)
    digest = sink.finish()
    assert path.read_bytes() == b"\0\0\1\0\2\0\3\0\0\0aXcef" + bytes(5)
    assert digest == digest_file(path)
    assert digest.size_bytes == 20
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_many_small_parts_are_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "out"
    sink = FileSink(path, overwrite=False)
    parts = [random.Random(number).randbytes(number % 5) for number in range(5000)]
    sink.write_at(3, parts)
    sink.finish()
    assert path.read_bytes() == bytes(3) + b"".join(parts)


def test_calls_that_write_little_are_repeated() -> None:
    written = bytearray(100)

    def write_little(views: list[memoryview], offset: int) -> int:
        data = b"".join(views)[:7]
        written[offset : offset + len(data)] = data
        return len(data)

    parts = [bytes(range(30)), bytes(range(30, 31)), bytes(range(31, 90))]
    write_views(write_little, [memoryview(part) for part in parts], 5)
    assert bytes(written) == bytes(5) + bytes(range(90)) + bytes(5)
    with pytest.raises(OSError, match="error"):
        write_views(lambda *_: 0, [memoryview(b"x")], 0)


@pytest.mark.parametrize("numbers", [[0, 1, 2], [0, 5], [3, 4, 90, 91, 2000], [7]])
def test_rows_go_to_their_places_and_leave_others_alone(tmp_path: Path, numbers: list[int]) -> None:
    path = tmp_path / "out"
    background = random.Random(1).randbytes(24 * 1000)
    sink = FileSink(path, overwrite=False)
    sink.write_at(100, [background])
    rows = np.frombuffer(random.Random(2).randbytes(24 * len(numbers)), dtype=np.uint8).reshape(-1, 24)
    sink.write_rows(100, np.array(numbers, dtype=np.int64), rows)
    sink.finish()
    expected = bytearray(bytes(100) + background + bytes(24 * 2000))
    for number, row in zip(numbers, rows, strict=True):
        expected[100 + 24 * number : 124 + 24 * number] = row.tobytes()
    size = max(100 + len(background), 124 + 24 * numbers[-1])
    assert path.read_bytes() == bytes(expected[:size])


def test_a_file_that_is_there_is_replaced_only_on_demand(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"precious" * 100)
    with pytest.raises(OutputError, match="exists already") as caught:
        FileSink(path, overwrite=False)
    assert "-f" in caught.value.hint
    assert path.read_bytes() == b"precious" * 100
    sink = FileSink(path, overwrite=True)
    sink.write_at(0, [b"new"])
    sink.finish()
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("kind", ["same", "symlink", "hardlink"])
def test_the_input_is_never_the_output(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "vmcore"
    source.write_bytes(b"memory")
    path = source if kind == "same" else tmp_path / "other"
    if kind == "symlink":
        path.symlink_to(source)
    elif kind == "hardlink":
        path.hardlink_to(source)
    with pytest.raises(OutputError, match="is the file that is read"):
        FileSink(path, overwrite=True, sources=[tmp_path / "missing", source])
    assert source.read_bytes() == b"memory"


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    cases = [
        (tmp_path, "directory"),
        (tmp_path / "missing" / "out", "no such file"),
        (Path("/dev/null"), "not a regular file"),
        (fifo, "not a regular file"),
        (tmp_path / "zero\0byte", "null"),
    ]
    for path, message in cases:
        with pytest.raises(OutputError, match=message):
            FileSink(path, overwrite=True)


def test_errors_of_the_system_are_told_apart() -> None:
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        assert type(as_output_error(OSError(number, os.strerror(number)), "x")) is NoSpaceError
    assert type(as_output_error(OSError(errno.EPIPE, "broken pipe"), "x")) is OutputGoneError
    error = as_output_error(OSError(errno.EIO, "Input/output error"), "disk/out")
    assert type(error) is OutputError
    assert str(error) == "disk/out: cannot write: input/output error"


def test_a_full_disk_keeps_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "out"
    sink = FileSink(path, overwrite=False)
    with file_size_limited(1000):
        sink.write_at(0, [bytes(600)])
        with pytest.raises(NoSpaceError, match="file too large") as caught:
            sink.write_at(600, [b"a" * 300, b"b" * 300])
        assert caught.value.where == str(path)
        sink.write_at(0, [b"head"])
        with pytest.raises(NoSpaceError):
            sink.extend(2000)
        digest = sink.finish()
    assert path.read_bytes() == b"head" + bytes(596) + b"a" * 300 + b"b" * 100
    assert digest == digest_file(path)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [1, 0, 2, 4, 3], [0, 0, 1, 2, 3, 4], [0, 1, 3, 4]])
def test_digests_do_not_depend_on_the_order_of_writing(tmp_path: Path, order: list[int]) -> None:
    chunk = 1000
    path = tmp_path / "out"
    raw = bytearray(4321)
    hashes = ChunkHashes(chunk)
    with path.open("w+b") as file:
        for number in order:
            part = random.Random(number).randbytes(min(900, 4321 - 900 * number))
            raw[900 * number : 900 * number + len(part)] = part
            file.seek(900 * number)
            file.write(part)
            hashes.update(900 * number, memoryview(part))
        file.flush()
        digest = hashes.finish(4321, file.fileno())
    assert digest == expected_digest(bytes(raw), chunk)
    assert digest_file(path, chunk_size_bytes=chunk) == digest


def test_chunks_written_from_front_to_back_are_not_read_again() -> None:
    raw = random.Random(1).randbytes(3500)
    hashes = ChunkHashes(1000)
    for start, end in ((0, 10), (10, 1999), (1999, 2001), (2001, 3500)):
        hashes.update(start, memoryview(raw)[start:end])
    assert hashes.finish(3500, None) == expected_digest(raw, 1000)


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 5000])
def test_digest_of_a_file_of_any_size(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    raw = random.Random(size).randbytes(size)
    path.write_bytes(raw)
    assert digest_file(path, chunk_size_bytes=1000) == expected_digest(raw, 1000)


def test_hashing_can_be_left_out(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "out", overwrite=False, hashed=False, synced=False)
    sink.write_at(0, [b"abc"])
    sink.flush()
    assert sink.finish() == FileDigest(3)
    sink.close()


def test_digest_of_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileFaultError, match="no such file"):
        digest_file(tmp_path / "missing")


def test_limit_refuses_what_does_not_fit_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out"
    sink = LimitedSink(FileSink(path, overwrite=False), 1000)
    sink.reserve(200)
    sink.write_at(200, [bytes(700)])
    with pytest.raises(NoSpaceError, match="the limit of 1000 bytes is reached"):
        sink.write_at(900, [bytes(101)])
    with pytest.raises(NoSpaceError):
        sink.write_rows(900, np.array([0, 5], dtype=np.int64), np.zeros((2, 24), dtype=np.uint8))
    sink.write_at(0, [b"head"])
    sink.write_rows(0, np.array([2, 5], dtype=np.int64), np.ones((2, 24), dtype=np.uint8))
    sink.write_at(900, [bytes(100)])
    assert sink.finish().size_bytes == 1000
    assert path.stat().st_size == 1000
    with pytest.raises(NoSpaceError):
        LimitedSink(NullSink("x"), 10).reserve(11)


def test_limit_does_not_count_gaps(tmp_path: Path) -> None:
    sink = LimitedSink(FileSink(tmp_path / "out", overwrite=False), 1000)
    sink.reserve(100)
    sink.write_at(1 << 20, [bytes(900)])
    sink.extend(1 << 21)
    with pytest.raises(NoSpaceError):
        sink.write_at(500, [b"x"])
    assert sink.finish().size_bytes == 1 << 21


def test_null_sink_tells_the_size() -> None:
    sink = NullSink("nowhere")
    sink.reserve(100)
    sink.write_at(90, [b"abc", bytes(20)])
    sink.write_rows(100, np.array([3], dtype=np.int64), np.zeros((1, 24), dtype=np.uint8))
    sink.flush()
    assert sink.finish() == FileDigest(196)
    sink.close()
