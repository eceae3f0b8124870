"""
A disk that loses its power: everything that is written to it is noted, so that any moment can be looked at later.

What was not synced may have reached the disk or not, in any order, each sector for itself.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SECTOR_BYTES = 512


@dataclass
class Recording:
    """The writes to one file, and when they were safe."""

    path: Path
    base: Path
    """What the file was before."""
    steps: list[tuple[int, bytes] | str] = field(default_factory=list)
    """A write, ``sync``, or a mark that the test made."""

    def mark(self, text: str) -> None:
        self.steps.append(text)

    def marks_before(self, count: int) -> list[str]:
        return [step for step in self.steps[:count] if isinstance(step, str) and step != "sync"]

    def image_after(self, count: int, target: Path, noise: random.Random | None) -> Path:
        """
        Make the disk as it may be if the power is cut after *count* steps.

        Without *noise* all that was written has arrived; with it what was not synced has arrived in part.
        """
        steps = self.steps[:count]
        synced = max((number for number, step in enumerate(steps) if step == "sync"), default=-1)
        shutil.copyfile(self.base, target)
        with target.open("r+b") as stream:
            for number, step in enumerate(steps):
                if isinstance(step, str):
                    continue
                offset, data = step
                # Of a write all, nothing, or any of its sectors.
                share = noise.choice((0.0, 0.5, 1.0)) if noise is not None and number > synced else 1.0
                for at, piece in split_sectors(offset, data):
                    if share == 1.0 or (share and noise is not None and noise.random() < share):
                        stream.seek(at)
                        stream.write(piece)
        return target


def split_sectors(offset: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    while data:
        size = min(SECTOR_BYTES - offset % SECTOR_BYTES, len(data))
        yield offset, data[:size]
        offset, data = offset + size, data[size:]


@contextmanager
def recording(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recording]:
    """Note all that this process writes to a file."""
    base = path.with_name(f"{path.name}.before")
    shutil.copyfile(path, base)
    record = Recording(path, base)
    identity = path.stat().st_ino, path.stat().st_dev

    def is_ours(fd: int) -> bool:
        status = os.fstat(fd)
        return (status.st_ino, status.st_dev) == identity

    real_write, real_write_parts = os.pwrite, os.pwritev

    def write(fd: int, data: bytes | memoryview, offset: int) -> int:
        done = real_write(fd, data, offset)
        if is_ours(fd):
            record.steps.append((offset, bytes(data)[:done]))
        return done

    def write_parts(fd: int, parts: Sequence[bytes | memoryview], offset: int) -> int:
        done = real_write_parts(fd, parts, offset)
        if is_ours(fd):
            record.steps.append((offset, b"".join(map(bytes, parts))[:done]))
        return done

    def note_sync(real: Callable[[int], None]) -> Callable[[int], None]:
        def call(fd: int) -> None:
            real(fd)
            if is_ours(fd):
                record.steps.append("sync")

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", write)
        patch.setattr(os, "pwritev", write_parts)
        patch.setattr(os, "fsync", note_sync(os.fsync))
        patch.setattr(os, "fdatasync", note_sync(os.fdatasync))
        yield record
