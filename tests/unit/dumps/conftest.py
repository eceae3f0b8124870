from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from postpanic.dumps.memory import Dump
from postpanic.dumps.open import open_dump

Opener = Callable[..., Dump]


@pytest.fixture
def open_bytes(tmp_path: Path) -> Iterator[Opener]:
    """Write each argument to a file of its own, and open them together."""
    opened: list[Dump] = []

    def write_and_open(*contents: bytes) -> Dump:
        paths = []
        for number, content in enumerate(contents):
            path = tmp_path / f"dump{len(opened)}.{number}"
            path.write_bytes(content)
            paths.append(path)
        opened.append(open_dump(paths))
        return opened[-1]

    yield write_and_open
    for dump in opened:
        dump.close()
