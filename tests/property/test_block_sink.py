"""A dump on a device that is full of old data reads like the file it would have been."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from postpanic.dumps.digest import FileDigest, digest_file
from postpanic.saver.targets.block_sink import BlockSink

START = 4096
LIMIT = 1 << 16
ROW_BYTES = 24

writes = st.tuples(st.just("write"), st.integers(0, LIMIT - 700), st.integers(0, 600))
extensions = st.tuples(st.just("extend"), st.integers(0, LIMIT - 700), st.just(0))
rows = st.tuples(st.just("rows"), st.integers(0, 8000), st.integers(1, 2**60))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(reserved=st.integers(0, 12000), steps=st.lists(st.one_of(writes, extensions, rows), max_size=30))
def test_what_was_never_written_is_zero(reserved: int, steps: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        device = Path(name) / "device"
        device.write_bytes(b"\xa5" * (START + LIMIT + 4096))
        told: list[FileDigest] = []
        fd = os.open(device, os.O_RDWR)
        sink = BlockSink("x", fd, start=START, limit_bytes=LIMIT, record=lambda _: None, finished=told.append)
        model = bytearray(reserved)
        sink.reserve(reserved)
        for number, (kind, offset, value) in enumerate(steps):
            if kind == "extend":
                sink.extend(offset)
                model.extend(bytes(max(offset - len(model), 0)))
                continue
            if kind == "write":
                content = bytes([number + 1]) * value
                sink.write_at(offset, [content])
                put(model, offset, content)
            else:
                numbers = np.flatnonzero([(value >> bit) & 1 for bit in range(60)]).astype(np.int64)
                table = np.full((len(numbers), ROW_BYTES), number + 100, dtype=np.uint8)
                sink.write_rows(offset, numbers, table)
                for row in numbers.tolist():
                    put(model, offset + row * ROW_BYTES, bytes([number + 100]) * ROW_BYTES)
            assert sink.read_at(0, len(model) + 100) == bytes(model) + bytes(100)
        digest = sink.finish()
        data = device.read_bytes()
        assert data[START : START + len(model)] == bytes(model)
        assert data[:START] == b"\xa5" * START
        assert data[START + LIMIT :] == b"\xa5" * 4096
        assert told == [digest]
        copy = Path(name) / "copy"
        copy.write_bytes(model)
        assert digest_file(copy) == digest


def put(model: bytearray, offset: int, content: bytes) -> None:
    if content:
        model.extend(bytes(max(offset + len(content) - len(model), 0)))
        model[offset : offset + len(content)] = content
