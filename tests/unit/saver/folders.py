"""Targets that are folders, and can be made slow, full, broken or dead."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.digest import FileDigest
from postpanic.dumps.sink import FileSink, Sink
from postpanic.errors import OutputError


@dataclass
class Trouble:
    """What is wrong with a folder."""

    opens_after: int = 0
    """How many attempts to open it fail."""
    seconds_per_call: float = 0.0
    fails_after_calls: int | None = None
    """Of writing, in each attempt."""
    fails_attempts: int = 1 << 30
    hangs_after_calls: int | None = None
    hangs_on_open: bool = False
    room_bytes: int | None = None
    released: threading.Event = field(default_factory=threading.Event)


@dataclass
class Folder:
    """A directory as a target: what the protocol asks for, and no more."""

    root: Path
    trouble: Trouble = field(default_factory=Trouble)
    name: str = "folder"
    opened: int = 0
    dumps_begun: int = 0
    committed: bool = False
    takes_small_files: bool = True
    rotated: bool = False
    place: str = ""

    def open(self, dump_name: str) -> None:
        self.opened += 1
        if self.trouble.hangs_on_open:
            self.trouble.released.wait(60)
        if self.opened <= self.trouble.opens_after:
            raise OutputError("not there yet", where=self.name)
        self.place = str(self.root / dump_name)
        Path(self.place).mkdir(parents=True, exist_ok=True)

    def put(self, name: str, content: bytes) -> None:
        if not self.place:
            raise OutputError("not open", where=self.name)
        (Path(self.place) / name).write_bytes(content)

    def open_dump(self, name: str) -> Sink:
        self.dumps_begun += 1
        path = Path(self.place) / f"{name}-incomplete"
        return TroubledSink(FileSink(path, overwrite=True, synced=False), self.trouble, self.dumps_begun)

    @property
    def dump_files(self) -> tuple[str, ...]:
        return ("vmcore",)

    def read_back(self) -> str | None:
        return str(Path(self.place) / ("vmcore" if self.committed else "vmcore-incomplete"))

    def room_bytes(self) -> int | None:
        return self.trouble.room_bytes

    def commit(self) -> None:
        folder = Path(self.place)
        (folder / "vmcore-incomplete").rename(folder / "vmcore")
        self.committed = True

    def rotate(self) -> list[str]:
        assert self.committed, "old dumps go only when the new one is safe"
        self.rotated = True
        return []

    def close(self) -> None:
        pass

    def read(self, name: str) -> bytes:
        return (Path(self.place) / name).read_bytes()


class TroubledSink:
    is_stream = False

    def __init__(self, sink: FileSink, trouble: Trouble, attempt: int) -> None:
        self._sink, self._trouble, self._attempt, self._calls = sink, trouble, attempt, 0
        self.name = sink.name

    def _meet(self) -> None:
        self._calls += 1
        trouble = self._trouble
        time.sleep(trouble.seconds_per_call)
        if trouble.hangs_after_calls is not None and self._calls > trouble.hangs_after_calls:
            trouble.released.wait(60)
            raise OutputError("was hanging", where=self.name)
        fails = trouble.fails_after_calls is not None and self._calls > trouble.fails_after_calls
        if fails and self._attempt <= trouble.fails_attempts:
            raise OutputError("the device fails", where=self.name)

    def write_at(self, offset: int, parts: Sequence[memoryview | bytes]) -> None:
        self._meet()
        self._sink.write_at(offset, parts)

    def write_rows(self, table_offset: int, numbers: NDArray[np.int64], rows: NDArray[np.uint8]) -> None:
        self._sink.write_rows(table_offset, numbers, rows)

    def reserve(self, size_bytes: int) -> None:
        self._sink.reserve(size_bytes)

    def extend(self, size_bytes: int) -> None:
        self._sink.extend(size_bytes)

    def flush(self) -> None:
        self._sink.flush()

    def finish(self) -> FileDigest:
        return self._sink.finish()

    def close(self) -> None:
        self._sink.close()


def pick(targets: Sequence[Folder], plans: Sequence[object]) -> Callable[[object], Folder]:
    """Make the factory that gives each plan its folder."""
    by_plan = {id(plan): target for plan, target in zip(plans, targets, strict=True)}
    return lambda plan: by_plan[id(plan)]
